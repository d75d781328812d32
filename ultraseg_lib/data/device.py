"""Training frames that live on a GPU: kept there as uint8, augmented there by the same draws."""

from collections.abc import Iterator
from importlib.util import find_spec

import cv2
import numpy as np
import torch
from torch import Tensor

from ultraseg_lib import edges
from ultraseg_lib.data.augmentation import (
    Augmentation,
    Change,
    draw_change,
    draw_side,
    find_augmentation,
)
from ultraseg_lib.data.loading import Batch, Frames, drawn_batches

GPU_FIX = "pip install -e '.[gpu]', or delete .venv, then ./run_all.sh"
_PADDING = {cv2.BORDER_CONSTANT: "zeros", cv2.BORDER_REFLECT_101: "reflection"}


class DeviceFrames:
    """Frames (N, S, S) copied to ``device`` once; batches are made without leaving it.

    Order, geometry and colours are drawn as `loading.training_batches` draws them, so both give the
    same batches, up to the rounding of the interpolation and of the colours (on a CPU a change of
    colour cuts to whole grey levels: half a level darker). Raises ModuleNotFoundError without
    kornia.
    """

    def __init__(self, frames: Frames, device: torch.device) -> None:
        if find_spec("kornia") is None:
            raise ModuleNotFoundError(f"kornia, which augments on a GPU, is missing: {GPU_FIX}")
        self.images = torch.tensor(np.asarray(frames.images), device=device).permute(0, 3, 1, 2)
        self.masks = torch.tensor(np.asarray(frames.masks), device=device)[:, None] > 0

    def training_batches(
        self, batch_size: int, augmentation: str, seed: int, epoch: int, edge_method: str = "canny"
    ) -> Iterator[Batch]:
        """Yield one epoch of shuffled, augmented batches; the last may be smaller."""
        setting, size = find_augmentation(augmentation), self.images.shape[-1]
        for rows, rng in drawn_batches(len(self.images), batch_size, seed, epoch):
            side = draw_side(setting, size, rng)
            changes = [draw_change(setting, size, side, rng) for _ in rows]
            yield self._batch(torch.from_numpy(rows), changes, setting, edge_method)

    def _batch(
        self, rows: Tensor, changes: list[Change], setting: Augmentation, edge_method: str
    ) -> Batch:
        rows = rows.to(self.images.device)
        matrices = self._tensor([change.matrix for change in changes])
        side, fill, mask_fill = changes[0].side, setting.border, setting.mask_border
        image = _warp(self.images[rows].float(), matrices, side, "bilinear", fill)
        mask = _warp(self.masks[rows].float(), matrices, side, "nearest", mask_fill) > 0.5
        if setting.recolours:
            image = self._recolour(image, changes)
        boundary = edges.boundary_targets_on_device(mask[:, 0], edge_method)
        return Batch(image.div_(255), mask.float(), boundary.float()[:, None])

    def _tensor(self, values: list) -> Tensor:
        return torch.tensor(np.array(values), dtype=torch.float32, device=self.images.device)

    def _recolour(self, image: Tensor, changes: list[Change]) -> Tensor:
        """Change contrast, brightness and colour balance of images (B, 3, S, S) in [0, 255]."""
        contrast = self._tensor([change.contrast for change in changes]).view(-1, 1, 1, 1)
        brightness = self._tensor([change.brightness for change in changes]).view(-1, 1, 1, 1)
        gains = self._tensor([change.gains for change in changes]).view(-1, 3, 1, 1)
        middle = image.mean(dim=(1, 2, 3), keepdim=True)
        return (((image - middle) * contrast + middle) * gains + brightness).clamp_(0, 255)


def _warp(stack: Tensor, matrices: Tensor, side: int, mode: str, border: int) -> Tensor:
    """Warp (B, C, S, S) to (B, C, side, side) by matrices (B, 2, 3) in pixels, as OpenCV does."""
    from kornia.geometry.transform import warp_affine

    padding = _PADDING[border]
    return warp_affine(stack, matrices, (side, side), mode, padding, align_corners=True)
