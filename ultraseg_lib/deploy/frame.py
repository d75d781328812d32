"""One video frame from the camera's pixels to a mask of the same size."""

from collections.abc import Callable

import cv2
import numpy as np


def to_image(frame: np.ndarray, size: int) -> np.ndarray:
    """Squash a frame (H, W, 3) uint8 RGB to an image (1, 3, size, size) float32 in [0, 1].

    As in training (section 4.1): bilinear, divided by 255. The pixels stay channels last in memory.
    Raises ValueError for another shape or type.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
        raise ValueError(
            f"frame: found {frame.dtype} of shape {frame.shape}; give uint8 (H, W, 3), RGB"
        )
    small = cv2.resize(frame, (size, size), interpolation=cv2.INTER_LINEAR)
    return np.multiply(small, np.float32(1 / 255), dtype=np.float32).transpose(2, 0, 1)[None]


def segment_frame(
    frame: np.ndarray, run: Callable[[np.ndarray], np.ndarray], size: int = 256
) -> np.ndarray:
    """Segment a frame (H, W, 3) uint8 RGB: return its mask (H, W) uint8, 255 where a polyp is.

    `run` comes from `backends.load_backend` for the same `size`; the threshold is P = 0.5.
    """
    logits = run(to_image(frame, size))[0, 0]
    mask = np.where(logits > 0, np.uint8(255), np.uint8(0))
    return cv2.resize(mask, frame.shape[1::-1], interpolation=cv2.INTER_NEAREST)
