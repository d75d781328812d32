"""The exported files: checked, for any batch, with what a user must know, and right."""

import json
from pathlib import Path

import numpy as np
import pytest
from deployed import generated_image, lively_model, trained_logits

from ultraseg_lib.__main__ import main
from ultraseg_lib.deploy import backends, export
from ultraseg_lib.models import create_model
from ultraseg_lib.training import save_weights

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the deploy extras")
onnx = pytest.importorskip("onnx")
openvino = pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    model = lively_model("ultraseg_130k")
    return model, {f.name: f for f in export.export("ultraseg_130k", model, folder, 64)}


def test_onnx_takes_any_batch_and_gives_the_models_logits(files):
    model, written = files
    session = onnxruntime.InferenceSession(written["model.onnx"])
    batch = np.concatenate([generated_image(index, 64) for index in range(3)])
    for images in (batch[:1], batch):
        expected = trained_logits(model, images)
        found = session.run(None, {export.INPUT: images})[0]
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_openvino_gives_the_models_logits(files):
    model, written = files
    compiled = openvino.Core().compile_model(written["model.xml"], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # fmt: skip
    image = generated_image(0, 64)
    expected = trained_logits(model, image)
    assert np.abs(compiled(image)[0] - expected).max() < 1e-4 * np.abs(expected).max()


def test_metadata_says_what_a_user_must_know(files):
    written = files[1]
    graph = onnx.load(written["model.onnx"])
    onnx.checker.check_model(graph, full_check=True)
    kept = {each.key: each.value for each in graph.metadata_props}
    assert kept == json.loads(written["metadata.json"].read_text())
    assert {"preprocessing", "postprocessing", "version", "license"} <= set(kept)
    assert "64x64" in kept["preprocessing"]
    network = openvino.Core().read_model(written["model.xml"])
    assert network.get_rt_info("postprocessing").astype(str) == kept["postprocessing"]


@pytest.mark.parametrize(
    ("path", "name"),
    [("a_run/weights.safetensors", "a_run"), ("mine/polyp.safetensors", "polyp.safetensors"),
     ("weights.safetensors", "weights.safetensors"), (None, "untrained")],
)  # fmt: skip
def test_weights_go_by_their_run_or_by_their_own_name(path, name):
    found = export.describe("ultraseg_130k", 64, path and Path(path))
    assert found["weights"] == name


@pytest.mark.parametrize("name", ["ultraseg_108k", "unet_tiny", "lbunet", "egeunet"])
def test_untrained_models_run_in_onnx_runtime_too(name):
    """Norms of ones: equal constants that the exporter shares."""
    model, image = create_model(name).eval(), generated_image(0, 64)
    run = backends.load_backend("onnxruntime", model, 64)
    expected = trained_logits(model, image)  # EGE-UNet's own float32 is only this good
    assert np.abs(run(image) - expected).max() < 5e-3 * max(1, np.abs(expected).max())


def test_the_command_writes_whole_folders(tmp_path, capsys, outputs):
    words = ["export", "--models", "ultraseg_108k_st", "--size", "64", "-o", str(tmp_path)]
    assert main(words) == 2  # never an untrained network unasked
    assert "weights of ultraseg_108k_st: none are shipped" in capsys.readouterr().err
    assert main([*words, "--untrained"]) == 0
    names = {path.name for path in (tmp_path / "ultraseg_108k_st").iterdir()}
    assert names == {"model.onnx", "metadata.json", "model.xml", "model.bin"}
    assert "ultraseg_108k_st (untrained)" in capsys.readouterr().out


def test_a_folder_with_other_files_is_left_alone(tmp_path, capsys):
    folder = tmp_path / "unet_tiny"
    save_weights(create_model("unet_tiny"), folder / "weights.safetensors")
    words = ["--models", "unet_tiny", "--weights", str(folder / "weights.safetensors")]
    assert main(["export", *words, "-o", str(tmp_path)]) == 2
    assert "holds weights.safetensors, no file of an export" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["weights.safetensors"]


def test_export_without_shipped_weights_names_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ultraseg_lib.weights.shipped_weights", lambda model: {})
    assert main(["export", "-o", str(tmp_path)]) == 2
    assert "weights of ultraseg_108k: none are shipped" in capsys.readouterr().err


def test_export_without_onnx_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    assert main(["export", "--models", "ultraseg_130k", "-o", str(tmp_path)]) == 2
    assert "onnx missing: pip install -e '.[deploy]'" in capsys.readouterr().err


def test_weights_are_exported_at_the_size_of_their_training(tmp_path):
    save_weights(create_model("ultraseg_108k"), tmp_path / "weights.safetensors")
    config = {"inputs": {"images": {"size": 64}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    words = ["--models", "ultraseg_108k", "--weights", str(tmp_path / "weights.safetensors")]
    assert main(["export", *words, "-o", str(tmp_path)]) == 0
    graph = onnx.load(next(tmp_path.rglob("*.onnx")))
    shape = graph.graph.input[0].type.tensor_type.shape.dim
    assert [side.dim_value for side in shape[1:]] == [3, 64, 64]
