"""The head of the README: what the study finds, in sentences and a picture, from the record."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from tools.record import OURS, committed_ledger
from ultraseg_lib.data import dataset_title
from ultraseg_lib.data.splits import EXTERNAL
from ultraseg_lib.models import MODELS, create_model
from ultraseg_lib.models.complexity import count_parameters
from ultraseg_lib.paths import outputs_dir, whole_file
from ultraseg_lib.report import external, tables
from ultraseg_lib.report.benchmark_figures import (
    ENGINES,
    HEADINGS,
    REAL_TIME,
    one_core,
    recorded_machines,
)
from ultraseg_lib.report.figures import PALETTE, use_style
from ultraseg_lib.variants import model_title
from ultraseg_lib.weights import shipped_weights

SHOWN = {"dataset": "kvasir_seg", "recipe": "strong", "protocol": "clean"}
NAMES = {  # where a model's name stands: beside our point (True) or the paper's, and how far off
    "UltraSeg-130K": (True, 16, -6), "UltraSeg-108K": (True, 28, -10),
    "LB-UNet": (False, -88, -6), "UNet-Tiny": (False, 14, -6), "UNet-Base": (False, -40, 12),
    "UNet-Medium": (False, -20, -28), "UNet-Light": (False, -60, 12), "UNet-Small": (False, -50, -28),
    "FastSCNN": (False, 14, -6), "MobileUNet": (False, 14, -6), "EGE-UNet": (False, -100, -6),
}  # fmt: skip


def dice_rows() -> pd.DataFrame:
    """Return title, parameters, paper (printed Dice) and ours (NaN where not run), Kvasir-SEG.

    Both Dices are pooled per batch of 4, the released code's definition.
    """
    whole = tables.whole_models(committed_ledger())
    chosen = (whole[list(SHOWN)] == pd.Series(SHOWN)).all(axis=1)
    ours = tables.main_table(tables.longest_runs(whole[chosen])).set_index("title")
    printed = tables.paper_table3().query("dataset == @SHOWN['dataset']").set_index("title")
    sizes = {info.title: count_parameters(create_model(name)) for name, info in MODELS.items()}
    table = printed[["paper_dice"]].rename(columns={"paper_dice": "paper"})
    ours = ours["batch_pooled_dice"].rename("ours")
    return table.join(ours).assign(parameters=table.index.map(sizes)).sort_index().reset_index()


def speed_rows() -> pd.DataFrame:
    """Return engine and fps of UltraSeg-130K on one core in float32, slowest first."""
    bench = json.loads((outputs_dir("reference") / "bench" / "bench.json").read_text("utf-8"))
    rows = one_core(pd.DataFrame(bench["rows"])).query("model == 'ultraseg_130k'")
    rows = rows.assign(engine=rows["backend"].map(ENGINES), fps=1000 / rows["median_ms"])
    return rows[["engine", "fps"]].sort_values("fps", ignore_index=True).assign(cpu=bench["cpu"])


def _draw_dice(axes: Axes, rows: pd.DataFrame) -> None:
    millions = rows["parameters"] / 1e6
    axes.plot(millions, rows["paper"], "D", ms=10, mfc="none", mec="0.35", mew=2, label="the paper")
    axes.plot(millions, rows["ours"], "*", ms=22, color=PALETTE[3], label="recipe strong, ours")
    for row, x in zip(rows.itertuples(), millions, strict=True):
        if row.ours == row.ours:
            arrow = {"arrowstyle": "-|>", "color": PALETTE[3], "lw": 2, "shrinkA": 8, "shrinkB": 10}
            axes.annotate("", (x, row.ours), (x, row.paper), arrowprops=arrow)
        at_ours, *offset = NAMES[row.title]
        axes.annotate(row.title, (x, row.ours if at_ours else row.paper), offset,
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
- **By the paper's own rules.** UltraSeg-130K on Kvasir-SEG, recipe `paper`, the epoch picked on the test part: Dice {paper[batch_pooled_dice]:.3f} per batch of 4, where the paper prints {printed[UltraSeg-130K]:.4f}; {paper[dice]:.3f} per image.
- **What that protocol flatters.** Recipe `paper`, per image, Kvasir-SEG and CVC-ClinicDB: {released[paper]} by the released protocol (the test part picks the epoch, the validation part is trained on), {clean[paper]} by the clean one. Recipe `strong`: {released[strong]}, against {clean[strong]}.
- **Trained harder.** By our recipe `strong`, the epoch picked on a validation part, the same network reaches {us[batch_pooled_dice]:.3f} per batch of 4 and {us[dice]:.3f} per image. The paper prints {printed[UNet-Base]:.4f} for UNet-Base, {base:.0f} million parameters, trained by its recipe; how much that would gain by ours is not run.
- **Fair to the others.** By recipe `strong` UltraSeg-130K is ahead of LB-UNet by {lead[LB-UNet]:.3f} and of UNet-Tiny by {lead[UNet-Tiny]:.3f} (per batch of 4); the paper prints {paper_lead[LB-UNet]:.3f} and {paper_lead[UNet-Tiny]:.3f}.
- **Hospitals that no training saw.** Trained on the mixed set, per image: {unseen}.
- **Videos on both sides of a split.** UltraSeg-130K on CVC-ClinicDB: {frames:.3f} per image where frames are drawn at random, as in the paper, {videos:.3f} where the test frames are of videos of their own.
- **One core is enough.** Frames a second by kernels of its own and by plain PyTorch: {speeds}; with the same masks but for a few pixels in a million."""


def findings() -> str:
    """Return the main results as a Markdown list; every number is read from the record."""
    table = external.score_table(external.by_tested(tables.longest_runs(committed_ledger())))
    table = table.set_index(["model", "dataset", "tested", "recipe", "protocol"])

    def reached(dataset: str, recipe: str = "strong", protocol: str = "clean") -> pd.Series:
        return table.loc[("ultraseg_130k", dataset, dataset, recipe, protocol)]

    def by_recipe(protocol: str) -> dict[str, str]:
        told = {}
        for recipe in ("paper", "strong"):
            rows = (reached(name, recipe, protocol) for name in ("kvasir_seg", "cvc_clinicdb"))
            told[recipe] = " and ".join(f"{row['dice']:.3f}" for row in rows)
        return told

    dice = dice_rows().set_index("title")
    others = ["LB-UNet", "UNet-Tiny"]
    return FINDINGS.format(
        paper=reached("kvasir_seg", "paper", "released"),
        released=by_recipe("released"),
        clean=by_recipe("clean"),
        us=reached("kvasir_seg"),
        printed=dice["paper"],
        base=dice["parameters"]["UNet-Base"] / 1e6,
        lead=dice["ours"]["UltraSeg-130K"] - dice["ours"][others],
        paper_lead=dice["paper"]["UltraSeg-130K"] - dice["paper"][others],
        unseen=_unseen(),
        frames=reached("cvc_clinicdb")["dice"],
        videos=reached("cvc_clinicdb@sequence")["dice"],
        speeds=_speeds(),
    )


def _speeds() -> str:
    """Say how many frames a second UltraSeg-130K reaches in float32 on one core of each machine."""
    fps = 1000 / recorded_machines()[HEADINGS["median_ms"]].loc["float32"]
    ours, plain = (fps.loc[ENGINES[backend]] for backend in ("native", "eager"))
    return ", ".join(f"{ours[cpu]:.0f} and {plain[cpu]:.0f} ({cpu})" for cpu in fps)


def _unseen() -> str:
    """Say what the shipped weights of the mixed set reach on ETIS and BKAI, per image."""
    told = []
    for model in OURS:
        shipped = shipped_weights(model)["mixed"].parent
        scores = pd.read_csv(shipped / "scores.csv").groupby("test_set")["dice"].mean()
        levels = (f"{scores[name]:.3f} on {dataset_title(name)}" for name in EXTERNAL)
        told.append(f"{model_title(model)} {' and '.join(levels)}")
    return "; ".join(told)
