"""The notebooks' form: what every reader can rely on, and what papermill passes in."""

import ast
import json
import re
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import pytest

from ultraseg_lib import notebooks, study
from ultraseg_lib.paths import NOTEBOOKS

ALL = notebooks.find_notebooks()


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text())["cells"]


def text(cell: dict) -> str:
    return "".join(cell["source"])


@pytest.fixture(params=ALL, ids=lambda path: path.stem)
def notebook(request) -> Path:
    return request.param


def test_what_the_user_chose_is_trained_whatever_the_notebook():
    seventh = notebooks.find_notebooks("07")
    assert notebooks.grids_needed(seventh, study.load_profile("lite")) == ["distillation"]
    chosen = study.load_profile("lite", models=["ultraseg_108k", "ultraseg_108k+kd10"])
    assert notebooks.grids_needed(seventh, chosen) == ["main"]
    assert notebooks.grids_needed(notebooks.find_notebooks("01"), chosen) == []


def test_a_notebook_a_model_shows_runs_with_a_test_part_of_their_own():
    fourth = notebooks.find_notebooks("04")
    both = study.load_profile("lite", models=["lbunet"], datasets=["mixed", "kvasir_seg"])
    shown = [each.parameters["dataset"] for each in notebooks.plan_executions(fourth, both)]
    assert shown == ["kvasir_seg"]
    assert notebooks.plan_executions(fourth, replace(both, datasets=["mixed"])) == []


def test_it_opens_with_question_gain_and_minutes(notebook):
    first = text(cells(notebook)[0])
    assert first.startswith(f"# {notebook.name[:2]} · ")
    for word in ("**Question.**", "**You will know**", "**Minutes.**"):
        assert word in first


def test_its_parameters_are_literals_with_a_comment_each(notebook):
    tagged = [c for c in cells(notebook) if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    lines = text(tagged[0]).splitlines()
    assert 'profile = "demo"' in lines[0]
    for line in lines:
        assert "  # " in line
        ast.literal_eval(line.split("  # ")[0].split("=", 1)[1].strip())


def test_it_ends_with_summary_exercises_and_next(notebook):
    whole = "\n".join(text(c) for c in cells(notebook) if c["cell_type"] == "markdown")
    order = [whole.find(f"## {title}") for title in ("What we saw", "Exercises", "Next")]
    assert -1 < order[0] < order[1] < order[2]


def test_it_is_short_and_was_executed_in_order(notebook):
    code = [c for c in cells(notebook) if c["cell_type"] == "code"]
    assert len(cells(notebook)) <= 60
    assert max(text(c).count("\n") + 1 for c in code) <= 25
    assert [c["execution_count"] for c in code] == list(range(1, len(code) + 1))
    assert not any(out["output_type"] == "error" for c in code for out in c["outputs"])


def test_what_nbval_passes_over_has_its_reason(notebook):
    for cell in cells(notebook):
        if "nbval-ignore-output" in cell["metadata"].get("tags", []):
            assert re.match(r"# .*(differ|machine|time)", text(cell)), text(cell)


def test_its_links_lead_somewhere(notebook):
    for cell in cells(notebook):
        for target in re.findall(r"\]\(([^)#]+)\)", text(cell)):
            assert target.startswith("http") or (NOTEBOOKS / target).exists(), target


def test_papermill_passes_only_parameters_that_exist():
    for execution in notebooks.plan_executions(ALL, study.load_profile("demo")):
        notebooks.check_parameters(execution)


def test_an_unknown_parameter_is_refused():
    execution = notebooks.Execution(ALL[0], {"profil": "demo"}, "x")
    with pytest.raises(ValueError, match=r"no parameter profil; its parameters cell has .*profile"):
        notebooks.check_parameters(execution)


def test_04_is_planned_once_a_model():
    plan = study.load_profile("demo")
    names = [each.name for each in notebooks.plan_executions(ALL, plan)]
    assert [name for name in names if name.startswith("04")] == [
        f"04_train_model-{model}" for model in plan.models
    ]


def test_04_shows_of_a_record_what_it_holds(outputs):
    (outputs / "reference").mkdir(parents=True)  # else the committed record is read
    plan = study.load_profile("reference", models=["lbunet", "unet_tiny", "egeunet"])
    planned = study.plan_runs(plan)
    lbunet, unet, ege = (next(r for r in planned if r.model == model) for model in plan.models)
    held = [
        lbunet,
        replace(lbunet, seed=1),
        replace(unet, epochs=40),
        replace(ege, dataset="mixed"),
    ]
    for run in held:
        run.folder.mkdir(parents=True)
        (run.folder / "scores.csv").touch()
    shown = notebooks.plan_executions([path for path in ALL if path.name[:2] == "04"], plan)
    assert [each.parameters for each in shown] == [vars(held[0]), vars(held[2])]
    for execution in shown:
        notebooks.check_parameters(execution)


def test_a_failure_without_words_is_named(monkeypatch, tmp_path):
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(notebooks, "execute", fail)
    execution = notebooks.Execution(ALL[0], {}, "x")
    assert notebooks._attempt(execution, tmp_path) == (0.0, "MemoryError()")


def test_a_killed_process_is_the_reason_of_its_notebooks():
    task = Future()
    task.set_exception(BrokenProcessPool())
    assert "was killed" in notebooks._outcome(task)[1]


def _papermill_that_fails(monkeypatch, reason: str) -> list[Path]:
    """Let papermill die twice for the given reason, then succeed; return what it was called with."""
    calls = []

    def execute_notebook(notebook, target, parameters, **options):
        calls.append(notebook)
        if len(calls) < 3:
            raise RuntimeError(reason)
        target.write_text("{}")

    monkeypatch.setattr(notebooks, "check_parameters", lambda execution: None)
    monkeypatch.setattr(notebooks.papermill, "execute_notebook", execute_notebook)
    return calls


def test_a_kernel_that_does_not_come_up_is_started_anew(monkeypatch, tmp_path):
    calls = _papermill_that_fails(monkeypatch, notebooks.STILLBORN)
    notebooks.execute(notebooks.Execution(ALL[0], {}, "00"), tmp_path)
    assert calls == [ALL[0]] * 3
    assert (tmp_path / "00.ipynb").exists()


def test_a_kernel_is_not_started_without_end(monkeypatch, tmp_path):
    calls = _papermill_that_fails(monkeypatch, notebooks.STILLBORN)
    monkeypatch.setattr(notebooks, "KERNEL_STARTS", 2)
    with pytest.raises(RuntimeError, match="before replying"):
        notebooks.execute(notebooks.Execution(ALL[0], {}, "00"), tmp_path)
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_that_died_at_work_is_not_started_anew(monkeypatch, tmp_path):
    calls = _papermill_that_fails(monkeypatch, "Kernel died")
    with pytest.raises(RuntimeError, match="Kernel died"):
        notebooks.execute(notebooks.Execution(ALL[0], {}, "00"), tmp_path)
    assert len(calls) == 1


def test_a_failing_notebook_is_kept_reported_and_does_not_stop_the_next(outputs, tmp_path):
    import nbformat

    for name, source in (("01_bad", "profile = 'demo'\n1 / 0"), ("02_good", "profile = 'demo'")):
        cell = nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})
        kernel = {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        }
        notebook = nbformat.v4.new_notebook(cells=[cell], metadata=kernel)
        nbformat.write(notebook, tmp_path / f"{name}.ipynb")
    found = sorted(tmp_path.glob("*.ipynb"))
    plan = notebooks.plan_executions(found, study.load_profile("demo"))
    minutes, failures = notebooks.run_notebooks(plan, study.load_profile("demo"))
    assert list(minutes) == ["02_good"]
    assert "ZeroDivisionError" in failures["01_bad"]
    folder = outputs / "demo" / "notebooks"
    assert sorted(p.name for p in folder.iterdir()) == ["01_bad-failed.ipynb", "02_good.ipynb"]
    assert "1 failed" in notebooks.summary(minutes, failures, study.load_profile("demo"))
