"""Trained weights on a dataset that is here: which images are scored, how, and where it is written."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_pair
from safetensors.torch import save_file

from ultraseg_lib import evaluation, study
from ultraseg_lib.__main__ import main
from ultraseg_lib.models import create_model
from ultraseg_lib.statistics import bootstrap_interval
from ultraseg_lib.weights import trained_on

VIDEOS = [f"v{index // 3}" for index in range(18)]


@pytest.fixture
def clinic(tmp_path, monkeypatch) -> Path:
    """Write 18 images of two sites and six videos, point there, and return their folder."""
    folder = tmp_path / "data" / "My-Clinic"
    rows = ["image_id,center,sequence"]
    for index, video in enumerate(VIDEOS):
        write_pair(folder / f"images/f{index:02d}.png", folder / f"masks/f{index:02d}.png")
        rows.append(f"f{index:02d},site_{index % 2},{video}")
    (folder / "table.csv").write_text("\n".join(rows))
    monkeypatch.setenv("ULTRASEG_DATA", str(folder.parent))
    return folder


@pytest.fixture
def weights(tmp_path) -> Path:
    """Write untrained weights of UNet-Tiny at 64 px, of a run on CVC-ClinicDB."""
    path = tmp_path / "run" / "weights.safetensors"
    path.parent.mkdir()
    save_file(create_model("unet_tiny").state_dict(), path)
    trained("cvc_clinicdb", path)
    return path


def trained(dataset: str, weights: Path, split: object = "abc", protocol: str = "clean") -> None:
    """Say in the run's ``config.json`` what the weights were trained on."""
    config = {"dataset": dataset, "protocol": protocol}
    config["inputs"] = {"images": {"size": 64}, "split": split}
    weights.with_name("config.json").write_text(json.dumps(config))


def test_every_image_of_an_unseen_dataset_is_scored_and_whole_videos_are_drawn(clinic, weights):
    found = evaluation.evaluate("unet_tiny", weights, "my_clinic")
    assert found.note == "all images; the weights were trained on CVC-ClinicDB"
    assert tuple(found.scores) == study.SCORE_COLUMNS
    assert len(found.scores) == 18
    summary = found.summary.set_index("of")
    assert list(summary.index) == ["all images", "center site_0", "center site_1"]
    assert summary["images"].tolist() == [18, 9, 9]
    one = found.scores["center"] == "site_1"
    assert summary.loc["center site_1", "dice"] == found.scores.loc[one, "dice"].mean()
    interval = bootstrap_interval(found.scores["dice"], groups=VIDEOS)
    assert tuple(summary.loc["all images", ["dice", "dice_low", "dice_high"]]) == interval


def test_frames_without_a_polyp_tell_how_many_are_painted():
    frames = study.load_frames_of("synthetic", study.load_profile("demo"))
    frames = frames.select(np.arange(len(frames)) < 4)
    frames.masks[:3] = 0
    probs = np.zeros_like(frames.masks)
    probs[1, :4, :4] = 255
    scores = study.score_frames("any", "synthetic", frames, probs)
    row = evaluation.summarize(scores, probs, frames).iloc[0]
    assert (row["false_alarms"], row["polyp_free"]) == (1, 3)
    assert "1 of 3" in evaluation.readable(evaluation.summarize(scores, probs, frames))


def test_each_group_has_a_dice_per_batch_of_its_own(clinic):
    frames = study.load_frames_of("my_clinic", study.load_profile("lite", image_size=64))
    south = (frames.table["center"] == "site_1").to_numpy()
    probs = np.where(south[:, None, None], frames.masks, 0).astype(np.uint8)
    scores = study.score_frames("any", "my_clinic", frames, probs)
    summary = evaluation.summarize(scores, probs, frames).set_index("of")["batch_pooled_dice"]
    assert summary["center site_1"] == 1
    assert summary["center site_0"] < 0.01
    one = evaluation.summarize(scores[south], probs[south], frames.select(south))
    assert one["of"].tolist() == ["all images"]  # one center: it is all
    alone = evaluation.summarize(scores[:1], probs[:1], frames.select(np.arange(18) < 1))
    assert "(one image or video: none)" in evaluation.readable(alone)


def test_of_a_dataset_that_was_trained_on_the_test_part_is_scored(clinic, weights):
    trained("my_clinic@p25", weights, study.split_of("my_clinic"))
    frames, note = evaluation.choose_frames("my_clinic", weights)
    whole = study.load_frames_of("my_clinic", study.load_profile("lite", image_size=64))
    assert frames.table["image_id"].tolist() == whole.part("test").table["image_id"].tolist()
    assert 0 < len(frames) < 18
    assert note == "the test part: the weights were trained on the rest"
    trained("my_clinic", weights, study.split_of("my_clinic"), "released")
    assert "their epoch was picked on it" in evaluation.choose_frames("my_clinic", weights)[1]


def test_where_the_split_is_no_longer_the_one_of_the_training_nothing_is_scored(clinic, weights):
    trained("my_clinic", weights, study.split_of("my_clinic"))
    (clinic / "table.csv").unlink()  # now drawn by image
    with pytest.raises(ValueError, match=r"my_clinic: is split otherwise now .* restore it"):
        evaluation.choose_frames("my_clinic", weights)


def test_weights_that_tell_nothing_are_scored_on_all_and_so_it_is_said(clinic, weights):
    weights.with_name("config.json").unlink()
    assert trained_on(weights) is None
    frames, note = evaluation.choose_frames("my_clinic", weights)
    assert len(frames) == 18
    assert "nothing tells what the weights were trained on" in note


def test_the_mixed_set_is_what_was_there(weights):
    trained("mixed", weights, {"kvasir_seg": "abc", "polypdb": None})
    assert trained_on(weights).splits == {"kvasir_seg": "abc"}
    with pytest.raises(ValueError, match="trained on kvasir_seg; name that"):
        evaluation.choose_frames("kvasir_seg@sequence", weights)
    for name in ("mixed", "mixed@p25"):
        with pytest.raises(ValueError, match="is several datasets; name one"):
            evaluation.choose_frames(name, weights)


@pytest.mark.parametrize(
    ("on", "dataset", "told"),
    [
        ("my_clinic@center_site_0", "my_clinic", "trained on my_clinic@center_site_0; name that"),
        ("my_clinic", "my_clinic@sequence", "trained on my_clinic; name that"),
        ("kvasir_seg", "pranet_train", "shares images with kvasir_seg"),
        ("pranet_train", "kvasir_seg", "shares images with pranet_train"),
    ],
)
def test_no_image_is_scored_that_may_have_been_trained_on(clinic, weights, on, dataset, told):
    trained(on, weights)
    with pytest.raises(ValueError, match=told):
        evaluation.choose_frames(dataset, weights)


def test_the_command_takes_a_name_or_a_folder(clinic, weights, tmp_path, capsys, monkeypatch):
    words = ["evaluate", "--model", "unet_tiny", "--weights", str(weights)]
    assert main([*words, "my_clinic", "-o", str(tmp_path / "one")]) == 0
    assert "all images     18" in capsys.readouterr().out
    monkeypatch.setenv("ULTRASEG_DATA", "nowhere")
    assert main([*words, str(clinic), "-o", str(tmp_path / "two")]) == 0
    tables = [pd.read_csv(tmp_path / name / "scores.csv") for name in ("one", "two")]
    pd.testing.assert_frame_equal(*tables)
    config = json.loads((tmp_path / "one/config.json").read_text())
    assert config["dataset"] == "my_clinic"
    assert config["size"] == 64
    assert main([*words, str(tmp_path / "run"), "-o", str(tmp_path / "three")]) == 2
    assert "want the folder of one dataset; found none" in capsys.readouterr().err


def test_an_evaluation_replaces_nothing_but_an_earlier_one(clinic, weights, tmp_path, capsys):
    words = ["evaluate", "--model", "unet_tiny", "--weights", str(weights), "my_clinic", "-o"]
    assert main([*words, str(tmp_path / "one")]) == 0
    assert main([*words, str(tmp_path / "one")]) == 2
    assert "is there already; name another folder or give --force" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "one"), "--force"]) == 0
    (tmp_path / "one/notes.txt").write_text("mine")
    for folder in (clinic, tmp_path / "one"):
        assert main([*words, str(folder), "--force"]) == 2
        assert "holds other things than an evaluation" in capsys.readouterr().err
    assert (clinic / "table.csv").exists()
    (tmp_path / "empty").mkdir()
    assert main([*words, str(tmp_path / "empty")]) == 0


def test_on_real_images_the_record_comes_back(real_data, tmp_path, monkeypatch):
    monkeypatch.setenv("ULTRASEG_DATA", str(real_data))
    record = study.parse_run_id("reference", "ultraseg_130k-mixed-multiscale-clean-e240-s0")
    kept = study.read_scores(record).query("test_set == 'etis_larib'")
    found = evaluation.evaluate(
        "ultraseg_130k", record.folder / "weights.safetensors", "etis_larib"
    )
    assert found.scores["dice"].mean() == pytest.approx(kept["dice"].mean(), abs=1e-3)
