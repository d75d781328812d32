"""Verdicts follow from data: each claim has its rule, and another ledger gives another verdict."""

import re

import numpy as np
import pandas as pd
import pytest

from ultraseg_lib.deploy.timing import Timed
from ultraseg_lib.paths import ROOT, write_json
from ultraseg_lib.report import claims, printed
from ultraseg_lib.report.ablation import selection_bonus
from ultraseg_lib.report.claims import Evidence

IMAGES = 40
BY_ID = {claim["id"]: claim for claim in claims.read_claims()}


def rows(model: str, dice: np.ndarray, dataset: str = "kvasir_seg", **changes) -> pd.DataFrame:
    """Return what a ledger holds of one run."""
    base = {
        "run_id": f"{model}-{dataset}", "test_set": dataset, "center": "", "modality": "WLI",
        "area": 900, "n_polyps": 1, "iou": 0.5, "hd95": 9.0, "detected": True, "model": model,
        "dataset": dataset, "recipe": "strong", "protocol": "clean", "epochs": 9, "seed": 0,
        "batch_pooled_dice": float(np.mean(dice)),
    }  # fmt: skip
    names = [f"image {i}" for i in range(len(dice))]
    return pd.DataFrame({"image_id": names, "dice": dice}).assign(**(base | changes))


@pytest.fixture
def level() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.5, 0.8, IMAGES)


def decide(name: str, *runs: pd.DataFrame) -> claims.Finding:
    evidence = Evidence("full")
    evidence.__dict__["ledger"] = pd.concat(runs) if runs else pd.DataFrame(columns=rows("a", []).columns)  # fmt: skip
    return claims.CHECKS[name](evidence, BY_ID[name]["stated"])


# --- the list -------------------------------------------------------------------------------------


def test_every_claim_has_its_rule_and_every_rule_its_claim():
    assert len(BY_ID) == len(claims.read_claims()) >= 25
    assert {name for name, each in BY_ID.items() if "ours" in each} == set(claims.CHECKS)
    assert {name for name, each in BY_ID.items() if "printed" in each} == set(printed.CHECKS)
    sections = {each["section"] for each in BY_ID.values()}
    assert {"Abstract", "Contributions", "Introduction", "Conclusion", "Discussion"} <= sections
    assert len([name for name in sections if name.startswith("Section")]) >= 8


def test_known_slips_of_the_paper_are_found_in_its_own_tables():
    verdicts = {name: check(BY_ID[name]["stated"]) for name, check in printed.CHECKS.items()}
    fails = {name for name, finding in verdicts.items() if not finding.holds}
    assert {"eq3_is_13", "external_gaps", "frames_a_second_fit", "tables_agree"} <= fails
    assert "0.4274 and 0.5431" in verdicts["tables_agree"].evidence
    assert {"keeps_most_of_unet", "beats_lbunet", "mean_of_five"}.isdisjoint(fails)


def test_a_claim_fails_when_the_printed_number_changes(monkeypatch):
    changed = printed.printed_table(3).assign(avg_dice=lambda t: t["avg_dice"] - 0.1)
    changed.loc["UNet-Base", "avg_dice"] += 0.1
    monkeypatch.setattr(printed, "printed_table", lambda number: changed)
    assert not printed.CHECKS["keeps_most_of_unet"]({"share": 0.94}).holds


# --- our evidence ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("lead", "verdict"), [(0.1, True), (0.0, None), (-0.1, False)])
def test_a_lead_is_decided_by_its_whole_interval(level, lead, verdict):
    noise = np.random.default_rng(1).normal(0, 0.05, IMAGES)
    other = rows("lbunet", level)
    finding = decide("clear_margin_everywhere", rows("ultraseg_130k", level + lead + noise - noise.mean()), other)  # fmt: skip
    assert finding.holds is verdict
    assert set(finding.runs) == {"ultraseg_130k-kvasir_seg", "lbunet-kvasir_seg"}


def test_runs_that_were_trained_otherwise_are_not_compared(level):
    ours, other = rows("ultraseg_130k", level + 0.1), rows("lbunet", level, recipe="paper")
    finding = decide("clear_margin_everywhere", ours, other)
    assert finding.holds is None
    assert "no such run on real images" in finding.evidence


def test_generated_images_decide_nothing_on_dice(outputs, monkeypatch, level):
    runs = [rows("ultraseg_130k", level + 0.1, "synthetic"), rows("lbunet", level, "synthetic")]
    monkeypatch.setattr(claims.study, "read_ledger", lambda profile: pd.concat(runs))
    finding = claims.CHECKS["clear_margin_everywhere"](Evidence("demo"), {})
    assert finding == (None, "generated images only in the demo ledger", ())


def test_a_stated_lead_that_the_interval_excludes_fails(level):
    near = level + np.random.default_rng(1).normal(0.01, 0.002, IMAGES)
    pair = rows("ultraseg_130k", near), rows("lbunet", level)
    assert decide("beats_lbunet", *pair).holds is False
    assert "smaller than 0.046" in decide("beats_lbunet", *pair).evidence


def test_equal_boundary_targets_cost_nothing_and_worse_ones_something(level):
    noise = np.random.default_rng(1).normal(0, 0.01, IMAGES)
    name = "ultraseg_130k+morphological_edges"
    same = decide("canny_costs_nothing", rows("ultraseg_130k", level + noise), rows(name, level))
    worse = decide("canny_costs_nothing", rows("ultraseg_130k", level - 0.1 + noise), rows(name, level))  # fmt: skip
    assert (same.holds, worse.holds) == (True, False)


def test_distillation_fails_to_help_until_a_gain_is_certain(level):
    plain = rows("ultraseg_108k", level)
    taught = rows("ultraseg_108k+kd10", level)
    assert decide("distillation_does_not_help", plain, taught).holds is True
    better = rows("ultraseg_108k+kd20", level + 0.05)
    assert decide("distillation_does_not_help", plain, taught, better).holds is False
    assert decide("distillation_does_not_help", plain).holds is None


def test_mixed_training_is_compared_image_by_image(level):
    single = rows("ultraseg_130k", level)
    mixed = rows("ultraseg_130k", level + 0.05, "mixed", test_set="kvasir_seg", epochs=5)
    assert decide("mixed_beats_single", single, mixed).holds is True
    assert decide("mixed_beats_single", single).holds is None
    lower = rows("ultraseg_130k", level - 0.05, "mixed", test_set="kvasir_seg", epochs=6)
    assert decide("mixed_beats_single", single, lower).holds is False
    assert decide("mixed_beats_single", single, mixed, lower).holds is False  # the longest counts


def test_gains_of_mixing_are_compared_recipe_by_recipe(level):
    def runs(model: str, gain: float, recipe: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        mixed = rows(model, level + gain, "mixed", test_set="kvasir_seg", recipe=recipe)
        return rows(model, level, recipe=recipe), mixed

    small = [*runs("ultraseg_130k", 0.03, "strong"), *runs("ultraseg_130k", 0.02, "multiscale")]
    assert decide("data_helps_small_models_more", *small).holds is None
    finding = decide("data_helps_small_models_more", *small, *runs("unet_base", 0.01, "strong"))
    assert finding.holds is True
    assert "strong: +0.030 and +0.010" in finding.evidence
    assert decide("data_helps_small_models_more", *small, *runs("unet_base", 0.05, "strong")).holds is False  # fmt: skip


def test_unseen_datasets_compare_models_that_were_trained_alike(level):
    def run(model: str, dice: np.ndarray, dataset: str) -> pd.DataFrame:
        return rows(model, dice, dataset, test_set="etis_larib")

    wide = run("ultraseg_130k", level + 0.05, "mixed")
    assert decide("attention_helps_outside", wide, run("ultraseg_108k", level, "mixed")).holds
    other = run("ultraseg_108k", level, "kvasir_seg")
    assert decide("attention_helps_outside", wide, other).holds is None


def test_a_split_by_sequence_decides_on_inflation(level):
    random = rows("ultraseg_130k", level + 0.2, "cvc_clinicdb")
    grouped = rows("ultraseg_130k", level, "cvc_clinicdb@sequence")
    assert decide("sequences_do_not_matter", random, grouped).holds is False
    flat = np.full(IMAGES, 0.8) + np.linspace(-0.01, 0.01, IMAGES)
    same = [rows("ultraseg_130k", flat, name) for name in ("cvc_clinicdb", "cvc_clinicdb@sequence")]
    assert decide("sequences_do_not_matter", *same).holds is True


def test_large_polyps_are_judged_by_their_own_frames(level):
    run = rows("ultraseg_130k", level).assign(area=np.arange(1, IMAGES + 1), n_polyps=1)
    large = run["area"] > 0.75 * IMAGES
    run.loc[large, "dice"] -= 0.3
    assert decide("large_or_many_are_coarse", run).holds is True
    run.loc[large, "dice"] += 0.6
    assert decide("large_or_many_are_coarse", run).holds is False
    assert decide("large_or_many_are_found", run).holds is True
    assert decide("large_or_many_are_found", run.assign(detected=~large)).holds is False


def test_the_gap_is_no_matter_of_size_once_ultraseg_reaches_it(level):
    low = rows("ultraseg_130k", level)
    assert decide("gap_is_capacity", low).holds is None
    assert decide("gap_is_capacity", low.assign(batch_pooled_dice=0.9)).holds is False


@pytest.mark.parametrize(("milliseconds", "verdict"), [(8.0, True), (20.0, False)])
def test_frames_a_second_come_from_the_benchmark(outputs, milliseconds, verdict):
    lines = [
        {"model": name, "backend": backend, "threads": threads, "median_ms": time}
        for name in claims.OURS
        for backend, threads, time in (("eager", 1, milliseconds), ("openvino", 1, 1), ("eager", 2, 1))
    ]  # fmt: skip
    path = outputs / "demo" / "bench" / "bench.json"
    write_json(path, {"protocol": {"image_size": 256}, "rows": lines})
    finding = claims.CHECKS["ninety_fps"](Evidence("demo"), {"fps": 90})
    assert finding.holds is verdict
    write_json(path, {"protocol": {"image_size": 96}, "rows": lines})  # not the paper's size
    assert claims.CHECKS["ninety_fps"](Evidence("demo"), {"fps": 90}).holds is None


def test_without_a_benchmark_speed_cannot_be_tested(outputs):
    assert claims.CHECKS["thirty_fps"](Evidence("demo"), {"fps": 30}) == (None, "not benchmarked", ())  # fmt: skip


# --- the table ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return {name: claims.claims_table(name) for name in ("demo", "reference")}


def test_the_table_changes_by_profile_where_training_decides(tables):
    demo, reference = (tables[name].set_index("id") for name in ("demo", "reference"))
    assert demo.loc["gap_is_capacity", "ours"] == "cannot be tested here"
    assert reference.loc["gap_is_capacity", "ours"] in ("fails", "cannot be tested here")
    assert (demo["ours"] != reference["ours"]).any()
    counted = ["named_sizes", "two_edbs_have_50k", "independent_frames"]
    assert demo.loc[counted, "ours"].equals(reference.loc[counted, "ours"])


def test_the_table_names_the_runs_behind_a_verdict(tables):
    decided = tables["reference"].set_index("id").loc["gap_is_capacity"]
    for name in decided["runs"].split(", "):
        assert (ROOT / "outputs" / "reference" / "runs" / name / "scores.csv").exists()


def test_a_card_tells_claim_rule_evidence_and_place(tables):
    row = tables["demo"].set_index("id").loc["share_of_parameters"]
    card = claims.card(row)
    for words in (row["claim"], row["criterion"], row["evidence"], "fails", row["notebook"]):
        assert words in card


def test_the_picture_has_a_line_a_claim_and_the_tally_counts_them(tables):
    part = tables["demo"].head(8)
    figure = claims.plot_claims(part, "a title")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == part["claim"].tolist()
    assert claims.tally(tables["demo"]).sum().tolist() == [len(BY_ID)] * 2


def test_an_unknown_profile_lists_the_known():
    with pytest.raises(ValueError, match="unknown 'dmeo'; choose from demo"):
        claims.claims_table("dmeo")


# --- the gallery ----------------------------------------------------------------------------------


def test_the_tests_that_the_gallery_names_exist():
    faults = claims.read_faults()
    assert len(faults) >= 15
    for name in faults["test"]:
        path, _, test = name.partition("::")
        assert re.search(rf"def {test}\(", (ROOT / path).read_text()), name


def test_the_best_of_equal_settings_gains_by_being_chosen():
    equal = np.random.default_rng(0).uniform(0, 1, (3, 60))
    assert selection_bonus(equal) > 0.01
    assert selection_bonus(equal[[0, 0, 0]]) == pytest.approx(0, abs=0.005)


def test_a_row_of_the_benchmark_tells_its_spread():
    times = [*[10.0] * 49, 500.0]
    told = Timed(list, times=times).spread()
    assert told["median_ms"] == 10 != np.mean(times)
    assert {"iqr_ms", "p95_ms"} <= set(told)
