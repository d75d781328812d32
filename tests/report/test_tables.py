"""Which runs a table compares, and what it says of a change that does nothing or much."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import write_pair
from ledgers import HIGH, LOW, own, rows

from ultraseg_lib import study
from ultraseg_lib.report import ablation, figures, tables

PAIR = [("lbunet", "unet_tiny")]


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


def test_intervals_draw_the_videos_that_ones_own_table_tells(tmp_path, monkeypatch):
    for name in "ab":
        write_pair(tmp_path / f"clinic/images/{name}.png", tmp_path / f"clinic/masks/{name}.png")
    (tmp_path / "clinic/table.csv").write_text("image_id,sequence\na,v1\nb,\n")
    monkeypatch.setenv("ULTRASEG_DATA", str(tmp_path))
    assert tables.videos([("clinic", "a"), ("clinic", "b")]) == ["clinic video v1", "clinic b"]


def test_intervals_draw_whole_videos_where_they_are_told():
    assert tables.videos([("kvasir_seg", "1"), ("bkai_igh", "2")]) is None
    told = tables.videos([("cvc_clinicdb@sequence", "1"), ("cvc_clinicdb", "2"), ("cvc_clinicdb", "?"),
                          ("kvasir_seg", "1")])  # fmt: skip
    assert told[0] == told[1]
    assert len(set(told)) == 3
    frames = [str(number) for number in range(1, 7)]  # one video of ETIS-Larib
    level = pd.concat(
        [
            rows("lbunet", "mixed", name, [0.2, 0.4, 0.6] * 2).assign(image_id=frames)
            for name in ("etis_larib", "bkai_igh")
        ]
    )
    table = tables.levels(level, ["model", "test_set"]).set_index("test_set")
    width = table["dice_high"] - table["dice_low"]
    assert np.isnan(width["etis_larib"])  # of one video nothing is known of others
    assert width["bkai_igh"] > 0.1
    better = level.assign(dice=level["dice"] + [0.1, 0, 0, 0.1, 0, 0] * 2)
    for name, low, high in (("etis_larib", 1, 1), ("bkai_igh", 0.05, 0.2)):
        one, other = (each[each["test_set"] == name] for each in (better, level))
        assert low <= tables.paired(one, other)["p"] <= high


def test_a_choice_is_compared_on_the_same_images():
    ledger = pd.concat(
        [
            own("lbunet", HIGH, recipe="strong"),
            own("lbunet", LOW, recipe="paper"),
            own("lbunet", HIGH, recipe="multiscale", protocol="released"),  # two things differ
        ]
    )
    choices = tables.choices_table(ledger)
    assert len(choices) == 1
    row = choices.iloc[0]
    assert row["changed"] == "recipe"
    assert abs(row["difference"]) == pytest.approx(0.2)
    assert row["low"] == pytest.approx(row["high"]) == pytest.approx(row["difference"])
    assert {row["a"], row["b"]} == {"strong, clean, 12 epochs", "paper, clean, 12 epochs"}
    assert row["label"] == "recipe: strong − paper (clean, 12 epochs)"
    assert row["verdict"] == tables.FEW_SEEDS
    again = choices.assign(verdict=[tables.UNDECIDED])
    figure = figures.plot_differences(again, "the other")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [row["label"]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["undecided"]


def test_one_choice_at_a_time_is_compared():
    ledger = pd.concat(
        [
            own("lbunet", HIGH, recipe="strong", protocol="released"),
            own("lbunet", LOW, recipe="paper"),
            own("lbunet", LOW, recipe="paper", epochs=24),
        ]
    )
    assert tables.choices_table(ledger)["label"].tolist() == ["epochs: 24 − 12 (paper, clean)"]


def test_both_sides_of_a_pair_are_the_mean_of_all_their_seeds():
    one = pd.concat([own("lbunet", HIGH), own("lbunet", LOW, seed=1).assign(batch_pooled_dice=0.1)])
    pair = tables.paired(one, own("unet_tiny", LOW).assign(batch_pooled_dice=0.3))
    assert list(pair) == list(tables.PAIRED)
    assert pair["seeds"] == 1  # of the side with fewer
    assert (pair["batch_a"], pair["batch_b"]) == pytest.approx((0.3, 0.3))
    assert (pair["dice_a"], pair["dice_b"]) == pytest.approx((0.5, 0.4))


def test_levels_count_a_miss_and_average_seeds():
    miss = own("lbunet", [0.0, 1.0], seed=1).assign(area=[0.2, 0.0], iou=0.25, hd95=[4, 6])
    found = own("lbunet", [0.4, 1.0]).assign(iou=0.75, hd95=7)
    table = tables.main_table(pd.concat([found, miss]))
    row = table.iloc[0]
    assert (row["seeds"], row["images"], row["dice"]) == (2, 2, pytest.approx(0.6))
    assert row["dice_sd"] == pytest.approx(0.1 * 2**1.5 / 2)  # of 0.7 and 0.5
    assert row["miss_rate"] == pytest.approx(1 / 3)  # of the three images with a polyp
    assert (row["iou"], row["hd95"]) == (0.5, 6)
    assert (row["dice_low"], row["dice_high"]) == (0, 1)  # no Dice is outside
    text = tables.shown(table, tables.MAIN).iloc[0]
    assert (text["Dice"], text["sd over seeds"], text["paper"]) == ("0.600", "0.141", "–")


def test_a_table_for_reading_has_the_columns_that_are_there_in_the_order_asked_for():
    table = pd.DataFrame({"dice": [0.5, np.nan], "low": -0.0001, "high": 0.2, "extra": 1})
    text = tables.shown(table, ["low high", "hd95", "dice"])
    assert text.columns.tolist() == ["95 % interval", "Dice"]
    assert text["Dice"].tolist() == ["0.500", "not run"]
    assert text["95 % interval"][0] == "+0.000 to +0.200"  # not -0.000


def test_scores_on_other_images_are_refused_by_the_names_of_their_runs():
    one, more = own("lbunet", HIGH), own("lbunet", [*LOW, 0.5], seed=1)
    with pytest.raises(ValueError, match=f"{more['run_id'].iloc[0]}: scored on different images"):
        tables.levels(pd.concat([one, more]), tables.GROUP_KEYS)
    tiny = own("unet_tiny", [*LOW, 0.5])
    with pytest.raises(ValueError, match=f"{tiny['run_id'].iloc[0]}: scored on different images"):
        tables.paired(one, tiny)


def test_every_model_of_table_3_has_a_look_of_its_own():
    looks = [figures.model_style(name) for name in study.load_profile("full").models]
    assert len(set(looks)) == len(looks)


def test_a_model_of_one_seed_is_compared_with_all_of_the_other():
    ledger = pd.concat([own("lbunet", HIGH), own("lbunet", LOW, seed=1), own("unet_tiny", LOW)])
    pair = ablation.compare(ledger, PAIR).iloc[0]
    assert (pair["title"], pair["baseline"], pair["seeds"]) == ("LB-UNet", "unet_tiny", 1)
    assert pair["difference"] == pytest.approx(0.1)  # of seed 0 alone it is 0.2
    apart = pd.concat([own("lbunet", HIGH), own("unet_tiny", LOW, seed=1)])  # seeds are no pairs
    assert ablation.compare(apart, PAIR)["difference"].tolist() == pytest.approx([0.2])


def test_a_finding_holds_for_the_models_and_for_their_seeds():
    tiny = [own("unet_tiny", LOW, seed=seed) for seed in range(3)]
    apart = [own("lbunet", dice, seed=seed) for seed, dice in enumerate((HIGH, HIGH, LOW))]
    pair = ablation.compare(pd.concat([*tiny, *apart]), PAIR).iloc[0]
    assert pair["low"] < 0  # the means differ on every image, but LB-UNet's seeds lie far apart
    assert pair["p_holm"] > 0.05
    assert pair["verdict"] == tables.UNDECIDED
    alike = [own("lbunet", HIGH, seed=seed) for seed in range(3)]
    assert ablation.compare(pd.concat([*tiny, *alike]), PAIR)["verdict"].tolist() == ["differs"]
    two = ablation.compare(pd.concat([*tiny, *alike[:2]]), PAIR).iloc[0]
    assert two["verdict"] == tables.FEW_SEEDS
    assert np.isnan(two["p_holm"])


def test_p_values_are_corrected_within_their_group_only():
    rows = [{"set": name, "p": 0.03, "seeds": 3} for name in "aab"]
    rows += [
        {"set": "b", "p": 0.0001, "seeds": seeds} for seeds in (1, 2)
    ]  # no test is made of these
    table = tables.with_findings(rows, ["set"], ["set"])
    assert table["p_holm"].tolist() == pytest.approx(
        [0.06, 0.06, 0.03, np.nan, np.nan], nan_ok=True
    )
    few = [tables.FEW_SEEDS] * 2
    assert table["verdict"].tolist() == [tables.UNDECIDED, tables.UNDECIDED, tables.DIFFERS, *few]
    whole = tables.with_findings(rows, ["set"])["p_holm"]
    assert whole.tolist() == pytest.approx([0.09] * 3 + [np.nan] * 2, nan_ok=True)
    assert tables.with_findings([], ["set"], ["set"]).empty


def test_no_choices_without_two_settings():
    assert tables.choices_table(own("lbunet", LOW)).empty


def test_what_is_missing_is_named_whatever_its_epochs(outputs):
    plan = study.load_profile("demo", models=["unet_tiny", "lbunet"], seeds=[0])
    done, missing = study.plan_runs(plan)
    other = replace(done, epochs=3)
    other.folder.mkdir(parents=True)
    (other.folder / "scores.csv").write_text("x")
    assert study.tell_missing(plan).splitlines() == [
        "1 of 2 planned runs are missing",
        f"  {missing.run_id}",
    ]
    assert "plans no runs for grid ablation" in study.tell_missing(plan, "ablation")
    assert study.tell_missing(plan, most=0).endswith("and 1 more")


def test_what_all_rows_share_stands_once_above_a_styled_table():
    table = tables.main_table(pd.concat([own("lbunet", LOW), own("unet_tiny", HIGH)]))
    styled = tables.styled(table, tables.MAIN)
    assert styled.caption.startswith("recipe: strong, protocol: clean, epochs: ")
    assert not {"recipe", "protocol", "epochs", "dataset", "paper"} & set(styled.data)
    assert len(styled.data) == 2
    apart = tables.styled(table.assign(recipe=["strong", "paper"]), tables.MAIN)
    assert apart.data["recipe"].tolist() == ["strong", "paper"]
    assert "recipe" not in apart.caption
