"""Time the loader: python tests/bench_loading.py.

One process, 256×256 frames from the cache, batches of 8 with augmentation and Canny boundary
targets. Not a test: times depend on the machine, and pytest does not collect this file.
"""

import os
import tempfile
import time

import cv2

from ultraseg_lib.data import load_generated
from ultraseg_lib.data.augmentation import AUGMENTATIONS
from ultraseg_lib.data.loading import Frames, training_batches

IMAGES = 240
SIZE = 256
BATCH = 8
EPOCHS = 4


def images_per_second(frames: Frames, augmentation: str) -> list[float]:
    """Take the rate of each epoch; the first also brings the cache into memory."""
    rates = []
    for epoch in range(EPOCHS):
        start = time.perf_counter()
        for _ in training_batches(frames, BATCH, augmentation, seed=0, epoch=epoch):
            pass
        rates.append(len(frames) / (time.perf_counter() - start))
    return rates


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ULTRASEG_OUTPUTS"] = folder
        frames = load_generated("synthetic", SIZE, IMAGES, seed=0)
        for threads in (1, 2):
            cv2.setNumThreads(threads)
            for name in AUGMENTATIONS:
                first, *later = images_per_second(frames, name)
                print(
                    f"{threads} threads, {name}: first epoch {first:.0f} images/s,"
                    f" later {min(later):.0f} to {max(later):.0f}"
                )


if __name__ == "__main__":
    main()
