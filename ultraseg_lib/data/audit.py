"""What could make a result look better than it is: duplicates, leaks across splits, odd masks.

Near-duplicates are found in two steps on grey pictures of 64×64 pixels. First a perceptual hash:
the signs of 255 low frequencies of the cosine transform against their median; pairs that differ in
at most ``NEAR_BITS`` of them go on. Then the pixels: ``difference`` is one minus the correlation of
the two pictures, so brightness and contrast do not count; pairs up to ``NEAR`` are near-duplicates.
"""

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from ultraseg_lib.data.layouts import DataError, FoundDataset
from ultraseg_lib.data.loading import Frames, each_file, read_image, read_mask
from ultraseg_lib.data.splits import MIXED, add_split, make_split, mixed_parts, read_split
from ultraseg_lib.metrics import count_polyps, dice_score
from ultraseg_lib.paths import SPLITS

SIDE = 64  # pixels of a thumbnail
NEAR_BITS = 64  # of 255; all pairs within NEAR that the public datasets hold differ in 62 at most
NEAR = 0.02  # pairs from two sequences of CVC-ClinicDB start at 0.03, from two datasets at 0.06
IDENTICAL = 0.0001  # what is left after encoding one picture twice
LISTED = 30  # identical pairs that the report names
MASK_SIZE = 256  # where polyps are counted, as in the scores
BLOCK = 1024
PAIR_COLUMNS = ["dataset_a", "image_id_a", "dataset_b", "image_id_b", "difference"]


# --- Near-duplicates -------------------------------------------------------------------------


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 3) uint8 RGB or (H, W) grey as a grey picture (64, 64) uint8."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
    return cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def _read_thumbnail(path: str) -> np.ndarray:
    """Read a file at half its size, which a JPEG allows without decoding the rest."""
    grey = None
    if Path(path).suffix.lower() not in (".tif", ".tiff"):
        grey = cv2.imread(path, cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_IGNORE_ORIENTATION)
    return thumbnail(read_image(path) if grey is None else grey)  # read_image names a broken file


def _hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Return the perceptual hash of each picture (N, 64, 64): (N, 255) bool."""
    cosines = [cv2.dct(picture.astype(np.float32))[:16, :16] for picture in thumbnails]
    low = np.reshape(cosines, (len(thumbnails), -1))[:, 1:]  # the first is the mean brightness
    return low > np.median(low, axis=1, keepdims=True)


def _close_pairs(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (first < second) of all pairs that differ in at most NEAR_BITS bits."""
    signs = np.where(hashes, np.float32(1), np.float32(-1))
    pairs = [np.empty((0, 2), int)]
    for start in range(0, len(signs), BLOCK):
        agreement = signs[start : start + BLOCK] @ signs[start:].T  # bits alike minus bits unlike
        near = np.triu(agreement >= hashes.shape[1] - 2 * NEAR_BITS, 1)
        pairs.append(np.argwhere(near) + start)
    first, second = np.concatenate(pairs).T
    return first, second


def _normalise(thumbnails: np.ndarray) -> np.ndarray:
    """Return (N, 4096) float32, each row of mean 0 and length 1 (a flat picture: of length 0)."""
    rows = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1)


def difference(image: np.ndarray, other: np.ndarray) -> tuple[int, float]:
    """Compare two images (H, W, 3) uint8: hash bits that differ (of 255), and the difference.

    >>> image = np.random.default_rng(0).integers(0, 128, (64, 64, 3), np.uint8)
    >>> bits, pixels = difference(image, image + 60)  # the same, brighter
    >>> bits, round(pixels, 2)
    (0, 0.0)
    """
    pictures = np.stack([thumbnail(image), thumbnail(other)])
    first, second = _normalise(pictures)
    bits = np.not_equal(*_hashes(pictures))
    return int(bits.sum()), max(0.0, float(1 - first @ second))


def near_duplicates(
    tables: Iterable[pd.DataFrame], thumbnails: Iterable[np.ndarray] | None = None
) -> pd.DataFrame:
    """Find near-duplicates within and across datasets: a row a pair, most alike first.

    ``tables``: with the columns dataset, image_id and image (the file). ``thumbnails``: of all
    images in this order, (64, 64) each, where they are decoded already. Returns dataset_a,
    image_id_a, dataset_b, image_id_b, difference (0 to ``NEAR``). Raises DataError for a file that
    cannot be decoded.
    """
    table = pd.concat(list(tables), ignore_index=True)
    keys = table[["dataset", "image_id"]]
    if thumbnails is None:
        thumbnails = each_file(_read_thumbnail, table["image"], "compare images")
    thumbnails = np.stack(list(thumbnails))
    first, second = _close_pairs(_hashes(thumbnails))
    rows, values = _normalise(thumbnails), []
    for start in range(0, len(first), BLOCK):
        a, b = rows[first[start : start + BLOCK]], rows[second[start : start + BLOCK]]
        values.append(1 - np.einsum("ij,ij->i", a, b))
    apart = np.concatenate([*values, np.empty(0)]).clip(min=0)
    chosen = apart <= NEAR
    pairs = [keys.iloc[side[chosen]].reset_index(drop=True) for side in (first, second)]
    table = pd.concat([pairs[0].add_suffix("_a"), pairs[1].add_suffix("_b")], axis=1)
    table["difference"] = apart[chosen].round(5)
    return table.sort_values("difference", kind="stable", ignore_index=True)[PAIR_COLUMNS]


def near_duplicates_of(frames: Iterable[Frames]) -> pd.DataFrame:
    """Find near-duplicates as `near_duplicates` does, from frames that are decoded already.

    Of frames of another size a pair that differs by nearly ``NEAR`` may be told otherwise.
    """
    frames = list(frames)
    pictures = (thumbnail(image) for each in frames for image in each.images)
    return near_duplicates([each.table for each in frames], pictures)


def copied_dice(train: Frames, test: Frames) -> np.ndarray:
    """Return the Dice (N,) of a "model" that has learned nothing and only remembers.

    For each frame of ``test`` it hands out the true mask of the frame of ``train`` that looks most
    like it. A high score says that the test part repeats the training part.
    """
    known, asked = (
        _normalise(np.stack([thumbnail(image) for image in each.images])) for each in (train, test)
    )
    nearest = (asked @ known.T).argmax(axis=1)
    return dice_score(train.masks[nearest] > 0, test.masks > 0)


# --- Splits ----------------------------------------------------------------------------------


def leaks(duplicates: pd.DataFrame, parts: Mapping[str, pd.Series]) -> pd.DataFrame:
    """Return the pairs that a split tears apart, one image tested and the other not.

    ``parts``: by dataset, part names with the index image_id. Adds part_a and part_b; a pair of
    which an image has no part is passed over.
    """
    part_of = {(name, each): part for name, ids in parts.items() for each, part in ids.items()}
    table = duplicates.copy()
    for side in "ab":
        names = zip(table[f"dataset_{side}"], table[f"image_id_{side}"], strict=True)
        table[f"part_{side}"] = pd.Series([part_of.get(key) for key in names], table.index, object)
    known = table.dropna(subset=["part_a", "part_b"])
    torn = (known["part_a"] == "test") != (known["part_b"] == "test")
    return known[torn].reset_index(drop=True)


def cut_sequences(table: pd.DataFrame, parts: pd.Series) -> pd.DataFrame:
    """Return the sequences that stand in more than one part: sequence, train, val, test (frames).

    Images whose sequence is not told are passed over.
    """
    told = table[table["sequence"] != ""]
    placed = told["image_id"].map(parts)
    counts = pd.crosstab(told["sequence"], placed).reindex(
        columns=["train", "val", "test"], fill_value=0
    )
    cut = counts[(counts > 0).sum(axis=1) > 1]
    return cut.rename_axis("sequence").rename_axis(None, axis=1).reset_index()


# --- Masks -----------------------------------------------------------------------------------


def _mask_facts(path: str) -> tuple[bool, float, int]:
    mask, was_grey = read_mask(path)
    small = cv2.resize(mask, (MASK_SIZE, MASK_SIZE), interpolation=cv2.INTER_NEAREST)
    return not was_grey, float((mask > 0).mean()), count_polyps(small > 0)


def mask_table(table: pd.DataFrame) -> pd.DataFrame:
    """Read every mask of ``table``: a row an image.

    Columns: dataset, image_id, binary (the file holds 0 and 255 alone), area (share of the image
    that is polyp, 0 to 1), n_polyps (connected components at 256×256, specks left out).
    """
    facts = each_file(_mask_facts, table["mask"], f"masks of {table['dataset'].iloc[0]}")
    columns = pd.DataFrame(facts, columns=["binary", "area", "n_polyps"])
    return pd.concat([table[["dataset", "image_id"]].reset_index(drop=True), columns], axis=1)


def summarize_masks(masks: pd.DataFrame) -> dict[str, object]:
    """Return one row of the report from one dataset's `mask_table`; areas in % of the image."""
    with_polyp = masks[masks["area"] > 0]
    low, median, high = with_polyp["area"].quantile([0.05, 0.5, 0.95]) * 100
    return {
        "dataset": masks["dataset"].iloc[0],
        "images": len(masks),
        "empty masks": int((masks["area"] == 0).sum()),
        "not binary": int((~masks["binary"]).sum()),
        "one polyp": int((masks["n_polyps"] == 1).sum()),
        "several": int((masks["n_polyps"] > 1).sum()),
        "area 5 %": f"{low:.1f}",
        "median": f"{median:.1f}",
        "95 %": f"{high:.1f}",
    }


# --- The report ------------------------------------------------------------------------------


def summarize_duplicates(duplicates: pd.DataFrame) -> pd.DataFrame:
    """Return how many pairs each two datasets share: dataset_a, dataset_b, pairs, identical."""
    marked = duplicates.assign(identical=duplicates["difference"] < IDENTICAL)
    groups = marked.groupby(["dataset_a", "dataset_b"], sort=False)["identical"]
    return groups.agg(pairs="size", identical="sum").reset_index()


def summarize_splits(table: pd.DataFrame, duplicates: pd.DataFrame) -> pd.DataFrame:
    """Audit every committed split of one dataset, or the one that is drawn where none is: a row each.

    Columns: split, train, val, test (images), leaking pairs, test images with a twin (that is
    trained on or validates), cut sequences ("not told" where the dataset names none).
    """
    name, rows = table["dataset"].iloc[0], []
    committed = {path.stem: read_split(path) for path in sorted(SPLITS.glob(f"{name}-*.txt"))}
    for title, parts in (committed or {f"{name}, drawn": make_split(table)}).items():
        torn = leaks(duplicates, {name: parts})
        tested = torn["image_id_a"].where(torn["part_a"] == "test", torn["image_id_b"])
        told = (table["sequence"] != "").any()
        counts = {part: int((parts == part).sum()) for part in ("train", "val", "test")}
        rows.append({"split": title, **counts, "leaking pairs": len(torn),
                     "test images with a twin": tested.nunique(),
                     "cut sequences": len(cut_sequences(table, parts)) if told else "not told"})  # fmt: skip
    return pd.DataFrame(rows)


def _report_duplicates(duplicates: pd.DataFrame) -> list[str]:
    if duplicates.empty:
        return [f"no pair differs by {NEAR} or less"]
    same = duplicates[duplicates["difference"] < IDENTICAL]
    pairs = [
        f"  {pair.dataset_a} {pair.image_id_a} = {pair.dataset_b} {pair.image_id_b}"
        for pair in same.itertuples()
    ]
    more = [f"  and {len(pairs) - LISTED} more"] if len(pairs) > LISTED else []
    summary = summarize_duplicates(duplicates).to_string(index=False)
    return [
        summary,
        f"identical pairs (difference under {IDENTICAL}): {len(pairs)}",
        *pairs[:LISTED],
        *more,
    ]


def _report_mixed(found: Mapping[str, FoundDataset], duplicates: pd.DataFrame) -> str:
    if not set(found) & set(MIXED):
        return "none of its datasets is there"
    try:
        tables = {name: add_split(each.table, name) for name, each in found.items()}
    except DataError as error:  # an incomplete dataset; the rest of the report stands
        return f"cannot be joined: {error}"
    joined, left_out = mixed_parts(tables, duplicates)
    present = ", ".join(name for name in MIXED if name in tables)
    others = int((left_out["dataset"] != left_out["test_dataset"]).sum())
    return (
        f"{len(joined)} images of {present}; left out as near-duplicates of tested images:"
        f" {len(left_out)}, of another dataset's: {others}\n(by the files; a training compares its"
        f" frames, which may tell pairs that differ by nearly {NEAR} otherwise)"
    )


def run(found: Mapping[str, FoundDataset]) -> tuple[str, dict[str, str]]:
    """Audit the datasets that were found; return the report, and what is wrong in each that is not in it."""
    masks, pictures, wrong = [], {}, {}
    for name, dataset in found.items():
        try:
            if dataset.problems:
                raise DataError(dataset.problems[0])
            facts = summarize_masks(mask_table(dataset.table))
            pictures[name] = list(
                each_file(_read_thumbnail, dataset.table["image"], f"images of {name}")
            )
            masks.append(facts)
        except DataError as error:
            wrong[name] = str(error)
    sections = {}
    if pictures:
        audited = {name: found[name] for name in pictures}
        tables = [each.table for each in audited.values()]
        duplicates = near_duplicates(tables, chain(*pictures.values()))
        listed = pd.concat([summarize_splits(table, duplicates) for table in tables])
        told = pd.DataFrame(masks).to_string(index=False)
        sections = {
            "Masks (area in % of the image, of images with a polyp)": [told],
            f"Near-duplicates (difference up to {NEAR})": _report_duplicates(duplicates),
            "Splits": [listed.to_string(index=False)],
            "Mixed training set (random splits)": [_report_mixed(audited, duplicates)],
        }
    if wrong:
        sections["Not audited (all that is wrong: python -m ultraseg_lib data verify)"] = [
            f"{name}: {reason}" for name, reason in wrong.items()
        ]
    return "\n\n".join("\n".join([title, *lines]) for title, lines in sections.items()), wrong
