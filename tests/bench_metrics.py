"""Time HD95 beside MONAI and medpy, and the Canny targets: python tests/bench_metrics.py.

One core, 256×256, blobs that overlap the way a good and a poor prediction do. Not a test: times
depend on the machine, and pytest does not collect this file.
"""

import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from medpy.metric.binary import hd95 as medpy_hd95
from monai.metrics import compute_hausdorff_distance

from ultraseg_lib.edges import boundary_targets
from ultraseg_lib.metrics import hausdorff95, score_images

PAIRS = 50
CANNY_MASKS = 1000


def blobs(count: int, seed: int, size: int = 256) -> np.ndarray:
    """Draw one ellipse a mask, of a polyp's usual sizes: (count, size, size) bool."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, size, size), np.uint8)
    for mask in masks:
        center, axes = rng.integers(70, size - 70, 2), rng.integers(15, 65, 2)
        angle = float(rng.integers(180))
        cv2.ellipse(mask, center.tolist(), axes.tolist(), angle, 0, 360, 1, -1)
    return masks.astype(bool)


def milliseconds(work: Callable[[], object], items: int, rounds: int = 5) -> float:
    """Take the median over some rounds of the time per item, after one round to warm up."""
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) / items * 1e3)
    return float(np.median(times))


def shift(masks: np.ndarray) -> np.ndarray:
    """Move each mask by (9, 7) pixels: a prediction of a Dice near 0.8."""
    return np.roll(masks, (9, 7), axis=(1, 2))


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    masks = blobs(PAIRS, seed=0)
    for name, preds in [("near", shift(masks)), ("far", blobs(PAIRS, seed=1))]:
        tensors = [torch.from_numpy(a)[:, None] for a in (preds, masks)]
        ours = milliseconds(lambda p=preds: hausdorff95(p, masks), PAIRS)
        monai = milliseconds(lambda t=tensors: compute_hausdorff_distance(*t, percentile=95), PAIRS)
        pairs = list(zip(preds, masks, strict=True))
        medpy = milliseconds(lambda p=pairs: [medpy_hd95(a, b) for a, b in p], PAIRS)
        print(f"hd95 of {name} pairs, ms: {ours:.2f}, MONAI {monai:.2f}, medpy {medpy:.2f}")
    print(f"score_images: {milliseconds(lambda: score_images(shift(masks), masks), PAIRS):.2f} ms")
    stack = blobs(CANNY_MASKS, seed=2)
    canny = milliseconds(lambda: boundary_targets(stack), CANNY_MASKS, rounds=3)
    print(f"canny: {canny:.3f} ms a mask, {1e3 / canny:.0f} masks/s")


if __name__ == "__main__":
    main()
