"""What the study needs of a machine: each thing is OK, or comes with its fix."""

import os
import shutil
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple

from ultraseg_lib.paths import ROOT, data_dir, outputs_dir

FREE_DISK_GB = 2


class Finding(NamedTuple):
    """One line of the check: what was looked at, what was found, and the fix ('' if all is well)."""

    subject: str
    found: str
    fix: str = ""


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    fix = "" if sys.version_info >= (3, 11, 4) else "install Python 3.11.4 or newer, ./run_all.sh"
    return Finding("Python", found, fix)


def pinned_versions() -> dict[str, str]:
    """Return the core dependencies of ``pyproject.toml``: package -> pinned version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return dict(line.split("==") for line in project["dependencies"])


def _package(name: str, wanted: str) -> Finding:
    try:
        found = version(name).split("+")[0]  # 2.13.0+cpu is 2.13.0 built for the CPU
    except PackageNotFoundError:
        found = "missing"
    fix = "" if found == wanted else f"want {wanted}: delete .venv, then ./run_all.sh"
    return Finding(name, found, fix)


def _opencv() -> Finding:
    try:
        import cv2  # needs system libraries that a bare machine may lack
    except ImportError as error:
        return Finding("OpenCV", str(error), "install libgl1 and libglib2.0-0 (Debian, Ubuntu)")
    return Finding("OpenCV", f"loads ({cv2.__version__})")


def _gpu() -> Finding:
    import torch

    from ultraseg_lib.data.device import GPU_FIX

    if not torch.cuda.is_available():
        return Finding("GPU", "none (the demo and lite need none)")
    fix = "" if find_spec("kornia") else f"kornia, which augments on it, is missing: {GPU_FIX}"
    return Finding("GPU", torch.cuda.get_device_name(), fix)


def _inference() -> Finding:
    from ultraseg_lib.deploy.backends import BACKENDS, missing_part

    lacks = {title: missing_part(name) for name, title in BACKENDS.items()}
    told = [f"{title} ({reason})" if reason else title for title, reason in lacks.items()]
    return Finding("inference", "; ".join(told))


def _kernel() -> Finding:
    from jupyter_client.kernelspec import KernelSpecManager

    found = "python3" in KernelSpecManager().find_kernel_specs()
    fix = "" if found else "python -m ipykernel install --sys-prefix"
    return Finding("Jupyter kernel", "python3" if found else "missing", fix)


def _outputs() -> Finding:
    folder = outputs_dir()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        fix = "set ULTRASEG_OUTPUTS to another folder"
        return Finding("outputs", f"{folder} cannot be written: {there}", fix)
    free = shutil.disk_usage(there).free / 1e9
    fix = "" if free > FREE_DISK_GB else f"free {FREE_DISK_GB} GB, or set ULTRASEG_OUTPUTS"
    return Finding("outputs", f"{folder}, {free:.0f} GB free", fix)


def _data() -> Finding:
    from ultraseg_lib.data import find_datasets

    folder = data_dir()
    if not folder.is_dir():
        fix = "ULTRASEG_DATA names no folder" if "ULTRASEG_DATA" in os.environ else ""
        none = f"none at {folder} (the demo needs none; see data/README.md)"
        return Finding("real data", none, fix)
    try:
        found = [f"{name} {len(dataset.table)}" for name, dataset in find_datasets(folder).items()]
    except (ValueError, OSError) as error:
        return Finding("real data", "a file is wrong", str(error))
    return Finding("real data", ", ".join(found) or f"none below {folder} (the demo needs none)")


def check() -> list[Finding]:
    """Look at Python, packages, OpenCV's libraries, GPU, kernel, disk and data; change nothing."""
    packages = [_package(name, wanted) for name, wanted in pinned_versions().items()]
    looks: tuple[Callable[[], Finding], ...] = (_opencv, _gpu, _inference, _kernel, _outputs, _data)
    return [_python(), *packages, *map(_finding, looks)]


def _finding(look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except ImportError as error:  # one missing package must not hide the other findings
        name = look.__name__.strip("_")
        return Finding(name, f"not looked at: {error}", "mend what is wrong above")
