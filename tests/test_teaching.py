"""Exercises are whole, their solutions pass, and the copies to teach with run as they are."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import papermill
import pytest

from ultraseg_lib import teaching
from ultraseg_lib.__main__ import main
from ultraseg_lib.notebooks import find_notebooks
from ultraseg_lib.paths import NOTEBOOKS

ALL = find_notebooks()
QUICK = "00"  # the copy that every test run executes; the slow ones execute all


def said(cell: nbformat.NotebookNode) -> str:
    return "".join(out.get("text", "") for out in cell["outputs"] if out["output_type"] == "stream")


def answer_of(source: str) -> str:
    """Return the name that a start cell leaves open."""
    return re.findall(r"^(answer_\w+) = None", source, re.MULTILINE)[-1]


@pytest.fixture(scope="module")
def all_copies(tmp_path_factory) -> Path:
    """Write the copies of every notebook once, for tests that only read them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ULTRASEG_OUTPUTS", str(tmp_path_factory.mktemp("outputs")))
        return teaching.write_copies()


@pytest.fixture
def two_notebooks(outputs, monkeypatch) -> None:
    monkeypatch.setattr(teaching, "find_notebooks", lambda: ALL[:2])


@pytest.fixture
def copies(two_notebooks) -> Path:
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
        (float("nan"), 1, "not yet: it holds NaN; hint"),
        ([float("nan"), 1], [1, 1], "not yet: it holds NaN; hint"),
        ("b", "a", "not yet: 'b' is not it; hint"),
        ({"a", "b"}, {"b", "a"}, "right"),
        (None, 1, "no answer yet"),
    ],
)
def test_a_check_says_right_or_what_is_off(capsys, answer, expected, words):
    teaching.check(answer, expected, 0.02, "hint")
    assert capsys.readouterr().out == f"{words}\n"


def test_copies_differ_in_what_they_tell(all_copies):
    for path in ALL:
        read = {
            kind: nbformat.read(all_copies / kind / path.name, 4)["cells"]
            for kind in teaching.KINDS
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


def test_only_the_teacher_gets_the_answers_to_the_questions(all_copies):
    source = (NOTEBOOKS / "README.md").read_text()
    answers = re.findall(r"<!-- answer: (.*?) -->", source)
    assert len(answers) == len(re.findall(r"^\*\*Q\d+\.\*\*", source, re.MULTILINE)) > 3
    for kind in teaching.KINDS:
        guide = (all_copies / kind / "README.md").read_text()
        assert all((answer in guide) == (kind == "teacher") for answer in answers)


def test_links_of_the_copies_lead_somewhere(all_copies):
    for path in all_copies.rglob("*.ipynb"):
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


def test_the_command_says_where_the_copies_are_and_refuses_in_one_line(
    two_notebooks, outputs, capsys
):
    assert main(["teach"]) == 0
    assert str(outputs / "teaching" / "student") in capsys.readouterr().out
    (outputs / "teaching" / "student" / "notes.md").write_text("mine")
    assert main(["teach"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_broken_exercise_is_named_and_leaves_the_copies_as_they_were(
    copies, tmp_path, monkeypatch
):
    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in copies.rglob("*")}

    before = written()
    broken = nbformat.read(ALL[0], 4)
    broken["cells"] = [c for c in broken["cells"] if "check" not in c["metadata"].get("tags", [])]
    nbformat.write(broken, tmp_path / "99_broken.ipynb")
    monkeypatch.setattr(teaching, "find_notebooks", lambda: [ALL[0], tmp_path / "99_broken.ipynb"])
    with pytest.raises(ValueError, match=r"99_broken.ipynb: exercise 1, cell \d+: found the tags"):
        teaching.write_copies()
    assert written() == before


# --- copies run without their solutions -----------------------------------------------------------

# Methods that change the object they are called on.
CHANGING = re.compile(
    "append|extend|insert|remove|pop|clear|sort|reverse|update|setdefault|add|discard|fill|put|seed"
    "|manual_seed|shuffle|random|normal|integers|load_state_dict|train|eval|close|.*_"
)
OUTSIDE = re.compile(r"^[%!]|\.\./|\bgetcwd\b|\bPath\(\"", re.MULTILINE)


def loaded(tree: ast.AST) -> list[str]:
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return [node.id for node in names if isinstance(node.ctx, ast.Load)]


def bound(tree: ast.AST) -> set[str]:
    """Return the names that a cell binds: by assignment, definition or import."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
    return found


def changed(tree: ast.AST) -> Iterator[str]:
    """Give the names of the objects that a cell changes in place, as far as its text shows."""
    for node in ast.walk(tree):
        place = None
        if isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
            place = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            in_place = any(each.arg in ("inplace", "out") for each in node.keywords)
            if CHANGING.fullmatch(node.func.attr) or in_place:
                place = node.func.value
        while isinstance(place, ast.Subscript | ast.Attribute):
            place = place.value
        if isinstance(place, ast.Name):
            yield place.id


def faults(cells: list[tuple[str, str]]) -> list[str]:
    """Say where code cells, each a part ("" for the story) and its source, need a solution.

    A story that reads what only a solution binds or changes stops in a student's copy, or shows
    something else there. An answer is read once, by its check.
    """
    found = []
    trees = [ast.parse(source) for _, source in cells]
    for place, (part, source) in enumerate(cells):
        answers = [name for name in loaded(trees[place]) if name.startswith("answer_")]
        if part == "check":
            calls = [node for node in ast.walk(trees[place]) if isinstance(node, ast.Call)]
            checks = [each for each in calls if ast.unparse(each.func) in ("check", "check_answer")]
            first = [ast.unparse(each.args[0]) for each in checks]
            if not first == answers == sorted(bound(trees[place - 2]) & set(answers)):
                found.append(f"the check reads another answer, or more than one time: {source}")
        elif answers:
            found.append(f"an answer is read outside its check: {source}")
        if part == "solution":
            start, solution, check = trees[place - 1 : place + 2]
            touched, own = bound(solution) | set(changed(solution)), bound(start) | bound(check)
            needed = touched & set(loaded(check)) - own
            for later in trees[place + 2 :]:
                needed |= touched & set(loaded(later))
            foreign = set(changed(solution)) - bound(solution) - bound(start)
            found += [f"{name} of a solution is read later" for name in sorted(needed)]
            found += [f"a solution changes {name}" for name in sorted(foreign)]
    return found


def code_of(path: Path) -> list[tuple[str, str]]:
    cells = [cell for cell in nbformat.read(path, 4)["cells"] if cell["cell_type"] == "code"]
    return [(teaching._part(cell), cell["source"]) for cell in cells]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_no_cell_needs_a_solution_or_the_folder_it_runs_in(path):
    assert faults(code_of(path)) == []
    assert [source for _, source in code_of(path) if OUTSIDE.search(source)] == []


@pytest.mark.parametrize(
    ("solution", "check", "later", "fault"),
    [
        ("answer_1 = 2", "check(answer_1, 2)", "x + 1", ""),
        ("y = 2\nanswer_1 = y", "check(answer_1, 2)", "y", "y of a solution is read later"),
        ("y = 2\nanswer_1 = y", "check(answer_1, y)", "x", "y of a solution is read later"),
        ("x = 2\nanswer_1 = x", "check(answer_1, 2)", "x", "x of a solution is read later"),
        ("x.t[0] = 2\nanswer_1 = 2", "check(answer_1, 2)", "1", "a solution changes x"),
        ("x.add_(2)\nanswer_1 = 2", "check(answer_1, 2)", "1", "a solution changes x"),
        ("z[0] = 2\nanswer_1 = 2", "check(answer_1, z)", "1", ""),
        ("z[0] = 2\nanswer_1 = 2", "check(answer_1, 2)", "z", "z of a solution is read later"),
        ("answer_1 = 2", "check(answer_1, 2)", "answer_1", "an answer is read outside its check"),
        ("answer_1 = 2", "check(answer_1, 2, 0, f'{answer_1}')", "x", "the check reads another"),
        ("answer_1 = 2", "check(answer_2, 2)", "x", "the check reads another"),
    ],
)
def test_a_story_that_needs_a_solution_is_found(solution, check, later, fault):
    start = ("start", "z = x.copy()\nanswer_1 = None")
    found = faults([("", "x = 1"), start, ("solution", solution), ("check", check), ("", later)])
    assert any(each.startswith(fault) for each in found) == bool(fault)


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
