"""The committed record told in Markdown: ours beside the paper's, what is not run, model cards."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from tools.published import AUTHORS
from ultraseg_lib import study
from ultraseg_lib.data import catalog, dataset_title, split_share
from ultraseg_lib.data.splits import EXTERNAL, MIXED, split_path
from ultraseg_lib.grid import GRIDS
from ultraseg_lib.models import MODELS
from ultraseg_lib.models.complexity import count_parameters
from ultraseg_lib.paths import ROOT, outputs_dir
from ultraseg_lib.report import ablation, draws, external, tables
from ultraseg_lib.report.tables import LEVEL, READ, SIGNED, Form
from ultraseg_lib.study import Run
from ultraseg_lib.variants import build_model, find_variant, model_title
from ultraseg_lib.weights import shipped_weights

OURS = ("ultraseg_130k", "ultraseg_108k")
RULES = {"again": ("paper", "released"), "harder": ("strong", "clean")}  # what the front page shows
BY_RULES = [f"ours, `{recipe}` and `{protocol}`" for recipe, protocol in RULES.values()]
BOTH = ("kvasir_seg", "cvc_clinicdb")  # trained on by both rules
SMALL = ("lbunet", "egeunet", "unet_tiny")  # trained on both by both rules, as both UltraSegs
FRONT = (*((ours, "lbunet") for ours in OURS), OURS, *((OURS[0], other) for other in SMALL[1:]))
OTHER_DRAWS = "@draw_"  # in the name of a dataset: has a table of its own, or a sentence
SIDES = ("ahead", "behind", "undecided")
BATCH, IMAGE, LEAD = "batch_pooled_dice", "dice dice_low dice_high", "difference low high"
SETTING = "recipe epochs protocol"
APART = {"apart": ("per batch − paper", SIGNED)}
COMPARED = ("title", SETTING, "seeds", IMAGE, BATCH, "paper_dice", *APART)


@cache  # every table and card shows some of its rows
def committed_ledger() -> pd.DataFrame:
    """Return the committed ledger (see `study.read_ledger`); nothing may change it."""
    return study.read_ledger("reference")


def by_rules(ledger: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows of the recipe and protocol that `RULES` calls so."""
    return ledger[(ledger[["recipe", "protocol"]] == [*RULES[name]]).all(axis=1)]


def markdown_table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table as Markdown."""
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def as_markdown(
    table: pd.DataFrame, columns: Iterable[str], read: Mapping[str, tuple[str, Form]] = READ
) -> str:
    """Return columns of a table as Markdown; see `tables.shown`."""
    text = tables.shown(table, columns, read)
    return markdown_table(text.columns, text.to_numpy())


def _cell(row: pd.Series, key: str) -> str:
    """Return columns of one row as one text; see `tables.READ`."""
    return tables.cells(row.to_frame().T, READ[key][1], *key.split())[0]


def _per_batch(dice: float, seeds: int) -> str:
    return f"{dice:.3f}{f' (mean of {seeds:.0f} seeds)' if seeds > 1 else ''}"


def _beside_paper(levels: pd.DataFrame) -> pd.DataFrame:
    """Return levels with apart: their Dice per batch of 4 less the paper's."""
    return levels.assign(apart=levels[BATCH] - levels["paper_dice"])


def own_results(ledger: pd.DataFrame) -> str:
    """Return every run on the test part of its own dataset beside Table 3 of the paper."""
    levels = tables.main_table(ledger).sort_values(["dataset", "title"], kind="stable")
    return as_markdown(_beside_paper(levels), ["dataset", *COMPARED], READ | APART)


def own_summary(ledger: pd.DataFrame) -> str:
    """Return a row a dataset and model: the paper's Dice, ours by its rules, ours trained harder."""
    levels = tables.main_table(tables.settled_runs(tables.whole_models(ledger)))
    levels = levels[~levels["dataset"].str.contains(OTHER_DRAWS)]
    settings = dict(list(levels.groupby(["recipe", "protocol"])))
    keys = ["dataset", "title"]
    papers, harder = (settings[rules].set_index(keys) for rules in RULES.values())
    rows = []
    for key, printed in levels.groupby(keys)["paper_dice"].first().items():
        per_batch = (
            _per_batch(*part.loc[key, [BATCH, "seeds"]]) if key in part.index else "not run"
            for part in (papers, harder)
        )
        per_image = _cell(harder.loc[key], IMAGE) if key in harder.index else "not run"
        paper = "–" if pd.isna(printed) else f"{printed:.4f}"
        rows.append([dataset_title(key[0]), key[1], paper, *per_batch, per_image])
    head = ["dataset", "model", "paper", *BY_RULES, "the same per image (95 % interval)"]
    return markdown_table(head, rows)


def shipped_run(model: str) -> Run:
    """Return the run whose weights are shipped for the mixed set."""
    return study.parse_run_id("reference", shipped_weights(model)["mixed"].parent.name)


def mixed_levels(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return `external.score_table` of whole models on unseen datasets, with paper_dice (Table 6).

    Of the trainings on the mixed set by recipe `multiscale`, of each model the settled length.
    """
    mixed = tables.whole_models(ledger).query("dataset == 'mixed' and recipe == 'multiscale'")
    scores = external.score_table(external.by_tested(tables.settled_runs(mixed)))
    return scores[scores["tested"].isin(EXTERNAL)].merge(_papers_levels(), "left")


def unseen_summary(ledger: pd.DataFrame) -> str:
    """Return `mixed_levels` as a table."""
    columns = {
        "tested": READ["tested"], "title": READ["title"], "paper_dice": READ["paper_dice"],
        f"{BATCH} seeds": ("ours", _per_batch),
        IMAGE: ("the same per image (95 % interval)", READ[IMAGE][1]),
        "miss_rate": ("frames with no polyp pixel found", lambda rate: f"{100 * rate:.0f} %"),
    }  # fmt: skip
    return as_markdown(mixed_levels(ledger).sort_values(["tested", "title"]), columns, columns)


def unseen_results(ledger: pd.DataFrame) -> str:
    """Return the runs on the mixed set beside Table 6 of the paper."""
    levels = external.score_table(external.by_tested(ledger[ledger["dataset"] == "mixed"]))
    levels = levels[levels["tested"].isin(EXTERNAL)].merge(_papers_levels(), "left")
    levels = levels.sort_values(["tested", "dice"], ascending=[True, False])
    return as_markdown(_beside_paper(levels), ["tested", *COMPARED, "hd95"], READ | APART)


def authors_levels() -> pd.DataFrame:
    """Return `published.authors_scores` as committed, with paper_dice of the mixed training (Table 6)."""
    table = pd.read_csv(outputs_dir("reference") / AUTHORS)
    printed = external.paper_table6().query("title == 'UltraSeg-130K'")
    return table.merge(printed[["tested", "paper_dice"]], "left")


def authors_results() -> str:
    """Return how the authors' published weights score here."""
    columns = {
        "tested": READ["tested"], "trained": ("trained on it", lambda seen: "yes" if seen else "no"),
        "images": READ["images"], IMAGE: READ[IMAGE], "any_order": READ[BATCH],
        "listed": ("the same in the order of the list", LEVEL), "paper_dice": READ["paper_dice"],
        "miss_rate": READ["miss_rate"], "hd95": READ["hd95"],
    }  # fmt: skip
    return as_markdown(authors_levels(), columns, columns)


def order_effects() -> str:
    """Return what random orders of the images add to the Dice per batch of 4 of the list's order."""
    dice = {
        (run.run_id, name): each["any_order"] - each["listed"]
        for run in study.finished_runs("reference")
        for name, each in study.read_config(run).get("batch_dice", {}).items()
    }
    added = pd.Series(dice).groupby(level=1).agg(["size", "mean", "min", "max"])
    rows = (
        [dataset_title(name), f"{row['size']:.0f}", *(f"{row[key]:+z.3f}" for key in ("mean", "min", "max"))]
        for name, row in added.loc[_in_order(added.index)].iterrows()
    )  # fmt: skip
    return markdown_table(["tested on", "runs", "mean", "from", "to"], rows)


@cache  # for three tables
def _leads() -> pd.DataFrame:
    """Compare each UltraSeg with each other model trained alike, and 130K with 108K, on every test set.

    Columns: those of `tables.compare_pairs`, and side: its verdict as ahead, behind or undecided.
    """
    pairs = [OURS, *((ours, other) for ours in OURS for other in MODELS if other not in OURS)]
    ledger = external.by_tested(tables.whole_models(committed_ledger()))
    table = tables.compare_pairs(ledger, pairs, external.ALIKE)
    side = pd.Series(np.where(table["difference"] > 0, *SIDES[:2]), table.index)
    side = side.mask(table["verdict"] == tables.UNDECIDED, SIDES[2])
    return table.assign(side=side.mask(table["seeds"] < tables.SEEDS, tables.FEW_SEEDS))


def _in_order(tested: Iterable[str]) -> list[str]:
    """Return test sets in the order of the paper's tables, those of hospitals unseen last."""
    order = (*MIXED, "mixed", *EXTERNAL)
    return sorted(set(tested), key=lambda name: (order.index(name.partition("@")[0]), name))


PAIR = ["model", "baseline", "dataset", "recipe", "epochs", "protocol", "seeds"]


def leads() -> str:
    """Return every row of `_leads` as CSV, beside the paper's difference where it has one.

    difference, low and high: Dice per image; batch and paper: per batch of 4 (Tables 3 and 6).
    """
    table = _leads()
    printed = _papers_levels().set_index(["title", "dataset", "tested"])["paper_dice"]
    ours, other = (
        printed.reindex(list(zip(table[side].map(model_title), table["dataset"], table["tested"], strict=True)))
        for side in ("model", "baseline")
    )  # fmt: skip
    table = table.assign(batch=table["batch_a"] - table["batch_b"], paper=ours.array - other.array)
    columns = [
        *PAIR,
        "tested",
        "images",
        "difference",
        "low",
        "high",
        "p_holm",
        "side",
        "batch",
        "paper",
    ]
    return table[columns].round(4).to_csv(index=False)


def verdicts_at_home(dataset: str) -> int:
    """Return how many verdicts by our recipe, on a dataset's own test part, share a correction."""
    table = _leads().query("dataset == @dataset and tested == @dataset")
    own = table.set_index(["recipe", "protocol"]).sort_index().loc[RULES["harder"]]
    return int(own["p_holm"].notna().sum())


def leads_told() -> str:
    """Return on which test sets each UltraSeg is ahead, by `RULES`, where both have seeds enough."""
    rows = []
    table = _leads()
    rules = pd.MultiIndex.from_frame(table[["recipe", "protocol"]]).isin([*RULES.values()])
    for key, group in table[rules & (table["seeds"] >= tables.SEEDS)].groupby(PAIR):
        told = (_in_order(group.loc[group["side"] == side, "tested"]) for side in SIDES)
        told = (", ".join(map(dataset_title, names)) or "none" for names in told)
        names = " − ".join(map(model_title, key[:2]))
        rows.append([names, dataset_title(key[2]), _cell(group.iloc[0], SETTING), key[-1], *told])
    return markdown_table(
        ["models", "trained on", "recipe, epochs, protocol", "seeds", *SIDES], rows
    )


def lead_rows() -> pd.DataFrame:
    """Return the leads of the front page: dataset, model, other, printed, again and harder.

    Dice per batch of 4 on the own test part, of the paper and by `RULES` (the means of all seeds;
    NaN where not run). With _seeds behind its name: how many the one with fewer has; with _side:
    ahead, behind or undecided, per image.
    """
    table = _leads()[_leads()["tested"] == _leads()["dataset"]]
    rules = ["recipe", "protocol", "dataset", "model", "baseline"]
    own = tables.settled(table, rules).set_index(rules).sort_index()
    places = pd.MultiIndex.from_tuples(
        [(name, *pair) for name in BOTH for pair in FRONT], names=["dataset", "model", "other"]
    )
    paper = tables.paper_table3().set_index(["dataset", "title"])["paper_dice"]
    printed = [
        paper[name, model_title(one)] - paper[name, model_title(other)]
        for name, one, other in places
    ]
    columns = {"printed": printed}
    for name, rule in RULES.items():
        rows = own.loc[rule].reindex(places)
        columns[name] = rows["batch_a"] - rows["batch_b"]
        columns |= {f"{name}_{each}": rows[each] for each in ("seeds", "side")}
    return pd.DataFrame(columns, index=places).reset_index()


def _lead_words(lead: float, seeds: int, side: str) -> str:
    return f"{lead:+z.3f} ({tables.seed_words(seeds)}{f', {side}' if side in SIDES else ''})"


def lead_summary() -> str:
    """Return `lead_rows` as a table."""
    columns = {
        "dataset": READ["dataset"],
        "model other": ("models", lambda *pair: " − ".join(map(model_title, pair))),
        "printed": ("paper", SIGNED),
        **{
            f"{name} {name}_seeds {name}_side": (words, _lead_words)
            for name, words in zip(RULES, BY_RULES, strict=True)
        },
    }  # fmt: skip
    return as_markdown(lead_rows(), columns, columns)


def ladder_steps(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the steps of Table 5 where both rungs were trained alike: `ablation.compare`, in order.

    More columns: step (in words), batch (in Dice per batch of 4) and printed (NaN where it is not).
    """
    rungs = list(ablation.LADDER)
    table = ablation.compare(ledger, list(zip(rungs[1:], rungs[:-1], strict=True)))
    paper = ablation.paper_table5().set_index(["dataset", "model"])["paper_dice"]
    above, below = (
        paper.reindex(pd.MultiIndex.from_frame(table[["dataset", side]])).to_numpy()
        for side in ("model", "baseline")
    )
    words = table["model"].map(model_title) + " − " + table["baseline"].map(model_title)
    batch = table["batch_a"] - table["batch_b"]
    table = table.assign(step=words, batch=batch, printed=above - below)
    return table.assign(rung=table["model"].map(rungs.index)).sort_values(
        ["dataset", "recipe", "epochs", "rung"], ignore_index=True
    )


def ladder(ledger: pd.DataFrame) -> str:
    """Return `ladder_steps` as a table."""
    more = {"batch": ("per batch of 4", SIGNED), "printed": ("paper, per batch of 4", SIGNED)}
    columns = ["dataset", SETTING, "step", "seeds", LEAD, *more]
    return as_markdown(ladder_steps(ledger), columns, READ | more)


def _papers_levels() -> pd.DataFrame:
    """Return Dice of the paper by title, dataset (trained on) and tested: Tables 3 and 6."""
    own = tables.paper_table3()
    own = own.assign(tested=own["dataset"])
    return pd.concat([own, external.paper_table6().assign(dataset="mixed")])


def drawn(ledger: pd.DataFrame) -> str:
    """Return `draws.draws_table` as a table."""
    columns = {
        "draw": ("draw", draws.DRAWS.get), "tested": ("from outside: test part", LEVEL),
        "rest": ("all other images", LEVEL), LEAD: ("difference (95 % interval)", READ[LEAD][1]),
        "seeds": READ["seeds"], IMAGE: ("ours, per image (95 % interval)", READ[IMAGE][1]),
        BATCH: ("per batch of 4", LEVEL), "paper_dice": ("paper, per batch of 4", "{:.4f}"),
    }  # fmt: skip
    return as_markdown(draws.draws_table(ledger), columns, columns)


def trainings(ledger: pd.DataFrame) -> str:
    """Return every training of UltraSeg-130K on Kvasir-SEG close to the paper's rules: a row a run."""
    own = tables.own_scores(ledger[ledger["dataset"].isin(draws.NAMES.values())])
    own = own[own["model"].str.partition("+")[0] == "ultraseg_130k"]
    own = by_rules(own, "again")
    rows = []
    for run_id, scores in own.groupby("run_id"):
        run = study.parse_run_id("reference", run_id)
        epochs = len(study.read_history(run))
        levels = scores["dice"].mean(), scores["batch_pooled_dice"].mean()
        draw = next(draws.DRAWS[draw] for draw, name in draws.NAMES.items() if name == run.dataset)
        rows.append(
            [model_title(run.model), draw, run.seed, epochs, *(f"{each:.3f}" for each in levels)]
        )
    head = ["training", "test part", "seed", "epochs", "Dice per image", "per batch of 4"]
    return markdown_table(
        head, sorted(rows, key=lambda row: (row[0], row[1] != "first draw", *row[1:3]))
    )


def choices(ledger: pd.DataFrame) -> str:
    """Return what the recipe, the protocol and the epochs are worth: the same model, the same images."""
    lead = {LEAD: ("Dice A − B (95 % interval)", READ[LEAD][1])}
    return as_markdown(
        tables.choices_table(ledger),
        ["dataset", "title", "a", "b", "seeds", LEAD, "verdict"],
        READ | lead,
    )


def repeats() -> str:
    """Return the runs that were trained a second time, beside the first, on every test set."""
    rows = []
    for path in sorted((outputs_dir("reference") / "repeats").glob("*/*/scores.csv")):
        run_id, how = path.parent.name, path.parent.parent.name
        for row in study.compare_with_record(path.parent).itertuples():
            levels = (f"{row.committed:.3f}", f"{row.again:.3f}", f"{row.difference:+z.3f}")
            rows.append([f"`{run_id}`", how, dataset_title(row.test_set), row.images, *levels])
    head = ["run", "repeated", "tested on", "images", "Dice per image", "again", "difference"]
    return (
        f"**The band:** expect the mean Dice of a run within {study.BAND:g} of the committed one on"
        f" its own test part, and within {study.BAND_ELSEWHERE:g} on other datasets; the command says"
        f" at its end how far it is. Measured so far:\n\n{markdown_table(head, rows)}"
    )


def cells_run() -> str:
    """Return, by model and dataset, the settings that were run, and how many of the planned ones."""
    planned = study.plan_grids(study.load_profile("reference"), GRIDS)
    finished = study.finished_runs("reference")
    finished = [run for run in finished if OTHER_DRAWS not in run.dataset]
    datasets = list(dict.fromkeys(run.dataset for run in (*planned, *finished)))
    models = dict.fromkeys(run.model for run in (*planned, *finished))

    def cell(model: str, dataset: str) -> str:
        here = (
            {f"{run.recipe}/{run.protocol}" for run in runs if (run.model, run.dataset) == (model, dataset)}
            for runs in (planned, finished)
        )  # fmt: skip
        wanted, done = here
        share = [f"{len(wanted & done)} of {len(wanted)}"] if wanted else []
        return "<br>".join([*sorted(done), *share])

    rows = [[model_title(model), *(cell(model, each) for each in datasets)] for model in models]
    return markdown_table(["model", *map(dataset_title, datasets)], rows)


# --- model cards ----------------------------------------------------------------------------------


def _trained_sets(dataset: str) -> list[str]:
    """Return the datasets of a training set; those of the mixed set that have a committed split."""
    name = dataset.partition("@")[0]
    return [part for part in MIXED if split_path(part).exists()] if name == "mixed" else [name]


def _licences(dataset: str) -> str:
    return "\n".join(
        f"- {dataset_title(name)}: {catalog()[name]['license']}" for name in _trained_sets(dataset)
    )


def _absent(dataset: str) -> str:
    """Say which datasets of the paper's mixed set were not trained on."""
    absent = set(MIXED) - set(_trained_sets(dataset))
    if dataset.partition("@")[0] != "mixed" or not absent:
        return ""
    return (
        f" {', '.join(map(dataset_title, absent))}, part of the paper's mixed set, is not in ours."
    )


def _split_paths(dataset: str) -> list[Path]:
    scheme = dataset.partition("@")[2]
    paths = [split_path(name, scheme) for name in _trained_sets(dataset)]
    return [path if path.exists() else split_path(path.name.partition("-")[0]) for path in paths]


def card_scores(run: Run) -> pd.DataFrame:
    """Return a row a test set, its scores and frames without polyp; parts of the mixed set follow it.

    Columns: those of `external.score_table`, precision, recall (means over images), normal (frames
    without polyp) and alarms (those in which the model painted one).
    """
    scores = external.by_tested(committed_ledger()[committed_ledger()["run_id"] == run.run_id])
    whole = scores["tested"] != scores["test_set"]
    parts = scores[whole].assign(tested=scores["test_set"])
    scores = pd.concat([scores[whole], parts, scores[~whole]])
    normal = scores["area"] == 0
    more = scores.assign(normal=normal, alarms=normal & (scores["dice"] < 1)).groupby("tested")
    more = more.agg({"precision": "mean", "recall": "mean", "normal": "sum", "alarms": "sum"})
    return external.score_table(scores).merge(more, on="tested")


def _score_rows(scores: pd.DataFrame, dataset: str) -> str:
    parts = MIXED if split_share(dataset)[0] == "mixed" else ()

    def trained(tested: str) -> str:
        if tested == split_share(dataset)[0]:
            return "yes, its test part"
        return "yes" if tested in parts else "no"

    names = scores["tested"].map(dataset_title)
    scores = scores.assign(
        name=names.mask(scores["tested"].isin(parts), "– of these " + names),
        trained=scores["tested"].map(trained),
        false=[
            f"{row.alarms} of {row.normal}" if row.normal else "–" for row in scores.itertuples()
        ],
    )
    columns = {
        "name": ("tested on", "{}"), "trained": ("trained on its training part", "{}"),
        **{key: READ[key] for key in ("images", IMAGE, BATCH, "hd95")},
        "precision": ("precision", LEVEL), "recall": ("recall", LEVEL),
        "miss_rate": READ["miss_rate"], "false": ("false alarms", "{}"),
    }  # fmt: skip
    return as_markdown(scores, columns, columns)


def _false_alarms(scores: pd.DataFrame) -> str:
    """Say on how many frames without polyp the model paints one."""
    rows = scores[(scores["normal"] > 0) & (scores["tested"] != "mixed")]
    told = [
        f"{row.alarms} of {row.normal} ({dataset_title(row.tested)})" for row in rows.itertuples()
    ]
    seldom = "Nearly all training frames show a polyp, so the model has seldom seen a normal mucosa"
    if not told:
        return f"{seldom}, and no test frame here is without a polyp: expect false alarms on video."
    return f"{seldom}. Of test frames without a polyp it paints one on {', '.join(told)}: expect false alarms on video."


CARD = """# {title}, trained on {trained_on}

**Research and teaching only. This is not a medical device**, and no one has checked it on patients.{better}

{parameters:,} parameters; image (3, {size}, {size}) in [0, 1], RGB, resized without regard to its sides' ratio; out comes one logit a pixel, polyp above 0. From the repository root:

```python
import cv2
import torch

{load}
frame = cv2.resize(cv2.imread("frame.jpg")[..., ::-1], ({size}, {size})).transpose(2, 0, 1)
with torch.inference_mode():
    mask = model(torch.tensor(frame[None] / 255).float()).logits[0, 0] > 0  # ({size}, {size})
```

## Training

Recipe `{recipe}`{changed}, {length}, seed {seed}, on {train} images. Epoch {best_epoch} is shipped, picked on {picker}. The split: {splits}. {minutes:.0f} minutes on {hardware}, {commits}. To repeat it: `.venv/bin/python -m ultraseg_lib study --profile {profile} --only {run_id} --data DIR`.

Trained on, with what is known of each licence; the weights follow it.{absent}

{licences}

## Scores

One model, one seed; the intervals draw the test images anew, not the training. `precision` and `recall`: of pixels, means over images. `missed`: of the images with a polyp, those of which no pixel was found. `false alarms`: of the images without one, those in which it painted some. `Dice per batch of 4`: the mean over random orders of the images.

{scores}

## Limits

- {leak}
- {alarms}
- Still frames, not video; no instrument, no capsule, and narrow-band light only as far as the datasets hold it.
- Small polyps are missed most often. Read `missed` and the lower scores on other hospitals' images before anything is built on these weights.
"""

PICKERS = {
    "clean": "the validation part ({} images, {} {:.3f})",
    "released": "the test part ({} images, {} {:.3f}), as the released code does: its own score is too high",
}
LEAKS = {
    "cvc_clinicdb": "The random split puts frames of one video into training and test: the score on"
    " the own test part is likely too high. The run on `cvc_clinicdb@sequence` scores lower, on other"
    " test frames; its six videos are too few to say by how much.",
    "cvc_clinicdb@sequence": "The test part is 121 frames of 6 videos: so few that"
    " the interval, which draws them, is wide. Read the scores on the other datasets.",
    "polypgen": "Frames of one video may stand in the training and the test part: read the scores on"
    " the other datasets.",
    "mixed": "The parts of ClinicDB and PolypGen are drawn frame by frame, so videos stand on both"
    " sides: the score on the own test part is likely too high. Read those on the other datasets.",
}
NO_LEAK = "The test part comes from the same hospitals as the training part: read the scores on the other datasets."


def _commits(made: dict) -> str:
    """Say which commit trained from which epoch on."""
    commits = made.get("commits") or {"1": made["commit"]}
    known = {each for each in commits.values() if re.fullmatch("[0-9a-f]{7,40}", str(each))}
    told = [
        f"from epoch {epoch} by " + (f"commit `{each}`" if each in known else "a commit that is not recorded")
        for epoch, each in commits.items()
    ]  # fmt: skip
    return ", ".join(told)


def _load_and_better(run: Run) -> tuple[str, str]:
    """Return the lines that load a run's weights, and a link to better ones where there are."""
    model, _, variant = run.model.partition("+")
    module, create = ("variants", "build_model") if variant else ("models", "create_model")
    start = f"from ultraseg_lib.{module} import {create}\n\n"
    shipped = shipped_weights(model).get(run.dataset)
    if shipped is not None and shipped.parent.name == run.run_id:
        return f'{start}model = {create}("{run.model}", weights="{run.dataset}").eval()', ""
    path = f"outputs/reference/runs/{run.run_id}/weights.safetensors"
    load = f'{start}weights = "{path}"\nmodel = {create}("{run.model}", weights=weights).eval()'
    if shipped is None:
        return load, ""
    better = shipped.parent.name
    how = "Better weights, by" if run.protocol == "clean" else "Weights picked on"
    return load, f" {how} the validation part: [{better}](../{better}/MODEL_CARD.md)."


def _changed(run: Run) -> str:
    """Say what a variant changes of the recipe."""
    changes = find_variant(run.model)[1].recipe
    told = ", ".join(f"`{name}` {value}" for name, value in changes.items())
    return f" with {told}" if told else ""


def _picked(run: Run, history: pd.DataFrame, epoch: int) -> tuple[str, float]:
    """Return the kind of Dice that picked the epoch, and its value."""
    by = run.training_recipe.picked_by
    return {"val_dice": "Dice", "val_dice_per_batch": "Dice per batch of 4"}[by], history[by][epoch]


def _length(run: Run, history: pd.DataFrame) -> str:
    if len(history) == run.epochs:
        return f"{run.epochs} epochs"
    patience = run.training_recipe.patience
    return f"at most {run.epochs} epochs (stopped after {len(history)}, none of the last {patience} better)"


def model_card(run: Run) -> str:
    """Return the card of a run's weights: data, licences, protocol, scores with intervals, limits."""
    config = study.read_config(run)
    made, images, scores = config["provenance"], config["images"], card_scores(run)
    load, better = _load_and_better(run)
    dataset = split_share(run.dataset)[0]
    history = pd.read_csv(run.folder / "history.csv", index_col="epoch")
    return CARD.format(
        title=model_title(run.model),
        trained_on=dataset_title(run.dataset),
        better=better,
        parameters=count_parameters(build_model(run.model)),
        size=config["inputs"]["images"]["size"],
        load=load,
        changed=_changed(run),
        length=_length(run, history),
        picker=PICKERS[run.protocol].format(images["val"], *_picked(run, history, config["best_epoch"])),
        train=images["train"],
        splits=", ".join(f"`{path.relative_to(ROOT)}`" for path in _split_paths(run.dataset)),
        hardware=f"{made['gpu'] or made['cpu']}, {made['threads']} thread(s)",
        commits=_commits(made),
        absent=_absent(run.dataset),
        licences=_licences(run.dataset),
        scores=_score_rows(scores, run.dataset),
        leak=LEAKS.get(dataset, LEAKS.get(dataset.partition("@draw_")[0], NO_LEAK)),
        alarms=_false_alarms(scores),
        **{key: config[key] for key in ("recipe", "seed", "best_epoch", "minutes", "profile", "run_id")},
    )  # fmt: skip
