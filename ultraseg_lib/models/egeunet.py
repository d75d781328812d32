"""EGE-UNet, the ancestor of LB-UNet (compared in Table 1).

Group attention by learned maps along each pair of axes, and skips that pass through a bridge of
dilated convolutions in which every group of channels also sees the level's own prediction.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import (
    ChannelNorm,
    LearnedMap,
    PooledStage,
    Prediction,
    check_image,
    conv3x3,
    depthwise_then_pointwise,
    double,
    initialize,
    resize,
    supervised_prediction,
)


class AxisMap(nn.Module):
    """Eight learned values per channel, stretched to `length` and refined: (1, C, length)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.seed = nn.Parameter(torch.ones(1, 1, channels, 8))
        self.refine = nn.Sequential(
            nn.Conv1d(channels, channels, 3, padding=1, groups=channels),
            nn.GELU(),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, length: int) -> Tensor:
        stretched = F.interpolate(self.seed[0], size=length, mode="linear", align_corners=True)
        return self.refine(stretched)


class HadamardProductAttention(nn.Module):
    """Grouped multi-axis Hadamard product: (N, channels, H, W) to (N, out_channels, H, W).

    Of four quarters of the channels, one is multiplied by a map over the plane, one by a map over
    the height, one by a map over the width, and one goes through a convolution.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        quarter = channels // 4
        self.norm1 = ChannelNorm(channels)
        self.plane = LearnedMap(quarter)
        self.rows = AxisMap(quarter)
        self.columns = AxisMap(quarter)
        self.local = nn.Sequential(
            nn.Conv2d(quarter, quarter, 1),
            nn.GELU(),
            nn.Conv2d(quarter, quarter, 3, padding=1, groups=quarter),
        )
        self.norm2 = ChannelNorm(channels)
        self.mix = depthwise_then_pointwise(channels, out_channels)

    def forward(self, feature: Tensor) -> Tensor:
        height, width = feature.shape[2:]
        first, second, third, fourth = self.norm1(feature).chunk(4, dim=1)
        first = first * self.plane(height, width)
        second = second * self.rows(height)[..., :, None]  # the same for every column
        third = third * self.columns(width)[..., None, :]  # the same for every row
        quarters = torch.cat([first, second, third, self.local(fourth)], dim=1)
        return self.mix(self.norm2(quarters))  # (N, out_channels, H, W)


class GroupAggregationBridge(nn.Module):
    """Skip of one level: deep (N, deep, h, w), skip (N, C, H, W), region logits to (N, C, H, W).

    Each of four groups takes a quarter of both features and the region, at its own dilation.
    """

    DILATIONS: ClassVar = (1, 2, 5, 7)

    def __init__(self, deep_channels: int, channels: int) -> None:
        super().__init__()
        size = channels // 2 + 1  # a quarter of each feature, and the region
        self.project = nn.Conv2d(deep_channels, channels, 1)
        self.groups = nn.ModuleList(
            nn.Sequential(
                ChannelNorm(size),
                nn.Conv2d(size, size, 3, padding=dilation, dilation=dilation, groups=size),
            )
            for dilation in self.DILATIONS
        )
        self.mix = nn.Sequential(ChannelNorm(4 * size), nn.Conv2d(4 * size, channels, 1))

    def forward(self, deep: Tensor, skip: Tensor, region: Tensor) -> Tensor:
        deep = resize(self.project(deep), *skip.shape[2:])  # (N, C, H, W)
        quarters = zip(self.groups, deep.chunk(4, dim=1), skip.chunk(4, dim=1), strict=True)
        groups = [group(torch.cat([*pair, region], dim=1)) for group, *pair in quarters]
        return self.mix(torch.cat(groups, dim=1))


class BridgedDecoderStage(nn.Module):
    """Decoder stage: block, GroupNorm, x2 if `upsample`, GELU, region, plus the bridged skip.

    Feature (N, C, h, w), deep (N, deep, h, w), skip (N, out, H, W) to the new feature and the
    bridge's output (both (N, out, H, W)) and region logits (N, 1, H, W).
    """

    def __init__(self, block: nn.Module, deep: int, out_channels: int, upsample: bool) -> None:
        super().__init__()
        self.block = block
        self.norm = nn.GroupNorm(4, out_channels)
        self.upsample = upsample
        self.region = nn.Conv2d(out_channels, 1, 1)
        self.bridge = GroupAggregationBridge(deep, out_channels)

    def forward(self, feature: Tensor, deep: Tensor, skip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        feature = self.norm(self.block(feature))  # (N, out, h, w)
        feature = F.gelu(double(feature) if self.upsample else feature)  # (N, out, H, W)
        region = self.region(feature)
        bridged = self.bridge(deep, skip, region)
        return feature + bridged, bridged, region


class EGEUNet(nn.Module):
    """EGE-UNet: image (N, 3, H, W) float in [0, 1], H and W multiples of 32, to `Prediction`.

    Five region maps, no boundary. Raises ValueError for another image size.
    """

    stride = 32

    def __init__(self, out_channels: int = 1) -> None:
        super().__init__()
        c1, c2, c3, c4, c5, c6 = 8, 16, 24, 32, 48, 64
        attention, decoder = HadamardProductAttention, BridgedDecoderStage
        self.encoder1 = PooledStage(conv3x3(3, c1), c1)
        self.encoder2 = PooledStage(conv3x3(c1, c2), c2)
        self.encoder3 = PooledStage(conv3x3(c2, c3), c3)
        self.encoder4 = PooledStage(attention(c3, c4), c4)
        self.encoder5 = PooledStage(attention(c4, c5), c5)
        self.bottleneck = attention(c5, c6)
        self.decoder5 = decoder(attention(c6, c5), c6, c5, upsample=False)
        self.decoder4 = decoder(attention(c5, c4), c5, c4, upsample=True)
        self.decoder3 = decoder(attention(c4, c3), c4, c3, upsample=True)
        self.decoder2 = decoder(conv3x3(c3, c2), c3, c2, upsample=True)
        self.decoder1 = decoder(conv3x3(c2, c1), c2, c1, upsample=True)
        self.head = nn.Conv2d(c1, out_channels, 1)
        self.apply(initialize)

    def forward(self, image: Tensor, deep_supervision: bool = False) -> Prediction:
        check_image(image, self.stride)
        skip1 = self.encoder1(image)  # (N, 8, H/2, W/2)
        skip2 = self.encoder2(skip1)  # (N, 16, H/4, W/4)
        skip3 = self.encoder3(skip2)  # (N, 24, H/8, W/8)
        skip4 = self.encoder4(skip3)  # (N, 32, H/16, W/16)
        skip5 = self.encoder5(skip4)  # (N, 48, H/32, W/32)
        bottom = F.gelu(self.bottleneck(skip5))  # (N, 64, H/32, W/32)

        feature, bridged, region5 = self.decoder5(bottom, bottom, skip5)  # (N, 48, H/32, W/32)
        feature, bridged, region4 = self.decoder4(feature, bridged, skip4)  # (N, 32, H/16, W/16)
        feature, bridged, region3 = self.decoder3(feature, bridged, skip3)  # (N, 24, H/8, W/8)
        feature, bridged, region2 = self.decoder2(feature, bridged, skip2)  # (N, 16, H/4, W/4)
        feature, bridged, region1 = self.decoder1(feature, bridged, skip1)  # (N, 8, H/2, W/2)
        logits = double(self.head(feature))  # (N, out_channels, H, W)

        if not deep_supervision:
            return Prediction(logits)
        regions = [region5, region4, region3, region2, region1]
        return supervised_prediction(logits, regions, [], bottom)
