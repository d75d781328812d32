"""UltraSeg on one core by its own kernels (`native.cpp`): no step is there that it does not need.

The exact inference form, planned once for one image size into a list of kernel calls: features
stay as (row, column, channel) with zero borders, GroupNorm only sums while the convolution before
it runs, and its scale goes into the weights of the convolution after it.
"""

import ctypes
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ultraseg_lib.deploy.inference import (
    DepthwiseDilated,
    ExactAttention,
    ExactDecoder,
    ExactStage,
    ExactUltraSeg,
    FastGroupNorm,
)
from ultraseg_lib.deploy.native import (
    Conv,
    Feature,
    Gates,
    View,
    beside,
    build,
    corners,
    packed,
    taps,
    zeros,
)
from ultraseg_lib.models.ultraseg import EnhancedDilatedBlock, UltraSeg

GELU, RELU = 1, 2


def cannot_plan(model: nn.Module, size: int, threads: int) -> str:
    """Return why the kernels do not fit this model, size or number of threads, or nothing."""
    if threads != 1:
        return f"threads: native runs on 1 core, found {threads}"
    if size < 32 or size % 32:
        return f"size: native needs a multiple of 32, found {size}"
    known = isinstance(model, UltraSeg) and isinstance(model.bottleneck, nn.Conv2d)
    blocks = list(model.encoder3.context) if known else []
    fits = known and model.bottleneck.weight.shape[:2] == (96, 64) and model.head.out_channels == 1
    stages = (model.encoder1, model.encoder2, model.encoder3) if fits else ()
    fits = fits and [stage.conv.out_channels for stage in stages] == [8, 16, 48]
    if not fits or not all(isinstance(b, EnhancedDilatedBlock) and not b.split for b in blocks):
        found = f"{type(model).__name__}{' of other widths or parts' if known else ''}"
        return f"model: native runs UltraSeg-108K and -130K only, found {found}"
    return ""


class Plan:
    """The kernel calls of one model at one size, in float32; with `half`, convolutions read bfloat16.

    Features are (row, column, channel); the shapes below are without halos. bfloat16 goes through
    the matrix unit (AMX) where there is one. `parts` names the part of the network of each call;
    `keep` holds what their pointers point to.
    """

    def __init__(self, model: ExactUltraSeg, half: bool = False) -> None:
        self.kernels, self.size, self.half = build(), model.size, half
        self.keep: list[object] = []
        self.calls: list[tuple[Callable, tuple]] = []
        self.parts: list[str] = []
        self.part = ""
        self.narrowed: dict[int, np.ndarray] = {}
        self.plan(model)

    def run(self, image: np.ndarray) -> np.ndarray:
        """Image (1, 3, size, size) float32, any strides, to logits (1, 1, size, size).

        Raises ValueError for another shape or type.
        """
        self.take(image)
        for kernel, arguments in self.calls:
            kernel(*arguments)
        return self.logits.copy()[None, None]

    def take(self, image: np.ndarray) -> None:
        """Copy the image to where the first kernel reads it."""
        if image.dtype != np.float32 or image.shape != (1, 3, self.size, self.size):
            raise ValueError(
                f"image: found {image.dtype} of shape {image.shape};"
                f" give float32 (1, 3, {self.size}, {self.size})"
            )
        strides = [ctypes.c_long(stride // 4) for stride in image.strides[1:]]
        self.kernels.take_image(
            ctypes.c_void_p(image.ctypes.data), *strides, self.size, ctypes.byref(self.image)
        )

    def time_parts(self, image: np.ndarray) -> dict[str, float]:
        """Run once and return the milliseconds of each part of the network, in order."""
        spent = dict.fromkeys(["image", *self.parts], 0.0)
        start = time.perf_counter()
        self.take(image)
        spent["image"] = 1e3 * (time.perf_counter() - start)
        for part, (kernel, arguments) in zip(self.parts, self.calls, strict=True):
            start = time.perf_counter()
            kernel(*arguments)
            spent[part] += 1e3 * (time.perf_counter() - start)
        return spent

    # --- what a plan is made of -------------------------------------------------------------------

    def call(self, name: str, *arguments: object) -> None:
        """Add a kernel call; arrays and structures go as pointers, floats as floats."""
        self.calls.append((getattr(self.kernels, name), tuple(map(self._pointer, arguments))))
        self.parts.append(self.part)

    def _pointer(self, value: object) -> object:
        self.keep.append(value)
        if isinstance(value, np.ndarray):
            return ctypes.c_void_p(value.ctypes.data)
        if isinstance(value, ctypes.Structure):
            return ctypes.byref(value)
        return ctypes.c_float(value) if isinstance(value, float) else value

    def feature(self, size: int, channels: int, halo: int = 0) -> Feature:
        """A square feature; more than eight channels fill whole vectors."""
        lanes = channels if channels <= 8 else -(-channels // 16) * 16
        feature = Feature(zeros(size + 2 * halo, size + 2 * halo, lanes), halo)
        self.keep.append(feature)
        return feature

    def read(self, feature: Feature, y: int = 0, x: int = 0, columns: int = 1) -> View:
        """The view of a finished feature that a convolution reads; with `half`, of a copy."""
        view, array = feature.view(y, x, columns), feature.array
        if not self.half:
            return view
        if id(array) not in self.narrowed:
            count = -(-array.size // 16) * 16
            self.narrowed[id(array)] = zeros(count // 2)
            self.call("narrow_feature", array, self.narrowed[id(array)], count)
        start = self.narrowed[id(array)].ctypes.data + (view.at - array.ctypes.data) // 2
        return View(start, view.rs // 2, view.ps // 2)

    def conv(
        self, weight: np.ndarray, bias: Tensor | np.ndarray, step: int = 1, act: int = 0
    ) -> Conv:
        """Describe a convolution from its weight (kh, kw, in, out) and bias (out)."""
        rows, columns, inside, _ = weight.shape
        weight, bias = packed(weight), packed(bias)
        out, run, pairs = weight.shape[-1], columns * inside, 0
        if self.half:
            weight, single = zeros(weight.size // 2), weight
            self.kernels.pair_weights(*map(self._pointer, (single, rows * run, out, weight)))
            run //= 2
            pairs = self.kernels.tile_pairs(run)
        self.keep += [weight, bias]
        data = weight.ctypes.data, bias.ctypes.data
        return Conv(*data, out, rows, run, step, act, self.half, pairs)

    def reweigh(self, conv: Conv, inputs: int, kernel: str, *arguments: object) -> None:
        """Add a kernel call whose last argument, the result, are new weights of a convolution."""
        if not self.half:
            return self.call(kernel, *arguments, ctypes.c_void_p(conv.weight))
        single = zeros(inputs * conv.out)
        self.call(kernel, *arguments, single)
        self.call("pair_weights", single, inputs, conv.out, ctypes.c_void_p(conv.weight))

    def convolve(self, conv: Conv, source: View, target: View, height: int, width: int = 0,
                 stats: bool = False) -> np.ndarray | None:  # fmt: skip
        """Add a convolution to (height, width, out).

        With `stats`, returns where the sums and the sums of squares (2 out) will stand.
        """
        sums = np.zeros(2 * conv.out) if stats else None
        self.call("convolve", conv, source, target, View(), height, width or height, sums)
        return sums

    def pointwise(self, conv: nn.Conv2d, source: Feature, size: int, act: int = 0) -> Feature:
        """Add a 1x1 convolution, (size, size, in) to (size, size, out).

        The source may have lanes of zeros more.
        """
        weight = np.zeros((1, 1, source.array.shape[-1], conv.out_channels), np.float32)
        weight[:, :, : conv.in_channels] = taps(conv.weight)
        target = self.feature(size, conv.out_channels)
        self.convolve(self.conv(weight, conv.bias, act=act), self.read(source), target.view(), size)
        return target

    def norm(
        self, norm: FastGroupNorm, stats: np.ndarray, pixels: int, channels: np.ndarray
    ) -> np.ndarray:
        """Add the GroupNorm of a feature whose lane i holds channel `channels[i]`.

        Returns where its scale and then its shift will stand: (2, lanes).
        """
        group = norm.average.argmax(dim=1).numpy()[channels].astype(np.int32)
        weight, bias = (packed(each.numpy()[channels]) for each in (norm.weight, norm.bias))
        result = np.zeros((2, len(channels)), np.float32)
        counts = ctypes.c_double(pixels), ctypes.c_double(norm.eps)
        self.call("normalise", stats, len(channels), group, *counts, weight, bias, *result)
        return result

    # --- UltraSeg ---------------------------------------------------------------------------------

    def plan(self, model: ExactUltraSeg) -> None:
        """Plan the whole network, from the image to the logits."""
        size = self.size
        self.part = "encoder1"
        skip1 = self.first_stage(model)
        skip2, skip3 = self.feature(size // 4, 16, halo=1), self.feature(size // 8, 48)
        self.part = "encoder2"
        self.stage(model.encoder2, skip1, size // 2, skip2)
        self.part = "encoder3"
        self.stage(model.encoder3, skip2, size // 4, skip3)
        self.part = "encoder4"
        both, skip4 = self.fourth_stage(model, skip3)
        self.part = "agf"
        fused = self.fuse_attention(model, skip3, both, skip4) if model.agf else skip4
        self.part = "bottleneck"
        feature = self.bottom(model, fused)
        self.part = "decoder4"
        feature = self.decode(model.decoder4, feature, skip4, size // 16, size // 16)
        self.part = "decoder3"
        feature = self.decode(model.decoder3, feature, skip3, size // 16, size // 8)
        self.part = "decoder2"
        feature = self.decode(model.decoder2, feature, skip2, size // 8, size // 4)
        self.part = "decoder1"
        half = self.last_stage(model, feature, skip1)
        self.part = "upsample"
        self.logits, table = zeros(size, size), corners(size // 2, size)
        self.call("resize_plane", half, size // 2, self.logits, size, size, table, table,
                  zeros(size))  # fmt: skip

    def first_stage(self, model: ExactUltraSeg) -> Feature:
        """Statistics of the first convolution, then it and the 2x2 one as a single 4x4.

        Image (size, size, 3) to (size / 2, size / 2, 8).
        """
        stage, size = model.encoder1, self.size
        image, skip = self.feature(size, 3, halo=1), self.feature(size // 2, 8, halo=1)
        self.image = image.view()
        out = stage.down.out_channels
        pair = self.conv(beside(taps(stage.conv.weight[:out, :, :3, :3]), 1), stage.conv.bias[:out].repeat(2))  # fmt: skip
        stats = self.convolve(
            pair, self.read(image, -1, -1, 2), View(), size, size // 2, stats=True
        )
        both = np.tile(np.arange(out), 2)
        scale, shift = self.norm(stage.norm, stats, size * size // 2, both)[:, :out]
        table, moved = self.merge(stage)
        conv = self.conv(np.zeros(table.shape[1:]), np.zeros(16), 2, GELU)
        inputs, bias = table[0].size // 16, ctypes.c_void_p(conv.bias)
        rows = packed(table.reshape(out, -1)), scale, out, table[0].size, zeros(table[0].size)
        self.reweigh(conv, inputs, "combine", *rows)
        self.call("combine", packed(moved[0]), scale, out, 16, packed(stage.down.bias.repeat(2)), bias)  # fmt: skip
        self.call("combine", packed(moved[1]), shift, out, 16, bias, bias)
        self.convolve(conv, self.read(image, -1, -1, 4), skip.view(0, 0, 2), size // 2, size // 4)
        return skip

    @staticmethod
    def merge(stage: nn.Module) -> tuple[np.ndarray, tuple[Tensor, Tensor]]:
        """One 4x4 filter for each channel between the two convolutions, and what moves the bias.

        The image's GroupNorm scales these filters (out, 4, 6, 3, 16), two neighbours at once, and
        both terms (out, 16) of the bias: that of the scale and that of the shift.
        """
        out = stage.down.out_channels
        down = stage.down.weight[:, :, 0, 0].reshape(out, 4, out)  # (out, (y, x), channel)
        phases = stage.conv.weight.reshape(4, out, 3, 4, 4)
        filters = torch.einsum("opc,pciyx->coiyx", down, phases)
        through = down.sum(dim=1)
        moved = (through * stage.conv.bias[:out]).T.repeat(1, 2), through.T.repeat(1, 2)
        return np.stack([beside(taps(each), 2) for each in filters]), moved

    def stage(self, stage: ExactStage, source: Feature, size: int, target: Feature) -> None:
        """3x3, EDBs if any, GroupNorm inside the 2x2: (size, size, in) to (size/2, size/2, out)."""
        channels, blocks = stage.conv.out_channels, list(stage.context)
        order = np.arange(channels)
        if blocks:  # (of the group, group): what a group's branches read then lies in three vectors
            order = order.reshape(-1, 3).T.ravel()
        now = self.feature(size, channels, halo=3 if blocks else 0)
        conv = self.conv(taps(stage.conv.weight)[..., order], stage.conv.bias.numpy()[order])
        stats = self.convolve(conv, self.read(source, -1, -1), now.view(), size, stats=not blocks)
        for block in blocks:
            now, stats = self.edb(block, now, order, size)
        scale, shift = self.norm(stage.norm, stats, size * size, order)
        down, bias = taps(stage.down.weight)[:, :, order], packed(stage.down.bias)
        conv = self.conv(down, bias, 2, GELU)
        self.reweigh(conv, 4 * channels, "scale_inputs", packed(down), scale, 4, channels, channels)
        moved = packed(down.sum(axis=(0, 1))), shift, channels, channels, bias
        self.call("combine", *moved, ctypes.c_void_p(conv.bias))
        self.convolve(conv, self.read(now, 0, 0, 2), target.view(), size // 2)

    def edb(
        self, block: DepthwiseDilated, source: Feature, order: np.ndarray, size: int
    ) -> tuple[Feature, np.ndarray]:
        """EDB (Eq. 2), (size, size, C), with its sums; channels in the order (of the group, group)."""
        target, third = self.feature(size, len(order), halo=3), len(order) // 3
        branches = [each.weight.reshape(third, 3, 9).permute(2, 1, 0) for each in block.branches]
        mix = taps(torch.cat([mix.weight[:, ::3] for mix in block.mixes], dim=1))[..., order]
        conv = self.conv(mix, block.mixes[0].bias.numpy()[order])
        stats, line = np.zeros(2 * len(order)), zeros(size * len(order))
        self.call("dilated", packed(torch.stack(branches)), conv, source.view(), target.view(),
                  size, size, line, stats)  # fmt: skip
        return target, stats

    def attention(
        self, block: ExactAttention, source: Feature, size: int
    ) -> tuple[Feature, np.ndarray]:
        """GSA, (size, size, in) to (size, size, out), with the sums for the GroupNorm after it."""
        channels, out = block.pointwise.in_channels, block.pointwise.out_channels
        maps = (block.gain, block.offset, block.constant)
        gain, offset, constant = (packed(each[0].permute(1, 2, 0)) for each in maps)
        mixed, after = self.feature(size, channels, halo=1), self.feature(size, channels)
        self.call("attend", source.view(), mixed.view(), channels, size, size, gain, offset)
        weight = packed(block.depthwise.weight.reshape(channels, 9).T)
        self.call("depthwise", mixed.view(), after.view(), channels, size, size, weight, constant)
        target = self.feature(size, out)
        conv = self.conv(taps(block.pointwise.weight), block.pointwise.bias)
        return target, self.convolve(conv, self.read(after), target.view(), size, stats=True)

    def fourth_stage(self, model: ExactUltraSeg, skip3: Feature) -> tuple[np.ndarray, Feature]:
        """The fourth skip, alone or (with AGF) behind room for what AGF mixes it with.

        (size / 8, size / 8, 48) to (size / 16, size / 16, 64), inside an array of 64 or 128
        channels.
        """
        size = self.size // 16
        mixed, stats = self.attention(model.encoder4.block, skip3, 2 * size)
        scale, shift = self.norm(model.encoder4.norm, stats, 4 * size * size, np.arange(64))
        both = self.feature(size, 128 if model.agf else 64, halo=1).array
        skip4 = Feature(both, halo=1, channel=64 if model.agf else 0)
        self.call("pool", mixed.view(), skip4.view(), 64, size, size, scale, shift)
        return both, skip4

    def fuse_attention(
        self, model: ExactUltraSeg, skip3: Feature, both: np.ndarray, skip4: Feature
    ) -> Feature:
        """AGF: stage 3, brought to the size of stage 4, and both blended pixel by pixel.

        (size / 8, size / 8, 48) and (size / 16, size / 16, 64) to (size / 16, size / 16, 64).
        """
        size = self.size // 16
        small, shallow = self.feature(size, 48), Feature(both, halo=1)
        table = corners(2 * size, size)
        self.call("resize", skip3.view(), small.view(), 48, size, size, table, table,
                  zeros(96 * size))  # fmt: skip
        conv = self.conv(taps(model.agf.project.weight), model.agf.project.bias)
        self.convolve(conv, self.read(small), shallow.view(), size)
        narrow, batch, _, wide, _ = model.agf.attention
        gain = batch.weight / torch.sqrt(batch.running_var + batch.eps)
        bias = (narrow.bias - batch.running_mean) * gain + batch.bias
        conv = self.conv(taps(narrow.weight * gain[:, None, None, None]), bias, act=GELU)
        hidden, fused = self.feature(size, 16), self.feature(size, 64, halo=1)
        self.convolve(conv, self.read(shallow, -1, -1), hidden.view(), size)
        logits = self.pointwise(wide, hidden, size)
        views = [each.view() for each in (shallow, skip4, logits, fused)]
        self.call("blend", *views, 64, size, size)
        return fused

    def bottom(self, model: ExactUltraSeg, fused: Feature) -> Feature:
        """The 3x3 bottleneck and, if any, SSA: (size/16, size/16, 64) to (size/16, size/16, 96)."""
        size = self.size // 16
        bottom = self.feature(size, 96)
        conv = self.conv(taps(model.bottleneck.weight), model.bottleneck.bias)
        self.convolve(conv, self.read(fused, -1, -1), bottom.view(), size)
        if not isinstance(model.ssa, nn.Identity):
            self.call("attend_space", bottom.view(), 96, size, size, float(model.ssa.alpha))
        return bottom

    @staticmethod
    def gates(stage: ExactDecoder) -> Gates:
        """Weights and biases of the region and boundary heads, and what each gate counts for."""
        gates = Gates()
        for index in range(stage.heads):
            weight = stage.gates.weight[index].flatten().tolist()
            gates.weight[index][: len(weight)] = weight
            gates.bias[index] = float(stage.gates.bias[index])
            gates.own[index], gates.other[index] = stage.shares.weight[:, index, 0, 0].tolist()
        return gates

    def decode(
        self, stage: ExactDecoder, source: Feature, skip: Feature, size: int, target: int
    ) -> Feature:
        """A decoder stage: (size, size, in) and skip (target, target, C) to (target, target, C)."""
        mixed, stats = self.attention(stage.block, source, size)
        channels = stage.gates.in_channels
        scale, shift = self.norm(stage.norm, stats, size * size, np.arange(channels))
        own, other, table = self.feature(target, channels), zeros(target, target), corners(size, target)  # fmt: skip
        self.call("gate", mixed.view(), own.view(), other, channels, target, target, scale, shift,
                  table, table, self.gates(stage), zeros(2 * target + channels * size))  # fmt: skip
        if not isinstance(stage.adaptor, nn.Identity):
            narrow, _, wide = stage.adaptor
            own = self.pointwise(wide, self.pointwise(narrow, own, target, RELU), target)
        result = self.feature(target, channels, halo=1)
        self.call("fuse", own.view(), skip.view(), other, result.view(), channels, target, target)
        return result

    def last_stage(self, model: ExactUltraSeg, source: Feature, skip: Feature) -> np.ndarray:
        """The decoder stage at half size and the head.

        (size / 4, size / 4, 16) and skip (size / 2, size / 2, 8) to logits (size / 2, size / 2).
        """
        stage, size = model.decoder1, self.size
        mixed, half, table = self.feature(size // 4, 8), zeros(size // 2, size // 2), corners(size // 4, size // 2)  # fmt: skip
        conv = self.conv(beside(taps(stage.block.weight), 1), stage.block.bias.repeat(2))
        target = mixed.view(0, 0, 2)
        stats = self.convolve(conv, self.read(source, -1, -1, 2), target, size // 4, size // 8, stats=True)  # fmt: skip
        both = np.tile(np.arange(8), 2)
        scale, shift = self.norm(stage.norm, stats, size * size // 32, both)
        places = [*range(stage.heads), 2]  # region, boundary, head; the skip's head is the fourth
        weight, bias, last = np.zeros((1, 1, 8, 16)), np.zeros(16), np.zeros((1, 1, 8, 16))
        weight[..., places], bias[places] = taps(stage.gates.weight), stage.gates.bias
        last[..., 3:4] = taps(stage.skip.weight)
        heads = self.conv(weight, bias), self.conv(last, np.zeros(16))
        self.call("finish", mixed.view(), self.read(skip), size // 2, size // 2, scale, shift,
                  table, table, *heads, self.gates(stage), float(stage.bias), zeros(6 * size),
                  zeros(8 * size), half)  # fmt: skip
        return half
