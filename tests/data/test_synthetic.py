"""The generator: same arguments, same bytes; sets as uneven as real ones; files all or nothing."""

import resource
from collections import Counter
from itertools import pairwise

import cv2
import numpy as np
import pandas as pd
import pytest

from ultraseg_lib.data import synthetic
from ultraseg_lib.data.synthetic import CENTERS, MODALITIES, generate_frame, synthetic_video


@pytest.fixture(scope="module")
def frames():
    return [generate_frame(seed=7, index=index, size=64) for index in range(300)]


def test_same_arguments_give_the_same_bytes():
    first, second = generate_frame(3, 5), generate_frame(3, 5)
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.mask, second.mask)
    assert (first.modality, first.center) == (second.modality, second.center)


def test_seed_and_index_both_change_the_frame():
    images = [generate_frame(seed, index, 64).image for seed, index in ((0, 0), (0, 1), (1, 0))]
    assert all(not np.array_equal(a, b) for a, b in pairwise([*images, images[0]]))


@pytest.mark.parametrize("size", [32, 65, 128, 256, 300])
def test_image_and_mask_have_the_promised_form(size):
    frame = generate_frame(0, 2, size)
    assert frame.image.shape == (size, size, 3)
    assert frame.mask.shape == (size, size)
    assert frame.image.dtype == frame.mask.dtype == np.uint8
    assert set(np.unique(frame.mask)) == {0, 255}


def test_a_small_frame_is_the_large_one_shrunk():
    large, small = generate_frame(0, 4, 256), generate_frame(0, 4, 128)
    shrunk = cv2.resize(large.image, (128, 128), interpolation=cv2.INTER_AREA)
    assert np.array_equal(shrunk, small.image)
    larger = generate_frame(0, 4, 512)  # drawn anew, finer: close, not equal
    shrunk = cv2.resize(larger.image, (128, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(int) - small.image).mean() < 6
    assert abs((larger.mask > 0).mean() - (small.mask > 0).mean()) < 0.01


def test_every_modality_and_center_occurs_and_white_light_leads(frames):
    modalities = Counter(frame.modality for frame in frames)
    assert set(modalities) == set(MODALITIES)
    assert modalities["WLI"] > len(frames) / 2
    assert {frame.center for frame in frames} == set(CENTERS)


def test_most_frames_show_one_polyp_some_none_or_several(frames):
    counts = Counter(min(len(frame.shapes), 2) for frame in frames)
    none, one, several = (counts[n] / len(frames) for n in range(3))
    assert 0.02 < none < 0.12
    assert 0.70 < one < 0.90
    assert 0.07 < several < 0.22


def test_mask_is_empty_exactly_when_there_is_no_polyp(frames):
    assert all(frame.mask.any() == bool(frame.shapes) for frame in frames)


def test_areas_span_tiny_to_large(frames):
    areas = np.array([(frame.mask > 0).mean() for frame in frames if len(frame.shapes) == 1])
    assert areas.min() < 0.008
    assert areas.max() > 0.18
    assert 0.05 < np.median(areas) < 0.15


def test_every_polyp_shape_occurs(frames):
    shapes = Counter(shape for frame in frames for shape in frame.shapes)
    assert set(shapes) == {"sessile", "flat", "lobed", "pedunculated"}


@pytest.mark.parametrize("center", CENTERS)
def test_mask_stays_in_the_field_of_view(center):
    outside = synthetic._field_of_view(synthetic._CAMERAS[center].shape, 256)[..., 0] == 0
    frames = [generate_frame(11, index, 256, "WLI", center) for index in range(12)]
    shown = [frame for frame in frames if not frame.image[outside].any()]  # others are cropped
    assert len(shown) >= 4
    assert not any(frame.mask[outside].any() for frame in shown)


def test_modality_changes_the_colour_and_not_the_scene():
    shown = [generate_frame(0, 9, 128, modality, "center_1") for modality in MODALITIES]
    assert all(np.array_equal(frame.mask, shown[0].mask) for frame in shown)
    colours = np.array([frame.image.reshape(-1, 3).mean(axis=0) for frame in shown])
    gaps = np.linalg.norm(colours[:, None] - colours[None], axis=-1)
    assert gaps[~np.eye(len(MODALITIES), dtype=bool)].min() > 8


def test_video_moves_smoothly_and_keeps_its_sequence():
    video = list(synthetic_video(seed=1, frames=6, size=64))
    assert {frame.sequence for frame in video} == {"synthetic_video_1"}
    steps = [np.abs(a.image.astype(int) - b.image).mean() for a, b in pairwise(video)]
    assert min(steps) > 0
    assert max(steps) < 15
    again = list(synthetic_video(seed=1, frames=6, size=64))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(video, again, strict=True))


def test_dataset_has_its_table_and_files(tmp_path):
    folder = tmp_path / "with space" / "synthetic"
    table = synthetic.write_dataset(folder, count=4, size=64, seed=2)
    columns = ["dataset", "image_id", "image", "mask", "center", "modality", "sequence"]
    assert list(table.columns) == columns
    pd.testing.assert_frame_equal(pd.read_csv(folder / "table.csv"), table, check_dtype=False)
    assert set(table.dataset) == {"Synthetic"}
    frame, row = generate_frame(2, 3, 64), table.iloc[3]
    stored = cv2.imread(str(folder / row.image))[..., ::-1]
    assert np.array_equal(stored, frame.image)
    assert np.array_equal(cv2.imread(str(folder / row["mask"]), cv2.IMREAD_UNCHANGED), frame.mask)


def test_dataset_ignores_leftovers_and_leaves_none(tmp_path, monkeypatch):
    leftover = tmp_path / ".synthetic.partial"
    leftover.mkdir()
    synthetic.write_dataset(tmp_path / "synthetic", count=1, size=32, seed=0)
    assert {path.name for path in tmp_path.iterdir()} == {leftover.name, "synthetic"}

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "generate_frame", fail)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write_dataset(tmp_path / "stopped", count=1, size=32, seed=0)
    assert {path.name for path in tmp_path.iterdir()} == {leftover.name, "synthetic"}


def test_a_disk_that_takes_no_more_leaves_no_half_dataset(tmp_path):
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, kept[1]))  # bytes a file may have
    try:
        with pytest.raises(OSError, match="File too large"):
            synthetic.write_dataset(tmp_path / "synthetic", count=1, size=64, seed=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    assert list(tmp_path.iterdir()) == []


def test_dataset_never_overwrites(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="not empty"):
        synthetic.write_dataset(tmp_path, count=1, size=32, seed=0)
    assert (tmp_path / "mine.txt").read_text() == "keep me"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 31}, "size is 31.*from 32"),
        ({"seed": -1}, "seed is -1.*from 0"),
        ({"index": -1}, "index is -1.*from 0"),
        ({"modality": "XRAY"}, "modality: unknown 'XRAY'.*WLI, NBI, BLI, LCI, FICE"),
        ({"center": "center_9"}, "center: unknown 'center_9'.*center_1, center_2, center_3"),
    ],
)
def test_bad_frame_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_frame(**{"seed": 0, "index": 0, **arguments})


def test_bad_counts_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"count is -1.*from 0"):
        synthetic.write_dataset(tmp_path / "new", count=-1, size=64, seed=0)
    with pytest.raises(ValueError, match=r"frames is -1.*from 0"):
        synthetic_video(seed=0, frames=-1, size=64)
    assert not (tmp_path / "new").exists()
