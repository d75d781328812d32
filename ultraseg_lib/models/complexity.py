"""How large and how expensive each model is, by our count and by the paper's (Table 1).

The paper counts with `thop`, which sees modules, not tensors: it misses bare parameters (the maps
of the GSA), GroupNorm and channel norms, and adds some element-wise operations. Here are both its
convention, in a few lines, and the full counts.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pandas as pd
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from ultraseg_lib.paths import PAPER

from . import MODELS, create_model, find_model

SIZE = 256  # every count is of one image of 256 x 256, as in Table 1
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
# By `thop`, of what is here, and linear layers, which another model may have.
COUNTED = (*CONVOLUTIONS, nn.Linear, nn.BatchNorm2d, nn.Softmax, nn.AvgPool2d)


def count_parameters(model: nn.Module) -> int:
    """The number of parameters of the model, bare and frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def evaluating(model: nn.Module, *hooks: RemovableHandle) -> Iterator[None]:
    """Keep a model in evaluation mode for a block; then its mode is back and the hooks are gone."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()


def count_macs(model: nn.Module) -> int:
    """Multiply-adds of convolutions and products for one 256 x 256 image, torch's count."""
    with FlopCounterMode(display=False) as counter:
        _infer(model, SIZE)
    return counter.get_total_flops() // 2


def count_as_paper(model: nn.Module, size: int = SIZE) -> tuple[int, int]:
    """Parameters and FLOPs of one image (1, 3, size, size) as `thop` counts them (Table 1)."""
    operations: list[int] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        operations.append(_operations_as_paper(module, inputs[0], output))

    counted = [module for module in model.modules() if isinstance(module, COUNTED)]
    handles = [module.register_forward_hook(hook) for module in counted]
    with evaluating(model, *handles):
        _infer(model, size)
    return sum(count_parameters(module) for module in counted), sum(operations)


def _operations_as_paper(module: nn.Module, feature: Tensor, output: Tensor) -> int:
    if isinstance(module, CONVOLUTIONS):  # a transposed one comes out stride**2 times too large
        kernel_area = module.weight[0, 0].numel()
        return output.numel() * module.in_channels // module.groups * kernel_area
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if isinstance(module, nn.BatchNorm2d):  # subtract, divide, multiply, add
        return 4 * feature.numel()
    if isinstance(module, nn.Softmax):  # n exponentials, n - 1 additions, n divisions
        classes = feature.shape[module.dim]
        return feature.numel() // classes * (3 * classes - 1)
    return output.numel()  # an average pool: one division a value


def _infer(model: nn.Module, size: int) -> None:
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad():
        model(torch.zeros(1, 3, size, size, device=device))


def influence_map(model: nn.Module, size: int = SIZE, images: int = 2) -> Tensor:
    """How much each input pixel moves the logit at the centre: float (size, size), sum 1.

    |d logit(centre) / d pixel|, summed over colours, averaged over `images` of uniform noise, the
    same in every call; eval mode, first output channel. `size` must suit the model's stride.
    """
    noise = torch.Generator().manual_seed(0)
    total = torch.zeros(size, size)
    with evaluating(model):
        for _ in range(images):
            image = torch.rand(1, 3, size, size, generator=noise).requires_grad_()
            logit = model(image).logits[0, 0, size // 2, size // 2]
            (gradient,) = torch.autograd.grad(logit, image)
            total += gradient[0].abs().sum(dim=0)
    return total / total.sum()


def receptive_field(influence: Tensor, share: float = 0.5) -> int:
    """Effective receptive field: side, in pixels, of the centred square with `share` of the sum.

    `influence` is the (size, size) map of `influence_map`; the side is odd. Half of the sum, since
    the statistics of a GroupNorm give every pixel of the image a little influence: a square with
    95 % of it would measure the image, not the network.
    """
    centre = influence.shape[0] // 2
    offset = (torch.arange(influence.shape[0]) - centre).abs()
    ring = torch.maximum(offset[:, None], offset[None, :])  # squares around the centre
    sums = torch.zeros(centre + 1).index_add_(0, ring.flatten(), influence.flatten())
    return 2 * int((sums.cumsum(0) < share * sums.sum()).sum()) + 1


def complexity(name: str) -> dict[str, str | int | float]:
    """One row of the complexity table, see `complexity_table`."""
    info = find_model(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ours = create_model(name)
        papers = create_model(name, out_channels=info.paper_out_channels)
    convention_params, convention_flops = count_as_paper(papers)
    paper_params, paper_flops = _paper_counts().get(info.title, (float("nan"), float("nan")))
    return {
        "name": name,
        "parameters": count_parameters(ours),
        "paper_convention_params": convention_params,
        "paper_params": paper_params,
        "macs": count_macs(ours),
        "paper_convention_flops": convention_flops,
        "paper_flops": paper_flops,
        "checkpoint_size": len(save(ours.state_dict())),
        "receptive_field": receptive_field(influence_map(ours)),
    }


def complexity_table(names: Iterable[str] | None = None) -> pd.DataFrame:
    """Complexity of the named models (all by default), one row each.

    Counts are plain numbers (not millions), sizes bytes of a float32 safetensors file, and the
    receptive field pixels, measured before training (weights of seed 0). `parameters`, `macs` and
    the size are of a one-logit head, the two `paper_convention_` columns of the head that the paper
    counted. `paper_params` and `paper_flops` are Table 1's (the ST row's, Table 5's), NaN where it
    has none. EGE-UNet's `paper_params` is the one that the paper took in full: compare it with
    `parameters`. Raises ValueError for an unknown name.
    """
    names = tqdm(list(names or MODELS), "models", disable=None, leave=False)
    return pd.DataFrame([complexity(name) for name in names])


def _paper_counts() -> dict[str, tuple[float, float]]:
    """Parameters and FLOPs by the paper's name of the model; Table 1 has the last word."""
    tables = [
        pd.read_csv(PAPER / file) for file in ("table5_ablation.csv", "table1_complexity.csv")
    ]
    rows = pd.concat(tables).itertuples()
    return {row.model: (row.params_m * 1e6, row.flops_g * 1e9) for row in rows}
