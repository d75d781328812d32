"""What the deployment tests share: models whose every weight and statistic matters."""

import numpy as np
import torch
from torch import nn

from ultraseg_lib.data.synthetic import generate_frame
from ultraseg_lib.deploy.frame import to_image
from ultraseg_lib.models import create_model


def lively_model(name: str, **variants: object) -> nn.Module:
    """Build a model with random norms and statistics: at the start ones and zeros hide mistakes."""
    torch.manual_seed(1)
    model = create_model(name, **variants)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
        for key, buffer in model.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_(0, 0.2)
            if key.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    return model.eval()


def generated_image(index: int, size: int) -> np.ndarray:
    """Return a generated image (1, 3, size, size) float32 in [0, 1], contiguous."""
    return np.ascontiguousarray(to_image(generate_frame(2, index, size).image, size))


def trained_logits(model: nn.Module, image: np.ndarray) -> np.ndarray:
    """Return the model's own logits."""
    with torch.no_grad():
        return model(torch.from_numpy(image)).logits.numpy()
