"""Weights of the published implementations in our models; and how the authors' own score, by us.

A name map is two tables. Prefixes: where a published module is found in ours (the longest that fits
counts). `PIECES`: other names for what lies inside it. No tensor is reshaped.

``python -m tools.published FILE`` scores the weights of UltraSeg-130K that the authors publish (an
.npz with ``weight/<name>``) on every test set that is here, and writes
``outputs/reference/authors_weights.csv``: scores only, the weights stay where they are.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from ultraseg_lib import metrics, study
from ultraseg_lib.data.splits import EXTERNAL, MIXED
from ultraseg_lib.grid import datasets_there
from ultraseg_lib.models import create_model
from ultraseg_lib.models.operators import use_fast_operators
from ultraseg_lib.paths import data_dir, outputs_dir, whole_file
from ultraseg_lib.report.tables import videos
from ultraseg_lib.statistics import bootstrap_interval
from ultraseg_lib.training import predict_probs

AUTHORS = "authors_weights.csv"  # in the committed record

PIECES = {
    "dilated_convs": "branches",  # EDB
    "fusion": "mix",
    "res_weight": "residual_weight",
    "feature_adapter": "adaptor",  # Predict-Gated Fusion
    "share_space1": "learned_maps.0.seed",  # GSA
    "share_space2": "learned_maps.1.seed",
    "share_space3": "learned_maps.2.seed",
    "share_space4": "learned_maps.3.seed",
    "conv1": "learned_maps.0.refine",
    "conv2": "learned_maps.1.refine",
    "conv3": "learned_maps.2.refine",
    "conv4": "learned_maps.3.refine",
    "ldw": "mix",
    "params_xy": "plane.seed",  # EGE-UNet's attention: zx varies over the height, zy the width
    "params_zx": "rows.seed",
    "params_zy": "columns.seed",
    "conv_xy": "plane.refine",
    "conv_zx": "rows.refine",
    "conv_zy": "columns.refine",
    "dw": "local",
    "pre_project": "project",  # EGE-UNet's bridge
    "g0": "groups.0",
    "g1": "groups.1",
    "g2": "groups.2",
    "g3": "groups.3",
    "tail_conv": "mix",
}


def gated_decoder(depth: int) -> dict[str, str]:
    """Return the prefixes: published encoders count from the top, decoders from the bottom, ours by level."""
    prefixes = {"final.0": "head", "final": "head"}
    for level in range(1, depth + 1):
        prefixes[f"encoder{level}.0"] = f"encoder{level}.{'conv' if level <= 3 else 'block'}"
        prefixes[f"ebn{level}"] = f"encoder{level}.norm"
        prefixes[f"Down{level}.bn"] = f"encoder{level}.down.norm"
        prefixes[f"Down{level}.conv"] = f"encoder{level}.down.conv"
        prefixes[f"merge{level}"] = f"decoder{level}.fusion"
        count = depth + 1 - level
        prefixes[f"decoder{count}.0"] = f"decoder{level}.block"
        prefixes[f"dbn{count}"] = f"decoder{level}.norm"
        prefixes[f"pred{count}.conv"] = f"decoder{level}.gate.region"
        if level <= 3:
            prefixes[f"gate{4 - level}.conv1"] = f"decoder{level}.gate.boundary"
            prefixes[f"gate{4 - level}.conv2"] = f"decoder{level}.gate.region"
    return prefixes


ULTRASEG = {
    **gated_decoder(depth=4),
    "encoder3.1": "encoder3.context.0",
    "encoder3.2": "encoder3.context.1",
    "multiscale_fusion.transforms.0": "agf.project",
    "multiscale_fusion.spatial_attention": "agf.attention",
    "attention_alpha": "ssa.alpha",
}
LBUNET = {
    **gated_decoder(depth=5),
    "encoder3.1": "encoder3.context.0",
    "encoder3.1.conv1": "encoder3.context.0.depthwise",
    "encoder3.1.conv2": "encoder3.context.0.expand",
    "encoder3.1.conv3": "encoder3.context.0.reduce",
    "encoder6.0": "bottleneck",
}
EGEUNET = {
    **gated_decoder(depth=5),
    "encoder6.0": "bottleneck",
    **{f"encoder{level}.0": f"encoder{level}.block" for level in range(1, 6)},
    **{f"gt_conv{6 - level}.0": f"decoder{level}.region" for level in range(1, 6)},
    **{f"GAB{level}": f"decoder{level}.bridge" for level in range(1, 6)},
}
UNET = {
    **{
        f"enc{level}.conv.{half}.conv": f"encoder{level}.{half}"
        for level in range(5)
        for half in (0, 1)
    },
    **{
        f"dec{level + 1}.conv.{half}.conv": f"decoder{level}.{half}"
        for level in range(4)
        for half in (0, 1)
    },
    **{f"up{level + 1}": f"up{level}" for level in range(4)},
}
MOBILEUNET = {
    **{f"enc.{level - 1}.conv": f"encoder{level}" for level in range(1, 5)},
    **{f"up.{3 - level}": f"up{level}" for level in (1, 2, 3)},
    "up.3": "head",
}
FASTSCNN = {
    "lds.detail": "detail",
    "lds.semantic": "semantic",
    "ffm.low_conv": "fusion.detail",
    "ffm.high_conv": "fusion.semantic",
    "ffm.fc": "fusion.share",
    "ffm.out_conv": "fusion.mix",
    **{f"cls.cls.{block}.0": f"classifier.{block}.0.0" for block in (0, 1)},
    **{f"cls.cls.{block}.1": f"classifier.{block}.0.1" for block in (0, 1)},
    **{f"cls.cls.{block}.3": f"classifier.{block}.1.0" for block in (0, 1)},
    **{f"cls.cls.{block}.4": f"classifier.{block}.1.1" for block in (0, 1)},
    "cls.cls.2": "up",
    "cls.cls.3": "head",
}


def rename(name: str, prefixes: dict[str, str]) -> str:
    """Return our name of a published tensor; a name that no prefix fits stays as it is."""
    fits = [prefix for prefix in prefixes if name.startswith(f"{prefix}.") or name == prefix]
    prefix = max(fits, key=len, default="")
    inside = name[len(prefix) :].split(".")
    return prefixes.get(prefix, "") + ".".join(PIECES.get(piece, piece) for piece in inside)


def published_state(path: Path, prefixes: dict[str, str]) -> dict[str, Tensor]:
    """Return the published weights of a file under our names; raise ValueError where two meet in one."""
    arrays = np.load(path)
    names = [name for name in arrays.files if name.startswith("weight/")]
    state = {
        rename(name.removeprefix("weight/"), prefixes): torch.from_numpy(arrays[name])
        for name in names
    }
    if len(state) < len(names):
        raise ValueError(f"{path}: two published tensors have the same name of ours")
    return state


def to_one_logit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn a head of two channels (background, polyp) into one logit: that of the softmax."""
    weight, bias = state["head.weight"], state["head.bias"]
    return {**state, "head.weight": weight[1:] - weight[:1], "head.bias": bias[1:] - bias[:1]}


def authors_scores(path: Path) -> pd.DataFrame:
    """Score the authors' weights: a row a test set.

    Columns: tested, images, trained (whether it was in their training data), dice, dice_low,
    dice_high (per image), any_order, listed (per batch of 4, see `study.batch_dice`), hd95,
    miss_rate. Raises ValueError where a dataset is not here: a row would be lost.
    """
    tests = [name for name in (*MIXED, *EXTERNAL) if name != "polypdb"]  # of which we have no copy
    absent = [name for name in tests if name not in datasets_there()]
    if absent:
        raise ValueError(f"not below {data_dir()}: {', '.join(absent)}; nothing is written")
    model = create_model("ultraseg_130k").eval()
    model.load_state_dict(to_one_logit(published_state(path, ULTRASEG)))
    use_fast_operators(model)
    profile, rows = study.load_profile("reference"), []
    for name in tqdm(tests, disable=None):
        test = study.test_frames(name, profile)
        probs = predict_probs(model, test.images)
        scores = pd.DataFrame(metrics.score_images(probs >= 128, test.masks > 0))
        groups = videos((name, image_id) for image_id in test.table["image_id"])
        interval = dict(
            zip(
                ("dice", "dice_low", "dice_high"),
                bootstrap_interval(scores["dice"], groups=groups),
                strict=True,
            )
        )
        missed = 1 - scores.loc[scores["area"] > 0, "detected"].mean()
        rows.append({"tested": name, "images": len(test), "trained": name in MIXED, **interval,
                     **study.batch_dice(probs, test), "hd95": scores["hd95"].mean(),
                     "miss_rate": missed})  # fmt: skip
    return pd.DataFrame(rows)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tools.published FILE.npz")
    with whole_file(outputs_dir("reference") / AUTHORS) as temporary:
        authors_scores(Path(sys.argv[1])).round(4).to_csv(temporary, index=False)
    print((outputs_dir("reference") / AUTHORS).read_text("utf-8"))
