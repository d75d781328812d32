"""Run the notebooks headless, in order, by papermill; the executed copies go to the outputs."""

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import papermill
from papermill.inspection import inspect_notebook
from tqdm.auto import tqdm

from ultraseg_lib.grid import GRIDS, Profile, Run
from ultraseg_lib.paths import NOTEBOOKS, outputs_dir, whole_file
from ultraseg_lib.provenance import usable_cores
from ultraseg_lib.study import has_own_test_part, pick_run

GRIDS_OF = {  # the runs that a notebook reads, by its number; the others read the main grid
    1: (), 6: ("main", "ablation"), 7: ("distillation",), 8: ("external",), 12: GRIDS,
}  # fmt: skip
PER_MODEL = "04_train_model"
TIMED = "09_benchmark_cpu"  # runs alone
KERNEL_STARTS = 3  # how often a kernel is started that dies before its first answer
STILLBORN = "Kernel died before replying to kernel_info"


class Execution(NamedTuple):
    """One notebook to run: its file, its parameters, and the name of the executed copy."""

    notebook: Path
    parameters: dict[str, Any]
    name: str


def number(notebook: Path) -> int:
    """Return the number that a notebook's name begins with."""
    return int(notebook.name[:2])


def find_notebooks(only: str | None = None, start: str | None = None) -> list[Path]:
    """Return the notebooks in order: all, the one numbered ``only``, or those from ``start`` on.

    Raises ValueError where both are given, or a number that no notebook has.
    """
    found = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    numbers = [number(path) for path in found]
    if only and start:
        raise ValueError("--only and --from: give one of them")
    for option, value in (("--only", only), ("--from", start)):
        if value is not None and (not value.isdecimal() or int(value) not in numbers):
            known = ", ".join(f"{each:02d}" for each in numbers)
            raise ValueError(f"{option}: no notebook {value!r}; choose from {known}")
    first, last = int(only or start or 0), int(only or 99)
    return [path for path in found if first <= number(path) <= last]


def grids_needed(notebooks: list[Path], profile: Profile) -> list[str]:
    """Return the names of the grids whose runs the notebooks read.

    A profile without other grids than the main one, as where the user chose models, has that one.
    """
    needed = {grid for path in notebooks for grid in GRIDS_OF.get(number(path), ("main",))}
    if needed and not profile.grids:
        return ["main"]
    return [grid for grid in GRIDS if grid in needed]


def plan_executions(notebooks: list[Path], profile: Profile) -> list[Execution]:
    """Return what to run: each notebook once, except 04, which is run once a model.

    Of a record, which is not trained, 04 shows the models that have a finished run.
    """
    plan = []
    for notebook in notebooks:
        if notebook.stem != PER_MODEL:
            plan.append(Execution(notebook, {"profile": profile.name}, notebook.stem))
            continue
        for run in _one_run_a_model(profile):
            plan.append(Execution(notebook, dict(vars(run)), f"{notebook.stem}-{run.model}"))
    return plan


def _one_run_a_model(profile: Profile) -> list[Run]:
    if profile.frozen:
        shown = {model: pick_run(profile, model) for model in profile.models}
        return [run for model, run in shown.items() if run.model == model]
    datasets = [name for name in profile.datasets if has_own_test_part(name)]
    if not datasets:
        return []
    axes = (datasets, profile.recipes, profile.protocols, [profile.epochs], profile.seeds)
    setting = [axis[0] for axis in axes]
    return [Run(profile.name, model, *setting) for model in profile.models]


def check_parameters(execution: Execution) -> None:
    """Raise ValueError for a parameter that the notebook's ``parameters`` cell does not hold."""
    known = inspect_notebook(execution.notebook)
    unknown = sorted(set(execution.parameters) - set(known))
    if unknown:
        raise ValueError(
            f"{execution.notebook.name}: no parameter {', '.join(unknown)}; its parameters cell has"
            f" {', '.join(known)}"
        )


def execute(execution: Execution, folder: Path) -> float:
    """Run one notebook in the notebooks folder, write the executed copy, return the minutes."""
    check_parameters(execution)
    began = time.perf_counter()
    target = folder / f"{execution.name}.ipynb"
    target.unlink(missing_ok=True)
    failed = target.with_name(f"{target.stem}-failed.ipynb")
    failed.unlink(missing_ok=True)
    with whole_file(target) as temporary:
        try:
            _run_cells(execution, temporary)
        except papermill.PapermillExecutionError:
            temporary.rename(failed)  # the cell that failed can be read there
            raise
    return (time.perf_counter() - began) / 60


def _run_cells(execution: Execution, target: Path) -> None:
    """Run one notebook by papermill, anew where its kernel did not come up.

    Jupyter chooses a kernel's ports before the kernel takes them: of two that start side by side,
    one may find a port gone.
    """
    for start in range(1, KERNEL_STARTS + 1):
        try:
            papermill.execute_notebook(
                execution.notebook, target, execution.parameters, kernel_name="python3",
                cwd=NOTEBOOKS, progress_bar=False, extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )  # fmt: skip
            return
        except RuntimeError as error:
            if STILLBORN not in str(error) or start == KERNEL_STARTS:
                raise


def _attempt(execution: Execution, folder: Path) -> tuple[float, str]:
    """Run one notebook; return its minutes, and the last line of what went wrong or nothing."""
    try:
        return execute(execution, folder), ""
    except Exception as error:
        return 0.0, (str(error).strip() or repr(error)).splitlines()[-1]


def _use_threads(count: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(count)  # the kernels inherit it


def _attempts(plan: list[Execution], folder: Path) -> Iterator[tuple[Execution, float, str]]:
    """Run notebooks side by side, one a core, then those that time something, each alone."""
    alone = [each for each in plan if each.notebook.stem == TIMED]
    together = [each for each in plan if each not in alone]
    jobs = max(1, min(usable_cores(), len(together)))
    fresh = multiprocessing.get_context("spawn")
    threads = (max(1, usable_cores() // jobs),)
    with ProcessPoolExecutor(jobs, fresh, _use_threads, threads) as pool:
        tasks = {pool.submit(_attempt, each, folder): each for each in together}
        for task in as_completed(tasks):
            yield tasks[task], *_outcome(task)
    for each in alone:
        yield each, *_attempt(each, folder)


def _outcome(task: Future) -> tuple[float, str]:
    """Return what `_attempt` returned, or the reason where its process died."""
    try:
        return task.result()
    except BrokenProcessPool:
        return 0.0, "a process that ran notebooks was killed (memory?)"


def run_notebooks(
    plan: list[Execution], profile: Profile
) -> tuple[dict[str, float], dict[str, str]]:
    """Run every notebook of the plan; return minutes by name, and the reason of each that failed."""
    folder = outputs_dir(profile.name) / "notebooks"
    minutes: dict[str, float] = {}
    failures: dict[str, str] = {}
    with tqdm(total=len(plan), unit="notebook", disable=None) as bar:
        for execution, taken, reason in _attempts(plan, folder):
            bar.update()
            if reason:
                failures[execution.name] = reason
                print(f"{execution.name}: failed: {reason}", file=sys.stderr)
            else:
                minutes[execution.name] = taken
    return dict(sorted(minutes.items())), dict(sorted(failures.items()))


def save_minutes(minutes: dict[str, float], profile: Profile) -> None:
    """Keep what each notebook took in ``outputs/<profile>/minutes.csv``; others' rows stay."""
    path = outputs_dir(profile.name) / "minutes.csv"
    known = pd.read_csv(path, index_col="notebook")["minutes"].to_dict() if path.exists() else {}
    table = pd.Series(known | {name: round(value, 2) for name, value in minutes.items()})
    with whole_file(path) as temporary:
        table.sort_index().rename_axis("notebook").rename("minutes").to_csv(temporary)


def summary(minutes: dict[str, float], failures: dict[str, str], profile: Profile) -> str:
    """Return the closing lines of a study: notebooks, minutes, and where the results are."""
    base = outputs_dir(profile.name)
    lines = [f"  {name:<40} {value:5.1f} min" for name, value in minutes.items()]
    lines += [f"  {name:<40} FAILED: {reason}" for name, reason in failures.items()]
    total = f"{len(minutes)} notebooks run, {len(failures)} failed; of each, some side by side:"
    places = [f"{what:<10} {base / what}" for what in ("notebooks", "figures", "tables", "runs")]
    return "\n".join([total, *lines, *places])
