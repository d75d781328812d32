"""Generates colonoscopy-like frames with exact polyp masks: no patient, no download, any number.

A frame is made in four steps:

1. `_sample_scene` draws what is in the bowel: folds, vessels, polyps and things that resemble them.
2. `_paint` turns it into maps of light, blood, bile and height.
3. `_develop` makes colour of the maps: blood and bile absorb the modality's light (Beer-Lambert),
   so that polyps and vessels change their contrast with the modality, as they do in the clinic.
4. `_photograph` adds the centre's camera: lamp, white balance, blur, grain, field of view.

Lengths are in half image widths at every size: a frame spans [-1, 1] in x (right) and y (down).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm

from ultraseg_lib.choices import check_choice
from ultraseg_lib.paths import whole_folder

# RGB rows: colour of bloodless tissue, absorption per unit of blood, absorption per unit of bile.
_RESPONSE = {
    "WLI": ((1.04, 0.97, 0.92), (0.20, 0.86, 1.00), (0.06, 0.30, 1.15)),
    "NBI": ((0.82, 1.00, 0.92), (0.48, 0.66, 0.80), (-0.10, 0.75, 0.90)),
    "BLI": ((0.80, 0.97, 1.08), (0.54, 0.62, 0.52), (0.05, 0.35, 0.90)),
    "LCI": ((1.10, 0.98, 1.02), (0.10, 0.80, 0.62), (0.02, 0.20, 0.80)),
    "FICE": ((1.00, 1.00, 0.86), (0.56, 0.46, 0.54), (0.25, 0.10, 0.70)),
}
MODALITIES = tuple(_RESPONSE)
_MODALITY_SHARE = (0.60, 0.14, 0.08, 0.10, 0.08)  # white light is what endoscopists use most


@dataclass(frozen=True)
class _Camera:
    shape: str  # outline of the field of view
    cropped: float  # share of frames cropped so far that no outline shows
    blur: float  # standard deviation, in pixels of a 256-pixel frame
    grain: float  # standard deviation of the noise; full scale is 1
    lamp: tuple[float, float]  # where the lamp points
    falloff: float  # light lost one half-width away from there
    balance: tuple[float, float, float]  # white balance, RGB
    exposure: float


_CAMERAS = {
    "center_1": _Camera("octagon", 0.1, 0.5, 0.010, (-0.1, 0.1), 0.22, (1.0, 0.97, 0.96), 1.25),
    "center_2": _Camera("circle", 0.1, 1.0, 0.020, (0.25, -0.2), 0.32, (1.03, 1.0, 0.82), 1.40),
    "center_3": _Camera("rectangle", 0.4, 0.7, 0.014, (-0.3, -0.3), 0.28, (0.93, 0.97, 1.06), 1.20),
    "center_4": _Camera("circle", 0.2, 1.3, 0.030, (0.3, 0.3), 0.42, (1.08, 0.94, 0.90), 1.05),
}
CENTERS = ("center_1", "center_2", "center_3")
UNSEEN_CENTER = "center_4"  # never drawn: for tests on a center that no model was trained on
_CENTER_SHARE = (0.5, 0.3, 0.2)


@dataclass(frozen=True)
class _Kind:
    """How a sort of lump looks; pairs are (low, high), but `blood` is (mean, deviation)."""

    share: float
    area: float  # median share of the image, before the field of view cuts it
    spread: float  # deviation of the logarithm of the area
    lobes: str
    height: tuple[float, float]  # in units of the lump's radius
    steepness: tuple[float, float]  # 0.5: a sphere, vertical at the rim; 2: runs out into the wall
    softness: tuple[float, float]  # width of the border in which the colour blends
    blood: tuple[float, float]  # relative to the mucosa: more is redder
    bile: tuple[float, float]
    texture: tuple[float, float]
    solid: bool = False  # stands in front of the wall: lit as its foot is, and casts a shadow


_POLYPS = {
    "sessile": _Kind(
        0.46, 0.120, 0.9, "one", (0.3, 0.6), (0.6, 0.9), (0.05, 0.3), (0.26, 0.16),
        (-0.05, 0.05), (0.02, 0.12), True,
    ),
    "flat": _Kind(
        0.24, 0.100, 0.8, "one", (0.08, 0.20), (0.5, 0.9), (0.10, 0.35), (0.30, 0.14),
        (-0.05, 0.05), (0.04, 0.14),
    ),
    "lobed": _Kind(
        0.16, 0.140, 0.8, "many", (0.4, 0.7), (0.5, 0.8), (0.05, 0.2), (0.26, 0.16),
        (-0.05, 0.1), (0.05, 0.16), True,
    ),
    "pedunculated": _Kind(
        0.14, 0.120, 0.7, "stalk", (0.4, 0.7), (0.5, 0.7), (0.05, 0.2), (0.26, 0.16),
        (-0.05, 0.05), (0.02, 0.12), True,
    ),
}  # fmt: skip
_LOOKALIKES = {
    "bulge": _Kind(
        0.50, 0.060, 0.8, "one", (0.2, 0.45), (1.4, 2.2), (0.7, 1.0), (0.03, 0.08),
        (0.0, 0.0), (0.0, 0.03),
    ),
    "patch": _Kind(
        0.20, 0.030, 0.8, "many", (0.0, 0.0), (1.0, 1.0), (0.6, 0.9), (0.18, 0.08),
        (0.0, 0.0), (0.05, 0.15),
    ),
    "residue": _Kind(
        0.30, 0.007, 0.9, "many", (0.1, 0.4), (0.6, 1.0), (0.1, 0.3), (-0.1, 0.1),
        (0.3, 0.9), (0.1, 0.3), True,
    ),
}  # fmt: skip
_DRAWN_EVENLY = ("height", "steepness", "softness", "bile", "texture")
_COUNT_SHARE = (0.06, 0.80, 0.10, 0.04)  # frames with none, one, two, three polyps
_AREA_RANGE = (0.004, 0.35)  # of a polyp

_EXTENT = 1.6  # noise covers [-_EXTENT, _EXTENT] and is mirrored beyond
_RENDER_SIZE = 256  # smaller frames are drawn at this size, then shrunk: the same picture
_MIN_SIZE = 32
_STILL, _VIDEO, _GRAIN = 1, 2, 3  # name the random streams


@dataclass(frozen=True)
class SyntheticFrame:
    """One generated frame and how it came about.

    `image` is (H, W, 3) uint8 RGB; `mask` is (H, W) uint8, 255 exactly on the polyps, else 0;
    `shapes` names the shape of each polyp; frames of one video share their `sequence`.
    """

    image: np.ndarray
    mask: np.ndarray
    modality: str
    center: str
    sequence: str
    shapes: tuple[str, ...]


@dataclass(frozen=True)
class _Lump:
    """Something that rises from the wall, or only tints it."""

    name: str
    kind: _Kind
    x: float
    y: float
    radius: float
    lobes: np.ndarray  # (n, 3) float32: offset in x and y, radius, in units of `radius`
    wobble: np.ndarray  # (3, 2) float32: size and phase of the outline's harmonics 2, 3, 5
    height: float
    steepness: float
    softness: float
    blood: float
    bile: float
    texture: float
    behind: np.ndarray | None  # the fold that hides a part of it


@dataclass(frozen=True)
class _Scene:
    lumen: tuple[float, float]
    darkness: float  # how far from the lumen the light reaches half its strength
    folds: np.ndarray  # (n, 7) float32: x, y, radius, where it faces, strength, ovalness, tilt
    warp: np.ndarray  # (64, 64, 2) float32: bends circles into folds
    clouds: np.ndarray  # (96, 96, 3) float32: slow changes of blood, bile, height
    pits: np.ndarray  # (224, 224) float32: texture of the mucosa
    vessels: list[np.ndarray]  # a generation each: (branches, points, 2)
    vessel_blood: float
    blood: float
    bile: float
    exposure: float
    crop: float
    bubbles: np.ndarray  # (n, 3): x, y, radius
    lumps: tuple[_Lump, ...] = ()
    glints: np.ndarray | None = None  # (n, 5): x, y, half axes, angle


@dataclass(frozen=True)
class _View:
    """Where the camera looks: turns the pixels of a square frame into places and back."""

    size: int
    x: float = 0.0
    y: float = 0.0
    zoom: float = 1.0

    @property
    def pixel(self) -> float:
        return 2 / (self.size * self.zoom)

    def grids(self) -> tuple[np.ndarray, np.ndarray]:
        """x and y of every pixel, two (size, size) float32 arrays."""
        axis = (np.arange(self.size, dtype=np.float32) + 0.5) * self.pixel - 1 / self.zoom
        return tuple(np.meshgrid(axis + self.x, axis + self.y))

    def to_pixels(self, x, y) -> np.ndarray:
        """Sixteenths of a pixel, int32, last axis (column, row), as OpenCV draws with shift=4."""
        places = np.stack([np.subtract(x, self.x), np.subtract(y, self.y)], axis=-1)
        return np.round(((places * self.zoom + 1) * self.size - 1) * 8).astype(np.int32)

    def resample(self, texture: np.ndarray) -> np.ndarray:
        """The part of a scene-wide texture that the frame shows."""
        step = texture.shape[0] / (2 * _EXTENT)
        corner = (
            np.array([self.x, self.y]) - 1 / self.zoom + _EXTENT + self.pixel / 2
        ) * step - 0.5
        matrix = np.column_stack([np.eye(2) * step * self.pixel, corner])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        border = cv2.BORDER_REFLECT_101
        return cv2.warpAffine(texture, matrix, (self.size,) * 2, flags=flags, borderMode=border)


# ------------------------------------------------------------------ 1. what is in the bowel


def _noise(rng: np.random.Generator, cells: tuple[int, ...], size: int, channels: int = 1):
    """Smooth noise of about unit deviation; each entry of `cells` adds a finer, fainter octave."""
    total = np.zeros((size, size, channels), np.float32)
    for octave, n in enumerate(cells):
        grid = rng.standard_normal((n, n, channels), dtype=np.float32) * np.float32(0.6**octave)
        total += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC).reshape(total.shape)
    return total.squeeze()


def _sample_folds(rng: np.random.Generator, lumen: tuple[float, float]) -> np.ndarray:
    """Crescents along a bowel that bends: each has its own centre and faces its own way."""
    radii = [rng.uniform(0.16, 0.30)]
    while radii[-1] < 1.9:
        radii.append(radii[-1] * rng.uniform(1.35, 1.9))
    n = len(radii)
    centres = lumen + np.outer(radii, rng.normal(0, 0.35, 2)) + rng.normal(0, 0.05, (n, 2))
    facing = np.arctan2(-lumen[1], -lumen[0]) + rng.normal(0, 1.4, n)
    strength = rng.uniform(0.3, 1.0, n) * rng.uniform(0.7, 1.1)
    oval = np.column_stack([rng.uniform(0, 0.16, n), rng.uniform(0, 2 * np.pi, n)])
    return np.column_stack([centres, radii, facing, strength, oval]).astype(np.float32)


def _sample_vessels(rng: np.random.Generator) -> list[np.ndarray]:
    """Three generations of wandering branches; each starts on one of the generation before."""
    generations = []
    start, heading = rng.uniform(-1.3, 1.3, (6, 2)), rng.uniform(0, 2 * np.pi, 6)
    for children, step in ((4, 0.07), (2, 0.05), (0, 0.035)):
        angle = heading[:, None] + rng.normal(0, 0.3, (len(start), 14)).cumsum(axis=1)
        path = start[:, None] + step * np.stack([np.cos(angle), np.sin(angle)], -1).cumsum(axis=1)
        generations.append(path)
        rows, at = np.arange(len(start))[:, None], rng.integers(1, 14, (len(start), children))
        fork = rng.choice([-1, 1], at.shape) * rng.uniform(0.4, 1.1, at.shape)
        start, heading = path[rows, at].reshape(-1, 2), (angle[rows, at] + fork).ravel()
    return generations


def _sample_lobes(rng: np.random.Generator, style: str) -> np.ndarray:
    lobes = [[0.0, 0.0, 1.0]]
    if style == "many":
        n = rng.integers(4, 8)
        angle, reach = rng.uniform(0, 2 * np.pi, n), rng.uniform(0.3, 0.65, n)
        around = [reach * np.cos(angle), reach * np.sin(angle), rng.uniform(0.35, 0.6, n)]
        lobes = [[0.0, 0.0, 0.6], *np.column_stack(around)]
    if style == "stalk":
        reach = np.linspace(0.8, rng.uniform(1.4, 2.0), 9)
        angle = rng.uniform(0, 2 * np.pi) + rng.normal(0, 0.4) * (reach - 0.8)
        stalk = [reach * np.cos(angle), reach * np.sin(angle), np.linspace(0.32, 0.42, 9)]
        lobes += [*np.column_stack(stalk)]
    return np.array(lobes, np.float32)


def _sample_place(rng: np.random.Generator, radius: float, scene: _Scene) -> tuple[float, float]:
    """A place in view, off the lumen and clear of the scene's lumps if twenty tries find one."""
    for _ in range(20):
        angle, reach = rng.uniform(0, 2 * np.pi), 0.78 * np.sqrt(rng.uniform())
        x, y = float(reach * np.cos(angle)), float(reach * np.sin(angle))
        gaps = [np.hypot(x - o.x, y - o.y) - 1.15 * (radius + o.radius) for o in scene.lumps]
        gaps.append(np.hypot(x - scene.lumen[0], y - scene.lumen[1]) - 0.25 - 0.5 * radius)
        if min(gaps) > 0:
            break
    return x, y


def _sample_cover(rng: np.random.Generator, x: float, y: float, radius: float, scene: _Scene):
    """Every other time, a fold whose rim crosses the outer part of the lump; else None."""
    for fold in scene.folds:
        distance, strength = _fold_distance(fold, x, y)
        crosses = 0.1 * radius < -distance * fold[2] < 0.8 * radius
        if crosses and strength > 0.35 and rng.uniform() < 0.5:
            return fold
    return None


def _sample_lump(rng: np.random.Generator, kinds: dict[str, _Kind], scene: _Scene) -> _Lump:
    name = rng.choice(list(kinds), p=[kind.share for kind in kinds.values()])
    kind = kinds[name]
    area = np.clip(kind.area * np.exp(rng.normal(0, kind.spread)), *_AREA_RANGE)
    radius = float(np.sqrt(4 * area / np.pi))
    x, y = _sample_place(rng, radius, scene)
    wobble = np.column_stack([rng.uniform(0, (0.2, 0.08, 0.06)), rng.uniform(0, 2 * np.pi, 3)])
    return _Lump(
        name=str(name),
        kind=kind,
        x=x,
        y=y,
        radius=radius,
        lobes=_sample_lobes(rng, kind.lobes),
        wobble=wobble.astype(np.float32),
        blood=rng.normal(*kind.blood),
        **{name: rng.uniform(*getattr(kind, name)) for name in _DRAWN_EVENLY},
        behind=_sample_cover(rng, x, y, radius, scene) if kinds is _POLYPS else None,
    )


def _sample_glints(rng: np.random.Generator, lumps: tuple[_Lump, ...]) -> np.ndarray:
    """Wet spots that mirror the lamp: clusters on the wall and a few on the crest of each lump."""
    centres = rng.uniform(-1, 1, (rng.integers(5, 14), 2))
    members = rng.poisson(5, len(centres)) + 1
    spots = [np.repeat(centres, members, axis=0) + rng.normal(0, 0.08, (members.sum(), 2))]
    for lump in lumps:
        crest = rng.normal(0, 0.3 * lump.radius, (rng.integers(0, 6), 2))
        spots.append(crest + np.array([lump.x, lump.y]))
    places = np.concatenate(spots)
    long = np.exp(rng.normal(np.log(0.011), 0.65, len(places)))
    angle = rng.normal(rng.uniform(0, np.pi), 0.5, len(places))
    return np.column_stack([places, long, long * rng.uniform(0.2, 0.7, len(places)), angle])


def _sample_bubbles(rng: np.random.Generator) -> np.ndarray:
    n = rng.integers(4, 18) if rng.uniform() < 0.25 else 0
    places = rng.uniform(-0.7, 0.7, 2) + rng.normal(0, 0.09, (n, 2))
    return np.column_stack([places, np.exp(rng.normal(np.log(0.022), 0.4, n))])


def _sample_scene(rng: np.random.Generator, n_polyps: int | None = None) -> _Scene:
    """Draws all that a frame shows, whichever modality and centre record it."""
    angle, reach = rng.uniform(0, 2 * np.pi), rng.choice([0.35, 0.75, 1.3], p=[0.4, 0.35, 0.25])
    reach *= rng.uniform(0.6, 1.2)
    lumen = (float(reach * np.cos(angle)), float(reach * np.sin(angle)))
    scene = _Scene(
        lumen=lumen,
        darkness=rng.uniform(0.25, 0.6),
        folds=_sample_folds(rng, lumen),
        warp=_noise(rng, (4, 8), 64, 2) * np.float32(0.07),
        clouds=_noise(rng, (5, 10, 20, 40), 96, 3),
        pits=_noise(rng, (56, 112), 224),
        vessels=_sample_vessels(rng),
        vessel_blood=rng.uniform(0.05, 0.6),
        blood=rng.uniform(0.55, 1.0),
        bile=rng.uniform(0.0, 0.25),
        exposure=rng.uniform(0.85, 1.2),
        crop=rng.uniform(),
        bubbles=_sample_bubbles(rng),
    )
    if n_polyps is None:
        n_polyps = int(rng.choice(len(_COUNT_SHARE), p=_COUNT_SHARE))
    for kinds in [_POLYPS] * n_polyps + [_LOOKALIKES] * rng.integers(0, 4):
        scene = replace(scene, lumps=(*scene.lumps, _sample_lump(rng, kinds, scene)))
    return replace(scene, glints=_sample_glints(rng, scene.lumps))


# ------------------------------------------------------------------ 2. maps of light and tissue


def _fold_distance(fold: np.ndarray, x, y):
    """Distance outward from a fold's rim, relative to its radius, and how much it stands out."""
    fold_x, fold_y, radius, facing, strength, oval, tilt = fold
    dx, dy = x - fold_x, y - fold_y
    r = np.sqrt(dx * dx + dy * dy) + np.float32(1e-3)
    ux, uy = dx / r, dy / r
    bend = (ux * ux - uy * uy) * np.cos(tilt) + 2 * ux * uy * np.sin(tilt)
    rim = radius * (1 + oval * bend)
    crescent = np.clip(0.55 + 0.75 * (ux * np.cos(facing) + uy * np.sin(facing)), 0, 1)
    return (r - rim) / rim, strength * crescent


def _paint_wall(scene: _Scene, view: _View) -> dict[str, np.ndarray]:
    """Bent coordinates and light of the bare wall, drawn at half size: nothing there is sharper."""
    coarse = replace(view, size=view.size // 2)
    x, y = coarse.grids()
    bend = coarse.resample(scene.warp)
    x, y = x + bend[..., 0], y + bend[..., 1]
    wall = {"bent_x": x, "bent_y": y, "light": _light_wall(scene, coarse, x, y)}
    return {name: cv2.resize(values, (view.size,) * 2) for name, values in wall.items()}


def _light_wall(scene: _Scene, view: _View, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Light on the bare wall: dark in the depth; each fold has a lit face and shadow behind it."""
    r = np.sqrt((x - scene.lumen[0]) ** 2 + (y - scene.lumen[1]) ** 2)
    light = (r + 0.02) / (r + scene.darkness)
    light *= 0.35 + light
    for fold in scene.folds:
        distance, strength = _fold_distance(fold, x, y)
        edge = np.clip(distance * (fold[2] / (1.5 * view.pixel)) + 0.5, 0, 1)
        face = 0.45 * np.exp(-10 * np.abs(distance - 0.03)) - 0.16 * np.exp(
            -((distance - 0.35) ** 2) * 30
        )
        shadow = -0.6 * np.exp(np.minimum(distance, 0) * 6)
        light *= 1 + strength * (shadow + edge * (face - shadow))
    return light


def _draw_vessels(scene: _Scene, view: _View) -> np.ndarray:
    """Ink of the vessels, (size, size) float32, 0 to 1."""
    canvas = np.zeros((view.size, view.size), np.uint8)
    for paths, width, ink in zip(scene.vessels, (2.0, 1.3, 0.8), (255, 190, 130), strict=True):
        points = view.to_pixels(paths[..., 0], paths[..., 1])
        thickness = max(1, round(width * view.size / 256))
        cv2.polylines(canvas, list(points), False, ink, thickness, cv2.LINE_AA, shift=4)
    return cv2.blur(canvas, (2, 2)).astype(np.float32) / 255


def _lump_shape(lump: _Lump, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Relative radius (1 on the outline) and height, in units of the lump's radius."""
    u, v = (x - lump.x) / lump.radius, (y - lump.y) / lump.radius
    angle = cv2.phase(u, v)
    stretch = 1
    for (size, phase), order in zip(lump.wobble, (2, 3, 5), strict=True):
        stretch = stretch + size * np.cos(order * angle + phase)
    u, v = u / stretch, v / stretch
    nearest, height = np.full_like(u, 9), np.zeros_like(u)
    for lobe_x, lobe_y, radius in lump.lobes:
        squared = ((u - lobe_x) ** 2 + (v - lobe_y) ** 2) / radius**2
        nearest = np.minimum(nearest, squared)
        height = np.maximum(height, radius * np.maximum(1 - squared, 0) ** lump.steepness)
    return np.sqrt(nearest), height


def _window(lump: _Lump, view: _View) -> tuple[slice, slice]:
    """Rows and columns that a lump and its shadow can touch."""
    reach = np.hypot(lump.lobes[:, 0], lump.lobes[:, 1]) + lump.lobes[:, 2]
    reach = (1.3 * float(reach.max()) + 0.3) * lump.radius
    ends = view.to_pixels(lump.x + np.array([-reach, reach]), lump.y + np.array([-reach, reach]))
    (left, top), (right, bottom) = np.clip(ends // 16, 0, view.size)
    return slice(top, bottom), slice(left, right)


def _stamp(lump: _Lump, maps: dict[str, np.ndarray], view: _View, lamp) -> None:
    """Adds a lump to the maps, in place; a polyp's support goes to `maps["mask"]`."""
    window = _window(lump, view)
    m = {name: values[window] for name, values in maps.items()}
    if m["light"].size == 0:
        return
    rho, height = _lump_shape(lump, m["x"], m["y"])
    visible = np.ones_like(rho)
    if lump.behind is not None:
        inside = -_fold_distance(lump.behind, m["bent_x"], m["bent_y"])[0]
        visible = (inside > 0).astype(np.float32)
        height *= np.clip(inside * 2.5, 0, 1)  # a cliff there would show as a black line
    weight = np.clip((1 - rho) / max(lump.softness, 2 * view.pixel / lump.radius), 0, 1) * visible
    if lump.kind.solid:
        _light_solid(lump, m, rho, height, visible, lamp)
    m["light"] *= 1 + 0.5 * lump.height * height * visible  # what rises is nearer to the lamp
    m["vessels"] *= 1 - 0.8 * weight * (lump.name != "bulge")
    m["height"] += height * visible * (lump.height * lump.radius)
    m["blood"] += weight * (lump.blood + lump.texture * m["pits"])
    m["bile"] += weight * lump.bile
    if lump.name in _POLYPS:
        m["mask"] |= (rho < 1) & (visible > 0)


def _light_solid(lump: _Lump, m: dict, rho, height, visible, lamp) -> None:
    """Lights a lump as its foot is lit, not as the wall behind it, and drops its shadow."""
    foot = m["light"][rho < 0.8]
    level = max(float(foot.mean()) if foot.size else 0.5, 0.35)
    away = (lump.x - lamp[0]) * (m["x"] - lump.x) + (lump.y - lamp[1]) * (m["y"] - lump.y)
    side = 0.12 + 0.3 * np.clip(away / lump.radius, 0, 1)
    outside = np.maximum(rho - 1, 0)
    m["light"] *= 1 - side * np.exp(outside * -6) * np.minimum(outside * 20, 1) * visible
    weight = np.clip((1 - rho) * 6, 0, 1) * visible
    m["light"] += weight * 0.97 * (level - m["light"])


def _shade(height: np.ndarray, x: np.ndarray, y: np.ndarray, view: _View, lamp) -> np.ndarray:
    """Lambert's law for a lamp above the wall, relative to a level wall."""
    scale = 1 / (8 * view.pixel)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3, scale=scale)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3, scale=scale)
    toward = (x - lamp[0]) * slope_x + (y - lamp[1]) * slope_y
    shade = (1 + 0.6 * toward) / np.sqrt(1 + 0.6 * (slope_x**2 + slope_y**2))
    return np.clip(shade, 0.48, 1.4)


def _paint(scene: _Scene, view: _View, lamp: tuple[float, float]) -> dict[str, np.ndarray]:
    """Maps of the scene, each (size, size) float32, and the boolean polyp mask."""
    x, y = view.grids()
    clouds, pits = view.resample(scene.clouds), view.resample(scene.pits)
    maps = {"x": x, "y": y, "pits": pits, **_paint_wall(scene, view)}
    maps["vessels"] = _draw_vessels(scene, view)
    maps["blood"] = scene.blood + 0.08 * clouds[..., 0] + 0.03 * pits
    maps["bile"] = scene.bile + 0.06 * clouds[..., 1]
    maps["height"] = 0.012 * clouds[..., 2] + 0.0008 * pits
    maps["mask"] = np.zeros(x.shape, bool)
    for lump in reversed(scene.lumps):  # polyps were drawn first and go on top
        _stamp(lump, maps, view, lamp)
    maps["blood"] += scene.vessel_blood * maps["vessels"]
    maps["light"] *= _shade(maps["height"], x, y, view, lamp)
    return maps


# ------------------------------------------------------------------ 3. colour


def _draw_shine(scene: _Scene, view: _View, light: np.ndarray) -> np.ndarray:
    """Glints where the wall is well lit and rims of bubbles; (size, size) float32, 0 to 1."""
    canvas = np.zeros(light.shape, np.uint8)
    unit = 16 / view.pixel
    spots = view.to_pixels(scene.glints[:, 0], scene.glints[:, 1])
    for spot, (long, short, angle) in zip(spots, scene.glints[:, 2:], strict=True):
        column, row = spot // 16
        if 0 <= row < view.size and 0 <= column < view.size and light[row, column] > 0.45:
            axes, tilt = (round(long * unit), round(short * unit)), np.degrees(angle)
            cv2.ellipse(canvas, spot, axes, tilt, 0, 360, 255, -1, cv2.LINE_AA, shift=4)
    for x, y, radius in scene.bubbles:
        ring, glint = view.to_pixels(x, y), view.to_pixels(x - radius / 3, y - radius / 3)
        cv2.circle(canvas, ring, round(radius * unit), 90, 1, cv2.LINE_AA, shift=4)
        cv2.circle(canvas, glint, round(radius * unit / 4), 230, -1, cv2.LINE_AA, shift=4)
    return cv2.GaussianBlur(canvas, (3, 3), 0).astype(np.float32) / 255


def _develop(maps: dict[str, np.ndarray], modality: str) -> np.ndarray:
    """Colour of the lit tissue, (H, W, 3) float32 RGB, full scale 1."""
    white, blood, bile = np.array(_RESPONSE[modality], np.float32)
    channels = [
        cv2.exp(-maps["blood"] * blood[c] - maps["bile"] * bile[c]) * (white[c] * maps["light"])
        for c in range(3)
    ]
    return cv2.merge(channels)


# ------------------------------------------------------------------ 4. the camera


@lru_cache(maxsize=16)
def _field_of_view(shape: str, size: int) -> np.ndarray:
    """Weight of each pixel, (size, size, 1) float32, 0 outside the field of view, 1 inside."""
    x, y = (np.abs(grid) for grid in _View(size).grids())
    margin = {
        "octagon": np.minimum(0.98 - np.maximum(x, y), (1.5 - x - y) * np.sqrt(0.5)),
        "circle": 1.03 - np.hypot(x, y),
        "rectangle": 0.26 - np.hypot(np.maximum(x - 0.71, 0), np.maximum(y - 0.66, 0)),
        "full": np.ones_like(x),
    }[shape]
    return np.clip(margin * (size / 4), 0, 1).astype(np.float32)[..., None]


@lru_cache(maxsize=16)
def _lens(center: str, size: int) -> np.ndarray:
    """Gain of each pixel and channel, (size, size, 3) float32: lamp and white balance."""
    camera, (x, y) = _CAMERAS[center], _View(size).grids()
    lit = 1 - camera.falloff * ((x - camera.lamp[0]) ** 2 + (y - camera.lamp[1]) ** 2)
    gain = np.array(camera.balance, np.float32) * np.float32(camera.exposure)
    return np.maximum(lit, 0.15)[..., None] * gain


@lru_cache(maxsize=4)
def _film(size: int) -> np.ndarray:
    """A sheet of unit noise; each frame takes a window of it, which is cheaper than new noise."""
    return np.random.default_rng(0).standard_normal((2 * size, 2 * size, 3), dtype=np.float32)


def _photograph(colour: np.ndarray, center: str, field: np.ndarray, rng) -> np.ndarray:
    """What the centre's camera records of the coloured light: (H, W, 3) uint8 RGB."""
    camera, size = _CAMERAS[center], colour.shape[0]
    image = cv2.GaussianBlur(colour * _lens(center, size), (0, 0), camera.blur * size / 256)
    image = image - 0.25 * np.maximum(image - 0.75, 0)  # film shoulder: whites come late
    row, column = rng.integers(0, size, 2)
    image += camera.grain * _film(size)[row : row + size, column : column + size]
    image *= field * 255
    return np.clip(image, 0, 255).astype(np.uint8)


def _record(scene: _Scene, view: _View, modality: str, center: str, rng):
    """Image (H, W, 3) uint8 and mask (H, W) uint8 of a scene, as one centre would record it."""
    camera = _CAMERAS[center]
    field = _field_of_view("full" if scene.crop < camera.cropped else camera.shape, view.size)
    lamp = (camera.lamp[0] / view.zoom + view.x, camera.lamp[1] / view.zoom + view.y)
    maps = _paint(scene, view, lamp)
    colour = _develop(maps, modality) * np.float32(scene.exposure)
    colour += _draw_shine(scene, view, maps["light"])[..., None] * (1.2 - colour)
    mask = (maps["mask"] & (field[..., 0] > 0.5)).astype(np.uint8) * 255
    return _photograph(colour, center, field, rng), mask


def _make_frame(scene: _Scene, view: _View, size: int, modality, center, sequence, rng):
    image, mask = _record(scene, view, modality, center, rng)
    if size != view.size:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        mask = cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA)
        mask = np.where(mask > 127, 255, 0).astype(np.uint8)
    shapes = tuple(lump.name for lump in scene.lumps if lump.name in _POLYPS)
    return SyntheticFrame(image, mask, modality, center, sequence, shapes)


# ------------------------------------------------------------------ what others call


def _check_at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise ValueError(f"{name} is {value}; valid values: whole numbers from {least} up")


def generate_frame(
    seed: int, index: int, size: int = 256, modality: str | None = None, center: str | None = None
) -> SyntheticFrame:
    """Generates frame `index` of the endless set `seed`: the same arguments, the same bytes.

    A modality or center that is None is drawn, as unevenly as real sets have them; one that is
    given shows the same scene in that light or through that camera. Raises ValueError on a size
    below 32, a negative seed or index, or an unknown modality or center.
    """
    _check_at_least(0, seed=seed, index=index)
    _check_at_least(_MIN_SIZE, size=size)
    rng = np.random.default_rng([seed, index, _STILL])
    drawn = (rng.choice(MODALITIES, p=_MODALITY_SHARE), rng.choice(CENTERS, p=_CENTER_SHARE))
    modality, center = modality or str(drawn[0]), center or str(drawn[1])
    check_choice("modality", modality, MODALITIES)
    check_choice("center", center, (*CENTERS, UNSEEN_CENTER))
    scene, view = _sample_scene(rng), _View(max(size, _RENDER_SIZE))
    grain = np.random.default_rng([seed, index, _GRAIN])
    sequence = f"synthetic_{seed}_{index:05d}"
    return _make_frame(scene, view, size, modality, center, sequence, grain)


def synthetic_video(seed: int, frames: int, size: int = 256) -> Iterator[SyntheticFrame]:
    """Yields the frames of a camera that glides back and forth past one polyp, in white light.

    One pass takes 250 frames. Raises ValueError on a size below 32 or a negative seed or count.
    """
    _check_at_least(0, seed=seed, frames=frames)
    _check_at_least(_MIN_SIZE, size=size)
    return _glide(seed, frames, size)


def _glide(seed: int, frames: int, size: int) -> Iterator[SyntheticFrame]:
    scene = _sample_scene(np.random.default_rng([seed, _VIDEO]), n_polyps=1)
    polyp, grain = scene.lumps[0], np.random.default_rng([seed, _VIDEO, _GRAIN])
    for phase in np.arange(frames) * (2 * np.pi / 250):
        x, y = 0.5 * polyp.x + 0.45 * np.sin(phase), 0.5 * polyp.y + 0.25 * np.sin(2 * phase)
        zoom = float(1.15 - 0.15 * np.cos(phase))
        view = _View(max(size, _RENDER_SIZE), float(x), float(y), zoom)
        yield _make_frame(scene, view, size, "WLI", "center_1", f"synthetic_video_{seed}", grain)


def write_dataset(
    folder: Path, count: int, size: int, seed: int, center: str | None = None
) -> pd.DataFrame:
    """Writes `images/`, `masks/` and `table.csv` of `count` frames; the folder appears complete.

    `center`: of all frames; None draws one a frame. The table has the columns dataset, image_id,
    image, mask, center, modality and sequence; image and mask are paths relative to `folder`.
    Raises ValueError on a negative count or seed or a size below 32, FileExistsError if `folder`
    holds anything, and OSError where the disk is full.
    """
    _check_at_least(0, count=count, seed=seed)
    _check_at_least(_MIN_SIZE, size=size)
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: remove it or name another folder")
    with whole_folder(folder) as temporary:
        return _write_frames(temporary, count, size, seed, center)


def _write_frames(
    folder: Path, count: int, size: int, seed: int, center: str | None
) -> pd.DataFrame:
    for name in ("images", "masks"):
        (folder / name).mkdir()
    rows = []
    for index in tqdm(range(count), desc="Synthetic", unit="image", disable=None):
        frame = generate_frame(seed, index, size, center=center)
        image_id = f"synthetic_{index:05d}"
        image, mask = f"images/{image_id}.png", f"masks/{image_id}.png"
        for path, pixels in (
            (image, cv2.cvtColor(frame.image, cv2.COLOR_RGB2BGR)),
            (mask, frame.mask),
        ):  # not by OpenCV: it says nothing of a full disk
            (folder / path).write_bytes(cv2.imencode(".png", pixels)[1])
        labels = (frame.center, frame.modality, frame.sequence)
        rows.append(("Synthetic", image_id, image, mask, *labels))
    columns = ["dataset", "image_id", "image", "mask", "center", "modality", "sequence"]
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(folder / "table.csv", index=False)
    return table
