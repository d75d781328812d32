"""Shared helpers of the tests: small datasets on disk, and outputs in a folder of the test's own."""

import itertools
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from jupyter_client.connect import LocalPortCache

from ultraseg_lib import engines
from ultraseg_lib.grid import CHOSEN

SHARED = Path(__file__).resolve().parents[2] / "shared"
PORTS_A_WORKER = 2000


class OwnPorts(LocalPortCache):
    """Give kernels ports that no other worker of pytest gives, nor the system of its own accord.

    Jupyter asks the system for a free port and lets go of it until the kernel is up, some seconds
    later: kernels that two workers start side by side may be told the same one.
    """

    def __init__(self) -> None:
        super().__init__()
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        first = 10_000 + PORTS_A_WORKER * (worker % 10)
        self._ports = itertools.cycle(range(first, first + PORTS_A_WORKER))

    def find_available_port(self, ip: str) -> int:
        for port in itertools.islice(self._ports, PORTS_A_WORKER):
            with socket.socket() as probe:
                if port not in self.currently_used_ports and probe.connect_ex((ip, port)):
                    self.currently_used_ports.add(port)
                    return port
        raise OSError(f"{ip}: no free port of this worker's {PORTS_A_WORKER}")


OwnPorts.instance()  # what jupyter_client asks from here on


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run torch on one thread, so that sums are made in one order, and every run of a study too.

    Two threads wait for each other where other programs run, as the other half of the tests.
    """
    torch.set_num_threads(1)
    monkeypatch.setattr(engines, "usable_cores", lambda: 1)


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test inherit what the user, or a test before it, chose of a profile."""
    monkeypatch.setenv(CHOSEN, "{}")


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    """Close what a test drew."""
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the generated images, which all tests share."""
    return tmp_path_factory.mktemp("generated")


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generated: Path) -> Path:
    """Point ``ULTRASEG_OUTPUTS`` at a folder of this test."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    (folder / "generated").symlink_to(generated)
    monkeypatch.setenv("ULTRASEG_OUTPUTS", str(folder))
    return folder


@pytest.fixture
def committed_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the committed record, wherever the user's outputs are."""
    monkeypatch.delenv("ULTRASEG_OUTPUTS", raising=False)


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point ``ULTRASEG_DATA`` at the real datasets, or skip."""
    folder = SHARED / "datasets"
    if not folder.is_dir():
        pytest.skip("the real datasets are not beside the repository")
    monkeypatch.setenv("ULTRASEG_DATA", str(folder))
    return folder


def write_pair(image: Path, mask: Path, shape: tuple[int, int] = (40, 50)) -> None:
    """Write one small image and its mask, a rectangle, to the given files."""
    rng = np.random.default_rng(len(str(image)))
    binary = np.zeros(shape, np.uint8)
    binary[10:25, 12:30] = 255
    for path, pixels in ((image, rng.integers(0, 255, (*shape, 3), np.uint8)), (mask, binary)):
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), pixels)


@pytest.fixture
def kvasir(tmp_path: Path) -> Callable[..., Path]:
    """Give a function that writes a Kvasir-SEG tree of the named images and returns the data folder."""

    def write(names: tuple[str, ...] = ("a", "b", "c d")) -> Path:
        folder = tmp_path / "data" / "Kvasir-SEG"
        for name in names:
            write_pair(folder / "images" / f"{name}.jpg", folder / "masks" / f"{name}.jpg")
        return tmp_path / "data"

    return write
