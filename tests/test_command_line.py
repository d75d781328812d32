"""The two ways in: python -m ultraseg_lib, and run_all.sh. Bad input: one line and a non-zero exit."""

import errno
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from ultraseg_lib import check, notebooks, study
from ultraseg_lib.__main__ import main
from ultraseg_lib.paths import ROOT, data_dir, outputs_dir


def script(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", str(ROOT / "run_all.sh"), *words], capture_output=True, text=True
    )


def test_script_explains_every_option():
    done = script("--help")
    assert done.returncode == 0
    cases = re.findall(r"^    (--.*)\)", (ROOT / "run_all.sh").read_text(), re.MULTILINE)
    options = re.findall(r"--[a-z]+", " ".join(cases))
    assert {"--profile", "--engine", "--all", "--help"} <= set(options)
    assert not [option for option in options if f"{option} " not in done.stdout]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--nonsense"], "unknown option --nonsense"),
        (["--data", "nowhere"], "folder nowhere not found"),
        (["--data"], "--data needs a folder"),
        (["--profile", "huge"], "choose demo, lite or full"),
        (["--epochs"], "--epochs needs a value"),
        (["--all"], "--all goes with --test"),
        (["--test", "--epochs", "3"], "--epochs does not go with --test"),
    ],
)
def test_script_refuses_bad_input_before_it_sets_up(words, reason):
    done = script(*words)
    assert done.returncode == 2
    assert reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def copy_of_script(folder: Path) -> Path:
    """Copy run_all.sh and what its set-up reads into a folder; return the script."""
    for name in ("run_all.sh", "requirements.lock", "pyproject.toml"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder / "run_all.sh"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--epochs", "3", "--data", "my data", "--models", "lbunet,unet_tiny", "--force"],
            "{here}/my data|{study}|-m ultraseg_lib run --epochs 3 --models lbunet,unet_tiny --force",
        ),
        ([], "|{study}|-m ultraseg_lib run"),
        (["--test"], "{study}|no"),
        (["--test", "--all"], "{study}|yes"),
    ],
)
def test_script_passes_its_options_on(tmp_path, words, told):
    """From another folder, with a set-up that is done; a relative data folder is the caller's."""
    copy = tmp_path / "study"
    (copy / ".venv" / "bin").mkdir(parents=True)
    (copy / "tests").mkdir()
    (tmp_path / "my data").mkdir()
    script, python = copy_of_script(copy), copy / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$ULTRASEG_DATA|$PWD|$*"\n')
    python.chmod(0o755)
    (copy / "tests" / "run.sh").write_text('echo "$PWD|$*"\n')
    stamp = "cat requirements.lock pyproject.toml | cksum >.venv/.installed"
    subprocess.run(["bash", "-c", stamp], cwd=copy, check=True)
    rest = {name: value for name, value in os.environ.items() if name != "ULTRASEG_DATA"}
    done = subprocess.run(
        ["bash", str(script), *words], cwd=tmp_path, env=rest, capture_output=True, text=True
    )
    assert done.stdout == told.format(here=tmp_path, study=copy) + "\n", done.stderr


def test_script_makes_a_half_made_environment_anew(tmp_path):
    """As Debian leaves one without python3-venv: a Python, and no pip."""
    script, half = copy_of_script(tmp_path), tmp_path / ".venv" / "bin" / "python"
    half.parent.mkdir(parents=True)
    half.write_text('#!/bin/sh\ncase "$2" in pip | ensurepip) exit 1 ;; esac\nexit 0\n')
    half.chmod(0o755)
    new = tmp_path / "python3"
    new.write_text('#!/bin/sh\n[ "$2" = venv ] && echo "made anew: $*" && exit 1\nexit 0\n')
    new.chmod(0o755)
    env = os.environ | {"ULTRASEG_PYTHON": str(new)}
    done = subprocess.run(["bash", str(script)], env=env, capture_output=True, text=True)
    assert "made anew: -m venv --clear .venv" in done.stdout
    assert done.returncode == 2


def test_script_refuses_an_old_python(tmp_path):
    """A copy without an environment, on a machine whose only Python is 3.8 and without conda."""
    old = tmp_path / "bin" / "python3"
    old.parent.mkdir()
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    for tool in ("bash", "dirname", "cat", "cksum", "grep", "uname"):
        found = subprocess.run(["which", tool], capture_output=True, text=True).stdout.strip()
        (old.parent / tool).symlink_to(found)
    done = subprocess.run(
        [str(old.parent / "bash"), str(copy_of_script(tmp_path))],
        env={"PATH": str(old.parent)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "needs Python 3.11.4 or newer (found Python 3.8.1)" in done.stderr


@pytest.mark.parametrize("option", ["--only", "--grid", "--datasets", "--models"])
def test_an_empty_variable_of_a_shell_is_not_everything(option, capsys, outputs):
    with pytest.raises(SystemExit):
        main(["study", option, "", "--force"])
    assert f"argument {option}: found nothing; give a name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["study", "--profile", "huge"], "choose from demo, full, lite"),
        (["study", "--models", "unet"], "choose from"),
        (["study", "--datasets", "kvasir"], "kvasir_seg"),
        (["study", "--recipe", "soup"], "paper, strong"),
        (["study", "--protocol", "dirty"], "clean, released"),
        (["study", "--epochs", "0"], "give 1 or more"),
        (["study", "--seeds=-1"], "seeds: found -1; give 0 or more"),
        (["study", "--profile", "lite", "--datasets", "polypgen@nonsense"], "random"),
        (["study", "--only", "no-such-run"], "is no run; a run is MODEL-DATASET"),
        (["run", "--only", "77"], "no notebook '77'"),
        (["run", "--from", "x"], "no notebook 'x'"),
        (["run", "--only", "²"], "no notebook '²'"),
        (["models", "--models", "ultraseg"], "ultraseg_130k"),
        (["study", "--only", "lbunet-my_own-strong-clean-e1-s0"], "'my_own'"),
        (["study", "--grid", "ablation", "--models", "lbunet"], "leave --grid out"),
        (["study", "--engine", "ray", "--jobs", "2"], "leave it out"),
        (["study", "--only", "unet_tiny-synthetic-strong-clean-e9-s0", "--epochs", "2"], "epochs"),
        (["study", "--models", "lbunet+fusion_fixed"], "variant of lbunet"),
        (["run", "--only", "03", "--from", "05"], "give one of them"),
    ],
)
def test_commands_refuse_bad_input_in_one_line(words, reason, capsys, outputs):
    assert main(words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert reason in told
    assert len(told.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["study", "--jobs", "-1"],
        ["bench", "--threads", "0"],
        ["bench", "--size", "x"],
        ["bench", "--frames", "0"],
        ["predict", "a.png", "-o", "out", "--limit", "0"],
        ["predict", "a.png", "-o", "out", "--threads", "-1"],
    ],
)
def test_counts_must_be_one_or_more(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert "is no whole number from 1 on" in capsys.readouterr().err


@pytest.mark.parametrize("time", ["nan", "inf", "0", "0.0", "-1", "x", ""])
def test_a_time_must_be_above_zero(time, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--seconds", time])
    assert f"{time!r} is no number of seconds above 0" in capsys.readouterr().err


def test_a_reader_that_has_read_enough_gets_no_error():
    python = f"{sys.executable} -m ultraseg_lib data --data {ROOT / 'data'}"
    done = subprocess.run(
        ["bash", "-c", f"{python} | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout == "141\n"
    assert done.stderr == ""


def test_a_full_disk_is_told_with_the_way_out(capsys, monkeypatch, outputs):
    def fail(args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ultraseg_lib.__main__.command_models", fail)
    assert main(["models"]) == 2
    assert "No space left on device; make room, or set ULTRASEG_OUTPUTS" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "kept"), [(["study"], True), (["export"], False)])
def test_ctrl_c_says_what_is_kept(words, kept, capsys, monkeypatch):
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"ultraseg_lib.__main__.command_{words[0]}", stop)
    assert main(words) == 130
    assert ("what was done is kept, the same command goes on" in capsys.readouterr().err) is kept


def test_ctrl_c_does_not_advise_to_lose_what_was_done(capsys, monkeypatch):
    monkeypatch.setattr("ultraseg_lib.__main__.command_study", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))  # fmt: skip
    assert main(["study", "--force"]) == 130
    assert "is kept, the command without --force goes on from there" in capsys.readouterr().err


def test_a_misspelt_dataset_is_told_before_the_benchmark(kvasir, monkeypatch, capsys, outputs):
    monkeypatch.setenv("ULTRASEG_DATA", str(kvasir()))
    monkeypatch.setattr("ultraseg_lib.deploy.benchmark.benchmark", lambda **_: 1 / 0)
    assert main(["bench", "--dataset", "kvasir"]) == 2
    assert "dataset: unknown 'kvasir'" in capsys.readouterr().err


def test_masks_are_compared_for_the_models_that_were_timed(tmp_path, monkeypatch):
    """LB-UNet cannot run at 80 px: it is left out, and asked for no mask."""
    monkeypatch.setattr("ultraseg_lib.study.load_frames_of", lambda *_: None)
    rows = [{"model": "ultraseg_130k"}] * 2
    asked = []
    fake = "ultraseg_lib.deploy.benchmark"
    monkeypatch.setattr(f"{fake}.benchmark", lambda **_: {"rows": rows, "left_out": []})
    monkeypatch.setattr(f"{fake}.agreement_on", lambda *words: asked.append(words) or [])
    words = ["bench", "--models", "lbunet,ultraseg_130k", "--size", "80", "--dataset", "kvasir_seg"]
    assert main([*words, "-o", str(tmp_path / "bench.json")]) == 0
    assert asked == [("kvasir_seg", ["ultraseg_130k"], 80)]


def test_a_benchmark_replaces_no_file_and_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ultraseg_lib.deploy.benchmark.benchmark", lambda **_: 1 / 0)
    (tmp_path / "earlier.json").write_text("half an hour of work")
    assert main(["bench", "-o", str(tmp_path / "earlier.json")]) == 2
    assert "earlier.json: is there already, whole or begun; remove it" in capsys.readouterr().err
    assert main(["bench", "-o", str(tmp_path)]) == 2
    assert f"--output {tmp_path}: is a folder; name a file in it" in capsys.readouterr().err


def test_a_read_only_outputs_folder_is_found(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ULTRASEG_OUTPUTS", str(tmp_path / "file" / "outputs"))
    assert main(["check"]) == 1
    assert "set ULTRASEG_OUTPUTS to another folder" in capsys.readouterr().out
    monkeypatch.setenv("ULTRASEG_OUTPUTS", str(tmp_path / "new" / "outputs"))
    assert main(["check"]) == 0
    assert not (tmp_path / "new").exists()  # it changes nothing


@pytest.mark.parametrize("option", ["--dat", "--prof", "--epoch"])
def test_options_have_no_short_forms(option, capsys):
    """--data must never be read as --datasets."""
    with pytest.raises(SystemExit):
        main(["study", option, "1"])
    assert f"unrecognized arguments: {option}" in capsys.readouterr().err


def test_the_data_folder_may_be_named(kvasir, monkeypatch, capsys, outputs):
    monkeypatch.setenv("ULTRASEG_DATA", "nowhere")  # and set back after the test
    folder = kvasir()
    assert main(["data", "--data", str(folder)]) == 0
    assert "kvasir_seg            3 pairs" in capsys.readouterr().out
    run_id = "unet_tiny-kvasir_seg-strong-clean-e1-s0"  # the committed split names 1,000 images
    assert main(["study", "--profile", "lite", "--only", run_id, "--data", str(folder)]) == 2
    assert "not in the folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["study", "--data", str(folder / "nowhere")])
    assert "nowhere not found" in capsys.readouterr().err


def test_an_empty_variable_is_none(monkeypatch):
    for name in ("ULTRASEG_DATA", "ULTRASEG_OUTPUTS"):
        monkeypatch.setenv(name, "")
    assert (data_dir(), outputs_dir()) == (ROOT / "data" / "raw", ROOT / "outputs")


def test_missing_data_folder_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("ULTRASEG_DATA", str(tmp_path / "nowhere"))
    for action in ("verify", "audit"):
        assert main(["data", action]) == 2
        assert "pass --data DIR" in capsys.readouterr().err
    assert main(["data"]) == 0  # as on a fresh clone
    told = capsys.readouterr().out
    assert f"{tmp_path / 'nowhere'}: no such folder" in told
    assert "missing; get it from https://" in told


def test_an_empty_data_folder_is_neither_verified_nor_audited(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("ULTRASEG_DATA", str(tmp_path))
    for action in ("verify", "audit"):
        assert main(["data", action]) == 2
        assert f"no dataset at all below {tmp_path}" in capsys.readouterr().err


def test_force_loses_nothing_when_the_data_is_not_there(monkeypatch, capsys, tmp_path, outputs):
    monkeypatch.setenv("ULTRASEG_DATA", str(tmp_path))
    run = outputs / "lite" / "runs" / "lbunet-kvasir_seg-strong-clean-e1-s0"
    run.mkdir(parents=True)
    (run / "scores.csv").write_text("kept")
    words = ["--profile", "lite", "--models", "lbunet", "--datasets", "kvasir_seg", "--epochs", "1"]
    assert main(["study", *words, "--force"]) == 2
    assert "not found below" in capsys.readouterr().err
    assert (run / "scores.csv").read_text() == "kept"


def test_a_study_says_first_which_runs_lack_their_dataset(kvasir, monkeypatch, capsys, outputs):
    monkeypatch.setenv("ULTRASEG_DATA", str(kvasir()))
    monkeypatch.setattr("ultraseg_lib.engines.run_study", lambda *_: {})
    words = ["study", "--profile", "lite", "--models", "lbunet", "--epochs", "1", "--datasets"]
    assert main([*words, "kvasir_seg,cvc_clinicdb,mixed"]) == 0  # of the mixed set one is enough
    told = capsys.readouterr().out
    assert f"not below {kvasir()}: CVC-ClinicDB; 1 of these 3 runs will fail" in told
    assert "--datasets kvasir_seg,mixed asks for the others alone" in told
    assert "mixed: joined without CVC-ClinicDB, PolypGen" in told
    assert main([*words, "cvc_clinicdb,polypgen"]) == 2
    assert "CVC-ClinicDB, PolypGen; python -m ultraseg_lib data" in capsys.readouterr().err
    assert main([*words, "kvasir_seg"]) == 0
    told = capsys.readouterr().out
    assert "not below" not in told
    assert "mixed" not in told
    assert "real images at" not in told
    assert main(["study", "--datasets", "kvasir_seg", "--models", "lbunet"]) == 0
    assert "real images at 96 px, as profile demo has it: a look" in capsys.readouterr().out
    assert main(["study", "--models", "lbunet"]) == 0
    assert "real images at" not in capsys.readouterr().out


def test_an_outputs_folder_that_is_a_file_is_told_with_its_remedy(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ULTRASEG_OUTPUTS", str(tmp_path / "file"))
    assert main(["export", "--models", "ultraseg_108k", "--size", "64"]) == 2
    assert "set ULTRASEG_OUTPUTS to a folder" in capsys.readouterr().err


def test_weights_of_a_dataset_are_found_by_a_close_name(capsys):
    assert main(["export", "--models", "ultraseg_130k", "--weights", "Kvasir-SEG"]) == 2
    assert "did you mean kvasir_seg?" in capsys.readouterr().err


def test_data_lists_what_is_there_and_where_to_get_the_rest(kvasir, monkeypatch, capsys):
    monkeypatch.setenv("ULTRASEG_DATA", str(kvasir()))
    assert main(["data"]) == 0
    told = capsys.readouterr().out
    assert "kvasir_seg            3 pairs" in told
    assert "polypgen" in told
    assert "missing; get it from https://" in told


def test_a_missing_package_hides_no_other_finding(capsys, monkeypatch, outputs):
    monkeypatch.setitem(sys.modules, "ultraseg_lib.data", None)  # as where one of its imports fails
    assert main(["check"]) == 1
    told = capsys.readouterr().out
    assert "not looked at" in told
    assert "numpy" in told
    assert "outputs" in told


@pytest.mark.parametrize("command", ["study", "run"])
def test_force_loses_nothing_when_the_engine_cannot_start(command, monkeypatch, capsys, outputs):
    monkeypatch.setattr("ultraseg_lib.study.forget", lambda *_: pytest.fail("removed"))
    assert main([command, "--force", "--engine", "ray", "--jobs", "2"]) == 2
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([command, "--force", "--engine", "ray"]) == 2
    assert "[cluster]" in capsys.readouterr().err


def test_a_cluster_that_does_not_answer_is_told_at_once(monkeypatch, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # no one listens here
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
        assert main(["study", "--engine", "ray"]) == 2
    assert f"no one answers at {address}" in capsys.readouterr().err


def test_check_passes_here_and_finds_a_fault(capsys, monkeypatch, outputs):
    assert main(["check"]) == 0
    assert "FIX" not in capsys.readouterr().out
    monkeypatch.setattr("ultraseg_lib.check.pinned_versions", lambda: {"numpy": "0.1"})
    assert main(["check"]) == 1
    assert "want 0.1" in capsys.readouterr().out


def test_check_names_what_a_gpu_lacks(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    monkeypatch.setitem(sys.modules, "kornia", None)
    assert check._gpu().found == "a GPU"
    assert "kornia, which augments on it, is missing: pip install" in check._gpu().fix


def test_a_failed_run_fails_the_study(monkeypatch, capsys, outputs):
    failed = {"unet_tiny-synthetic-strong-clean-e1-s0": "no memory"}
    monkeypatch.setattr("ultraseg_lib.engines.run_study", lambda *_: failed)
    assert main(["study", "--models", "unet_tiny", "--seeds", "0", "--epochs", "1"]) == 1
    assert "failed: unet_tiny-synthetic-strong-clean-e1-s0: no memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("failed_runs", "failed_notebooks", "status"),
    [({}, {}, 0), ({"a run": "no memory"}, {}, 1), ({}, {"05_compare": "KeyError"}, 1)],
)
def test_a_failed_run_or_notebook_fails_the_whole(
    failed_runs, failed_notebooks, status, monkeypatch, capsys, outputs
):
    done = ({"02_build": 1.234}, failed_notebooks)
    monkeypatch.setattr("ultraseg_lib.engines.run_study", lambda *_: failed_runs)
    monkeypatch.setattr(notebooks, "run_notebooks", lambda *_: done)
    for name in ("demo", "figures"):  # other notebooks' minutes stay
        notebooks.save_minutes({name: 2.0}, study.load_profile("demo"))
    assert main(["run", "--only", "02"]) == status
    told = capsys.readouterr().out
    assert f"1 notebooks run, {len(failed_notebooks)} failed" in told
    kept = pd.read_csv(outputs / "demo" / "minutes.csv", index_col="notebook")["minutes"]
    assert kept.to_dict() == {"02_build": 1.23, "demo": 2.0, "figures": 2.0}


def test_what_the_user_chose_holds_in_the_notebooks_too(monkeypatch, capsys, outputs):
    """Else the demo's notebooks would train, side by side, the runs that were not chosen."""
    planned = {}

    def in_a_notebook(*_: object) -> tuple[dict, dict]:
        planned.update(
            {name: study.plan_runs(study.load_profile(name)) for name in ("demo", "lite")}
        )
        return {}, {}

    monkeypatch.setattr("ultraseg_lib.engines.run_study", lambda *_: {})
    monkeypatch.setattr(notebooks, "run_notebooks", in_a_notebook)
    whole = study.plan_runs(study.load_profile("lite"))
    assert main(["run", "--only", "05", "--models", "lbunet", "--epochs", "2"]) == 0
    assert {(run.model, run.epochs) for run in planned["demo"]} == {("lbunet", 2)}
    assert planned["lite"] == whole
    for words in (["--models", "ultraseg_130k+fusion_fixed"], ["--datasets", "synthetic@p25"]):
        assert main(["run", *words]) == 2  # notebooks 00, 02 and 05 would have nothing to show
        assert "no such run is chosen or finished; add one" in capsys.readouterr().err


def test_a_record_is_shown_and_never_trained(monkeypatch, capsys, outputs):
    (outputs / "reference").mkdir(parents=True)  # else its minutes go beside the committed record
    monkeypatch.setattr("ultraseg_lib.engines.run_study", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr(notebooks, "run_notebooks", lambda *_: ({}, {}))
    assert main(["run", "--profile", "reference", "--only", "05"]) == 0
    for words in (["study"], ["run", "--force"]):
        assert main([*words, "--profile", "reference"]) == 2
        assert "is a record that is shown, not trained" in capsys.readouterr().err


def test_a_study_says_first_what_it_will_do(capsys, outputs, monkeypatch):
    def tiny(*names: str, load=study.load_profile, **selection) -> study.Profile:
        few = {"image_size": 32, "generated": {"count": 40, "seed": 1}}
        return replace(load(*names, **selection), **few)

    monkeypatch.setattr(study, "load_profile", tiny)
    words = ["study", "--models", "unet_tiny", "--seeds", "0", "--epochs", "1", "--jobs", "2"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "1 runs, 0 done" in told
    assert "to run: unet_tiny-synthetic-strong-clean-e1-s0" in told
    assert main(words) == 0
    assert "1 runs, 1 done" in capsys.readouterr().out
