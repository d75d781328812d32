"""Images a second of training: python tests/bench_training.py [model ...]. Prints, asserts nothing.

Batch 4 at 256×256, recipe ``strong``, generated images, augmentation and boundary targets included.
"""

import itertools
import os
import sys
import time

import torch

from ultraseg_lib.data import load_generated
from ultraseg_lib.data.loading import training_batches
from ultraseg_lib.models import create_model
from ultraseg_lib.provenance import cpu_model
from ultraseg_lib.training import RECIPES, _make_optimizer, train_step

BATCHES, WARM_UP = 40, 3


def images_per_second(name: str) -> float:
    """Train one model for some batches and return images a second."""
    recipe = RECIPES["strong"]
    frames = load_generated("synthetic", size=256, count=48, seed=1)
    torch.manual_seed(0)
    model = create_model(name).to(memory_format=torch.channels_last).train()
    optimizer = _make_optimizer(model, recipe)
    epochs = (
        training_batches(frames, recipe.batch_size, recipe.augmentation, 0, epoch)
        for epoch in itertools.count()
    )
    batches = itertools.islice(itertools.chain.from_iterable(epochs), BATCHES + WARM_UP)
    for number, batch in enumerate(batches):
        if number == WARM_UP:
            began = time.perf_counter()
        train_step(model, batch, optimizer, recipe)
    return BATCHES * recipe.batch_size / (time.perf_counter() - began)


if __name__ == "__main__":
    print(f"{cpu_model()}, {os.cpu_count()} cores, torch {torch.__version__}")
    for name in sys.argv[1:] or ["ultraseg_130k", "ultraseg_108k", "lbunet", "unet_tiny"]:
        for threads in (1, os.cpu_count() or 1):
            torch.set_num_threads(threads)
            print(
                f"{name}: {images_per_second(name):.1f} images/s on {threads} threads", flush=True
            )
