"""Made-up ledgers: whole runs on the generated images to look at, and rows with known means."""

import cv2
import numpy as np
import pandas as pd

from ultraseg_lib import study
from ultraseg_lib.data import Frames
from ultraseg_lib.paths import write_json
from ultraseg_lib.provenance import provenance
from ultraseg_lib.report.cases import Cases
from ultraseg_lib.report.failures import plan_comparison
from ultraseg_lib.study import Profile, Run

A, B = "A", "B"  # the models of made-up cases
LOW, HIGH = [0.2, 0.4, 0.6, 0.4] * 5, [0.4, 0.6, 0.8, 0.6] * 5


def fake_maps(masks: np.ndarray, seed: int) -> np.ndarray:
    """Make probability maps (N, S, S) uint8 from masks: shifted, blurred, some missed, one false alarm."""
    rng = np.random.default_rng(seed)
    maps = []
    for mask in masks:
        moved = np.roll(mask, rng.integers(-8, 9, 2), (0, 1))
        maps.append(cv2.GaussianBlur(moved, (0, 0), 2 + seed % 3) * (rng.random() > 0.15))
    maps = np.stack(maps)
    empty = np.flatnonzero(~masks.any(axis=(1, 2)))
    maps[empty[:1], 5:15, 5:15] = 250
    return maps.astype(np.uint8)


def make_cases(count: int, side: int) -> Cases:
    """Make cases of two models; every ninth image has no polyp, every fifth has two."""
    rng = np.random.default_rng(0)
    masks = np.zeros((count, side, side), np.uint8)
    for row, mask in enumerate(masks):
        for polyp in range(0 if row % 9 == 4 else 2 if row % 5 == 0 else 1):
            top = 4 + polyp * side // 2
            reach = int(rng.integers(side // 10, side // 3))
            mask[top : top + reach, 6 : 6 + reach] = 255
    images = np.broadcast_to(masks[..., None] // 2 + 60, (*masks.shape, 3))
    table = pd.DataFrame(
        {
            "dataset": "kvasir_seg",
            "image_id": [f"image_{row}" for row in range(count)],
            "center": rng.choice(["C1", "C2"], count),
            "modality": rng.choice(["WLI", "NBI"], count),
        }
    )
    frames = Frames(images, masks, table)
    maps = {name: fake_maps(masks, seed) for seed, name in enumerate((A, B))}
    runs = {
        name: study.Run("demo", "unet_tiny", "kvasir_seg", "strong", "clean", 1, seed)
        for seed, name in enumerate(maps)
    }
    scores = {n: study.score_frames(runs[n].run_id, "kvasir_seg", frames, maps[n]) for n in maps}
    return Cases("kvasir_seg", frames, runs, scores, maps.__getitem__)


def write_run(run: Run, tests: dict[str, Frames], profile: Profile, seed: int) -> None:
    """Write the folder of a run that was never trained."""
    probs = {name: fake_maps(frames.masks, seed) for name, frames in tests.items()}
    scored = [study.score_frames(run.run_id, n, tests[n], probs[n]) for n in tests]
    pooled = {name: study.batch_dice(probs[name], frames) for name, frames in tests.items()}
    run.folder.mkdir(parents=True)
    np.savez_compressed(run.folder / "probs.npz", **probs)
    config = vars(run) | {"inputs": study.inputs_of(run, profile), "batch_dice": pooled}
    write_json(run.folder / "config.json", config | {"provenance": provenance()})
    pd.concat(scored).to_csv(run.folder / "scores.csv", index=False)


def write_demo_ledger() -> list[Run]:
    """Write the runs that notebooks 10 and 11 show in the demo; return them."""
    profile = study.load_profile("demo")
    tests = {name: study.test_frames(name, profile) for name in profile.tested}
    runs = plan_comparison(profile, study.plan_runs(profile))
    for seed, run in enumerate(runs):
        write_run(run, tests, profile, seed)
    return runs


def rows(model: str, dataset: str, test_set: str, dice: list[float], **setting) -> pd.DataFrame:
    """Return the ledger's rows of one run on one test set, an image a value of ``dice``."""
    chosen = {"recipe": "strong", "protocol": "clean", "epochs": 12, "seed": 0} | setting
    run_id = "{}-{}-{recipe}-{protocol}-e{epochs}-s{seed}".format(model, dataset, **chosen)
    table = pd.DataFrame({"dice": dice})
    table["image_id"] = [f"i{place}" for place in range(len(dice))]
    scored = {"iou": table["dice"] / (2 - table["dice"]), "hd95": 5.0, "hd95_mask": 5.0}
    fixed = {"center": "C1", "modality": "WLI", "area": 0.1, "n_polyps": 1, "precision": 0.9,
             "recall": 0.9, "batch_pooled_dice": 0.5}  # fmt: skip
    found = {"detected": table["dice"] > 0, "model": model, "dataset": dataset}
    return table.assign(run_id=run_id, test_set=test_set, **scored, **fixed, **found, **chosen)


def own(model: str, dice: list[float], dataset: str = "synthetic", **setting) -> pd.DataFrame:
    """Return the rows of a run on its own test set."""
    return rows(model, dataset, dataset, dice, **setting)
