"""From files to batches: decode once into a cache, augment, make boundary targets.

A cache is two uint8 arrays on disk, opened as memory maps; it is keyed by the files it was made
from.
"""

import hashlib
import math
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import tifffile
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from ultraseg_lib import edges
from ultraseg_lib.choices import check_choice
from ultraseg_lib.data.augmentation import augment
from ultraseg_lib.data.layouts import DataError
from ultraseg_lib.paths import outputs_dir, whole_folder
from ultraseg_lib.provenance import usable_cores

EMPTY = "no mask holds a polyp; are they 0 and 1? masks are 0 and 255"
PARTS = ("train", "val", "test")  # of a split
TAIL = 4096  # bytes: some programs write a few after the end of a PNG


def check_whole(path: str | Path) -> None:
    """Raise DataError for a JPEG or PNG, by content, whose end is missing: OpenCV paints it grey."""
    data = Path(path).read_bytes()
    start_of_scan, end_of_image = b"\xff\xda", b"\xff\xd9"
    is_cut = (
        data.startswith(b"\xff\xd8") and data.rfind(start_of_scan) > data.rfind(end_of_image)
    ) or (data.startswith(b"\x89PNG") and b"IEND\xaeB`\x82" not in data[-TAIL:])
    if is_cut:
        raise DataError(f"{path}: cut off before its end; replace it by a fresh copy")


def _decode_by_opencv(path: Path) -> np.ndarray | None:
    as_stored = (
        cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    )  # a mask seldom has the image's EXIF
    image = cv2.imread(str(path), as_stored)  # of 16 bits it keeps the upper eight
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _decode_tiff(path: Path) -> np.ndarray | None:
    """Decode a TIFF file; raise DataError for several pages, and for colours that are not RGB."""
    with tifffile.TiffFile(path) as file:
        page, pages = file.pages[0], sum(not page.is_reduced for page in file.pages)
        if pages > 1:
            raise DataError(f"{path}: holds {pages} pages; save each as a file of its own")
        if page.photometric.name in ("SEPARATED", "CIELAB", "ICCLAB", "ITULAB", "LOGLUV"):
            raise DataError(f"{path}: its colours are {page.photometric.name}; save it as RGB")
        if page.samplesperpixel < 3 or page.photometric.name != "MINISBLACK":
            return _decode_by_opencv(path)  # which reads every compression
        if page.planarconfig.name != "CONTIG":
            raise DataError(f"{path}: its colours stand in planes; save it as RGB")
        image = page.asarray()
    return image[..., :3] if image.dtype == np.uint8 and image.ndim == 3 else None


def _decode(path: Path) -> np.ndarray | None:
    """Return (H, W, 3) uint8 RGB, or None for a file that cannot be decoded.

    The official CVC-ClinicDB TIF files call their three channels grey, and OpenCV then returns the
    first one only, without a word; tifffile returns all three.
    """
    is_tiff = path.suffix.lower() in (".tif", ".tiff")
    try:
        return _decode_tiff(path) if is_tiff else _decode_by_opencv(path)
    except DataError:
        raise
    except Exception:  # what a damaged file makes a decoder raise is anyone's guess
        return None


def read_image(path: str | Path) -> np.ndarray:
    """Read one image as (H, W, 3) uint8 RGB, as it is stored: an EXIF orientation turns nothing.

    Raises DataError for a file that cannot be decoded, for a TIFF of several pages or of colours
    other than RGB, and for one of 16 bits of which the upper two are empty.
    """
    image = _decode(Path(path))
    if image is None:
        raise DataError(f"{path}: missing or not a readable image; replace it by a fresh copy")
    if image.max() < 64:  # very dark, or 14 bits and fewer in 16
        raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if raw is not None and raw.dtype == np.uint16 and raw.any():
            raise DataError(
                f"{path}: 16 bits, yet no value above {raw.max()}; stretch it to the full range, or"
                " write it in 8 bits"
            )
    return image


def read_mask(path: str | Path) -> tuple[np.ndarray, bool]:
    """Read one mask as (H, W) uint8 of 0 and 255, and whether the file held other values too.

    Colour masks count as polyp where any channel exceeds 127; JPEG noise falls to one side. Raises
    DataError for a file that cannot be decoded, for one of labels (0 and 1), and for a flat one
    whose polyp may stand in what is not read: low bits of 16, or an alpha channel.
    """
    mask = _decode(Path(path))
    if mask is None:
        raise DataError(f"{path}: missing or not a readable mask; replace it by a fresh copy")
    brightest = mask.max(axis=2)
    if 0 < brightest.max() <= 127 and Path(path).suffix.lower() not in (".jpg", ".jpeg"):
        raise DataError(
            f"{path}: no value is above {brightest.max()}; masks are 0 and 255: write it anew, with"
            " 255 where the polyp is"
        )
    if brightest.max() == brightest.min():
        _refuse_hidden(Path(path))
    binary = np.where(brightest > 127, np.uint8(255), np.uint8(0))
    return binary, not np.array_equal(binary, brightest)


def _refuse_hidden(path: Path) -> None:
    """Raise DataError where a mask that reads as flat is not: 16-bit labels, a polyp in alpha."""
    raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if raw is None:
        return
    hidden = (
        [f"{raw.dtype} values up to {raw.max()}"] if raw.dtype != np.uint8 and raw.any() else []
    )
    if raw.ndim == 3 and raw.shape[2] == 4 and np.ptp(raw[..., 3]):
        hidden.append("an alpha channel with an outline")
    if hidden:
        raise DataError(
            f"{path}: flat as an 8-bit picture, but has {' and '.join(hidden)}; masks are 0 and 255 in"
            " 8 bits: write it anew"
        )


def read_pair(image: str | Path, mask: str | Path) -> tuple[np.ndarray, np.ndarray, bool]:
    """Read one image and its mask.

    Returns image (H, W, 3) uint8, mask (H, W) uint8 of 0 and 255, and whether the mask file was not
    binary. Raises DataError where a file cannot be decoded or is cut off, or the two differ in
    size.
    """
    pixels = read_image(image)
    binary, was_grey = read_mask(mask)
    for path in (image, mask):
        check_whole(path)
    if pixels.shape[:2] != binary.shape:
        raise DataError(
            f"{mask}: mask is {binary.shape[1]}×{binary.shape[0]}, its image"
            f" {pixels.shape[1]}×{pixels.shape[0]} ({image}); both must have one size"
        )
    return pixels, binary, was_grey


def _read_squashed(pair: tuple[str, str], size: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Read a pair, both squashed to (size, size): section 4.1 says 256×256, the code how."""
    pixels, binary, was_grey = read_pair(*pair)
    image = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR)
    mask = cv2.resize(binary, (size, size), interpolation=cv2.INTER_NEAREST)
    return image, mask, was_grey


def each_file(work: Callable[[Any], Any], files: Iterable[Any], label: str) -> Iterator[Any]:
    """Do ``work`` on every file (or pair of files) on all cores; yield the results in order.

    Shows progress if it takes over 2 seconds.
    """
    files = list(files)
    with ThreadPool(usable_cores()) as pool:  # threads: OpenCV lets go of Python's lock
        done = pool.imap(work, files)
        try:
            yield from tqdm(done, label, len(files), disable=None, leave=False, delay=2)
        finally:  # a thread that wakes in OpenCV while Python ends would abort the process
            pool.terminate()
            pool.join()


@dataclass(frozen=True)
class Frames:
    """Decoded frames: images (N, S, S, 3) uint8 RGB, masks (N, S, S) uint8 of 0 and 255, table (N rows)."""

    images: np.ndarray
    masks: np.ndarray
    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    def select(self, rows: np.ndarray) -> "Frames":
        """Return the frames where the boolean array ``rows`` of length N is true."""
        table = self.table[rows].reset_index(drop=True)
        return Frames(self.images[rows], self.masks[rows], table)

    def part(self, *names: str) -> "Frames":
        """Return the frames of the named parts of the split; ValueError for another than PARTS."""
        for name in names:
            check_choice("part", name, PARTS)
        return self.select(self.table["part"].isin(names).to_numpy())


def join_frames(frames: list[Frames]) -> Frames:
    """Put several sets of frames of one size S behind one another: (N1 + N2 + …, S, S).

    Raises ValueError for none, and for frames of other sizes.
    """
    return Frames(
        np.concatenate([each.images for each in frames]),
        np.concatenate([each.masks for each in frames]),
        pd.concat([each.table for each in frames], ignore_index=True),
    )


def _stamps(table: pd.DataFrame) -> tuple[tuple[str, int, int], ...]:
    """Return path, bytes and time of every file; raise DataError for one that is not there."""
    found = []
    for path in [*table["image"], *table["mask"]]:
        try:
            stat = Path(path).stat()
        except FileNotFoundError:
            raise DataError(f"{path}: file not found; restore it and try again") from None
        found.append((path, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def _cache_key(table: pd.DataFrame, size: int) -> str:
    """Return a hash over names, sizes and times of every file, so that a changed file is seen."""
    digest = hashlib.sha256(f"v1 {size}".encode())
    for stamp in _stamps(table):
        digest.update("{} {} {}\n".format(*stamp).encode())
    return digest.hexdigest()[:16]


def content_hash(table: pd.DataFrame) -> str:
    """Return a hash over the bytes of every file, in the order of ``table``, wherever they stand.

    Raises DataError for a file that is not there.
    """
    return _content_hash(_stamps(table))


@lru_cache(maxsize=8)
def _content_hash(stamps: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in stamps:
        digest.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return digest.hexdigest()[:12]


def _fill_cache(table: pd.DataFrame, size: int, folder: Path) -> None:
    """Decode every pair of ``table`` into ``folder``; say once how many masks were not binary."""
    shape = (len(table), size, size)
    name = table["dataset"].iloc[0]
    need, free = 4 * math.prod(shape), shutil.disk_usage(folder).free
    if free < need:  # a mapped file that meets a full disk would end the process without a word
        raise DataError(
            f"{folder.parent}: decoding {name} takes {need / 1e6:.0f} MB, {free / 1e6:.0f} MB are "
            "free; make room, or set ULTRASEG_OUTPUTS to a folder on another disk"
        )
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (*shape, 3))
    masks = np.lib.format.open_memmap(folder / "masks.npy", "w+", np.uint8, shape)
    grey = 0
    pairs = zip(table["image"], table["mask"], strict=True)
    decoded = each_file(partial(_read_squashed, size=size), pairs, f"decode {name}")
    for row, (image, mask, was_grey) in enumerate(decoded):
        images[row], masks[row] = image, mask
        grey += was_grey
    if len(table) and not masks.any():
        warnings.warn(f"{name}: {EMPTY}", stacklevel=2)
    if grey:
        warnings.warn(
            f"{name}: {grey} of {len(table)} masks hold values other than 0 and 255 (JPEG noise,"
            " colours); thresholded at 127",
            stacklevel=2,
        )


def load_frames(table: pd.DataFrame, size: int) -> Frames:
    """Return the frames of one dataset's ``table`` at ``size`` pixels, decoding them once.

    The cache stands in ``outputs/cache`` and is made anew when a file changes. Raises DataError for
    a file that is missing, broken or of the wrong size; nothing half-made stays.
    """
    name = table["dataset"].iloc[0]
    folder = outputs_dir("cache") / f"{name}-{size}-{_cache_key(table, size)}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):  # two studies may want the same dataset at once
        if not folder.exists():
            for left in folder.parent.glob(f".{folder.name}.*.tmp"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            with whole_folder(folder) as temporary:
                _fill_cache(table, size, temporary)
    try:
        kept = [np.load(folder / f"{each}.npy", mmap_mode="r") for each in ("images", "masks")]
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: damaged ({error}); remove it, and it is made anew") from error
    return Frames(*kept, table)


@dataclass(frozen=True)
class Batch:
    """One training batch: image (B, 3, S, S) in [0, 1]; mask and boundary (B, 1, S, S) of 0 and 1."""

    image: Tensor
    mask: Tensor
    boundary: Tensor


def to_tensor(images: np.ndarray) -> Tensor:
    """Turn (B, H, W, 3) uint8 into (B, 3, H, W) float32 in [0, 1], channels last in memory.

    Raises ValueError for another shape or type.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(
            f"images: found {images.dtype} of shape {images.shape}; give uint8 (B, H, W, 3), RGB"
        )
    return torch.tensor(np.asarray(images)).permute(0, 3, 1, 2).float().div_(255)


def to_batch(images: np.ndarray, masks: np.ndarray, edge_method: str = "canny") -> Batch:
    """Turn uint8 images (B, S, S, 3) and masks (B, S, S) into tensors with their boundary targets."""
    boundary = edges.boundary_targets(masks, method=edge_method)
    binary = torch.from_numpy((masks > 0).astype(np.float32))
    return Batch(to_tensor(images), binary[:, None], torch.from_numpy(boundary).float()[:, None])


def drawn_batches(
    count: int, batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[np.ndarray, np.random.Generator]]:
    """Yield the rows of each shuffled batch, rising, and what draws its augmentation."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(count)
    for start in range(0, count, batch_size):
        yield np.sort(order[start : start + batch_size]), rng


def training_batches(
    frames: Frames,
    batch_size: int,
    augmentation: str,
    seed: int,
    epoch: int,
    edge_method: str = "canny",
) -> Iterator[Batch]:
    """Yield one epoch of shuffled, augmented batches; the last may be smaller.

    Order and augmentation follow from ``seed`` and ``epoch`` alone, so a resumed run sees the same.
    Raises ValueError for an unknown augmentation or edge method.
    """
    for rows, rng in drawn_batches(len(frames), batch_size, seed, epoch):
        augmented = augment(frames.images[rows], frames.masks[rows], augmentation, rng)
        yield to_batch(*augmented, edge_method)


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the same batches, each made in a second thread while the one before it is used."""
    with ThreadPoolExecutor(max_workers=1) as maker:
        coming = maker.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = maker.submit(next, batches, None)
            yield batch
