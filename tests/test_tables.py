"""Which runs a table compares, and what it says of a change that does nothing or much."""

from dataclasses import replace

import pandas as pd
import pytest
from ledgers import own, rows

from ultraseg_lib import study
from ultraseg_lib.report import figures, tables

LOW, HIGH = [0.2, 0.4, 0.6, 0.4] * 5, [0.4, 0.6, 0.8, 0.6] * 5


def test_only_whole_sets_and_whole_models_stand_in_the_main_table():
    ledger = pd.concat(
        [
            own("lbunet", LOW),
            rows("lbunet", "synthetic", "synthetic_unseen", HIGH),
            own("lbunet", LOW, "synthetic@p50"),
            own("lbunet", LOW, "synthetic@center_1"),
            own("lbunet", LOW, "cvc_clinicdb@sequence"),
            own("ultraseg_130k+no_boundary_loss", HIGH),
            own("ultraseg_108k_st", HIGH),
        ]
    )
    table = tables.main_table(tables.whole_models(ledger))
    assert set(zip(table["model"], table["dataset"], strict=True)) == {
        ("lbunet", "synthetic"),
        ("lbunet", "cvc_clinicdb@sequence"),
    }
    assert table["dice"].tolist() == pytest.approx([0.4, 0.4])


def test_a_choice_is_compared_on_the_same_images_and_seeds():
    ledger = pd.concat(
        [
            own("lbunet", HIGH, recipe="strong"),
            own("lbunet", LOW, recipe="paper"),
            own("lbunet", HIGH, recipe="paper", protocol="released", seed=1),  # no seed in common
        ]
    )
    choices = tables.choices_table(ledger)
    assert len(choices) == 1
    row = choices.iloc[0]
    assert row["changed"] == "recipe"
    assert abs(row["difference"]) == pytest.approx(0.2)
    assert row["low"] == pytest.approx(row["high"]) == pytest.approx(row["difference"])
    assert {row["a"], row["b"]} == {"strong, clean, 12 epochs", "paper, clean, 12 epochs"}
    labelled = choices.assign(label="one\nmore")
    assert figures.plot_differences(labelled, "the other").axes[0].get_yticklabels()


def test_no_choices_without_two_settings():
    assert tables.choices_table(own("lbunet", LOW)).empty


def test_what_is_missing_is_named_whatever_its_epochs(outputs):
    plan = study.load_profile("demo", models=["unet_tiny", "lbunet"], seeds=[0])
    done, missing = study.plan_runs(plan)
    other = replace(done, epochs=3)
    other.folder.mkdir(parents=True)
    (other.folder / "scores.csv").write_text("x")
    assert study.missing_runs(plan) == [missing]
    assert study.tell_missing(plan).splitlines() == [
        "1 of 2 planned runs are missing",
        f"  {missing.run_id}",
    ]
    assert "plans no runs for grid ablation" in study.tell_missing(plan, "ablation")
    assert study.tell_missing(plan, most=0).endswith("and 1 more")
