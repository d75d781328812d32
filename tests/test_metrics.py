"""Scores on shapes whose value is known, the table of empty masks, and independent oracles.

MONAI and medpy are needed by the oracle tests only.
"""

import math
from functools import cache

import cv2
import numpy as np
import pytest

from ultraseg_lib.metrics import (
    average_surface_distance,
    batch_pooled_dice,
    boundary_f_score,
    boundary_pixels,
    confusion,
    count_polyps,
    detected,
    dice_score,
    false_alarm,
    hausdorff,
    hausdorff95,
    hausdorff95_directed_max,
    hausdorff95_mask,
    iou_score,
    missed,
    pooled_dice,
    precision,
    recall,
    score_images,
    specificity,
)

OVERLAPS = [dice_score, iou_score, precision, recall]
DISTANCES = [
    hausdorff95,
    hausdorff95_mask,
    hausdorff95_directed_max,
    hausdorff,
    average_surface_distance,
]
FLAGS = [detected, missed, false_alarm]
PER_IMAGE = [*OVERLAPS, specificity, *DISTANCES, boundary_f_score, *FLAGS]
SIZE = 64
DIAGONAL = SIZE * math.sqrt(2)


def rectangle(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top : top + height, left : left + width] = True
    return mask


EMPTY, FULL = rectangle(0, 0, 0, 0), rectangle(0, 0, SIZE, SIZE)
PIXEL, SQUARE = rectangle(20, 30, 1, 1), rectangle(10, 10, 20, 20)


def random_masks(count: int, seed: int, size: int = SIZE) -> np.ndarray:
    """Draw masks from one pixel to nearly full, in one piece or many, inside or cut by the frame.

    Smooth noise over a random threshold gives shapes, unsmoothed noise gives scattered pixels.
    """
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, size, size), bool)
    for mask in masks:
        noise = rng.standard_normal((size, size))
        blur = rng.choice([0.0, 2.0, 5.0, 10.0])
        smooth = cv2.GaussianBlur(noise, (0, 0), blur) if blur else noise
        mask[:] = smooth > np.quantile(smooth, rng.choice([0.05, 0.5, 0.9, 0.99, 0.9998]))
    return masks


@cache
def random_pairs(count: int = 500, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    return random_masks(count, seed=0, size=size), random_masks(count, seed=1, size=size)


# --- Known shapes ---------------------------------------------------------------------------


def test_counts_of_two_squares_that_overlap_by_a_half():
    mask, pred = rectangle(0, 0, 10, 10), rectangle(0, 5, 10, 10)
    assert confusion(pred, mask) == (50, 50, 50, SIZE**2 - 150)
    assert dice_score(pred, mask) == 0.5
    assert iou_score(pred, mask) == pytest.approx(1 / 3)
    assert precision(pred, mask) == recall(pred, mask) == 0.5
    assert specificity(pred, mask) == pytest.approx(1 - 50 / (SIZE**2 - 100))


def test_precision_and_recall_take_their_own_side():
    inside = rectangle(12, 12, 10, 10)
    assert (precision(inside, SQUARE), recall(inside, SQUARE)) == (1.0, 0.25)
    assert (precision(SQUARE, inside), recall(SQUARE, inside)) == (0.25, 1.0)


@pytest.mark.parametrize("shift", [1, 3, 7])
def test_a_shifted_square_is_its_shift_away(shift):
    """The far side is `shift` away, and so are more than 5 % of the boundary pixels."""
    pred = np.roll(SQUARE, shift, axis=1)
    for distance in (hausdorff, hausdorff95, hausdorff95_directed_max):
        assert distance(pred, SQUARE) == pytest.approx(shift, abs=1e-5)


def test_two_pixels_are_their_euclidean_distance_apart():
    other = rectangle(23, 34, 1, 1)
    for distance in DISTANCES:
        assert distance(other, PIXEL) == pytest.approx(5, abs=1e-5)


def test_the_percentile_forgives_a_stray_pixel_and_the_maximum_does_not():
    stray = SQUARE | rectangle(60, 20, 1, 1)
    assert hausdorff95(stray, SQUARE) == 0
    assert hausdorff(stray, SQUARE) == pytest.approx(31, abs=1e-5)


def test_pooling_the_directions_is_not_the_maximum_of_the_two():
    """A far second piece is half of one direction but a small share of both together."""
    pred = PIXEL | rectangle(20, 40, 1, 1)
    assert hausdorff95_directed_max(pred, PIXEL) == pytest.approx(9.5)  # 95 % of {0, 10}
    assert hausdorff95(pred, PIXEL) == pytest.approx(9)  # 95 % of {0, 0, 10}
    assert average_surface_distance(pred, PIXEL) == pytest.approx(10 / 3)


def test_the_literal_eq_9_is_zero_once_dice_is_over_95_percent():
    mask, pred = rectangle(0, 0, 60, 60), rectangle(0, 0, 60, 56)
    assert dice_score(pred, mask) > 0.96
    assert hausdorff95_mask(pred, mask) == 0
    assert hausdorff95(pred, mask) == pytest.approx(4, abs=1e-5)


def test_the_literal_eq_9_counts_the_pixels_inside():
    """The 400 pixels of the square are 0 … 19 columns from a strip at its left edge."""
    strip = rectangle(10, 10, 20, 1)
    columns = np.concatenate([np.zeros(20), np.repeat(np.arange(20), 20)])
    assert hausdorff95_mask(strip, SQUARE) == pytest.approx(np.percentile(columns, 95), abs=1e-5)


def test_the_image_frame_bounds_a_polyp_that_touches_it():
    """The boundary of a full mask runs along the frame: its far corner is 32 px off each way."""
    middle = rectangle(31, 31, 1, 1)
    assert hausdorff(middle, FULL) == pytest.approx(32 * math.sqrt(2), abs=1e-5)
    corner, opposite = rectangle(0, 0, 1, 1), rectangle(SIZE - 1, SIZE - 1, 1, 1)
    assert hausdorff(corner, opposite) == pytest.approx(63 * math.sqrt(2), abs=1e-4)
    assert hausdorff(corner, opposite) < hausdorff(EMPTY, opposite)


def test_boundary_f_score_counts_what_lies_within_the_tolerance():
    pred = rectangle(23, 34, 1, 1)
    assert boundary_f_score(pred, PIXEL, tolerance=4.99) == 0
    assert boundary_f_score(pred, PIXEL, tolerance=5) == 1
    half = PIXEL | rectangle(50, 30, 1, 1)  # precision 1/2, recall 1
    assert boundary_f_score(half, PIXEL) == pytest.approx(2 / 3)
    assert boundary_f_score(PIXEL, half) == pytest.approx(2 / 3)
    assert boundary_f_score(np.roll(SQUARE, 2, axis=0), SQUARE, tolerance=2) == 1


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_are_symmetric_and_do_not_depend_on_where_the_pair_lies(distance):
    pred, mask = rectangle(10, 10, 12, 9), rectangle(15, 8, 20, 6)
    expected = distance(pred, mask)
    assert distance(mask, pred) == pytest.approx(expected)
    moved = [np.roll(m, (25, 30), axis=(0, 1)) for m in (pred, mask)]
    assert distance(*moved) == pytest.approx(expected, abs=1e-5)


# --- Empty masks, and the contract ----------------------------------------------------------


@pytest.mark.parametrize("some", [SQUARE, PIXEL, FULL], ids=["square", "pixel", "full"])
def test_empty_masks_have_stated_values(some):
    right, wrong = (1, 0), (0, DIAGONAL)
    table = [
        (EMPTY, EMPTY, *right),
        (some, some, *right),
        (EMPTY, some, *wrong),
        (some, EMPTY, *wrong),
    ]
    for pred, mask, overlap, distance in table:
        assert [score(pred, mask) for score in OVERLAPS] == [overlap] * 4
        assert [score(pred, mask) for score in DISTANCES] == pytest.approx([distance] * 5)
        assert boundary_f_score(pred, mask) == overlap


def test_specificity_without_background():
    assert specificity(FULL, FULL) == 1
    assert specificity(SQUARE, FULL) == 0
    assert specificity(EMPTY, EMPTY) == 1
    assert specificity(FULL, EMPTY) == 0


@pytest.mark.parametrize(
    ("pred", "mask", "flags"),
    [
        (SQUARE, SQUARE, (True, False, False)),
        (rectangle(29, 29, 9, 9), SQUARE, (True, False, False)),  # one pixel in common
        (rectangle(30, 30, 9, 9), SQUARE, (False, True, False)),  # only the corners touch
        (EMPTY, SQUARE, (False, True, False)),
        (SQUARE, EMPTY, (False, False, True)),
        (EMPTY, EMPTY, (False, False, False)),
    ],
)
def test_found_missed_and_false_alarm(pred, mask, flags):
    assert tuple(flag(pred, mask) for flag in FLAGS) == flags


def test_polyps_are_8_connected_and_specks_are_not_counted():
    two = SQUARE | rectangle(40, 40, 5, 5)
    diagonal = SQUARE | rectangle(30, 30, 9, 9)
    assert [count_polyps(m) for m in (EMPTY, SQUARE, two, diagonal, FULL)] == [0, 1, 2, 1, 1]
    assert count_polyps(SQUARE | rectangle(50, 50, 3, 3)) == 1
    assert count_polyps(two.T[::-1]) == 2


@pytest.mark.parametrize("score", PER_IMAGE)
def test_a_stack_is_its_images_one_by_one_and_never_nan(score):
    stack = np.stack([EMPTY, FULL, PIXEL, SQUARE, *random_masks(4, seed=2)])
    pred, mask = np.repeat(stack, len(stack), axis=0), np.tile(stack, (len(stack), 1, 1))
    values = score(pred, mask)
    assert values.shape == (64,)
    assert np.isfinite(values).all()
    np.testing.assert_array_equal(values, [score(p, m) for p, m in zip(pred, mask, strict=True)])
    assert np.ndim(score(pred[0], mask[0])) == 0
    assert score(pred[:0], mask[:0]).shape == (0,)


@pytest.mark.parametrize("score", [confusion, *PER_IMAGE, pooled_dice, score_images])
def test_probabilities_and_unequal_shapes_are_refused(score):
    with pytest.raises(ValueError, match=r"prob >= 0\.5"):
        score(SQUARE[None].astype(np.float32), SQUARE[None])
    with pytest.raises(ValueError, match=r"\(1, 64, 64\) and mask \(64, 64\)"):
        score(SQUARE[None], SQUARE)


@pytest.mark.parametrize("score", [count_polyps, boundary_pixels])
def test_a_stack_is_not_taken_for_one_mask(score):
    for mask in (SQUARE[None], np.zeros((0, 5), bool)):
        with pytest.raises(ValueError, match=r"expected one mask \(H, W\)"):
            score(mask)


def test_views_and_images_that_are_not_square_work():
    pred, mask = rectangle(3, 5, 20, 8)[:40, ::2].T, rectangle(6, 9, 20, 8)[:40, ::2].T
    for score in PER_IMAGE:
        assert score(pred, mask) == score(pred.copy(), mask.copy())
    assert hausdorff95(np.zeros_like(pred), mask) == pytest.approx(math.hypot(40, 32))


# --- Sets of images -------------------------------------------------------------------------


ODD_EVEN = [0, 2, 4, 6, 1, 3, 5, 7]


def test_pooled_dice_hides_a_missed_small_polyp():
    mask = np.stack([SQUARE, rectangle(50, 50, 4, 5)])
    pred = np.stack([SQUARE, EMPTY])
    assert dice_score(pred, mask).mean() == 0.5
    assert pooled_dice(pred, mask) == pytest.approx(800 / 820)
    assert pooled_dice(np.stack([EMPTY]), np.stack([EMPTY])) == 1


def test_batch_pooled_dice_follows_the_batches_in_list_order():
    pred, mask = random_masks(10, seed=3), random_masks(10, seed=4)
    parts = [pooled_dice(pred[i], mask[i]) for i in (slice(0, 4), slice(4, 8), slice(8, 10))]
    assert batch_pooled_dice(pred, mask) == pytest.approx(np.mean(parts))
    assert batch_pooled_dice(pred, mask, batch=1) == pytest.approx(dice_score(pred, mask).mean())
    assert batch_pooled_dice(pred, mask, batch=10) == pooled_dice(pred, mask)
    with pytest.raises(ValueError, match="N > 0"):
        batch_pooled_dice(pred[:0], mask[:0])
    with pytest.raises(ValueError, match="batch > 0"):
        batch_pooled_dice(pred, mask, batch=0)


def test_batch_pooled_dice_over_random_orders_does_not_follow_the_list():
    square = np.stack([SQUARE] * 8)
    found = np.stack([SQUARE] * 4 + [EMPTY] * 4)  # the second half is missed
    assert batch_pooled_dice(found, square) == 0.5
    many = [
        batch_pooled_dice(found[order], square, orders=500) for order in (slice(None), ODD_EVEN)
    ]
    exact = sum(  # of 8 images 4 share a batch, k of them found: hypergeometric
        math.comb(4, k) * math.comb(4, 4 - k) / math.comb(8, 4)
        * (2 * k / (4 + k) + 2 * (4 - k) / (8 - k)) / 2 for k in range(5)
    )  # fmt: skip
    assert many == pytest.approx([exact] * 2, abs=0.01)
    assert batch_pooled_dice(found, square, batch=1, orders=5) == 0.5
    assert batch_pooled_dice(found, square, batch=8, orders=5) == pooled_dice(found, square)


def test_score_images_gives_the_columns_of_the_ledger():
    pred, mask = np.stack([SQUARE, EMPTY, SQUARE]), np.stack([SQUARE, SQUARE, EMPTY])
    scores = score_images(pred, mask)
    assert {name: column.tolist() for name, column in scores.items()} == {
        "area": [400, 400, 0],
        "n_polyps": [1, 1, 0],
        "dice": [1, 0, 0],
        "iou": [1, 0, 0],
        "precision": [1, 0, 0],
        "recall": [1, 0, 0],
        "hd95": pytest.approx([0, DIAGONAL, DIAGONAL]),
        "hd95_mask": pytest.approx([0, DIAGONAL, DIAGONAL]),
        "detected": [True, False, False],
    }


# --- Independent implementations ------------------------------------------------------------


def test_counts_agree_with_monai():
    monai = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    pred, mask = random_pairs()
    p, m = (torch.from_numpy(a[:, None]).float() for a in (pred, mask))
    table = monai.get_confusion_matrix(p, m)[:, 0]
    np.testing.assert_array_equal(np.stack(confusion(pred, mask), axis=1), table[:, [0, 1, 3, 2]])
    close = {"rtol": 0, "atol": 1e-6}
    np.testing.assert_allclose(dice_score(pred, mask), monai.compute_dice(p, m)[:, 0], **close)
    np.testing.assert_allclose(iou_score(pred, mask), monai.compute_iou(p, m)[:, 0], **close)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_larger_direction_agrees_with_monai():
    monai = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    pred, mask = random_pairs()
    p, m = (torch.from_numpy(a[:, None]) for a in (pred, mask))
    for ours, percentile in [(hausdorff95_directed_max, 95), (hausdorff, None)]:
        theirs = monai.compute_hausdorff_distance(p, m, percentile=percentile)[:, 0]
        np.testing.assert_allclose(ours(pred, mask), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("ours", "name"),
    [(hausdorff95, "hd95"), (hausdorff, "hd"), (average_surface_distance, "assd")],
)
@pytest.mark.parametrize(("count", "size"), [(500, SIZE), (20, 256)])
def test_distances_agree_with_medpy(ours, name, count, size):
    medpy = pytest.importorskip("medpy.metric.binary")
    pred, mask = random_pairs(count, size)
    theirs = [getattr(medpy, name)(p, m) for p, m in zip(pred, mask, strict=True)]
    np.testing.assert_allclose(ours(pred, mask), theirs, rtol=0, atol=1e-4)


def test_ratios_agree_with_medpy():
    medpy = pytest.importorskip("medpy.metric.binary")
    pred, mask = random_pairs()
    theirs = [medpy.dc, medpy.jc, medpy.precision, medpy.recall]
    for score, oracle in zip([*OVERLAPS, specificity], [*theirs, medpy.specificity], strict=True):
        expected = [oracle(p, m) for p, m in zip(pred, mask, strict=True)]
        np.testing.assert_allclose(score(pred, mask), expected, rtol=0, atol=1e-6)


def test_the_literal_eq_9_agrees_with_all_pairs_of_pixels():
    pred, mask = random_masks(30, seed=5, size=24), random_masks(30, seed=6, size=24)
    for p, m in zip(pred, mask, strict=True):
        apart = np.linalg.norm(np.argwhere(p)[:, None] - np.argwhere(m)[None], axis=-1)
        pooled = np.concatenate([apart.min(axis=1), apart.min(axis=0)])
        assert hausdorff95_mask(p, m) == pytest.approx(np.percentile(pooled, 95), abs=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pred", [EMPTY, SQUARE, FULL], ids=["empty", "square", "full"])
@pytest.mark.parametrize("mask", [EMPTY, SQUARE, FULL], ids=["empty", "square", "full"])
def test_where_masks_are_empty_or_full_we_agree_with_monai_or_say_why_not(pred, mask):
    monai = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    p, m = (torch.from_numpy(a[None, None]) for a in (pred, mask))
    distance = monai.compute_hausdorff_distance(p, m, percentile=95)
    theirs = [monai.compute_dice(p, m).item(), monai.compute_iou(p, m).item(), distance.item()]
    ours = [score(pred, mask) for score in (dice_score, iou_score, hausdorff95_directed_max)]
    stated = [not mask.any(), not mask.any(), not (mask.any() and pred.any())]
    np.testing.assert_array_equal(np.isnan(theirs), stated)
    agree = ~np.array(stated)
    np.testing.assert_allclose(np.array(ours)[agree], np.array(theirs)[agree], atol=1e-4)


def test_lists_of_masks_are_told_how_they_are_scored():
    mask = np.ones((4, 4), bool)
    with pytest.raises(
        ValueError, match=r"found list; expected numpy arrays of bool\. .* one by one"
    ):
        score_images([mask], [mask])
