"""The five U-Nets of the comparison (section 4.1 and its footnote): one class, two blocks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Prediction, check_image, conv_norm, initialize


def plain_block(channels: int, out_channels: int) -> nn.Sequential:
    """Twice 3x3 convolution, BN, ReLU (UNet-Base): (N, channels, H, W) to (N, out, H, W)."""
    return nn.Sequential(
        *conv_norm(channels, out_channels, 3, nn.ReLU),
        *conv_norm(out_channels, out_channels, 3, nn.ReLU),
    )


def separable_convolution(channels: int, out_channels: int) -> nn.Sequential:
    """3x3 depthwise, BN, ReLU6, 1x1, BN, ReLU6: (N, channels, H, W) to (N, out, H, W)."""
    return nn.Sequential(
        *conv_norm(channels, channels, 3, nn.ReLU6, groups=channels, bias=False),
        *conv_norm(channels, out_channels, 1, nn.ReLU6, bias=False),
    )


def separable_block(channels: int, out_channels: int) -> nn.Sequential:
    """Two depthwise-separable convolutions (Medium to Tiny): only these give Table 1's counts."""
    return nn.Sequential(
        separable_convolution(channels, out_channels),
        separable_convolution(out_channels, out_channels),
    )


class UNet(nn.Module):
    """U-Net: image (N, 3, H, W) float in [0, 1], H and W multiples of 16, to `Prediction`.

    `channels`: widths of the five levels. `separable`: depthwise-separable blocks, weights drawn by
    `initialize`; else plain blocks and torch's own start. Raises ValueError for another image size.
    """

    stride = 16

    def __init__(
        self,
        out_channels: int = 1,
        channels: tuple[int, ...] = (8, 16, 32, 64, 128),
        separable: bool = True,
    ) -> None:
        super().__init__()
        block = separable_block if separable else plain_block
        c0, c1, c2, c3, c4 = channels
        self.encoder0 = block(3, c0)
        self.encoder1 = block(c0, c1)
        self.encoder2 = block(c1, c2)
        self.encoder3 = block(c2, c3)
        self.encoder4 = block(c3, c4)
        self.up3, self.decoder3 = nn.ConvTranspose2d(c4, c3, 2, stride=2), block(2 * c3, c3)
        self.up2, self.decoder2 = nn.ConvTranspose2d(c3, c2, 2, stride=2), block(2 * c2, c2)
        self.up1, self.decoder1 = nn.ConvTranspose2d(c2, c1, 2, stride=2), block(2 * c1, c1)
        self.up0, self.decoder0 = nn.ConvTranspose2d(c1, c0, 2, stride=2), block(2 * c0, c0)
        self.head = nn.Conv2d(c0, out_channels, 1)
        if separable:
            self.apply(initialize)

    def forward(self, image: Tensor, deep_supervision: bool = False) -> Prediction:
        check_image(image, self.stride)
        skip0 = self.encoder0(image)  # (N, c0, H, W)
        skip1 = self.encoder1(F.max_pool2d(skip0, 2))  # (N, c1, H/2, W/2)
        skip2 = self.encoder2(F.max_pool2d(skip1, 2))  # (N, c2, H/4, W/4)
        skip3 = self.encoder3(F.max_pool2d(skip2, 2))  # (N, c3, H/8, W/8)
        bottom = self.encoder4(F.max_pool2d(skip3, 2))  # (N, c4, H/16, W/16)

        feature = self.decoder3(torch.cat([self.up3(bottom), skip3], dim=1))  # (N, c3, H/8, W/8)
        feature = self.decoder2(torch.cat([self.up2(feature), skip2], dim=1))  # (N, c2, H/4, W/4)
        feature = self.decoder1(torch.cat([self.up1(feature), skip1], dim=1))  # (N, c1, H/2, W/2)
        feature = self.decoder0(torch.cat([self.up0(feature), skip0], dim=1))  # (N, c0, H, W)
        return Prediction(self.head(feature), bottleneck=bottom if deep_supervision else None)
