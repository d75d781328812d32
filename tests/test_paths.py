"""What is written is there whole, or what was there before."""

import os

import pytest

from ultraseg_lib.paths import whole_folder


def test_a_folder_is_replaced_only_by_a_whole_one(tmp_path, monkeypatch):
    kept = tmp_path / "run"
    with whole_folder(kept) as temporary:
        (temporary / "old.txt").write_text("old")

    def stopped() -> None:
        with whole_folder(kept) as temporary:
            (temporary / "new.txt").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [path.name for path in kept.iterdir()] == ["old.txt"]

    replace = os.replace

    def interrupted(source, target):
        if "tmp" in str(source):
            raise KeyboardInterrupt  # between the two renames
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), whole_folder(kept) as temporary:
        (temporary / "new.txt").write_text("new")
    assert [path.name for path in kept.iterdir()] == ["old.txt"]
    monkeypatch.undo()
    with whole_folder(kept) as temporary:
        (temporary / "new.txt").write_text("new")
    assert [path.name for path in kept.iterdir()] == ["new.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
