"""Draws of a split: how hard each is, told from outside, and what was trained on it."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from tools.draws import outsiders
from ultraseg_lib import study
from ultraseg_lib.data.splits import read_split, split_path
from ultraseg_lib.paths import ROOT
from ultraseg_lib.report import draws


def test_outsiders_saw_no_image_of_the_dataset():
    runs = outsiders()
    table = pd.read_csv(ROOT / "outputs/reference" / draws.OUTSIDE, index_col="image_id")
    assert list(table.columns) == [run.run_id for run in runs], "renew: python -m tools.draws"
    assert set(table.index) == set(read_split(split_path(draws.DATASET)).index)
    assert not [run for run in runs if run.dataset.startswith((draws.DATASET, "mixed"))]


def test_hardness_is_the_mean_on_the_test_part_less_that_on_the_rest(monkeypatch, tmp_path):
    parts = read_split(split_path(draws.DATASET, "draw_2"))
    dice = np.where(parts == "test", 0.3, 0.6)
    (tmp_path / "reference").mkdir()
    pd.DataFrame({"image_id": parts.index, "one": dice, "two": dice + 0.2}).to_csv(
        tmp_path / "reference" / draws.OUTSIDE, index=False
    )
    monkeypatch.setenv("ULTRASEG_OUTPUTS", str(tmp_path))
    table = draws.hardness().set_index("draw")
    hard = table.loc["draw_2"]
    assert hard[["images", "tested", "rest"]].tolist() == pytest.approx([200, 0.4, 0.7])
    assert hard[["difference", "low", "high"]].tolist() == pytest.approx([-0.3] * 3)
    easy = table.loc["random"]  # a fifth of its images stand in the hard part, as of all
    assert easy["low"] < 0 < easy["high"]
    assert easy["low"] < easy["difference"] < easy["high"]


def test_a_draw_without_a_training_is_shown_without_it():
    ledger = study.read_ledger("reference")
    table = draws.draws_table(ledger[~ledger["dataset"].str.contains("draw_3")])
    table = table.set_index("draw")
    assert list(table.index) == list(draws.DRAWS)
    assert np.isnan(table["dice"]["draw_3"])
    plain = ledger.query(draws.TRAINED)
    plain = plain[(plain["dataset"] == draws.DATASET) & (plain["test_set"] == draws.DATASET)]
    assert table["dice"]["random"] == pytest.approx(plain["dice"].mean())
    figure = draws.plot_draws(table.reset_index())
    labels = [each.get_text() for each in figure.axes[0].get_yticklabels()]
    assert labels == list(draws.DRAWS.values())
    trained = ledger.query(draws.TRAINED).groupby("dataset")["seed"].nunique()
    seeds = [each.get_text() for each in figure.axes[1].texts]
    assert seeds == [
        f"{trained[draws.DATASET]} seeds",
        f"{trained[draws.NAMES['draw_2']]} seeds",
        "not run",
    ]
    plt.close(figure)
