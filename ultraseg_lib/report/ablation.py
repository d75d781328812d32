"""What each part of UltraSeg is worth (Table 5), and what a teacher is (Table 7).

A *setting* is recipe, protocol, epochs and dataset.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations
from math import ceil

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator

from ultraseg_lib import study
from ultraseg_lib.metrics import dice_score
from ultraseg_lib.models import create_model, find_model
from ultraseg_lib.models.complexity import count_as_paper, count_macs, count_parameters
from ultraseg_lib.report import figures
from ultraseg_lib.report.figures import PALETTE, dataset_title, setting_title
from ultraseg_lib.report.tables import (
    DIFFERENCE,
    GROUP_KEYS,
    LEVEL,
    READ,
    SEED_ALONE,
    SETTING,
    compare_pairs,
    dice_by_seed,
    error_bars,
    main_table,
    own_scores,
    paired,
    printed_table,
    shown,
    videos,
    with_findings,
)
from ultraseg_lib.statistics import PairedTest, paired_test
from ultraseg_lib.training import WEIGHT_COLUMN, learned_scalars, predict_probs
from ultraseg_lib.variants import VARIANTS, build_model, find_variant, model_title

LADDER = {  # the rungs of Table 5, in the order of its rows
    "unet_tiny": "UNet-Tiny",
    "lbunet": "LB-UNet",
    "ultraseg_108k_st": "ST (reconstructed)",
    "ultraseg_108k": "ST + EDB + bottleneck = 108K",
    "ultraseg_130k": "+ AGF + SSA = 130K",
}
WHOLE = "ultraseg_130k"
TAUGHT = tuple(name for name, variant in VARIANTS.items() if "distillation" in variant.recipe)
FEATURES = tuple(n for n in TAUGHT if VARIANTS[n].recipe["distillation"] == "features")
CHANGED = tuple(f"{WHOLE}+{name}" for name in VARIANTS if name not in TAUGHT)
DISTILLED = (
    "title", "student", "variant", "seeds", "val_dice", "dice", "dice_low", "dice_high", "images",
    *DIFFERENCE, "p_holm", "verdict", "parameters",
)  # fmt: skip
PANELS = {  # the end of a weight's name -> what it is
    "alpha": "α of the SSA (Eq. 4)",
    "region_weight": "region weights (Eq. 1)",
    "boundary_weight": "boundary weights (Eq. 1)",
    "residual_weight": "residual weights of the EDB",
}


# --- scores ---------------------------------------------------------------------------------------


def compare(ledger: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Compare models with baselines on their own test images, in every setting.

    Columns: the setting, then those of `tables.compare_pairs`, and title.
    """
    table = compare_pairs(own_scores(ledger), pairs, SETTING)
    titles = [find_variant(name)[1].title or model_title(name) for name in table["model"]]
    return table.assign(title=titles)


def compare_seeds(ledger: pd.DataFrame, models: Iterable[str]) -> pd.DataFrame:
    """Compare every two seeds of a model, the later less the earlier: what chance in training is worth.

    Columns as in `compare`; empty where every model has one seed only.
    """
    own, order, rows = own_scores(ledger), list(models), []
    for keys, runs in own[own["model"].isin(order)].groupby(GROUP_KEYS, sort=False):
        named = dict(zip(GROUP_KEYS, keys, strict=True), baseline=keys[-1])
        for (a, earlier), (b, later) in combinations(runs.groupby("seed"), 2):
            title = f"{model_title(keys[-1])}, seed {b} − seed {a}"
            pair = paired(later.assign(seed=0), earlier.assign(seed=0))
            rows.append(named | {"title": title} | pair)
    rows.sort(key=lambda row: order.index(row["model"]))
    return with_findings(rows, [*GROUP_KEYS, "baseline", "title"], SETTING)


def beside_seeds(table: pd.DataFrame, chance: pd.DataFrame) -> pd.DataFrame:
    """Return differences above those that another seed makes.

    ``table``: of `compare`, ``chance``: of `compare_seeds`, of which the rows of the table's models
    and settings follow, with the verdict "the seed alone". More columns: chance, label.
    """
    sides = [table[[*SETTING, side]].set_axis(GROUP_KEYS, axis=1) for side in ("model", "baseline")]
    table = table.assign(chance=False)
    same = chance.merge(pd.concat(sides).drop_duplicates()).assign(chance=True, verdict=SEED_ALONE)
    joined = pd.concat([table, same], ignore_index=True) if len(same) else table
    return joined.assign(label=joined.get("label", joined["title"]).fillna(joined["title"]))


def sizes(names: Iterable[str]) -> pd.DataFrame:
    """Count models and variants: a row each, columns model, parameters, macs, as_paper_parameters, as_paper_flops.

    The first two are full counts of the one-logit model, MACs for an image of 256×256; the others
    follow the paper's convention (see ``models.complexity``).
    """
    rows = []
    for name in dict.fromkeys(names):
        model, variant = find_variant(name)
        with torch.random.fork_rng(devices=[]):  # counting draws none of the caller's
            ours = build_model(name)
            papers = create_model(model, find_model(model).paper_out_channels, **variant.model)
        rows.append((name, count_parameters(ours), count_macs(ours), *count_as_paper(papers)))
    columns = ["model", "parameters", "macs", "as_paper_parameters", "as_paper_flops"]
    return pd.DataFrame(rows, columns=columns)


# --- Table 5 --------------------------------------------------------------------------------------


def paper_table5() -> pd.DataFrame:
    """Return Table 5 of the paper in long form: model, dataset, paper_dice, paper_sd, paper_params_m, paper_flops_g."""
    names = {"params_m": "paper_params_m", "flops_g": "paper_flops_g"}
    wide = printed_table(5).rename(columns=names).assign(model=list(LADDER))
    long = wide.melt(["model", *names.values()], var_name="dataset", value_name="cell")
    long[["paper_dice", "paper_sd"]] = long.pop("cell").str.split("±", expand=True).astype(float)
    return long


def ladder_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return Table 5: every rung in every setting that has two or more, beside the paper's.

    Columns: the setting, model, title, seeds, dice (mean over images and seeds), dice_low,
    dice_high, batch_pooled_dice (compare this one with the paper's), those of `sizes` and of
    `paper_table5`. A rung that was not run has no Dice.
    """
    own = own_scores(ledger)
    rungs = own[own["model"].isin(list(LADDER))]
    rungs = rungs[rungs.groupby(SETTING)["model"].transform("nunique") > 1]
    scores = ["seeds", "dice", "dice_low", "dice_high", "batch_pooled_dice"]
    if rungs.empty:
        return pd.DataFrame(columns=[*SETTING, "model", "title", *scores])
    titles = pd.DataFrame({"model": list(LADDER), "title": list(LADDER.values())})
    table = rungs[SETTING].drop_duplicates().merge(titles, how="cross")
    table = table.merge(main_table(rungs)[[*GROUP_KEYS, *scores]], "left", GROUP_KEYS)
    return table.merge(sizes(LADDER)).merge(paper_table5(), "left", ["model", "dataset"])


def step_label(steps: pd.DataFrame) -> pd.Series:
    """Return the two rungs of each row of `compare` in words: "LB-UNet − UNet-Tiny"."""
    short = {name: rung.partition(" (")[0].rpartition("= ")[2] for name, rung in LADDER.items()}
    return steps["model"].map(short) + " − " + steps["baseline"].map(short)


def format_ladder(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of `ladder_table` as text for reading."""
    as_paper = "as_paper_parameters as_paper_flops"
    read = READ | {
        "macs": ("MACs (G)", lambda macs: f"{macs / 1e9:.3f}"),
        as_paper: ("as the paper counts (M, G)", lambda n, ops: f"{n / 1e6:.3f}, {ops / 1e9:.3f}"),
    }
    scores = ("title", "seeds", "dice", "dice_low dice_high", "batch_pooled_dice")
    return shown(
        table, [*SETTING, *scores, "paper_dice paper_sd", "parameters", "macs", as_paper], read
    )


def plot_ladder(table: pd.DataFrame) -> Figure:
    """Show the ladder of one setting, beside the paper's on its five datasets.

    Ours twice: the mean over images with its 95 % interval, and pooled per batch, as the paper's.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 6), sharex=True, sharey=True)
    rungs = list(LADDER.values())
    ran = table.dropna(subset="dice")
    height = [rungs.index(title) for title in ran["title"]]
    seeds = dict(zip(ran["title"], ran["seeds"], strict=True))
    names = [f"{rung} ({seeds[rung]:.0f})" if rung in seeds else rung for rung in rungs]
    left.plot(ran["dice"], height, color="0.6", lw=2.5, zorder=0)
    for (model, rung), place in zip(ran.groupby("model", sort=False), height, strict=True):
        colour, marker = figures.model_style(model)
        left.errorbar(rung["dice"], [place], xerr=error_bars(rung), fmt=marker, ms=13, lw=2.5,
                      capsize=5, color=colour)  # fmt: skip
    left.plot(ran["batch_pooled_dice"], height, **figures.PER_BATCH)
    for place in set(range(len(rungs))) - set(height):
        left.annotate("not run", (0.02, place), xycoords=("axes fraction", "data"), va="center")
    markers = "osD^v"
    for colour, (name, paper) in enumerate(paper_table5().groupby("dataset", sort=False)):
        right.plot(paper["paper_dice"], range(len(rungs)), f"{markers[colour]}-", lw=2.5, ms=10,
                   color=PALETTE[colour], label=dataset_title(name))  # fmt: skip
    left.set(yticks=range(len(rungs)), yticklabels=names, ylim=(len(rungs) - 0.5, -0.5))
    left.set(xlabel="Dice", title="ours (seeds)")
    left.xaxis.set_major_locator(MultipleLocator(0.1))
    left.xaxis.set_minor_locator(MultipleLocator(0.02))
    right.set(xlabel="Dice per batch of 4, as printed", title="the paper's Table 5")
    right.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    figures.name_definitions(figure, with_paper=False)
    figure.suptitle(setting_title(table))
    return figure


# --- learned weights ------------------------------------------------------------------------------


def steps_an_epoch(run: study.Run) -> int:
    """Return how many steps of the optimizer a finished run made in an epoch."""
    return ceil(study.read_config(run)["images"]["train"] / run.training_recipe.batch_size)


def _coin_tosses(run: study.Run, history: pd.DataFrame) -> pd.Series:
    """Return how far, after each epoch, steps of random sign would have carried a weight (one sd).

    Adam divides a gradient by its own size, so a step is about the learning rate long whether or
    not the gradients agree: the walk of n disagreeing steps has the spread rate × √n.
    """
    return (steps_an_epoch(run) * history["learning_rate"] ** 2).cumsum() ** 0.5


def weight_words(name: str) -> str:
    """Name a learned single weight in words: "region, level 3", "EDB 1" or "α of SSA".

    >>> weight_words("decoder3.fusion.region_weight")
    'region, level 3'
    """
    part, *between, last = name.split(".")
    if last == "residual_weight":  # encoder3.context.0.residual_weight
        return f"EDB {int(between[-1]) + 1}"
    kind, level = last.removesuffix("_weight"), part.removeprefix("decoder")
    return "α of SSA" if kind == "alpha" else f"{kind}, level {level}"


def weights_over_epochs(run: study.Run) -> pd.DataFrame:
    """Return the learned single weights of a finished run: columns epoch, weight, value, start, coin_tosses.

    Empty for a run whose history lacks them.
    """
    history = study.read_history(run)
    starts = learned_scalars(build_model(run.model))
    history = history.assign(coin_tosses=_coin_tosses(run, history))
    known = [column for column in starts if column in history]
    long = history.melt(["epoch", "coin_tosses"], known, "weight", "value").dropna()
    long["start"] = long["weight"].map(starts)
    return long.assign(weight=long["weight"].str.removeprefix(WEIGHT_COLUMN))


def kept_weights(runs: Iterable[study.Run]) -> pd.DataFrame:
    """Return the learned single weights of the kept epoch.

    Columns: run_id, recipe, weight, start, kept, coin_tosses.
    """
    tables = []
    for run in runs:
        history = study.read_history(run)
        tosses = _coin_tosses(run, history)[study.read_config(run)["best_epoch"] - 1]
        starts = learned_scalars(build_model(run.model))
        kept = learned_scalars(build_model(run.model, run.folder / "weights.safetensors"))
        names = [column.removeprefix(WEIGHT_COLUMN) for column in starts]
        columns = {"weight": names, "start": starts.values(), "kept": kept.values()}
        named = {"run_id": run.run_id, "recipe": run.recipe}
        tables.append(pd.DataFrame({**named, **columns, "coin_tosses": tosses}))
    columns = ["run_id", "recipe", "weight", "start", "kept", "coin_tosses"]
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)


def summarize_weights(kept: pd.DataFrame) -> pd.DataFrame:
    """Return a row a recipe and weight: its start, its range over runs, how far and which way it moved.

    ``moved``: the mean distance from the start, in units of what coin tosses would have moved it.
    ``direction``: up, down or both, over the runs.
    """
    change = kept["kept"] - kept["start"]
    moves = kept.assign(change=change, moved=change.abs() / kept["coin_tosses"])
    return moves.groupby(["recipe", "weight"], sort=False, as_index=False).agg(
        runs=("kept", "size"), start=("start", "first"), lowest=("kept", "min"),
        mean=("kept", "mean"), highest=("kept", "max"), moved=("moved", "mean"),
        direction=("change", lambda x: "up" if (x > 0).all() else "down" if (x < 0).all() else "both"),
    )  # fmt: skip


def plot_weights(table: pd.DataFrame, title: str) -> Figure:
    """Show a table of `weights_over_epochs`: a panel a kind, starts dashed, coin tosses (1 and 2 sd) grey."""
    kinds = [end for end in PANELS if table["weight"].str.endswith(end).any()]
    lines = -(-len(kinds) // 2)
    figure, grid = plt.subplots(lines, 2, figsize=(15, 5 * lines), squeeze=False, sharex=True)
    for axes, kind in zip(grid.flat, kinds, strict=False):
        _plot_weights_of(axes, table[table["weight"].str.endswith(kind)])
        axes.set(title=PANELS[kind], ylabel="value")
    for axes in grid.flat[len(kinds) :]:
        axes.set_axis_off()
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title)
    return figure


def _plot_weights_of(axes: Axes, table: pd.DataFrame) -> None:
    first = table[table["weight"] == table["weight"].iloc[0]]
    start, walk = first["start"], first["coin_tosses"]
    for reach, grey in ((2, "0.92"), (1, "0.82")):
        band = start - reach * walk, start + reach * walk
        axes.fill_between(first["epoch"], *band, color=grey, lw=0, label=f"coin tosses, {reach} sd")
    axes.axhline(start.iloc[0], color="black", ls="--", lw=2, label="start")
    for name, line in table.groupby("weight", sort=False):
        label = weight_words(name).rpartition(", ")[2]
        # One colour a level, in all panels.
        level = int("".join(filter(str.isdigit, label)) or 0) % 4
        axes.plot(line["epoch"], line["value"], "osD^"[level] + "-", ms=7, lw=2.5,
                  color=PALETTE[level], markevery=max(1, len(line) // 10), label=label)  # fmt: skip
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))


@torch.no_grad()
def worth_of_learned_weights(run: study.Run, profile: study.Profile) -> PairedTest:
    """Compare a trained model with itself after its single weights are put back to their starts.

    Returns the paired difference in Dice (as trained - put back) on the run's own test frames.
    Raises FileNotFoundError where the dataset is not there.
    """
    frames = study.test_frames(run.dataset, profile)
    model = study.load_trained(run)
    starts = learned_scalars(build_model(run.model))
    for name, weight in model.named_parameters():
        if weight.ndim == 0:
            weight.fill_(starts[WEIGHT_COLUMN + name])
    put_back = dice_score(predict_probs(model, frames.images) >= 128, frames.masks > 0)
    scores = study.read_scores(run)
    scores = scores[scores["test_set"] == run.dataset]
    groups = videos(zip(scores["test_set"], scores["image_id"], strict=True))
    return paired_test(scores["dice"], put_back, groups=groups)


# --- early stopping -------------------------------------------------------------------------------


def cost_of_patience(runs: Iterable[study.Run], patience: int) -> pd.DataFrame:
    """Return where early stopping would have ended runs that went on, and what it would have cost.

    ``patience``: epochs without a better Dice on the part that picks. Columns: run_id, seed, stop
    (the epoch, the last one where it never would), dice_then and dice_end (the highest Dice up to
    it, and of all epochs), best_then and best_epoch (theirs), cost (dice_end - dice_then).
    """
    rows = []
    for run in runs:
        dice = study.read_history(run)["val_dice"].to_numpy()
        waited = [epoch - dice[: epoch + 1].argmax() for epoch in range(len(dice))]
        late = np.flatnonzero(np.array(waited) >= patience)
        stop = late[0] if len(late) else len(dice) - 1
        best = dice[: stop + 1].argmax(), dice.argmax()
        then, end = dice[[*best]]
        epochs = (stop + 1, best[0] + 1, best[1] + 1)
        rows.append((run.run_id, run.seed, *epochs, then, end, end - then))
    columns = ["run_id", "seed", "stop", "best_then", "best_epoch", "dice_then", "dice_end", "cost"]
    return pd.DataFrame(rows, columns=columns)


def plot_patience(runs: Sequence[study.Run], cost: pd.DataFrame) -> Figure:
    """Show the Dice that picks over the epochs of each run, and where early stopping would end it."""
    figure, axes = plt.subplots(figsize=(13, 6.5))
    for place, (run, row) in enumerate(zip(runs, cost.itertuples(), strict=True)):
        history = study.read_history(run)
        axes.plot(history["epoch"], history["val_dice"], lw=2.5, ls=("-", "--", ":")[place % 3],
                  color=PALETTE[place], label=f"seed {run.seed}")  # fmt: skip
        axes.axvline(
            row.stop, lw=2, ls=("-", "--", ":")[place % 3], color=PALETTE[place], alpha=0.6
        )
        style = {"color": PALETTE[place], "mew": 2, "zorder": 3}
        axes.plot(row.best_then, row.dice_then, "o", ms=26, mfc="none", **style)
        axes.plot(row.best_epoch, row.dice_end, "*", ms=22, mec="white", **style)
    for mark, words in {
        "|": "early stopping\nwould end here",
        "o": "best until then",
        "*": "best of all",
    }.items():
        hollow = {"mfc": "none"} if mark == "o" else {}
        axes.plot(
            [], [], mark, ms=18, mew=0 if mark == "*" else 3, color="0.4", label=words, **hollow
        )
    axes.set(xlabel="epoch", ylabel="Dice on the part that picks", title=setting_title(
        pd.DataFrame([vars(run) for run in runs])))  # fmt: skip
    axes.set_ylim(bottom=cost["dice_then"].min() - 0.2, top=cost["dice_end"].max() + 0.02)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    figure.suptitle(f"{model_title(runs[0].model)}: what patience costs")
    return figure


# --- Table 7 --------------------------------------------------------------------------------------


def taught(student: str) -> list[str]:
    """Return the names of a student's distilled runs, features first."""
    return [f"{student}+{name}" for name in TAUGHT]


def _same_seeds(ledger: pd.DataFrame, alike: Sequence[str], compared: str) -> pd.DataFrame:
    """Return the rows of the seeds that every value of a column has, among the rows that are alike.

    A mean over two seeds is not compared with a mean over one: the seed would be part of the
    difference.
    """
    every = ledger.groupby([*alike])[compared].transform("nunique")
    return ledger[ledger.groupby([*alike, "seed"])[compared].transform("nunique") == every]


def distillation_table(ledger: pd.DataFrame, profile: str, teacher: str) -> pd.DataFrame:
    """Return teacher, students and distilled students of every setting that has a distilled run.

    Only the clean protocol: there the validation part may choose. Only seeds that a student's runs
    all have. First the teacher, then each student, the plain one before those that were taught.
    Columns: those of `tables.main_table`, student, variant ("" for a plain model), val_dice (of the
    kept epoch, mean over seeds), images, difference, low, high, p_holm and verdict (to the plain
    student, see `compare`), parameters.
    """
    clean = own_scores(ledger[ledger["protocol"] == "clean"])
    split = clean["model"].astype(str).str.partition("+").reindex(columns=[0, 2])
    clean = clean.assign(student=split[0], variant=split[2])
    distilled = clean[clean["variant"].isin(TAUGHT)]
    if distilled.empty:
        return distilled.reindex(columns=[*GROUP_KEYS, *DISTILLED])
    wanted = distilled[[*SETTING, "student"]].drop_duplicates()
    teachers = wanted[SETTING].drop_duplicates().assign(student=teacher)
    clean = clean.merge(pd.concat([teachers, wanted]).drop_duplicates())
    clean = clean[clean["variant"].isin(["", *TAUGHT]) & clean["seed"].isin(distilled["seed"])]
    clean = _same_seeds(clean, [*SETTING, "student"], "model")
    runs = clean[["run_id", *GROUP_KEYS, "student", "variant"]].drop_duplicates()
    runs["val_dice"] = [
        study.read_history(study.parse_run_id(profile, name))["val_dice"].max()
        for name in runs["run_id"]
    ]
    keys = [*GROUP_KEYS, "student", "variant"]
    table = runs.groupby(keys, sort=False)["val_dice"].mean().reset_index()
    pairs = [(name, student) for student in set(wanted["student"]) for name in taught(student)]
    gains = compare(clean, pairs)[[*GROUP_KEYS, *DIFFERENCE, "p_holm", "verdict"]]
    table = table.merge(main_table(clean), on=GROUP_KEYS).merge(gains, "left", GROUP_KEYS)
    table = table.merge(sizes(table["model"])[["model", "parameters"]])
    by = [*SETTING, "student", "variant"]
    return table.sort_values(by, key=lambda x: x.replace(teacher, ""), ignore_index=True)


def choice_table(ledger: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return what the choice of the weight of Eq. 6 is worth: a row a student and setting.

    ``table``: of `distillation_table`. Columns: the setting, student, weights (how many there are),
    baseline (Dice of the plain student), chosen and chosen_delta (the weight with the best Dice on
    the validation part, and its test Dice less the baseline's), best and best_delta (the best on
    the test part, as in Table 7), worth (best_delta - chosen_delta), bonus (see `selection_bonus`).
    """
    own, rows = own_scores(ledger), []
    features = table[table["variant"].isin(FEATURES)].dropna(subset="difference")
    for keys, group in features.groupby([*SETTING, "student"], sort=False):
        student = keys[-1]
        here = (own[SETTING] == group[SETTING].iloc[0]).all(axis=1)
        runs = own[here & own["model"].isin([student, *taught(student)])]
        # The seeds of `distillation_table`, whose differences these are.
        runs = dict(list(_same_seeds(runs, SETTING, "model").groupby("model")))
        plain, *others = (dice_by_seed(runs[name]).mean() for name in (student, *group["model"]))
        chosen = group.loc[group["val_dice"].idxmax()]
        best = group.loc[group["difference"].idxmax()]
        worth = best["difference"] - chosen["difference"]
        rows.append((
            *keys, len(group), plain.mean(), chosen["variant"], chosen["difference"],
            best["variant"], best["difference"], worth, selection_bonus(np.array(others) - plain.to_numpy()),
        ))  # fmt: skip
    columns = ["weights", "baseline", "chosen", "chosen_delta", "best", "best_delta", "worth"]
    return pd.DataFrame(rows, columns=[*SETTING, "student", *columns, "bonus"])


def format_choice(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of `choice_table` as text for reading."""

    def weight(name: str, gain: float) -> str:
        return f"{VARIANTS[name].title}: {gain:+.3f}"

    columns = {
        "student": ("student", model_title), "baseline": ("Dice without a teacher", LEVEL),
        "chosen chosen_delta": ("chosen on the validation part", weight),
        "best best_delta": ("chosen on the test part", weight),
        "worth": ("worth of that choice", "{:+.4f}"), "bonus": ("drop on the other half", "{:+.4f}"),
    }  # fmt: skip
    return shown(table, [*SETTING, *columns], READ | columns)


def selection_bonus(values: np.ndarray) -> float:
    """Return how much a score drops on images on which it was not chosen as the best.

    ``values`` (weights, images): Dice of each image. The images are halved at random, the best
    weight of one half is taken, and its mean there is compared with its mean on the other half.
    On all images together a choice gains less, about 1/√2 of this: halves are noisier.

    >>> selection_bonus(np.array([[0.5, 0.5, 0.5, 0.5], [0.4, 0.4, 0.4, 0.4]]))
    0.0
    """
    draws, images = 2000, values.shape[1]
    ranks = np.random.default_rng(0).random((draws, images)).argsort(axis=1)
    half = ranks < images // 2
    here = half @ values.T / (images // 2)  # (draws, weights)
    there = ~half @ values.T / (images - images // 2)
    picked = np.arange(draws), here.argmax(axis=1)
    return float(np.mean(here[picked] - there[picked]))


def plot_choice(table: pd.DataFrame) -> Figure:
    """Show, for one student and setting, Dice against the weight of Eq. 6 on both parts.

    ``table``: the rows of one student in `distillation_table`.
    """
    figure, axes = plt.subplots(figsize=(11, 6))
    features = table[table["variant"].isin(FEATURES)]
    plain = table[table["variant"] == ""]
    shares = [100 * VARIANTS[name].recipe["distillation_share"] for name in features["variant"]]
    parts = {"val_dice": "validation part: may choose", "dice": "test part: may not"}
    for place, (column, label) in enumerate(parts.items()):
        style = {"color": PALETTE[place], "lw": 3}
        axes.plot(shares, features[column], "os"[place] + "-", ms=13, label=label, **style)
        axes.axhline(plain[column].iloc[0], ls="--", label="the same, without a teacher", **style)
        top = features[column].argmax()
        axes.plot(shares[top], features[column].iloc[top], "o", ms=26, mfc="none", mec="black",
                  label="best on this part" if place else None)  # fmt: skip
    axes.set(xlabel="share of the task loss (%)", ylabel="Dice, mean over images", xticks=shares)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(f"{plain['title'].iloc[0]}, {setting_title(table)}")
    return figure
