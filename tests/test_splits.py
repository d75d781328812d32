"""Splits are fixed, stratified, committed and hashed."""

import pandas as pd
import pytest

from ultraseg_lib.data import DataError, find_datasets
from ultraseg_lib.data.splits import (
    add_split,
    make_split,
    read_split,
    split_hash,
    split_path,
    write_split,
)
from ultraseg_lib.paths import SPLITS

COMMITTED = sorted(SPLITS.glob("*.txt"))


def table_of(count: int, centers: tuple[str, ...] = ("",)) -> pd.DataFrame:
    ids = [f"{center}/{i}" for center in centers for i in range(count)]
    return pd.DataFrame(
        {"image_id": ids, "center": [name.split("/")[0] for name in ids], "modality": ""}
    )


def test_shares_hold_within_each_center():
    table = table_of(100, ("C1", "C2"))
    parts = table.assign(part=make_split(table).to_numpy()).groupby("center")["part"]
    for center in ("C1", "C2"):
        counts = parts.get_group(center).value_counts()
        assert (counts["test"], counts["val"], counts["train"]) == (20, 8, 72)


def test_the_draw_depends_on_names_and_seed_alone():
    table = table_of(50)
    shuffled = table.sample(frac=1, random_state=1)
    assert make_split(table).sort_index().equals(make_split(shuffled).sort_index())
    assert not make_split(table).equals(make_split(table, seed=1))


def test_files_round_trip_and_hash_sees_each_change(tmp_path):
    parts = make_split(table_of(20))
    write_split(parts, tmp_path / "s.txt")
    again = read_split(tmp_path / "s.txt")
    assert split_hash(again) == split_hash(parts)
    again.iloc[0] = "val" if again.iloc[0] != "val" else "test"
    assert split_hash(again) != split_hash(parts)


@pytest.mark.parametrize("text", ["tset\ta\n", "train a\n", "train\ta\ntest\ta\n"])
def test_a_wrong_line_is_named(tmp_path, text):
    (tmp_path / "s.txt").write_text(text)
    with pytest.raises(DataError, match=r"s\.txt, line \d"):
        read_split(tmp_path / "s.txt")


def test_a_committed_split_must_fit_the_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("ultraseg_lib.data.splits.SPLITS", tmp_path)
    write_split(make_split(table_of(20)), split_path("kvasir_seg"))
    with pytest.raises(DataError, match="1 of its images are not in the folder"):
        add_split(table_of(19), "kvasir_seg")


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_splits_are_four_to_one(path):
    shares = read_split(path).value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2, abs=0.01)
    assert shares["val"] == pytest.approx(0.08, abs=0.01)


def test_committed_splits_fit_the_real_datasets(real_data):
    for name, dataset in find_datasets(real_data).items():
        assert add_split(dataset.table, name)["part"].notna().all()
