"""The record in prose says what its files say."""

import dataclasses
import re

import pytest

from ultraseg_lib import study
from ultraseg_lib.data import catalog
from ultraseg_lib.data.splits import MIXED
from ultraseg_lib.models import create_model
from ultraseg_lib.paths import ROOT
from ultraseg_lib.report import external, record
from ultraseg_lib.variants import model_title


@pytest.fixture(autouse=True)
def own_outputs(monkeypatch):
    """Read the committed record, wherever the user's outputs are."""
    monkeypatch.delenv("ULTRASEG_OUTPUTS", raising=False)


def cells(table: str) -> list[list[str]]:
    """Return the cells of a Markdown table, its head first."""
    lines = [line for line in table.splitlines() if not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_difference_is_ours_minus_the_papers():
    head, *rows = cells(record.own_results(study.read_ledger("reference")))
    compared = [dict(zip(head, row, strict=True)) for row in rows]
    assert all(len(row) == len(head) for row in rows)
    with_paper = [row for row in compared if row["paper"] != "–"]
    assert with_paper
    for row in with_paper:
        expected = float(row["Dice per batch of 4"]) - float(row["paper"])
        assert float(row["per batch − paper"]) == pytest.approx(expected, abs=2e-3)


def test_unseen_rows_hold_every_setting_once_for_each_unseen_dataset():
    _, *rows = cells(record.unseen_results(study.read_ledger("reference")))
    settings = {dataclasses.replace(run, seed=0) for run in study.finished_runs("reference")}
    assert len(rows) == 2 * len(settings)


def test_leads_are_differences_of_the_tables_beside_the_papers():
    ledger = study.read_ledger("reference")
    head, *rows = cells(record.leads(ledger))
    leads = [dict(zip(head, row, strict=True)) for row in rows]
    tiny = [row for row in leads if row["models"] == "UltraSeg-130K − UNet-Tiny"]
    own = next(row for row in tiny if row["trained on"] == row["tested on"] == "Kvasir-SEG")
    here = ledger[(ledger["recipe"] == "strong") & (ledger["test_set"] == "kvasir_seg")]
    means = here[here["dataset"] == "kvasir_seg"].groupby("model")["dice"].mean()
    ahead = means["ultraseg_130k"] - means["unet_tiny"]
    assert own["Dice per image (95 % interval)"].startswith(f"{ahead:+.3f} (")
    assert own["paper, per batch of 4"] == f"{0.7489 - 0.6146:+.3f}"
    assert all(row["paper, per batch of 4"] == "–" for row in tiny if row is not own)


def test_every_finished_run_stands_in_its_cell_and_gaps_show():
    head, *rows = cells(record.cells_run())
    by_model = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    for run in study.finished_runs("reference"):
        cell = by_model[model_title(run.model)][external.training_title(run.dataset)]
        assert f"{run.recipe}/{run.protocol}" in cell
    assert by_model["UNet-Base"]["Kvasir-SEG"] == "0 of 4"  # two recipes, two protocols
    assert by_model["UltraSeg-130K, no boundary loss"]["PolypGen"] == ""


@pytest.mark.parametrize("run", study.finished_runs("reference"), ids=lambda run: run.run_id)
def test_card_names_data_licence_protocol_scores_and_limits(run):
    card = record.model_card(run)
    for part in ("not a medical device", "## Training", "## Scores", "## Limits", run.run_id):
        assert part in card
    names = MIXED[:3] if run.dataset == "mixed" else [run.dataset.partition("@")[0]]
    assert all(catalog()[name]["license"] in card for name in names)
    scores = study.read_scores(run)
    own = scores["test_set"].isin(MIXED if run.dataset == "mixed" else [run.dataset])
    row = next(line for line in card.splitlines() if "yes, its test part" in line)
    assert f"| {own.sum()} | {scores[own]['dice'].mean():.3f} (" in row
    line = re.search(r"^model = (create_model\(.*\))\.eval\(\)$", card, re.MULTILINE)
    weights = re.search(r'weights ?= ?"([^"]+)"', card)[1]
    assert weights == run.dataset or (ROOT / weights).is_file()
    assert eval(line[1], {"create_model": create_model, "weights": ROOT / weights})
