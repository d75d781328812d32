"""Every architecture of the paper, by name.

model = create_model("ultraseg_130k", weights="mixed")  # trained; without weights, untrained
prediction = model(image)  # image (N, 3, H, W) in [0, 1]; prediction.logits (N, 1, H, W)
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ultraseg_lib.choices import check_choice
from ultraseg_lib.weights import find_weights

from .egeunet import EGEUNet
from .fastscnn import FastSCNN
from .layers import Prediction
from .lbunet import LBUNet
from .mobileunet import MobileUNet
from .ultraseg import UltraSeg
from .unet import UNet


@dataclass(frozen=True)
class ModelInfo:
    """One row of the registry.

    `title` is the paper's name, `build` the class, `options` its arguments for this row, and
    `paper_out_channels` the width of the head with which the paper counted the row (Table 1).
    """

    name: str
    title: str
    build: Callable[..., nn.Module]
    options: dict[str, Any] = field(default_factory=dict)
    paper_out_channels: int = 1


# UltraSeg without the two attentions of section 3.3, and with a constant EDB weight.
PLAIN = {"agf": False, "ssa": False, "edb_weight": "fixed"}

# The ST row of Table 5 was never released. This is a reconstruction: LB-UNet's block in place of
# the EDBs, LB-UNet's fusion, no 96-channel bottleneck. It has the row's 0.060 M and 0.185 G.
RECONSTRUCTED_ST = {**PLAIN, "edb": "none", "fusion": "fixed", "channels": (8, 16, 48, 64)}

_ROWS = (
    ModelInfo("ultraseg_108k_st", "UltraSeg-108K (ST)", UltraSeg, RECONSTRUCTED_ST),
    ModelInfo("ultraseg_108k", "UltraSeg-108K", UltraSeg, PLAIN),
    ModelInfo("ultraseg_130k", "UltraSeg-130K", UltraSeg),
    ModelInfo("ultraseg_500k", "UltraSeg-500K", UltraSeg, {"channels": (16, 32, 96, 128, 192)}),
    ModelInfo("ultraseg_1m11", "UltraSeg-1.11M", UltraSeg, {"channels": (24, 48, 144, 192, 288)}),
    ModelInfo("ultraseg_4m38", "UltraSeg-4.38M", UltraSeg, {"channels": (48, 96, 288, 384, 576)}),
    ModelInfo("lbunet", "LB-UNet", LBUNet),
    ModelInfo("egeunet", "EGE-UNet", EGEUNet),
    ModelInfo("unet_tiny", "UNet-Tiny", UNet, {"channels": (8, 16, 32, 64, 128)}, 4),
    ModelInfo("unet_small", "UNet-Small", UNet, {"channels": (16, 32, 64, 128, 256)}, 4),
    ModelInfo("unet_light", "UNet-Light", UNet, {"channels": (24, 48, 96, 192, 384)}, 4),
    ModelInfo("unet_medium", "UNet-Medium", UNet, {"channels": (32, 64, 128, 256, 512)}, 4),
    ModelInfo(
        "unet_base",
        "UNet-Base",
        UNet,
        {"channels": (64, 128, 256, 512, 1024), "separable": False},
        4,
    ),
    ModelInfo("mobileunet", "MobileUNet", MobileUNet),
    ModelInfo("fastscnn", "FastSCNN", FastSCNN),
)
MODELS: dict[str, ModelInfo] = {row.name: row for row in _ROWS}


def create_model(
    name: str, out_channels: int = 1, weights: str | Path | None = None, **variants: Any
) -> nn.Module:
    """Build a model: in training mode, its weights drawn from torch's random state, or trained.

    `out_channels` is the width of the main head; `weights` a .safetensors file, loaded strictly, or
    the name of the dataset whose shipped weights to take ("mixed", "kvasir_seg", ...): the model is
    then in evaluation mode, ready to predict; `variants` are arguments of the model's class (see
    `UltraSeg`) that replace the row's own. Raises ValueError for an unknown name or value, for
    weights that are broken or of another model, and for a class that lacks what the study needs;
    TypeError for an unknown variant, FileNotFoundError for weights that are not there.
    """
    info = find_model(name)
    _check_variants(info, variants)
    model = _build(info, out_channels, {**info.options, **variants})
    if weights is not None:
        _load(model, find_weights(info.name, weights), info)
        model.eval()  # in training mode BatchNorm would take the statistics of the image
    return model


def _build(info: ModelInfo, out_channels: int, options: dict[str, Any]) -> nn.Module:
    """Build a row's model; raise ValueError, with what is missing, where it cannot serve the study."""
    missing = []
    if "out_channels" not in inspect.signature(info.build).parameters:
        missing.append("an argument out_channels")
    else:
        model = info.build(out_channels=out_channels, **options)
        if "deep_supervision" not in inspect.signature(model.forward).parameters:
            missing.append("forward(image, deep_supervision=False)")
        if not isinstance(getattr(model, "stride", None), int):
            missing.append("stride, an attribute")
    if missing:
        raise ValueError(f"{info.name}: its class lacks {', '.join(missing)}; see docs/extend.md")
    return model


def _load(model: nn.Module, weights: Path, info: ModelInfo) -> None:
    try:
        model.load_state_dict(load_file(weights))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{weights}: no weights of {info.name} as asked for, or broken; name their model and variants"
        ) from error


def find_model(name: str) -> ModelInfo:
    """The registry's row of a name; raises ValueError, with close names, for an unknown one."""
    check_choice("model", name, MODELS)
    return MODELS[name]


def _check_variants(info: ModelInfo, variants: dict[str, Any]) -> None:
    known = set(inspect.signature(info.build).parameters) - {"out_channels"}
    unknown = sorted(set(variants) - known)
    if unknown:
        takes = ", ".join(sorted(known)) or "no variant"
        raise TypeError(f"{info.name} has no variant {', '.join(unknown)}; it takes {takes}")
