"""The committed results are what they say: in the ledger, and from the weights."""

import numpy as np
import pytest

from ultraseg_lib import metrics, study
from ultraseg_lib.data.splits import committed_hash
from ultraseg_lib.models import create_model
from ultraseg_lib.training import predict_probs

pytestmark = pytest.mark.usefixtures("committed_outputs")


def committed() -> list[study.Run]:
    return study.finished_runs("reference")


def test_each_run_was_made_with_the_committed_split():
    assert committed()
    for run in committed():
        config = study.read_config(run)
        if run.dataset.startswith("mixed"):
            for name, split in config["inputs"]["split"].items():
                assert split == committed_hash(name)
        else:
            name, _, scheme = run.dataset.partition("@")
            split = committed_hash(name, scheme or "random")
            assert split
            assert config["split_hash"] == split == config["inputs"]["split"]


@pytest.mark.slow
def test_the_mixed_runs_were_made_of_the_frames_that_are_there(real_data, outputs):
    """Their own hash: the parts of four datasets, without what is too close to a tested image."""
    runs = [run for run in committed() if run.dataset == "mixed"]
    found = {study.load_run_data(runs[0], study.load_profile("lite")).split_hash}
    assert {study.read_config(run)["split_hash"] for run in runs} == found


def test_a_model_with_trained_weights_is_ready_to_predict():
    assert create_model("ultraseg_130k").training
    assert not create_model("ultraseg_130k", weights="mixed").training


@pytest.mark.parametrize("every", [24, pytest.param(1, marks=pytest.mark.slow)])
def test_shipped_weights_give_the_shipped_scores(real_data, every):
    profile, tests = study.load_profile("lite"), {}
    for run in committed():
        scores = study.read_scores(run)
        test_set = scores["test_set"].iloc[0]  # one of them is enough: 2,000 images take minutes
        scores = scores[scores["test_set"] == test_set][::every]
        if test_set not in tests:
            whole = study.test_frames(test_set, profile)
            tests[test_set] = whole.select(np.arange(len(whole)) % every == 0)
        test = tests[test_set]
        probs = predict_probs(study.load_trained(run), test.images)
        dice = metrics.dice_score(probs >= 128, test.masks > 0)
        assert scores["image_id"].tolist() == test.table["image_id"].tolist()
        assert np.mean(dice) == pytest.approx(scores["dice"].mean(), abs=1e-3)
