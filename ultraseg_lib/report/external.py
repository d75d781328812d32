"""What training on several sets buys on images that were never trained on (section 4.7, Table 6)."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ultraseg_lib.data import GENERATED, dataset_title, split_share
from ultraseg_lib.data.splits import MIXED
from ultraseg_lib.report import figures
from ultraseg_lib.report.tables import (
    FEW,
    FINDING,
    LEVEL,
    LEVELS,
    READ,
    error_bars,
    levels,
    paired,
    printed_table,
    settled_runs,
    with_findings,
    with_seeds,
)
from ultraseg_lib.study import WHOLE_TEST_SETS
from ultraseg_lib.variants import model_title

JOINT = ("mixed", "synthetic")  # what a model is trained on when it is trained on everything
KEYS = ["recipe", "protocol", "epochs", "dataset", "model", "tested"]
SAME = ["recipe", "protocol", "model", "tested"]  # of two trainings on other images
OF_SHARES = [*SAME, "whole"]
ALIKE = [key for key in KEYS if key != "model"]  # for `tables.compare_pairs` of `by_tested`

TOLD = READ | {  # for `tables.shown`
    "dataset": ("trained on", dataset_title), "model": ("model", model_title),
    "joint": ("everything", dataset_title), "single": ("one set", dataset_title),
    "share": ("smallest share (%)", "{:g}"),
    "dice_b": ("Dice with it", LEVEL), "dice_a": ("Dice with all", LEVEL),
}  # fmt: skip
SCORES = ("recipe", "protocol", "epochs", "dataset", "tested", "title", "seeds", "images", "dice", *LEVELS, "paper_dice", "paper_hd95")  # fmt: skip
AGAINST = ("recipe", "protocol", "model", "tested", "joint", "single", *FINDING[:4])
GAINS = ("recipe", "protocol", "model", "tested", "share", "dice_b", "dice_a", *FINDING)  # fmt: skip


def by_tested(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the ledger with a column ``tested``: the test set, the parts of the mixed set as one."""
    of_mixed = (ledger["dataset"].str.split("@").str[0] == "mixed") & ledger["test_set"].isin(MIXED)
    return ledger.assign(tested=ledger["test_set"].mask(of_mixed, "mixed"))


def is_share(ledger: pd.DataFrame) -> pd.Series:
    """Return which rows come from models that saw a share of a training set only."""
    return ledger["dataset"].map(lambda name: split_share(name)[0] != name).astype(bool)


def score_table(ledger: pd.DataFrame, extra: Sequence[str] = ()) -> pd.DataFrame:
    """Average every model over the images of every test set; ``extra`` columns divide them further.

    ``ledger``: of `by_tested`. Columns: those of `tables.levels` by KEYS and ``extra``, and title;
    with ``extra`` without batch_pooled_dice, which is of whole test sets, and without an interval
    below FEW images, of which it would be too narrow.
    """
    table = levels(ledger, [*KEYS, *extra])
    if extra:
        table = table.drop(columns="batch_pooled_dice")
        table.loc[table["images"] < FEW, ["dice_low", "dice_high"]] = np.nan
    return table.assign(title=table["model"].map(model_title))


def paper_table6() -> pd.DataFrame:
    """Return Table 6 of the paper in long form: title, tested, paper_dice, paper_hd95 (px)."""
    wide = printed_table(6).rename_axis("title")
    wide.columns = wide.columns.str.rsplit("_", n=1, expand=True)
    long = wide.stack(0).rename_axis(["title", "tested"]).add_prefix("paper_")
    return long[["paper_dice", "paper_hd95"]].reset_index()


def joint_table(scores: pd.DataFrame, joined: Sequence[str]) -> pd.DataFrame:
    """Return Table 6: models trained on everything, by test set, beside the paper's.

    ``scores``: of `score_table`. ``joined``: the datasets of the mixed set that are here; with
    fewer than the paper's four its mixed column is another number and stays out.
    """
    table = scores[scores["dataset"].isin(JOINT)].merge(paper_table6(), "left", ["title", "tested"])
    if set(joined) < set(MIXED):
        table.loc[table["tested"] == "mixed", ["paper_dice", "paper_hd95"]] = float("nan")
    return table.sort_values(["tested", "recipe", "protocol", "dice"], ignore_index=True)


def with_single_sets(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that show what training on everything is worth (section 4.7).

    ``ledger``: of `by_tested`. Left are the unseen test sets and the models that were trained alike
    on everything and on one set; of several lengths of training the settled one counts.
    """
    unseen = settled_runs(ledger[ledger["tested"].isin(WHOLE_TEST_SETS) & ~is_share(ledger)])
    joint = unseen["dataset"].isin(JOINT)
    kinds = unseen.assign(joint=joint).groupby(SAME)["joint"].transform("nunique")
    return unseen[kinds == 2]


def joint_against_single(ledger: pd.DataFrame) -> pd.DataFrame:
    """Compare each model trained on everything with itself trained on one set, on unseen images.

    ``ledger``: of `by_tested`; see `with_single_sets`. The two differ in images and in steps, so a
    difference says nothing of either alone. Columns: recipe, protocol, model, tested, joint, single
    (the training sets), then those of `tables.with_findings`.
    """
    rows = []
    for values, group in with_single_sets(ledger).groupby(SAME, sort=False):
        sets = dict(list(group.groupby("dataset")))
        for joint, single in product(sets, sets):
            if joint in JOINT and single not in JOINT:
                keys = dict(zip(SAME, values, strict=True), joint=joint, single=single)
                rows.append(keys | paired(sets[joint], sets[single]))
    return with_findings(rows, [*SAME, "joint", "single"])


def with_shares(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of models that were trained on a share and on all, with columns share (%), whole.

    ``ledger``: of `by_tested`; ``whole``: the set shared out. A smaller share is trained for more
    epochs, so that all make as many steps: of several lengths on all, the one nearest to that
    counts.
    """
    joint = ledger.assign(whole=ledger["dataset"].str.split("@").str[0])
    joint = joint[joint["whole"].isin(JOINT) & (is_share(joint) | joint["dataset"].isin(JOINT))]
    share = joint["dataset"].map(lambda name: split_share(name)[1]).astype(float)
    joint = joint.assign(share=share, passes=joint["epochs"] * share / 100)  # over all images
    parts, every = settled_runs(joint[share < 100]), joint[share == 100]
    asked = parts.groupby(OF_SHARES)["passes"].max().rename("asked").reset_index()
    every = every.merge(asked, on=OF_SHARES)
    every["off"] = (every["passes"] - every["asked"]).abs()
    nearest = every.groupby(OF_SHARES)["off"].transform("min")
    every = settled_runs(every[every["off"] == nearest]).drop(columns=["asked", "off"])
    return pd.concat([parts.merge(every[OF_SHARES].drop_duplicates()), every])


def share_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return Dice by the share of the training set that was used.

    ``ledger``: of `by_tested`. Columns: those of `score_table` with ``share``.
    """
    table = score_table(with_shares(ledger), ["share"])
    return table.sort_values(["model", "tested", "share"], ignore_index=True)


def share_gains(ledger: pd.DataFrame) -> pd.DataFrame:
    """Compare each model trained on all images with itself trained on the smallest share.

    ``ledger``: of `by_tested`. Columns: recipe, protocol, model, tested, whole (the set shared
    out), share (the smallest, %), then those of `tables.with_findings`.
    """
    rows = []
    for values, group in with_shares(ledger).groupby(OF_SHARES, sort=False):
        shares = dict(list(group.groupby("share")))
        keys = dict(zip(OF_SHARES, values, strict=True), share=min(shares))
        rows.append(keys | paired(shares[max(shares)], shares[min(shares)]))
    return with_findings(rows, [*OF_SHARES, "share"])


# --- figures --------------------------------------------------------------------------------------


def _style(model: str) -> dict[str, Any]:
    colour, marker = figures.model_style(model)
    return {"color": colour, "marker": marker, "ms": 12, "lw": 3, "capsize": 6}


def _lines(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the lines of a figure from the top down: each setting, then its labels, best first."""
    lines = []
    for setting, part in table.groupby("setting", sort=False):
        ranked = part.groupby("label")["dice"].mean().sort_values(ascending=False).index
        lines += [(setting, ""), *((setting, label) for label in ranked)]
    return lines


def _plot_panel(axes: Axes, table: pd.DataFrame, lines: list[tuple[str, str]]) -> None:
    for model, part in table.groupby("model"):
        places = [lines.index(line) for line in zip(part["setting"], part["label"], strict=True)]
        axes.errorbar(part["dice"], places, xerr=error_bars(part), ls="", **_style(model))
        if "paper_dice" in part:
            axes.plot(part["batch_pooled_dice"], places, **figures.PER_BATCH)
            axes.plot(part["paper_dice"], places, **figures.PER_BATCH_PAPER)
    name = table["tested"].iloc[0]
    title = dataset_title(name)
    if "unseen" not in title:
        title += "\nunseen" if name in WHOLE_TEST_SETS else "\ntest part"
    axes.set(title=title, xlim=(0, 1), xlabel="Dice")
    axes.grid(axis="x", color="0.9")


def _plot_scores(table: pd.DataFrame, title: str) -> Figure:
    """Show Dice with 95 % intervals: one panel per test set, one line per label below its setting.

    ``table``: of `score_table` with columns setting and label. With a column paper_dice diamonds
    show the Dice per batch, ours and the paper's.
    """
    lines = _lines(table)
    panels = list(table.groupby("tested", sort=False))
    size = (6.5 + 4.5 * len(panels), 2.6 + 0.5 * len(lines))
    figure, grid = plt.subplots(1, len(panels), figsize=size, squeeze=False, sharey=True)
    for axes, (_, part) in zip(grid[0], panels, strict=True):
        _plot_panel(axes, part, lines)
    first = grid[0, 0]
    first.set_yticks(range(len(lines)), [label or setting for setting, label in lines])
    first.set_ylim(len(lines) - 0.5, -0.5)
    for tick, (_, label) in zip(first.get_yticklabels(), lines, strict=True):
        tick.set(weight="normal" if label else "bold", size="medium" if label else "small")
    if "paper_dice" in table:
        figures.name_definitions(figure, with_paper=table["paper_dice"].notna().any())
    figure.suptitle(title)
    return figure


def plot_joint(table: pd.DataFrame) -> Figure:
    """Show `joint_table`: one panel per test set, the paper's Dice as hollow diamonds."""
    trained = ", ".join(figures.dataset_title(name) for name in dict.fromkeys(table["dataset"]))
    setting = table.apply(figures.training_words, axis=1)
    lines = table.assign(setting=setting, label=with_seeds(table))
    return _plot_scores(lines, f"trained on {trained}")


def plot_training_sets(table: pd.DataFrame) -> Figure:
    """Show Dice of each model by what it was trained on: `score_table` of `with_single_sets`."""
    whole = table["dataset"].replace(dict.fromkeys(GENERATED, "everything"))
    labels = whole.map(dataset_title) + ", " + table["epochs"].astype(str) + " epochs"
    setting = with_seeds(table) + ", " + table["recipe"] + ", " + table["protocol"]
    generated = table["dataset"].str.split("@").str[0].isin(GENERATED).any()
    title = f"trained on everything or on one set{f' ({figures.GENERATED})' if generated else ''}"
    return _plot_scores(table.assign(setting=setting, label=labels), title)


def plot_centers(table: pd.DataFrame) -> Figure:
    """Show Dice by center of one test set: ``table`` is of `score_table` with extra column center."""
    centers = sorted(set(table["center"]))
    settings = [part for _, part in table.groupby(KEYS[:3], sort=False)]
    heights = [0.6 + len(centers) * (0.2 + 0.25 * part["model"].nunique()) for part in settings]
    figure, panels = plt.subplots(len(settings), 1, figsize=(12, 1.8 + sum(heights)), squeeze=False,
                                  sharex=True, sharey=True, height_ratios=heights)  # fmt: skip
    named = {}
    for axes, part in zip(panels[:, 0], settings, strict=True):
        models = list(part.groupby("model", sort=False))
        for place, (model, line) in enumerate(models):
            shift = 0.8 * ((place + 0.5) / len(models) - 0.5)
            at = [centers.index(center) + shift for center in line["center"]]
            bars = axes.errorbar(line["dice"], at, xerr=error_bars(line), ls="", **_style(model))
            named[line["title"].iloc[0]] = bars
        axes.set_title(figures.training_words(part.iloc[0]), loc="left", fontsize="small")
        axes.grid(axis="x", color="0.9")
    images = table.groupby("center")["images"].max()
    labels = [f"{center.replace('_', ' ')} ({images[center]} images)" for center in centers]
    axes.set(yticks=range(len(centers)), yticklabels=labels, ylim=(len(centers) - 0.5, -0.5))
    axes.set(xlabel="Dice, mean over images", xlim=(0, 1))
    panels[0, 0].legend(named.values(), named, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(f"tested on {figures.dataset_title(table['tested'].iloc[0])}")
    return figure


def plot_shares(table: pd.DataFrame) -> Figure:
    """Show `share_table`: Dice against the share of the training images, one panel per test set."""
    tested = list(dict.fromkeys(table["tested"]))
    figure, panels = plt.subplots(
        1, len(tested), figsize=(6.4 * len(tested), 5.8), squeeze=False, sharey=True
    )
    for axes, name in zip(panels[0], tested, strict=True):
        part = table[table["tested"] == name]
        for place, (model, line) in enumerate(part.groupby("model", sort=False)):
            shift = 1.06**place  # so that error bars do not hide each other
            axes.errorbar(line["share"] * shift, line["dice"], yerr=error_bars(line), ls="-",
                          label=line["title"].iloc[0], **_style(model))  # fmt: skip
        ticks = sorted(set(table["share"]))
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel="share of the training images (%)", title=dataset_title(name), ylim=(0, 1))
    panels[0, 0].set_ylabel("Dice, mean over images")
    panels[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    trained = figures.dataset_title(table["dataset"].iloc[0].partition("@")[0])
    figure.suptitle(
        f"trained on {trained}, {figures.training_words(table.iloc[0]).rpartition(',')[0]}"
    )
    return figure
