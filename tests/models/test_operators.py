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
    norm_twice,
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


@pytest.mark.parametrize("name", ["ultraseg_108k", "ultraseg_130k", "lbunet", "egeunet"])
def test_a_training_step_of_a_whole_model_is_as_exact_as_the_plain_one(name):
    torch.manual_seed(0)
    plain = create_model(name).to(memory_format=torch.channels_last)
    fast, exact = use_fast_operators(copy.deepcopy(plain)), copy.deepcopy(plain).double()
    assert any(type(each) in (OneNormStage, PhasedConv2d) for each in fast.modules())
    assert list(fast.state_dict()) == list(plain.state_dict())
    results = []
    for model, image in zip((plain, fast, exact), [torch.rand(2, 3, 64, 64)] * 3, strict=True):
        logits = model(image.to(next(model.parameters()).dtype)).logits
        logits.square().mean().backward()
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        results.append([logits.detach(), *gradients, *model.buffers()])
    for of_plain, of_fast, wanted in zip(*results, strict=True):
        allowed = 2 * (of_plain - wanted).abs().max() + 1e-4 * wanted.abs().max() + 1e-5
        assert (of_fast - wanted).abs().max() <= allowed


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


@pytest.mark.parametrize("batch", [1, 4])
def test_two_norms_of_a_black_batch_stay_finite(batch):
    """A uniform image has no variance but that of rounding."""
    stage = use_fast_operators(ConvStage(3, 8)).train()
    black = torch.zeros(batch, 3, 32, 32)
    assert stage(black).isfinite().all()
    assert all(buffer.isfinite().all() for buffer in stage.buffers())


def test_two_norms_are_exact_where_the_mean_is_far_from_zero():
    torch.manual_seed(2)
    group, batch = nn.GroupNorm(4, 8), nn.BatchNorm2d(8)
    feature = torch.randn(2, 8, 16, 16) + 30
    exact = copy.deepcopy(batch).double()(copy.deepcopy(group).double()(feature.double()))
    torch.testing.assert_close(norm_twice(feature, group, batch).double(), exact, rtol=0, atol=2e-4)
