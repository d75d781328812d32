"""The ledger: its columns, its completeness, and what happens when a run fails."""

import json
import os
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import write_pair

from ultraseg_lib import engines, metrics, study
from ultraseg_lib.data import DataError
from ultraseg_lib.data.splits import EXTERNAL, MIXED
from ultraseg_lib.models import MODELS
from ultraseg_lib.paths import PROFILES
from ultraseg_lib.report import ablation, tables
from ultraseg_lib.training import RECIPES
from ultraseg_lib.variants import network_hash


def tiny_plan(**changes) -> study.Profile:
    plan = study.load_profile("demo", models=["unet_tiny", "lbunet"], seeds=[0, 1], epochs=1)
    return replace(plan, **{"image_size": 32, "generated": {"count": 40, "seed": 1}} | changes)


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory) -> Path:
    """Give the outputs of a study of two models and two seeds, run in processes of their own."""
    folder, plan = tmp_path_factory.mktemp("outputs"), tiny_plan()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ULTRASEG_OUTPUTS", str(folder))
        assert engines.run_study(plan, study.plan_runs(plan), jobs=2) == {}
    return folder


@pytest.fixture
def finished(finished_once, outputs) -> study.Profile:
    """Give the plan of that study, whose outputs are a copy to change."""
    shutil.copytree(finished_once / "demo", outputs / "demo")
    return tiny_plan()


def test_a_study_fills_the_ledger_to_the_column(finished):
    run = study.plan_runs(finished)[0]
    names = {path.name for path in run.folder.iterdir()}
    assert names == {"config.json", "history.csv", "weights.safetensors", "scores.csv", "probs.npz"}
    scores = pd.read_csv(run.folder / "scores.csv")
    assert tuple(scores.columns) == study.SCORE_COLUMNS
    config = json.loads((run.folder / "config.json").read_text())
    assert {"run_id", "split_hash", "minutes", "provenance", "inputs"} <= set(config)
    assert {"commit", "versions", "cpu", "threads"} <= set(config["provenance"])

    test = study.load_frames_of("synthetic", finished).part("test")
    own = scores[scores["test_set"] == "synthetic"]
    assert own["image_id"].tolist() == test.table["image_id"].tolist()
    assert (scores["test_set"] == "synthetic_unseen").sum() == 40  # tested whole
    probs = np.load(run.folder / "probs.npz")["synthetic"]
    dice = metrics.dice_score(probs >= 128, test.masks > 0)
    np.testing.assert_allclose(own["dice"], dice, atol=1e-12)

    table = tables.main_table(study.read_ledger("demo"))
    assert sorted(table["model"]) == ["lbunet", "unet_tiny"]
    assert (table["seeds"] == 2).all()
    assert table["paper_dice"].isna().all()  # generated images stand in no table of the paper
    assert len(tables.shown(table, tables.MAIN)) == 2
    assert [len(group) for group in tables.groups(table)] == [2]

    ledger = study.read_ledger("demo")
    pair = ablation.compare(ledger, [("lbunet", "unet_tiny")]).iloc[0]
    means = table.set_index("model")["dice"]
    assert pair["difference"] == pytest.approx(means["lbunet"] - means["unet_tiny"])
    assert pair["low"] <= pair["difference"] <= pair["high"]


def test_maps_that_a_run_does_not_keep_are_made_from_the_images_that_are_here(
    finished, monkeypatch
):
    run = study.plan_runs(finished)[0]
    kept = study.read_probs(run, "synthetic", finished)
    (run.folder / "probs.npz").unlink()
    np.testing.assert_allclose(study.read_probs(run, "synthetic", finished), kept, atol=1)
    test = study.test_frames("synthetic", finished)
    other = replace(test, images=255 - test.images)
    monkeypatch.setattr(study, "test_frames", lambda *_: other)
    again = study.read_probs(run, "synthetic", finished)
    assert again.shape == kept.shape
    assert np.abs(again.astype(int) - kept).max() > 1


def test_a_failed_run_is_reported_and_does_not_stop_the_others(outputs, monkeypatch):
    plan = tiny_plan(image_size=48)  # LB-UNet needs multiples of 32
    failures = engines.run_study(plan, study.plan_runs(plan), jobs=2)
    assert set(failures) == {r.run_id for r in study.plan_runs(plan) if r.model == "lbunet"}
    assert "32" in next(iter(failures.values()))
    assert study.read_ledger("demo")["model"].unique().tolist() == ["unet_tiny"]


def test_a_run_to_show_is_a_finished_one_first(finished_once, outputs):
    plan = tiny_plan()
    assert study.pick_run(plan, "lbunet") == study.plan_runs(plan)[2]
    other = study.plan_runs(plan)[3]
    shutil.copytree(finished_once / "demo" / "runs" / other.run_id, other.folder)
    assert study.pick_run(plan, "lbunet") == other
    with pytest.raises(ValueError, match=r"no finished run .*--profile lite"):
        study.pick_run(study.load_profile("lite"), "lbunet")  # hours of training: not unasked


def test_a_run_to_show_in_place_of_another_is_no_variant(outputs, monkeypatch):
    lite = study.load_profile("lite")
    variant = replace(study.plan_runs(lite)[0], model="ultraseg_108k+fusion_fixed")
    monkeypatch.setattr(study, "finished_runs", lambda profile: [variant])
    assert study.pick_run(lite, variant.model) == variant
    with pytest.raises(ValueError, match="no finished run"):
        study.pick_run(lite, "ultraseg_130k")


def test_a_run_to_show_has_a_test_part_of_its_own(finished_once, outputs, monkeypatch):
    plan = study.load_profile("demo")
    other = replace(study.plan_runs(plan)[0], dataset="synthetic@p25")
    monkeypatch.setattr(study, "finished_runs", lambda profile: [other])
    lite = study.load_profile("lite")
    with pytest.raises(ValueError, match="a test part of its own"):
        study.pick_run(lite, other.model)


def test_datasets_are_loaded_once_and_the_absent_are_named(outputs, monkeypatch):
    plan = replace(
        study.load_profile("demo"), datasets=["synthetic", "synthetic@center_1", "bkai_igh"]
    )
    monkeypatch.setenv("ULTRASEG_DATA", str(outputs))
    found, missing = study.load_datasets(plan)
    assert list(found) == ["synthetic"]
    assert list(missing) == ["bkai_igh"]
    with pytest.raises(FileNotFoundError, match="BKAI"):
        study.load_datasets(replace(plan, datasets=["bkai_igh"]))


def test_on_real_images_all_seven_are_looked_at_and_what_is_wrong_is_told(monkeypatch):
    def load(name: str, profile: study.Profile) -> str:
        if name == "etis_larib":
            return "frames"
        raise DataError("cut off") if name == "kvasir_seg" else FileNotFoundError("not there")

    monkeypatch.setattr(study, "load_frames_of", load)
    found, missing = study.load_datasets(study.load_profile("lite"))
    assert found == {"etis_larib": "frames"}
    assert set(missing) == {*MIXED, study.INSTRUMENTS, *EXTERNAL} - {"etis_larib"}
    assert missing["kvasir_seg"] == "cut off"


def test_a_record_that_lacks_a_run_is_not_trained(outputs, monkeypatch):
    monkeypatch.setattr(study, "run_once", lambda *_, **__: pytest.fail("trained"))
    plan = replace(tiny_plan(models=("ultraseg_108k+kd10",), teacher="unet_tiny"), frozen=True)
    run = study.plan_runs(plan)[0]
    with pytest.raises(ValueError, match=rf"{re.escape(run.run_id)} is not in the record demo"):
        study.ensure_run(run, plan)
    assert not (outputs / "demo").exists()
    run.folder.mkdir(parents=True)
    (run.folder / "scores.csv").write_text("dice\n0.5\n")
    assert study.ensure_run(run, plan)["dice"].tolist() == [0.5]  # though its teacher is not there


def test_a_run_made_from_other_images_is_refused_with_the_way_out(outputs):
    plan = tiny_plan()
    run = study.plan_runs(plan)[0]
    study.run_once(run, plan)
    for changed in (
        replace(plan, image_size=64),
        replace(plan, generated={"count": 40, "seed": 2}),
    ):
        with pytest.raises(ValueError, match="remove the folder, or give --force"):
            engines.run_study(changed, [run])


def test_a_checkpoint_of_other_images_is_refused(outputs, monkeypatch):
    plan = tiny_plan()
    run = replace(study.plan_runs(plan)[0], epochs=3)

    def stop(row: dict) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run_once(run, plan, on_epoch=stop)
    assert (run.folder / "checkpoint.pt").exists()
    with pytest.raises(ValueError, match=r"checkpoint\.pt: made from .*--force"):
        study.run_once(run, replace(plan, generated={"count": 40, "seed": 2}))
    assert len(study.run_once(run, plan)) > 0  # with its own images it goes on


def test_names_that_look_like_numbers_stay_text(finished):
    run = study.plan_runs(finished)[0]
    scores = study.read_scores(run).assign(image_id=lambda table: table.index.astype(str))
    scores.to_csv(run.folder / "scores.csv", index=False)
    assert study.read_scores(run)["image_id"].tolist() == [str(i) for i in range(len(scores))]


@pytest.mark.parametrize("field", ["model", "recipe", "protocol"])
def test_a_run_of_unknown_names_is_refused(field):
    run = study.plan_runs(tiny_plan())[0]
    with pytest.raises(ValueError, match="unknown 'Released'; choose from"):
        replace(run, **{field: "Released"})


def test_a_variant_that_changes_nothing_of_its_recipe_is_refused():
    run = replace(
        study.plan_runs(tiny_plan())[0], recipe="paper", model="ultraseg_130k+no_early_stopping"
    )
    assert run.training_recipe.patience is None
    with pytest.raises(ValueError, match="changes nothing of recipe strong for this model"):
        replace(run, recipe="strong")


@pytest.mark.parametrize("model", ["unet_tiny+no_region_loss", "egeunet+morphological_edges"])
def test_a_variant_of_maps_that_a_model_lacks_is_refused(model):
    run = study.plan_runs(tiny_plan())[0]
    with pytest.raises(ValueError, match="changes nothing of recipe strong for this model"):
        replace(run, model=model)
    replace(run, model="egeunet+no_region_loss")  # it has these
    replace(run, model="unet_tiny+as_released", recipe="paper")  # more than maps


def test_a_name_with_a_hyphen_is_refused_before_it_is_trained(monkeypatch):
    monkeypatch.setitem(RECIPES, "my-fast", RECIPES["strong"])
    with pytest.raises(ValueError, match="recipe: 'my-fast' holds a hyphen"):
        study.load_profile("demo", recipes=["my-fast"])


def test_a_tested_dataset_has_a_name(own_data):
    own_data(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study.load_profile("lite", tested=["my_clinic", "etis_larib"])  # the second is not here
    with pytest.warns(UserWarning, match=r"tests on my_clinik, which is not here.* my_clinic"):
        study.load_profile("lite", tested=["my_clinik"])


def test_an_edited_network_does_not_keep_its_old_scores(outputs, monkeypatch):
    plan = tiny_plan()
    run = study.plan_runs(plan)[0]
    study.run_once(run, plan)
    found = study.read_config(run)["inputs"]["network"]
    monkeypatch.setattr(study, "network_hash", lambda name: "other")
    with pytest.raises(ValueError, match=f"made from network {found}, the run now has other"):
        study.run_once(run, plan)


def test_the_hash_of_a_network_sees_its_width_and_its_variants(monkeypatch):
    found = {name: network_hash(name) for name in ("ultraseg_130k", "ultraseg_108k", "unet_tiny")}
    assert len(set(found.values())) == 3
    assert network_hash("ultraseg_130k+no_boundary_loss") == found["ultraseg_130k"]
    wider = replace(MODELS["unet_tiny"], options={"channels": (8, 16, 32, 64, 136)})
    monkeypatch.setitem(MODELS, "unet_tiny", wider)
    network_hash.cache_clear()
    assert network_hash("unet_tiny") != found["unet_tiny"]
    network_hash.cache_clear()


@pytest.fixture
def own_data(tmp_path, monkeypatch):
    """Give a function that writes a dataset of one's own, of so many images, and points there."""
    monkeypatch.setenv("ULTRASEG_DATA", str(tmp_path / "data"))

    def write(count: int, name: str = "my_clinic") -> None:
        folder = tmp_path / "data" / name
        for index in range(count):
            file = f"{index:02d}.png"
            write_pair(folder / "images" / file, folder / "masks" / file)

    return write


def own_run(dataset: str = "my_clinic", **changes) -> tuple[study.Profile, study.Run]:
    plan = study.load_profile("lite", datasets=[dataset], models=["unet_tiny"], epochs=1, **changes)
    plan = replace(plan, image_size=32)
    return plan, study.plan_runs(plan)[0]


def test_ones_own_dataset_is_trained_on_and_its_results_outlive_it(own_data, outputs, monkeypatch):
    own_data(20)
    plan, run = own_run()
    study.run_once(run, plan)
    assert set(study.read_scores(run)["test_set"]) == {"my_clinic"}
    data_folder = Path(os.environ["ULTRASEG_DATA"])
    shutil.copytree(data_folder, data_folder.with_name("copy"))
    monkeypatch.setenv("ULTRASEG_DATA", str(data_folder.with_name("copy")))
    assert len(study.run_once(run, plan)) == 4  # the same files elsewhere, with other times
    monkeypatch.setenv("ULTRASEG_DATA", str(data_folder))
    mask = data_folder / "my_clinic/masks/03.png"
    before = mask.read_bytes()
    cv2.imwrite(str(mask), 255 - cv2.imread(str(mask)))  # corrected by its owner
    with pytest.raises(ValueError, match=r"made from content my_clinic .*--force"):
        study.run_once(run, plan)
    mask.write_bytes(before)
    own_data(24)  # four more
    with pytest.raises(ValueError, match=r"made from .*split .*--force"):
        study.run_once(run, plan)
    monkeypatch.setenv("ULTRASEG_DATA", "nowhere")
    assert study.finished_runs("lite") == [run]
    assert len(study.run_once(run, plan)) == 4
    with pytest.raises(ValueError, match="dataset: unknown 'my_clinic'"):
        own_run()


def test_other_files_of_a_dataset_of_the_catalog_are_no_longer_its_results(own_data, outputs):
    own_data(20, "Kvasir-Instrument")
    plan, run = own_run("kvasir_instrument")
    study.run_once(run, plan)
    mask = Path(os.environ["ULTRASEG_DATA"]) / "Kvasir-Instrument/masks/03.png"
    cv2.imwrite(str(mask), 255 - cv2.imread(str(mask)))
    with pytest.raises(ValueError, match=r"made from content kvasir_instrument .*--force"):
        study.run_once(run, plan)
    study.check_complete(run, replace(plan, name="reference"))  # the record: of another copy


def test_a_run_has_an_epoch(outputs):
    with pytest.raises(ValueError, match="epochs: 0 is no whole number from 1 on"):
        study.parse_run_id("demo", "unet_tiny-synthetic-paper-clean-e0-s0")
    with pytest.raises(ValueError, match="seed: 'a' is no whole number from 0 on"):
        study.Run("demo", "unet_tiny", "synthetic", "paper", "clean", 1, "a")


def test_a_name_like_the_generator_s_is_ones_own(own_data, outputs):
    own_data(20, "synthetic_x")
    plan, run = own_run("synthetic_x")
    assert study.load_frames_of("synthetic_x", plan).table["image_id"][0] == "00"
    assert "generator" not in study.inputs_of(run, plan)["images"]


@pytest.mark.parametrize(("protocol", "part"), [("clean", "val"), ("released", "test")])
def test_a_dataset_too_small_for_a_part_is_named(own_data, outputs, protocol, part):
    own_data(2)
    plan, run = own_run(protocols=[protocol])
    with pytest.raises(ValueError, match=f"my_clinic: of 2 images none falls to its part '{part}'"):
        study.run_once(run, plan)


def test_a_set_without_a_test_image_is_named_before_training(own_data, outputs, monkeypatch):
    own_data(20)
    plan, run = own_run()
    monkeypatch.setattr(study, "test_sets_of", lambda run, profile: [])
    with pytest.raises(ValueError, match=f"{run.run_id}: no test image; add images, or a dataset"):
        study.run_once(run, plan)
    assert not run.folder.exists() or not any(run.folder.iterdir())


def test_a_stray_folder_among_the_runs_is_passed_over_by_name(finished):
    run = study.plan_runs(finished)[0]
    shutil.copytree(run.folder, run.folder.with_name(f"{run.run_id}.bak"))
    with pytest.warns(UserWarning, match=r"\.bak: passed over .* move it out of runs/"):
        assert len(study.finished_runs("demo")) == len(study.plan_runs(finished))


def half(path: Path) -> None:
    """Cut a file off in its middle."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [lambda path: path.write_text(""), half, Path.unlink])
@pytest.mark.parametrize("name", ["config.json", "scores.csv"])
def test_a_broken_file_of_a_run_is_named_with_the_way_out(finished_once, outputs, name, damage):
    run = study.plan_runs(tiny_plan())[0]
    shutil.copytree(finished_once / "demo" / "runs" / run.run_id, run.folder)
    damage(run.folder / name)
    read = {"config.json": study.read_config, "scores.csv": study.read_scores}[name]
    with pytest.raises(ValueError, match=f"{name}: cannot be read .* remove its folder"):
        read(run)


def test_settings_must_be_settings(finished_once, outputs):
    run = study.plan_runs(tiny_plan())[0]
    shutil.copytree(finished_once / "demo" / "runs" / run.run_id, run.folder)
    (run.folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json: cannot be read .holds no settings"):
        study.read_config(run)


def test_broken_commits_cost_no_epoch(outputs):
    run = study.plan_runs(tiny_plan())[0]
    run.folder.mkdir(parents=True)
    (run.folder / study.COMMITS).write_text('{"1": ')
    with pytest.raises(ValueError, match=r"commits.json: cannot be read .* remove this file alone"):
        study.run_once(run, tiny_plan())
    (run.folder / study.COMMITS).unlink()
    assert len(study.run_once(run, tiny_plan()))


def test_a_broken_history_is_no_progress(outputs):
    run = study.plan_runs(tiny_plan())[0]
    run.folder.mkdir(parents=True)
    (run.folder / "history.csv").touch()
    assert study.epochs_done(run) == 0


def test_a_half_written_run_is_no_run(outputs):
    folder = outputs / "demo" / "runs" / ".lbunet-synthetic-strong-clean-e1-s0.77.tmp"
    folder.mkdir(parents=True)
    (folder / "scores.csv").touch()
    assert study.finished_runs("demo") == []


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        (
            "etis_larib",
            "every image of etis_larib is for tests; etis_larib@random trains on a part",
        ),
        ("synthetic_unseen", "every image of synthetic_unseen is for tests$"),
        ("mixed@random", "'mixed@random' is none; of the mixed set give a share, as mixed@p25"),
        ("mixed@center_C3", "'mixed@center_C3' is none"),
        (
            "kvasir_seg@sequnce",
            "split of kvasir_seg: unknown 'sequnce'; choose from draw_2, draw_3, official",
        ),
        ("kvasir_seg@", "'kvasir_seg@' names no selection; leave out the @"),
    ],
)
def test_a_dataset_that_cannot_be_trained_on_is_named(dataset, reason):
    with pytest.raises(ValueError, match=reason):
        study.load_profile("lite", datasets=[dataset])


@pytest.mark.parametrize(
    ("dataset", "tested"),
    [
        ("etis_larib@random", ["etis_larib@random", "kvasir_seg", "cvc_clinicdb", "bkai_igh"]),
        ("etis_larib@p50", ["etis_larib@p50", "kvasir_seg", "cvc_clinicdb", "bkai_igh"]),
        ("pranet_train", ["pranet_train", "etis_larib", "bkai_igh"]),
        ("kvasir_seg@p50", ["kvasir_seg", "cvc_clinicdb", "etis_larib", "bkai_igh"]),
        (
            "cvc_clinicdb@sequence",
            ["cvc_clinicdb@sequence", "kvasir_seg", "etis_larib", "bkai_igh"],
        ),
        ("mixed", ["kvasir_seg", "cvc_clinicdb", "etis_larib", "bkai_igh"]),
    ],
)
def test_nothing_is_tested_on_what_it_trained_on(dataset, tested, monkeypatch):
    there = {"kvasir_seg", "cvc_clinicdb", "etis_larib", "bkai_igh", "pranet_train"}
    monkeypatch.setattr(study, "datasets_there", lambda: there)
    plan = study.load_profile("lite", datasets=[dataset])
    assert study.test_sets_of(study.plan_runs(plan)[0], plan) == tested


def test_nothing_is_tested_on_a_broken_set_and_it_is_told(kvasir, monkeypatch):
    root = kvasir()
    monkeypatch.setenv("ULTRASEG_DATA", str(root))
    shutil.copytree(root / "Kvasir-SEG" / "images", root / "ETIS-LaribPolypDB" / "images")
    plan, run = own_run("kvasir_seg")
    with pytest.warns(UserWarning, match="etis_larib: nothing is tested on it: "):
        assert study.test_sets_of(run, plan) == ["kvasir_seg"]


def test_a_share_goes_with_the_clean_protocol_only():
    with pytest.raises(ValueError, match="mixed@p25: protocol released trains on the validation"):
        study.load_profile("lite", datasets=["mixed@p25"], protocols=["released"])


def test_a_set_that_is_tested_whole_may_be_split_to_train_on(real_data, outputs):
    plan, run = own_run("etis_larib@random")
    frames = study.load_run_data(run, replace(plan, tested=("etis_larib",)))
    tested = set(frames.tests["etis_larib@random"].table["image_id"])
    assert tested
    assert not tested & set(frames.train.table["image_id"])


def test_the_mixed_set_knows_what_it_was_made_of(monkeypatch):
    monkeypatch.setattr(study, "datasets_there", lambda: {"kvasir_seg"})
    found = study.split_of("mixed")
    assert [name for name, split in found.items() if split] == ["kvasir_seg"]


def test_a_dataset_may_name_its_split(real_data, outputs):
    plan = study.load_profile("lite", datasets=["cvc_clinicdb@sequence"])
    table = study.load_frames_of("cvc_clinicdb@sequence", replace(plan, image_size=32)).table
    sequences = {part: set(rows["sequence"]) for part, rows in table.groupby("part")}
    assert not sequences["test"] & (sequences["train"] | sequences["val"])
    with pytest.raises(ValueError, match="split of kvasir_seg: unknown 'sequence'"):
        study.load_profile("lite", datasets=["kvasir_seg@sequence"])


def test_an_empty_ledger_has_its_columns(outputs):
    assert set(study.SCORE_COLUMNS) < set(study.read_ledger("demo").columns)


def test_protocols_differ_in_who_picks_the_epoch(outputs):
    frames = study.load_frames_of("synthetic", tiny_plan())
    parts = {
        "clean": (frames.part("train"), frames.part("val")),
        "released": (frames.part("train", "val"), frames.part("test")),
    }
    for protocol, expected in parts.items():
        found = study.training_parts(frames, protocol)
        for ours, wanted in zip(found, expected, strict=True):
            assert set(ours.table["image_id"]) == set(wanted.table["image_id"])
    assert not set(parts["clean"][0].table["image_id"]) & set(parts["clean"][1].table["image_id"])


def test_a_center_and_a_share_thin_the_training_images(outputs):
    whole = study.load_frames_of("synthetic", tiny_plan()).table
    center = study.load_frames_of("synthetic@center_1", tiny_plan()).table
    assert len(center) == (whole["center"] == "center_1").sum() < len(whole)
    assert set(center["center"]) == {"center_1"}
    kept = {}
    for share in (25, 50):
        table = study.load_frames_of(f"synthetic@p{share}", tiny_plan()).table
        counts, all_of = table["part"].value_counts(), whole["part"].value_counts()
        assert counts["train"] == round(share / 100 * all_of["train"])
        assert (counts["val"], counts["test"]) == (all_of["val"], all_of["test"])
        kept[share] = set(table["image_id"])
    assert kept[25] < kept[50] < set(whole["image_id"])


def test_a_seed_draws_the_first_weights(outputs, monkeypatch):
    first = {}

    class Caught(Exception):
        pass

    def fit(trainer, on_epoch):
        first.setdefault(trainer.seed, []).append(next(trainer.model.parameters()).clone())
        raise Caught

    monkeypatch.setattr(study.Trainer, "fit", fit)
    for seed in (0, 0, 1):
        with pytest.raises(Caught):
            study.run_once(replace(study.plan_runs(tiny_plan())[0], seed=seed), tiny_plan())
    assert torch.equal(*first[0])
    assert not torch.equal(first[0][0], first[1][0])


@pytest.mark.parametrize("argument", ["models", "datasets", "recipes", "protocols"])
def test_unknown_names_list_the_known(argument):
    with pytest.raises(ValueError, match="unknown 'nonsense'; choose from"):
        study.load_profile("demo", **{argument: ["nonsense"]})


def test_a_profile_need_not_have_more_grids(monkeypatch, tmp_path):
    lines = (PROFILES / "lite.yaml").read_text(encoding="utf-8").split("\ngrids:")[0]
    (tmp_path / "short.yaml").write_text(lines, encoding="utf-8")
    monkeypatch.setattr("ultraseg_lib.grid.PROFILES", tmp_path)
    assert study.load_profile("short").grids == {}


def test_unknown_profile_lists_the_known():
    with pytest.raises(ValueError, match="'huge'; choose from demo, full, lite"):
        study.load_profile("huge")


@pytest.mark.parametrize("name", study.profile_names())
def test_every_profile_is_valid(name):
    runs = study.plan_runs(study.load_profile(name))
    assert len({run.run_id for run in runs}) == len(runs) > 0


def test_paper_table_is_read_in_long_form():
    paper = tables.paper_table3().set_index(["title", "dataset"])["paper_dice"]
    assert paper["UltraSeg-130K", "kvasir_seg"] == 0.7489
    assert len(paper) == 11 * 6  # with the paper's own mean
