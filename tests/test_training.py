"""A killed run goes on from its last finished epoch and ends where an unbroken one ends."""

import contextlib
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.optim.swa_utils import AveragedModel

from ultraseg_lib import study, training
from ultraseg_lib.data.loading import Batch, to_batch
from ultraseg_lib.distillation import Distillation
from ultraseg_lib.losses import deep_supervision_loss
from ultraseg_lib.metrics import batch_pooled_dice
from ultraseg_lib.models import Prediction, create_model
from ultraseg_lib.report.figures import plot_history
from ultraseg_lib.training import (
    RECIPES,
    Trainer,
    predict_probs,
    running_mean,
    task_loss,
    train_step,
)
from ultraseg_lib.variants import VARIANTS, build_model

TINY = """
import os, signal, sys
from dataclasses import replace
import torch
from ultraseg_lib import study, training
torch.set_num_threads(1)
plan = replace(study.load_profile("demo", epochs=6), image_size=32, generated={"count": 40, "seed": 1})
run = study.Run("demo", sys.argv[1], "synthetic", "strong", "clean", 6, 0)
step = training.train_step

def last_step(*arguments):
    loss = step(*arguments)
    if study.epochs_done(run) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss

training.train_step = last_step
study.run_once(run, plan)
"""


def tiny_run(model: str = "ultraseg_108k", **changes) -> tuple[study.Run, study.Profile]:
    plan = replace(
        study.load_profile("demo", epochs=6), image_size=32, generated={"count": 40, "seed": 1}
    )
    run = study.Run("demo", model, "synthetic", "strong", "clean", 6, 0)
    return replace(run, **changes), plan


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_killed_run_resumes_and_equals_an_unbroken_one(tmp_path, monkeypatch):
    monkeypatch.setenv("ULTRASEG_OUTPUTS", str(tmp_path / "whole"))
    run, plan = tiny_run()
    whole = study.run_once(run, plan)
    whole_history = pd.read_csv(run.folder / "history.csv").drop(columns="seconds")

    monkeypatch.setenv("ULTRASEG_OUTPUTS", str(tmp_path / "broken"))
    killed = subprocess.run([sys.executable, "-c", TINY, run.model])  # in its third epoch
    assert killed.returncode == -signal.SIGKILL
    done = study.epochs_done(run)
    assert done == 2
    seen = []
    broken = study.run_once(run, plan, on_epoch=lambda row: seen.append(row["epoch"]))
    assert seen == list(range(done + 1, run.epochs + 1))  # nothing is trained twice
    pd.testing.assert_frame_equal(whole, broken)
    history = pd.read_csv(run.folder / "history.csv").drop(columns="seconds")
    pd.testing.assert_frame_equal(whole_history, history)
    assert list(study.read_config(run)["provenance"]["commits"]) == ["1"]


def test_a_run_resumed_by_another_commit_names_both(outputs, monkeypatch):
    run, plan = tiny_run()
    for commit, last in (("one", 2), ("two", 6)):
        monkeypatch.setattr(study, "provenance", lambda commit=commit: {"commit": commit})

        def stop(row, last=last):
            if row["epoch"] == last < run.epochs:
                sys.exit()

        with contextlib.suppress(SystemExit):
            study.run_once(run, plan, on_epoch=stop)
    assert study.read_config(run)["provenance"]["commits"] == {"1": "one", "3": "two"}
    assert not (run.folder / "commits.json").exists()


def test_a_complete_run_is_read_not_trained(outputs):
    run, plan = tiny_run(epochs=1)
    first = study.run_once(run, plan)
    again = study.run_once(run, plan, on_epoch=lambda row: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(first, again, check_dtype=False)
    assert not (run.folder / "checkpoint.pt").exists()


@pytest.mark.parametrize("word", ["optimizer", "schedule", "picked_by"])
def test_a_recipe_refuses_an_unknown_word(word):
    with pytest.raises(ValueError, match=f"{word}: unknown 'Cosine'; choose from"):
        replace(RECIPES["paper"], **{word: "Cosine"})


def test_a_folder_of_another_recipe_seed_or_length_is_not_gone_on_with(outputs):
    def fit(epochs=1, seed=0, **changed):
        recipe = replace(RECIPES["paper"], **changed)
        tiny_trainer(outputs / "run", recipe, epochs, seed).fit()

    fit()
    for other in ({"learning_rate": 1.0}, {"seed": 1}, {"epochs": 2}):
        with pytest.raises(ValueError, match=f"made from .*{next(iter(other))}"):
            fit(**other)
    fit()  # the same: done already


def copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def tiny_trainer(folder: Path, recipe: training.Recipe, epochs: int = 3, seed: int = 0) -> Trainer:
    _, plan = tiny_run()
    train, val = study.training_parts(study.load_frames_of("synthetic", plan), "clean")
    torch.manual_seed(0)
    return Trainer(create_model("unet_tiny"), train, val, recipe, epochs, seed, folder)


def test_every_step_is_made_in_training_mode_at_the_schedule_s_rate(outputs, monkeypatch):
    modes, step = [], training.train_step

    def noted(model, *rest):
        modes.append(model.training)
        return step(model, *rest)

    monkeypatch.setattr(training, "train_step", noted)
    trainer = tiny_trainer(outputs / "run", RECIPES["paper"])
    trainer.fit()
    assert modes == [True] * 3 * -(-len(trainer.train_frames) // 4)
    rates = [row["learning_rate"] for row in trainer.history]
    cosine = [3e-4 * (1 + np.cos(np.pi * epoch / 3)) / 2 for epoch in (1, 2, 3)]
    assert rates == pytest.approx(cosine, abs=1e-9)


def test_the_mean_of_the_weights_is_made_scored_and_kept(outputs, monkeypatch):
    scored, rising = [], iter([0.1, 0.2])

    def dice(model, _):
        scored.append(model)
        return dict.fromkeys(("val_dice", "val_dice_per_batch"), next(rising))

    monkeypatch.setattr(training, "validation_dice", dice)
    trainer = tiny_trainer(outputs / "run", RECIPES["strong"], epochs=2)
    first = copy_of(trainer.model)
    trainer.fit()
    assert trainer.average.n_averaged == 2 * -(-len(trainer.train_frames) // 4)
    assert all(model is trainer.average.module for model in scored)
    kept = load_file(outputs / "run" / "weights.safetensors")
    name = next(iter(dict(trainer.model.named_parameters())))
    assert torch.equal(kept[name], trainer.average.module.state_dict()[name])
    assert not torch.equal(kept[name], trainer.model.state_dict()[name])
    assert not torch.equal(kept[name], first[name])


def test_a_seed_draws_the_batches(outputs):
    one, again, other = (
        next(iter(tiny_trainer(outputs / "run", RECIPES["paper"], seed=seed)._batches(1))).image
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_recipe_paper_is_that_of_section_4_1():
    paper = RECIPES["paper"]
    assert (paper.optimizer, paper.learning_rate) == ("adam", 3e-4)
    assert (paper.batch_size, paper.patience) == (4, 10)
    assert (paper.clip, paper.average, paper.double_sigmoid) == (None, None, False)
    assert (paper.schedule, paper.augmentation, paper.loss_form) == ("cosine", "paper", "released")


@pytest.mark.parametrize(
    ("name", "kind", "rate", "decay"),
    [("paper", torch.optim.Adam, 3e-4, 0.0), ("strong", torch.optim.AdamW, 2e-3, 1e-2)],
)
def test_the_optimizer_is_the_recipe_s(name, kind, rate, decay):
    optimizer = training._make_optimizer([torch.nn.Parameter(torch.ones(1))], RECIPES[name])
    (group,) = optimizer.param_groups
    assert (type(optimizer), group["lr"], group["weight_decay"]) == (kind, rate, decay)


def test_steps_do_not_add_up_their_gradients():
    batch, recipe = tiny_batch(), RECIPES["paper"]
    torch.manual_seed(0)
    model = create_model("ultraseg_108k").eval()  # so that statistics do not move
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    train_step(model, batch, optimizer, recipe)
    loss = training.batch_loss(model, batch, recipe)
    weights = [each for each in model.parameters() if each.grad is not None]
    wanted = [
        w - 1e-3 * g for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True)
    ]
    train_step(model, batch, optimizer, recipe)
    for weight, value in zip(weights, wanted, strict=True):
        torch.testing.assert_close(weight, value)


@pytest.mark.parametrize("picked_by", ["val_dice", "val_dice_per_batch"])
def test_patience_stops_a_run_and_the_best_epoch_is_kept(outputs, monkeypatch, picked_by):
    scores = [0.5, 0.7, 0.6, 0.7, 0.6, 0.6]  # of equal ones the first counts
    rows = iter([{"val_dice": 0.5, "val_dice_per_batch": 0.5} | {picked_by: d} for d in scores])
    monkeypatch.setattr("ultraseg_lib.training.validation_dice", lambda *_: next(rows))
    recipe = replace(RECIPES["paper"], patience=3, picked_by=picked_by)
    trainer, states = tiny_trainer(outputs / "run", recipe, epochs=6), []
    trainer.fit(lambda _: states.append(copy_of(trainer.model)))
    assert len(trainer.history) == 5
    assert trainer.best_epoch == 2
    kept = load_file(outputs / "run" / "weights.safetensors")
    same = [all(torch.equal(kept[name], state[name]) for name in kept) for state in states]
    assert same == [False, True, False, False, False]


def test_the_history_tells_both_dices_of_the_epoch_that_is_kept(outputs):
    run, plan = tiny_run(epochs=2)
    run = replace(run, recipe="paper", protocol="released", model="ultraseg_108k+as_released")
    scores = study.run_once(run, plan)
    kept = pd.read_csv(run.folder / "history.csv").nlargest(1, "val_dice_per_batch").iloc[0]
    config = study.read_config(run)
    assert config["best_epoch"] == kept["epoch"]
    test = study.test_frames("synthetic", plan)
    found = study.read_probs(run, "synthetic", plan) >= 128
    listed = batch_pooled_dice(found, test.masks > 0)
    scored = config["batch_dice"]["synthetic"]
    assert scored["listed"] == listed == pytest.approx(kept["val_dice_per_batch"])
    shuffled = batch_pooled_dice(found, test.masks > 0, 4, study.ORDERS)
    assert scored["any_order"] == shuffled != listed
    assert set(study.read_ledger("demo").query("test_set == 'synthetic'")["batch_pooled_dice"]) == {
        shuffled
    }
    figure = plot_history(
        pd.read_csv(run.folder / "history.csv"), "val_dice_per_batch", config["best_epoch"], "t"
    )
    dot = figure.axes[1].lines[1]
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (kept["epoch"], kept["val_dice_per_batch"])
    own = scores[scores["test_set"] == "synthetic"]
    assert own["dice"].mean() == pytest.approx(kept["val_dice"], abs=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(outputs):
    run, plan = tiny_run()
    frames = study.load_frames_of("synthetic", plan)
    train, val = study.training_parts(frames, "clean")
    recipe = replace(RECIPES["paper"], learning_rate=1e30)
    trainer = Trainer(create_model("unet_tiny"), train, val, recipe, 6, 0, run.folder)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        trainer.fit()


def tiny_batch(method: str = "canny") -> Batch:
    images = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), np.uint8)
    masks = np.zeros((2, 64, 64), np.uint8)
    masks[:, 16:40, 20:50] = 255
    return to_batch(images, masks, method)


def predicted(batch: Batch) -> Prediction:
    torch.manual_seed(0)
    return create_model("ultraseg_130k")(batch.image, deep_supervision=True)


def test_the_loss_of_a_variant_is_what_its_name_says():
    batch, strong = tiny_batch(), RECIPES["strong"]
    maps = predicted(batch)
    terms, twice = (
        deep_supervision_loss(maps, batch.mask, batch.boundary, "released", double)
        for double in (False, True)
    )
    as_written = deep_supervision_loss(maps, batch.mask, batch.boundary, "paper_text")
    regions, boundaries = sum(terms.regions), sum(terms.boundaries)
    assert regions.item() != pytest.approx(boundaries.item(), rel=0.05)  # told apart below
    for name, wanted in (
        ("", terms.main + regions + boundaries),
        ("no_boundary_loss", terms.main + regions),
        ("no_region_loss", terms.main + boundaries),
        ("double_sigmoid", twice.total),
        ("paper_text_loss", as_written.total),
    ):
        recipe = replace(strong, **(VARIANTS[name].recipe if name else {}))
        assert task_loss(maps, batch, recipe).item() == pytest.approx(wanted.item())
    assert twice.total.item() != pytest.approx(terms.total.item(), rel=0.01)
    assert as_written.main.item() != pytest.approx(terms.main.item(), rel=0.1)


def test_a_distilled_term_is_the_distance_to_the_teacher():
    teacher, student = create_model("ultraseg_500k"), create_model("ultraseg_108k")
    ours, theirs = ({"logits": torch.randn(2, 1, 64, 64)} for _ in range(2))
    ours["bottleneck"] = torch.randn(2, *student.bottleneck.weight.shape[:1], 4, 4)
    features = Distillation(teacher, student, "features", 0.2)
    projected = features.projection(ours["bottleneck"])
    theirs["bottleneck"] = torch.randn_like(projected)
    one, other = Prediction(**ours), Prediction(**theirs)
    wanted = ((projected - theirs["bottleneck"]) ** 2).mean()
    torch.testing.assert_close(features._features(one, other), wanted)
    logits = Distillation(teacher, student, "logits", 0.2)
    soft, taught = (torch.sigmoid(each["logits"] / 2) for each in (ours, theirs))
    wanted = -(taught * soft.log() + (1 - taught) * (1 - soft).log()).mean()
    torch.testing.assert_close(logits._logits(one, other), wanted)


@pytest.mark.parametrize("name", ["kd20", "kd_logits"])
def test_a_teacher_adds_its_share_of_the_loss_and_reaches_the_student(name):
    batch, recipe = tiny_batch(), replace(RECIPES["strong"], **VARIANTS[name].recipe)
    torch.manual_seed(1)
    teacher, student = create_model("ultraseg_500k"), create_model("ultraseg_108k")
    term = Distillation(teacher, student, recipe.distillation, recipe.distillation_share)
    student.eval()  # so that both losses see the same numbers
    alone, taught = (training.batch_loss(student, batch, recipe, each) for each in (None, term))
    assert taught.item() == pytest.approx(1.2 * alone.item(), rel=1e-5)
    (taught - alone).backward()
    assert student.bottleneck.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in teacher.parameters())
    assert all(weight.grad.abs().sum() > 0 for weight in term.parameters())


def test_a_variant_takes_no_shipped_weights_of_the_plain_model():
    with pytest.raises(FileNotFoundError, match=r"weights of ultraseg_130k\+no_boundary_loss"):
        build_model("ultraseg_130k+no_boundary_loss", weights="mixed")


def test_a_long_gradient_is_cut_to_the_recipe_s_length():
    batch, moved = tiny_batch(), {}
    for clip in (None, 1e-3):
        torch.manual_seed(0)
        model = create_model("ultraseg_108k")
        before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        train_step(model, batch, optimizer, replace(RECIPES["strong"], clip=clip))
        after = torch.nn.utils.parameters_to_vector(model.parameters())
        moved[clip] = (after - before).norm().item()
    assert moved[1e-3] == pytest.approx(1e-3, rel=0.02)
    assert moved[None] > 0.1


def test_boundary_targets_follow_the_recipe(outputs):
    run, plan = tiny_run()
    train, val = study.training_parts(study.load_frames_of("synthetic", plan), "clean")
    first = []
    for edges in ("canny", "morphological"):
        recipe = replace(RECIPES["strong"], edges=edges)
        trainer = Trainer(create_model("unet_tiny"), train, val, recipe, 6, 0, run.folder)
        first.append(next(iter(trainer._batches(1))))
    canny, morphological = first
    assert torch.equal(canny.mask, morphological.mask)
    assert not torch.equal(canny.boundary, morphological.boundary)


def test_a_stopped_run_with_a_teacher_ends_where_an_unbroken_one_does(outputs):
    _, plan = tiny_run()
    train, val = study.training_parts(study.load_frames_of("synthetic", plan), "clean")
    recipe = replace(RECIPES["strong"], **VARIANTS["kd20"].recipe)

    def trainer(folder: str, epochs: int = 3) -> Trainer:
        torch.manual_seed(3)
        teacher, student = create_model("ultraseg_130k"), create_model("ultraseg_108k")
        return Trainer(student, train, val, recipe, epochs, 0, outputs / folder, teacher=teacher)

    def stop(row: dict) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    whole, broken = trainer("whole"), trainer("broken")
    whole.fit()
    with pytest.raises(KeyboardInterrupt):
        broken.fit(stop)
    resumed = trainer("broken")
    resumed.fit()
    for part in {"model", "distillation"} & set(whole._parts()):
        kept = resumed._parts()[part].state_dict()
        for name, weight in whole._parts()[part].state_dict().items():
            assert torch.equal(weight, kept[name]), name


def test_training_lowers_the_loss_on_one_batch(outputs):
    _, plan = tiny_run()
    frames = study.load_frames_of("synthetic", plan)
    batch = to_batch(frames.images[:4], frames.masks[:4])
    torch.manual_seed(0)
    model = create_model("ultraseg_130k")
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    losses = [train_step(model, batch, optimizer, RECIPES["strong"]) for _ in range(25)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
@pytest.mark.parametrize("steps", [1, 9, 10, 11, 200])
def test_a_run_of_any_length_has_a_schedule(steps, schedule):
    recipe = replace(RECIPES["strong"], schedule=schedule)
    optimizer = training._make_optimizer([torch.nn.Parameter(torch.ones(1))], recipe)
    scheduler = training._make_scheduler(optimizer, recipe, steps)
    rates = []
    for _ in range(steps):
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    assert all(0 < rate <= recipe.learning_rate * (1 + 1e-9) for rate in rates)
    if steps == 200:
        assert rates[-1] < 1e-3 * recipe.learning_rate
        assert np.argmax(rates) == (0 if schedule == "cosine" else steps // 10 - 1)


@pytest.mark.parametrize(("steps", "share"), [(300, 0.002), (3000, 1e-6)])
def test_running_mean_forgets_its_start_and_reaches_its_decay(steps, share):
    module = torch.nn.Linear(1, 1, bias=False)
    average = AveragedModel(module)
    average.multi_avg_fn = running_mean(0.995, average.n_averaged)
    for step in range(steps):
        module.weight.data.fill_(1.0 if step == 0 else 0.0)
        average.update_parameters(module)
    assert 0 <= float(average.module.weight) < share
    module.weight.data.fill_(1.0)
    average.update_parameters(module)
    slowest = max(0.005, 9 / (10 + steps))
    assert float(average.module.weight) == pytest.approx(slowest, rel=0.01)


def test_probability_maps_keep_the_decision_at_one_half():
    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.tensor([-1e-3, 0.0, 1e-3, 20.0]))

        def forward(self, image):
            from ultraseg_lib.models import Prediction

            return Prediction(self.logits.view(1, 1, 2, 2).expand(len(image), 1, 2, 2))

    maps = predict_probs(Fixed(), np.zeros((3, 2, 2, 3), np.uint8))
    assert (maps.reshape(3, 4) >= 128).tolist() == [[False, True, True, True]] * 3
    assert maps.max() == 255


@pytest.mark.parametrize("kind", [pytest.param(None, marks=pytest.mark.slow), "features"])
def test_loss_can_be_compiled_whole_and_stays_the_same(kind):
    """What a GPU compiles is traced here, by PyTorch's compiler without code generation."""
    torch.manual_seed(0)
    model = create_model("ultraseg_108k").to(memory_format=torch.channels_last)
    teach = None
    if kind:
        teach = Distillation(create_model("ultraseg_130k"), model, kind, 0.2)
    mask = torch.zeros(2, 1, 64, 64)
    mask[:, :, 20:40, 10:50] = 1
    batch = Batch(torch.rand(2, 3, 64, 64), mask, mask)
    traced = torch.compile(training.batch_loss, backend="aot_eager", dynamic=False, fullgraph=True)
    found = {}
    for name, loss_of in (("plain", training.batch_loss), ("traced", traced)):
        model.zero_grad()
        loss = loss_of(model, batch, RECIPES["strong"], teach)
        loss.backward()
        gradients = [each.grad.clone() for each in model.parameters() if each.grad is not None]
        found[name] = [loss.detach(), *gradients]
    for plain, compiled in zip(found["plain"], found["traced"], strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-3, atol=1e-4)


def test_only_long_runs_on_a_gpu_are_compiled(monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "suppress_errors", False)  # and back
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert training.loss_function(cpu, 10**6) is training.batch_loss
    assert training.loss_function(gpu, 100) is training.batch_loss
    assert training.loss_function(gpu, training.COMPILE_FROM) is not training.batch_loss


@pytest.mark.slow
def test_bfloat16_costs_little_dice(outputs, monkeypatch):
    """Train demo runs in float32 and as a GPU would, in bfloat16 by autocast, three seeds each."""
    monkeypatch.setattr(training, "use_fast_operators", lambda model: model)  # the CPU's own
    plan = study.load_profile("demo", models=["ultraseg_130k"], seeds=[0, 1, 2])
    dice = {}
    for precision in (torch.float32, torch.bfloat16):
        monkeypatch.setenv("ULTRASEG_OUTPUTS", str(outputs / str(precision)))
        monkeypatch.setattr(training, "precision_for", lambda _, chosen=precision: chosen)
        scores = pd.concat(study.run_once(run, plan) for run in study.plan_runs(plan))
        dice[precision] = scores.groupby("test_set")["dice"].mean()
    print(dice)
    assert (dice[torch.float32] > 0.3).all()
    assert (dice[torch.float32] - dice[torch.bfloat16]).max() < 0.04  # a seed is worth 0.03


def test_a_recipe_that_distils_needs_a_teacher(tmp_path):
    recipe = replace(RECIPES["strong"], distillation="logits")
    with pytest.raises(ValueError, match="teacher: none given"):
        Trainer(create_model("unet_tiny"), None, None, recipe, 1, 0, tmp_path)
