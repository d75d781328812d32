"""What training on several sets buys on images that were never trained on (section 4.7, Table 6)."""

import re
from collections.abc import Iterable, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from ultraseg_lib.data import dataset_title
from ultraseg_lib.data.splits import MIXED
from ultraseg_lib.paths import PAPER
from ultraseg_lib.report.figures import GENERATED, PALETTE
from ultraseg_lib.report.tables import longest_runs
from ultraseg_lib.statistics import bootstrap_interval, holm, paired_test
from ultraseg_lib.study import WHOLE_TEST_SETS
from ultraseg_lib.variants import model_title

JOINT = ("mixed", "synthetic")  # what a model is trained on when it is trained on everything
KEYS = ["recipe", "protocol", "epochs", "dataset", "model", "tested"]
MARKERS = "osD^vPX"


def by_tested(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the ledger with a column ``tested``: the test set, the parts of the mixed set as one."""
    of_mixed = (ledger["dataset"].str.split("@").str[0] == "mixed") & ledger["test_set"].isin(MIXED)
    return ledger.assign(tested=ledger["test_set"].mask(of_mixed, "mixed"))


def is_share(ledger: pd.DataFrame) -> pd.Series:
    """Return which rows come from models that saw a share of a training set only."""
    return ledger["dataset"].str.contains(r"@p\d+$").astype(bool)


def training_title(dataset: str) -> str:
    """Return the title of a training set with its selection: "Mixed set, 25 %", "PolypGen, C3"."""
    name, _, selection = dataset.partition("@")
    share = re.fullmatch(r"p(\d+)", selection)
    words = f"{share[1]} %" if share else selection.replace("center_", "center ")
    return f"{dataset_title(name)}, {words}" if words else dataset_title(name)


def _say_generated(figure: Figure, names: Iterable[str]) -> None:
    """Write over a figure of generated images that they are."""
    if any(name.startswith("synthetic") for name in names):
        figure.suptitle(GENERATED)


def score_table(ledger: pd.DataFrame, extra: Sequence[str] = ()) -> pd.DataFrame:
    """Average every model over the images of every test set; ``extra`` columns divide them further.

    ``ledger``: of `by_tested`. Columns: KEYS and ``extra``, title, seeds, images, dice (mean over
    images and seeds), dice_low and dice_high (95 % bootstrap), batch_pooled_dice, iou, hd95 (px),
    miss_rate (share of images with a polyp of which no pixel was found).
    """
    rows, keys = [], [*KEYS, *extra]
    for values, group in ledger.groupby(keys, sort=False):
        dice = _seeds_by_images(group)
        polyps = group[group["area"] > 0]
        missed = 1 - polyps["detected"].astype(float).mean()
        means = group[["batch_pooled_dice", "iou", "hd95"]].mean()
        rows.append((*values, *dice.shape, *bootstrap_interval(dice.to_numpy()), *means, missed))
    scores = ["dice", "dice_low", "dice_high", "batch_pooled_dice", "iou", "hd95", "miss_rate"]
    table = pd.DataFrame(rows, columns=[*keys, "seeds", "images", *scores])
    return table.assign(title=[model_title(name) for name in table["model"]])


def _seeds_by_images(group: pd.DataFrame) -> pd.DataFrame:
    return group.pivot(index="seed", columns=["test_set", "image_id"], values="dice")


def paper_table6() -> pd.DataFrame:
    """Return Table 6 of the paper in long form: title, tested, paper_dice, paper_hd95 (px)."""
    wide = pd.read_csv(PAPER / "table6_mixed_external.csv").rename(columns={"model": "title"})
    parts = []
    for tested in ("mixed", "etis_larib", "bkai_igh"):
        columns = {f"{tested}_dice": "paper_dice", f"{tested}_hd95": "paper_hd95"}
        part = wide[["title", *columns]].rename(columns=columns)
        parts.append(part.assign(tested=tested))
    return pd.concat(parts, ignore_index=True)


def joint_table(scores: pd.DataFrame, joined: Sequence[str]) -> pd.DataFrame:
    """Return Table 6: models trained on everything, by test set, beside the paper's.

    ``scores``: of `score_table`. ``joined``: the datasets of the mixed set that are here; with
    fewer than the paper's four its mixed column is another number and stays out.
    """
    table = scores[scores["dataset"].isin(JOINT)].merge(paper_table6(), "left", ["title", "tested"])
    if set(joined) < set(MIXED):
        table.loc[table["tested"] == "mixed", ["paper_dice", "paper_hd95"]] = float("nan")
    return table.sort_values(["tested", "recipe", "protocol", "dice"], ignore_index=True)


def format_scores(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of `score_table` or `joint_table` as text for reading."""
    text = {
        **{key: table[key] for key in ("recipe", "protocol", "epochs")},
        "trained on": [training_title(name) for name in table["dataset"]],
        "tested on": [training_title(name) for name in table["tested"]],
        **({"center": table["center"]} if "center" in table else {}),
        "model": table["title"],
        "images": table["images"],
        "Dice": table["dice"].map("{:.3f}".format),
        "95 % interval": [
            f"{low:.3f} to {high:.3f}"
            for low, high in zip(table["dice_low"], table["dice_high"], strict=True)
        ],
        "Dice per batch of 4": table["batch_pooled_dice"].map("{:.3f}".format),
        "HD95 (px)": table["hd95"].map("{:.1f}".format),
        "missed": table["miss_rate"].map("{:.1%}".format),
    }
    for column, name, form in (
        ("paper_dice", "paper's Dice", "{:.4f}"),
        ("paper_hd95", "paper's HD95", "{:.2f}"),
    ):
        if column in table:
            text[name] = [form.format(x) if x == x else "–" for x in table[column]]
    return pd.DataFrame(text)


def joint_against_single(ledger: pd.DataFrame) -> pd.DataFrame:
    """Compare each model trained on everything with itself trained on one set, on unseen images.

    ``ledger``: of `by_tested`. Pairs share recipe, protocol, model and seeds; of several lengths of
    training the longest counts. Columns: recipe, protocol, model, tested, joint, single (the
    training sets), joint_dice, single_dice, difference (joint - single), low and high (95 %
    bootstrap over images and seeds), p_holm.
    """
    unseen = longest_runs(ledger[ledger["tested"].isin(WHOLE_TEST_SETS) & ~is_share(ledger)])
    rows, keys = [], ["recipe", "protocol", "model", "tested"]
    for values, group in unseen.groupby(keys, sort=False):
        sets = {name: _seeds_by_images(part) for name, part in group.groupby("dataset")}
        for joint in [name for name in sets if name in JOINT]:
            for single in [name for name in sets if name not in JOINT]:
                pair = _same_seeds(sets[joint], sets[single])
                if len(pair[0]):
                    means = (float(each.mean()) for each in pair)
                    rows.append((*values, joint, single, *means, *paired_test(*pair)))
    columns = ["joint", "single", "joint_dice", "single_dice", "difference", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=[*keys, *columns])
    return table.assign(p_holm=holm(table.pop("p")) if rows else [])


def _same_seeds(one: pd.DataFrame, other: pd.DataFrame) -> tuple:
    """Return the values (seeds, images) of both where they share seeds, images in one order."""
    seeds = one.index.intersection(other.index)
    return one.loc[seeds].to_numpy(), other.loc[seeds, one.columns].to_numpy()


def compare_models(ledger: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Compare models with others that were trained alike, on every test set.

    ``ledger``: of `by_tested`. A pair without a seed in common is left out. Columns: recipe,
    protocol, epochs, dataset, tested, model, other, seeds, images, difference (mean Dice,
    model - other), low and high (95 % bootstrap over images and seeds).
    """
    rows, pairs = [], list(pairs)
    keys = [key for key in KEYS if key != "model"]
    for values, group in ledger.groupby(keys, sort=False):
        dice = {name: _seeds_by_images(part) for name, part in group.groupby("model")}
        for model, other in pairs:
            if model in dice and other in dice:
                pair = _same_seeds(dice[model], dice[other])
                if len(pair[0]):
                    test = paired_test(*pair)
                    rows.append((*values, model, other, *pair[0].shape, *test[:3]))
    columns = ["model", "other", "seeds", "images", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=[*keys, *columns])


def share_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return Dice by the share of the training set that was used, for models that have shares.

    ``ledger``: of `by_tested`. Columns: those of `score_table`, and share (%). A smaller share is
    trained for more epochs, so that all make as many steps.
    """
    joint = ledger[ledger["dataset"].str.split("@").str[0].isin(JOINT)]
    shares = joint[is_share(joint) | joint["dataset"].isin(JOINT)]
    chosen = shares.loc[is_share(shares), ["recipe", "protocol", "model"]].drop_duplicates()
    table = score_table(shares.merge(chosen))
    share = table["dataset"].str.extract(r"@p(\d+)$")[0].astype(float).fillna(100.0)
    return table.assign(share=share).sort_values(["model", "tested", "share"], ignore_index=True)


# --- figures --------------------------------------------------------------------------------------


def _bars(table: pd.DataFrame) -> list[pd.Series]:
    return [table["dice"] - table["dice_low"], table["dice_high"] - table["dice"]]


def plot_joint(table: pd.DataFrame) -> Figure:
    """Show `joint_table` of one setting: a panel a test set, the paper's Dice as hollow diamonds."""
    tested = list(dict.fromkeys(table["tested"]))
    order = list(table.groupby("title")["dice"].mean().sort_values().index)
    height = 2.2 + 0.7 * len(order)
    figure, panels = plt.subplots(
        1, len(tested), figsize=(6.4 * len(tested), height), squeeze=False, sharey=True
    )
    for axes, name in zip(panels[0], tested, strict=True):
        part = table[table["tested"] == name].set_index("title").loc[order]
        colours = [PALETTE[3] if m.startswith("ultraseg") else PALETTE[0] for m in part["model"]]
        axes.barh(order, part["dice"], xerr=_bars(part), color=colours, capsize=5)
        axes.plot(part["paper_dice"], order, "D", ms=12, mfc="none", mec="black", mew=2.5)
        unseen = "unseen" if name in WHOLE_TEST_SETS else "test part"
        axes.set(title=f"{training_title(name)}\n{unseen}", xlim=(0, 1), xlabel="Dice")
    _say_generated(figure, tested)
    return figure


def plot_training_sets(scores: pd.DataFrame, tested: str) -> Figure:
    """Show, for one test set, the Dice of each model by what it was trained on (section 4.7).

    ``scores``: of `score_table`, one recipe and protocol. Orange: everything; blue: one set.
    """
    table = scores[(scores["tested"] == tested) & ~is_share(scores)].sort_values("dice")
    names = [
        f"{training_title(d)}: {t}" for d, t in zip(table["dataset"], table["title"], strict=True)
    ]
    figure, axes = plt.subplots(figsize=(13, 1.9 + 0.65 * len(table)))
    for place, (row, bar) in enumerate(
        zip(table.itertuples(), pd.concat(_bars(table), axis=1).to_numpy(), strict=True)
    ):
        joint = row.dataset in JOINT
        axes.errorbar(row.dice, place, xerr=bar[:, None], fmt="s" if joint else "o", ms=13, lw=3,
                      capsize=6, color=PALETTE[3] if joint else PALETTE[0])  # fmt: skip
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="Dice, mean over unseen images")
    axes.set(ylim=(-0.5, len(names) - 0.5))
    axes.set_title(f"tested on {training_title(tested)}")
    _say_generated(figure, [tested])
    return figure


def plot_centers(table: pd.DataFrame) -> Figure:
    """Show Dice by center: ``table`` is of `score_table` with extra column center, one setting."""
    centers = sorted(set(table["center"]))
    figure, axes = plt.subplots(figsize=(12, 2 + 0.8 * len(centers)))
    for place, (title, part) in enumerate(table.groupby("title", sort=False)):
        shift = 0.14 * (place - (table["title"].nunique() - 1) / 2)
        at = [centers.index(center) + shift for center in part["center"]]
        axes.errorbar(part["dice"], at, xerr=_bars(part), fmt=MARKERS[place % len(MARKERS)], ms=11,
                      lw=2.5, capsize=4, color=PALETTE[place], label=title)  # fmt: skip
    images = table.groupby("center")["images"].max()
    labels = [f"{center.replace('_', ' ')} ({images[center]} images)" for center in centers]
    axes.set(yticks=range(len(centers)), yticklabels=labels, ylim=(len(centers) - 0.5, -0.5))
    axes.set(xlabel="Dice, mean over images", xlim=(0, 1))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_title(f"tested on {training_title(table['tested'].iloc[0])}")
    _say_generated(figure, table["tested"])
    return figure


def plot_shares(table: pd.DataFrame) -> Figure:
    """Show `share_table`: Dice against the share of the training images, a panel a test set."""
    tested = list(dict.fromkeys(table["tested"]))
    figure, panels = plt.subplots(
        1, len(tested), figsize=(6.4 * len(tested), 5.6), squeeze=False, sharey=True
    )
    for axes, name in zip(panels[0], tested, strict=True):
        part = table[table["tested"] == name]
        for place, (title, line) in enumerate(part.groupby("title", sort=False)):
            shift = 1.06**place  # so that error bars do not hide each other
            axes.errorbar(line["share"] * shift, line["dice"], yerr=_bars(line), fmt=f"{MARKERS[place]}-",
                          ms=12, lw=3, capsize=6, color=PALETTE[place], label=title)  # fmt: skip
        ticks = sorted(set(table["share"]))
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel="share of the training images (%)", title=training_title(name))
    panels[0, 0].set_ylabel("Dice, mean over images")
    panels[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    _say_generated(figure, tested)
    return figure
