"""Figures of notebook 10: models side by side, Dice by group and size, failures by rule and in common, boundaries, calibration.

Every function returns a matplotlib Figure, or the table behind one, and shows nothing by itself.
"""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import permutations

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray
from pandas.io.formats.style import Styler

from ultraseg_lib import metrics
from ultraseg_lib.report.cases import Cases
from ultraseg_lib.report.figures import dataset_title, describe, model_style
from ultraseg_lib.report.metric_figures import LEVELS
from ultraseg_lib.report.overlays import EXTRA, LOST, OVERLAYS, legend_handles
from ultraseg_lib.report.tables import FEW, cells, error_bars, levels
from ultraseg_lib.study import Profile, Run
from ultraseg_lib.variants import find_variant

HALF = LEVELS // 2  # probability 0.5 as stored
FIGURE_MODELS = ("unet_tiny", "lbunet", "ultraseg_108k", "ultraseg_130k")  # then the large U-Net
LARGE = "unet_base"
SETTING = ("dataset", "recipe", "protocol", "epochs", "seed")
SMALL = 0.05  # share of the image below which a polyp counts as small
SIZE_CLASSES = 5
ONE_LINE = 6  # groups that fit side by side
FAILED = 0.3  # Dice below which an image counts as failed
SIDES = LinearSegmentedColormap.from_list("sides", ["#542788", "0.5", "#e08214"])  # inside, outside
BARS = {"inside": "inside the polyp", "outside": "outside the polyp", "lost": "not found (FN)",
        "extra": "painted wrongly (FP)"}  # fmt: skip
PICTURE_DPI = 80  # pages of pictures: notebooks stay small, files are saved larger


# --- which runs, which images -----------------------------------------------------------------


def wanted_models(profile: Profile) -> list[str]:
    """Return the models of Fig. 3, smallest first; the profile's teacher where UNet-Base is too large for it."""
    large = LARGE if LARGE in profile.models else profile.teacher
    return [*FIGURE_MODELS, large or LARGE]


def pick_test_sets(scored: dict[str, list[Run]], profile: Profile, first: str = "") -> list[str]:
    """Return the test sets of a ledger, the one to look at first in front.

    ``first``: its name; empty for the first of the profile's datasets that has a run. Raises
    ValueError where nothing, or not this one, is scored.
    """
    if not scored or (first and first not in scored):
        raise ValueError(
            f"test_set: no finished run is scored on {first or 'anything'}; scored are"
            f" {', '.join(scored) or 'none'}; do ./run_all.sh --profile {profile.name} first"
        )
    order = [first, *profile.datasets, *profile.tested, *scored]
    return [name for name in dict.fromkeys(order) if name in scored]


def pick_model(model: str, runs: Iterable[Run]) -> str:
    """Return ``model``, or the first of those that have a run, and say so.

    Raises ValueError, with the valid names, for an unknown model.
    """
    find_variant(model)
    found = [run.model for run in runs]
    if model in found:
        return model
    print(f"no run of {model} here: {found[0]} in its place")
    return found[0]


def pick_runs(runs: Iterable[Run], profile: Profile, model: str, test_set: str) -> list[Run]:
    """Return the runs of one setting that hold the most models of Fig. 3, ``model`` among them.

    Of settings with equally many, the one that was trained on ``test_set``'s own training part,
    else the first. Raises ValueError where ``model`` has no run.
    """
    wanted = [*dict.fromkeys((*wanted_models(profile), LARGE, model))]
    settings: dict[tuple, dict[str, Run]] = {}
    for run in runs:
        if run.model in wanted:
            key = tuple(getattr(run, each) for each in SETTING)
            settings.setdefault(key, {})[run.model] = run
    held = [group for group in settings.values() if model in group]
    if not held:
        raise ValueError(
            f"model: no finished run of {model} is scored here; do"
            f" ./run_all.sh --profile {profile.name} --models {model} first"
        )
    largest = max(held, key=lambda group: (len(group), group[model].dataset == test_set))
    return [largest[name] for name in wanted if name in largest]


def plan_comparison(profile: Profile, planned: Sequence[Run]) -> list[Run]:
    """Return the planned runs of the models of Fig. 3 in the first setting, and the teacher's run.

    The latter only where the profile distils: not where the user chose other models.
    """

    def setting(run: Run) -> tuple:
        return tuple(getattr(run, each) for each in SETTING)

    first = [run for run in planned if setting(run) == setting(planned[0])]
    chosen = [run for run in first if run.model in wanted_models(profile)]
    distils = profile.teacher and "distillation" in profile.grids
    teachers = [replace(planned[0], model=profile.teacher)] if distils else []
    return list(dict.fromkeys([*chosen, *teachers]))


def spread_rows(cases: Cases, count: int) -> list[int]:
    """Return ``count`` images with a polyp, evenly spread from the best to the worst mean Dice."""
    dice = np.mean([cases.dice(title) for title in cases.runs], axis=0)
    rows = np.flatnonzero(cases.frames.masks.any(axis=(1, 2)))
    ranked = rows[np.argsort(-dice[rows], kind="stable")]
    at = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return [int(row) for row in ranked[at]]


def failure_rules(cases: Cases, model: str, other: str | None) -> dict[str, NDArray[np.int64]]:
    """Return the rows (K,) of the images that each rule of Fig. 5 names, the gravest first.

    ``model`` and ``other`` are titles of ``cases``; without another there is no loss against it.
    """
    table, dice = cases.scores[model], cases.dice(model)
    area, polyp = table["area"].to_numpy(), table["area"].to_numpy() > 0
    false_pixels = cases.counts(model).fp[HALF]
    found = table["detected"].to_numpy(bool)

    def ranked(where: NDArray[np.bool_], by: NDArray) -> NDArray[np.int64]:
        rows = np.flatnonzero(where)
        return rows[np.argsort(by[rows], kind="stable")]

    rules = {"worst Dice": ranked(polyp & found, dice)}
    if other:
        loss = cases.dice(other) - dice
        rules["largest loss"] = ranked(polyp & (loss > 0), -loss)
    return rules | {
        "missed": ranked(polyp & ~found, -area),
        "false alarm": ranked(~polyp & (false_pixels > 0), -false_pixels),
        "multiple polyps": ranked(table["n_polyps"].to_numpy() > 1, dice),
        "largest area": ranked(polyp, -area),
    }


def pick_cases(rules: dict[str, NDArray[np.int64]]) -> dict[str, int | None]:
    """Return the gravest image of each rule that no earlier rule shows; None where there is none."""
    picked: dict[str, int | None] = {}
    for rule, rows in rules.items():
        left = [int(row) for row in rows if row not in picked.values()]
        picked[rule] = left[0] if left else None
    return picked


def rule_table(
    cases: Cases, rules: dict[str, NDArray[np.int64]], titles: Sequence[str]
) -> pd.DataFrame:
    """Return one row per rule: images it names, their share, the image shown, and each model's Dice on it."""
    rows = []
    for rule, shown in pick_cases(rules).items():
        row = {"rule": rule, "images": len(rules[rule]), "share": len(rules[rule]) / len(cases)}
        known = shown is not None
        row["image_id"] = cases.frames.table["image_id"].iloc[shown] if known else ""
        row |= {f"Dice of {t}": cases.dice(t)[shown] if known else np.nan for t in titles}
        rows.append(row)
    return pd.DataFrame(rows)


def case_table(cases: Cases, rows: Sequence[int]) -> pd.DataFrame:
    """Return one row per shown image: test_set, image_id, center, modality, and the Dice of each run."""
    known = cases.frames.table.iloc[list(rows)][["image_id", "center", "modality"]]
    known.insert(0, "test_set", cases.test_set)
    return known.assign(**{f"Dice of {t}": cases.dice(t)[list(rows)] for t in cases.runs})


def figure_title(cases: Cases) -> str:
    """Name the test set, and what the runs were trained on where that is another dataset."""
    title = dataset_title(cases.test_set)
    trained = [run.dataset for run in cases.runs.values() if run.dataset != cases.test_set]
    others = ", ".join(dict.fromkeys(dataset_title(name).partition(" (")[0] for name in trained))
    return f"{title}\ntrained on {others}" if others else title


# --- pictures -----------------------------------------------------------------------------------


def _pages(lines: int, columns: int) -> tuple[Figure, NDArray[np.object_]]:
    """Return a page of small pictures and its axes (lines, columns)."""
    size = (2.5 * columns, 2.7 * lines + 1.6)
    return plt.subplots(lines, columns, figsize=size, squeeze=False, dpi=PICTURE_DPI)


def _finish(figure: Figure, overlay: str, title: str) -> Figure:
    """Give a page its title, and below it what the colours of an overlay mean."""
    handles = legend_handles(overlay)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    figure.suptitle(title)
    return figure


def _show(axes: Axes, picture: NDArray[np.uint8]) -> None:
    """Show a picture (H, W, 3), or a mask (H, W), without a frame."""
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _show_run(axes: Axes, cases: Cases, row: int, title: str, overlay: str = "error map") -> None:
    """Show an image with a run's overlay."""
    image, mask = cases.frames.images[row], cases.frames.masks[row] > 0
    _show(axes, OVERLAYS[overlay](image, cases.probs(title)[row], HALF, mask))


def _blank(axes: Axes, words: str = "") -> None:
    axes.set_axis_off()
    axes.set_box_aspect(1)
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", color="0.4")


def show_comparison(cases: Cases, rows: Sequence[int], title: str) -> Figure:
    """Show Fig. 3: one line per image, one column per model, found, wrong and lost pixels tinted."""
    columns = ["input", "truth", *cases.runs]
    figure, grid = _pages(len(rows), len(columns))
    for line, row in zip(grid, rows, strict=True):
        _show(line[0], cases.frames.images[row])
        line[0].set_ylabel("\n".join(describe(cases.frames.table.iloc[row])), fontsize="small")
        _show(line[1], cases.frames.masks[row])
        for axes, name in zip(line[2:], cases.runs, strict=True):
            _show_run(axes, cases, row, name)
            axes.set_xlabel(f"Dice {cases.dice(name)[row]:.2f}", fontsize="small")
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(name.replace(", ", "\n"), fontsize="small")
    return _finish(figure, "error map", title)


def show_failures(
    cases: Cases, picked: dict[str, int | None], titles: Sequence[str], title: str
) -> Figure:
    """Show Fig. 5: one column per rule, the image above the error map of each model in ``titles``."""
    figure, grid = _pages(1 + len(titles), len(picked))
    for column, (rule, row) in zip(grid.T, picked.items(), strict=True):
        column[0].set_title(rule)
        if row is None:
            for axes in column:
                _blank(axes, "none here" if axes is column[0] else "")
            continue
        _show(column[0], cases.frames.images[row])
        for axes, name in zip(column[1:], titles, strict=True):
            _show_run(axes, cases, row, name)
            axes.set_xlabel(f"Dice {cases.dice(name)[row]:.2f}", fontsize="small")
    for line, name in zip(grid, ["input", *titles], strict=True):
        line[0].annotate(
            name.replace(", ", "\n"), (-0.08, 0.5), xycoords="axes fraction", rotation=90, ha="right",
            va="center", annotation_clip=False,
        )  # fmt: skip
    return _finish(figure, "error map", title)


def worst_rows(cases: Cases, model: str, count: int) -> NDArray[np.int64]:
    """Return the images with a polyp of the lowest Dice, worst first, of equal ones the largest polyp.

    Frames without a polyp are left out: one painted pixel makes their Dice 0.
    """
    area = cases.scores[model]["area"].to_numpy()
    ranked = np.lexsort((-area, cases.dice(model)))
    return ranked[area[ranked] > 0][:count]


def show_worst(cases: Cases, model: str, count: int = 25) -> Figure:
    """Show `worst_rows` of a run: a page of outlines, five per line."""
    rows = worst_rows(cases, model, count)
    figure, grid = _pages(-(-len(rows) // 5), 5)
    for axes in grid.flat[len(rows) :]:
        _blank(axes)
    for axes, row in zip(grid.flat, rows, strict=False):
        _show_run(axes, cases, row, model, "contour")
        words = ", ".join(describe(cases.frames.table.iloc[row]))
        axes.set_title(f"{cases.dice(model)[row]:.2f}  {words}", fontsize="small")
    polyps = np.count_nonzero(cases.scores[model]["area"])
    title = f"{model}: the {len(rows)} lowest Dice of {polyps} with a polyp\n{figure_title(cases)}"
    return _finish(figure, "contour", title)


def among_worst(cases: Cases, rows: Sequence[int], key: str) -> pd.DataFrame:
    """Compare how often each center or modality is among some images with a polyp and among all such.

    ``rows``: of the images. Columns: ``key``, worst and all (images), share_of_worst, share_of_all.
    """
    groups = cases.frames.table[key].replace("", "unknown")
    polyp = cases.frames.masks.any(axis=(1, 2))
    table = pd.DataFrame(
        {"worst": groups.iloc[list(rows)].value_counts(), "all": groups[polyp].value_counts()}
    )
    table = table.fillna(0).astype(int).sort_values("all", ascending=False)
    shares = (table / table.sum()).add_prefix("share_of_")
    return table.join(shares).rename_axis(key).reset_index()


# --- failures in common -------------------------------------------------------------------------


def agreement_table(several: Iterable[Cases], below: float = FAILED) -> pd.DataFrame:
    """Compare where two models of a test set fail: one row for each model and each other.

    A model fails an image where its Dice is under ``below``. Columns: test_set, model, other,
    images, spearman (rank correlation of their Dice), failed (images that ``model`` fails), shared
    (share of these that ``other`` fails too, NaN where there are none), usual (share of all images
    that ``other`` fails).
    """
    rows = []
    for cases in several:
        dice = pd.DataFrame({title: cases.dice(title) for title in cases.runs})
        ranks, fails = dice.corr("spearman"), dice < below
        rows += [
            (cases.test_set, model, other, len(cases), ranks.loc[model, other], fails[model].sum(),
             fails.loc[fails[model], other].mean(), fails[other].mean())
            for model, other in permutations(dice, 2)
        ]  # fmt: skip
    columns = ["test_set", "model", "other", "images", "spearman", "failed", "shared", "usual"]
    return pd.DataFrame(rows, columns=columns)


def _show_matrix(axes: Axes, table: pd.DataFrame, form: str, title: str) -> None:
    """Show a table as coloured numbers between 0 and 1."""
    sns.heatmap(table, annot=True, fmt=form, vmin=0, vmax=1, cmap="cividis", cbar=False, ax=axes,
                annot_kws={"size": "small"}, linewidths=1)  # fmt: skip
    for text in axes.texts:
        column, row = map(int, text.get_position())
        text.set_color("black" if table.iloc[row, column] > 0.5 else "white")
    axes.set(xlabel="", ylabel="")
    axes.set_title(title, fontsize="small")
    axes.tick_params(length=0, labelsize="small")
    axes.tick_params(axis="x", labelrotation=30)
    plt.setp(axes.get_xticklabels(), ha="right", rotation_mode="anchor")
    plt.setp(axes.get_yticklabels(), rotation=0)


def plot_agreement(table: pd.DataFrame) -> Figure:
    """Show `agreement_table`: one line per test set, rank correlations beside failures in common."""
    by_set, models = table.groupby("test_set", sort=False), table["model"].unique()
    size = (17, (2.8 + 0.55 * len(models)) * len(by_set))
    figure, grid = plt.subplots(len(by_set), 2, figsize=size, squeeze=False)
    for (left, right), (name, part) in zip(grid, by_set, strict=True):
        square = part.pivot(index="model", columns="other").reindex(models)
        failed = part.groupby("model")["failed"].first()
        usual = part.groupby("other")["usual"].first()
        rows = [f"where {model} fails ({failed[model]})" for model in models]
        shared = square["shared"][models].set_axis(rows)
        shared.loc[f"all images ({part['images'].iloc[0]})"] = usual
        _show_matrix(left, square["spearman"][models], ".2f", "rank correlation of Dice")
        _show_matrix(right, shared, ".0%", "share of the images that each model fails")
        left.annotate(dataset_title(name), (0, 1.14), xycoords="axes fraction")
    return figure


# --- Dice by group and by size ------------------------------------------------------------------


def long_scores(several: Iterable[Cases]) -> pd.DataFrame:
    """Join the scores of some test sets: the ledger's columns, model (its title) and size (area, share of the image)."""
    tables = []
    for cases in several:
        pixels = cases.frames.masks[0].size
        for title, table in cases.scores.items():
            tables.append(table.assign(model=title, size=table["area"] / pixels))
    return pd.concat(tables, ignore_index=True)


def add_group(scores: pd.DataFrame, key: str) -> pd.DataFrame:
    """Add the column ``group``: center or modality in words, and its images in the test set."""
    told = scores[key].ne("")
    some = told.groupby(scores["test_set"]).transform("any")
    name = scores[key].str.replace("_", " ").where(told, some.map({True: "unknown", False: "all"}))
    count = scores.groupby(["test_set", key])["image_id"].transform("nunique")
    return scores.assign(group=name + "\nn = " + count.astype(str))


def _levels(scores: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Average Dice over each group: keys, images, dice, dice_low, dice_high, missed."""
    table = levels(scores.assign(seed=0, batch_pooled_dice=np.nan), keys)
    table.loc[table["images"] < FEW, ["dice_low", "dice_high"]] = np.nan
    columns = [*keys, "images", "dice", "dice_low", "dice_high", "missed"]
    return table.rename(columns={"miss_rate": "missed"})[columns]


def group_table(grouped: pd.DataFrame) -> pd.DataFrame:
    """Average Dice by test set, group and model.

    Columns: test_set, group, model, images, dice, dice_low and dice_high (95 % interval; NaN below
    FEW images, of which it is too narrow), missed (share of the images with a polyp).
    """
    table = _levels(grouped, ["test_set", "group", "model"])
    return table.assign(group=table["group"].str.partition("\n")[0])


def show_groups(table: pd.DataFrame, key: str) -> Styler:
    """Show a `group_table` on a notebook's page: a row a group, a column a model.

    A cell tells the mean Dice, below it its interval and the share of the polyps missed.
    """

    def tell(dice: float, low: float, high: float, missed: float) -> str:
        interval = f"\n{low:.3f} to {high:.3f}" if low == low else ""
        return f"{dice:.3f}{interval}" + (f"\n{missed:.1%} missed" if missed == missed else "")

    told = table.assign(
        cell=cells(table, tell, "dice", "dice_low", "dice_high", "missed"),
        **{"test set": table["test_set"].map(dataset_title), key: table["group"]},
    )
    rows = ["test set", key, "images"]
    wide = told.pivot(index=rows, columns="model", values="cell")
    wide = wide.reindex(pd.MultiIndex.from_frame(told[rows].drop_duplicates()))
    wide = wide[table["model"].unique()].fillna("–").rename_axis(columns=None).reset_index()
    return wide.style.hide().set_properties([*wide.columns[1:]], **{"white-space": "pre"})


def _lines_of_panels(groups: dict[str, int], width: int) -> list[list[str]]:
    """Lay panels out for `plt.subplot_mosaic`: each as wide as its groups, ``width`` groups a line."""
    lines: list[list[str]] = [[]]
    for name, count in groups.items():
        if len(lines[-1]) + count > width:
            lines.append([])
        lines[-1] += [name] * count
    return [line + ["."] * (width - len(line)) for line in lines]


def plot_dice_by_group(grouped: pd.DataFrame, key: str) -> Figure:
    """Show Fig. 4: the Dice of every image by group and model, one panel per test set.

    Boxes; points, side by side where they are equal, in groups of fewer than FEW images.
    """
    models = list(grouped["model"].unique())
    by_set = grouped.groupby("test_set", sort=False)
    groups = by_set["group"].nunique().to_dict()
    whole = sum(groups.values())
    lines = _lines_of_panels(groups, whole if whole <= ONE_LINE else max(groups.values()))
    inches = max(2.4, 0.55 * len(models))  # of a group
    size = (inches * len(lines[0]) + 4.5, 4.4 * len(lines))
    figure, panels = plt.subplot_mosaic(lines, figsize=size, sharey=True)
    style = {"x": "group", "y": "dice", "hue": "model", "hue_order": models, "legend": False,
             "palette": [model_style(name)[0] for name in models]}  # fmt: skip
    mean = {"marker": "D", "mfc": "white", "mec": "black", "ms": 8}
    for name, part in by_set:
        axes, order = panels[name], sorted(part["group"].unique())
        few = part.groupby("group")["image_id"].transform("nunique") < FEW
        sns.boxplot(part[~few], order=order, ax=axes, fliersize=3, showmeans=True, meanprops=mean,
                    **style)  # fmt: skip
        sns.swarmplot(part[few], order=order, ax=axes, size=8, dodge=True, linewidth=1,
                      warn_thresh=1, **style)  # fmt: skip
        axes.set(xlabel=key, ylabel="Dice of an image", ylim=(-0.03, 1.03))
        axes.set_title(textwrap.fill(dataset_title(name), 18 * groups[name]))
    handles = [Patch(color=model_style(name)[0], label=name) for name in models]
    figure.legend(handles=handles, loc="outside right center", fontsize="small",
                  title=f"white diamond: mean;\npoints where n < {FEW}", title_fontsize="small")  # fmt: skip
    return figure


def dice_by_size(scores: pd.DataFrame) -> pd.DataFrame:
    """Average Dice over classes of polyp size with equally many images, in each test set.

    ``scores`` as from `long_scores`. Columns: test_set, model, size (median, share of the image),
    images, dice, dice_low, dice_high (95 % interval; NaN below FEW images), missed (share of the
    images).
    """
    polyps, keys = scores[scores["area"] > 0], ["test_set", "model"]
    rank = np.ceil(polyps.groupby(keys)["size"].rank(pct=True) * SIZE_CLASSES)
    medians = polyps.groupby([*keys, rank.rename("class")])["size"].transform("median")
    table = _levels(polyps.assign(size=medians), [*keys, "size"])
    return table.sort_values([*keys, "size"], ignore_index=True)


def plot_dice_by_size(scores: pd.DataFrame, binned: pd.DataFrame, model: str) -> Figure:
    """Show Dice against polyp size: means of size classes for every model, and each image of one."""
    names = list(scores["test_set"].unique())
    figure, panels = plt.subplot_mosaic([[n] for n in names], figsize=(12, 4.6 * len(names)))
    low, high = scores.loc[scores["area"] > 0, "size"].agg(["min", "max"])
    ticks = [t for t in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if low <= t <= high]
    for test_set, axes in panels.items():
        points = scores[(scores["model"] == model) & (scores["test_set"] == test_set)]
        points = points[points["area"] > 0]
        axes.plot(points["size"], points["dice"], "o", ms=5, c="0.75", label=f"{model}, one image")
        for place, name in enumerate(scores["model"].unique()):
            line = binned[(binned["model"] == name) & (binned["test_set"] == test_set)]
            shifted = line["size"] * 1.03**place  # so that error bars do not hide each other
            colour, marker = model_style(name)
            axes.errorbar(shifted, line["dice"], error_bars(line), fmt=f"{marker}-", ms=10, lw=3,
                          capsize=4, color=colour, label=name)  # fmt: skip
        axes.axvline(SMALL, color="black", lw=1, ls=":")
        axes.text(SMALL, 1.03, "small  ", ha="right", va="top", fontsize="small")
        axes.set(xscale="log", ylabel="Dice", xlim=(low / 1.2, high * 1.2), ylim=(-0.03, 1.03))
        axes.set_title(dataset_title(test_set))
        axes.set_xticks(ticks, [f"{100 * t:g} %" for t in ticks])
        axes.minorticks_off()
    axes.set_xlabel("polyp area (share of the image, log scale)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize="small",
                  title="means of size classes,\n95 % interval", title_fontsize="small")  # fmt: skip
    return figure


# --- boundaries ---------------------------------------------------------------------------------


def boundary_errors(pred: NDArray[np.bool_], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return how far each predicted boundary pixel lies from the true boundary, in px; NaN elsewhere.

    ``pred`` and ``mask`` (H, W) bool. Positive: outside the polyp; negative: inside. All NaN where
    either is empty.
    """
    errors = np.full(mask.shape, np.nan)
    rim = metrics.boundary_pixels(mask)
    if not (rim.any() and pred.any()):
        return errors
    away = cv2.distanceTransform((~rim).view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    ours = metrics.boundary_pixels(pred)
    errors[ours] = np.where(mask, -away, away)[ours]
    return errors


def show_boundary_errors(cases: Cases, rows: Sequence[int], title: str, limit: float) -> Figure:
    """Show maps of boundary errors: one line per image, one column per model, ±``limit`` px in colour."""
    names = list(cases.runs)
    figure, grid = plt.subplots(
        len(rows), len(names), figsize=(3 * len(names) + 1.5, 3.1 * len(rows) + 1.4), squeeze=False
    )
    for line, row in zip(grid, rows, strict=True):
        mask = cases.frames.masks[row] > 0
        for axes, name in zip(line, names, strict=True):
            errors = boundary_errors(cases.probs(name)[row] >= HALF, mask)
            axes.imshow(np.where(mask, 0.8, 1.0), cmap="gray", vmin=0, vmax=1)
            y, x = np.nonzero(~np.isnan(errors))
            shown = axes.scatter(x, y, c=errors[y, x], s=9, cmap=SIDES,
                                 norm=TwoSlopeNorm(0, -limit, limit))  # fmt: skip
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color="0.7")
            axes.set_xlabel(f"Dice {cases.dice(name)[row]:.2f}", fontsize="small")
        line[0].set_ylabel("\n".join(describe(cases.frames.table.iloc[row])), fontsize="small")
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name.replace(", ", "\n"), fontsize="small")
    figure.colorbar(shown, ax=grid, label="distance to the true boundary (px)\n"
                    "inside (−), outside (+)", extend="both", shrink=0.8)  # fmt: skip
    figure.suptitle(title)
    return figure


def boundary_table(cases: Cases) -> pd.DataFrame:
    """Return, for every image with both boundaries: model, image_id, inside, outside (px), polyp, lost, extra (pixels).

    ``inside`` and ``outside`` are the mean distances of the boundary pixels that lie inside, and
    outside, the polyp, taken over all boundary pixels: their sum is the mean distance to the true
    boundary. ``lost`` (FN) and ``extra`` (FP) count wrong pixels, ``polyp`` those of the truth.
    """
    rows = []
    for name in cases.runs:
        for row, image_id in enumerate(cases.frames.table["image_id"]):
            pred, mask = cases.probs(name)[row] >= HALF, cases.frames.masks[row] > 0
            errors = boundary_errors(pred, mask)
            errors = errors[~np.isnan(errors)]
            if len(errors):
                sides = -errors.clip(max=0).mean(), errors.clip(min=0).mean()
                pixels = mask.sum(), (mask & ~pred).sum(), (pred & ~mask).sum()
                rows.append((name, image_id, *sides, *pixels))
    columns = ["model", "image_id", "inside", "outside", "polyp", "lost", "extra"]
    return pd.DataFrame(rows, columns=columns)


def plot_boundary_table(table: pd.DataFrame, title: str) -> Figure:
    """Show, for each model, how far its boundary is off on either side, and how many pixels are wrong."""
    by_model = table.groupby("model", sort=False)
    pixels = by_model[["polyp", "lost", "extra"]].sum()
    share = 100 * pixels[["lost", "extra"]].div(pixels["polyp"], axis=0)
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 2.6 + 0.6 * len(pixels)), sharey=True)
    for axes, values, colours, label in (
        (left, by_model[["inside", "outside"]].mean(), SIDES([0.0, 1.0]),
         "distance to the true boundary\n(px, mean over images)"),
        (right, share, (LOST, EXTRA), "wrong pixels (% of the polyps' pixels)"),
    ):  # fmt: skip
        for sign, (name, bars), colour in zip((-1, 1), values.items(), colours, strict=True):
            axes.barh(bars.index, sign * bars, color=colour, label=BARS[name])
        axes.axvline(0, color="black", lw=1.5)
        axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        axes.set_xlabel(label)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize="small")
    left.invert_yaxis()
    figure.suptitle(title)
    return figure


# --- calibration --------------------------------------------------------------------------------


def reliability(cases: Cases, bins: int = 10) -> pd.DataFrame:
    """Compare probabilities with what came true, over all pixels of a test set.

    Columns: model, bin, pixels, prob (their mean probability), polyp (the share of them that is
    polyp). Bins without pixels are left out.
    """
    level = np.arange(LEVELS)
    which = level * bins // LEVELS
    rows = []
    for name in cases.runs:
        tp, fp, _, _ = cases.counts(name)
        above = np.array([tp.sum(axis=1), fp.sum(axis=1)])  # at or above each level
        polyp, background = above - np.append(above[:, 1:], np.zeros((2, 1), above.dtype), axis=1)
        for each in range(bins):
            pixels = (polyp + background)[which == each]
            if pixels.sum():
                prob = (pixels * level[which == each]).sum() / pixels.sum() / (LEVELS - 1)
                share = polyp[which == each].sum() / pixels.sum()
                rows.append((name, each, int(pixels.sum()), prob, share))
    return pd.DataFrame(rows, columns=["model", "bin", "pixels", "prob", "polyp"])


def calibration_error(table: pd.DataFrame) -> pd.Series:
    """Return the expected calibration error of each model: the mean gap in `reliability`, weighted by pixels."""
    gap = (table["prob"] - table["polyp"]).abs() * table["pixels"]
    by_model = table.assign(gap=gap).groupby("model", sort=False)
    return by_model["gap"].sum() / by_model["pixels"].sum()


def plot_reliability(table: pd.DataFrame, title: str) -> Figure:
    """Show predicted probability against the share that is polyp, above how many pixels say so."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(11, 8), height_ratios=(3, 1), sharex=True)
    top.plot([0, 1], [0, 1], color="0.6", lw=2, ls="--")
    top.text(0.31, 0.37, "calibrated", color="0.4", rotation=31, ha="center", fontsize="small")
    errors = calibration_error(table)
    for name, part in table.groupby("model", sort=False):
        style = dict(zip(("color", "marker"), model_style(name), strict=True), lw=3, ms=10)
        top.plot(part["prob"], part["polyp"], label=f"{name}: {errors[name]:.3f}", **style)
        bottom.plot(part["prob"], 100 * part["pixels"] / part["pixels"].sum(), **style | {"ms": 7})
    top.set(ylabel="share that is polyp", xlim=(0, 1), ylim=(-0.02, 1.02), title=title)
    bottom.set(yscale="log", ylim=(None, 150))
    bottom.yaxis.set_major_locator(LogLocator(numticks=5))
    bottom.yaxis.set_major_formatter("{x:g}")
    bottom.minorticks_off()
    bottom.set(xlabel="predicted probability of polyp", ylabel="pixels (%)")
    top.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small",
               title="calibration error", title_fontsize="small")  # fmt: skip
    return figure
