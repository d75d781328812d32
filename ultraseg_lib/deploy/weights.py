"""Which trained weights the deployed models take: those of the committed reference runs."""

import json
from pathlib import Path

from ultraseg_lib.study import Run, finished_runs, read_scores
from ultraseg_lib.variants import find_variant

IMAGE_SIZE = 256  # of weights that do not say at which size they were trained


def trained_runs(model: str) -> dict[str, Path]:
    """Return the weights of a model's finished reference runs by dataset, best first.

    Strong recipe and clean protocol only. Mixed training comes first, then the higher mean Dice on
    the run's own test set.
    """
    runs = [
        run
        for run in finished_runs("reference")
        if (run.model, run.recipe, run.protocol) == (model, "strong", "clean")
    ]

    def rank(run: Run) -> tuple[bool, float]:
        scores = read_scores(run)
        own = scores[scores["test_set"] == run.dataset] if run.dataset != "mixed" else scores
        return run.dataset == "mixed", own["dice"].mean()

    best_first = sorted(runs, key=rank, reverse=True)
    found: dict[str, Path] = {}
    for run in best_first:
        found.setdefault(run.dataset, run.folder / "weights.safetensors")
    return found


def find_weights(model: str, weights: str | None = None) -> Path:
    """Return a weights file: the given file, that of the run on the named dataset, or the best.

    Raises FileNotFoundError, with the names there are, where none is found, ValueError for an
    unknown model.
    """
    find_variant(model)
    if weights is not None and Path(weights).is_file():
        return Path(weights)
    trained = trained_runs(model)
    if weights is None and trained:
        return next(iter(trained.values()))
    if weights in trained:
        return trained[weights]
    raise FileNotFoundError(
        f"weights: neither a file nor a trained {model} named {weights or 'at all'}; give a"
        f" .safetensors file or one of: {', '.join(trained) or '(none is trained)'}"
    )


def trained_size(weights: Path) -> int:
    """Return the image size in px that weights were trained at: what their run says, else 256."""
    config = weights.with_name("config.json")
    if not config.exists():
        return IMAGE_SIZE
    return json.loads(config.read_text(encoding="utf-8"))["inputs"]["images"]["size"]
