"""Splits are fixed, stratified, committed and hashed."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ultraseg_lib.data import DataError, Frames, add_split, find_datasets
from ultraseg_lib.data.audit import PAIR_COLUMNS, cut_sequences
from ultraseg_lib.data.splits import (
    VAL_SHARE,
    _first_share,
    keep_share,
    make_grouped_split,
    make_split,
    mixed_frames,
    mixed_parts,
    read_split,
    split_hash,
    split_path,
    write_split,
)
from ultraseg_lib.paths import SPLITS

COMMITTED = sorted(SPLITS.glob("*.txt"))
DRAWN = [path for path in COMMITTED if not path.stem.endswith(("-official", "-pranet"))]


def table_of(count: int, centers: tuple[str, ...] = ("",)) -> pd.DataFrame:
    ids = [f"{center}/{i}" for center in centers for i in range(count)]
    return pd.DataFrame(
        {"image_id": ids, "center": [name.split("/")[0] for name in ids], "modality": ""}
    )


def test_shares_hold_within_each_center_and_modality():
    table = table_of(200, ("C1", "C2"))
    table["modality"] = ["WLI", "NBI"] * 200
    parts = table.assign(part=make_split(table).to_numpy()).groupby(["center", "modality"])["part"]
    assert parts.ngroups == 4
    for _, part in parts:
        counts = part.value_counts()
        assert (counts["test"], counts["val"], counts["train"]) == (20, 8, 72)


@pytest.mark.parametrize("column", ["center", "modality"])
def test_a_center_that_is_missing_is_one_that_is_not_told(column):
    table = table_of(50)
    assert make_split(table.assign(**{column: np.nan})).equals(make_split(table))


@pytest.mark.parametrize("share", [0, -0.5, 25, float("nan")])
def test_a_share_is_a_part_of_one(share):
    with pytest.raises(ValueError, match="share: found"):
        keep_share(Frames(np.empty(0), np.empty(0), table_of(4)), share)


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
    with pytest.raises(DataError, match="1 of the folder's are not in it"):
        add_split(table_of(21), "kvasir_seg")


@pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.stem)
def test_drawn_splits_are_four_to_one(path):
    shares = read_split(path).value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2, abs=0.01)
    assert shares["val"] == pytest.approx(0.08, abs=0.01)


def test_lists_of_one_dataset_name_the_same_images():
    for path in COMMITTED:
        drawn = read_split(split_path(path.stem.split("-")[0]))
        assert set(read_split(path).index) == set(drawn.index)


def test_committed_splits_fit_the_real_datasets(real_data):
    found = find_datasets(real_data)
    for path in COMMITTED:
        name, scheme = path.stem.split("-")
        assert add_split(found[name].table, name, scheme)["part"].notna().all()


@pytest.mark.parametrize(
    ("dataset", "scheme", "seed"),
    [
        ("kvasir_seg", "random", 0),
        ("kvasir_seg", "draw_2", 2),
        ("kvasir_seg", "draw_3", 4),
        ("cvc_clinicdb", "random", 0),
        ("cvc_clinicdb", "draw_2", 2),
    ],
)
def test_the_committed_draws_are_those_of_their_seeds(dataset, scheme, seed):
    committed = read_split(split_path(dataset, scheme))
    table = pd.DataFrame({"image_id": committed.index, "center": "", "modality": ""})
    assert split_hash(committed) == split_hash(make_split(table, seed))


# --- By sequence, and from published lists ---------------------------------------------------


def clips(lengths: list[int]) -> pd.DataFrame:
    names = [f"s{clip}" for clip, length in enumerate(lengths) for _ in range(length)]
    ids = [str(i) for i in range(len(names))]
    return pd.DataFrame({"dataset": "clips", "image_id": ids, "sequence": names})


def test_a_grouped_split_cuts_no_sequence_and_keeps_the_shares():
    table = clips(np.random.default_rng(0).integers(5, 26, 40).tolist())
    parts = make_grouped_split(table)
    shares = parts.value_counts(normalize=True)
    assert cut_sequences(table, parts).empty
    assert shares["test"] == pytest.approx(0.2, abs=0.02)
    assert shares["val"] == pytest.approx(0.08, abs=0.02)


def test_a_grouped_split_depends_on_names_and_seed_alone():
    table = clips([10] * 20)
    shuffled = table.sample(frac=1, random_state=1)
    assert make_grouped_split(table).sort_index().equals(make_grouped_split(shuffled).sort_index())
    assert not make_grouped_split(table).equals(make_grouped_split(table, seed=1))


def test_where_no_sequence_is_small_enough_the_first_of_the_smallest_is_taken():
    parts = make_grouped_split(clips([4] * 7 + [3]))
    assert parts.value_counts().to_dict() == {"train": 24, "test": 4, "val": 3}


@pytest.mark.parametrize(
    ("lengths", "parts"),
    [
        ([10], {"train": 10}),
        ([10, 10], {"train": 10, "test": 10}),
        ([100, 5], {"train": 100, "test": 5}),
        ([50, 50, 50], {"train": 50, "test": 50, "val": 50}),
    ],
)
def test_of_few_sequences_one_stays_for_training(lengths, parts):
    assert make_grouped_split(clips(lengths)).value_counts().to_dict() == parts


def test_a_drawn_split_cuts_no_sequence_that_is_told():
    table = clips([1] * 10 + [5] * 8).assign(center="", modality="")
    table.loc[:9, "sequence"] = ""  # ten images each by itself
    drawn = add_split(table, "clips")
    assert (drawn.groupby("sequence")["part"].nunique().drop("") == 1).all()
    assert set(drawn.loc[:9, "part"]) >= {"train"}
    assert drawn["part"].value_counts()["test"] == 10


def test_sequences_of_one_image_each_leave_the_draw_by_image_as_it_is():
    table = table_of(30, ("C1", "C2")).assign(sequence="")
    drawn = add_split(table, "clips")
    alone = add_split(table.assign(sequence=table["image_id"]), "clips")
    assert drawn["part"].equals(alone["part"])


@pytest.mark.parametrize("untold", ["", np.nan, None])
def test_a_grouped_split_needs_every_sequence(untold):
    table = clips([5, 5])
    table.loc[3, "sequence"] = untold
    with pytest.raises(DataError, match=r"no sequence is told for 1 images .*example 3"):
        make_grouped_split(table)


def test_the_committed_sequence_split_is_the_one_that_is_drawn(real_data):
    table = find_datasets(real_data)["cvc_clinicdb"].table
    assert table["sequence"].nunique() == 29
    committed = read_split(split_path("cvc_clinicdb", "sequence"))
    assert split_hash(committed) == split_hash(make_grouped_split(table))
    assert cut_sequences(table, committed).empty
    assert len(cut_sequences(table, read_split(split_path("cvc_clinicdb")))) == 29


@pytest.mark.parametrize(
    ("dataset", "scheme", "train", "test"),
    [
        ("kvasir_seg", "official", "Kvasir-SEG/train.txt", "Kvasir-SEG/val.txt"),
        ("kvasir_seg", "pranet", "PraNet_split/TrainDataset_Kvasir.txt",
         "PraNet_split/TestDataset_Kvasir.txt"),
        ("cvc_clinicdb", "pranet", "PraNet_split/TrainDataset_CVC-ClinicDB.txt",
         "PraNet_split/TestDataset_CVC-ClinicDB.txt"),
    ],
)  # fmt: skip
def test_committed_lists_are_the_published_ones(real_data, dataset, scheme, train, test):
    def names(path: str) -> list[str]:
        lines = Path(real_data / "_meta" / path).read_text(encoding="utf-8").split()
        return [line.removesuffix(".png") for line in lines]

    parts = dict.fromkeys(names(train), "train") | dict.fromkeys(names(test), "test")
    parts |= dict.fromkeys(_first_share(names(train), VAL_SHARE, seed=1), "val")
    assert split_hash(read_split(split_path(dataset, scheme))) == split_hash(pd.Series(parts))


# --- The mixed training set ------------------------------------------------------------------


def split_tables() -> dict[str, pd.DataFrame]:
    """Give two mixed datasets and an external one, ten images each: 6 train, 2 val, 2 test."""
    parts = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    ids = [str(i) for i in range(10)]
    return {
        name: pd.DataFrame({"dataset": name, "image_id": ids, "part": parts})
        for name in ("kvasir_seg", "polypgen", "etis_larib")
    }


PLANTED = pd.DataFrame(
    [
        ("kvasir_seg", "0", "polypgen", "9"),  # trained on here, tested there
        ("kvasir_seg", "8", "polypgen", "6"),  # tested here, validates there
        ("etis_larib", "1", "polypgen", "2"),  # external: tested whole, whatever its part says
        ("kvasir_seg", "3", "kvasir_seg", "9"),  # within one dataset
        ("kvasir_seg", "4", "polypgen", "4"),  # trained on in both: no leak
        ("kvasir_seg", "9", "polypgen", "8"),  # tested in both: no leak
    ],
    columns=PAIR_COLUMNS[:4],
).assign(difference=0.0)


def test_the_mixed_set_leaves_out_every_planted_duplicate_of_a_tested_image():
    joined, left_out = mixed_parts(split_tables(), PLANTED)
    gone = left_out[["dataset", "image_id", "test_dataset", "test_image_id"]]
    assert sorted(gone.itertuples(index=False, name=None)) == [
        ("kvasir_seg", "0", "polypgen", "9"),
        ("kvasir_seg", "3", "kvasir_seg", "9"),
        ("polypgen", "2", "etis_larib", "1"),
        ("polypgen", "6", "kvasir_seg", "8"),
    ]
    assert len(joined) == 2 * 8 - 4
    assert set(joined["part"]) == {"train", "val"}
    assert set(joined["dataset"]) == {"kvasir_seg", "polypgen"}


def test_a_dataset_that_is_not_of_the_mix_plays_no_role():
    tables = split_tables()
    tables["pranet_test"] = tables["kvasir_seg"].assign(dataset="pranet_test", part="test")
    copies = pd.DataFrame([("kvasir_seg", "1", "pranet_test", "1", 0.0)], columns=PAIR_COLUMNS)
    assert mixed_parts(tables, copies)[1].empty


def test_without_duplicates_nothing_is_left_out():
    joined, left_out = mixed_parts(split_tables(), PLANTED[:0])
    assert len(joined) == 16
    assert left_out.empty
    assert {"test_dataset", "test_image_id"} <= set(left_out.columns)


def test_mixed_frames_keep_each_image_with_its_row():
    frames = {}
    for place, (name, table) in enumerate(split_tables().items()):
        images = np.full((10, 4, 4, 3), 20 * place, np.uint8)
        images += np.arange(10, dtype=np.uint8)[:, None, None, None]
        frames[name] = Frames(images, images[..., 0], table)
    joined = mixed_frames(frames, PLANTED)
    assert len(joined) == len(joined.images) == 12
    expected = joined.table["image_id"].astype(int) + 20 * (joined.table["dataset"] == "polypgen")
    assert joined.images[:, 0, 0, 0].tolist() == expected.tolist()
