"""Is a copy of a dataset whole? Counts against the catalog, pairs, sizes, and every file readable."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ultraseg_lib.data.layouts import IMAGE_SUFFIXES, DataError, FoundDataset, catalog
from ultraseg_lib.data.loading import EMPTY, each_file, read_pair


@dataclass(frozen=True)
class Verdict:
    """One dataset after the check: ``wrong`` names each fault, a line each; empty when all is well."""

    name: str
    pairs: int
    empty_masks: int
    wrong: tuple[str, ...]


def _check_pair(pair: tuple[str, str]) -> tuple[bool, str]:
    """Return whether the mask is empty, and what is wrong with the pair ('' if nothing)."""
    try:
        _, mask, _ = read_pair(*pair)
    except (DataError, OSError) as error:
        return False, str(error)
    return not mask.any(), ""


def check_counts(found: FoundDataset) -> list[str]:
    """Return where the counts differ from the catalog's, with what is known to be missing allowed."""
    entry = catalog().get(found.name, {})
    spare = entry.get("missing_masks", {})
    wanted = [("pairs", entry.get("pairs"), len(found.table), sum(spare.values()))]
    for column, listed in (("center", "centers"), ("modality", "modalities")):
        counts = found.table[column].value_counts()
        for name, pairs in entry.get(listed, {}).items():
            there, missing = counts.get(name, 0), spare.get(name, 0)
            wanted.append((f"pairs of {column} {name}", pairs, there, missing))
    return [
        f"{found.folder}: found {is_there} {what}, want {pairs}; unpack the archive again"
        for what, pairs, is_there, missing in wanted
        if pairs is not None and not pairs - missing <= is_there <= pairs
    ]


def _unused_masks(table: pd.DataFrame) -> list[str]:
    """Return the masks that stand beside used ones but belong to no image."""
    folders = sorted({Path(mask).parent for mask in table["mask"]})
    files = [path for folder in folders for path in sorted(folder.iterdir())]
    masks = [str(p) for p in files if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]
    unused = set(masks) - set(table["mask"])
    return [f"{mask}: a mask without its image" for mask in masks if mask in unused]


def verify(found: FoundDataset) -> Verdict:
    """Check one dataset: counts, pairs, sizes, and that every file can be read to its end."""
    table = found.table
    pairs = zip(table["image"], table["mask"], strict=True)
    checked = list(each_file(_check_pair, pairs, f"verify {found.name}"))
    faults = [fault for _, fault in checked if fault]
    wrong = [*found.problems, *check_counts(found), *_unused_masks(table), *faults]
    empty = sum(is_empty for is_empty, _ in checked)
    if 0 < len(table) == empty:
        wrong.append(f"{found.folder}: {EMPTY}")
    return Verdict(found.name, len(table), empty, tuple(wrong))
