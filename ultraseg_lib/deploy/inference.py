"""The exact inference form: the same function of the image as the trained model, with less work.

A trained UltraSeg has parts that no image can change, and linear steps that follow one another.
`exact_form` folds them. Nothing is approximated: in float64 both forms agree to rounding.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultraseg_lib.choices import check_choice
from ultraseg_lib.models import Prediction
from ultraseg_lib.models.layers import (
    ConvStage,
    GatedDecoderStage,
    GroupShuffleAttention,
    PooledStage,
    double,
)
from ultraseg_lib.models.ultraseg import EnhancedDilatedBlock, UltraSeg

REWRITES = {
    "edb": "EDB with depthwise branches, the regrouping folded into the 1x1",
    "norm": "BatchNorm folded into the 2x2, GroupNorm from the sums of each channel",
    "first": "the first convolution at half size, four pixels as four blocks of channels",
    "attention": "GSA maps and norm affines as constants, the shuffle as an order of weights",
    "decoder": "both heads in one 1x1, the last stage gates three maps in place of eight channels",
    "upsample": "the last x2 as two matrix products",
}


class LogitsOnly(nn.Module):
    """The main logits of a model, alone: image (N, 3, H, W) to (N, out, H, W)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image).logits


def frozen_conv(weight: Tensor, bias: Tensor | None, **options: int) -> nn.Conv2d:
    """Return a convolution with this weight (out, in / groups, kh, kw) and bias (out)."""
    out, inside, *kernel = weight.shape
    channels = inside * options.get("groups", 1)
    conv = nn.Conv2d(channels, out, kernel, bias=bias is not None, **options).to(weight)
    conv.weight.data.copy_(weight)
    if bias is not None:
        conv.bias.data.copy_(bias)
    return conv


class FastGroupNorm(nn.Module):
    """GroupNorm (N, C, H, W) as one multiplication and one addition, from the sums of each channel.

    Without `affine` the layer after it holds weight and bias. `phases`: how many blocks of
    channels, one behind the other, hold pixels of the same channels.
    """

    def __init__(self, norm: nn.GroupNorm, affine: bool = True, phases: int = 1) -> None:
        super().__init__()
        group = torch.arange(norm.num_channels) // (norm.num_channels // norm.num_groups)
        group = group.repeat(phases)
        same = (group[:, None] == group[None]).double()
        self.eps = norm.eps
        self.register_buffer("average", same / same.sum(dim=1, keepdim=True))
        weight, bias = norm.weight.data.repeat(phases), norm.bias.data.repeat(phases)
        self.register_buffer("weight", weight.clone() if affine else torch.ones_like(weight))
        self.register_buffer("bias", bias.clone() if affine else torch.zeros_like(bias))

    def forward(self, feature: Tensor) -> Tensor:
        pixels = feature.shape[2] * feature.shape[3]
        mean = feature.mean(dim=(2, 3)) @ self.average  # (N, C)
        norm = torch.linalg.vector_norm(feature, dim=(2, 3))
        variance = (norm.square() / pixels) @ self.average - mean.square()
        scale = torch.rsqrt(variance + self.eps) * self.weight
        shift = self.bias - mean * scale
        return feature * scale[:, :, None, None] + shift[:, :, None, None]


def fold_norms_into_down(stage: ConvStage) -> tuple[Tensor, Tensor]:
    """Return weight (out, out, 2, 2) and bias (out) of the 2x2 with both norms' affines in it."""
    group, batch, conv = stage.norm, stage.down.norm, stage.down.conv
    gain = batch.weight / torch.sqrt(batch.running_var + batch.eps)
    shift = (group.bias - batch.running_mean) * gain + batch.bias
    bias = conv.bias + torch.einsum("oihw,i->o", conv.weight, shift)
    return conv.weight * (group.weight * gain)[None, :, None, None], bias


class DepthwiseDilated(nn.Module):
    """EDB (Eq. 2), (N, C, H, W), with depthwise branches: sums over groups move into the 1x1."""

    def __init__(self, block: EnhancedDilatedBlock) -> None:
        super().__init__()
        channels = block.mix.in_channels
        third = channels // 3
        self.branches, self.mixes = nn.ModuleList(), nn.ModuleList()
        factor, bias = block.residual_weight, block.mix.bias
        columns = block.mix.weight.split(third, dim=1)
        for branch, column in zip(block.branches, columns, strict=True):
            dilation = branch.dilation[0]
            weight = branch.weight.reshape(-1, 1, 3, 3)  # channel 3g + k: tap k of group g
            self.branches.append(
                frozen_conv(weight, None, padding=dilation, dilation=dilation, groups=channels)
            )
            bias = bias + column[:, :, 0, 0] @ branch.bias
            self.mixes.append(frozen_conv(factor * column.repeat_interleave(3, dim=1), None))
        self.mixes[0] = frozen_conv(self.mixes[0].weight.data, factor * bias)

    def forward(self, feature: Tensor) -> Tensor:
        mixed = feature
        for branch, mix in zip(self.branches, self.mixes, strict=True):
            mixed = mixed + mix(branch(feature))
        return mixed


class ExactStage(nn.Module):
    """`ConvStage`, (N, C, H, W) to (N, out, H/2, W/2), with both norms folded into its 2x2."""

    def __init__(self, stage: ConvStage) -> None:
        super().__init__()
        self.conv, self.context = stage.conv, stage.context
        self.norm = FastGroupNorm(stage.norm, affine=False)
        self.down = frozen_conv(*fold_norms_into_down(stage), stride=2)

    def forward(self, feature: Tensor) -> Tensor:
        feature = self.context(self.conv(feature))  # (N, out, H, W)
        return F.gelu(self.down(self.norm(feature)))  # (N, out, H/2, W/2)


class ExactFirstStage(nn.Module):
    """`ConvStage` at half size: the four pixels of a 2x2 square are four blocks of channels.

    Image (N, 3, H, W) to (N, out, H/2, W/2); H and W are even.
    """

    def __init__(self, stage: ConvStage) -> None:
        super().__init__()
        weight = stage.conv.weight
        out, inside = weight.shape[:2]
        phases = weight.new_zeros(4, out, inside, 4, 4)
        for phase in range(4):
            y, x = divmod(phase, 2)
            phases[phase, :, :, y : y + 3, x : x + 3] = weight
        phases, bias = phases.reshape(4 * out, inside, 4, 4), stage.conv.bias.repeat(4)
        self.conv = frozen_conv(phases, bias, stride=2, padding=1)
        self.norm = FastGroupNorm(stage.norm, affine=False, phases=4)
        weight, bias = fold_norms_into_down(stage)
        self.down = frozen_conv(weight.permute(0, 2, 3, 1).reshape(out, 4 * out, 1, 1), bias)

    def forward(self, image: Tensor) -> Tensor:
        return F.gelu(self.down(self.norm(self.conv(image))))  # (N, out, H/2, W/2)


def standardise(feature: Tensor) -> Tensor:
    """Give each pixel's channels (N, C, H, W) mean 0 and variance 1, as `ChannelNorm` does."""
    centred = feature - feature.mean(dim=1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + 1e-6)


class ExactAttention(nn.Module):
    """`GroupShuffleAttention` at one size: (N, channels, size, size) to (N, out, size, size)."""

    def __init__(self, block: GroupShuffleAttention, size: int) -> None:
        super().__init__()
        maps = block.maps(size, size)  # (1, channels, size, size)
        quarters = torch.arange(maps.shape[1]).chunk(4)
        place = torch.argsort(torch.cat([quarters[index] for index in block.ORDER]))
        self.register_buffer("gain", maps * block.norm1.weight[:, None, None])
        self.register_buffer("offset", maps * block.norm1.bias[:, None, None])
        depthwise, _, pointwise = block.mix
        weight = depthwise.weight[place]
        options = {"padding": 1, "groups": len(place)}
        scaled = weight * block.norm2.weight[place][:, None, None, None]
        self.depthwise = frozen_conv(scaled, None, **options)
        bias = block.norm2.bias[place][None, :, None, None].expand_as(maps)
        self.register_buffer(
            "constant", F.conv2d(bias, weight, depthwise.bias[place], **options)
        )  # not the same everywhere: at the border fewer taps see the norm's bias
        self.pointwise = frozen_conv(pointwise.weight[:, place], pointwise.bias)

    def forward(self, feature: Tensor) -> Tensor:
        feature = standardise(feature) * self.gain + self.offset
        return self.pointwise(F.gelu(self.depthwise(standardise(feature)) + self.constant))


class ExactPooled(nn.Module):
    """`PooledStage` of an attention: (N, C, size, size) to (N, out, size/2, size/2)."""

    def __init__(self, stage: PooledStage) -> None:
        super().__init__()
        self.block, self.norm = stage.block, FastGroupNorm(stage.norm)

    def forward(self, feature: Tensor) -> Tensor:
        return F.gelu(F.max_pool2d(self.norm(self.block(feature)), 2))


class Double(nn.Module):
    """Resize (N, C, size, size) to (N, C, 2 size, 2 size), corners on corners, as two matrix products."""

    def __init__(self, size: int) -> None:
        super().__init__()
        eye = torch.eye(size, dtype=torch.float64)[None]
        stretched = F.interpolate(eye, size=2 * size, mode="linear", align_corners=True)
        self.register_buffer("matrix", stretched[0])  # (size, 2 size)

    def forward(self, feature: Tensor) -> Tensor:
        return self.matrix.T @ (feature @ self.matrix)


class ExactDecoder(nn.Module):
    """`GatedDecoderStage` with its heads in one 1x1: (N, C, h, w), skip to (N, out, H, W).

    With the main `head`, which is linear, it returns that head's logits (N, out_channels, H, W):
    the gates act on the head's maps of feature and skip, not on their channels.
    """

    def __init__(self, stage: GatedDecoderStage, head: nn.Conv2d | None = None) -> None:
        super().__init__()
        self.block, self.norm = stage.block, FastGroupNorm(stage.norm)
        self.upsample, self.adaptor = stage.upsample, stage.fusion.adaptor
        gate, fusion = stage.gate, stage.fusion
        heads = [each for each in (gate.region, gate.boundary) if each is not None]
        self.heads = len(heads)
        self.gates = self.merge([*heads, head] if head else heads)
        if head:
            self.gates.bias.data[self.heads :] = 0
        weights = [
            each for each in (fusion.region_weight, fusion.boundary_weight) if each is not None
        ]
        shares = torch.stack([torch.ones(self.heads).to(weights[0]), torch.stack(weights)])
        self.shares = frozen_conv(shares[:, :, None, None], torch.ones(2).to(shares))
        self.skip = frozen_conv(head.weight, None) if head else None
        self.register_buffer("bias", head.bias[:, None, None] if head else None)

    @staticmethod
    def merge(convs: list[nn.Conv2d]) -> nn.Conv2d:
        """Put 1x1 convolutions of one input beside one another."""
        weight = torch.cat([conv.weight for conv in convs])
        return frozen_conv(weight, torch.cat([conv.bias for conv in convs]))

    def forward(self, feature: Tensor, skip: Tensor) -> Tensor:
        feature = self.norm(self.block(feature))  # (N, C, h, w)
        feature = F.gelu(double(feature) if self.upsample else feature)  # (N, C, H, W)
        maps = self.gates(feature)
        gains = self.shares(torch.sigmoid(maps[:, : self.heads]))
        own, other = gains[:, 0:1], gains[:, 1:2]
        if self.skip is None:
            return self.adaptor(feature * own) + skip * other
        return maps[:, self.heads :] * own + self.skip(skip) * other + self.bias


class LastDecoder(nn.Module):
    """The last `GatedDecoderStage` and the main head, as they were trained.

    Feature (N, C, H/4, W/4) and skip (N, out, H/2, W/2) to logits (N, out_channels, H/2, W/2).
    """

    def __init__(self, stage: GatedDecoderStage, head: nn.Conv2d) -> None:
        super().__init__()
        self.stage, self.head = stage, head

    def forward(self, feature: Tensor, skip: Tensor) -> Tensor:
        return self.head(self.stage(feature, skip)[0])


class ExactUltraSeg(nn.Module):
    """UltraSeg for images of one size, main logits only: image (N, 3, size, size) to `Prediction`.

    `rewrites`: names out of REWRITES. Takes the model's modules over: give a copy.
    """

    def __init__(self, model: UltraSeg, size: int, rewrites: tuple[str, ...]) -> None:
        super().__init__()
        self.size = size
        self.agf, self.bottleneck, self.ssa = model.agf, model.bottleneck, model.ssa
        self.encoder1, self.encoder2, self.encoder3 = model.encoder1, model.encoder2, model.encoder3
        self.encoder4, self.decoder4, self.decoder3 = model.encoder4, model.decoder4, model.decoder3
        self.decoder2, self.decoder1 = model.decoder2, LastDecoder(model.decoder1, model.head)
        self.upsample = Double(size // 2) if "upsample" in rewrites else double
        if "edb" in rewrites:
            released = lambda block: isinstance(block, EnhancedDilatedBlock) and not block.split  # noqa: E731
            for place, block in enumerate(self.encoder3.context):
                if released(block):
                    self.encoder3.context[place] = DepthwiseDilated(block)
        if "attention" in rewrites:
            for stage, side in zip(
                (self.encoder4, self.decoder4, self.decoder3, self.decoder2),
                (8, 16, 16, 8),
                strict=True,
            ):
                stage.block = ExactAttention(stage.block, size // side)
        if "first" in rewrites:
            self.encoder1 = ExactFirstStage(self.encoder1)
        if "norm" in rewrites:
            self.encoder1 = self.encoder1 if "first" in rewrites else ExactStage(self.encoder1)
            self.encoder2, self.encoder3 = ExactStage(self.encoder2), ExactStage(self.encoder3)
            self.encoder4 = ExactPooled(self.encoder4)
        if "decoder" in rewrites:
            for name in ("decoder4", "decoder3", "decoder2"):
                setattr(self, name, ExactDecoder(getattr(self, name)))
            if isinstance(model.decoder1.fusion.adaptor, nn.Identity):  # else no head folds into it
                self.decoder1 = ExactDecoder(model.decoder1, model.head)

    def forward(self, image: Tensor) -> Prediction:
        skip1 = self.encoder1(image)  # (N, c1, H/2, W/2)
        skip2 = self.encoder2(skip1)  # (N, c2, H/4, W/4)
        skip3 = self.encoder3(skip2)  # (N, c3, H/8, W/8)
        skip4 = self.encoder4(skip3)  # (N, c4, H/16, W/16)
        fused = skip4 if self.agf is None else self.agf(skip3, skip4)
        feature = self.ssa(self.bottleneck(fused))
        for stage, skip in ((self.decoder4, skip4), (self.decoder3, skip3), (self.decoder2, skip2)):
            feature = stage(feature, skip)
            feature = feature if torch.is_tensor(feature) else feature[0]  # without its own maps
        return Prediction(self.upsample(self.decoder1(feature, skip1)))


@torch.no_grad()
def exact_form(
    model: nn.Module, size: int, rewrites: tuple[str, ...] = tuple(REWRITES)
) -> nn.Module:
    """Return a frozen copy of a model in its exact inference form, for images (N, 3, size, size).

    `rewrites` (default: all) name what is folded in an `UltraSeg`; of other models the copy is in
    evaluation mode and nothing else. The folding is done in float64. Raises ValueError for a size
    that is no multiple of the model's stride, or an unknown rewrite.
    """
    if size < 1 or size % model.stride:
        raise ValueError(f"size: found {size}; give a multiple of {model.stride}")
    for rewrite in rewrites:
        check_choice("rewrites", rewrite, REWRITES)
    model = copy.deepcopy(model).eval().requires_grad_(False)
    if not isinstance(model, UltraSeg):
        return model
    return ExactUltraSeg(model.double(), size, rewrites).float().eval().requires_grad_(False)
