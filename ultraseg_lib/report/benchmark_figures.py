"""Tables and figures of the CPU benchmark: Table 4, Fig. 2 (right), where the time goes."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from ultraseg_lib.deploy.backends import BACKENDS
from ultraseg_lib.models import MODELS
from ultraseg_lib.paths import outputs_dir
from ultraseg_lib.report.figures import (
    PALETTE,
    PRED,
    TRUTH,
    _outline,
    _show,
    dataset_title,
    model_style,
    model_title,
)
from ultraseg_lib.report.tables import printed_table

Rows = list[dict[str, Any]]
REAL_TIME = 30  # frames a second of a colonoscope's video
HEADINGS = {  # of tables that are shown
    "title": "model", "threads": "cores", "isa": "instruction sets", "median_ms": "median, ms",
    "iqr_ms": "quartile range, ms", "p95_ms": "95th percentile, ms",
    "frame_median_ms": "whole frame, ms", "file_median_ms": "from JPEG, ms",
    "memory_mb": "backend, MB", "peak_memory_mb": "process, MB", "speedup": "× plain PyTorch",
    "parity": "largest logit difference", "pixels_equal": "changed pixels in a million",
    "pixels_equal_worst": "on the worst image", "relative_parity": "logit difference / largest logit",
    "paper_1_core_ms": "paper, 1 core, ms", "paper_24_cores_ms": "paper, 24 cores, ms",
    "eager_ms": "plain PyTorch here, 1 core, ms", "eager_all_ms": "plain PyTorch here, all cores, ms",
    "openvino_ms": "OpenVINO here, 1 core, ms", "deployed_ms": "fastest float32, 1 core, ms", "deployed_fps": "frames a second",
}  # fmt: skip
STEPS = {  # how the rewrites are called in a figure
    "edb": "+ EDB as depthwise branches",
    "norm": "+ norms folded",
    "first": "+ first convolution at half size",
    "attention": "+ GSA maps as constants",
    "decoder": "+ gates on three maps",
    "upsample": "+ last ×2 as matrix products",
}


def readable(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of a benchmark for reading: names in words, changed pixels for equal ones, headings."""
    names = {"model": model_title, "backend": BACKENDS.__getitem__, "dataset": dataset_title}
    words = {name: rows[name].map(told) for name, told in names.items() if name in rows}
    shares = [name for name in ("pixels_equal", "pixels_equal_worst") if name in rows]
    changed = {name: 1e6 * (1 - rows[name]) for name in shares}
    return rows.assign(**words, **changed).rename(columns=HEADINGS)


def paper_table4() -> pd.DataFrame:
    """Return the paper's Table 4 by our model names: Dice, fps and ms on 24 cores and on one."""
    names = {info.title: name for name, info in MODELS.items()}
    printed = printed_table(4).reset_index()
    return printed.set_index(printed["model"].map(names).rename("name"))


def one_core(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of float32 on one core with all its instruction sets."""
    return rows.query("precision == 'float32' and threads == 1 and isa == 'all'")


def fastest(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the fastest deployed float32 row (not eager) of each model."""
    deployed = rows[(rows["backend"] != "eager") & (rows["precision"] == "float32")]
    return deployed.loc[deployed.groupby("model")["median_ms"].idxmin()].set_index("model")


def table4(rows: Rows) -> pd.DataFrame:
    """Return Table 4 with ours: one row per model, in the paper's order; ms and frames a second.

    `eager_ms` is the paper's way on one core of this machine, `eager_all_ms` (where they were
    timed) on all its cores. Of float32 on one core `openvino_ms` (where it was timed) is one
    engine for all models, `deployed_ms` the fastest backend of each: only UltraSegs have kernels of
    their own. Models that Table 4 lacks are left out.
    """
    frame = pd.DataFrame(rows)
    frame = frame[frame["isa"] == "all"]
    one, most = frame[frame["threads"] == 1], frame["threads"].max()
    eager = one[one["backend"] == "eager"].set_index("model")
    every = frame[(frame["backend"] == "eager") & (frame["threads"] == most)].set_index("model")
    engine = one[(one["backend"] == "openvino") & (one["precision"] == "float32")]
    best, paper = fastest(one), paper_table4()
    table = paper[paper.index.isin(frame["model"])][
        ["model", "single_latency_ms", "all24_latency_ms"]
    ]
    table = table.rename(columns={"model": "title", "single_latency_ms": "paper_1_core_ms",
                                  "all24_latency_ms": "paper_24_cores_ms"})  # fmt: skip
    table["eager_ms"] = eager["median_ms"]
    if most > 1:
        table["eager_all_ms"] = every["median_ms"]
    if len(engine):
        table["openvino_ms"] = engine.set_index("model")["median_ms"]
    table["deployed_ms"], table["backend"] = best["median_ms"], best["backend"].map(BACKENDS)
    table["deployed_fps"] = 1000 / table["deployed_ms"]
    table["speedup"] = table["eager_ms"] / table["deployed_ms"]
    return table.reset_index(drop=True)


def machine_name(bench: dict[str, Any]) -> str:
    """Return the name of a benchmark's CPU, with AVX2 where that is the most that it has."""
    found = set(bench["instruction_sets"]) & {"avx2", "avx512f"}
    return f"{bench['cpu']}, AVX2" if found == {"avx2"} else bench["cpu"]


def _recorded() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the machine's short name and the content of each committed benchmark."""
    for path in sorted((outputs_dir("reference") / "bench").glob("*.json")):
        bench = json.loads(path.read_text(encoding="utf-8"))
        yield re.sub(r"\(R\)| Processor", "", machine_name(bench)), bench


def recorded_machines() -> pd.DataFrame:
    """Return UltraSeg-130K on one core of each machine of the record, one row per backend and precision.

    Columns (what, machine): the median in ms, and how many times as fast as eager it is there.
    """
    tables = []
    for machine, bench in _recorded():
        rows = pd.DataFrame(bench["rows"])
        rows = rows.query("model == 'ultraseg_130k' and threads == 1 and isa == 'all'")
        tables.append(rows.assign(machine=machine))
    table = pd.concat(tables).rename(columns=HEADINGS)
    table["backend"] = table["backend"].map(BACKENDS)
    values = [HEADINGS["median_ms"], HEADINGS["speedup"]]
    # A CPU that was measured twice is one machine: its mean.
    return table.pivot_table(values, ["precision", "backend"], "machine", aggfunc="mean")


def recorded_agreement() -> pd.DataFrame:
    """Return how far the deployed forms agree with the trained model on the record's real images.

    One row per backend and precision: dataset, images, model, backend, precision, pixels_equal
    (share of the masks' pixels, mean over images), pixels_equal_worst (on the worst image) and
    relative_parity (the largest over images of logit difference / largest logit).
    """
    path = outputs_dir("reference") / "bench" / "bench.json"
    table = pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))["real_images"])
    columns = ["dataset", "images", "model", "backend", "precision", "pixels_equal",
               "pixels_equal_worst", "relative_parity"]  # fmt: skip
    return table[columns]


def plot_fps_against_dice(rows: Rows) -> Figure:
    """Show Fig. 2 (right): frames a second on one core against the paper's average Dice.

    Hollow diamonds: the paper's speed. Small dots: the paper's way on this machine. At the arrow's
    end the fastest float32 backend: a dot for an engine, a square for our own kernels. Dice is the
    paper's for all three. Models that one of the three lacks are left out.
    """
    frame = pd.DataFrame(rows)
    one = frame[(frame["threads"] == 1) & (frame["isa"] == "all")]
    eager, best = one[one["backend"] == "eager"].set_index("model"), fastest(one)
    paper = paper_table4()
    figure, axes = plt.subplots(figsize=(13, 8.5))
    names = best.index.intersection(eager.index).intersection(paper.index)
    labels = _apart(paper.loc[names, "avg_dice"], names.str.startswith("unet"))
    for name in names:
        dice, (colour, _) = paper.loc[name, "avg_dice"], model_style(name)
        start, end = 1000 / eager.loc[name, "median_ms"], 1000 / best.loc[name, "median_ms"]
        printed = paper.loc[name, "single_fps"]
        arrow = {"arrowstyle": "->", "color": colour, "lw": 2.5}
        axes.annotate("", (end, dice), (start, dice), arrowprops=arrow)
        axes.plot(start, dice, "o", ms=9, color=colour, alpha=0.6)
        is_own = best.loc[name, "backend"] == "native"
        axes.plot(end, dice, "s" if is_own else "o", ms=13, color=colour)
        axes.plot(printed, dice, "D", ms=10, mfc="none", mec="0.3", mew=2)
        is_left = name.startswith("unet")  # a family beside which others stand
        x, align = (start / 1.12, "right") if is_left else (max(end, printed) * 1.12, "left")
        axes.annotate(paper.loc[name, "model"], (x, labels[name]), va="center", ha=align,
                      fontsize="small")  # fmt: skip
    axes.axvline(REAL_TIME, color="0.6", ls=":", lw=2)
    axes.annotate(f"{REAL_TIME} a second", (REAL_TIME, 0.02), (6, 0), textcoords="offset points",
                  xycoords=("data", "axes fraction"), color="0.4", fontsize="small")  # fmt: skip
    axes.set(xscale="log", xlabel="frames a second, one core (log scale)",
             ylabel="average Dice (the paper's)")  # fmt: skip
    axes.set_xlim(axes.get_xlim()[0] / 2.2, axes.get_xlim()[1] * 2.2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.margins(y=0.1)
    _legend(axes)
    return figure


def _apart(heights: pd.Series, is_left: np.ndarray, least: float = 0.014) -> pd.Series:
    """Move heights up, where two on one side are closer than `least`, so that labels do not overlap."""
    moved, last = heights.copy(), {True: -np.inf, False: -np.inf}
    side = dict(zip(heights.index, map(bool, is_left), strict=True))
    for name in heights.sort_values().index:
        last[side[name]] = moved[name] = max(heights[name], last[side[name]] + least)
    return moved


def _legend(axes: Axes) -> None:
    """Say what the marks of `plot_fps_against_dice` are."""
    for style, label in (
        ({"marker": "D", "mfc": "none", "mec": "0.4", "mew": 2, "ms": 10}, "the paper's machine"),
        ({"marker": "o", "color": "0.4", "ms": 9, "alpha": 0.6}, "its way (plain PyTorch), here"),
        ({"marker": "o", "color": "0.4", "ms": 13}, "an engine, float32, here"),
        ({"marker": "s", "color": "0.4", "ms": 13}, "our own kernels, float32, here"),
    ):
        axes.plot([], [], ls="", label=label, **style)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize="small")


def plot_parts(parts: Rows) -> Figure:
    """Show the milliseconds of each part of UltraSeg-130K, before and after."""
    table = pd.DataFrame(parts)
    figure, axes = plt.subplots(figsize=(11.5, 8.5))
    place = np.arange(len(table))
    for shift, column, colour, label in (
        (-0.2, "before_ms", "0.6", "plain PyTorch, all heads"),
        (0.2, "after_ms", PALETTE[3], "deployed, float32"),
    ):
        total = table[column].sum()
        bars = axes.barh(
            place + shift, table[column], 0.4, color=colour, label=f"{label}: {total:.1f} ms"
        )
        axes.bar_label(bars, fmt="%.2f", padding=4, fontsize="x-small")
    names = table["part"].replace(
        {"agf": "AGF", "the rest": "last ×2, maps of\nsupervision, copies"}
    )
    axes.set_yticks(place, names)
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds per frame, one core")
    axes.margins(x=0.1)
    axes.legend(loc="lower right")
    return figure


def _engines(table: pd.DataFrame) -> pd.Series:
    names = table["backend"].map(BACKENDS)
    return names.mask(table["step"] == "main head only", BACKENDS["eager"])  # not rewritten yet


def _step_labels(table: pd.DataFrame) -> pd.Series:
    return table["step"].replace(STEPS) + " (" + _engines(table) + ")"


def steps_table(rewrites: Rows) -> pd.DataFrame:
    """Return the median ms of each step of `plot_rewrites` here and on the machines of the record."""
    columns = {"here": rewrites} | {
        f"{name}, record": bench["rewrites"] for name, bench in _recorded()
    }
    medians = []
    for name, rows in columns.items():
        table = pd.DataFrame(rows)
        medians.append(table.set_index(_step_labels(table))["median_ms"].rename(f"{name}, ms"))
    return pd.concat(medians, axis=1).rename_axis("step")


def plot_rewrites(rewrites: Rows) -> Figure:
    """Show the milliseconds of every step from the paper's way to our kernels."""
    table = pd.DataFrame(rewrites)
    labels = _step_labels(table)
    engines = list(dict.fromkeys(_engines(table)))
    figure, axes = plt.subplots(figsize=(13, 0.62 * len(table) + 1.6))
    colours = [PALETTE[engines.index(each)] for each in _engines(table)]
    bars = axes.barh(labels, table["median_ms"], xerr=table["iqr_ms"] / 2, color=colours,
                     error_kw={"lw": 2})  # fmt: skip
    first = table["median_ms"].iloc[0]
    texts = [f"{ms:.1f} ms, {first / ms:.1f}×" for ms in table["median_ms"]]
    axes.bar_label(bars, texts, padding=12, fontsize="small")
    axes.invert_yaxis()
    axes.set(
        xlabel="milliseconds per frame, one core (bar: median, line: half the quartile range each way)"
    )
    axes.xaxis.label.set_size("small")
    axes.margins(x=0.2)
    return figure


def show_video(
    frames: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    latency: Sequence[float],
    title: str,
) -> Figure:
    """Show six frames of a video with the true outline and the mask's, and how long each frame took.

    `frames` (H, W, 3) uint8 RGB, `truths` and `masks` (H, W) uint8, above 0 where a polyp is,
    `latency` in ms.
    """
    figure = plt.figure(figsize=(15, 6.4))
    grid = figure.add_gridspec(2, 6, height_ratios=(1.25, 1))
    for column, index in enumerate(np.linspace(0, len(frames) - 1, 6).astype(int)):
        axes = figure.add_subplot(grid[0, column])
        _show(axes, frames[index], f"frame {index + 1}")
        _outline(axes, truths[index] > 0, TRUTH)
        _outline(axes, masks[index] > 0, PRED, "--")
    axes = figure.add_subplot(grid[1, :])
    axes.plot(np.arange(1, len(latency) + 1), latency, lw=2.5, color=PALETTE[3])
    axes.set(xlabel=f"frame ({REAL_TIME} a second would allow {1000 / REAL_TIME:.0f} ms for each)",
             ylabel="ms, frame to mask", ylim=(0, max(5, 1.3 * max(latency))))  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(f"{title} (no patient): truth white, mask amber")
    return figure
