"""From folders as they are downloaded to one tidy table: a row an image.

Columns: dataset, image_id, image, mask, center, modality, sequence. ``image`` and ``mask`` are paths;
``center``, ``modality`` and ``sequence`` are text, empty where a dataset does not tell.
"""

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

COLUMNS = ("dataset", "image_id", "image", "mask", "center", "modality", "sequence")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
MAX_DEPTH = 5


class DataError(ValueError):
    """Something in a dataset folder is wrong; the message names the file and the fix."""


@dataclass(frozen=True)
class FoundDataset:
    """One dataset below the data folder: its table, and the trees that hold it too but were not used."""

    name: str
    folder: Path
    table: pd.DataFrame
    passed_over: tuple[Path, ...] = ()


@lru_cache(maxsize=1)
def catalog() -> dict[str, dict[str, Any]]:
    """Return ``catalog.yaml``: dataset name -> title, licence, page, expected pairs, folder names."""
    text = Path(__file__).with_name("catalog.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def check_dataset_name(name: str) -> None:
    """Raise ValueError, with the names there are, unless ``name`` is in the catalog."""
    if name not in catalog():
        raise ValueError(f"dataset: unknown name {name!r}; choose from {', '.join(catalog())}")


def _plain(name: str) -> str:
    """Return the letters and digits of a folder name in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _folders_named(root: Path, wanted: str) -> list[Path]:
    """Return the folders below ``root`` (or ``root`` itself) whose plain name starts with ``wanted``."""
    found = [root] if _plain(root.name).startswith(wanted) else []
    for parent, names, _ in os.walk(root):
        depth = len(Path(parent).relative_to(root).parts)
        names[:] = (
            sorted(n for n in names if not n.startswith((".", "_"))) if depth < MAX_DEPTH else []
        )
        found += [Path(parent, name) for name in names if _plain(name).startswith(wanted)]
    return found


def _centers(folder: Path, images: str) -> list[str]:
    """Return the values of ``{center}`` for which the image folder exists ('' where none is asked)."""
    if "{center}" not in images:
        return [""] if (folder / images).is_dir() else []
    first = images.split("/", 1)[0]
    pattern = re.compile(re.escape(first).replace(re.escape("{center}"), "(.+)"))
    matches = [pattern.fullmatch(child.name) for child in folder.iterdir() if child.is_dir()]
    names = sorted(match.group(1) for match in matches if match)
    return [name for name in names if (folder / images.format(center=name)).is_dir()]


def _files_by_stem(folder: Path) -> dict[str, Path]:
    """Return the image files of a folder by their name without suffix; two of one stem are refused."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in files:
            raise DataError(
                f"{path}: {files[path.stem].name} has the same name; keep one of the two"
            )
        files[path.stem] = path
    return files


def _pair_rows(folder: Path, tree: dict[str, str], center: str) -> list[dict[str, str]]:
    """Pair the images of one folder with their masks."""
    images = folder / tree["images"].format(center=center)
    masks = folder / tree["masks"].format(center=center)
    if not masks.is_dir():
        raise DataError(
            f"{masks}: folder not found, yet {images} is there; put the masks beside it"
        )
    mask_files = _files_by_stem(masks)
    template = tree.get("mask_name", "{stem}")
    rows = []
    for stem, image in _files_by_stem(images).items():
        mask = mask_files.get(template.format(stem=stem))
        if mask is None:
            wanted = masks / (template.format(stem=stem) + ".*")
            raise DataError(
                f"{image}: its mask {wanted} is missing; restore it or remove the image"
            )
        rows.append({"image_id": f"{center}/{stem}" if center else stem, "image": str(image),
                     "mask": str(mask), "center": center})  # fmt: skip
    return rows


def _read_tree(name: str, folder: Path, tree: dict[str, str]) -> pd.DataFrame | None:
    """Return the table of one tree, or None where the folder holds no image of that tree."""
    centers = _centers(folder, tree["images"])
    rows = [row for center in centers for row in _pair_rows(folder, tree, center)]
    if not rows:
        return None
    fixed = {"dataset": name, "modality": catalog()[name].get("modality", ""), "sequence": ""}
    table = pd.DataFrame(rows).assign(**fixed)
    return table[list(COLUMNS)].sort_values("image_id", ignore_index=True)


def find_dataset(name: str, root: Path) -> FoundDataset | None:
    """Find one dataset anywhere below ``root``; where several trees hold it, the fullest is taken.

    Returns None where no folder bears its name. Raises DataError for an image without a mask, and
    for a folder of that name in which no image is found.
    """
    check_dataset_name(name)
    entry = catalog()[name]
    folders = _folders_named(root, entry["folder"]) if "folder" in entry else []
    found: list[tuple[Path, pd.DataFrame]] = []
    for folder in folders:
        for tree in entry["trees"]:
            table = _read_tree(name, folder, tree)
            if table is not None:
                found.append((folder / Path(tree["images"].split("{")[0] + "-").parent, table))
    if folders and not found:
        wanted = " or ".join(f"{tree['images']}/ with {tree['masks']}/" for tree in entry["trees"])
        raise DataError(f"{folders[0]}: no image found; want {wanted} in it: unpack it again")
    if not found:
        return None
    found.sort(key=lambda pair: -len(pair[1]))
    (folder, table), *others = found
    return FoundDataset(name, folder, table, tuple(path for path, _ in others))


def find_datasets(root: Path) -> dict[str, FoundDataset]:
    """Return every dataset of the catalog found below ``root``, by name."""
    if not root.is_dir():
        raise FileNotFoundError(
            f"data folder {root} not found; pass --data DIR or set ULTRASEG_DATA"
        )
    found = {name: find_dataset(name, root) for name in catalog()}
    return {name: dataset for name, dataset in found.items() if dataset is not None}


def read_table(path: Path, name: str) -> pd.DataFrame:
    """Read a ``table.csv`` that stands beside its images; relative paths are resolved against it."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in ("image", "mask"):
        table[column] = [str(path.parent / value) for value in table[column]]
    table["dataset"] = name
    return table[list(COLUMNS)]
