"""One run from frames to files, and the ledger of all runs.

A run's folder is complete when ``scores.csv`` is there; the ledger is all complete folders of a
profile together. `engines` does many runs at once.
"""

import dataclasses
import hashlib
import io
import json
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch import nn
from tqdm.auto import tqdm

from ultraseg_lib import data, metrics
from ultraseg_lib.data import Frames
from ultraseg_lib.data.audit import near_duplicates_of
from ultraseg_lib.data.splits import (
    EXTERNAL,
    MIXED,
    add_split,
    committed_hash,
    keep_share,
    mixed_frames,
)
from ultraseg_lib.grid import (
    WHOLE_TEST_SETS,
    Profile,
    Run,
    datasets_there,
    load_profile,
    parse_run_id,
    plan_runs,
    teachers_of,
)
from ultraseg_lib.grid import plan_grids as plan_grids  # for notebooks, as the next
from ultraseg_lib.grid import profile_names as profile_names
from ultraseg_lib.paths import data_dir, outputs_dir, whole_file, write_json
from ultraseg_lib.provenance import now, provenance
from ultraseg_lib.training import Trainer, check_same_inputs, pick_device, predict_probs
from ultraseg_lib.variants import build_model, find_variant, network_hash

SCORE_COLUMNS = (
    "run_id", "test_set", "image_id", "center", "modality", "area", "n_polyps", "dice", "iou",
    "precision", "recall", "hd95", "hd95_mask", "detected",
)  # fmt: skip
COMMITS = "commits.json"  # of an unfinished run
INSTRUMENTS = "kvasir_instrument"  # the paper's control: instruments, no polyps
RELEASED_BATCH = 4  # the batch over which the released code pools Dice
ORDERS = 1000  # random orders of the images over which that Dice is averaged


# --- frames ---------------------------------------------------------------------------------------


def load_datasets(profile: Profile) -> tuple[dict[str, Frames], dict[str, str]]:
    """Return the frames of every dataset to look at, each once, and why each other is not here.

    A profile on generated images has its own; one on real images those that it trains on and all
    seven of the paper. Raises FileNotFoundError where none is here.
    """
    found, missing = {}, {}
    names = [each.partition("@")[0] for each in profile.datasets]
    if profile.generated is None:
        names = [*(name for name in names if name != "mixed"), *MIXED, INSTRUMENTS, *EXTERNAL]
    for name in dict.fromkeys(names):
        try:
            found[name] = load_frames_of(name, profile)
        except (FileNotFoundError, data.DataError) as error:
            missing[name] = str(error)
    if not found:
        raise FileNotFoundError("\n".join(missing.values()))
    return found, missing


def load_frames_of(dataset: str, profile: Profile) -> Frames:
    """Return the frames of one dataset at the profile's size, with their split.

    A selection (see `Run`) thins the training part or keeps one center. "mixed" joins the parts of
    all datasets of the mixed set that are there; images too close to a tested one are left out.
    Raises FileNotFoundError for a dataset that is not there, ValueError for a center or split that
    it does not have or generated images that the profile does not make, DataError for a bad file.
    """
    whole, share = data.split_share(dataset)
    name, _, selection = whole.partition("@")
    center = selection.startswith("center_")
    if name == "mixed":
        frames = _load_mixed(profile)
    elif name in data.GENERATED:
        if profile.generated is None:
            raise ValueError(f"datasets: profile {profile.name} has no generated images; use demo")
        frames = data.load_generated(name, profile.image_size, **profile.generated)
    else:
        scheme = "random" if center else selection or "random"
        frames = data.load_dataset(name, profile.image_size, scheme)
    if whole != dataset:
        return keep_share(frames, share / 100)
    return _keep_center(frames, dataset) if center else frames


def _keep_center(frames: Frames, dataset: str) -> Frames:
    center = dataset.partition("@")[2]
    own = frames.table["center"].isin([center, center.removeprefix("center_")]).to_numpy()
    if not own.any():
        found = ", ".join(sorted(set(frames.table["center"]) - {""}))
        told = f"the centers are {found}" if found else "this dataset tells no centers"
        raise ValueError(f"{dataset}: no image of this center; {told}")
    return frames.select(own)


def _load_mixed(profile: Profile) -> Frames:
    names = [name for name in (*MIXED, *EXTERNAL) if name in datasets_there()]
    if not set(names) & set(MIXED):
        raise FileNotFoundError(f"mixed: none of {', '.join(MIXED)} is below {data_dir()}")
    frames = {name: load_frames_of(name, profile) for name in names}
    trained = mixed_frames(frames, near_duplicates_of(frames.values()))
    tests = [frames[name].part("test") for name in names if name in MIXED]
    return data.join_frames([trained, *tests])


def training_parts(frames: Frames, protocol: str) -> tuple[Frames, Frames]:
    """Return the frames to train on, and those on which the epoch is picked.

    Raises ValueError where either holds none, as in a set of a handful of images.
    """
    released = protocol == "released"
    if not len(frames):
        raise ValueError("a share of the training images leaves none; add images, or take them all")
    parts = set(frames.table["part"])
    for part in ("train", "test" if released else "val"):
        if part not in parts:
            raise ValueError(
                f"{frames.table['dataset'].iloc[0]}: of {len(frames)} images none falls to its part"
                f" {part!r}; add images (a video that is told stays in one part)"
                + (", or give --protocol released" if part == "val" and "test" in parts else "")
            )
    if released:
        return frames.part("train", "val"), frames.part("test")
    return frames.part("train"), frames.part("val")


def has_own_test_part(dataset: str) -> bool:
    """Return whether models of a training set are tested on a part of the same name."""
    return dataset != "mixed" and data.split_share(dataset)[0] == dataset


def _broken() -> set[str]:
    """Return the real datasets with a fault, on which nothing is tested; each is told."""
    found = data.look_for_datasets(data_dir()) if data_dir().is_dir() else {}
    broken = {name: each.problems[0] for name, each in found.items() if each.problems}
    for name, problem in broken.items():
        warnings.warn(f"{name}: nothing is tested on it: {problem}", stacklevel=2)
    return set(broken)


def test_sets_of(run: Run, profile: Profile) -> list[str]:
    """Return the names of the test sets of a run: its own, then the profile's that are there.

    A split or center of a dataset is not tested on the rest of that dataset, nor a dataset on one
    that shares images with it (see the catalog): these may hold frames that it was trained on. The
    mixed set has the test parts of its datasets.
    """
    name = run.dataset.partition("@")[0]
    there = datasets_there() - _broken() | set(data.GENERATED if profile.generated else ())
    known = {name, *data.catalog().get(name, {}).get("overlaps", ())}
    others = [each for each in profile.tested if each in there - known]
    if name == "mixed":
        return others
    whole, _ = data.split_share(run.dataset)
    return [run.dataset if name in WHOLE_TEST_SETS else whole, *others]


def test_frames(test_set: str, profile: Profile) -> Frames:
    """Return the frames of a test set, in the order of ``scores.csv`` and of `read_probs`.

    Raises what `load_frames_of` raises.
    """
    frames = load_frames_of(test_set, profile)
    return frames if test_set in WHOLE_TEST_SETS else frames.part("test")


@dataclass(frozen=True)
class RunData:
    """All that a run needs of its datasets: frames to train on, to pick the epoch, to test.

    ``split_hash``: of these frames. ``split`` and ``content``: of the datasets they come from, see
    `inputs_of`; a worker without these datasets cannot ask.
    """

    train: Frames
    val: Frames
    tests: dict[str, Frames]
    split_hash: str
    split: Any
    content: dict[str, str]


def load_run_data(run: Run, profile: Profile) -> RunData:
    """Load the frames of one run; raises what `load_frames_of` and `training_parts` raise.

    Raises ValueError too where there is nothing to test it on.
    """
    frames = load_frames_of(run.dataset, profile)
    parts = training_parts(frames, run.protocol)
    tests = {name: test_frames(name, profile) for name in test_sets_of(run, profile)}
    empty = ", ".join(name for name, each in tests.items() if not len(each))
    if empty or not tests:
        raise ValueError(
            f"{run.run_id}: no test image{f' in {empty}' if empty else ''}; add images, or a dataset"
            f" that profile {profile.name} tests on: {', '.join(profile.tested)}"
        )
    keys = frames.table["dataset"] + "/" + frames.table["image_id"]
    keys = keys if run.dataset.partition("@")[0] == "mixed" else frames.table["image_id"]
    split = data.split_hash(pd.Series(frames.table["part"].to_numpy(), keys))
    return RunData(*parts, tests, split, split_of(run.dataset), content_of(run.dataset))


# --- one run --------------------------------------------------------------------------------------


def split_of(dataset: str) -> Any:
    """Return the hash of a dataset's split; for the mixed set one a dataset, None for the absent.

    A selection that is no split is drawn from the split "random". None too for generated images.
    """
    name, _, selection = dataset.partition("@")
    if name == "mixed":
        there = datasets_there()
        return {each: split_of(each) if each in there else None for each in MIXED}
    committed = committed_hash(name, selection or "random") or committed_hash(name)
    if committed or name not in datasets_there():
        return committed
    drawn = add_split(data.look_for_datasets(data_dir())[name].table, name)
    return data.split_hash(drawn.set_index("image_id")["part"])


def content_of(dataset: str) -> dict[str, str]:
    """Return the hash of the files of each dataset of a training set that is here, by its name.

    Names of files alone would not tell corrected masks, or another hospital's frame_001.
    """
    name = dataset.partition("@")[0]
    there = datasets_there() & set(MIXED if name == "mixed" else {name})
    found = data.look_for_datasets(data_dir()) if there else {}
    return {each: data.content_hash(found[each].table) for each in sorted(there)}


def inputs_of(run: Run, profile: Profile) -> dict[str, Any]:
    """Return what a run is made from: images, split, recipe. Stands in ``config.json`` and checkpoints."""
    name = run.dataset.partition("@")[0]
    generated = profile.generated if name in data.GENERATED else None
    made_by = {"generator": data.generator_version()} if generated else {}
    inputs = {
        "images": {"size": profile.image_size, **(generated or {}), **made_by},
        "content": content_of(name),
        "split": split_of(run.dataset),
        "recipe": dataclasses.asdict(run.training_recipe),
        "variant": dict(find_variant(run.model)[1].model),
        "network": network_hash(run.model),
    }
    teachers = [teacher.run_id for teacher in teachers_of(run, profile)]
    return inputs | ({"teacher": teachers[0]} if teachers else {})


def read_config(run: Run) -> dict[str, Any]:
    """Return the ``config.json`` of a complete run."""
    with _named(run.folder / "config.json") as path:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("holds no settings")
        return config


@contextmanager
def _named(path: Path, way_out: str = "remove its folder to do the run anew") -> Iterator[Path]:
    """Say which file of a run is missing or broken, and what to do."""
    try:
        yield path
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {way_out}") from error


def read_scores(run: Run) -> pd.DataFrame:
    """Return the ``scores.csv`` of a complete run; names stay text, also where they look like numbers."""
    return _read_scores(run.folder)


def _read_scores(folder: Path) -> pd.DataFrame:
    text = dict.fromkeys(("run_id", "test_set", "image_id", "center", "modality"), str)
    with _named(folder / "scores.csv") as path:
        written = path.read_text(encoding="utf-8")
        if not written.endswith("\n"):
            raise ValueError("cut off before its end")
        return pd.read_csv(io.StringIO(written), dtype=text, keep_default_na=False)


def check_complete(run: Run, profile: Profile) -> None:
    """Raise ValueError if a complete run was made from other inputs than the profile asks for.

    A dataset that is not there now is not compared: results are shown without it. Those of the
    record are shown beside other copies of a dataset, too, as PNG for TIFF.
    """
    wanted = inputs_of(run, profile)
    if profile.name == "reference":
        del wanted["content"]
    split = wanted.pop("split")
    if isinstance(split, dict):
        wanted["split"] = {name: each for name, each in split.items() if each}
    elif split:
        wanted["split"] = split
    check_same_inputs(read_config(run).get("inputs", {}), wanted, run.folder)


def missing_tests(run: Run, wanted: Iterable[str]) -> list[str]:
    """Return those test sets on which a complete run is not scored yet."""
    scored = set(read_scores(run)["test_set"])
    return [name for name in wanted if name not in scored]


@contextmanager
def only_here(run: Run, wait: bool = False) -> Iterator[None]:
    """Hold a run, so that no other process does or removes it.

    Where one does: ``wait`` for it, or raise ValueError.
    """
    lock = FileLock(run.folder.with_name(f".{run.run_id}.lock"))  # stays when the folder goes
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise ValueError(
                f"{run.folder}: another process is doing this run; wait for it"
            ) from None
        print(f"another process is doing {run.run_id}: waiting for it", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def forget(runs: Iterable[Run], profile: Profile) -> None:
    """Remove the results of these runs, so that they are done anew, if their data is there.

    Raises ValueError, and removes none, where another process is doing one.
    """
    for dataset in {run.dataset for run in runs}:
        load_frames_of(dataset, profile)  # raises before anything is lost
    with ExitStack() as held:
        for run in runs:
            held.enter_context(only_here(run))
        for run in runs:
            if run.folder.exists():
                shutil.rmtree(run.folder)


def run_once(
    run: Run,
    profile: Profile,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    frames: RunData | None = None,
    wait: bool = False,
) -> pd.DataFrame:
    """Train and score what a run lacks, read the rest; return its scores.

    ``frames``: those of the run, where they are at hand. ``wait`` where another process is doing
    the run, or raise ValueError; also raised for a run that was made from other inputs.
    """
    if run.is_complete:
        check_complete(run, profile)
        if not missing_tests(run, frames.tests if frames else test_sets_of(run, profile)):
            return read_scores(run)
    with only_here(run, wait):
        _train_and_score(run, profile, frames or load_run_data(run, profile), on_epoch)
    return read_scores(run)


def _train_and_score(
    run: Run,
    profile: Profile,
    frames: RunData,
    on_epoch: Callable[[dict[str, float]], None] | None,
) -> None:
    if run.is_complete:
        config, todo = read_config(run), missing_tests(run, frames.tests)
        trained = {"frames": config["split_hash"]}
        check_same_inputs(trained, {"frames": frames.split_hash}, run.folder)
        if not todo:  # another process did it while this one waited
            return
    else:
        config, todo = _train(run, profile, frames, on_epoch), list(frames.tests)
    _score(run, {name: frames.tests[name] for name in todo}, config)
    for finished in (
        run.folder / "checkpoint.pt",
        run.folder / COMMITS,
        *run.folder.glob(".*.tmp.*"),
    ):
        finished.unlink(missing_ok=True)  # the last: of a process that was killed while it wrote


def _train(
    run: Run,
    profile: Profile,
    frames: RunData,
    on_epoch: Callable[[dict[str, float]], None] | None,
) -> dict[str, Any]:
    """Train a run to its end; return what ``config.json`` says of it."""
    made_by = provenance()  # of the code that trains: the working tree may change meanwhile
    commits = _note_commit(run, made_by["commit"])
    teachers = [load_trained(teacher) for teacher in teachers_of(run, profile)]
    torch.manual_seed(run.seed)
    inputs = inputs_of(run, profile) | {"split": frames.split, "content": frames.content}
    trainer = Trainer(
        build_model(run.model), frames.train, frames.val, run.training_recipe, run.epochs,
        run.seed, run.folder, inputs | {"frames": frames.split_hash}, *teachers,
    )  # fmt: skip
    trainer.fit(on_epoch)
    return dataclasses.asdict(run) | {
        "run_id": run.run_id,
        "inputs": inputs,
        "split_hash": frames.split_hash,
        "images": {"train": len(frames.train), "val": len(frames.val)},
        "best_epoch": trainer.best_epoch,
        "minutes": round(sum(row["seconds"] for row in trainer.history) / 60, 2),
        "batch_dice": {},
        "provenance": made_by | {"commits": commits, "finished": now()},
    }


def _note_commit(run: Run, commit: str | None) -> dict[str, str | None]:
    """Note which commit trains from which epoch on; return all that did so far."""
    path, commits = run.folder / COMMITS, {}
    if path.exists():
        with _named(path, "remove this file alone: the run goes on, its first commits unknown"):
            commits = json.loads(path.read_text(encoding="utf-8"))
    if commit not in list(commits.values())[-1:]:
        commits[str(epochs_done(run) + 1)] = commit
        write_json(path, commits)
    return commits


def trained_weights(run: Run) -> Path:
    """Return the weights file of a run; raise FileNotFoundError where it is not finished or they are gone."""
    if not run.is_complete:
        raise FileNotFoundError(f"{run.run_id} is not finished; train it first")
    return _weights_of(run)


def _weights_of(run: Run) -> Path:
    weights = run.folder / "weights.safetensors"
    if not weights.exists():
        raise FileNotFoundError(f"{weights}: missing; remove the folder to train the run anew")
    return weights


def load_trained(run: Run) -> nn.Module:
    """Return the trained model of a run, on the GPU where there is one.

    Raises FileNotFoundError where the run is not finished.
    """
    return build_model(run.model, trained_weights(run)).to(pick_device()).eval()


def score_frames(run_id: str, test_set: str, frames: Frames, probs: np.ndarray) -> pd.DataFrame:
    """Score probability maps (N, H, W) uint8 against the masks: the rows of ``scores.csv``.

    Raises ValueError where the maps are not one for each frame, of its size.
    """
    columns = metrics.score_images(probs >= 128, frames.masks > 0)
    known = frames.table[["image_id", "center", "modality"]]
    scores = known.assign(run_id=run_id, test_set=test_set, **columns)
    return scores[list(SCORE_COLUMNS)]


def batch_dice(probs: np.ndarray, frames: Frames) -> dict[str, float]:
    """Return the released Dice (see `metrics.batch_pooled_dice`) of probability maps (N, H, W) uint8.

    ``any_order``: the mean over random orders of the frames, which all tables show; ``listed``: in
    the order of the list, which is by name.
    """
    found, masks = probs >= 128, frames.masks > 0
    return {
        name: metrics.batch_pooled_dice(found, masks, RELEASED_BATCH, orders)
        for name, orders in (("any_order", ORDERS), ("listed", 0))
    }


def _score(run: Run, tests: dict[str, Frames], config: dict[str, Any]) -> None:
    """Score the best epoch on more test sets and write the run's files, ``scores.csv`` last."""
    model = build_model(run.model, _weights_of(run)).to(pick_device())
    probs = {name: predict_probs(model, frames.images) for name, frames in tests.items()}
    scores = [score_frames(run.run_id, name, tests[name], probs[name]) for name in tests]
    for name, frames in tests.items():
        config.setdefault("batch_dice", {})[name] = batch_dice(probs[name], frames)
    earlier = run.folder / "probs.npz"
    if earlier.exists():
        with np.load(earlier) as kept:
            probs = dict(kept) | probs
    with whole_file(earlier) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **probs)
    write_json(run.folder / "config.json", config)
    table = pd.concat([*([read_scores(run)] if run.is_complete else []), *scores])
    with whole_file(run.folder / "scores.csv") as temporary:
        table.to_csv(temporary, index=False)


def epochs_done(run: Run) -> int:
    """Return how many epochs of a run are on disk, for progress and estimates."""
    return run.epochs if run.is_complete else len(read_history(run))


def read_history(run: Run) -> pd.DataFrame:
    """Return a run's ``history.csv``, for estimates: empty where it is not there or broken."""
    try:
        return pd.read_csv(run.folder / "history.csv")
    except (FileNotFoundError, ValueError):  # of a broken one the run itself will say so
        return pd.DataFrame()


def ensure_run(run: Run, profile: Profile) -> pd.DataFrame:
    """Return the scores of one run, training it here, with a progress bar, if the ledger lacks it.

    Waits where another notebook is training it. The run that teaches it comes first. Raises
    ValueError for a run that a frozen profile lacks.
    """
    if run.is_complete:
        return read_scores(run) if profile.frozen else run_once(run, profile, wait=True)
    if profile.frozen:
        raise ValueError(
            f"{run.run_id} is not in the record {profile.name}, which is shown, not trained; name a"
            " run that is, or choose lite or full"
        )
    for teacher in teachers_of(run, profile):
        ensure_run(teacher, profile)
    with tqdm(total=run.epochs, initial=epochs_done(run), unit="epoch", desc=run.run_id) as bar:
        return run_once(run, profile, on_epoch=lambda row: bar.update(), wait=True)


# --- the ledger -----------------------------------------------------------------------------------


def finished_runs(profile: str) -> list[Run]:
    """Return every complete run of a profile's ledger, by name, also those its grids do not plan."""
    runs = []
    for path in sorted((outputs_dir(profile) / "runs").glob("*/scores.csv")):
        folder = path.parent
        if folder.name.startswith("."):  # half-written
            continue
        try:
            runs.append(parse_run_id(profile, folder.name))
        except ValueError as error:
            warnings.warn(f"{folder}: passed over ({error}); move it out of runs/", stacklevel=2)
    return runs


def tell_missing(profile: Profile, grid: str = "main", most: int = 12) -> str:
    """Say which runs of a grid no finished run stands for, whatever its epochs; ``most`` by name."""
    done = {dataclasses.replace(run, epochs=1) for run in finished_runs(profile.name)}
    planned = plan_runs(profile, grid)
    missing = [run for run in planned if dataclasses.replace(run, epochs=1) not in done]
    if not planned:
        return f"profile {profile.name} plans no runs for grid {grid}"
    names = [f"  {run.run_id}" for run in missing[:most]]
    more = [f"  and {len(missing) - most} more"] if len(missing) > most else []
    return "\n".join([f"{len(missing)} of {len(planned)} planned runs are missing", *names, *more])


def pick_run(profile: Profile, model: str) -> Run:
    """Return a run of ``model`` to show: a finished one, a planned one first.

    Only runs with a test part of their own: the mixed set and shares of a set have none. The demo
    plans one where none is finished (a minute to train); other profiles show another finished model
    instead, a plain one, no variant. Raises ValueError for an unknown model, and where no such run
    is finished.
    """
    find_variant(model)
    planned = [run for run in plan_runs(profile) if has_own_test_part(run.dataset)]
    finished = [run for run in finished_runs(profile.name) if has_own_test_part(run.dataset)]
    ours, same = ([run for run in runs if run.model == model] for runs in (planned, finished))
    soon = ours if profile.name == "demo" else []
    others = [run for run in planned if run in finished], finished
    plain = (run for runs in others for run in runs if "+" not in run.model)
    for run in [*(run for run in ours if run in same), *same, *soon, *plain]:
        return run
    raise ValueError(
        "no finished run on a dataset with a test part of its own (the mixed set and shares have"
        f" none); do ./run_all.sh --profile {profile.name} first"
    )


def read_probs(run: Run, test_set: str, profile: Profile | None = None) -> np.ndarray:
    """Return the probability maps (N, S, S) uint8 of a finished run, rows as in its scores.

    The committed record keeps no maps: there they are made from its weights and the images that are
    here, once. Raises FileNotFoundError for a run or dataset that is not there.
    """
    kept = run.folder / "probs.npz"
    if kept.exists():
        with np.load(kept) as maps:
            if test_set in maps:
                return maps[test_set]
    images = test_frames(test_set, profile or load_profile(run.profile)).images
    made_by = hashlib.sha256(trained_weights(run).read_bytes())
    made_by.update(np.ascontiguousarray(images))
    name = f"probs-{run.profile}-{run.run_id}-{test_set}-{made_by.hexdigest()[:12]}.npy"
    cache = outputs_dir("cache") / name
    if not cache.exists():
        probs = predict_probs(load_trained(run), images)
        with whole_file(cache) as temporary:
            np.save(temporary, probs)
    return np.load(cache)


def read_ledger(profile: str) -> pd.DataFrame:
    """Return every image's scores of every complete run, with the run's settings as columns.

    Columns: those of ``scores.csv``, then model, dataset, recipe, protocol, epochs, seed,
    batch_pooled_dice (of the row's test set, in any order: see `batch_dice`; NaN for a run that was
    scored before there was such a number). Empty, with these columns, where no run is done.
    """
    keys = ["model", "dataset", "recipe", "protocol", "epochs", "seed"]
    tables = []
    for run in finished_runs(profile):
        config, table = read_config(run), read_scores(run)
        pooled = table["test_set"].map(
            {k: d["any_order"] for k, d in config.get("batch_dice", {}).items()}
        )
        tables.append(table.assign(**{k: config[k] for k in keys}, batch_pooled_dice=pooled))
    if not tables:
        return pd.DataFrame(columns=[*SCORE_COLUMNS, *keys, "batch_pooled_dice"])
    return pd.concat(tables, ignore_index=True)


# How far the mean Dice of a repeat may be: on its own test part, and on other datasets.
BAND, BAND_ELSEWHERE = 0.02, 0.04


def compare_with_record(folder: Path) -> pd.DataFrame:
    """Compare a run that was done again with the committed run of its name: a row a test set.

    ``folder``: of the repeat, named by its run_id. Columns: test_set, images, committed and again
    (mean Dice per image), difference, within (the band). Raises FileNotFoundError where the record
    has no such run, ValueError where the two share no test set or were scored on other images.
    """
    committed = parse_run_id("reference", folder.name)
    trained_on, _ = data.split_share(committed.dataset)  # a share is tested as the whole set is
    own = MIXED if trained_on == "mixed" else (trained_on,)
    first, again = _read_scores(committed.folder), _read_scores(folder)
    shared = set(first["test_set"]) & set(again["test_set"])
    if not shared:
        raise ValueError(
            f"{folder}: no test set in common with the committed run; add its datasets"
        )
    first, again = (each[each["test_set"].isin(shared)] for each in (first, again))
    both = first.merge(again, on=["test_set", "image_id"], validate="1:1")
    if not len(both) == len(first) == len(again):
        raise ValueError(f"{folder}: scored on other images than the committed run: not compared")
    rows = []
    for test_set, dice in both.groupby("test_set", sort=False)[["dice_x", "dice_y"]]:
        before, now = dice.mean()
        within = abs(now - before) <= (BAND if test_set in own else BAND_ELSEWHERE)
        rows.append((test_set, len(dice), before, now, now - before, within))
    columns = ["test_set", "images", "committed", "again", "difference", "within"]
    return pd.DataFrame(rows, columns=columns)
