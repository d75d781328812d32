"""Downloads from a server on this machine: good, cut off, changed, and archives that mean harm."""

import errno
import hashlib
import io
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import write_pair

from ultraseg_lib.__main__ import main
from ultraseg_lib.data import DataError, catalog, find_dataset
from ultraseg_lib.data.fetch import fetch, how_to_get, unpack


class Files(dict):
    """What the server gives: path -> bytes.

    ``cut``: paths of which only half is sent. ``ranges``: whether it can begin in the middle.
    ``asked``: the byte at which each answer began.
    """

    cut: set[str]
    ranges: bool
    asked: list[int]


@pytest.fixture
def server():
    """Serve the files of a dict at an address of this machine."""
    files = Files()
    files.cut, files.ranges, files.asked = set(), True, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = files.get(self.path, b"")
            asked = self.headers.get("Range", "bytes=0-")
            start = int(asked.removeprefix("bytes=").rstrip("-")) if files.ranges else 0
            files.asked.append(start)
            rest = body[start:]
            if body and start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
            else:
                self.send_response((206 if start else 200) if body else 404)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            whole = self.path not in files.cut
            self.wfile.write(rest[: None if whole else len(rest) // 2])

        def log_message(self, *args: object) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    files.address = f"http://127.0.0.1:{served.server_port}"
    yield files
    served.shutdown()
    served.server_close()


def zip_of(members: dict[str, bytes], links: tuple[str, ...] = ()) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            if name in links:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(info, content)
    return data.getvalue()


def tar_of(members: dict[str, bytes], kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


@pytest.fixture
def pair_files(tmp_path: Path) -> dict[str, bytes]:
    """The files of a Kvasir-SEG with one pair, by their names in the archive."""
    folder = tmp_path / "made" / "Kvasir-SEG"
    write_pair(folder / "images/a.jpg", folder / "masks/a.jpg")
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder.parent)): path.read_bytes() for path in files}


@pytest.fixture
def offer(server, monkeypatch) -> Callable[..., Files]:
    """Give a function that offers an archive as that of Kvasir-SEG."""

    def put(archive: bytes, path: str = "/kvasir-seg.zip", **more: str) -> Files:
        server[path] = archive
        entry = {"url": server.address + path} | more
        monkeypatch.setitem(catalog(), "kvasir_seg", catalog()["kvasir_seg"] | entry)
        return server

    return put


def nothing_left(folder: Path) -> bool:
    return not folder.exists() or list(folder.iterdir()) == []


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_a_good_archive_is_unpacked_and_found(offer, pair_files, tmp_path, make):
    archive = make(pair_files)
    offer(archive, sha256=hashlib.sha256(archive).hexdigest())
    goal = fetch("kvasir_seg", tmp_path / "data")
    assert goal == tmp_path / "data" / "Kvasir-SEG"
    assert [path.name for path in goal.parent.iterdir()] == [
        "Kvasir-SEG"
    ]  # no archive, no leftovers
    assert find_dataset("kvasir_seg", tmp_path / "data").table["image_id"].tolist() == ["a"]


def test_archives_inside_the_archive_are_unpacked(offer, pair_files, tmp_path):
    short = {name.removeprefix("Kvasir-SEG/"): content for name, content in pair_files.items()}
    images = {name: content for name, content in short.items() if name.startswith("images")}
    masks = {name: content for name, content in short.items() if name.startswith("masks")}
    offer(zip_of({"k/images.tar.gz": tar_of(images), "k/masks.tar.gz": tar_of(masks)}))
    goal = fetch("kvasir_seg", tmp_path / "data")
    files = sorted(str(path.relative_to(goal)) for path in goal.rglob("*") if path.is_file())
    assert files == ["k/images/a.jpg", "k/masks/a.jpg"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_off_download_goes_on_or_starts_anew(offer, pair_files, tmp_path, ranges):
    archive = zip_of(pair_files | {"Kvasir-SEG/large.bin": bytes(300_000)})
    files = offer(archive, sha256=hashlib.sha256(archive).hexdigest())
    files.ranges = ranges
    files.cut.add("/kvasir-seg.zip")
    with pytest.raises(DataError, match=r"download failed.*try again"):
        fetch("kvasir_seg", tmp_path / "data")
    (left,) = (tmp_path / "data").iterdir()  # what came, hidden, and nothing half-made beside it
    assert left.name == ".fetch-kvasir_seg.part"
    came = left.read_bytes()
    assert len(came) > 100_000
    assert archive.startswith(came)
    files.cut.clear()
    assert fetch("kvasir_seg", tmp_path / "data").is_dir()
    assert files.asked == [0, len(came) if ranges else 0]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["Kvasir-SEG"]


def test_another_checksum_is_refused(offer, pair_files, tmp_path):
    offer(zip_of(pair_files), sha256="0" * 64)
    with pytest.raises(DataError, match="SHA-256 is not the one in the catalog"):
        fetch("kvasir_seg", tmp_path / "data")
    assert nothing_left(tmp_path / "data")


def test_a_missing_file_and_a_dead_server_are_one_line(
    server, offer, tmp_path, capsys, monkeypatch
):
    offer(b"")
    assert main(["data", "fetch", "kvasir_seg", "--to", str(tmp_path / "data")]) == 2
    told = capsys.readouterr().err
    assert "404" in told
    assert len(told.strip().splitlines()) == 1
    dead = catalog()["kvasir_seg"] | {"url": "http://127.0.0.1:1/x.zip"}
    monkeypatch.setitem(catalog(), "kvasir_seg", dead)
    assert main(["data", "fetch", "kvasir_seg", "--to", str(tmp_path / "data")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "content", [b"<html>please log in</html>", zip_of({"a": b"x" * 999})[:300]]
)
def test_what_is_no_archive_is_refused(offer, tmp_path, content):
    offer(content)
    with pytest.raises(DataError, match="not a whole, safe archive"):
        fetch("kvasir_seg", tmp_path / "data")
    assert nothing_left(tmp_path / "data")


HARMFUL = {
    "zip up": zip_of({"Kvasir-SEG/a": b"", "../out": b"x"}),
    "zip deep up": zip_of({"Kvasir-SEG/../../out": b"x"}),
    "zip absolute": zip_of({"/tmp/ultraseg-out": b"x"}),
    "zip backslash": zip_of({"..\\out": b"x"}),
    "zip drive": zip_of({"C:\\out": b"x"}),
    "zip symlink": zip_of({"link": b"/etc", "link/out": b"x"}, ("link",)),
    "tar up": tar_of({"../out": b"x"}),
    "tar absolute": tar_of({"/tmp/ultraseg-out": b"x"}),
    "tar symlink": tar_of({"link": b""}, tarfile.SYMTYPE, "/etc"),
    "tar hardlink": tar_of({"link": b""}, tarfile.LNKTYPE, "/etc/passwd"),
    "tar device": tar_of({"pipe": b""}, tarfile.FIFOTYPE),
    "inner": zip_of({"images.tar.gz": tar_of({"../../../out": b"x"})}),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_harmful_archives_write_nothing_outside(offer, tmp_path, name):
    """Refused whole, or unpacked with names that stay inside; never a link to follow."""
    offer(HARMFUL[name])
    data = tmp_path / "here" / "data"
    try:
        goal = fetch("kvasir_seg", data)
        assert list(data.iterdir()) == [goal]
        assert not any(path.is_symlink() for path in goal.rglob("*"))
    except (DataError, OSError):
        assert not (data / "Kvasir-SEG").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert list((tmp_path / "here").iterdir()) == [data]
    assert not Path("/tmp/ultraseg-out").exists()


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt("No space left")]
)
def test_what_stops_the_unpacking_keeps_the_archive(
    offer, pair_files, tmp_path, monkeypatch, error
):
    files = offer(zip_of(pair_files))

    def full(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(zipfile.ZipFile, "extractall", full)
        with pytest.raises(type(error), match="No space left"):
            fetch("kvasir_seg", tmp_path / "data")
    (left,) = (tmp_path / "data").iterdir()
    assert left.read_bytes() == files["/kvasir-seg.zip"]
    assert fetch("kvasir_seg", tmp_path / "data").is_dir()
    assert files.asked == [0, len(files["/kvasir-seg.zip"])]


def test_unpack_keeps_names_with_spaces_and_empty_folders(tmp_path):
    (tmp_path / "x.zip").write_bytes(zip_of({"a b/c d.jpg": b"1", "empty/": b""}))
    unpack(tmp_path / "x.zip", tmp_path / "to")
    assert (tmp_path / "to/a b/c d.jpg").read_bytes() == b"1"
    assert (tmp_path / "to/empty").is_dir()


def test_a_dataset_that_is_there_is_not_fetched_over(offer, pair_files, tmp_path):
    offer(zip_of(pair_files))
    fetch("kvasir_seg", tmp_path)
    with pytest.raises(DataError, match="is there already"):
        fetch("kvasir_seg", tmp_path)


def test_steps_are_printed_where_no_direct_download_is_allowed(capsys):
    for name, entry in catalog().items():
        if "url" not in entry:
            assert main(["data", "fetch", name]) == 0
            told = capsys.readouterr().out
            assert entry["title"] in told
            assert (entry["page"] or "") in told
    assert "1. make a Kaggle account" in how_to_get("bkai_igh")
    with pytest.raises(DataError, match="no direct download"):
        fetch("bkai_igh", Path("nowhere"))
    assert main(["data", "fetch", "no_such_set"]) == 2


def test_the_catalog_is_complete():
    for entry in catalog().values():
        if entry["page"]:
            assert {"title", "pairs", "license", "doi", "page", "folder", "trees"} <= set(entry)
            assert ("url" in entry) != ("steps" in entry)
            assert entry["page"].startswith("https://")
        if "url" in entry:  # the fetched folder must be found again by its name
            plain = "".join(letter for letter in entry["title"].lower() if letter.isalnum())
            assert plain.startswith(entry["folder"])
