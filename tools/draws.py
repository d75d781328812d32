"""How hard is a test part? Kvasir-SEG seen from outside, by models that were trained elsewhere.

``python -m tools.draws`` scores all its images and writes ``outputs/reference/seen_from_outside.csv``
(image_id, and the mean over the models of its Dice); `hardness` compares the draws of the split by it.
"""

import numpy as np
import pandas as pd
from tqdm import tqdm

from ultraseg_lib import study
from ultraseg_lib.data.splits import read_split, split_path
from ultraseg_lib.metrics import dice_score
from ultraseg_lib.models import create_model
from ultraseg_lib.models.operators import use_fast_operators
from ultraseg_lib.paths import outputs_dir, whole_file
from ultraseg_lib.training import predict_probs

DATASET = "kvasir_seg"
DRAWS = ("random", "draw_2", "draw_3")  # 80 % and 20 %, each by another seed
ELSEWHERE = ("cvc_clinicdb", "polypgen")


def outsiders() -> list[study.Run]:
    """Return the committed runs by recipe ``strong`` that saw no image of the dataset, first seeds."""
    return [
        run
        for run in study.finished_runs("reference")
        if run.dataset in ELSEWHERE
        and (run.recipe, run.protocol, run.seed) == ("strong", "clean", 0)
    ]


def seen_from_outside() -> pd.DataFrame:
    """Score every image of the dataset by each of `outsiders`: image_id, and the mean Dice."""
    frames = study.load_frames_of(DATASET, study.load_profile("reference"))
    dice = []
    for run in tqdm(outsiders(), disable=None):
        model = create_model(run.model, weights=run.folder / "weights.safetensors")
        use_fast_operators(model)
        dice.append(dice_score(predict_probs(model, frames.images) >= 128, frames.masks > 0))
    return pd.DataFrame(
        {"image_id": frames.table["image_id"], "dice": np.mean(dice, axis=0).round(4)}
    )


def hardness(draws: int = 2000) -> pd.DataFrame:
    """Return a row a draw of the split: draw, images, tested and rest (mean Dice), difference, low, high.

    The last two bound 95 % of ``draws`` bootstrap samples of the images, tested and others apart.
    """
    dice = pd.read_csv(outputs_dir("reference") / "seen_from_outside.csv", index_col="image_id")[
        "dice"
    ]
    rng = np.random.default_rng(0)

    def resampled(values: np.ndarray) -> np.ndarray:
        return rng.choice(values, (draws, len(values))).mean(axis=1)

    rows = []
    for draw in DRAWS:
        is_test = read_split(split_path(DATASET, draw)).reindex(dice.index) == "test"
        tested, rest = dice[is_test].to_numpy(), dice[~is_test].to_numpy()
        low, high = np.percentile(resampled(tested) - resampled(rest), [2.5, 97.5])
        means = tested.mean(), rest.mean()
        rows.append([draw, len(tested), *means, means[0] - means[1], low, high])
    return pd.DataFrame(
        rows, columns=["draw", "images", "tested", "rest", "difference", "low", "high"]
    )


if __name__ == "__main__":
    with whole_file(outputs_dir("reference") / "seen_from_outside.csv") as temporary:
        seen_from_outside().to_csv(temporary, index=False)
    print(hardness().to_string(index=False))
