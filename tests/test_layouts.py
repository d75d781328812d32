"""Folders as they are downloaded become one table; what is wrong is named with its fix."""

import shutil
from pathlib import Path

import pytest
from conftest import write_pair

from ultraseg_lib.data import DataError, find_dataset, find_datasets
from ultraseg_lib.data.layouts import COLUMNS


def test_kvasir_is_found_below_other_folders(kvasir, tmp_path):
    root = kvasir()
    shutil.move(root / "Kvasir-SEG", tmp_path / "deep" / "down" / "kvasir-seg")
    table = find_dataset("kvasir_seg", tmp_path).table
    assert tuple(table.columns) == COLUMNS
    assert table["image_id"].tolist() == ["a", "b", "c d"]  # a name may hold a space
    assert (table["modality"] == "WLI").all()


def test_a_folder_named_by_the_user_is_the_dataset_itself(kvasir):
    assert len(find_dataset("kvasir_seg", kvasir() / "Kvasir-SEG").table) == 3


def test_the_fullest_tree_is_taken_and_the_other_reported(tmp_path):
    base = tmp_path / "CVC-ClinicDB"
    for name in ("1", "2", "3"):
        write_pair(base / "PNG/Original" / f"{name}.png", base / "PNG/Ground Truth" / f"{name}.png")
    write_pair(base / "TIF/Original/1.tif", base / "TIF/Ground Truth/1.tif")
    found = find_dataset("cvc_clinicdb", tmp_path)
    assert len(found.table) == 3
    assert [path.name for path in found.passed_over] == ["TIF"]


def test_polypgen_tells_centers(tmp_path):
    for center in ("C1", "C2"):
        base = tmp_path / "PolypGen2021_MultiCenterData_v3" / f"data_{center}"
        write_pair(base / f"images_{center}" / "x.jpg", base / f"masks_{center}" / "x_mask.jpg")
    table = find_dataset("polypgen", tmp_path).table
    assert table["center"].tolist() == ["C1", "C2"]
    assert table["image_id"].tolist() == ["C1/x", "C2/x"]


def test_absent_dataset_is_none(tmp_path):
    assert find_dataset("kvasir_seg", tmp_path) is None


def test_missing_mask_names_image_and_mask(kvasir):
    root = kvasir()
    (root / "Kvasir-SEG/masks/b.jpg").unlink()
    with pytest.raises(DataError, match=r"images/b\.jpg.*masks/b.*missing; restore"):
        find_dataset("kvasir_seg", root)


def test_missing_mask_folder_is_named(kvasir):
    root = kvasir()
    shutil.rmtree(root / "Kvasir-SEG/masks")
    with pytest.raises(DataError, match="masks: folder not found"):
        find_dataset("kvasir_seg", root)


@pytest.mark.parametrize("inside", [(), ("images", "masks")])
def test_empty_dataset_folder_is_named(tmp_path, inside):
    for name in (".", *inside):
        (tmp_path / "Kvasir-SEG" / name).mkdir(parents=True)
    with pytest.raises(DataError, match=r"Kvasir-SEG: no image found.*unpack it again"):
        find_dataset("kvasir_seg", tmp_path)


def test_two_files_of_one_stem_are_refused(kvasir):
    root = kvasir()
    folder = root / "Kvasir-SEG"
    write_pair(folder / "images/a.png", folder / "masks/z.png")
    with pytest.raises(DataError, match="same name"):
        find_dataset("kvasir_seg", root)


def test_missing_data_folder_says_how_to_pass_it():
    with pytest.raises(FileNotFoundError, match="--data DIR"):
        find_datasets(Path("nowhere"))


def test_unknown_dataset_lists_the_known(tmp_path):
    with pytest.raises(ValueError, match=r"'kvasir'.*kvasir_seg"):
        find_dataset("kvasir", tmp_path)


def test_real_datasets_have_their_counts(real_data):
    found = find_datasets(real_data)
    counts = {name: len(dataset.table) for name, dataset in found.items()}
    assert counts == {
        "kvasir_seg": 1000, "cvc_clinicdb": 612, "polypgen": 1537, "etis_larib": 196,
        "bkai_igh": 1000,
    }  # fmt: skip
    by_center = found["polypgen"].table["center"].value_counts()
    assert [by_center[f"C{i}"] for i in range(1, 7)] == [256, 301, 457, 227, 208, 88]
