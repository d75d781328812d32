"""The exact inference form is the trained model: each rewrite alone, all together, every variant."""

import copy

import numpy as np
import pytest
import torch
from deployed import generated_image, lively_model, trained_logits

from ultraseg_lib import study
from ultraseg_lib.deploy.benchmark import agreement
from ultraseg_lib.deploy.inference import REWRITES, exact_form
from ultraseg_lib.models import create_model
from ultraseg_lib.weights import shipped_weights

ULTRASEGS = ("ultraseg_108k", "ultraseg_130k")


def relative_difference(model, image, **options) -> float:
    expected = trained_logits(model, image)
    found = trained_logits(exact_form(model, image.shape[-1], **options), image)
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", ULTRASEGS)
@pytest.mark.parametrize("size", [64, 96])
def test_exact_form_equals_the_model_on_generated_images(name, size):
    model = lively_model(name)
    for index in range(5):
        assert relative_difference(model, generated_image(index, size)) < 1e-4


@pytest.mark.parametrize("rewrite", REWRITES)
def test_each_rewrite_alone_changes_nothing(rewrite):
    model = lively_model("ultraseg_130k")
    assert relative_difference(model, generated_image(0, 64), rewrites=(rewrite,)) < 1e-4


@pytest.mark.parametrize(
    "variants",
    [{"edb": "as_written"}, {"edb": "none"}, {"fusion": "fixed"},
     {"channels": (16, 32, 96, 128, 192)}, {"channels": (24, 48, 96, 128, 192)},
     {"out_channels": 2}],
    ids=str,
)  # fmt: skip
def test_every_variant_has_an_exact_form(variants):
    model = lively_model("ultraseg_130k", **variants)
    assert relative_difference(model, generated_image(0, 64)) < 1e-4


def test_a_fault_would_be_seen():
    """The comparison is sharp: one weight off by a percent is far outside the tolerance."""
    model, image = lively_model("ultraseg_130k"), generated_image(0, 64)
    wrong = copy.deepcopy(model)
    wrong.encoder3.context[0].mix.weight.data *= 1.01
    expected, found = trained_logits(model, image), trained_logits(exact_form(wrong, 64), image)
    assert np.abs(found - expected).max() / np.abs(expected).max() > 1e-4


def test_the_model_itself_stays_as_it_was():
    model = lively_model("ultraseg_130k")
    before = copy.deepcopy(model.state_dict())
    exact_form(model, 64)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_other_models_come_back_in_evaluation_mode():
    model = create_model("unet_tiny").train()
    assert not exact_form(model, 64).training
    assert model.training


def test_a_wrong_size_or_rewrite_is_named():
    model = create_model("ultraseg_130k")
    with pytest.raises(ValueError, match="size: found 100; give a multiple of 16"):
        exact_form(model, 100)
    with pytest.raises(ValueError, match="choose from edb, norm"):
        exact_form(model, 64, ("magic",))


def test_masks_of_real_images_are_the_trained_models(real_data):
    if not shipped_weights("ultraseg_130k"):
        pytest.skip("no trained weights are here")
    test = study.load_frames_of("kvasir_seg", study.load_profile("lite")).part("test")
    for row in agreement("ultraseg_130k", np.asarray(test.images[:5])):
        exact, engine = row["precision"] == "float32", row["backend"] != "inference"
        assert row["pixels_equal"] > (0.9999 if exact else 0.99), row
        # bfloat16 keeps 8 bits, and errors grow with the weights' training: its masks decide
        assert row["relative_parity"] < (0.2 if not exact else 1e-3 if engine else 1e-4), row
