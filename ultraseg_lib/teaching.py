"""Exercises that say whether an answer is right, and copies of the notebooks to teach with.

Notebooks hold an exercise once, with its solution, as four cells in a row with the tags
``exercise`` (the question), ``start`` (code that runs as it is and leaves the answer open),
``solution`` and ``check``.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from nbformat import NotebookNode

from ultraseg_lib.notebooks import find_notebooks
from ultraseg_lib.paths import NOTEBOOKS, ROOT, outputs_dir, whole_folder, write_json

PARTS = ("exercise", "start", "solution", "check")
KINDS = {
    "student": "no solutions; the story keeps its results",
    "teacher": "solutions shown, questions answered",
    "blank": "no solutions and no results at all",
}
WRITTEN = ".written.json"  # the hash of each copy as it was written


def check(answer: Any, expected: Any, tolerance: float = 0.0, hint: str = "") -> None:
    """Print whether an answer is right; a hint helps where it is not.

    ``answer``: None while it is open. ``expected``: a number or an array, met within ``tolerance``
    in every value, or anything else, met exactly.

    >>> check(0.81, 0.8, tolerance=0.02)
    right
    >>> check(None, "b")
    no answer yet
    """
    if answer is None:
        print("no answer yet")
        return
    fault = _what_is_off(answer, expected, tolerance)
    print(f"not yet: {fault}{f'; {hint}' if hint else ''}" if fault else "right")


def _what_is_off(answer: Any, expected: Any, tolerance: float) -> str:
    if isinstance(expected, str | bool | tuple | set | dict):
        return "" if answer == expected else f"{answer!r} is not it"
    try:
        found, wanted = np.asarray(answer, float), np.asarray(expected, float)
    except (TypeError, ValueError):
        return f"{answer!r} is no number"
    if found.shape != wanted.shape:
        return f"the shape is {found.shape}, not {wanted.shape}"
    if np.allclose(found, wanted, rtol=0, atol=tolerance, equal_nan=True):
        return ""
    if (np.isnan(found) & ~np.isnan(wanted)).any():
        return "it holds NaN"
    return f"off by up to {np.nanmax(np.abs(found - wanted)):.3g}, allowed is {tolerance:g}"


# --- exercises in a notebook ----------------------------------------------------------------------


def _part(cell: NotebookNode) -> str:
    """Return which part of an exercise a cell is, "" for none."""
    tags = cell["metadata"].get("tags", [])
    return next((part for part in PARTS if part in tags), "")


def find_exercises(notebook: Path) -> list[list[NotebookNode]]:
    """Return the exercises of a notebook, each as its four cells.

    Raises ValueError, with the notebook and the exercise, where the four do not follow each other.
    """
    cells = nbformat.read(notebook, as_version=4)["cells"]
    tagged = [(place, cell) for place, cell in enumerate(cells) if _part(cell)]
    found = []
    for first in range(0, len(tagged), len(PARTS)):
        group = tagged[first : first + len(PARTS)]
        parts, places = tuple(_part(cell) for _, cell in group), [place for place, _ in group]
        if parts != PARTS or places[-1] - places[0] != len(PARTS) - 1:
            raise ValueError(
                f"{notebook.name}: exercise {len(found) + 1}, cell {places[0]}: found the tags"
                f" {', '.join(parts)}; four cells in a row must have {', '.join(PARTS)}"
            )
        found.append([cell for _, cell in group])
    return found


# --- copies ---------------------------------------------------------------------------------------


def _forget_results(cell: NotebookNode) -> None:
    if cell["cell_type"] == "code":
        cell["outputs"], cell["execution_count"] = [], None


def make_copy(notebook: Path, kind: str, folder: Path) -> NotebookNode:
    """Return a copy of a notebook for ``folder``, of a kind in ``KINDS``."""
    find_exercises(notebook)  # raises where solutions could not be told from the rest
    copy = nbformat.read(notebook, as_version=4)
    for cell in copy["cells"]:
        if kind == "blank" or (kind == "student" and _part(cell)):
            _forget_results(cell)
        if kind == "teacher":
            cell["metadata"].pop("jupyter", None)
        if cell["cell_type"] == "markdown":
            cell["source"] = _from_here(cell["source"], folder)
    if kind != "teacher":
        copy["cells"] = [cell for cell in copy["cells"] if _part(cell) != "solution"]
    return copy


def _from_here(text: str, folder: Path) -> str:
    """Turn links that leave the notebooks folder into links from ``folder``."""
    return text.replace("](../", f"]({Path(os.path.relpath(ROOT, folder)).as_posix()}/")


def _guide(kind: str, folder: Path) -> str:
    """Return ``notebooks/README.md`` for a copy: answers shown to teachers, left out for others."""
    text = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
    shown: str | Callable = r"> **Answer.** \1" if kind == "teacher" else ""
    return _from_here(re.sub(r"<!-- answer: (.*?) -->", shown, text), folder)


def _hashes(folder: Path) -> dict[str, str]:
    """Return the hash of every file but those that Jupyter and Python write by themselves."""
    made = {".ipynb_checkpoints", "__pycache__", WRITTEN}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kept = [path for path in files if made.isdisjoint(path.parts)]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in kept}  # fmt: skip


def _refuse_lost_work(folder: Path) -> None:
    if not folder.exists():
        return
    written = folder / WRITTEN
    known = json.loads(written.read_text(encoding="utf-8")) if written.exists() else {}
    changed = [name for name, value in _hashes(folder).items() if known.get(name) != value]
    if changed:
        raise ValueError(
            f"{folder}: someone worked in {', '.join(changed[:3])}; move the folder away, or give"
            " --force to write over it"
        )


def write_copies(force: bool = False) -> Path:
    """Write all copies of all notebooks into ``outputs/teaching/<kind>/``; return that folder.

    Whole or not at all. Raises ValueError for a notebook whose exercises are not in order, and,
    without ``force``, where someone has worked in the earlier copies.
    """
    target = outputs_dir("teaching")
    if not force:
        _refuse_lost_work(target)
    with whole_folder(target) as temporary:
        for kind in KINDS:
            (temporary / kind).mkdir()
            for notebook in find_notebooks():
                copy = make_copy(notebook, kind, target / kind)
                nbformat.write(copy, temporary / kind / notebook.name)
            guide = _guide(kind, target / kind)
            (temporary / kind / "README.md").write_text(guide, encoding="utf-8")
        write_json(temporary / WRITTEN, _hashes(temporary))
    return target
