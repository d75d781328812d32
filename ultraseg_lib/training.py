"""One training run: fit, checkpoint after each epoch, resume, keep the best weights.

Three recipes: ``paper`` is section 4.1; ``strong`` is ours, the same model trained harder;
``multiscale`` is ``strong`` on images of three sizes. Everything random follows from the seed and
the epoch's number, so a resumed run equals an unbroken one, on as many threads.
"""

import math
import pickle
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ultraseg_lib.choices import check_choice
from ultraseg_lib.data.augmentation import AUGMENTATIONS
from ultraseg_lib.data.device import DeviceFrames
from ultraseg_lib.data.loading import Batch, Frames, ahead, to_tensor, training_batches
from ultraseg_lib.distillation import Distillation
from ultraseg_lib.edges import METHODS
from ultraseg_lib.losses import LOSS_FORMS, deep_supervision_loss
from ultraseg_lib.metrics import batch_pooled_dice, dice_score
from ultraseg_lib.models import Prediction
from ultraseg_lib.models.operators import use_fast_operators
from ultraseg_lib.paths import whole_file

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, whatever the model.

    ``schedule``: "cosine" falls from the learning rate to 0; "one_cycle" rises over the first tenth
    of the steps, then falls. ``patience``: epochs without a better Dice before stopping, None for
    never. ``clip``: largest gradient norm. ``average``: decay of the running mean of the weights
    that is scored (see ``running_mean``). ``picked_by``: the column of the history by which the
    epoch is picked and patience lost (see ``validation_dice``). From ``boundary_weight`` on: what a
    variant of a model changes (see ``variants``); ``edges`` makes the boundary targets, the two
    weights scale the two kinds of supervised maps in Eq. 5. Raises ValueError for an unknown name.
    """

    optimizer: str
    learning_rate: float
    weight_decay: float
    schedule: str
    augmentation: str
    loss_form: str
    batch_size: int = 4
    patience: int | None = None
    clip: float | None = None
    average: float | None = None
    picked_by: str = "val_dice"
    boundary_weight: float = 1.0
    region_weight: float = 1.0
    double_sigmoid: bool = False
    edges: str = "canny"
    distillation: str | None = None
    distillation_share: float = 0.0

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, ("cosine", "one_cycle"))
        check_choice("picked_by", self.picked_by, ("val_dice", "val_dice_per_batch"))
        check_choice("augmentation", self.augmentation, AUGMENTATIONS)
        check_choice("loss form", self.loss_form, LOSS_FORMS)
        check_choice("edges", self.edges, METHODS)


RECIPES = {
    # Section 4.1: Adam, 3e-4, batches of 4, patience 10; the cosine is the released code's.
    "paper": Recipe("adam", 3e-4, 0.0, "cosine", "paper", "released", patience=10),
    "strong": Recipe(
        "adamw", 2e-3, 1e-2, "one_cycle", "strong", "released", clip=1.0, average=0.995
    ),
}
RECIPES["multiscale"] = replace(RECIPES["strong"], augmentation="multiscale")
COMPILE_FROM = 5_000  # steps of a run on a GPU
PREDICTED = 8  # images at a time
WEIGHT_COLUMN = "weight:"  # then a name: one more column for each weight that is a single number


def pick_device() -> torch.device:
    """Return the GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision_for(device: torch.device) -> torch.dtype:
    """Return what the model computes in while it trains: bfloat16 on a GPU, float32 on a CPU."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def task_loss(prediction: Prediction, batch: Batch, recipe: Recipe) -> Tensor:
    """Return the loss of Eq. 5, a scalar, with the weights of the recipe."""
    terms = deep_supervision_loss(
        prediction, batch.mask, batch.boundary, recipe.loss_form, recipe.double_sigmoid
    )
    regions = (recipe.region_weight * term for term in terms.regions)
    boundaries = (recipe.boundary_weight * term for term in terms.boundaries)
    return sum((*regions, *boundaries), terms.main)


def _in_float32(prediction: Prediction) -> Prediction:
    """Return the prediction in float32: the loss is not computed in bfloat16."""
    maps = [tuple(each.float() for each in maps) for maps in prediction[1:3]]
    bottom = prediction.bottleneck
    return Prediction(prediction.logits.float(), *maps, None if bottom is None else bottom.float())


def batch_loss(
    model: nn.Module,
    batch: Batch,
    recipe: Recipe,
    distillation: Distillation | None = None,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """Return the loss of one batch, a scalar (Eq. 5, and 6 if asked); the model computes in ``precision``."""
    image = batch.image.contiguous(memory_format=torch.channels_last)
    with torch.autocast(image.device.type, precision, enabled=precision != torch.float32):
        prediction = model(image, deep_supervision=True)
    if not isinstance(prediction, Prediction):
        found = f"{type(model).__name__}: returned a {type(prediction).__name__}"
        raise ValueError(f"{found}; a model returns a Prediction, see docs/extend.md")
    prediction = _in_float32(prediction)
    loss = task_loss(prediction, batch, recipe)
    return loss if distillation is None else distillation(loss, prediction, image)


def loss_function(device: torch.device, steps: int) -> Callable[..., Tensor]:
    """Return `batch_loss`, compiled where that pays: on a GPU, for a run of many steps.

    Compiling takes a minute or two at the first step. Where it fails (no compiler), PyTorch warns
    and computes step by step. On a CPU it brought nothing: the time goes into convolutions.
    """
    if device.type != "cuda" or steps < COMPILE_FROM:
        return batch_loss
    torch._dynamo.reset()  # forget other models: it keeps eight graphs a process
    torch._dynamo.config.suppress_errors = True
    return torch.compile(batch_loss, dynamic=False)


def train_step(
    model: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    distillation: Distillation | None = None,
    precision: torch.dtype = torch.float32,
    loss_of: Callable[..., Tensor] = batch_loss,
) -> Tensor:
    """Make one gradient step on one batch and return its loss, a scalar."""
    loss = loss_of(model, batch, recipe, distillation, precision)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if recipe.clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    return loss.detach()  # not a float: that would wait for the GPU


def learned_scalars(model: nn.Module) -> dict[str, float]:
    """Return the weights that are single numbers (Eq. 1, Eq. 4, the EDB's residual), by history column."""
    scalars = (pair for pair in model.named_parameters() if pair[1].ndim == 0)
    return {f"{WEIGHT_COLUMN}{name}": scalar.item() for name, scalar in scalars}


@torch.inference_mode()
def predict_probs(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Return probability maps (N, H, W) uint8 (0 to 255 stands for 0 to 1) of images (N, H, W, 3).

    Rounding keeps the decision at 0.5: 128 and above is polyp. The model is left in evaluation
    mode. Raises ValueError for images that are not uint8.
    """
    model.eval()
    device = next(model.parameters()).device
    maps = np.empty(images.shape[:3], np.uint8)
    for start in range(0, len(images), PREDICTED):
        rows = slice(start, start + PREDICTED)
        prob = model(to_tensor(images[rows]).to(device)).logits[:, 0].sigmoid()
        maps[rows] = (prob * 256).clamp_(max=255).to(torch.uint8).cpu().numpy()
    return maps


def validation_dice(model: nn.Module, frames: Frames) -> dict[str, float]:
    """Return the Dice on ``frames`` (one at least) at threshold 0.5, in [0, 1], by history column.

    ``val_dice`` is the mean over images, ``val_dice_per_batch`` the released code's (see
    `metrics`).
    """
    found, masks = predict_probs(model, frames.images) >= 128, frames.masks > 0
    per_image = float(np.mean(dice_score(found, masks)))
    return {"val_dice": per_image, "val_dice_per_batch": batch_pooled_dice(found, masks)}


def _make_optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    kind = OPTIMIZERS[recipe.optimizer]
    return kind(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)


def _make_scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return a schedule that is stepped after every batch and ends after ``steps``."""
    if recipe.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    steps += steps == 10  # a rise over a tenth of 10 is over at step 0: PyTorch divides by that 0
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.1
    )


def running_mean(
    decay: float, done: Tensor
) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """Return an update of a running mean of the weights that soon forgets where training began.

    After n steps the mean keeps min(``decay``, (1 + n) / (10 + n)) of itself. With the full decay
    from the start, a run of a few hundred steps would be scored on a mean that still holds a fifth
    of its first weights. ``done``: the number of updates so far, on the CPU; PyTorch hands over a
    copy on the GPU, and to read that is to wait for it.
    """

    def update(mean: list[Tensor], current: list[Tensor], copied: Tensor) -> None:
        kept = min(decay, (1 + int(done)) / (10 + int(done)))
        get_ema_multi_avg_fn(kept)(mean, current, copied)

    return update


class Trainer:
    """A training run that can be stopped after any epoch and taken up again.

    Args:
        model: takes (B, 3, S, S) in [0, 1] and ``deep_supervision=True``, returns a Prediction.
        train, val: frames to learn from, and frames on which the epoch is picked.
        recipe: how to train.
        epochs: how many at most; the schedule is stretched over them.
        seed: of the order of images and of their augmentation.
        folder: gets ``checkpoint.pt`` and ``history.csv`` after every epoch, and
            ``weights.safetensors`` whenever the Dice on ``val`` is the best so far.
        inputs: what else the run is made from, in plain values; a checkpoint of other inputs, or of
            another recipe, seed or number of epochs, is refused.
        teacher: a trained model to learn from, where the recipe distils.

    On a GPU the frames stay on it as uint8, are augmented there, and the model computes in
    bfloat16, compiled in long runs. Raises ValueError where the recipe distils and there is no
    teacher, or the teacher's features cannot be learned from.
    """

    def __init__(
        self, model: nn.Module, train: Frames, val: Frames, recipe: Recipe, epochs: int,
        seed: int, folder: Path, inputs: dict[str, Any] | None = None,
        teacher: nn.Module | None = None,
    ) -> None:  # fmt: skip
        self.device = pick_device()
        self.model = model.to(self.device, memory_format=torch.channels_last)
        if self.device.type == "cpu":
            use_fast_operators(self.model)
        self.train_frames, self.val_frames = train, val
        self.recipe, self.epochs, self.seed, self.folder = recipe, epochs, seed, folder
        self.distillation = None
        if recipe.distillation is not None:
            if teacher is None:
                raise ValueError(
                    f"teacher: none given; distillation {recipe.distillation} needs it"
                )
            setting = (recipe.distillation, recipe.distillation_share)
            self.distillation = Distillation(teacher.to(self.device), self.model, *setting)
            self.distillation.to(self.device)
        learners = [each for each in (self.model, self.distillation) if each is not None]
        learned = [weight for each in learners for weight in each.parameters()]
        self.optimizer = _make_optimizer(learned, recipe)
        steps = epochs * -(-len(train) // recipe.batch_size)
        self.scheduler = _make_scheduler(self.optimizer, recipe, steps)
        self._loss_of = loss_function(self.device, steps)
        self.average = None
        if recipe.average is not None:
            self.average = AveragedModel(self.model, use_buffers=True)
            self.average.multi_avg_fn = running_mean(recipe.average, self.average.n_averaged)
        own = {"recipe": asdict(recipe), "epochs": epochs, "seed": seed}
        self.inputs = own | (inputs or {})
        self.history: list[dict[str, float]] = []
        self._on_device = DeviceFrames(train, self.device) if self.device.type == "cuda" else None

    @property
    def evaluated_model(self) -> nn.Module:
        """Return the model that is scored: the running mean of the weights where there is one."""
        return self.average.module if self.average is not None else self.model

    @property
    def best_epoch(self) -> int:
        """Return the number, from 1, of the first epoch with the highest Dice on ``val``."""
        scores = [row[self.recipe.picked_by] for row in self.history]
        return int(np.argmax(scores)) + 1

    def fit(self, on_epoch: Callable[[dict[str, float]], None] | None = None) -> None:
        """Train from the last finished epoch to the end; ``on_epoch`` gets each history row.

        Raises ValueError for a checkpoint of other inputs, FloatingPointError where the loss is not
        finite.
        """
        self._resume()
        while len(self.history) < self.epochs and not self._is_out_of_patience():
            row = self._run_epoch(len(self.history) + 1)
            self.history.append(row)
            self._save()
            if on_epoch is not None:
                on_epoch(row)

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the epoch's batches, made on the GPU where there is one."""
        setting = (self.recipe.batch_size, self.recipe.augmentation, self.seed, epoch)
        if self._on_device is not None:
            return self._on_device.training_batches(*setting, self.recipe.edges)
        return ahead(training_batches(self.train_frames, *setting, self.recipe.edges))

    def _run_epoch(self, epoch: int) -> dict[str, float]:
        began = time.perf_counter()
        torch.manual_seed(self.seed * 100_003 + epoch)
        losses = []
        self.model.train()
        setting = (self.optimizer, self.recipe, self.distillation, precision_for(self.device))
        for batch in self._batches(epoch):
            losses.append(train_step(self.model, batch, *setting, self._loss_of))
            self.scheduler.step()
            if self.average is not None:
                self.average.update_parameters(self.model)
        loss = float(torch.stack(losses).mean())
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"epoch {epoch}: the loss is not finite; lower the learning rate"
            )
        row = {
            "epoch": epoch,
            "learning_rate": self.scheduler.get_last_lr()[0],
            "train_loss": loss,
            **validation_dice(self.evaluated_model, self.val_frames),
            "seconds": time.perf_counter() - began,
        }
        return row | learned_scalars(self.evaluated_model)

    def _is_out_of_patience(self) -> bool:
        patience = math.inf if self.recipe.patience is None else self.recipe.patience
        return bool(self.history) and len(self.history) - self.best_epoch >= patience

    def _parts(self) -> dict[str, Any]:
        """Return everything that has a state to save and restore."""
        names = ("optimizer", "scheduler", "model", "distillation", "average")
        return {n: getattr(self, n) for n in names if getattr(self, n) is not None}

    def _save(self) -> None:
        if self.best_epoch == len(self.history):
            save_weights(self.evaluated_model, self.folder / "weights.safetensors")
        state = {name: part.state_dict() for name, part in self._parts().items()}
        with whole_file(self.folder / "checkpoint.pt") as temporary:
            torch.save(state | {"history": self.history, "inputs": self.inputs}, temporary)
        self._save_history()

    def _save_history(self) -> None:
        with whole_file(self.folder / "history.csv") as temporary:
            pd.DataFrame(self.history).to_csv(temporary, index=False)

    def _resume(self) -> None:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        try:
            state = torch.load(path, weights_only=True, map_location=pick_device())
            inputs, history = state["inputs"], state["history"]
        except (RuntimeError, EOFError, KeyError, TypeError, struct.error, pickle.UnpicklingError) as error:  # fmt: skip
            raise ValueError(f"{path}: broken; remove it to train the run anew") from error
        check_same_inputs(inputs, self.inputs, path)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.history = history
        self._save_history()  # it is a row short if the kill fell between the two files


def check_same_inputs(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """Raise ValueError where what a file was made from is not what the run is made from now.

    Only what both name is compared: an older version may not have named everything.
    """

    def differences(one: Any, other: Any, name: str = "") -> list[str]:
        if isinstance(one, dict) and isinstance(other, dict):
            shared = [key for key in one if key in other]
            return [d for key in shared for d in differences(one[key], other[key], f"{name} {key}")]
        return [] if one == other else [f"{name.strip()} {one}, the run now has {other}"]

    differing = differences(found, wanted)
    if differing:
        raise ValueError(
            f"{path}: made from {'; '.join(differing)}; remove the folder, or give --force"
        )


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the model's parameters and statistics as safetensors, in one step."""
    state: dict[str, Tensor] = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    # `save_file` would make a file that its owner alone can read
    with whole_file(path) as temporary:
        temporary.write_bytes(save(state))
