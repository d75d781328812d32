"""Which image trains, which validates, which tests: fixed, committed, and hashed into every result.

A split file ``data/splits/<dataset>-<scheme>.txt`` holds one line an image: part, tab, image_id.
Schemes: ``random`` (drawn image by image), ``draw_2`` and ``draw_3`` (drawn anew, by seeds 2 and 4:
seed + 1 draws val), ``sequence`` (drawn by whole sequences), ``official`` (the test list that the
dataset's authors publish), ``pranet`` (the lists of PraNet, which many papers use). A new one:
``write_split(make_split(table), split_path(dataset))``.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from ultraseg_lib.data.layouts import DataError
from ultraseg_lib.data.loading import PARTS, Frames, join_frames
from ultraseg_lib.paths import SPLITS, write_text

TEST_SHARE = 0.2
VAL_SHARE = 0.1  # of what is not tested
MIXED = ("cvc_clinicdb", "kvasir_seg", "polypgen", "polypdb")  # trained on together (Table 6)
EXTERNAL = ("etis_larib", "bkai_igh")  # tested whole, never trained on in the mixed set


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
    for _, group in table.groupby(["center", "modality"], sort=True, dropna=False):
        test = _first_share(group["image_id"], TEST_SHARE, seed)
        rest = set(group["image_id"]) - test
        parts[list(test)] = "test"
        parts[list(_first_share(rest, VAL_SHARE, seed + 1))] = "val"
    return parts


def _first_groups(sizes: pd.Series, share: float, seed: int) -> list[str]:
    """Return groups, drawn by rank, each taken if it still fits into ``share`` of all images.

    Where none does, the first of the smallest. Of a single group none: it stays for training.
    """
    if len(sizes) < 2:
        return []
    room, taken = max(round(share * sizes.sum()), sizes.min()), []
    for name in sorted(sizes.index, key=lambda group: _rank(str(group), seed)):
        if sizes[name] <= room:
            taken.append(name)
            room -= sizes[name]
    return taken


def make_grouped_split(table: pd.DataFrame, seed: int = 0) -> pd.Series:
    """Draw a split in which every sequence stands in one part: about 80 % train, 20 % test, if they are many.

    Frames of one sequence show one polyp, so a frame split trains on what it tests. About a tenth
    of the frames that are not tested are val, in whole sequences too. (CVC-ClinicDB's 29 sequences
    come from 25 videos; which of them share a video is not told.) Returns part names, index
    ``image_id``. Raises DataError where the table does not tell the sequence of an image.
    """
    untold = table.loc[table["sequence"].fillna("") == "", "image_id"]
    if len(untold):
        raise DataError(
            f"{table['dataset'].iloc[0]}: no sequence is told for {len(untold)} images (for example"
            f" {untold.iloc[0]}); split this dataset by image"
        )
    sizes = table.groupby("sequence").size()
    test = _first_groups(sizes, TEST_SHARE, seed)
    val = _first_groups(sizes.drop(test), VAL_SHARE, seed + 1)
    part_of = dict.fromkeys(sizes.index, "train") | dict.fromkeys(test, "test")
    parts = table["sequence"].map(part_of | dict.fromkeys(val, "val"))
    return pd.Series(parts.to_numpy(), pd.Index(table["image_id"], name="image_id"), name="part")


def split_path(dataset: str, scheme: str = "random") -> Path:
    """Return the file of a committed split."""
    return SPLITS / f"{dataset}-{scheme}.txt"


def schemes(dataset: str) -> list[str]:
    """Return the schemes by which a dataset may be split: those committed, and "random"."""
    committed = SPLITS.glob(f"{dataset}-*.txt")
    return sorted({"random", *(path.stem.removeprefix(f"{dataset}-") for path in committed)})


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


def committed_hash(dataset: str, scheme: str = "random") -> str | None:
    """Return the hash of a committed split, None where none is and it is drawn."""
    path = split_path(dataset, scheme)
    return split_hash(read_split(path)) if path.exists() else None


def add_split(table: pd.DataFrame, dataset: str, scheme: str = "random") -> pd.DataFrame:
    """Return ``table`` with a ``part`` column from the committed split, or a drawn one where none is.

    Where none is and the table tells sequences, these are drawn whole. Raises DataError when the
    committed split names other images than the folder holds, and for a scheme other than "random"
    of which no split is committed.
    """
    path = split_path(dataset, scheme)
    if scheme != "random" and not path.exists():
        raise DataError(f"{dataset}: no split {scheme!r}; there are {', '.join(schemes(dataset))}")
    parts = read_split(path) if path.exists() else _draw(table)
    ids = set(table["image_id"])
    absent, unknown = sorted(set(parts.index) - ids), sorted(ids - set(parts.index))
    if absent or unknown:
        example = (absent or unknown)[0]
        raise DataError(
            f"{path}: {len(absent)} of its images are not in the folder and {len(unknown)} of the"
            f" folder's are not in it (for example {example}); complete the dataset and try again"
        )
    return table.assign(part=table["image_id"].map(parts))


def _draw(table: pd.DataFrame) -> pd.Series:
    """Draw a split: by whole sequences where any holds several images, an image without one by itself."""
    told = table["sequence"] != ""
    if not table.loc[told, "sequence"].duplicated().any():
        return make_split(table)
    return make_grouped_split(
        table.assign(sequence=table["sequence"].where(told, table["image_id"]))
    )


def _keys(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (dataset, image_id) of each row."""
    return list(zip(table["dataset"], table["image_id"], strict=True))


def mixed_parts(
    tables: Mapping[str, pd.DataFrame], duplicates: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Join the train and val parts of the datasets in ``MIXED`` that are there, without leaks.

    ``tables``: by dataset name, each with its ``part``; those in ``EXTERNAL`` count as tested
    whole, those in neither list play no role. ``duplicates``: pairs of `audit.near_duplicates` over
    all of them. An image that is a near-duplicate of a tested one, of its own dataset or another,
    is left out.

    Returns the joined table, and what was left out: its rows with test_dataset and test_image_id.
    """
    every = pd.concat(tables.values(), ignore_index=True)
    mixed, external = every["dataset"].isin(MIXED), every["dataset"].isin(EXTERNAL)
    held_out = every.loc[(mixed & (every["part"] == "test")) | external, ["dataset", "image_id"]]
    names = ["dataset_a", "image_id_a", "dataset_b", "image_id_b"]
    columns = [*held_out, *held_out.add_prefix("test_")]
    both_ways = [duplicates[n].set_axis(columns, axis=1) for n in (names, names[2:] + names[:2])]
    twins = pd.concat(both_ways).merge(held_out.add_prefix("test_"))
    joined = every[mixed & every["part"].isin(["train", "val"])]
    joined = joined.merge(twins.drop_duplicates([*held_out], keep="last"), "left")
    leaks = joined["test_dataset"].notna()
    kept = joined[~leaks].drop(columns=columns[2:])
    return kept.reset_index(drop=True), joined[leaks].reset_index(drop=True)


def mixed_frames(frames: Mapping[str, Frames], duplicates: pd.DataFrame) -> Frames:
    """Return the frames of the joined table of `mixed_parts`, all of one size."""
    joined, _ = mixed_parts({name: each.table for name, each in frames.items()}, duplicates)
    keys = set(_keys(joined))
    chosen = [
        each.select(pd.Series([key in keys for key in _keys(each.table)]).to_numpy())
        for name, each in frames.items()
        if name in MIXED
    ]
    return join_frames(chosen)


def keep_share(frames: Frames, share: float) -> Frames:
    """Thin the train part to a share in (0, 1], drawn by rank: a smaller share lies in a larger.

    Raises ValueError for another share.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share: found {share}; give more than 0 and at most 1")
    train = (frames.table["part"] == "train").to_numpy()
    keys = pd.Series(_keys(frames.table)).map("/".join)
    kept = _first_share(keys[train], share, seed=2)
    return frames.select(~train | keys.isin(kept).to_numpy())
