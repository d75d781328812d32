"""Figures of notebook 02: boundary targets, loss terms, and what each definition of a score sees.

Every function returns a matplotlib Figure and shows nothing by itself.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ultraseg_lib import edges, metrics
from ultraseg_lib.data import Frames
from ultraseg_lib.report.figures import (
    PALETTE,
    PRED,
    TRUTH,
    _outline,
    dataset_title,
    model_style,
)
from ultraseg_lib.study import RELEASED_BATCH

Window = tuple[slice, slice]
BLUE, ORANGE, _, VERMILION = PALETTE[:4]
LEVELS = 256  # probability maps are stored in this many steps


# --- Boundary targets -----------------------------------------------------------------------


def zoom_window(mask: NDArray, side: int = 28) -> Window:
    """Return a square of ``side`` px around the topmost pixel of a mask (H, W), inside the image."""
    row, column = np.argwhere(mask)[0]
    top, left = (
        int(np.clip(at - side // 2, 0, length - side))
        for at, length in zip((row, column), mask.shape, strict=True)
    )
    return np.s_[top : top + side, left : left + side]


def _panel(axes: Axes, picture: NDArray, title: str) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set(xticks=[], yticks=[], title=title)


def show_boundary_steps(image: NDArray, mask: NDArray[np.uint8], title: str) -> Figure:
    """Show how a boundary target is made: image, Canny's line, its dilation, the other form.

    ``image`` (H, W, 3) and ``mask`` (H, W) uint8 of 0 and 255. All but the first are enlarged.
    """
    window = zoom_window(mask)
    line = cv2.Canny(mask, *edges.CANNY_THRESHOLDS)
    panels = (
        ("the mask", np.zeros_like(mask), BLUE),
        ("Canny(30, 90)", line, ORANGE),
        ("dilated, 5×5 ellipse", edges.boundary_target(mask, "canny"), ORANGE),
        ("morphological gradient", edges.boundary_target(mask, "morphological"), BLUE),
    )
    figure, grid = plt.subplots(1, 5, figsize=(20, 5))
    _panel(grid[0], image, "image")
    _outline(grid[0], mask > 0, TRUTH)
    corner = (window[1].start, window[0].start)
    side = window[0].stop - window[0].start
    grid[0].add_patch(Rectangle(corner, side, side, fill=False, ec=PRED, lw=3))
    for axes, (name, band, colour) in zip(grid[1:], panels, strict=True):
        _panel(axes, paint_band(mask, band, colour)[window], name)
    figure.suptitle(f"{title}. Amber square: the part enlarged")
    return figure


def paint_band(
    mask: NDArray, band: NDArray, colour: tuple[float, ...] = ORANGE
) -> NDArray[np.float64]:
    """Draw a band in colour over a dark background and a grey mask, (H, W, 3) in [0, 1]."""
    grey = np.where(np.asarray(mask) > 0, 0.55, 0.12)
    return np.where(np.asarray(band)[..., None] > 0, colour, grey[..., None])


def edge_length(mask: NDArray[np.uint8]) -> float:
    """Measure the outlines of a mask (H, W) that does not touch the image frame, in px."""
    outlines, _ = cv2.findContours((mask > 0).view(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return float(sum(cv2.arcLength(outline, closed=True) for outline in outlines))


def plot_band_widths(table: pd.DataFrame) -> Figure:
    """Show width and overlap of bands against native size.

    Columns: ratio (native over working size), way, width (px), overlap (Dice with the band that
    is made after augmentation).
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 5))
    style = {"x": "ratio", "marker": "o", "lw": 3, "ms": 11}
    style |= {"estimator": "median", "errorbar": ("pi", 90)}
    sns.lineplot(table, y="width", hue="way", palette=[BLUE, ORANGE], ax=left, **style)
    sns.lineplot(table, y="overlap", color="black", ax=right, **style)
    label = "native size / working size"
    left.set(xlabel=label, ylabel="band width (px)", ylim=(0, 8.5))
    left.legend(title="boundary made", loc="upper right", fontsize="small", title_fontsize="small")
    right.set(xlabel=label, ylabel="overlap of the two bands\n(Dice)", ylim=(0, 1.05))
    figure.suptitle("median, and the range of nine masks in ten")
    return figure


# --- The loss -------------------------------------------------------------------------------


def plot_loss_terms(table: pd.DataFrame, title: str) -> Figure:
    """Show the weighted terms of Eq. 5. Columns: form, model, term, loss."""
    forms = list(table["form"].unique())
    figure, grid = plt.subplots(
        1, len(forms), figsize=(15, 5.6), sharex=True, sharey=True, squeeze=False
    )
    for axes, form in zip(grid.flat, forms, strict=True):
        part = table[table["form"] == form]
        sns.barplot(part, y="term", x="loss", hue="model", palette=[BLUE, ORANGE], ax=axes)
        axes.set(xlabel="weighted loss", ylabel="", title=form)
        totals = part.groupby("model", sort=False)["loss"].sum()
        labels = [f"{name}: total {total:.2f}" for name, total in totals.items()]
        axes.legend(axes.get_legend().legend_handles, labels, loc="lower right", fontsize="small")
    figure.suptitle(title)
    return figure


def plot_sigmoids() -> Figure:
    """Show one sigmoid against two: the second squeezes every map into [0.5, 0.73]."""
    logit = np.linspace(-8, 8, 200)
    once = 1 / (1 + np.exp(-logit))
    twice = 1 / (1 + np.exp(-once))
    figure, axes = plt.subplots(figsize=(9, 5))
    axes.fill_between(logit, 0.5, 1 / (1 + np.exp(-1)), color=ORANGE, alpha=0.2, lw=0)
    axes.plot(logit, once, lw=4, color=BLUE)
    axes.plot(logit, twice, lw=4, ls="--", color=ORANGE)
    axes.text(8, 0.93, "one sigmoid", color=BLUE, ha="right", va="top")
    axes.text(8, 0.68, "two sigmoids", color="#8a5a00", ha="right", va="top")
    axes.set(xlabel="logit", ylabel="what the loss takes\nfor a probability", ylim=(0, 1))
    return figure


# --- Six definitions of Dice ----------------------------------------------------------------


def plot_definitions(table: pd.DataFrame, title: str) -> Figure:
    """Show the Dice of one set of predictions by definition. Columns: definition, used_by, dice."""
    figure, axes = plt.subplots(figsize=(12, 5.6))
    names = [f"{row.definition}\n({row.used_by})" for row in table.itertuples()]
    bars = axes.barh(names, table["dice"], color=[VERMILION] + [BLUE] * (len(table) - 1))
    axes.bar_label(bars, fmt="%.3f", padding=6)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize="small")
    axes.set(xlabel="“Dice”", xlim=(0, 1.1), title=title)
    return figure


def plot_models_by_definition(table: pd.DataFrame, title: str) -> Figure:
    """Show the Dice of several models by definition, one line per model.

    Index: definition; one column per model, named by its title.
    """
    figure, axes = plt.subplots(figsize=(15, 7))
    for name, dice in table.items():
        colour, marker = model_style(name)
        axes.plot(dice.index, dice, lw=2.5, marker=marker, ms=9, color=colour, label=name)
    axes.set(ylabel="“Dice”", title=title)
    axes.tick_params(axis="x", labelsize="small")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def plot_batch_drift(table: pd.DataFrame, in_list_order: pd.Series, title: str) -> Figure:
    """Show batch-pooled Dice against batch size.

    ``table``: batch, dice, one row per shuffled order; ``in_list_order``: Dice by batch.
    """
    figure, axes = plt.subplots(figsize=(11, 5.4))
    sizes = [str(size) for size in in_list_order.index]
    groups = [table.loc[table["batch"] == size, "dice"] for size in in_list_order.index]
    middles = [group.median() for group in groups]
    for at, group in enumerate(groups):
        axes.plot([at, at], [group.min(), group.max()], lw=12, color=BLUE, alpha=0.4,
                  solid_capstyle="butt")  # fmt: skip
    axes.plot(sizes, middles, lw=3, color=BLUE, label="shuffled orders: median and range")
    axes.plot(sizes, in_list_order, "D", ms=10, color=VERMILION, label="order of the list")
    axes.set(xlabel="images per batch", ylabel="batch-pooled Dice", title=title)
    axes.legend(loc="best")
    return figure


# --- A threshold to move --------------------------------------------------------------------


@dataclass(frozen=True)
class ThresholdView:
    """What the threshold figure shows: a threshold in (0, 1], and the row of one image."""

    threshold: float = 0.5
    image: int = 0


def count_by_threshold(probs: NDArray[np.uint8], masks: NDArray) -> metrics.Counts:
    """Count each image's pixels at every threshold.

    ``probs`` (N, H, W) uint8, ``masks`` (N, H, W). Returns (256, N) counts; row t is for
    ``probs >= t``, which stands for a threshold of t / 256.
    """
    pairs = list(zip(probs, np.asarray(masks) > 0, strict=True))

    def at_least(select: bool) -> NDArray[np.int64]:
        counts = [np.bincount(p[m == select], minlength=LEVELS) for p, m in pairs]
        return np.stack(counts, axis=1)[::-1].cumsum(axis=0)[::-1]

    tp, fp = at_least(True), at_least(False)
    return metrics.Counts(tp, fp, tp[0] - tp, fp[0] - fp)


def dice_from_counts(tp: NDArray, fp: NDArray, fn: NDArray) -> NDArray[np.float64]:
    """Return the Dice (Eq. 7) of pixel counts of one shape, in [0, 1]; 1 where all are 0."""
    whole = 2 * tp + fp + fn
    return np.where(whole > 0, 2 * tp / np.maximum(whole, 1), 1.0)


def dice_by_threshold(probs: NDArray[np.uint8], masks: NDArray) -> pd.DataFrame:
    """Return the Dice under the four definitions that depend on a threshold.

    ``probs`` (N, H, W) uint8, ``masks`` (N, H, W). Index: threshold, 1/256 to 255/256; one
    column per definition.
    """
    tp, fp, fn, tn = (count[1:] for count in count_by_threshold(probs, masks))
    starts = np.arange(0, tp.shape[1], RELEASED_BATCH)
    per_batch = (np.add.reduceat(count, starts, axis=1) for count in (tp, fp, fn))
    polyp = dice_from_counts(tp, fp, fn).mean(axis=1)
    columns = {
        "per image": polyp,
        f"per batch of {RELEASED_BATCH}": dice_from_counts(*per_batch).mean(axis=1),
        "all pixels pooled": dice_from_counts(*(count.sum(axis=1) for count in (tp, fp, fn))),
        "polyp and background": (polyp + dice_from_counts(tn, fn, fp).mean(axis=1)) / 2,
    }
    return pd.DataFrame(columns, index=pd.Index(np.arange(1, LEVELS) / LEVELS, name="threshold"))


def render_threshold(
    view: ThresholdView, frames: Frames, probs: NDArray[np.uint8], curves: pd.DataFrame
) -> Figure:
    """Show one image cut at a threshold, beside the Dice of all images at every threshold.

    ``probs`` (N, S, S) uint8 belongs to ``frames``; ``curves`` is `dice_by_threshold` of both.
    """
    mask = frames.masks[view.image] > 0
    pred = probs[view.image] / LEVELS >= view.threshold
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 5.6), width_ratios=(2, 3))
    _panel(left, frames.images[view.image], f"Dice {metrics.dice_score(pred, mask):.2f}")
    _outline(left, mask, TRUTH)
    _outline(left, pred, PRED, "--")
    left.set_xlabel("white: truth\namber dashes: prediction")
    for (name, curve), colour, style in zip(
        curves.items(), PALETTE, ("-", "--", "-.", ":"), strict=False
    ):
        right.plot(curve.index, curve, lw=3, ls=style, color=colour, label=name)
    right.axvline(view.threshold, color="black", lw=2)
    right.set(xlabel="threshold", ylabel="“Dice” over all images", ylim=(0, 1), xlim=(0, 1))
    right.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(
        f"{dataset_title(frames.table['dataset'].iloc[0])}, threshold {view.threshold:.2f}"
    )
    return figure


def to_png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG, for an image widget, and close it."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, pil_kwargs={"compress_level": 1})  # fast, not small
    plt.close(figure)
    return buffer.getvalue()


# --- Distances ------------------------------------------------------------------------------


def show_distances(
    pred: NDArray[np.bool_],
    mask: NDArray[np.bool_],
    curves: dict[str, NDArray],
    scores: dict[str, float],
    percents: Sequence[float],
) -> Figure:
    """Show both boundaries by their distance to the other, and where scores stand among distances.

    ``pred`` and ``mask`` (H, W), neither empty. ``curves``: distances (px), any order, by name.
    ``scores`` (px) by name, each a percentile of one of the curves, at its place in ``percents``.
    """
    rims = [metrics.boundary_pixels(each) for each in (pred, mask)]
    points = [np.argwhere(rim) for rim in rims]
    away = np.linalg.norm(points[0][:, None] - points[1][None], axis=2)
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 6), width_ratios=(4, 5))
    left.imshow(mask, cmap="Greys", vmin=0, vmax=5)
    style = {"cmap": "cividis", "vmin": 0, "vmax": 8}
    rows, columns = points[0].T
    shown = left.scatter(columns, rows, 30, away.min(axis=1), **style)
    left.contour(mask, [0.5], colors="black", linewidths=1.5)
    left.set_title("grey, black outline: truth.\nDots: the predicted boundary")
    left.set_axis_off()
    bar = figure.colorbar(shown, ax=left, shrink=0.85, extend="max")
    bar.set_label("distance to the\ntrue boundary (px)", labelpad=12)
    _plot_sorted(right, curves)
    for (name, value), percent, colour, marker in zip(
        scores.items(), percents, PALETTE, "sDo^", strict=False
    ):
        label = f"{name}: {value:.1f} px"
        right.plot(percent, value, marker, ms=12, color=colour, label=label, zorder=3)
    right.legend(fontsize="small", loc="upper left", bbox_to_anchor=(0, 0.97))
    return figure


def _plot_sorted(axes: Axes, curves: dict[str, NDArray]) -> None:
    """Plot distances (px) in rising order, as `numpy.percentile` reads them, with 95 % marked."""
    for (name, distances), colour, style in zip(
        curves.items(), ("0.6", "black", "0.3"), ("--", "-", ":"), strict=False
    ):
        share = np.linspace(0, 100, len(distances))
        axes.plot(share, np.sort(distances), lw=3, ls=style, color=colour, label=name)
    axes.axvline(95, color="0.4", lw=1)
    axes.annotate("95 %", (95, 0.3), (-22, 0), xycoords=("data", "axes fraction"),
                  textcoords="offset points", ha="right", color="0.4")  # fmt: skip
    axes.set(xlabel="pixels, nearest first (%)", ylabel="distance (px)", xlim=(50, 101))


def plot_hausdorff(full: NDArray, p95: NDArray, diagonal: float, title: str) -> Figure:
    """Show the largest boundary distance of each image against its HD95, both (N,) in px."""
    figure, axes = plt.subplots(figsize=(8, 6.4))
    gone = p95 >= diagonal  # the prediction or the truth is empty
    axes.plot([0, diagonal], [0, diagonal], color="grey", lw=1)
    axes.plot(p95[~gone], full[~gone], "o", ms=10, color=BLUE, alpha=0.7)
    axes.plot(p95[gone], full[gone], "X", ms=14, color=VERMILION, clip_on=False)
    axes.annotate(
        f"one mask empty:\n{np.count_nonzero(gone)} images", (diagonal, diagonal), (-4, 14),
        textcoords="offset points", ha="right", va="bottom", size="small", color=VERMILION,
    )  # fmt: skip
    axes.set(xlabel="HD95 (px)", ylabel="Hausdorff distance (px)", title=title)
    axes.set_ylim(top=1.2 * diagonal)
    return figure


def plot_dropped_misses(table: pd.DataFrame, title: str) -> Figure:
    """Show the mean distance while predictions are taken away.

    Columns: order (of removal), given_up (%), dropped and counted (means, px).
    """
    figure, axes = plt.subplots(figsize=(11, 5.8))
    for (order, part), style in zip(table.groupby("order", sort=False), ("-", "--"), strict=False):
        line = {"lw": 4, "ls": style}
        axes.plot(part["given_up"], part["counted"], color=BLUE, label=f"counted, {order}", **line)
        axes.plot(part["given_up"], part["dropped"], color=VERMILION,
                  label=f"dropped, {order}", **line)  # fmt: skip
    axes.set(xlabel="predictions taken away (%)", ylabel="mean Hausdorff distance (px)")
    axes.set(title=title, xlim=(0, 100), ylim=(0, None))
    axes.legend(title="missed polyps are …", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
