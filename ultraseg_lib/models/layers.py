"""What several architectures share: the prediction, the input check, and the LB-UNet blocks.

UltraSeg grew out of LB-UNet, and both out of EGE-UNet: small stages, each followed by a norm and
a GELU, and a decoder whose own low-resolution predictions gate its features.
"""

from math import sqrt
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prediction(NamedTuple):
    """What every model returns: logits, never probabilities, all at the size of the image.

    `logits` is float (N, out_channels, H, W). `regions` and `boundaries` hold the supervised maps
    of section 3.4, float (N, 1, H, W) each, deepest first; they are empty, and `bottleneck` (the
    deepest feature map, float (N, C, h, w), section 3.5) is None, unless deep supervision is asked.
    """

    logits: Tensor
    regions: tuple[Tensor, ...] = ()
    boundaries: tuple[Tensor, ...] = ()
    bottleneck: Tensor | None = None


def check_image(image: Tensor, stride: int) -> None:
    """Raise ValueError unless the image is (N, 3, H, W) float with H and W multiples of `stride`."""
    if not isinstance(image, Tensor) or not image.is_floating_point():
        kind = f"{type(image).__module__}.{type(image).__name__} of {getattr(image, 'dtype', '?')}"
        raise ValueError(
            f"found an image that is {kind}: give a float tensor in [0, 1], as pixels of uint8"
            " become by torch.from_numpy(pixels).float() / 255"
        )
    found = f"found an image of shape {tuple(image.shape)}"
    if image.ndim != 4:
        raise ValueError(f"{found}: give a batch (N, 3, H, W); one image becomes image[None]")
    if image.shape[1] != 3:
        raise ValueError(f"{found}: give three channels, red, green and blue, as (N, 3, H, W)")
    height, width = image.shape[2:]
    if height % stride or width % stride or not height or not width:
        sizes = [max(stride, round(side / stride) * stride) for side in (height, width)]
        raise ValueError(
            f"{found}: this model needs a height and a width that are multiples of {stride}; "
            f"resize to {sizes[0]} x {sizes[1]}, for example"
        )


def resize(feature: Tensor, height: int, width: int) -> Tensor:
    """Resize (N, C, h, w) to (N, C, height, width), bilinear, corners on corners."""
    return F.interpolate(feature, size=(height, width), mode="bilinear", align_corners=True)


def double(feature: Tensor) -> Tensor:
    """Resize (N, C, h, w) to (N, C, 2h, 2w)."""
    return resize(feature, 2 * feature.shape[2], 2 * feature.shape[3])


def _interpolation(size: int, new_size: int, device: torch.device) -> Tensor:
    """The matrix (new_size, size), float32, that resizes a line as `resize` does, by multiplication."""
    ends = max(new_size - 1, 1)
    place = torch.arange(new_size, device=device, dtype=torch.float64) * ((size - 1) / ends)
    distance = (place[:, None] - torch.arange(size, device=device)).abs()
    return (1 - distance).clamp(min=0).float()


def enlarge(maps: Tensor, height: int, width: int) -> Tensor:
    """`resize` for single maps (N, 1, h, w), as two matrix products: equal numbers, float32.

    The backward pass is two products more. PyTorch's own takes a pixel at a time, which for maps
    of one channel is two to eight times as long on a CPU.
    """
    rows = _interpolation(maps.shape[2], height, maps.device)
    columns = _interpolation(maps.shape[3], width, maps.device)
    with torch.autocast(maps.device.type, enabled=False):
        return rows @ (maps.float() @ columns.T)


def resize_probability(logits: Tensor, height: int, width: int) -> Tensor:
    """Logits (N, 1, height, width) of the resized probability map of `logits` (N, 1, h, w).

    LB-UNet and UltraSeg resize a region map before its sigmoid and a boundary map after it. Back
    in logits that is log p - log(1 - p), where 1 - p is resized as well: no digit is lost near 1.
    """
    logits = logits.float().clamp(-80, 80)  # beyond, the probability is 0 in float32
    present = enlarge(torch.sigmoid(logits), height, width)
    absent = enlarge(torch.sigmoid(-logits), height, width)
    return torch.log(present) - torch.log(absent)


def initialize(module: nn.Module) -> None:
    """Draw convolution weights from N(0, 2 / fan_out) and set 2-D biases to 0, in place.

    As LB-UNet and EGE-UNet do: fan_out is kernel area x output channels / groups, where a 1-D
    convolution counts as one group and keeps torch's bias. All else keeps its start: norms 1 and 0,
    the maps of the GSA 1, transposed convolutions torch's. Use: `model.apply(initialize)`.
    """
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        groups = module.groups if isinstance(module, nn.Conv2d) else 1
        fan_out = module.weight[0, 0].numel() * module.out_channels // groups
        nn.init.normal_(module.weight, 0.0, sqrt(2.0 / fan_out))
        if module.bias is not None and isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.bias)


def conv_norm(
    channels: int, out_channels: int, kernel: int, activation: type[nn.Module], **options: Any
) -> tuple[nn.Module, ...]:
    """Convolution (`options` are its own), BN and activation, to be set in a row."""
    conv = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, **options)
    return conv, nn.BatchNorm2d(out_channels), activation(inplace=True)


def conv3x3(channels: int, out_channels: int) -> nn.Conv2d:
    """3x3 convolution that keeps the height and width."""
    return nn.Conv2d(channels, out_channels, 3, padding=1)


def depthwise_then_pointwise(channels: int, out_channels: int) -> nn.Sequential:
    """3x3 depthwise, GELU, 1x1: (N, channels, H, W) to (N, out_channels, H, W)."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
        nn.GELU(),
        nn.Conv2d(channels, out_channels, 1),
    )


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel: (N, C, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, feature: Tensor) -> Tensor:
        pixels = feature.permute(0, 2, 3, 1)  # (N, H, W, C): a view, copied only if not contiguous
        pixels = F.layer_norm(pixels, self.weight.shape, self.weight, self.bias, eps=1e-6)
        return pixels.permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """BatchNorm, then a 2x2 convolution of stride 2: (N, C, H, W) to (N, C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 2, stride=2)

    def forward(self, feature: Tensor) -> Tensor:
        return self.conv(self.norm(feature))


class LargeKernelBlock(nn.Module):
    """LB-UNet's convolution block, 7x7 depthwise then a fourfold 1x1 bottleneck, shape kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            channels, channels, 7, padding=3, padding_mode="reflect", groups=channels
        )
        self.norm1 = nn.BatchNorm2d(channels)
        self.expand = nn.Conv2d(channels, 4 * channels, 1)
        self.reduce = nn.Conv2d(4 * channels, channels, 1)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, feature: Tensor) -> Tensor:
        wide = F.gelu(self.expand(self.norm1(self.depthwise(feature))))  # (N, 4C, H, W)
        return F.gelu(self.norm2(self.reduce(wide)))  # (N, C, H, W)


class LearnedMap(nn.Module):
    """One map of an attention: a learned 8x8 tensor, stretched to (1, C, height, width), refined.

    No image enters: a trained network multiplies every image by the same map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.seed = nn.Parameter(torch.ones(1, channels, 8, 8))
        self.refine = depthwise_then_pointwise(channels, channels)

    def forward(self, height: int, width: int) -> Tensor:
        return self.refine(resize(self.seed, height, width))  # (1, channels, height, width)


class GroupShuffleAttention(nn.Module):
    """Group-Shuffle Attention (GSA, section 3.1): (N, channels, H, W) to (N, out_channels, H, W).

    Four quarters of the channels are each multiplied by a learned map, change places, and are
    mixed by a depthwise and a 1x1 convolution. `channels` is a multiple of 4.
    """

    ORDER: ClassVar = (1, 3, 0, 2)  # the shuffle: second quarter first, then fourth, first, third

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels)
        self.learned_maps = nn.ModuleList(LearnedMap(channels // 4) for _ in range(4))
        self.norm2 = ChannelNorm(channels)
        self.mix = depthwise_then_pointwise(channels, out_channels)

    def maps(self, height: int, width: int) -> Tensor:
        """The four learned maps, in channel order: (1, channels, height, width), any value."""
        return torch.cat([learned(height, width) for learned in self.learned_maps], dim=1)

    def forward(self, feature: Tensor) -> Tensor:
        weighted = self.norm1(feature) * self.maps(*feature.shape[2:])  # (N, channels, H, W)
        quarters = weighted.chunk(4, dim=1)
        shuffled = torch.cat([quarters[index] for index in self.ORDER], dim=1)
        return self.mix(self.norm2(shuffled))  # (N, out_channels, H, W)


class ConvStage(nn.Module):
    """Encoder stage of the upper levels: (N, C, H, W) to (N, out, H/2, W/2).

    A 3x3 convolution, the blocks in `context`, GroupNorm, `Downsample`, GELU.
    """

    def __init__(self, channels: int, out_channels: int, *context: nn.Module) -> None:
        super().__init__()
        self.conv = conv3x3(channels, out_channels)
        self.context = nn.Sequential(*context)
        self.norm = nn.GroupNorm(4, out_channels)
        self.down = Downsample(out_channels)

    def forward(self, feature: Tensor) -> Tensor:
        feature = self.context(self.conv(feature))  # (N, out, H, W)
        return F.gelu(self.down(self.norm(feature)))  # (N, out, H/2, W/2)


class PooledStage(nn.Module):
    """Encoder stage of any block, GroupNorm, max-pool, GELU: (N, C, H, W) to (N, out, H/2, W/2)."""

    def __init__(self, block: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.block = block
        self.norm = nn.GroupNorm(4, out_channels)

    def forward(self, feature: Tensor) -> Tensor:
        feature = self.norm(self.block(feature))  # (N, out, H, W)
        return F.gelu(F.max_pool2d(feature, 2))  # (N, out, H/2, W/2)


class PredictionGate(nn.Module):
    """Predict a region (and a boundary) from a feature and amplify the feature where they are.

    (N, C, H, W) to the gated feature (N, C, H, W), region logits (N, 1, H, W), and boundary
    logits (N, 1, H, W), or None without a boundary head.
    """

    def __init__(self, channels: int, boundary: bool) -> None:
        super().__init__()
        self.region = nn.Conv2d(channels, 1, 1)
        self.boundary = nn.Conv2d(channels, 1, 1) if boundary else None

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        region = self.region(feature)
        gain = 1 + torch.sigmoid(region)
        boundary = None
        if self.boundary is not None:
            boundary = self.boundary(feature)
            gain = gain + torch.sigmoid(boundary)
        return feature * gain, region, boundary


class PredictGatedFusion(nn.Module):
    """Predict-Gated Fusion, Eq. 1: decoder feature + skip, the skip weighted by the predictions.

    `feature` and `skip` (N, C, H, W), logits (N, 1, H, W); returns (N, C, H, W). `region_weight`
    and `boundary_weight` are scalar tensors. `learned` (UltraSeg): parameters that start at 0.3
    and 0.1, and a narrow 1x1 adaptor on the decoder feature if it has more than 16 channels. Else
    (LB-UNet): constants that grow from the deepest level, 5, to level 1, and no adaptor.
    """

    FIXED_WEIGHTS: ClassVar = {  # level: (region, boundary)
        5: (0.1, 0.0),
        4: (0.2, 0.0),
        3: (0.3, 0.1),
        2: (0.4, 0.2),
        1: (0.5, 0.3),
    }

    def __init__(self, channels: int, level: int, learned: bool, boundary: bool) -> None:
        super().__init__()
        region_weight, boundary_weight = (0.3, 0.1) if learned else self.FIXED_WEIGHTS[level]
        self._set("region_weight", region_weight, learned)
        self._set("boundary_weight", boundary_weight if boundary else None, learned)
        hidden = max(channels // 8, 4)
        self.adaptor = (
            nn.Sequential(nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1))
            if learned and channels > 16
            else nn.Identity()
        )

    def _set(self, name: str, value: float | None, learned: bool) -> None:
        scalar = None if value is None else torch.tensor(value)
        if learned and scalar is not None:
            self.register_parameter(name, nn.Parameter(scalar))
        else:  # a constant is part of the design, not of the weights: kept out of the file
            self.register_buffer(name, scalar, persistent=False)

    def forward(
        self, feature: Tensor, skip: Tensor, region: Tensor, boundary: Tensor | None
    ) -> Tensor:
        gain = 1 + self.region_weight * torch.sigmoid(region)
        if boundary is not None:
            gain = gain + self.boundary_weight * torch.sigmoid(boundary)
        return self.adaptor(feature) + skip * gain


class GatedDecoderStage(nn.Module):
    """Decoder stage: block, GroupNorm, x2 if `upsample`, GELU, gate, fusion with the skip.

    (N, C, h, w) and skip (N, out, H, W) to (N, out, H, W) and the low-resolution region and
    boundary logits. `level` is 1 at half size; levels above 3 have no boundary head.
    """

    def __init__(
        self,
        block: nn.Module,
        out_channels: int,
        level: int,
        learned_fusion: bool,
        upsample: bool = True,
    ) -> None:
        super().__init__()
        boundary = level <= 3
        self.block = block
        self.norm = nn.GroupNorm(4, out_channels)
        self.upsample = upsample
        self.gate = PredictionGate(out_channels, boundary)
        self.fusion = PredictGatedFusion(out_channels, level, learned_fusion, boundary)

    def forward(self, feature: Tensor, skip: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        feature = self.norm(self.block(feature))  # (N, out, h, w)
        feature = F.gelu(double(feature) if self.upsample else feature)  # (N, out, H, W)
        feature, region, boundary = self.gate(feature)
        return self.fusion(feature, skip, region, boundary), region, boundary


def supervised_prediction(
    logits: Tensor, regions: list[Tensor], boundaries: list[Tensor | None], bottleneck: Tensor
) -> Prediction:
    """Bring the low-resolution logits (N, 1, h, w) to the size of `logits`, order kept."""
    size = logits.shape[2:]
    return Prediction(
        logits,
        tuple(enlarge(region, *size) for region in regions),
        tuple(resize_probability(edge, *size) for edge in boundaries if edge is not None),
        bottleneck,
    )
