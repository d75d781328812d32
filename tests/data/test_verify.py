"""Each wrong file is named, in each of the seven datasets; a whole copy passes."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from conftest import write_pair

from ultraseg_lib.__main__ import main
from ultraseg_lib.data import catalog, look_for_datasets
from ultraseg_lib.data.layouts import DataError, FoundDataset
from ultraseg_lib.data.loading import check_whole
from ultraseg_lib.data.verify import verify

# One pair of each dataset in its official form.
OFFICIAL = {
    "kvasir_seg": ("Kvasir-SEG/images/a.jpg", "Kvasir-SEG/masks/a.jpg"),
    "kvasir_instrument": ("kvasir-instrument/images/a.jpg", "kvasir-instrument/masks/a.png"),
    "cvc_clinicdb": ("CVC-ClinicDB/TIF/Original/1.tif", "CVC-ClinicDB/TIF/Ground Truth/1.tif"),
    "polypgen": (
        "PolypGen2021_MultiCenterData_v3/data_C1/images_C1/a.jpg",
        "PolypGen2021_MultiCenterData_v3/data_C1/masks_C1/a_mask.jpg",
    ),
    "polypdb": (
        "PolypDB/PolypDB_modality_wise/WLI/images/a b.jpg",
        "PolypDB/PolypDB_modality_wise/WLI/masks/a b.jpg",
    ),
    "etis_larib": ("ETIS-LaribPolypDB/images/1.jpg", "ETIS-LaribPolypDB/masks/1.png"),
    "bkai_igh": ("bkai-igh-neopolyp/train/train/a.jpeg", "bkai-igh-neopolyp/train_gt/train_gt/a.jpeg"),
}  # fmt: skip


@pytest.fixture
def one(tmp_path, monkeypatch):
    """Give a function that writes one pair of a dataset, the catalog wanting no more than that."""

    def write(name: str) -> tuple[Path, Path]:
        image, mask = (tmp_path / path for path in OFFICIAL[name])
        write_pair(image, mask)
        for path in (image, mask) if image.suffix == ".tif" else ():  # plain, as the official ones
            tifffile.imwrite(path, cv2.imread(str(path)))
        entry = {key: value for key, value in catalog()[name].items() if key != "missing_masks"}
        for key in ("centers", "modalities"):
            if key in entry:
                entry[key] = dict.fromkeys(entry[key])
        monkeypatch.setitem(catalog(), name, entry | {"pairs": 1})
        return image, mask

    return write


def look(root: Path, name: str) -> FoundDataset:
    return look_for_datasets(root)[name]


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_whole_copy_passes(one, tmp_path, name):
    one(name)
    verdict = verify(look(tmp_path, name))
    assert (verdict.pairs, verdict.empty_masks, verdict.wrong) == (1, 0, ())


@pytest.mark.parametrize("which", [0, 1], ids=["image", "mask"])
@pytest.mark.parametrize(
    "name", ["kvasir_seg", "kvasir_instrument", "cvc_clinicdb"]
)  # by file type
@pytest.mark.parametrize("fault", ["empty", "cut", "text"])
def test_a_broken_file_is_named(one, tmp_path, name, which, fault):
    broken = one(name)[which]
    whole = broken.read_bytes()
    broken.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"no image"}[fault])
    (line,) = verify(look(tmp_path, name)).wrong
    assert str(broken) in line


def test_a_file_is_whole_by_its_content_whatever_its_name(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for kind in (".png", ".jpg"):
        whole = cv2.imencode(kind, picture)[1].tobytes()
        path = tmp_path / f"kept{'.jpg' if kind == '.png' else '.png'}"
        path.write_bytes(whole)
        check_whole(path)
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match="cut off before its end"):
            check_whole(path)


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_mask_of_another_size_is_named_with_both_sizes(one, tmp_path, name):
    _, mask = one(name)
    pixels = np.zeros((20, 30), np.uint8)
    tifffile.imwrite(mask, pixels) if mask.suffix == ".tif" else cv2.imwrite(str(mask), pixels)
    (line,) = verify(look(tmp_path, name)).wrong
    assert str(mask) in line
    assert "30×20" in line
    assert "50×40" in line


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_missing_mask_and_image_is_named(one, tmp_path, name):
    image, mask = one(name)
    lonely = [image.with_stem(stem) for stem in ("x", "y")]
    stray = mask.with_stem(mask.stem.replace("a", "z").replace("1", "9"))
    for path, source in [*((each, image) for each in lonely), (stray, mask)]:
        path.write_bytes(source.read_bytes())
    wrong = "\n".join(verify(look(tmp_path, name)).wrong)
    for path in (*lonely, stray):
        assert str(path) in wrong


def test_counts_are_compared_with_the_catalog(tmp_path):
    write_pair(*(tmp_path / path for path in OFFICIAL["polypgen"]))
    wrong = "\n".join(verify(look(tmp_path, "polypgen")).wrong)
    assert "found 1 pairs, want 1537" in wrong
    assert "found 1 pairs of center C1, want 256" in wrong
    assert "found 0 pairs of center C6, want 88" in wrong


def test_empty_masks_are_counted_and_no_fault_unless_all_are(tmp_path):
    for name in "ab":
        write_pair(tmp_path / f"clinic/images/{name}.png", tmp_path / f"clinic/masks/{name}.jpg")
    first, second = (tmp_path / f"clinic/masks/{name}.jpg" for name in "ab")
    cv2.imwrite(str(first), np.full((40, 50), 3, np.uint8))  # JPEG noise is no polyp
    verdict = verify(look(tmp_path, "clinic"))
    assert (verdict.empty_masks, verdict.wrong) == (1, ())
    cv2.imwrite(str(second), np.ones((40, 50), np.uint8))  # a label, as JPEG
    (line,) = verify(look(tmp_path, "clinic")).wrong
    assert "clinic: no mask holds a polyp; are they 0 and 1?" in line


def test_the_command_names_the_file_and_fails(one, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ULTRASEG_DATA", str(tmp_path))
    image, _ = one("kvasir_seg")
    one("etis_larib")
    assert main(["data", "verify"]) == 0
    image.write_bytes(b"")
    assert main(["data", "verify"]) == 1
    assert str(image) in capsys.readouterr().out
    assert main(["data", "verify", "etis_larib"]) == 0
    assert main(["data", "verify", "polypgen"]) == 2
    assert "no dataset polypgen" in capsys.readouterr().err


def test_json_describes_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ULTRASEG_DATA", str(tmp_path))
    for name in ("polypgen", "polypdb"):
        write_pair(*(tmp_path / path for path in OFFICIAL[name]))
    assert main(["data", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first == {
        "name": "polypgen", "path": str(tmp_path / "PolypGen2021_MultiCenterData_v3"), "pairs": 1,
        "empty_masks": 0, "centers": ["C1"], "modalities": [],
    }  # fmt: skip
    assert (second["name"], second["modalities"]) == ("polypdb", ["WLI"])


def test_the_listing_goes_on_past_a_broken_dataset(one, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ULTRASEG_DATA", str(tmp_path))
    _, mask = one("kvasir_seg")
    mask.unlink()
    one("etis_larib")
    assert main(["data"]) == 0
    told = capsys.readouterr().out
    assert "a.jpg: its mask" in told
    assert "etis_larib            1 pairs" in told
    assert main(["data", "--json"]) == 2


def test_the_audit_goes_on_past_a_broken_dataset(one, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ULTRASEG_DATA", str(tmp_path))
    _, gone = one("kvasir_seg")
    gone.unlink()
    broken, _ = one("cvc_clinicdb")
    broken.write_bytes(broken.read_bytes()[:20])
    one("etis_larib")
    assert main(["data", "audit"]) == 1
    told = capsys.readouterr().out
    assert "etis_larib       1" in told
    assert "Not audited" in told
    assert re.search(r"^kvasir_seg: .*its mask", told, re.MULTILINE)
    assert re.search(r"^cvc_clinicdb: .*not a readable image", told, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "empty"), [("cvc_clinicdb", 0), ("polypgen", 126), ("etis_larib", 0)]
)
def test_real_copies_are_whole(real_data, name, empty):
    """126 empty masks: 125 in the official files, and one that shrinking emptied."""
    verdict = verify(look(real_data, name))
    assert (verdict.empty_masks, verdict.wrong) == (empty, ())
