"""UltraSeg on one core by its own kernels (`native.cpp`): no step is there that it does not need.

The exact inference form, planned once for one image size into a list of kernel calls: features
stay as (row, column, channel) with zero borders, GroupNorm only sums while the convolution before
it runs, and its scale goes into the weights of the convolution after it.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
from ultraseg_lib.models.ultraseg import EnhancedDilatedBlock, UltraSeg
from ultraseg_lib.paths import outputs_dir, whole_file
from ultraseg_lib.provenance import cpu_model

SOURCE = Path(__file__).with_name("native.cpp")
GELU, RELU = 1, 2


class View(ctypes.Structure):
    """A feature in memory: its first pixel, and the distance of rows and of pixels in floats."""

    _fields_ = (("at", ctypes.c_void_p), ("rs", ctypes.c_long), ("ps", ctypes.c_long))


class Conv(ctypes.Structure):
    """A convolution's weights and how it walks."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("out", "rows", "run", "step", "activation")),
    )


class Gates(ctypes.Structure):
    """The region and the boundary head of a decoder stage, and the weights of both gates."""

    _fields_ = (
        ("weight", ctypes.c_float * 512 * 2),
        *((name, ctypes.c_float * 2) for name in ("bias", "own", "other")),
    )


def compiler() -> str | None:
    """Return the C++ compiler: ``CXX``, g++ or clang++, whichever is there."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def build() -> ctypes.CDLL:
    """Compile the kernels for this processor, once; ``ULTRASEG_MARCH`` names another.

    Raises RuntimeError, with the compiler's words, when it fails.
    """
    march = os.environ.get("ULTRASEG_MARCH", "native")
    key = f"{SOURCE.read_text()}{march}{cpu_model()}{compiler()}"
    path = outputs_dir("cache") / f"native-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        with whole_file(path) as temporary:
            words = [compiler(), "-std=c++17", "-O3", f"-march={march}", "-shared", "-fPIC"]
            done = subprocess.run(
                [*words, "-o", temporary, SOURCE], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"{SOURCE.name} does not compile: {done.stderr[-500:]}")
    return ctypes.CDLL(str(path))


def cannot_plan(model: nn.Module, size: int, threads: int) -> str:
    """Return why the kernels do not fit this model, size or number of threads, or nothing."""
    if threads != 1:
        return f"threads: native runs on 1 core, found {threads}"
    if size < 32 or size % 32:
        return f"size: native needs a multiple of 32, found {size}"
    known = isinstance(model, UltraSeg) and isinstance(model.bottleneck, nn.Conv2d)
    blocks = list(model.encoder3.context) if known else []
    fits = known and model.bottleneck.weight.shape[:2] == (96, 64) and model.head.out_channels == 1
    if not fits or not all(isinstance(b, EnhancedDilatedBlock) and not b.split for b in blocks):
        return f"model: native runs UltraSeg-108K and -130K only, found {type(model).__name__}"
    return ""


@dataclass
class Feature:
    """A feature (height, width, channels) inside an array with `halo` zeros around it."""

    array: np.ndarray
    halo: int = 0
    channel: int = 0

    def view(self, y: int = 0, x: int = 0, columns: int = 1) -> View:
        """Return the view from pixel (y, x) on; `columns` pixels count as one."""
        start = self.array[y + self.halo :, x + self.halo :, self.channel :]
        row, pixel, _ = (stride // 4 for stride in self.array.strides)
        return View(start.ctypes.data, row, pixel * columns)


def zeros(*shape: int) -> np.ndarray:
    """Return float32 zeros that begin on a cache line, as fast loads want them."""
    count = int(np.prod(shape))
    room = np.zeros(count + 32, np.float32)  # a vector may end after the last channel
    first = -room.ctypes.data // 4 % 16
    return room[first : first + count].reshape(shape)


def packed(values: Tensor | np.ndarray) -> np.ndarray:
    """Return a contiguous float32 copy, padded with zeros to a multiple of 16 at the end."""
    array = np.asarray(values, dtype=np.float32)
    pad = [(0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % 16)]
    padded = np.pad(array, pad)
    result = zeros(*padded.shape)
    result[:] = padded
    return result


def taps(weight: Tensor) -> np.ndarray:
    """Order a weight (out, in, kh, kw) as the kernel reads it: (kh, kw, in, out)."""
    return weight.permute(2, 3, 1, 0).numpy()


def beside(weight: np.ndarray, step: int) -> np.ndarray:
    """Weights (kh, kw, in, out) of two neighbours at once: (kh, kw + step, in, 2 out)."""
    rows, columns, inside, out = weight.shape
    pair = np.zeros((rows, columns + step, inside, 2, out), np.float32)
    pair[:, :columns, :, 0], pair[:, step:, :, 1] = weight, weight
    return pair.reshape(rows, columns + step, inside, 2 * out)


def corners(size: int, target: int) -> np.ndarray:
    """Where each of `target` pixels lies among `size`: low, high, share of high (Corner)."""
    place = np.arange(target) * (size - 1) / max(target - 1, 1)
    low = np.minimum(place.astype(np.int32), size - 1)
    table = np.zeros(target, [("low", "i4"), ("high", "i4"), ("share", "f4")])
    table["low"], table["high"], table["share"] = low, np.minimum(low + 1, size - 1), place - low
    return table


class Plan:
    """The kernel calls of one model at one size; `keep` holds what their pointers point to."""

    def __init__(self, model: ExactUltraSeg) -> None:
        self.kernels, self.size = build(), model.size
        self.keep: list[object] = []
        self.calls: list[tuple[Callable, tuple]] = []
        self.plan(model)

    def run(self, image: np.ndarray) -> np.ndarray:
        """Image (1, 3, size, size) float32, any strides, to logits (1, 1, size, size)."""
        strides = [ctypes.c_long(stride // 4) for stride in image.strides[1:]]
        self.kernels.take_image(
            ctypes.c_void_p(image.ctypes.data), *strides, self.size, ctypes.byref(self.image)
        )
        for kernel, arguments in self.calls:
            kernel(*arguments)
        return self.logits.copy()[None, None]

    def call(self, name: str, *arguments: object) -> None:
        """Add a kernel call; arrays and views go as pointers, floats as floats."""
        ready = [self._pointer(each) for each in arguments]
        self.calls.append((getattr(self.kernels, name), tuple(ready)))

    def _pointer(self, value: object) -> object:
        self.keep.append(value)
        if isinstance(value, np.ndarray):
            return ctypes.c_void_p(value.ctypes.data)
        return ctypes.byref(value) if isinstance(value, ctypes.Structure) else value

    def feature(self, size: int, channels: int, halo: int = 0) -> Feature:
        """A square feature; more than eight channels fill whole vectors."""
        lanes = channels if channels <= 8 else -(-channels // 16) * 16
        feature = Feature(zeros(size + 2 * halo, size + 2 * halo, lanes), halo)
        self.keep.append(feature)
        return feature

    def conv(
        self, weight: np.ndarray, bias: Tensor | np.ndarray, step: int = 1, act: int = 0
    ) -> Conv:
        """Describe a convolution from its weight (kh, kw, in, out)."""
        rows, columns, inside, _ = weight.shape
        weight, bias = packed(weight), packed(bias)
        self.keep += [weight, bias]
        size = weight.shape[-1]
        return Conv(weight.ctypes.data, bias.ctypes.data, size, rows, columns * inside, step, act)

    def norm(
        self, norm: FastGroupNorm, stats: np.ndarray, pixels: int, channels: np.ndarray
    ) -> np.ndarray:
        """Add the GroupNorm of a feature whose lane i holds channel `channels[i]`, -1 for none.

        Returns where its scale and then its shift will stand: (2, lanes).
        """
        group = norm.average.argmax(dim=1).numpy()
        live = channels >= 0
        ids = np.where(live, group[channels], -1).astype(np.int32)
        weight, bias = norm.weight.numpy(), norm.bias.numpy()
        result = np.zeros((2, len(ids)), np.float32)
        scale, shift = result
        self.call("normalise", stats, len(ids), ids, ctypes.c_double(pixels),
                  ctypes.c_double(norm.eps), packed(weight[channels] * live),
                  packed(bias[channels] * live), scale, shift)  # fmt: skip
        return result

    def plan(self, model: ExactUltraSeg) -> None:
        """Plan the whole network, from the image to the logits."""
        size = self.size
        skip1 = self.first_stage(model)
        skip2 = self.feature(size // 4, 16, halo=1)
        self.stage(model.encoder2, skip1, size // 2, skip2)
        skip3 = self.feature(size // 8, 48)
        self.stage(model.encoder3, skip2, size // 4, skip3)
        fused, skip4 = self.deep(model, skip3)
        bottom = self.feature(size // 16, 96)
        self.convolve(self.conv(taps(model.bottleneck.weight), model.bottleneck.bias),
                      fused.view(-1, -1), bottom.view(), size // 16)  # fmt: skip
        if not isinstance(model.ssa, nn.Identity):
            alpha = ctypes.c_float(float(model.ssa.alpha))
            self.call("attend_space", bottom.view(), 96, size // 16, size // 16, alpha)
        feature = self.decode(model.decoder4, bottom, skip4, size // 16, size // 16)
        feature = self.decode(model.decoder3, feature, skip3, size // 16, size // 8)
        feature = self.decode(model.decoder2, feature, skip2, size // 8, size // 4)
        self.last_stage(model, feature, skip1)

    def convolve(self, conv: Conv, source: View, target: View, height: int, width: int = 0,
                 add: View | None = None, stats: bool = False) -> np.ndarray | None:  # fmt: skip
        sums = np.zeros(2 * conv.out) if stats else None
        self.call("convolve", conv, source, target, add or View(), height, width or height, sums)
        return sums

    def first_stage(self, model: ExactUltraSeg) -> Feature:
        """Statistics of the first convolution, then it and the 2x2 one as a single 4x4."""
        stage, size = model.encoder1, self.size
        image, skip = self.feature(size, 3, halo=1), self.feature(size // 2, 8, halo=1)
        self.image = image.view()
        out = stage.down.out_channels
        weight = stage.conv.weight[:out, :, :3, :3]
        bias = stage.conv.bias[:out]
        pair = self.conv(beside(taps(weight), 1), bias.repeat(2))
        stats = self.convolve(pair, image.view(-1, -1, 2), View(), size, size // 2, stats=True)
        coefficients = self.norm(stage.norm, stats, size * size // 2, np.tile(np.arange(out), 2))
        # down (out, (y, x, channel)) after conv: one 4x4 filter for each channel between them
        down = stage.down.weight[:, :, 0, 0].reshape(out, 4, out)
        phases = stage.conv.weight.reshape(4, out, 3, 4, 4)
        tables = torch.einsum("opc,pciyx->coiyx", down, phases)
        table = np.stack([beside(taps(each), 2) for each in tables])
        moved = (down.sum(dim=1) * bias).T.repeat(1, 2), down.sum(dim=1).T.repeat(1, 2)
        conv = self.conv(np.zeros(table.shape[1:], np.float32), np.zeros(16), 2, GELU)
        scale, shift = coefficients[:, :out]
        nothing = zeros(table[0].size)
        self.call(
            "combine",
            packed(table.reshape(out, -1)),
            scale,
            out,
            nothing.size,
            nothing,
            ctypes.c_void_p(conv.weight),
        )
        base = packed(stage.down.bias.repeat(2))
        self.call("combine", packed(moved[0]), scale, out, 16, base, ctypes.c_void_p(conv.bias))
        self.call(
            "combine",
            packed(moved[1]),
            shift,
            out,
            16,
            ctypes.c_void_p(conv.bias),
            ctypes.c_void_p(conv.bias),
        )
        self.convolve(conv, image.view(-1, -1, 4), skip.view(0, 0, 2), size // 2, size // 4)
        return skip

    def stage(self, stage: ExactStage, source: Feature, size: int, target: Feature) -> None:
        """3x3, EDBs if any, GroupNorm inside the 2x2: to half `size`."""
        channels = stage.conv.out_channels
        blocks = list(stage.context)
        third = channels // 3
        order = np.arange(channels).reshape(third, 3).T.ravel() if blocks else np.arange(channels)
        now = self.feature(size, channels, halo=3 if blocks else 0)
        weight, bias = taps(stage.conv.weight)[..., order], stage.conv.bias.numpy()[order]
        stats = self.convolve(
            self.conv(weight, bias), source.view(-1, -1), now.view(), size, stats=not blocks
        )
        for block in blocks:
            after = self.feature(size, channels, halo=3)
            stats = self.edb(block, now, after, order, size)
            now = after
        coefficients = self.norm(stage.norm, stats, size * size, order)
        down = taps(stage.down.weight)[:, :, order]
        conv = self.conv(down, stage.down.bias, 2, GELU)
        weight, bias = ctypes.c_void_p(conv.weight), ctypes.c_void_p(conv.bias)
        self.call("scale_inputs", packed(down), coefficients[0], 4, channels, channels, weight)
        moved, base = packed(down.sum(axis=(0, 1))), packed(stage.down.bias)
        self.call("combine", moved, coefficients[1], channels, channels, base, bias)
        self.convolve(conv, now.view(0, 0, 2), target.view(), size // 2)

    def edb(
        self,
        block: DepthwiseDilated,
        source: Feature,
        target: Feature,
        order: np.ndarray,
        size: int,
    ) -> np.ndarray:
        """EDB (Eq. 2) on channels in the order (of the group, group)."""
        third = len(order) // 3
        branches = [
            branch.weight.reshape(third, 3, 9).permute(2, 1, 0) for branch in block.branches
        ]
        columns = [mix.weight[:, ::3] for mix in block.mixes]
        mix = taps(torch.cat(columns, dim=1))[..., order]
        conv = self.conv(mix, block.mixes[0].bias.numpy()[order])
        stats = np.zeros(2 * len(order))
        line = zeros(size * len(order))
        self.call(
            "dilated",
            packed(torch.stack(branches)),
            conv,
            source.view(),
            target.view(),
            third,
            size,
            size,
            line,
            stats,
        )
        return stats

    def attention(
        self, block: ExactAttention, source: Feature, size: int
    ) -> tuple[Feature, np.ndarray]:
        """GSA, with the sums for the GroupNorm after it."""
        channels, out = block.pointwise.in_channels, block.pointwise.out_channels
        constants = [
            packed(each[0].permute(1, 2, 0)) for each in (block.gain, block.offset, block.constant)
        ]
        mixed, after = self.feature(size, channels, halo=1), self.feature(size, channels)
        self.call("attend", source.view(), mixed.view(), channels, size, size, *constants[:2])
        weight = packed(block.depthwise.weight.reshape(channels, 9).T)
        self.call(
            "depthwise", mixed.view(), after.view(), channels, size, size, weight, constants[2]
        )
        target = self.feature(size, out)
        conv = self.conv(taps(block.pointwise.weight), block.pointwise.bias)
        return target, self.convolve(conv, after.view(), target.view(), size, stats=True)

    def deep(self, model: ExactUltraSeg, skip3: Feature) -> tuple[Feature, Feature]:
        """The fourth stage and AGF: what enters the bottleneck, and the fourth skip."""
        size = self.size // 16
        mixed, stats = self.attention(model.encoder4.block, skip3, 2 * size)
        scale, shift = self.norm(model.encoder4.norm, stats, 4 * size * size, np.arange(64))
        if model.agf is None:
            skip4 = self.feature(size, 64, halo=1)
            self.call("pool", mixed.view(), skip4.view(), 64, size, size, scale, shift)
            return skip4, skip4
        both = self.feature(size, 128, halo=1)
        skip4 = Feature(both.array, halo=1, channel=64)
        self.call("pool", mixed.view(), skip4.view(), 64, size, size, scale, shift)
        small, shallow = self.feature(size, 48), Feature(both.array, halo=1)
        table = corners(2 * size, size)
        self.call("resize", skip3.view(), small.view(), 48, size, size, table, table)
        conv = self.conv(taps(model.agf.project.weight), model.agf.project.bias)
        self.convolve(conv, small.view(), both.view(), size)
        narrow, batch, _, wide, _ = model.agf.attention
        gain = batch.weight / torch.sqrt(batch.running_var + batch.eps)
        bias = (narrow.bias - batch.running_mean) * gain + batch.bias
        hidden, logits, fused = (
            self.feature(size, 16),
            self.feature(size, 16),
            self.feature(size, 64, halo=1),
        )
        conv = self.conv(taps(narrow.weight * gain[:, None, None, None]), bias, act=GELU)
        self.convolve(conv, both.view(-1, -1), hidden.view(), size)
        self.convolve(self.conv(taps(wide.weight), wide.bias), hidden.view(), logits.view(), size)
        self.call(
            "blend", shallow.view(), skip4.view(), logits.view(), fused.view(), 64, size, size
        )
        return fused, skip4

    def gates(self, stage: ExactDecoder) -> Gates:
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
        """A decoder stage from `size` to `target` pixels."""
        mixed, stats = self.attention(stage.block, source, size)
        channels = stage.gates.in_channels
        scale, shift = self.norm(stage.norm, stats, size * size, np.arange(channels))
        own, other = self.feature(target, channels), zeros(target, target)
        table = corners(size, target)
        self.call(
            "gate",
            mixed.view(),
            own.view(),
            other,
            channels,
            target,
            target,
            scale,
            shift,
            table,
            table,
            self.gates(stage),
            zeros(2 * target + 16),
        )
        if not isinstance(stage.adaptor, nn.Identity):
            narrow, _, wide = stage.adaptor
            hidden, adapted = self.feature(target, 16), self.feature(target, channels)
            self.convolve(
                self.conv(taps(narrow.weight), narrow.bias, act=RELU),
                own.view(),
                hidden.view(),
                target,
            )
            padded = np.zeros((1, 1, 16, channels), np.float32)
            padded[:, :, : narrow.out_channels] = taps(wide.weight)
            self.convolve(self.conv(padded, wide.bias), hidden.view(), adapted.view(), target)
            own = adapted
        result = self.feature(target, channels, halo=1)
        self.call("fuse", own.view(), skip.view(), other, result.view(), channels, target, target)
        return result

    def last_stage(self, model: ExactUltraSeg, source: Feature, skip: Feature) -> None:
        """The decoder stage at half size, the head, and the last resize."""
        stage, size = model.decoder1, self.size
        mixed = self.feature(size // 4, 8)
        conv = self.conv(beside(taps(stage.block.weight), 1), stage.block.bias.repeat(2))
        source, target = source.view(-1, -1, 2), mixed.view(0, 0, 2)
        stats = self.convolve(conv, source, target, size // 4, size // 8, stats=True)
        scale, shift = self.norm(stage.norm, stats, size * size // 32, np.tile(np.arange(8), 2))
        places = [*range(stage.heads), 2]  # region, boundary, head; the skip's head is the fourth
        weight, bias, last = np.zeros((1, 1, 8, 16)), np.zeros(16), np.zeros((1, 1, 8, 16))
        weight[..., places], bias[places] = taps(stage.gates.weight), stage.gates.bias
        last[..., 3:4] = taps(stage.skip.weight)
        half, table = zeros(size // 2, size // 2), corners(size // 4, size // 2)
        line, gates = zeros(4 * size), zeros(8 * size)
        heads = self.conv(weight, bias), self.conv(last, np.zeros(16))
        self.call("finish", mixed.view(), skip.view(), size // 2, size // 2, scale, shift, table, table, *heads, self.gates(stage),
                  ctypes.c_float(float(stage.bias)), line, gates, half)  # fmt: skip
        self.logits, table = zeros(size, size), corners(size // 2, size)
        self.call("resize_plane", half, size // 2, self.logits, size, size, table, table, line)
