"""Our own kernels (`native.cpp`): compiling them for this processor, and how they see memory.

`plan.Plan` runs a network with them. They are optional: `problem` says why they are not here.
They want AVX2 at least (processors of the last ten years); elsewhere other backends are faster.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import Tensor

from ultraseg_lib.paths import outputs_dir, whole_file
from ultraseg_lib.provenance import cpu_model

SOURCE = Path(__file__).with_name("native.cpp")


class View(ctypes.Structure):
    """A feature in memory: its first pixel, and the distance of rows and of pixels in floats."""

    _fields_ = (("at", ctypes.c_void_p), ("rs", ctypes.c_long), ("ps", ctypes.c_long))


class Conv(ctypes.Structure):
    """A convolution's weights and how it walks."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("out", "rows", "run", "step")),
        *((name, ctypes.c_int) for name in ("activation", "half", "pairs")),
    )


class Gates(ctypes.Structure):
    """The region and the boundary head of a decoder stage, and the weights of both gates."""

    _fields_ = (
        ("weight", ctypes.c_float * 512 * 2),
        *((name, ctypes.c_float * 2) for name in ("bias", "own", "other")),
    )


# --- compiling ------------------------------------------------------------------------------------


def compiler() -> str | None:
    """Return the C++ compiler: ``CXX``, g++ or clang++, the first that is there."""
    names = (os.environ.get("CXX"), "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def processor() -> str:
    """Return the processor's name and all its instruction sets: what compiled code may rely on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{cpu_model()} {flags}"


def build() -> ctypes.CDLL:
    """Compile the kernels for this processor, once; ``ULTRASEG_MARCH`` names another.

    Raises RuntimeError, with the compiler's words, when it fails.
    """
    march = os.environ.get("ULTRASEG_MARCH", "native")
    key = f"{SOURCE.read_text(encoding='utf-8')}{march}{processor()}{compiler()}"
    path = outputs_dir("cache") / f"native-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not path.exists():
        words = [compiler(), "-std=c++17", "-O3", "-w", f"-march={march}", "-shared", "-fPIC"]
        with whole_file(path) as temporary:
            done = subprocess.run(
                [*words, "-o", temporary, SOURCE], capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"{SOURCE.name} does not compile: {done.stderr[-500:]}")
    return ctypes.CDLL(str(path))


@lru_cache(maxsize=1)
def problem() -> str:
    """Return why the kernels cannot run here, or nothing; the first call may compile them."""
    if compiler() is None:
        return "no C++ compiler: install g++ or clang++"
    try:
        return "" if build().is_fast() else "the kernels want AVX2, which is not here"
    except (RuntimeError, OSError) as error:
        return str(error)


def has_bfloat16() -> bool:
    """Return whether the kernels are here and can multiply in bfloat16 (avx512_bf16)."""
    return not problem() and bool(build().can_half())


# --- memory ---------------------------------------------------------------------------------------


@dataclass(eq=False)
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
