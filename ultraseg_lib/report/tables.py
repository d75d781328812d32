"""Tables from the ledger, ours beside the paper's. Nothing here is typed by hand."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from ultraseg_lib.data import catalog, dataset_title, told_sequences
from ultraseg_lib.paths import PAPER, outputs_dir, whole_file
from ultraseg_lib.statistics import bootstrap_interval, holm, paired_test
from ultraseg_lib.variants import model_title

RUN_KEYS = ["recipe", "protocol", "epochs", "dataset", "model", "seed"]
GROUP_KEYS = RUN_KEYS[:-1]
SETTING = GROUP_KEYS[:-1]  # only runs of one setting are compared
DIFFERENCE = ("difference", "low", "high")
PAIRED = ("seeds", "images", "dice_a", "dice_b", "batch_a", "batch_b", *DIFFERENCE, "p")
FEW = 10  # images: below this there are points, no box and no interval
DIFFERS, UNDECIDED = "differs", "undecided"  # verdicts on a difference
FEW_SEEDS, SEED_ALONE = "too few seeds: no verdict", "the seed alone"
# Of each model, for a verdict: as many as the paper has. By one, models that are alike would be told
# apart in about one case of three, or more (notebook 12 counts).
SEEDS = 3

Form = str | Callable[..., str]
LEVEL, SIGNED = "{:.3f}", "{:+z.3f}"
READ: dict[str, tuple[str, Form]] = {  # a column, or several in one: its heading and form in `shown`
    **{name: (name, "{}") for name in ("recipe", "protocol", "epochs", "step", "verdict")},
    "recipe epochs protocol": ("recipe, epochs, protocol", "{}, {}, {}"),
    "dataset": ("dataset", dataset_title), "tested": ("tested on", dataset_title),
    "title": ("model", "{}"), "baseline": ("compared with", model_title),
    "label": ("change: A − B", "{}"), "a": ("setting A", "{}"), "b": ("setting B", "{}"),
    "seeds": ("seeds", "{:.0f}"), "images": ("images", "{:.0f}"),
    "dice": ("Dice", LEVEL), "dice_sd": ("sd over seeds", LEVEL),
    "dice_low dice_high": ("95 % interval", f"{LEVEL} to {LEVEL}"),
    "dice dice_low dice_high": ("Dice per image (95 % interval)", f"{LEVEL} ({LEVEL} to {LEVEL})"),
    "dice_a": ("Dice A", LEVEL), "dice_b": ("Dice B", LEVEL),
    "hd95": ("HD95 (px)", "{:.1f}"), "miss_rate": ("missed", "{:.1%}"),
    "batch_pooled_dice": ("Dice per batch of 4", LEVEL),
    "paper_dice": ("paper", "{:.4f}"), "paper_hd95": ("paper's HD95", "{:.2f}"),
    "paper_dice paper_sd": ("paper", "{:.4f} ± {:.4f}"),
    "difference": ("difference in Dice", SIGNED),
    "low high": ("95 % interval", f"{SIGNED} to {SIGNED}"),
    "difference low high": ("Dice per image (95 % interval)", f"{SIGNED} ({SIGNED} to {SIGNED})"),
    "p_holm": ("p (Holm)", lambda p: "< 0.001" if p < 0.001 else LEVEL.format(p)),
    "parameters": ("parameters", "{:,}"),
}  # fmt: skip
LEVELS = ("dice_low dice_high", "hd95", "miss_rate", "batch_pooled_dice")  # of `levels`
MAIN = ("recipe", "protocol", "epochs", "dataset", "title", "seeds", "dice", "dice_sd", *LEVELS, "paper_dice")  # fmt: skip
FINDING = ("seeds", "images", "difference", "low high", "p_holm", "verdict")  # of `with_findings`
COMPARED = (*SETTING, "title", "baseline", *FINDING)  # of `ablation.compare`


def save_table(table: pd.DataFrame, profile: str, name: str) -> None:
    """Write a table to ``outputs/<profile>/tables/<name>.csv``."""
    with whole_file(outputs_dir(profile) / "tables" / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False)


def own_scores(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the ledger's rows of each run's own test set; runs on a center or a share are left out."""
    own = ledger[ledger["test_set"] == ledger["dataset"]]
    return own[~own["dataset"].astype(str).str.contains(r"@(?:center_|p\d)").astype(bool)]


def whole_models(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the ledger's rows of models of Table 3: no variants, and not the ladder's reconstruction."""
    model = ledger["model"].astype(str)
    return ledger[~model.str.contains("+", regex=False) & (model != "ultraseg_108k_st")]


def settled_runs(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the ledger's rows of one length of training each, where runs differ in epochs and seed alone.

    Of several lengths the one with the most seeds, of equally many the longest.
    """
    alike = ["recipe", "protocol", "dataset", "model"]
    seeds = ledger.groupby([*alike, "epochs"])["seed"].nunique().rename("seeds").reset_index()
    kept = settled(seeds, alike)[[*alike, "epochs"]]
    return ledger[pd.MultiIndex.from_frame(ledger[[*kept]]).isin(pd.MultiIndex.from_frame(kept))]


def settled(table: pd.DataFrame, alike: Sequence[str]) -> pd.DataFrame:
    """Keep, of rows that are equal in ``alike``, the one of the most ``seeds``, then of the most ``epochs``."""
    ordered = table.sort_values(["seeds", "epochs"], kind="stable")
    return ordered.drop_duplicates(alike, keep="last")


def setting_name(table: pd.DataFrame) -> str:
    """Return the setting of a table's first row as part of a file name."""
    return "-".join(str(table[key].iloc[0]) for key in SETTING)


def dice_by_seed(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the Dice of one model in one setting as a table (seeds, images).

    Raises ValueError where the seeds were not scored on the same images.
    """
    table = scores.pivot(index="seed", columns=["test_set", "image_id"], values="dice")
    if table.isna().any(axis=None):
        raise ValueError(_other_images(scores))
    return table


def videos(images: Iterable[tuple[str, str]]) -> list[str] | None:
    """Return the video of each image (test_set, image_id), by which intervals draw.

    An image of which no video is told is alone; None where that is true of all.
    """
    images = [(name.partition("@")[0], image_id) for name, image_id in images]
    lists = {name: told_sequences(name) for name in {name for name, _ in images}}
    told = [lists[name].get(image_id) for name, image_id in images]
    if not any(told):
        return None
    return [
        f"{name} video {video}" if video else f"{name} {image_id}"
        for (name, image_id), video in zip(images, told, strict=True)
    ]


def _other_images(scores: pd.DataFrame) -> str:
    names = ", ".join(sorted(scores["run_id"].unique()))
    return f"{names}: scored on different images; restore the images, or do the older runs anew (--force)"


def error_bars(table: pd.DataFrame) -> np.ndarray:
    """Return how far the interval's ends are from the Dice, (2, rows), as matplotlib wants it."""
    return np.array([table["dice"] - table["dice_low"], table["dice_high"] - table["dice"]])


def levels(scores: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Average scores over the images and seeds of each group of ``keys``, in the order of the rows.

    ``scores``: rows of the ledger; a group is one model in one setting. Columns: ``keys``, seeds,
    images, dice, dice_low and dice_high (95 % interval over seeds and images, or whole videos where
    they are told, cut off at 0 and 1; NaN of one image or video), batch_pooled_dice (the released
    definition), iou, hd95 (px, an empty mask counts as the image diagonal), miss_rate (share of
    images with a polyp of which no pixel was found, NaN where there is no polyp).
    """
    rows = []
    for values, group in scores.groupby([*keys], sort=False):
        dice = dice_by_seed(group)
        means = group[["batch_pooled_dice", "iou", "hd95"]].mean()
        missed = 1 - group.loc[group["area"] > 0, "detected"].astype(float).mean()
        interval = np.clip(bootstrap_interval(dice, groups=videos(dice.columns)), 0, 1)
        rows.append((*values, *dice.shape, *interval, *means, missed))
    names = ["dice", "dice_low", "dice_high", "batch_pooled_dice", "iou", "hd95", "miss_rate"]
    return pd.DataFrame(rows, columns=[*keys, "seeds", "images", *names])


@cache
def printed_table(number: int) -> pd.DataFrame:
    """Return a table of the paper, a row a model, as it is printed."""
    return pd.read_csv(next(PAPER.glob(f"table{number}_*.csv")), index_col="model")


def paper_table3() -> pd.DataFrame:
    """Return Table 3 of the paper in long form: title, dataset, paper_dice."""
    wide = printed_table(3).filter(like="_dice").rename_axis("title").reset_index()
    wide.columns = wide.columns.str.removesuffix("_dice")
    return wide.melt("title", var_name="dataset", value_name="paper_dice")


def main_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return Table 3: Dice of each model on each dataset, beside the paper's where it has one.

    Columns: those of `levels` by GROUP_KEYS, dice_sd (over seeds, NaN for one), title, paper_dice
    (compare batch_pooled_dice with it).
    """
    own = own_scores(ledger)
    by_seed = own.groupby(RUN_KEYS)["dice"].mean()
    spread = by_seed.groupby(GROUP_KEYS).std().rename("dice_sd").reset_index()
    table = levels(own, GROUP_KEYS).merge(spread, on=GROUP_KEYS)
    table["title"] = table["model"].map(model_title)
    table = table.merge(paper_table3(), on=["title", "dataset"], how="left")
    order = ["recipe", "protocol", "dataset", "epochs", "dice"]
    rising = [True, True, True, True, False]  # the best model first
    return table.sort_values(order, ascending=rising, ignore_index=True)


def groups(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the rows that may be compared: one recipe, protocol, epochs and dataset; largest first."""
    found = [group for _, group in table.groupby(SETTING, sort=False)]
    return sorted(found, key=len, reverse=True)


def paired(one: pd.DataFrame, other: pd.DataFrame) -> dict[str, float]:
    """Compare two trainings image by image, the mean of all seeds of either.

    ``one``, ``other``: rows of the ledger, each of one model in one setting, on the same images.
    Keys: PAIRED, where seeds is the smaller number of both, dice and batch (batch_pooled_dice) are
    the means, then those of `statistics.paired_test`, over images (or `videos`) and seeds.
    Raises ValueError where the images differ.
    """
    a, b = dice_by_seed(one), dice_by_seed(other)
    if set(a.columns) != set(b.columns):
        raise ValueError(_other_images(pd.concat([one, other])))
    groups = videos(a.columns)
    seeds, a, b = min(len(a), len(b)), a.to_numpy(), b[a.columns].to_numpy()
    batch = (x["batch_pooled_dice"].mean() for x in (one, other))
    values = (seeds, a.shape[1], a.mean(), b.mean(), *batch, *paired_test(a, b, groups=groups))
    return dict(zip(PAIRED, values, strict=True))


def with_findings(
    rows: list[dict[str, Any]], keys: Sequence[str], within: Sequence[str] = ()
) -> pd.DataFrame:
    """Return rows of `paired` as a table: ``keys``, PAIRED, p_holm and verdict.

    Two models differ where p_holm is below 0.05; it is corrected for the verdicts of a group of
    ``within`` (default: all). With fewer than SEEDS seeds of either there is none, and no p_holm:
    of one seed nobody knows what the next training gives, and two may lie close by chance.
    """
    table = pd.DataFrame(rows, columns=[*keys, *PAIRED])
    decided = table["seeds"] >= SEEDS
    groups = [table.loc[decided, key] for key in within] or np.zeros(decided.sum())
    table["p_holm"] = table.loc[decided, "p"].groupby(groups).transform(holm)
    verdict = pd.Series(UNDECIDED, table.index).mask(table["p_holm"] < 0.05, DIFFERS)
    return table.drop(columns="p").assign(verdict=verdict.where(decided, FEW_SEEDS))


def compare_pairs(
    ledger: pd.DataFrame, pairs: Iterable[tuple[str, str]], within: Sequence[str]
) -> pd.DataFrame:
    """Compare models with baselines that are alike in the columns ``within``.

    Columns: ``within``, model, baseline, then those of `with_findings`, corrected for the pairs of
    each group.
    """
    rows, pairs = [], list(pairs)
    for alike, group in ledger.groupby([*within], sort=False):
        models = dict(list(group.groupby("model")))
        for model, baseline in pairs:
            if model in models and baseline in models:
                keys = dict(zip(within, alike, strict=True), model=model, baseline=baseline)
                rows.append(keys | paired(models[model], models[baseline]))
    return with_findings(rows, [*within, "model", "baseline"], within)


def _change(a: Sequence[Any], b: Sequence[Any]) -> dict[str, str]:
    """Say which of recipe, protocol and epochs differs between two settings; empty if several do."""
    sides = list(zip(("recipe", "protocol", "epochs"), a, b, strict=True))
    changed = [side for side in sides if side[1] != side[2]]
    if len(changed) > 1:
        return {}
    (name, x, y), *_ = changed
    alike = [f"{x} epochs" if key == "epochs" else x for key, x, _ in sides if key != name]
    names = ("{}, {}, {} epochs".format(*each) for each in (a, b))
    label = f"{name}: {x} − {y} ({', '.join(alike)})"
    return dict(zip("ab", names, strict=True), changed=name, label=label)


def choices_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """Compare the same model on the same test images where one choice of its training differs.

    Columns: dataset, model, title, changed ("recipe", "protocol" or "epochs"), a and b (the two
    settings), label (of the change), then those of `with_findings`.
    """
    rows = []
    for (dataset, model), group in own_scores(ledger).groupby(["dataset", "model"], sort=False):
        settings = list(group.groupby(["recipe", "protocol", "epochs"]))
        for (a, one), (b, other) in combinations(reversed(settings), 2):
            if change := _change(a, b):
                keys = {"dataset": dataset, "model": model, "title": model_title(model)}
                rows.append(keys | change | paired(one, other))
    return with_findings(rows, ["dataset", "model", "title", "changed", "a", "b", "label"])


def cells(table: pd.DataFrame, form: Form, *columns: str, missing: str = "–") -> list[str]:
    """Return some columns of a table as one of text; ``missing`` where the first has no value."""
    write = form if callable(form) else form.format
    rows = table[[*columns]].itertuples(index=False)
    return [write(*row) if row[0] == row[0] else missing for row in rows]


def shown(
    table: pd.DataFrame, columns: Iterable[str], read: Mapping[str, tuple[str, Form]] = READ
) -> pd.DataFrame:
    """Return columns of a table as text for reading, by their headings; those it lacks are left out.

    ``columns``: keys of ``read``; one that names several columns makes one of them.
    """
    return pd.DataFrame(
        {
            heading: cells(table, form, *key.split(), missing="not run" if key == "dice" else "–")
            for key, (heading, form) in ((key, read[key]) for key in columns)
            if set(key.split()) <= set(table)
        }
    )


def styled(
    table: pd.DataFrame, columns: Iterable[str], read: Mapping[str, tuple[str, Form]] = READ
) -> Styler:
    """Return `shown` for a notebook's page: settings that all rows share stand above it, once.

    Columns without any value are left out.
    """
    text = shown(table, columns, read)
    headings = [read[key][0] for key in (*SETTING, "tested", "images") if key in columns]
    same = [
        name for name in headings if name in text and len(text) > 1 and text[name].nunique() == 1
    ]
    caption = ", ".join(f"{name}: {text[name].iloc[0]}" for name in same)
    empty = [name for name in text if len(text) and (text[name] == "–").all()]
    style = [("caption-side", "top"), ("text-align", "left"), ("font-size", "1em")]
    styled = text.drop(columns=[*same, *empty]).style.hide()
    return styled.set_caption(caption).set_table_styles([{"selector": "caption", "props": style}])


def seed_words(count: float) -> str:
    """Say how many seeds: "1 seed", "2 seeds"."""
    return f"{count:.0f} seed{'s' if count > 1 else ''}"


def with_seeds(table: pd.DataFrame) -> pd.Series:
    """Return the models' titles with their number of seeds: "LB-UNet (2 seeds)"."""
    return table["title"] + " (" + table["seeds"].map(seed_words) + ")"


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
                "median polyp area": f"{np.median(share[share > 0]):.1%}" if share.any() else "–",
            }
        )
    return pd.DataFrame(rows)
