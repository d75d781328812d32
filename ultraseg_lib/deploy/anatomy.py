"""Where an UltraSeg's time goes, before and after, and what each rewrite bought; on one core."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from ultraseg_lib.deploy import plan
from ultraseg_lib.deploy.backends import (
    cannot_run,
    load_backend,
    missing_part,
    openvino_runner,
    pytorch_runner,
)
from ultraseg_lib.deploy.inference import REWRITES, LogitsOnly, exact_form
from ultraseg_lib.deploy.timing import Timed, time_in_turns
from ultraseg_lib.deploy.worker import sample

PARTS = (
    "encoder1", "encoder2", "encoder3", "encoder4", "agf", "bottleneck",
    "decoder4", "decoder3", "decoder2", "decoder1",
)  # fmt: skip
PART_OF = {"ssa": "bottleneck", "head": "decoder1"}  # small modules, shown with their neighbour
REST = "the rest"  # the last x2, the supervised maps, copies


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch work on one thread."""
    kept = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(kept)


@contextmanager
def watched(network: nn.Module, spent: dict[str, float]) -> Iterator[None]:
    """Add the milliseconds of each named child of a network to `spent` by its part."""
    began: dict[str, float] = {}
    hooks = []
    for name, child in network.named_children():
        part = PART_OF.get(name, name)
        if part not in PARTS:
            continue

        def before(*_: object, name: str = name) -> None:
            began[name] = time.perf_counter()

        def after(*_: object, name: str = name, part: str = part) -> None:
            spent[part] += 1e3 * (time.perf_counter() - began[name])

        hooks += [child.register_forward_pre_hook(before), child.register_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _module_parts(network: nn.Module, run: Callable[[np.ndarray], np.ndarray]) -> Callable:
    """Return a function that runs a PyTorch backend once and returns its parts' milliseconds."""

    def once(image: np.ndarray) -> dict[str, float]:
        spent = dict.fromkeys(PARTS, 0.0)
        with watched(network, spent):
            run(image)
        return spent

    return once


def _part_timers(model: nn.Module, size: int) -> dict[str, Callable]:
    """Return what times the parts: eager with all heads, and our kernels or what is nearest."""
    eager = _module_parts(model, load_backend("eager", model, size))
    if not cannot_run("native", model, size) and not missing_part("native"):
        return {"before": eager, "after": plan.Plan(exact_form(model, size)).time_parts}
    exact = exact_form(model, size)
    return {"before": eager, "after": _module_parts(exact, pytorch_runner(LogitsOnly(exact), 1))}


def time_parts(model: nn.Module, image: np.ndarray, repeats: int = 50) -> list[dict[str, Any]]:
    """Return the median ms of each part of an `UltraSeg`: plain PyTorch before, deployed after.

    `image` (1, 3, S, S) float32 in [0, 1], contiguous. Raises ValueError for an S that is no
    multiple of the model's stride. The rows of REST hold what no part does: the last
    upsampling and, before, the supervised maps.
    """
    timers = _part_timers(model.eval(), image.shape[-1])
    found: dict[str, list[dict[str, float]]] = {when: [] for when in timers}
    with one_thread():
        for _ in range(repeats):
            for when, once in timers.items():
                once(image)  # brings the data back into the cache
                start = time.perf_counter()
                spent = once(image)
                whole = 1e3 * (time.perf_counter() - start)
                parts = {part: spent.get(part, 0.0) for part in PARTS}
                found[when].append(parts | {REST: whole - sum(parts.values())})
    rows = []
    for part in (*PARTS, REST):
        medians = {w: float(np.median([each[part] for each in found[w]])) for w in found}
        rows.append({"part": part} | {f"{w}_ms": round(ms, 4) for w, ms in medians.items()})
    return rows


def _steps(model: nn.Module, size: int) -> Iterator[tuple[str, str, Callable]]:
    """Yield each step on the way, its backend, and how to run it; each keeps those before it."""
    yield "all heads, as the paper times it", "eager", load_backend("eager", model, size)
    main = exact_form(model, size, ())
    yield "main head only", "inference", pytorch_runner(LogitsOnly(main), 1)
    engine = "inference" if missing_part("openvino") else "openvino"

    def load(network: nn.Module) -> Callable:
        if engine == "openvino":
            return openvino_runner(network, size, 1, "float32")
        return pytorch_runner(LogitsOnly(network), 1)

    if engine == "openvino":
        yield "another engine", engine, load(main)
    for count, name in enumerate(REWRITES, 1):
        yield name, engine, load(exact_form(model, size, tuple(REWRITES)[:count]))
    for backend, precision in ((engine, "bfloat16"), ("native", "float32"), ("native", "bfloat16")):
        if not cannot_run(backend, model, size, 1, precision) and not missing_part(backend):
            run = load_backend(backend, model, size, 1, precision)
            yield f"all rewrites, {precision}", backend, run


def time_rewrites(
    model: nn.Module, image: np.ndarray, frames: int, seconds: float
) -> list[dict[str, Any]]:
    """Return step, backend and the spread in ms of each step from the paper's way to our kernels.

    `model` is an `UltraSeg`, `image` (1, 3, S, S) float32 in [0, 1], contiguous. Each step keeps
    the rewrites before it; all are timed in turns, `frames` times or for `seconds`, whichever is
    less. Raises ValueError for an S that is no multiple of the model's stride.
    """
    with one_thread():  # also while the steps are made: they trace the network
        steps = list(_steps(model.eval(), image.shape[-1]))
        timed = [
            Timed(lambda count, run=run: sample(lambda: run(image), count), frames, seconds)
            for _, _, run in steps
        ]
        time_in_turns(timed, "rewrites")
    return [
        {"step": step, "backend": backend} | each.spread()
        for (step, backend, _), each in zip(steps, timed, strict=True)
    ]
