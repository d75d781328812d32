"""Segment images, a video or a camera: masks, overlays and a table of what was found where."""

import csv
import errno
import glob
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

import cv2
import numpy as np
from torch import nn
from tqdm import tqdm

from ultraseg_lib.data.layouts import IMAGE_SUFFIXES, DataError
from ultraseg_lib.data.loading import check_whole, read_image
from ultraseg_lib.deploy.backends import available_backends, cannot_run, load_backend, split_words
from ultraseg_lib.deploy.frame import segment_frame
from ultraseg_lib.metrics import MIN_POLYP_PX
from ultraseg_lib.paths import is_utf8, whole_file
from ultraseg_lib.weights import IMAGE_SIZE

FASTEST_FIRST = ("native", "openvino", "onnxruntime", "inference")
COLUMNS = (
    "file", "frame", "mask", "width", "height", "area_px", "area_share", "n_polyps",
    "center_x", "center_y", "box_x", "box_y", "box_width", "box_height", "latency_ms",
)  # fmt: skip
TABLE = "measurements.csv"
UNDER_WAY = ".under_way"  # holds the stem of the frame whose pictures are being written
OUTLINE = (255, 176, 0)  # RGB; the colour of predictions in every figure (report.figures.PRED)
FULL_COLOUR = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
PATIENCE = 30  # frames in a row that cannot be decoded before the rest is given up

Segmenter = Callable[[np.ndarray], np.ndarray]


# --- what comes in --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shot:
    """One frame to segment: its file, its number from 1 on, its mask's stem, (H, W, 3) uint8 RGB."""

    file: str
    frame: int
    stem: str
    pixels: np.ndarray
    is_video: bool = False


@dataclass(frozen=True)
class Source:
    """Where frames come from; a frame that cannot be read comes as the error that names it.

    `folder` holds the files, `total` is their number of frames; a camera has neither.
    """

    shots: Iterator[Shot | DataError]
    folder: Path | None = None
    total: int | None = None


def open_source(path: str) -> Source:
    """Open an image, a folder of images, a video, or a camera (``camera:0`` or ``0``).

    Raises FileNotFoundError for what is not there, and ValueError for what cannot be opened, a
    folder without images, and two images whose masks would have one name.
    """
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what it tries, it tells
    found = Path(path)
    if found.is_dir():
        return _open_images(sorted(found.iterdir()), found)
    if found.suffix.lower() in IMAGE_SUFFIXES and found.exists():
        return _open_images([found], found.parent)
    if found.exists():
        return _open_video(found)
    camera = re.fullmatch(r"(?:camera:)?(\d+)", path)
    if camera is None:
        raise FileNotFoundError(
            f"{path}: not found; give an image, a folder of images, a video, or camera:0"
        )
    return _open_camera(int(camera[1]))


def _open_images(files: list[Path], folder: Path) -> Source:
    """Open those of ``files`` that are images."""
    shown = [path for path in files if not path.name.startswith(".")]
    images = [path for path in shown if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]
    for path in images:
        if not is_utf8(path):
            raise ValueError(f"{path!a}: its name is not UTF-8; rename it")
    if not images:
        raise ValueError(
            f"{folder}: no images here (subfolders are not searched); they end in"
            f" {', '.join(IMAGE_SUFFIXES)}"
        )
    if len(images) < len(shown):
        others = sorted(set(shown) - set(images))
        print(
            f"passed over: {len(others)} that are no images, as {others[0].name}", file=sys.stderr
        )
    by_stem: dict[str, Path] = {}
    for path in images:
        other = by_stem.setdefault(path.stem, path)
        if other != path:
            raise ValueError(
                f"{folder}: {other.name} and {path.name} would both give the mask {path.stem}.png;"
                " rename one or put it elsewhere"
            )
    return Source(_read_images(images), folder, len(images))


def _read_images(paths: Iterable[Path]) -> Iterator[Shot | DataError]:
    for path in paths:
        try:
            pixels = read_image(path)
            check_whole(path)  # after it: junk is told as junk, not as cut off
            yield Shot(path.name, 1, path.stem, pixels)
        except DataError as error:
            yield error
        except OSError as error:
            yield DataError(f"{path}: cannot be read: {error.strerror}")


def _open_video(path: Path) -> Source:
    if not is_utf8(path):
        raise ValueError(f"{path!a}: its name is not UTF-8; rename it")
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise ValueError(
            f"{path}: neither an image ({', '.join(IMAGE_SUFFIXES)}) nor a video that OpenCV can open"
        )
    total = max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)
    return Source(_read_video(capture, path.name, path.stem, total), path.parent, total or None)


def _open_camera(number: int) -> Source:
    capture = cv2.VideoCapture(number)
    if not capture.isOpened():
        raise ValueError(f"camera:{number}: no such camera, or another program is using it")
    return Source(_read_video(capture, f"camera:{number}", f"camera{number}", sys.maxsize))


def _read_video(
    capture: cv2.VideoCapture, file: str, stem: str, total: int
) -> Iterator[Shot | DataError]:
    """Yield every frame; past a broken one OpenCV goes on with the next, up to the announced total."""
    failed = 0
    for number in count(1):
        is_read, pixels = capture.read()
        if not is_read and number > total:
            if number == 1:
                yield DataError(f"{file}: holds no frame")
            break
        failed = 0 if is_read else failed + 1
        if is_read:
            rgb = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
            yield Shot(file, number, f"{stem}_{number:06d}", rgb, is_video=True)
        else:
            yield DataError(f"{file}: frame {number} cannot be decoded")
        if failed == PATIENCE:
            yield DataError(f"{file}: gave up at frame {number}, after {failed} bad ones in a row")
            break
    capture.release()


# --- the model ------------------------------------------------------------------------------------


def pick_backend(model: nn.Module, size: int, threads: int = 1) -> str:
    """Return the fastest backend that is here and runs this model.

    float32 only, so that the masks are the trained model's own. PyTorch always is here.
    """
    for name in FASTEST_FIRST:
        if name in available_backends() and not cannot_run(name, model, size, threads):
            return name
    return FASTEST_FIRST[-1]


def load_segmenter(network: nn.Module, size: int, backend: str, threads: int = 1) -> Segmenter:
    """Return a function from frame (H, W, 3) uint8 RGB to mask (H, W) uint8 of 0 and 255.

    `backend` may carry a precision, as in "native:bfloat16". Raises ValueError for a backend that
    is unknown or cannot run this network, ImportError for one that is not installed.
    """
    name, precision = split_words(backend)
    cv2.setNumThreads(threads)
    run = load_backend(name, network, size, threads, precision)
    run(np.zeros((1, 3, size, size), np.float32))  # the first call sets things up: not timed
    return lambda frame: segment_frame(frame, run, size)


# --- what goes out --------------------------------------------------------------------------------


def measure(mask: np.ndarray) -> dict[str, int | float]:
    """Measure a mask (H, W) uint8 of 0 and 255: its area, and where its largest polyp is.

    Returns area_px, area_share in [0, 1], n_polyps, and in px, where there is a polyp, the centroid
    and the bounding box of the largest. A polyp covers at least the share of the frame that
    `metrics.count_polyps` asks for at 256×256; less is a speck.
    """
    _, _, stats, centers = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    least = MIN_POLYP_PX * mask.size / IMAGE_SIZE**2
    polyps = [label for label in range(1, len(stats)) if areas[label] >= least]
    area = int(np.count_nonzero(mask))
    found = {"area_px": area, "area_share": round(area / mask.size, 6), "n_polyps": len(polyps)}
    if polyps:
        largest = max(polyps, key=areas.__getitem__)
        x, y = centers[largest].round(2).tolist()
        box = dict(zip(COLUMNS[10:14], stats[largest, :4].tolist(), strict=True))
        found |= {"center_x": x, "center_y": y, **box}
    return found


def overlay(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draw the outline of a mask (H, W) uint8 on a frame (H, W, 3) uint8 RGB; returns a new one."""
    drawn = pixels.copy()
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(max(mask.shape) / 200))
    for colour, thickness in (((0, 0, 0), 3 * width), (OUTLINE, width)):
        cv2.drawContours(drawn, contours, -1, colour, thickness)
    return drawn


def write_latency(drawn: np.ndarray, milliseconds: float) -> None:
    """Write the latency (ms) and the frame rate into the upper left corner of a frame, in place.

    `drawn` (H, W, 3) uint8 RGB.
    """
    text = f"{milliseconds:.1f} ms, {1000 / milliseconds:.0f} frames/s"
    scale = max(drawn.shape[0] / 500, 0.35)
    place = (round(12 * scale), round(30 * scale))
    for colour, width in (((0, 0, 0), 4), ((255, 255, 255), 1)):
        thickness = max(1, round(width * scale))
        cv2.putText(
            drawn, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA
        )


def check_output(folder: Path, source: Source, force: bool = False) -> None:
    """Raise ValueError where results in ``folder`` would land among the input files or replace others.

    ``force``: those of an earlier run may be replaced.
    """
    if source.folder is not None:
        inputs = source.folder.resolve()
        if inputs in (folder.resolve(), (folder / "overlays").resolve()):
            raise ValueError(f"--output {folder}: this is the input folder; choose another")
    if _earlier_masks(folder) is not None and not force:
        raise ValueError(
            f"--output {folder}: holds results already; choose another folder, or give --force to"
            " replace them"
        )


def _make_folder(folder: Path) -> None:
    """Make the folder; of an earlier run's results in it, remove the table and what it names."""
    try:
        (folder / "overlays").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {folder}: cannot be made: {error.strerror}") from None
    for mask in _earlier_masks(folder) or ():
        (folder / mask).unlink(missing_ok=True)
        (folder / "overlays" / mask).with_suffix(".jpg").unlink(missing_ok=True)
    _clear_under_way(folder)
    (folder / TABLE).unlink(missing_ok=True)


def _clear_under_way(folder: Path) -> None:
    """Remove the pictures of the frame at which an earlier run was killed: they have no row."""
    under_way = folder / UNDER_WAY
    if under_way.exists():
        stem = Path(under_way.read_text(encoding="utf-8")).name
        for path in (folder / f"{stem}.png", folder / "overlays" / f"{stem}.jpg"):
            path.unlink(missing_ok=True)
            for left in path.parent.glob(f".{glob.escape(stem)}.*.tmp{path.suffix}"):
                left.unlink(missing_ok=True)
        under_way.unlink()


def _earlier_masks(folder: Path) -> list[str] | None:
    """Return the masks that an earlier run's table names, None without one; refuse another's table."""
    table = folder / TABLE
    if not table.exists():
        return None
    # another program that saves the table again may write another encoding
    with suppress(UnicodeDecodeError), table.open(newline="", encoding="utf-8") as file:
        earlier = csv.DictReader(file)
        if tuple(earlier.fieldnames or ()) == COLUMNS:
            return [Path(row["mask"]).name for row in earlier if row["mask"]]
    raise ValueError(f"{table}: not written by predict; choose another --output")


def encode(suffix: str, pixels: np.ndarray) -> bytes:
    """Encode a frame (H, W, 3) uint8 RGB or a mask (H, W) as a picture file, in memory.

    Raises DataError for one that the format cannot hold.
    """
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    written, data = cv2.imencode(suffix, pixels, FULL_COLOUR if suffix == ".jpg" else [])
    if not written:
        raise DataError(f"{pixels.shape[1]}×{pixels.shape[0]} px: too large for a {suffix} file")
    return data.tobytes()


def _write_picture(path: Path, pixels: np.ndarray) -> None:
    """Write what was encoded in memory, so that names of any alphabet work."""
    with whole_file(path) as temporary:
        temporary.write_bytes(encode(path.suffix, pixels))


@dataclass
class Outcome:
    """What was done: the ms of each frame, the number of bad ones, whether Ctrl-C ended it."""

    latency: list[float] = field(default_factory=list)
    bad: int = 0
    stopped: bool = False

    def summary(self) -> str:
        """Say it in one line."""
        said = f"{len(self.latency)} segmented, {self.bad} bad"
        if self.latency:
            latency = statistics.median(self.latency)
            said += f", median {latency:.1f} ms a frame ({1000 / latency:.0f} frames/s)"
        return said + (", stopped by Ctrl-C" if self.stopped else "")


def predict(source: Source, segment: Segmenter, folder: Path, limit: int | None = None) -> Outcome:
    """Segment the frames of a source, at most ``limit``; write masks, overlays and the table.

    ``folder`` gets ``<stem>.png``, ``overlays/<stem>.jpg`` and ``measurements.csv``. A bad frame is
    reported and skipped, and so is one whose mask would replace a file of yours. The table grows
    row by row, so that it holds all that was done, however the run ends. Results of an earlier run
    in the folder go first. Raises ValueError where the folder cannot be made or its table is none
    of ours.
    """
    _make_folder(folder)
    outcome = Outcome()
    total = min(source.total or sys.maxsize, limit or sys.maxsize)
    bar = tqdm(
        islice(source.shots, limit), "segment", None if total == sys.maxsize else total,
        unit="frame", disable=None,
    )  # fmt: skip
    line = {"buffering": 1, "newline": "", "encoding": "utf-8"}  # a row is on disk when it is done
    with bar, (folder / TABLE).open("w", **line) as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        try:
            for shot in bar:
                found = _predict_one(_unless_taken(shot, folder), segment, folder)
                if isinstance(found, DataError):
                    outcome.bad += 1
                    tqdm.write(f"skipped: {found}", file=sys.stderr)
                else:
                    table.writerow(found)
                    outcome.latency.append(found["latency_ms"])
                    bar.set_postfix_str(f"{found['latency_ms']:.1f} ms", refresh=False)
        except KeyboardInterrupt:
            outcome.stopped = True
        finally:
            (folder / UNDER_WAY).unlink(missing_ok=True)
    return outcome


def timed(segment: Segmenter, pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the mask (H, W) uint8 of a frame (H, W, 3) uint8 RGB and the ms that it took."""
    start = time.perf_counter()
    mask = segment(pixels)
    return mask, (time.perf_counter() - start) * 1000


def _unless_taken(shot: Shot | DataError, folder: Path) -> Shot | DataError:
    """Return the shot, or the error that one of its pictures has the name of a file that is there."""
    if not isinstance(shot, DataError):
        for path in _pictures(shot, folder):
            if path.exists():
                return DataError(f"{path}: is there and is not predict's; choose another --output")
    return shot


def _pictures(shot: Shot, folder: Path) -> tuple[Path, Path]:
    """Return the paths of a shot's overlay and mask."""
    return folder / "overlays" / f"{shot.stem}.jpg", folder / f"{shot.stem}.png"


def _predict_one(
    shot: Shot | DataError, segment: Segmenter, folder: Path
) -> dict[str, object] | DataError:
    """Segment one frame, write its pictures and return its row of the table, or why there is none."""
    if isinstance(shot, DataError):
        return shot
    mask, latency = timed(segment, shot.pixels)
    drawn_path, path = _pictures(shot, folder)
    height, width = mask.shape
    row = {"file": shot.file, "frame": shot.frame, "mask": path.name}
    row |= {"width": width, "height": height, **measure(mask), "latency_ms": round(latency, 3)}
    drawn = overlay(shot.pixels, mask)
    if shot.is_video:
        write_latency(drawn, latency)
    (folder / UNDER_WAY).write_text(shot.stem, encoding="utf-8")
    try:
        _write_picture(drawn_path, drawn)
        _write_picture(path, mask)  # last: no mask stands long without its row
    except BaseException as error:  # Ctrl-C and a full disk, too: no picture without its row
        drawn_path.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        if isinstance(error, DataError):
            return DataError(f"{shot.file}: {error}")
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return DataError(f"{shot.file}: too long a name for its pictures; rename it")
        raise
    return row
