"""From folders as they are downloaded to one tidy table: a row an image.

Columns: dataset, image_id, image, mask, center, modality, sequence. ``image`` and ``mask`` are
paths; ``center``, ``modality`` and ``sequence`` are text, empty where a dataset does not tell. How
each dataset's folders look stands in ``catalog.yaml``; one of the user's own may tell the three in
a ``table.csv`` beside its folders.
"""

import filecmp
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import yaml

from ultraseg_lib.choices import check_choice
from ultraseg_lib.paths import ROOT, is_utf8

COLUMNS = ("dataset", "image_id", "image", "mask", "center", "modality", "sequence")
SEQUENCES = ROOT / "data" / "sequences"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
TOLD = ("center", "modality", "sequence")
TABLE = "table.csv"
MAX_DEPTH = 5
PLAIN_TREES = [  # a dataset of the user's own
    {"images": "image|images", "masks": "mask|masks", "mask_name": "{stem}|{stem}_mask"}
]


class DataError(ValueError):
    """Something in a dataset folder is wrong; the message names the file and the fix."""


@dataclass(frozen=True)
class FoundDataset:
    """One dataset below the data folder.

    ``passed_over``: trees that hold it too but were not used. ``skipped``: images left out for a
    fault that every copy has. ``problems``: what is wrong, a line each, with its fix.
    """

    name: str
    folder: Path
    table: pd.DataFrame
    passed_over: tuple[Path, ...] = ()
    skipped: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass
class _Tree:
    """What was read by one of the ``trees`` of the catalog in one folder."""

    folder: Path
    rule: dict[str, str]
    rows: list[dict[str, str]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def place(self) -> Path:
        """The last folder before the parts that differ from image folder to image folder."""
        return self.folder / Path(self.rule["images"].split("{")[0] + "-").parent


@lru_cache(maxsize=1)
def catalog() -> dict[str, dict[str, Any]]:
    """Return ``catalog.yaml``: dataset name -> title, licence, page, expected pairs, folder names."""
    text = Path(__file__).with_name("catalog.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def split_share(name: str) -> tuple[str, int]:
    """Return a dataset without its share of training images, and the share in percent.

    >>> split_share("mixed@p25"), split_share("polypgen@center_C3")
    (('mixed', 25), ('polypgen@center_C3', 100))
    """
    share = re.fullmatch(r"(.+)@p(\d+)", name)
    return (share[1], int(share[2])) if share else (name, 100)


def dataset_title(name: str) -> str:
    """Return the title of a dataset, with its selection if one is named (``name@selection``).

    A selection is a split, a share of the training images (``p25``: 25 %) or a center
    (``center_C3``). The user's own datasets bear their names.
    """
    whole, share = split_share(name)
    dataset, _, selection = whole.partition("@")
    title = catalog().get(dataset, {"title": dataset})["title"]
    if whole != name:
        return f"{title}, {share} %"
    if not selection:
        return title
    if selection.startswith("draw_"):
        return f"{title}, {selection.replace('_', ' ')}"
    center = selection.removeprefix("center_")
    return f"{title}, {selection} split" if center == selection else f"{title}, center {center}"


def _plain(name: str) -> str:
    """Return the letters and digits of a folder name in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _owners(folder: Path, root: Path) -> list[str]:
    """Return the datasets whose folder bears the name of ``folder``; ``root`` must hold their images."""
    name = _plain(folder.name)
    named = [key for key, entry in catalog().items() if name.startswith(entry.get("folder", "/"))]
    if folder != root:
        return named
    return [key for key in named if any(
        _places(root, rule["images"], {}, catalog()[key]) for rule in catalog()[key]["trees"]
    )]  # fmt: skip


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Walk as `os.walk`, without the files; linked folders are entered as well, each folder once."""
    seen = set()
    for parent, names, _ in os.walk(root, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            names.clear()
            continue
        seen.add(real)
        yield parent, names


def _folders(root: Path) -> list[Path]:
    """Return ``root`` and the folders below it, without those inside a closed dataset."""
    found = []
    for parent, names in _walk(root):
        folder = Path(parent)
        closed = any(catalog()[owner].get("closed") for owner in _owners(folder, root))
        deepest = closed or len(folder.relative_to(root).parts) >= MAX_DEPTH
        names[:] = [] if deepest else sorted(n for n in names if not n.startswith((".", "_")))
        names[:] = [name for name in names if os.access(folder / name, os.R_OK | os.X_OK)]
        found += [folder / name for name in names]
    return [root, *found]


def _places(
    folder: Path, pattern: str, known: dict[str, str], entry: dict[str, Any]
) -> list[tuple[Path, dict[str, str]]]:
    """Return the folders that fit ``pattern`` below ``folder``, each with its center and modality."""
    if not pattern:
        return [(folder, known)]
    first, _, rest = pattern.partition("/")
    for key, listed in (("center", entry.get("centers")), ("modality", entry.get("modalities"))):
        value = re.escape(known[key]) if key in known else "|".join(listed or [".+"])
        first = first.replace(f"{{{key}}}", f"({value})" if key in known else f"(?P<{key}>{value})")
    fitting = []
    for child in sorted(folder.iterdir()):
        match = re.fullmatch(first, child.name, re.IGNORECASE)
        if match and child.is_dir() and os.access(child, os.R_OK | os.X_OK):
            fitting += _places(child, rest, known | match.groupdict(), entry)
    return fitting


def _files_by_stem(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Return the image files of a folder by their name without suffix; two of one stem are a problem."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        if not is_utf8(path):
            problems.append(f"{path!a}: its name is not UTF-8; rename it")
            continue
        stem = unicodedata.normalize("NFC", path.stem)  # macOS may write it in two letters
        if stem in files:
            other = files[stem].name
            problems.append(f"{path}: {other} has the same name; keep one of the two")
        files.setdefault(stem, path)
    return files


def _masks_of(tree: _Tree, images: Path, known: dict[str, str]) -> tuple[Path, dict] | None:
    """Return the folder of the masks of the folder ``images``, and these by stem; None without one."""
    places = _places(tree.folder, tree.rule["masks"], known, {})
    if places:
        return places[0][0], _files_by_stem(places[0][0], tree.problems)
    wanted = tree.folder / tree.rule["masks"].format(**known)
    tree.problems.append(
        f"{wanted}: folder not found, yet {images} is there; put the masks beside it"
    )
    return None


def _read_pairs(tree: _Tree, images: Path, known: dict[str, str], spare: int) -> None:
    """Add to ``tree`` the pairs of one image folder; ``spare`` images may lack their mask."""
    files = _files_by_stem(images, tree.problems)
    place = _masks_of(tree, images, known) if files else None
    if place is None:
        return
    folder, masks = place
    id_rule = tree.rule.get("image_id", "{center}/{stem}" if "center" in known else "{stem}")
    mend = "restore it" + (" or remove the image" if tree.rule in PLAIN_TREES else "")
    for stem, image in files.items():
        rules = tree.rule.get("mask_name", "{stem}").split("|")
        mask_names = [rule.format(stem=stem) for rule in rules]
        mask = next((masks[name] for name in mask_names if name in masks), None)
        if mask is not None:
            names = {"image_id": id_rule.format(stem=stem, **known), "center": "", "modality": ""}
            tree.rows.append(names | known | {"image": str(image), "mask": str(mask)})
        elif spare > 0:
            spare -= 1
            tree.skipped.append(f"{image}: no mask is published for it; passed over")
        else:
            tree.problems.append(f"{image}: its mask {folder / mask_names[0]}.* is missing; {mend}")


def _read_trees(folders: list[Path], entry: dict[str, Any]) -> list[_Tree]:
    """Read every tree of an entry in every folder; return those that hold anything, fullest first."""
    found = []
    for rule, folder in product(entry.get("trees", []), folders):
        tree = _Tree(folder, rule)
        for images, known in _places(folder, rule["images"], {}, entry):
            spare = entry.get("missing_masks", {}).get(known.get("modality"), 0)
            _read_pairs(tree, images, known, spare)
        if tree.rows or tree.problems:
            found.append(tree)
    return sorted(found, key=lambda tree: -len(tree.rows))


def _complete(tree: _Tree, others: list[_Tree]) -> list[_Tree]:
    """Take the center or modality that ``tree`` does not tell from others that do; return these."""
    used = []
    for column in ("center", "modality"):
        untold = not any(row[column] for row in tree.rows)
        for other in others if untold else []:
            told = {Path(row["image"]).stem: row[column] for row in other.rows if row[column]}
            told |= {row["image_id"]: row[column] for row in other.rows if row[column]}
            if told:
                for row in tree.rows:
                    stem = Path(row["image"]).stem
                    row[column] = told.get(row["image_id"]) or told.get(stem, "")
                used.append(other)
                break
    return used


def _tell(tree: _Tree) -> None:
    """Add what the ``table.csv`` of a dataset of one's own tells of its images; note what is wrong in it."""
    path = tree.folder / TABLE
    if not path.is_file():
        return
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except (ValueError, OSError) as error:  # not text, no table, not readable
        tree.problems.append(f"{path}: cannot be read ({error}); mend or remove it")
        return
    table.columns = table.columns.str.strip()
    table = table.apply(lambda column: column.str.strip())
    columns = [column for column in TOLD if column in table]
    if "image_id" not in table or not columns:
        tree.problems.append(
            f"{path}: has the columns {', '.join(table)}; want image_id (the image's name without its"
            f" ending) and any of {', '.join(TOLD)}, or another name for this file"
        )
        return
    table = table[table["image_id"] != ""]  # a spreadsheet's empty lines
    table.index = [unicodedata.normalize("NFC", name) for name in table["image_id"]]
    untold = [row["image_id"] for row in tree.rows if row["image_id"] not in table.index]
    twice = table.index[table.index.duplicated()]
    for names, fault in ((untold, "does not name"), (twice, "names more than once")):
        if len(names):
            tree.problems.append(f"{path}: {fault} {len(names)} images (for example {names[0]})")
            return
    for row in tree.rows:
        row |= table.loc[row["image_id"], columns]


@cache
def sequences(name: str) -> Mapping[str, str]:
    """Return the video of each frame of a dataset, by image_id; empty where no list is committed."""
    listed = catalog().get(name, {}).get("sequences")
    if listed is None:
        return MappingProxyType({})
    frames = pd.read_csv(SEQUENCES / listed, dtype=str)
    return MappingProxyType(dict(zip(frames["frame"], frames["sequence"], strict=True)))


def _table(name: str, rows: list[dict[str, str]], entry: dict[str, Any]) -> pd.DataFrame:
    """Return the rows as a table in the order of ``image_id``."""
    table = pd.DataFrame(rows, columns=list(COLUMNS)).assign(dataset=name)
    if "modality" in entry:
        table["modality"] = entry["modality"]
    listed = sequences(name)
    table["sequence"] = [row.get("sequence", listed.get(row["image_id"], "")) for row in rows]
    return table.sort_values("image_id", ignore_index=True)


def _choose(name: str, trees: list[_Tree], entry: dict[str, Any]) -> FoundDataset:
    """Make a dataset of the fullest tree."""
    best, *others = trees
    used = _complete(best, others)
    twice = [i for i, n in Counter(row["image_id"] for row in best.rows).items() if n > 1]
    problems = [f"{best.place}: {i} stands in two folders; keep one of the two" for i in twice]
    left = [each.place for each in others if each not in used and each.place != best.place]
    return FoundDataset(
        name, best.place, _table(name, best.rows, entry), tuple(dict.fromkeys(left)),
        tuple(best.skipped), tuple(best.problems + problems),
    )  # fmt: skip


def _look_for(name: str, folders: list[Path]) -> FoundDataset | None:
    """Look for one dataset of the catalog in the folders that bear its name; the first is the root."""
    entry = catalog()[name]
    named = [folder for folder in folders if name in _owners(folder, folders[0])]
    trees = _read_trees(named, entry)
    if trees:
        return _choose(name, trees, entry)
    if not named:
        return None
    wanted = " or ".join(f"{rule['images']}/ with {rule['masks']}/" for rule in entry["trees"])
    problem = f"{named[0]}: no image found; want {wanted} in it: unpack it again"
    return FoundDataset(name, named[0], _table(name, [], entry), problems=(problem,))


def _is_copy(tree: _Tree, best: _Tree) -> bool:
    """Return whether every pair of ``tree`` is in ``best`` as well, byte by byte."""
    there = {row["image_id"]: row for row in best.rows}
    return all(
        row["image_id"] in there and filecmp.cmp(row[kind], there[row["image_id"]][kind], shallow=False)
        for row in tree.rows for kind in ("image", "mask")
    )  # fmt: skip


def _own(name: str, trees: list[_Tree]) -> FoundDataset | None:
    """Make a dataset of the user's own of the fullest tree; None where no image has masks beside it."""
    trees = sorted(trees, key=lambda tree: -len(tree.rows))
    best = trees[0]
    if best.rows:
        _tell(best)
        found = _choose(name, trees, {})
        others = [tree for tree in trees[1:] if tree.rows and not _is_copy(tree, best)]
        different = [
            f"{best.folder} and {other.folder} are different datasets of one name; rename one"
            for other in others
        ]
        return replace(found, problems=(*found.problems, *different))
    places = _places(best.folder, best.rule["masks"], {}, {})
    masks = _files_by_stem(places[0][0], []) if places else {}
    if not masks:  # a folder of pictures, not of pairs
        return None
    found = next(iter(masks.values()))
    problem = (
        f"{best.folder}: no image has a mask of its name ({found.parent.name}/ holds {found.name}, "
        f"for example); name each mask like its image, or with _mask behind"
    )
    return FoundDataset(name, best.folder, _table(name, [], {}), problems=(problem,))


def _look_for_own(folders: list[Path]) -> dict[str, FoundDataset]:
    """Look for {images,masks} folders that are no dataset of the catalog; the folder gives the name."""
    claimed = {folder for folder in folders if _owners(folder, folders[0])}
    trees: dict[str, list[_Tree]] = {}
    for folder in folders:
        if claimed.isdisjoint([folder, *folder.parents]):
            name = unicodedata.normalize("NFC", folder.name).lower()
            name = re.sub(r"[\W_]+", "_", name).strip("_") or "own"
            name += "_own" if name in catalog() else ""
            trees.setdefault(name, []).extend(_read_trees([folder], {"trees": PLAIN_TREES})[:1])
    found = {name: _own(name, each) for name, each in trees.items() if each}
    return {name: dataset for name, dataset in found.items() if dataset}


def _checked(dataset: FoundDataset) -> FoundDataset:
    """Return the dataset; raise DataError if anything is wrong in it."""
    if dataset.problems:
        more = len(dataset.problems) - 1
        hint = f" ({more} more: python -m ultraseg_lib data verify)" if more else ""
        raise DataError(dataset.problems[0] + hint)
    return dataset


def find_dataset(name: str, root: Path) -> FoundDataset | None:
    """Find one dataset anywhere below ``root``; where several trees hold it, the fullest is taken.

    ``name``: one of the catalog, or the folder of a dataset of one's own in lower case. Returns
    None where no folder bears its name. Raises DataError for an image without a mask, and for a
    folder of that name in which no image is found, ValueError for a name that is neither,
    FileNotFoundError for a missing ``root``.
    """
    found = look_for_datasets(root)
    if name not in found:
        check_choice("dataset", name, catalog())
        return None
    return _checked(found[name])


def look_for_datasets(root: Path) -> dict[str, FoundDataset]:
    """Return every dataset found below ``root``, by name, with what is wrong in each.

    First those of the catalog, in its order, then the user's own. Asked again it looks anew only
    where a folder has changed. Raises FileNotFoundError for a missing ``root``.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"data folder {root} not found; pass --data DIR or set ULTRASEG_DATA"
        )
    times = tuple((parent, _changed(parent)) for parent, _ in _walk(root))
    found = _look_for_all(root, times)
    return {name: replace(each, table=each.table.copy()) for name, each in found.items()}


def _changed(folder: str) -> tuple[int, int]:
    """Return when a folder changed, and when the table in it did (0: none)."""
    table = Path(folder, TABLE)
    return os.stat(folder).st_mtime_ns, table.stat().st_mtime_ns if table.is_file() else 0


@lru_cache(maxsize=4)
def _look_for_all(
    root: Path, _times: tuple[tuple[str, tuple[int, int]], ...]
) -> dict[str, FoundDataset]:
    """Look for every dataset; ``_times``: when each folder changed, of which the answer is true."""
    folders = _folders(root)
    found = {name: _look_for(name, folders) for name in catalog()}
    return {name: each for name, each in found.items() if each} | _look_for_own(folders)


def find_datasets(root: Path) -> dict[str, FoundDataset]:
    """Return what ``look_for_datasets`` finds; raise DataError if anything is wrong in it."""
    return {name: _checked(dataset) for name, dataset in look_for_datasets(root).items()}


def read_table(path: Path, name: str) -> pd.DataFrame:
    """Read a ``table.csv`` that stands beside its images; relative paths are resolved against it."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in ("image", "mask"):
        table[column] = [str(path.parent / value) for value in table[column]]
    table["dataset"] = name
    return table[list(COLUMNS)]
