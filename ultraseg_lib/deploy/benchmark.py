"""The speed of every model on this CPU: pinned cores, rows in turns, outputs compared first."""

import copy
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from ultraseg_lib.choices import check_choice
from ultraseg_lib.data.synthetic import generate_frame
from ultraseg_lib.deploy import native
from ultraseg_lib.deploy.anatomy import time_parts, time_rewrites
from ultraseg_lib.deploy.backends import (
    REDUCIBLE,
    available_backends,
    cannot_run,
    has_bfloat16,
    load_backend,
    split_words,
)
from ultraseg_lib.deploy.frame import to_image
from ultraseg_lib.deploy.timing import LEAST, TURN, Timed, time_in_turns
from ultraseg_lib.deploy.worker import (
    LIMITS,
    WARM_UP,
    Scene,
    Setting,
    Worker,
    compare,
    seeded_model,
)
from ultraseg_lib.models import MODELS, create_model
from ultraseg_lib.paths import PAPER, outputs_dir, write_json
from ultraseg_lib.provenance import package_versions, provenance, usable_cores
from ultraseg_lib.study import load_profile, test_frames
from ultraseg_lib.weights import shipped_weights

FRAME = (1024, 1280)  # height and width of a colonoscope's picture
PARITY = 1e-3  # how far a float32 logit may be from the trained model's
REWRITTEN = "ultraseg_130k"  # the model whose parts and rewrites are timed
FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "asimd",
)  # fmt: skip


@dataclass
class Row:
    """One line of the benchmark: its setting, what its process said when loaded, and its times."""

    worker: Worker
    found: dict[str, float] = field(default_factory=dict)
    timed: dict[str, Timed] = field(default_factory=dict)
    fault: str = ""

    def check(self, exact: np.ndarray) -> None:
        """Wait until the process has loaded and compared; note what is wrong, if anything is."""
        try:
            self.found = self.worker.receive()
            self.fault = fault(self.worker.setting, self.found, exact)
        except RuntimeError as error:
            self.fault = str(error)

    def plan(self, frames: int, seconds: float) -> None:
        """Set up what is timed; the whole frame and the file get a quarter of the frames."""
        for scope, share in (("model", 1), ("frame", 4), ("file", 4)):
            sampler = partial(self.sample, scope)
            self.timed[scope] = Timed(sampler, frames // share, seconds / share)

    def sample(self, scope: str, count: int) -> list[float]:
        """Time so many calls, in ms; where the process fails note why, and end by endless times."""
        try:
            return [math.inf] * count if self.fault else self.worker.sample(scope, count)
        except RuntimeError as error:
            self.fault = str(error)
        return [math.inf] * count

    def result(self) -> dict[str, Any]:
        """Return the row as JSON: setting, parity, memory, and the spread of its times."""
        row = vars(self.worker.setting) | {k: round(v, 7) for k, v in self.found.items()}
        row["frames"] = len(self.timed["model"].times)
        for scope, timed in self.timed.items():
            start = "" if scope == "model" else f"{scope}_"
            row |= {f"{start}{name}": value for name, value in timed.spread().items()}
        return row


def table4_models() -> list[str]:
    """Return the names of the models of Table 4, in its order."""
    titles = {info.title: name for name, info in MODELS.items()}
    return [titles[title] for title in pd.read_csv(PAPER / "table4_cpu.csv")["model"]]


def instruction_sets() -> list[str]:
    """Return which vector instructions (of FLAGS) the processor has, as Linux names them."""
    words = native.processor().split()
    return [flag for flag in FLAGS if flag in words]


def default_backends() -> list[str]:
    """Return every backend that is here, those with bfloat16 in it too where the CPU has it."""
    names = available_backends()
    reducible = [name for name in REDUCIBLE if name in names and has_bfloat16(name)]
    return [*names, *(f"{name}:bfloat16" for name in reducible)]


def timed_weights(name: str) -> Path | None:
    """Return the weights with which a model is timed: a reference run's, else none (then seed 0)."""
    return next(iter(shipped_weights(name).values()), None)


def plan_settings(
    models: list[str], backends: list[str], threads: list[int], isas: list[str], size: int
) -> tuple[list[Setting], list[str]]:
    """Return the settings that can run, and why each other one cannot.

    Raises ValueError for a word that no backend, precision or instruction set has, and where
    nothing can run.
    """
    for isa in isas:
        check_choice("isas", isa, ("all", *LIMITS))
    settings, left_out = [], []
    for name in models:
        model = create_model(name)
        for words, count, isa in product(backends, threads, isas):
            backend, precision = split_words(words)
            setting = Setting(name, backend, precision, count, isa)
            reason = cannot_run(backend, model, size, count, precision, isa)
            if reason.startswith(("backend", "precision")):
                raise ValueError(reason)
            if reason:
                left_out.append(f"{setting.label()}: {reason}")
            else:
                settings.append(setting)
    if not settings:
        raise ValueError(
            f"nothing can be timed: {left_out[0] if left_out else 'no model is named'}"
        )
    return settings, left_out


def fault(setting: Setting, found: dict[str, float], exact: np.ndarray) -> str:
    """Say how a row's logits are not the trained model's, or nothing: then it may be timed.

    `found` is what `worker.compare` returns, `exact` (1, out, S, S) the logits in float64. In
    float32 the largest difference must be within PARITY, in reduced precision within a tenth of the
    largest logit.
    """
    allowed = PARITY if setting.precision == "float32" else 0.1 * float(np.abs(exact).max())
    if found["parity"] <= allowed:
        return ""
    return f"logits are off by {found['parity']:.3g}, allowed is {allowed:.3g}"


def logits_in_float64(model: nn.Module, image: np.ndarray) -> np.ndarray:
    """Return the logits (1, out, S, S) of the trained model in float64; all rows are held to them.

    `image` (1, 3, S, S), any float type, in [0, 1].
    """
    with torch.no_grad():
        return copy.deepcopy(model).double()(torch.from_numpy(image.copy()).double()).logits.numpy()


def generated_scene(size: int) -> Scene:
    """Return the generated frame on which all is timed, of a colonoscope's size, with its image."""
    square = generate_frame(seed=7, index=0, size=max(FRAME)).image
    return Scene.of(np.ascontiguousarray(square[: FRAME[0]]), size)


@contextmanager
def working(
    settings: list[Setting], weights: Path | None, scene: Scene, exact: np.ndarray
) -> Iterator[list[Row]]:
    """Give a row a setting, each with its process, which has loaded and compared; end them then."""
    rows: list[Row] = []
    try:
        for setting in settings:
            rows.append(Row(Worker(setting)))
        for row in rows:
            row.worker.send(weights, scene, exact)
        for row in rows:
            row.check(exact)
        yield rows
    finally:
        for row in rows:
            row.worker.close()


def time_model(
    name: str, settings: list[Setting], scene: Scene, frames: int, seconds: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Time one model's rows in turns; return them, and why rows that failed are not among them."""
    weights = timed_weights(name)
    exact = logits_in_float64(seeded_model(name, weights), scene.image)
    with working(settings, weights, scene, exact) as rows:
        for row in rows:
            if not row.fault:
                row.plan(frames, seconds)
        time_in_turns([each for row in rows for each in row.timed.values()], name)
        failed = [f"{row.worker.setting.label()}: {row.fault}" for row in rows if row.fault]
        return [row.result() for row in rows if not row.fault], failed


def with_speedup(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each row how many times as fast it is as the same model, eager, on the same cores."""

    def key(row: dict[str, Any]) -> tuple:
        return row["model"], row["threads"], row["isa"]

    eager = {key(row): row["median_ms"] for row in rows if row["backend"] == "eager"}
    for row in rows:
        base = eager.get(key(row))
        row["speedup"] = round(base / row["median_ms"], 3) if base else None
    return rows


def machine() -> dict[str, Any]:
    """Return what the numbers hang on: processor, instruction sets, cores, versions, load."""
    found = provenance()
    found["versions"] |= package_versions(("onnxruntime", "openvino"))
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {
        "cpu": found["cpu"], "instruction_sets": instruction_sets(), "cores": usable_cores(),
        "load": load, "provenance": found,
    }  # fmt: skip


def _check_threads(threads: list[int]) -> None:
    cores = usable_cores()
    if min(threads) < 1 or max(threads) > cores:
        raise ValueError(f"threads: found {threads}; this process may use 1 to {cores} cores")


def _protocol(size: int, frames: int, seconds: float) -> dict[str, Any]:
    return {
        "image_size": size, "frame": FRAME, "frames": max(frames, LEAST), "seconds": seconds,
        "warm_up": WARM_UP, "turn": TURN, "weights": {},
    }  # fmt: skip


def _anatomy(image: np.ndarray, frames: int, seconds: float) -> dict[str, list[dict[str, Any]]]:
    network = seeded_model(REWRITTEN, timed_weights(REWRITTEN))
    rewrites = time_rewrites(network, image, frames, seconds)
    return {"parts": time_parts(network, image), "rewrites": rewrites}


def benchmark(
    path: Path,
    models: list[str] | None = None,
    backends: list[str] | None = None,
    threads: list[int] | None = None,
    isas: list[str] | None = None,
    size: int = 256,
    frames: int = 200,
    seconds: float = 20.0,
) -> dict[str, Any]:
    """Time models (default: Table 4) by backends (default: all here) on one core and on all.

    A backend's name may carry a precision, as in "openvino:bfloat16"; `isas` out of "all" and
    "avx2". Returns what `machine` says, the protocol, `rows` (ms, MB) and `left_out`, rows that
    cannot be or failed; with REWRITTEN on one core also its `parts` and `rewrites`. What there is
    after each model is written to `path`. Raises ValueError for an unknown name and where nothing
    can run. A row whose logits differ from the trained model's is left out, not timed.
    """
    threads = sorted(set(threads or (1, usable_cores())))
    models, isas = models or table4_models(), isas or ["all"]
    _check_threads(threads)
    scene = generated_scene(size)
    settings, left_out = plan_settings(models, backends or default_backends(), threads, isas, size)
    result = machine() | {"protocol": _protocol(size, frames, seconds), "rows": []}
    result["left_out"] = left_out
    models = list(dict.fromkeys(setting.model for setting in settings))  # the others cannot run
    path.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=path.parent).close()  # raises where nothing can be written
    for name in tqdm(models, "models", disable=None, leave=False):
        own = [setting for setting in settings if setting.model == name]
        timed, failed = time_model(name, own, scene, frames, seconds)
        result["rows"] = with_speedup(result["rows"] + timed)
        result["left_out"] += failed
        weights = timed_weights(name)
        result["protocol"]["weights"][name] = weights.parent.name if weights else "untrained"
        write_json(path, result)
    if REWRITTEN in models and 1 in threads:
        result |= _anatomy(scene.image, frames // 2, seconds / 2)
        write_json(path, result)
    return result


def load_or_run(profile: str, **options: Any) -> dict[str, Any]:
    """Return the committed benchmark for the reference profile, else run one and keep it.

    `options` are those of `benchmark`, and so are the ValueErrors. The committed one times the
    UltraSegs at length; a second, shorter run, under ``table4``, has every model of Table 4. Raises
    FileNotFoundError where it is gone.
    """
    folder = outputs_dir(profile) / "bench"
    if load_profile(profile).frozen:
        return json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    return benchmark(folder / "bench.json", **options)


def agreement(name: str, images: np.ndarray) -> list[dict[str, Any]]:
    """Compare one model's backends on one core with the trained model, image by image.

    `images` (N, S, S, 3) uint8. A row a backend: the share of equal mask pixels, mean and worst
    image, and the largest difference of a logit, relative to the image's largest logit.
    """
    model = seeded_model(name, timed_weights(name))
    names = [each for each in default_backends() if each not in ("eager", "compiled")]
    size = images.shape[1]
    images = [np.ascontiguousarray(to_image(pixels, size)) for pixels in images]
    exact = [logits_in_float64(model, image) for image in tqdm(images, "exact", disable=None)]
    rows = []
    for backend, precision in map(split_words, names):
        if cannot_run(backend, model, size, 1, precision):
            continue
        run = load_backend(backend, model, size, 1, precision)
        found = [
            compare(run(i), e) | {"top": np.abs(e).max()}
            for i, e in zip(images, exact, strict=True)
        ]
        equal = np.array([each["pixels_equal"] for each in found])
        rows.append({
            "model": name, "backend": backend, "precision": precision,
            "images": len(images), "pixels_equal": float(equal.mean()),
            "pixels_equal_worst": float(equal.min()),
            "relative_parity": float(max(each["parity"] / each["top"] for each in found)),
        })  # fmt: skip
    return rows


def agreement_on(dataset: str, models: list[str], size: int) -> list[dict[str, Any]]:
    """Return the `agreement` of every trained model among `models` on a dataset's test images.

    The first 200 images at `size` px. Raises ValueError for a dataset that is unknown or not there.
    """
    frames = test_frames(dataset, load_profile("lite", image_size=size))
    images = np.asarray(frames.images[:200])
    trained = [name for name in models if shipped_weights(name)]
    return [row | {"dataset": dataset} for name in trained for row in agreement(name, images)]


def table(result: dict[str, Any]) -> str:
    """Return the rows of a benchmark as text."""
    columns = ["model", "backend", "precision", "threads", "isa", "median_ms", "iqr_ms", "p95_ms",
               "frame_median_ms", "file_median_ms", "memory_mb", "speedup", "parity"]  # fmt: skip
    shown = pd.DataFrame(result["rows"], columns=columns)
    return shown.to_string(index=False, float_format=lambda value: f"{value:.3g}")
