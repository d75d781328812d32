"""Decoding, the cache, batches; every broken file is named and nothing half-made stays."""

import shutil
import threading
import time
import warnings

import cv2
import numpy as np
import pytest
import tifffile
from conftest import write_pair

from ultraseg_lib.data import DataError, find_dataset, load_frames, load_generated
from ultraseg_lib.data.augmentation import AUGMENTATIONS, augment, draw_change
from ultraseg_lib.data.loading import (
    Frames,
    ahead,
    drawn_batches,
    read_image,
    read_mask,
    to_batch,
    to_tensor,
    training_batches,
)
from ultraseg_lib.training import RECIPES


def load(root, size=32) -> Frames:
    return load_frames(find_dataset("kvasir_seg", root).table, size)


@pytest.mark.filterwarnings("ignore:.*thresholded at 127")
def test_frames_are_squashed_and_binary(kvasir, outputs):
    frames = load(kvasir())
    assert frames.images.shape == (3, 32, 32, 3)
    assert set(np.unique(frames.masks)) == {0, 255}
    assert frames.masks[0].mean() / 255 == pytest.approx(15 * 18 / (40 * 50), abs=0.03)


def test_grey_masks_are_thresholded_and_told_once(kvasir, outputs):
    root = kvasir()
    with pytest.warns(UserWarning, match="kvasir_seg: 3 of 3 masks hold values other") as told:
        load(root)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(root)  # from the cache, in silence


@pytest.mark.filterwarnings("ignore:.*thresholded at 127")
def test_a_damaged_cache_is_named_with_the_way_out(kvasir, outputs):
    root = kvasir()
    load(root)
    (kept,) = (outputs / "cache").glob("kvasir_seg-32-*/images.npy")
    kept.write_bytes(kept.read_bytes()[:1000])
    with pytest.raises(DataError, match=f"{kept.parent}: damaged .*; remove it"):
        load(root)
    shutil.rmtree(kept.parent)
    assert len(load(root)) == 3


def test_a_cut_off_image_is_named_and_nothing_is_cached(kvasir, outputs):
    root = kvasir()
    path = sorted(root.rglob("images/*.jpg"))[0]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"{path.name}: cut off before its end"):
        load(root)
    assert not list(outputs.glob("cache/*/images.npy"))


def test_threshold_is_127_on_the_brightest_channel(tmp_path):
    pixels = np.zeros((1, 4, 3), np.uint8)
    pixels[0, :, 2] = (0, 127, 128, 255)
    cv2.imwrite(str(tmp_path / "m.png"), pixels)
    mask, was_grey = read_mask(tmp_path / "m.png")
    assert mask.tolist() == [[0, 0, 255, 255]]
    assert was_grey


def test_a_mask_of_labels_is_named_with_the_way_out(tmp_path):
    cv2.imwrite(str(tmp_path / "m.png"), np.eye(8, dtype=np.uint8))
    with pytest.raises(DataError, match=r"m\.png: no value is above 1; .* 255"):
        read_mask(tmp_path / "m.png")
    cv2.imwrite(str(tmp_path / "flat16.png"), np.eye(8, dtype=np.uint16))
    with pytest.raises(DataError, match=r"flat16\.png: flat .* uint16 values up to 1; .* 8 bits"):
        read_mask(tmp_path / "flat16.png")
    outline = np.zeros((8, 8, 4), np.uint8)
    outline[2:4, 2:4, 3] = 255
    cv2.imwrite(str(tmp_path / "alpha.png"), outline)
    with pytest.raises(DataError, match=r"alpha\.png: .* an alpha channel with an outline"):
        read_mask(tmp_path / "alpha.png")
    for name, mask in (
        ("empty", np.zeros((8, 8), np.uint8)),
        ("empty16", np.zeros((8, 8), np.uint16)),
    ):
        cv2.imwrite(str(tmp_path / f"{name}.png"), mask)
        assert not read_mask(tmp_path / f"{name}.png")[0].any()
    cv2.imwrite(str(tmp_path / "noise.jpg"), np.eye(8, dtype=np.uint8))
    assert not read_mask(tmp_path / "noise.jpg")[0].any()  # noise of JPEG in an empty mask


def test_an_exif_orientation_turns_no_image_away_from_its_mask(tmp_path):
    plain = cv2.imencode(".jpg", np.tile(np.arange(0, 240, 8, np.uint8), (20, 1)))[1].tobytes()
    upside_down = bytes.fromhex("0112 0003 00000001 0003 0000")  # orientation, one short: 3
    exif = b"Exif\0\0MM\0*" + bytes.fromhex("00000008 0001") + upside_down + bytes(4)
    turned = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
    for name, data in (("plain.jpg", plain), ("turned.jpg", turned)):
        (tmp_path / name).write_bytes(data)
    assert not np.array_equal(*(cv2.imread(str(each)) for each in sorted(tmp_path.iterdir())))
    assert np.array_equal(*(read_image(each) for each in sorted(tmp_path.iterdir())))


def test_corrupt_image_is_named_and_leaves_no_cache(kvasir, outputs):
    root = kvasir()
    (root / "Kvasir-SEG/images/b.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"images/b\.jpg: missing or not a readable image"):
        load(root)
    assert [path.suffix for path in (outputs / "cache").iterdir()] == [".lock"]


def test_mask_of_another_size_is_named(kvasir, outputs, tmp_path):
    root = kvasir()
    write_pair(tmp_path / "x.jpg", root / "Kvasir-SEG/masks/b.jpg", shape=(30, 30))
    with pytest.raises(DataError, match=r"masks/b\.jpg: mask is 30×30, its image 50×40"):
        load(root)


@pytest.mark.filterwarnings("ignore:.*thresholded at 127")
def test_a_killed_decoding_leaves_nothing_for_ever(kvasir, outputs):
    root = kvasir()
    load(root)
    (folder,) = (each for each in (outputs / "cache").iterdir() if each.is_dir())
    left = folder.with_name(f".{folder.name}.123.tmp")
    folder.rename(left)  # as if the process had been killed before the end
    load(root)
    assert folder.is_dir()
    assert not left.exists()


def test_images_that_would_be_read_wrongly_are_refused(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, rgb, photometric="rgb")
    assert np.array_equal(read_image(path), rgb)
    planes = rgb.transpose(2, 0, 1)
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_image(path), rgb)
    tifffile.imwrite(path, np.stack([rgb, rgb]), photometric="rgb")
    with pytest.raises(DataError, match=r"x\.tif: holds 2 pages; save each"):
        read_image(path)
    tifffile.imwrite(path, np.dstack([rgb, rgb[..., :1]]), photometric="separated")
    with pytest.raises(DataError, match=r"its colours are SEPARATED; save it as RGB"):
        read_image(path)
    tifffile.imwrite(path, planes, photometric="minisblack", planarconfig="separate")
    with pytest.raises(DataError, match=r"its colours stand in planes; save it as RGB"):
        read_image(path)
    grey_alpha = np.dstack([rgb[..., 0], np.full((24, 32), 255, np.uint8)])
    tifffile.imwrite(path, grey_alpha, photometric="minisblack", planarconfig="contig")
    assert np.array_equal(read_image(path), rgb[..., [0, 0, 0]])
    assert np.array_equal(read_mask(path)[0] > 0, rgb[..., 0] > 127)
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), rgb.astype(np.uint16) * 16)  # 12 bits in 16
    with pytest.raises(DataError, match=r"deep\.png: 16 bits, yet no value above \d+; stretch"):
        read_image(deep)
    cv2.imwrite(str(deep), rgb.astype(np.uint16) * 256)
    assert np.array_equal(read_image(deep)[..., ::-1], rgb)


def test_full_disk_is_said_before_anything_is_decoded(kvasir, outputs, monkeypatch):
    usage = shutil.disk_usage(outputs)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"cache: decoding kvasir_seg takes .* MB.*make room"):
        load(kvasir())
    assert [path.suffix for path in (outputs / "cache").iterdir()] == [".lock"]


@pytest.mark.filterwarnings("ignore:.*thresholded at 127")
def test_cache_is_made_anew_when_a_file_changes(kvasir, outputs):
    root = kvasir()
    before = load(root).images[0].copy()
    time.sleep(0.01)
    other = np.full((40, 50, 3), 200, np.uint8)
    cv2.imwrite(str(root / "Kvasir-SEG/images/a.jpg"), other)
    assert not np.array_equal(before, load(root).images[0])


@pytest.fixture
def frames() -> Frames:
    import pandas as pd

    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (10, 64, 64, 3), np.uint8)
    masks = np.zeros((10, 64, 64), np.uint8)
    masks[:, 20:40, 16:44] = 255
    return Frames(images, masks, pd.DataFrame({"image_id": [str(i) for i in range(10)]}))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_keeps_masks_binary_and_moves_both_alike(frames, name):
    marked = np.repeat(frames.masks[..., None], 3, axis=3)
    images, masks = augment(marked, frames.masks, name, np.random.default_rng(0))
    assert set(np.unique(masks)) == {0, 255}
    inner = np.array([cv2.erode(mask, np.ones((5, 5))) for mask in masks]) > 0
    assert (
        images[inner].min() > images[masks == 0].mean()
    )  # what was marked is still under its mask


def _inner(area: np.ndarray) -> np.ndarray:
    """Return ``area`` (B, H, W) less the pixels at its edge, where interpolation mixes."""
    return np.array([cv2.erode(each.astype(np.uint8), np.ones((3, 3))) for each in area]) > 0


@pytest.mark.parametrize("name", sorted({recipe.augmentation for recipe in RECIPES.values()}))
def test_corners_that_a_rotation_uncovers_are_filled_alike(name):
    masks = np.full((20, 64, 64), 255, np.uint8)  # polyp up to the frame
    images = np.repeat(masks[..., None], 3, axis=3)
    images, masks = augment(images, masks, name, np.random.default_rng(0))
    background = masks == 0
    found = images.max(axis=-1)
    assert found[_inner(background)].max(initial=0) < 128  # no polyp is called background
    assert background.any() == (name == "paper")  # the others mirror both


def test_the_released_code_mirrors_a_polyp_into_the_background():
    masks = np.full((20, 64, 64), 255, np.uint8)
    images = np.repeat(masks[..., None], 3, axis=3)
    images, masks = augment(images, masks, "mirrored_image", np.random.default_rng(0))
    assert (masks == 0).any()
    assert images.min() == 255


def test_multiscale_draws_one_side_a_batch_and_shrinks_both_alike(frames):
    batches = list(training_batches(frames, 2, "multiscale", seed=0, epoch=1))
    batches += training_batches(frames, 2, "multiscale", seed=0, epoch=2)
    sides = [batch.image.shape[-1] for batch in batches]
    assert set(sides) == {32, 64}  # of 64 px: all, and a half; three quarters are cut to a half
    for batch in batches:
        side = batch.image.shape[-1]
        assert batch.mask.shape == batch.boundary.shape == (2, 1, side, side)
        share = batch.mask.mean(dim=(1, 2, 3))  # of a zoom of 0.8 to 1.3, partly moved outside
        assert ((share > 0.03) & (share < 0.3)).all()


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (np.zeros((2, 32, 48, 3), np.uint8), np.zeros((2, 32, 48), np.uint8)),
        (np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 16, 16), np.uint8)),
        (np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 32, 32), bool)),
        (np.zeros((2, 32, 32, 3), np.float32), np.zeros((2, 32, 32), np.uint8)),
        (np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)),
    ],
)
def test_what_is_no_batch_of_squares_is_not_augmented(images, masks):
    with pytest.raises(ValueError, match=r"give uint8 \(B, S, S, 3\) and \(B, S, S\)"):
        augment(images, masks, "strong", np.random.default_rng(0))


@pytest.mark.parametrize("images", [np.zeros((1, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)])
def test_pixels_are_divided_by_255_once(images):
    with pytest.raises(ValueError, match=r"give uint8 \(B, H, W, 3\)"):
        to_tensor(images)


def drawn(name: str) -> tuple[np.ndarray, ...]:
    """Draw 500 changes of a frame of 64 px: angles (degrees), zooms, determinants' signs, changes."""
    setting, rng = AUGMENTATIONS[name], np.random.default_rng(0)
    changes = [draw_change(setting, 64, 64, rng) for _ in range(500)]
    turns = np.array([change.matrix[:, :2] for change in changes])
    upright = turns * np.sign(turns[:, :1, :1])  # a flip left to right undone, of small angles
    angles = np.degrees(np.arctan2(upright[:, 0, 1], upright[:, 0, 0]))
    signs = np.linalg.det(turns)
    return angles, np.sqrt(abs(signs)), signs < 0, changes


def test_augmentation_paper_turns_by_ten_degrees_and_flips_every_second_frame():
    angles, zooms, mirrored, changes = drawn("paper")
    assert 9 < abs(angles).max() <= 10
    assert zooms == pytest.approx(np.ones(500))
    assert 0.4 < mirrored.mean() < 0.6
    assert all(change.matrix[1, 1] > 0 for change in changes)  # never upside down
    assert {(change.contrast, change.brightness, *change.gains) for change in changes} == {
        (1, 0, 1, 1, 1)
    }


def test_augmentation_strong_turns_zooms_shifts_and_recolours_over_its_ranges():
    angles, zooms, mirrored, changes = drawn("strong")
    assert 0.3 < (abs(angles) > 15).mean() < 0.55  # half of them by any angle
    assert zooms.min() == pytest.approx(0.8, abs=0.01)
    assert zooms.max() == pytest.approx(1.3, abs=0.01)
    assert 0.4 < mirrored.mean() < 0.6  # by one flip of two
    middles = np.array([change.matrix @ [31.5, 31.5, 1] for change in changes])
    assert 4.8 < abs(middles - 31.5).max() <= 5 + 1e-9  # 20 px at 256
    for name, middle, half in (
        ("contrast", 1, 0.25),
        ("brightness", 0, 255 * 0.15),
        ("gains", 1, 0.1),
    ):
        values = np.array([getattr(change, name) for change in changes])
        assert 0.97 * half < abs(values - middle).max() <= half


def test_an_epoch_draws_each_frame_once():
    rows = [rows for rows, _ in drawn_batches(10, 4, seed=1, epoch=2)]
    assert [len(each) for each in rows] == [4, 4, 2]
    assert sorted(np.concatenate(rows)) == list(range(10))


def test_a_misspelt_part_is_not_an_empty_one(frames):
    with pytest.raises(ValueError, match="part: unknown 'Test'; choose from train, val, test"):
        frames.part("Test")


def test_misspelt_generated_images_are_no_training_centers(outputs):
    with pytest.raises(ValueError, match="did you mean synthetic_unseen"):
        load_generated("synthetic_unsen", 32, 4, 0)
    with pytest.raises(ValueError, match="count: found 0"):
        load_generated("synthetic", 32, 0, 0)


def test_unknown_augmentation_lists_the_known(frames):
    with pytest.raises(ValueError, match=r"'huge'.*paper.*strong"):
        augment(frames.images, frames.masks, "huge", np.random.default_rng(0))


def test_batches_cover_each_frame_once_and_repeat_by_seed(frames):
    first = list(training_batches(frames, 4, "strong", seed=1, epoch=2))
    again = list(training_batches(frames, 4, "strong", seed=1, epoch=2))
    other = list(training_batches(frames, 4, "strong", seed=1, epoch=3))
    assert [len(batch.image) for batch in first] == [4, 4, 2]
    assert all(bool((a.image == b.image).all()) for a, b in zip(first, again, strict=True))
    assert not bool((first[0].image == other[0].image).all())


def test_batches_made_ahead_are_the_same_and_pass_errors_on():
    def failing():
        yield 1
        raise OSError("no such image")

    assert list(ahead(iter([1, 2, 3]))) == [1, 2, 3]
    batches = ahead(failing())
    assert next(batches) == 1
    with pytest.raises(OSError, match="no such image"):
        next(batches)
    before = threading.active_count()
    unfinished = ahead(iter(range(9)))
    next(unfinished)
    unfinished.close()
    assert threading.active_count() == before


def test_batch_has_the_ranges_the_models_expect(frames):
    batch = to_batch(frames.images[:2], frames.masks[:2])
    assert batch.image.shape == (2, 3, 64, 64)
    assert 0 <= batch.image.min() <= batch.image.max() <= 1
    assert set(batch.mask.unique().tolist()) == set(batch.boundary.unique().tolist()) == {0.0, 1.0}


def test_compressed_tif_is_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "lzw.tif"), pixels)  # LZW, which tifffile alone cannot
    assert np.array_equal(read_image(tmp_path / "lzw.tif"), pixels[..., ::-1])


def test_corrupt_tif_is_named(tmp_path):
    (tmp_path / "1.tif").write_bytes(b"II*\x00 and no more")
    with pytest.raises(DataError, match=r"1\.tif: missing or not a readable image"):
        read_image(tmp_path / "1.tif")
