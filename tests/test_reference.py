"""With the weights of the published implementations, our models give the published outputs.

A name map is two tables. `prefixes`: where a published module is found in ours (the longest that
fits counts). `PIECES`: other names for what lies inside it. No tensor is reshaped.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ultraseg_lib.models import Prediction, create_model

REFERENCE = Path(__file__).parents[1].parent / "shared" / "reference"
pytestmark = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason=f"the published tensors are not there: {REFERENCE}"
)

PIECES = {
    "dilated_convs": "branches",  # EDB
    "fusion": "mix",
    "res_weight": "residual_weight",
    "feature_adapter": "adaptor",  # Predict-Gated Fusion
    "share_space1": "learned_maps.0.seed",  # GSA
    "share_space2": "learned_maps.1.seed",
    "share_space3": "learned_maps.2.seed",
    "share_space4": "learned_maps.3.seed",
    "conv1": "learned_maps.0.refine",
    "conv2": "learned_maps.1.refine",
    "conv3": "learned_maps.2.refine",
    "conv4": "learned_maps.3.refine",
    "ldw": "mix",
    "params_xy": "plane.seed",  # EGE-UNet's attention: zx varies over the height, zy the width
    "params_zx": "rows.seed",
    "params_zy": "columns.seed",
    "conv_xy": "plane.refine",
    "conv_zx": "rows.refine",
    "conv_zy": "columns.refine",
    "dw": "local",
    "pre_project": "project",  # EGE-UNet's bridge
    "g0": "groups.0",
    "g1": "groups.1",
    "g2": "groups.2",
    "g3": "groups.3",
    "tail_conv": "mix",
}


def gated_decoder(depth: int) -> dict[str, str]:
    """Published encoders count from the top, decoders from the bottom; ours are named by level."""
    prefixes = {"final.0": "head", "final": "head"}
    for level in range(1, depth + 1):
        prefixes[f"encoder{level}.0"] = f"encoder{level}.{'conv' if level <= 3 else 'block'}"
        prefixes[f"ebn{level}"] = f"encoder{level}.norm"
        prefixes[f"Down{level}.bn"] = f"encoder{level}.down.norm"
        prefixes[f"Down{level}.conv"] = f"encoder{level}.down.conv"
        prefixes[f"merge{level}"] = f"decoder{level}.fusion"
        count = depth + 1 - level
        prefixes[f"decoder{count}.0"] = f"decoder{level}.block"
        prefixes[f"dbn{count}"] = f"decoder{level}.norm"
        prefixes[f"pred{count}.conv"] = f"decoder{level}.gate.region"
        if level <= 3:
            prefixes[f"gate{4 - level}.conv1"] = f"decoder{level}.gate.boundary"
            prefixes[f"gate{4 - level}.conv2"] = f"decoder{level}.gate.region"
    return prefixes


ULTRASEG = {
    **gated_decoder(depth=4),
    "encoder3.1": "encoder3.context.0",
    "encoder3.2": "encoder3.context.1",
    "multiscale_fusion.transforms.0": "agf.project",
    "multiscale_fusion.spatial_attention": "agf.attention",
    "attention_alpha": "ssa.alpha",
}
LBUNET = {
    **gated_decoder(depth=5),
    "encoder3.1": "encoder3.context.0",
    "encoder3.1.conv1": "encoder3.context.0.depthwise",
    "encoder3.1.conv2": "encoder3.context.0.expand",
    "encoder3.1.conv3": "encoder3.context.0.reduce",
    "encoder6.0": "bottleneck",
}
EGEUNET = {
    **gated_decoder(depth=5),
    "encoder6.0": "bottleneck",
    **{f"encoder{level}.0": f"encoder{level}.block" for level in range(1, 6)},
    **{f"gt_conv{6 - level}.0": f"decoder{level}.region" for level in range(1, 6)},
    **{f"GAB{level}": f"decoder{level}.bridge" for level in range(1, 6)},
}
UNET = {
    **{
        f"enc{level}.conv.{half}.conv": f"encoder{level}.{half}"
        for level in range(5)
        for half in (0, 1)
    },
    **{
        f"dec{level + 1}.conv.{half}.conv": f"decoder{level}.{half}"
        for level in range(4)
        for half in (0, 1)
    },
    **{f"up{level + 1}": f"up{level}" for level in range(4)},
}
MOBILEUNET = {
    **{f"enc.{level - 1}.conv": f"encoder{level}" for level in range(1, 5)},
    **{f"up.{3 - level}": f"up{level}" for level in (1, 2, 3)},
    "up.3": "head",
}
FASTSCNN = {
    "lds.detail": "detail",
    "lds.semantic": "semantic",
    "ffm.low_conv": "fusion.detail",
    "ffm.high_conv": "fusion.semantic",
    "ffm.fc": "fusion.share",
    "ffm.out_conv": "fusion.mix",
    **{f"cls.cls.{block}.0": f"classifier.{block}.0.0" for block in (0, 1)},
    **{f"cls.cls.{block}.1": f"classifier.{block}.0.1" for block in (0, 1)},
    **{f"cls.cls.{block}.3": f"classifier.{block}.1.0" for block in (0, 1)},
    **{f"cls.cls.{block}.4": f"classifier.{block}.1.1" for block in (0, 1)},
    "cls.cls.2": "up",
    "cls.cls.3": "head",
}

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


def rename(name: str, prefixes: dict[str, str]) -> str:
    """Our name of a published tensor; a name that no prefix fits stays as it is."""
    fits = [prefix for prefix in prefixes if name.startswith(f"{prefix}.") or name == prefix]
    prefix = max(fits, key=len, default="")
    inside = name[len(prefix) :].split(".")
    return prefixes.get(prefix, "") + ".".join(PIECES.get(piece, piece) for piece in inside)


def published_state(file: str, prefixes: dict[str, str]) -> dict[str, Tensor]:
    """The published weights under our names."""
    arrays = np.load(REFERENCE / f"{file}.npz")
    names = [name for name in arrays.files if name.startswith("weight/")]
    state = {
        rename(name.removeprefix("weight/"), prefixes): torch.from_numpy(arrays[name])
        for name in names
    }
    assert len(state) == len(names), "two published tensors have the same name of ours"
    return state


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
    model.load_state_dict(published_state(file, prefixes))  # strict: nothing left over
    with torch.no_grad():
        ours = our_outputs(model(published_image(), deep_supervision=True), sigmoid_head)

    arrays = np.load(REFERENCE / f"{file}.npz")
    assert set(ours) == {output for output in arrays.files if output.startswith("output/")}
    for output, found in ours.items():
        expected = arrays[output]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4, err_msg=output)
        # unet_small spans only 0.04: the error is small beside the spread as well
        assert np.abs(found - expected).max() < 1e-3 * (expected.max() - expected.min()), output


def to_one_logit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn a head of two channels (background, polyp) into one logit: that of the softmax."""
    weight, bias = state["head.weight"], state["head.bias"]
    return {**state, "head.weight": weight[1:] - weight[:1], "head.bias": bias[1:] - bias[:1]}


def test_released_weights_become_one_logit() -> None:
    state = published_state("ultraseg_130k_released_weights", ULTRASEG)
    model = create_model("ultraseg_130k").eval()
    model.load_state_dict(to_one_logit(state))
    arrays = np.load(REFERENCE / "ultraseg_130k_released_weights.npz")
    background, polyp = np.split(arrays["output/final"], 2, axis=1)
    with torch.no_grad():
        logits = model(published_image()).logits.numpy()
    np.testing.assert_allclose(logits, polyp - background, rtol=1e-4, atol=2e-4)
