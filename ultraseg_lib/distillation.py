"""Knowledge distillation (section 3.5, Eq. 6): a student also learns from a trained teacher."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ultraseg_lib.choices import check_choice
from ultraseg_lib.models import Prediction
from ultraseg_lib.models.layers import resize

KINDS = ("features", "logits")
TEMPERATURE = 2.0  # softens both logits, so that near misses of the teacher are told too


class Distillation(nn.Module):
    """One more term of the loss, as large as ``share`` of the task's.

    ``kind`` "features": Eq. 6, the squared difference of the two bottlenecks, the student's through
    a learned 1×1 projection to the teacher's width, which is thrown away after training. "logits":
    the cross-entropy between both probability maps at temperature 2. The paper names neither the
    layer nor what "10 %" is a share of; here the term is rescaled at every step to that share of
    the task loss of the same batch.

    Raises ValueError for an unknown kind, and for "features" of a model without a bottleneck.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, kind: str, share: float) -> None:
        super().__init__()
        check_choice("distillation", kind, KINDS)
        self.kind, self.share = kind, share
        # In a list: not a part that is trained or saved.
        self._teacher = [teacher.eval().requires_grad_(False)]
        if kind == "features":
            self.projection = nn.Conv2d(_width(student), _width(teacher), 1)

    def forward(self, task_loss: Tensor, prediction: Prediction, image: Tensor) -> Tensor:
        """Return the task loss with the term added, both scalars.

        ``prediction``: the student's on ``image`` (N, 3, H, W), with deep supervision.
        """
        with torch.no_grad():
            taught = self._teacher[0](image, deep_supervision=True)
        term = getattr(self, f"_{self.kind}")(prediction, taught)
        scale = self.share * task_loss.detach() / term.detach().clamp_min(1e-12)
        return task_loss + scale * term

    def _features(self, prediction: Prediction, taught: Prediction) -> Tensor:
        feature = resize(prediction.bottleneck, *taught.bottleneck.shape[2:])
        return F.mse_loss(self.projection(feature), taught.bottleneck)

    def _logits(self, prediction: Prediction, taught: Prediction) -> Tensor:
        target = torch.sigmoid(taught.logits / TEMPERATURE)
        return F.binary_cross_entropy_with_logits(prediction.logits / TEMPERATURE, target)


def _width(model: nn.Module) -> int:
    """Return the channels of a model's bottleneck."""
    image = next(model.parameters()).new_zeros(1, 3, 64, 64)
    was_training = model.training
    with torch.no_grad():
        bottleneck = model.eval()(image, deep_supervision=True).bottleneck
    model.train(was_training)
    if bottleneck is None:
        raise ValueError(f"{type(model).__name__} gives no bottleneck; distil its logits")
    return bottleneck.shape[1]
