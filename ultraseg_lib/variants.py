"""Variants: one named change to a model or to its training, for ablations and distillation.

``ultraseg_130k+fusion_fixed`` names a variant of a model wherever a run's model is named.
"""

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ultraseg_lib.choices import check_choice
from ultraseg_lib.models import MODELS, create_model, find_model
from ultraseg_lib.weights import find_weights


@dataclass(frozen=True)
class Variant:
    """A title, options of the model's class that change, and fields of the recipe that change."""

    title: str
    model: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)


def _distilled(kind: str, share: float) -> dict[str, Any]:
    return {"distillation": kind, "distillation_share": share}


VARIANTS = {
    # Section 3.4 and the faults of the released code: what each part of the loss is worth.
    "no_boundary_loss": Variant("no boundary loss", recipe={"boundary_weight": 0.0}),
    "no_region_loss": Variant("no region loss", recipe={"region_weight": 0.0}),
    "double_sigmoid": Variant("double sigmoid", recipe={"double_sigmoid": True}),
    "morphological_edges": Variant("morphological edges", recipe={"edges": "morphological"}),
    "paper_text_loss": Variant("loss as the text has it", recipe={"loss_form": "paper_text"}),
    # Recipe "paper" with all in which the released code's training differs, faults included: see
    # outputs/reference/README.md. That code counts the best epoch too, so that nine more end a run.
    "as_released": Variant(
        "trained as its code does",
        recipe={
            "double_sigmoid": True,
            "edges": "thin",
            "augmentation": "mirrored_image",
            "picked_by": "val_dice_per_batch",
            "patience": 9,
        },
    ),
    # Section 4.1 stops after ten epochs without a better Dice: what that is worth.
    "no_early_stopping": Variant("no early stopping", recipe={"patience": None}),
    # Section 3.2 and 3.3: other readings of the architecture.
    "edb_as_written": Variant("EDB as written", model={"edb": "as_written"}),
    "fusion_fixed": Variant("fixed fusion", model={"fusion": "fixed"}),
    # Section 3.5, Eq. 6: the share of the task loss that distillation adds.
    "kd10": Variant("features, 10 %", recipe=_distilled("features", 0.1)),
    "kd20": Variant("features, 20 %", recipe=_distilled("features", 0.2)),
    "kd30": Variant("features, 30 %", recipe=_distilled("features", 0.3)),
    "kd_logits": Variant("logits, 20 %", recipe=_distilled("logits", 0.2)),
}
PLAIN = Variant("")


def find_variant(name: str) -> tuple[str, Variant]:
    """Split ``model`` or ``model+variant`` into the model's name and its variant.

    Raises ValueError, with the valid names, for an unknown model or a variant that it does not
    have.
    """
    model, _, chosen = name.partition("+")
    info = find_model(model)
    if "+" not in name:
        return model, PLAIN
    takes = set(inspect.signature(info.build).parameters)
    known = [each for each, variant in VARIANTS.items() if takes.issuperset(variant.model)]
    check_choice(f"variant of {model}", chosen, known)
    return model, VARIANTS[chosen]


def build_model(name: str, weights: str | Path | None = None) -> nn.Module:
    """Build ``model`` or ``model+variant`` as `create_model` does."""
    model, variant = find_variant(name)
    path = None if weights is None else find_weights(name, weights)
    return create_model(model, weights=path, **variant.model)


@cache
def network_hash(name: str) -> str:
    """Return twelve hexadecimal digits that change with the name or shape of any weight of a model."""
    with torch.random.fork_rng(devices=[]):
        state = build_model(name).state_dict()
    shapes = "\n".join(f"{key} {tuple(value.shape)}" for key, value in state.items())
    return hashlib.sha256(shapes.encode()).hexdigest()[:12]


@cache
def supervised_maps(name: str) -> tuple[bool, bool]:
    """Return whether a model has region maps, and whether it has boundary maps (section 3.4)."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        image = torch.zeros(1, 3, 64, 64)
        prediction = build_model(name).eval()(image, deep_supervision=True)
    return bool(prediction.regions), bool(prediction.boundaries)


def model_title(name: str) -> str:
    """Return the name of a model as the paper prints it, with its variant."""
    model, variant = find_variant(name)
    return f"{MODELS[model].title}, {variant.title}" if variant.title else MODELS[model].title
