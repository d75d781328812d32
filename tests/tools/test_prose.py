"""What notebooks and README say is generated or stands in a file: links, tables, numbers."""

import re
import shlex
from pathlib import Path

import nbformat
import pytest

from tools import prose
from ultraseg_lib import study
from ultraseg_lib.__main__ import _parser
from ultraseg_lib.notebooks import find_notebooks
from ultraseg_lib.paths import NOTEBOOKS, PAPER, ROOT
from ultraseg_lib.report import tables

ALL = find_notebooks()
TEXTS = [ROOT / "README.md", NOTEBOOKS / "README.md", ROOT / "outputs/reference/README.md"]
DECIMAL = re.compile(r"(?<![\w.,])(?:\d+\.\d+|\d{1,3}(?:,\d{3})+)(?![\w.]\d|\w)")
NAMED = re.compile(r"[Ss]ections? \d\.\d|Python \d\.\d+|Eq\. \d|Table \d")  # not measured
SETTINGS = {  # numbers that somebody chose, by file, each with its name
    "any": {"0.5": "the threshold of a mask", "0.1": "million parameters, in the study's question"},
    "00": {"0.3": "another threshold"},
    "02": {"0.73": "σ(1), asserted in the cell above", "0.1": "the weights of Eq. 5"},
    "03": {
        "0.06": "million parameters, a round limit",
        "0.0011": "million parameters, the tolerance",
        "0.3": "the start of a weight",
    },
    "04": {"0.7": "an assumed Dice", "0.02": "an assumed sd"},
    "06": {
        "0.73": "σ(1), asserted in notebook 02",
        "0.8": "√(2/π), the mean length of a normal step",
    },
    "09": {"0.001": "the tolerance of a logit", "3.4": "GHz, as an example"},
    "10": {
        "0.8": "a probability, as an example",
        "0.3": "the Dice below which an image counts as failed",
        "0.12": "a choice of an exercise",
    },
    "11": {"0.2": "seconds that feel immediate", "0.95": "another threshold"},
}


pytestmark = pytest.mark.usefixtures("committed_outputs")


@pytest.fixture(scope="module")
def in_files() -> set[str]:
    """Return every number that the paper's tables or our table of results print."""
    found: set[str] = set()
    for path in PAPER.glob("*.*"):
        found |= set(DECIMAL.findall(path.read_text().replace(",", " ")))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ULTRASEG_OUTPUTS", raising=False)
        ours = tables.shown(tables.main_table(study.read_ledger("reference")), tables.MAIN)
    return found | set(DECIMAL.findall(ours.to_csv().replace(",", " ")))


@pytest.fixture(scope="module")
def renewed() -> dict[Path, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ULTRASEG_OUTPUTS", raising=False)
        return prose.renewed()


def markdown(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text()
    cells = nbformat.read(path, 4)["cells"]
    return "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")


def typed_by_hand(text: str, name: str, known: set[str]) -> list[str]:
    text = NAMED.sub("", prose.BLOCK.sub("", text))
    allowed = known | set(SETTINGS["any"]) | set(SETTINGS.get(name, {}))
    return [number for number in DECIMAL.findall(text) if number not in allowed]


@pytest.mark.parametrize("path", [*ALL, *TEXTS], ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_decimal_stands_in_a_file_or_is_a_named_setting(path, in_files):
    assert typed_by_hand(markdown(path), path.name[:2], in_files) == []


def test_a_decimal_that_no_file_holds_is_found():
    text = "Dice 0.8123 in section 4.1, at 0.5, with 123,456 parameters; it is 0.8999."
    assert typed_by_hand(text, "00", {"123,456"}) == ["0.8123", "0.8999"]


PROSE = [*ROOT.glob("*.md"), *ROOT.glob("[!.]*/**/*.md")]  # not the environment's
PROSE = [path for path in PROSE if "teaching" not in path.parts]
COMMAND = re.compile(r"(\S*)python -m ultraseg_lib((?: [^\s`#]+)*)")


@pytest.mark.parametrize("path", [*ALL, *PROSE], ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_command_can_be_typed(path):
    for python, words in COMMAND.findall(markdown(path).replace("\\\n", "")):
        if path in PROSE:  # a shell stands in the repository's root, without the environment's path
            assert python.lstrip("`").startswith(".venv/bin/")
        try:
            _parser().parse_args(shlex.split(words.replace("DIR", ".")))
        except SystemExit:
            pytest.fail(f"{path}: python -m ultraseg_lib{words} is refused")


CARDS = sorted((ROOT / "outputs/reference/runs").glob("*/MODEL_CARD.md"))
TABLES = [ROOT / "docs/results.csv", ROOT / "outputs/reference/leads.csv"]
GENERATED = [*ALL, *TEXTS, *TABLES, *CARDS]


@pytest.mark.parametrize("path", GENERATED, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_generated_prose_is_fresh(path, renewed):
    advice = f"{path.name} is out of date: python -m tools.prose"
    assert renewed[path] == path.read_text(), advice


def test_each_file_with_generated_prose_is_there(renewed):
    assert set(renewed) == set(GENERATED)


def test_the_notebooks_lead_from_the_first_to_the_last_and_back():
    ends = [nbformat.read(path, 4)["cells"][-1]["source"] for path in ALL]
    for place, end in enumerate(ends):
        linked = re.findall(r"\]\((\S+?)\)", end)
        wanted = [ALL[place + 1].name] if place + 1 < len(ALL) else []
        wanted += list(dict.fromkeys([ALL[place - 1].name, ALL[0].name])) if place else []
        assert linked == wanted
    index = prose.index_of_notebooks()
    assert all(f"({path.name})" in index for path in ALL)
    assert index in markdown(ALL[0])


def test_an_unknown_block_lists_the_known():
    with pytest.raises(
        ValueError, match="no block 'tabel'; choose from index, notebooks, findings"
    ):
        prose.fill("<!-- generated: tabel -->\n<!-- end -->")
