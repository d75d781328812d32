"""Exercises are whole, their solutions pass, and the copies to teach with run as they are."""

import re
from pathlib import Path

import nbformat
import papermill
import pytest

from ultraseg_lib import teaching
from ultraseg_lib.__main__ import main
from ultraseg_lib.notebooks import find_notebooks
from ultraseg_lib.paths import NOTEBOOKS

ALL = find_notebooks()
WITH_EXERCISES = [path for path in ALL if teaching.find_exercises(path)]
QUICK = "00"  # the copy that every test run executes; the slow ones execute all


def said(cell: nbformat.NotebookNode) -> str:
    return "".join(out.get("text", "") for out in cell["outputs"] if out["output_type"] == "stream")


def answer_of(source: str) -> str:
    """Return the name that a start cell leaves open."""
    return re.findall(r"^(answer_\w+) = None", source, re.MULTILINE)[-1]


@pytest.fixture
def copies(outputs) -> Path:
    return teaching.write_copies()


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_each_notebook_has_two_to_four_exercises_that_its_solutions_pass(path):
    exercises = teaching.find_exercises(path)
    assert 2 <= len(exercises) <= 4
    for number, (question, start, solution, check) in enumerate(exercises, 1):
        assert question["source"].startswith(f"### Exercise {number} · ")
        answer = answer_of(start["source"])
        assert re.search(rf"^{answer} = ", solution["source"], re.MULTILINE)
        assert answer in check["source"]
        assert said(check).splitlines()[-1] == "right"
        assert solution["metadata"]["jupyter"]["source_hidden"]


@pytest.mark.parametrize(
    ("answer", "expected", "words"),
    [
        (0.81, 0.8, "right"),
        (0.9, 0.8, "not yet: off by up to 0.1, allowed is 0.02; hint"),
        ([1, 2], [1, 2, 3], "not yet: the shape is (2,), not (3,); hint"),
        ("many", 3, "not yet: 'many' is no number; hint"),
        ("b", "a", "not yet: 'b' is not it; hint"),
        ({"a", "b"}, {"b", "a"}, "right"),
        (None, 1, "no answer yet"),
    ],
)
def test_a_check_says_right_or_what_is_off(capsys, answer, expected, words):
    teaching.check(answer, expected, 0.02, "hint")
    assert capsys.readouterr().out == f"{words}\n"


def test_copies_differ_in_what_they_tell(copies):
    for path in WITH_EXERCISES:
        read = {
            kind: nbformat.read(copies / kind / path.name, 4)["cells"] for kind in teaching.KINDS
        }
        whole, exercises = len(nbformat.read(path, 4)["cells"]), len(teaching.find_exercises(path))
        assert len(read["teacher"]) == whole
        assert len(read["student"]) == len(read["blank"]) == whole - exercises
        assert not any("source_hidden" in str(cell["metadata"]) for cell in read["teacher"])
        assert not any(cell.get("outputs") for cell in read["blank"])
        for kind in ("student", "blank"):
            tags = {tag for cell in read[kind] for tag in cell["metadata"].get("tags", [])}
            assert "check" in tags
            assert "solution" not in tags
        told = [said(c) for c in read["student"] if "check" in c["metadata"].get("tags", [])]
        assert not any(told)


def test_only_the_teacher_gets_the_answers_to_the_questions(copies):
    source = (NOTEBOOKS / "README.md").read_text()
    answers = re.findall(r"<!-- answer: (.*?) -->", source)
    assert len(answers) == len(re.findall(r"^\*\*Q\d+\.\*\*", source, re.MULTILINE)) > 3
    for kind in teaching.KINDS:
        guide = (copies / kind / "README.md").read_text()
        assert all((answer in guide) == (kind == "teacher") for answer in answers)


def test_links_of_the_copies_lead_somewhere(copies):
    for path in copies.rglob("*.ipynb"):
        for cell in nbformat.read(path, 4)["cells"]:
            for target in re.findall(r"\]\((?!http)([^)#]+)\)", cell["source"]):
                assert (path.parent / target).exists(), (path.name, target)


def test_work_in_the_copies_is_not_written_over(copies):
    mine = copies / "student" / ALL[0].name
    mine.write_text(mine.read_text().replace("answer_1 = None", "answer_1 = 3"))
    with pytest.raises(ValueError, match=f"student/{ALL[0].name}.*--force"):
        teaching.write_copies()
    assert "answer_1 = 3" in mine.read_text()
    teaching.write_copies(force=True)
    assert "answer_1 = 3" not in mine.read_text()
    teaching.write_copies()  # untouched copies may be written again
    (copies / "student" / "__pycache__").mkdir()
    (copies / "student" / "__pycache__" / "answers.pyc").touch()
    teaching.write_copies()
    (copies / "student" / "answers.py").write_text("answer = 3")
    with pytest.raises(ValueError, match=r"student/answers\.py"):
        teaching.write_copies()


def test_the_command_says_where_the_copies_are_and_refuses_in_one_line(outputs, capsys):
    assert main(["teach"]) == 0
    assert str(outputs / "teaching" / "student") in capsys.readouterr().out
    (outputs / "teaching" / "student" / "notes.md").write_text("mine")
    assert main(["teach"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_broken_exercise_is_named_and_leaves_the_copies_as_they_were(
    copies, tmp_path, monkeypatch
):
    before = sorted(copies.rglob("*"))
    broken = nbformat.read(ALL[0], 4)
    broken["cells"] = [c for c in broken["cells"] if "check" not in c["metadata"].get("tags", [])]
    nbformat.write(broken, tmp_path / "99_broken.ipynb")
    monkeypatch.setattr(teaching, "find_notebooks", lambda: [*ALL, tmp_path / "99_broken.ipynb"])
    with pytest.raises(ValueError, match=r"99_broken.ipynb: exercise 1, cell \d+: found the tags"):
        teaching.write_copies()
    assert sorted(copies.rglob("*")) == before


def runs(path: Path, tmp_path: Path) -> list[str]:
    """Execute a copy where it lies, and return what its checks say."""
    done = papermill.execute_notebook(
        path, tmp_path / path.name, kernel_name="python3", cwd=path.parent, progress_bar=False
    )
    tagged = [cell for cell in done["cells"] if "check" in cell["metadata"].get("tags", [])]
    return [said(cell).splitlines()[-1] for cell in tagged]


def marked(path: Path):
    slow = [] if path.name.startswith(QUICK) else [pytest.mark.slow]
    return pytest.param(path, marks=slow, id=path.stem)


@pytest.mark.parametrize("path", [marked(path) for path in ALL])
def test_a_student_copy_runs_as_it_is(path, tmp_path):
    folder = tmp_path / "student"
    folder.mkdir()
    nbformat.write(teaching.make_copy(path, "student", folder), folder / path.name)
    expected = ["no answer yet"] * len(teaching.find_exercises(path))
    assert runs(folder / path.name, tmp_path) == expected
