"""Trained weights on a dataset that is here: the study's scores, with intervals, and no training."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import nn
from tqdm import tqdm

from ultraseg_lib.data import Frames, catalog, dataset_title
from ultraseg_lib.paths import whole_folder, write_json
from ultraseg_lib.provenance import provenance
from ultraseg_lib.report.tables import LEVELS, READ, levels, shown
from ultraseg_lib.study import batch_dice, load_frames_of, load_profile, score_frames, split_of
from ultraseg_lib.training import pick_device, predict_probs
from ultraseg_lib.variants import build_model
from ultraseg_lib.weights import Training, trained_on, trained_size

ALL = "all images"
SUMMARY = ("of", "images", "dice dice_low dice_high", *LEVELS[1:], "false_alarms polyp_free")
HEADINGS = READ | {
    "of": ("of", "{}"),
    "false_alarms polyp_free": ("painted, of those without polyp", "{} of {}"),
}
WRITTEN = {"scores.csv", "summary.csv", "config.json"}
PORTION = 64  # images between two steps of the progress bar


class Evaluation(NamedTuple):
    """Scores of each image (columns as ``scores.csv``), their summary, and which images these are."""

    scores: pd.DataFrame
    summary: pd.DataFrame
    note: str


def _check_unseen(dataset: str, trained: Training) -> None:
    """Raise ValueError where a dataset may hold images that were trained on, and no part that was not."""
    name = dataset.partition("@")[0]
    own = name if trained.name == "mixed" else trained.name
    if name in trained.splits and dataset != own:
        raise ValueError(
            f"{dataset}: the weights were trained on {own}; name that, for its test part"
        )
    if name in trained.splits and trained.splits[name] != split_of(dataset):
        raise ValueError(
            f"{dataset}: is split otherwise now (images or table.csv changed) than when the weights"
            " were trained, so no part is known to be unseen; restore it, or train anew"
        )
    overlaps = {
        each: catalog().get(each, {}).get("overlaps", ()) for each in (name, *trained.splits)
    }
    shared = [e for e in trained.splits if e in overlaps[name] or name in overlaps[e]]
    if shared:
        raise ValueError(
            f"{dataset}: shares images with {', '.join(sorted(shared))}, on which the weights were"
            " trained; no score would be of new images"
        )


def choose_frames(dataset: str, weights: Path) -> tuple[Frames, str]:
    """Return the images of a dataset that weights have not seen, at their size, and which these are.

    All, or the test part where the weights were trained on the rest. Raises ValueError where no
    part is known to be unseen, and what `load_frames_of` raises.
    """
    trained, name = trained_on(weights), dataset.partition("@")[0]
    if name == "mixed":
        raise ValueError(f"{dataset}: is several datasets; name one of them")
    if trained is not None:
        _check_unseen(dataset, trained)
    frames = load_frames_of(dataset, load_profile("lite", image_size=trained_size(weights)))
    if trained is None:
        return frames, "all images; nothing tells what the weights were trained on"
    if name not in trained.splits:
        return frames, f"all images; the weights were trained on {dataset_title(trained.name)}"
    by_test = ", and their epoch was picked on it" if trained.protocol == "released" else ""
    return frames.part("test"), f"the test part: the weights were trained on the rest{by_test}"


def summarize(scores: pd.DataFrame, probs: np.ndarray, frames: Frames) -> pd.DataFrame:
    """Return the levels of Dice of all images, and of each center and modality where there are several.

    Columns: of, those of `tables.levels`, false_alarms (polyp-free images with anything painted),
    polyp_free. Intervals draw whole videos where they are told.
    """
    masks = {ALL: np.ones(len(scores), bool)}
    for column in ("center", "modality"):
        named = sorted(set(scores[column]) - {""})
        if len(named) > 1:
            masks |= {f"{column} {each}": (scores[column] == each).to_numpy() for each in named}
    rows = []
    for of, mask in masks.items():
        pooled = batch_dice(probs[mask], frames.select(mask))["any_order"]
        row = levels(scores[mask].assign(of=of, seed=0, batch_pooled_dice=pooled), ["of"])
        free = scores[mask & (scores["area"] == 0)]
        rows.append(row.assign(false_alarms=(free["dice"] < 1).sum(), polyp_free=len(free)))
    return pd.concat(rows, ignore_index=True).drop(columns="seeds")


def predict_frames(network: nn.Module, frames: Frames) -> np.ndarray:
    """Return the probability maps (N, H, W) uint8 of frames, with a progress bar."""
    starts = tqdm(range(0, len(frames), PORTION), "64 images", disable=None, leave=False)
    return np.concatenate([predict_probs(network, frames.images[i : i + PORTION]) for i in starts])


def evaluate(model: str, weights: Path, dataset: str) -> Evaluation:
    """Score a model's weights on a dataset as a study would; raises what `choose_frames` raises."""
    frames, note = choose_frames(dataset, weights)
    if not len(frames):
        raise ValueError(f"{dataset}: no image to score ({note}); add images")
    probs = predict_frames(build_model(model, weights).to(pick_device()), frames)
    scores = score_frames(model, dataset, frames, probs)
    return Evaluation(scores, summarize(scores, probs, frames), note)


def readable(summary: pd.DataFrame) -> str:
    """Return a summary as text."""
    text = shown(summary, SUMMARY, HEADINGS).to_string(index=False)
    return text.replace("(nan to nan)", "(one image or video: none)")


def write(evaluation: Evaluation, model: str, weights: Path, dataset: str, folder: Path) -> None:
    """Write scores.csv, summary.csv and config.json (of what, with what) into a folder, all or none."""
    config = {
        "model": model, "dataset": dataset, "images": evaluation.note,
        "size": trained_size(weights), "weights": weights.name,
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "provenance": provenance(),
    }  # fmt: skip
    with whole_folder(folder) as temporary:
        evaluation.scores.to_csv(temporary / "scores.csv", index=False)
        evaluation.summary.to_csv(temporary / "summary.csv", index=False)
        write_json(temporary / "config.json", config)


def check_folder(folder: Path, force: bool) -> None:
    """Raise ValueError where a folder is there already, unless ``force`` may replace what it holds."""
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if folder.is_file() or not found <= WRITTEN:
        raise ValueError(f"{folder}: holds other things than an evaluation; name another folder")
    if found and not force:
        raise ValueError(
            f"{folder}: is there already; name another folder or give --force to replace it"
        )
