"""MobileUNet of the comparison (section 4.1): four strided convolutions down, four up."""

from torch import Tensor, nn

from .layers import Prediction, check_image, conv_norm


def strided_stage(channels: int, out_channels: int) -> nn.Sequential:
    """3x3 convolution of stride 2, BN, ReLU6: (N, channels, H, W) to (N, out, H/2, W/2)."""
    return nn.Sequential(*conv_norm(channels, out_channels, 3, nn.ReLU6, stride=2, bias=False))


class MobileUNet(nn.Module):
    """MobileUNet: image (N, 3, H, W) float in [0, 1], H and W multiples of 16, to `Prediction`.

    Plain convolutions, no activation on the way up, skips by addition: what the counts of Table 1
    allow, and no inverted residual. Raises ValueError for another image size.
    """

    stride = 16

    def __init__(self, out_channels: int = 1) -> None:
        super().__init__()
        self.encoder1 = strided_stage(3, 16)
        self.encoder2 = strided_stage(16, 32)
        self.encoder3 = strided_stage(32, 64)
        self.encoder4 = strided_stage(64, 128)
        self.up3 = nn.ConvTranspose2d(128, 64, 2, stride=2)
        self.up2 = nn.ConvTranspose2d(64, 32, 2, stride=2)
        self.up1 = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.head = nn.ConvTranspose2d(16, out_channels, 2, stride=2)

    def forward(self, image: Tensor, deep_supervision: bool = False) -> Prediction:
        check_image(image, self.stride)
        skip1 = self.encoder1(image)  # (N, 16, H/2, W/2)
        skip2 = self.encoder2(skip1)  # (N, 32, H/4, W/4)
        skip3 = self.encoder3(skip2)  # (N, 64, H/8, W/8)
        bottom = self.encoder4(skip3)  # (N, 128, H/16, W/16)

        feature = self.up3(bottom) + skip3  # (N, 64, H/8, W/8)
        feature = self.up2(feature) + skip2  # (N, 32, H/4, W/4)
        feature = self.up1(feature) + skip1  # (N, 16, H/2, W/2)
        return Prediction(self.head(feature), bottleneck=bottom if deep_supervision else None)
