"""Download a dataset where its licence allows it, and unpack it without trusting the archive.

All is done in a hidden folder beside the goal, which takes its name at the end. A download that
breaks off is kept in a hidden file, and the same command goes on from there.
"""

import lzma
import os
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests
from tqdm import tqdm

from ultraseg_lib.choices import check_choice
from ultraseg_lib.data.layouts import DataError, catalog

BROKEN = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError)  # fmt: skip
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")


def how_to_get(name: str) -> str:
    """Return the steps that bring dataset ``name`` here, with its licence; raise ValueError if unknown."""
    check_choice("dataset", name, catalog())
    entry = catalog()[name]
    if not entry["page"]:
        return f"{entry['title']}: {entry['license']}"
    head = [f"{entry['title']}: {entry['page']}", f"licence: {entry['license']}"]
    unpack = "unpack it, as it comes, anywhere below the data folder"
    steps = [] if "url" in entry else [*entry["steps"], unpack]
    return "\n".join(head + [f"  {number}. {step}" for number, step in enumerate(steps, 1)])


@dataclass(frozen=True)
class ResumingDownloader:
    """A downloader for pooch that keeps in ``part`` what came, and asks for the rest next time."""

    part: Path

    def __call__(self, url: str, output_file: str, _: pooch.Pooch) -> None:
        """Bring ``url`` to ``output_file``; raise a ``requests`` error where it breaks off."""
        there = self.part.stat().st_size if self.part.exists() else 0
        headers = {"User-Agent": "ultraseg-study"} | ({"Range": f"bytes={there}-"} if there else {})
        with requests.get(url, headers=headers, stream=True, timeout=30) as answer:
            if answer.status_code != requests.codes.requested_range_not_satisfiable:
                self._receive(answer, there)
            elif answer.headers.get("Content-Range") != f"bytes */{there}":  # else it is whole
                self.part.unlink()  # it is no beginning of this file
                answer.raise_for_status()
        os.replace(self.part, output_file)

    def _receive(self, answer: requests.Response, there: int) -> None:
        """Write what comes behind the ``there`` bytes that came before."""
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:  # the server starts anew
            there = 0
        total = there + int(answer.headers.get("Content-Length", 0))
        bar = tqdm(total=total or None, initial=there, unit="B", unit_scale=True, disable=None)
        with open(self.part, "ab" if there else "wb") as file, bar:
            for chunk in answer.iter_content(1 << 16):
                bar.update(file.write(chunk))


def _download(url: str, sha256: str | None, folder: Path, part: Path) -> Path:
    """Download to ``folder`` by way of ``part``; raise DataError if cut off, refused or another."""
    pooch.get_logger().setLevel("ERROR")
    name = url.rpartition("/")[2]
    try:
        return Path(pooch.retrieve(url, sha256, name, folder, downloader=ResumingDownloader(part)))
    except requests.RequestException as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{url}: download failed ({reason}); try again, it goes on") from None
    except ValueError:
        raise DataError(
            f"{url}: the file's SHA-256 is not the one in the catalog ({sha256}); it was changed or"
            " damaged on the way: try again, and do not use it if this stays"
        ) from None


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive into ``folder``; nothing lands outside, whatever its names say.

    Raises DataError for a file that is no whole archive and for a tar that leads out of ``folder``,
    OSError where the disk is full.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(folder)
        else:
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")
    except BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault, not the archive's
        reason = str(error).partition("\n")[0].rstrip(":")
        raise DataError(f"{archive.name}: not a whole, safe archive ({reason})") from None


def _unpack_inner(folder: Path) -> None:
    """Unpack the archives that came inside the archive, each where it stands."""
    for archive in sorted(folder.rglob("*")):
        if archive.name.lower().endswith(ARCHIVES) and archive.is_file():
            unpack(archive, archive.parent)
            archive.unlink()


def fetch(name: str, to: Path) -> Path:
    """Download dataset ``name`` and unpack it as a folder below ``to``; return that folder.

    When it fails, nothing is left but what was downloaded, hidden, for the next call to go on from.
    Raises ValueError for an unknown dataset, DataError where no direct download is allowed, the
    folder is there already, or the download is not as it should be, OSError where the disk is full.
    """
    check_choice("dataset", name, catalog())
    entry = catalog()[name]
    goal = to / entry["title"]
    if "url" not in entry:
        raise DataError(f"{name}: no direct download; get it from {entry['page']}")
    if goal.exists():
        raise DataError(f"{goal}: is there already; remove it to fetch it anew")
    to.mkdir(parents=True, exist_ok=True)
    part = to / f".fetch-{name}.part"
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=to) as temporary:
        archive = _download(entry["url"], entry.get("sha256"), Path(temporary), part)
        unpacked = Path(temporary, "unpacked")
        unpacked.mkdir()
        try:
            unpack(archive, unpacked)
            _unpack_inner(unpacked)
        except (OSError, KeyboardInterrupt):
            os.replace(archive, part)
            raise
        os.replace(unpacked, goal)
    return goal
