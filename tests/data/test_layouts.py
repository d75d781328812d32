"""Folders as they are downloaded become one table; what is wrong is named with its fix."""

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_pair

from ultraseg_lib.data import (
    DataError,
    find_dataset,
    find_datasets,
    look_for_datasets,
    sequences,
)
from ultraseg_lib.data.layouts import COLUMNS
from ultraseg_lib.data.loading import read_image, read_mask


def test_kvasir_is_found_below_other_folders(kvasir, tmp_path):
    root = kvasir()
    shutil.move(root / "Kvasir-SEG", tmp_path / "deep" / "down" / "kvasir-seg")
    table = find_dataset("kvasir_seg", tmp_path).table
    assert tuple(table.columns) == COLUMNS
    assert table["image_id"].tolist() == ["a", "b", "c d"]  # a name may hold a space
    assert (table["modality"] == "WLI").all()


def test_linked_folders_are_searched_and_a_loop_ends(kvasir, tmp_path):
    disk, root = tmp_path / "disk", tmp_path / "raw"
    shutil.move(kvasir() / "Kvasir-SEG", disk / "sets" / "Kvasir-SEG")
    root.mkdir()
    (root / "mounted").symlink_to(disk)
    (disk / "back").symlink_to(disk)
    assert len(find_dataset("kvasir_seg", root).table) == 3
    (root / "mounted").unlink()
    (root / "kvasir-seg").symlink_to(disk / "sets" / "Kvasir-SEG")
    assert len(find_dataset("kvasir_seg", root).table) == 3


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


def test_polypgen_sequence_frames_are_left_aside(tmp_path):
    base = tmp_path / "PolypGen2021_MultiCenterData_v3"
    write_pair(base / "data_C1/images_C1/x.jpg", base / "data_C1/masks_C1/x_mask.jpg")
    frames = base / "sequenceData/positive/seq1"
    write_pair(frames / "images_seq1/y.jpg", frames / "masks_seq1/y_mask.jpg")
    found = find_datasets(tmp_path)
    assert list(found) == ["polypgen"]
    assert found["polypgen"].table["image_id"].tolist() == ["C1/x"]


def test_etis_is_told_by_runs_of_frames_that_show_one_place():
    told = pd.Series(sequences("etis_larib"))
    assert told.index.tolist() == [str(frame) for frame in range(1, 197)]
    number = told.astype(int).diff().dropna()
    assert set(number) == {0, 1}
    assert told.value_counts().min() >= 6
    for one, other in (("20", "22"), ("127", "131"), ("172", "175")):  # identical images
        assert told[one] == told[other]
    assert not sequences("kvasir_seg")


def test_clinicdb_tells_the_sequence_of_each_frame(tmp_path):
    base = tmp_path / "CVC-ClinicDB"
    for name in ("1", "26", "612"):
        write_pair(base / f"Original/{name}.tif", base / f"Ground Truth/{name}.tif")
    table = find_dataset("cvc_clinicdb", tmp_path).table
    assert dict(zip(table["image_id"], table["sequence"], strict=True)) == {
        "1": "1", "26": "2", "612": "29",
    }  # fmt: skip


def test_kvasir_instrument_is_told_from_kvasir_seg_by_its_folder(kvasir):
    root = kvasir()
    base = root / "kvasir-instrument"
    write_pair(base / "images/i.jpg", base / "masks/i.png")
    for name in ("train.txt", "test.txt", "bboxes.json"):
        (base / name).write_text("i\n")
    found = find_datasets(root)
    assert list(found) == ["kvasir_seg", "kvasir_instrument"]
    assert found["kvasir_instrument"].table["image_id"].tolist() == ["i"]


@pytest.fixture
def polypdb(tmp_path):
    """A small PolypDB: names with spaces, one under WLI and NBI, an LCI image without a mask."""
    by_modality = tmp_path / "PolypDB" / "PolypDB_modality_wise"
    by_center = tmp_path / "PolypDB" / "PolypDB_center_wise"
    for center, modality, name in (
        ("BKAI", "WLI", "PKHL_15 220831_201223"), ("BKAI", "LCI", "l 1"), ("BKAI", "LCI", "l 2"),
        ("Simula", "WLI", "100H0004"), ("Simula", "NBI", "100H0004"), ("Karolinska", "WLI", "k"),
    ):  # fmt: skip
        for base in (by_modality / modality, by_center / center / modality):
            write_pair(base / f"images/{name}.jpg", base / f"masks/{name}.jpg")
    (by_modality / "LCI/masks/l 2.jpg").unlink()
    (by_center / "BKAI/LCI/masks/l 2.jpg").unlink()
    return tmp_path / "PolypDB"


def test_polypdb_joins_modality_and_center(polypdb):
    found = find_dataset("polypdb", polypdb.parent)
    told = found.table.set_index("image_id")[["modality", "center"]]
    assert told.apply(tuple, axis=1).to_dict() == {
        "WLI/PKHL_15 220831_201223": ("WLI", "BKAI"),
        "LCI/l 1": ("LCI", "BKAI"),
        "WLI/100H0004": ("WLI", "Simula"),
        "NBI/100H0004": ("NBI", "Simula"),
        "WLI/k": ("WLI", "Karolinska"),
    }
    assert found.folder == polypdb / "PolypDB_modality_wise"
    assert found.passed_over == ()  # the other tree was used
    assert [Path(line.split(": ")[0]).name for line in found.skipped] == ["l 2.jpg"]


@pytest.mark.parametrize(
    ("gone", "center"), [("center", {""}), ("modality", {"BKAI", "Simula", "Karolinska"})]
)
def test_polypdb_is_read_from_either_tree_alone(polypdb, gone, center):
    shutil.rmtree(polypdb / f"PolypDB_{gone}_wise")
    table = find_dataset("polypdb", polypdb.parent).table
    assert len(table) == 5
    assert set(table["center"]) == center
    assert set(table["modality"]) == {"WLI", "LCI", "NBI"}


def test_polypdb_image_in_two_centers_is_named(polypdb):
    shutil.rmtree(polypdb / "PolypDB_modality_wise")
    base = polypdb / "PolypDB_center_wise/BKAI/WLI"
    write_pair(base / "images/k.jpg", base / "masks/k.jpg")
    with pytest.raises(DataError, match="WLI/k stands in two folders"):
        find_dataset("polypdb", polypdb.parent)


def test_polypdb_forgives_one_lci_mask_and_no_more(polypdb):
    (polypdb / "PolypDB_modality_wise/LCI/masks/l 1.jpg").unlink()
    shutil.rmtree(polypdb / "PolypDB_center_wise")
    with pytest.raises(DataError, match=r"LCI/images/l 2\.jpg.*missing"):
        find_dataset("polypdb", polypdb.parent)


def test_etis_is_read_as_published_too(tmp_path):
    base = tmp_path / "ETIS-LaribPolypDB"
    write_pair(base / "ETIS-LaribPolypDB/1.tif", base / "Ground Truth/p1.tif")
    table = find_dataset("etis_larib", tmp_path).table
    assert table["image_id"].tolist() == ["1"]
    assert table["mask"].str.endswith("p1.tif").all()


def test_a_folder_of_ones_own_gives_the_dataset_its_name(tmp_path):
    base = tmp_path / "data" / "My Clinic 2024"
    write_pair(base / "images/a.png", base / "masks/a_mask.png")
    found = find_datasets(tmp_path / "data")
    assert list(found) == ["my_clinic_2024"]
    assert set(found["my_clinic_2024"].table["dataset"]) == {"my_clinic_2024"}
    assert len(find_dataset("my_clinic_2024", tmp_path / "data").table) == 1


def test_a_name_may_be_composed_in_one_folder_and_not_in_the_other(tmp_path):
    base = tmp_path / "mine"
    write_pair(base / "images" / "s\u00fcd.png", base / "masks" / "su\u0308d.png")
    assert find_dataset("mine", tmp_path).table["image_id"].tolist() == ["s\u00fcd"]


def test_capitals_in_folder_names_and_either_name_of_a_mask_are_read(tmp_path):
    base = tmp_path / "clinic"
    write_pair(base / "Images/a.png", base / "MASKS/a.png")
    write_pair(base / "Images/b.png", base / "MASKS/b_mask.png")
    write_pair(base / "Images/c|d.png", base / "MASKS/c|d.png")
    assert find_dataset("clinic", tmp_path).table["image_id"].tolist() == ["a", "b", "c|d"]
    (base / "MASKS/b_mask.png").unlink()
    with pytest.raises(DataError, match=r"MASKS/b\.\* is missing; restore it or remove the image"):
        find_dataset("clinic", tmp_path)


def test_a_name_that_is_no_text_is_said(tmp_path):
    base = tmp_path / "clinic"
    write_pair(base / "images/a.png", base / "masks/a.png")
    os.link(base / "images/a.png", os.fsdecode(os.fsencode(base / "images") + b"/\xe9.png"))
    with pytest.raises(DataError, match=r"udce9\.png'\): its name is not UTF-8; rename it"):
        find_dataset("clinic", tmp_path)


def test_two_datasets_of_one_name_are_told_from_two_copies_of_one(tmp_path):
    for site, shape in (("x", (40, 50)), ("y", (40, 50)), ("z", (30, 30))):
        base = tmp_path / site / "train"
        write_pair(base / "images/f0.png", base / "masks/f0.png", shape=shape)
    assert look_for_datasets(tmp_path)["train"].problems == (
        f"{tmp_path / 'x/train'} and {tmp_path / 'z/train'} are different datasets of one name;"
        " rename one",
    )
    again = tmp_path / "y/train/masks/f0.png"
    content = again.read_bytes()
    again.unlink()  # so that the folder changes
    again.write_bytes(content + b"0")  # the same image, another hand's mask
    assert len(look_for_datasets(tmp_path)["train"].problems) == 2
    base = tmp_path / "данные"
    write_pair(base / "images/f0.png", base / "masks/f0.png")
    assert set(look_for_datasets(tmp_path)) == {"train", "данные"}


def test_a_folder_that_may_not_be_read_is_passed_over(tmp_path, monkeypatch):
    base = tmp_path / "clinic"
    write_pair(base / "images/a.png", base / "masks/a.png")
    (tmp_path / "lost+found").mkdir()
    may = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: "lost" not in str(p) and may(p, mode))
    looked_at = []
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda p: looked_at.append(p.name) or listed(p))
    assert list(look_for_datasets(tmp_path)) == ["clinic"]
    assert "images" in looked_at
    assert "lost+found" not in looked_at  # to list it would raise PermissionError


def test_a_data_folder_named_like_a_dataset_claims_nothing_that_it_does_not_hold(tmp_path):
    root = tmp_path / "TrainDatasets"
    write_pair(root / "clinic/images/a.png", root / "clinic/masks/a.png")
    assert list(look_for_datasets(root)) == ["clinic"]
    write_pair(root / "images/a.png", root / "masks/a.png")
    assert list(look_for_datasets(root)) == ["pranet_train"]


def test_own_masks_of_other_names_are_said_and_pictures_alone_are_not(tmp_path):
    base = tmp_path / "clinic"
    write_pair(base / "images/a.png", base / "masks/a-seg.png")
    write_pair(tmp_path / "paper/images/fig.png", tmp_path / "elsewhere/fig.png")
    assert list(look_for_datasets(tmp_path)) == ["clinic"]
    with pytest.raises(DataError, match=r"clinic: no image has a mask.*a-seg\.png.*_mask behind"):
        find_dataset("clinic", tmp_path)


def test_of_two_own_folders_of_one_name_the_fuller_is_taken(tmp_path):
    for parent, names in (("x", "a"), ("y", "ab")):
        for name in names:
            base = tmp_path / parent / "clinic"
            write_pair(base / f"images/{name}.png", base / f"masks/{name}.png")
    found = find_dataset("clinic", tmp_path)
    assert found.folder == tmp_path / "y" / "clinic"
    assert found.passed_over == (tmp_path / "x" / "clinic",)


@pytest.mark.parametrize(("images", "masks"), [("image", "mask"), ("images", "masks")])
def test_pranet_folders_are_two_datasets_and_no_others(tmp_path, images, masks):
    train = tmp_path / "polyp/TrainDataset"
    write_pair(train / f"{images}/cju.png", train / f"{masks}/cju.png")
    for name in ("CVC-ClinicDB", "ETIS-LaribPolypDB", "Kvasir"):
        base = tmp_path / "polyp/TestDataset" / name
        write_pair(base / "images/1.png", base / "masks/1.png")
    found = find_datasets(tmp_path)
    assert list(found) == [
        "pranet_train",
        "pranet_test",
    ]  # ETIS in TestDataset is not the whole ETIS
    assert found["pranet_train"].table["image_id"].tolist() == ["cju"]
    assert found["pranet_test"].table["image_id"].tolist() == [
        "CVC-ClinicDB/1", "ETIS-LaribPolypDB/1", "Kvasir/1",
    ]  # fmt: skip


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


def test_every_problem_of_every_dataset_is_kept(kvasir):
    root = kvasir()
    for name in ("a", "b"):
        (root / f"Kvasir-SEG/masks/{name}.jpg").unlink()
    found = look_for_datasets(root)["kvasir_seg"]
    assert len(found.problems) == 2
    assert found.table["image_id"].tolist() == ["c d"]
    with pytest.raises(DataError, match=r"1 more: python -m ultraseg_lib data verify"):
        find_datasets(root)


def test_real_datasets_have_their_counts(real_data):
    found = find_datasets(real_data)
    counts = {name: len(dataset.table) for name, dataset in found.items()}
    assert counts == {
        "kvasir_seg": 1000, "cvc_clinicdb": 612, "polypgen": 1537, "etis_larib": 196,
        "bkai_igh": 1000,
    }  # fmt: skip
    by_center = found["polypgen"].table["center"].value_counts()
    assert [by_center[f"C{i}"] for i in range(1, 7)] == [256, 301, 457, 227, 208, 88]
    assert [path.name for path in found["cvc_clinicdb"].passed_over] == ["TIF"]
    assert found["cvc_clinicdb"].table["sequence"].nunique() == 29
    assert all(each.skipped == each.problems == () for each in found.values())


def test_real_tif_pixels_equal_the_png(real_data):
    """OpenCV reads the red channel of these files alone; the PNG copies are right."""
    folder = real_data / "CVC-ClinicDB"
    files = sorted((folder / "TIF" / "Original").glob("*.tif"))
    assert len(files) == 12
    for tif in files:
        png = folder / "PNG" / "Original" / f"{tif.stem}.png"
        assert np.array_equal(read_image(tif), read_image(png))
        masks = [
            folder / kind / "Ground Truth" / f"{tif.stem}.{kind.lower()}" for kind in ("TIF", "PNG")
        ]
        assert np.array_equal(*(read_mask(mask)[0] for mask in masks))


def test_real_masks_are_noisy_or_coloured_and_become_binary(real_data):
    for name in ("kvasir_seg", "bkai_igh"):
        mask = find_dataset(name, real_data).table["mask"].iloc[0]
        binary, was_grey = read_mask(mask)
        assert was_grey
        assert set(np.unique(binary)) == {0, 255}


# --- What a table tells of one's own images ---------------------------------------------------


def own_clinic(root: Path, table: str, names: tuple[str, ...] = ("a", "b")) -> Path:
    """Write a dataset of one's own with its ``table.csv``; return the table's path."""
    for name in names:
        write_pair(root / f"My Clinic/images/{name}.png", root / f"My Clinic/masks/{name}.png")
    (root / "My Clinic/table.csv").write_text(table, encoding="utf-8")
    return root / "My Clinic/table.csv"


def test_a_table_tells_center_modality_and_sequence(tmp_path):
    text = "sequence, image_id,center,note\nv2,b , north ,x\nv1,a,,y\nv9,more,,\n,,,\n,,,\n"
    own_clinic(tmp_path, text)
    table = find_dataset("my_clinic", tmp_path).table
    told = table[["image_id", "center", "modality", "sequence"]].to_numpy().tolist()
    assert told == [["a", "", "", "v1"], ["b", "north", "", "v2"]]


@pytest.mark.parametrize(
    "text", ["image_id,center\na,x,\nb,y,\n", "image_id,center\ne\u0301,x\na,y\nb,y\n"]
)
def test_commas_at_line_ends_and_letters_in_two_parts_do_no_harm(tmp_path, text):
    own_clinic(tmp_path, text, ("a", "b", "\u00e9") if "\u0301" in text else ("a", "b"))
    assert set(find_dataset("my_clinic", tmp_path).table["center"]) == {"x", "y"}


def test_an_edited_table_is_read_anew(tmp_path):
    path = own_clinic(tmp_path, "image_id,center\na,x\nb,x\n")
    assert find_dataset("my_clinic", tmp_path).table["center"].tolist() == ["x", "x"]
    path.write_text("image_id,center\na,x\nb,y\n")
    os.utime(path, (1, 1))
    assert find_dataset("my_clinic", tmp_path).table["center"].tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("name,center\na,x\n", "has the columns name, center; want image_id"),
        ("image_id,centre\na,x\n", "has the columns image_id, centre; want image_id"),
        ("image_id,center\na,x\n", "does not name 1 images .for example b."),
        ("image_id,center\na,x\nb,x\nb,y\n", "names more than once 1 images .for example b."),
        ("", "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_right_is_told(tmp_path, table, told):
    own_clinic(tmp_path, table)
    with pytest.raises(DataError, match=rf"table.csv: {told}"):
        find_dataset("my_clinic", tmp_path)
