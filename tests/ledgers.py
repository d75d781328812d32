"""Small made-up ledgers whose means are known, for tests of tables and figures."""

import pandas as pd


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
