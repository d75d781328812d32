"""What the browser of notebook 11 shows: a state in, a figure and its numbers out. No widget is here."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ultraseg_lib import metrics
from ultraseg_lib.choices import check_choice
from ultraseg_lib.paths import outputs_dir, whole_file
from ultraseg_lib.provenance import now
from ultraseg_lib.report.cases import Cases, level_of
from ultraseg_lib.report.failures import SMALL
from ultraseg_lib.report.figures import TRUTH, dataset_title
from ultraseg_lib.report.overlays import (
    OVERLAYS,
    PANEL,
    Picture,
    enlarge,
    legend_handles,
    paint_outline,
)

ALL = "all"
SORTS = {  # name -> what comes first
    "list order": "as in the split's list",
    "Dice": "the lowest Dice of the model",
    "HD95": "the largest HD95 of the model, at threshold 0.5",
    "area": "the smallest polyp",
    "disagreement": "where the Dice of the models shown differs most",
    "shuffled": "the same random order for everybody",
}
FILTERS = (ALL, "missed", "false alarm", "multiple", "small", "no polyp")
SCORES = ("dice", "iou", "precision", "recall", "hd95")
REVIEW_KEYS = ["test_set", "image_id", "run_id"]  # one rating for each
REVIEW_COLUMNS = [*REVIEW_KEYS, "threshold", "saw_truth", "rating", "note", "time"]
TOP, GAP, LINE, FOOT = 26, 8, 18, 34  # px above all, between panels, of a line, below all
LETTERS = 44  # of 12 points side by side above a panel
DPI = 80


@dataclass(frozen=True)
class State:
    """Everything that decides what is shown of some cases.

    ``model`` (a title of the cases) leads: sort and filter go by it; ``others`` stand beside it.
    ``sort`` and ``keep`` name entries of SORTS and FILTERS, ``overlay`` one of OVERLAYS.
    ``position`` counts from 0 in the selection and is cut to its length. ``truth``: whether the
    true mask and the scores may be seen. Raises ValueError for an unknown name.
    """

    model: str
    others: tuple[str, ...] = ()
    center: str = ALL
    modality: str = ALL
    threshold: float = 0.5
    sort: str = "list order"
    reverse: bool = False
    keep: str = ALL
    overlay: str = "contour"
    position: int = 0
    truth: bool = True

    def __post_init__(self) -> None:
        for name, valid in (("sort", SORTS), ("keep", FILTERS), ("overlay", OVERLAYS)):
            check_choice(name, getattr(self, name), valid)
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold: found {self.threshold}; it lies between 0 and 1")

    @property
    def models(self) -> tuple[str, ...]:
        """Return the titles shown, the leading one first, each once."""
        return tuple(dict.fromkeys((self.model, *self.others)))


# --- which cases --------------------------------------------------------------------------------


def select(state: State, cases: Cases) -> NDArray[np.int64]:
    """Return the rows of the cases that a state keeps, in its order."""
    rows = np.flatnonzero(_kept(state, cases))
    order = np.argsort(_sort_key(state, cases)[rows], kind="stable")
    return rows[order][::-1] if state.reverse else rows[order]


def _kept(state: State, cases: Cases) -> NDArray[np.bool_]:
    table, scores = cases.frames.table, cases.scores[state.model]
    area = scores["area"].to_numpy()
    keep = np.ones(len(cases), bool)
    for key in ("center", "modality"):
        if getattr(state, key) != ALL:
            keep &= (table[key] == getattr(state, key)).to_numpy()
    if state.keep in ("missed", "false alarm"):
        tp, fp, _, _ = (count[level_of(state.threshold)] for count in cases.counts(state.model))
        return keep & ((area > 0) & (tp == 0) if state.keep == "missed" else (area == 0) & (fp > 0))
    pixels = cases.frames.masks[0].size
    rules = {
        "multiple": scores["n_polyps"].to_numpy() > 1,
        "small": (area > 0) & (area < SMALL * pixels),
        "no polyp": area == 0,
    }
    return keep & rules.get(state.keep, True)


def _sort_key(state: State, cases: Cases) -> NDArray[np.float64]:
    """Return a number for every case; the smallest comes first."""
    scores = cases.scores[state.model]
    if state.sort == "Dice":
        return cases.dice(state.model, state.threshold)
    if state.sort == "HD95":
        return -scores["hd95"].to_numpy()
    if state.sort == "area":
        return scores["area"].to_numpy(float)
    if state.sort == "disagreement":
        return -np.ptp([cases.dice(name, state.threshold) for name in state.models], axis=0)
    order = np.arange(len(cases), dtype=float)
    return np.random.default_rng(0).permutation(order) if state.sort == "shuffled" else order


def shown_row(state: State, cases: Cases) -> int | None:
    """Return the row of the case at the state's position, None where nothing is selected."""
    rows = select(state, cases)
    return int(rows[np.clip(state.position, 0, len(rows) - 1)]) if len(rows) else None


# --- what is said of them -----------------------------------------------------------------------


def numbers(state: State, cases: Cases) -> pd.DataFrame:
    """Score the shown case at the state's threshold: a row a model, columns SCORES; hd95 in px.

    At 0.5 they are the ledger's. Empty where nothing is selected.
    """
    row = shown_row(state, cases)
    if row is None:
        return pd.DataFrame(columns=list(SCORES))
    mask = cases.frames.masks[row : row + 1] > 0
    level = level_of(state.threshold)
    scored = [
        metrics.score_images(cases.probs(m)[row : row + 1] >= level, mask) for m in state.models
    ]
    table = {key: [float(each[key][0]) for each in scored] for key in SCORES}
    return pd.DataFrame(table, index=list(state.models))


def facts(state: State, cases: Cases) -> dict[str, str]:
    """Return what is known of the shown case, for reading; polyps only where the truth may be seen."""
    row = shown_row(state, cases)
    if row is None:
        return {}
    record, scores = cases.frames.table.iloc[row], cases.scores[state.model].iloc[row]
    known = {key: str(record[key]) for key in ("image_id", "center", "modality") if record[key]}
    if state.truth:
        share = scores["area"] / cases.frames.masks[0].size
        known |= {"polyps": str(scores["n_polyps"]), "polyp area": f"{share:.1%} of the image"}
    return known


def selection_table(state: State, cases: Cases) -> pd.DataFrame:
    """Return the selection as a table, a row a case and model, in the order shown.

    Columns: place (from 1), test_set, image_id, center, modality, area (px), n_polyps, model,
    run_id, threshold, dice (at the threshold), hd95_at_half (px, at 0.5, as in the ledger).
    """
    rows = select(state, cases)
    tables = []
    for name in state.models:
        scores = cases.scores[name].iloc[rows]
        table = scores[["test_set", "image_id", "center", "modality", "area", "n_polyps"]].copy()
        table.insert(0, "place", np.arange(1, len(rows) + 1))
        table = table.assign(model=name, run_id=scores["run_id"], threshold=state.threshold)
        table["dice"] = cases.dice(name, state.threshold)[rows]
        tables.append(table.assign(hd95_at_half=scores["hd95"]))
    return pd.concat(tables).sort_values("place", kind="stable", ignore_index=True)


# --- the picture --------------------------------------------------------------------------------


def render(state: State, cases: Cases) -> Figure:
    """Show the case of a state: the image with its truth, then every model's overlay.

    The panels are painted into one picture, pixel for pixel: fast enough to follow a slider.
    """
    row = shown_row(state, cases)
    if row is None:
        return _words_only("no case is left: choose another filter, center or modality")
    titles = ["image and truth" if state.truth else "image"]
    titles += [_panel_title(name, state, cases, row) for name in state.models]
    figure, axes = _page(titles, _panels(state, cases, row))
    image_id = cases.frames.table["image_id"].iloc[row]
    words = f"{dataset_title(cases.test_set)} · {image_id} · threshold {state.threshold:.2f}"
    axes.text(0.5, 1 - 6 / figure.bbox.height, words, transform=axes.transAxes, ha="center", va="top",
              fontsize=12)  # fmt: skip
    handles = legend_handles(state.overlay, state.truth)
    if handles:
        axes.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False,
                    fontsize=12, borderaxespad=0.3)  # fmt: skip
    return figure


def _panel_title(name: str, state: State, cases: Cases, row: int) -> str:
    model, _, rest = name.partition(", ")
    dice = f"Dice {cases.dice(name, state.threshold)[row]:.3f}" if state.truth else ""
    words = ", ".join(word for word in (rest, dice) if word)
    return "\n".join([model, *textwrap.wrap(words, LETTERS)])


def _panels(state: State, cases: Cases, row: int) -> list[Picture]:
    image, mask = cases.frames.images[row], cases.frames.masks[row] > 0
    level, paint = level_of(state.threshold), OVERLAYS[state.overlay]
    truth = mask if state.truth else None
    first = paint_outline(enlarge(image), mask, TRUTH) if state.truth else enlarge(image)
    return [first, *(paint(image, cases.probs(m)[row], level, truth) for m in state.models)]


def _page(titles: list[str], panels: list[Picture]) -> tuple[Figure, Axes]:
    """Lay panels out, at most three side by side (four: two by two), each under its title."""
    columns = 2 if len(panels) in (2, 4) else 3
    lines = -(-len(panels) // columns)
    head = LINE * (1 + max(title.count("\n") for title in titles)) + 8
    height, width = TOP + lines * (PANEL + head) + FOOT, columns * (PANEL + GAP)
    page = np.full((height, width, 3), 255, np.uint8)
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, layout="none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for place, (title, panel) in enumerate(zip(titles, panels, strict=True)):
        left = place % columns * (PANEL + GAP) + GAP // 2
        top = TOP + place // columns * (PANEL + head) + head
        page[top : top + PANEL, left : left + PANEL] = panel
        axes.text(left + PANEL / 2, top - 5, title, ha="center", va="bottom", fontsize=12)
    axes.imshow(page, interpolation="nearest", aspect="auto")
    return figure, axes


def _words_only(words: str) -> Figure:
    figure = Figure(figsize=(8, 2), dpi=DPI, layout="none")
    figure.text(0.5, 0.5, words, ha="center", va="center", fontsize=14)
    return figure


# --- reviews ------------------------------------------------------------------------------------


def review_path(profile: str, reviewer: str) -> Path:
    """Return the file of a reviewer's ratings; raise ValueError for a name that is no file name."""
    if not re.fullmatch(r"\w[\w.-]*", reviewer):
        raise ValueError(f"reviewer: found {reviewer!r}; use letters, digits, - and _ only")
    return outputs_dir(profile) / "reviews" / f"{reviewer}.csv"


def read_reviews(path: Path) -> pd.DataFrame:
    """Return the ratings of a file, columns REVIEW_COLUMNS; none where there is no file yet."""
    if not path.exists():
        return pd.DataFrame(columns=REVIEW_COLUMNS)
    text = dict.fromkeys((*REVIEW_KEYS, "note", "time"), str)
    return pd.read_csv(path, dtype=text, keep_default_na=False)


def find_review(reviews: pd.DataFrame, state: State, cases: Cases) -> dict[str, Any] | None:
    """Return the rating of the shown case and leading model, None where there is none."""
    same = (reviews[REVIEW_KEYS] == _review_key(state, cases)).all(axis=1)
    return reviews[same].iloc[-1].to_dict() if same.any() else None


def _review_key(state: State, cases: Cases) -> list[str]:
    row = shown_row(state, cases)
    image_id = "" if row is None else cases.frames.table["image_id"].iloc[row]
    return [cases.test_set, image_id, cases.runs[state.model].run_id]


def save_review(
    path: Path, state: State, cases: Cases, rating: int, note: str, saw_truth: bool
) -> pd.DataFrame:
    """Write the rating (1 to 5; 0 takes it back) and note of the shown case; return all ratings.

    ``saw_truth``: whether the reviewer has seen the true mask; a note that is added to a rating
    later does not change what was known, and at which threshold, when it was given. Raises
    ValueError for another rating.
    """
    if rating not in range(6):
        raise ValueError(f"rating: found {rating!r}; it is 1 to 5, or 0 for none")
    key = _review_key(state, cases)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.stem}.lock")):  # a reviewer may have two windows
        reviews = read_reviews(path)
        earlier, threshold = find_review(reviews, state, cases), state.threshold
        if earlier and earlier["rating"] == rating:
            saw_truth, threshold = earlier["saw_truth"], earlier["threshold"]
        table = reviews[~(reviews[REVIEW_KEYS] == key).all(axis=1)]
        if rating:
            row = [*key, threshold, saw_truth, rating, note, now()]
            added = pd.DataFrame([row], columns=REVIEW_COLUMNS)
            table = pd.concat([table, added], ignore_index=True) if len(table) else added
        with whole_file(path) as temporary:
            table.to_csv(temporary, index=False)
    return table


def next_unrated(reviews: pd.DataFrame, state: State, cases: Cases) -> int | None:
    """Return the next position, from the one after the state's on, whose case is not rated; None if all are."""
    rows, run_id = select(state, cases), cases.runs[state.model].run_id
    mine = reviews[(reviews["test_set"] == cases.test_set) & (reviews["run_id"] == run_id)]
    rated = cases.frames.table["image_id"].iloc[rows].isin(mine["image_id"]).to_numpy()
    order = np.roll(np.arange(len(rows)), -(state.position + 1))
    left = [int(position) for position in order if not rated[position]]
    return left[0] if left else None
