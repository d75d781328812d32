"""Near-duplicates are found and others are not; leaks and cut sequences are counted; masks are read."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from conftest import write_pair

from ultraseg_lib import study
from ultraseg_lib.data import DataError, Frames, audit, find_dataset, find_datasets, splits
from ultraseg_lib.data.synthetic import generate_frame, synthetic_video
from ultraseg_lib.paths import ROOT

SCENES = [generate_frame(seed=5, index=i, size=256).image for i in range(12)]


def encoded(image: np.ndarray, quality: int) -> np.ndarray:
    _, code = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(code, cv2.IMREAD_COLOR)


COPIES = {
    "same": lambda image: image,
    "poor JPEG": lambda image: encoded(image, 30),
    "brighter": lambda image: cv2.convertScaleAbs(image, alpha=0.8, beta=40),
    "more contrast": lambda image: cv2.convertScaleAbs(image, alpha=1.2, beta=-10),
    "other size": lambda image: cv2.resize(image, (400, 300), interpolation=cv2.INTER_AREA),
    "noise": lambda image: cv2.add(
        image, np.random.default_rng(0).integers(0, 20, image.shape).astype(np.uint8)
    ),
}


@pytest.mark.parametrize("change", COPIES)
@pytest.mark.parametrize("image", SCENES[:4])
def test_a_changed_copy_is_a_near_duplicate(image, change):
    bits, apart = audit.difference(image, COPIES[change](image))
    assert bits <= audit.NEAR_BITS
    assert apart <= audit.NEAR


def test_another_scene_is_not():
    for image in SCENES[1:]:
        bits, apart = audit.difference(SCENES[0], image)
        assert bits > audit.NEAR_BITS or apart > 2 * audit.NEAR


def test_a_flat_picture_resembles_nothing():
    black = np.zeros_like(SCENES[0])
    assert audit.difference(black, SCENES[0])[1] == 1


def write_images(folder: Path, name: str, images: list[np.ndarray], suffix: str) -> pd.DataFrame:
    """Write pictures and return their table."""
    folder.mkdir()
    paths = [folder / f"{i}{suffix}" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        if suffix == ".tif":
            tifffile.imwrite(path, image, photometric="rgb")
        else:
            assert cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    ids = [path.stem for path in paths]
    return pd.DataFrame({"dataset": name, "image_id": ids, "image": [str(path) for path in paths]})


def test_duplicates_are_found_within_and_across_datasets_and_file_types(tmp_path):
    first = write_images(tmp_path / "a", "a", [*SCENES[:6], SCENES[2]], ".png")
    second = write_images(tmp_path / "b", "b", [*SCENES[6:], SCENES[0]], ".jpg")
    third = write_images(tmp_path / "c", "c", [SCENES[7]], ".tif")
    pairs = audit.near_duplicates([first, second, third])
    found = set(pairs[audit.PAIR_COLUMNS[:4]].itertuples(index=False, name=None))
    assert found == {("a", "2", "a", "6"), ("a", "0", "b", "6"), ("b", "1", "c", "0")}
    assert list(pairs.columns) == audit.PAIR_COLUMNS
    assert pairs["difference"].is_monotonic_increasing


def test_blocks_find_what_one_block_finds(tmp_path, monkeypatch):
    table = write_images(tmp_path / "a", "a", [*SCENES, *SCENES[::-1]], ".png")
    whole = audit.near_duplicates([table])
    monkeypatch.setattr(audit, "BLOCK", 5)
    assert len(whole) == len(SCENES)
    assert audit.near_duplicates([table]).equals(whole)


def test_no_duplicates_give_an_empty_table(tmp_path):
    table = write_images(tmp_path / "a", "a", SCENES[:3], ".png")
    pairs = audit.near_duplicates([table])
    assert pairs.empty
    assert list(pairs.columns) == audit.PAIR_COLUMNS
    assert audit.leaks(pairs, {}).empty


def test_a_broken_image_is_named(tmp_path):
    table = write_images(tmp_path / "a", "a", SCENES[:3], ".jpg")
    Path(table["image"][1]).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1\.jpg: missing or not a readable image"):
        audit.near_duplicates([table])


def test_leaks_are_pairs_with_one_side_tested():
    rows = [("k", "0", "k", "8"), ("k", "0", "k", "1"), ("k", "8", "k", "9"), ("k", "7", "p", "8"),
            ("k", "8", "x", "0")]  # fmt: skip
    pairs = pd.DataFrame(rows, columns=audit.PAIR_COLUMNS[:4]).assign(difference=0.0)
    parts = pd.Series(["train"] * 7 + ["val"] + ["test"] * 2, index=[str(i) for i in range(10)])
    found = audit.leaks(pairs, {"k": parts, "p": parts})
    assert found["image_id_a"].tolist() == ["0", "7"]
    assert found[["part_a", "part_b"]].to_numpy().tolist() == [["train", "test"], ["val", "test"]]
    assert audit.leaks(pairs.iloc[[3]], {"k": parts, "p": parts}).equals(
        found.iloc[[1]].reset_index(drop=True)
    )


def test_a_split_that_is_drawn_is_audited_where_none_is_committed():
    """One's own frames of a video: every second one is its neighbour's near-duplicate."""
    names = [f"{i:02d}" for i in range(40)]
    table = pd.DataFrame({"dataset": "mine", "image_id": names})
    table[["center", "modality", "sequence"]] = ""
    pairs = [("mine", a, "mine", b) for a, b in zip(names[::2], names[1::2], strict=True)]
    pairs = pd.DataFrame(pairs, columns=audit.PAIR_COLUMNS[:4]).assign(difference=0.0)
    (row,) = audit.summarize_splits(table, pairs).to_dict("records")
    tested = splits.make_split(table) == "test"
    torn = sum(tested[a] != tested[b] for a, b in zip(names[::2], names[1::2], strict=True))
    assert row["split"] == "mine, drawn"
    assert row["test"] == tested.sum()
    assert row["leaking pairs"] == torn > 0


def test_a_test_image_with_two_twins_is_one(monkeypatch, tmp_path):
    monkeypatch.setattr(audit, "SPLITS", tmp_path)
    parts = pd.Series(["test", "train", "train"], index=["a", "b", "c"])
    splits.write_split(parts, tmp_path / "mine-random.txt")
    table = pd.DataFrame({"dataset": "mine", "image_id": parts.index, "sequence": ""})
    pairs = pd.DataFrame([("mine", "a", "mine", "b"), ("mine", "c", "mine", "a")])
    pairs = pairs.set_axis(audit.PAIR_COLUMNS[:4], axis=1).assign(difference=0.0)
    (row,) = audit.summarize_splits(table, pairs).to_dict("records")
    assert (row["leaking pairs"], row["test images with a twin"]) == (2, 1)


def test_cut_sequences_are_counted_and_untold_ones_passed_over():
    table = pd.DataFrame({"image_id": list("abcdef"), "sequence": ["1", "1", "2", "2", "", ""]})
    parts = pd.Series(["train", "test", "val", "val", "train", "test"], index=list("abcdef"))
    cut = audit.cut_sequences(table, parts)
    assert cut.to_dict("records") == [{"sequence": "1", "train": 1, "val": 0, "test": 1}]


def test_masks_are_counted_measured_and_checked(tmp_path):
    mask = np.zeros((100, 200), np.uint8)
    empty = mask.copy()
    mask[10:30, 20:60] = 255
    mask[50:70, 100:140] = 255
    grey = np.where(mask > 0, 250, 3).astype(np.uint8)
    paths = [str(tmp_path / f"{name}.png") for name in ("mask", "empty", "grey")]
    for path, pixels in zip(paths, (mask, empty, grey), strict=True):
        cv2.imwrite(path, pixels)
    table = pd.DataFrame({"dataset": "k", "image_id": ["mask", "empty", "grey"], "mask": paths})
    facts = audit.mask_table(table)
    assert facts["binary"].tolist() == [True, True, False]
    assert facts["n_polyps"].tolist() == [2, 0, 2]
    assert facts["area"].tolist() == pytest.approx([0.08, 0, 0.08])
    summary = audit.summarize_masks(facts)
    assert (summary["empty masks"], summary["not binary"], summary["several"]) == (1, 1, 2)


def test_copying_the_nearest_mask_scores_high_only_where_sequences_are_cut():
    shots = [shot for seed in range(10) for shot in synthetic_video(seed, 6, 64)]
    table = pd.DataFrame({"sequence": [shot.sequence for shot in shots]}).assign(
        dataset="clips", image_id=[str(i) for i in range(len(shots))], center="", modality=""
    )
    pixels = np.stack([shot.image for shot in shots]), np.stack([shot.mask for shot in shots])
    means = []
    for draw in (splits.make_split, splits.make_grouped_split):
        frames = Frames(*pixels, table.assign(part=table["image_id"].map(draw(table))))
        scores = audit.copied_dice(frames.part("train", "val"), frames.part("test"))
        means.append(scores.mean())
    assert means[0] > 0.8
    assert means[1] < means[0] - 0.3


def test_copied_masks_score_on_clinicdb_as_the_record_says(real_data, outputs):
    recorded = pd.read_csv(ROOT / "outputs/reference/copied_masks.csv")
    assert len(recorded) == 3
    schemes = {
        "drawn by frame": "random",
        "PraNet's list": "pranet",
        "drawn by sequence": "sequence",
    }
    frames = study.load_frames_of("cvc_clinicdb", study.load_profile("lite"))
    for row in recorded.itertuples():
        parts = splits.read_split(splits.split_path("cvc_clinicdb", schemes[row.list]))
        table = frames.table.assign(part=frames.table["image_id"].map(parts))
        told = Frames(frames.images, frames.masks, table)
        dice = audit.copied_dice(told.part("train", "val"), told.part("test"))
        assert (len(dice), dice.mean()) == (row[2], pytest.approx(row.Dice, abs=0.005))


def test_frames_in_memory_give_the_same_pairs(tmp_path):
    images = [*SCENES[:4], SCENES[1]]
    table = write_images(tmp_path / "a", "a", images, ".png")
    frames = Frames(np.stack(images), np.zeros((5, 256, 256), np.uint8), table)
    keys = audit.PAIR_COLUMNS[:4]
    assert audit.near_duplicates_of([frames])[keys].equals(audit.near_duplicates([table])[keys])


def test_the_report_of_an_incomplete_dataset_stands(kvasir):
    found = find_dataset("kvasir_seg", kvasir())
    report, _ = audit.run({"kvasir_seg": found})
    assert "kvasir_seg       3" in report
    assert "cannot be joined" in report


def test_the_report_names_an_identical_pair(kvasir, tmp_path):
    root = kvasir()
    for kind in ("images", "masks"):
        write_pair(root / f"Kvasir-SEG/{kind}/x.jpg", tmp_path / "unused.png")
        copy = (root / f"Kvasir-SEG/{kind}/x.jpg").read_bytes()
        (root / f"Kvasir-SEG/{kind}/y.jpg").write_bytes(copy)
    report, _ = audit.run({"kvasir_seg": find_dataset("kvasir_seg", root)})
    assert "kvasir_seg x = kvasir_seg y" in report


# --- Real data -------------------------------------------------------------------------------


def test_the_identical_images_of_the_real_datasets_are_found(real_data):
    found = find_datasets(real_data)
    pairs = audit.near_duplicates([each.table for each in found.values()])
    same = pairs[pairs["difference"] < audit.IDENTICAL]
    etis = same[same["dataset_a"] == "etis_larib"]
    assert {
        frozenset(pair) for pair in zip(etis["image_id_a"], etis["image_id_b"], strict=True)
    } == {frozenset(pair) for pair in (("20", "22"), ("127", "131"), ("172", "175"))}
    assert (same["dataset_a"] == "bkai_igh").sum() == 4
    clinic = found["cvc_clinicdb"].table
    summary = audit.summarize_splits(clinic, pairs).set_index("split")
    assert summary.loc["cvc_clinicdb-random", "cut sequences"] == 29
    assert summary.loc["cvc_clinicdb-sequence", "cut sequences"] == 0
    assert summary.loc["cvc_clinicdb-random", "leaking pairs"] > 20
    assert summary.loc["cvc_clinicdb-sequence", "leaking pairs"] == 0


def test_the_report_covers_a_real_dataset(real_data):
    etis = find_dataset("etis_larib", real_data)
    report, _ = audit.run({"etis_larib": etis})
    assert "etis_larib 20 = etis_larib 22" in report
