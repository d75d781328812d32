"""One set of pins: pyproject.toml, environment.yml and the lock file agree."""

import re
import tomllib

import yaml

from ultraseg_lib.paths import ROOT

PROJECT_TEXT = (ROOT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(PROJECT_TEXT)["project"]
CORE = PROJECT["dependencies"]
EXTRAS = [pin for pins in PROJECT["optional-dependencies"].values() for pin in pins]


def lock() -> set[str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return {line.lower() for line in lines if line and not line.startswith("#")}


def test_environment_holds_the_core_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(part["pip"] for part in environment["dependencies"] if isinstance(part, dict))
    assert [line for line in pip if not line.startswith("--")] == CORE


def test_lock_holds_each_direct_pin():
    for pin in (*CORE, *EXTRAS):
        assert re.fullmatch(r"[\w.-]+==[\w.]+", pin)
        assert pin.lower() in lock()


def test_each_direct_dependency_has_its_reason():
    for pin in (*CORE, *EXTRAS):
        line = next(line for line in PROJECT_TEXT.splitlines() if f'"{pin}"' in line)
        assert len(line.split("#", 1)[1].split()) >= 2, pin


def test_lock_pins_everything_and_asks_for_no_cuda():
    assert all("==" in line for line in lock())
    assert not any("nvidia" in line or "+cpu" in line for line in lock())
