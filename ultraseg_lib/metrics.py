"""Scores of predicted masks against true masks, one value per image (section 4, Eq. 7-9).

Every function takes `(pred, mask)`, two bool arrays of one shape: (H, W) gives a scalar,
(N, H, W) gives an (N,) array. Only `pooled_dice` and `batch_pooled_dice` reduce a set of images
to one number, and their names say how. No score is ever NaN, and no image is ever dropped:

| pred  | mask  | overlap scores | distances      | boundary F | flag          |
|-------|-------|----------------|----------------|------------|---------------|
| empty | empty | 1              | 0              | 1          | –             |
| empty | some  | 0              | image diagonal | 0          | `missed`      |
| some  | empty | 0              | image diagonal | 0          | `false_alarm` |

The overlap scores are Dice, IoU, precision and recall. The image diagonal is sqrt(H² + W²)
(362.04 px at 256×256): more than any distance between two pixels of the image, so that finding
a polyp badly is never worse than missing it. Wherever a ratio is 0/0 it counts as 1 when the
two masks are equal and as 0 when they are not.

Other libraries differ on empty masks. MONAI's Dice and IoU are NaN, by default, whenever the true
mask is empty, right or wrong; its percentile Hausdorff distance is NaN when either mask is empty.
medpy's Dice of two empty masks is NaN, as are its precision without a prediction and its recall
without a polyp; its distances raise an error when either mask is empty.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

BoolArray = NDArray[np.bool_]
PerImage = np.float64 | NDArray[np.float64]
PerImageFlag = np.bool_ | NDArray[np.bool_]
Distances = tuple[NDArray[np.float64], NDArray[np.float64]]

MIN_POLYP_PX = 10  # smaller components are specks left by JPEG or resizing, not polyps
CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


# --- Counts, and the scores that are ratios of counts ---------------------------------------


class Counts(NamedTuple):
    """Pixels of each kind: polyp found, background painted, polyp missed, background kept."""

    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]
    tn: NDArray[np.int64]


def confusion(pred: BoolArray, mask: BoolArray) -> Counts:
    """Count the pixels of each image that are true or false, positive or negative.

    Args:
        pred: (H, W) or (N, H, W) bool.
        mask: the same shape, bool.

    Returns:
        `Counts(tp, fp, fn, tn)`, int64 scalars or (N,) arrays, in pixels.

    Raises:
        ValueError: the shapes differ, or an array is not bool.

    >>> counts = confusion(np.array([[True, True, False]]), np.array([[True, False, False]]))
    >>> [int(n) for n in counts]
    [1, 1, 0, 1]
    """
    _check(pred, mask)
    tp = np.count_nonzero(pred & mask, axis=(-2, -1))
    fp = np.count_nonzero(pred, axis=(-2, -1)) - tp
    fn = np.count_nonzero(mask, axis=(-2, -1)) - tp
    tn = mask.shape[-2] * mask.shape[-1] - tp - fp - fn
    return Counts(*(np.asarray(n, np.int64)[()] for n in (tp, fp, fn, tn)))


def dice_score(pred: BoolArray, mask: BoolArray) -> PerImage:
    """Measure the overlap 2 TP / (2 TP + FP + FN) of each image (Eq. 7), in [0, 1].

    Shapes, errors and empty masks: see the top of this module.

    >>> float(dice_score(np.array([[True, True, False]]), np.array([[True, False, False]])))
    0.6666666666666666
    """
    tp, fp, fn, _ = counts = confusion(pred, mask)
    return _ratio(2 * tp, 2 * tp + fp + fn, counts)


def iou_score(pred: BoolArray, mask: BoolArray) -> PerImage:
    """Measure the overlap TP / (TP + FP + FN) of each image (Eq. 8), in [0, 1]."""
    tp, fp, fn, _ = counts = confusion(pred, mask)
    return _ratio(tp, tp + fp + fn, counts)


def precision(pred: BoolArray, mask: BoolArray) -> PerImage:
    """Measure which share of the predicted pixels is polyp, TP / (TP + FP), in [0, 1]."""
    tp, fp, _, _ = counts = confusion(pred, mask)
    return _ratio(tp, tp + fp, counts)


def recall(pred: BoolArray, mask: BoolArray) -> PerImage:
    """Measure which share of the polyp pixels is predicted, TP / (TP + FN), in [0, 1]."""
    tp, _, fn, _ = counts = confusion(pred, mask)
    return _ratio(tp, tp + fn, counts)


def specificity(pred: BoolArray, mask: BoolArray) -> PerImage:
    """Measure which share of the background is left alone, TN / (TN + FP), in [0, 1].

    It is 0/0, so 1 or 0 by the rule above, only when the polyp fills the image.
    """
    _, fp, _, tn = counts = confusion(pred, mask)
    return _ratio(tn, tn + fp, counts)


def pooled_dice(pred: BoolArray, mask: BoolArray) -> float:
    """Compute one Dice over the pixels of all images together, in [0, 1].

    Large polyps dominate and a missed small one hardly shows: it is usually higher than the
    mean of `dice_score`. The code of EGE-UNet and LB-UNet reports this. 1 for no images at all.
    """
    tp, fp, fn, tn = (n.sum() for n in confusion(pred, mask))
    return float(_ratio(2 * tp, 2 * tp + fp + fn, Counts(tp, fp, fn, tn)))


def batch_pooled_dice(pred: BoolArray, mask: BoolArray, batch: int = 4, orders: int = 0) -> float:
    """Pool Dice in each batch, then take the mean over batches: the released UltraSeg's Dice.

    It depends on the batch size and on the order of the images; it is here only to stand
    beside the paper's numbers. Where neighbours in the list are frames of one video, failures share
    a batch and the list's order scores lower than others do: results take many random orders.

    Args:
        pred: (N, H, W) bool.
        mask: the same shape, bool.
        batch: images per batch, 1 or more; a smaller last batch counts as much as a full one.
        orders: of the images: 0 takes them as listed, else the mean over so many random orders.

    Returns:
        The mean, in [0, 1]; `batch=1` is the mean of `dice_score`, `batch=N` `pooled_dice`.

    Raises:
        ValueError: other shapes, no images, or a batch below 1.
    """
    _check(pred, mask)
    if mask.ndim != 3 or len(mask) == 0 or batch < 1:
        raise ValueError(f"need (N, H, W) with N > 0 and batch > 0; got {mask.shape}, {batch}.")
    counts, rng = confusion(pred, mask), np.random.default_rng(0)
    starts, listed = np.arange(0, len(mask), batch), np.arange(len(mask))
    means = []
    for order in [rng.permutation(listed) for _ in range(orders)] or [listed]:
        tp, fp, fn, tn = (np.add.reduceat(each[order], starts) for each in counts)
        means.append(_ratio(2 * tp, 2 * tp + fp + fn, Counts(tp, fp, fn, tn)).mean())
    return float(np.mean(means))


# --- Whole frames: found, missed, false alarm -----------------------------------------------


def detected(pred: BoolArray, mask: BoolArray) -> PerImageFlag:
    """Tell whether at least one polyp pixel of the image is predicted.

    False where the mask is empty, as there is nothing to detect: take the detection rate over
    the images with a polyp, where each is either `detected` or `missed`.
    """
    return confusion(pred, mask).tp > 0


def missed(pred: BoolArray, mask: BoolArray) -> PerImageFlag:
    """Tell whether the image has a polyp of which no pixel is predicted."""
    tp, _, fn, _ = confusion(pred, mask)
    return (tp == 0) & (fn > 0)


def false_alarm(pred: BoolArray, mask: BoolArray) -> PerImageFlag:
    """Tell whether something is predicted in an image without a polyp."""
    tp, fp, fn, _ = confusion(pred, mask)
    return (tp + fn == 0) & (fp > 0)


def count_polyps(mask: BoolArray) -> int:
    """Count the 8-connected components of one (H, W) mask that have `MIN_POLYP_PX` or more.

    Raises ValueError for an array that is not bool, and for a stack.
    """
    _check_one(mask)
    pixels = np.ascontiguousarray(mask).view(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(pixels, connectivity=8)
    return int(np.count_nonzero(stats[1:, cv2.CC_STAT_AREA] >= MIN_POLYP_PX))


# --- Distances ------------------------------------------------------------------------------


def hausdorff95(pred: BoolArray, mask: BoolArray) -> PerImage:
    """Measure the 95th percentile of the distances between the two boundaries (Eq. 9), in px.

    Each boundary pixel of one mask has a distance to the nearest boundary pixel of the other;
    both directions go into one set, whose percentile is interpolated linearly. A boundary pixel
    is a polyp pixel with a background pixel, or the image frame, above, below, left or right of
    it. medpy's `hd95` is the same; shapes, errors and empty masks: see the top of this module.

    Returns:
        Pixels, from 0 to the image diagonal.

    >>> mask = np.zeros((32, 32), bool)
    >>> mask[8:16, 8:16] = True
    >>> round(float(hausdorff95(np.roll(mask, 3, axis=1), mask)), 6)
    3.0
    """
    return _distance_score(pred, mask, _pooled_p95, _boundary)


def hausdorff95_mask(pred: BoolArray, mask: BoolArray) -> PerImage:
    """Measure Eq. 9 literally, over all pixels of both masks instead of their boundaries, in px.

    Pixels in the overlap have distance 0 and are, by Eq. 7, a share Dice of all: this is mostly
    smaller than `hausdorff95`, and 0 for every image whose Dice is about 0.95 or more.
    """
    return _distance_score(pred, mask, _pooled_p95, lambda m: m)


def hausdorff95_directed_max(pred: BoolArray, mask: BoolArray) -> PerImage:
    """Take the larger of the 95th percentiles of the two directions between boundaries, in px.

    MONAI's `compute_hausdorff_distance(..., percentile=95)` is the same.
    """
    return _distance_score(pred, mask, lambda d: max(np.percentile(x, 95) for x in d), _boundary)


def hausdorff(pred: BoolArray, mask: BoolArray) -> PerImage:
    """Measure the largest distance between the two boundaries, in px.

    The released code reports this 100 % distance as "HD95": one stray pixel decides it.
    """
    return _distance_score(pred, mask, lambda d: max(x.max() for x in d), _boundary)


def average_surface_distance(pred: BoolArray, mask: BoolArray) -> PerImage:
    """Take the mean distance between the two boundaries, both directions pooled, in px.

    medpy calls this `assd`.
    """
    return _distance_score(pred, mask, lambda d: np.concatenate(d).mean(), _boundary)


def boundary_f_score(pred: BoolArray, mask: BoolArray, tolerance: float = 2.0) -> PerImage:
    """Score the boundary pixels that lie within a tolerance of the other boundary, in [0, 1].

    The harmonic mean of two shares: of predicted boundary pixels near the true boundary
    (precision) and of true boundary pixels near the predicted one (recall).

    Args:
        pred: (H, W) or (N, H, W) bool.
        mask: the same shape, bool.
        tolerance: in px; a pixel at exactly this distance counts.
    """

    def f_score(distances: Distances) -> float:
        # The slack keeps exact distances (5 = 3-4-5) on the near side in float32.
        near = [np.mean(d <= tolerance + 1e-4) for d in distances]
        return 2 * near[0] * near[1] / (near[0] + near[1]) if sum(near) else 0.0

    return _by_image(pred, mask, lambda p, m: f_score(_distances(p, m, _boundary)), 1.0, 0.0)


# --- The columns of scores.csv --------------------------------------------------------------


def score_images(pred: BoolArray, mask: BoolArray) -> dict[str, np.ndarray]:
    """Score a set of images: the columns of `scores.csv` that compare a prediction and a mask.

    Args:
        pred: (N, H, W) bool; threshold probabilities first, `prob >= 0.5`.
        mask: the same shape, bool.

    Returns:
        (N,) arrays: area of the true mask (px), n_polyps in it (see `count_polyps`), dice, iou,
        precision, recall, hd95 (`hausdorff95`, px), hd95_mask (`hausdorff95_mask`, px), detected.

    Raises:
        ValueError: other shapes or dtypes.

    >>> frames = np.zeros((2, 64, 64), bool)
    >>> frames[0, 10:20, 10:20] = True
    >>> scores = score_images(pred=np.zeros_like(frames), mask=frames)
    >>> scores["area"].tolist(), scores["dice"].tolist(), scores["hd95"].round(1).tolist()
    ([100, 0], [0.0, 1.0], [90.5, 0.0])
    """
    _check(pred, mask)
    if mask.ndim != 3:
        raise ValueError(f"masks have shape {mask.shape}; expected (N, H, W).")
    return {
        "area": np.count_nonzero(mask, axis=(1, 2)),
        "n_polyps": np.array([count_polyps(m) for m in mask], np.int64),
        "dice": dice_score(pred, mask),
        "iou": iou_score(pred, mask),
        "precision": precision(pred, mask),
        "recall": recall(pred, mask),
        "hd95": hausdorff95(pred, mask),
        "hd95_mask": hausdorff95_mask(pred, mask),
        "detected": detected(pred, mask),
    }


def boundary_pixels(mask: BoolArray) -> BoolArray:
    """Keep the pixels of one mask (H, W) bool with background, or the frame, beside them.

    Raises ValueError for an array that is not bool, and for a stack.

    >>> int(boundary_pixels(np.ones((4, 4), bool)).sum())
    12
    """
    _check_one(mask)
    return _boundary(np.ascontiguousarray(mask).view(np.uint8)) > 0


# --- How it is done -------------------------------------------------------------------------


def _check_one(mask: BoolArray) -> None:
    _check(mask, mask)
    if mask.ndim != 2 or not mask.size:
        raise ValueError(f"mask has shape {mask.shape}; expected one mask (H, W) with pixels.")


def _check(pred: BoolArray, mask: BoolArray) -> None:
    kinds = {type(each).__name__ for each in (pred, mask) if not isinstance(each, np.ndarray)}
    if kinds:
        raise ValueError(
            f"found {', '.join(sorted(kinds))}; expected numpy arrays of bool. Masks of several sizes"
            " are scored one by one, each as (1, H, W)."
        )
    if pred.dtype != bool or mask.dtype != bool:
        raise ValueError(
            f"pred is {pred.dtype} and mask is {mask.dtype}; expected numpy arrays of bool: "
            "threshold them first, as in prob >= 0.5 and mask > 127."
        )
    if pred.shape != mask.shape or mask.ndim not in (2, 3):
        raise ValueError(
            f"pred has shape {pred.shape} and mask {mask.shape}; "
            "expected (H, W) or (N, H, W), the same for both."
        )


def _ratio(part: np.ndarray, whole: np.ndarray, counts: Counts) -> PerImage:
    """Divide; where the ratio is 0/0, give 1 if prediction and mask are equal, else 0."""
    equal = counts.fp + counts.fn == 0
    return np.where(whole > 0, part / np.maximum(whole, 1), np.where(equal, 1.0, 0.0))[()]


def _by_image(
    pred: BoolArray,
    mask: BoolArray,
    score: Callable[[BoolArray, BoolArray], float],
    both_empty: float,
    one_empty: float,
) -> PerImage:
    """Apply `score` to each pair of images where it is defined: both masks have pixels."""
    _check(pred, mask)
    if mask.ndim == 3:
        pairs = zip(pred, mask, strict=True)
        scores = [_by_image(p, m, score, both_empty, one_empty) for p, m in pairs]
        return np.array(scores, np.float64)
    if pred.any() and mask.any():
        return np.float64(score(pred, mask))
    return np.float64(one_empty if pred.any() or mask.any() else both_empty)


def _distance_score(
    pred: BoolArray,
    mask: BoolArray,
    summarise: Callable[[Distances], float],
    points: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
) -> PerImage:
    diagonal = float(np.hypot(*mask.shape[-2:]))
    return _by_image(pred, mask, lambda p, m: summarise(_distances(p, m, points)), 0.0, diagonal)


def _pooled_p95(distances: Distances) -> float:
    return float(np.percentile(np.concatenate(distances), 95))


def _boundary(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Keep the polyp pixels with a 4-neighbour outside; beyond the image all is outside."""
    inner = cv2.erode(mask, CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask - inner


def _distances(
    pred: BoolArray,
    mask: BoolArray,
    points: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
) -> Distances:
    """Measure from each point of one non-empty mask to the nearest of the other, both ways."""
    # No point lies outside the bounding box of the union, so no distance needs a pixel there.
    x, y, width, height = cv2.boundingRect((pred | mask).view(np.uint8))
    crop = np.s_[y : y + height, x : x + width]
    p, m = (points(np.ascontiguousarray(a[crop]).view(np.uint8)) for a in (pred, mask))
    return _to_nearest(m)[p > 0], _to_nearest(p)[m > 0]


def _to_nearest(points: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Measure from every pixel to the nearest point; the precise mask is exact, not chamfer."""
    return cv2.distanceTransform(1 - points, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).astype(np.float64)
