"""Tables from the ledger, ours beside the paper's. Nothing here is typed by hand."""

from itertools import combinations

import numpy as np
import pandas as pd

from ultraseg_lib.data import catalog, dataset_title
from ultraseg_lib.paths import PAPER, outputs_dir, whole_file
from ultraseg_lib.statistics import bootstrap_interval, holm, paired_test
from ultraseg_lib.variants import model_title

RUN_KEYS = ["recipe", "protocol", "epochs", "dataset", "model", "seed"]
GROUP_KEYS = RUN_KEYS[:-1]


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


def _seeds_by_images(own: pd.DataFrame) -> np.ndarray:
    """Return the Dice of one model as an array (seeds, images)."""
    return own.pivot(index="seed", columns="image_id", values="dice").to_numpy()


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
        (*keys, *bootstrap_interval(_seeds_by_images(group))[1:])
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
    found = [group for _, group in table.groupby(GROUP_KEYS[:-1], sort=False)]
    return sorted(found, key=len, reverse=True)


def paired_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """Compare every two models of one group (see `groups`) image by image.

    Scores of several seeds are averaged per image first, so the result speaks of these trained
    models on new images. Columns: model_a, model_b, difference (mean Dice a - b), low and high (95 %
    bootstrap over images), p_holm (sign-flip test, corrected by Holm for all pairs).
    """
    per_image = own_scores(ledger).pivot_table(index="image_id", columns="model", values="dice")
    rows = []
    for a, b in combinations(per_image.mean().sort_values(ascending=False).index, 2):
        test = paired_test(per_image[a].to_numpy(), per_image[b].to_numpy())
        rows.append((model_title(a), model_title(b), *test))
    table = pd.DataFrame(rows, columns=["model_a", "model_b", "difference", "low", "high", "p"])
    return table.assign(p_holm=holm(table.pop("p")))


def _settings_of(own: pd.DataFrame) -> dict[tuple[str, str, int], pd.DataFrame]:
    """Return, by recipe, protocol and epochs, the Dice (seeds, images) of one model on one dataset."""
    return {
        keys: group.pivot(index="seed", columns="image_id", values="dice")
        for keys, group in own.groupby(["recipe", "protocol", "epochs"], sort=True)
    }


def choices_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """Compare the same model on the same test images under two ways of training or picking the epoch.

    Columns: dataset, model, title, changed ("recipe", "protocol", "epochs" or several), a and b (the
    two settings), dice_a, dice_b, seeds, difference (a - b), low and high (95 % bootstrap), p_holm.
    """
    rows = []
    for (dataset, model), group in own_scores(ledger).groupby(["dataset", "model"], sort=False):
        for (a, dice_a), (b, dice_b) in combinations(reversed(_settings_of(group).items()), 2):
            seeds = dice_a.index.intersection(dice_b.index)
            if len(seeds):
                pair = dice_a.loc[seeds].to_numpy(), dice_b.loc[seeds, dice_a.columns].to_numpy()
                names = ("recipe", "protocol", "epochs")
                changed = ", ".join(n for n, x, y in zip(names, a, b, strict=True) if x != y)
                said = (f"{x[0]}, {x[1]}, {x[2]} epochs" for x in (a, b))
                means = (each.mean() for each in pair)
                keys = (dataset, model, model_title(model), changed)
                rows.append((*keys, *said, *means, len(seeds), *paired_test(*pair)))
    columns = ["dataset", "model", "title", "changed", "a", "b", "dice_a", "dice_b", "seeds"]
    table = pd.DataFrame(rows, columns=[*columns, "difference", "low", "high", "p"])
    return table.assign(p_holm=holm(table.pop("p")) if rows else [])


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
