"""Figures of notebook 01 draw what they are given."""

import numpy as np
import pandas as pd
import pytest

from ultraseg_lib.data import Frames
from ultraseg_lib.data.audit import PAIR_COLUMNS
from ultraseg_lib.report import data_figures, figures


@pytest.fixture
def frames() -> Frames:
    rng = np.random.default_rng(0)
    images = rng.integers(30, 255, (6, 32, 32, 3), np.uint8)
    masks = np.zeros((6, 32, 32), np.uint8)
    masks[1:, 8:20, 8:20] = 255
    table = pd.DataFrame(
        {"dataset": "synthetic", "image_id": list("abcdef"), "center": ["c1"] * 4 + [""] * 2,
         "modality": ["WLI", "NBI"] * 3, "sequence": ["1"] * 4 + ["2"] * 2}
    )  # fmt: skip
    return Frames(images, masks, table)


def test_positions_show_the_share_of_images(frames):
    figure = data_figures.plot_positions({"synthetic": frames.masks})
    shown = figure.axes[0].images[0].get_array()
    assert shown[10, 10] == pytest.approx(100 * 5 / 6)
    assert "generated" in figure.axes[0].get_title()


def test_areas_leave_out_empty_masks_and_sum_to_one_hundred(frames):
    share = (frames.masks > 0).mean(axis=(1, 2))
    figure = data_figures.plot_areas({"synthetic": share})
    assert "n = 5" in figure.axes[0].get_legend().get_texts()[0].get_text()
    assert figure.axes[0].patches[0].get_xy()[:, 1].max() == pytest.approx(100)


def test_counts_name_what_is_not_told(frames):
    axes = data_figures.plot_counts(frames.table).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["c1", "one center"]
    assert sum(bar.get_height() for bar in axes.patches) == 6


def test_colours_draw_a_box_a_channel_and_modality(frames):
    axes = data_figures.plot_colours(frames).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["NBI", "WLI"]


def test_polyps_per_image_are_shares():
    counts = {"synthetic": np.array([0, 1, 1, 1, 2, 3, 4, 5]), "kvasir_seg": np.array([1, 1])}
    axes = data_figures.plot_polyps_per_image(counts).axes[0]
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == [12.5, 37.5, 12.5, 37.5, 0, 100, 0, 0]


def test_pairs_show_the_tested_image_above(frames):
    row = ("synthetic", "a", "synthetic", "b", 0.0)
    pairs = pd.DataFrame([row], columns=PAIR_COLUMNS)
    figure = data_figures.show_pairs(pairs, {"synthetic": frames}, "twins")
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    torn = pairs.assign(part_a="train", part_b="test")
    figure = data_figures.show_pairs(torn, {"synthetic": frames}, "twins")
    assert [axes.get_title() for axes in figure.axes] == ["test: b", "train: a"]
    assert np.array_equal(figure.axes[0].images[0].get_array(), frames.images[1])


def test_sequences_show_each_frame_in_its_part(frames):
    parts = pd.Series(["train", "val", "test", "train", "test", "test"], index=list("abcdef"))
    figure = data_figures.plot_sequences(frames.table, {"one": parts, "two": parts}, "title")
    strip = figure.axes[0].collections[0].get_array()
    assert strip.filled(-1).tolist() == [[0, 1, 2, 0], [2, 2, -1, -1]]
    assert [axes.get_title() for axes in figure.axes] == ["one", "two"]


def test_copies_and_scores_are_labelled(frames):
    shown = [("original", frames.images[0]), ("copy", frames.images[1])]
    figure = figures.show_grid({"": shown}, "title")
    assert [axes.get_title() for axes in figure.axes] == ["original", "copy"]  # and no colour bar
    figure = data_figures.plot_copied_dice({"a": np.array([0.1, 0.2]), "b": np.array([0.9])}, "t")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]
