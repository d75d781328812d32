"""LB-UNet, the network that UltraSeg starts from (compared in Table 1, ablated in Table 5).

Six small stages down to 1/32 of the image, and a decoder whose every level predicts the region,
the upper three also the boundary, and lets both weigh what it takes from the encoder.
"""

import torch.nn.functional as F
from torch import Tensor, nn

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
    supervised_prediction,
)


class LBUNet(nn.Module):
    """LB-UNet: image (N, 3, H, W) float in [0, 1], H and W multiples of 32, to `Prediction`.

    Five region and three boundary maps; the fusion weights are constants (Eq. 1 made them
    learnable). Raises ValueError for another image size.
    """

    stride = 32

    def __init__(self, out_channels: int = 1) -> None:
        super().__init__()
        c1, c2, c3, c4, c5, c6 = 8, 16, 24, 32, 48, 64
        gsa = GroupShuffleAttention
        fixed = {"learned_fusion": False}

        self.encoder1 = ConvStage(3, c1)
        self.encoder2 = ConvStage(c1, c2)
        self.encoder3 = ConvStage(c2, c3, LargeKernelBlock(c3))
        self.encoder4 = PooledStage(gsa(c3, c4), c4)
        self.encoder5 = PooledStage(gsa(c4, c5), c5)
        self.bottleneck = gsa(c5, c6)
        self.decoder5 = GatedDecoderStage(gsa(c6, c5), c5, level=5, upsample=False, **fixed)
        self.decoder4 = GatedDecoderStage(gsa(c5, c4), c4, level=4, **fixed)
        self.decoder3 = GatedDecoderStage(gsa(c4, c3), c3, level=3, **fixed)
        self.decoder2 = GatedDecoderStage(conv3x3(c3, c2), c2, level=2, **fixed)
        self.decoder1 = GatedDecoderStage(conv3x3(c2, c1), c1, level=1, **fixed)
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

        feature, region5, _ = self.decoder5(bottom, skip5)  # (N, 48, H/32, W/32)
        feature, region4, _ = self.decoder4(feature, skip4)  # (N, 32, H/16, W/16)
        feature, region3, boundary3 = self.decoder3(feature, skip3)  # (N, 24, H/8, W/8)
        feature, region2, boundary2 = self.decoder2(feature, skip2)  # (N, 16, H/4, W/4)
        feature, region1, boundary1 = self.decoder1(feature, skip1)  # (N, 8, H/2, W/2)
        logits = double(self.head(feature))  # (N, out_channels, H, W)

        if not deep_supervision:
            return Prediction(logits)
        regions = [region5, region4, region3, region2, region1]
        return supervised_prediction(logits, regions, [boundary3, boundary2, boundary1], bottom)
