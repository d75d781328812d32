"""Pictures of a case, painted pixel by pixel: outlines, error map, probability.

Painting in an array is some ten times faster than drawing with matplotlib, so that widgets answer
at once. Every function returns a new picture (S, S, 3) uint8.
"""

import cv2
import matplotlib
import numpy as np
from matplotlib.patches import Patch
from numpy.typing import NDArray

from ultraseg_lib.report.figures import PRED, TRUTH

Picture = NDArray[np.uint8]

PANEL = 320  # px, the side of a painted panel
HIT, EXTRA, LOST = "#ffffff", "#d55e00", "#56b4e9"  # told apart with any colour vision
LEGENDS = {  # overlay -> words and their colours
    "contour": {"truth": TRUTH, "prediction (dashes)": PRED},
    "error map": {"found (TP)": HIT, "painted wrongly (FP)": EXTRA, "not found (FN)": LOST},
    "probability": {"truth": TRUTH, "dark blue: P = 0, yellow: P = 1": "#ffea46"},
    "image only": {},
}
DASH = 9  # px of outline drawn, and as many left out


def legend_handles(overlay: str, truth: bool = True) -> list[Patch]:
    """Return what the colours of an overlay mean, for a legend; ``truth``: whether it is shown."""
    if overlay == "error map" and not truth:
        overlay = "contour"  # as the panels are then
    words = {k: c for k, c in LEGENDS[overlay].items() if truth or not k.startswith("truth")}
    return [Patch(fc=colour, ec="black", label=name) for name, colour in words.items()]


def rgb(colour: str) -> tuple[int, int, int]:
    """Return a colour as red, green, blue in [0, 255]."""
    red, green, blue = matplotlib.colors.to_rgb(colour)
    return round(255 * red), round(255 * green), round(255 * blue)


def enlarge(image: Picture) -> Picture:
    """Resize an image (S, S, 3) or a map (S, S), uint8, to the panel's side."""
    return cv2.resize(np.ascontiguousarray(image), (PANEL, PANEL), interpolation=cv2.INTER_LINEAR)


def paint_outline(
    picture: Picture, mask: NDArray[np.bool_], colour: str, dashed: bool = False
) -> Picture:
    """Draw the outline of a mask (S, S) on a panel, with a dark halo that keeps it visible."""
    area = (enlarge(255 * mask.astype(np.uint8)) >= 128).astype(np.uint8)
    outlines, _ = cv2.findContours(area, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    lines = [_dashes(line) for line in outlines] if dashed else [[line] for line in outlines]
    pieces = [piece for each in lines for piece in each]
    painted = picture.copy()
    for width, ink in ((4, (0, 0, 0)), (2, rgb(colour))):
        cv2.polylines(painted, pieces, not dashed, ink, width, cv2.LINE_AA)
    return painted


def _dashes(line: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    return [line[start : start + DASH] for start in range(0, len(line), 2 * DASH)]


def paint_contour(
    image: Picture, prob: NDArray[np.uint8], level: int, mask: NDArray[np.bool_] | None
) -> Picture:
    """Draw the truth (white, where given) and the prediction ``prob >= level`` (amber dashes).

    ``image`` (S, S, 3) uint8, ``prob`` (S, S) uint8, ``mask`` (S, S) bool: so for every overlay.
    """
    picture = enlarge(image)
    if mask is not None:
        picture = paint_outline(picture, mask, TRUTH)
    return paint_outline(picture, prob >= level, PRED, dashed=True)


def paint_errors(
    image: Picture, prob: NDArray[np.uint8], level: int, mask: NDArray[np.bool_] | None
) -> Picture:
    """Tint what was found, painted wrongly and not found; a contour where the truth is hidden.

    Shapes as in `paint_contour`.
    """
    if mask is None:
        return paint_contour(image, prob, level, None)
    pred = prob >= level
    picture = enlarge(image).astype(np.float32)
    kinds = ((pred & mask, HIT, 0.5), (pred & ~mask, EXTRA, 0.65), (mask & ~pred, LOST, 0.65))
    for where, colour, opacity in kinds:
        tint = enlarge(255 * where.astype(np.uint8))[..., None] / np.float32(255) * opacity
        picture += tint * (np.float32(rgb(colour)) - picture)
    return picture.astype(np.uint8)


def paint_prob(
    image: Picture, prob: NDArray[np.uint8], level: int, mask: NDArray[np.bool_] | None
) -> Picture:
    """Paint the probability, 255 stands for 1, from dark blue to yellow; shapes as in `paint_contour`."""
    cividis = (255 * matplotlib.colormaps["cividis"](np.arange(256))[:, :3]).astype(np.uint8)
    picture = cividis[enlarge(prob)]
    return picture if mask is None else paint_outline(picture, mask, TRUTH)


OVERLAYS = {
    "contour": paint_contour,
    "error map": paint_errors,
    "probability": paint_prob,
    "image only": lambda image, *_: enlarge(image),
}
