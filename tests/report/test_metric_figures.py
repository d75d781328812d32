"""Figures of notebook 02: the numbers behind them agree with the metrics; each gives a Figure."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ultraseg_lib import metrics
from ultraseg_lib.data import Frames
from ultraseg_lib.report import metric_figures as mf


@pytest.fixture
def maps():
    rng = np.random.default_rng(0)
    masks = np.zeros((6, 32, 32), bool)
    masks[1:, 8:20, 8:22] = True  # the first frame has no polyp
    noise = rng.integers(0, 140, masks.shape)
    return (noise + 80 * masks).astype(np.uint8), masks


@pytest.mark.parametrize("level", [1, 90, 128, 255])
def test_counts_at_a_threshold_are_those_of_the_metrics(maps, level):
    probs, masks = maps
    expected = metrics.confusion(probs >= level, masks)
    for ours, theirs in zip(mf.count_by_threshold(probs, masks), expected, strict=True):
        assert np.array_equal(ours[level], theirs)


def test_curves_pass_through_the_scores_at_one_half(maps):
    probs, masks = maps
    pred = probs >= 128
    curves = mf.dice_by_threshold(probs, masks).loc[0.5]
    polyp = metrics.dice_score(pred, masks).mean()
    background = metrics.dice_score(~pred, ~masks).mean()
    assert curves["per image"] == pytest.approx(polyp)
    assert curves["all pixels pooled"] == pytest.approx(metrics.pooled_dice(pred, masks))
    assert curves["per batch of 4"] == pytest.approx(metrics.batch_pooled_dice(pred, masks, 4))
    assert curves["polyp and background"] == pytest.approx((polyp + background) / 2)


def test_edge_length_of_a_square_runs_through_its_outer_pixels():
    mask = np.zeros((32, 32), np.uint8)
    mask[8:18, 8:18] = 255
    assert mf.edge_length(mask) == pytest.approx(4 * 9)


def test_boundary_pixels_of_a_square_and_at_the_frame():
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    assert metrics.boundary_pixels(mask).sum() == 12
    assert metrics.boundary_pixels(np.ones((8, 8), bool)).sum() == 28


@pytest.mark.parametrize("corner", [(0, 0), (0, 31), (31, 0), (31, 31)])
def test_zoom_window_stays_inside_the_image(corner):
    mask = np.zeros((32, 32), np.uint8)
    mask[corner] = 255
    assert mask[mf.zoom_window(mask, 20)].shape == (20, 20)
    assert mask[mf.zoom_window(mask, 20)].any()


@pytest.mark.parametrize("threshold", [0.02, 0.5, 0.98])
def test_threshold_view_renders_frames_with_and_without_a_polyp(maps, threshold):
    probs, masks = maps
    table = pd.DataFrame({"dataset": ["synthetic"] * len(masks)})
    frames = Frames(np.repeat(probs[..., None], 3, axis=3), masks.astype(np.uint8) * 255, table)
    curves = mf.dice_by_threshold(probs, masks)
    for image in (0, 1):
        view = mf.ThresholdView(threshold, image)
        png = mf.to_png(mf.render_threshold(view, frames, probs, curves))
        assert png.startswith(b"\x89PNG")
    assert not plt.get_fignums()


def test_scores_stand_on_the_curves_of_sorted_distances(maps):
    probs, masks = maps
    pred, rng = probs[1] >= 128, np.random.default_rng(0)
    curves = {"few": rng.random(7), "many": rng.random(50)}
    scores = {"largest": curves["few"].max(), "P95": np.percentile(curves["many"], 95)}
    right = mf.show_distances(pred, masks[1], curves, scores, (100, 95)).axes[1]
    few, many = (line.get_xydata() for line in right.lines[:2])
    assert (np.diff(few, axis=0) >= 0).all()
    largest, p95 = (line.get_xydata()[0] for line in right.lines[-2:])
    assert few[-1] == pytest.approx(largest)
    assert np.interp(95, *many.T) == pytest.approx(p95[1])
    assert [text.get_text() for text in right.texts] == ["95 %"]


def test_boundary_steps_enlarge_one_window(maps):
    mask = maps[1][1].astype(np.uint8) * 255
    steps = mf.show_boundary_steps(np.zeros((*mask.shape, 3), np.uint8), mask, "generated").axes
    assert [axes.images[0].get_array().shape[:2] for axes in steps] == [(32, 32)] + 4 * [(28, 28)]


def test_a_models_line_is_its_dice_by_definition():
    table = pd.DataFrame({"A": [0.70, 0.60], "B": [0.50, 0.65]}, ["a", "b"])
    axes = mf.plot_models_by_definition(table, "").axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == [[0.70, 0.60], [0.50, 0.65]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["A", "B"]
