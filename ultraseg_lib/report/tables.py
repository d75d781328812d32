"""Tables from the ledger, ours beside the paper's. Nothing here is typed by hand."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from ultraseg_lib.data import catalog, dataset_title
from ultraseg_lib.paths import PAPER, outputs_dir, whole_file
from ultraseg_lib.statistics import bootstrap_interval, holm, paired_test
from ultraseg_lib.variants import model_title

RUN_KEYS = ["recipe", "protocol", "epochs", "dataset", "model", "seed"]
GROUP_KEYS = RUN_KEYS[:-1]
SETTING = GROUP_KEYS[:-1]  # only runs of one setting are compared
DIFFERENCE = ("difference", "low", "high")
PAIRED = ("seeds", "images", "dice_a", "dice_b", *DIFFERENCE, "p")


def save_table(table: pd.DataFrame, profile: str, name: str) -> None:
    """Write a table to ``outputs/<profile>/tables/<name>.csv``."""
    with whole_file(outputs_dir(profile) / "tables" / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False)


def own_scores(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the ledger's rows of each run's own test set; runs on a center or a share are left out."""
    part = ledger["dataset"].astype(str).str.contains(r"@(?:center_|p\d)").astype(bool)
    return ledger[(ledger["test_set"] == ledger["dataset"]) & ~part]


def whole_models(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the ledger's rows of models of Table 3: no variants, and not the ladder's reconstruction."""
    model = ledger["model"].astype(str)
    return ledger[~model.str.contains("+", regex=False) & (model != "ultraseg_108k_st")]


def longest_runs(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the ledger's rows of the most epochs, where runs differ in nothing but epochs and seed."""
    alike = ledger.groupby(["recipe", "protocol", "dataset", "model"])
    return ledger[ledger["epochs"] == alike["epochs"].transform("max")]


def setting_name(table: pd.DataFrame) -> str:
    """Return the setting of a table's first row as part of a file name."""
    return "-".join(str(table[key].iloc[0]) for key in SETTING)


def same_seeds(ledger: pd.DataFrame, alike: Sequence[str], compared: str) -> pd.DataFrame:
    """Return the rows of the seeds that every value of a column has, among the rows that are alike.

    A mean over two seeds is not compared with a mean over one: the seed would be part of the
    difference.
    """
    every = ledger.groupby([*alike])[compared].transform("nunique")
    return ledger[ledger.groupby([*alike, "seed"])[compared].transform("nunique") == every]


def summarize_runs(ledger: pd.DataFrame) -> pd.DataFrame:
    """Average each run over the images of its own test set: a row a run.

    Columns: the run's settings, images, dice and iou (mean over images), batch_pooled_dice (the
    released definition), hd95 (px, misses count as the image diagonal), miss_rate (share of images
    with a polyp of which no pixel was found).
    """
    own = own_scores(ledger)
    missed = (own["area"] > 0) & ~own["detected"].astype(bool)
    grouped = own.assign(missed=missed, has_polyp=own["area"] > 0).groupby(RUN_KEYS, sort=False)
    runs = grouped.agg(
        images=("image_id", "size"),
        dice=("dice", "mean"),
        iou=("iou", "mean"),
        batch_pooled_dice=("batch_pooled_dice", "first"),
        hd95=("hd95", "mean"),
        missed=("missed", "sum"),
        has_polyp=("has_polyp", "sum"),
    ).reset_index()
    runs["miss_rate"] = runs.pop("missed") / runs.pop("has_polyp")
    return runs


def dice_by_seed(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the Dice of one model in one setting as a table (seeds, images)."""
    return scores.pivot(index="seed", columns=["test_set", "image_id"], values="dice")


def error_bars(table: pd.DataFrame) -> np.ndarray:
    """Return how far the interval's ends are from the Dice, (2, rows), as matplotlib wants it."""
    return np.array([table["dice"] - table["dice_low"], table["dice_high"] - table["dice"]])


def paper_table3() -> pd.DataFrame:
    """Return Table 3 of the paper in long form: title, dataset, paper_dice."""
    wide = pd.read_csv(PAPER / "table3_main.csv").rename(columns={"model": "title"})
    long = wide.melt("title", var_name="dataset", value_name="paper_dice")
    long = long[long["dataset"].str.endswith("_dice")]
    return long.assign(dataset=long["dataset"].str.removesuffix("_dice"))


def main_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return Table 3: Dice of each model on each dataset, beside the paper's where it has one.

    Columns: recipe, protocol, epochs, dataset, model, title, seeds, dice (mean over images and
    seeds), dice_sd (over seeds, NaN for one), dice_low and dice_high (95 % bootstrap over seeds and
    images), batch_pooled_dice (compare this one with paper_dice), hd95, miss_rate, paper_dice.
    """
    runs = summarize_runs(ledger)
    own = own_scores(ledger)
    intervals = [
        (*keys, *bootstrap_interval(dice_by_seed(group))[1:])
        for keys, group in own.groupby(GROUP_KEYS, sort=False)
    ]
    bounds = pd.DataFrame(intervals, columns=[*GROUP_KEYS, "dice_low", "dice_high"])
    table = (
        runs.groupby(GROUP_KEYS, sort=False)
        .agg(
            seeds=("seed", "nunique"),
            dice=("dice", "mean"),
            dice_sd=("dice", "std"),
            batch_pooled_dice=("batch_pooled_dice", "mean"),
            hd95=("hd95", "mean"),
            miss_rate=("miss_rate", "mean"),
        )
        .reset_index()
        .merge(bounds, on=GROUP_KEYS)
    )
    table["title"] = [model_title(name) for name in table["model"]]
    table = table.merge(paper_table3(), on=["title", "dataset"], how="left")
    order = ["recipe", "protocol", "dataset", "epochs", "dice"]
    rising = [True, True, True, True, False]  # the best model first
    return table.sort_values(order, ascending=rising, ignore_index=True)


def groups(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the rows that may be compared: one recipe, protocol, epochs and dataset; largest first."""
    found = [group for _, group in table.groupby(SETTING, sort=False)]
    return sorted(found, key=len, reverse=True)


def paired(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """Compare two trainings image by image on the seeds that both have; empty where they share none.

    ``one``, ``other``: rows of the ledger, each of one model in one setting, on the same images.
    Keys: PAIRED, where difference is the mean Dice one - other, low and high its 95 % bootstrap
    interval over images and seeds, p that of the sign-flip test (see `statistics.paired_test`).
    """
    a, b = dice_by_seed(one), dice_by_seed(other)
    seeds = a.index.intersection(b.index)
    if seeds.empty:
        return {}
    a, b = a.loc[seeds].to_numpy(), b.loc[seeds, a.columns].to_numpy()
    values = (*a.shape, a.mean(), b.mean(), *paired_test(a, b))
    return dict(zip(PAIRED, values, strict=True))


def with_findings(
    rows: list[dict[str, Any]], keys: Sequence[str], within: Sequence[str] = ()
) -> pd.DataFrame:
    """Return rows of `paired` as a table: ``keys``, PAIRED, p_holm and finding.

    p_holm is corrected for the comparisons of a group of ``within`` (default: all). A finding has
    p_holm < 0.05 (these trained models differ on such images) and an interval without zero (drawn
    seeds, where there are several, do not turn it).
    """
    table = pd.DataFrame(rows, columns=[*keys, *PAIRED])
    if within and rows:
        table["p_holm"] = table.groupby([*within])["p"].transform(holm)
    else:
        table["p_holm"] = holm(table["p"])
    outside = (table["low"] > 0) | (table["high"] < 0)
    return table.drop(columns="p").assign(finding=outside & (table["p_holm"] < 0.05))


def compare_pairs(
    ledger: pd.DataFrame, pairs: Iterable[tuple[str, str]], within: Sequence[str]
) -> pd.DataFrame:
    """Compare models with baselines that are alike in the columns ``within``; see `with_findings`.

    A pair without a seed in common is left out. Columns: ``within``, model, baseline, then those of
    `with_findings`, corrected for the pairs of each group.
    """
    rows, pairs = [], list(pairs)
    for alike, group in ledger.groupby([*within], sort=False):
        models = dict(list(group.groupby("model")))
        for model, baseline in pairs:
            if model in models and baseline in models:
                test = paired(models[model], models[baseline])
                keys = dict(zip(within, alike, strict=True), model=model, baseline=baseline)
                rows += [keys | test] if test else []
    return with_findings(rows, [*within, "model", "baseline"], within)


def paired_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """Compare every two models of one group (see `groups`) image by image, the better one first.

    Columns: those of `compare_pairs`, model_a and model_b (titles).
    """
    own = own_scores(ledger)
    ranked = own.groupby("model")["dice"].mean().sort_values(ascending=False).index
    table = compare_pairs(own, combinations(ranked, 2), SETTING)
    titles = {"model_a": table["model"].map(model_title), "model_b": table["baseline"].map(model_title)}  # fmt: skip
    return table.assign(**titles)


def _change(a: Sequence[Any], b: Sequence[Any]) -> dict[str, str]:
    """Say what differs between two settings (recipe, protocol, epochs), and what does not."""
    sides = list(zip(("recipe", "protocol", "epochs"), a, b, strict=True))
    changed = {name: f"{name}: {x} − {y}" for name, x, y in sides if x != y}
    alike = [f"{x} epochs" if name == "epochs" else x for name, x, y in sides if x == y]
    label = "; ".join(changed.values()) + (f" ({', '.join(alike)})" if alike else "")
    names = ("{}, {}, {} epochs".format(*each) for each in (a, b))
    return dict(zip("ab", names, strict=True), changed=", ".join(changed), label=label)


def choices_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """Compare the same model on the same test images under two ways of training or picking the epoch.

    Columns: dataset, model, title, changed ("recipe", "protocol", "epochs" or several), a and b (the
    two settings), label (of the change), then those of `with_findings`.
    """
    rows = []
    for (dataset, model), group in own_scores(ledger).groupby(["dataset", "model"], sort=False):
        settings = list(group.groupby(["recipe", "protocol", "epochs"]))
        for (a, one), (b, other) in combinations(reversed(settings), 2):
            keys = {"dataset": dataset, "model": model, "title": model_title(model)}
            test = paired(one, other)
            rows += [keys | _change(a, b) | test] if test else []
    return with_findings(rows, ["dataset", "model", "title", "changed", "a", "b", "label"])


def format_findings(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of `with_findings` as text for reading, with a verdict."""
    bounds = zip(table["low"], table["high"], strict=True)
    return pd.DataFrame(
        {
            "seeds": table["seeds"],
            "images": table["images"].map("{:.0f}".format),
            "difference in Dice": table["difference"].map("{:+.3f}".format),
            "95 % interval": [f"{low:+.3f} to {high:+.3f}" for low, high in bounds],
            "p (Holm)": table["p_holm"].map("{:.3f}".format),
            "verdict": table["finding"].map({True: "differs", False: "no finding"}),
        }
    )


def format_main_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the main table as text for reading: mean ± sd and the interval in one cell."""
    spread = [f" ± {sd:.3f}" if sd == sd else "" for sd in table["dice_sd"]]
    paper = [f"{value:.4f}" if value == value else "–" for value in table["paper_dice"]]
    return pd.DataFrame(
        {
            "recipe": table["recipe"],
            "protocol": table["protocol"],
            "epochs": table["epochs"],
            "dataset": [dataset_title(name) for name in table["dataset"]],
            "model": table["title"],
            "seeds": table["seeds"],
            "Dice ± sd": [f"{m:.3f}{s}" for m, s in zip(table["dice"], spread, strict=True)],
            "95 % interval": [
                f"{low:.3f} to {high:.3f}"
                for low, high in zip(table["dice_low"], table["dice_high"], strict=True)
            ],
            "HD95 (px)": table["hd95"].map("{:.1f}".format),
            "missed": table["miss_rate"].map("{:.1%}".format),
            "Dice per batch of 4": table["batch_pooled_dice"].map("{:.3f}".format),
            "paper": paper,
        }
    )


def dataset_table(tables: list[pd.DataFrame], areas: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return Table 2 for the data at hand: a row a dataset.

    ``areas`` holds, by dataset name, the share of each image that is polyp, in [0, 1].
    """
    rows = []
    for table in tables:
        name = table["dataset"].iloc[0]
        share = areas[name]
        rows.append(
            {
                "dataset": dataset_title(name),
                "images": len(table),
                "in the paper": catalog().get(name, {}).get("pairs") or "–",
                "centers": table["center"].replace("", pd.NA).nunique() or "–",
                "modalities": table["modality"].replace("", pd.NA).nunique() or "–",
                "without polyp": int((share == 0).sum()),
                "median polyp area": f"{np.median(share[share > 0]):.1%}",
            }
        )
    return pd.DataFrame(rows)
