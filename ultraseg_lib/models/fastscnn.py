"""The FastSCNN of the comparison (section 4.1): a detail branch and a semantic branch, fused."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Prediction, check_image, conv_norm


def convolution(
    channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution without bias, BN, ReLU: (N, channels, H, W) to (N, out, H/stride, W/stride)."""
    options = {"stride": stride, "groups": groups, "bias": False}
    return nn.Sequential(*conv_norm(channels, out_channels, kernel, nn.ReLU, **options))


def separable_convolution(channels: int) -> nn.Sequential:
    """3x3 depthwise, then 1x1, each with BN and ReLU: (N, channels, H, W), shape kept."""
    return nn.Sequential(
        convolution(channels, channels, groups=channels), convolution(channels, channels, kernel=1)
    )


def stretch(feature: Tensor, like: Tensor) -> Tensor:
    """Resize (N, C, h, w) to the height and width of `like`, bilinear, pixel areas aligned."""
    return F.interpolate(feature, size=like.shape[2:], mode="bilinear", align_corners=False)


class FeatureFusion(nn.Module):
    """Mix detail (N, 48, h, w) and semantics (N, 96, ., .) by a learned share: (N, 128, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.detail = convolution(48, 128, kernel=1)
        self.semantic = convolution(96, 128, kernel=1)
        self.share = nn.Sequential(
            nn.Conv2d(256, 128, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 128, 1, bias=False),
            nn.Sigmoid(),
        )
        self.mix = convolution(128, 128)

    def forward(self, detail: Tensor, semantic: Tensor) -> Tensor:
        detail = self.detail(detail)  # (N, 128, h, w)
        semantic = stretch(self.semantic(semantic), like=detail)  # (N, 128, h, w)
        share = self.share(torch.cat([detail, semantic], dim=1))  # (N, 128, h, w) in (0, 1)
        return self.mix(detail * share + semantic * (1 - share))


class FastSCNN(nn.Module):
    """FastSCNN: image (N, 3, H, W) float in [0, 1], H and W multiples of 4, to `Prediction`.

    The compared variant runs two separate branches from the image and ends them in three average
    pools. Raises ValueError for another image size.
    """

    stride = 4  # of the detail branch; the semantic one goes on to 1/64, rounding up

    def __init__(self, out_channels: int = 1) -> None:
        super().__init__()
        self.detail = nn.Sequential(convolution(3, 32, stride=2), convolution(32, 48, stride=2))
        self.semantic = nn.Sequential(
            convolution(3, 32, stride=2),
            convolution(32, 32, stride=2),
            convolution(32, 64, stride=2),
            *(nn.AvgPool2d(3, stride=2, padding=1) for _ in range(3)),
            convolution(64, 96, kernel=1),
        )
        self.fusion = FeatureFusion()
        self.classifier = nn.Sequential(separable_convolution(128), separable_convolution(128))
        self.up = nn.ConvTranspose2d(128, 128, 2, stride=2)
        self.head = nn.Conv2d(128, out_channels, 1)

    def forward(self, image: Tensor, deep_supervision: bool = False) -> Prediction:
        check_image(image, self.stride)
        detail = self.detail(image)  # (N, 48, H/4, W/4)
        semantic = self.semantic(image)  # (N, 96, H/64, W/64)
        feature = self.fusion(detail, semantic)  # (N, 128, H/4, W/4)
        feature = self.up(self.classifier(feature))  # (N, 128, H/2, W/2)
        logits = stretch(self.head(feature), like=image)  # (N, out_channels, H, W)
        return Prediction(logits, bottleneck=semantic if deep_supervision else None)
