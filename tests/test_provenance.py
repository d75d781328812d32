"""What stands beside every result, and how many cores may be used."""

import os

import pytest

from ultraseg_lib import provenance


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 64), ("200000 100000", 2), ("50000 100000", 1), (None, 64)]
)
def test_a_container_may_use_less_than_the_machine_has(quota, cores, tmp_path, monkeypatch):
    path = tmp_path / "cpu.max"
    if quota:
        path.write_text(f"{quota}\n")
    monkeypatch.setattr(provenance, "CPU_QUOTA", path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert provenance.usable_cores() == cores
