"""Cases: the images of a test set with what several runs say of them. Notebooks 10 and 11 read these."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ultraseg_lib import study
from ultraseg_lib.data import Frames
from ultraseg_lib.metrics import Counts
from ultraseg_lib.report.figures import dataset_title
from ultraseg_lib.report.metric_figures import LEVELS, count_by_threshold, dice_from_counts
from ultraseg_lib.study import Profile, Run
from ultraseg_lib.variants import model_title

TITLE_KEYS = {"dataset": "on {}", "recipe": "{}", "protocol": "{}", "epochs": "{} epochs",
              "seed": "seed {}"}  # fmt: skip


def level_of(threshold: float) -> int:
    """Return the smallest stored probability (0 to 255) that a threshold in (0, 1) lets pass.

    255 stands for all from 255/256 on, so that every threshold lets it pass.

    >>> level_of(0.5)
    128
    """
    return min(int(np.ceil(round(threshold * LEVELS, 6))), LEVELS - 1)


@dataclass(frozen=True)
class Cases:
    """One test set as several runs see it.

    ``frames`` holds N images; ``runs`` and ``scores`` (the ledger's rows, in the order of the
    frames) go by the run's title; ``read_maps`` gives the probability maps (N, S, S) uint8 of a
    title. Maps are read when first asked for, then kept.
    """

    test_set: str
    frames: Frames
    runs: dict[str, Run]
    scores: dict[str, pd.DataFrame]
    read_maps: Callable[[str], NDArray[np.uint8]]
    _kept: dict[tuple[str, str], object] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frames)

    def _once(self, kind: str, title: str, make: Callable[[], object]) -> object:
        if (kind, title) not in self._kept:
            self._kept[kind, title] = make()
        return self._kept[kind, title]

    def probs(self, title: str) -> NDArray[np.uint8]:
        """Return the probability maps (N, S, S) of a run, 255 stands for 1."""
        return self._once("probs", title, lambda: self.read_maps(title))

    def is_read(self, title: str) -> bool:
        """Return whether the maps of a run are in memory."""
        return ("probs", title) in self._kept

    def counts(self, title: str) -> Counts:
        """Return the pixel counts (256, N) of a run, a row a stored probability level."""
        maps = self.probs(title)
        return self._once("counts", title, lambda: count_by_threshold(maps, self.frames.masks))

    def dice(self, title: str, threshold: float = 0.5) -> NDArray[np.float64]:
        """Return the Dice (N,) of a run at a threshold; at 0.5 it is the ledger's."""
        if threshold == 0.5:
            return self.scores[title]["dice"].to_numpy()
        tp, fp, fn, _ = (count[level_of(threshold)] for count in self.counts(title))
        return dice_from_counts(tp, fp, fn)


def run_titles(runs: Iterable[Run]) -> dict[str, Run]:
    """Name runs for people: the model, and only those settings in which the runs differ."""
    runs = list(runs)
    differ = [key for key in TITLE_KEYS if len({getattr(run, key) for run in runs}) > 1]
    titles = {}
    for run in runs:
        values = {key: getattr(run, key) for key in differ}
        if "dataset" in values:
            values["dataset"] = dataset_title(run.dataset).partition(" (")[0]
        words = [TITLE_KEYS[key].format(value) for key, value in values.items()]
        titles[", ".join([model_title(run.model), *words])] = run
    return titles


def scored_runs(profile: str) -> dict[str, list[Run]]:
    """Return the finished runs of a ledger by the test set that they are scored on."""
    found: dict[str, list[Run]] = {}
    for run in study.finished_runs(profile):
        for test_set in study.read_scores(run)["test_set"].unique():
            found.setdefault(test_set, []).append(run)
    return found


def load_cases(test_set: str, runs: Iterable[Run], profile: Profile) -> Cases:
    """Return the cases of a test set for some finished runs.

    Raises FileNotFoundError where the images are not there, and ValueError for a run that was
    scored on others.
    """
    frames = study.test_frames(test_set, profile)
    titles = run_titles(runs)
    scores = {title: _scores_on(run, test_set, frames) for title, run in titles.items()}

    def read_maps(title: str) -> NDArray[np.uint8]:
        return study.read_probs(titles[title], test_set, profile)

    return Cases(test_set, frames, titles, scores, read_maps)


def load_available(
    test_sets: Iterable[str], runs: Iterable[Run], profile: Profile
) -> tuple[dict[str, Cases], dict[str, str]]:
    """Return the cases of those test sets whose images are there, and the reason for each other."""
    runs, found, missing = list(runs), {}, {}
    for name in test_sets:
        try:
            found[name] = load_cases(name, runs, profile)
        except FileNotFoundError as error:
            missing[name] = str(error)
    return found, missing


def _scores_on(run: Run, test_set: str, frames: Frames) -> pd.DataFrame:
    table = study.read_scores(run)
    table = table[table["test_set"] == test_set].reset_index(drop=True)
    if list(table["image_id"]) != list(frames.table["image_id"]):
        raise ValueError(
            f"{run.folder / 'scores.csv'}: its {len(table)} images are not the {len(frames)} of"
            f" {test_set} now; do the run anew (--force), or restore the images"
        )
    return table
