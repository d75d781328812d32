"""Training on everything against one set: what is compared, and what the paper's column may say."""

import pandas as pd
import pytest
from ledgers import HIGH, LOW, rows

from ultraseg_lib.data import dataset_title
from ultraseg_lib.data.splits import MIXED
from ultraseg_lib.report import external, tables
from ultraseg_lib.report.tables import compare_pairs


@pytest.fixture
def ledger() -> pd.DataFrame:
    parts = [
        rows("ultraseg_130k", "mixed", "kvasir_seg", HIGH),
        rows("ultraseg_130k", "mixed", "polypgen", LOW),
        rows("ultraseg_130k", "mixed", "etis_larib", HIGH),
        rows("ultraseg_130k", "kvasir_seg", "etis_larib", LOW),
        rows("ultraseg_130k", "kvasir_seg", "kvasir_seg", HIGH),
        rows("ultraseg_130k", "mixed@p25", "etis_larib", LOW, epochs=48),
    ]
    return external.by_tested(pd.concat(parts, ignore_index=True))


def test_the_parts_of_the_mixed_set_are_tested_as_one(ledger):
    scores = external.score_table(ledger).set_index(["dataset", "tested"])
    assert scores.loc[("mixed", "mixed"), "images"] == 40
    assert scores.loc[("mixed", "mixed"), "dice"] == pytest.approx(0.5)
    assert scores.loc[("kvasir_seg", "kvasir_seg"), "images"] == 20
    assert scores.loc[("mixed", "etis_larib"), "miss_rate"] == 0


def test_the_papers_mixed_number_stands_only_beside_all_of_its_sets(ledger):
    scores = external.score_table(ledger)
    few = external.joint_table(scores, ["kvasir_seg", "polypgen"]).set_index("tested")
    assert few.loc["mixed", "paper_dice"] != few.loc["mixed", "paper_dice"]  # NaN
    assert few.loc["etis_larib", "paper_dice"] == 0.6821
    all_four = external.joint_table(scores, MIXED).set_index("tested")
    assert all_four.loc["mixed", "paper_dice"] == 0.8038
    text = tables.shown(few.reset_index(), external.SCORES, external.TOLD)
    assert text["trained on"].tolist() == ["Mixed set"] * len(text)
    assert "–" in text["paper"].tolist()
    assert set(text["seeds"]) == {"1"}


def test_everything_is_compared_with_one_set_on_unseen_images_only(ledger):
    against = external.joint_against_single(ledger)
    assert len(against) == 1
    row = against.iloc[0]
    assert (row["joint"], row["single"], row["tested"]) == ("mixed", "kvasir_seg", "etis_larib")
    assert row["difference"] == pytest.approx(0.2)
    assert external.joint_against_single(ledger[ledger["dataset"] == "mixed"]).empty


def test_of_two_lengths_of_training_the_longest_is_compared(ledger):
    short = ledger[ledger["dataset"] == "mixed"].assign(epochs=1, dice=0.1)
    against = external.joint_against_single(pd.concat([short, ledger]))
    assert against["difference"].tolist() == pytest.approx([0.2])


def test_models_are_compared_where_they_were_trained_alike(ledger):
    other = ledger.assign(model="lbunet", dice=ledger["dice"] - 0.1)
    longer = other.assign(epochs=99, dice=0.0)
    both = pd.concat([ledger, other[other["dataset"] == "mixed"], longer])
    table = compare_pairs(both, [(ledger["model"].iloc[0], "lbunet")], external.ALIKE)
    assert set(table["dataset"]) == {"mixed"}
    assert set(table["tested"]) == set(ledger.loc[ledger["dataset"] == "mixed", "tested"])
    assert table["difference"].tolist() == pytest.approx([0.1] * len(table))


def test_a_part_of_a_test_set_has_no_dice_of_its_batches(ledger):
    """That one is known of whole test sets."""
    whole, parts = external.score_table(ledger), external.score_table(ledger, ["center"])
    assert set(whole) - set(parts) == {"batch_pooled_dice"}


def test_shares_run_from_the_smallest_to_all(ledger):
    shares = external.share_table(ledger)
    etis = shares[shares["tested"] == "etis_larib"]
    assert etis["share"].tolist() == [25, 100]
    assert etis["dice"].tolist() == pytest.approx([0.4, 0.6])
    assert external.share_table(ledger[ledger["dataset"] == "mixed"]).empty


def test_shares_without_a_training_on_all_are_not_compared(ledger):
    share = ledger[ledger["dataset"] == "mixed@p25"]
    parts = pd.concat([share, share.assign(dataset="mixed@p50", run_id="half")])
    assert external.share_table(parts).empty
    assert external.share_gains(parts).empty


def test_a_share_is_compared_with_the_training_on_all_of_as_many_steps(ledger):
    whole, share = (ledger[ledger["dataset"] == name] for name in ("mixed", "mixed@p25"))
    equal = [share.assign(epochs=4 * 100), whole.assign(epochs=100)]
    longer = whole.assign(epochs=240, dice=0.9)
    gains = external.share_gains(pd.concat([*equal, longer]))
    assert gains["difference"].tolist() == pytest.approx([0.2])
    elsewhere = whole.assign(dataset="synthetic", dice=0.9)  # shared out nowhere
    assert external.share_gains(pd.concat([*equal, elsewhere]))["whole"].tolist() == ["mixed"]


def test_a_share_is_compared_by_the_mean_of_all_seeds(ledger):
    again = rows("ultraseg_130k", "mixed", "etis_larib", [0.0] * 20, seed=1)
    ledger = pd.concat([ledger, external.by_tested(again)])
    shares = external.share_table(ledger).set_index(["tested", "share"])
    assert shares.loc[("etis_larib", 100), "seeds"] == 2
    assert shares.loc[("etis_larib", 100), "dice"] == pytest.approx(0.3)
    gain = external.share_gains(ledger).iloc[0]
    assert (gain["share"], gain["seeds"]) == (25, 1)  # the share has one
    assert gain["difference"] == pytest.approx(-0.1)
    joint = external.joint_against_single(ledger).iloc[0]
    sets = external.score_table(external.with_single_sets(ledger)).set_index("dataset")["dice"]
    assert joint["difference"] == pytest.approx(sets["mixed"] - sets["kvasir_seg"])


def test_a_gain_from_one_seed_has_no_verdict(ledger):
    text = tables.shown(external.share_gains(ledger), external.GAINS, external.TOLD)
    assert text["verdict"].tolist() == ["too few seeds: no verdict"]
    assert external.share_gains(ledger[ledger["dataset"] == "mixed"]).empty


@pytest.mark.parametrize(
    ("drop", "verdict"), [(0.01, "differs"), (0.1, "undecided"), (0.3, "undecided")]
)
def test_a_gain_is_a_finding_where_it_is_far_larger_than_what_another_seed_does(
    ledger, drop, verdict
):
    again = [ledger.assign(seed=seed, dice=ledger["dice"] - drop * (seed - 1)) for seed in range(3)]
    gains = external.share_gains(pd.concat(again))
    assert gains["difference"].tolist() == pytest.approx([0.2])
    assert gains["verdict"].tolist() == [verdict]


def test_figures_have_one_panel_per_test_set(ledger):
    scores = external.score_table(ledger)
    joint = external.joint_table(scores, MIXED)
    axes = external.plot_joint(joint).axes
    assert [each.get_title() for each in axes] == [
        "ETIS-LaribPolypDB\nunseen",
        "Mixed set\ntest part",
    ]
    assert axes[0].get_yticklabels()[1].get_text() == "UltraSeg-130K (1 seed)"
    assert len(external.plot_shares(external.share_table(ledger)).axes) == 1
    sets = external.score_table(external.with_single_sets(ledger))
    labels = external.plot_training_sets(sets).axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == [
        "UltraSeg-130K (1 seed), strong, clean",
        "Mixed set, 12 epochs",
        "Kvasir-SEG, 12 epochs",
    ]
    by_center = external.score_table(ledger, ["center"])
    one = by_center[(by_center["tested"] == "etis_larib") & (by_center["dataset"] == "mixed")]
    axes = external.plot_centers(one).axes
    assert [each.get_title("left") for each in axes] == ["recipe strong, clean protocol, 12 epochs"]
    assert axes[0].get_yticklabels()[0].get_text() == "C1 (20 images)"


@pytest.mark.parametrize(
    ("dataset", "title"),
    [
        ("mixed@p25", "Mixed set, 25 %"),
        ("polypgen@center_C3", "PolypGen, center C3"),
        ("cvc_clinicdb@sequence", "CVC-ClinicDB, sequence split"),
        ("kvasir_seg@draw_2", "Kvasir-SEG, draw 2"),
        ("etis_larib", "ETIS-Larib"),
    ],
)
def test_training_sets_have_titles(dataset, title):
    assert dataset_title(dataset).startswith(title)
