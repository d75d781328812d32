"""The figures about networks: what they draw is what the models are."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from torch import nn

from ultraseg_lib.models import create_model
from ultraseg_lib.models.complexity import (
    count_as_paper,
    count_parameters,
    influence_map,
    receptive_field,
)
from ultraseg_lib.models.layers import LearnedMap
from ultraseg_lib.models.ultraseg import EnhancedDilatedBlock
from ultraseg_lib.report import architecture_figures as af
from ultraseg_lib.report import figures

mpl.use("Agg")


@pytest.fixture(autouse=True)
def known_weights():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def ultraseg() -> nn.Module:
    return create_model("ultraseg_130k")


@pytest.mark.parametrize("name", ["lbunet", "egeunet", "ultraseg_130k", "unet_tiny", "fastscnn"])
def test_missed_and_counted_are_all(name):
    row = af.missed_parameters([name]).iloc[0]
    model = create_model(name)
    assert row["total"] == count_parameters(model)
    assert row["counted"] == count_as_paper(model, 64)[0]
    assert row["counted"] + sum(row[kind] for kind in af.MISSED) == row["total"]


def test_missed_parameters_figure_has_a_line_a_model():
    table = af.missed_parameters(["lbunet", "unet_tiny"])
    axes = af.plot_missed_parameters(table).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["LB-UNet", "UNet-Tiny"]


def test_shapes_are_those_of_section_3(ultraseg):
    shapes = af.capture_shapes(ultraseg, 256)
    assert shapes["encoder3"] == [(48, 32, 32)]
    assert shapes["ssa"] == [(96, 16, 16)]
    assert shapes["decoder4"] == [(64, 16, 16), (1, 16, 16)]  # no boundary head at level 4
    assert shapes[""] == [(1, 256, 256)]
    assert ultraseg.training  # the mode is kept


@pytest.mark.parametrize(
    ("name", "with_agf"),
    [("ultraseg_130k", True), ("ultraseg_108k", False), ("ultraseg_108k_st", False)],
)
def test_drawing_holds_every_stage(name, with_agf):
    figure = af.draw_ultraseg(create_model(name), 64)
    words = [text.get_text() for text in figure.axes[0].texts]
    assert {"image", "mask logits", "3×64×64", "1×64×64", "48×8×8"} <= set(words)
    assert words.count("fusion (Eq. 1)") == 4
    assert ("AGF" in words) is with_agf
    assert ("3×3 conv, EDB, EDB" in words) is (name != "ultraseg_108k_st")


@pytest.mark.parametrize("reading", ["released", "as_written"])
def test_field_of_edbs(reading):
    edbs = nn.Sequential(*(EnhancedDilatedBlock(12, reading) for _ in range(2)))
    before = [parameter.clone() for parameter in edbs.parameters()]
    assert af.side_of(af.field_of(edbs[0], 12, 21)) == 7
    assert af.side_of(af.field_of(edbs, 12, 21)) == 13
    assert all(map(torch.equal, before, edbs.parameters()))  # measured on a copy


def test_groupnorm_makes_a_field_global():
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4))
    assert af.side_of(af.field_of(block, 4, 15)) == 15
    assert af.side_of(af.field_of(af.without_groupnorm(block), 4, 15)) == 3


@pytest.mark.parametrize(
    ("reading", "inputs", "dilations"), [("released", 3, 3), ("as_written", 1, 1)]
)
def test_channel_connections(reading, inputs, dilations):
    seen = af.channel_connections(EnhancedDilatedBlock(12, reading))
    assert (seen.sum(axis=1) == inputs).all()
    assert (seen.sum(axis=0) == dilations).all()


def test_learned_maps_do_not_depend_on_the_image(ultraseg):
    one, two = (af.record_outputs(ultraseg, torch.rand(1, 3, 64, 64), LearnedMap) for _ in range(2))
    assert len(one) == 16
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_gates_are_probabilities_at_their_level(ultraseg):
    gates = af.gates_of(ultraseg, torch.rand(2, 3, 64, 64))
    sides = {name: gate.shape[-1] for name, gate in gates.items()}
    levels = {"4": 4, "3": 8, "2": 16, "1": 32}
    regions = {f"region, level {level}": side for level, side in levels.items()}
    boundaries = {f"boundary, level {level}": levels[level] for level in "321"}
    assert sides == {"mask": 64, **regions, **boundaries}
    assert all(gate.min() >= 0 and gate.max() <= 1 for gate in gates.values())


def titles(figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def shown(axes) -> np.ndarray:
    return np.asarray(axes.images[0].get_array())


def test_gates_stand_at_their_level_and_size(ultraseg):
    image, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 255
    gates = af.gates_of(ultraseg, torch.rand(1, 3, 64, 64))
    figure = af.show_gates(image, mask, gates, "generated")
    by_title = {axes.get_title(): axes for axes in figure.axes}
    assert np.array_equal(
        shown(by_title["boundary, level 3\n8×8"]), gates["boundary, level 3"][0, 0]
    )
    assert np.array_equal(shown(by_title["predicted mask"]), gates["mask"][0, 0])
    assert not any(title.startswith("boundary, level 4") for title in by_title)


def test_influence_titles_tell_the_field_and_no_panel_is_invented(ultraseg):
    influence = influence_map(ultraseg, 64, images=1)
    figure = af.show_influence(
        {"before": {"a": influence, "b": influence}, "after": {"b": influence}}, ""
    )
    side = receptive_field(influence)
    assert titles(figure) == [
        f"a\nbefore: {side} px",
        f"b\nbefore: {side} px",
        f"b\nafter: {side} px",
    ]
    assert {square.get_width() for axes in figure.axes[:2] for square in axes.patches} == {side}


def test_fields_and_claims_are_drawn_to_scale():
    field = af.field_of(EnhancedDilatedBlock(12), 12, 15)
    figure = af.show_fields({"one": field}, {"claim": 5})
    assert titles(figure) == ["one: 7 × 7"]
    assert (shown(figure.axes[0]) < 1).sum() == field.sum()
    assert [square.get_width() for square in figure.axes[0].patches] == [5]


def test_connections_are_one_point_each():
    seen = af.channel_connections(EnhancedDilatedBlock(12))
    figure = af.show_connections({"released": seen})
    points = np.concatenate([dots.get_offsets() for dots in figure.axes[0].collections])
    assert {tuple(point) for point in points.astype(int)} == {(i, o) for o, i in np.argwhere(seen)}


def test_panels_of_both_signs_are_white_at_zero():
    signed = np.linspace(-1, 3, 64).reshape(8, 8)
    figure = figures.show_grid({"row": [("map", signed)]}, "title", "factor")
    shown = figure.axes[0].images[0]
    low, high = shown.get_clim()
    assert -low == high < 3
    assert shown.cmap(0.5)[:3] == pytest.approx((1, 1, 1), abs=0.05)


def test_rows_may_be_uneven_and_limits_hold_for_all_maps():
    half = np.full((4, 4), 0.5)
    rows = {"a": [("x", half), ("y", half)], "b": [("z", -half)]}
    figure = figures.show_grid(rows, "title", "share", limits=(-1, 2))
    *filled, empty = figure.axes[:4]
    assert [axes.images[0].get_clim() for axes in filled] == [(-1, 2)] * 3
    assert not empty.images


def test_panels_share_one_scale():
    rows = {
        "one": [
            ("image", np.zeros((4, 4, 3))),
            ("low", np.zeros((4, 4))),
            ("high", np.ones((4, 4))),
        ]
    }
    figure = figures.show_grid(rows, "title", "share")
    assert titles(figure) == ["image", "low", "high"]
    assert [axes.images[0].get_clim() for axes in figure.axes[1:3]] == [(0, 1), (0, 1)]
