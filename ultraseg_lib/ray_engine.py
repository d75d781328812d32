"""The study on a Ray cluster: a run is a task, its frames travel to it, its files come back whole.

Workers need the same packages, but neither the datasets nor a shared disk.
"""

import json
import math
import os
import shutil
import tempfile
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
import torch

from ultraseg_lib.grid import Profile, Run, teachers_of
from ultraseg_lib.paths import ROOT, whole_folder
from ultraseg_lib.provenance import provenance
from ultraseg_lib.study import RunData, load_run_data, only_here, run_once

RETRIES = 3  # of a run whose worker died
GPU_SHARE = 0.2  # of one GPU: small models leave most of a large one idle
NOT_SENT = [".git", ".venv", "outputs", "data/raw", "notebooks", "docs", "tests"]
OF_A_TEACHER = ("weights.safetensors", "scores.csv")  # all that `load_trained` reads
Files = dict[str, bytes]


def _do_run(
    run: Run, profile: Profile, frames: RunData, given: dict[Run, Files], study: str
) -> Files | str:
    """Do one run on a worker; return its files, or why it failed.

    ``given``: the files of the runs that must be there, its teacher's, and its own so far. Where a
    first try on the same machine was killed, its checkpoint is found and goes on. ``study``: no
    other study's, whose files may still lie there. Tasks of one machine share no folder.
    """
    folder = Path(tempfile.gettempdir()) / f"ultraseg-{study}" / run.run_id
    os.environ["ULTRASEG_OUTPUTS"] = str(folder)
    torch.set_num_threads(1)
    try:
        for each, files in given.items():
            if not each.folder.exists():
                _write_files(each, files)
        run_once(run, profile, frames=frames)
        files = _read_files(run)
        shutil.rmtree(folder)
        return files
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _read_files(run: Run) -> Files:
    kept = [path for path in run.folder.iterdir() if path.is_file() and path.name[0] != "."]
    return {path.name: path.read_bytes() for path in kept}


def _write_files(run: Run, files: Files) -> None:
    """Put a run's files in its folder, all or none."""
    with whole_folder(run.folder) as temporary:
        for name, content in files.items():
            (temporary / name).write_bytes(content)


class RayPool:
    """Hands every run to the cluster at ``RAY_ADDRESS``, or to a new one on this machine.

    Ray keeps the queue: each run asks for one core, and for a share of a GPU where there are any.
    """

    jobs = math.inf  # Ray lets runs wait

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.study = uuid.uuid4().hex
        self.active: dict[Run, ray.ObjectRef] = {}
        self.held: dict[Run, ExitStack] = {}  # their locks: no local study may do them meanwhile
        self.frames: dict[tuple[str, str], ray.ObjectRef] = {}

    def __enter__(self) -> "RayPool":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no network unless asked
        self.started = not ray.is_initialized()
        if self.started:
            code = {"working_dir": str(ROOT), "excludes": NOT_SENT}
            ray.init(runtime_env=code, log_to_driver=False, include_dashboard=None)
        gpu = GPU_SHARE if ray.cluster_resources().get("GPU") else 0
        options = {"num_cpus": 1, "num_gpus": gpu, "max_retries": RETRIES}
        self.task = ray.remote(_do_run).options(**options)
        return self

    def __exit__(self, *_: object) -> None:
        for task in self.active.values():
            ray.cancel(task, force=True)
        for lock in self.held.values():
            lock.close()
        if self.started:
            ray.shutdown()

    def start(self, run: Run) -> None:
        """Hand a run to the cluster; its frames are sent once for all runs on them.

        Raises ValueError for a run that another process is doing.
        """
        with ExitStack() as lock:
            lock.enter_context(only_here(run))
            self._hand_over(run)
            self.held[run] = lock.pop_all()

    def _hand_over(self, run: Run) -> None:
        key = (run.dataset, run.protocol)
        if key not in self.frames:
            self.frames[key] = ray.put(load_run_data(run, self.profile))
        given = {run: _read_files(run)} if run.folder.exists() else {}
        for teacher in teachers_of(run, self.profile):
            given[teacher] = {name: (teacher.folder / name).read_bytes() for name in OF_A_TEACHER}
        self.active[run] = self.task.remote(run, self.profile, self.frames[key], given, self.study)

    def finished(self) -> list[tuple[Run, str | None]]:
        """Return the runs that have ended since the last call, with the reason of each that failed."""
        if not self.active:
            return []
        tasks = list(self.active.values())
        ended, _ = ray.wait(tasks, num_returns=len(tasks), timeout=0)
        runs = [run for run, task in self.active.items() if task in ended]
        return [(run, self._collect(run, self.active.pop(run))) for run in runs]

    def _collect(self, run: Run, task: Any) -> str | None:
        with self.held.pop(run):
            return self._written(run, task)

    def _written(self, run: Run, task: Any) -> str | None:
        try:
            files = ray.get(task)
        except ray.exceptions.RayError as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
        if isinstance(files, str):
            return files
        _write_files(run, files | {"config.json": _with_our_commit(files["config.json"])})
        return None


def _with_our_commit(config: bytes) -> bytes:
    """Name the commit in a worker's ``config.json``: its copy of the code is no checkout."""
    values, ours = json.loads(config), provenance()
    made = values["provenance"]
    for key in ("commit", "uncommitted_changes"):
        made[key] = ours[key] if made[key] is None else made[key]
    made["commits"] = {epoch: each or ours["commit"] for epoch, each in made["commits"].items()}
    return (json.dumps(values, indent=2) + "\n").encode()
