"""Every folder the study reads or writes, and the one way it writes files: whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
SPLITS = ROOT / "data" / "splits"
PAPER = ROOT / "data" / "paper"
PROFILES = Path(__file__).resolve().parent / "profiles"


def data_dir() -> Path:
    """Return the folder that holds the user's datasets: ``ULTRASEG_DATA``, else ``data/raw``.

    A relative path counts from the repository, wherever a program or notebook is started.
    """
    return (ROOT / (os.environ.get("ULTRASEG_DATA") or "data/raw")).resolve()


def outputs_dir(profile: str | None = None) -> Path:
    """Return ``ULTRASEG_OUTPUTS`` (else ``outputs/``), or the folder of one profile inside it.

    The committed record is read from the repository unless there is another in that folder.
    """
    base = (ROOT / (os.environ.get("ULTRASEG_OUTPUTS") or "outputs")).resolve()
    if profile == "reference" and not (base / profile).exists():
        base = ROOT / "outputs"
    return base / profile if profile else base


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to; rename it to ``path`` only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_utf8(path: Path) -> bool:
    """Return whether a path can be written as text: OpenCV ends the process where it cannot."""
    return str(path).encode(errors="ignore").decode() == str(path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill; it takes the place of ``path`` only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, aside = (path.with_name(f".{path.name}.{os.getpid()}.{x}") for x in ("tmp", "old"))
    for each in (temporary, aside):
        shutil.rmtree(each, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            os.replace(path, aside)
        os.replace(temporary, path)
    finally:
        if aside.exists() and not path.exists():
            os.replace(aside, path)
        for each in (temporary, aside):
            shutil.rmtree(each, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in one step, so that a reader never meets half a file."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON in one step."""
    write_text(path, json.dumps(value, indent=2) + "\n")
