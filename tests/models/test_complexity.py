"""Table 1 comes back under the paper's convention; the full counts stand beside it."""

import json
import math

import pandas as pd
import pytest
import torch
from torch import nn

from ultraseg_lib.models import MODELS, create_model
from ultraseg_lib.models.complexity import (
    complexity,
    complexity_table,
    count_as_paper,
    count_macs,
    count_parameters,
    influence_map,
    receptive_field,
)
from ultraseg_lib.paths import PAPER

TABLE_1 = pd.read_csv(PAPER / "table1_complexity.csv", index_col="model")
IN_TABLE_1 = [name for name, row in MODELS.items() if row.title in TABLE_1.index]
MEASURED = ("mobileunet", "lbunet", "unet_tiny", "unet_small", "ultraseg_130k", "ultraseg_108k_st")


@pytest.fixture(scope="module")
def rows() -> dict[str, dict]:
    """The rows of some models that are cheap to measure."""
    return {name: complexity(name) for name in MEASURED}


def test_table_1_is_complete(rows) -> None:
    assert len(IN_TABLE_1) == len(TABLE_1) == 11
    for name in ("lbunet", "ultraseg_130k"):
        paper = TABLE_1.loc[MODELS[name].title]
        found = [rows[name][f"paper_{what}"] for what in ("params", "flops")]
        assert found == [paper["params_m"] * 1e6, paper["flops_g"] * 1e9]


@pytest.mark.parametrize("name", IN_TABLE_1)
def test_paper_convention_gives_table_1(name: str) -> None:
    paper = TABLE_1.loc[MODELS[name].title]
    params, flops = count_as_paper(create_model(name, MODELS[name].paper_out_channels))
    assert flops == pytest.approx(paper["flops_g"] * 1e9, rel=0.005)
    if name == "egeunet":  # the paper's 0.053 M are all its parameters; thop sees 0.046 M
        params = count_parameters(create_model(name))
    printed_digit = 50_000 if name == "unet_base" else 0  # 31.0 M is printed to a tenth
    assert abs(params - paper["params_m"] * 1e6) <= max(1_100, printed_digit)


def test_reconstructed_st_has_the_counts_of_table_5(rows) -> None:
    row = rows["ultraseg_108k_st"]
    assert (row["paper_params"], row["paper_flops"]) == (60_000, 185_000_000)
    assert row["paper_convention_params"] == pytest.approx(60_000, rel=0.02)
    assert row["paper_convention_flops"] == pytest.approx(185_000_000, rel=0.02)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("ultraseg_108k", 126_021),
        ("ultraseg_130k", 147_674),
        ("ultraseg_500k", 536_132),
        ("ultraseg_1m11", 1_165_368),
        ("ultraseg_4m38", 4_496_666),
        ("lbunet", 55_865),
        ("egeunet", 53_374),
        ("unet_tiny", 102_210),
        ("unet_small", 389_474),
        ("unet_base", 31_043_521),
        ("mobileunet", 140_865),
        ("fastscnn", 367_649),
    ],
)
def test_all_parameters_are_counted(name: str, parameters: int) -> None:
    assert count_parameters(create_model(name)) == parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    [("ultraseg_500k", 0.50), ("ultraseg_1m11", 1.11), ("ultraseg_4m38", 4.38)],
)
def test_wider_models_are_named_by_the_paper_convention(name: str, millions: float) -> None:
    parameters, _ = count_as_paper(create_model(name))
    assert parameters / 1e6 == pytest.approx(millions, abs=0.01)


def test_equation_2_as_written_would_not_give_table_1() -> None:
    parameters, _ = count_as_paper(create_model("ultraseg_108k", edb="as_written"))
    assert round(parameters / 1e6, 3) == 0.106  # Table 1 prints 0.108


@pytest.mark.parametrize("name", MODELS)
def test_convention_equals_thop(name: str) -> None:
    thop = pytest.importorskip("thop", reason="thop is an optional oracle")
    out_channels = MODELS[name].paper_out_channels
    model = create_model(name, out_channels=out_channels)
    image = torch.zeros(1, 3, 64, 64)
    flops, parameters = thop.profile(model, inputs=(image,), verbose=False)
    assert count_as_paper(create_model(name, out_channels), size=64) == (parameters, flops)


def test_linear_layers_count_as_thop_counts_them() -> None:
    thop = pytest.importorskip("thop", reason="thop is an optional oracle")

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.mix = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.mix(self.conv(image).movedim(1, -1))

    flops, parameters = thop.profile(Mixer(), inputs=(torch.zeros(1, 3, 64, 64),), verbose=False)
    assert count_as_paper(Mixer(), size=64) == (parameters, flops)


def test_macs_are_those_of_the_convolutions() -> None:
    """MobileUNet by hand: output pixels x output channels x what each of them sums."""
    down = [(128, 16, 27), (64, 32, 144), (32, 64, 288), (16, 128, 576)]
    up = [(16, 64 * 4, 128), (32, 32 * 4, 64), (64, 16 * 4, 32), (128, 4, 16)]
    expected = sum(side * side * channels * inputs for side, channels, inputs in down + up)
    assert count_macs(create_model("mobileunet")) == expected


@pytest.mark.parametrize(("name", "giga"), [("lbunet", 0.0937), ("ultraseg_130k", 0.1454)])
def test_macs_leave_norms_out(name: str, giga: float) -> None:
    assert count_macs(create_model(name)) / 1e9 == pytest.approx(giga, abs=5e-5)


class TestReceptiveField:
    def test_one_pixel(self) -> None:
        influence = torch.zeros(16, 16)
        influence[8, 8] = 1
        assert receptive_field(influence) == 1

    def test_square(self) -> None:
        influence = torch.zeros(32, 32)
        influence[14:19, 14:19] = 1  # five pixels around row and column 16
        assert receptive_field(influence, share=1.0) == 5
        assert receptive_field(influence, share=0.36) == 3

    def test_mobileunet_sees_what_its_geometry_allows(self) -> None:
        """Its skips are added, so a pixel sees at most the 31 pixels of four strided 3x3."""
        torch.manual_seed(0)
        influence = influence_map(create_model("mobileunet"), size=128)
        assert influence.sum() == pytest.approx(1, abs=1e-4)
        assert receptive_field(influence, share=0.99999) <= 2 * 31 + 1

    def test_is_measured_in_eval_mode_and_leaves_the_mode(self) -> None:
        model = create_model("ultraseg_130k")
        first, second = (influence_map(model, size=64) for _ in range(2))
        assert torch.equal(first, second)
        assert model.training

    def test_mode_and_hooks_are_restored_after_an_error(self) -> None:
        model = create_model("ultraseg_130k")
        with pytest.raises(ValueError, match="multiples of"):
            count_as_paper(model, size=50)
        assert model.training
        assert not any(len(each._forward_hooks) for each in model.modules())

    def test_gated_models_see_further_than_the_unet(self, rows) -> None:
        fields = {name: row["receptive_field"] for name, row in rows.items()}
        assert fields["unet_tiny"] < fields["ultraseg_130k"] / 2


class TestTable:
    def test_a_row_a_model(self) -> None:
        table = complexity_table(["lbunet", "ultraseg_500k"])
        assert table["name"].tolist() == ["lbunet", "ultraseg_500k"]
        assert math.isnan(table["paper_params"][1])  # released, but in no table of the paper
        assert json.loads(table.to_json(orient="records"))[1]["paper_params"] is None

    def test_checkpoint_holds_every_value(self, rows) -> None:
        for name in ("lbunet", "unet_small"):
            row = rows[name]
            assert 4 * row["parameters"] < row["checkpoint_size"] < 1.5 * 4 * row["parameters"]

    def test_repeats(self, rows) -> None:
        assert complexity("mobileunet") == rows["mobileunet"]

    def test_unknown_name_is_refused(self) -> None:
        with pytest.raises(ValueError, match="did you mean"):
            complexity_table(["unet_tin"])
