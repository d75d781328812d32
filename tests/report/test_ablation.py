"""Ablation and distillation: pairs, verdicts, learned weights, and the price of choosing on the test part."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ledgers import HIGH, LOW, own
from safetensors.torch import load_file, save_file

from ultraseg_lib import study
from ultraseg_lib.metrics import dice_score
from ultraseg_lib.report import ablation, figures
from ultraseg_lib.training import WEIGHT_COLUMN, predict_probs


def test_a_model_is_compared_within_its_setting_and_seed():
    parts = [
        own("ultraseg_130k", HIGH),
        own("ultraseg_130k+fusion_fixed", LOW),
        own("ultraseg_130k+fusion_fixed", HIGH, recipe="paper"),  # nothing to compare it with
    ]
    table = ablation.compare(pd.concat(parts), [("ultraseg_130k+fusion_fixed", "ultraseg_130k")])
    assert table["difference"].tolist() == pytest.approx([-0.2])
    assert table["title"].tolist() == ["fixed fusion"]
    assert table["verdict"].tolist() == ["too few seeds: no verdict"]


def test_what_another_seed_does_follows_the_differences():
    pair = [("ultraseg_130k+fusion_fixed", "ultraseg_130k")]
    changed, plain = own(pair[0][0], LOW), own(pair[0][1], HIGH)
    again = own("ultraseg_130k", np.array(HIGH) - 0.02, seed=1)
    other = own("lbunet", LOW, seed=1)  # one seed: no yardstick
    ledger = pd.concat([changed, plain, again, other])
    chance = ablation.compare_seeds(ledger, ["lbunet", "ultraseg_130k"])
    assert chance["title"].tolist() == ["UltraSeg-130K, seed 1 − seed 0"]
    assert chance["difference"].tolist() == pytest.approx([-0.02])
    table = ablation.beside_seeds(ablation.compare(ledger, pair), chance)
    assert table["label"].tolist() == ["fixed fusion", "UltraSeg-130K, seed 1 − seed 0"]
    assert table["verdict"].tolist() == ["too few seeds: no verdict", "the seed alone"]
    alone = ablation.compare(pd.concat([changed, plain]), pair)
    none = ablation.compare_seeds(plain, ["ultraseg_130k"])
    assert ablation.beside_seeds(alone, none)["verdict"].tolist() == ["too few seeds: no verdict"]


def test_patience_is_priced_from_a_run_that_went_on(outputs):
    dice = [0.1, 0.5, 0.4, 0.5, 0.45, 0.6, 0.55, 0.7, 0.65]
    run = study.Run("full", ablation.WHOLE, "kvasir_seg", "strong", "clean", 9, 3)
    run.folder.mkdir(parents=True)
    history = pd.DataFrame({"epoch": range(1, len(dice) + 1), "val_dice": dice})
    history.to_csv(run.folder / "history.csv", index=False)
    for patience, stop, then in ((3, 5, 0.5), (4, 9, 0.7), (1, 3, 0.5)):
        row = ablation.cost_of_patience([run], patience).iloc[0]
        assert (row["seed"], row["stop"], row["best_epoch"]) == (
            3,
            stop,
            8,
        )  # an equal Dice is no better
        assert (row["dice_then"], row["dice_end"]) == (then, 0.7)
        assert row["cost"] == pytest.approx(0.7 - then)
    figure = ablation.plot_patience([run], ablation.cost_of_patience([run], 3))
    stop, then, best = (line.get_xdata()[0] for line in figure.axes[0].lines[1:4])
    assert (stop, then, best) == (5, 2, 8)


def test_a_step_is_named_by_its_rungs_and_has_seeds_beside_it():
    ledger = pd.concat([own("lbunet", np.array(LOW) + 0.1 * seed, seed=seed) for seed in range(2)])
    pair = ablation.compare(pd.concat([ledger, own("unet_tiny", LOW)]), [("lbunet", "unet_tiny")])
    steps = ablation.beside_seeds(
        pair.assign(label=ablation.step_label(pair)), ablation.compare_seeds(ledger, ["lbunet"])
    )
    names = ["LB-UNet − UNet-Tiny", "LB-UNet, seed 1 − seed 0"]
    axes = figures.plot_differences(steps, "the rung before").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == names


def test_every_two_seeds_are_the_yardstick():
    ledger = pd.concat([own("lbunet", np.array(LOW) + 0.1 * seed, seed=seed) for seed in range(3)])
    chance = ablation.compare_seeds(ledger, ["lbunet"])
    assert chance["difference"].tolist() == pytest.approx([0.1, 0.2, 0.1])


def test_the_ladder_shows_every_rung_of_a_setting_with_two_and_says_what_was_not_run():
    rungs = [own("lbunet", HIGH, "kvasir_seg"), own("ultraseg_108k", HIGH, "kvasir_seg")]
    alone = own("lbunet", HIGH, "kvasir_seg", recipe="paper")
    ladder = ablation.ladder_table(pd.concat([*rungs, alone]))
    assert ladder["model"].tolist() == list(ablation.LADDER)
    assert ladder["dice"].notna().sum() == 2
    assert ladder.set_index("model").loc["lbunet", "paper_dice"] == 0.6940
    text = ablation.format_ladder(ladder)
    assert text["Dice"].tolist().count("not run") == 3
    left = ablation.plot_ladder(ladder).axes[0]
    assert [label.get_text() for label in left.texts] == ["not run"] * 3
    assert ablation.format_ladder(ablation.ladder_table(alone)).empty


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
    assert set(table["images"]) == {len(LOW)}
    assert set(table["model"]) >= {"unet_small", "ultraseg_108k"}
    row = ablation.choice_table(distilled, table).iloc[0]
    assert (row["chosen"], row["best"]) == ("kd10", "kd30")
    assert row["worth"] == pytest.approx(0.05)
    assert row["baseline"] == pytest.approx(np.mean(LOW))
    assert table["model"].tolist()[:2] == ["unet_small", "ultraseg_108k"]  # then those taught
    student = table[table["student"] == "ultraseg_108k"]
    legend = ablation.plot_choice(student).axes[0].get_legend()
    assert "the same, without a teacher" in [text.get_text() for text in legend.get_texts()]
    assert ablation.format_choice(ablation.choice_table(distilled, table)).iloc[0]["student"] == "UltraSeg-108K"  # fmt: skip
    assert ablation.distillation_table(own("lbunet", LOW), "demo", "unet_small").empty


def test_a_seed_that_only_the_plain_student_has_does_not_count(distilled, outputs):
    again = own("ultraseg_108k", HIGH, seed=1)
    table = ablation.distillation_table(pd.concat([distilled, again]), "demo", "unet_small")
    row = ablation.choice_table(pd.concat([distilled, again]), table).iloc[0]
    assert row["baseline"] == pytest.approx(np.mean(LOW))
    assert set(table["seeds"]) == {1}


def test_a_choice_rests_on_the_seeds_of_the_table(distilled, outputs):
    ledger = [distilled, distilled.assign(seed=1, dice=1 - distilled["dice"])]
    ledger.append(own("ultraseg_108k+kd_logits", LOW))  # one seed
    folder = study.parse_run_id("demo", ledger[-1]["run_id"].iloc[0]).folder
    folder.mkdir(parents=True)
    pd.DataFrame({"epoch": [1], "val_dice": [0.5]}).to_csv(folder / "history.csv", index=False)
    table = ablation.distillation_table(pd.concat(ledger), "demo", "unet_small")
    student = table[table["student"] == "ultraseg_108k"]
    assert set(student["seeds"]) == {1}
    row = ablation.choice_table(pd.concat(ledger), table).iloc[0]
    assert row["baseline"] == pytest.approx(np.mean(LOW))
    assert row["best_delta"] == pytest.approx(0.1)


def tiny_plan() -> study.Profile:
    plan = study.load_profile("demo", models=["ultraseg_130k"], seeds=[0], epochs=2)
    return replace(plan, image_size=32, generated={"count": 40, "seed": 1})


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory) -> Path:
    """Give an outputs folder with the run of the plan."""
    folder, plan = tmp_path_factory.mktemp("outputs"), tiny_plan()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ULTRASEG_OUTPUTS", str(folder))
        study.run_once(study.plan_runs(plan)[0], plan)
    return folder


@pytest.fixture
def trained(trained_once, outputs) -> tuple[study.Run, study.Profile]:
    """Give the run, a copy to change."""
    shutil.copytree(trained_once / "demo", outputs / "demo")
    plan = tiny_plan()
    return study.plan_runs(plan)[0], plan


def test_learned_weights_stand_in_the_history_and_in_the_kept_file(trained):
    run, _ = trained
    assert len(ablation.weights_over_epochs(run))
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
    up = kept["kept"] > kept["start"]
    assert summary["direction"].tolist() == ["up" if each else "down" for each in up]
    walks = (kept["kept"] - kept["start"]).abs() / kept["coin_tosses"]
    assert summary["moved"].tolist() == pytest.approx(walks.tolist())
    panels = [axes.get_title() for axes in ablation.plot_weights(over, "x").axes]
    assert panels == list(ablation.PANELS.values())


def test_putting_back_weights_that_never_moved_is_worth_nothing(trained):
    run, plan = trained
    starts = ablation.learned_scalars(ablation.build_model(run.model))
    path = run.folder / "weights.safetensors"
    weights = load_file(path)
    assert ablation.worth_of_learned_weights(run, plan).mean != 0
    for name, value in starts.items():
        weights[name.removeprefix(WEIGHT_COLUMN)].fill_(value)
    save_file(weights, path)
    frames = study.test_frames(run.dataset, plan)
    scores = study.read_scores(run)
    probs = predict_probs(study.load_trained(run), frames.images)
    scores.loc[scores["test_set"] == run.dataset, "dice"] = dice_score(
        probs >= 128, frames.masks > 0
    )
    scores.to_csv(run.folder / "scores.csv", index=False)
    assert ablation.worth_of_learned_weights(run, plan).mean == 0


def test_an_older_history_without_weights_is_told(trained):
    run, _ = trained
    path = run.folder / "history.csv"
    history = pd.read_csv(path)
    history.loc[:, ~history.columns.str.startswith(WEIGHT_COLUMN)].to_csv(path, index=False)
    assert ablation.weights_over_epochs(run).empty
