"""UltraSeg (sections 3.1-3.3): 108K, 130K, the wider releases and every ablation of Table 5.

The image goes down four levels, through a bottleneck, and up again. On the way up each level
predicts the polyp (and its boundary), amplifies its own feature where the prediction is, and takes
from the encoder's skip in proportion (Eq. 1). 130K adds two attentions around the bottleneck: AGF
and SSA (Eq. 4). One class covers them all.
"""

import torch
from torch import Tensor, nn

from ultraseg_lib.choices import check_choice

from .layers import (
    ConvStage,
    GatedDecoderStage,
    GroupShuffleAttention,
    LargeKernelBlock,
    PooledStage,
    Prediction,
    check_image,
    conv3x3,
    double,
    initialize,
    resize,
    supervised_prediction,
)


class EnhancedDilatedBlock(nn.Module):
    """Enhanced Dilated Block (EDB, section 3.2, Eq. 2): (N, C, H, W) to the same shape.

    Three 3x3 branches of dilation 1, 2 and 3 with C/3 outputs each, concatenated and mixed by a
    1x1 convolution, then added to the input with `residual_weight`, 0.1 at the start. `reading`:
    "released", each branch sees all C channels, three a group; "as_written", Eq. 2 to the letter,
    each branch sees its own third of the channels, depthwise. Raises ValueError for another
    reading, and for a C that is no multiple of 3.
    """

    def __init__(self, channels: int, reading: str = "released", learned: bool = True) -> None:
        super().__init__()
        check_choice("reading", reading, ("released", "as_written"))
        if channels % 3:
            raise ValueError(f"channels: found {channels}; an EDB needs a multiple of 3")
        third = channels // 3
        self.split = reading == "as_written"
        self.branches = nn.ModuleList(
            nn.Conv2d(
                third if self.split else channels,
                third,
                kernel_size=3,
                padding=dilation,
                dilation=dilation,
                groups=third,
            )
            for dilation in (1, 2, 3)
        )
        self.mix = nn.Conv2d(channels, channels, 1)
        weight = torch.tensor(0.1)
        if learned:
            self.residual_weight = nn.Parameter(weight)
        else:
            self.register_buffer("residual_weight", weight, persistent=False)

    def forward(self, feature: Tensor) -> Tensor:
        inputs = feature.chunk(3, dim=1) if self.split else [feature] * 3
        views = [branch(part) for branch, part in zip(self.branches, inputs, strict=True)]
        mixed = self.mix(torch.cat(views, dim=1))  # three views of C/3 channels: (N, C, H, W)
        return feature + self.residual_weight * mixed


class AttentionGuidedFusion(nn.Module):
    """Attention-Guided Fusion (AGF, section 3.3): a weighted mean of stages 3 and 4, by pixel.

    Stage 3 (N, shallow, 2h, 2w) and stage 4 (N, deep, h, w) to (N, deep, h, w).
    """

    def __init__(self, shallow_channels: int, deep_channels: int) -> None:
        super().__init__()
        hidden = deep_channels // 4
        self.project = nn.Conv2d(shallow_channels, deep_channels, 1)
        self.attention = nn.Sequential(
            conv3x3(2 * deep_channels, hidden),
            nn.BatchNorm2d(hidden),
            nn.GELU(),
            nn.Conv2d(hidden, 2, 1),
            nn.Softmax(dim=1),
        )

    def forward(self, shallow: Tensor, deep: Tensor) -> Tensor:
        shallow = self.project(resize(shallow, *deep.shape[2:]))  # (N, deep, h, w)
        shares = self.attention(torch.cat([shallow, deep], dim=1))  # (N, 2, h, w), sum 1
        return shares[:, 0:1] * shallow + shares[:, 1:2] * deep


class SimpleSpatialAttention(nn.Module):
    """Simple Spatial Attention (SSA, section 3.3, Eq. 4): (N, C, h, w) to the same shape.

    The gate of a pixel is the sigmoid of its mean over the channels; `alpha`, learned, starts at
    0.3 and mixes the gated with the original feature.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(0.3))

    def forward(self, feature: Tensor) -> Tensor:
        gate = torch.sigmoid(feature.mean(dim=1, keepdim=True))  # (N, 1, h, w)
        return (1 - self.alpha) * feature + self.alpha * (feature * gate)


class UltraSeg(nn.Module):
    """UltraSeg (section 3.1, Fig. 1): image (N, 3, H, W) float in [0, 1] to `Prediction`.

    H and W are multiples of 16. `channels`: widths of the four levels and, if there is a fifth, of
    the 3x3 bottleneck, multiples of 4. `edb`: "released", "as_written" (see
    `EnhancedDilatedBlock`), or "none" for LB-UNet's block in their place. `edb_weight`, `fusion`:
    "learned" or "fixed". `agf`, `ssa`: with or without. Raises ValueError for another word or
    width.
    """

    stride = 16

    def __init__(
        self,
        out_channels: int = 1,
        channels: tuple[int, ...] = (8, 16, 48, 64, 96),
        edb: str = "released",
        edb_weight: str = "learned",
        fusion: str = "learned",
        agf: bool = True,
        ssa: bool = True,
    ) -> None:
        super().__init__()
        check_choice("fusion", fusion, ("learned", "fixed"))
        if len(channels) not in (4, 5) or any(width < 4 or width % 4 for width in channels):
            raise ValueError(f"channels: found {channels}; give four or five multiples of 4")
        c1, c2, c3, c4 = channels[:4]
        deepest = channels[-1]
        gates = {"learned_fusion": fusion == "learned"}

        self.encoder1 = ConvStage(3, c1)
        self.encoder2 = ConvStage(c1, c2)
        self.encoder3 = ConvStage(c2, c3, *context_blocks(c3, edb, edb_weight))
        self.encoder4 = PooledStage(GroupShuffleAttention(c3, c4), c4)
        self.agf = AttentionGuidedFusion(c3, c4) if agf else None
        self.bottleneck = conv3x3(c4, deepest) if len(channels) == 5 else nn.Identity()
        self.ssa = SimpleSpatialAttention() if ssa else nn.Identity()
        gsa = GroupShuffleAttention
        self.decoder4 = GatedDecoderStage(gsa(deepest, c4), c4, level=4, upsample=False, **gates)
        self.decoder3 = GatedDecoderStage(gsa(c4, c3), c3, level=3, **gates)
        self.decoder2 = GatedDecoderStage(gsa(c3, c2), c2, level=2, **gates)
        self.decoder1 = GatedDecoderStage(conv3x3(c2, c1), c1, level=1, **gates)
        self.head = nn.Conv2d(c1, out_channels, 1)
        self.apply(initialize)

    def forward(self, image: Tensor, deep_supervision: bool = False) -> Prediction:
        check_image(image, self.stride)
        skip1 = self.encoder1(image)  # (N, c1, H/2, W/2)
        skip2 = self.encoder2(skip1)  # (N, c2, H/4, W/4)
        skip3 = self.encoder3(skip2)  # (N, c3, H/8, W/8)
        skip4 = self.encoder4(skip3)  # (N, c4, H/16, W/16)

        fused = skip4 if self.agf is None else self.agf(skip3, skip4)  # (N, c4, H/16, W/16)
        bottom = self.ssa(self.bottleneck(fused))  # (N, c5, H/16, W/16)

        feature, region4, _ = self.decoder4(bottom, skip4)  # (N, c4, H/16, W/16)
        feature, region3, boundary3 = self.decoder3(feature, skip3)  # (N, c3, H/8, W/8)
        feature, region2, boundary2 = self.decoder2(feature, skip2)  # (N, c2, H/4, W/4)
        feature, region1, boundary1 = self.decoder1(feature, skip1)  # (N, c1, H/2, W/2)
        logits = double(self.head(feature))  # (N, out_channels, H, W)

        if not deep_supervision:
            return Prediction(logits)
        regions = [region4, region3, region2, region1]
        return supervised_prediction(logits, regions, [boundary3, boundary2, boundary1], bottom)


def context_blocks(channels: int, edb: str, edb_weight: str) -> list[nn.Module]:
    """The blocks of the third stage: two EDB (Eq. 2), or one block of LB-UNet for "none"."""
    check_choice("edb", edb, ("released", "as_written", "none"))
    check_choice("edb_weight", edb_weight, ("learned", "fixed"))
    if edb == "none":
        return [LargeKernelBlock(channels)]
    return [EnhancedDilatedBlock(channels, edb, edb_weight == "learned") for _ in range(2)]
