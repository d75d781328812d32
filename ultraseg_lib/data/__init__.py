"""Datasets: ``load_dataset(name, ...)`` goes from a name to frames with their split."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

from ultraseg_lib.choices import check_choice
from ultraseg_lib.data import synthetic
from ultraseg_lib.data.layouts import (
    DataError,
    FoundDataset,
    catalog,
    dataset_title,
    find_dataset,
    find_datasets,
    look_for_datasets,
    read_table,
    sequences,
    split_share,
)
from ultraseg_lib.data.loading import Frames, content_hash, join_frames, load_frames
from ultraseg_lib.data.splits import add_split, split_hash
from ultraseg_lib.paths import data_dir, outputs_dir

GENERATED = ("synthetic", "synthetic_unseen")


def generator_version() -> str:
    """Return eight hexadecimal digits that change with the generator's code."""
    code = Path(synthetic.__file__).read_bytes()
    return hashlib.sha256(code).hexdigest()[:8]


def load_generated(name: str, size: int, count: int, seed: int) -> Frames:
    """Return ``count`` generated frames at ``size`` pixels with their split, making them once.

    ``name``: "synthetic", or "synthetic_unseen" for other scenes seen by a center that the former
    never draws. Raises ValueError for another name, a size below 32, no image or a negative seed.
    """
    check_choice("name", name, GENERATED)
    if count < 1:
        raise ValueError(f"count: found {count}; give one image or more")
    center = synthetic.UNSEEN_CENTER if name == "synthetic_unseen" else None
    seed += 1_000_000 if center else 0  # other scenes
    folder = outputs_dir("generated") / f"{name}-{size}-{count}-{seed}-{generator_version()}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # two studies may want the same images at once
        if not (folder / "table.csv").exists():
            synthetic.write_dataset(folder, count, size, seed, center)
    return load_frames(add_split(read_table(folder / "table.csv", name), name), size)


def told_sequences(name: str) -> Mapping[str, str]:
    """Return the video of each frame of a dataset, by image_id, where a list of it or its own table tells."""
    if name in catalog() or not data_dir().is_dir():
        return sequences(name)
    own = look_for_datasets(data_dir()).get(name)
    return {} if own is None else own.table.set_index("image_id")["sequence"].to_dict()


def load_dataset(name: str, size: int, scheme: str = "random") -> Frames:
    """Return the frames of one real dataset at ``size`` pixels with their split.

    Looks below ``paths.data_dir()``. Raises FileNotFoundError, with the way to get it, where the
    dataset is not there, and DataError where a file in it is wrong.
    """
    root = data_dir()
    found = find_dataset(name, root)
    if found is None:
        entry = catalog()[name]
        raise FileNotFoundError(
            f"{entry['title']} not found below {root}; get it from {entry['page']} and unpack it there"
        )
    return load_frames(add_split(found.table, name, scheme), size)
