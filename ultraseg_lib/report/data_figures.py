"""Figures of notebook 01: sizes, positions, counts and colours; duplicates, and sequences that a split cuts.

Every function returns a matplotlib Figure and shows nothing by itself.
"""

from collections.abc import Mapping
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ultraseg_lib.data import Frames
from ultraseg_lib.data.splits import PARTS
from ultraseg_lib.report.figures import PALETTE, TRUTH, _outline, _show, dataset_title

PART_COLOURS = dict(zip(PARTS, (PALETTE[0], PALETTE[2], PALETTE[1]), strict=True))


def plot_areas(shares: dict[str, np.ndarray]) -> Figure:
    """Show how large polyps are: the share of the image, on a logarithmic axis, by dataset."""
    figure, axes = plt.subplots(figsize=(9, 5.5))
    edges = np.geomspace(0.001, 1, 25)
    lines = zip(shares.items(), PALETTE, cycle(("-", "--", ":")), strict=False)
    for (name, share), colour, line in lines:
        label = f"{dataset_title(name)}, n = {np.count_nonzero(share)}"
        weights = np.full(np.count_nonzero(share), 100 / max(1, np.count_nonzero(share)))
        axes.hist(share[share > 0], edges, weights=weights, histtype="step", lw=3, color=colour,
                  ls=line, label=label)  # fmt: skip
    axes.set(xscale="log", xlabel="polyp area (share of the image)", ylabel="images (%)")
    axes.xaxis.set_major_formatter(
        lambda value, _: f"{value:.1%}" if value < 0.01 else f"{value:.0%}"
    )
    columns = min(len(shares), 2)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=columns, fontsize="small")
    return figure


def plot_positions(masks: dict[str, np.ndarray]) -> Figure:
    """Show where polyps lie: the mean mask of each dataset, (N, S, S) in, share of images out."""
    columns = min(len(masks), 3)
    lines = -(-len(masks) // columns)
    size = (5.5 * columns, 4.8 * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, squeeze=False)
    for axes in grid.flat[len(masks) :]:
        axes.remove()
    for axes, (name, stack) in zip(grid.flat, masks.items(), strict=False):
        share = 100 * (stack > 0).mean(axis=0)
        shown = axes.imshow(share, cmap="cividis", vmin=0)
        axes.set_title(dataset_title(name).replace(" (", "\n("))
        axes.set_axis_off()
        figure.colorbar(shown, ax=axes, label="images with polyp here (%)")
    return figure


def plot_counts(table: pd.DataFrame) -> Figure:
    """Show how many images each center and modality has, so that imbalance is seen."""
    figure, axes = plt.subplots(figsize=(9, 4.5))
    shown = table.assign(
        center=table["center"].replace("", "one center").str.replace("_", " "),
        modality=table["modality"].replace("", "not told"),
    )
    counts = shown.groupby(["center", "modality"]).size().unstack(fill_value=0)
    counts.plot.bar(stacked=True, ax=axes, color=PALETTE, width=0.7, rot=0)
    axes.set(xlabel="", ylabel="images", title=dataset_title(table["dataset"].iloc[0]))
    place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    axes.legend(title="modality", reverse=True, **place)  # in the order of the bar
    return figure


def plot_colours(frames: Frames) -> Figure:
    """Show mean red, green and blue of each modality; black outside the field of view is left out."""
    pixels = np.asarray(frames.images[:, ::8, ::8]).reshape(len(frames), -1, 3).astype(float)
    lit = pixels.max(axis=2, keepdims=True) > 20
    means = (pixels * lit).sum(axis=1) / lit.sum(axis=1).clip(min=1)
    table = pd.DataFrame(means, columns=["red", "green", "blue"])
    table["modality"] = frames.table["modality"].replace("", "not told").to_numpy()
    long = table.melt("modality", var_name="channel", value_name="mean")
    figure, axes = plt.subplots(figsize=(10, 5))
    colours = {"red": "#d55e00", "green": "#009e73", "blue": "#0072b2"}
    long = long.sort_values("modality", kind="stable")
    sns.boxplot(long, x="modality", y="mean", hue="channel", palette=colours, ax=axes, fliersize=2)
    axes.set(xlabel="", ylabel="mean level (0 to 255)")
    axes.set_title(dataset_title(frames.table["dataset"].iloc[0]))
    axes.legend(title="", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_polyps_per_image(counts: Mapping[str, np.ndarray]) -> Figure:
    """Show how many images have no, one, or several polyps; ``counts`` by dataset, (N,) each."""
    names = ("none", "one", "two", "three or more")
    figure, axes = plt.subplots(figsize=(9, 4.5))
    width = 0.8 / len(counts)
    for place, (dataset, found) in enumerate(counts.items()):
        share = 100 * np.bincount(np.clip(found, 0, 3), minlength=4) / len(found)
        at = np.arange(4) + (place - (len(counts) - 1) / 2) * width
        bars = axes.bar(at, share, width, label=dataset_title(dataset), color=PALETTE[place])
        axes.bar_label(bars, fmt="%.0f", fontsize="small")
    axes.set(xticks=range(4), xlabel="polyps in the image", ylabel="images (%)")
    axes.set_xticklabels(names)
    figure.legend(loc="outside upper center", fontsize="small")
    return figure


def show_pairs(pairs: pd.DataFrame, frames: Mapping[str, Frames], title: str) -> Figure:
    """Show pairs of images above one another, with their true outlines, one column per pair.

    ``pairs``: rows of `audit.near_duplicates`, or of `audit.leaks`, whose parts are then told, the
    tested image above; ``frames``: by dataset name.
    """
    figure, grid = plt.subplots(2, len(pairs), figsize=(3.2 * len(pairs), 7.6), squeeze=False)
    for column, (_, pair) in enumerate(pairs.iterrows()):
        sides = "ba" if pair.get("part_b") == "test" else "ab"
        for axes, side in zip(grid[:, column], sides, strict=True):
            found = frames[pair[f"dataset_{side}"]]
            row = np.flatnonzero(found.table["image_id"] == pair[f"image_id_{side}"])[0]
            words = f"{pair[f'part_{side}']}: " if f"part_{side}" in pair else ""
            words += str(pair[f"image_id_{side}"])[-17:]
            _show(axes, found.images[row], words, "small")
            _outline(axes, found.masks[row] > 0, TRUTH)
    figure.suptitle(title)
    return figure


def _part_strip(table: pd.DataFrame, parts: pd.Series) -> np.ndarray:
    """Return the part of each frame, (sequences, longest), as its place in PARTS; NaN beyond the end."""
    rows = [group["image_id"].map(parts) for _, group in table.groupby("sequence", sort=False)]
    strip = np.full((len(rows), max(map(len, rows))), np.nan)
    for line, row in zip(strip, rows, strict=True):
        line[: len(row)] = [PARTS.index(part) for part in row]
    return strip


def plot_sequences(table: pd.DataFrame, splits: Mapping[str, pd.Series], title: str) -> Figure:
    """Show the part of each frame, one line per sequence, one panel per split.

    ``table`` has image_id and sequence, in the order of time; ``splits``: by the panel's title,
    part names with the index image_id.
    """
    lines = table["sequence"].nunique()
    figure, grid = plt.subplots(
        1, len(splits), figsize=(6 * len(splits), 2.4 + 0.3 * lines), sharey=True, squeeze=False
    )
    colours = ListedColormap(list(PART_COLOURS.values()))
    for axes, (name, parts) in zip(grid.flat, splits.items(), strict=True):
        strip = _part_strip(table, parts)
        ends = (np.arange(size + 1) + 0.5 for size in strip.shape[::-1])  # frame 1 stands at 1
        axes.pcolormesh(*ends, strip, cmap=colours, vmin=0, vmax=2, edgecolors="white", lw=1.5)
        axes.set(title=name, xlabel="frame of the sequence")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    grid[0, 0].invert_yaxis()
    grid[0, 0].set_ylabel("sequence")
    handles = [Patch(color=colour, label=part) for part, colour in PART_COLOURS.items()]
    figure.legend(handles=handles, loc="outside right center")
    figure.suptitle(title)
    return figure


def plot_copied_dice(scores: Mapping[str, np.ndarray], title: str) -> Figure:
    """Show the Dice of copied masks (`audit.copied_dice`), points with their mean per split."""
    long = pd.concat([pd.DataFrame({"split": k, "dice": v}) for k, v in scores.items()])
    figure, axes = plt.subplots(figsize=(10, 1.6 + 1.1 * len(scores)))
    sns.stripplot(long, x="dice", y="split", hue="split", ax=axes, size=9, alpha=0.7, legend=False,
                  palette=PALETTE[: len(scores)])  # fmt: skip
    means = [np.mean(each) for each in scores.values()]
    axes.plot(means, range(len(means)), "|", ms=55, mew=4, color="black", label="mean")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=0.4)
    axes.set(
        xlabel="Dice of the copied mask, one point per test frame", ylabel="", xlim=(-0.03, 1.03)
    )
    axes.set_title(title)
    return figure
