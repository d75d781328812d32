"""The page on making the study one's own: its code runs as it stands."""

import re
from dataclasses import replace

import pytest
import torch
from conftest import write_pair

from ultraseg_lib import grid, study, training, variants
from ultraseg_lib.data import find_dataset
from ultraseg_lib.models import MODELS, ModelInfo, create_model
from ultraseg_lib.paths import ROOT

PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
MODEL, ROW, VARIANT, RECIPE, METRICS = PYTHON


@pytest.fixture
def extended(monkeypatch) -> None:
    """Add the page's model, variants and recipe for one test."""
    names = {"ModelInfo": ModelInfo, "Variant": variants.Variant, "replace": replace}
    names |= {"VARIANTS": dict(variants.VARIANTS), "RECIPES": dict(training.RECIPES)}
    for block in (MODEL, VARIANT, RECIPE):
        exec(block, names)
    row = eval(ROW, names)
    monkeypatch.setitem(MODELS, row.name, row)
    for kind, module in (("VARIANTS", variants), ("RECIPES", training)):
        for name, value in names[kind].items():
            monkeypatch.setitem(getattr(module, kind), name, value)


def test_the_model_trains_and_is_scored_by_the_recipe_as_its_variants_are(extended, outputs):
    plan = study.load_profile(
        "demo",
        models=["small_net", "small_net+narrow", "small_net+kd10"],
        recipes=["gentle"],
        seeds=[0],
        epochs=1,
    )
    plan = replace(plan, teacher="ultraseg_108k", image_size=32, generated={"count": 40, "seed": 1})
    runs = study.plan_grids(plan, ["main"])
    for run in runs:
        study.run_once(run, plan)
    scores = study.read_ledger("demo").groupby("model")["dice"].mean()
    assert scores.between(0, 1).all()
    assert set(scores.index) == {run.model for run in runs} >= {"small_net", "small_net+narrow"}
    assert runs[0].training_recipe.learning_rate == 1e-3
    slow = replace(runs[0], model="small_net+slow", recipe="strong")
    assert slow.training_recipe.learning_rate == 1e-3


def test_the_model_is_half_as_wide_in_its_variant(extended):
    widths = [
        variants.build_model(name).head.in_channels for name in ("small_net", "small_net+narrow")
    ]
    assert widths == [64, 32]


def test_a_network_that_is_no_model_of_the_study_is_told_what_it_lacks(monkeypatch):
    class Plain(torch.nn.Module):
        def __init__(self, out_channels: int = 1) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, out_channels, 1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.conv(image)

    monkeypatch.setitem(MODELS, "plain", ModelInfo("plain", "Plain", Plain))
    with pytest.raises(
        ValueError, match=r"plain: .*forward.image, deep_supervision=False., stride.*extend.md"
    ):
        create_model("plain")
    monkeypatch.setitem(MODELS, "none", ModelInfo("none", "None", torch.nn.Identity))
    with pytest.raises(ValueError, match=r"none: .*out_channels"):
        create_model("none")


def test_a_network_that_gives_no_prediction_is_told(monkeypatch):
    class Tensors(torch.nn.Conv2d):
        def forward(self, image: torch.Tensor, deep_supervision: bool = False) -> torch.Tensor:
            return super().forward(image)

    batch = training.Batch(*(torch.zeros(1, channels, 8, 8) for channels in (3, 1, 1)))
    with pytest.raises(ValueError, match=r"Tensors: returned a Tensor; .*Prediction.*extend.md"):
        training.batch_loss(Tensors(3, 1, 1), batch, training.RECIPES["strong"])


def test_the_profile_is_one(tmp_path, monkeypatch):
    (tmp_path / "my_study.yaml").write_text(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    monkeypatch.setattr(grid, "PROFILES", tmp_path)
    assert len(grid.plan_runs(grid.load_profile("my_study"))) == 6


def test_the_table_is_read(tmp_path):
    table = re.search(r"```csv\n(.*?)```", PAGE, re.DOTALL)[1]
    for line in table.splitlines()[1:]:
        name = line.split(",")[0]
        write_pair(tmp_path / f"H/images/{name}.png", tmp_path / f"H/masks/{name}.png")
    (tmp_path / "H/table.csv").write_text(table)
    assert set(find_dataset("h", tmp_path).table["sequence"]) == {"patient_1", "patient_2"}


def test_other_masks_are_scored(capsys):
    exec(METRICS, {})
    assert "PairedTest" in capsys.readouterr().out
