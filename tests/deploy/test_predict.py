"""The predict command: right masks and numbers for every kind of input, and clear refusals."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from safetensors.torch import load_file
from scipy import ndimage

from ultraseg_lib import metrics
from ultraseg_lib import weights as shipped
from ultraseg_lib.__main__ import main
from ultraseg_lib.data.synthetic import generate_frame, synthetic_video
from ultraseg_lib.deploy import predict
from ultraseg_lib.models import create_model
from ultraseg_lib.paths import write_json
from ultraseg_lib.report.figures import PRED
from ultraseg_lib.training import save_weights

SIZE = 64


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Weights that find something in every generated frame, beside the config of their run."""
    torch.manual_seed(0)
    model = create_model("ultraseg_130k").eval()
    image = torch.from_numpy(generate_frame(0, 0, SIZE).image).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        model.head.bias -= model(image).logits.median()
    path = tmp_path_factory.mktemp("run") / "weights.safetensors"
    save_weights(model, path)
    write_json(path.with_name("config.json"), {"inputs": {"images": {"size": SIZE}}})
    return path


@pytest.fixture
def run(weights: Path, tmp_path: Path) -> Callable[..., int]:
    """Give a function that runs the command with the test's weights; results go to ``out``."""

    def command(path: Path | str, *words: str, output: Path = tmp_path / "out") -> int:
        options = ["--weights", str(weights), "--backend", "inference", *words]
        return main(["predict", str(path), "-o", str(output), *options])

    return command


def write_frames(folder: Path, *names: str, shape: tuple[int, int] = (90, 120)) -> Path:
    """Write one generated frame a name."""
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        rgb = cv2.resize(generate_frame(5, index, 128).image, shape[::-1])
        assert cv2.imwrite(str(folder / name), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    return folder


def write_video(path: Path, frames: int, shape: tuple[int, int] = (72, 96)) -> Path:
    """Write a generated video whose every frame is a JPEG of its own."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, shape[::-1])
    for frame in synthetic_video(3, frames, 96):
        writer.write(cv2.cvtColor(cv2.resize(frame.image, shape[::-1]), cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "measurements.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_mask(path: Path) -> np.ndarray:
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (90, 120), (40, 31)])
def test_masks_are_the_models_own_prediction_at_the_size_of_the_image(
    run, weights, tmp_path, shape
):
    images = write_frames(tmp_path / "in", "a.png", "b.png", "c.png", shape=shape)
    assert run(images) == 0
    model = create_model("ultraseg_130k", weights=weights).eval()
    for name in ("a.png", "b.png", "c.png"):
        rgb = cv2.cvtColor(cv2.imread(str(images / name)), cv2.COLOR_BGR2RGB)
        small = torch.from_numpy(cv2.resize(rgb, (SIZE, SIZE))).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            logits = model(small).logits
        full = torch.nn.functional.interpolate(logits, size=shape)[0, 0].numpy()  # nearest
        sure = abs(full) > 1e-3  # rounding may tip the others
        assert sure.mean() > 0.99
        mask = read_mask(tmp_path / "out" / name)
        assert mask.dtype == np.uint8
        assert mask.shape == shape
        assert np.array_equal(mask[sure], np.where(full[sure] > 0, 255, 0))
        assert 0 < (mask == 255).mean() < 1


def test_table_holds_what_the_masks_show(run, tmp_path):
    images = write_frames(tmp_path / "in", *(f"{letter}.png" for letter in "abcde"))
    assert run(images) == 0
    rows = read_table(tmp_path / "out")
    assert [row["file"] for row in rows] == [f"{letter}.png" for letter in "abcde"]
    for row in rows:
        mask = read_mask(tmp_path / "out" / row["mask"]) > 0
        labels, _ = ndimage.label(mask, np.ones((3, 3)))
        sizes = np.bincount(labels.ravel())[1:]
        ys, xs = np.nonzero(labels == sizes.argmax() + 1)
        assert (int(row["height"]), int(row["width"])) == mask.shape == (90, 120)
        assert int(row["area_px"]) == mask.sum()
        assert float(row["area_share"]) == pytest.approx(mask.mean(), abs=1e-6)
        assert int(row["n_polyps"]) == (sizes >= 10 * 90 * 120 / 256**2).sum() > 0
        assert float(row["center_x"]) == pytest.approx(xs.mean(), abs=0.006)
        assert float(row["center_y"]) == pytest.approx(ys.mean(), abs=0.006)
        box = [int(row[name]) for name in ("box_x", "box_y", "box_width", "box_height")]
        assert box == [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert float(row["latency_ms"]) > 0


def test_specks_are_no_polyps_at_any_size_of_the_frame():
    mask = np.zeros((256, 256), np.uint8)
    assert predict.measure(mask) == {"area_px": 0, "area_share": 0.0, "n_polyps": 0}
    mask[3:6, 3:6] = 255
    mask[100:105, 50:52] = 255
    for scale in (1, 2, 4):
        found = predict.measure(mask.repeat(scale, 0).repeat(scale, 1))
        assert found["n_polyps"] == metrics.count_polyps(mask > 0) == 1
        assert found["area_px"] == 19 * scale**2
        box = [found[name] for name in ("box_x", "box_y", "box_width", "box_height")]
        assert box == [50 * scale, 100 * scale, 2 * scale, 5 * scale]
    mask[100:105, 50:52] = 0
    assert predict.measure(mask) == {"area_px": 9, "area_share": 0.000137, "n_polyps": 0}


def test_overlay_outlines_the_mask_and_leaves_the_frame_alone():
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 30:50] = 255
    frame = np.full((60, 80, 3), 90, np.uint8)
    drawn = predict.overlay(frame, mask)
    assert "#{:02x}{:02x}{:02x}".format(*drawn[20, 35]) == PRED
    assert (drawn[30, 40] == 90).all()
    assert (drawn[:10] == 90).all()
    assert (frame == 90).all()


def test_overlays_lie_in_a_folder_beside_the_masks(run, tmp_path):
    assert run(write_frames(tmp_path / "in", "a.png", "b.png")) == 0
    overlays = sorted((tmp_path / "out" / "overlays").iterdir())
    assert [path.name for path in overlays] == ["a.jpg", "b.jpg"]
    assert cv2.imread(str(overlays[0])).shape == (90, 120, 3)


def test_bad_files_are_named_and_skipped_and_all_good_kinds_are_read(run, tmp_path, capsys):
    images = write_frames(tmp_path / "in", "Größe 1.jpg", "plain.bmp", "web.webp")
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 255, (30, 40, 3), np.uint8)
    cv2.imwrite(str(images / "alpha.png"), np.dstack([colour, colour[..., 0]]))
    cv2.imwrite(str(images / "deep.png"), colour.astype(np.uint16) * 257)
    cv2.imwrite(str(images / "grey.png"), colour[..., 0])
    cv2.imwrite(str(images / "tiny.png"), colour[:1, :1])
    cv2.imwrite(str(images / "thin.png"), colour[:4, :1])
    tifffile.imwrite(images / "tiff.TIF", colour)
    good = {path.stem for path in images.iterdir()}
    (images / "empty.jpg").touch()
    (images / "float.tif").write_bytes(b"II*\0 no image")
    whole = (images / "Größe 1.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "._plain.png").write_bytes(b"left by a file system")
    (images / "notes.txt").write_text("no image")
    (images / "folder.png").mkdir()
    (images / "dangling.png").symlink_to(images / "nowhere.png")
    assert run(images) == 1
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == good
    said = capsys.readouterr()
    skipped = [line for line in said.err.splitlines() if line.startswith("skipped: ")]
    for line, name in zip(
        skipped, ("cut.jpg", "dangling.png", "empty.jpg", "float.tif"), strict=True
    ):
        assert str(images / name) in line
    assert f"{len(good)} segmented, 4 bad" in said.out
    assert "passed over: 2 that are no images, as folder.png" in said.err
    assert len(read_table(tmp_path / "out")) == len(good)
    assert read_mask(tmp_path / "out" / "tiny.png").shape == (1, 1)
    assert read_mask(tmp_path / "out" / "thin.png").shape == (4, 1)


def test_a_webp_alone_is_an_image_and_a_cut_one_is_bad(run, tmp_path, capsys):
    image = write_frames(tmp_path / "in", "web.webp") / "web.webp"
    assert run(image) == 0
    assert [row["file"] for row in read_table(tmp_path / "out")] == ["web.webp"]
    assert (tmp_path / "out" / "web.png").exists()
    image.write_bytes(image.read_bytes()[:300])
    assert run(image, output=tmp_path / "cut") == 1
    assert f"skipped: {image}" in capsys.readouterr().err


def test_a_name_too_long_for_its_pictures_is_skipped_alone(run, tmp_path, capsys):
    images = write_frames(tmp_path / "in", "a.png", f"{'b' * 250}.png", "c.png")
    assert run(images) == 1
    assert f"skipped: {'b' * 250}.png: too long a name" in capsys.readouterr().err
    assert [row["file"] for row in read_table(tmp_path / "out")] == ["a.png", "c.png"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["a.png", "c.png"]


def test_video_frames_are_numbered_and_broken_ones_named(run, tmp_path, capsys):
    video = write_video(tmp_path / "clip.avi", 8)
    assert run(video, output=tmp_path / "whole") == 0
    names = [f"clip_{number:06d}.png" for number in range(1, 9)]
    assert sorted(path.name for path in (tmp_path / "whole").glob("*.png")) == names
    data = bytearray(video.read_bytes())
    starts = [at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"]
    assert len(starts) == 8
    data[starts[4] : starts[5] - 8] = bytes(starts[5] - 8 - starts[4])
    video.write_bytes(data)
    assert run(video) == 1
    assert "skipped: clip.avi: frame 5 cannot be decoded" in capsys.readouterr().err
    rows = read_table(tmp_path / "out")
    assert [int(row["frame"]) for row in rows] == [1, 2, 3, 4, 6, 7, 8]
    for name in set(names) - {"clip_000005.png"}:  # the others are those of the whole video
        whole, after = (read_mask(tmp_path / each / name) for each in ("whole", "out"))
        assert np.array_equal(whole, after)


def test_cut_video_names_every_missing_frame(run, tmp_path, capsys):
    video = write_video(tmp_path / "clip.avi", 6)
    data = video.read_bytes()
    last = data.rfind(b"\xff\xd8\xff")
    video.write_bytes(data[:last])
    assert run(video) == 1
    assert "clip.avi: frame 6 cannot be decoded" in capsys.readouterr().err
    assert len(read_table(tmp_path / "out")) == 5


def test_limit_ends_after_so_many_frames(run, tmp_path):
    assert run(write_video(tmp_path / "clip.avi", 6), "--limit", "2") == 0
    assert [row["frame"] for row in read_table(tmp_path / "out")] == ["1", "2"]


class Camera:
    """Stands in for OpenCV's camera: generated frames, some broken, and a way to end."""

    def __init__(self, broken: set[int], unplugged_after: int, opens: bool = True) -> None:
        self.number, self.broken, self.unplugged_after = 0, broken, unplugged_after
        self.opens, self.is_released = opens, False

    def isOpened(self) -> bool:
        return self.opens

    def read(self) -> tuple[bool, np.ndarray | None]:
        self.number += 1
        if self.number in self.broken or self.number > self.unplugged_after:
            return False, None
        return True, generate_frame(1, self.number, 64).image[..., ::-1]

    def release(self) -> None:
        self.is_released = True


@pytest.mark.parametrize("path", ["camera:0", "0"])
def test_camera_runs_to_the_limit_and_passes_over_bad_frames(
    run, tmp_path, monkeypatch, capsys, path
):
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: Camera({2}, 10 + number))
    assert run(path, "--limit", "4") == 1
    assert "skipped: camera:0: frame 2 cannot be decoded" in capsys.readouterr().err
    assert [row["mask"] for row in read_table(tmp_path / "out")] == [
        "camera0_000001.png", "camera0_000003.png", "camera0_000004.png",
    ]  # fmt: skip


def test_camera_that_was_unplugged_is_given_up(run, tmp_path, monkeypatch, capsys):
    camera = Camera({1}, 3)
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: camera)
    assert run("camera:1") == 1
    assert "camera:1: gave up at frame 33, after 30 bad ones in a row" in capsys.readouterr().err
    assert len(read_table(tmp_path / "out")) == 2
    assert camera.is_released


def test_ctrl_c_keeps_what_was_done(run, tmp_path, monkeypatch, capsys):
    real, calls = predict.segment_frame, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(predict, "segment_frame", interrupted)
    images = write_frames(tmp_path / "in", "a.png", "b.png", "c.png", "d.png")
    assert run(images) == 130
    assert [row["mask"] for row in read_table(tmp_path / "out")] == ["a.png", "b.png"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["a.png", "b.png"]
    assert "2 segmented, 0 bad" in capsys.readouterr().out


def test_ctrl_c_is_how_a_camera_ends(run, tmp_path, monkeypatch):
    camera = Camera(set(), 10)

    def read_two() -> tuple[bool, np.ndarray | None]:
        if camera.number == 2:
            raise KeyboardInterrupt
        return Camera.read(camera)

    camera.read = read_two
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: camera)
    assert run("camera:0") == 0
    assert len(read_table(tmp_path / "out")) == 2


def test_an_earlier_run_is_replaced_only_if_asked(run, tmp_path, capsys):
    images = write_frames(tmp_path / "in", "a.png", "b.png")
    assert run(images / "a.png") == 0
    assert run(images / "b.png") == 2
    assert (
        "holds results already; choose another folder, or give --force" in capsys.readouterr().err
    )
    assert [row["file"] for row in read_table(tmp_path / "out")] == ["a.png"]
    assert run(images / "b.png", "--force") == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"b.png"}


def test_an_earlier_run_goes_and_pictures_are_whole_or_not_there(
    run, tmp_path, monkeypatch, capsys
):
    images = write_frames(tmp_path / "in", "a.png", "b.png")
    assert run(images) == 0
    (tmp_path / "out" / "own.png").touch()
    (images / "b.png").unlink()
    write_frames(images, "a.png", shape=(50, 60))

    write = Path.write_bytes

    def full_disk(path: Path, data: bytes) -> int:
        if ".jpg" in path.name:
            return write(path, data)  # the mask, which follows the overlay, no longer fits
        with path.open("wb") as file:
            file.write(data[:20])
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_disk)
        assert run(images, "--force") == 2
    assert "no space" in capsys.readouterr().err
    left = {"overlays", "measurements.csv", "own.png"}
    assert {path.name for path in (tmp_path / "out").rglob("*")} == left
    assert run(images, "--force") == 0
    assert read_mask(tmp_path / "out" / "a.png").shape == (50, 60)
    assert {path.name for path in (tmp_path / "out").rglob("*")} == left | {"a.png", "a.jpg"}


def test_pictures_of_a_killed_run_are_replaced_with_force(run, tmp_path):
    images = write_frames(tmp_path / "in", "a.png", "b[1].png")
    assert run(images) == 0
    out = tmp_path / "out"
    rows = (out / "measurements.csv").read_text().splitlines(keepends=True)
    (out / "measurements.csv").write_text("".join(rows[:-1]))  # killed before the last row
    (out / predict.UNDER_WAY).write_text("b[1]")
    (out / ".b[1].77.tmp.png").touch()
    assert run(images, "--force") == 0
    assert [row["file"] for row in read_table(out)] == ["a.png", "b[1].png"]
    left = {"a.png", "a.jpg", "b[1].png", "b[1].jpg", "overlays", "measurements.csv"}
    assert {path.name for path in out.rglob("*")} == left


def test_a_video_without_a_frame_is_no_success(run, tmp_path, capsys):
    assert run(write_video(tmp_path / "empty.avi", 0)) == 1
    assert "skipped: empty.avi: holds no frame" in capsys.readouterr().err


def test_a_table_of_someone_else_is_left_alone(run, tmp_path, capsys):
    images = write_frames(tmp_path / "in", "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "measurements.csv").write_text("patient,age\n1,60\n")
    assert run(images) == 2
    assert "measurements.csv: not written by predict" in capsys.readouterr().err
    assert (tmp_path / "out" / "measurements.csv").read_text() == "patient,age\n1,60\n"


def test_a_table_that_another_program_wrote_anew_is_left_alone(run, tmp_path, capsys):
    images = write_frames(tmp_path / "in", "ä.png")
    assert run(images) == 0
    table = tmp_path / "out" / "measurements.csv"
    table.write_bytes(table.read_text(encoding="utf-8").encode("cp1252"))
    assert run(images, "--force") == 2
    assert "measurements.csv: not written by predict" in capsys.readouterr().err


def test_a_name_that_is_no_text_is_refused(run, tmp_path, capsys):
    images = write_frames(tmp_path / "in", "a.png")
    os.link(images / "a.png", os.fsdecode(os.fsencode(images) + b"/\xe9.png"))
    assert run(images) == 2
    assert "its name is not UTF-8; rename it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_picture_of_someone_else_is_left_alone(run, tmp_path, capsys):
    images = write_frames(tmp_path / "in", "a.png", "b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"a true mask")
    assert run(images) == 1
    assert "a.png: is there and is not predict's; choose another" in capsys.readouterr().err
    assert (tmp_path / "out" / "a.png").read_bytes() == b"a true mask"
    assert [row["file"] for row in read_table(tmp_path / "out")] == ["b.png"]
    (tmp_path / "other" / "overlays").mkdir(parents=True)
    (tmp_path / "other" / "overlays" / "b.jpg").write_bytes(b"a photograph")
    assert run(images, output=tmp_path / "other") == 1
    assert (tmp_path / "other" / "overlays" / "b.jpg").read_bytes() == b"a photograph"
    assert not (tmp_path / "other" / "b.png").exists()


def test_a_frame_that_breaks_a_decoder_or_an_encoder_does_not_stop_the_others(
    run, tmp_path, monkeypatch, capsys
):
    images = write_frames(tmp_path / "in", "a.png", "b.png", "c.png")
    decode, encode = cv2.imread, cv2.imencode

    def read(path: str, *flags: int) -> np.ndarray:
        if path.endswith("a.png"):
            raise cv2.error("too many pixels")
        return decode(path, *flags)

    def write(suffix: str, pixels: np.ndarray, *options: list[int]) -> tuple[bool, np.ndarray]:
        broken = suffix == ".jpg" and (tmp_path / "out" / "b.png").exists()
        return (False, np.array([])) if broken else encode(suffix, pixels, *options)

    monkeypatch.setattr(cv2, "imread", read)
    monkeypatch.setattr(cv2, "imencode", write)
    assert run(images) == 1
    told = capsys.readouterr().err
    assert "a.png: missing or not a readable image" in told
    assert "c.png: 120×90 px: too large for a .jpg file" in told
    assert [row["file"] for row in read_table(tmp_path / "out")] == ["b.png"]


def test_each_frame_is_in_the_table_before_the_next(run, tmp_path, monkeypatch):
    """A run that is killed leaves no mask without its row."""
    real, seen = predict.segment_frame, []

    def looking(*arguments):
        if (tmp_path / "out" / "measurements.csv").exists():
            masks = {path.name for path in (tmp_path / "out").glob("*.png")}
            assert {row["mask"] for row in read_table(tmp_path / "out")} == masks
            seen.append(len(masks))
        return real(*arguments)

    monkeypatch.setattr(predict, "segment_frame", looking)
    assert run(write_frames(tmp_path / "in", "a.png", "b.png", "c.png")) == 0
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("output", ["in", "in/../in", "."])
def test_refuses_to_write_among_the_inputs(run, tmp_path, capsys, output):
    """Also from where an earlier run put its overlays."""
    images = write_frames(tmp_path / ("in" if output != "." else "overlays"), "a.png")
    before = (images / "a.png").read_bytes()
    for path in (images, images / "a.png"):
        assert run(path, output=tmp_path / output) == 2
        assert "this is the input folder; choose another" in capsys.readouterr().err
    assert [path.read_bytes() for path in images.iterdir()] == [before]


def test_two_images_of_one_stem_are_refused(run, tmp_path, capsys):
    assert run(write_frames(tmp_path / "in", "a.jpg", "a.png", "b.png")) == 2
    assert "a.jpg and a.png would both give the mask a.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bad_arguments_give_one_line_and_leave_nothing(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "notes.txt").write_text("no image")
    images = write_frames(tmp_path / "in", "a.png")
    (tmp_path / "text.avi").write_text("no video")
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    (tmp_path / "file").touch()
    monkeypatch.setattr(cv2, "VideoCapture", _without_cameras(cv2.VideoCapture))
    for path, words, reason in (
        (tmp_path / "gone.png", (), "gone.png: not found"),
        (
            tmp_path / "bare",
            (),
            "bare: no images here (subfolders are not searched); they end in .png",
        ),
        (tmp_path / "text.avi", (), "text.avi: neither an image"),
        (tmp_path / "zero.mp4", (), "zero.mp4: neither an image"),
        ("camera:7", (), "camera:7: no such camera"),
        (images, ("--backend", "abacus"), "unknown 'abacus'; choose from eager"),
        (images, ("--model", "ultraseg"), "model: unknown 'ultraseg'; choose from"),
        (images, ("--weights", "moon"), "weights of ultraseg_130k: 'moon' is no file"),
        (images, ("--model", "lbunet"), "no weights of lbunet"),
        (images, ("--weights", str(tmp_path / "broken.safetensors")), "or broken"),
        (images, ("--output", str(tmp_path / "file")), "file: cannot be made"),
    ):
        assert run(path, *words) == 2, reason
        said = capsys.readouterr().err
        assert reason in said
        assert len(said.strip().splitlines()) == 1
        assert not (tmp_path / "out").exists()


def _without_cameras(video: type) -> Callable[[str | int], object]:
    return lambda path: Camera(set(), 0, opens=False) if isinstance(path, int) else video(path)


def test_falls_back_to_pytorch_without_the_extras_and_says_so(
    weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(predict, "available_backends", lambda: ["eager", "inference", "compiled"])
    images = write_frames(tmp_path / "in", "a.png")
    words = ["predict", str(images / "a.png"), "-o", str(tmp_path / "out")]
    assert main([*words, "--weights", str(weights)]) == 0
    assert (
        f"ultraseg_130k from {weights}, at {SIZE} px, inference on 1 thread"
        in capsys.readouterr().out
    )
    assert (tmp_path / "out" / "a.png").exists()


def test_prefers_the_fastest_backend_that_runs_the_model(monkeypatch):
    everything = ["eager", "inference", "compiled", "onnxruntime", "openvino", "native"]
    model, other = create_model("ultraseg_130k"), create_model("unet_tiny")
    monkeypatch.setattr(predict, "available_backends", lambda: everything)
    assert predict.pick_backend(model, 256) == "native"
    assert predict.pick_backend(model, 256, threads=2) == "openvino"
    assert predict.pick_backend(model, 80) == "openvino"
    assert predict.pick_backend(other, 256) == "openvino"
    monkeypatch.setattr(predict, "available_backends", lambda: everything[:4])
    assert predict.pick_backend(model, 256) == "onnxruntime"


def test_default_weights_are_of_the_most_images_then_the_best_on_validation(tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    monkeypatch.setattr(shipped, "RUNS", runs)
    with pytest.raises(FileNotFoundError, match="none are shipped"):
        shipped.find_weights("ultraseg_130k")
    for dataset, images, dice, expected in (
        ("kvasir_seg", 720, 0.7, "kvasir_seg"), ("cvc_clinicdb", 441, 0.8, "kvasir_seg"),
        ("polypgen", 1100, 0.6, "polypgen"), ("mixed", 2300, 0.5, "mixed"),
    ):  # fmt: skip
        folder = runs / f"ultraseg_130k-{dataset}-strong-clean-e3-s0"
        folder.mkdir(parents=True)
        write_json(folder / "config.json", {"images": {"train": images}})
        (folder / "history.csv").write_text(f"epoch,val_dice\n1,{dice}\n2,0.1\n")
        found = shipped.find_weights("ultraseg_130k")
        assert found == runs / f"ultraseg_130k-{expected}-strong-clean-e3-s0/weights.safetensors"
    for recipe, dice in (("paper", 0.9), ("multiscale", 0.85)):
        folder = runs / f"ultraseg_130k-cvc_clinicdb-{recipe}-clean-e3-s0"
        folder.mkdir()
        write_json(folder / "config.json", {"images": {"train": 441}})
        (folder / "history.csv").write_text(f"epoch,val_dice\n1,{dice}\n")
    named = shipped.find_weights("ultraseg_130k", "cvc_clinicdb")
    assert named.parent.name == "ultraseg_130k-cvc_clinicdb-multiscale-clean-e3-s0"
    with pytest.raises(
        FileNotFoundError, match=r"'kvasir' is no file.*mixed, polypgen, kvasir_seg"
    ):
        shipped.find_weights("ultraseg_130k", "kvasir")


@pytest.mark.parametrize("dataset", shipped.shipped_weights("ultraseg_130k"))
def test_a_model_takes_its_shipped_weights_by_name(dataset):
    model = create_model("ultraseg_130k", weights=dataset)
    state = load_file(shipped.find_weights("ultraseg_130k", dataset))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_video_overlays_show_the_latency():
    frame = np.full((120, 200, 3), 90, np.uint8)
    predict.write_latency(frame, 3.2)
    assert (frame[:30] == 255).any()
    assert (frame[60:] == 90).all()


def test_weights_without_a_config_are_taken_for_256_px(weights, tmp_path):
    assert shipped.trained_size(weights) == SIZE
    assert shipped.trained_size(tmp_path / "weights.safetensors") == 256


def test_camera_frames_are_turned_from_bgr(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: Camera(set(), 1))
    first = next(predict.open_source("camera:0").shots)
    assert np.array_equal(first.pixels, generate_frame(1, 1, 64).image)
