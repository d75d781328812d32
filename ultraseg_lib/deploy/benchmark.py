"""The speed of every model on this CPU: pinned cores, all rows in turns, outputs compared first."""

import copy
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from ultraseg_lib.data.synthetic import generate_frame
from ultraseg_lib.deploy import INSTRUCTION_SETS
from ultraseg_lib.deploy.backends import Runner, available_backends, cannot_run, load_backend
from ultraseg_lib.deploy.frame import segment_frame, to_image
from ultraseg_lib.models import MODELS, create_model, find_model
from ultraseg_lib.paths import PAPER, outputs_dir
from ultraseg_lib.provenance import provenance

FRAME = (1024, 1280)  # height and width of a colonoscope's picture
WARM_UP, TURN, LEAST = 3, 5, 10  # untimed calls, timed calls in a turn, timed calls at least
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}  # of the largest logit
FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd",
)  # fmt: skip


@dataclass
class Row:
    """One line of the benchmark: its settings, its parity, and its calls by scope."""

    model: str
    backend: str
    precision: str
    threads: int
    parity: float = float("nan")
    pixels_equal: float = float("nan")
    run: Runner | None = None
    calls: "dict[str, Timed]" = field(default_factory=dict)

    def result(self) -> dict[str, Any]:
        """Return the row as JSON: settings, parity, and the spread of its times."""
        kept = ("model", "backend", "precision", "threads", "parity", "pixels_equal")
        row = {name: getattr(self, name) for name in kept}
        row["frames"] = len(self.calls["model"].times)
        for scope, timed in self.calls.items():
            quarter, median, three, p95 = np.percentile(timed.times, [25, 50, 75, 95])
            start = "" if scope == "model" else f"{scope}_"
            spread = {"median_ms": median, "iqr_ms": three - quarter, "p95_ms": p95}
            row |= {f"{start}{name}": round(float(value), 4) for name, value in spread.items()}
        return row


def table4_models() -> list[str]:
    """Return the names of the models of Table 4, in its order."""
    titles = {info.title: name for name, info in MODELS.items()}
    return [titles[title] for title in pd.read_csv(PAPER / "table4_cpu.csv")["model"]]


def instruction_sets() -> list[str]:
    """Return which vector instructions (of FLAGS) the processor has, as Linux names them."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        words = set()
    return [flag for flag in FLAGS if flag in words]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keep this thread, and those it starts, on the first `threads` cores."""
    cv2_threads = cv2.getNumThreads()
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    try:
        cv2.setNumThreads(threads)
        if allowed:
            os.sched_setaffinity(0, sorted(allowed)[:threads])
        yield
    finally:
        cv2.setNumThreads(cv2_threads)
        if allowed:
            os.sched_setaffinity(0, allowed)


def trained_weights(name: str) -> Path | None:
    """Return the weights of a finished reference run of this model, if there is one."""
    runs = (outputs_dir("reference") / "runs").glob(f"{name}-*/weights.safetensors")
    return min(runs, default=None)


def build_model(name: str) -> nn.Module:
    """Return a model in evaluation mode, trained where `trained_weights` has some, else seed 0."""
    torch.manual_seed(0)
    return create_model(find_model(name).name, weights=trained_weights(name)).eval()


def default_backends() -> list[str]:
    """Return every backend that is here, OpenVINO in bfloat16 too where the CPU has it."""
    names = available_backends()
    has_bfloat16 = any(flag.endswith("_bf16") for flag in instruction_sets())
    return [*names, "openvino:bfloat16"] if "openvino" in names and has_bfloat16 else names


@dataclass
class Timed:
    """A call to be timed on `threads` cores: `frames` times or for `seconds`, whichever is less."""

    call: Callable[[], object]
    threads: int = 1
    frames: int = 200
    seconds: float = 20.0
    times: list[float] = field(default_factory=list)  # milliseconds

    @property
    def is_done(self) -> bool:
        """Return whether there are enough times; LEAST of them there must be."""
        late = sum(self.times) >= 1e3 * self.seconds
        return len(self.times) >= (LEAST if late else max(self.frames, LEAST))

    def turn(self) -> None:
        """Time up to TURN calls after an untimed one, which brings the data back into the cache."""
        with pinned(self.threads):
            self.call()
            for _ in range(min(TURN, max(self.frames, LEAST) - len(self.times))):
                start = time.perf_counter()
                self.call()
                self.times.append(1e3 * (time.perf_counter() - start))


def time_in_turns(calls: list[Timed], label: str = "benchmark") -> None:
    """Time all calls in turns, so that whatever else the machine does falls on each alike."""
    frames = sum(max(each.frames, LEAST) for each in calls)
    with tqdm(total=frames, desc=label, disable=None, leave=False) as bar:
        while waiting := [each for each in calls if not each.is_done]:
            for each in waiting:
                before = len(each.times)
                each.turn()
                bar.update(len(each.times) - before)


def compare(row: Row, image: np.ndarray, exact: np.ndarray) -> None:
    """Compare a row's logits with the trained model's in float64; raise ValueError if they differ.

    Sets `parity`, the largest absolute difference of a logit, and `pixels_equal`, the share of
    mask pixels that agree.
    """
    logits = row.run(image)
    row.parity = float(np.abs(logits - exact).max())
    row.pixels_equal = float(((logits > 0) == (exact > 0)).mean())
    allowed = TOLERANCE[row.precision] * max(1.0, float(np.abs(exact).max()))
    if not row.parity <= allowed:
        raise ValueError(
            f"{row.model} by {row.backend} in {row.precision}: logits are off by {row.parity:.3g}, "
            f"allowed is {allowed:.3g}; its speed would mean nothing"
        )


def logits_in_float64(model: nn.Module, image: np.ndarray) -> np.ndarray:
    """Return the logits of the trained model in float64, against which all rows are compared."""
    with torch.no_grad():
        return copy.deepcopy(model).double()(torch.from_numpy(image.copy()).double()).logits.numpy()


def scenes(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a generated frame (1024, 1280, 3) uint8 RGB, its JPEG bytes, and its image."""
    square = generate_frame(seed=7, index=0, size=max(FRAME)).image
    frame = np.ascontiguousarray(square[: FRAME[0]])
    coded = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1]
    return frame, coded, np.ascontiguousarray(to_image(frame, size))


def plan_rows(
    models: list[str], backends: list[str], threads: list[int], size: int
) -> tuple[list[Row], dict[str, nn.Module], list[str]]:
    """Return the rows that can run, the models by name, and why each other row cannot."""
    built = {name: build_model(name) for name in models}
    rows, left_out = [], []
    for name in models:
        for words in backends:
            backend, _, precision = words.partition(":")
            for count in threads:
                row = Row(name, backend, precision or "float32", count)
                reason = cannot_run(backend, built[name], size, count, row.precision)
                if reason.startswith(("backend", "precision")):
                    raise ValueError(reason)
                if reason:
                    left_out.append(f"{name}, {backend}, {count} threads: {reason}")
                else:
                    rows.append(row)
    return rows, built, left_out


def prepare(
    row: Row, model: nn.Module, exact: np.ndarray, scene: tuple, frames: int, seconds: float
) -> None:
    """Load a row's backend, compare its logits, warm it up and set up its calls.

    Scopes: "model", the logits alone; "frame", from the frame to a mask of its size; "file", with
    JPEG decoding. The last two get a quarter of the frames.
    """
    frame, coded, image = scene
    size = image.shape[-1]
    with pinned(row.threads):  # the threads that a backend starts stay on these cores
        row.run = load_backend(row.backend, model, size, row.threads, row.precision)
        compare(row, image, exact)
        for _ in range(WARM_UP):
            row.run(image)

    def from_file() -> np.ndarray:
        pixels = cv2.imdecode(coded, cv2.IMREAD_COLOR)
        return segment_frame(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), row.run, size)

    part = (row.threads, frames // 4, seconds / 4)
    row.calls = {
        "model": Timed(lambda: row.run(image), row.threads, frames, seconds),
        "frame": Timed(lambda: segment_frame(frame, row.run, size), *part),
        "file": Timed(from_file, *part),
    }


def machine() -> dict[str, Any]:
    """Return what the numbers hang on: processor, instruction sets and limits, versions, memory."""
    found = provenance()
    for name in ("onnxruntime", "openvino"):
        try:
            found["versions"][name] = version(name)
        except PackageNotFoundError:
            found["versions"][name] = "missing"
    limits = {key: os.environ[key] for key in INSTRUCTION_SETS["avx2"] if key in os.environ}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "cpu": found["cpu"],
        "instruction_sets": instruction_sets(),
        "instruction_limits": limits,
        "peak_memory_mb": round(peak, 1),
        "provenance": found,
    }


def with_speedup(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each row how many times as fast it is as the same model, eager, on as many cores."""
    eager = {(r["model"], r["threads"]): r["median_ms"] for r in rows if r["backend"] == "eager"}
    for row in rows:
        base = eager.get((row["model"], row["threads"]))
        row["speedup"] = round(base / row["median_ms"], 3) if base else None
    return rows


def benchmark(
    models: list[str] | None = None,
    backends: list[str] | None = None,
    threads: list[int] | None = None,
    size: int = 256,
    frames: int = 200,
    seconds: float = 20.0,
) -> dict[str, Any]:
    """Time models (default: Table 4) by backends (default: all here) on one core and on all.

    A backend's name may carry a precision, as in "openvino:bfloat16". Returns what `machine` says,
    the protocol, `rows` (times in ms) and `left_out`, rows that cannot be. Raises ValueError for an
    unknown name, and where a row's logits differ from the trained model's: then nothing is timed.
    """
    threads = sorted(set(threads or (1, cores())))
    if min(threads) < 1 or max(threads) > cores():
        raise ValueError(f"threads: found {threads}; this process may use 1 to {cores()} cores")
    backends = backends or default_backends()
    rows, built, left_out = plan_rows(models or table4_models(), backends, threads, size)
    scene = scenes(size)
    exact = {name: logits_in_float64(model, scene[2]) for name, model in built.items()}
    for row in tqdm(rows, "load and compare", disable=None, leave=False):
        prepare(row, built[row.model], exact[row.model], scene, frames, seconds)
    time_in_turns([call for row in rows for call in row.calls.values()])
    protocol = {
        "image_size": size,
        "frame": FRAME,
        "frames": max(frames, LEAST),
        "seconds": seconds,
    }
    protocol |= {
        "warm_up": WARM_UP,
        "turn": TURN,
        "weights": {n: bool(trained_weights(n)) for n in built},
    }
    results = with_speedup([row.result() for row in rows])
    return machine() | {"protocol": protocol, "left_out": left_out, "rows": results}


def table(result: dict[str, Any]) -> str:
    """Return the rows of a benchmark as text."""
    columns = ["model", "backend", "precision", "threads", "median_ms", "iqr_ms", "p95_ms",
               "frame_median_ms", "file_median_ms", "speedup", "parity"]  # fmt: skip
    shown = pd.DataFrame(result["rows"], columns=columns)
    return shown.to_string(index=False, float_format=lambda value: f"{value:.3g}")
