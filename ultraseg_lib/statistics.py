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

LEAST_RESAMPLES = 100
UPPER = 0.975  # what lies below the upper end of every interval: 95 % lie inside


class Interval(NamedTuple):
    """A mean and the ends of its interval, in the unit of the values."""

    mean: float
    low: float
    high: float


class PairedTest(NamedTuple):
    """The mean difference a - b, the ends of its interval, and the p-value of "no difference"."""

    mean: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    values: ArrayLike, resamples: int = 2000, groups: ArrayLike | None = None
) -> Interval:
    """Give the mean score and its 95 % interval, the same on each call.

    Images are drawn with replacement again and again, those of a group all or none: frames of a
    video that is hard are hard together (a cluster bootstrap). An image that is hard for one run is
    hard for all, so runs do not make the test set larger: what is drawn is their mean. The 2.5 %
    and 97.5 % percentiles are how far the images may carry it, the spread of the seeds' means how
    far the luck of training may; both are joined as independent errors are, by their squares.

    Of few images, groups or seeds even the spread is known badly. So each part's variance has one
    fewer in its denominator than there are, and the ends are as far out as those of Student's t, by
    the degrees of freedom that the parts leave together (Satterthwaite 1946): with many images and
    one run it is the percentile interval; where two seeds are all that matters, the t interval of
    two numbers, 6.5 times as wide as the normal one, and so perhaps beyond what a score can be. In
    between an interval misses somewhat more often than one time in twenty (simulated): one of two
    seeds up to one in eight. What seeds differ by on these very images is in both parts, which errs
    on the safe side. Of one image or group alone nothing is known of others: its ends are NaN.

    Args:
        values: (images,) or (seeds, images), finite.
        resamples: number of bootstrap means.
        groups: (images,) labels, as the video of each frame; None: each image is alone.

    Raises:
        ValueError: another shape, no values, values that are not finite, not a label an image, or
            under 100 resamples.

    >>> [round(x, 2) for x in bootstrap_interval([0.9, 0.8, 0.0, 0.7, 0.9, 0.9, 0.8, 0.6])]
    [0.7, 0.39, 0.89]
    """
    table = _seeds_by_images(values)
    return Interval(*_test(table.mean(axis=0), [table], resamples, groups)[:3])


def paired_test(
    a: ArrayLike, b: ArrayLike, resamples: int = 9999, groups: ArrayLike | None = None
) -> PairedTest:
    """Give the mean difference a - b on the same images, its 95 % interval and its p-value.

    As `bootstrap_interval`; the drawn images are the same for both models, the luck of the seeds is
    not: equal seeds do not make two trainings of different models alike, so they are no pairs. The
    p-value belongs to the interval: below 0.05 where that leaves out zero. Both speak of new images
    and, where a side has several seeds, of new trainings. They miss in one case of twenty from
    three seeds of each on and in one of sixteen with two, where both scatter alike; where one
    scatters much more, up to one of thirteen and one of eight. Of two seeds that lie close by
    chance p is far too small: below 0.005 in one case of fifty, so that no correction for many
    comparisons holds; from three on it does nearly. Of fewer than ten images or videos p is too
    small, too. Of a side of one seed the luck is unknown, and left out.

    Args:
        a: (images,) or (seeds, images), finite.
        b: the same; its images in the same order.
        resamples: number of bootstrap means.
        groups: (images,) labels of images that are drawn together.

    Raises:
        ValueError: images that differ, or values that `bootstrap_interval` refuses.

    >>> [round(x, 2) for x in paired_test([0.9, 0.8, 0.7], [0.8, 0.6, 0.6])]
    [0.13, 0.04, 0.31, 0.03]
    """
    a, b = _seeds_by_images(a), _seeds_by_images(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"a has shape {a.shape} and b {b.shape}; pairs need the same images.")
    return _test(a.mean(axis=0) - b.mean(axis=0), [a, b], resamples, groups)


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


def _test(
    images: NDArray[np.float64],
    tables: Sequence[NDArray[np.float64]],
    resamples: int,
    groups: ArrayLike | None,
) -> PairedTest:
    """Give the mean of ``images``, its interval, and the p-value of zero.

    ``tables`` hold the seeds that the mean comes from.
    """
    if resamples < LEAST_RESAMPLES:
        raise ValueError(f"resamples: found {resamples}; give {LEAST_RESAMPLES} or more.")
    sums, sizes = _group_sums(images, groups)
    mean, freedom = float(images.mean()), len(sums) - 1
    if not freedom:
        return PairedTest(mean, np.nan, np.nan, 1.0)
    drawn_sums, drawn_sizes = (_draws(len(sums), resamples) @ np.column_stack([sums, sizes])).T
    drawn = drawn_sums / drawn_sizes
    unbiased = len(sums) / freedom  # a resample's variance has all in its denominator
    several = [table for table in tables if len(table) > 1]
    luck = [table.mean(axis=1).var(ddof=1) / len(table) for table in several]
    parts = np.array([unbiased * drawn.var(), *luck])
    if not parts.any():
        return PairedTest(mean, mean, mean, float(mean == 0))
    freedoms = np.array([freedom, *(len(table) - 1 for table in several)])
    student = stats.t(parts.sum() ** 2 / np.sum(parts**2 / freedoms))
    spread = (np.quantile(drawn, [1 - UPPER, UPPER]) - mean) / stats.norm.ppf(UPPER)
    errors = np.sqrt(unbiased * spread**2 + sum(luck))  # below and above the mean
    low, high = mean + student.ppf(UPPER) * errors * [-1, 1]
    with np.errstate(divide="ignore"):  # no error: certain
        p_value = 2 * student.sf(abs(mean) / errors[int(mean < 0)])  # by the end nearer to zero
    return PairedTest(mean, float(low), float(high), float(p_value))


@lru_cache(maxsize=64)  # tables ask for the same draws again and again
def _draws(groups: int, resamples: int) -> NDArray[np.uint16]:
    """How often each resample draws each group of images: (resamples, groups)."""
    rng = np.random.default_rng(0)
    return rng.multinomial(groups, np.full(groups, 1 / groups), resamples).astype(np.uint16)


def _group_sums(
    images: NDArray[np.float64], groups: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Add up the images of each group: their sums and sizes, (groups,) each."""
    if groups is None:
        return images, np.ones(len(images))
    groups = np.asarray(groups)
    if any(label is None or label != label for label in groups.tolist()):  # None, NaN
        raise ValueError("groups: some labels are missing; give every image one.")
    if groups.shape != images.shape:
        raise ValueError(
            f"groups have shape {groups.shape}; expected {images.shape}, one an image."
        )
    _, place = np.unique(groups, return_inverse=True)
    return np.bincount(place, images), np.bincount(place).astype(np.float64)


def _seeds_by_images(values: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(values, np.float64)
    if table.ndim not in (1, 2) or table.size == 0:
        raise ValueError(f"values have shape {table.shape}; expected (images,) or (seeds, images).")
    if not np.isfinite(table).all():
        raise ValueError("values hold NaN or infinity; score every image, do not drop any.")
    return np.atleast_2d(table)
