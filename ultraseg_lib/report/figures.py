"""Figures in one style: colour-blind safe, legible from the back of a room, each with its data.

Every function returns a matplotlib Figure and shows nothing by itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ultraseg_lib import data
from ultraseg_lib.data import Frames
from ultraseg_lib.data.synthetic import SyntheticFrame
from ultraseg_lib.models import MODELS
from ultraseg_lib.paths import outputs_dir, whole_file, write_json
from ultraseg_lib.provenance import provenance
from ultraseg_lib.report.tables import (
    DIFFERS,
    FEW_SEEDS,
    SEED_ALONE,
    UNDECIDED,
    error_bars,
    with_seeds,
)
from ultraseg_lib.variants import model_title as model_title  # figures.model_title

PALETTE = sns.color_palette("colorblind")
TRUTH, PRED = "#ffffff", "#ffb000"  # outlines on an image: what is, and what a model says
GENERATED = "generated, no patient"
STYLES = {  # colour and marker: a model looks alike in every figure, UltraSeg in warm colours
    "ultraseg_130k": (PALETTE[3], "o"), "ultraseg_108k": (PALETTE[1], "s"),
    "lbunet": (PALETTE[0], "D"), "egeunet": (PALETTE[9], "^"), "unet_tiny": (PALETTE[2], "v"),
    "unet_small": (PALETTE[5], "<"), "unet_light": (PALETTE[6], ">"), "unet_base": ("black", "P"),
    "ultraseg_500k": (PALETTE[4], "p"), "mobileunet": (PALETTE[8], "h"),
    "fastscnn": ("#8a5a00", "*"), "unet_medium": (PALETTE[7], "d"),
}  # fmt: skip

PER_BATCH = {"marker": "D", "ls": "", "ms": 7, "color": "black"}  # ours; pooled as the paper does
PER_BATCH_PAPER = {"marker": "D", "ls": "", "ms": 13, "mfc": "none", "mec": "black", "mew": 2.5}
VERDICTS = {  # grey, marker, filled: colours are for models
    DIFFERS: ("black", "s", True), UNDECIDED: ("0.4", "o", True),
    FEW_SEEDS: ("black", "s", False), SEED_ALONE: ("0.65", "D", True),
}  # fmt: skip


def model_style(model: str) -> tuple[Any, str]:
    """Return the colour and the marker of a model, by its name or title; grey for all others."""
    names = {info.title: name for name, info in MODELS.items()}
    return STYLES.get(names.get(model, model), ("0.45", "X"))


def use_style() -> None:
    """Set the study's look: large type, thin frames, no clutter, white paper."""
    sns.set_theme(style="ticks", context="talk", palette="colorblind")
    plt.rcParams.update(
        {
            "figure.dpi": 80,
            "savefig.dpi": 160,
            "savefig.bbox": "tight",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
            "svg.hashsalt": "ultraseg",
        }
    )


def save_figure(figure: Figure, profile: str, name: str, data: pd.DataFrame) -> None:
    """Write a figure as SVG and PNG, with the CSV of its data and a JSON of its provenance."""
    base = outputs_dir(profile) / "figures"
    for kind in ("svg", "png"):
        with whole_file(base / f"{name}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else {})
    with whole_file(base / f"{name}.csv") as temporary:
        data.to_csv(temporary, index=False)
    write_json(base / f"{name}.json", provenance())


def dataset_title(name: str) -> str:
    """Return the dataset's title; generated images are named as such in every figure."""
    title = data.dataset_title(name)
    return f"{title} ({GENERATED})" if name.partition("@")[0] in data.GENERATED else title


def training_words(row: pd.Series) -> str:
    """Return how a row's models were trained: recipe, protocol and epochs."""
    return f"recipe {row['recipe']}, {row['protocol']} protocol, {row['epochs']} epochs"


def setting_title(table: pd.DataFrame) -> str:
    """Return the setting of a table's first row: dataset, recipe, protocol and epochs."""
    row = table.iloc[0]
    return f"{dataset_title(row['dataset'])}\n{training_words(row)}"


def _show(axes: Axes, image: np.ndarray, title: str = "", size: str = "medium") -> None:
    axes.imshow(image)
    axes.set_title(title, fontsize=size)
    axes.set_axis_off()


def _outline(axes: Axes, mask: np.ndarray, colour: str, style: str = "-") -> None:
    """Draw the outline of a boolean mask (H, W), on a dark halo that keeps it visible."""
    if mask.any() and not mask.all():
        axes.contour(mask, [0.5], colors="black", linewidths=4, alpha=0.5)
        axes.contour(mask, [0.5], colors=colour, linewidths=2, linestyles=style)


def describe(row: pd.Series) -> list[str]:
    """Return where an image comes from, its center and modality, else the end of its name."""
    words = [str(row[key]).replace("_", " ") for key in ("center", "modality") if row[key]]
    return words or [str(row["image_id"])[-17:]]


def show_samples(frames: Frames, rows: Sequence[int], columns: int = 4) -> Figure:
    """Show frames with their true outline in white, titled by center and modality."""
    lines = -(-len(rows) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(2.9 * columns, 3.3 * lines), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, row in zip(grid.flat, rows, strict=False):
        _show(axes, frames.images[row], ", ".join(describe(frames.table.iloc[row])))
        _outline(axes, frames.masks[row] > 0, TRUTH)
    figure.suptitle(dataset_title(frames.table["dataset"].iloc[0]))
    return figure


def show_grid(
    rows: Mapping[str, Sequence[tuple[str, np.ndarray]]],
    title: str,
    label: str = "",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Show rows of pictures; (S, S, 3) is an image, uint8 or in [0, 1], (S, S) a map.

    ``rows``: row label to (panel title, picture) pairs. All maps share one scale, named ``label``:
    ``limits``, else their range; where that holds both signs it is white at 0, and a few of the
    farthest values lie beyond its ends.
    """
    columns = max(map(len, rows.values()))
    size = (3.9 * columns + 1.2, 4.1 * len(rows) + 0.8)
    figure, grid = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    maps = [picture.ravel() for row in rows.values() for _, picture in row if picture.ndim == 2]
    values = np.concatenate(maps) if maps else np.array([0, 1])
    low, high = limits or (values.min(), values.max())
    colours, ends = "cividis", "neither"
    if low < 0 < high and not limits:
        high = np.quantile(np.abs(values), 0.98)
        low, colours, ends = -high, "PuOr", "both"
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for line, (name, row) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for axes, (panel, picture) in zip(line, row, strict=False):
            shown = axes.imshow(picture, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
            axes.set_title(panel)
    if maps:
        figure.colorbar(shown, ax=grid, label=label, shrink=0.85, extend=ends)
    figure.suptitle(title)
    return figure


def plot_history(history: pd.DataFrame, picked_by: str, kept: int, title: str) -> Figure:
    """Show a run's loss and the Dice that picks over the epochs, with the epoch that was kept."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.8))
    best = history.set_index("epoch", drop=False).loc[kept]
    mark = "o-" if len(history) <= 30 else "-"
    left.plot(history["epoch"], history["train_loss"], mark, lw=3, color=PALETTE[0])
    left.set(xlabel="epoch", ylabel="training loss (Eq. 5)")
    right.plot(history["epoch"], history[picked_by], mark, lw=3, color=PALETTE[1])
    right.plot(best["epoch"], best[picked_by], "o", ms=12, color="black")
    right.annotate("kept", (best["epoch"], best[picked_by]), (0, -28), textcoords="offset points",
                   ha="center")  # fmt: skip
    right.set(xlabel="epoch", ylabel="Dice on the frames\nthat pick the epoch", ylim=(0, 1))
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title)
    return figure


def show_predictions(
    frames: Frames, probs: np.ndarray, dice: np.ndarray, rows: Sequence[int]
) -> Figure:
    """Show image, probability map and outlines (true white, predicted amber, dashed) of some frames.

    ``probs`` (N, S, S) uint8, 255 stands for 1; ``dice`` (N,).
    """
    figure, grid = plt.subplots(2, len(rows), figsize=(3.4 * len(rows), 7.6), squeeze=False)
    for column, row in enumerate(rows):
        top, bottom = grid[:, column]
        _show(top, frames.images[row], f"Dice {dice[row]:.2f}")
        _outline(top, frames.masks[row] > 0, TRUTH)
        _outline(top, probs[row] >= 128, PRED, "--")
        shown = bottom.imshow(probs[row] / 255, cmap="cividis", vmin=0, vmax=1)
        bottom.set_axis_off()
    figure.colorbar(shown, ax=grid[1, :], label="P(polyp)", shrink=0.9)
    name = dataset_title(frames.table["dataset"].iloc[0])
    figure.suptitle(f"{name}\nwhite: truth, amber dashes: prediction")
    return figure


def plot_dice_against_parameters(table: pd.DataFrame, parameters: dict[str, int]) -> Figure:
    """Show the trade-off of Fig. 2 (left): parameters against Dice.

    ``table`` is `tables.main_table` of one dataset, recipe and protocol; ``parameters`` counts all
    of a model's parameters. Ours twice: the mean over images with its 95 % interval, and pooled per
    batch (filled diamond), as the paper's (hollow diamond, where it has one).
    """
    figure, axes = plt.subplots(figsize=(10.5, 6))
    table = table.assign(x=table["model"].map(parameters) / 1e6).sort_values("x")
    for name, part in table.groupby("model", sort=False):
        colour, marker = model_style(name)
        axes.errorbar(part["x"], part["dice"], error_bars(part), fmt=marker, ms=13, color=colour,
                      capsize=5, lw=2.5, label=with_seeds(part).iloc[0])  # fmt: skip
    axes.plot(table["x"], table["batch_pooled_dice"], **PER_BATCH)
    axes.plot(table["x"], table["paper_dice"], **PER_BATCH_PAPER)
    axes.set(xscale="log", xlabel="parameters (million, all counted)", ylabel="Dice")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.3, high * 1.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(setting_title(table))
    name_definitions(figure, with_paper=table["paper_dice"].notna().any())
    return figure


def name_definitions(figure: Figure, with_paper: bool) -> None:
    """Write below a figure which mark is which Dice: per image, per batch, and the paper's."""
    mean = {"marker": "o", "ls": "-", "lw": 3, "ms": 11, "color": "0.4"}
    marks = {"mean over images, 95 % interval": mean, "per batch of 4": PER_BATCH}
    if with_paper:
        marks["the paper's, per batch of 4"] = PER_BATCH_PAPER
    lines = [Line2D([], [], label=label, **style) for label, style in marks.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=3, fontsize="small")


def plot_dice_bars(table: pd.DataFrame) -> Figure:
    """Show Dice of every model with its 95 % interval, best at the top."""
    ordered = table.sort_values("dice")
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.75 * len(ordered)))
    colours = [model_style(name)[0] for name in ordered["model"]]
    names = with_seeds(ordered)
    axes.barh(names, ordered["dice"], xerr=error_bars(ordered), color=colours, capsize=5)
    axes.set(xlabel="Dice, mean over images and seeds, 95 % interval", xlim=(0, 1))
    axes.set_title(setting_title(ordered))
    return figure


def plot_differences(table: pd.DataFrame, against: str, title: str = "") -> Figure:
    """Show differences in Dice with 95 % intervals, from the table's first row down.

    ``table``: of `tables.with_findings` or `ablation.beside_seeds`, with a column label.
    ``against``: what was subtracted.
    """
    figure, axes = plt.subplots(figsize=(12, 3.4 + 0.6 * len(table)))
    for verdict, (colour, marker, filled) in VERDICTS.items():
        shown = (table["verdict"] == verdict).to_numpy()
        part = table[shown]
        if len(part):
            bars = [part["difference"] - part["low"], part["high"] - part["difference"]]
            axes.errorbar(part["difference"], np.flatnonzero(shown), xerr=bars, fmt=marker, ms=12,
                          lw=3, capsize=6, color=colour, mfc=colour if filled else "white", mew=3,
                          label=verdict)  # fmt: skip
    axes.axvline(0, color="black", lw=1.5)
    axes.set(yticks=range(len(table)), yticklabels=table["label"], ylim=(len(table) - 0.5, -0.5))
    axes.xaxis.set_major_locator(MaxNLocator(6))  # labels that do not touch
    axes.set_xlabel(f"difference in Dice, image by image,\nto {against}")
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(title)
    return figure


def show_modalities(scene: Sequence[SyntheticFrame]) -> Figure:
    """Show one generated scene under several modalities, each frame titled by its own."""
    figure, grid = plt.subplots(1, len(scene), figsize=(2.9 * len(scene), 3.8))
    for axes, frame in zip(grid, scene, strict=True):
        _show(axes, frame.image, frame.modality)
        _outline(axes, frame.mask > 0, TRUTH)
    figure.suptitle(f"one scene under {len(scene)} lights ({GENERATED})")
    return figure
