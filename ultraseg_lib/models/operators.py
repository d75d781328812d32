"""Faster operators for training on a CPU: the same numbers from the same parameters.

A model is written as the paper draws it, and PyTorch has no fast form of some of it. The EDB's
grouped, dilated 3x3 convolutions (section 3.2) are a quarter of a training step of UltraSeg-130K,
though they multiply little. Depthwise and without dilation the same sums take a tenth of the time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def use_fast_operators(model: nn.Module) -> nn.Module:
    """Give the grouped 3x3 convolutions of `model` their faster form, in place, and return it.

    Parameters, their names and the numbers (to float32 rounding) stay as they are.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_slow(module):
            module.__class__ = PhasedConv2d
    return model


def _is_slow(conv: nn.Conv2d) -> bool:
    """Whether PyTorch has no fast form: 3x3, an output a group, dilated or not depthwise."""
    keeps_size = conv.stride == (1, 1) and conv.padding == conv.dilation
    grouped = conv.groups == conv.out_channels > 1
    slow = conv.dilation != (1, 1) or conv.groups < conv.in_channels
    square = conv.kernel_size == (3, 3) and conv.dilation[0] == conv.dilation[1]
    return square and keeps_size and grouped and slow and conv.padding_mode == "zeros"


class PhasedConv2d(nn.Conv2d):
    """A grouped 3x3 convolution of dilation d as depthwise ones without dilation.

    Every d-th pixel of every d-th row is an image of its own (a phase): neighbours in it are d
    pixels apart in the whole. A depthwise convolution filters each channel, and each group is then
    added up, by a product with a matrix of 0 and 1.
    """

    def forward(self, feature: Tensor) -> Tensor:
        height, width = feature.shape[2:]
        d = self.dilation[0]
        padded = F.pad(feature, (0, -width % d, 0, -height % d))  # to multiples of d
        phases = split_phases(padded, d)  # (N d^2, C, H/d, W/d)
        filters = self.weight.reshape(self.in_channels, 1, 3, 3)
        filtered = F.conv2d(phases, filters, padding=1, groups=self.in_channels)
        pixels = F.linear(filtered.permute(0, 2, 3, 1), self._group_sums(feature), self.bias)
        return join_phases(pixels.permute(0, 3, 1, 2), d)[:, :, :height, :width]

    def _group_sums(self, like: Tensor) -> Tensor:
        """The matrix (groups, C): 1 where the input channel belongs to the group."""
        return torch.eye(self.groups, device=like.device).repeat_interleave(
            self.in_channels // self.groups, dim=1
        )


def split_phases(feature: Tensor, d: int) -> Tensor:
    """(N, C, H, W) to (N d^2, C, H/d, W/d), channels last: each holds every d-th pixel."""
    n, c, height, width = feature.shape
    pixels = feature.permute(0, 2, 3, 1).reshape(n, height // d, d, width // d, d, c)
    phases = pixels.permute(0, 2, 4, 1, 3, 5).reshape(-1, height // d, width // d, c)
    return phases.permute(0, 3, 1, 2)


def join_phases(phases: Tensor, d: int) -> Tensor:
    """The inverse of `split_phases`: (N d^2, C, h, w) to (N, C, d h, d w), channels last."""
    c, height, width = phases.shape[1:]
    pixels = phases.permute(0, 2, 3, 1).reshape(-1, d, d, height, width, c)
    joined = pixels.permute(0, 3, 1, 4, 2, 5).reshape(-1, d * height, d * width, c)
    return joined.permute(0, 3, 1, 2)
