"""What each part of UltraSeg is worth (Table 5), and what a teacher is (Table 7).

A *setting* is recipe, protocol, epochs and dataset: only runs of one setting are compared.
"""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ultraseg_lib import study
from ultraseg_lib.metrics import dice_score
from ultraseg_lib.models import create_model, find_model
from ultraseg_lib.models.complexity import count_as_paper, count_macs, count_parameters
from ultraseg_lib.paths import PAPER
from ultraseg_lib.report.figures import PALETTE, dataset_title
from ultraseg_lib.report.tables import GROUP_KEYS, main_table, own_scores
from ultraseg_lib.statistics import PairedTest, holm, paired_test
from ultraseg_lib.training import WEIGHT_COLUMN, learned_scalars, predict_probs
from ultraseg_lib.variants import VARIANTS, build_model, find_variant, model_title

SETTING = GROUP_KEYS[:-1]
LADDER = {  # the rungs of Table 5, in the order of its rows
    "unet_tiny": "UNet-Tiny",
    "lbunet": "LB-UNet",
    "ultraseg_108k_st": "ST (reconstructed)",
    "ultraseg_108k": "ST + EDB = 108K",
    "ultraseg_130k": "+ AGF + SSA = 130K",
}
WHOLE = "ultraseg_130k"
TAUGHT = tuple(name for name, variant in VARIANTS.items() if "distillation" in variant.recipe)
FEATURES = tuple(n for n in TAUGHT if VARIANTS[n].recipe["distillation"] == "features")
CHANGED = tuple(f"{WHOLE}+{name}" for name in VARIANTS if name not in TAUGHT)
DIFFERENCE = ("difference", "low", "high", "p")
PANELS = {  # the end of a weight's name -> what it is
    "alpha": "α of the SSA (Eq. 4)",
    "region_weight": "region weights (Eq. 1)",
    "boundary_weight": "boundary weights (Eq. 1)",
    "residual_weight": "residual weights of the EDB",
}


# --- scores ---------------------------------------------------------------------------------------


def setting_name(table: pd.DataFrame) -> str:
    """Return the setting of a table's first row as part of a file name."""
    return "-".join(str(table[key].iloc[0]) for key in SETTING)


def setting_title(table: pd.DataFrame) -> str:
    """Return the setting of a table's first row for people."""
    row = table.iloc[0]
    return (
        f"{dataset_title(row['dataset'])}, recipe {row['recipe']},"
        f" {row['protocol']} protocol, {row['epochs']} epochs"
    )


def _by_seed(scores: pd.DataFrame, model: str) -> pd.DataFrame:
    """Return the Dice of one model as a table (seeds, images)."""
    return scores[scores["model"] == model].pivot(index="seed", columns="image_id", values="dice")


def _differences(rows: list[tuple]) -> pd.DataFrame:
    columns = [*SETTING, "model", "baseline", "title", "seeds", "images", *DIFFERENCE]
    table = pd.DataFrame(rows, columns=columns)
    table["p_holm"] = table.groupby(SETTING)["p"].transform(holm) if rows else table["p"]
    return table.drop(columns="p")


def compare(ledger: pd.DataFrame, pairs: Iterable[tuple[str, str]]) -> pd.DataFrame:
    """Compare models with baselines, image by image and seed by seed, in every setting.

    A pair without a seed in common is left out. Columns: the setting, model, baseline, title,
    seeds, images, difference (mean Dice, model - baseline), low and high (95 % bootstrap),
    p_holm (sign-flip test, corrected by Holm for the pairs of the setting).
    """
    rows, pairs = [], list(pairs)
    for setting, scores in own_scores(ledger).groupby(SETTING, sort=False):
        for model, baseline in pairs:
            ours, theirs = _by_seed(scores, model), _by_seed(scores, baseline)
            seeds = ours.index.intersection(theirs.index)
            if len(seeds):
                test = paired_test(ours.loc[seeds].to_numpy(), theirs.loc[seeds].to_numpy())
                title = find_variant(model)[1].title or model_title(model)
                rows.append((*setting, model, baseline, title, len(seeds), ours.shape[1], *test))
    return _differences(rows)


def compare_seeds(ledger: pd.DataFrame, model: str) -> pd.DataFrame:
    """Compare the other seeds of a model with its first one: what chance in training is worth.

    Columns as in `compare`; empty where every setting has one seed only.
    """
    rows = []
    for setting, scores in own_scores(ledger).groupby(SETTING, sort=False):
        dice = _by_seed(scores, model)
        for seed in dice.index[1:]:
            test = paired_test(dice.loc[seed].to_numpy(), dice.iloc[0].to_numpy())
            title = f"nothing but the seed ({seed})"
            rows.append((*setting, model, model, title, 1, dice.shape[1], *test))
    return _differences(rows)


def format_differences(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of `compare` as text for reading, with a verdict."""
    outside = (table["low"] > 0) | (table["high"] < 0)
    bounds = zip(table["low"], table["high"], strict=True)
    return pd.DataFrame(
        {
            **{key: table[key] for key in SETTING},
            "compared": table["title"],
            "with": [model_title(name) for name in table["baseline"]],
            "seeds": table["seeds"],
            "images": table["images"],
            "difference in Dice": table["difference"].map("{:+.3f}".format),
            "95 % interval": [f"{low:+.3f} to {high:+.3f}" for low, high in bounds],
            "p (Holm)": table["p_holm"].map("{:.3f}".format),
            "zero is": outside.map({True: "outside", False: "inside: no finding"}),
        }
    )


def sizes(names: Iterable[str]) -> pd.DataFrame:
    """Count models and variants: a row each, columns model, parameters, macs, as_paper_parameters, as_paper_flops.

    The first two are full counts of the one-logit model, MACs for an image of 256×256; the others
    follow the paper's convention (see ``models.complexity``).
    """
    rows = []
    for name in dict.fromkeys(names):
        model, variant = find_variant(name)
        with torch.device("meta"):  # shapes are enough to count
            ours = build_model(name)
            papers = create_model(model, find_model(model).paper_out_channels, **variant.model)
        rows.append((name, count_parameters(ours), count_macs(ours), *count_as_paper(papers)))
    columns = ["model", "parameters", "macs", "as_paper_parameters", "as_paper_flops"]
    return pd.DataFrame(rows, columns=columns)


# --- Table 5 --------------------------------------------------------------------------------------


def paper_table5() -> pd.DataFrame:
    """Return Table 5 of the paper in long form: model, dataset, paper_dice, paper_sd, paper_params_m, paper_flops_g."""
    wide = pd.read_csv(PAPER / "table5_ablation.csv").assign(model=list(LADDER))
    wide = wide.rename(columns={"params_m": "paper_params_m", "flops_g": "paper_flops_g"})
    keys = ["model", "paper_params_m", "paper_flops_g"]
    long = wide.melt(keys, var_name="dataset", value_name="cell")
    long[["paper_dice", "paper_sd"]] = long.pop("cell").str.split("±", expand=True).astype(float)
    return long


def ladder_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return Table 5: every rung in every setting that has one, beside the paper's.

    Columns: the setting, model, title, seeds, dice (mean over images and seeds), dice_low,
    dice_high, batch_pooled_dice (compare this one with the paper's), those of `sizes` and of
    `paper_table5`. A rung that was not run has no Dice.
    """
    own = own_scores(ledger)
    rungs = own[own["model"].isin(list(LADDER))]
    scores = ["seeds", "dice", "dice_low", "dice_high", "batch_pooled_dice"]
    if rungs.empty:
        return pd.DataFrame(columns=[*SETTING, "model", "title", *scores])
    titles = pd.DataFrame({"model": list(LADDER), "title": list(LADDER.values())})
    table = rungs[SETTING].drop_duplicates().merge(titles, how="cross")
    table = table.merge(main_table(rungs)[[*GROUP_KEYS, *scores]], "left", GROUP_KEYS)
    return table.merge(sizes(LADDER)).merge(paper_table5(), "left", ["model", "dataset"])


def format_ladder(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of `ladder_table` as text for reading."""

    def cells(*columns: str, form: str, missing: str) -> list[str]:
        values = table[list(columns)].itertuples(index=False)
        return [form.format(*row) if row[0] == row[0] else missing for row in values]

    return pd.DataFrame(
        {
            **{key: table[key] for key in SETTING},
            "model": table["title"],
            "seeds": cells("seeds", form="{:.0f}", missing=""),
            "Dice": cells("dice", form="{:.3f}", missing="not run"),
            "95 % interval": cells("dice_low", "dice_high", form="{:.3f} to {:.3f}", missing=""),
            "Dice per batch of 4": cells("batch_pooled_dice", form="{:.3f}", missing="not run"),
            "paper": cells("paper_dice", "paper_sd", form="{:.4f} ± {:.4f}", missing="–"),
            "parameters": table["parameters"].map("{:,}".format),
            "MACs (G)": (table["macs"] / 1e9).map("{:.3f}".format),
            "as the paper counts (M, G)": [
                f"{parameters / 1e6:.3f}, {flops / 1e9:.3f}"
                for parameters, flops in zip(
                    table["as_paper_parameters"], table["as_paper_flops"], strict=True
                )
            ],
        }
    )


def plot_ladder(table: pd.DataFrame) -> Figure:
    """Show the ladder of one setting with 95 % intervals, beside the paper's on its five datasets."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 6), sharey=True)
    rungs = list(LADDER.values())
    ran = table.dropna(subset="dice")
    height = [rungs.index(title) for title in ran["title"]]
    bars = [ran["dice"] - ran["dice_low"], ran["dice_high"] - ran["dice"]]
    left.errorbar(ran["dice"], height, xerr=bars, fmt="o-", ms=12, lw=2.5, capsize=5,
                  color=PALETTE[3])  # fmt: skip
    for place in set(range(len(rungs))) - set(height):
        left.annotate("not run", (0.02, place), xycoords=("axes fraction", "data"), va="center")
    markers = "osD^v"
    for colour, (name, paper) in enumerate(paper_table5().groupby("dataset", sort=False)):
        right.plot(paper["paper_dice"], range(len(rungs)), f"{markers[colour]}-", lw=2.5, ms=10,
                   color=PALETTE[colour], label=dataset_title(name))  # fmt: skip
    left.set(yticks=range(len(rungs)), yticklabels=rungs, ylim=(len(rungs) - 0.5, -0.5))
    left.set(xlabel="Dice, mean over images", title="ours")
    right.set(xlabel="Dice, as printed", title="the paper's Table 5")
    right.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    figure.suptitle(setting_title(table))
    return figure


# --- learned weights ------------------------------------------------------------------------------


def _history(run: study.Run) -> pd.DataFrame:
    return pd.read_csv(run.folder / "history.csv")


def has_weights_over_epochs(run: study.Run) -> bool:
    """Return whether a run's history holds its learned weights; older histories do not."""
    return any(column.startswith(WEIGHT_COLUMN) for column in _history(run))


def _coin_tosses(run: study.Run, history: pd.DataFrame) -> pd.Series:
    """Return how far, after each epoch, steps of random sign would have carried a weight (one sd).

    Adam divides a gradient by its own size, so a step is about the learning rate long whether or
    not the gradients agree: the walk of n disagreeing steps has the spread rate × √n.
    """
    images = study.read_config(run)["images"]["train"]
    steps = -(-images // run.training_recipe.batch_size)
    return (steps * history["learning_rate"] ** 2).cumsum() ** 0.5


def weights_over_epochs(run: study.Run) -> pd.DataFrame:
    """Return the learned single weights of a finished run: columns epoch, weight, value, start, coin_tosses.

    Empty for a run whose history lacks them.
    """
    history = _history(run)
    starts = learned_scalars(build_model(run.model))
    history = history.assign(coin_tosses=_coin_tosses(run, history))
    known = [column for column in starts if column in history]
    long = history.melt(["epoch", "coin_tosses"], known, "weight", "value").dropna()
    long["start"] = long["weight"].map(starts)
    return long.assign(weight=long["weight"].str.removeprefix(WEIGHT_COLUMN))


def kept_weights(runs: Iterable[study.Run]) -> pd.DataFrame:
    """Return the learned single weights of the kept epoch: columns run_id, weight, start, kept, coin_tosses."""
    tables = []
    for run in runs:
        history = _history(run)
        tosses = _coin_tosses(run, history)[history["val_dice"].idxmax()]
        starts = learned_scalars(build_model(run.model))
        kept = learned_scalars(build_model(run.model, run.folder / "weights.safetensors"))
        names = [column.removeprefix(WEIGHT_COLUMN) for column in starts]
        columns = {"weight": names, "start": starts.values(), "kept": kept.values()}
        tables.append(pd.DataFrame({**columns, "run_id": run.run_id, "coin_tosses": tosses}))
    columns = ["run_id", "weight", "start", "kept", "coin_tosses"]
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)


def summarize_weights(kept: pd.DataFrame) -> pd.DataFrame:
    """Return a row a weight: its start, its range over runs, whether all moved one way, and how far.

    ``moved``: the mean move, in units of what coin tosses would have moved it.
    """
    change = kept["kept"] - kept["start"]
    moves = kept.assign(change=change, moved=change.abs() / kept["coin_tosses"])
    table = moves.groupby("weight", sort=False).agg(
        start=("start", "first"), runs=("kept", "size"), lowest=("kept", "min"),
        mean=("kept", "mean"), highest=("kept", "max"), moved=("moved", "mean"),
        one_way=("change", lambda x: bool((x > 0).all() or (x < 0).all())),
    )  # fmt: skip
    return table.reset_index()


def plot_weights(table: pd.DataFrame, title: str) -> Figure:
    """Show a table of `weights_over_epochs`: a panel a kind, starts dashed, coin tosses grey."""
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
    axes.fill_between(first["epoch"], start - walk, start + walk, color="0.85", lw=0)
    axes.axhline(start.iloc[0], color="black", ls="--", lw=2)
    for place, (name, line) in enumerate(table.groupby("weight", sort=False)):
        where = name.split(".")
        label = where[0].replace("decoder", "level ") if len(where) == 3 else f"block {where[-2]}"
        axes.plot(line["epoch"], line["value"], "osD^"[place] + "-", ms=7, lw=2.5,
                  color=PALETTE[place], markevery=0.1, label=label)  # fmt: skip
    if table["weight"].nunique() > 1:
        axes.legend(fontsize="small", ncols=2)


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
    return paired_test(scores.loc[scores["test_set"] == run.dataset, "dice"], put_back)


# --- Table 7 --------------------------------------------------------------------------------------


def taught(student: str) -> list[str]:
    """Return the names of a student's distilled runs, features first."""
    return [f"{student}+{name}" for name in TAUGHT]


def distillation_table(ledger: pd.DataFrame, profile: str, teacher: str) -> pd.DataFrame:
    """Return teacher, students and distilled students of every setting that has a distilled run.

    Only the clean protocol: there the validation part may choose. Columns: those of
    `tables.main_table`, student, variant ("" for a plain model), val_dice (of the kept epoch, mean
    over seeds), difference, low and high (to the plain student, see `compare`), parameters.
    """
    clean = own_scores(ledger[ledger["protocol"] == "clean"])
    split = clean["model"].astype(str).str.partition("+")
    clean = clean.assign(student=split[0], variant=split[2])
    distilled = clean[clean["variant"].isin(TAUGHT)]
    if distilled.empty:
        return distilled.assign(val_dice=[], difference=[])
    clean = clean[clean["seed"].isin(distilled["seed"])]  # others have nothing to be compared with
    wanted = distilled[[*SETTING, "student"]].drop_duplicates()
    teachers = wanted[SETTING].drop_duplicates().assign(student=teacher)
    clean = clean.merge(pd.concat([teachers, wanted]).drop_duplicates())
    clean = clean[clean["variant"].isin(["", *TAUGHT])]
    runs = clean[["run_id", *GROUP_KEYS, "student", "variant"]].drop_duplicates()
    runs["val_dice"] = [
        _history(study.parse_run_id(profile, name))["val_dice"].max() for name in runs["run_id"]
    ]
    keys = [*GROUP_KEYS, "student", "variant"]
    table = runs.groupby(keys, sort=False)["val_dice"].mean().reset_index()
    pairs = [(name, student) for student in set(wanted["student"]) for name in taught(student)]
    differences = compare(clean, pairs)[[*GROUP_KEYS, "difference", "low", "high", "p_holm"]]
    table = table.merge(main_table(clean), on=GROUP_KEYS).merge(differences, "left", GROUP_KEYS)
    return table.merge(sizes(table["model"])[["model", "parameters"]])


def choice_table(ledger: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return what the choice of the weight of Eq. 6 is worth: a row a student and setting.

    ``table``: of `distillation_table`. Columns: the setting, student, weights (how many there are),
    baseline (Dice of the plain student), chosen and chosen_delta (the weight with the best Dice on
    the validation part, and its test Dice less the baseline's), best and best_delta (the best on
    the test part, as in Table 7), worth (best_delta - chosen_delta), bonus (see `selection_bonus`).
    """
    rows = []
    features = table[table["variant"].isin(FEATURES)].dropna(subset="difference")
    for keys, group in features.groupby([*SETTING, "student"], sort=False):
        same = (ledger[SETTING] == group[SETTING].iloc[0]).all(axis=1)
        scores = own_scores(ledger[same])
        plain = _by_seed(scores, keys[-1])
        values = [(_by_seed(scores, name) - plain).mean().to_numpy() for name in group["model"]]
        chosen = group.loc[group["val_dice"].idxmax()]
        best = group.loc[group["difference"].idxmax()]
        worth = best["difference"] - chosen["difference"]
        rows.append((
            *keys, len(group), plain.to_numpy().mean(), chosen["variant"], chosen["difference"],
            best["variant"], best["difference"], worth, selection_bonus(np.array(values)),
        ))  # fmt: skip
    columns = ["weights", "baseline", "chosen", "chosen_delta", "best", "best_delta", "worth"]
    return pd.DataFrame(rows, columns=[*SETTING, "student", *columns, "bonus"])


def selection_bonus(values: np.ndarray, draws: int = 2000, seed: int = 0) -> float:
    """Return how much a score gains because it was chosen on the images that it is reported on.

    ``values`` (weights, images): Dice of each image. The images are halved at random, the best
    weight of one half is taken, and its mean there is compared with its mean on the other half.

    >>> selection_bonus(np.array([[0.5, 0.5, 0.5, 0.5], [0.4, 0.4, 0.4, 0.4]]))
    0.0
    """
    images = values.shape[1]
    ranks = np.random.default_rng(seed).random((draws, images)).argsort(axis=1)
    half = ranks < images // 2
    here = half @ values.T / (images // 2)  # (draws, weights)
    there = ~half @ values.T / (images - images // 2)
    picked = np.arange(draws), here.argmax(axis=1)
    return float(np.mean(here[picked] - there[picked]))


def plot_choice(table: pd.DataFrame) -> Figure:
    """Show, for one student and setting, Dice against the weight of Eq. 6 on both parts.

    ``table``: the rows of one student in `distillation_table`. Dashed: without a teacher.
    """
    figure, axes = plt.subplots(figsize=(11, 6))
    features = table[table["variant"].isin(FEATURES)]
    plain = table[table["variant"] == ""]
    shares = [100 * VARIANTS[name].recipe["distillation_share"] for name in features["variant"]]
    parts = {"val_dice": "validation part: may choose", "dice": "test part: may not"}
    for place, (column, label) in enumerate(parts.items()):
        style = {"color": PALETTE[place], "lw": 3}
        axes.plot(shares, features[column], "os"[place] + "-", ms=13, label=label, **style)
        axes.axhline(plain[column].iloc[0], ls="--", **style)
        top = features[column].argmax()
        axes.plot(shares[top], features[column].iloc[top], "o", ms=26, mfc="none", mec="black")
    axes.set(xlabel="share of the task loss (%)", ylabel="Dice, mean over images", xticks=shares)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(f"{plain['title'].iloc[0]}, {setting_title(table)}")
    return figure
