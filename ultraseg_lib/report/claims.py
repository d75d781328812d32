"""What the paper claims, what its tables say of it, what our files say of it.

A claim of ``claims.yaml`` is decided by our evidence through its ``compare`` (one model against
another) or the function that bears its id, below or, for counts, in ``printed.py``, which decides
by the paper's own tables. Generated images speak of no patient: Dice on them decides nothing.
"""

import json
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain, product
from typing import Any

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import yaml
from matplotlib.figure import Figure
from scipy import stats
from torch import nn

from ultraseg_lib import study
from ultraseg_lib.data import GENERATED, audit, sequences, splits
from ultraseg_lib.data.splits import EXTERNAL, MIXED
from ultraseg_lib.deploy.backends import BACKENDS
from ultraseg_lib.edges import boundary_target
from ultraseg_lib.models import MODELS, create_model
from ultraseg_lib.models.complexity import count_parameters, influence_map, receptive_field
from ultraseg_lib.models.ultraseg import EnhancedDilatedBlock
from ultraseg_lib.notebooks import find_notebooks, number
from ultraseg_lib.paths import PAPER, outputs_dir
from ultraseg_lib.report import external, printed
from ultraseg_lib.report.ablation import compare, paper_table5, sizes
from ultraseg_lib.report.architecture_figures import (
    capture_shapes,
    field_of,
    side_of,
    without_groupnorm,
)
from ultraseg_lib.report.benchmark_figures import machine_name, one_core
from ultraseg_lib.report.figures import PALETTE, dataset_title
from ultraseg_lib.report.printed import (
    FAILS,
    HOLDS,
    NOT_MEASURED,
    UNDECIDED,
    VERDICTS,
    Counts,
    Finding,
)
from ultraseg_lib.report.tables import (
    DIFFERENCE,
    GROUP_KEYS,
    SEEDS,
    SETTING,
    compare_pairs,
    dice_by_seed,
    main_table,
    own_scores,
    paper_table3,
    settled,
    settled_runs,
    videos,
)
from ultraseg_lib.statistics import paired_test
from ultraseg_lib.training import WEIGHT_COLUMN
from ultraseg_lib.variants import model_title

NOT_ASKED = "–"  # there is no such number
TOO_LITTLE = "too little to decide"  # seeds or frames
OURS = ("ultraseg_108k", "ultraseg_130k")
AS_WRITTEN = "ultraseg_108k+edb_as_written"
IMAGE_SIZE = 256  # of the paper, for fields and speed
PAPER_CPU = "i9-14900K"
FRAMES = 30  # of a kind, of as many videos where they are told, below which they decide nothing
JUDGED = ["name", "dataset", "model", *DIFFERENCE, "enough"]  # what `_judge` reads of a table

Check = Callable[["Evidence", dict[str, Any]], Finding]
CHECKS: dict[str, Check] = {}


def _decides(check: Check) -> Check:
    CHECKS[check.__name__.removeprefix("_")] = check
    return check


def _decides_alike(check: Check) -> Check:
    """Register a check that asks no profile: it is done once."""
    once = cache(lambda words: check(Evidence(""), json.loads(words)))
    CHECKS[check.__name__.removeprefix("_")] = lambda e, stated: once(json.dumps(stated))
    return check


@dataclass(frozen=True)
class Evidence:
    """What one profile has measured; each part is read once."""

    profile: str

    @cached_property
    def ledger(self) -> pd.DataFrame:
        """Return the scores on real images."""
        ledger = study.read_ledger(self.profile)
        return ledger[~ledger["dataset"].astype(str).str.split("@").str[0].isin(GENERATED)]

    @cached_property
    def speeds(self) -> pd.DataFrame:
        """Return frames a second on one core in float32, a row a machine and model.

        Columns model, parameters, eager (plain PyTorch), fastest, engine (which reached it),
        machine.
        """
        found = [_speeds_of(*bench) for bench in _read_benches(self.profile)]
        return pd.concat(found, ignore_index=True) if found else _speeds_of([], "")

    @property
    def nothing(self) -> Finding:
        """Return the finding where no run on real images can decide."""
        reason = "no such run on real images" if len(self.ledger) else "generated images only"
        return Finding(None, f"{reason} in the {self.profile} ledger")


@cache
def _parameters() -> dict[str, int]:
    with torch.random.fork_rng(devices=[]):  # counting draws none of the caller's
        return {name: count_parameters(create_model(name)) for name in MODELS}


@cache
def _counts() -> Counts:
    """Return the parameters of all models, and the operations of those of which a claim speaks."""
    names = ("lbunet", "ultraseg_108k_st", "ultraseg_108k", "ultraseg_130k")
    few = sizes(names).set_index("model").rename(model_title)
    every = pd.Series(_parameters()).rename(model_title)
    return Counts(every, few["as_paper_flops"], few["macs"])


def _read_benches(profile: str) -> list[tuple[list[dict[str, Any]], str]]:
    """Return the rows and the machine of each benchmark of a profile, else of the committed record.

    Only a benchmark at the paper's size counts. The committed one also has a short run of all
    models.
    """
    for folder in dict.fromkeys((profile, "reference")):
        found = []
        for path in sorted((outputs_dir(folder) / "bench").glob("*.json")):
            bench = json.loads(path.read_text(encoding="utf-8"))
            if bench["protocol"]["image_size"] == IMAGE_SIZE:
                rows = [*bench.get("table4", {}).get("rows", []), *bench["rows"]]
                found.append((rows, f"{machine_name(bench)}, benchmark of profile {folder}"))
        if found:
            return found
    return []


def _speeds_of(lines: list[dict[str, Any]], machine: str) -> pd.DataFrame:
    columns = ["model", "backend", "precision", "threads", "isa", "median_ms"]
    rows = one_core(pd.DataFrame(lines, columns=columns))
    # Of two rows alike the last counts: it is of the longer run.
    fps = 1000 / rows.pivot_table("median_ms", "model", "backend", "last")
    found = pd.DataFrame({"parameters": _parameters(), "eager": fps.get("eager")}).dropna()
    fps = fps.loc[found.index]
    best = {"fastest": fps.max(axis=1), "engine": fps.idxmax(axis=1).map(BACKENDS)}
    return found.assign(**best, machine=machine).rename_axis("model").reset_index()


# --- size and speed -------------------------------------------------------------------------------


def _told(rows: pd.DataFrame) -> str:
    """Say how fast models are, machine by machine."""
    machines = []
    for machine, part in rows.groupby("machine", sort=False):
        said = (f"{MODELS[row.model].title} {row.eager:.0f} by plain PyTorch, {row.fastest:.0f} by"
                f" {row.engine}" for row in part.itertuples())  # fmt: skip
        machines.append(f"{'; '.join(said)} (frames a second, one core of {machine})")
    return "; ".join(machines)


def _reach(rows: pd.DataFrame, fps: float) -> Finding:
    """Decide whether plain PyTorch reaches a speed wherever it was timed; only the paper's CPU says no."""
    text = _told(rows)
    if (rows["eager"] >= fps).all():
        return Finding(True, text)
    if any(PAPER_CPU in name for name in rows.loc[rows["eager"] < fps, "machine"]):
        return Finding(False, text)
    return Finding(
        None,
        f"by plain PyTorch not on every CPU that was timed, though not refuted on the paper's: {text}",
        timed=True,
    )


@_decides
def _ninety_fps(e: Evidence, stated: dict[str, Any]) -> Finding:
    rows = e.speeds[e.speeds["model"].isin(OURS)]
    if rows["model"].nunique() < len(OURS):
        return Finding(None, "not both models are benchmarked")
    return _reach(rows, stated["fps"])


CHECKS["thirty_fps"] = _ninety_fps


@_decides
def _three_hundred_k_is_real_time(e: Evidence, stated: dict[str, Any]) -> Finding:
    rows = e.speeds.query("@stated['low'] <= parameters <= @stated['high']")
    if rows.empty:
        return Finding(None, "no model of this size is benchmarked")
    return _reach(rows, stated["fps"])


@_decides
def _limit_from_thirty_fps(e: Evidence, stated: dict[str, Any]) -> Finding:
    rows = e.speeds.query("parameters >= @stated['limit']")
    fast = rows[rows["fastest"] >= stated["fps"]]
    if len(fast):
        return Finding(False, f"larger ones reach it, too, by another engine: {_told(fast)}")
    if rows.empty:
        return Finding(None, "no model above the limit is benchmarked")
    holds = True if PAPER_CPU in _told(rows) else None
    return Finding(holds, _told(rows), timed=True)


# --- architecture and targets ---------------------------------------------------------------------


@_decides_alike
def _larger_field(e: Evidence, stated: dict[str, Any]) -> Finding:
    fields: dict[str, list[int]] = {"lbunet": [], "ultraseg_108k": []}
    with torch.random.fork_rng(devices=[]):
        for name, seed in [(name, seed) for name in fields for seed in range(3)]:
            torch.manual_seed(seed)
            fields[name].append(receptive_field(influence_map(create_model(name))))
    larger = min(fields["ultraseg_108k"]) > max(fields["lbunet"])
    text = "; ".join(f"{MODELS[n].title} {min(v)} to {max(v)} px" for n, v in fields.items())
    return Finding(larger, f"before training: {text}")


@_decides_alike
def _canny_is_fast(e: Evidence, stated: dict[str, Any]) -> Finding:
    rng, tried = np.random.default_rng(0), stated["masks"] // 10
    places = rng.integers(60, 190, (tried, 2)).tolist()
    blank = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    masks = [cv2.circle(blank.copy(), place, 40, 255, -1) for place in places]
    began = time.perf_counter()
    for mask in masks:
        boundary_target(mask)
    seconds = 10 * (time.perf_counter() - began)
    return Finding(seconds < stated["seconds"], f"{seconds:.1f} s for {stated['masks']}")


@_decides
def _two_edbs_have_50k(e: Evidence, stated: dict[str, Any]) -> Finding:
    found = 2 * count_parameters(EnhancedDilatedBlock(48))
    return Finding(abs(found / stated["parameters"] - 1) < 0.1, f"{found:,}")


@_decides
def _edb_is_depthwise(e: Evidence, stated: dict[str, Any]) -> Finding:
    built, released = sizes((AS_WRITTEN, "ultraseg_108k"))["as_paper_parameters"]
    text = f"{built:,} so built, {released:,} as released, by the paper's count"
    return Finding(bool(abs(built / stated["parameters"] - 1) < 0.01), text)


@_decides_alike
def _two_edbs_see_13(e: Evidence, stated: dict[str, Any]) -> Finding:
    side = side_of(field_of(nn.Sequential(*(EnhancedDilatedBlock(48) for _ in range(2))), 48, 31))
    return Finding(side == stated["field"], f"{side} px")


@_decides_alike
def _fifty_two_on_the_image(e: Evidence, stated: dict[str, Any]) -> Finding:
    model = create_model("ultraseg_108k")
    stages = (model.encoder1, model.encoder2, model.encoder3.conv, model.encoder3.context)
    side = side_of(field_of(without_groupnorm(nn.Sequential(*stages)), 3, IMAGE_SIZE // 2))
    return Finding(side == stated["field"], f"{side} px")


@_decides_alike
def _agf_upsamples(e: Evidence, stated: dict[str, Any]) -> Finding:
    shapes = capture_shapes(create_model("ultraseg_130k"), IMAGE_SIZE)
    stage3, fused = (shapes[name][0][1] for name in ("encoder3", "agf"))
    return Finding(stage3 < fused, f"stage 3 has {stage3} px a side, what AGF puts out {fused}")


@_decides
def _ssa_weight_settles(e: Evidence, stated: dict[str, Any]) -> Finding:
    names = set(e.ledger.loc[e.ledger["model"] == "ultraseg_130k", "run_id"])
    moved, ends = {}, []
    for run in [run for run in study.finished_runs(e.profile) if run.run_id in names]:
        history = study.read_history(run)
        alpha = history.get(f"{WEIGHT_COLUMN}ssa.alpha", pd.Series(dtype=float)).dropna()
        if len(alpha):  # early histories have none
            moved[run.run_id] = np.ptp(alpha.iloc[-len(history) // 10 :])
            ends.append(alpha.iloc[-1])
    if not moved:
        return e.nothing
    most = max(moved.values())
    text = (
        f"over the last tenth of the epochs it moves by {most:.3f} at most, and ends between"
        f" {min(ends):.2f} and {max(ends):.2f}; a learning rate that falls to 0 settles any weight"
    )
    return Finding(None if most < stated["band"] else False, text, tuple(moved))


# --- data -----------------------------------------------------------------------------------------


@_decides
def _independent_frames(e: Evidence, stated: dict[str, Any]) -> Finding:
    frames = pd.Series(sequences("cvc_clinicdb")).value_counts()
    text = (
        f"{frames.sum()} frames of {len(frames)} sequences, {frames.min()} to {frames.max()} each"
    )
    return Finding(bool(frames.max() == 1), text)


@_decides
def _split_keeps_sequences_whole(e: Evidence, stated: dict[str, Any]) -> Finding:
    parts = splits.read_split(splits.split_path("cvc_clinicdb", "random"))
    told = sequences("cvc_clinicdb")
    table = pd.DataFrame({"image_id": [*told], "sequence": [*told.values()]})
    cut = audit.cut_sequences(table, parts)
    whole = len(set(told.values()))
    return Finding(cut.empty, f"of a random split (ours; the paper's is not published) {len(cut)} of {whole} sequences are cut")  # fmt: skip


@_decides
def _sequences_do_not_matter(e: Evidence, stated: dict[str, Any]) -> Finding:
    scores = own_scores(e.ledger)
    runs = _runs(scores, "cvc_clinicdb", "cvc_clinicdb@sequence")
    return _judge(e, falls_by_video(scores), runs, below=stated["drop"])


def falls_by_video(scores: pd.DataFrame) -> pd.DataFrame:
    """Return by how much the Dice on ClinicDB falls where the split keeps every video whole.

    Compared on the frames that both test parts hold. ``scores``: of `own_scores`. Columns: recipe,
    protocol, epochs, then JUDGED, then the numbers of frames, videos and seeds compared; the
    interval (95 %) is over whole videos, the same for both splits, and the seeds of either.
    """
    rows, keys = [], ["recipe", "protocol", "epochs", "model"]
    for key, group in scores.groupby(keys):
        splits_of = dict(list(group.assign(test_set="cvc_clinicdb").groupby("dataset")))
        if not {"cvc_clinicdb", "cvc_clinicdb@sequence"} <= set(splits_of):
            continue
        parts = [dice_by_seed(splits_of[f"cvc_clinicdb{split}"]) for split in ("", "@sequence")]
        shared = parts[0].columns.intersection(parts[1].columns)
        if len(shared):
            seeds, groups = min(map(len, parts)), videos(shared)
            count = len(set(groups))
            name = (
                f"{model_title(key[-1])}, {key[0]} {key[1]} e{key[2]}, seeds: {seeds}, {len(shared)}"
                f" frames of {count} videos that both splits test on, the Dice falls by"
            )
            fall = paired_test(*(part[shared] for part in parts), groups=groups)
            rows.append((*key[:3], name, "cvc_clinicdb", key[3], *fall[:3], seeds >= SEEDS,
                         len(shared), count, seeds))  # fmt: skip
    return pd.DataFrame(rows, columns=[*keys[:3], *JUDGED, "frames", "videos", "seeds"])


def _runs(scores: pd.DataFrame, *datasets: str) -> tuple[str, ...]:
    return tuple(scores.loc[scores["dataset"].isin(datasets), "run_id"].unique())


# --- one model against another --------------------------------------------------------------------


def _text(table: pd.DataFrame) -> str:
    rows = [f"{r.name} {r.difference:.3f} ({r.low:.3f} to {r.high:.3f})"
            for r in table.itertuples(index=False)]  # fmt: skip
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return "; ".join(rows[:3]) + more


def _rest(table: pd.DataFrame) -> str:
    """Return what is told of rows that decide nothing, after those that do."""
    return f"; {TOO_LITTLE}: {_text(table)}" if len(table) else ""


def _judge(
    e: Evidence,
    table: pd.DataFrame,
    runs: Sequence[str],
    above: float = -np.inf,
    below: float = np.inf,
    reach: float = -np.inf,
) -> Finding:
    """Decide "every difference lies between ``above`` and ``below`` and may be as large as ``reach``".

    ``table``: JUDGED, perhaps baseline; rows without ``enough`` (seeds or frames) are told and
    decide nothing. Yes if every interval (95 %) lies inside; no if one lies outside, though
    widened, since of many one may by chance (Bonferroni, by Student's t of the fewest seeds that
    decide).
    """
    if table.empty:
        return e.nothing
    enough = table["enough"].astype(bool)
    judged, rest = table[enough], table[~enough]
    if judged.empty:
        return Finding(None, f"{TOO_LITTLE}: {_text(rest)}", tuple(runs), _covered(rest))
    few = stats.t(2 * (SEEDS - 1))  # of two models whose seeds scatter alike
    wider = few.ppf(1 - 0.025 / len(judged)) / few.ppf(0.975)
    low, high = (judged["difference"] + wider * (judged[end] - judged["difference"])
                 for end in ("low", "high"))  # fmt: skip
    outside = (high < max(above, reach)) | (low > below)
    inside = (judged["low"] > above) & (judged["high"] < below) & (judged["high"] >= reach)
    if outside.any():
        holds, text = False, _text(judged[outside])
    elif inside.all():
        holds, text = True, _text(judged)
    else:
        holds, text = None, f"undecided: {_text(judged[~inside])}"
    return Finding(holds, text + _rest(rest), tuple(runs), _covered(judged))


def _covered(table: pd.DataFrame) -> frozenset[tuple[str, str]]:
    """Return which models were measured on which datasets, whatever the split."""
    sides = [table[side] for side in ("model", "baseline") if side in table]
    return frozenset((d.partition("@")[0], m) for side in sides for d, m in zip(table["dataset"], side, strict=True))  # fmt: skip


def _compared(e: Evidence, pairs: Sequence[tuple[str, str]], datasets: Sequence[str]) -> pd.DataFrame:  # fmt: skip
    """Return `ablation.compare` on some datasets of real images, as `_judge` reads it."""
    table = _settled_pairs(compare(e.ledger, pairs))
    table = table[table["dataset"].str.split("@").str[0].isin(datasets)]
    named = [f"{row.title} − {model_title(row.baseline)}, {dataset_title(row.dataset)}, {row.recipe}"
             f" {row.protocol} e{row.epochs}, seeds: {row.seeds}," for row in table.itertuples()]  # fmt: skip
    return table.assign(name=named, enough=table["seeds"] >= SEEDS)


def _settled_pairs(table: pd.DataFrame) -> pd.DataFrame:
    """Keep, of comparisons that differ in nothing but epochs and seeds, the settled one."""
    alike = ["recipe", "protocol", "dataset", "model", "baseline"]
    return settled(table, [*alike, "tested"] if "tested" in table else alike)


def _runs_of(scores: pd.DataFrame, table: pd.DataFrame) -> tuple[str, ...]:
    """Return the runs behind a table of models, perhaps with baselines; ``dataset``: trained on."""
    sides = [side for side in ("model", "baseline") if side in table]
    wanted = pd.concat([table[[*SETTING, side]].set_axis(GROUP_KEYS, axis=1) for side in sides])
    return tuple(scores.merge(wanted.drop_duplicates(), on=GROUP_KEYS)["run_id"].unique())


def _compare(
    e: Evidence,
    pairs: Sequence[tuple[str, str]],
    datasets: Sequence[str],
    mean: bool = False,
    **bounds: float,
) -> Finding:
    """Decide a claim on the first of each pair less the second, wherever both were trained alike.

    ``mean``: the claim speaks of the mean over the datasets, so that nothing less decides.
    """
    table = _compared(e, pairs, datasets)
    found = _judge(e, table, _runs_of(own_scores(e.ledger), table), **bounds)
    enough = table["enough"].astype(bool)
    if not mean or not enough.any():
        return found
    means = _mean_over(table, datasets)
    if means.empty:
        return found._replace(holds=None, evidence=_text(table[enough]) + _rest(table[~enough]))
    return _judge(e, means, found.runs, **bounds)._replace(covers=found.covers)


def _mean_over(table: pd.DataFrame, datasets: Sequence[str]) -> pd.DataFrame:
    """Average the rows of a pair and recipe over the datasets where all are there."""
    keys, rows = ["title", "model", "baseline", "recipe", "protocol"], []
    for key, part in table[table["dataset"].isin(datasets)].groupby(keys):
        if len(part) == len(datasets):
            mean = part["difference"].mean()
            half = np.sqrt(((part["high"] - part["low"]) ** 2).sum()) / 2 / len(part)
            name = f"{key[0]} − {model_title(key[2])}, mean of {len(part)} datasets, {key[3]} {key[4]}:"
            rows.append(
                (name, "mean", key[1], mean, mean - half, mean + half, part["enough"].all())
            )
    return pd.DataFrame(rows, columns=JUDGED)


# --- levels of Dice -------------------------------------------------------------------------------


def _levels(e: Evidence) -> pd.DataFrame:
    """Return the main table of the settled runs on real images, or no rows."""
    columns = [*GROUP_KEYS, "dice", "batch_pooled_dice"]
    return main_table(settled_runs(e.ledger)) if len(e.ledger) else pd.DataFrame(columns=columns)


def _over_five(levels: pd.DataFrame, models: Sequence[str], score: str) -> pd.DataFrame:
    """Return the mean over the paper's five datasets, where each of them has a run.

    ``levels``: of `_levels`. Rows recipe and protocol, columns models; NaN where a dataset lacks.
    """
    five = sorted(set(paper_table3()["dataset"]) - {"avg"})
    wide = levels.pivot(index=["recipe", "protocol", "model"], columns="dataset", values=score)
    means = wide.reindex(columns=five).mean(axis=1, skipna=False)
    return means.unstack("model").reindex(columns=[*models])


@_decides
def _keeps_most_of_unet(e: Evidence, stated: dict[str, Any]) -> Finding:
    pair = ("ultraseg_130k", "unet_base")
    ledger = e.ledger[e.ledger["model"].isin(pair)]
    if ledger.empty:
        return e.nothing
    alike = main_table(ledger)  # both of one length; of several that both have, the settled one
    groups = alike.groupby(SETTING)
    alike["seeds"] = groups["seeds"].transform("min")
    alike = settled(
        alike[groups["model"].transform("nunique") == 2], ["recipe", "protocol", "dataset", "model"]
    )

    def shares(levels: pd.DataFrame) -> pd.Series:
        means = _over_five(levels, pair, "dice")
        return (means["ultraseg_130k"] / means["unet_base"]).dropna()

    text = "; ".join(f"{' '.join(key)} {value:.1%}" for key, value in shares(alike).items())
    judged = shares(alike[alike["seeds"] >= SEEDS])
    holds = bool((judged > stated["share"]).all()) if len(judged) else None
    covers = _covered(ledger[["dataset", "model"]].drop_duplicates())
    return Finding(holds, text or "no mean over five datasets", covers=covers)


@_decides
def _mean_of_five(e: Evidence, stated: dict[str, Any]) -> Finding:
    levels = _as_the_paper(_levels(e))
    if levels.empty:
        return e.nothing

    def means(levels: pd.DataFrame) -> pd.Series:
        return _over_five(levels, OURS, "batch_pooled_dice").stack().dropna()

    text = ", ".join(f"{MODELS[key[-1]].title} {mean:.3f}" for key, mean in means(levels).items())
    judged = means(levels[levels["seeds"] >= SEEDS])
    near = [abs(mean - stated[key[-1]]) < 0.02 for key, mean in judged.items()]
    holds = True if near and all(near) else None  # our split is another draw
    return Finding(holds, text or "no mean over five datasets", covers=_covered(levels))


def _as_the_paper(levels: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of both UltraSegs that were trained and picked as the paper does."""
    return levels.query("model in @OURS and recipe == 'paper' and protocol == 'released'")


@_decides
def _gap_is_capacity(e: Evidence, stated: dict[str, Any]) -> Finding:
    five = sorted(set(paper_table3()["dataset"]) - {"avg"})
    found = _compare(e, [("unet_base", "ultraseg_130k")], five, above=0)
    paper = paper_table3()
    base = paper[paper["title"] == "UNet-Base"].set_index("dataset")["paper_dice"]
    rows = _levels(e).query(
        "model == 'ultraseg_130k' and recipe == 'strong' and protocol == 'clean'"
    )
    rows = rows[rows["dataset"].isin(base.index)]
    if found.covers or rows.empty:
        return found
    reached = rows["batch_pooled_dice"] >= rows["dataset"].map(base)
    text = "; ".join(
        f"{dataset_title(row.dataset)} {row.batch_pooled_dice:.3f}, printed {base[row.dataset]:.4f}"
        for row in rows.itertuples()
    )
    text = (
        f"UNet-Base is not trained alike; by recipe strong, protocol clean, 130K reaches the Dice"
        f" (per batch of 4) printed for it on {reached.sum()} of {len(rows)} datasets: {text}"
    )
    return Finding(None, text, _runs_of(own_scores(e.ledger), rows))


@_decides
def _paper_can_be_reproduced(e: Evidence, stated: dict[str, Any]) -> Finding:
    rows = _as_the_paper(_levels(e))
    rows = rows.drop(columns="paper_dice", errors="ignore").merge(paper_table5())
    if rows.empty:
        return e.nothing
    near = rows["batch_pooled_dice"] >= rows["paper_dice"] - stated["times"] * rows["paper_sd"]
    enough = rows["seeds"] >= SEEDS
    kinds = {  # below: another split, one sigmoid, so no training of the paper's
        "as printed, or above": enough & near, "below the printed number": enough & ~near,
        "too little to decide": ~enough,
    }  # fmt: skip
    text = "; ".join(
        f"{kind}: {_beside_printed(rows[of])}" for kind, of in kinds.items() if of.any()
    )
    holds = True if enough.any() and near[enough].all() else None
    return Finding(holds, text, _runs_of(own_scores(e.ledger), rows), _covered(rows[enough]))


def _beside_printed(rows: pd.DataFrame) -> str:
    return ", ".join(
        f"{row.title} on {dataset_title(row.dataset)} {row.batch_pooled_dice:.3f}"
        f" (seeds: {row.seeds}; printed {row.paper_dice:.4f} ± {row.paper_sd:.4f})"
        for row in rows.itertuples()
    )


# --- more data, other centers, failures -----------------------------------------------------------


MIXING = ["recipe", "protocol", "test_set"]  # what is alike in the two trainings of `_gains`


def _gains(e: Evidence, model: str) -> dict[tuple[str, str, str], pd.DataFrame]:
    """Return what training on the mixed set adds to the Dice, (seeds, images), by `MIXING`.

    Of several lengths of training the settled one counts, on either side.
    """
    gains = {}
    scores = settled_runs(e.ledger[e.ledger["model"] == model])
    for keys, part in scores.groupby(MIXING):
        sides = [part[part["dataset"] == name] for name in ("mixed", keys[2])]
        if min(map(len, sides)):
            gains[keys] = _in_both(*map(dice_by_seed, sides))
    return gains


def _in_both(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Return a difference on the seeds and the images that both tables have."""
    return (one - other).dropna(how="all").dropna(axis=1)


@_decides
def _mixed_beats_single(e: Evidence, stated: dict[str, Any]) -> Finding:
    ledger = e.ledger[e.ledger["model"] == "ultraseg_130k"]
    ledger = ledger[ledger["dataset"].isin(["mixed", *MIXED]) & ledger["test_set"].isin(EXTERNAL)]
    tested = external.by_tested(ledger)
    table = external.joint_against_single(tested)
    names = [f"{dataset_title(row.tested)}, all − {dataset_title(row.single)} alone, {row.recipe}"
             f" {row.protocol}, seeds: {row.seeds}," for row in table.itertuples()]  # fmt: skip
    table = table.assign(name=names, dataset=table["tested"], enough=table["seeds"] >= SEEDS)
    runs = tuple(external.with_single_sets(tested)["run_id"].unique())
    found = _judge(e, table, runs, above=0)
    absent = [name for name in MIXED if name not in set(table.loc[table["enough"], "single"])]
    if found.holds and absent:
        text = f"not compared with {', '.join(map(dataset_title, absent))} alone: {found.evidence}"
        return found._replace(holds=None, evidence=text)
    return found


@_decides
def _data_helps_small_models_more(e: Evidence, stated: dict[str, Any]) -> Finding:
    small, large = (_gains(e, name) for name in ("ultraseg_130k", "unet_base"))
    rows = []
    for keys in sorted(small.keys() & large.keys()):
        images = small[keys].columns.intersection(large[keys].columns)
        gains = [each[keys][images].to_numpy() for each in (small, large)]
        if all(gain.size for gain in gains):
            seeds = min(map(len, gains))
            name = (
                f"UltraSeg-130K − UNet-Base, {dataset_title(keys[2])}, {keys[0]}, seeds: {seeds},"
            )
            gain = paired_test(*gains, groups=videos(images))
            rows.append((name, keys[2], "ultraseg_130k", *gain[:3], seeds >= SEEDS))
    table = pd.DataFrame(rows, columns=JUDGED).assign(baseline="unet_base")
    used = settled_runs(e.ledger[e.ledger["model"].isin(["ultraseg_130k", "unet_base"])])
    return _judge(e, table, _runs(used, "mixed", *table["dataset"]), above=0)


def _on_unseen(ledger: pd.DataFrame, pair: tuple[str, str]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Compare two models of the mixed set on the unseen datasets (then ``dataset``); and their runs.

    As in Table 6: training on one hospital's images is not what the paper speaks of there.
    """
    ledger = ledger[(ledger["dataset"] == "mixed") & ledger["test_set"].isin(EXTERNAL)]
    table = _settled_pairs(compare_pairs(external.by_tested(ledger), [pair], external.ALIKE))
    names = [f"{dataset_title(row.tested)}, seeds: {row.seeds}," for row in table.itertuples()]
    judged = table.assign(name=names, dataset=table["tested"], enough=table["seeds"] >= SEEDS)
    return judged, _runs_of(ledger, table)


@_decides
def _attention_helps_outside(e: Evidence, stated: dict[str, Any]) -> Finding:
    return _judge(e, *_on_unseen(e.ledger, ("ultraseg_130k", "ultraseg_108k")), above=0)


@_decides
def _external_gaps(e: Evidence, stated: dict[str, Any]) -> Finding:
    table, runs = _on_unseen(e.ledger, ("unet_base", "ultraseg_130k"))
    for end in DIFFERENCE:
        table[end] -= table["dataset"].map(stated)
    table["name"] = "more than stated, " + table["name"].astype(str)
    return _judge(e, table, runs, above=-0.01, below=0.01)


def _judge_hard(
    e: Evidence,
    kinds: Sequence[str],
    what: str,
    measure: Callable[[pd.DataFrame, pd.Series], Sequence[float]],
    **bounds: float,
) -> Finding:
    """Decide what section 4.8 says of frames with ``several`` polyps, and of the ``large`` quarter.

    UltraSeg-130K of the mixed set, longest training of all recipes, on the unseen sets.
    ``measure``: from a kind's frames with all plain ones, and which are of the kind, to a number
    with its interval; ``what`` names it.
    """
    wanted = (
        "model == 'ultraseg_130k' and dataset == 'mixed' and test_set in @EXTERNAL and area > 0"
    )
    scores = e.ledger.query(wanted)
    scores = scores[scores["epochs"] == scores["epochs"].max()]
    rows, runs = [], tuple(scores["run_id"].unique())
    keys = ["recipe", "protocol", "seed", "test_set"]
    for (recipe, protocol, seed, tested), group in scores.groupby(keys):
        several = group["n_polyps"] > 1
        large = ~several & (group["area"] >= group["area"].quantile(0.75))
        for kind, chosen in (("several", several), ("large", large)):
            if kind in kinds and chosen.sum() > 1:
                name = (
                    f"{dataset_title(tested)}, {recipe} {protocol}, seed {seed}, {kind}"
                    f" ({chosen.sum()} frames):"
                )
                found = measure(group[chosen | ~(several | large)], chosen)
                told = videos((tested, image_id) for image_id in group.loc[chosen, "image_id"])
                alone = len(set(told)) if told else chosen.sum()
                rows.append((name, tested, "ultraseg_130k", *found, alone >= FRAMES))
    found = _judge(e, pd.DataFrame(rows, columns=JUDGED), runs, **bounds)
    return found._replace(evidence=f"{what}: {found.evidence}") if rows else found


def _drawn_worse(e: Evidence, kind: str) -> Finding:
    def drop(frames: pd.DataFrame, hard: pd.Series) -> tuple[float, float, float]:
        a, b = frames.loc[hard, "dice"], frames.loc[~hard, "dice"]
        return a.mean() - b.mean(), *stats.ttest_ind(a, b, equal_var=False).confidence_interval()

    return _judge_hard(e, [kind], "Dice less that of the other frames", drop, below=0)


@_decides
def _several_are_coarse(e: Evidence, stated: dict[str, Any]) -> Finding:
    return _drawn_worse(e, "several")


@_decides
def _large_are_coarse(e: Evidence, stated: dict[str, Any]) -> Finding:
    found = _drawn_worse(e, "large")
    if found.holds is False:
        told = f"higher, but Dice favours large polyps: {found.evidence}"
        return found._replace(holds=None, evidence=told)
    return found


@_decides
def _large_or_many_are_found(e: Evidence, stated: dict[str, Any]) -> Finding:
    def share(frames: pd.DataFrame, hard: pd.Series) -> tuple[float, float, float]:
        seen = frames.loc[hard, "detected"].astype(bool)
        test = stats.binomtest(int(seen.sum()), len(seen))
        return seen.mean(), *test.proportion_ci(method="wilson")

    kinds = ("several", "large")
    return _judge_hard(e, kinds, "share of frames found", share, above=stated["share"])


# --- the table ------------------------------------------------------------------------------------


def read_claims() -> list[dict[str, Any]]:
    """Return the claims of ``data/paper/claims.yaml``, each with its ``stated`` numbers.

    ``needs``: the datasets and models without which a claim cannot hold; of a ``compare`` they are
    its own.
    """
    claims = yaml.safe_load((PAPER / "claims.yaml").read_text(encoding="utf-8"))
    for claim in claims:
        claim.setdefault("stated", {})
        if rule := claim.get("compare"):
            models = list(dict.fromkeys(chain(*rule["pairs"])))
            claim["needs"] = {"datasets": rule["datasets"], "models": models}
    return claims


def claims_table(profile: str) -> pd.DataFrame:
    """Decide every claim: by the paper's own tables, and by the evidence of a profile.

    Columns: id, section, claim, kind (number, description or conclusion), printed and ours
    (verdicts, see ``VERDICTS``), printed_evidence, evidence, printed_criterion, criterion, number
    and notebook (its file name), runs (of the ledger). Raises ValueError for an unknown profile.
    """
    study.load_profile(profile)  # raises for an unknown name
    evidence = Evidence(profile)
    files = {number(path): path.name for path in find_notebooks()}
    return pd.DataFrame([_row(claim, evidence, files) for claim in read_claims()])


def _by_us(claim: dict[str, Any], e: Evidence) -> Finding:
    if "ours" not in claim:
        return Finding(None, NOT_ASKED)
    name, stated = claim["id"], claim["stated"]
    if name in CHECKS:
        found = CHECKS[name](e, stated)
    elif name in printed.COUNTED:
        found = printed.COUNTED[name](_counts(), stated)
    else:
        found = _compare(e, **claim["compare"])
    return _so_far(found, claim["needs"]) if found.covers and "needs" in claim else found


def _by_paper(claim: dict[str, Any]) -> Finding:
    if claim["id"] in printed.CHECKS:
        return printed.CHECKS[claim["id"]](claim["stated"])
    return printed.compare(**claim["compare"])


def _so_far(found: Finding, needs: dict[str, list[str]]) -> Finding:
    """Let a claim hold only where all that it speaks of was measured; say how much was."""
    datasets, models = needs["datasets"], needs["models"]
    if found.covers >= set(product(datasets, models)):
        return found
    seen = [name for name in datasets if name in {d for d, _ in found.covers}]
    known = len(set(models) & {model for _, model in found.covers})
    verbs = {True: "holds on", False: "decided on", None: "measured on"}
    verb = "begun on" if found.evidence.startswith(TOO_LITTLE) else verbs[found.holds]
    titles = ", ".join(map(dataset_title, seen))
    one = len(datasets) == 1
    text = f"{verb} " + (titles if one else f"{len(seen)} of {len(datasets)} datasets ({titles})")
    text += f", {known} of {len(models)} models" if len(models) > 1 else ""
    holds = None if found.holds else found.holds
    return found._replace(holds=holds, evidence=f"{text}: {found.evidence}")


def _row(claim: dict[str, Any], evidence: Evidence, files: dict[int, str]) -> dict[str, Any]:
    name = claim["id"]
    by_paper = _by_paper(claim) if "printed" in claim else None
    ours = _by_us(claim, evidence)
    return {
        "id": name,
        "section": claim["section"],
        "claim": claim["claim"],
        "kind": claim["kind"],
        "printed": by_paper.verdict if by_paper else NOT_ASKED,
        "ours": ours.verdict if "ours" in claim else NOT_ASKED,
        "printed_evidence": by_paper.evidence if by_paper else "",
        "evidence": ours.evidence,
        "printed_criterion": claim.get("printed", ""),
        "criterion": claim.get("ours", ""),
        "number": claim["notebook"],
        "notebook": files.get(claim["notebook"], ""),
        "runs": ", ".join(ours.runs),
    }


def read_faults() -> pd.DataFrame:
    """Return the gallery of ``data/paper/faults.yaml``: fault, effect, seen, notebook (file name), test."""
    faults = pd.DataFrame(yaml.safe_load((PAPER / "faults.yaml").read_text(encoding="utf-8")))
    files = {number(path): path.name for path in find_notebooks()}
    return faults.assign(notebook=faults["notebook"].map(files))


JUDGES = {"printed": "the paper's own tables", "ours": "our evidence", "record": "committed record"}


def tally(table: pd.DataFrame) -> pd.DataFrame:
    """Count the verdicts: rows verdicts, columns the judges (see `JUDGES`) that the table has."""
    counts = {title: table[name].value_counts() for name, title in JUDGES.items() if name in table}
    return pd.DataFrame(counts).reindex([*VERDICTS, NOT_ASKED]).fillna(0).astype(int)


def card(row: pd.Series) -> str:
    """Return one claim with all that speaks for and against it, as Markdown."""
    lines = [f"### {row['claim']}", f"{row['section']} of the paper"]
    if row["printed"] != NOT_ASKED:
        lines.append(f"**The paper's own tables: {row['printed']}.** Asked: {row['printed_criterion']}. Found: {row['printed_evidence']}.")  # fmt: skip
    asked = f" Asked: {row['criterion']}." if row["criterion"] else ""
    lines.append(f"**Our evidence: {row['ours']}.**{asked} Found: {row['evidence']}.")
    if row["notebook"]:
        lines.append(f"Made in [{row['notebook'].removesuffix('.ipynb')}]({row['notebook']}).")
    if row["runs"]:
        lines.append("Runs: " + ", ".join(f"`{name}`" for name in row["runs"].split(", ")))
    return "\n\n".join(lines)


MARKS = {  # of a verdict
    HOLDS: ("✓", PALETTE[0]), FAILS: ("✗", PALETTE[3]), UNDECIDED: ("?", "0.25"),
    NOT_MEASURED: ("○", "0.6"), NOT_ASKED: ("–", "0.6"),
}  # fmt: skip


def plot_claims(table: pd.DataFrame, title: str) -> Figure:
    """Show the verdict on each claim (a row of `claims_table`) by each judge that the table has."""
    judges = [name for name in JUDGES if name in table]
    figure, axes = plt.subplots(figsize=(15, 1.9 + 0.52 * len(table)))
    for line, row in enumerate(table.itertuples()):
        for place, judge in enumerate(judges):
            mark, colour = MARKS[getattr(row, judge)]
            axes.text(place, line, mark, color=colour, size=26, weight="bold", ha="center",
                      va="center_baseline")  # fmt: skip
        axes.axhline(line + 0.5, color="0.9", lw=1)
    axes.set(xlim=(-0.5, len(judges) - 0.5), ylim=(len(table) - 0.5, -0.5),
             yticks=range(len(table)), yticklabels=table["claim"], xticks=range(len(judges)))  # fmt: skip
    axes.set_xticklabels([textwrap.fill(JUDGES[name], 13) for name in judges])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    named = "   ".join(
        f"{mark} {verdict}" for verdict, (mark, _) in MARKS.items() if mark != verdict
    )
    figure.suptitle(f"{title}\n{named}   – not asked")
    return figure
