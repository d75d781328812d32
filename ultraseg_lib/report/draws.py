"""What the draw of the test part is worth: Kvasir-SEG's random split, drawn three times."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from ultraseg_lib.data import dataset_title
from ultraseg_lib.data.splits import read_split, split_path
from ultraseg_lib.paths import outputs_dir
from ultraseg_lib.report.figures import PER_BATCH, model_style
from ultraseg_lib.report.tables import (
    error_bars,
    main_table,
    paper_table3,
    seed_words,
    settled_runs,
)

DATASET = "kvasir_seg"
DRAWS = {"random": "first draw", "draw_2": "second draw", "draw_3": "third draw"}
OUTSIDE = "seen_from_outside.csv"  # in the committed record
NAMES = {draw: DATASET if draw == "random" else f"{DATASET}@{draw}" for draw in DRAWS}
TRAINED = "model == 'ultraseg_130k' and recipe == 'paper' and protocol == 'released'"


def hardness() -> pd.DataFrame:
    """Return how hard each test part is for models that were trained elsewhere: a row a draw.

    Columns: draw, images (of the test part), tested and rest (mean Dice on it and on all other
    images), difference, low and high (its 95 % interval by Welch).
    """
    dice = pd.read_csv(outputs_dir("reference") / OUTSIDE, index_col="image_id").mean(axis=1)
    rows = []
    for draw in DRAWS:
        in_test = read_split(split_path(DATASET, draw)).reindex(dice.index) == "test"
        tested, rest = dice[in_test].to_numpy(), dice[~in_test].to_numpy()
        interval = stats.ttest_ind(tested, rest, equal_var=False).confidence_interval()
        levels = tested.mean(), rest.mean()
        rows.append([draw, len(tested), *levels, levels[0] - levels[1], *interval])
    columns = ["draw", "images", "tested", "rest", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def draws_table(ledger: pd.DataFrame) -> pd.DataFrame:
    """Return `hardness` with what UltraSeg-130K, trained close to the paper's rules, has on each draw.

    More columns: those of `tables.main_table`, NaN for a draw on which none was trained,
    paper_dice.
    """
    trained = main_table(settled_runs(ledger.query(TRAINED)))
    draw_of = {name: draw for draw, name in NAMES.items()}
    trained = trained.assign(draw=trained["dataset"].map(draw_of)).dropna(subset="draw")
    printed = paper_table3().query("dataset == @DATASET and title == 'UltraSeg-130K'")
    table = hardness().drop(columns="images").merge(trained, on="draw", how="left")
    return table.assign(paper_dice=printed["paper_dice"].item())


def plot_draws(table: pd.DataFrame) -> Figure:
    """Show `draws_table`: left the test part seen from outside, right what was trained on the draw."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 4.6), sharey=True)
    y = np.arange(len(table))
    bars = [table["difference"] - table["low"], table["high"] - table["difference"]]
    left.errorbar(table["difference"], y, xerr=bars, fmt="s", ms=12, lw=3, capsize=6, color="0.4")
    left.axvline(0, color="black", lw=1.5)
    left.set(yticks=y, ylim=(len(table) - 0.5, -0.5), title="models trained elsewhere")
    left.set_yticklabels(table["draw"].map(DRAWS))
    left.set_xlabel(
        "Dice: test part less all other images,\n95 % interval (left: a harder test part)"
    )
    right.errorbar(table["dice"], y, xerr=error_bars(table), fmt="o", ms=12, lw=3, capsize=6,
                   color=model_style("ultraseg_130k")[0], label="per image,\n95 % interval")  # fmt: skip
    right.plot(table["batch_pooled_dice"], y, **PER_BATCH, label="per batch of 4")
    right.axvline(table["paper_dice"].iloc[0], color="black", ls="--", lw=2,
                  label="the paper,\nper batch of 4")  # fmt: skip
    for place, seeds in enumerate(table["seeds"]):
        words = "not run" if np.isnan(seeds) else seed_words(seeds)
        right.annotate(
            words, (0.01, place - 0.25), xycoords=("axes fraction", "data"), size="small"
        )
    right.set(xlabel="Dice on the test part", title="UltraSeg-130K, recipe paper")
    figure.suptitle(f"{dataset_title(DATASET)}: three draws of the test part")
    right.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    return figure
