"""The study: a grid of runs, each trained once and scored image by image into the ledger.

A run is model × training set × recipe × protocol × epochs × seed within a profile. Its folder is
complete when ``scores.csv`` is there; the ledger is all complete folders of a profile together.
"""

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch
import yaml
from tqdm.auto import tqdm

from ultraseg_lib import data, metrics
from ultraseg_lib.data import Frames
from ultraseg_lib.data.splits import committed_hash
from ultraseg_lib.models import create_model, model_names
from ultraseg_lib.paths import PROFILES, SPLITS, outputs_dir, whole_file, write_json
from ultraseg_lib.provenance import now, provenance
from ultraseg_lib.training import RECIPES, Trainer, predict_probs

PROTOCOLS = {
    "clean": "the epoch is picked on a tenth of the training part, the test part is seen once",
    "released": "trains on all of the training part, the epoch is picked on the test part",
}
SCORE_COLUMNS = (
    "run_id", "test_set", "image_id", "center", "modality", "area", "n_polyps", "dice", "iou",
    "precision", "recall", "hd95", "hd95_mask", "detected",
)  # fmt: skip
RELEASED_BATCH = 4  # the batch over which the released code pools Dice


@dataclass(frozen=True)
class Profile:
    """One size of the study: ``profiles/<name>.yaml``."""

    name: str
    image_size: int
    datasets: tuple[str, ...]
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    recipes: tuple[str, ...]
    protocols: tuple[str, ...]
    epochs: int
    generated: dict[str, int] | None = None


@dataclass(frozen=True)
class Run:
    """One training run; ``run_id`` names it and its folder.

    ``dataset`` may name a committed split too, as in ``cvc_clinicdb@sequence``. Raises ValueError, with
    the valid names, for an unknown model, dataset, recipe or protocol.
    """

    profile: str
    model: str
    dataset: str
    recipe: str
    protocol: str
    epochs: int
    seed: int

    def __post_init__(self) -> None:
        _check_choice("model", [self.model], model_names())
        _check_datasets([self.dataset])
        _check_choice("recipe", [self.recipe], RECIPES)
        _check_choice("protocol", [self.protocol], PROTOCOLS)

    @property
    def run_id(self) -> str:
        """Return the readable name, unique within a profile."""
        setting = f"{self.recipe}-{self.protocol}-e{self.epochs}-s{self.seed}"
        return f"{self.model}-{self.dataset}-{setting}"

    @property
    def folder(self) -> Path:
        """Return where the run keeps its files."""
        return outputs_dir(self.profile) / "runs" / self.run_id

    @property
    def is_complete(self) -> bool:
        """Return whether the run is trained and scored."""
        return (self.folder / "scores.csv").exists()


def profile_names() -> list[str]:
    """Return the names of all profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def _check_choice(argument: str, values: Iterable[str], valid: Iterable[str]) -> None:
    for value in values:
        if value not in valid:
            raise ValueError(f"{argument}: unknown {value!r}; choose from {', '.join(valid)}")


def _check_datasets(names: Iterable[str]) -> None:
    for name in names:
        dataset, _, scheme = name.partition("@")
        _check_choice("dataset", [dataset], data.catalog())
        if scheme:
            found = sorted(p.stem.removeprefix(f"{dataset}-") for p in SPLITS.glob(f"{dataset}-*"))
            _check_choice(f"split of {dataset}", [scheme], found)


def load_profile(name: str, **overrides: Any) -> Profile:
    """Read a profile; overrides that are not None take the place of its values.

    Raises ValueError, with the valid names, for an unknown profile, model, dataset, recipe or protocol.
    """
    _check_choice("profile", [name], profile_names())
    values = yaml.safe_load((PROFILES / f"{name}.yaml").read_text(encoding="utf-8"))
    values |= {key: value for key, value in overrides.items() if value is not None}
    lists = {k: tuple(dict.fromkeys(v)) for k, v in values.items() if isinstance(v, list | tuple)}
    profile = Profile(name=name, **(values | lists))
    for argument, chosen in lists.items():
        if not chosen:
            raise ValueError(f"{argument}: found none; name one or more")
    _check_choice("models", profile.models, model_names())
    _check_datasets(profile.datasets)
    _check_choice("recipe", profile.recipes, RECIPES)
    _check_choice("protocol", profile.protocols, PROTOCOLS)
    if profile.epochs < 1:
        raise ValueError(f"epochs: found {profile.epochs}; give 1 or more")
    return profile


def plan_runs(profile: Profile) -> list[Run]:
    """Return the runs of the main grid, seeds innermost, so that a stopped study has whole rows."""
    grid = product(
        profile.recipes, profile.protocols, profile.datasets, profile.models, profile.seeds
    )
    return [
        Run(profile.name, model, dataset, recipe, protocol, profile.epochs, seed)
        for recipe, protocol, dataset, model, seed in grid
    ]


def load_frames_of(dataset: str, profile: Profile) -> Frames:
    """Return the frames of one dataset at the profile's size, with their split."""
    if dataset == "synthetic":
        if profile.generated is None:
            raise ValueError(f"datasets: profile {profile.name} has no generated images; use demo")
        return data.load_generated(profile.image_size, **profile.generated)
    name, _, scheme = dataset.partition("@")
    return data.load_dataset(name, profile.image_size, scheme or "random")


def training_parts(frames: Frames, protocol: str) -> tuple[Frames, Frames]:
    """Return the frames to train on, and those on which the epoch is picked."""
    if protocol == "released":
        return frames.part("train", "val"), frames.part("test")
    return frames.part("train"), frames.part("val")


def score_frames(run_id: str, test_set: str, frames: Frames, probs: np.ndarray) -> pd.DataFrame:
    """Score probability maps (N, H, W) uint8 against the masks: the rows of ``scores.csv``."""
    columns = metrics.score_images(probs >= 128, frames.masks > 0)
    known = frames.table[["image_id", "center", "modality"]]
    scores = known.assign(run_id=run_id, test_set=test_set, **columns)
    return scores[list(SCORE_COLUMNS)]


def _inputs(run: Run, profile: Profile) -> dict[str, Any]:
    """Return what a run is made from: images, split, recipe. Stands in ``config.json`` and checkpoints."""
    generated = profile.generated if run.dataset == "synthetic" else None
    made_by = {"generator": data.generator_version()} if generated else {}
    name, _, scheme = run.dataset.partition("@")
    return {
        "images": {"size": profile.image_size, **(generated or {}), **made_by},
        "split": committed_hash(name, scheme or "random"),
        "recipe": dataclasses.asdict(RECIPES[run.recipe]),
    }


def read_config(run: Run) -> dict[str, Any]:
    """Return the ``config.json`` of a complete run."""
    return json.loads((run.folder / "config.json").read_text(encoding="utf-8"))


def read_scores(run: Run) -> pd.DataFrame:
    """Return the ``scores.csv`` of a complete run; names stay text, also where they look like numbers."""
    text = dict.fromkeys(("run_id", "test_set", "image_id", "center", "modality"), str)
    return pd.read_csv(run.folder / "scores.csv", dtype=text, keep_default_na=False)


def _check_inputs(run: Run, profile: Profile) -> None:
    """Raise ValueError if a complete run was made from other inputs than the profile asks for."""
    found, wanted = read_config(run).get("inputs"), _inputs(run, profile)
    if found != wanted:
        raise ValueError(
            f"{run.folder}: made from {found}, the profile now asks for {wanted};"
            " remove the folder, or give --force"
        )


def run_once(
    run: Run, profile: Profile, on_epoch: Callable[[dict[str, float]], None] | None = None
) -> pd.DataFrame:
    """Train and score one run, or read its scores if it is complete; return its scores."""
    if run.is_complete:
        _check_inputs(run, profile)
        return read_scores(run)
    frames = load_frames_of(run.dataset, profile)
    train, val = training_parts(frames, run.protocol)
    run.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.seed)
    made_by = provenance()  # of the code that trains: the working tree may change meanwhile
    model = create_model(run.model)
    trainer = Trainer(
        model, train, val, RECIPES[run.recipe], run.epochs, run.seed, run.folder,
        inputs=_inputs(run, profile),
    )  # fmt: skip
    trainer.fit(on_epoch)
    return _finish(run, frames, trainer, made_by)


def _finish(run: Run, frames: Frames, trainer: Trainer, made_by: dict[str, Any]) -> pd.DataFrame:
    """Score the best epoch on the test part and write the run's files, ``scores.csv`` last."""
    test = frames.part("test")
    model = create_model(run.model, weights=run.folder / "weights.safetensors")
    probs = predict_probs(model, test.images)
    scores = score_frames(run.run_id, run.dataset, test, probs)
    with whole_file(run.folder / "probs.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **{run.dataset: probs})
    pooled = metrics.batch_pooled_dice(probs >= 128, test.masks > 0, RELEASED_BATCH)
    seconds = sum(row["seconds"] for row in trainer.history)
    config = dataclasses.asdict(run) | {
        "run_id": run.run_id,
        "inputs": trainer.inputs,
        "split_hash": data.split_hash(frames.table.set_index("image_id")["part"]),
        "best_epoch": trainer.best_epoch,
        "minutes": round(seconds / 60, 2),
        "batch_pooled_dice": {run.dataset: pooled},
        "provenance": made_by | {"finished": now()},
    }
    write_json(run.folder / "config.json", config)
    with whole_file(run.folder / "scores.csv") as temporary:
        scores.to_csv(temporary, index=False)
    for finished in (run.folder / "checkpoint.pt", *run.folder.glob(".*.tmp.*")):
        finished.unlink(missing_ok=True)  # the second: of a process that was killed while it wrote
    return scores


def _worker(run: Run, profile: Profile, threads: int) -> str | None:
    """Do one run in a process of its own; return the reason if it failed."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    parent = os.getppid()

    def stop_if_alone(_: dict[str, float]) -> None:
        if os.getppid() != parent:  # the study was killed: end with this epoch, which is saved
            raise SystemExit

    try:
        run_once(run, profile, on_epoch=stop_if_alone)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def epochs_done(run: Run) -> int:
    """Return how many epochs of a run are on disk, for progress and estimates."""
    if run.is_complete:
        return run.epochs
    path = run.folder / "history.csv"
    return len(pd.read_csv(path)) if path.exists() else 0


def _watch(futures: dict[Future, Run], total: int, done_before: int) -> dict[str, str]:
    """Show epochs finished over all runs until the last ends; return the failures by run_id."""
    failures: dict[str, str] = {}
    with tqdm(total=total, initial=done_before, unit="epoch", disable=None) as bar:
        waiting = dict(futures)
        while waiting:
            time.sleep(0.5)
            for future in [future for future in waiting if future.done()]:
                run = waiting.pop(future)
                reason = future.exception() or future.result()
                if reason:
                    failures[run.run_id] = str(reason)
            runs = futures.values()
            bar.n = sum(run.epochs if run.run_id in failures else epochs_done(run) for run in runs)
            bar.refresh()
    return failures


def run_study(profile: Profile, runs: list[Run], jobs: int | None = None) -> dict[str, str]:
    """Do every run that the ledger lacks, ``jobs`` at a time; return failures (run_id -> reason).

    Each process gets its share of the cores (all cores over ``jobs``). What was done is kept when the study is stopped.
    """
    for run in runs:
        if run.is_complete:
            _check_inputs(run, profile)
    todo = [run for run in runs if not run.is_complete]
    if not todo:
        return {}
    for dataset in {run.dataset for run in todo}:  # decode once, before the processes start
        load_frames_of(dataset, profile)
    cores = os.cpu_count() or 1
    jobs = jobs or min(cores, len(todo))
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_worker, run, profile, max(1, cores // jobs)): run for run in todo}
        started = sum(epochs_done(run) for run in todo)
        try:
            return _watch(futures, sum(run.epochs for run in todo), started)
        except KeyboardInterrupt:
            for process in active_children():  # else the runs that wait would begin now
                process.terminate()
            raise


def ensure_run(run: Run, profile: Profile) -> pd.DataFrame:
    """Return the scores of one run, training it here, with a progress bar, if the ledger lacks it."""
    if run.is_complete:
        return run_once(run, profile)
    with tqdm(total=run.epochs, initial=epochs_done(run), unit="epoch", desc=run.run_id) as bar:
        return run_once(run, profile, on_epoch=lambda row: bar.update())


def finished_runs(profile: str) -> list[Run]:
    """Return every complete run of a profile's ledger, by name, also those its grid does not plan."""
    fields = [field.name for field in dataclasses.fields(Run) if field.name != "profile"]
    folders = [path.parent for path in sorted((outputs_dir(profile) / "runs").glob("*/scores.csv"))]
    configs = [json.loads((each / "config.json").read_text(encoding="utf-8")) for each in folders]
    return [Run(profile, **{name: config[name] for name in fields}) for config in configs]


def pick_run(profile: Profile, model: str) -> Run:
    """Return a run of ``model`` to show: a finished one, the profile's own first.

    The demo plans one where none is finished (a minute to train); other profiles show another
    finished model instead. Raises ValueError where no run is finished.
    """
    planned = [run for run in plan_runs(profile) if run.model == model]
    finished = finished_runs(profile.name)
    same = [run for run in finished if run.model == model]
    soon = planned if profile.name == "demo" else []
    for run in [*(run for run in planned if run in same), *same, *soon, *finished]:
        return run
    raise ValueError(f"no finished run; do ./run_all.sh --profile {profile.name} first")


def read_ledger(profile: str) -> pd.DataFrame:
    """Return every image's scores of every complete run, with the run's settings as columns.

    Columns: those of ``scores.csv``, then model, dataset, recipe, protocol, epochs, seed,
    batch_pooled_dice (of the run's own test set). Empty, with these columns, where no run is done.
    """
    keys = ["model", "dataset", "recipe", "protocol", "epochs", "seed"]
    tables = []
    for run in finished_runs(profile):
        config, table = read_config(run), read_scores(run)
        pooled = table["test_set"].map(config["batch_pooled_dice"])
        tables.append(table.assign(**{k: config[k] for k in keys}, batch_pooled_dice=pooled))
    if not tables:
        return pd.DataFrame(columns=[*SCORE_COLUMNS, *keys, "batch_pooled_dice"])
    return pd.concat(tables, ignore_index=True)
