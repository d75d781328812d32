"""Boundary targets: the thin band around a polyp that the boundary heads learn (section 3.1)."""

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_] | NDArray[np.uint8]

CANNY_THRESHOLDS = (30, 90)
ELLIPSE = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))


def _canny(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cv2.dilate(cv2.Canny(mask, *CANNY_THRESHOLDS), ELLIPSE)


def _morphological(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, ELLIPSE)


METHODS = {"canny": _canny, "morphological": _morphological}


def boundary_target(mask: Mask, method: str = "canny") -> NDArray[np.uint8]:
    """Draw the boundary band of one mask.

    `"canny"` is the paper's target (section 3.1): Canny(30, 90) on the 0/255 mask draws a line
    one pixel wide, and a 5×5 ellipse widens it to five. Of the two pixels at a straight edge
    Canny takes the left or upper one, so the band lies half a pixel off the edge.
    `"morphological"` is dilation minus erosion with the same ellipse: two pixels on either side
    of the edge, four wide and centred. Neither draws a line where the image frame cuts a polyp:
    the polyp does not end there.

    Args:
        mask: (H, W), bool, or uint8 that holds only 0 and 255.
        method: `"canny"` or `"morphological"`.

    Returns:
        (H, W) uint8 of 0 and 1; all 0 when the mask is empty or full.

    Raises:
        ValueError: another shape, dtype or value, or an unknown method.

    >>> mask = np.zeros((32, 32), bool)
    >>> mask[8:24, 8:24] = True
    >>> [int(boundary_target(mask, method)[16].sum()) for method in METHODS]  # two sides
    [10, 8]
    """
    if mask.ndim != 2:
        raise ValueError(f"mask has shape {mask.shape}; expected (H, W).")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; choose one of {sorted(METHODS)}.")
    return (METHODS[method](_as_0_255(mask)) > 0).view(np.uint8)


def boundary_targets(masks: Mask, method: str = "canny") -> NDArray[np.uint8]:
    """Draw the boundary bands of a stack of masks, each as `boundary_target` does.

    Args:
        masks: (N, H, W), bool, or uint8 that holds only 0 and 255; N may be 0.
        method: `"canny"` or `"morphological"`.

    Returns:
        (N, H, W) uint8 of 0 and 1.

    Raises:
        ValueError: another shape, dtype or value, or an unknown method.
    """
    if masks.ndim != 3:
        raise ValueError(f"masks have shape {masks.shape}; expected (N, H, W).")
    targets = np.empty(masks.shape, np.uint8)
    for target, mask in zip(targets, masks, strict=True):
        target[:] = boundary_target(mask, method)
    return targets


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
