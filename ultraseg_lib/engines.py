"""Many runs at once: processes of this machine, or a Ray cluster. Both fill the same ledger."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import cv2
import torch
from tqdm.auto import tqdm

from ultraseg_lib.choices import check_choice
from ultraseg_lib.data.splits import EXTERNAL, MIXED
from ultraseg_lib.grid import Profile, Run, datasets_there, teachers_of
from ultraseg_lib.provenance import usable_cores
from ultraseg_lib.study import (
    check_complete,
    epochs_done,
    finished_runs,
    load_frames_of,
    missing_tests,
    read_history,
    read_scores,
    run_once,
    test_sets_of,
)

GPU_JOBS = 6  # small models leave most of a large GPU idle


def runs_to_do(profile: Profile, runs: Iterable[Run]) -> list[Run]:
    """Return the runs that are not trained, or not scored on all test sets that are there.

    Raises ValueError for a finished run that was made from other inputs.
    """
    todo = []
    for run in runs:
        if run.is_complete:
            check_complete(run, profile)
        if not run.is_complete or missing_tests(run, test_sets_of(run, profile)):
            todo.append(run)
    return todo


def run_study(
    profile: Profile, runs: list[Run], jobs: int | None = None, engine: str = "local"
) -> dict[str, str]:
    """Do every run that the ledger lacks, teachers first; return failures (run_id -> reason).

    ``jobs``: how many at a time; on a CPU each has its share of the cores. ``engine``: "local", or
    "ray" for the cluster that ``RAY_ADDRESS`` names (one on this machine where it names none).
    A failed run does not stop the others. What was done is kept when the study is stopped. Raises
    ValueError for another engine, and for a finished run that was made from other inputs.
    """
    check_choice("engine", engine, ("local", "ray"))
    todo = runs_to_do(profile, runs)
    if not todo:
        return {}
    _decode(profile, todo)
    if engine == "ray":
        from ultraseg_lib.ray_engine import RayPool

        pool = RayPool(profile)
    else:
        pool = LocalPool(profile, min(jobs or default_jobs(len(todo)), len(todo)))
    with pool:
        return _Schedule(profile, todo).work_through(pool)


def _decode(profile: Profile, runs: list[Run]) -> None:
    """Decode every dataset once, before the processes start.

    What cannot be read fails its own runs when they start; where it is all there is, it is raised.
    """
    one_each = {run.dataset: run for run in runs}.values()
    names = {name for run in one_each for name in (run.dataset, *test_sets_of(run, profile))}
    mixed = {name for name in names if name.partition("@")[0] == "mixed"}
    parts = {*MIXED, *EXTERNAL} & datasets_there() if mixed else set()
    wanted, errors = sorted(names - mixed | parts), []
    for name in wanted:
        try:
            load_frames_of(name, profile)
        except (OSError, ValueError) as error:
            errors.append(error)
    if errors and len(errors) == len(wanted):
        raise errors[0]


def default_jobs(runs: int) -> int:
    """Return how many runs go side by side: one a core, or several on a GPU."""
    cores = usable_cores()
    return max(1, min(GPU_JOBS if torch.cuda.is_available() else cores, cores, runs))


@dataclass
class _Schedule:
    """Which run may start, which are under way, and what came of the others."""

    profile: Profile
    waiting: list[Run]
    failures: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.all = list(self.waiting)
        self.done = {run: epochs_done(run) for run in self.all}  # a look at every file takes time

    def work_through(self, pool: Any) -> dict[str, str]:
        """Start runs as there is room and show the epochs of all, until the last has ended."""
        total = sum(run.epochs for run in self.all)
        with tqdm(total=total, initial=self._epochs([]), unit="epoch", disable=None) as bar:
            while self.waiting or pool.active:
                self._start(pool)
                active = list(pool.active)
                for run, reason in pool.finished():
                    self._note(run, reason, bar)
                bar.n = self._epochs(active)
                bar.refresh()
                time.sleep(0.2)
        return self.failures

    def _epochs(self, active: Iterable[Run]) -> int:
        self.done |= {run: epochs_done(run) for run in active}
        return sum(e.epochs if e.run_id in self.failures else self.done[e] for e in self.all)

    def _start(self, pool: Any) -> None:
        for run in list(self.waiting):
            if len(pool.active) < pool.jobs and self._is_ready(run):
                self.waiting.remove(run)
                try:
                    pool.start(run)
                except Exception as error:  # its frames cannot be read, say: the others go on
                    self.failures[run.run_id] = f"{type(error).__name__}: {error}"

    def _is_ready(self, run: Run) -> bool:
        """Return whether a run's teacher is trained; where it failed, the run fails too."""
        for teacher in teachers_of(run, self.profile):
            if teacher.is_complete:
                continue
            if teacher not in self.all or teacher.run_id in self.failures:
                self.waiting.remove(run)
                self.failures[run.run_id] = f"its teacher {teacher.run_id} is not trained"
            return False
        return True

    def _note(self, run: Run, reason: str | None, bar: tqdm) -> None:
        if reason:
            self.failures[run.run_id] = reason
            bar.write(f"  failed: {run.run_id}: {reason}")
            return
        scores = read_scores(run)
        dice = scores.loc[scores["test_set"] == scores["test_set"].iloc[0], "dice"].mean()
        bar.write(f"  done: {run.run_id}: test Dice {dice:.3f}")


def _settings() -> dict[str, str]:
    """Return the study's environment variables, which a process of the fork server does not see."""
    return {name: value for name, value in os.environ.items() if name.startswith("ULTRASEG_")}


def _work(
    run: Run, profile: Profile, threads: int, settings: dict[str, str], answer: Connection
) -> None:
    """Do one run in a process of its own; send the reason if it failed."""
    for name in _settings():  # the fork server's, which may be older
        del os.environ[name]
    os.environ.update(settings)
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    parent = multiprocessing.parent_process()

    def stop_if_alone(_: dict[str, float]) -> None:
        if parent is not None and not parent.is_alive():
            raise SystemExit  # the study was killed: end with this epoch, which is saved

    try:
        run_once(run, profile, on_epoch=stop_if_alone)
    except Exception as error:
        # The parent reads once this process has ended: more than a pipe holds would never end.
        answer.send(f"{type(error).__name__}: {error}"[:900])
    else:
        answer.send(None)


class LocalPool:
    """One process a run, at most ``jobs`` at a time; on a CPU they share its cores evenly."""

    def __init__(self, profile: Profile, jobs: int) -> None:
        self.profile, self.jobs = profile, jobs
        self.threads = max(1, usable_cores() // jobs)
        # a fork of a server that has imported everything starts at once and holds no GPU state
        kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self.context = multiprocessing.get_context(kind)
        if kind == "forkserver":
            # the second: what PyTorch would import with the first optimizer, seconds in every run
            self.context.set_forkserver_preload(["ultraseg_lib.engines", "torch._dynamo"])
        self.active: dict[Run, tuple[BaseProcess, Connection]] = {}

    def __enter__(self) -> "LocalPool":
        return self

    def __exit__(self, *_: object) -> None:
        for process, _answer in self.active.values():  # after Ctrl-C: epochs are saved as they end
            process.terminate()
            process.join()

    def start(self, run: Run) -> None:
        """Start a run."""
        receiver, sender = self.context.Pipe(duplex=False)
        arguments = (run, self.profile, self.threads, _settings(), sender)
        process = self.context.Process(target=_work, args=arguments, name=run.run_id)
        process.start()
        sender.close()
        self.active[run] = (process, receiver)

    def finished(self) -> list[tuple[Run, str | None]]:
        """Return the runs that have ended since the last call, with the reason of each that failed."""
        ended = [run for run, (process, _) in self.active.items() if not process.is_alive()]
        return [(run, self._reason(*self.active.pop(run))) for run in ended]

    @staticmethod
    def _reason(process: BaseProcess, answer: Connection) -> str | None:
        process.join()
        if answer.poll():
            try:
                return answer.recv()
            except EOFError:
                pass
        code = process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
        return f"its process {how} (memory?); the same command goes on from its last epoch"


# --- estimates ------------------------------------------------------------------------------------


def estimate(profile: Profile, todo: list[Run], jobs: int) -> str:
    """Say how long the runs may take, judged by runs of the same model on the same dataset here.

    Says so where there are none for some: a guess would be worth nothing.
    """

    def kind(run: Run) -> tuple[str, str]:
        return run.model.partition("+")[0], run.dataset

    known: dict[tuple[str, str], float] = {}
    for run in (*finished_runs(profile.name), *todo):
        history = read_history(run)
        if len(history):
            known[kind(run)] = history["seconds"].median()
    left = {run: run.epochs - epochs_done(run) for run in todo}
    told = [run for run in todo if kind(run) in known]
    seconds = sum(left[run] * known[kind(run)] for run in told)
    if not told:
        return "no estimate before the first epoch: no such run was done here yet"
    text = f"about {format_minutes(seconds / 60 / jobs)} at {jobs} side by side"
    others = len(todo) - len(told)
    return f"{text}, and {others} runs of unknown length" if others else text


def format_minutes(minutes: float) -> str:
    """Return a duration as people say it."""
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{max(1, round(minutes))} min"
