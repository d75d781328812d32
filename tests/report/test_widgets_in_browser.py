"""Notebook 11 in a real browser, in JupyterLab and as the voila app, over a ledger of made-up runs.

Needs Chromium (Debian: apt-get install chromium) and skips without it. Pages are photographed at
two widths into pytest's temporary folder.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from ledgers import write_demo_ledger

from ultraseg_lib import study
from ultraseg_lib.paths import NOTEBOOKS, ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
NOTEBOOK = "11_browse_predictions.ipynb"
MODEL = "LB-UNet"
WAIT = 240_000  # ms: a kernel starts and imports torch, on a machine that does other work

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def outputs_folder(tmp_path_factory) -> Iterator[Path]:
    """Write the ledger once and point every program that this module starts at it."""
    folder = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ULTRASEG_OUTPUTS", str(folder))
        patch.setenv("PYTHONPATH", str(ROOT))
        write_demo_ledger()
        yield folder


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(folder: Path, *command: str) -> tuple[subprocess.Popen, str]:
    """Start a server in a folder on a free port and wait until it answers."""
    port = free_port()
    words = [sys.executable, "-m", *command, "--no-browser", f"--port={port}"]
    log = (folder / "server.log").open("w")
    server = subprocess.Popen(words, cwd=folder, env=os.environ, stdout=log, stderr=log)
    for _ in range(240):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server, f"http://127.0.0.1:{port}"
        time.sleep(0.25)
    server.kill()
    raise RuntimeError((folder / "server.log").read_text())


def copy_of_notebooks(folder: Path) -> Path:
    """Copy notebook 11 and its settings, so that no server writes into the repository."""
    for name in (NOTEBOOK, "voila.json"):
        shutil.copy(NOTEBOOKS / name, folder)
    return folder


@pytest.fixture(scope="module")
def voila(outputs_folder, tmp_path_factory) -> Iterator[str]:
    pytest.importorskip("voila")
    folder = copy_of_notebooks(tmp_path_factory.mktemp("voila"))
    server, address = start(folder, "voila", NOTEBOOK)
    yield address
    server.terminate()
    server.wait()


@pytest.fixture(scope="module")
def lab(outputs_folder, tmp_path_factory) -> Iterator[str]:
    folder = copy_of_notebooks(tmp_path_factory.mktemp("lab"))
    settings = folder / "settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    everything = '{"windowingMode": "none"}'  # cells out of sight are drawn, too
    (settings / "tracker.jupyterlab-settings").write_text(everything)
    options = (
        "--IdentityProvider.token=", "--allow-root", "--ServerApp.disable_check_xsrf=True",
        f"--LabApp.user_settings_dir={folder / 'settings'}",
    )  # fmt: skip
    server, address = start(folder, "jupyterlab", *options)
    yield address
    server.terminate()
    server.wait()


# --- what a person does -------------------------------------------------------------------------


def run_all_cells(page) -> None:
    """Run all cells once the kernel is connected: before, JupyterLab asks for one in a dialog."""
    page.get_by_text(re.compile(r"\| Idle$")).wait_for(timeout=WAIT)  # the status bar
    page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()


def open_app(page, address: str) -> None:
    """Open the voila app, or notebook 11 in JupyterLab and run all its cells, and wait."""
    if "lab" in page.title_of_test:
        page.goto(f"{address}/lab/tree/{NOTEBOOK}")
        page.locator(".jp-Notebook").wait_for(timeout=WAIT)
        run_all_cells(page)
    else:
        page.goto(address, timeout=WAIT)  # voila answers when the notebook has run
    page.locator("img.widget-image").wait_for(timeout=WAIT)
    page.locator("img.widget-image").scroll_into_view_if_needed()


def picture(page) -> str:
    return page.locator("img.widget-image").get_attribute("src")


def change(page, act) -> float:
    """Do something, wait until the picture is another, and return the seconds that took."""
    before, began = picture(page), time.perf_counter()
    act()
    page.wait_for_function(
        "before => document.querySelector('img.widget-image').src !== before", arg=before
    )
    return time.perf_counter() - began


def numbers(page) -> list[str]:
    """Return the row of numbers of the leading model."""
    return page.locator(".widget-html table").first.locator("td").all_inner_texts()


def choose(page, name: str, value: str) -> None:
    page.get_by_label(name, exact=True).select_option(label=value)


def ledger_rows(outputs: Path) -> pd.DataFrame:
    """Return the scores of MODEL on the NBI images of the unseen center, worst first."""
    run = next(run for run in study.finished_runs("demo") if run.model == "lbunet")
    scores = study.read_scores(run)
    mine = scores[(scores["test_set"] == "synthetic_unseen") & (scores["modality"] == "NBI")]
    return mine.sort_values("dice", kind="stable", ignore_index=True)


def assert_nothing_clipped_or_overlapping(page, width: int) -> None:
    """Compare the boxes of all controls and panels with the window and with each other."""
    found = page.locator(
        ".widget-dropdown, .widget-select-multiple, .widget-slider, .widget-button, .widget-text,"
        " .widget-checkbox, .widget-image, .widget-toggle-buttons"
    )
    boxes = [each.bounding_box() for each in found.all() if each.is_visible()]
    assert len(boxes) > 12
    for place, one in enumerate(boxes):
        assert one["x"] >= 0, one
        assert one["x"] + one["width"] <= width, one
        for other in boxes[place + 1 :]:
            across = min(one["x"] + one["width"], other["x"] + other["width"])
            across -= max(one["x"], other["x"])
            down = min(one["y"] + one["height"], other["y"] + other["height"])
            down -= max(one["y"], other["y"])
            assert across <= 1 or down <= 1, (one, other)


@pytest.fixture
def page(chromium, request, tmp_path):
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.title_of_test = request.node.name
    yield page
    page.screenshot(path=tmp_path / "at-the-end.png")  # for those who look for a failure
    page.close()


def wait_for_numbers(page, wanted):
    """Wait until the numbers beside the picture, which come after it, begin with these."""
    for _ in range(40):
        if numbers(page)[: len(wanted)] == wanted:
            return
        page.wait_for_timeout(250)
    assert numbers(page)[: len(wanted)] == wanted


def rate(page, name):
    """Give the shown case a 4 and a note, as the reviewer of this name."""
    page.get_by_label("review mode").check()
    page.get_by_label("your name").fill(name)
    page.get_by_label("your name").press("Tab")
    page.get_by_label("note").fill("as seen by a test")
    page.get_by_label("note").press("Tab")
    page.get_by_role("button", name="4", exact=True).click()
    page.get_by_text("1 rated, saved in").wait_for()


def look_over(page, stem):
    """Save pictures of the page, top and end, at two widths; nothing may be clipped or overlap."""
    for width in (1280, 1920):
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(700)
        for end, name in (("top", "test set"), ("end", "note")):
            page.get_by_label(name, exact=True).scroll_into_view_if_needed()
            page.screenshot(path=Path(f"{stem}-{width}-{end}.png"))
        assert_nothing_clipped_or_overlapping(page, width)


@pytest.mark.parametrize("where", ["voila", "lab"])
def test_a_person_picks_moves_sorts_and_rates(page, where, request, outputs_folder, tmp_path):
    address = request.getfixturevalue(where)
    open_app(page, address)
    change(page, lambda: choose(page, "test set", "Synthetic, unseen center"))
    choose(page, "model", MODEL)
    change(page, lambda: choose(page, "modality", "NBI"))
    change(page, lambda: choose(page, "sort by", "Dice"))

    expected = ledger_rows(outputs_folder)
    page.get_by_text(f"{len(expected)} of 200 cases").wait_for()
    keys = ("dice", "iou", "precision", "recall")
    worst = [f"{expected[key].iloc[0]:.3f}" for key in keys]
    wait_for_numbers(page, [MODEL, *worst, f"{expected['hd95'].iloc[0]:.1f}"])

    last = page.locator(".widget-slider", has_text="case").locator(".noUi-handle")
    last.focus()
    change(page, lambda: page.keyboard.press("End"))
    wait_for_numbers(page, [MODEL, f"{expected['dice'].iloc[-1]:.3f}"])
    threshold = page.locator(".widget-slider", has_text="threshold").locator(".noUi-handle")
    threshold.focus()
    seconds = [change(page, lambda: page.keyboard.press("ArrowRight")) for _ in range(3)]
    print(f"\n{where}: a moved threshold is shown after {min(seconds):.2f} to {max(seconds):.2f} s")
    assert min(seconds) < 2
    change(page, lambda: choose(page, "overlay", "error map"))
    page.get_by_label("compare", exact=True).select_option(label=["UNet-Tiny", "UltraSeg-130K"])
    page.wait_for_timeout(1000)

    rate(page, where)
    look_over(page, tmp_path / where)
    saved = pd.read_csv(outputs_folder / "demo" / "reviews" / f"{where}.csv")
    assert saved[["rating", "note", "saw_truth"]].to_numpy().tolist() == [
        [4, "as seen by a test", True]  # the case was shown with its truth before
    ]
    if where == "voila":  # each visit has a kernel of its own; this one goes on where that one was
        open_app(page, address)
        page.get_by_label("review mode").check()
        page.get_by_label("your name").fill(where)
        page.get_by_label("your name").press("Tab")
        page.get_by_text(f"1 rated in {where}.csv").wait_for()
