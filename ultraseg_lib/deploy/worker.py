"""One row of the benchmark in a process of its own: its memory, threads and limits are its alone."""

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from ultraseg_lib.deploy.backends import load_backend
from ultraseg_lib.deploy.frame import segment_frame, to_image
from ultraseg_lib.models import create_model

WARM_UP = 3  # untimed calls
LIMITS = {  # what makes the backends leave out newer instructions, read when they are loaded
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",  # convolutions of PyTorch and OpenVINO
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",  # its matrix products
        "ULTRASEG_MARCH": "x86-64-v3",  # our own kernels
    },
}


@dataclass(frozen=True)
class Setting:
    """What a row times; `isa` "avx2" leaves out newer instructions, "all" uses what there is."""

    model: str
    backend: str
    precision: str = "float32"
    threads: int = 1
    isa: str = "all"

    def label(self) -> str:
        """Say it in a line."""
        return f"{self.model} by {self.backend} in {self.precision}, {self.threads} thread(s), {self.isa}"


@dataclass(frozen=True)
class Scene:
    """What is segmented: a frame (H, W, 3) uint8 RGB, the same as JPEG, and its image (1, 3, S, S)."""

    frame: np.ndarray
    coded: np.ndarray
    image: np.ndarray

    @classmethod
    def of(cls, frame: np.ndarray, size: int) -> "Scene":
        """Make a scene of a frame."""
        coded = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1]
        return cls(frame, coded, np.ascontiguousarray(to_image(frame, size)))


def seeded_model(model: str, weights: Path | None) -> nn.Module:
    """Return a model in evaluation mode with these weights, else with those of seed 0."""
    torch.manual_seed(0)
    return create_model(model, weights=weights).eval()


def pin(threads: int) -> None:
    """Keep this process, where the system can, on the first `threads` cores that it may use."""
    cv2.setNumThreads(threads)
    torch.set_num_threads(threads)  # more threads than cores would wait for one another
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def sample(call: Callable[[], object], count: int) -> list[float]:
    """Time `count` calls in ms, after an untimed one that brings the data back into the cache."""
    call()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def peak_memory() -> float:
    """Return the most memory in MB that this process has held.

    Linux's ``ru_maxrss`` would count the parent's memory too, which a new process starts from.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def compare(logits: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """Compare two arrays of logits of one shape.

    Returns `parity`, the largest difference of a logit, and `pixels_equal`, the share of pixels
    whose masks at P = 0.5 agree.
    """
    return {
        "parity": float(np.abs(logits - exact).max()),
        "pixels_equal": float(((logits > 0) == (exact > 0)).mean()),
    }


def calls_of(run: Callable[[np.ndarray], np.ndarray], scene: Scene) -> dict[str, Callable]:
    """Return what is timed, by scope.

    "model", the logits alone; "frame", from the frame to a mask of its size; "file", with JPEG
    decoding.
    """
    size = scene.image.shape[-1]

    def from_file() -> np.ndarray:
        pixels = cv2.imdecode(scene.coded, cv2.IMREAD_COLOR)
        return segment_frame(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), run, size)

    return {
        "model": lambda: run(scene.image),
        "frame": lambda: segment_frame(scene.frame, run, size),
        "file": from_file,
    }


def _serve(pipe: Connection, setting: Setting) -> None:
    """Load a backend, compare it, then time what is asked for, until nothing is."""
    try:
        weights, scene, exact = pipe.recv()
        pin(setting.threads)  # before the backend starts its threads
        model = seeded_model(setting.model, weights)
        before, size = peak_memory(), scene.image.shape[-1]
        run = load_backend(setting.backend, model, size, setting.threads, setting.precision)
        found = compare(run(scene.image), exact)
        calls = calls_of(run, scene)
        for _ in range(WARM_UP):
            calls["file"]()
        pipe.send(found | {"memory_mb": peak_memory() - before, "peak_memory_mb": peak_memory()})
        for scope, count in iter(pipe.recv, None):
            pipe.send(sample(calls[scope], count))
    except (EOFError, BrokenPipeError):  # the parent is gone
        return
    except Exception as error:  # the parent says which row it was
        pipe.send(f"{type(error).__name__}: {error}")


@contextmanager
def limited(isa: str) -> Iterator[None]:
    """Set what makes a new process leave out instructions, for as long as the block lasts."""
    kept = dict(os.environ)
    os.environ.update(LIMITS.get(isa, {}))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


class Worker:
    """A process that times one row. It starts at once, so that many can start side by side."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        context = multiprocessing.get_context("spawn")  # a fresh process: nothing is inherited
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, setting), daemon=True)
        with limited(setting.isa):
            self.process.start()
        other.close()

    def receive(self) -> Any:
        """Wait for the answer; raise RuntimeError, with the reason, where there is none.

        The first, once all is loaded: parity, pixels_equal, and the MB of backend and process.
        """
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(5)
            answer = f"its process ended with exit code {self.process.exitcode}"
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def sample(self, scope: str, count: int) -> list[float]:
        """Return the times in ms of `count` calls; raises RuntimeError as `receive` does."""
        self.send(scope, count)
        return self.receive()

    def close(self) -> None:
        """Let the process end by itself, as torch.compile wants it, or end it after five seconds."""
        self.pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.terminate()
        self.process.join()

    def send(self, *words: object) -> None:
        """Say what to load and compare with, then what to time; the first waits for the start."""
        with suppress(OSError):  # where the process is gone `receive` says so
            self.pipe.send(words)
