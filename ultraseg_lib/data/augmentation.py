"""Random changes to training frames: the paper's two, and stronger sets by name."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

from ultraseg_lib.choices import check_choice


@dataclass(frozen=True)
class Augmentation:
    """How far each random change may go; the defaults change nothing.

    ``small_angle`` and ``any_angle_share``: degrees either way, and how often any angle is drawn
    instead. ``scale``: lowest and highest zoom. ``shift``: pixels at 256. ``brightness``,
    ``contrast``, ``colour``: relative half-widths. ``border``, ``mask_border``: OpenCV's way to
    fill what a turn uncovers. ``sides``: of a batch, as shares of the image's; one is drawn for
    each.
    """

    small_angle: float = 0.0
    any_angle_share: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0
    flip_vertical: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    colour: float = 0.0
    border: int = cv2.BORDER_CONSTANT
    mask_border: int = cv2.BORDER_CONSTANT
    sides: tuple[float, ...] = (1.0,)

    @property
    def recolours(self) -> bool:
        """Return whether it changes colours at all."""
        return bool(self.brightness or self.contrast or self.colour)


STRONG = Augmentation(
    small_angle=15,
    any_angle_share=0.5,
    scale=(0.8, 1.3),
    shift=20,
    flip_vertical=True,
    brightness=0.15,
    contrast=0.25,
    colour=0.1,
    border=cv2.BORDER_REFLECT_101,
    mask_border=cv2.BORDER_REFLECT_101,
)
AUGMENTATIONS = {
    # The released code's (the paper names none): rotation within ±10 degrees, horizontal flip.
    "paper": Augmentation(small_angle=10),
    # The same with a fault of the released code, for the ablation: only the image is mirrored.
    "mirrored_image": Augmentation(small_angle=10, border=cv2.BORDER_REFLECT_101),
    "strong": STRONG,
    # Smaller images hold smaller polyps, and cost less: multi-scale training, usual in the field.
    "multiscale": replace(STRONG, sides=(0.5, 0.75, 1.0)),
}
SIDE_STEP = 32  # px; every model takes sides that are multiples of it


def _geometry(setting: Augmentation, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random (2, 3) affine matrix: rotation, zoom, shift and flips about the centre."""
    angle = rng.uniform(-setting.small_angle, setting.small_angle)
    if rng.random() < setting.any_angle_share:
        angle = rng.uniform(-180, 180)
    middle = (size - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), angle, rng.uniform(*setting.scale))
    matrix[:, 2] += rng.uniform(-1, 1, 2) * setting.shift * size / 256
    flips = (rng.random() < 0.5, rng.random() < 0.5 and setting.flip_vertical)
    for axis, flipped in enumerate(flips):  # x' = (size - 1) - x
        if flipped:
            matrix[axis] = -matrix[axis]
            matrix[axis, 2] += size - 1
    return matrix


class Change(NamedTuple):
    """What was drawn for one frame: a (2, 3) affine matrix, and the change of its colours.

    ``side``: of the square that the matrix leads to, px.
    """

    side: int
    matrix: np.ndarray
    contrast: float
    brightness: float
    gains: np.ndarray


def draw_side(setting: Augmentation, size: int, rng: np.random.Generator) -> int:
    """Draw the side of a batch, px, from images of ``size`` pixels."""
    if len(setting.sides) == 1:
        return size
    share = rng.choice(setting.sides)
    return size if share == 1 else max(1, int(size * share) // SIDE_STEP) * SIDE_STEP


def draw_change(setting: Augmentation, size: int, side: int, rng: np.random.Generator) -> Change:
    """Draw the change of one frame of ``size`` pixels, which becomes one of ``side``."""
    matrix = _geometry(setting, size, rng)
    matrix = matrix * (side / size)
    matrix[:, 2] += (side / size - 1) / 2  # pixel centres stay on pixel centres
    return Change(
        side,
        matrix,
        1 + rng.uniform(-setting.contrast, setting.contrast),
        255 * rng.uniform(-setting.brightness, setting.brightness),
        1 + rng.uniform(-setting.colour, setting.colour, 3),
    )


def _colour(image: np.ndarray, change: Change) -> np.ndarray:
    """Change contrast, brightness and colour balance: three lookup tables, one a channel."""
    middle = float(image.mean())
    levels = np.arange(256)[:, None]
    table = ((levels - middle) * change.contrast + middle) * change.gains + change.brightness
    return cv2.LUT(image, table.clip(0, 255).astype(np.uint8).reshape(1, 256, 3))


def _augment_one(
    image: np.ndarray, mask: np.ndarray, setting: Augmentation, change: Change
) -> tuple[np.ndarray, np.ndarray]:
    """Augment one (S, S, 3) image and its (S, S) mask by the same geometry."""
    warp: Callable[..., np.ndarray] = cv2.warpAffine
    to = (change.matrix, (change.side, change.side))
    image = warp(image, *to, flags=cv2.INTER_LINEAR, borderMode=setting.border)
    mask = warp(mask, *to, flags=cv2.INTER_NEAREST, borderMode=setting.mask_border)
    return (_colour(image, change) if setting.recolours else image), mask


def find_augmentation(name: str) -> Augmentation:
    """Return an augmentation by name; raise ValueError, with the valid names, for an unknown one."""
    check_choice("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name]


def augment(
    images: np.ndarray, masks: np.ndarray, name: str, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Augment a batch: images (B, S, S, 3) uint8, masks (B, S, S) uint8 of 0 and 255.

    Images are interpolated linearly, masks by the nearest pixel, so masks stay binary. Under
    "multiscale" the batch may come back smaller. Raises ValueError for an unknown ``name``, another
    shape or another type.
    """
    setting = find_augmentation(name)
    square = images.ndim == 4 and images.shape[1:] == (images.shape[1], images.shape[1], 3)
    whole = images.dtype == masks.dtype == np.uint8
    if not square or not whole or masks.shape != images.shape[:3]:
        raise ValueError(
            f"found images of {images.dtype} {images.shape} and masks of {masks.dtype} {masks.shape};"
            " give uint8 (B, S, S, 3) and (B, S, S)"
        )
    size = images.shape[1]
    side = draw_side(setting, size, rng)
    pairs = [
        _augment_one(image, mask, setting, draw_change(setting, size, side, rng))
        for image, mask in zip(images, masks, strict=True)
    ]
    return np.stack([image for image, _ in pairs]), np.stack([mask for _, mask in pairs])
