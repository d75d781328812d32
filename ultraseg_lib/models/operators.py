"""Faster operators for training on a CPU: the same numbers from the same parameters.

A model is written as the paper draws it, and PyTorch has no fast form of some of it. Of a training
step of UltraSeg-130K a quarter went to the EDB's grouped, dilated 3x3 convolutions (section 3.2),
which multiply little, and a sixth to two norms in a row over the widest maps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ConvStage


def use_fast_operators(model: nn.Module) -> nn.Module:
    """Give slow parts of `model` their faster form, in place, and return it.

    Parameters, their names and the numbers (to float32 rounding) stay as they are.
    """
    for module in model.modules():
        if type(module) is nn.Conv2d and _is_slow(module):
            module.__class__ = PhasedConv2d
        elif type(module) is ConvStage:
            module.__class__ = OneNormStage
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
        ones = torch.eye(self.groups, device=like.device, dtype=like.dtype)
        return ones.repeat_interleave(self.in_channels // self.groups, dim=1)


def split_phases(feature: Tensor, d: int) -> Tensor:
    """(N, C, H, W) to (N d^2, C, H/d, W/d), channels last: each holds every d-th pixel.

    H and W must be multiples of d.
    """
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


class OneNormStage(ConvStage):
    """A `ConvStage` whose GroupNorm and BatchNorm are applied as one multiplication and addition."""

    def forward(self, feature: Tensor) -> Tensor:
        feature = self.context(self.conv(feature))  # (N, out, H, W)
        normed = norm_twice(feature, self.norm, self.down.norm)
        return F.gelu(self.down.conv(normed))  # (N, out, H/2, W/2)


def norm_twice(feature: Tensor, group: nn.GroupNorm, batch: nn.BatchNorm2d) -> Tensor:
    """`batch(group(feature))` for float32 (N, C, H, W), from one look at the pixels.

    Both norms are linear once their means and variances are known, and those of the second follow
    from those of the first: only the mean and variance of each channel of each image are needed.
    """
    n, c, height, width = feature.shape
    pixels = feature.permute(0, 2, 3, 1).reshape(n, height * width, c)
    mean, spread = Moments.apply(pixels)  # (N, 1, C) each
    scale, middle = _group_norm(mean, spread, group)  # normed once: scale (x - mean) + middle

    batch_mean, variance = batch.running_mean, batch.running_var
    if batch.training:
        batch_mean = middle.mean(dim=(0, 1))  # (C,)
        variance = (scale * scale * spread + (middle - batch_mean) ** 2).mean(dim=(0, 1))
        _remember(batch, batch_mean.detach(), variance.detach(), n * height * width)
    gain = batch.weight * torch.rsqrt(variance + batch.eps)
    shift = (middle - batch_mean - scale * mean) * gain + batch.bias
    return Affine.apply(pixels, scale * gain, shift).view(n, height, width, c).permute(0, 3, 1, 2)


def _group_norm(mean: Tensor, spread: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Scale of a GroupNorm and the means of what comes out, (N, 1, C) each.

    `mean` and `spread` (variance) are those of its input's channels, (N, 1, C).
    """
    groups = (len(mean), norm.num_groups, -1)
    group_mean = mean.view(groups).mean(2, keepdim=True)  # (N, G, 1)
    distance = mean.view(groups) - group_mean  # (N, G, C/G)
    variance = (spread.view(groups) + distance**2).mean(2, keepdim=True)
    scale = torch.rsqrt(variance + norm.eps) * norm.weight.view(groups[1:])
    middle = distance * scale + norm.bias.view(groups[1:])
    return scale.view(mean.shape), middle.view(mean.shape)


@torch.no_grad()
def _remember(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Move the running statistics of a BatchNorm towards a batch, as PyTorch does."""
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)


class Moments(torch.autograd.Function):
    """Mean and variance over the pixels: (N, P, C) to (N, 1, C) twice. Sums are products with 1s."""

    @staticmethod
    def forward(ctx, pixels: Tensor) -> tuple[Tensor, Tensor]:
        share = pixels.new_full((len(pixels), 1, pixels.shape[1]), 1 / pixels.shape[1])
        mean = share @ pixels
        ctx.save_for_backward(pixels, mean)
        return mean, share @ (pixels - mean).square_()

    @staticmethod
    def backward(ctx, of_mean: Tensor, of_spread: Tensor) -> Tensor:
        pixels, mean = ctx.saved_tensors
        count = pixels.shape[1]
        slope = of_spread * (2 / count)
        return torch.addcmul(of_mean / count - slope * mean, pixels, slope)


class Affine(torch.autograd.Function):
    """scale x + shift: (N, P, C) with (N, 1, C) each to (N, P, C)."""

    @staticmethod
    def forward(ctx, pixels: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(pixels, scale)
        return torch.addcmul(shift, pixels, scale)

    @staticmethod
    def backward(ctx, of_output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pixels, scale = ctx.saved_tensors
        ones = pixels.new_ones(len(pixels), 1, pixels.shape[1])
        return of_output * scale, ones @ (of_output * pixels), ones @ of_output
