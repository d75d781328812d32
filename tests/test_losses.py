"""Eq. 5 against the formula written out, large logits, gradients, and the double sigmoid."""

import pytest
import torch
from torch import Tensor

from ultraseg_lib.losses import LOSS_FORMS, bce_dice, deep_supervision_loss, soft_dice
from ultraseg_lib.models import Prediction


def random_logits(seed: int, n: int = 2, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, 1, size, size, generator=generator, dtype=torch.float64)


def random_mask(seed: int) -> Tensor:
    return (random_logits(seed) > 0).double()


def prediction(regions: int = 4, boundaries: int = 3) -> Prediction:
    return Prediction(
        random_logits(0),
        tuple(random_logits(10 + i) for i in range(regions)),
        tuple(random_logits(20 + i) for i in range(boundaries)),
    )


def written_out(logits: Tensor, target: Tensor, bce_weight: float, dice_weight: float) -> float:
    """Loop over the images and pixels with the textbook formulas."""
    bce, dice = [], []
    for x, t in zip(logits.sigmoid(), target, strict=True):
        bce += (-(t * x.log() + (1 - t) * (1 - x).log())).flatten().tolist()
        dice.append(((2 * (x * t).sum() + 1) / (x.sum() + t.sum() + 1)).item())
    return bce_weight * sum(bce) / len(bce) + dice_weight * (1 - sum(dice) / len(dice))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 2.0), (0.5, 1.0)])
def test_bce_dice_is_the_formula(weights):
    logits, mask = random_logits(1), random_mask(2)
    assert bce_dice(logits, mask, *weights).item() == pytest.approx(
        written_out(logits, mask, *weights), abs=1e-12
    )


def test_dice_is_taken_per_image():
    """A small polyp that is missed weighs half in a batch of two, however large the other."""
    mask = torch.zeros(2, 1, 64, 64)
    mask[0, :, :32] = 1
    mask[1, :, :2, :2] = 1
    prob = mask.clone()
    prob[1] = 0
    assert soft_dice(prob, mask).tolist() == pytest.approx([1.0, 1 / 5])


def test_an_empty_mask_that_is_left_empty_costs_nothing():
    empty = torch.zeros(2, 1, 16, 16)
    assert bce_dice(empty - 100, empty).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_loss_and_gradient_are_finite_for_logits_of_ten_thousand(sign):
    mask = random_mask(3).float()
    logits = (sign * 1e4 * (2 * mask - 1)).requires_grad_()
    loss = bce_dice(logits, mask)
    loss.backward()
    assert logits.grad.isfinite().all()
    # All wrong: BCE is the logit itself; p and t cover the 64 pixels once, so Dice = 1 / 65.
    expected = 0 if sign == 1 else 1e4 + 1 - 1 / 65
    assert loss.item() == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("form", LOSS_FORMS)
@pytest.mark.parametrize("double_sigmoid", [False, True])
def test_gradients_are_right(form, double_sigmoid):
    logits = [random_logits(i, n=1, size=3).requires_grad_() for i in range(3)]
    mask, boundary = (random_mask(i)[:1, :, :3, :3] for i in (5, 6))

    def total(main: Tensor, region: Tensor, edge: Tensor) -> Tensor:
        output = Prediction(main, (region,), (edge,))
        return deep_supervision_loss(output, mask, boundary, form, double_sigmoid).total

    assert torch.autograd.gradcheck(total, logits)


@pytest.mark.parametrize(
    ("form", "main", "supervised"),
    [("paper_text", (1, 1), (1, 1)), ("released", (1, 2), (0.5, 1))],
)
def test_eq_5_is_the_formula_term_by_term(form, main, supervised):
    output, mask, boundary = prediction(), random_mask(5), random_mask(6)
    terms = deep_supervision_loss(output, mask, boundary, form)
    region_pairs = zip([0.1, 0.2, 0.3, 0.4], output.regions, strict=True)
    boundary_pairs = zip([0.1, 0.2, 0.3], output.boundaries, strict=True)
    regions = [w * written_out(m, mask, *supervised) for w, m in region_pairs]
    boundaries = [w * written_out(m, boundary, *supervised) for w, m in boundary_pairs]
    assert terms.main.item() == pytest.approx(written_out(output.logits, mask, *main))
    assert [t.item() for t in terms.regions] == pytest.approx(regions)
    assert [t.item() for t in terms.boundaries] == pytest.approx(boundaries)
    assert terms.total.item() == pytest.approx(
        terms.main.item() + sum(regions) + sum(boundaries), abs=1e-12
    )


def test_a_model_without_maps_has_the_main_term_alone():
    terms = deep_supervision_loss(prediction(0, 0), random_mask(5), random_mask(6))
    assert terms.total.item() == terms.main.item()
    assert terms.regions == terms.boundaries == ()


def test_weights_rise_by_a_tenth_for_any_number_of_maps():
    same = random_logits(7)
    output = Prediction(same, (same,) * 5)
    terms = deep_supervision_loss(output, random_mask(5), random_mask(6))
    ratios = [(t / terms.main).item() for t in terms.regions]
    assert ratios == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_double_sigmoid_caps_the_maps_between_one_half_and_0_731():
    """Even a map that is certain and right keeps a large loss; the main term is untouched."""
    mask = random_mask(5)
    certain = 1e4 * (2 * mask - 1)
    output = Prediction(certain, (certain,))
    once = deep_supervision_loss(output, mask, mask)
    twice = deep_supervision_loss(output, mask, mask, double_sigmoid=True)
    assert certain.sigmoid().sigmoid().unique().tolist() == pytest.approx([0.5, 0.7310586])
    capped = 0.1 * written_out(certain.sigmoid(), mask, 1, 1)
    assert once.regions[0].item() == pytest.approx(0, abs=1e-9)
    assert twice.regions[0].item() == pytest.approx(capped)
    assert capped > 0.05
    assert twice.main.item() == once.main.item()


def test_shapes_that_do_not_match_are_refused():
    mask = random_mask(5)
    with pytest.raises(ValueError, match=r"\(2, 1, 4, 4\)"):
        bce_dice(random_logits(0, size=4), mask)
    with pytest.raises(ValueError, match=r"\(2, 8, 8\)"):
        bce_dice(random_logits(0), mask[:, 0])
    output = Prediction(random_logits(0), (random_logits(1, size=4),))
    with pytest.raises(ValueError, match="full size"):
        deep_supervision_loss(output, mask, mask)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="loss form: unknown 'focal'"):
        deep_supervision_loss(prediction(), random_mask(5), random_mask(6), form="focal")
