"""What the paper claims, what its tables say of it, what our files say of it.

A function below decides by our evidence, under the id of its claim in ``claims.yaml``; ``printed.py``
decides by the paper's own tables. Generated images speak of no patient: Dice on them decides nothing.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
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
from ultraseg_lib.data import audit, splits
from ultraseg_lib.edges import boundary_target
from ultraseg_lib.models import MODELS, create_model
from ultraseg_lib.models.complexity import count_parameters, influence_map, receptive_field
from ultraseg_lib.models.ultraseg import EnhancedDilatedBlock
from ultraseg_lib.notebooks import find_notebooks, number
from ultraseg_lib.paths import PAPER, ROOT, outputs_dir
from ultraseg_lib.report import external, printed
from ultraseg_lib.report.ablation import (
    DIFFERENCE,
    FEATURES,
    SETTING,
    compare,
    kept_weights,
    own_scores,
    paper_table5,
    sizes,
)
from ultraseg_lib.report.architecture_figures import (
    capture_shapes,
    field_of,
    side_of,
    without_groupnorm,
)
from ultraseg_lib.report.figures import PALETTE, dataset_title
from ultraseg_lib.report.printed import Finding
from ultraseg_lib.report.tables import GROUP_KEYS, longest_runs, main_table, paper_table3
from ultraseg_lib.statistics import paired_test
from ultraseg_lib.variants import model_title

VERDICTS = {True: "holds", False: "fails", None: "cannot be tested here"}
NOT_ASKED = "–"  # the paper's tables have no such number
OURS = ("ultraseg_108k", "ultraseg_130k")
AS_WRITTEN = "ultraseg_108k+edb_as_written"
UNETS = ("unet_base", "unet_medium", "unet_light", "unet_small", "unet_tiny")
EXTERNAL = ("etis_larib", "bkai_igh")
SEVERAL_CENTERS = ("polypgen", "polypdb", "mixed")
SINGLE_CENTER = ("kvasir_seg", "cvc_clinicdb", "cvc_clinicdb@sequence")
IMAGE_SIZE = 256  # of the paper, for fields and speed

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
        return ledger[~ledger["dataset"].astype(str).str.startswith("synthetic")]

    @cached_property
    def bench(self) -> pd.DataFrame:
        """Return plain PyTorch on one core: columns model, parameters, fps; empty without a benchmark."""
        columns = ["model", "backend", "threads", "median_ms"]
        rows = pd.DataFrame(_read_bench(self.profile), columns=columns)
        rows = rows[(rows["backend"] == "eager") & (rows["threads"] == 1)]
        counts = rows["model"].map(_parameters())
        return rows.assign(fps=1000 / rows["median_ms"], parameters=counts)

    def parameters(self, model: str) -> int:
        """Return how many parameters a model has, all counted."""
        return _parameters()[model]

    @property
    def nothing(self) -> Finding:
        """Return the finding where no run on real images can decide."""
        reason = "no such run on real images" if len(self.ledger) else "generated images only"
        return Finding(None, f"{reason} in the {self.profile} ledger")


@cache
def _parameters() -> dict[str, int]:
    with torch.device("meta"):  # shapes are enough to count
        return {name: count_parameters(create_model(name)) for name in MODELS}


@cache
def _counts() -> pd.DataFrame:
    """Return `ablation.sizes` of the models whose operations a claim speaks of, by name."""
    names = ("lbunet", "ultraseg_108k_st", "ultraseg_108k", "ultraseg_130k", AS_WRITTEN)
    return sizes(names).set_index("model")


def _read_bench(profile: str) -> list[dict[str, Any]]:
    """Return the rows of a profile's benchmark, else of the committed one, at the paper's size."""
    for folder in dict.fromkeys((profile, "reference")):
        path = outputs_dir(folder) / "bench" / "bench.json"
        if path.exists():
            bench = json.loads(path.read_text(encoding="utf-8"))
            if bench.get("protocol", {}).get("image_size", IMAGE_SIZE) == IMAGE_SIZE:
                return bench["rows"]
    return []


# --- size and speed -------------------------------------------------------------------------------


@_decides
def _share_of_parameters(e: Evidence, stated: dict[str, Any]) -> Finding:
    share = e.parameters("ultraseg_130k") / e.parameters("unet_base")
    return Finding(round(share, 3) == stated["share"], f"{share:.2%} of UNet-Base")


@_decides
def _named_sizes(e: Evidence, stated: dict[str, Any]) -> Finding:
    counts = {name: e.parameters(name) for name in OURS}
    right = all(abs(counts[name] / stated[name] - 1) < 0.01 for name in OURS)
    return Finding(right, " and ".join(f"{count:,}" for count in counts.values()))


@_decides
def _below_the_limit(e: Evidence, stated: dict[str, Any]) -> Finding:
    largest = max(e.parameters(name) for name in OURS)
    return Finding(largest < stated["limit"], f"at most {largest:,}")


def _speeds(rows: pd.DataFrame) -> str:
    return ", ".join(f"{MODELS[row.model].title} {row.fps:.0f} a second" for row in rows.itertuples())  # fmt: skip


def _fast_enough(e: Evidence, rows: pd.DataFrame, fps: float) -> Finding:
    if rows.empty:
        return Finding(None, "not benchmarked")
    return Finding(bool((rows["fps"] >= fps).all()), _speeds(rows))


def _our_frames_a_second(e: Evidence, stated: dict[str, Any]) -> Finding:
    return _fast_enough(e, e.bench[e.bench["model"].isin(OURS)], stated["fps"])


CHECKS["ninety_fps"] = CHECKS["thirty_fps"] = _our_frames_a_second


@_decides
def _three_hundred_k_is_real_time(e: Evidence, stated: dict[str, Any]) -> Finding:
    rows = e.bench[e.bench["parameters"].between(stated["low"], stated["high"])]
    return _fast_enough(e, rows, stated["fps"])


@_decides
def _limit_from_thirty_fps(e: Evidence, stated: dict[str, Any]) -> Finding:
    large = e.bench[e.bench["parameters"] >= stated["limit"]]
    if large.empty:
        return Finding(None, "no model above the limit is benchmarked")
    fast = large[large["fps"] >= stated["fps"]]
    return Finding(fast.empty, "fast all the same: " + (_speeds(fast) or "none"))


@_decides
def _negligible_parameters(e: Evidence, stated: dict[str, Any]) -> Finding:
    added = e.parameters("ultraseg_130k") - e.parameters("ultraseg_108k")
    return Finding(added < stated["parameters"], f"{added:,} more")


@_decides
def _student_is_300_times_smaller(e: Evidence, stated: dict[str, Any]) -> Finding:
    times = [e.parameters("unet_base") / e.parameters(name) for name in OURS]
    return Finding(min(times) > stated["times"], " and ".join(f"{t:.0f} times" for t in times))


@_decides
def _flops_do_not_grow(e: Evidence, stated: dict[str, Any]) -> Finding:
    macs = _counts()["macs"]
    growth = macs["ultraseg_130k"] / macs["lbunet"] - 1
    return Finding(bool(growth < stated["growth"]), f"{growth:+.0%}")


# --- architecture and targets ---------------------------------------------------------------------


@_decides_alike
def _larger_field(e: Evidence, stated: dict[str, Any]) -> Finding:
    fields: dict[str, list[int]] = {"lbunet": [], "ultraseg_108k": []}
    with torch.random.fork_rng(devices=[]):
        for name, seed in [(name, seed) for name in fields for seed in range(3)]:
            torch.manual_seed(seed)
            fields[name].append(receptive_field(influence_map(create_model(name), images=1)))
    larger = min(fields["ultraseg_108k"]) > max(fields["lbunet"])
    text = "; ".join(f"{MODELS[n].title} {min(v)} to {max(v)} px" for n, v in fields.items())
    return Finding(larger, text)


@_decides_alike
def _canny_is_fast(e: Evidence, stated: dict[str, Any]) -> Finding:
    rng, tried = np.random.default_rng(0), stated["masks"] // 10
    places = rng.integers(60, 190, (tried, 2)).tolist()
    blank = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    masks = [cv2.circle(blank.copy(), place, 40, 255, -1) for place in places]
    began = time.perf_counter()
    targets = [boundary_target(mask) for mask in masks]
    seconds = 10 * (time.perf_counter() - began)
    same = all(np.array_equal(t, boundary_target(m)) for t, m in zip(targets, masks, strict=True))
    return Finding(same and seconds < stated["seconds"], f"{seconds:.1f} s for {stated['masks']}")


@_decides
def _two_edbs_have_50k(e: Evidence, stated: dict[str, Any]) -> Finding:
    found = 2 * count_parameters(EnhancedDilatedBlock(48))
    return Finding(abs(found / stated["parameters"] - 1) < 0.1, f"{found:,}")


@_decides
def _edbs_save_flops(e: Evidence, stated: dict[str, Any]) -> Finding:
    flops = _counts()["as_paper_flops"]
    saved = flops["ultraseg_108k_st"] - flops["ultraseg_108k"]
    return Finding(round(saved, -7) == stated["flops"], f"{saved / 1e9:.3f} G")


@_decides
def _edb_is_depthwise(e: Evidence, stated: dict[str, Any]) -> Finding:
    counts = _counts()["as_paper_parameters"]
    built, released = counts[AS_WRITTEN], counts["ultraseg_108k"]
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
    stage3, stage4, fused = (shapes[name][0] for name in ("encoder3", "encoder4", "agf"))
    right = stage3[1] < fused[1] and stage4[0] == stated["channels"]
    text = f"stage 3 has {stage3[1]} px a side, AGF {fused[1]}; stage 4 has {stage4[0]} channels"
    return Finding(right, text)


@_decides
def _ssa_weight_settles(e: Evidence, stated: dict[str, Any]) -> Finding:
    names = set(e.ledger.loc[e.ledger["model"] == "ultraseg_130k", "run_id"])
    runs = [run for run in study.finished_runs(e.profile) if run.run_id in names]
    kept = kept_weights(run for run in runs if "images" in study.read_config(run))
    alpha = kept[kept["weight"] == "ssa.alpha"]
    if alpha.empty:
        return e.nothing
    moved = (alpha["kept"] - alpha["start"]).abs() / alpha["coin_tosses"]
    text = f"{alpha['start'].iloc[0]:.2f} to {alpha['kept'].min():.2f}–{alpha['kept'].max():.2f}"
    text += f", {moved.min():.1f} to {moved.max():.1f} random walks"
    return Finding(bool((moved > stated["times"]).all()), text, tuple(alpha["run_id"]))


# --- data -----------------------------------------------------------------------------------------


def _sequences() -> pd.DataFrame:
    table = pd.read_csv(ROOT / "data" / "sequences" / "cvc_clinicdb.csv", dtype=str)
    return table.rename(columns={"frame": "image_id"})


@_decides
def _independent_frames(e: Evidence, stated: dict[str, Any]) -> Finding:
    frames = _sequences()["sequence"].value_counts()
    text = (
        f"{frames.sum()} frames of {len(frames)} sequences, {frames.min()} to {frames.max()} each"
    )
    return Finding(bool(frames.max() == 1), text)


@_decides
def _split_is_unbiased(e: Evidence, stated: dict[str, Any]) -> Finding:
    parts = splits.read_split(splits.split_path("cvc_clinicdb", "random"))
    cut = audit.cut_sequences(_sequences(), parts)
    return Finding(cut.empty, f"{len(cut)} of {_sequences()['sequence'].nunique()} sequences are cut")  # fmt: skip


@_decides
def _sequences_do_not_matter(e: Evidence, stated: dict[str, Any]) -> Finding:
    scores, drops = own_scores(e.ledger), []
    keys = ["recipe", "protocol", "epochs", "model"]
    for _, group in scores.groupby(keys):
        dice = [group[group["dataset"] == f"cvc_clinicdb{s}"]["dice"] for s in ("", "@sequence")]
        if min(map(len, dice)):
            drops.append((MODELS[group["model"].iloc[0]].title, *_welch(*dice)))
    table = pd.DataFrame(drops, columns=["name", "difference", "low", "high"])
    return _all_below(e, table, stated["drop"], _runs(scores, "cvc_clinicdb", "cvc_clinicdb@sequence"))  # fmt: skip


def _welch(a: pd.Series, b: pd.Series) -> tuple[float, float, float]:
    """Return the difference of two means and its 95 % interval (Welch)."""
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    return a.mean() - b.mean(), interval.low, interval.high


def _runs(scores: pd.DataFrame, *datasets: str) -> tuple[str, ...]:
    return tuple(scores.loc[scores["dataset"].isin(datasets), "run_id"].unique())


# --- one model against another --------------------------------------------------------------------


def _text(table: pd.DataFrame) -> str:
    rows = [f"{r.name} {r.difference:+.3f} ({r.low:+.3f} to {r.high:+.3f})"
            for r in table.itertuples(index=False)]  # fmt: skip
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return "; ".join(rows[:3]) + more


def _all_above(e: Evidence, table: pd.DataFrame, bound: float, runs: Sequence[str] = ()) -> Finding:
    """Decide "every difference is above ``bound``": no if an interval is below, yes if all are above.

    ``table``: name, difference, low, high. An interval that holds the bound decides nothing.
    """
    if table.empty:
        return e.nothing
    if (table["high"] < bound).any():
        return Finding(False, _text(table[table["high"] < bound]), tuple(runs))
    above = bool((table["low"] > bound).all())
    open_rows = table[table["low"] <= bound]
    text = _text(table) if above else f"undecided, the interval holds {bound:g}: {_text(open_rows)}"
    return Finding(True if above else None, text, tuple(runs))


def _all_below(e: Evidence, table: pd.DataFrame, bound: float, runs: Sequence[str]) -> Finding:
    """Decide "every difference is below ``bound``", as `_all_above` does."""
    mirrored = -table[["difference", "low", "high"]].rename(columns={"low": "high", "high": "low"})
    found = _all_above(e, mirrored.assign(name=table["name"]), -bound, runs)
    undecided = f"undecided, the interval holds {bound:g}: " if found.holds is None else ""
    return found if table.empty else found._replace(evidence=undecided + _text(table))


def _compared(e: Evidence, pairs: list[tuple[str, str]], datasets: Sequence[str] = ()) -> pd.DataFrame:  # fmt: skip
    """Return `ablation.compare` on real images with a name a row, in some datasets (default: all)."""
    table = compare(e.ledger, pairs)
    table = table[table["dataset"].isin(datasets)] if datasets else table
    named = [f"{row.title} − {model_title(row.baseline)}, {dataset_title(row.dataset)},"
             f" {row.recipe} {row.protocol} e{row.epochs}:" for row in table.itertuples()]  # fmt: skip
    return table.assign(name=named)


def _runs_of(e: Evidence, table: pd.DataFrame) -> tuple[str, ...]:
    """Return the runs that a table of `_compared` speaks of."""
    scores = own_scores(e.ledger)
    sides = [table.rename(columns={side: "model_"}) for side in ("model", "baseline")]
    wanted = pd.concat([side[[*SETTING, "model_"]] for side in sides]).drop_duplicates()
    found = scores.merge(wanted.rename(columns={"model_": "model"}), on=[*SETTING, "model"])
    return tuple(found["run_id"].unique())


def _beats(
    e: Evidence, pairs: list[tuple[str, str]], datasets: Sequence[str] = (), bound: float = 0.0
) -> Finding:
    """Decide whether the first of each pair beats the second wherever both were trained alike."""
    table = _compared(e, pairs, datasets)
    return _all_above(e, table, bound, _runs_of(e, table))


def _beats_by(
    e: Evidence, pair: tuple[str, str], stated: float, datasets: Sequence[str] = ()
) -> Finding:
    """Decide whether a lead is there and may be as large as stated."""
    found, table = _beats(e, [pair], datasets), _compared(e, [pair], datasets)
    if found.holds and (table["high"] < stated).any():
        short = table[table["high"] < stated]
        return Finding(False, f"smaller than {stated:g}: {_text(short)}", found.runs)
    return found


@_decides
def _best_below_the_limit(e: Evidence, stated: dict[str, Any]) -> Finding:
    small = [name for name in MODELS if e.parameters(name) < stated["limit"]]
    others = [name for name in small if not name.startswith("ultraseg")]
    return _beats(e, [("ultraseg_130k", name) for name in others])


@_decides
def _clear_margin_everywhere(e: Evidence, stated: dict[str, Any]) -> Finding:
    return _beats(e, [("ultraseg_130k", name) for name in ("lbunet", "unet_tiny")])


@_decides
def _beats_unet_medium(e: Evidence, stated: dict[str, Any]) -> Finding:
    return _beats(e, [("ultraseg_108k", "unet_medium")], SINGLE_CENTER)


@_decides
def _significantly_beats_unet_medium(e: Evidence, stated: dict[str, Any]) -> Finding:
    return _beats(e, [("ultraseg_130k", "unet_medium")], SEVERAL_CENTERS)


@_decides
def _beats_unet_on_instruments(e: Evidence, stated: dict[str, Any]) -> Finding:
    return _beats(e, [(name, "unet_base") for name in OURS], ("kvasir_instrument",))


@_decides
def _little_loss_on_single_centers(e: Evidence, stated: dict[str, Any]) -> Finding:
    pair = ("ultraseg_130k", "ultraseg_108k")
    return _beats(e, [pair], SINGLE_CENTER, -stated["margin"])


@_decides
def _gain_on_several_centers(e: Evidence, stated: dict[str, Any]) -> Finding:
    return _beats(e, [("ultraseg_130k", "ultraseg_108k")], SEVERAL_CENTERS)


@_decides
def _beats_lbunet(e: Evidence, stated: dict[str, Any]) -> Finding:
    return _beats_by(e, ("ultraseg_130k", "lbunet"), stated["difference"])


@_decides
def _lbunet_beats_unet_tiny(e: Evidence, stated: dict[str, Any]) -> Finding:
    return _beats(e, [("lbunet", "unet_tiny")])


@_decides
def _tweaks_clearly_gain(e: Evidence, stated: dict[str, Any]) -> Finding:
    return _beats(e, [("ultraseg_108k_st", "lbunet")])


@_decides
def _edbs_gain(e: Evidence, stated: dict[str, Any]) -> Finding:
    return _beats_by(e, ("ultraseg_108k", "ultraseg_108k_st"), stated["difference"], ("kvasir_seg",))  # fmt: skip


@_decides
def _learned_fusion(e: Evidence, stated: dict[str, Any]) -> Finding:
    return _beats(e, [("ultraseg_130k", "ultraseg_130k+fusion_fixed")])


@_decides
def _canny_costs_nothing(e: Evidence, stated: dict[str, Any]) -> Finding:
    pair = ("ultraseg_130k", "ultraseg_130k+morphological_edges")
    above = _beats(e, [pair], bound=-stated["margin"])
    table = _compared(e, [pair])
    below = _all_below(e, table, stated["margin"], above.runs)
    holds = above.holds and below.holds if False not in (above.holds, below.holds) else False
    return above if table.empty else Finding(holds, _text(table), above.runs)


@_decides
def _distillation_does_not_help(e: Evidence, stated: dict[str, Any]) -> Finding:
    table = _compared(e, [(f"{name}+{taught}", name) for name in OURS for taught in FEATURES])
    if table.empty:
        return e.nothing
    gains = table[table["low"] > 0]
    return Finding(gains.empty, _text(table if gains.empty else gains), _runs_of(e, table))


# --- levels of Dice -------------------------------------------------------------------------------


def _levels(e: Evidence) -> pd.DataFrame:
    """Return the main table of the runs on real images, or no rows."""
    return main_table(e.ledger) if len(e.ledger) else pd.DataFrame(columns=[*GROUP_KEYS, "dice"])


@_decides
def _keeps_most_of_unet(e: Evidence, stated: dict[str, Any]) -> Finding:
    wide = _levels(e).pivot_table(index=SETTING, columns="model", values="dice", aggfunc="mean")
    if not {"ultraseg_130k", "unet_base"} <= set(wide):
        return e.nothing
    share = (wide["ultraseg_130k"] / wide["unet_base"]).dropna()
    if share.empty:
        return e.nothing
    text = "; ".join(f"{' '.join(map(str, key))} {value:.1%}" for key, value in share.items())
    return Finding(bool((share > stated["share"]).all()), text)


@_decides
def _mean_of_five(e: Evidence, stated: dict[str, Any]) -> Finding:
    five = set(paper_table3()["dataset"]) - {"avg"}
    levels = _levels(e)
    levels = levels[levels["dataset"].isin(five) & levels["model"].isin(OURS)]
    found = set(levels["dataset"])
    if found != five:
        return Finding(None, f"{len(found)} of {len(five)} datasets in the ledger")
    means = levels.groupby(["recipe", "protocol", "epochs", "model"])["batch_pooled_dice"].mean()
    near = [abs(mean - stated[key[-1]]) < 0.02 for key, mean in means.items()]
    return Finding(all(near), ", ".join(f"{mean:.3f}" for mean in means))


@_decides
def _dice_falls_with_size(e: Evidence, stated: dict[str, Any]) -> Finding:
    levels, texts, falls = _levels(e), [], []
    for _, group in levels[levels["model"].isin(UNETS)].groupby(SETTING):
        dice = group.set_index("model")["dice"].reindex(UNETS).dropna()
        if len(dice) > 2:
            falls.append(dice.is_monotonic_decreasing)
            texts.append(" > ".join(f"{value:.3f}" for value in dice))
    return Finding(all(falls), "; ".join(texts)) if falls else e.nothing


@_decides
def _gap_is_capacity(e: Evidence, stated: dict[str, Any]) -> Finding:
    paper = paper_table3()
    base = paper[paper["title"] == "UNet-Base"].set_index("dataset")["paper_dice"]
    rows = _levels(e)
    rows = rows[rows["model"].isin(OURS) & rows["dataset"].isin(base.index)]
    if rows.empty:
        return e.nothing
    rows = rows.assign(base=rows["dataset"].map(base))
    reached = rows[rows["batch_pooled_dice"] >= rows["base"]]
    shown = rows if reached.empty else reached
    text = "; ".join(
        f"{row.title}, {dataset_title(row.dataset)}, {row.recipe}: {row.batch_pooled_dice:.3f} per"
        f" batch of 4, {row.dice:.3f} ({row.dice_low:.3f} to {row.dice_high:.3f}) per image,"
        f" UNet-Base {row.base:.4f}" for row in shown.itertuples()
    )  # fmt: skip
    return Finding(None if reached.empty else False, text, _runs_in(e, shown))


def _runs_in(e: Evidence, levels: pd.DataFrame) -> tuple[str, ...]:
    """Return the runs behind rows of the main table."""
    return tuple(own_scores(e.ledger).merge(levels[GROUP_KEYS], on=GROUP_KEYS)["run_id"].unique())


@_decides
def _paper_can_be_reproduced(e: Evidence, stated: dict[str, Any]) -> Finding:
    rows = _levels(e)
    rows = rows[rows["model"].isin(OURS)]
    rows = rows[(rows["recipe"] == "paper") & (rows["protocol"] == "released")]
    rows = rows.drop(columns="paper_dice", errors="ignore").merge(paper_table5())
    if rows.empty:
        return e.nothing
    near = rows["batch_pooled_dice"] >= rows["paper_dice"] - stated["times"] * rows["paper_sd"]
    text = "; ".join(
        f"{row.title}, {dataset_title(row.dataset)}: {row.batch_pooled_dice:.3f}, printed"
        f" {row.paper_dice:.4f}" for row in rows.itertuples()
    )  # fmt: skip
    return Finding(bool(near.all()), text, _runs_in(e, rows))


# --- more data, other centers, failures -----------------------------------------------------------


MIXING = ["recipe", "protocol", "test_set"]  # what is alike in the two trainings of `_mixing`


def _mixing(e: Evidence, model: str) -> pd.DataFrame:
    """Return what training on the mixed set changes on each test set, image by image.

    Of several lengths of training the longest counts, on either side.
    """
    rows = []
    scores = longest_runs(e.ledger[e.ledger["model"] == model])
    for keys, part in scores.groupby(MIXING):
        sides = {"mixed": part["dataset"] == "mixed", "single": part["dataset"] == keys[2]}
        dice = {name: part[side].groupby("image_id")["dice"].mean() for name, side in sides.items()}
        both = pd.concat(dice, axis=1).dropna()
        if len(both) > 1:
            test = paired_test(both["mixed"].to_numpy(), both["single"].to_numpy())
            name = f"{MODELS[model].title}, {dataset_title(keys[2])}, {keys[0]}:"
            rows.append((*keys, name, *test[:3]))
    return pd.DataFrame(rows, columns=[*MIXING, "name", *DIFFERENCE[:3]])


@_decides
def _mixed_beats_single(e: Evidence, stated: dict[str, Any]) -> Finding:
    table = _mixing(e, "ultraseg_130k")
    runs = e.ledger[e.ledger["model"] == "ultraseg_130k"]
    return _all_above(e, table, 0.0, _runs(runs, "mixed", *table["test_set"]))


@_decides
def _data_helps_small_models_more(e: Evidence, stated: dict[str, Any]) -> Finding:
    gains = [_mixing(e, name).set_index(MIXING)["difference"] for name in ("ultraseg_130k", "unet_base")]  # fmt: skip
    both = pd.concat(gains, axis=1, keys=["small", "large"]).dropna()
    if both.empty:
        return e.nothing
    text = "; ".join(f"{dataset_title(keys[2])}, {keys[0]}: {row.small:+.3f} and {row.large:+.3f}" for keys, row in both.iterrows())  # fmt: skip
    return Finding(bool((both["small"] > both["large"]).all()), text)


def _on_unseen(e: Evidence, pair: tuple[str, str]) -> pd.DataFrame:
    """Compare two models, trained alike, on the unseen datasets."""
    table = external.compare_models(external.by_tested(e.ledger), [pair])
    table = table[table["tested"].isin(EXTERNAL)]
    names = (dataset_title(tested) + ", trained on " + external.training_title(trained) + ":"
             for tested, trained in zip(table["tested"], table["dataset"], strict=True))  # fmt: skip
    return table.assign(name=list(names))


@_decides
def _attention_helps_outside(e: Evidence, stated: dict[str, Any]) -> Finding:
    return _all_above(e, _on_unseen(e, ("ultraseg_130k", "ultraseg_108k")), 0.0)


@_decides
def _external_gaps(e: Evidence, stated: dict[str, Any]) -> Finding:
    table = _on_unseen(e, ("unet_base", "ultraseg_130k"))
    if table.empty:
        return e.nothing
    off = (table["difference"] - table["tested"].map(stated)).abs()
    return Finding(bool((off < 0.01).all()), _text(table))


def _hard(e: Evidence) -> list[tuple[str, pd.DataFrame, pd.Series]]:
    """Return, a run of UltraSeg-130K, its name, its polyp frames and which are large or hold several."""
    scores = own_scores(e.ledger)
    scores = scores[(scores["model"] == "ultraseg_130k") & (scores["area"] > 0)]
    runs = [(name, group) for name, group in scores.groupby("run_id")]
    return [(name, g, (g["n_polyps"] > 1) | (g["area"] >= g["area"].quantile(0.75)))
            for name, g in runs]  # fmt: skip


@_decides
def _large_or_many_are_coarse(e: Evidence, stated: dict[str, Any]) -> Finding:
    rows = [(f"{dataset_title(group['dataset'].iloc[0])}:", *_welch(group["dice"][hard], group["dice"][~hard]))
            for _, group, hard in _hard(e)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["name", "difference", "low", "high"])
    return _all_below(e, table, 0.0, [name for name, _, _ in _hard(e)])


@_decides
def _large_or_many_are_found(e: Evidence, stated: dict[str, Any]) -> Finding:
    found = {name: group["detected"][hard].astype(bool) for name, group, hard in _hard(e)}
    if not found:
        return e.nothing
    text = "; ".join(f"{seen.sum()} of {len(seen)}" for seen in found.values())
    enough = all(seen.mean() >= stated["share"] for seen in found.values())
    return Finding(enough, text, tuple(found))


def _by_arithmetic(name: str) -> Check:
    return lambda e, stated: printed.CHECKS[name](stated)


for _name in ("frames_a_second_fit", "eq3_is_13", "tables_agree"):
    CHECKS[_name] = _by_arithmetic(_name)


# --- the table ------------------------------------------------------------------------------------


def read_claims() -> list[dict[str, Any]]:
    """Return the claims of ``data/paper/claims.yaml``, each with its ``stated`` numbers."""
    claims = yaml.safe_load((PAPER / "claims.yaml").read_text(encoding="utf-8"))
    return [{"stated": {}} | claim for claim in claims]


def claims_table(profile: str) -> pd.DataFrame:
    """Decide every claim: by the paper's own tables, and by the evidence of a profile.

    Columns: id, section, claim, printed and ours (verdicts, see ``VERDICTS``), printed_evidence,
    evidence, printed_criterion, criterion, number and notebook (its file name), runs (of the ledger).
    Raises ValueError for an unknown profile.
    """
    study.load_profile(profile)  # raises for an unknown name
    evidence = Evidence(profile)
    files = {number(path): path.name for path in find_notebooks()}
    return pd.DataFrame([_row(claim, evidence, files) for claim in read_claims()])


def _row(claim: dict[str, Any], evidence: Evidence, files: dict[int, str]) -> dict[str, Any]:
    name, stated = claim["id"], claim["stated"]
    by_paper = printed.CHECKS[name](stated) if "printed" in claim else None
    nothing = Finding(None, "the paper's tables only")
    ours = CHECKS[name](evidence, stated) if "ours" in claim else nothing
    return {
        "id": name,
        "section": claim["section"],
        "claim": claim["claim"],
        "printed": VERDICTS[by_paper.holds] if by_paper else NOT_ASKED,
        "ours": VERDICTS[ours.holds],
        "printed_evidence": by_paper.evidence if by_paper else "",
        "evidence": ours.evidence,
        "printed_criterion": claim.get("printed", ""),
        "criterion": claim.get("ours", ""),
        "number": claim["notebook"],
        "notebook": files.get(claim["notebook"], ""),
        "runs": ", ".join(ours.runs),
    }


def read_faults() -> pd.DataFrame:
    """Return the gallery of ``data/paper/faults.yaml``: fault, effect, notebook (file name), test."""
    faults = pd.DataFrame(yaml.safe_load((PAPER / "faults.yaml").read_text(encoding="utf-8")))
    files = {number(path): path.name for path in find_notebooks()}
    return faults.assign(notebook=faults["notebook"].map(files))


def tally(table: pd.DataFrame) -> pd.DataFrame:
    """Count the verdicts: rows verdicts, columns "the paper's own tables" and "our evidence"."""
    columns = {"printed": "the paper's own tables", "ours": "our evidence"}
    counts = {title: table[column].value_counts() for column, title in columns.items()}
    order = [*VERDICTS.values(), NOT_ASKED]
    return pd.DataFrame(counts).reindex(order).fillna(0).astype(int)


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


def plot_claims(table: pd.DataFrame, title: str) -> Figure:
    """Show the verdict of each claim (a row of `claims_table`), by the paper's tables and by ours."""
    marks = {"holds": ("✓", PALETTE[0]), "fails": ("✗", PALETTE[3]), NOT_ASKED: ("–", "0.6")}
    marks["cannot be tested here"] = ("?", "0.6")
    figure, axes = plt.subplots(figsize=(15, 1.9 + 0.52 * len(table)))
    for line, row in enumerate(table.itertuples()):
        for place, verdict in enumerate((row.printed, row.ours)):
            mark, colour = marks[verdict]
            axes.text(place, line, mark, color=colour, size=26, weight="bold", ha="center",
                      va="center_baseline")  # fmt: skip
        axes.axhline(line + 0.5, color="0.9", lw=1)
    axes.set(xlim=(-0.5, 1.5), ylim=(len(table) - 0.5, -0.5), yticks=range(len(table)),
             yticklabels=table["claim"], xticks=[0, 1])  # fmt: skip
    axes.set_xticklabels(["the paper's\nown tables", "our\nevidence"])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    figure.suptitle(f"{title}\n✓ holds   ✗ fails   ? cannot be tested here   – no such number")
    return figure
