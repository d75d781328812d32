"""Many runs at once: order, failures, killed processes, estimates, and the two engines' equality."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pandas as pd
import psutil
import pytest

from ultraseg_lib import engines, study
from ultraseg_lib.__main__ import main
from ultraseg_lib.grid import with_teachers
from ultraseg_lib.paths import ROOT


def tiny_plan(**changes) -> study.Profile:
    plan = study.load_profile("demo", models=["unet_tiny", "ultraseg_108k"], seeds=[0], epochs=2)
    return replace(plan, **{"image_size": 32, "generated": {"count": 40, "seed": 1}} | changes)


def test_a_long_reason_fits_into_the_pipe_that_is_read_at_the_end(monkeypatch):
    receiver, sender = multiprocessing.Pipe(duplex=False)
    monkeypatch.setattr(engines.signal, "signal", lambda *_: None)  # Ctrl-C stays the test's

    def fail(*_, **__):
        raise ValueError("x" * 200_000)

    monkeypatch.setattr(engines, "run_once", fail)
    plan = tiny_plan()
    working = threading.Thread(
        target=engines._work, args=(study.plan_runs(plan)[0], plan, 1, {}, sender), daemon=True
    )
    working.start()
    working.join(20)  # a full pipe would hold it for ever
    assert not working.is_alive()
    assert receiver.recv().startswith("ValueError: xxx")


def test_a_student_waits_for_its_teacher(outputs):
    plan = tiny_plan(models=("unet_tiny+kd_logits",), teacher="ultraseg_108k")
    runs = study.plan_grids(plan, ["main"])
    assert [run.model for run in runs] == ["ultraseg_108k", "unet_tiny+kd_logits"]
    assert engines.run_study(plan, runs[::-1], jobs=2) == {}
    teacher, student = (run.folder / "config.json" for run in runs)
    assert teacher.stat().st_mtime < student.stat().st_mtime
    assert study.read_config(runs[1])["inputs"]["teacher"] == runs[0].run_id


def test_a_student_alone_brings_its_teacher(outputs, monkeypatch):
    """``--only`` names the student; ``--force`` then does it anew, not its teacher."""
    student = "unet_tiny+kd10-synthetic-strong-clean-e2-s0"
    planned, forgotten = [], []
    monkeypatch.setattr("ultraseg_lib.__main__._train", lambda _, runs, *rest: planned.extend(runs))
    monkeypatch.setattr("ultraseg_lib.study.forget", lambda runs, _: forgotten.extend(runs))
    assert main(["study", "--only", student, "--force"]) == 0
    assert [run.model for run in planned] == ["ultraseg_500k", "unet_tiny+kd10"]
    assert [run.run_id for run in forgotten] == [student]


def test_force_removes_no_student_of_a_teacher_that_is_no_longer_the_same(outputs, capsys):
    student = study.parse_run_id("demo", "unet_tiny+kd10-synthetic-strong-clean-e2-s0")
    plan = study.load_profile("demo", epochs=2)
    teacher = with_teachers([student], plan)[0]
    for run in (teacher, student):
        run.folder.mkdir(parents=True)
        (run.folder / "scores.csv").touch()
        (run.folder / "config.json").write_text('{"inputs": {"images": {"size": 1}}}')
    assert main(["study", "--only", student.run_id, "--force"]) == 2
    assert f"{teacher.run_id}" in capsys.readouterr().err
    assert student.is_complete


def test_a_student_of_a_failed_teacher_fails_with_its_name(outputs):
    plan = tiny_plan(models=("unet_tiny+kd10",), teacher="lbunet", image_size=48)
    failures = engines.run_study(plan, study.plan_grids(plan, ["main"]), jobs=2)
    assert len(failures) == 2
    assert "its teacher lbunet-" in failures["unet_tiny+kd10-synthetic-strong-clean-e2-s0"]


def test_a_run_that_cannot_start_does_not_stop_the_others(outputs):
    """Ray's frames are read before a run is handed over."""

    class Pool:
        jobs, active = 1, {}

        def start(self, run: study.Run) -> None:
            raise ValueError("none falls to its part 'val'")

        def finished(self) -> list:
            return []

    plan = tiny_plan()
    runs = study.plan_grids(plan, ["main"])
    failures = engines._Schedule(plan, [*runs]).work_through(Pool())
    assert failures == {run.run_id: "ValueError: none falls to its part 'val'" for run in runs}


def kill_when(find, deadline: float = 60) -> threading.Thread:
    """Kill the first process that ``find`` returns, in the background."""

    def wait() -> None:
        until = time.monotonic() + deadline
        while time.monotonic() < until:
            for process in find():
                process.send_signal(signal.SIGKILL)
                return
            time.sleep(0.02)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_killed_process_fails_its_run_only_and_the_run_goes_on(outputs, monkeypatch):
    plan = tiny_plan(epochs=16)  # it must not end before it is killed
    victim, other = study.plan_runs(plan)
    pids = {}
    start = engines.LocalPool.start

    def noting(self, run):
        start(self, run)
        pids[run] = self.active[run][0].pid

    monkeypatch.setattr(engines.LocalPool, "start", noting)

    def under_way() -> list[psutil.Process]:
        begun = victim in pids and study.epochs_done(victim) >= 1
        return [psutil.Process(pids[victim])] if begun else []

    killer = kill_when(under_way)
    failures = engines.run_study(plan, [victim, other], jobs=2)
    killer.join()
    assert list(failures) == [victim.run_id]
    assert "killed by signal 9" in failures[victim.run_id]
    assert other.is_complete
    assert study.epochs_done(victim) >= 1
    assert engines.run_study(plan, [victim, other], jobs=2) == {}
    assert victim.is_complete


def test_a_run_that_another_process_does_is_refused(outputs):
    from filelock import FileLock

    plan = tiny_plan()
    run = study.plan_runs(plan)[0]
    run.folder.mkdir(parents=True)
    (run.folder / "checkpoint.pt").write_bytes(b"kept")
    with FileLock(run.folder.with_name(f".{run.run_id}.lock")):
        failures = engines.run_study(plan, [run])
        with pytest.raises(ValueError, match="another process is doing this run"):
            study.forget([run], plan)
    assert "another process is doing this run" in failures[run.run_id]
    assert (run.folder / "checkpoint.pt").read_bytes() == b"kept"
    study.forget([run], plan)
    assert not run.folder.exists()
    assert engines.run_study(plan, [run]) == {}


def test_a_notebook_waits_for_a_run_that_another_one_trains(outputs):
    """As notebooks 10 and 11 of the demo, side by side, whose teacher no grid of theirs holds."""
    plan = tiny_plan()
    run = study.plan_runs(plan)[0]
    with ThreadPoolExecutor(1) as other:
        with study.only_here(run):
            waiting = other.submit(study.ensure_run, run, plan)
            time.sleep(0.3)
            assert not run.is_complete
            study._train_and_score(run, plan, study.load_run_data(run, plan), None)
            scored = (run.folder / "scores.csv").stat().st_mtime_ns
        scores = waiting.result(timeout=60)
    assert scores.equals(study.read_scores(run))
    assert (run.folder / "scores.csv").stat().st_mtime_ns == scored  # not done twice


def test_force_removes_nothing_where_one_run_is_held(outputs):
    plan = tiny_plan()
    first, held = study.plan_runs(plan)
    study.run_once(first, plan)
    with study.only_here(held), pytest.raises(ValueError, match="another process is doing"):
        study.forget([first, held], plan)
    assert first.is_complete


def test_a_dataset_that_is_not_there_fails_its_own_runs_only(outputs, monkeypatch, tmp_path):
    monkeypatch.setenv("ULTRASEG_DATA", str(tmp_path))
    plan = tiny_plan(models=("unet_tiny",))
    (there,) = study.plan_runs(plan)
    absent = replace(there, dataset="kvasir_seg")
    failures = engines.run_study(plan, [absent, there], jobs=1)
    assert list(failures) == [absent.run_id]
    assert "Kvasir-SEG not found below" in failures[absent.run_id]
    assert there.is_complete


def test_the_estimate_comes_from_runs_of_the_same_model_and_dataset(outputs):
    plan = tiny_plan(epochs=100)
    done, other = study.plan_runs(plan)
    assert "no estimate" in engines.estimate(plan, [done, other], jobs=1)
    finished = replace(done, seed=7)
    finished.folder.mkdir(parents=True)
    pd.DataFrame({"seconds": [6.0, 6.0, 90.0]}).to_csv(finished.folder / "history.csv")
    pd.DataFrame().to_csv(finished.folder / "scores.csv")
    assert engines.estimate(plan, [done], jobs=1) == "about 10 min at 1 side by side"
    begun = replace(other, seed=8)
    begun.folder.mkdir(parents=True)
    (begun.folder / "history.csv").touch()  # empty: a full disk
    text = engines.estimate(plan, [done, begun], jobs=2)
    assert text == "about 5 min at 2 side by side, and 1 runs of unknown length"


def test_shares_of_the_mixed_set_are_not_joined_to_decode(outputs, monkeypatch):
    loaded = []
    monkeypatch.setattr(engines, "datasets_there", lambda: {"kvasir_seg", "bkai_igh", "my_own"})
    monkeypatch.setattr(engines, "load_frames_of", lambda name, _: loaded.append(name))
    plan = tiny_plan(datasets=("mixed@p10", "mixed"), tested=("synthetic",))
    engines._decode(plan, study.plan_runs(plan))
    assert loaded == ["bkai_igh", "kvasir_seg", "synthetic"]


def scores_of(runs: list[study.Run]) -> pd.DataFrame:
    return pd.concat([study.read_scores(run) for run in runs], ignore_index=True)


STUDY = """
from ultraseg_lib import engines, study
from tests.test_engines import tiny_plan
plan = tiny_plan(epochs=400)
if __name__ == "__main__":
    engines.run_study(plan, study.plan_runs(plan), jobs=2)
"""


def test_a_killed_study_leaves_no_process_behind(outputs, tmp_path):
    script = tmp_path / "go.py"
    script.write_text(STUDY)
    runs = study.plan_runs(tiny_plan(epochs=400))
    process = subprocess.Popen([sys.executable, script], env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        until = time.monotonic() + 120
        while min(map(study.epochs_done, runs)) < 1 and time.monotonic() < until:
            time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2
    finally:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []
    assert 1 <= study.epochs_done(runs[0]) < 400  # what was done is kept


def patiently(ray, start):
    """Call ``start`` up to three times: Ray gives up where its node is not up in 30 s."""
    for left in (2, 1, 0):
        try:
            return start()
        except Exception as error:
            ray.shutdown()
            if not left or "timed out during startup" not in str(error):
                raise


@pytest.mark.slow
def test_ray_gives_the_ledger_of_the_local_engine_though_a_worker_is_killed(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra [cluster] is not installed")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else its workers yield to everything else
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    plan = tiny_plan(epochs=8, models=("unet_tiny", "unet_tiny+kd_logits"), seeds=(0, 1))
    plan = replace(plan, teacher="ultraseg_108k")
    runs = study.plan_grids(plan, ["main"])
    monkeypatch.setenv("ULTRASEG_OUTPUTS", str(tmp_path / "local"))
    assert engines.run_study(plan, runs, jobs=2) == {}
    local = scores_of(runs)

    monkeypatch.setenv("ULTRASEG_OUTPUTS", str(tmp_path / "ray"))
    patiently(ray, lambda: ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False))
    killed = []

    def worker() -> list[psutil.Process]:
        found = psutil.Process().children(recursive=True)
        busy = [each for each in found if "ray::_do_run" in " ".join(each.cmdline())]
        killed.extend(busy[:1])
        return busy[:1]

    try:
        killer = kill_when(worker)
        failures = engines.run_study(plan, runs, engine="ray")
        killer.join()
    finally:
        ray.shutdown()
    assert failures == {}
    assert len(killed) == 1
    pd.testing.assert_frame_equal(scores_of(runs), local)


@pytest.mark.slow
def test_ray_goes_on_with_what_a_run_has(outputs):
    """A run that only lacks a test set is not trained again; its commit is told."""
    ray = pytest.importorskip("ray", reason="the extra [cluster] is not installed")
    plan = tiny_plan(models=("unet_tiny",), tested=("synthetic",))
    run = study.plan_runs(plan)[0]
    study.run_once(run, plan)
    weights = (run.folder / "weights.safetensors").read_bytes()
    wider = replace(plan, tested=("synthetic", "synthetic_unseen"))
    try:
        assert patiently(ray, lambda: engines.run_study(wider, [run], engine="ray")) == {}
    finally:
        ray.shutdown()
    assert (run.folder / "weights.safetensors").read_bytes() == weights
    assert set(study.read_scores(run)["test_set"]) == {"synthetic", "synthetic_unseen"}
    assert None not in study.read_config(run)["provenance"]["commits"].values()


def test_ray_holds_a_run_until_it_is_written(outputs, monkeypatch):
    """Neither side takes what the other is doing: a folder would be replaced under its feet."""
    pytest.importorskip("ray", reason="the extra [cluster] is not installed")
    from ultraseg_lib.ray_engine import RayPool

    plan = tiny_plan(models=("unet_tiny",))
    run = study.plan_runs(plan)[0]
    pool = RayPool(plan)  # of no cluster: what it would hand over is not asked for
    monkeypatch.setattr(pool, "_hand_over", lambda run: None)
    monkeypatch.setattr(pool, "_written", lambda run, task: None)
    with study.only_here(run), pytest.raises(ValueError, match="another process is doing this run"):
        pool.start(run)
    pool.start(run)
    with pytest.raises(ValueError, match="another process is doing this run"):
        study.run_once(run, plan)
    pool._collect(run, None)
    with study.only_here(run):
        assert pool.held == {}
