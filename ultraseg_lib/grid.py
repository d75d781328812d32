"""What the study runs: profiles, and the grids of runs that they name.

A run is model × training set × recipe × protocol × epochs × seed within a profile.
"""

import json
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from ultraseg_lib import data
from ultraseg_lib.choices import check_choice, did_you_mean
from ultraseg_lib.data.splits import EXTERNAL, MIXED, schemes
from ultraseg_lib.paths import PROFILES, data_dir, outputs_dir
from ultraseg_lib.training import RECIPES, Recipe
from ultraseg_lib.variants import find_variant, supervised_maps

PROTOCOLS = ("clean", "released")  # who picks the epoch: the validation part, or the test part
GRIDS = ("main", "ablation", "distillation", "external")  # Tables 3, 5, 7 and 6
WHOLE_TEST_SETS = (*EXTERNAL, "synthetic_unseen")  # never trained on: every image is tested
CHOSEN = "ULTRASEG_CHOSEN"  # variable of the environment: by profile, what the user chose of it
AXES = ("recipes", "protocols", "datasets", "models", "seeds")  # seeds innermost: whole rows first


@dataclass(frozen=True)
class Profile:
    """One size of the study: ``profiles/<name>.yaml``.

    The axes and ``epochs`` give the main grid. ``grids``: what else belongs to a grid, by its name,
    each a list of what differs from the axes. ``tested``: datasets on which every run is scored
    beside its own test part. ``teacher``: the model that distillation learns from. ``generated``:
    count and seed of the generated images. ``frozen``: a record that is shown and never trained.
    """

    name: str
    image_size: int
    datasets: tuple[str, ...]
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    recipes: tuple[str, ...]
    protocols: tuple[str, ...]
    epochs: int
    tested: tuple[str, ...] = ()
    teacher: str | None = None
    generated: dict[str, int] | None = None
    grids: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    frozen: bool = False


@dataclass(frozen=True)
class Run:
    """One training run; ``run_id`` names it and its folder.

    ``model`` may name a variant, as in ``ultraseg_130k+fusion_fixed``. ``dataset`` may name a
    selection: a committed split (``cvc_clinicdb@sequence``), a share of the training images
    (``mixed@p25``) or a center (``polypgen@center_C3``). Raises ValueError, with the valid names,
    for an unknown model, recipe or protocol, for a name with a hyphen, and for a variant that
    changes nothing: the recipe is so already, or the model lacks the maps. `check_datasets` looks
    at the dataset.
    """

    profile: str
    model: str
    dataset: str
    recipe: str
    protocol: str
    epochs: int
    seed: int

    def __post_init__(self) -> None:
        _, variant = find_variant(self.model)
        check_choice("recipe", self.recipe, RECIPES)
        check_choice("protocol", self.protocol, PROTOCOLS)
        for name, least in (("epochs", 1), ("seed", 0)):
            number = getattr(self, name)
            if not isinstance(number, int) or not least <= number < 2**31:
                raise ValueError(f"{name}: {number!r} is no whole number from {least} on")
        if self.protocol == "released" and data.split_share(self.dataset)[1] < 100:
            raise ValueError(
                f"{self.dataset}: protocol released trains on the validation part as well, which no"
                " share thins; give --protocol clean"
            )
        for axis in ("model", "recipe", "protocol"):
            if "-" in getattr(self, axis):
                raise ValueError(
                    f"{axis}: {getattr(self, axis)!r} holds a hyphen, which parts the names of a run;"
                    " give it an underscore"
                )
        if variant.recipe and not variant.model and not _effects(self.model, self.recipe):
            raise ValueError(
                f"{self.model}: this variant changes nothing of recipe {self.recipe} for this model;"
                " take the plain model, or another recipe"
            )

    @property
    def run_id(self) -> str:
        """Return the readable name, unique within a profile."""
        setting = f"{self.recipe}-{self.protocol}-e{self.epochs}-s{self.seed}"
        return f"{self.model}-{self.dataset}-{setting}"

    @property
    def folder(self) -> Path:
        """Return where the run keeps its files."""
        return outputs_dir(self.profile) / "runs" / self.run_id

    @property
    def is_complete(self) -> bool:
        """Return whether the run is trained and scored."""
        return (self.folder / "scores.csv").exists()

    @property
    def training_recipe(self) -> Recipe:
        """Return the recipe with the changes of the model's variant."""
        return replace(RECIPES[self.recipe], **find_variant(self.model)[1].recipe)


def _effects(model: str, recipe: str) -> set[str]:
    """Return the fields of the recipe that a variant changes, less those that its model has no maps for."""
    changes = find_variant(model)[1].recipe
    changed = {key for key, value in changes.items() if getattr(RECIPES[recipe], key) != value}
    if changed - {"region_weight", "boundary_weight", "edges", "double_sigmoid"}:
        return changed
    regions, boundaries = supervised_maps(model) if changed else (False, False)
    idle = {"region_weight"} if not regions else set()
    idle |= {"boundary_weight", "edges"} if not boundaries else set()
    return changed - idle - ({"double_sigmoid"} if not (regions or boundaries) else set())


def parse_run_id(profile: str, run_id: str) -> Run:
    """Return the run of a ``run_id``; raise ValueError where it is none."""
    found = re.fullmatch(r"([^-]+)-(.+)-([^-]+)-([^-]+)-e(\d+)-s(\d+)", run_id)
    if found is None:
        raise ValueError(
            f"{run_id!r} is no run; a run is MODEL-DATASET-RECIPE-PROTOCOL-eEPOCHS-sSEED, for"
            " example ultraseg_130k-kvasir_seg-strong-clean-e100-s0"
        )
    model, dataset, recipe, protocol, epochs, seed = found.groups()
    return Run(profile, model, dataset, recipe, protocol, int(epochs), int(seed))


def profile_names() -> list[str]:
    """Return the names of all profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def datasets_there() -> set[str]:
    """Return the names of the real datasets that are in the data folder, the user's own too."""
    return set(data.look_for_datasets(data_dir())) if data_dir().is_dir() else set()


def absent_datasets(runs: Iterable[Run]) -> list[str]:
    """Return the real datasets that runs train on and that are not in the data folder.

    Of the mixed set one of its datasets is enough.
    """
    there = datasets_there()
    there |= {*data.GENERATED, *(["mixed"] if there & set(MIXED) else [])}
    names = dict.fromkeys(run.dataset.partition("@")[0] for run in runs)
    return [name for name in names if name not in there]


def check_datasets(names: Iterable[str]) -> None:
    """Raise ValueError, with the valid names, for a dataset or selection that cannot be trained on."""
    for name in names:
        dataset, at, selection = name.partition("@")
        if at and not selection:
            raise ValueError(f"dataset: {name!r} names no selection; leave out the @")
        if dataset not in data.catalog():
            check_choice("dataset", dataset, (*data.catalog(), *sorted(datasets_there())))
        if name in WHOLE_TEST_SETS:
            part = "" if name in data.GENERATED else f"; {name}@random trains on a part of it"
            raise ValueError(f"dataset: every image of {name} is for tests{part}")
        if dataset == "mixed" and not re.fullmatch(r"mixed(@p[1-9]\d?)?", name):
            raise ValueError(
                f"dataset: {name!r} is none; of the mixed set give a share, as mixed@p25"
            )
        if selection and not re.fullmatch(r"p[1-9]\d?|center_[^@]+", selection):
            check_choice(f"split of {dataset}", selection, schemes(dataset))


def load_profile(name: str, **overrides: Any) -> Profile:
    """Read a profile; overrides that are not None take the place of its values.

    An override of models, datasets, recipes or protocols asks for just these: the other grids fall
    away; epochs and seeds hold for all grids. Overrides of the profile in CHOSEN come first: those
    of the command that runs the notebooks. Raises ValueError, with the valid names, for an unknown
    profile, model, dataset, recipe or protocol.
    """
    check_choice("profile", name, profile_names())
    values = yaml.safe_load((PROFILES / f"{name}.yaml").read_text(encoding="utf-8"))
    by_user = json.loads(os.environ.get(CHOSEN, "{}")).get(name, {})
    changes = {key: value for key, value in (by_user | overrides).items() if value is not None}
    values |= changes
    lists = {k: tuple(dict.fromkeys(v)) for k, v in values.items() if isinstance(v, list | tuple)}
    for argument, chosen in lists.items():
        if not chosen:
            raise ValueError(f"{argument}: found none; name one or more")
    if {"models", "datasets", "recipes", "protocols"} & set(changes):
        values["grids"] = {}
    common = {key: value for key, value in changes.items() if key in ("seeds", "epochs")}
    grids = {key: [part | common for part in each] for key, each in values.pop("grids", {}).items()}
    profile = Profile(name=name, grids=grids, **(values | lists))
    if profile.epochs < 1:
        raise ValueError(f"epochs: found {profile.epochs}; give 1 or more")
    if min(profile.seeds) < 0:
        raise ValueError(f"seeds: found {min(profile.seeds)}; give 0 or more")
    for grid in ("main", *grids):
        plan_runs(profile, grid)  # raises for unknown names
    _tell_untested(profile)
    return profile


def _tell_untested(profile: Profile) -> None:
    """Warn of each dataset under ``tested`` that is neither of the catalog nor here: perhaps misspelt."""
    own = set(profile.tested) - set(data.catalog())
    known = {*data.catalog(), *(datasets_there() if own else ())}
    for dataset in sorted(own - known):
        hint = did_you_mean(dataset, known)
        warnings.warn(
            f"profile {profile.name} tests on {dataset}, which is not here{hint}", stacklevel=3
        )


def _product(profile: Profile, **changes: Any) -> list[Run]:
    for axis in changes:
        check_choice("grid axis", axis, (*AXES, "epochs"))
    axes = [changes.get(axis, getattr(profile, axis)) for axis in AXES]
    check_datasets(changes.get("datasets", profile.datasets))
    epochs = changes.get("epochs", profile.epochs)
    return [
        Run(profile.name, model, dataset, recipe, protocol, epochs, seed)
        for recipe, protocol, dataset, model, seed in product(*axes)
    ]


def plan_runs(profile: Profile, grid: str = "main") -> list[Run]:
    """Return the runs of one grid; none where the profile does not have it."""
    check_choice("grid", grid, GRIDS)
    parts = [*([{}] if grid == "main" else []), *profile.grids.get(grid, [])]
    runs = [run for part in parts for run in _product(profile, **part)]
    return list(dict.fromkeys(runs))


def plan_grids(profile: Profile, grids: Iterable[str]) -> list[Run]:
    """Return the runs of several grids, each once, teachers before their students."""
    return with_teachers([run for grid in grids for run in plan_runs(profile, grid)], profile)


def with_teachers(runs: Iterable[Run], profile: Profile) -> list[Run]:
    """Return the runs, each once, and before each student its teacher."""
    return list(dict.fromkeys(each for run in runs for each in (*teachers_of(run, profile), run)))


def teachers_of(run: Run, profile: Profile) -> list[Run]:
    """Return the run that must be finished before a run that learns from it; else nothing.

    Raises ValueError where the profile names no teacher.
    """
    if run.training_recipe.distillation is None:
        return []
    if profile.teacher is None:
        raise ValueError(f"{run.run_id}: profile {profile.name} names no teacher")
    return [replace(run, model=profile.teacher)]
