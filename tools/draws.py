"""How hard is a test part? Kvasir-SEG seen from outside, by models that were trained elsewhere.

``python -m tools.draws`` scores all its images and writes
``outputs/reference/seen_from_outside.csv`` (image_id, and its Dice by each model, a column a run);
`report.draws` compares the draws by it.
"""

import pandas as pd
from tqdm import tqdm

from ultraseg_lib import study
from ultraseg_lib.metrics import dice_score
from ultraseg_lib.models.operators import use_fast_operators
from ultraseg_lib.paths import outputs_dir, whole_file
from ultraseg_lib.report.draws import DATASET, OUTSIDE, hardness
from ultraseg_lib.training import predict_probs

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
    """Score every image of the dataset by each of `outsiders`: image_id, and its Dice by run_id."""
    frames = study.load_frames_of(DATASET, study.load_profile("reference"))
    dice = {}
    for run in tqdm(outsiders(), disable=None):
        model = study.load_trained(run)
        use_fast_operators(model)
        found = predict_probs(model, frames.images) >= 128
        dice[run.run_id] = dice_score(found, frames.masks > 0).round(4)
    return pd.DataFrame({"image_id": frames.table["image_id"], **dice})


if __name__ == "__main__":
    with whole_file(outputs_dir("reference") / OUTSIDE) as temporary:
        seen_from_outside().to_csv(temporary, index=False)
    print(hardness().to_string(index=False))
