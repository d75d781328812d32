"""The benchmark: rows that mean something, timed in turns, each in a process of its own."""

import json

import cv2
import numpy as np
import pytest
from deployed import generated_image, lively_model

from ultraseg_lib.__main__ import main
from ultraseg_lib.deploy import anatomy, benchmark, worker
from ultraseg_lib.deploy.frame import enlarge, segment_frame
from ultraseg_lib.deploy.timing import LEAST, TURN, Timed, time_in_turns
from ultraseg_lib.models import MODELS
from ultraseg_lib.paths import ROOT
from ultraseg_lib.report import benchmark_figures
from ultraseg_lib.report.figures import model_style

SCENE_SIZE = 64


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> dict:
    """One small benchmark by the command line."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    words = ["bench", "--models", "ultraseg_130k", "--backends", "eager,inference", "--threads", "1",
             "--size", str(SCENE_SIZE), "--frames", "10", "--seconds", "1"]  # fmt: skip
    assert main([*words, "--isas", "all,avx2", "-o", str(path)]) == 0
    return json.loads(path.read_text())


def test_a_row_holds_what_was_promised(result):
    keys = {"model", "backend", "precision", "threads", "median_ms", "iqr_ms", "p95_ms", "parity"}
    assert len(result["rows"]) == 4
    for row in result["rows"]:
        assert keys <= set(row)
        assert row["frames"] == 10
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["parity"] < 1e-3
        assert 0 <= row["memory_mb"] < row["peak_memory_mb"] < 4000
        assert row["frame_median_ms"] > 0 < row["file_median_ms"]
    eager = [row for row in result["rows"] if row["backend"] == "eager"]
    assert [row["speedup"] for row in eager] == [1.0, 1.0]
    assert result["cpu"]
    assert result["protocol"]["weights"]["ultraseg_130k"]


def test_parts_and_rewrites_come_with_it(result):
    assert [row["part"] for row in result["parts"]] == [*anatomy.PARTS, anatomy.REST]
    steps = [row["step"] for row in result["rewrites"]]
    assert steps[:2] == ["all heads, as the paper times it", "main head only"]
    assert [row["backend"] for row in result["rewrites"]][:2] == ["eager", "inference"]
    assert set(benchmark_figures.STEPS) <= set(steps)


def test_every_model_of_table_4_is_known():
    names = benchmark.table4_models()
    assert len(names) == len(set(names)) == 11
    assert set(names) <= set(MODELS)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--backends", "abacus"], "backend: unknown 'abacus'; choose from eager"),
        (["--backends", "eager:bfloat16"], "precision: eager has no 'bfloat16'"),
        (["--models", "unet_huge"], "unet_huge"),
        (["--threads", "9999"], "threads: found [9999]"),
        (["--backends", "eagre", "--isas", "avx2"], "backend: unknown 'eagre'"),
        (["--isas", "sse"], "isas: unknown 'sse'; choose from all, avx2"),
        (["--size", "250", "--models", "lbunet"], "nothing can be timed: lbunet by eager"),
    ],
)
def test_bad_words_are_named_before_anything_is_timed(words, reason, tmp_path, capsys):
    assert main(["bench", *words, "-o", str(tmp_path / "b.json")]) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "b.json").exists()


def test_wrong_logits_are_not_timed():
    setting = worker.Setting("ultraseg_130k", "inference")
    exact = np.array([10.0])
    assert not benchmark.fault(setting, {"parity": 9e-4}, exact)
    assert "off by 0.002, allowed is 0.001" in benchmark.fault(setting, {"parity": 2e-3}, exact)
    assert benchmark.fault(setting, {"parity": float("nan")}, exact)
    half = worker.Setting("ultraseg_130k", "openvino", "bfloat16")
    assert not benchmark.fault(half, {"parity": 0.9}, exact)
    assert benchmark.fault(half, {"parity": 1.1}, exact)


def test_a_row_whose_process_fails_is_left_out_with_its_reason():
    scene = worker.Scene.of(np.zeros((80, 100, 3), np.uint8), SCENE_SIZE)
    exact = np.zeros((1, 1, SCENE_SIZE, SCENE_SIZE))
    with benchmark.working([worker.Setting("ultraseg_130k", "abacus")], None, scene, exact) as rows:
        assert "unknown 'abacus'" in rows[0].fault


def test_a_process_that_dies_while_timed_costs_its_row_alone(monkeypatch):
    real, scene = worker.Worker.sample, benchmark.generated_scene(SCENE_SIZE)

    def sample(self, scope: str, count: int) -> list[float]:
        if self.setting.backend == "eager" and scope == "frame":
            self.process.kill()
            self.process.join()
        return real(self, scope, count)

    monkeypatch.setattr(worker.Worker, "sample", sample)
    settings = [worker.Setting("ultraseg_130k", each) for each in ("eager", "inference")]
    rows, failed = benchmark.time_model("ultraseg_130k", settings, scene, 40, 5)
    assert [(row["backend"], row["frames"]) for row in rows] == [("inference", 40)]
    assert failed == [f"{settings[0].label()}: its process ended with exit code -9"]


def test_what_was_timed_is_on_record_after_each_model(monkeypatch, tmp_path):
    def time_model(name: str, *_: object) -> tuple[list[dict], list[str]]:
        if name == "lbunet":
            raise KeyboardInterrupt
        return [{"model": name, "backend": "eager", "threads": 1, "isa": "all", "median_ms": 5}], []

    monkeypatch.setattr(benchmark, "time_model", time_model)
    path = tmp_path / "bench.json"
    with pytest.raises(KeyboardInterrupt):
        benchmark.benchmark(path, ["unet_tiny", "lbunet"], ["eager"], [1], size=64)
    kept = json.loads(path.read_text())
    assert [(row["model"], row["speedup"]) for row in kept["rows"]] == [("unet_tiny", 1.0)]
    assert set(kept["protocol"]["weights"]) == {"unet_tiny"}


def test_models_that_do_not_fit_the_size_are_left_out(monkeypatch, tmp_path):
    row = {"backend": "eager", "threads": 1, "isa": "all", "median_ms": 5}
    monkeypatch.setattr(benchmark, "time_model", lambda name, *_: ([row | {"model": name}], []))
    words = (["unet_tiny", "lbunet"], ["eager"], [1])
    result = benchmark.benchmark(tmp_path / "bench.json", *words, size=80)
    assert [each["model"] for each in result["rows"]] == ["unet_tiny"]
    assert [line.split()[0] for line in result["left_out"]] == ["lbunet"]


def test_limits_reach_the_process_and_leave_this_one_alone(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    with worker.limited("avx2"):
        assert worker.os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert "ONEDNN_MAX_CPU_ISA" not in worker.os.environ


def test_rows_are_timed_in_turns_for_so_many_frames_or_seconds():
    order: list[str] = []

    def sampler(name: str, milliseconds: float):
        def sample(count: int) -> list[float]:
            order.extend([name] * count)
            return [milliseconds] * count

        return sample

    quick, slow = Timed(sampler("q", 1), 12, 20), Timed(sampler("s", 500), 200, 1)
    time_in_turns([quick, slow], "test")
    assert order[: 2 * TURN] == ["q"] * TURN + ["s"] * TURN
    assert len(quick.times) == 12
    assert len(slow.times) == LEAST
    assert slow.spread() == {"median_ms": 500, "iqr_ms": 0, "p95_ms": 500}


def test_the_whole_frame_gets_a_mask_of_its_size():
    frame = benchmark.generated_scene(SCENE_SIZE).frame
    assert frame.shape == (*benchmark.FRAME, 3)
    half = np.where(np.arange(SCENE_SIZE) < SCENE_SIZE / 2, 1.0, -1.0).astype(np.float32)
    mask = segment_frame(frame, lambda image: np.broadcast_to(half, image[:, :1].shape), SCENE_SIZE)
    assert mask.shape == benchmark.FRAME
    assert (mask[:, :640] == 255).all()
    assert (mask[:, 640:] == 0).all()


@pytest.mark.parametrize("shape", [(1024, 1280), (577, 723), (40, 31), (1, 1)])
def test_masks_are_enlarged_as_opencv_does(shape):
    mask = np.where(np.random.default_rng(0).random((64, 64)) > 0.5, np.uint8(255), np.uint8(0))
    expected = cv2.resize(mask, shape[::-1], interpolation=cv2.INTER_NEAREST)
    assert np.array_equal(enlarge(mask, shape), expected)


def test_parts_are_measured_without_leaving_hooks():
    model = lively_model("ultraseg_130k")
    rows = anatomy.time_parts(model, generated_image(0, SCENE_SIZE), repeats=3)
    assert all(row["before_ms"] > 0 for row in rows if row["part"] in anatomy.PARTS)
    assert not any(len(each._forward_hooks) for each in model.modules())


def test_figures_show_the_committed_benchmark():
    path = ROOT / "outputs" / "reference" / "bench" / "bench.json"
    if not path.exists():
        pytest.skip("no benchmark is committed")
    kept = json.loads(path.read_text())
    rows = kept["table4"]["rows"]
    table = benchmark_figures.table4(rows)
    assert len(table) == 11
    for title, ours in table.set_index("title").iterrows():
        one = [r for r in rows if MODELS[r["model"]].title == title and r["threads"] == 1]
        deployed = [r["median_ms"] for r in one if r["backend"] != "eager"]
        assert ours["deployed_ms"] == min(deployed)
        assert ours["deployed_fps"] == pytest.approx(1000 / min(deployed))
    points = benchmark_figures.plot_fps_against_dice(rows)
    dots = [line.get_xdata() for line in points.axes[0].lines if line.get_markersize() == 13]
    drawn = [x for dot in dots for x in dot]
    assert sorted(drawn) == pytest.approx(sorted(table["deployed_fps"]))
    colours = {line.get_color() for line in points.axes[0].lines if line.get_markersize() == 13}
    assert {model_style(row["model"])[0] for row in rows} <= colours
    parts = benchmark_figures.plot_parts(kept["parts"])
    before = [bar.get_width() for bar in parts.axes[0].containers[0]]
    assert before == [row["before_ms"] for row in kept["parts"]]
    steps = benchmark_figures.plot_rewrites(kept["rewrites"])
    medians = [bar.get_width() for bar in steps.axes[0].patches]
    assert medians == [row["median_ms"] for row in kept["rewrites"]]
    told = benchmark_figures.steps_table(kept["rewrites"])
    assert told.iloc[: len(medians), 0].tolist() == medians
    assert [name for name in told.columns if name.endswith("record, ms")]
    for figure in (points, parts, steps):
        benchmark_figures.plt.close(figure)


def test_agreement_of_the_record_is_on_real_images():
    """In float32 the logits stay, in bfloat16 they can exceed the tenth that a generated frame must keep."""
    if not (ROOT / "outputs" / "reference" / "bench" / "bench.json").exists():
        pytest.skip("no benchmark is committed")
    table = benchmark_figures.recorded_agreement().set_index(["precision", "backend"])
    assert (table["images"] == 200).all()
    assert table["pixels_equal"].between(table["pixels_equal_worst"], 1).all()
    assert (table.loc["float32", "relative_parity"] < 1e-3).all()
    assert (table.loc["bfloat16", "relative_parity"] > 0.1).sum() == 3  # as notebook 09 says
    words = benchmark_figures.readable(table.reset_index())
    assert set(words["model"]) == {"UltraSeg-108K", "UltraSeg-130K"}
    changed = 1e6 * (1 - table["pixels_equal"].to_numpy())
    assert np.allclose(words[benchmark_figures.HEADINGS["pixels_equal"]], changed)
    assert len(table.loc["bfloat16"]) == 4


def test_a_model_without_eager_row_or_outside_the_paper_is_left_out_of_the_figure():
    setting = {"threads": 1, "isa": "all", "precision": "float32", "median_ms": 10.0}
    rows = [setting | {"model": model, "backend": backend} for model, backend in (
        ("ultraseg_500k", "eager"), ("ultraseg_500k", "inference"), ("lbunet", "inference"),
        ("unet_tiny", "eager"), ("unet_tiny", "inference"),
    )]  # fmt: skip
    figure = benchmark_figures.plot_fps_against_dice(rows)
    named = {text.get_text() for text in figure.axes[0].texts}
    assert "UNet-Tiny" in named
    assert not named & {"LB-UNet", "UltraSeg-500K"}
    assert benchmark_figures.table4(rows)["title"].tolist() == ["UNet-Tiny", "LB-UNet"]
    benchmark_figures.plt.close(figure)


def test_machines_of_the_record_stand_side_by_side(monkeypatch, tmp_path):
    def row(backend: str, ms: float, **other: object) -> dict[str, object]:
        usual = {"model": "ultraseg_130k", "precision": "float32", "threads": 1, "isa": "all"}
        return usual | {"backend": backend, "median_ms": ms, "speedup": 20 / ms} | other

    wide, narrow = ["avx2", "avx512f"], ["avx2"]
    machines = [("Large(R) Processor", wide, 4.0), ("Large(R) Processor", narrow, 5.0),
                ("Small", [], 8.0), ("Small", [], 12.0)]  # fmt: skip  # the last one twice
    for number, (cpu, sets, ms) in enumerate(machines):
        rows = [row("eager", 20.0), row("native", ms), row("native", 1.0, threads=2)]
        path = tmp_path / "bench" / f"{number}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"cpu": cpu, "instruction_sets": sets, "rows": rows}))
    monkeypatch.setattr(benchmark_figures, "outputs_dir", lambda folder: tmp_path)
    table = benchmark_figures.recorded_machines().xs(("float32", "own kernels"))
    assert table["median, ms"].to_dict() == {"Large": 4.0, "Large, AVX2": 5.0, "Small": 10.0}
    assert table["× plain PyTorch"].round(3)["Small"] == 2.083
