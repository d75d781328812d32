"""Boundary targets: the thin band around a polyp that the boundary heads learn (section 3.1)."""

from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ultraseg_lib.choices import check_choice

Mask = NDArray[np.bool_] | NDArray[np.uint8]

CANNY_THRESHOLDS = (30, 90)
ELLIPSE = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
PAIR = np.ones((2, 2), np.uint8)


METHODS: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    "canny": lambda mask: cv2.dilate(cv2.Canny(mask, *CANNY_THRESHOLDS), ELLIPSE),
    "thin": lambda mask: cv2.dilate(cv2.Canny(mask, *CANNY_THRESHOLDS), PAIR),
    "morphological": lambda mask: cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, ELLIPSE),
}


def boundary_target(mask: Mask, method: str = "canny") -> NDArray[np.uint8]:
    """Draw the boundary band of one mask.

    `"canny"` is the paper's target (section 3.1): Canny on the 0/255 mask draws a line one pixel
    wide, and a 5×5 ellipse widens it to five; the thresholds, 30 and 90, are the released code's.
    Of the two pixels at a straight edge Canny takes the left or upper one, so the band lies half a
    pixel off the edge. `"thin"` widens the same line to two, the pixels on either side of the edge:
    about what is left at 256 px of the released code's band, which it draws on the mask of a
    camera's size. `"morphological"` is dilation minus erosion with the same ellipse: two pixels on
    either side of the edge, four wide and centred. None draws a line where the image frame cuts a
    polyp: the polyp does not end there.

    Args:
        mask: (H, W), bool, or uint8 that holds only 0 and 255.
        method: `"canny"`, `"thin"` or `"morphological"`.

    Returns:
        (H, W) uint8 of 0 and 1; all 0 when the mask is empty or full.

    Raises:
        ValueError: another shape, dtype or value, or an unknown method.

    >>> mask = np.zeros((32, 32), bool)
    >>> mask[8:24, 8:24] = True
    >>> [int(boundary_target(mask, method)[16].sum()) for method in METHODS]  # two sides
    [10, 4, 8]
    """
    if mask.ndim != 2 or not mask.size:
        raise ValueError(f"mask has shape {mask.shape}; expected (H, W) with pixels.")
    check_choice("edges", method, METHODS)
    return (METHODS[method](_as_0_255(mask)) > 0).view(np.uint8)


def boundary_targets(masks: Mask, method: str = "canny") -> NDArray[np.uint8]:
    """Draw the bands of masks (N, H, W), N may be 0, each as `boundary_target` does and raises."""
    if masks.ndim != 3:
        raise ValueError(f"masks have shape {masks.shape}; expected (N, H, W).")
    targets = [boundary_target(mask, method) for mask in masks]
    return np.array(targets, np.uint8).reshape(masks.shape)


def boundary_targets_on_device(masks: Tensor, method: str = "canny") -> Tensor:
    """Draw the same bands as `boundary_targets`, on the device where the masks are.

    A mask has no weak edges: where it changes at all, the Sobel gradient is at least 255, above
    both thresholds. Canny is then its thinning step alone: a pixel stays if no neighbour across the
    edge is steeper. OpenCV compares integers, and so does this: the result is equal, not close.

    Takes and returns (N, H, W) bool; raises ValueError for another type or shape, or an unknown
    method.
    """
    if masks.dtype != torch.bool or masks.ndim != 3:
        raise ValueError(
            f"masks: found {masks.dtype} of shape {tuple(masks.shape)}; give bool (N, H, W)"
        )
    check_choice("edges", method, METHODS)
    if method == "canny":
        return _dilate(_canny_line(masks), ELLIPSE)
    if method == "thin":
        return _dilate(_canny_line(masks), PAIR)
    return _dilate(masks, ELLIPSE) & _dilate(
        ~masks, ELLIPSE
    )  # nothing erodes from beyond the frame


def _dilate(masks: Tensor, kernel: NDArray[np.uint8]) -> Tensor:
    """Dilate boolean masks (N, H, W) as OpenCV does; an even kernel reaches up and to the left."""
    before, after = len(kernel) // 2, (len(kernel) - 1) // 2
    weight = torch.from_numpy(kernel).to(masks.device, torch.float32)[None, None]
    padded = F.pad(masks[:, None].float(), (before, after, before, after))
    return F.conv2d(padded, weight)[:, 0] > 0


def _canny_line(masks: Tensor) -> Tensor:
    """Return Canny's one-pixel line of boolean masks (N, H, W): gradient, then thinning."""
    padded = F.pad(masks[:, None].float(), (1, 1, 1, 1), mode="replicate")
    sobel = padded.new_tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    gradient = F.conv2d(padded, torch.stack([sobel, sobel.T])[:, None])
    dx, dy = gradient[:, 0], gradient[:, 1]
    steep = F.pad(dx.abs() + dy.abs(), (1, 1, 1, 1))

    def neighbour(down: int, right: int) -> Tensor:
        height, width = dx.shape[1:]
        return steep[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    here = neighbour(0, 0)
    slope = torch.where(dx == 0, torch.inf, dy.abs() / dx.abs())
    # OpenCV's tangents of 22.5 and 67.5 degrees, rounded to 15 bits
    flat, upright = slope < 13573 / 32768, slope > 13573 / 32768 + 2
    across = (here > neighbour(0, -1)) & (here >= neighbour(0, 1))
    along = (here > neighbour(-1, 0)) & (here >= neighbour(1, 0))
    rising = (here > neighbour(-1, 1)) & (here > neighbour(1, -1))
    falling = (here > neighbour(-1, -1)) & (here > neighbour(1, 1))
    slanted = torch.where(dx * dy < 0, rising, falling)
    kept = torch.where(flat, across, torch.where(upright, along, slanted))
    return kept & (here > 0)


def _as_0_255(mask: Mask) -> NDArray[np.uint8]:
    if mask.dtype == bool:
        return np.where(mask, np.uint8(255), np.uint8(0))
    # A mask of 0 and 1 has gradients below Canny's thresholds: its boundary would be silently
    # empty. A mask from a JPEG holds grey values, which would add false edges.
    if mask.dtype != np.uint8 or ((mask != 0) & (mask != 255)).any():
        raise ValueError(
            f"mask is {mask.dtype} with values from {mask.min()} to {mask.max()}; "
            "expected bool, or uint8 of 0 and 255: threshold it first."
        )
    return np.ascontiguousarray(mask)
