"""Notebook 10: rules name the right images, tables agree with their source, every figure is drawn."""

import numpy as np
import pandas as pd
import pytest
from ledgers import A, B, make_cases

from ultraseg_lib import metrics, study
from ultraseg_lib.report import failures, figures
from ultraseg_lib.report.cases import Cases, load_available, load_cases
from ultraseg_lib.study import Run


@pytest.fixture(scope="module")
def cases() -> Cases:
    return make_cases(60, 64)


def run(model: str, dataset: str = "synthetic", **changes) -> Run:
    setting = {"recipe": "strong", "protocol": "clean", "epochs": 3, "seed": 0} | changes
    return Run("demo", model, dataset, **setting)


# --- which runs, which images -------------------------------------------------------------------


def test_the_setting_with_the_most_models_is_picked():
    profile = study.load_profile("demo")
    few = [run("ultraseg_130k", seed=1), run("egeunet", seed=1), run("lbunet", seed=1)]
    many = [run("ultraseg_500k"), run("ultraseg_130k"), run("lbunet"), run("ultraseg_130k+kd10")]
    picked = failures.pick_runs([*few, *many], profile, "ultraseg_130k", "synthetic")
    assert [each.model for each in picked] == ["lbunet", "ultraseg_130k", "ultraseg_500k"]
    assert {each.seed for each in picked} == {0}
    with pytest.raises(
        ValueError, match=r"model: no finished run of fastscnn .* --models fastscnn"
    ):
        failures.pick_runs(many, profile, "fastscnn", "synthetic")


def test_of_equal_settings_the_test_sets_own_is_picked():
    profile = study.load_profile("demo")
    runs = [run("ultraseg_130k", "cvc_clinicdb"), run("ultraseg_130k", "kvasir_seg")]
    for name in ("kvasir_seg", "cvc_clinicdb"):
        picked = failures.pick_runs(runs, profile, "ultraseg_130k", name)
        assert [each.dataset for each in picked] == [name]
    assert failures.pick_runs(runs, profile, "ultraseg_130k", "polypgen") == runs[:1]


def test_test_sets_come_in_the_profiles_order_and_unknown_ones_are_refused():
    profile, one = study.load_profile("demo"), [run("lbunet")]
    scored = {"other": one, "synthetic_unseen": one, "synthetic": one}
    order = ["synthetic", "synthetic_unseen", "other"]
    assert failures.pick_test_sets(scored, profile) == order
    assert failures.pick_test_sets(scored, profile, "other")[0] == "other"
    with pytest.raises(ValueError, match="scored on polypgen; scored are other, "):
        failures.pick_test_sets(scored, profile, "polypgen")
    with pytest.raises(ValueError, match=r"scored on anything; scored are none; do ./run_all.sh"):
        failures.pick_test_sets({}, profile)


def test_large_unet_of_the_figure_is_the_one_that_the_profile_can_train():
    assert failures.wanted_models(study.load_profile("full"))[-1] == "unet_base"
    assert failures.wanted_models(study.load_profile("demo"))[-1] == "ultraseg_500k"


def test_planned_comparison_holds_each_model_once_in_one_seed():
    profile = study.load_profile("demo")
    planned = failures.plan_comparison(profile, study.plan_runs(profile))
    assert sorted(each.model for each in planned) == sorted(failures.wanted_models(profile))
    assert {each.seed for each in planned} == {profile.seeds[0]}


def test_spread_rows_go_from_best_to_worst_over_polyps(cases):
    rows = failures.spread_rows(cases, 5)
    dice = np.mean([cases.dice(A), cases.dice(B)], axis=0)
    polyp = cases.frames.masks.any(axis=(1, 2))
    assert len(set(rows)) == 5
    assert polyp[rows].all()
    assert dice[rows[0]] == dice[polyp].max()
    assert dice[rows[-1]] == dice[polyp].min()
    assert (np.diff(dice[rows]) <= 0).all()


def test_rules_agree_with_the_metrics_and_put_the_gravest_first(cases):
    rules = failures.failure_rules(cases, A, B)
    pred, mask = cases.probs(A) >= 128, cases.frames.masks > 0
    dice, area = metrics.dice_score(pred, mask), mask.sum(axis=(1, 2))
    loss = metrics.dice_score(cases.probs(B) >= 128, mask) - dice
    counted = np.array([metrics.count_polyps(each) for each in mask])
    expected = {
        "worst Dice": (metrics.detected(pred, mask), dice),
        "largest loss": ((loss > 0) & (area > 0), -loss),
        "missed": (metrics.missed(pred, mask), -area),
        "false alarm": (metrics.false_alarm(pred, mask), -pred.sum(axis=(1, 2))),
        "multiple polyps": (counted > 1, dice),
        "largest area": (area > 0, -area),
    }
    assert list(rules) == list(expected)
    for rule, (named, order) in expected.items():
        assert named.any(), rule
        assert set(rules[rule]) == set(np.flatnonzero(named)), rule
        assert (np.diff(order[rules[rule]]) >= 0).all(), rule


def test_each_rule_shows_an_image_of_its_own(cases):
    rules = {
        "a": np.array([4, 2]),
        "b": np.array([4, 2, 7]),
        "c": np.array([2, 4]),
        "d": np.array([]),
    }
    assert failures.pick_cases(rules) == {"a": 4, "b": 2, "c": None, "d": None}
    table = failures.rule_table(cases, rules, [A])
    assert list(table["images"]) == [2, 3, 2, 0]
    assert table["Dice of A"].isna().tolist() == [False, False, True, True]


def test_without_another_model_no_loss_is_told(cases):
    rules = failures.failure_rules(cases, A, None)
    assert set(failures.failure_rules(cases, A, B)) - set(rules) == {"largest loss"}


def test_the_table_of_shown_images_holds_each_models_dice(cases):
    table = failures.case_table(cases, [5, 2])
    assert table["image_id"].tolist() == ["image_5", "image_2"]
    assert table["Dice of B"].tolist() == cases.dice(B)[[5, 2]].tolist()
    assert set(table["test_set"]) == {"kvasir_seg"}


def test_a_figure_tells_where_the_runs_were_trained_if_elsewhere(cases):
    assert failures.figure_title(cases) == "Kvasir-SEG"
    elsewhere = Cases("polypgen", cases.frames, cases.runs, cases.scores, cases.read_maps)
    assert failures.figure_title(elsewhere) == "PolypGen\ntrained on Kvasir-SEG"


# --- tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["center", "modality"])
def test_groups_hold_each_image_once_and_give_back_the_mean(cases, key):
    scores = failures.long_scores([cases])
    table = failures.group_table(failures.add_group(scores, key))
    for model in (A, B):
        mine = table[table["model"] == model]
        assert mine["images"].sum() == len(cases)
        mean = (mine["dice"] * mine["images"]).sum() / len(cases)
        assert mean == pytest.approx(cases.dice(model).mean())
    assert table["dice"].between(table["dice_low"], table["dice_high"]).all()


def test_a_group_of_few_images_has_no_interval(cases):
    scores = failures.long_scores([cases]).assign(center="")
    for count, known in ((failures.FEW - 1, False), (failures.FEW, True)):
        few = scores[scores["image_id"].isin([f"image_{row}" for row in range(count)])]
        table = failures.group_table(failures.add_group(few, "center"))
        assert (table[["dice_low", "dice_high"]].notna() == known).all(axis=None)


def test_the_page_shows_a_row_a_group_and_a_column_a_model(cases):
    table = failures.group_table(failures.add_group(failures.long_scores([cases]), "modality"))
    page = failures.show_groups(table, "modality").data
    assert list(page.columns) == ["test set", "modality", "images", *table["model"].unique()]
    assert len(page) * 2 == len(table)
    first = table[table["model"] == B].set_index("group").loc[page["modality"].iloc[0]]
    assert page[B].iloc[0].startswith(f"{first['dice']:.3f}\n{first['dice_low']:.3f} to ")
    assert page[B].iloc[0].endswith(f"\n{first['missed']:.1%} missed")
    lone = failures.show_groups(table.assign(dice_low=np.nan, missed=np.nan), "modality").data
    assert lone[B].iloc[0] == f"{first['dice']:.3f}"


def test_agreement_of_two_models_is_a_direct_count(cases):
    table = failures.agreement_table([cases], below=0.7).set_index(["model", "other"])
    fails = {name: cases.dice(name) < 0.7 for name in (A, B)}
    row = table.loc[(A, B)]
    assert len(table) == 2
    assert (row["images"], row["failed"]) == (len(cases), fails[A].sum())
    assert row["shared"] == pytest.approx((fails[A] & fails[B]).sum() / fails[A].sum())
    assert row["usual"] == pytest.approx(fails[B].mean())
    ranks = pd.Series(cases.dice(A)).rank().corr(pd.Series(cases.dice(B)).rank())
    assert row["spearman"] == table.loc[(B, A), "spearman"] == pytest.approx(ranks)


def test_shares_among_the_worst_stand_beside_those_of_all(cases):
    polyps = cases.frames.masks.any(axis=(1, 2))
    known = cases.frames.table["modality"][polyps]
    table = failures.among_worst(cases, known.index[:20], "modality").set_index("modality")
    assert table["worst"].to_dict() == known[:20].value_counts().to_dict()
    assert table["share_of_all"].to_dict() == known.value_counts(normalize=True).to_dict()
    one = known.index[known == "NBI"]
    assert failures.among_worst(cases, one, "modality")["share_of_worst"].sum() == 1


def test_a_model_without_a_run_is_replaced_aloud_and_an_unknown_one_refused(cases, capsys):
    runs = list(cases.runs.values())
    assert failures.pick_model(runs[1].model, runs) == runs[1].model
    assert failures.pick_model("fastscnn", runs) == runs[0].model
    assert "no run of fastscnn here" in capsys.readouterr().out
    with pytest.raises(ValueError, match="choose from"):
        failures.pick_model("nope", runs)


def test_groups_are_counted_in_each_test_set(cases):
    scores = failures.long_scores([cases])
    both = pd.concat([scores, scores.assign(test_set="polypgen", center="")])
    table = failures.add_group(both, "center").groupby("test_set")["group"].unique()
    assert list(table["polypgen"]) == ["all\nn = 60"]
    first = scores["image_id"] == scores["image_id"].iloc[0]
    partly = failures.add_group(scores.assign(center=np.where(first, "", "C1")), "center")
    assert set(partly["group"]) == {"unknown\nn = 1", "C1\nn = 59"}
    counted = scores[scores["model"] == A]["center"].value_counts()
    assert set(table["kvasir_seg"]) == {f"{name}\nn = {n}" for name, n in counted.items()}


def test_size_classes_hold_every_polyp_once(cases):
    table = failures.dice_by_size(failures.long_scores([cases]))
    polyps = cases.frames.masks.any(axis=(1, 2))
    for model in (A, B):
        mine = table[table["model"] == model]
        assert mine["images"].sum() == polyps.sum()
        mean = (mine["dice"] * mine["images"]).sum() / polyps.sum()
        assert mean == pytest.approx(cases.dice(model)[polyps].mean())


@pytest.mark.parametrize(("grow", "sign"), [(2, 1), (-2, -1)])
def test_boundary_errors_of_a_grown_square_are_its_growth(grow, sign):
    mask, pred = np.zeros((40, 40), bool), np.zeros((40, 40), bool)
    mask[10:30, 10:30] = True
    pred[10 - grow : 30 + grow, 10 - grow : 30 + grow] = True
    errors = failures.boundary_errors(pred, mask)
    known = errors[~np.isnan(errors)]
    assert len(known) == metrics.boundary_pixels(pred).sum()
    assert np.median(known) == sign * 2
    assert (np.sign(known) == sign).all()


def test_boundary_errors_need_both_boundaries(cases):
    empty, some = np.zeros((8, 8), bool), np.ones((8, 8), bool)
    assert np.isnan(failures.boundary_errors(empty, some)).all()
    assert np.isnan(failures.boundary_errors(some, empty)).all()
    pred = cases.probs(A) >= 128
    mask = cases.frames.masks > 0
    both = pred.any(axis=(1, 2)) & mask.any(axis=(1, 2))
    table = failures.boundary_table(cases)
    mine = table[table["model"] == A]
    assert len(mine) == both.sum() < len(cases)
    assert mine["lost"].sum() == (mask & ~pred)[both].sum()
    assert mine["extra"].sum() == (pred & ~mask)[both].sum()


def test_reliability_of_maps_whose_truth_is_known():
    """A map of 0 and of 255 on the right halves is calibrated; inverted it is wrong by 1."""
    whole = make_cases(4, 16)
    right = np.where(whole.frames.masks > 0, 255, 0).astype(np.uint8)
    maps = {A: right, B: 255 - right}
    known = Cases("kvasir_seg", whole.frames, whole.runs, whole.scores, maps.__getitem__)
    table = failures.reliability(known)
    assert (table.groupby("model")["pixels"].sum() == right.size).all()
    assert failures.calibration_error(table).to_dict() == pytest.approx({A: 0.0, B: 1.0})


def test_reliability_bins_agree_with_a_direct_count(cases):
    table = failures.reliability(cases, bins=4).set_index(["model", "bin"])
    inside = (cases.probs(A) >= 64) & (cases.probs(A) < 128)
    row = table.loc[(A, 1)]
    assert row["pixels"] == inside.sum()
    assert row["prob"] == pytest.approx(cases.probs(A)[inside].mean() / 255)
    assert row["polyp"] == pytest.approx((cases.frames.masks > 0)[inside].mean())


# --- figures ------------------------------------------------------------------------------------


def test_pages_of_pictures_name_models_rules_and_dice(cases):
    figures.use_style()
    page = failures.show_comparison(cases, [0, 1], "t")
    assert [axes.get_title() for axes in page.axes[:4]] == ["input", "truth", A, B]
    assert page.axes[2].get_xlabel() == f"Dice {cases.dice(A)[0]:.2f}"
    picked = failures.pick_cases(failures.failure_rules(cases, A, B)) | {"nothing": None}
    page = failures.show_failures(cases, picked, [A, B], "t")
    assert [axes.get_title() for axes in page.axes[: len(picked)]] == list(picked)
    assert len(page.axes) == 3 * len(picked)


def test_a_map_of_boundary_errors_shows_every_pixel_of_the_boundary(cases):
    page = failures.show_boundary_errors(cases, [1, 2], "t", limit=4)
    drawn = page.axes[0].collections[0].get_array()
    assert len(drawn) == metrics.boundary_pixels(cases.probs(A)[1] >= 128).sum()
    white = np.ones(4)
    assert not np.allclose(failures.SIDES(0.5), white, atol=0.3)  # the middle shows on paper


def test_bars_of_the_boundary_are_the_tables_means_and_shares(cases):
    table = failures.boundary_table(cases)
    left, right = failures.plot_boundary_table(table, "t").axes
    mine = table[table["model"] == A]
    ends = [[abs(bars[0].get_width()) for bars in axes.containers] for axes in (left, right)]
    assert ends[0] == pytest.approx([mine["inside"].mean(), mine["outside"].mean()])
    shares = [100 * mine[each].sum() / mine["polyp"].sum() for each in ("lost", "extra")]
    assert ends[1] == pytest.approx(shares)


def test_each_test_set_has_a_panel_of_its_own(cases):
    scores = failures.long_scores([cases])
    both = pd.concat([scores, scores.assign(test_set="polypgen", center="C9")])
    drawn = [
        failures.plot_dice_by_group(failures.add_group(both, "center"), "center"),
        failures.plot_dice_by_size(both, failures.dice_by_size(both), A),
    ]
    for page in drawn:
        assert [axes.get_title() for axes in page.axes] == ["Kvasir-SEG", "PolypGen"]
    assert [each.get_text() for each in drawn[0].axes[1].get_xticklabels()] == ["C9\nn = 60"]


def test_small_groups_are_drawn_as_points(cases):
    scores = failures.long_scores([cases])
    few = scores["image_id"].isin([f"image_{row}" for row in range(failures.FEW - 1)])
    grouped = failures.add_group(
        scores.assign(center=few.map({True: "few", False: "many"})), "center"
    )
    axes = failures.plot_dice_by_group(grouped, "center").axes[0]
    points = [each.get_offsets() for each in axes.collections if len(each.get_offsets())]
    assert sum(map(len, points)) == few.sum()
    axes.figure.draw_without_rendering()  # moves equal points apart
    places = np.concatenate([each.get_offsets() for each in axes.collections])
    assert len(np.unique(places, axis=0)) == few.sum()
    assert len(axes.patches) == scores["model"].nunique()  # a box each of the large group
    assert [t.get_text() for t in axes.get_xticklabels()] == ["few\nn = 9", "many\nn = 51"]


def test_the_matrices_of_agreement_hold_the_tables_shares(cases):
    figures.use_style()
    table = failures.agreement_table([cases], below=0.7)
    left, right = failures.plot_agreement(table).axes
    assert [each.get_text() for each in left.texts[:2]] == [f"{table['spearman'][0]:.2f}"] * 2
    usual = table.set_index("other")["usual"]
    words = [f"{table['shared'][0]:.0%}", f"{table['shared'][1]:.0%}"]
    words += [f"{usual[A]:.0%}", f"{usual[B]:.0%}"]
    assert [each.get_text() for each in right.texts] == words


def test_the_curve_of_reliability_goes_through_the_tables_points(cases):
    table = failures.reliability(cases)
    top = failures.plot_reliability(table, "t").axes[0]
    mine = table[table["model"] == A]
    assert np.allclose(top.lines[1].get_xydata(), mine[["prob", "polyp"]])


def test_the_page_of_the_worst_starts_with_the_worst(cases):
    polyps = cases.frames.masks.any(axis=(1, 2))
    first = failures.show_worst(cases, A, 3).axes[0].get_title()
    assert first.startswith(f"{cases.dice(A)[polyps].min():.2f}")
    rows = failures.worst_rows(cases, A, len(cases))
    assert set(rows) == set(np.flatnonzero(polyps))
    assert (np.diff(cases.dice(A)[rows]) >= 0).all()
    missed = rows[cases.dice(A)[rows] == 0]
    assert len(missed) > 1
    assert (np.diff(cases.scores[A]["area"].to_numpy()[missed]) <= 0).all()


# --- from files ---------------------------------------------------------------------------------


def test_scores_of_other_images_are_refused(outputs, monkeypatch):
    whole = make_cases(6, 32)
    monkeypatch.setattr(study, "test_frames", lambda name, profile: whole.frames)
    one = run("unet_tiny")
    one.folder.mkdir(parents=True)
    table = whole.scores[A].assign(test_set="synthetic")
    table.to_csv(one.folder / "scores.csv", index=False)
    profile = study.load_profile("demo")
    assert len(load_cases("synthetic", [one], profile)) == 6
    table.iloc[1:].to_csv(one.folder / "scores.csv", index=False)
    with pytest.raises(ValueError, match=r"scores.csv: its 5 images are not the 6 of synthetic"):
        load_cases("synthetic", [one], profile)


def test_lost_images_are_told_and_do_not_stop_the_others(monkeypatch):
    monkeypatch.setenv("ULTRASEG_DATA", "/nowhere")
    found, missing = load_available(["kvasir_seg"], [], study.load_profile("reference"))
    assert found == {}
    assert "data folder /nowhere not found" in missing["kvasir_seg"]


@pytest.mark.slow
def test_reference_runs_give_their_own_scores_on_real_images(real_data, outputs, monkeypatch):
    """The maps made from the committed weights have the committed Dice, within what CPUs differ by."""
    from ultraseg_lib.paths import ROOT

    (outputs / "reference").mkdir(parents=True)
    (outputs / "reference" / "runs").symlink_to(ROOT / "outputs" / "reference" / "runs")
    profile = study.load_profile("reference")
    kept = next(r for r in study.finished_runs("reference") if r.dataset == "cvc_clinicdb")
    cases = load_cases("cvc_clinicdb", [kept], profile)
    title = next(iter(cases.runs))
    dice = metrics.dice_score(cases.probs(title) >= 128, cases.frames.masks > 0)
    assert dice.mean() == pytest.approx(cases.dice(title).mean(), abs=0.005)
