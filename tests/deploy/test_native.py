"""The kernels of our own: right in both precisions, optional, and compiled for this processor."""

import subprocess
import time
from types import SimpleNamespace

import numpy as np
import pytest
from deployed import generated_image, lively_model, trained_logits

from ultraseg_lib.deploy import backends, native
from ultraseg_lib.deploy.anatomy import PARTS
from ultraseg_lib.deploy.backends import available_backends, cannot_run, load_backend, missing_part
from ultraseg_lib.deploy.inference import exact_form
from ultraseg_lib.deploy.plan import Plan
from ultraseg_lib.models import create_model

needs_kernels = pytest.mark.skipif(bool(native.problem()), reason=native.problem() or "here")


@needs_kernels
@pytest.mark.parametrize("name", ["ultraseg_108k", "ultraseg_130k"])
@pytest.mark.parametrize("size", [64, 96, 256])
@pytest.mark.parametrize("march", ["native", "x86-64-v3"])  # the second: AVX2 and no more
def test_kernels_give_the_models_logits(name, size, march, monkeypatch):
    monkeypatch.setenv("ULTRASEG_MARCH", march)
    model = lively_model(name)
    run = load_backend("native", model, size)
    for index in range(2):
        image = generated_image(index, size)
        expected = trained_logits(model, image)
        assert np.abs(run(image) - expected).max() < 1e-4 * np.abs(expected).max()


@needs_kernels
def test_bfloat16_moves_few_pixels():
    model, image = lively_model("ultraseg_130k"), generated_image(0, 256)
    if reason := cannot_run("native", model, 256, precision="bfloat16"):
        pytest.skip(reason)
    expected = trained_logits(model, image)
    expected -= np.median(expected)
    found = load_backend("native", model, 256, precision="bfloat16")(image)
    found -= np.median(found)
    assert ((found > 0) == (expected > 0)).mean() > 0.97
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


@needs_kernels
@pytest.mark.parametrize("size", [64, 256])
def test_the_matrix_unit_multiplies_as_vectors_do(size):
    plan = Plan(exact_form(lively_model("ultraseg_130k"), size), half=True)
    convolutions = {id(each): each for each in plan.keep if isinstance(each, native.Conv)}.values()
    if not any(each.pairs for each in convolutions):
        pytest.skip("no matrix unit (AMX) here")
    image = generated_image(0, size)
    tiled = plan.run(image)
    for each in convolutions:
        each.pairs = 0
    vectors = plan.run(image)
    assert not np.array_equal(tiled, vectors)  # other sums: the second run went without
    assert np.abs(tiled - vectors).max() < 0.02 * np.abs(vectors).max()


@needs_kernels
def test_an_image_of_any_strides_gives_the_same():
    run = load_backend("native", lively_model("ultraseg_130k"), 64)
    image = generated_image(0, 64)
    last = np.ascontiguousarray(image.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    turned = np.asfortranarray(image)
    assert np.array_equal(run(image), run(last))
    assert np.array_equal(run(image), run(turned))


@needs_kernels
def test_nothing_of_one_frame_stays_for_the_next():
    run = load_backend("native", lively_model("ultraseg_130k"), 64)
    first, second = generated_image(0, 64), generated_image(1, 64)
    before = run(first)
    run(second)
    assert np.array_equal(run(first), before)


@needs_kernels
@pytest.mark.parametrize(
    "image",
    [np.zeros((1, 3, 32, 32), np.float32), np.zeros((3, 64, 64), np.float32),
     np.zeros((2, 3, 64, 64), np.float32), np.zeros((1, 3, 64, 64)), np.zeros((1, 3, 64, 64), "u1")],
    ids=lambda image: f"{image.dtype} {image.shape}",
)  # fmt: skip
def test_another_array_is_refused_before_the_kernels_read_it(image):
    run = load_backend("native", lively_model("ultraseg_130k"), 64)
    with pytest.raises(ValueError, match=rf"image: found {image.dtype} of shape .*give float32"):
        run(image)


@needs_kernels
def test_time_of_the_parts_is_the_time_of_a_run():
    plan, image = Plan(exact_form(lively_model("ultraseg_130k"), 256)), generated_image(0, 256)
    shares = []
    for _ in range(20):
        start = time.perf_counter()
        spent = plan.time_parts(image)
        whole = 1e3 * (time.perf_counter() - start)
        assert all(milliseconds > 0 for milliseconds in spent.values())
        shares.append(sum(spent.values()) / whole)
    assert set(spent) == {"image", "upsample", *PARTS}
    assert 0.9 < np.median(shares) <= 1


def test_another_processor_gets_code_of_its_own(monkeypatch, outputs):
    """Also one of the same name: a home folder may be shared between machines."""

    def compiles(words: list, **_: object) -> subprocess.CompletedProcess:
        words[words.index("-o") + 1].touch()
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(native.subprocess, "run", compiles)
    monkeypatch.setattr(native.ctypes, "CDLL", lambda path: path)
    monkeypatch.setattr(native, "cpu_model", lambda: "AMD EPYC")
    first = native.build()
    assert native.build() == first
    monkeypatch.setattr(native, "processor", lambda: "AMD EPYC flags: avx2 without avx512f")
    assert native.build() != first


def test_without_a_compiler_the_other_backends_stay(monkeypatch):
    native.problem.cache_clear()
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    try:
        assert "no C++ compiler" in missing_part("native")
        assert {"eager", "inference"} <= set(available_backends())
        assert "native" not in available_backends()
        with pytest.raises(ImportError, match="backend native is not here"):
            load_backend("native", create_model("ultraseg_130k"), 64)
    finally:
        native.problem.cache_clear()


def test_where_registers_are_narrow_the_other_backends_stay(monkeypatch):
    native.problem.cache_clear()
    monkeypatch.setattr(native, "build", lambda: SimpleNamespace(is_fast=lambda: 0))
    try:
        assert "the kernels want AVX2" in missing_part("native") or not native.compiler()
        assert "native" not in available_backends()
    finally:
        native.problem.cache_clear()


def test_a_compiler_that_fails_is_no_crash(monkeypatch, outputs):
    native.problem.cache_clear()
    monkeypatch.setenv("ULTRASEG_MARCH", "no-such-processor")
    try:
        assert "native" not in available_backends()
    finally:
        native.problem.cache_clear()


@pytest.mark.parametrize("backend", ["eager", "inference", "openvino"])
def test_what_no_backend_can_do_is_named(backend):
    model = create_model("ultraseg_130k")
    assert cannot_run(backend, model, 250) == "size: found 250; give a multiple of 16"
    assert cannot_run(backend, model, 64, threads=0) == "threads: found 0; give 1 or more"
    assert f"{backend} has no 'float16'" in cannot_run(backend, model, 64, precision="float16")
    if not missing_part(backend):
        with pytest.raises(ValueError, match="give a multiple of 16"):
            load_backend(backend, model, 250)


def test_openvino_must_work_in_the_precision_asked_for(monkeypatch):
    openvino = pytest.importorskip("openvino")
    compile_model = openvino.Core.compile_model

    def fall_back(core, graph, device, settings):  # as a CPU does that has no such arithmetic
        return compile_model(core, graph, device, settings | {"INFERENCE_PRECISION_HINT": "f32"})

    monkeypatch.setattr(openvino.Core, "compile_model", fall_back)
    monkeypatch.setitem(backends.PRECISIONS, "float32", "f16")
    with pytest.raises(ValueError, match="asked for f16, OpenVINO takes f32"):
        load_backend("openvino", create_model("ultraseg_130k"), 64)


def test_bfloat16_is_left_out_where_the_cpu_lacks_it(monkeypatch):
    monkeypatch.setattr(backends, "has_bfloat16", lambda name: False)
    model = create_model("ultraseg_130k")
    for backend in backends.REDUCIBLE:
        reason = cannot_run(backend, model, 64, precision="bfloat16")
        assert missing_part(backend) or reason.endswith("does not multiply in bfloat16 on this CPU")


@pytest.mark.parametrize(
    ("model", "size", "threads", "reason"),
    [
        ("ultraseg_130k", 64, 2, "native runs on 1 core, found 2"),
        ("ultraseg_130k", 48, 1, "multiple of 32, found 48"),
        ("unet_tiny", 64, 1, "UltraSeg-108K and -130K only, found UNet"),
        ("ultraseg_500k", 64, 1, "UltraSeg-108K and -130K only"),
        ("ultraseg_108k_st", 64, 1, "UltraSeg-108K and -130K only"),
    ],
)
def test_what_the_kernels_cannot_do_is_named(model, size, threads, reason):
    assert reason in cannot_run("native", create_model(model), size, threads)


@pytest.mark.parametrize(
    "channels", [(16, 16, 48, 64, 96), (8, 32, 48, 64, 96), (8, 16, 96, 64, 96)]
)
def test_kernels_are_not_given_a_model_of_other_widths(channels):
    reason = cannot_run("native", create_model("ultraseg_130k", channels=channels), 64)
    assert "found UltraSeg of other widths" in reason
