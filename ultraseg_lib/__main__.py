"""The command line: ``python -m ultraseg_lib check | data | study | run | bench | predict | evaluate | …``."""

import argparse
import errno
import importlib.util
import json
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ultraseg_lib.data import FoundDataset
    from ultraseg_lib.study import Profile, Run


# Takes options by their whole names only: --dat is neither data nor datasets.
_Parser = partial(argparse.ArgumentParser, allow_abbrev=False)


OWN_DATA = (
    "your own: a folder with images/ and masks/ (png, jpg, tif, bmp, webp); see data/README.md"
)


def _name(text: str) -> str:
    """Argparse type of a name: nothing at all (an empty variable of a shell) would mean everything."""
    if not text.strip(" ,"):
        raise argparse.ArgumentTypeError("found nothing; give a name, or leave the option out")
    return text


def _list_of(kind: type) -> Callable[[str], list]:
    """Return an argparse type that reads ``a,b,c``."""

    def parse(text: str) -> list:
        return [kind(word.strip()) for word in _name(text).split(",") if word.strip()]

    parse.__name__ = f"comma-separated {kind.__name__}"
    return parse


def _at_least_one(text: str) -> int:
    """Argparse type of counts."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _seconds(text: str) -> float:
    """Argparse type of a time."""
    if not text.replace(".", "", 1).isdecimal() or not float(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return float(text)


def _folder(text: str) -> Path:
    """Argparse type of a folder that is there."""
    if not text or not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"folder {text} not found")
    return Path(text).resolve()


def _add_data_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=_folder, metavar="DIR", default=argparse.SUPPRESS,
        help="folder that holds the datasets (default: $ULTRASEG_DATA, else data/raw)",
    )  # fmt: skip


def _add_grid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="demo", help="demo (default), lite or full")
    parser.add_argument("--models", type=_list_of(str), help="model names, comma-separated")
    parser.add_argument("--datasets", type=_list_of(str), help="dataset names, comma-separated")
    parser.add_argument("--seeds", type=_list_of(int), help="seeds, comma-separated")
    parser.add_argument("--epochs", type=int, help="epochs of every run")
    parser.add_argument(
        "--recipe", type=_list_of(str), dest="recipes", help="paper, strong, multiscale"
    )
    parser.add_argument("--protocol", type=_list_of(str), dest="protocols", help="clean, released")
    parser.add_argument(
        "--jobs", type=_at_least_one, help="runs side by side (default: one a core)"
    )
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local",
        help="processes of this machine (default), or the Ray cluster at $RAY_ADDRESS",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="do finished runs anew")


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the options chose of the profile."""
    names = ("models", "datasets", "seeds", "epochs", "recipes", "protocols")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _profile(args: argparse.Namespace) -> "Profile":
    from ultraseg_lib.study import load_profile

    return load_profile(args.profile, **_chosen(args))


def command_check(args: argparse.Namespace) -> int:
    """Print OK or the fix for each thing the study needs; 1 if anything needs one."""
    from ultraseg_lib.check import check

    findings = check()
    for finding in findings:
        print(f"{'FIX' if finding.fix else 'OK ':<4}{finding.subject:<18}{finding.found}", end="")
        print(f"\n      -> {finding.fix}" if finding.fix else "")
    return int(any(finding.fix for finding in findings))


def _as_json(found: "dict[str, FoundDataset]") -> str:
    """Describe the datasets for programs: name, path, pairs, empty_masks, centers, modalities."""
    from ultraseg_lib.data.audit import mask_table

    rows = []
    for name, dataset in found.items():
        columns = {"centers": "center", "modalities": "modality"}
        labels = {key: sorted(set(dataset.table[each]) - {""}) for key, each in columns.items()}
        empty = int((mask_table(dataset.table)["area"] == 0).sum())
        counts = {"pairs": len(dataset.table), "empty_masks": empty}
        rows.append({"name": name, "path": str(dataset.folder)} | counts | labels)
    return json.dumps(rows, indent=2)


def command_data(args: argparse.Namespace) -> int:
    """List the datasets that are there, and those that are missing with the way to get them."""
    from ultraseg_lib.data import catalog, find_datasets, look_for_datasets
    from ultraseg_lib.data.verify import check_counts
    from ultraseg_lib.paths import data_dir

    if args.json:
        print(_as_json(find_datasets(data_dir())))
        return 0
    there = data_dir().is_dir()
    found = look_for_datasets(data_dir()) if there else {}
    if not there:
        print(f"{data_dir()}: no such folder; give another by --data or ULTRASEG_DATA")
    for name, dataset in found.items():
        print(f"{name:<17} {len(dataset.table):>5} pairs  {dataset.folder}")
        for folder in dataset.passed_over:
            print(f"{'':<17} {'':>5} passed over (less complete): {folder}")
        wrong = [*dataset.problems, *check_counts(dataset)]
        more = [f"({len(wrong) - 1} more: python -m ultraseg_lib data verify)"] if wrong[1:] else []
        for line in (*dataset.skipped, *wrong[:1], *more):
            print(f"{'':<17} {'':>5} {line}")
    missing = [name for name, entry in catalog().items() if name not in found and entry["page"]]
    for name in missing:
        print(f"{name:<17}     - missing; get it from {catalog()[name]['page']}")
    if missing:
        print("python -m ultraseg_lib data fetch NAME downloads it, or tells the steps")
    print(OWN_DATA)
    return 0


def command_fetch(args: argparse.Namespace) -> int:
    """Download and unpack one dataset where its licence allows it, else print the steps to it."""
    from ultraseg_lib.data import catalog
    from ultraseg_lib.data.fetch import fetch, how_to_get
    from ultraseg_lib.paths import data_dir

    print(how_to_get(args.name), flush=True)
    if "url" in catalog()[args.name]:
        print(f"unpacked: {fetch(args.name, args.to or data_dir())}")
    return 0


def command_verify(args: argparse.Namespace) -> int:
    """Read every file, compare counts and sizes, name each that is wrong; 1 if any is."""
    from ultraseg_lib.data import look_for_datasets
    from ultraseg_lib.data.verify import verify
    from ultraseg_lib.paths import data_dir

    found = look_for_datasets(data_dir())
    absent = [name for name in args.names if name not in found]
    if absent or not found:
        raise ValueError(
            f"no dataset {' or '.join(absent) or 'at all'} below {data_dir()}; {OWN_DATA}"
        )
    verdicts = [verify(found[name]) for name in args.names or found]
    for verdict in verdicts:
        result = f"{len(verdict.wrong)} WRONG" if verdict.wrong else "OK"
        counts = f"{verdict.pairs:>5} pairs, {verdict.empty_masks:>3} without polyp"
        print(f"{verdict.name:<18}{counts}  {result}")
        for line in (*found[verdict.name].skipped, *verdict.wrong):
            print(f"    {line}")
    return int(any(verdict.wrong for verdict in verdicts))


def command_audit(args: argparse.Namespace) -> int:
    """Look for near-duplicates, leaks across splits, cut sequences, odd masks; 1 if a file is wrong."""
    from ultraseg_lib.data import audit, look_for_datasets
    from ultraseg_lib.paths import data_dir

    found = look_for_datasets(data_dir())
    if not found:
        raise ValueError(f"no dataset at all below {data_dir()}; {OWN_DATA}")
    report, wrong = audit.run(found)
    print(report)
    return int(bool(wrong))


def command_models(args: argparse.Namespace) -> int:
    """Print the complexity of every model under both counts."""
    import torch

    from ultraseg_lib.models.complexity import complexity_table

    torch.set_num_threads(1)  # small work: many threads wait for each other on a busy machine
    print(complexity_table(args.models).to_string(index=False))
    return 0


def _train(profile: "Profile", runs: list["Run"], jobs: int | None, engine: str) -> dict[str, str]:
    """Say what is done, what will run and how long it may take, then run it; return the failures."""
    from ultraseg_lib.data import GENERATED
    from ultraseg_lib.engines import default_jobs, estimate, run_study, runs_to_do

    todo = runs_to_do(profile, runs)
    print(f"study {profile.name}: {len(runs)} runs, {len(runs) - len(todo)} done", flush=True)
    for run in todo:
        print(f"  to run: {run.run_id}", flush=True)
    _tell_absent(todo)
    if profile.generated and any(run.dataset.partition("@")[0] not in GENERATED for run in todo):
        print(f"  real images at {profile.image_size} px, as profile {profile.name} has it: a look,"
              " no result; --profile lite is for these", flush=True)  # fmt: skip
    if todo and engine == "local":
        side_by_side = min(jobs or default_jobs(len(todo)), len(todo))
        print(f"  {estimate(profile, todo, side_by_side)}", flush=True)
    failures = run_study(profile, todo, jobs, engine)
    for run_id, reason in failures.items():
        print(f"failed: {run_id}: {reason}", file=sys.stderr)
    return failures


def _tell_absent(runs: list["Run"]) -> None:
    """Say which runs cannot be trained for want of their dataset; raise ValueError if none can."""
    from ultraseg_lib.data import dataset_title
    from ultraseg_lib.data.splits import MIXED
    from ultraseg_lib.grid import absent_datasets, datasets_there
    from ultraseg_lib.paths import data_dir

    absent = absent_datasets(runs)
    joined = any(run.dataset.partition("@")[0] == "mixed" for run in runs)
    there = datasets_there()
    left_out = [name for name in MIXED if joined and name not in there]
    if left_out and "mixed" not in absent:
        print(f"  mixed: joined without {', '.join(map(dataset_title, left_out))},"
              f" not below {data_dir()}", flush=True)  # fmt: skip
    if not absent:
        return
    lack = [run for run in runs if run.dataset.partition("@")[0] in absent]
    others = dict.fromkeys(run.dataset for run in runs if run not in lack)
    told = f"not below {data_dir()}: {', '.join(map(dataset_title, absent))}"
    how = "python -m ultraseg_lib data says how to get them"
    if not others:
        raise ValueError(f"{told}; {how}; or choose others by --datasets")
    print(f"  {told}; {len(lack)} of these {len(runs)} runs will fail; {how};"
          f" --datasets {','.join(others)} asks for the others alone", flush=True)  # fmt: skip


def _check_engine(args: argparse.Namespace) -> None:
    """Raise ValueError where the engine that was asked for cannot start, before anything is lost."""
    if args.engine != "ray":
        return
    if args.jobs:
        raise ValueError(
            "--jobs: the ray cluster decides how many runs go side by side; leave it out"
        )
    if importlib.util.find_spec("ray") is None:
        raise ValueError("--engine ray: Ray is not here; .venv/bin/pip install -e '.[cluster]'")
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:  # Ray itself would try for minutes, and then abort
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            raise ValueError(
                f"RAY_ADDRESS: no one answers at {address} ({error}); start the cluster (ray start"
                " --head), or unset RAY_ADDRESS for one on this machine"
            ) from error


def _refuse_frozen(profile: "Profile") -> None:
    if profile.frozen:
        raise ValueError(
            f"profile {profile.name} is a record that is shown, not trained; choose lite or full"
        )


def command_study(args: argparse.Namespace) -> int:
    """Train and score what the ledger lacks."""
    from ultraseg_lib.engines import runs_to_do
    from ultraseg_lib.grid import GRIDS, check_datasets, parse_run_id, plan_grids, with_teachers
    from ultraseg_lib.study import forget

    _check_engine(args)
    profile = _profile(args)
    _refuse_frozen(profile)
    given = [*(["grid"] if args.grid else []), *_chosen(args)]
    if args.only and given:
        options = {"recipes": "recipe", "protocols": "protocol"}
        told = ", ".join(f"--{options.get(each, each)}" for each in given)
        raise ValueError(f"--only: the name of the run says it all; leave out {told}")
    only = [parse_run_id(profile.name, args.only)] if args.only else []
    check_datasets(run.dataset for run in only)
    runs = with_teachers(only, profile) or plan_grids(profile, args.grid or GRIDS)
    if not runs:
        raise ValueError(
            f"--grid {','.join(args.grid)}: no runs; models, datasets, recipes or protocols that are"
            " given make a plan of their own: leave --grid out"
        )
    if args.force:
        anew = only or runs
        runs_to_do(
            profile, [run for run in runs if run not in anew]
        )  # a teacher's fault is told first
        forget(anew, profile)
    failures = _train(profile, runs, args.jobs, args.engine)
    if only and not failures:
        _tell_band(only[0])
    return int(bool(failures))


def _tell_band(run: "Run") -> None:
    """Say how far a run is from the committed one of its name, where there is one."""
    from ultraseg_lib.study import compare_with_record, parse_run_id, read_config

    committed = parse_run_id("reference", run.run_id)
    if not committed.is_complete:
        return
    ours, theirs = (read_config(each)["inputs"] for each in (run, committed))
    sizes = [each["images"]["size"] for each in (ours, theirs)]
    if sizes[0] != sizes[1]:
        told = "trained at {} px, the committed run at {}: not compared; give its --profile"
        print(told.format(*sizes))
        return
    if ours.get("split") != theirs.get("split"):
        print("trained on other images than the committed run: not compared")
        return
    for row in compare_with_record(run.folder).itertuples():
        verdict = "within" if row.within else "OUTSIDE"
        print(f"{row.test_set:<22} Dice {row.again:.3f}, the committed run {row.committed:.3f}:"
              f" {row.difference:+.3f}, {verdict} the band")  # fmt: skip


def command_run(args: argparse.Namespace) -> int:
    """Train what the chosen notebooks need, run them by papermill, print a summary."""
    from ultraseg_lib import notebooks
    from ultraseg_lib.grid import CHOSEN
    from ultraseg_lib.study import finished_runs, forget, has_own_test_part, plan_grids, plan_runs

    _check_engine(args)
    profile = _profile(args)
    os.environ[CHOSEN] = json.dumps({args.profile: _chosen(args)})  # the notebooks plan the same
    if args.force:
        _refuse_frozen(profile)
    chosen = notebooks.find_notebooks(args.only, args.start)
    shown = (*plan_runs(profile), *finished_runs(profile.name))
    if not any("+" not in run.model and has_own_test_part(run.dataset) for run in shown):
        raise ValueError(
            "the notebooks show plain models on datasets with a test part of their own, and no such run"
            " is chosen or finished; add one, or train without notebooks: python -m ultraseg_lib study"
        )
    plan = notebooks.plan_executions(chosen, profile)
    runs = [] if profile.frozen else plan_grids(profile, notebooks.grids_needed(chosen, profile))
    if args.force:
        forget(runs, profile)
    unfinished = _train(profile, runs, args.jobs, args.engine) if runs else {}
    minutes, failures = notebooks.run_notebooks(plan, profile)
    notebooks.save_minutes(minutes, profile)
    print(notebooks.summary(minutes, failures, profile))
    return int(bool(unfinished or failures))


def command_bench(args: argparse.Namespace) -> int:
    """Time the models of Table 4 on this CPU, every backend that is here."""
    from ultraseg_lib.deploy import benchmark
    from ultraseg_lib.paths import outputs_dir, write_json
    from ultraseg_lib.study import load_frames_of, load_profile

    threads = [args.threads] if args.threads else None
    path = args.output or outputs_dir("bench") / "bench.json"
    if path.is_dir():
        raise ValueError(f"--output {path}: is a folder; name a file in it, {path / 'bench.json'}")
    if path.exists():
        raise ValueError(
            f"{path}: is there already, whole or begun; remove it, or name another file by --output"
        )
    if args.dataset:  # looked for before the long part
        load_frames_of(args.dataset, load_profile("lite", image_size=args.size))
    result = benchmark.benchmark(
        models=args.models, backends=args.backends, isas=args.isas, threads=threads, size=args.size,
        frames=args.frames, seconds=args.seconds, path=path,
    )  # fmt: skip
    if args.dataset:
        timed = list(dict.fromkeys(row["model"] for row in result["rows"]))
        result["real_images"] = benchmark.agreement_on(args.dataset, timed, args.size)
        write_json(path, result)
    print(benchmark.table(result))
    for line in result["left_out"]:
        print(f"left out: {line}")
    return 0


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=_list_of(str), help="default: the models of Table 4")
    parser.add_argument("--backends", type=_list_of(str), help="default: all; openvino:bfloat16, …")
    parser.add_argument(
        "--threads", type=_at_least_one, help="cores (default: a row on 1, a row on all)"
    )
    parser.add_argument(
        "--size", type=_at_least_one, default=256, help="side of the image (default: 256)"
    )
    parser.add_argument(
        "--frames", type=_at_least_one, default=200, help="timed frames a row, 10 at least"
    )
    parser.add_argument("--seconds", type=_seconds, default=20, help="a row, if 10 frames are done")
    parser.add_argument(
        "--isas", type=_list_of(str), help="all, avx2 (newer instructions left out); default: all"
    )
    parser.add_argument("--dataset", help="compare masks on its test images too (kvasir_seg, …)")
    parser.add_argument(
        "-o", "--output", type=Path, help="file, JSON (default: outputs/bench/bench.json)"
    )


def command_export(args: argparse.Namespace) -> int:
    """Write models in their exact inference form as ONNX and OpenVINO files."""
    from ultraseg_lib.deploy.export import export
    from ultraseg_lib.paths import outputs_dir
    from ultraseg_lib.variants import build_model, find_variant
    from ultraseg_lib.weights import IMAGE_SIZE, find_weights, shipped_weights, trained_size

    for name in args.models or ():
        find_variant(name)  # raises for an unknown name
    ours = ("ultraseg_108k", "ultraseg_130k")
    for name in args.models or [name for name in ours if shipped_weights(name)] or ours:
        untrained = args.untrained and not (args.weights or shipped_weights(name))
        weights = None if untrained else find_weights(name, args.weights)
        size = args.size or (trained_size(weights) if weights else IMAGE_SIZE)
        model = build_model(name, weights)
        files = export(name, model, args.output or outputs_dir("export"), size, weights)
        print(f"{name} ({weights or 'untrained'}):", *files, sep="\n  ")
    return 0


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models", type=_list_of(str), help="default: UltraSeg-108K and 130K, where trained"
    )
    parser.add_argument(
        "--weights",
        help=".safetensors, or a dataset's name for its shipped ones (default: the best)",
    )
    parser.add_argument("--untrained", action="store_true", help="models without weights too")
    parser.add_argument(
        "--size", type=_at_least_one, help="side of the image (default: that of the training)"
    )
    parser.add_argument("-o", "--output", type=Path, help="folder (default: outputs/export)")


def command_predict(args: argparse.Namespace) -> int:
    """Segment an image, a folder of images, a video or a camera; 1 if a frame was bad."""
    from ultraseg_lib.deploy import predict
    from ultraseg_lib.variants import build_model, find_variant
    from ultraseg_lib.weights import find_weights, trained_size

    find_variant(args.model)  # raises for an unknown name
    source = predict.open_source(args.path)
    predict.check_output(args.output, source, args.force)
    weights = find_weights(args.model, args.weights)
    network, size = build_model(args.model, weights), trained_size(weights)
    backend = args.backend or predict.pick_backend(network, size, args.threads)
    segment = predict.load_segmenter(network, size, backend, args.threads)
    print(
        f"{args.model} from {weights}, at {size} px, {backend} on {args.threads} thread(s)",
        flush=True,
    )
    outcome = predict.predict(source, segment, args.output, args.limit)
    print(f"{outcome.summary()}; results in {args.output}")
    is_live = source.folder is None  # Ctrl-C is how one ends a camera
    return 130 if outcome.stopped and not is_live else int(bool(outcome.bad))


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="ultraseg_130k", help="default: ultraseg_130k")
    parser.add_argument(
        "--weights", metavar="FILE|NAME",
        help="a .safetensors file, or the data set of a reference run (default: mixed if there)",
    )  # fmt: skip


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="image, folder of images, video, or camera:0")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR",
        help="gets masks, overlays/ and measurements.csv",
    )  # fmt: skip
    _add_weights(parser)
    parser.add_argument(
        "--backend",
        help="default: the fastest that is installed; with :bfloat16 behind openvino or native in fewer digits",
    )
    parser.add_argument("--threads", type=_at_least_one, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--limit", type=_at_least_one, metavar="N", help="stop after N frames")
    parser.add_argument(
        "--force", action="store_true", help="replace an earlier run's results in DIR"
    )


def _point_to(dataset: str) -> str:
    """Return a dataset's name; where its folder is given, make that the data folder first."""
    from ultraseg_lib.data import look_for_datasets

    is_name = os.sep not in dataset and "ULTRASEG_DATA" in os.environ
    if is_name or not Path(dataset).is_dir():
        return dataset
    os.environ["ULTRASEG_DATA"] = str(Path(dataset).resolve())
    found = list(look_for_datasets(Path(dataset).resolve()))
    if len(found) != 1:
        several = f"found several: {', '.join(found)}; name one of them, with --data"
        told = several if found else f"found none; {OWN_DATA}"
        raise ValueError(f"{dataset}: want the folder of one dataset; {told}")
    return found[0]


def command_evaluate(args: argparse.Namespace) -> int:
    """Score trained weights on a dataset that is here, with intervals; nothing is trained."""
    from ultraseg_lib import evaluation
    from ultraseg_lib.data import dataset_title
    from ultraseg_lib.paths import outputs_dir
    from ultraseg_lib.variants import find_variant
    from ultraseg_lib.weights import find_weights

    find_variant(args.model)  # raises for an unknown name
    weights, dataset = find_weights(args.model, args.weights), _point_to(args.dataset)
    folder = args.output or outputs_dir("evaluated") / f"{args.model}-{dataset}"
    evaluation.check_folder(folder, args.force)
    print(f"{args.model} from {weights} on {dataset_title(dataset)}", flush=True)
    found = evaluation.evaluate(args.model, weights, dataset)
    evaluation.write(found, args.model, weights, dataset, folder)
    print(f"{found.note}\n{evaluation.readable(found.summary)}\nresults in {folder}")
    return 0


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", type=_name, help="its name, as `data` lists it, or its folder")
    _add_weights(parser)
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR",
        help="gets scores.csv, summary.csv, config.json (default: outputs/evaluated/MODEL-DATASET)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace an earlier evaluation in DIR")


def command_teach(args: argparse.Namespace) -> int:
    """Write student, teacher and blank copies of the notebooks into outputs/teaching."""
    from ultraseg_lib import teaching

    folder = teaching.write_copies(args.force)
    for kind, words in teaching.KINDS.items():
        count = len(list((folder / kind).glob("*.ipynb")))
        print(f"{kind:<8} {count} notebooks, {words}: {folder / kind}")
    return 0


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs; reads every mask")
    actions = parser.add_subparsers(metavar="action", parser_class=_Parser)
    fetch = actions.add_parser("fetch", help=command_fetch.__doc__)
    fetch.add_argument("name", help="of the dataset, as listed")
    fetch.add_argument("--to", type=Path, metavar="DIR", help="default: the data folder")
    verify = actions.add_parser("verify", help=command_verify.__doc__)
    verify.add_argument("names", nargs="*", help="of datasets, as listed (default: all)")
    audit = actions.add_parser("audit", help=command_audit.__doc__)
    for each in (verify, audit):
        _add_data_folder(each)
    commands = {fetch: command_fetch, verify: command_verify, audit: command_audit}
    for action, command in commands.items():
        action.set_defaults(command=command)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m ultraseg_lib", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command", parser_class=_Parser)

    def add(name: str, command: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        added.set_defaults(command=command)
        return added

    check = add("check", command_check)
    data = add("data", command_data)
    _add_data(data)
    models = add("models", command_models)
    models.add_argument("--models", type=_list_of(str), help="only these, comma-separated")
    study = add("study", command_study)
    study.add_argument("--only", type=_name, metavar="RUN_ID", help="one run, by its name")
    study.add_argument(
        "--grid", type=_list_of(str), help="main, ablation, distillation, external (default: all)"
    )
    run = add("run", command_run)
    run.add_argument("--only", type=_name, metavar="NN", help="one notebook, by its number")
    run.add_argument(
        "--from", dest="start", type=_name, metavar="NN", help="this notebook and those after it"
    )
    for each in (study, run):
        _add_grid(each)
    bench = add("bench", command_bench)
    _add_bench(bench)
    evaluate = add("evaluate", command_evaluate)
    _add_evaluate(evaluate)
    for each in (check, data, study, run, bench, evaluate):
        _add_data_folder(each)
    _add_export(add("export", command_export))
    _add_predict(add("predict", command_predict))
    teach = add("teach", command_teach)
    teach.add_argument("--force", action="store_true", help="write over copies that were worked in")
    return parser


def _outputs_hint(error: Exception) -> str:
    """Return what to do where the folder of outputs is what cannot be written."""
    from ultraseg_lib.paths import outputs_dir

    unwritable = (PermissionError, NotADirectoryError, FileExistsError)
    if getattr(error, "errno", None) == errno.ENOSPC:
        return "; make room, or set ULTRASEG_OUTPUTS to a folder on another disk"
    path = Path(str(getattr(error, "filename", None) or ""))
    read_only = getattr(error, "errno", None) == errno.EROFS
    if (isinstance(error, unwritable) or read_only) and path.is_relative_to(outputs_dir()):
        return "; set ULTRASEG_OUTPUTS to a folder that can be written"
    return ""


_usual = warnings.formatwarning


def _format_warning(
    message: Warning | str, category: type[Warning], *place: Any, **more: Any
) -> str:
    """Format a warning: one of ours, about the user's files, as one line without source code."""
    return f"note: {message}\n" if category is UserWarning else _usual(message, category, *place, **more)  # fmt: skip


def main(words: list[str] | None = None) -> int:
    """Do one command; bad input gives one line on standard error and exit status 2."""
    args = _parser().parse_args(words)
    warnings.formatwarning = _format_warning
    if "data" in args:
        os.environ["ULTRASEG_DATA"] = str(args.data)
    try:
        status = args.command(args)
        sys.stdout.flush()  # a closed pipe is told here, not at exit
        return status
    except BrokenPipeError:  # head and less close it when they have read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}{_outputs_hint(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        goes_on = args.command in (command_study, command_run, command_fetch)
        same = "command without --force" if getattr(args, "force", False) else "same command"
        kept = f"; what was done is kept, the {same} goes on from there" if goes_on else ""
        print(f"stopped{kept}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
