"""The faster training operators give the numbers of the plain ones, forward and backward."""

import copy

import pytest
import torch
from torch import nn

from ultraseg_lib.models import create_model
from ultraseg_lib.models.layers import ConvStage, enlarge, resize
from ultraseg_lib.models.operators import (
    OneNormStage,
    PhasedConv2d,
    join_phases,
    split_phases,
    use_fast_operators,
)


def gradients(module: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """Return the output of a module and every gradient of the sum of its squares."""
    image = image.clone().requires_grad_()
    output = module(image)
    inputs = [image, *module.parameters()]
    return [output, *torch.autograd.grad(output.square().sum(), inputs)]


@pytest.mark.parametrize(
    ("channels", "groups", "dilation"), [(12, 4, 1), (12, 4, 2), (12, 4, 3), (6, 6, 2), (6, 6, 3)]
)
def test_phased_convolution_equals_the_plain_one(channels, groups, dilation):
    torch.manual_seed(dilation)
    plain = nn.Conv2d(channels, groups, 3, padding=dilation, dilation=dilation, groups=groups)
    image = torch.randn(2, channels, 11, 14)  # no multiple of 2 or 3
    expected = gradients(plain, image)
    fast = use_fast_operators(nn.Sequential(plain))
    assert type(fast[0]) is PhasedConv2d
    for found, wanted in zip(gradients(fast, image), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_phases_join_to_the_whole():
    feature = torch.randn(2, 5, 6, 9)
    phases = split_phases(feature, 3)
    assert torch.equal(phases[1], feature[0, :, ::3, 1::3])
    assert torch.equal(join_phases(phases, 3), feature)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 16)])
def test_enlarged_map_equals_the_resized_one(size):
    maps = torch.randn(2, 1, *size, dtype=torch.float32)
    torch.testing.assert_close(enlarge(maps, 32, 48), resize(maps, 32, 48), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ultraseg_108k", "ultraseg_130k", "egeunet", "unet_tiny"])
def test_model_keeps_its_weights_and_its_output(name):
    torch.manual_seed(0)
    model = create_model(name).eval()
    image = torch.rand(1, 3, 64, 64)
    names = list(model.state_dict())
    with torch.inference_mode():
        before = model(image).logits
        after = use_fast_operators(model)(image).logits
    assert list(model.state_dict()) == names
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_ultraseg_gets_a_fast_form_of_all_six_dilated_branches():
    model = use_fast_operators(create_model("ultraseg_130k"))
    fast = [name for name, each in model.named_modules() if isinstance(each, PhasedConv2d)]
    assert len(fast) == 6
    assert all("encoder3" in name for name in fast)


@pytest.mark.parametrize("training", [True, False])
def test_one_norm_stage_equals_two_norms_and_remembers_the_same(training):
    torch.manual_seed(1)
    plain = ConvStage(3, 8).train(training)
    with torch.no_grad():
        for norm in (plain.norm, plain.down.norm):
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-1, 1)
        plain.conv.bias.uniform_(-2, 2)
    fast = use_fast_operators(copy.deepcopy(plain))
    assert type(fast) is OneNormStage
    image = torch.randn(3, 3, 20, 24).contiguous(memory_format=torch.channels_last)
    for found, wanted in zip(gradients(fast, image), gradients(plain, image), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(fast.get_buffer(name), buffer, rtol=1e-4, atol=1e-5)
