"""How sure we are: bootstrap intervals, paired tests between models, many comparisons.

Values are per-image scores: (images,) of one run, or (seeds, images) of several runs of one
model on the same images. The unit that is drawn again is the image, not the pixel; where images
are frames of one video, it is the video.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

COVERAGE = 0.95  # of every interval


class Interval(NamedTuple):
    """A mean and the ends of its interval, in the unit of the values."""

    mean: float
    low: float
    high: float


class PairedTest(NamedTuple):
    """The mean difference a - b with its interval, and the p-value of "no difference"."""

    mean: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    values: ArrayLike, resamples: int = 2000, groups: ArrayLike | None = None
) -> Interval:
    """Give the mean score and its 95 % percentile bootstrap interval, the same on each call.

    Each resample draws seeds with replacement, then images with replacement, those of a group all or
    none: frames of a video that is hard are hard together (a cluster bootstrap; of few groups it
    still says too much). The drawn images are the same for every drawn seed: an image that is hard
    for one run is hard for all, so runs do not make the test set larger. One seed fewer is drawn
    than there are: as many would understate the variance between seeds, of two by half (Rao and Wu
    1988). Few seeds tell even that variance badly, so the ends are moved out as those of Student's t
    are, by as many degrees of freedom as the seeds' part of the variance leaves (Satterthwaite
    1946): hardly where the images matter more, 6.5 times where two seeds are all that matters, and
    so perhaps beyond what a score can be. With one run only images are drawn.

    Args:
        values: (images,) or (seeds, images), finite.
        resamples: number of bootstrap means.
        groups: (images,) labels, as the video of each frame; None: each image is alone.

    Raises:
        ValueError: another shape, no values, values that are not finite, or not a label an image.

    >>> [round(x, 2) for x in bootstrap_interval([0.9, 0.8, 0.0, 0.7, 0.9, 0.9, 0.8, 0.6])]
    [0.7, 0.46, 0.85]
    """
    table = _seeds_by_images(values)
    sums, sizes = _group_sums(table, groups)
    drawn = _means(sums, sizes, *_draws(sums.shape, resamples))
    return _interval(table.mean(), drawn, table)


def difference_interval(
    a: ArrayLike, b: ArrayLike, resamples: int = 9999, groups: ArrayLike | None = None
) -> Interval:
    """Give the mean difference a - b on the same images and its 95 % interval.

    As `bootstrap_interval`; the drawn images are the same for both models, the drawn seeds are not:
    equal seeds do not make two trainings of different models alike, so they are no pairs.

    Args:
        a: (images,) or (seeds, images), finite.
        b: the same; its images in the same order.
        resamples: number of bootstrap means.
        groups: (images,) labels of images that are drawn together.

    Raises:
        ValueError: images that differ, or values that `bootstrap_interval` refuses.

    >>> [round(x, 2) for x in difference_interval([0.9, 0.8, 0.7], [0.8, 0.6, 0.6])]
    [0.13, 0.1, 0.2]
    """
    a, b = _seeds_by_images(a), _seeds_by_images(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a has shape {a.shape} and b {b.shape}; pairs need the same images.")
    (of_a, sizes), (of_b, _) = _group_sums(a, groups), _group_sums(b, groups)
    seeds, drawn_groups = _draws(of_a.shape, resamples)
    others, _ = _draws(of_b.shape, resamples, side=1)
    drawn = _means(of_a, sizes, seeds, drawn_groups) - _means(of_b, sizes, others, drawn_groups)
    return _interval(a.mean() - b.mean(), drawn, a, b)


def paired_test(a: ArrayLike, b: ArrayLike, groups: ArrayLike | None = None) -> PairedTest:
    """Test whether two models score alike on the same images.

    If they do, the sign of each image's difference is a coin toss (of each group's, where images go
    together: see `bootstrap_interval`): the p-value is the two-sided share of sign flips (all, or
    9999 random ones) whose mean difference is at least as far from 0. Unlike Wilcoxon's test it
    speaks of the mean that tables print and needs no rule for ties. Several seeds are averaged per
    image first, so the p-value speaks of these trained models on new images; the interval also
    draws the seeds (see `difference_interval`).

    Args:
        a: (images,) or (seeds, images), finite.
        b: the same; its images in the same order.
        groups: (images,) labels of images that go together.

    Returns:
        `PairedTest(mean, low, high, p_value)` of a - b.

    Raises:
        ValueError: images that differ, or values that `bootstrap_interval` refuses.

    >>> test = paired_test([0.9, 0.8, 0.7, 0.8, 0.9, 0.7], [0.8, 0.6, 0.6, 0.7, 0.7, 0.6])
    >>> round(test.mean, 3), round(test.p_value, 3)
    (0.133, 0.031)
    """
    interval = difference_interval(a, b, groups=groups)
    difference = _seeds_by_images(a).mean(axis=0) - _seeds_by_images(b).mean(axis=0)
    (sums,), _ = _group_sums(difference[None], groups)
    if len(sums) == 1:  # both flips of one image are as far from 0
        return PairedTest(*interval, 1.0)
    test = stats.permutation_test(
        (sums,), np.mean, permutation_type="samples", vectorized=True,
        n_resamples=9999, batch=1000, rng=np.random.default_rng(0),  # batch bounds the memory
    )  # fmt: skip
    return PairedTest(*interval, float(test.pvalue))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Correct the p-values of several comparisons (Holm's step-down method).

    A corrected value under 0.05 keeps the chance of any false finding in the family under 5 %.

    Args:
        p_values: (comparisons,) in [0, 1].

    Returns:
        (comparisons,) in [0, 1], in the order given, none smaller than before.

    Raises:
        ValueError: another shape, or values outside [0, 1].

    >>> holm([0.01, 0.04, 0.03]).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"expected a list of p-values between 0 and 1; got {p_values}.")
    order = np.argsort(p)
    # The smallest is multiplied by the number of comparisons, the next by one less, and so on.
    steps = p[order] * np.arange(len(p), 0, -1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def _interval(
    mean: np.float64, drawn: NDArray[np.float64], *tables: NDArray[np.float64]
) -> Interval:
    """Give the percentiles of the drawn means, moved out for the few seeds of the tables."""
    tails = np.array([(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    low, high = mean + (np.quantile(drawn, tails) - mean) * _student(drawn.var(), tables)
    return Interval(float(mean), float(low), float(high))


def _student(variance: np.float64, tables: Sequence[NDArray[np.float64]]) -> float:
    """How much further out Student's t has its tails than the normal curve, for a mean's variance.

    The degrees of freedom are Satterthwaite's: of the seeds' part of the variance, each table's mean
    has one fewer than seeds; of the images' part there are so many that they do not count.
    """
    several = [table for table in tables if len(table) > 1]
    parts = np.array([table.mean(axis=1).var(ddof=1) / len(table) for table in several])
    if not parts.any():
        return 1.0
    shares = parts / max(variance, parts.sum())
    freedom = 1 / np.sum(shares**2 / [len(table) - 1 for table in several])
    tail = (1 + COVERAGE) / 2
    return float(stats.t.ppf(tail, freedom) / stats.norm.ppf(tail))


@lru_cache(maxsize=64)  # tables ask for the same draws again and again
def _draws(shape: tuple[int, int], resamples: int, side: int = 0) -> list[NDArray[np.uint16]]:
    """How often each resample draws each seed and each group of images: the weights of its mean."""
    rng = np.random.default_rng(side)
    draws = (max(shape[0] - 1, 1), shape[1])  # seeds: see `bootstrap_interval`
    return [
        rng.multinomial(drawn, np.full(n, 1 / n), resamples).astype(np.uint16)
        for n, drawn in zip(shape, draws, strict=True)
    ]


def _group_sums(
    table: NDArray[np.float64], groups: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Add up the images of each group: (seeds, images) to (seeds, groups), and the groups' sizes."""
    if groups is None:
        return table, np.ones(table.shape[1])
    groups = np.asarray(groups)
    if groups.shape != table.shape[1:]:
        raise ValueError(
            f"groups have shape {groups.shape}; expected {table.shape[1:]}, one an image."
        )
    _, place = np.unique(groups, return_inverse=True)
    member = np.eye(place.max() + 1)[place]  # (images, groups)
    return table @ member, member.sum(axis=0)


def _means(
    sums: NDArray[np.float64], sizes: NDArray[np.float64],
    seeds: NDArray[np.uint16], groups: NDArray[np.uint16],
) -> NDArray[np.float64]:  # fmt: skip
    """The mean of each resample, from the sums of the drawn groups: (seeds, groups), sizes (groups,)."""
    drawn = groups @ np.column_stack([*sums, sizes])  # (resamples, seeds + 1)
    return np.sum(drawn[:, :-1] * seeds, axis=1) / (seeds[0].sum() * drawn[:, -1])


def _seeds_by_images(values: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(values, np.float64)
    if table.ndim not in (1, 2) or table.size == 0:
        raise ValueError(f"values have shape {table.shape}; expected (images,) or (seeds, images).")
    if not np.isfinite(table).all():
        raise ValueError("values hold NaN or infinity; score every image, do not drop any.")
    return np.atleast_2d(table)
