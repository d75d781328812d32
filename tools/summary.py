"""The head of the README: what the study finds, in sentences and a picture, from the record."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from tools.record import (
    BOTH,
    OURS,
    RULES,
    authors_levels,
    by_rules,
    card_scores,
    committed_ledger,
    ladder_steps,
    lead_rows,
    mixed_levels,
    shipped_run,
    small_leads,
)
from ultraseg_lib.data import dataset_title
from ultraseg_lib.data.splits import EXTERNAL, MIXED
from ultraseg_lib.deploy.backends import BACKENDS
from ultraseg_lib.models import MODELS, create_model
from ultraseg_lib.models.complexity import count_parameters
from ultraseg_lib.paths import outputs_dir, whole_file
from ultraseg_lib.report import claims, draws, external, tables
from ultraseg_lib.report.benchmark_figures import (
    HEADINGS,
    REAL_TIME,
    one_core,
    paper_table4,
    recorded_machines,
)
from ultraseg_lib.report.figures import PALETTE, use_style
from ultraseg_lib.variants import model_title

SHOWN = "kvasir_seg"
NEAR = 0.05  # from the printed Dice: a score has come back
NAMES = {  # where a model's name stands: beside our point (True) or the paper's, and how far off
    "UltraSeg-130K": (True, 16, -6), "UltraSeg-108K": (True, 24, -24),
    "LB-UNet": (False, -88, -6), "UNet-Tiny": (False, 14, -6), "UNet-Base": (False, -40, 12),
    "UNet-Medium": (False, -20, -28), "UNet-Light": (False, -60, 12), "UNet-Small": (False, -50, -28),
    "FastSCNN": (False, 14, -6), "MobileUNet": (False, 14, -6), "EGE-UNet": (False, -100, -6),
}  # fmt: skip


def dice_rows() -> pd.DataFrame:
    """Return title, parameters, paper (printed Dice), again and harder (ours, by `RULES`), Kvasir-SEG.

    NaN where not run. All Dices are pooled per batch of 4, the released code's definition.
    """
    whole = tables.whole_models(committed_ledger())
    ours = tables.main_table(tables.settled_runs(whole[whole["dataset"] == SHOWN]))
    ours = ours.set_index(["recipe", "protocol", "title"])["batch_pooled_dice"]
    printed = tables.paper_table3().query("dataset == @SHOWN").set_index("title")
    sizes = {info.title: count_parameters(create_model(name)) for name, info in MODELS.items()}
    table = printed[["paper_dice"]].rename(columns={"paper_dice": "paper"})
    table = table.assign(**{name: ours[rules] for name, rules in RULES.items()})
    return table.assign(parameters=table.index.map(sizes)).sort_index().reset_index()


def speed_rows() -> pd.DataFrame:
    """Return engine and fps of UltraSeg-130K on one core in float32, slowest first."""
    bench = json.loads((outputs_dir("reference") / "bench" / "bench.json").read_text("utf-8"))
    rows = one_core(pd.DataFrame(bench["rows"])).query("model == 'ultraseg_130k'")
    rows = rows.assign(engine=rows["backend"].map(BACKENDS), fps=1000 / rows["median_ms"])
    return rows[["engine", "fps"]].sort_values("fps", ignore_index=True).assign(cpu=bench["cpu"])


def _draw_dice(axes: Axes, rows: pd.DataFrame) -> None:
    millions = rows["parameters"] / 1e6
    right = 1.07 * millions  # so that marks of one height do not hide each other; the label says so
    pairs = [millions, right], [rows["paper"], rows["again"]]
    axes.plot(*pairs, color="0.6", zorder=0)
    axes.plot([], [], color="0.6", label="the same model")
    axes.plot(millions, rows["paper"], "D", ms=10, mfc="none", mec="0.35", mew=2, label="the paper")
    axes.plot(right, rows["again"], "o", ms=11, color=PALETTE[0],
              label="ours, close to its rules")  # fmt: skip
    axes.plot(right, rows["harder"], "*", ms=22, color=PALETTE[3], zorder=3,
              label="ours, trained harder\n(strong, clean)")  # fmt: skip
    for row, x in zip(rows.itertuples(), right, strict=True):
        if abs(row.harder - row.again) > 0.02:  # both are there, and apart
            arrow = {"arrowstyle": "-|>", "color": PALETTE[3], "lw": 2, "shrinkA": 8, "shrinkB": 10}
            axes.annotate("", (x, row.harder), (x, row.again), arrowprops=arrow)
        at_ours, *offset = NAMES[row.title]
        axes.annotate(row.title, (x, row.harder if at_ours else row.paper), offset,
                      textcoords="offset points", size="small")  # fmt: skip
    axes.set(xscale="log", xlim=(0.009, 90), xlabel="parameters (million; ours drawn a little to the right)",
             ylabel="Dice (pooled per batch of 4)")  # fmt: skip
    axes.set_title("Kvasir-SEG, test part, one to three seeds", pad=28)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="lower right", fontsize="small")


def _draw_speed(axes: Axes, rows: pd.DataFrame) -> None:
    bars = axes.barh(rows["engine"], rows["fps"], color=PALETTE[0])
    axes.bar_label(bars, fmt="{:.0f}", padding=6)
    axes.axvline(REAL_TIME, color="black", lw=2, ls="--")
    axes.annotate(f"video: {REAL_TIME:g} a second", (REAL_TIME, 1), (6, 4), xycoords=("data", "axes fraction"),
                  textcoords="offset points", size="small")  # fmt: skip
    axes.set_xlim(right=1.12 * rows["fps"].max())
    axes.set_xlabel(f"frames a second, one core ({rows['cpu'].iloc[0]})")
    axes.set_title("UltraSeg-130K, float32", pad=28)


def plot_summary(dice: pd.DataFrame, speed: pd.DataFrame) -> Figure:
    """Show parameters against Dice (left) and frames a second by engine (right)."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(17, 7), width_ratios=(1.25, 1))
    _draw_dice(left, dice)
    _draw_speed(right, speed)
    return figure


def summary_data() -> str:
    """Return the numbers of the picture as CSV, as they stand beside it."""
    return pd.concat([dice_rows(), speed_rows()]).round(4).to_csv(index=False)


def write_picture(path: Path) -> None:
    """Draw the picture from the committed record."""
    use_style()
    figure = plot_summary(dice_rows(), speed_rows())
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    plt.close(figure)


FINDINGS = """\
- **{most} scores come back.** Of {cells} scores of Table 3 that we repeated close to the paper's rules (`paper`, `released`; our split), {back} lie within {near:g} of the printed ones; the furthest is {furthest}. But {lower} of UltraSeg's {ours} lie below the printed ones, and {higher} of the other models' {others} above. UltraSeg-130K itself has {itself}; in brackets the paper's.{as_its_code}{other_draws} Of the {gains} gains that its ladder (Table 5) prints for Kvasir-SEG {alike} come back in sign ({least} of each at least); the last, {last}.
- **What its protocol is worth.** `released` less `clean`, UltraSeg-130K, per image: {own[paper]} by recipe `paper`, {own[strong]} by `strong`. Each seed of `released` is set against the mean of all that `clean` has, so luck of training is in it, too; nor need all of it be flattery, since `released` also trains on the validation images.
- **Trained harder** (`strong`, `clean`), UltraSeg-130K reaches the Dice that the paper prints for UNet-Base, {base:.0f} million parameters and another split, on {reached} of {trained} datasets: {beside}.{longer} No test image picked the epoch, but a first form of the recipe was tried on a test part of Kvasir-SEG.{unet_base}
- **Trained alike**, its lead over LB-UNet is {harder} by that recipe; the paper prints {leads}.{longer_lead} Over EGE-UNet ({ege_seeds} of it at least) it is {ege_harder}; the paper prints {ege_leads}. [More](#results-so-far), over UNet-Tiny too.
- **Hospitals that no training saw.** Trained on the mixed set ({mixed}) UltraSeg-130K has {unseen}; in brackets the paper's, whose mixed set also held PolypDB. Per image that is {image}; the weights that the authors publish, scored here, have {authors}.
- **What it gets wrong.** The weights that `predict` uses find no pixel of the polyp in {missed} of the frames, and paint one on {alarms}: expect false alarms on video.
- **Videos on both sides of a split.** UltraSeg-130K on CVC-ClinicDB, per image: {fall[by_frame]:.3f} on a random split, as in the paper, {fall[by_video]:.3f} where each video stays on one side. On the {fall[frames]} frames, of {fall[videos]} videos, that both test on, the fall is {fall[difference]:.3f} ({fall[low]:.3f} to {fall[high]:.3f}, over whole videos and the seeds of each split, {fall[seeds]} at least{fall_open}).
- **One core is enough.** UltraSeg-130K alone in float32, frames a second by kernels of its own and by plain PyTorch: {speeds}; with the same masks but for a few pixels in a million. The paper prints {fps:g} for its CPU."""


def findings() -> str:
    """Return the main results as a Markdown list; every number is read from the record."""
    ledger = tables.settled_runs(committed_ledger())
    table = external.score_table(external.by_tested(ledger)).query("model == 'ultraseg_130k'")
    table = table.set_index(["dataset", "tested", "recipe", "protocol"])
    fall = _fall_by_video("ultraseg_130k")
    is_trained = "unet_base" in set(by_rules(ledger, "harder")["model"])
    unet_base = "" if is_trained else " UNet-Base itself we have not trained so."
    dice = dice_rows().set_index("title")
    lead, ege = (
        lead_rows().query("other == @name").set_index("dataset") for name in ("lbunet", "egeunet")
    )
    return FINDINGS.format(
        **_as_the_paper(ledger),
        as_its_code=_as_its_code(),
        other_draws=_other_draws(),
        own=_by_protocol(committed_ledger()),
        **_beside_unet_base(table),
        longer=_longer(ledger),
        base=dice["parameters"]["UNet-Base"] / 1e6,
        harder=_on_both(lead["harder"], lead["harder_side"]),
        leads=_on_both(lead["printed"]),
        longer_lead=_longer_lead(),
        ege_seeds=tables.seed_words(ege["harder_seeds"].min()),
        ege_harder=_on_both(ege["harder"], ege["harder_side"]),
        ege_leads=_on_both(ege["printed"]),
        **_unseen("ultraseg_130k"),
        **_mistakes("ultraseg_130k"),
        unet_base=unet_base,
        fall=fall,
        fall_open=": of so few it is open" if fall["low"] <= 0 else "",
        speeds=_speeds(),
        fps=paper_table4()["single_fps"]["ultraseg_130k"],
    )


def _as_its_code() -> str:
    """Say what UltraSeg-130K has on `SHOWN` where it is trained as the released code does."""
    own = by_rules(tables.own_scores(committed_ledger()), "again")
    rows = tables.main_table(own[own["model"] == "ultraseg_130k+as_released"])
    told = (
        f"{row.batch_pooled_dice:.3f} ({tables.seed_words(row.seeds)}) on {dataset_title(SHOWN)}"
        for row in rows[rows["dataset"] == SHOWN].itertuples()
    )
    return "".join(f" Trained as the released code does, faults included, it has {each}." for each in told)  # fmt: skip


def _other_draws() -> str:
    """Say what UltraSeg-130K has, by `RULES` "again", on other draws of the test part of `SHOWN`."""
    rows = draws.draws_table(committed_ledger()).iloc[1:].dropna(subset="seeds")
    told = " and ".join(
        f"{row.batch_pooled_dice:.3f} ({tables.seed_words(row.seeds)})" for row in rows.itertuples()
    )
    return f" On other draws of the split of Kvasir-SEG it has {told}{_clinic()}." if told else ""


def _clinic() -> str:
    """Say the same of the second draw of CVC-ClinicDB."""
    own = by_rules(tables.own_scores(committed_ledger()), "again").query("model == 'ultraseg_130k'")
    levels = tables.main_table(own[own["dataset"] == "cvc_clinicdb@draw_2"])
    told = (
        f"{row.batch_pooled_dice:.3f} ({tables.seed_words(row.seeds)})"
        for row in levels.itertuples()
    )
    return "".join(f", on another of CVC-ClinicDB {each}" for each in told)


def _fall_by_video(model: str) -> pd.Series:
    """Return the longest trainings by `RULES` "harder" on both splits of ClinicDB: Dice and fall.

    Those of `claims.falls_by_video`, with by_frame and by_video: the Dice on either split.
    """
    own = tables.own_scores(committed_ledger()).query("model == @model")
    own = by_rules(own, "harder")
    fall = claims.falls_by_video(own).sort_values("epochs").iloc[-1]
    dice = own[own["epochs"] == fall["epochs"]].groupby("dataset")["dice"].mean()
    sides = {"by_frame": dice["cvc_clinicdb"], "by_video": dice["cvc_clinicdb@sequence"]}
    return pd.concat([fall, pd.Series(sides)])


def _on_both(values: pd.Series, side: pd.Series | None = None) -> str:
    """Say a difference on each of the two datasets of `BOTH`, and where its side is undecided."""
    open_ones = [] if side is None else side.index[side == "undecided"]
    return " and ".join(
        f"{values[name]:+z.3f} on {dataset_title(name)}"
        + (" (undecided: per image its interval reaches zero)" if name in open_ones else "")
        for name in BOTH
    )


def _as_the_paper(ledger: pd.DataFrame) -> dict[str, Any]:
    """Say how near the runs close to the paper's rules are to its Table 3, and to the gains of its Table 5."""
    again = by_rules(ledger, "again")
    levels = tables.main_table(tables.whole_models(again)).dropna(subset="paper_dice")
    apart = (levels["batch_pooled_dice"] - levels["paper_dice"]).abs()
    row = levels.loc[apart.idxmax()]
    furthest = (
        f"{row['title']} on {dataset_title(row['dataset'])}, {row['batch_pooled_dice']:.3f}"
        f" where the paper has {row['paper_dice']:.4f}"
    )
    itself = (
        f"{row.batch_pooled_dice:.3f} on {dataset_title(row.dataset)} ({row.paper_dice:.4f})"
        for row in levels[levels["model"] == "ultraseg_130k"].itertuples()
    )
    most = "Most" if (apart <= NEAR).mean() > 0.5 else "Few"
    told = {"most": most, "near": NEAR, "cells": len(levels), "back": (apart <= NEAR).sum()}
    told |= {"furthest": furthest, "itself": " and ".join(itself)}
    above = levels["batch_pooled_dice"] > levels["paper_dice"]
    below = levels["batch_pooled_dice"] < levels["paper_dice"]
    ours = levels["model"].isin(OURS)
    told |= {"ours": ours.sum(), "lower": (below & ours).sum()}
    told |= {"others": (~ours).sum(), "higher": (above & ~ours).sum()}
    steps = ladder_steps(again).query("dataset == @SHOWN")
    gains = steps[steps["printed"] > 0]
    told |= {"alike": (gains["batch"] > 0).sum(), "gains": len(gains)}
    told |= {"least": tables.seed_words(gains["seeds"].min())}
    return told | {"last": _by_seed(again, gains.iloc[-1])}


def _by_seed(scores: pd.DataFrame, step: pd.Series) -> str:
    """Say a step of the ladder on all seeds of its upper rung, each less the mean of the lower one."""
    own = tables.own_scores(scores[scores["dataset"] == step["dataset"]])
    dice = own.groupby(["model", "seed"])["batch_pooled_dice"].first()
    change = dice[step["model"]] - dice[step["baseline"]].mean()
    return (
        f"{model_title(step['model'])} over {model_title(step['baseline'])}, printed"
        f" {step['printed']:+.3f}, is {change.mean():+z.3f} on the mean of"
        f" {tables.seed_words(len(change))}, from {change.min():+z.3f} to {change.max():+z.3f}"
    )


def _beside_unet_base(table: pd.DataFrame) -> dict[str, Any]:
    """Say where UltraSeg-130K, trained harder, reaches the Dice printed for UNet-Base.

    ``table``: `external.score_table` of the model, by dataset, tested, recipe and protocol.
    """
    printed = tables.paper_table3().query("title == 'UNet-Base'").set_index("dataset")["paper_dice"]
    places = {name: (name, name, *RULES["harder"]) for name in MIXED if name in printed.index}
    ours = {
        name: table["batch_pooled_dice"][at] for name, at in places.items() if at in table.index
    }
    beside = [f"{dice:.3f} on {dataset_title(name)} ({printed[name]:.4f})" for name, dice in ours.items()]  # fmt: skip
    reached = sum(dice >= printed[name] for name, dice in ours.items())
    return {"reached": reached, "trained": len(ours), "beside": ", ".join(beside)}


def _longer(settled: pd.DataFrame) -> str:
    """Say what UltraSeg-130K has on `SHOWN`, trained harder and longer than what is settled, if it was."""
    whole = tables.own_scores(committed_ledger()).query("model == 'ultraseg_130k'")
    levels = tables.main_table(by_rules(whole[whole["dataset"] == SHOWN], "harder"))
    known = by_rules(settled.query("model == 'ultraseg_130k' and dataset == @SHOWN"), "harder")
    last = levels.loc[levels["epochs"].idxmax()]
    if last["epochs"] <= known["epochs"].max():
        return ""
    return (
        f" Trained for {last['epochs']} epochs in place of {known['epochs'].max()}"
        f" ({tables.seed_words(last['seeds'])}) it has {last['batch_pooled_dice']:.3f} on"
        f" {dataset_title(SHOWN)}, per image {last['dice']:.3f}."
    )


def _longer_lead() -> str:
    """Say UltraSeg-130K's lead over LB-UNet on `SHOWN`, trained harder and longer than what is settled."""
    table = by_rules(small_leads(), "harder").query(
        "model == @OURS[0] and baseline == 'lbunet' and dataset == tested == @SHOWN"
    )
    last = table.loc[table["epochs"].idxmax()]
    if last["epochs"] <= tables.settled(table, ["dataset"])["epochs"].max():
        return ""
    return (
        f" Trained for {last['epochs']} epochs ({tables.seed_words(last['seeds'])} of each) it is"
        f" {last['batch_a'] - last['batch_b']:+z.3f} on {dataset_title(SHOWN)}, {last['side']}."
    )


def _mistakes(model: str) -> dict[str, str]:
    """Say how often the shipped weights of the mixed set miss a polyp, and paint one that is not there."""
    scores = card_scores(shipped_run(model)).set_index("tested")
    missed = " and ".join(
        f"{100 * scores['miss_rate'][name]:.0f} % ({dataset_title(name)})" for name in EXTERNAL
    )
    normal = scores[(scores["normal"] > 0) & (scores.index != "mixed")]
    alarms = " and ".join(
        f"{row.alarms} of {row.normal} test frames without a polyp ({dataset_title(row.Index)})"
        for row in normal.itertuples()
    )
    return {"missed": missed, "alarms": alarms}


def _by_protocol(ledger: pd.DataFrame) -> dict[str, str]:
    """Say by how much `released` is ahead of `clean` on the own test part, by recipe.

    Each seed of `released` less the mean of `clean`, at the longest training that both have.
    """
    own = tables.own_scores(ledger).query("model == 'ultraseg_130k'")
    dice = own.groupby(["dataset", "recipe", "protocol", "epochs", "seed"])["dice"].mean()

    def told(name: str, recipe: str) -> str:
        sides = dice[name, recipe]
        lengths = (set(sides[each].index.unique("epochs")) for each in ("released", "clean"))
        longest = max(set.intersection(*lengths))
        values = sides["released", longest] - sides["clean", longest].mean()
        against = len(sides["clean", longest])
        spread = f" ({len(values)} seeds, against {against}, from {values.min():+z.3f} to {values.max():+z.3f})"
        return f"{values.mean():+z.3f}{spread if len(values) > 1 else ''} on {dataset_title(name)}"

    recipes = ("paper", "strong")
    return {recipe: " and ".join(told(name, recipe) for name in BOTH) for recipe in recipes}


def _speeds() -> str:
    """Say how many frames a second UltraSeg-130K reaches in float32 on one core of each machine."""
    fps = 1000 / recorded_machines()[HEADINGS["median_ms"]].loc["float32"]
    ours, plain = (fps.loc[BACKENDS[backend]] for backend in ("native", "eager"))
    return ", ".join(f"{ours[cpu]:.0f} and {plain[cpu]:.0f} ({cpu})" for cpu in fps)


def _unseen(model: str) -> dict[str, Any]:
    """Say what training on the mixed set reaches on ETIS and BKAI, beside Table 6."""
    rows = (
        mixed_levels(committed_ledger())
        .query("model == @model")
        .set_index("tested")
        .loc[[*EXTERNAL]]
    )
    told = (
        f"{row.batch_pooled_dice:.3f} on {dataset_title(row.Index)} ({row.paper_dice:.4f})"
        for row in rows.itertuples()
    )
    seeds = rows["seeds"].iloc[0]
    how = f"recipe `{rows['recipe'].iloc[0]}`, {rows['epochs'].iloc[0]} epochs"
    how += f", mean of {seeds} seeds" if seeds > 1 else ""
    ours, theirs = (
        " and ".join(f"{dice[name]:.3f}" for name in EXTERNAL)
        for dice in (rows["dice"], authors_levels().set_index("tested")["dice"])
    )
    return {"mixed": how, "unseen": " and ".join(told), "image": ours, "authors": theirs}
