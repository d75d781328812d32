"""Ablation and distillation: pairs, verdicts, learned weights, and the price of choosing on the test part."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from ledgers import own

from ultraseg_lib import study
from ultraseg_lib.report import ablation
from ultraseg_lib.training import WEIGHT_COLUMN

LOW, HIGH = [0.2, 0.4, 0.6, 0.4] * 5, [0.4, 0.6, 0.8, 0.6] * 5


def test_a_model_is_compared_within_its_setting_and_seed():
    parts = [
        own("ultraseg_130k", HIGH),
        own("ultraseg_130k+fusion_fixed", LOW),
        own("ultraseg_130k+fusion_fixed", HIGH, recipe="paper"),  # nothing to compare it with
    ]
    table = ablation.compare(pd.concat(parts), [("ultraseg_130k+fusion_fixed", "ultraseg_130k")])
    assert table["difference"].tolist() == pytest.approx([-0.2])
    assert table["title"].tolist() == ["fixed fusion"]
    assert ablation.format_differences(table)["zero is"].tolist() == ["outside"]


def test_another_seed_is_the_yardstick():
    ledger = pd.concat([own("ultraseg_130k", HIGH), own("ultraseg_130k", LOW, seed=1)])
    table = ablation.compare_seeds(ledger, "ultraseg_130k")
    assert table["title"].tolist() == ["nothing but the seed (1)"]
    assert table["difference"].tolist() == pytest.approx([-0.2])
    assert ablation.compare_seeds(own("ultraseg_130k", LOW), "ultraseg_130k").empty


def test_the_ladder_shows_every_rung_and_says_what_was_not_run():
    ladder = ablation.ladder_table(own("lbunet", HIGH, "kvasir_seg"))
    assert ladder["model"].tolist() == list(ablation.LADDER)
    assert ladder["dice"].notna().sum() == 1
    assert ladder.set_index("model").loc["lbunet", "paper_dice"] == 0.6940
    text = ablation.format_ladder(ladder)
    assert text["Dice"].tolist().count("not run") == 4
    assert len(ablation.plot_ladder(ladder).axes) == 2
    assert ablation.ladder_table(own("unet_base", HIGH)).empty


def test_the_reconstructed_rung_has_the_papers_size():
    row = ablation.sizes(["ultraseg_108k_st"]).iloc[0]
    paper = ablation.paper_table5().set_index("model").loc["ultraseg_108k_st"].iloc[0]
    assert row["as_paper_parameters"] / 1e6 == pytest.approx(paper["paper_params_m"], abs=0.0011)
    assert row["as_paper_flops"] / 1e9 == pytest.approx(paper["paper_flops_g"], rel=0.005)


def test_choosing_among_equals_gains_and_choosing_the_better_does_not():
    rng = np.random.default_rng(0)
    equal = rng.normal(0, 0.1, (3, 40))
    assert ablation.selection_bonus(equal) > 0.005
    apart = rng.normal(0, 0.001, (3, 40)) + np.array([[0.0], [0.5], [0.1]])
    assert ablation.selection_bonus(apart) == pytest.approx(0, abs=1e-3)


@pytest.fixture
def distilled(outputs) -> pd.DataFrame:
    """A teacher, a student and three taught ones; validation favours 10 %, the test part 30 %."""
    scores = {"unet_small": HIGH, "ultraseg_108k": LOW}
    shifts = {"kd10": 0.05, "kd20": 0.0, "kd30": 0.1}
    for name, shift in shifts.items():
        scores[f"ultraseg_108k+{name}"] = [value + shift for value in LOW]
    val = dict(zip(scores, (0.9, 0.5, 0.8, 0.6, 0.7), strict=True))
    parts = [own(name, dice) for name, dice in scores.items()]
    for part, name in zip(parts, scores, strict=True):
        run = study.parse_run_id("demo", part["run_id"].iloc[0])
        run.folder.mkdir(parents=True)
        history = pd.DataFrame({"epoch": [1, 2], "val_dice": [0.1, val[name]]})
        history.to_csv(run.folder / "history.csv", index=False)
    return pd.concat(parts, ignore_index=True)


def test_the_weight_of_eq_6_is_chosen_on_the_validation_part(distilled):
    table = ablation.distillation_table(distilled, "demo", "unet_small")
    assert set(table["variant"]) == {"", "kd10", "kd20", "kd30"}
    assert set(table["model"]) >= {"unet_small", "ultraseg_108k"}
    row = ablation.choice_table(distilled, table).iloc[0]
    assert (row["chosen"], row["best"]) == ("kd10", "kd30")
    assert row["worth"] == pytest.approx(0.05)
    student = table[table["student"] == "ultraseg_108k"]
    assert len(ablation.plot_choice(student).axes) == 1
    assert ablation.distillation_table(own("lbunet", LOW), "demo", "unet_small").empty


@pytest.fixture
def trained(outputs) -> tuple[study.Run, study.Profile]:
    plan = study.load_profile("demo", models=["ultraseg_130k"], seeds=[0], epochs=2)
    plan = replace(plan, image_size=32, generated={"count": 40, "seed": 1})
    run = study.plan_runs(plan)[0]
    study.run_once(run, plan)
    return run, plan


def test_learned_weights_stand_in_the_history_and_in_the_kept_file(trained):
    run, plan = trained
    assert ablation.has_weights_over_epochs(run)
    over = ablation.weights_over_epochs(run)
    assert set(over["epoch"]) == {1, 2}
    assert any(name.endswith("alpha") for name in over["weight"])
    kept = ablation.kept_weights([run])
    history = pd.read_csv(run.folder / "history.csv")
    best = history.loc[history["val_dice"].idxmax()]
    for row in kept.itertuples():
        assert row.kept == pytest.approx(best[WEIGHT_COLUMN + row.weight], abs=1e-6)
    summary = ablation.summarize_weights(kept)
    assert set(summary["weight"]) == set(over["weight"])
    assert (summary["moved"] >= 0).all()
    assert ablation.plot_weights(over, "x").axes
    worth = ablation.worth_of_learned_weights(run, plan)
    assert worth.low <= worth.mean <= worth.high


def test_an_older_history_without_weights_is_told(trained):
    run, _ = trained
    path = run.folder / "history.csv"
    history = pd.read_csv(path)
    history.loc[:, ~history.columns.str.startswith(WEIGHT_COLUMN)].to_csv(path, index=False)
    assert not ablation.has_weights_over_epochs(run)
    assert ablation.weights_over_epochs(run).empty
