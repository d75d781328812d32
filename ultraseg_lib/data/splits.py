"""Which image trains, which validates, which tests: fixed, committed, and hashed into every result.

A split file ``data/splits/<dataset>-<scheme>.txt`` holds one line an image: part, tab, image_id.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from ultraseg_lib.data.layouts import DataError
from ultraseg_lib.paths import SPLITS, write_text

PARTS = ("train", "val", "test")
TEST_SHARE = 0.2
VAL_SHARE = 0.1  # of what is not tested


def _rank(image_id: str, seed: int) -> str:
    """Return a value that orders images at random, the same on every machine and library version."""
    return hashlib.sha256(f"{seed}:{image_id}".encode()).hexdigest()


def _first_share(ids: Iterable[str], share: float, seed: int) -> set[str]:
    """Return the given share of ``ids``, drawn by rank."""
    ordered = sorted(ids, key=lambda image_id: _rank(image_id, seed))
    return set(ordered[: round(share * len(ordered))])


def make_split(table: pd.DataFrame, seed: int = 0) -> pd.Series:
    """Draw 80 % train and 20 % test, then a tenth of train as val, within each center and modality.

    Returns a series of part names, index ``image_id``.
    """
    parts = pd.Series("train", index=pd.Index(table["image_id"], name="image_id"), name="part")
    for _, group in table.groupby(["center", "modality"], sort=True):
        test = _first_share(group["image_id"], TEST_SHARE, seed)
        rest = set(group["image_id"]) - test
        parts[list(test)] = "test"
        parts[list(_first_share(rest, VAL_SHARE, seed + 1))] = "val"
    return parts


def split_path(dataset: str, scheme: str = "random") -> Path:
    """Return the file of a committed split."""
    return SPLITS / f"{dataset}-{scheme}.txt"


def write_split(parts: pd.Series, path: Path) -> None:
    """Write a split file, sorted by part and name."""
    rows = sorted((PARTS.index(part), name) for name, part in parts.items())
    write_text(path, "".join(f"{PARTS[part]}\t{name}\n" for part, name in rows))


def read_split(path: Path) -> pd.Series:
    """Read a split file; raise DataError for an unknown part or an image named twice."""
    parts: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        part, _, name = line.partition("\t")
        if part not in PARTS or not name or name in parts:
            raise DataError(
                f"{path}, line {number}: found {line!r}; want a part, a tab, a new name"
            )
        parts[name] = part
    return pd.Series(parts, name="part").rename_axis("image_id")


def split_hash(parts: pd.Series) -> str:
    """Return twelve hexadecimal digits that change when any image changes its part."""
    lines = "\n".join(sorted(f"{part}\t{name}" for name, part in parts.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def add_split(table: pd.DataFrame, dataset: str, scheme: str = "random") -> pd.DataFrame:
    """Return ``table`` with a ``part`` column from the committed split, or a drawn one where none is.

    Raises DataError when the committed split names other images than the folder holds.
    """
    path = split_path(dataset, scheme)
    parts = read_split(path) if path.exists() else make_split(table)
    ids = set(table["image_id"])
    absent, unknown = sorted(set(parts.index) - ids), sorted(ids - set(parts.index))
    if absent or unknown:
        example = (absent or unknown)[0]
        raise DataError(
            f"{path}: {len(absent)} of its images are not in the folder and {len(unknown)} of the"
            f" folder's are not in it (for example {example}); complete the dataset and try again"
        )
    return table.assign(part=table["image_id"].map(parts))
