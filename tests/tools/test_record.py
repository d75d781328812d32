"""The record in prose says what its files say."""

import dataclasses
import json
import re

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from tools import prose, record, summary
from ultraseg_lib import __main__ as command_line
from ultraseg_lib import study
from ultraseg_lib.data import catalog, dataset_title
from ultraseg_lib.data.splits import EXTERNAL, MIXED, read_split, split_path
from ultraseg_lib.paths import ROOT
from ultraseg_lib.report import benchmark_figures, draws, tables
from ultraseg_lib.report.tables import main_table
from ultraseg_lib.variants import model_title
from ultraseg_lib.weights import shipped_weights

pytestmark = pytest.mark.usefixtures("committed_outputs")


def block(name: str, page: str = "outputs/reference/README.md") -> str:
    """Return a generated block of a README, the record's at first, which test_prose.py finds fresh."""
    text = (ROOT / page).read_text()
    found = next(found[0] for found in prose.BLOCK.finditer(text) if found[2] == name)
    return "\n".join(found.splitlines()[1:-1])


def card_of(run: study.Run) -> str:
    return (run.folder / "MODEL_CARD.md").read_text()


def cells(table: str) -> list[list[str]]:
    """Return the cells of a Markdown table, its head first."""
    lines = [line for line in table.splitlines() if not line.startswith("|---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_difference_is_ours_minus_the_papers():
    head, *rows = cells(block("own"))
    compared = [dict(zip(head, row, strict=True)) for row in rows]
    assert all(len(row) == len(head) for row in rows)
    with_paper = [row for row in compared if row["paper"] != "–"]
    assert with_paper
    for row in with_paper:
        expected = float(row["Dice per batch of 4"]) - float(row["paper"])
        assert float(row["per batch − paper"]) == pytest.approx(expected, abs=2e-3)


def test_unseen_rows_hold_every_setting_once_for_each_unseen_dataset():
    settings = {dataclasses.replace(run, seed=0) for run in study.finished_runs("reference")}
    mixed = [run for run in settings if run.dataset == "mixed"]
    assert len(table_of(block("unseen"))) == 2 * len(mixed)


def table_of(text: str) -> list[dict[str, str]]:
    head, *rows = cells(text.partition("\n\n")[0])
    return [dict(zip(head, row, strict=True)) for row in rows]


def test_short_table_of_the_front_page_repeats_the_long_one():
    rows = [
        row | dict(zip(("recipe", "epochs", "protocol"), setting, strict=True))
        for row in table_of(block("own"))
        for setting in [row["recipe, epochs, protocol"].split(", ")]
    ]
    rows.sort(key=lambda row: (int(row["seeds"]), int(row["epochs"])))  # the last one is shown
    long = {
        tuple(row[key] for key in ("dataset", "model", "recipe", "protocol")): row for row in rows
    }
    short = table_of(block("results", "README.md"))
    assert {(row["dataset"], row["model"]) for row in short} == {
        key[:2]
        for key in long
        if "," not in key[1]
        and "(ST)" not in key[1]  # variants
        and ", draw " not in key[0]  # in a table of their own
    }
    for row in short:
        for recipe, protocol in (("paper", "released"), ("strong", "clean")):
            same = long.get((row["dataset"], row["model"], recipe, protocol))
            cell = row[f"ours, `{recipe}` and `{protocol}`"]
            if same is None:
                assert cell == "not run"
                continue
            per_batch, _, seeds = cell.partition(" ")
            assert per_batch == same["Dice per batch of 4"]
            several = same["seeds"] != "1"
            assert seeds == (f"(mean of {same['seeds']} seeds)" if several else "")
            assert row["paper"] == same["paper"]
            name = "Dice per image (95 % interval)"
            assert protocol == "released" or row[f"the same {name[5:]}"] == same[name]


def test_front_page_tells_the_training_of_the_shipped_weights_of_the_mixed_set():
    long = {
        (row["tested on"], row["model"], row["Dice per image (95 % interval)"]): row
        for row in table_of(block("unseen"))
    }
    short = table_of(block("mixed", "README.md"))
    assert {"UltraSeg-108K", "UltraSeg-130K"} <= {row["model"] for row in short}
    assert len(short) == len({(row["tested on"], row["model"]) for row in short})
    for row in short:
        same = long[row["tested on"], row["model"], row["the same per image (95 % interval)"]]
        assert row["paper"] == same["paper"]
        ours, _, seeds = row["ours"].partition(" ")
        assert ours == same["Dice per batch of 4"]
        assert seeds == (f"(mean of {same['seeds']} seeds)" if same["seeds"] != "1" else "")


PAIR = ["model", "baseline", "dataset", "recipe", "epochs", "protocol", "tested"]


@pytest.fixture(scope="module")
def leads() -> pd.DataFrame:
    return pd.read_csv(ROOT / "outputs/reference/leads.csv").set_index(PAIR).sort_index()


def test_leads_are_differences_of_the_tables_beside_the_papers(leads):
    ledger = study.read_ledger("reference")
    keys = ("ultraseg_130k", "unet_tiny", "kvasir_seg", "strong", 100, "clean", "kvasir_seg")
    here = ledger[(ledger["test_set"] == "kvasir_seg") & (ledger["dataset"] == "kvasir_seg")]
    here = here[(here[["recipe", "epochs", "protocol"]] == [*keys[3:6]]).all(axis=1)]
    means = here.groupby("model")[["dice", "batch_pooled_dice"]].mean()
    ahead = means.loc["ultraseg_130k"] - means.loc["unet_tiny"]
    row = leads.loc[keys]
    assert row["difference"] == pytest.approx(ahead["dice"], abs=1e-4)
    assert row["batch"] == pytest.approx(ahead["batch_pooled_dice"], abs=1e-4)
    assert row["paper"] == pytest.approx(0.7489 - 0.6146)
    assert row["low"] < row["difference"] < row["high"]


def test_where_it_is_ahead_is_told_as_the_intervals_have_it(leads):
    assert set(leads.loc[leads["seeds"] < 3, "side"]) == {"too few seeds: no verdict"}
    table = leads[leads["seeds"] > 2].reset_index()
    rules = pd.MultiIndex.from_frame(table[["recipe", "protocol"]])
    table = table[rules.isin([*record.RULES.values()])]
    told = {
        (row["models"], row["trained on"], row["recipe, epochs, protocol"]): row
        for row in table_of(block("leads_told"))
    }
    assert len(told) >= 6
    for row in table.itertuples():
        decided = "ahead" if row.difference > 0 else "behind"
        assert row.side == (decided if row.p_holm < 0.05 else "undecided")
        assert row.p_holm >= 0.05 or row.low >= 0 or row.high <= 0  # p belongs to the interval
        names = " − ".join(map(model_title, (row.model, row.baseline)))
        setting = f"{row.recipe}, {row.epochs}, {row.protocol}"
        sides = told[names, dataset_title(row.dataset), setting]
        assert dataset_title(row.tested) in sides[row.side].split(", ")


def test_front_page_says_each_lead_at_home_with_its_seeds_and_side(leads):
    rows = table_of(block("ahead", "README.md"))
    assert len(rows) == 10
    ids = {model_title(name): name for name in ("ultraseg_130k", "ultraseg_108k", *record.SMALL)}
    for row in rows:
        pair = [ids[title] for title in row["models"].split(" − ")]
        name = {"Kvasir-SEG": "kvasir_seg", "CVC-ClinicDB": "cvc_clinicdb"}[row["dataset"]]
        for (recipe, protocol), words in zip(record.RULES.values(), record.BY_RULES, strict=True):
            same = leads.loc[(*pair, name, recipe), :].reset_index()
            same = same[(same["protocol"] == protocol) & (same["tested"] == name)]
            same = same.sort_values("seeds", kind="stable").iloc[-1]
            side = f", {same['side']}" if same["seeds"] > 2 else ""
            seeds = "1 seed" if same["seeds"] == 1 else f"{same['seeds']} seeds"
            lead, told = row[words].split(" ", 1)
            assert float(lead) == pytest.approx(same["batch"], abs=6e-4)
            assert told == f"({seeds}{side})"


def test_both_ultrasegs_are_compared_on_every_test_set(leads):
    pair = leads.loc[("ultraseg_130k", "ultraseg_108k")].reset_index()
    assert set(pair["dataset"]) >= {"kvasir_seg", "cvc_clinicdb", "polypgen", "mixed"}
    for _, row in pair[pair["dataset"] != "mixed"].groupby(["dataset", "recipe", "protocol"]):
        assert set(row["tested"]) >= {*MIXED[:3], *EXTERNAL}


def side_of(leads: pd.DataFrame, model: str, baseline: str, dataset: str, rules: str) -> str:
    recipe, protocol = record.RULES[rules]
    rows = leads.loc[(model, baseline, dataset, recipe)].reset_index()
    rows = rows[(rows["protocol"] == protocol) & (rows["tested"] == dataset)]
    return rows.sort_values("seeds", kind="stable")["side"].iloc[-1]


def test_what_the_front_page_says_of_models_is_true_of_the_record(leads):
    """The numbers of `summary.answers` are read; this and the next are what its words say of them."""
    printed = summary.as_printed().set_index("title")
    apart = printed["apart"]
    assert (apart["UltraSeg-130K"].between(-0.05, 0)).all()  # in part
    assert (apart["LB-UNet"].abs() < 0.005).all()  # matches
    assert (apart[["EGE-UNet", "MobileUNet"]] > 0.04).all()
    assert (printed.loc[["EGE-UNet", "MobileUNet"], "seeds"] < 3).all()

    sides = {
        (model, dataset, rules): side_of(leads, model, "lbunet", dataset, rules)
        for dataset in ("kvasir_seg", "cvc_clinicdb")
        for model in ("ultraseg_130k", "ultraseg_108k")
        for rules in record.RULES
    }
    assert {sides.pop(place) for place in summary.DECIDED} == {"ahead"}
    assert set(sides.values()) == {"undecided"}
    assert len(sides) == 6
    at_home = leads.query("side == 'undecided' and dataset == tested").reset_index()
    at_home = at_home[(at_home["baseline"] == "lbunet") & at_home["dataset"].isin(record.BOTH)]
    nearest = at_home.loc[at_home["p_holm"].idxmin()]
    assert (nearest["model"], nearest["dataset"]) == ("ultraseg_130k", "kvasir_seg")
    assert nearest["recipe"] == "strong"
    assert nearest["low"] > 0  # ahead if it were alone
    assert record.verdicts_at_home("kvasir_seg") == 5
    rows = summary.lead_rows().query("other == 'lbunet'").set_index("dataset")
    assert (rows.loc["kvasir_seg", ["again", "harder"]] > 0).all(axis=None)
    assert "ahead" not in set(leads.loc[("ultraseg_130k", "ultraseg_108k"), "side"])


def test_what_the_front_page_says_of_the_rest_is_true_of_the_record():
    steps = summary.kvasir_steps()
    assert steps["seeds"].tolist() == [1, 1, 1, 3]
    assert steps["verdict"].iloc[-1] == "undecided"
    spans = summary._luck()
    assert spans["harder"] < 0.02 < 0.03 < spans["again"] < 0.06  # far, by the paper's recipe
    assert 0.03 < spans["draw"] < 0.06
    own = record.committed_ledger().query("model == 'ultraseg_130k'")
    choices = tables.choices_table(own).query("changed == 'protocol'")
    strong = choices[choices["a"].str.startswith("strong")]
    assert len(strong) == 2
    assert (strong["difference"].abs() < 0.005).all()  # nothing
    by_paper = choices[choices["a"].str.startswith("paper")]
    assert by_paper["dataset"].tolist() == ["cvc_clinicdb", "kvasir_seg"]
    assert set(by_paper["seeds"]) == {3}
    assert set(by_paper["verdict"]) == {"undecided"}
    alone = summary.recipe_alone()
    assert (alone["seeds"], alone["verdict"]) == (3, "differs")  # more than luck
    assert alone["low"] > 0
    fps = 1000 / benchmark_figures.recorded_machines()["median, ms"].loc["float32"]
    assert (fps.loc[["OpenVINO", "own kernels"]] > 30).all(axis=None)  # with the right engine
    assert (fps.loc["plain PyTorch"] < 30).any()
    fall = summary.fall_by_video()
    assert fall["low"] > 0  # it falls
    assert fall["seeds"] == 3
    assert "unet_base" not in set(record.committed_ledger()["model"])


def test_the_order_of_the_list_is_told_beside_random_orders():
    rows = {row["tested on"]: row for row in table_of(block("orders"))}
    runs = study.finished_runs("reference")
    dice = [study.read_config(run)["batch_dice"]["etis_larib"] for run in runs]
    added = [each["any_order"] - each["listed"] for each in dice]
    row = rows["ETIS-LaribPolypDB"]
    assert row["runs"] == str(len(runs))
    told = [float(row[name]) for name in ("mean", "from", "to")]
    assert told == pytest.approx([np.mean(added), min(added), max(added)], abs=6e-4)
    assert told[0] > 0.02  # neighbours in that list are frames of one video


def test_the_authors_weights_stand_beside_what_the_paper_prints():
    rows = {row["tested on"]: row for row in table_of(block("authors"))}
    assert [row["trained on it"] for row in rows.values()] == ["yes"] * 3 + ["no"] * 2
    assert rows["ETIS-LaribPolypDB"]["paper"] == "0.6821"
    assert rows["Kvasir-SEG"]["paper"] == "–"  # the paper prints the mixed set as a whole
    assert rows["BKAI-IGH NeoPolyp"]["images"] == "1000"


def test_steps_of_the_ladder_stand_beside_the_printed_ones():
    head, *rows = cells(block("ladder"))
    steps = [dict(zip(head, row, strict=True)) for row in rows]
    step = next(row for row in steps if row["step"] == "LB-UNet − UNet-Tiny"
                and row["dataset"] == "Kvasir-SEG" and row[head[1]].startswith("strong"))  # fmt: skip
    assert step["paper, per batch of 4"] == f"{0.6940 - 0.6146:+.3f}"
    ledger = study.read_ledger("reference")
    here = ledger[(ledger["recipe"] == "strong") & (ledger["test_set"] == "kvasir_seg")]
    here = here[here["epochs"] == int(step[head[1]].split(", ")[1])]
    means = here[here["dataset"] == "kvasir_seg"].groupby("model")["batch_pooled_dice"].mean()
    assert step["per batch of 4"] == f"{means['lbunet'] - means['unet_tiny']:+.3f}"
    assert all("−" in row["step"] for row in steps)


def test_a_card_names_what_a_variant_changes_and_the_dice_that_picked():
    name = "ultraseg_130k+as_released-kvasir_seg-paper-released-e100-s0"
    run = study.parse_run_id("reference", name)
    history = pd.read_csv(run.folder / "history.csv", index_col="epoch")["val_dice_per_batch"]
    card = card_of(run)
    assert "Recipe `paper` with `double_sigmoid` True, `edges` thin" in card
    assert f"Epoch {history.idxmax()} is shipped" in card
    assert f"Dice per batch of 4 {history.max():.3f})" in card


def test_every_training_close_to_the_rules_stands_in_one_table():
    rows = table_of(block("trainings"))
    wanted = [
        run
        for run in study.finished_runs("reference")
        if run.model.startswith("ultraseg_130k") and run.dataset in draws.NAMES.values()
        and (run.recipe, run.protocol) == record.RULES["again"]
    ]  # fmt: skip
    assert len(rows) == len(wanted) >= 8
    first = next(row for row in rows if row["training"] == "UltraSeg-130K")
    assert (first["test part"], first["seed"]) == ("first draw", "0")


def test_every_draw_of_the_split_stands_beside_what_was_trained_on_it():
    rows = table_of(block("draws"))
    assert [row["draw"] for row in rows] == list(draws.DRAWS.values())
    trained = main_table(record.committed_ledger().query(draws.TRAINED)).set_index("dataset")
    for row, dataset in zip(rows, draws.NAMES.values(), strict=True):
        assert row["per batch of 4"] == f"{trained['batch_pooled_dice'][dataset]:.3f}"
        assert row["seeds"] == str(trained["seeds"][dataset])


def test_every_finished_run_stands_in_its_cell_and_gaps_show():
    head, *rows = cells(block("cells"))
    by_model = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    for run in study.finished_runs("reference"):
        if record.OTHER_DRAWS in run.dataset:
            continue
        cell = by_model[model_title(run.model)][dataset_title(run.dataset)]
        assert f"{run.recipe}/{run.protocol}" in cell
    assert by_model["UNet-Base"]["Kvasir-SEG"] == "0 of 4"  # two recipes, two protocols
    assert by_model["UltraSeg-130K, no boundary loss"]["PolypGen"] == ""


@pytest.mark.parametrize("run", study.finished_runs("reference"), ids=lambda run: run.run_id)
def test_card_names_data_licence_protocol_scores_and_limits(run):
    card = card_of(run)
    for part in ("not a medical device", "## Training", "## Scores", "## Limits", run.run_id):
        assert part in card
    names = MIXED[:3] if run.dataset == "mixed" else [run.dataset.partition("@")[0]]
    assert all(catalog()[name]["license"] in card for name in names)
    scores = study.read_scores(run)
    own = scores["test_set"].isin(MIXED if run.dataset == "mixed" else [run.dataset])
    row = next(line for line in card.splitlines() if "yes, its test part" in line)
    assert f"| {own.sum()} | {scores[own]['dice'].mean():.3f} (" in row
    assert "an earlier commit" not in card
    assert ("PolypDB, part of the paper's mixed set" in card) == (run.dataset == "mixed")
    better = re.search(r"(?:Better weights|Weights picked).*\]\(\.\./(\S+)\)", card)
    shipped = shipped_weights(run.model.partition("+")[0]).get(run.dataset)
    assert bool(better) == (shipped is not None and shipped.parent != run.folder)
    assert better is None or (run.folder.parent / better[1]).is_file()


@pytest.mark.parametrize("run", study.finished_runs("reference"), ids=lambda run: run.run_id)
def test_card_tells_each_part_of_the_mixed_set_and_every_false_alarm(run):
    card, scores = card_of(run), study.read_scores(run)
    rows = {row[0].removeprefix("– of these "): row for row in cells(card)}
    for name, part in scores.groupby("test_set"):
        row, normal = rows[dataset_title(name)], part[part["area"] == 0]
        assert row[2:4] == [str(len(part)), row[3]]
        assert row[3].startswith(f"{part['dice'].mean():.3f} (")
        assert row[6:8] == [f"{part['precision'].mean():.3f}", f"{part['recall'].mean():.3f}"]
        alarms = f"{(normal['dice'] < 1).sum()} of {len(normal)}" if len(normal) else "–"
        assert row[9] == alarms
        assert alarms == "–" or f"{alarms} ({dataset_title(name)})" in card


@pytest.mark.parametrize("run", study.finished_runs("reference"), ids=lambda run: run.run_id)
def test_snippet_of_the_card_makes_a_mask_of_an_image(run, tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", card_of(run), re.DOTALL)[1]
    frame = str(tmp_path / "frame.jpg")
    cv2.imwrite(frame, np.full((90, 120, 3), 90, np.uint8))
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(code.replace('"frame.jpg"', repr(frame)), names)
    assert names["mask"].shape == (256, 256)
    assert names["mask"].dtype == torch.bool


def test_sequence_split_tests_as_few_videos_as_the_record_says():
    parts = read_split(split_path("cvc_clinicdb", "sequence"))
    videos = pd.read_csv(ROOT / "data/sequences/cvc_clinicdb.csv", dtype=str, index_col="frame")
    frames = parts.index[parts == "test"]
    said = f"{len(frames)} frames of {videos.loc[frames, 'sequence'].nunique()} videos"
    assert said in record.LEAKS["cvc_clinicdb@sequence"]
    assert said in (ROOT / "outputs/reference/README.md").read_text()


def test_caption_of_the_front_picture_is_true_of_the_demo():
    demo, readme = study.load_profile("demo"), (ROOT / "README.md").read_text()
    assert f"after {demo.epochs} epochs at {demo.image_size} px" in readme


def test_readme_says_how_far_the_backends_agree():
    bench = json.loads((ROOT / "outputs/reference/bench/bench.json").read_text())
    moved = {"float32": [], "bfloat16": []}
    worst = 0.0
    for row in bench["real_images"]:
        moved[row["precision"]].append(1 - row["pixels_equal"])
        worst = max(worst, 1 - row["pixels_equal_worst"])
    assert max(moved["float32"]) < 5e-6
    assert 0.5e-3 < min(moved["bfloat16"]) <= max(moved["bfloat16"]) < 1.5e-3
    readme = (ROOT / "README.md").read_text()
    assert "at most a few mask pixels in a million differ" in readme
    assert "about one in a thousand, and one in twenty-five on the worst of 200 frames" in readme
    assert 0.035 < worst < 0.045


def test_repeats_stay_within_the_band_that_the_record_states():
    repeats = list((ROOT / "outputs/reference/repeats").glob("*/*/scores.csv"))
    assert repeats
    for path in repeats:
        table = study.compare_with_record(path.parent)
        assert table["images"].sum() == len(pd.read_csv(path))
        assert table["within"].all()


def test_a_repeat_out_of_the_band_is_told(tmp_path):
    path = next((ROOT / "outputs/reference/repeats").glob("*/*/scores.csv"))
    again = pd.read_csv(path)
    folder = tmp_path / path.parent.name
    folder.mkdir()
    again.assign(dice=again["dice"] - 0.03).to_csv(folder / "scores.csv", index=False)
    table = study.compare_with_record(folder).set_index("test_set")
    assert not table["within"]["cvc_clinicdb"]  # 0.03 is too much on the own test part
    assert table["within"]["etis_larib"]  # and allowed elsewhere


@pytest.mark.parametrize("change", ["fewer", "renamed", "elsewhere"])
def test_a_repeat_on_other_images_is_not_compared(tmp_path, change):
    path = next((ROOT / "outputs/reference/repeats").glob("*/*/scores.csv"))
    again = pd.read_csv(path)
    if change == "fewer":
        again = again.groupby("test_set").head(10)
    else:
        again[{"renamed": "image_id", "elsewhere": "test_set"}[change]] += "x"
    folder = tmp_path / path.parent.name
    folder.mkdir()
    again.to_csv(folder / "scores.csv", index=False)
    with pytest.raises(ValueError, match=r"other images than the|no test set in common"):
        study.compare_with_record(folder)


def test_a_share_of_a_set_is_held_to_the_band_of_its_own_test_part(tmp_path, monkeypatch):
    monkeypatch.setenv("ULTRASEG_OUTPUTS", str(tmp_path))
    name = "lbunet-kvasir_seg@p50-strong-clean-e1-s0"
    for folder, dice in ((tmp_path / "reference" / "runs" / name, 0.8), (tmp_path / name, 0.77)):
        folder.mkdir(parents=True)
        row = {"test_set": ["kvasir_seg", "etis_larib"], "image_id": "a", "dice": dice}
        pd.DataFrame(row).to_csv(folder / "scores.csv", index=False)
    table = study.compare_with_record(tmp_path / name).set_index("test_set")
    assert table["within"].to_dict() == {"kvasir_seg": False, "etis_larib": True}


def test_the_command_that_repeats_a_run_says_how_far_it_is(capsys):
    """`study --only` on a run that is there already: nothing to train, the verdict is told."""
    run = study.parse_run_id("reference", "ultraseg_130k-kvasir_seg-strong-clean-e100-s0")
    command_line._tell_band(run)
    told = capsys.readouterr().out.splitlines()
    assert len(told) == study.read_scores(run)["test_set"].nunique()
    assert all("+0.000, within the band" in line for line in told)


def test_a_repeat_on_another_split_is_not_compared(capsys, monkeypatch):
    run = study.parse_run_id("reference", "ultraseg_130k-mixed-multiscale-clean-e120-s0")
    theirs = study.read_config(run)
    inputs = theirs["inputs"] | {"split": theirs["inputs"]["split"] | {"polypdb": "another"}}
    found = [theirs | {"inputs": inputs}, theirs]
    monkeypatch.setattr(study, "read_config", lambda run: found.pop(0))
    command_line._tell_band(run)
    assert "trained on other images than the committed run" in capsys.readouterr().out
