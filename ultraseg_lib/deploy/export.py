"""The exact inference form as files for other programs: ONNX and OpenVINO."""

import io
import json
import warnings
from pathlib import Path

import torch
from torch import nn

from ultraseg_lib import __version__
from ultraseg_lib.deploy.inference import LogitsOnly, exact_form
from ultraseg_lib.paths import whole_folder

FILES = {"model.onnx", "metadata.json", "model.xml", "model.bin"}

OPSET = 17
INPUT, OUTPUT = "image", "logits"


def describe(name: str, size: int, weights: Path | None) -> dict[str, str]:
    """Return what a user of the exported file must know, as ONNX and OpenVINO keep it.

    Weights go by the name of their run's folder, or by their own where they lie in none.
    """
    of_a_run = weights and weights.name == "weights.safetensors"
    trained = weights.parent.name if of_a_run else weights.name if weights else "untrained"
    return {
        "model": name,
        "version": __version__,
        "license": "code: MIT; weights trained on a dataset stand under that dataset's terms",
        "weights": trained or weights.name,  # a bare file name has no folder
        "preprocessing": (
            f"RGB, resized to {size}x{size} (bilinear, aspect ratio not kept), divided by 255, "
            f"float32 (N, 3, {size}, {size})"
        ),
        "postprocessing": (
            "logits (N, 1, H, W); polyp where the logit is above 0 (probability 0.5); resize the "
            "mask to the frame, nearest"
        ),
        "intended_use": "research and teaching; not a medical device",
    }


def to_onnx(network: nn.Module, size: int, metadata: dict[str, str] | None = None) -> bytes:
    """Return a network, as it is, as a checked ONNX file with a dynamic batch.

    Input "image" (N, 3, size, size) float32 in [0, 1], output "logits" (N, out_channels, size,
    size).
    """
    import onnx

    file = io.BytesIO()
    batch = {0: "batch"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter by tracing is old, and ten times as fast
        torch.onnx.export(
            LogitsOnly(network), (torch.zeros(2, 3, size, size),), file, dynamo=False,
            opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT],
            dynamic_axes={INPUT: batch, OUTPUT: batch},
        )  # fmt: skip
    graph = onnx.load_from_string(file.getvalue())
    _drop_aliases(graph.graph)
    onnx.helper.set_model_props(graph, metadata or {})
    onnx.checker.check_model(graph, full_check=True)
    return graph.SerializeToString()


def _drop_aliases(graph: "onnx.GraphProto") -> None:  # noqa: F821
    """Use constants that stand once by their own name: ONNX Runtime loses them behind Identity."""
    constants = {each.name for each in graph.initializer}
    aliases = [n for n in graph.node if n.op_type == "Identity" and n.input[0] in constants]
    names = {node.output[0]: node.input[0] for node in aliases}
    for node in aliases:
        graph.node.remove(node)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)


def export(
    name: str, model: nn.Module, folder: Path, size: int = 256, weights: Path | None = None
) -> list[Path]:
    """Write `folder/name/`: model.onnx, metadata.json and, where OpenVINO is, model.xml and .bin.

    `weights` is the file the model was loaded from, for the metadata. An earlier export is
    replaced, whole or not at all. Raises ImportError, with the way to get it, without onnx, and
    ValueError where the folder holds anything else.
    """
    from ultraseg_lib.deploy.backends import missing_part

    if lack := missing_part("onnx"):
        raise ImportError(f"export is not possible here: {lack}")
    there = folder / name
    others = {each.name for each in there.iterdir()} - FILES if there.is_dir() else set()
    if others:
        raise ValueError(
            f"{there}: holds {min(others)}, no file of an export; choose another --output"
        )
    metadata = describe(name, size, weights)
    graph = to_onnx(exact_form(model, size), size, metadata)
    with whole_folder(there) as temporary:
        (temporary / "model.onnx").write_bytes(graph)
        (temporary / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
        if not missing_part("openvino"):
            _write_openvino(graph, temporary / "model.xml", metadata)
    return sorted(there.iterdir())


def _write_openvino(graph: bytes, path: Path, metadata: dict[str, str]) -> None:
    import openvino  # its runtime alone: openvino.convert_model would report its use

    network = openvino.Core().read_model(graph)
    for key, value in metadata.items():
        network.set_rt_info(value, key)
    openvino.save_model(network, path, compress_to_fp16=False)
