"""The browser of notebook 11 as widgets: they hold a `browser.State` and show what it renders."""

import base64
import html
from collections.abc import Callable
from typing import Any

import ipywidgets as w
import numpy as np
import pandas as pd

from ultraseg_lib import study
from ultraseg_lib.data import dataset_title
from ultraseg_lib.paths import outputs_dir, whole_file
from ultraseg_lib.report import browser
from ultraseg_lib.report.browser import State
from ultraseg_lib.report.cases import Cases, load_cases, scored_runs
from ultraseg_lib.report.metric_figures import to_png
from ultraseg_lib.report.overlays import OVERLAYS

OTHERS = 5  # panels beside the leading model, so that all stay legible
WIDE, NARROW = w.Layout(width="330px"), w.Layout(width="250px")


def ledgers() -> list[str]:
    """Return the profiles that have a finished run."""
    return [name for name in study.profile_names() if study.finished_runs(name)]


def _download(name: str, content: bytes, kind: str) -> str:
    data = base64.b64encode(content).decode()
    name = html.escape(name)
    return f'<a download="{name}" href="data:{kind};base64,{data}">download {name}</a>'


def _table(columns: list[str], rows: list[list[str]]) -> str:
    cell = '<t{0} style="padding:2px 9px;text-align:{1}">{2}</t{0}>'

    def line(values: list[str], kind: str) -> str:
        sides = ["left", *["right"] * (len(values) - 1)]
        cells = [cell.format(kind, s, html.escape(v)) for s, v in zip(sides, values, strict=True)]
        return f"<tr>{''.join(cells)}</tr>"

    body = "".join(line(row, "d") for row in rows)
    return f'<table style="font-size:15px">{line(columns, "h") if columns else ""}{body}</table>'


def _numbers_html(numbers: pd.DataFrame) -> str:
    rows = [
        [name, *(f"{row[key]:.1f}" if key == "hd95" else f"{row[key]:.3f}" for key in numbers)]
        for name, row in numbers.iterrows()
    ]
    names = {"dice": "Dice", "iou": "IoU", "hd95": "HD95 (px)"}
    return _table(["", *(names.get(key, key) for key in numbers)], rows)


class PredictionBrowser(w.VBox):
    """Widgets over any ledger: choose, sort, filter, look, export, review.

    ``profile``: the ledger shown first. Raises ValueError where no ledger has a finished run.
    """

    def __init__(self, profile: str = "demo") -> None:
        found = ledgers()
        if not found:
            raise ValueError("no finished run in any ledger; do ./run_all.sh first")
        self.profile = w.Dropdown(
            options=found, value=profile if profile in found else found[0],
            description="ledger", layout=NARROW,
        )  # fmt: skip
        self._quiet = False
        self._cases: dict[tuple[str, str], Cases] = {}
        self._seen: set[tuple[str, int]] = set()  # test set and row of each truth that was shown
        self._make_choices()
        self._make_review()
        super().__init__([*self._controls(), self._page(), self._review_row(), self._export_row()])
        self._connect()
        self._do(self._show_ledger)

    # --- the widgets ---

    def _make_choices(self) -> None:
        def dropdown(name: str, options: Any, layout: w.Layout = NARROW) -> w.Dropdown:
            return w.Dropdown(options=options, description=name, layout=layout)

        self.test_set = dropdown("test set", [], WIDE)
        self.center = dropdown("center", [browser.ALL])
        self.modality = dropdown("modality", [browser.ALL])
        self.model = dropdown("model", [], WIDE)
        self.others = w.SelectMultiple(description="compare", rows=4, layout=WIDE)
        self.sort = dropdown("sort by", list(browser.SORTS))
        self.reverse = w.Checkbox(description="reverse", indent=False, layout={"width": "90px"})
        self.keep = dropdown("show", list(browser.FILTERS))
        self.overlay = dropdown("overlay", list(OVERLAYS))
        self.threshold = w.FloatSlider(
            0.5, min=0.05, max=0.95, step=0.05, description="threshold", layout=WIDE
        )
        self.position = w.IntSlider(1, min=1, max=1, description="case", layout=WIDE)
        self.back, self.forward = w.Button(description="previous"), w.Button(description="next")
        for button in (self.back, self.forward):
            button.layout.width = "90px"
        self.picture = w.Image(format="png", layout={"max_width": "100%"})
        self.beside, self.status = w.HTML(), w.HTML()

    def _make_review(self) -> None:
        self.review = w.Checkbox(description="review mode", indent=False, layout={"width": "130px"})
        self.reviewer = w.Text(description="your name", continuous_update=False, layout=NARROW,
                               placeholder="names the file of ratings")  # fmt: skip
        self.truth = w.Button(description="show the truth")
        self.rating = w.ToggleButtons(
            options=[("–", 0), *((str(each), each) for each in range(1, 6))],
            style={"button_width": "36px"}, layout={"width": "280px"},
        )  # fmt: skip
        self.note = w.Text(description="note", continuous_update=False, layout=WIDE,
                           placeholder="saved with the rating")  # fmt: skip
        self.unrated = w.Button(description="next unrated")
        self.progress = w.HTML()
        self.save_page = w.Button(description="save page (PNG)", layout={"width": "150px"})
        self.save_selection = w.Button(
            description="save selection (CSV)", layout={"width": "170px"}
        )

    def _controls(self) -> list[w.Widget]:
        def row(*children: w.Widget) -> w.Box:
            return w.Box(children, layout={"flex_flow": "row wrap", "align_items": "center"})

        first = w.VBox([self.test_set, self.model, self.others])
        second = w.VBox([self.profile, self.center, self.modality, self.keep])
        sorting = w.HBox([self.sort, self.reverse])
        stepping = w.HBox([w.Label(layout={"width": "80px"}), self.back, self.forward])
        third = w.VBox([sorting, self.overlay, self.threshold, self.position, stepping])
        choices = w.Box([first, second, third], layout={"flex_flow": "row wrap"})
        return [choices, row(self.status)]

    def _page(self) -> w.Box:
        beside = w.VBox([self.beside], layout={"min_width": "300px"})
        layout = {"flex_flow": "row wrap", "align_items": "flex-start"}
        return w.Box([self.picture, beside], layout=layout)

    def _review_row(self) -> w.Box:
        label = w.Label("rating", layout={"margin": "2px 6px 2px 18px"})
        rating = w.HBox([label, self.rating])
        self.panel = w.Box(
            [self.reviewer, self.truth, rating, self.note, self.unrated, self.progress],
            layout={"flex_flow": "row wrap", "align_items": "center", "display": "none"},
        )
        return w.Box([self.review, self.panel], layout={"flex_flow": "row wrap"})

    def _export_row(self) -> w.Box:
        self.saved = w.HTML()
        row = [self.save_page, self.save_selection, self.saved]
        return w.Box(row, layout={"flex_flow": "row wrap", "align_items": "center"})

    def _connect(self) -> None:
        def on(widget: w.Widget, work: Callable[[], None]) -> None:
            widget.observe(lambda change: self._do(work), "value")

        on(self.profile, self._show_ledger)
        on(self.test_set, self._show_test_set)
        for widget in (self.center, self.modality, self.model, self.sort, self.reverse, self.keep):
            on(widget, self._show_first)
        for widget in (self.others, self.threshold):
            on(widget, self._keep_case)
        for widget in (self.overlay, self.position):
            on(widget, self._show)
        on(self.review, self._start_review)
        on(self.reviewer, self._show)
        on(self.rating, self._rate)
        on(self.note, self._rate)
        buttons = {
            self.back: lambda: self._go(self.position.value - 1),
            self.forward: lambda: self._go(self.position.value + 1),
            self.truth: self._show_truth, self.unrated: self._go_to_unrated,
            self.save_page: self._save_page, self.save_selection: self._save_selection,
        }  # fmt: skip
        for button, work in buttons.items():
            button.on_click(lambda _, work=work: self._do(work))

    def _do(self, work: Callable[[], None]) -> None:
        """Do what a person asked for, unless the browser itself set the widget; say what went wrong."""
        if self._quiet:
            return
        self.saved.value = ""
        try:
            work()
        except (ValueError, OSError) as error:
            self.status.value = f"<b>{html.escape(str(error))}</b>"

    def _set(self, widget: w.Widget, **values: Any) -> None:
        """Change a widget without answering to the change."""
        self._quiet = True
        try:
            for name, value in values.items():
                setattr(widget, name, value)
        finally:
            self._quiet = False

    # --- what is chosen ---

    @property
    def cases(self) -> Cases:
        """Return the cases of the chosen ledger and test set, reading them once."""
        key = (self.profile.value, self.test_set.value)
        if key not in self._cases:
            profile = study.load_profile(key[0])
            self._cases[key] = load_cases(key[1], scored_runs(key[0])[key[1]], profile)
        return self._cases[key]

    @property
    def state(self) -> State:
        """Return what the widgets say."""
        return State(
            self.model.value, tuple(self.others.value[:OTHERS]), self.center.value,
            self.modality.value, self.threshold.value, self.sort.value, self.reverse.value,
            self.keep.value, self.overlay.value, self.position.value - 1,
            not self.review.value or self._truth_shown,
        )  # fmt: skip

    _truth_shown, _row = False, None

    def _show_ledger(self) -> None:
        names = [(dataset_title(name), name) for name in scored_runs(self.profile.value)]
        self._set(self.test_set, options=names, value=names[0][1])
        self._show_test_set()

    def _show_test_set(self) -> None:
        self.status.value = f"reading {html.escape(dataset_title(self.test_set.value))} …"
        cases = self.cases
        titles = list(cases.runs)
        best = max(titles, key=lambda title: cases.dice(title).mean())
        self._set(self.model, options=titles, value=best)
        self._set(self.others, options=titles, value=())
        for key, widget in (("center", self.center), ("modality", self.modality)):
            names = sorted(set(cases.frames.table[key]) - {""})
            self._set(widget, options=[browser.ALL, *names], value=browser.ALL)
        self._show_first()

    def _show_first(self) -> None:
        """Show the first case of a new selection."""
        self._set(self.position, value=1)
        self._show()

    def _keep_case(self) -> None:
        """Show the same case where it is now, if the new selection still has it."""
        place = np.flatnonzero(browser.select(self.state, self.cases) == self._row)
        if len(place):
            self._set(self.position, max=int(place[0]) + 1)  # or the slider would hold it back
            self._set(self.position, value=int(place[0]) + 1)
        self._show()

    def _go(self, position: int) -> None:
        self._set(self.position, value=min(max(1, position), self.position.max))
        self._show()

    # --- what is shown ---

    def _show(self) -> None:
        """Show the case anew; in review mode its truth is hidden again."""
        self._truth_shown = False
        self._draw()
        if self.review.value:
            self._show_review()

    def _draw(self) -> None:
        count = len(browser.select(self.state, self.cases))
        self._set(self.position, max=max(1, count))
        state, cases = self.state, self.cases
        self._row = browser.shown_row(state, cases)
        if state.truth:
            self._seen.add((cases.test_set, self._row))
        if not all(map(cases.is_read, state.models)):  # made from the weights, where none are kept
            self.status.value = "reading probability maps …"
        self.picture.value = to_png(browser.render(state, cases))
        known = [[key, value] for key, value in browser.facts(state, cases).items()]
        shown = _table([], known)
        if state.truth:
            shown = _numbers_html(browser.numbers(state, cases)) + shown
        self.beside.value = shown
        self.status.value = f"{count} of {len(cases)} cases, first: {browser.SORTS[state.sort]}"

    # --- review ---

    def _start_review(self) -> None:
        self.panel.layout.display = "flex" if self.review.value else "none"
        self._show()

    def _reviews(self) -> pd.DataFrame:
        return browser.read_reviews(self._review_path())

    def _review_path(self) -> Any:
        return browser.review_path(self.profile.value, self.reviewer.value)

    def _show_review(self) -> None:
        if not self.reviewer.value:
            self._ask_for_name()
            return
        reviews = self._reviews()
        kept = browser.find_review(reviews, self.state, self.cases) or {"rating": 0, "note": ""}
        self._set(self.rating, value=int(kept["rating"]))
        self._set(self.note, value=kept["note"])
        self.progress.value = f"{len(reviews)} rated in {self._review_path().name}"

    def _show_truth(self) -> None:
        self._truth_shown = True
        self._draw()

    def _ask_for_name(self) -> None:
        self._set(self.rating, value=0)
        self.progress.value = "write your name first: your ratings go to a file of that name"

    def _rate(self) -> None:
        if not self.reviewer.value:
            self._ask_for_name()
            return
        earlier = browser.find_review(self._reviews(), self.state, self.cases)
        if self._row is None or not (earlier or self.rating.value):
            self.progress.value = "choose a rating: the note is saved with it"
            return
        saved = browser.save_review(
            self._review_path(), self.state, self.cases, self.rating.value, self.note.value,
            (self.cases.test_set, self._row) in self._seen,
        )  # fmt: skip
        self.progress.value = f"{len(saved)} rated, saved in {self._review_path()}"

    def _go_to_unrated(self) -> None:
        position = browser.next_unrated(self._reviews(), self.state, self.cases)
        if position is None:
            self.progress.value = "every case of this selection is rated"
        else:
            self._go(position + 1)

    # --- export ---

    def _save(self, name: str, content: bytes, kind: str) -> None:
        path = outputs_dir(self.profile.value) / "browser" / name
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
        self.saved.value = f"saved in {html.escape(str(path))} · {_download(name, content, kind)}"

    def _save_page(self) -> None:
        row = browser.shown_row(self.state, self.cases)
        image_id = "none" if row is None else str(self.cases.frames.table["image_id"].iloc[row])
        name = f"{self.test_set.value}-{image_id.replace('/', '_')}-{self.overlay.value}.png"
        self._save(name.replace(" ", "_"), self.picture.value, "image/png")

    def _save_selection(self) -> None:
        table = browser.selection_table(self.state, self.cases)
        name = f"{self.test_set.value}-selection.csv"
        self._save(name, table.to_csv(index=False).encode(), "text/csv")
