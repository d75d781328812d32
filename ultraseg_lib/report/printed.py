"""Does the paper agree with itself? The claims of ``claims.yaml`` that its own tables can decide.

A function bears the id of its claim, takes the numbers that the claim states and returns a
`Finding`. Rules on counts take `Counts`, of the paper or of our models; `compare` decides the rest
by Table 3.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ultraseg_lib.data import catalog, dataset_title
from ultraseg_lib.data.splits import MIXED
from ultraseg_lib.report.ablation import LADDER, paper_table5
from ultraseg_lib.report.tables import printed_table
from ultraseg_lib.variants import model_title

BOTH = ["UltraSeg-108K", "UltraSeg-130K"]
SEVERAL = ["polypdb", "polypgen"]  # several centers or modalities


VERDICTS = HOLDS, FAILS, UNDECIDED, NOT_MEASURED = "holds", "fails", "undecided", "not measured"


class Finding(NamedTuple):
    """Whether a claim holds (None: cannot be told), and by what numbers.

    ``runs`` of the ledger are behind it; ``covers``: which models on which datasets (dataset,
    model); ``timed``: by a benchmark.
    """

    holds: bool | None
    evidence: str
    runs: tuple[str, ...] = ()
    covers: frozenset[tuple[str, str]] = frozenset()
    timed: bool = False

    @property
    def verdict(self) -> str:
        """Return one of `VERDICTS`."""
        if self.holds is None:
            return UNDECIDED if self.runs or self.covers or self.timed else NOT_MEASURED
        return HOLDS if self.holds else FAILS


class Counts(NamedTuple):
    """What is counted of models, by title: all parameters, FLOPs as the paper counts, multiply-adds."""

    parameters: pd.Series
    flops: pd.Series
    macs: pd.Series


Check = Callable[[dict[str, Any]], Finding]
Rule = Callable[[Counts, dict[str, Any]], Finding]
CHECKS: dict[str, Check] = {}
COUNTED: dict[str, Rule] = {}


def _decides(check: Check) -> Check:
    CHECKS[check.__name__.removeprefix("_")] = check
    return check


def _counts(rule: Rule) -> Rule:
    """Register a rule for any counts, and as a check on the paper's."""
    name = rule.__name__.removeprefix("_")
    COUNTED[name] = rule
    CHECKS[name] = lambda stated: rule(_printed_counts(), stated)
    return rule


def _dice(dataset: str) -> pd.Series:
    """Return the Dice that Table 3 prints for a dataset ("avg": the mean of five), by model."""
    return printed_table(3)["avg_dice" if dataset == "avg" else f"{dataset}_dice"]


def _ablation(column: str) -> pd.DataFrame:
    """Return ``paper_dice`` or ``paper_sd`` of Table 5: rows models (registry names), columns datasets."""
    return paper_table5().pivot(index="model", columns="dataset", values=column).loc[list(LADDER)]


def _printed_counts() -> Counts:
    """Return the counts of Table 1; the rung ST is in Table 5 only. It prints no multiply-adds."""
    flops = pd.concat([printed_table(1)["flops_g"], printed_table(5)["flops_g"][["UltraSeg-108K (ST)"]]])  # fmt: skip
    return Counts((printed_table(1)["params_m"] * 1e6).round(), 1e9 * flops, 1e9 * flops)


def _small(limit: float) -> list[str]:
    """Return the models other than UltraSeg below a number of parameters."""
    parameters = _printed_counts().parameters
    return [name for name in parameters.index[parameters < limit] if name not in BOTH]


def _says(differences: pd.Series) -> str:
    names = [dataset_title(name) if name in catalog() else name for name in differences.index]
    return ", ".join(f"{n} {value:+.4f}" for n, value in zip(names, differences, strict=True))


# --- counts, of the paper or of our models --------------------------------------------------------


@_counts
def _share_of_parameters(counts: Counts, stated: dict[str, Any]) -> Finding:
    share = counts.parameters["UltraSeg-130K"] / counts.parameters["UNet-Base"]
    return Finding(bool(round(share, 3) == stated["share"]), f"UltraSeg-130K has {share:.2%}")


@_counts
def _named_sizes(counts: Counts, stated: dict[str, Any]) -> Finding:
    found = counts.parameters[BOTH]
    near = (found / list(stated.values()) - 1).abs() < 0.01
    return Finding(bool(near.all()), " and ".join(map("{:,.0f}".format, found)))


@_counts
def _below_the_limit(counts: Counts, stated: dict[str, Any]) -> Finding:
    largest = counts.parameters[BOTH].max()
    return Finding(bool(largest < stated["limit"]), f"at most {largest:,.0f}")


@_counts
def _negligible_parameters(counts: Counts, stated: dict[str, Any]) -> Finding:
    added = counts.parameters["UltraSeg-130K"] - counts.parameters["UltraSeg-108K"]
    return Finding(bool(added < stated["parameters"]), f"{added:,.0f} more")


@_counts
def _student_is_300_times_smaller(counts: Counts, stated: dict[str, Any]) -> Finding:
    times = counts.parameters["UNet-Base"] / counts.parameters[BOTH]
    return Finding(bool(times.min() > stated["times"]), " and ".join(f"{t:.0f} times" for t in times))  # fmt: skip


@_counts
def _flops_do_not_grow(counts: Counts, stated: dict[str, Any]) -> Finding:
    growth = counts.macs["UltraSeg-130K"] / counts.macs["LB-UNet"] - 1
    return Finding(bool(growth < stated["growth"]), f"{growth:+.0%}")


@_counts
def _edbs_save_flops(counts: Counts, stated: dict[str, Any]) -> Finding:
    saved = counts.flops["UltraSeg-108K (ST)"] - counts.flops["UltraSeg-108K"]
    return Finding(bool(round(saved, -7) == stated["flops"]), f"{saved / 1e9:.3f} G")


# --- speed ----------------------------------------------------------------------------------------


def _frames_a_second(stated: dict[str, Any]) -> Finding:
    fps = printed_table(4)["single_fps"][BOTH]
    return Finding(fps.min() >= stated["fps"], " and ".join(map(str, fps)) + " a second")


CHECKS["ninety_fps"] = CHECKS["thirty_fps"] = _frames_a_second


@_decides
def _frames_a_second_fit(stated: dict[str, Any]) -> Finding:
    one_core = printed_table(4)[["single_fps", "single_latency_ms"]]
    off = one_core.prod(axis=1) / 1000 - 1
    wrong = one_core[off.abs() > stated["tolerance"]]
    rows = [f"{row.Index} {row.single_fps} at {row.single_latency_ms} ms" for row in wrong.itertuples()]  # fmt: skip
    return Finding(wrong.empty, ", ".join(rows) or "every row fits")


@_decides
def _footnote_fits(stated: dict[str, Any]) -> Finding:
    fps = printed_table(4)["single_fps"]["LB-UNet"]
    return Finding(bool(fps == stated["fps"]), f"Table 4 prints {fps} a second")


@_decides
def _limit_from_thirty_fps(stated: dict[str, Any]) -> Finding:
    fps = printed_table(4)["single_fps"][_printed_counts().parameters >= stated["limit"]]
    fast = fps[fps >= stated["fps"]]
    return Finding(fast.empty, "fast all the same: " + _fps_of(fast))


def _fps_of(fps: pd.Series) -> str:
    return ", ".join(f"{name} {value:.1f} a second" for name, value in fps.items()) or "none"


@_decides
def _three_hundred_k_is_real_time(stated: dict[str, Any]) -> Finding:
    parameters = _printed_counts().parameters
    fps = printed_table(4)["single_fps"][parameters.between(stated["low"], stated["high"])]
    return Finding(bool((fps >= stated["fps"]).all()), _fps_of(fps))


@_decides
def _speed_and_dice(stated: dict[str, Any]) -> Finding:
    table = printed_table(4)
    ours = table.loc["UltraSeg-130K"]
    better = (table["single_fps"] > ours["single_fps"]) & (table["avg_dice"] > ours["avg_dice"])
    names = [name for name in table.index[better] if name not in BOTH]
    return Finding(not names, "faster and better: " + (", ".join(names) or "none"))


@_decides
def _eq3_is_13(stated: dict[str, Any]) -> Finding:
    field = 1 + 2 * (stated["kernel"] - 1) * sum(stated["dilations"])
    return Finding(field == stated["field"], f"the formula gives {field}")


# --- Dice -----------------------------------------------------------------------------------------


def compare(
    pairs: Sequence[tuple[str, str]],
    datasets: Sequence[str],
    mean: bool = False,
    above: float = -np.inf,
    below: float = np.inf,
) -> Finding:
    """Decide a ``compare`` of the list by Table 3: each difference, or that of the printed means."""
    titles = {"avg": "mean"} if mean else {name: dataset_title(name) for name in datasets}
    named = [tuple(map(model_title, pair)) for pair in pairs]
    lead = pd.Series({f"{a} − {b}, {title}": _dice(name)[a] - _dice(name)[b]
                      for (a, b), (name, title) in product(named, titles.items())})  # fmt: skip
    return Finding(bool(lead.between(above, below, "neither").all()), _says(lead))


@_decides
def _keeps_most_of_unet(stated: dict[str, Any]) -> Finding:
    ours, base = _dice("avg")["UltraSeg-130K"], _dice("avg")["UNet-Base"]
    return Finding(ours / base > stated["share"], f"{ours} / {base} = {ours / base:.1%}")


@_decides
def _best_below_the_limit(stated: dict[str, Any]) -> Finding:
    others = _dice("avg")[_small(stated["limit"])]
    worst = _dice("avg")[BOTH].min()
    return Finding(worst > others.max(), f"{worst} against {others.max()} ({others.idxmax()})")


@_decides
def _mean_of_five(stated: dict[str, Any]) -> Finding:
    five = printed_table(3).filter(like="_dice").drop(columns="avg_dice").loc[BOTH].mean(axis=1)
    off = max(abs(mean - number) for mean, number in zip(five, stated.values(), strict=True))
    return Finding(off < 1e-4, " and ".join(f"{mean:.4f}" for mean in five))


@_decides
def _clear_margin_everywhere(stated: dict[str, Any]) -> Finding:
    datasets = _ablation("paper_sd").columns
    small = printed_table(3).loc[_small(stated["limit"])]
    lead = pd.Series({d: _dice(d)[BOTH].max() - small[f"{d}_dice"].max() for d in datasets})
    sd = _ablation("paper_sd").loc[["lbunet", "ultraseg_108k", "ultraseg_130k"]].max()
    return Finding(bool((lead > sd).all()), _says(lead))


@_decides
def _significantly_beats_unet_medium(stated: dict[str, Any]) -> Finding:
    lead = pd.Series({d: _dice(d)["UltraSeg-130K"] - _dice(d)["UNet-Medium"] for d in SEVERAL})
    sd = _ablation("paper_sd").loc["ultraseg_130k", SEVERAL]
    text = f"{_says(lead)}; sd {', '.join(map(str, sd))}"
    return Finding(bool((lead > sd).all()), text)


@_decides
def _beats_lbunet(stated: dict[str, Any]) -> Finding:
    lead = _dice("avg")["UltraSeg-130K"] - _dice("avg")["LB-UNet"]
    return Finding(round(lead, 3) == stated["difference"], f"{lead:+.4f}")


# --- Tables 5 to 7 --------------------------------------------------------------------------------


@_decides
def _lbunet_beats_unet_tiny(stated: dict[str, Any]) -> Finding:
    gain = _ablation("paper_dice").loc["lbunet"] - _ablation("paper_dice").loc["unet_tiny"]
    return Finding(bool((gain > 0).all()), _says(gain))


@_decides
def _tweaks_clearly_gain(stated: dict[str, Any]) -> Finding:
    dice, rungs = _ablation("paper_dice"), ["lbunet", "ultraseg_108k_st"]
    gain = dice.loc[rungs[1]] - dice.loc[rungs[0]]
    unclear = gain[gain <= _ablation("paper_sd").loc[rungs].max()]
    return Finding(unclear.empty, f"within the sd: {_says(unclear) or 'none'}")


@_decides
def _edbs_gain(stated: dict[str, Any]) -> Finding:
    dice = _ablation("paper_dice")["kvasir_seg"]
    gain = dice["ultraseg_108k"] - dice["ultraseg_108k_st"]
    return Finding(round(gain, 4) == stated["difference"], f"{gain:+.4f}")


@_decides
def _tables_agree(stated: dict[str, Any]) -> Finding:
    names = {"unet_tiny": "UNet-Tiny", "lbunet": "LB-UNet"}
    five, wrong = paper_table5().set_index("model"), []
    for model, title in names.items():
        flops = five.loc[model, "paper_flops_g"].iloc[0], printed_table(1)["flops_g"][title]
        cells = {"FLOPs": flops} | {
            dataset_title(row.dataset): (row.paper_dice, _dice(row.dataset)[title])
            for row in five.loc[model].itertuples()
        }
        wrong += [f"{title}, {cell}: {a} and {b}" for cell, (a, b) in cells.items() if a != b]
    return Finding(not wrong, "; ".join(wrong) or "all agree")


@_decides
def _distillation_does_not_help(stated: dict[str, Any]) -> Finding:
    change = printed_table(7).set_index("dataset", append=True)["delta"]
    text = ", ".join(f"{value:+.4f}" for value in change)
    return Finding(bool((change <= 0).any()), text)


@_decides
def _data_helps_small_models_more(stated: dict[str, Any]) -> Finding:
    alone = sum(_dice(name) for name in MIXED) / len(MIXED)  # the mixed set has no instruments
    gain = (printed_table(6)["mixed_dice"] - alone)[[*BOTH, "UNet-Base"]]
    return Finding(bool((gain[BOTH] > gain["UNet-Base"]).all()), _says(gain))


@_decides
def _second_in_hd95(stated: dict[str, Any]) -> Finding:
    hd95 = printed_table(6)["mixed_hd95"]
    smaller = list(hd95.index[hd95 < hd95["UltraSeg-130K"]])
    return Finding(smaller == ["UNet-Base"], "smaller: " + ", ".join(smaller))


@_decides
def _external_gaps(stated: dict[str, Any]) -> Finding:
    dice = printed_table(6).filter(like="_dice")
    gap = (dice.loc["UNet-Base"] - dice.loc["UltraSeg-130K"]).rename(lambda c: c[: -len("_dice")])
    right = all(round(gap[name], 3) == number for name, number in stated.items())
    return Finding(right, _says(gap[list(stated)]))


@_decides
def _attention_helps_outside(stated: dict[str, Any]) -> Finding:
    dice = printed_table(6)[["etis_larib_dice", "bkai_igh_dice"]]
    change = dice.loc["UltraSeg-130K"] - dice.loc["UltraSeg-108K"]
    return Finding(bool((change > 0).all()), _says(change.rename(lambda c: c[: -len("_dice")])))
