"""What is generated in prose: links between notebooks, the index, tables of READMEs, model cards.

A block stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``. ``python -m tools.prose``
renews all.
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nbformat
import pandas as pd

from tools import record, summary
from ultraseg_lib import study
from ultraseg_lib.data import dataset_title
from ultraseg_lib.data.splits import EXTERNAL
from ultraseg_lib.notebooks import find_notebooks
from ultraseg_lib.paths import NOTEBOOKS, ROOT, write_text
from ultraseg_lib.report import external, tables

BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
PICTURE = ROOT / "docs" / "results.png"  # its numbers lie beside it as CSV
NEXT = re.compile(r"## Next\b.*", re.DOTALL)


@cache  # refreshing changes no opening
def _opening(notebook: Path) -> str:
    return nbformat.read(notebook, as_version=4)["cells"][0]["source"]


def _title(notebook: Path) -> str:
    return _opening(notebook).splitlines()[0].removeprefix("# ")


def _question(notebook: Path) -> str:
    found = re.search(r"\*\*Question\.\*\* (.+)", _opening(notebook))
    if found is None:
        raise ValueError(f"{notebook.name}: its first cell has no line that begins **Question.**")
    return found[1].strip()


def _links(notebook: Path) -> str:
    """Return the line that ends a notebook: the previous one, the next with its question, the index."""
    all_of_them = find_notebooks()
    place = all_of_them.index(notebook)
    lines = []
    if place + 1 < len(all_of_them):
        after = all_of_them[place + 1]
        lines.append(f"Next: [{_title(after)}]({after.name}) – {_question(after)}")
    if place:
        before = all_of_them[place - 1]
        index = all_of_them[0]
        more = "" if before == index else f" · all: [{_title(index)}]({index.name})"
        lines.append(f"Back: [{_title(before)}]({before.name}){more}")
    return "\n\n".join(lines)


# --- blocks ---------------------------------------------------------------------------------------


def index_of_notebooks() -> str:
    """Return a table of the notebooks with their questions, for the index."""
    lines = [f"| [{_title(path)}]({path.name}) | {_question(path)} |" for path in find_notebooks()]
    return "\n".join(["| notebook | question |", "|---|---|", *lines])


def readme_notebooks() -> str:
    """Return the table of notebooks of the README, with the minutes of the committed timings."""
    timings = ROOT / "outputs" / "reference" / "demo_minutes.csv"
    minutes = pd.read_csv(timings, index_col="notebook")["minutes"].to_dict()
    lines = []
    for path in find_notebooks():
        told = [value for name, value in minutes.items() if name.startswith(path.stem)]
        cell = f"{sum(told):.1f}" if told else "–"
        lines.append(f"| [{path.stem}](notebooks/{path.name}) | {_question(path)} | {cell} |")
    return "\n".join(["| notebook | question | minutes in the demo |", "|---|---|---|", *lines])


def readme_results() -> str:
    """Return the results on real images beside the paper's, a row a model, from the committed ledger."""
    printed = tables.paper_table3().query("title == 'UNet-Base'").set_index("dataset")["paper_dice"]
    ledger = record.committed_ledger()
    here = printed.index.intersection(tables.own_scores(ledger)["dataset"]).sort_values()
    return f"{record.own_summary(ledger)}\n\n{_base_line(printed[here])}"


def readme_mixed() -> str:
    """Return what training on the mixed set gives on unseen hospitals, beside the paper's Table 6."""
    printed = (
        external.paper_table6().query("title == 'UNet-Base'").set_index("tested")["paper_dice"]
    )
    table = record.unseen_summary(record.committed_ledger())
    return f"{table}\n\n{_base_line(printed[[*EXTERNAL]])} {_shipped()}"


def _shipped() -> str:
    """Say what the shipped weights have alone, and what the authors' have, on unseen hospitals."""
    run = record.shipped_run("ultraseg_130k")
    shipped = record.card_scores(run).set_index("tested")[["batch_pooled_dice", "dice"]]
    authors = record.authors_levels().set_index("tested")[["any_order", "dice"]]
    ours, theirs = (
        ", per image ".join(
            " and ".join(f"{dice[name]:.3f}" for name in EXTERNAL) for _, dice in rows.items()
        )
        for rows in (shipped, authors)
    )
    return (
        f"On {' and '.join(map(dataset_title, EXTERNAL))} the shipped weights of UltraSeg-130K, one seed"
        f" after {run.epochs} epochs, have {ours}; the weights that the authors publish, scored here,"
        f" {theirs}."
    )


def _base_line(printed: pd.Series) -> str:
    """Say what the paper prints for its large U-Net, by dataset."""
    size = tables.printed_table(1)["params_m"]["UNet-Base"]
    cells = [f"{dice:.4f} on {dataset_title(name)}" for name, dice in printed.items()]
    return f"The paper's UNet-Base ({size:g} M parameters) has {', '.join(cells)}."


BLOCKS: dict[str, Callable[[], str]] = {
    "index": index_of_notebooks,
    "notebooks": readme_notebooks,
    "findings": summary.findings,
    "results": readme_results,
    "ahead": record.lead_summary,
    "mixed": readme_mixed,
    "own": lambda: record.own_results(record.committed_ledger()),
    "authors": record.authors_results,
    "orders": record.order_effects,
    "unseen": lambda: record.unseen_results(record.committed_ledger()),
    "leads_told": record.leads_told,
    "trainings": lambda: record.trainings(record.committed_ledger()),
    "draws": lambda: record.drawn(record.committed_ledger()),
    "choices": lambda: record.choices(record.committed_ledger()),
    "ladder": lambda: record.ladder(record.committed_ledger()),
    "repeats": record.repeats,
    "cells": record.cells_run,
    **{f"answer_{key}": lambda key=key: summary.answer(key) for key in summary.QUESTIONS},
}


def fill(text: str) -> str:
    """Return a text with each of its generated blocks renewed; raise ValueError for an unknown one."""

    def renew(found: re.Match) -> str:
        if found[2] not in BLOCKS:
            raise ValueError(f"no block {found[2]!r}; choose from {', '.join(BLOCKS)}")
        return f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}"

    return BLOCK.sub(renew, text)


def _renewed_notebook(path: Path) -> str:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            links = f"## Next\n\n{_links(path)}"
            cell["source"] = NEXT.sub(lambda _, links=links: links, fill(cell["source"]))
    return nbformat.writes(notebook) + "\n"


def renewed() -> dict[Path, str]:
    """Return what every file with generated prose should hold."""
    files = {path: _renewed_notebook(path) for path in find_notebooks()}
    texts = (ROOT / "README.md", NOTEBOOKS / "README.md", ROOT / "outputs/reference/README.md")
    files |= {path: fill(path.read_text(encoding="utf-8")) for path in texts}
    files[PICTURE.with_suffix(".csv")] = summary.summary_data()
    files[ROOT / "outputs/reference/leads.csv"] = record.leads()
    runs = study.finished_runs("reference")
    return files | {run.folder / "MODEL_CARD.md": record.model_card(run) for run in runs}


def stale() -> dict[Path, str]:
    """Return the files whose generated prose is out of date, with what they should hold."""
    return {
        path: text
        for path, text in renewed().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }


def refresh() -> list[Path]:
    """Renew all generated prose, and the README's picture of results; return the files that changed."""
    changed = stale()
    for path, text in changed.items():
        write_text(path, text)
    if PICTURE.with_suffix(".csv") in changed:
        summary.write_picture(PICTURE)
    return list(changed)


if __name__ == "__main__":
    print("\n".join(f"renewed {path}" for path in refresh()) or "nothing was out of date")
