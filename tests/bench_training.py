"""Images a second of training, ours against a plain loop. Prints, asserts nothing.

    python tests/bench_training.py [--models ultraseg_130k,unet_base] [--batches 4,32]

256×256, recipe ``strong``, generated images, augmentation and boundary targets included. The plain
loop is what one writes first: contiguous float32 tensors, a DataLoader with two workers, a look at
the loss after each step. Both take turns in rounds, so that a busy machine slows both.
"""

import argparse
import itertools
import os
import time
from collections.abc import Iterator
from statistics import median

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ultraseg_lib.data import Frames, load_generated
from ultraseg_lib.data.augmentation import augment
from ultraseg_lib.data.device import DeviceFrames
from ultraseg_lib.data.loading import Batch, ahead, to_batch, training_batches
from ultraseg_lib.models import create_model
from ultraseg_lib.models.operators import use_fast_operators
from ultraseg_lib.provenance import cpu_model
from ultraseg_lib.training import (
    COMPILE_FROM,
    RECIPES,
    _make_optimizer,
    loss_function,
    pick_device,
    precision_for,
    task_loss,
    train_step,
)

RECIPE, ROUNDS, WARM_UP = RECIPES["strong"], 3, 3


class PlainDataset(Dataset):
    """One augmented frame an item, as contiguous float32 tensors."""

    def __init__(self, frames: Frames, repeat: int) -> None:
        self.frames, self.repeat = frames, repeat

    def __len__(self) -> int:
        return self.repeat * len(self.frames)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, ...]:
        row = item % len(self.frames)
        rng = np.random.default_rng(item)
        pair = self.frames.images[row : row + 1], self.frames.masks[row : row + 1]
        batch = to_batch(*augment(*pair, "strong", rng))
        return batch.image[0].contiguous(), batch.mask[0], batch.boundary[0]


def plain_steps(model: torch.nn.Module, frames: Frames, size: int) -> Iterator[None]:
    """Train in eager float32, one step a `next`."""
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-2)
    loader = DataLoader(PlainDataset(frames, 100_000), size, shuffle=False, num_workers=2)
    for tensors in loader:
        batch = Batch(*(each.to(device) for each in tensors))
        loss = task_loss(model(batch.image, deep_supervision=True), batch, RECIPE)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        yield


def our_steps(model: torch.nn.Module, frames: Frames, size: int) -> Iterator[None]:
    """Train as `training.Trainer` does, one step a `next`."""
    device = next(model.parameters()).device
    model.to(memory_format=torch.channels_last)
    if device.type == "cpu":
        use_fast_operators(model)
    optimizer = _make_optimizer(list(model.parameters()), RECIPE)
    resident = DeviceFrames(frames, device) if device.type == "cuda" else None
    loss_of = loss_function(device, COMPILE_FROM)
    for epoch in itertools.count():
        setting = (size, "strong", 0, epoch)
        batches = (
            resident.training_batches(*setting)
            if resident
            else ahead(training_batches(frames, *setting))
        )
        for batch in batches:
            train_step(model, batch, optimizer, RECIPE, None, precision_for(device), loss_of)
            yield


def time_steps(steps: Iterator[None], count: int, device: torch.device) -> float:
    """Return the seconds of ``count`` steps."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        next(steps)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def compare(name: str, size: int, steps: int) -> dict[str, float]:
    """Return images a second of both loops, medians over rounds in turn."""
    device, frames = pick_device(), load_generated("synthetic", size=256, count=64, seed=1)
    loops = {}
    for kind, loop in (("plain", plain_steps), ("ours", our_steps)):
        torch.manual_seed(0)
        loops[kind] = loop(create_model(name).to(device).train(), frames, size)
        time_steps(loops[kind], WARM_UP, device)
    seconds = {kind: [] for kind in loops}
    for _ in range(ROUNDS):
        for kind, loop in loops.items():
            seconds[kind].append(time_steps(loop, steps, device))
    return {kind: steps * size / median(each) for kind, each in seconds.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="ultraseg_130k,ultraseg_108k,lbunet,unet_tiny")
    parser.add_argument("--batches", default="4")
    parser.add_argument("--steps", type=int, default=15)
    args = parser.parse_args()
    cores = os.cpu_count() or 1
    print(f"{cpu_model()}, {cores} cores, {pick_device()}, torch {torch.__version__}")
    for name, size in itertools.product(args.models.split(","), map(int, args.batches.split(","))):
        for threads in (1, cores) if pick_device().type == "cpu" else (1,):
            torch.set_num_threads(threads)
            rate = compare(name, size, args.steps)
            print(
                f"{name}, batch {size}, {threads} threads: plain {rate['plain']:.1f}, ours"
                f" {rate['ours']:.1f} images/s, {rate['ours'] / rate['plain']:.2f} times",
                flush=True,
            )
