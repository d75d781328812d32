"""Six ways to run a model on a CPU, behind one call: image in, logits out, both numpy."""

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from torch import nn

from ultraseg_lib.deploy import native, plan
from ultraseg_lib.deploy.export import INPUT, to_onnx
from ultraseg_lib.deploy.inference import LogitsOnly, exact_form

BACKENDS = {  # all but the first run the exact inference form, main head only
    "eager": "plain PyTorch",  # all heads: the paper's way
    "inference": "PyTorch, rewritten",
    "compiled": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "native": "own kernels",  # UltraSeg-108K and -130K, on one core
}
PACKAGES = {"onnx": ("onnx",), "onnxruntime": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}  # fmt: skip
REDUCIBLE = ("openvino", "native")  # they do bfloat16 too
# OpenVINO in all but its element-wise kernels
LIMITABLE = ("eager", "inference", "openvino", "native")
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}  # OpenVINO's names

Runner = Callable[[np.ndarray], np.ndarray]


def split_words(words: str) -> tuple[str, str]:
    """Split "backend" or "backend:precision" into both; the precision is float32 unless named."""
    name, _, precision = words.partition(":")
    return name, precision or "float32"


def available_backends() -> list[str]:
    """Return the names of the backends that can run here, the paper's way first."""
    return [name for name in BACKENDS if not missing_part(name)]


def missing_part(name: str) -> str:
    """Return what a backend (or "onnx") lacks here and how to get it; nothing where all is there."""
    packages = [each for each in PACKAGES.get(name, ()) if find_spec(each) is None]
    if packages:
        return f"{', '.join(packages)} missing: pip install -e '.[deploy]'"
    if name == "compiled" and not native.compiler():
        return "no C++ compiler: install g++ or clang++"
    return native.problem() if name == "native" else ""


def has_bfloat16(name: str) -> bool:
    """Return whether a backend out of REDUCIBLE that is here multiplies in bfloat16 on this CPU."""
    if name == "native":
        return native.has_bfloat16()
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def cannot_run(
    name: str,
    model: nn.Module,
    size: int,
    threads: int = 1,
    precision: str = "float32",
    isa: str = "all",
) -> str:
    """Return why a backend that is here refuses these arguments; nothing where it does not.

    `isa`: "avx2" where newer instructions are to be left out, which not all can.
    """
    if name not in BACKENDS:
        return f"backend: unknown {name!r}; choose from {', '.join(BACKENDS)}"
    precisions = tuple(PRECISIONS)[: 1 + (name in REDUCIBLE)]
    if precision not in precisions:
        return f"precision: {name} has no {precision!r}; choose from {', '.join(precisions)}"
    if isa != "all" and (name not in LIMITABLE or precision != "float32"):
        return f"instruction sets: {name} in {precision} has no setting for {isa} alone"
    if precision == "bfloat16" and not missing_part(name) and not has_bfloat16(name):
        return f"{name} does not multiply in bfloat16 on this CPU"
    if threads < 1:
        return f"threads: found {threads}; give 1 or more"
    if size < 1 or size % model.stride:
        return f"size: found {size}; give a multiple of {model.stride}"
    return plan.cannot_plan(model, size, threads) if name == "native" else ""


def load_backend(
    name: str, model: nn.Module, size: int, threads: int = 1, precision: str = "float32"
) -> Runner:
    """Return a function from image (1, 3, size, size) float32 in [0, 1] to logits (1, 1, size, size).

    Both are float32 arrays, the image of any strides. `threads` cores work on one image;
    `precision` (float32, bfloat16) is that of the arithmetic. Raises ValueError for an
    unknown name or what the backend cannot do, ImportError, with the way to install it, where a
    part is missing.
    """
    if lack := missing_part(name):
        raise ImportError(f"backend {name} is not here: {lack}")
    if reason := cannot_run(name, model, size, threads, precision):
        raise ValueError(reason)
    if name == "native":
        return plan.Plan(exact_form(model, size), half=precision == "bfloat16").run
    if name == "onnxruntime":
        return _onnxruntime(to_onnx(exact_form(model, size), size), threads)
    if name == "openvino":
        return openvino_runner(exact_form(model, size), size, threads, precision)
    return _pytorch(name, model, size, threads)


def _pytorch(name: str, model: nn.Module, size: int, threads: int) -> Runner:
    if name == "eager":
        model.eval()
        paper = lambda image: model(image, deep_supervision=True).logits  # noqa: E731
        return pytorch_runner(paper, threads, torch.no_grad)
    network = LogitsOnly(exact_form(model, size))
    return pytorch_runner(torch.compile(network) if name == "compiled" else network, threads)


def pytorch_runner(
    network: Callable[[torch.Tensor], torch.Tensor],
    threads: int,
    mode: type = torch.inference_mode,
) -> Runner:
    """Return the runner of a network from image to logits, both tensors, with PyTorch as it is."""

    def run(image: np.ndarray) -> np.ndarray:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        with mode():
            return network(torch.from_numpy(np.ascontiguousarray(image))).numpy()

    return run


def _onnxruntime(graph: bytes, threads: int) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {INPUT: image})[0]


def openvino_runner(network: nn.Module, size: int, threads: int, precision: str) -> Runner:
    """Return the runner of a network as it is; the image is not copied if it is contiguous.

    Raises ValueError where OpenVINO would work in another precision than the one asked for.
    """
    import openvino

    core = openvino.Core()
    graph = core.read_model(to_onnx(network, size))
    graph.reshape([1, 3, size, size])
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # the benchmark pins
    }
    compiled = core.compile_model(graph, "CPU", settings)
    found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if found != PRECISIONS[precision]:
        raise ValueError(f"precision: asked for {PRECISIONS[precision]}, OpenVINO takes {found}")
    request = compiled.create_infer_request()

    def run(image: np.ndarray) -> np.ndarray:
        return request.infer([np.ascontiguousarray(image)], share_inputs=True)[0].copy()

    return run
