"""The head of the README: what the study finds, in sentences and a picture, from the record."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from tools.record import OURS, RULES, committed_ledger, ladder_steps
from ultraseg_lib import study
from ultraseg_lib.data import dataset_title
from ultraseg_lib.data.splits import EXTERNAL
from ultraseg_lib.models import MODELS, create_model
from ultraseg_lib.models.complexity import count_parameters
from ultraseg_lib.paths import outputs_dir, whole_file
from ultraseg_lib.report import claims, external, tables
from ultraseg_lib.report.benchmark_figures import (
    ENGINES,
    HEADINGS,
    REAL_TIME,
    one_core,
    paper_table4,
    recorded_machines,
)
from ultraseg_lib.report.figures import PALETTE, use_style
from ultraseg_lib.variants import model_title
from ultraseg_lib.weights import shipped_weights

SHOWN = "kvasir_seg"
BOTH = ("kvasir_seg", "cvc_clinicdb")
NAMES = {  # where a model's name stands: beside our point (True) or the paper's, and how far off
    "UltraSeg-130K": (True, 16, -6), "UltraSeg-108K": (True, 28, -10),
    "LB-UNet": (False, -88, -6), "UNet-Tiny": (False, 14, -6), "UNet-Base": (False, -40, 12),
    "UNet-Medium": (False, -20, -28), "UNet-Light": (False, -60, 12), "UNet-Small": (False, -50, -28),
    "FastSCNN": (False, 14, -6), "MobileUNet": (False, 14, -6), "EGE-UNet": (False, -100, -6),
}  # fmt: skip


def dice_rows() -> pd.DataFrame:
    """Return title, parameters, paper (printed Dice), again and harder (ours, by `RULES`), Kvasir-SEG.

    NaN where not run. All Dices are pooled per batch of 4, the released code's definition.
    """
    whole = tables.whole_models(committed_ledger())
    ours = tables.main_table(tables.longest_runs(whole[whole["dataset"] == SHOWN]))
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
    rows = rows.assign(engine=rows["backend"].map(ENGINES), fps=1000 / rows["median_ms"])
    return rows[["engine", "fps"]].sort_values("fps", ignore_index=True).assign(cpu=bench["cpu"])


def _draw_dice(axes: Axes, rows: pd.DataFrame) -> None:
    millions = rows["parameters"] / 1e6
    axes.plot(millions, rows["paper"], "D", ms=10, mfc="none", mec="0.35", mew=2, label="the paper")
    axes.plot(
        millions, rows["again"], "o", ms=11, color=PALETTE[0], label="ours, close to its rules"
    )
    axes.plot(millions, rows["harder"], "*", ms=22, color=PALETTE[3], label="ours, recipe strong")
    for row, x in zip(rows.itertuples(), millions, strict=True):
        if row.harder - row.again == row.harder - row.again:  # both are there
            arrow = {"arrowstyle": "-|>", "color": PALETTE[3], "lw": 2, "shrinkA": 8, "shrinkB": 10}
            axes.annotate("", (x, row.harder), (x, row.again), arrowprops=arrow)
        at_ours, *offset = NAMES[row.title]
        axes.annotate(row.title, (x, row.harder if at_ours else row.paper), offset,
                      textcoords="offset points", size="small")  # fmt: skip
    axes.set(xscale="log", xlim=(0.009, 90), xlabel="parameters (million)",
             ylabel="Dice (pooled per batch of 4)", title="Kvasir-SEG, test part")  # fmt: skip
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="lower right", fontsize="small")


def _draw_speed(axes: Axes, rows: pd.DataFrame) -> None:
    bars = axes.barh(rows["engine"], rows["fps"], color=PALETTE[0])
    axes.bar_label(bars, fmt="{:.0f}", padding=6)
    axes.axvline(REAL_TIME, color="black", lw=2, ls="--")
    axes.annotate("video", (REAL_TIME, 1), (6, 4), xycoords=("data", "axes fraction"),
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
- **Close to the paper's own rules** (recipe `paper`, protocol `released`; but our split, and one sigmoid where the released code has two). Dice per batch of 4, in brackets the paper's. {paper}.
- **What that protocol is worth.** `released` less `clean`, UltraSeg-130K, per image, on the seed that both have. Recipe `paper`: {own[paper]}; `strong`: {own[strong]}. Not all of it need be flattery: `released` also trains on the validation images. On images that picked nothing, recipe `paper`: {elsewhere}.
- **Trained harder.** By our recipe `strong` and protocol `clean` the same network reaches {us[batch_pooled_dice]:.3f} per batch of 4 on Kvasir-SEG, {us[dice]:.3f} per image. The paper prints {printed[UNet-Base]:.4f} for UNet-Base, {base:.0f} million parameters, by its recipe; we have not trained UNet-Base by ours.
- **Trained alike.** UltraSeg-130K's lead, per batch of 4, on the seeds that both models have. {leads}. Recipe `strong` was first tried on UltraSeg-130K. More [below](#results-so-far).
- **The ladder of Table 5.** Kvasir-SEG, close to the paper's rules, each step in Dice per batch of 4, in brackets the printed one: {ladder}. One seed each.
- **Hospitals that no training saw.** Trained on the mixed set, recipe `{mixed.recipe}`, {mixed.epochs} epochs, per batch of 4: {unseen}. The paper's mixed set also held PolypDB. {earlier}; one seed each.
- **Videos on both sides of a split.** UltraSeg-130K on CVC-ClinicDB, per image: {frames:.3f} on a random split, as in the paper, {videos:.3f} on a split that keeps each video on one side. The fall is {fall[difference]:.3f}, its interval, which draws whole videos, {fall[low]:.3f} to {fall[high]:.3f}.
- **One core is enough.** The network alone in float32, frames a second by kernels of its own and by plain PyTorch: {speeds}; with the same masks but for a few pixels in a million. The paper prints {fps:g} for its CPU."""


def findings() -> str:
    """Return the main results as a Markdown list; every number is read from the record."""
    ledger = tables.longest_runs(committed_ledger())
    table = external.score_table(external.by_tested(ledger)).query("model == 'ultraseg_130k'")
    table = table.set_index(["dataset", "tested", "recipe", "protocol"])
    falls = claims.falls_by_video(tables.own_scores(ledger))
    setting = ["model", "recipe", "protocol"]
    dice = dice_rows().set_index("title")
    return FINDINGS.format(
        **_by_protocol(ledger),
        paper=_as_the_paper(ledger),
        us=table.loc[("kvasir_seg", "kvasir_seg", "strong", "clean")],
        printed=dice["paper"],
        base=dice["parameters"]["UNet-Base"] / 1e6,
        ladder=_ladder(ledger),
        leads=". ".join(_leads(ledger, name) for name in BOTH),
        mixed=_shipped("ultraseg_130k"),
        unseen="; ".join(map(_unseen, OURS)),
        earlier=_earlier(),
        frames=table["dice"]["cvc_clinicdb", "cvc_clinicdb", "strong", "clean"],
        videos=table["dice"]["cvc_clinicdb@sequence", "cvc_clinicdb@sequence", "strong", "clean"],
        fall=falls.set_index(setting).loc[("ultraseg_130k", "strong", "clean")],
        speeds=_speeds(),
        fps=paper_table4()["single_fps"]["ultraseg_130k"],
    )


def _leads(ledger: pd.DataFrame, dataset: str) -> str:
    """Say how far UltraSeg-130K is ahead of two small models on a dataset, beside the printed lead."""
    others = {name: model_title(name) for name in ("lbunet", "unet_tiny")}
    pairs = [("ultraseg_130k", other) for other in others]
    alike = external.compare_models(external.by_tested(ledger[ledger["dataset"] == dataset]), pairs)
    alike = alike[alike["tested"] == dataset].set_index(["recipe", "protocol"])
    ahead = (alike["batch_a"] - alike["batch_b"]).set_axis(alike["other"].map(others))
    printed = tables.paper_table3().query("dataset == @dataset").set_index("title")["paper_dice"]
    leads = {
        "the paper prints": printed["UltraSeg-130K"] - printed[[*others.values()]],
        "close to its rules": ahead[alike.index == RULES["again"]],
        "by recipe `strong`": ahead[alike.index == RULES["harder"]],
    }
    told = (
        f"{words} {' and '.join(f'{lead:+.3f} over {other}' for other, lead in there.items())}"
        for words, there in leads.items() if len(there)
    )  # fmt: skip
    return f"{dataset_title(dataset)}: {'; '.join(told)}"


def _again(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return the runs close to the paper's rules."""
    return ledger[(ledger[["recipe", "protocol"]] == RULES["again"]).all(axis=1)]


def _ladder(ledger: pd.DataFrame) -> str:
    """Say what each rung of Table 5 adds on Kvasir-SEG, by recipe `paper` and protocol `released`."""
    steps = ladder_steps(_again(ledger))
    steps = steps[steps["dataset"] == SHOWN].itertuples()
    return ", ".join(f"{row.step} {row.batch:+.3f} ({row.printed:+.3f})" for row in steps)


def _by_protocol(ledger: pd.DataFrame) -> dict[str, Any]:
    """Say by how much `released` is ahead of `clean`, on the own test part and on unseen images."""
    runs = ledger[ledger["model"] == "ultraseg_130k"].groupby(["dataset", "recipe", "protocol"])

    def ahead(dataset: str, recipe: str, tested: str) -> str:
        sides = (runs.get_group((dataset, recipe, each)) for each in ("released", "clean"))
        found = tables.paired(*(side[side["test_set"] == tested] for side in sides))
        return f"{found['difference']:+.3f} on {dataset_title(tested)}"

    own = {
        recipe: " and ".join(ahead(name, recipe, name) for name in BOTH)
        for recipe in ("paper", "strong")
    }
    elsewhere = (
        f"trained on {dataset_title(name)} {' and '.join(ahead(name, 'paper', t) for t in EXTERNAL)}"
        for name in BOTH
    )
    return {"own": own, "elsewhere": ", ".join(elsewhere)}


def _as_the_paper(ledger: pd.DataFrame) -> str:
    """Say what recipe `paper` and protocol `released` give, beside the paper's Table 3."""
    alike = _again(ledger)
    levels = tables.main_table(tables.whole_models(alike)).sort_values(["dataset", "title"])
    told = []
    for name, rows in levels.groupby("dataset"):
        cells = []
        for row in rows.itertuples():
            title = f"{row.title}, mean of {row.seeds} seeds," if row.seeds > 1 else row.title
            cells.append(f"{title} {row.batch_pooled_dice:.3f} ({row.paper_dice:.4f})")
        told.append(f"{dataset_title(name)}: {', '.join(cells)}")
    return ". ".join(told)


def _speeds() -> str:
    """Say how many frames a second UltraSeg-130K reaches in float32 on one core of each machine."""
    fps = 1000 / recorded_machines()[HEADINGS["median_ms"]].loc["float32"]
    ours, plain = (fps.loc[ENGINES[backend]] for backend in ("native", "eager"))
    return ", ".join(f"{ours[cpu]:.0f} and {plain[cpu]:.0f} ({cpu})" for cpu in fps)


def _shipped(model: str) -> study.Run:
    """Return the run whose weights are shipped for the mixed set."""
    return study.parse_run_id("reference", shipped_weights(model)["mixed"].parent.name)


def _unseen(model: str) -> str:
    """Say what the shipped weights of the mixed set reach on ETIS and BKAI, beside Table 6."""
    ledger = committed_ledger()
    scores = ledger[ledger["run_id"] == _shipped(model).run_id]
    levels = scores.groupby("test_set")["batch_pooled_dice"].first()
    title = model_title(model)
    printed = external.paper_table6().query("title == @title").set_index("tested")["paper_dice"]
    ours = (f"{levels[name]:.3f} on {dataset_title(name)}" for name in EXTERNAL)
    papers = (f"{printed[name]:.4f}" for name in EXTERNAL)
    return f"{title} {' and '.join(ours)} (the paper prints {' and '.join(papers)})"


def _earlier() -> str:
    """Say what the same two models reached there after the next shorter training."""
    run, ledger = _shipped("ultraseg_130k"), committed_ledger()
    alike = (ledger[["dataset", "recipe", "protocol"]] == (run.dataset, run.recipe, run.protocol)).all(axis=1)  # fmt: skip
    shorter = ledger[alike & (ledger["epochs"] < run.epochs)]
    epochs = shorter["epochs"].max()
    levels = shorter[shorter["epochs"] == epochs].groupby(["model", "test_set"])["batch_pooled_dice"].first()  # fmt: skip
    told = (
        f"{model_title(model)} {' and '.join(f'{levels[model, name]:.3f}' for name in EXTERNAL)}"
        for model in OURS
    )
    return f"After {epochs} epochs it was {', '.join(told)}"
