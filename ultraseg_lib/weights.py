"""The trained weights that ship with the study: those of the committed reference runs."""

import csv
import json
from pathlib import Path
from typing import NamedTuple

from ultraseg_lib.choices import did_you_mean
from ultraseg_lib.data.layouts import split_share
from ultraseg_lib.paths import ROOT

RUNS = ROOT / "outputs" / "reference" / "runs"
IMAGE_SIZE = 256  # of weights that do not say at which size they were trained


def shipped_weights(model: str) -> dict[str, Path]:
    """Return the weights of a model by the dataset that they were trained on, best first.

    Our recipes and protocol ``clean`` only. Of one dataset's runs the one with the higher
    validation Dice is taken; datasets follow by their training images, most first. The test parts
    choose nothing, nor do the validation parts of different datasets, of which one may be easier.
    """
    best: dict[str, tuple[float, int, Path]] = {}
    for config in RUNS.glob(f"{model}-*-clean-e*-s*/config.json"):
        dataset, recipe = config.parent.name.split("-")[1:3]
        if recipe == "paper":
            continue
        with config.with_name("history.csv").open(encoding="utf-8") as file:
            dice = max(float(row["val_dice"]) for row in csv.DictReader(file))
        images = json.loads(config.read_text(encoding="utf-8"))["images"]["train"]
        rank = (dice, images, config.with_name("weights.safetensors"))
        best[dataset] = max(rank, best.get(dataset, rank))
    best_first = sorted(best.items(), key=lambda pair: pair[1][1], reverse=True)
    return {dataset: path for dataset, (_, _, path) in best_first}


def find_weights(model: str, weights: str | Path | None = None) -> Path:
    """Return a weights file: the given one, the shipped one of the named dataset, or the best.

    Raises FileNotFoundError, with the names there are, where there is none.
    """
    if weights is not None and Path(weights).is_file():
        return Path(weights)
    shipped = shipped_weights(model)
    if not shipped:
        raise FileNotFoundError(f"weights of {model}: none are shipped; give a .safetensors file")
    if weights is None:
        return next(iter(shipped.values()))
    if str(weights) not in shipped:
        hint = did_you_mean(str(weights).lower().replace("-", "_"), shipped)
        raise FileNotFoundError(
            f"weights of {model}: {str(weights)!r} is no file, and none shipped under this name;"
            f" give a .safetensors file or one of: {', '.join(shipped)}{hint}"
        )
    return shipped[str(weights)]


class Training(NamedTuple):
    """What weights were trained on: the name (as in `grid.Run`), by dataset its split, the protocol."""

    name: str
    splits: dict[str, str | None]
    protocol: str


def trained_on(weights: Path) -> Training | None:
    """Return what the run of a weights file was trained on; None where no run's files lie beside it."""
    try:
        config = json.loads(weights.with_name("config.json").read_text(encoding="utf-8"))
        (name, _), split = split_share(config["dataset"]), config["inputs"]["split"]
        if name == "mixed":
            splits = {each: found for each, found in split.items() if found}
        else:
            splits = {name.partition("@")[0]: split}
        return Training(name, splits, config["protocol"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or another program's
        return None


def trained_size(weights: Path) -> int:
    """Return the image size in px that weights were trained at: what their run says, else 256."""
    try:
        config = json.loads(weights.with_name("config.json").read_text(encoding="utf-8"))
        return int(config["inputs"]["images"]["size"])
    except (OSError, ValueError, KeyError, TypeError):  # none, or another program's
        return IMAGE_SIZE
