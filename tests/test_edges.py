"""Boundary targets on shapes whose boundary is known, and on masks that are no masks."""

import cv2
import numpy as np
import pytest

from ultraseg_lib import edges
from ultraseg_lib.edges import boundary_target, boundary_targets

METHODS = sorted(edges.METHODS)


def square(size: int = 64, start: int = 20, stop: int = 40) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[start:stop, start:stop] = True
    return mask


@pytest.mark.parametrize(
    ("method", "left", "right"),
    [
        ("canny", [17, 18, 19, 20, 21], [37, 38, 39, 40, 41]),
        ("thin", [19, 20], [39, 40]),
        ("morphological", [18, 19, 20, 21], [38, 39, 40, 41]),
    ],
)
def test_band_lies_on_both_sides_of_the_edge(method, left, right):
    row = boundary_target(square(), method)[30]
    np.testing.assert_array_equal(np.flatnonzero(row), left + right)


def test_canny_is_the_papers_recipe():
    mask = square().astype(np.uint8) * 255
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    expected = cv2.dilate(cv2.Canny(mask, 30, 90), ellipse) // 255
    np.testing.assert_array_equal(boundary_target(mask), expected)


@pytest.mark.parametrize(
    ("method", "low", "high"), [("canny", 4, 5.5), ("thin", 1.7, 2.5), ("morphological", 4, 5.5)]
)
def test_bands_have_their_width_on_a_disc(method, low, high):
    disc = cv2.circle(np.zeros((256, 256), np.uint8), (128, 128), 60, 255, -1)
    circumference = 2 * np.pi * 60
    assert low <= boundary_target(disc, method).sum() / circumference <= high


def test_the_thin_band_is_about_what_shrinking_leaves_of_a_band():
    disc = cv2.circle(np.zeros((580, 580), np.uint8), (290, 280), 130, 255, -1)
    small = cv2.resize(disc, (256, 256), interpolation=cv2.INTER_NEAREST)
    shrunk = cv2.resize(boundary_target(disc), (256, 256), interpolation=cv2.INTER_NEAREST)
    canny, thin = (int(boundary_target(small, method).sum()) for method in ("canny", "thin"))
    assert thin == pytest.approx(int(shrunk.sum()), rel=0.2)
    assert canny > 2 * shrunk.sum()


@pytest.mark.parametrize("method", METHODS)
def test_bool_and_uint8_masks_agree_and_give_uint8_of_0_and_1(method):
    mask = square()
    from_bool = boundary_target(mask, method)
    np.testing.assert_array_equal(from_bool, boundary_target(mask.astype(np.uint8) * 255, method))
    assert from_bool.dtype == np.uint8
    assert set(np.unique(from_bool)) == {0, 1}


@pytest.mark.parametrize("method", METHODS)
def test_empty_and_full_masks_have_no_boundary(method):
    assert not boundary_target(np.zeros((32, 32), bool), method).any()
    assert not boundary_target(np.ones((32, 32), bool), method).any()


@pytest.mark.parametrize(
    ("method", "first", "last"), [("canny", 27, 31), ("thin", 29, 30), ("morphological", 28, 31)]
)
def test_a_polyp_cut_by_the_frame_has_no_boundary_along_the_frame(method, first, last):
    mask = np.zeros((64, 64), bool)
    mask[:, :30] = True
    target = boundary_target(mask, method)
    assert (np.flatnonzero(target.any(axis=0)) == np.arange(first, last + 1)).all()
    assert target[:, first : last + 1].all()


@pytest.mark.parametrize("method", METHODS)
def test_one_pixel_gets_a_boundary(method):
    mask = np.zeros((32, 32), bool)
    mask[16, 16] = True
    assert boundary_target(mask, method)[16, 16] == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_stack_is_its_masks_one_by_one(method):
    masks = np.stack([square(), square(start=5, stop=60), np.zeros((64, 64), bool)])
    single = [boundary_target(mask, method) for mask in masks]
    np.testing.assert_array_equal(boundary_targets(masks, method), single)
    assert boundary_targets(masks[:0], method).shape == (0, 64, 64)


def test_views_that_are_not_contiguous_work():
    view = (square().astype(np.uint8) * 255)[::-1, ::2]
    np.testing.assert_array_equal(boundary_target(view), boundary_target(view.copy()))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((8, 8), np.uint8), "values from 1 to 1"),
        (np.zeros((8, 8), np.float32), "float32"),
        (np.zeros((8, 8, 3), bool), r"\(8, 8, 3\)"),
        (np.zeros((0, 5), bool), r"\(0, 5\)"),
    ],
)
def test_what_is_no_mask_is_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        boundary_target(mask)


def test_an_unknown_method_and_a_single_mask_in_place_of_a_stack_are_refused():
    with pytest.raises(ValueError, match="edges: unknown 'sobel'"):
        boundary_target(square(), "sobel")
    with pytest.raises(ValueError, match=r"expected \(N, H, W\)"):
        boundary_targets(square())
