"""The training loss: BCE + Dice on the mask and on every supervised map (section 3.4, Eq. 5)."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from ultraseg_lib.choices import check_choice
from ultraseg_lib.models import Prediction

SMOOTH = 1.0  # pixels added to both sides of the Dice ratio: an empty pair scores 1, not 0/0


class FormWeights(NamedTuple):
    """The (BCE, Dice) weights of the final mask and of each supervised map."""

    main: tuple[float, float]
    supervised: tuple[float, float]


LOSS_FORMS = {
    "paper_text": FormWeights(main=(1.0, 1.0), supervised=(1.0, 1.0)),
    "released": FormWeights(main=(1.0, 2.0), supervised=(0.5, 1.0)),
}


class LossTerms(NamedTuple):
    """A loss and its parts: `total = main + sum(regions) + sum(boundaries)`.

    All are scalar tensors, already weighted; the tuples run from the deepest map to the one
    nearest full size. In the paper's Eq. 5 `main` is L_region, `boundaries` L_boundary and
    `regions` L_gt.
    """

    total: Tensor
    main: Tensor
    regions: tuple[Tensor, ...]
    boundaries: tuple[Tensor, ...]


def soft_dice(prob: Tensor, target: Tensor) -> Tensor:
    """Measure the overlap of a probability map and a mask, differentiably.

    (2 Σ p·t + 1) / (Σ p + Σ t + 1), summed over the pixels of each image by itself: a small
    polyp counts as much as a large one in the same batch.

    Args:
        prob: (N, 1, H, W) float in [0, 1].
        target: (N, 1, H, W) float of 0 and 1.

    Returns:
        (N,) float in (0, 1]; 1 when both are empty.
    """
    prob, target = prob.flatten(1), target.flatten(1)
    overlap = (prob * target).sum(1)
    return (2 * overlap + SMOOTH) / (prob.sum(1) + target.sum(1) + SMOOTH)


def bce_dice(
    logits: Tensor, target: Tensor, bce_weight: float = 1.0, dice_weight: float = 1.0
) -> Tensor:
    """Add the binary cross-entropy over all pixels and 1 - soft Dice, mean over images.

    Logits go in, not probabilities: BCE of a saturated sigmoid is infinite, BCE from logits
    grows only linearly with a wrong logit.

    Args:
        logits: (N, 1, H, W) float, any size.
        target: (N, 1, H, W) of 0 and 1 (masks on disk are 0 and 255), of the logits' dtype.
        bce_weight: factor of the cross-entropy.
        dice_weight: factor of the Dice loss.

    Returns:
        A scalar, 0 or more.

    Raises:
        ValueError: the shapes differ, or are not (N, 1, H, W).

    >>> import torch
    >>> mask = torch.ones(1, 1, 4, 4)
    >>> bce_dice(20 * mask, mask).item() < 1e-6, bce_dice(-20 * mask, mask).item() > 20
    (True, True)
    """
    if logits.shape != target.shape or logits.ndim != 4 or logits.shape[1] != 1:
        raise ValueError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} must both be "
            "(N, 1, H, W) and equal: resize a smaller map to full size."
        )
    bce = F.binary_cross_entropy_with_logits(logits, target)
    dice = soft_dice(logits.sigmoid(), target).mean()
    return bce_weight * bce + dice_weight * (1 - dice)


def deep_supervision_loss(
    prediction: Prediction,
    mask: Tensor,
    boundary: Tensor,
    form: str = "paper_text",
    double_sigmoid: bool = False,
) -> LossTerms:
    """Compute Eq. 5: the loss of the final mask, the region maps and the boundary maps.

    The i-th map from the deepest (i = 1, 2, …) has weight 0.1·i, for regions and boundaries
    alike: the paper's 0.1, 0.2, 0.3(, 0.4) in the released code's direction ("increasing with
    depth" could be read the other way). Serves models with other numbers of maps, too; one without
    maps has the main term alone.

    Args:
        prediction: `logits`, `regions` and `boundaries` (deepest first), each map (N, 1, H, W).
        mask: (N, 1, H, W) float of 0 and 1.
        boundary: (N, 1, H, W) float of 0 and 1, from `edges.boundary_targets`.
        form: `"paper_text"`, BCE + Dice for every term, or `"released"`, BCE + 2·Dice for the
            mask and 0.5·BCE + Dice for each map, as in the released code.
        double_sigmoid: a fault of the released code, for the ablation: maps pass a sigmoid
            before the one inside the loss, so they reach only [0.5, 0.731].

    Raises:
        ValueError: an unknown form, or a map whose shape differs from its target's.
    """
    check_choice("loss form", form, LOSS_FORMS)
    weights = LOSS_FORMS[form]

    def supervise(maps: tuple[Tensor, ...], target: Tensor) -> tuple[Tensor, ...]:
        inputs = [m.sigmoid() if double_sigmoid else m for m in maps]
        losses = [bce_dice(m, target, *weights.supervised) for m in inputs]
        return tuple(0.1 * i * loss for i, loss in enumerate(losses, start=1))

    main = bce_dice(prediction.logits, mask, *weights.main)
    regions = supervise(prediction.regions, mask)
    boundaries = supervise(prediction.boundaries, boundary)
    return LossTerms(sum((*regions, *boundaries), main), main, regions, boundaries)
