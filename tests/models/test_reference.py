"""With the weights of the published implementations, our models give the published outputs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tools.published import (
    EGEUNET,
    FASTSCNN,
    LBUNET,
    MOBILEUNET,
    ULTRASEG,
    UNET,
    published_state,
    to_one_logit,
)
from tools.record import authors_levels
from ultraseg_lib import study
from ultraseg_lib.metrics import dice_score
from ultraseg_lib.models import Prediction, create_model
from ultraseg_lib.training import predict_probs

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
pytestmark = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason=f"the published tensors are not there: {REFERENCE}"
)

# file: our name, width of the head, name map, whether the published head ends in a sigmoid
FILES = {
    "ultraseg_108k": ("ultraseg_108k", 1, ULTRASEG, False),
    "ultraseg_130k": ("ultraseg_130k", 1, ULTRASEG, False),
    "ultraseg_130k_released_weights": ("ultraseg_130k", 2, ULTRASEG, False),
    "lbunet": ("lbunet", 1, LBUNET, True),
    "egeunet": ("egeunet", 1, EGEUNET, True),
    "unet_tiny": ("unet_tiny", 1, UNET, False),
    "unet_small": ("unet_small", 1, UNET, False),
    "mobileunet": ("mobileunet", 1, MOBILEUNET, False),
    "fastscnn": ("fastscnn", 1, FASTSCNN, False),
}


def published_image() -> Tensor:
    """The image (2, 3, 256, 256) of which the outputs are published."""
    return torch.from_numpy(np.load(REFERENCE / "input.npz")["x"]).float()


def our_outputs(prediction: Prediction, sigmoid_head: bool) -> dict[str, np.ndarray]:
    """Our outputs as the files hold them: maps of sample 0 as probabilities, every 8th pixel."""
    logits = prediction.logits
    outputs = {"final": torch.sigmoid(logits) if sigmoid_head else logits}
    for kind, maps in (("region", prediction.regions), ("boundary", prediction.boundaries)):
        for index, logits in enumerate(maps):
            outputs[f"{kind}_{index}"] = torch.sigmoid(logits)[:1, :, ::8, ::8]
    return {f"output/{name}": value.numpy() for name, value in outputs.items()}


@pytest.mark.parametrize("file", FILES)
def test_weights_and_outputs_are_the_published_ones(file: str) -> None:
    name, out_channels, prefixes, sigmoid_head = FILES[file]
    model = create_model(name, out_channels=out_channels).eval()
    model.load_state_dict(
        published_state(REFERENCE / f"{file}.npz", prefixes)
    )  # strict: nothing left over
    with torch.no_grad():
        ours = our_outputs(model(published_image(), deep_supervision=True), sigmoid_head)

    arrays = np.load(REFERENCE / f"{file}.npz")
    assert set(ours) == {output for output in arrays.files if output.startswith("output/")}
    for output, found in ours.items():
        expected = arrays[output]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=output)
        # unet_small spans only 0.04: the error is small beside the spread as well
        assert np.abs(found - expected).max() < 1e-3 * (expected.max() - expected.min()), output


def test_released_weights_become_one_logit() -> None:
    state = published_state(REFERENCE / "ultraseg_130k_released_weights.npz", ULTRASEG)
    model = create_model("ultraseg_130k").eval()
    model.load_state_dict(to_one_logit(state))
    arrays = np.load(REFERENCE / "ultraseg_130k_released_weights.npz")
    background, polyp = np.split(arrays["output/final"], 2, axis=1)
    with torch.no_grad():
        logits = model(published_image()).logits.numpy()
    np.testing.assert_allclose(logits, polyp - background, rtol=1e-4, atol=2e-4)


def test_the_authors_weights_score_as_committed(real_data, committed_outputs) -> None:
    model = create_model("ultraseg_130k").eval()
    file = REFERENCE / "ultraseg_130k_released_weights.npz"
    model.load_state_dict(to_one_logit(published_state(file, ULTRASEG)))
    test = study.test_frames("etis_larib", study.load_profile("reference"))
    dice = dice_score(predict_probs(model, test.images) >= 128, test.masks > 0)
    committed = authors_levels().set_index("tested")["dice"]
    assert dice.mean() == pytest.approx(committed["etis_larib"], abs=1e-3)
