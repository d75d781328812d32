"""Batches made on a device equal those made by OpenCV: the same draws, the same boundary lines."""

import sys

import numpy as np
import pytest
import torch

from ultraseg_lib import edges
from ultraseg_lib.data import load_generated
from ultraseg_lib.data.augmentation import AUGMENTATIONS
from ultraseg_lib.data.device import DeviceFrames
from ultraseg_lib.data.loading import training_batches


def shapes() -> np.ndarray:
    """Masks (N, 64, 64) with every slope, noise, touching blobs, frame contact, empty and full."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    discs = [(x - 30) ** 2 + (y - 28) ** 2 < r**2 for r in (1, 3, 9, 20, 40)]
    slopes = [(x - 32) * np.cos(a) + (y - 32) * np.sin(a) > 0 for a in np.arange(0, 6.3, 0.1)]
    noise = [rng.random((64, 64)) < share for share in (0.01, 0.1, 0.5, 0.9)]
    empty = [np.zeros((64, 64), bool), np.ones((64, 64), bool)]
    return np.stack([*discs, *slopes, *noise, *empty])


@pytest.mark.parametrize("method", edges.METHODS)
def test_boundaries_on_the_device_equal_opencv(method):
    masks = shapes()
    expected = edges.boundary_targets(masks, method) > 0
    found = edges.boundary_targets_on_device(torch.from_numpy(masks), method).numpy()
    differing = [i for i in range(len(masks)) if (found[i] != expected[i]).any()]
    assert differing == []


def test_an_unknown_method_is_refused_on_the_device():
    with pytest.raises(ValueError, match="edges: unknown 'sobel'"):
        edges.boundary_targets_on_device(torch.zeros(1, 8, 8, dtype=torch.bool), "sobel")


@pytest.mark.parametrize("masks", [torch.ones(1, 8, 8, dtype=torch.uint8), torch.ones(8, 8) > 0])
def test_what_is_no_stack_of_bool_is_refused_on_the_device(masks):
    with pytest.raises(ValueError, match=r"give bool \(N, H, W\)"):
        edges.boundary_targets_on_device(masks, "morphological")


def test_without_kornia_the_fix_is_told(outputs, monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(ModuleNotFoundError, match=r"kornia, .* is missing: pip install"):
        DeviceFrames(load_generated("synthetic", 32, 4, 3), torch.device("cpu"))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_batches_equal_those_of_the_cpu(outputs, augmentation):
    pytest.importorskip("kornia", reason="the extra [gpu] is not installed")
    frames = load_generated("synthetic", 64, 24, 3)
    setting = (4, augmentation, 5, 2)
    ours = list(DeviceFrames(frames, torch.device("cpu")).training_batches(*setting))
    theirs = list(training_batches(frames, *setting))
    assert len(ours) == len(theirs) == 6
    for one, other in zip(ours, theirs, strict=True):
        assert one.image.shape == other.image.shape
        assert one.boundary.shape == other.boundary.shape
        assert (one.image - other.image).abs().mean() < 1.5 / 255
        assert (one.mask != other.mask).float().mean() < 0.003  # ties of the nearest pixel
        assert (one.boundary != other.boundary).float().mean() < 0.01
