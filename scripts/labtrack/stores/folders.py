"""Which folders are experiments and runs of an `mlruns` folder."""

from __future__ import annotations

from pathlib import Path

from labtrack.errors import BadInputError
from labtrack.stores import tree
from labtrack.stores.model import DELETED
from labtrack.stores.plainfiles import BrokenFileError, read_meta

META = "meta.yaml"
TRASH = ".trash"
NO_RUNS = ("datasets", "models", "tags", "traces")  # folders of an experiment that are no runs
NO_EXPERIMENTS = ("models", TRASH)
OF_RUNS = {"metrics", "params", "tags", "inputs", "outputs"}  # folders of a run, beside its artifacts
ARTIFACTS = "artifacts"


def holds_experiments(folder: Path) -> bool:
    """Whether a folder is an mlruns folder.  Raises BadInputError where that can't be seen."""
    return any(is_experiment(one) for one in (*_active(folder), *_looked_into(folder / TRASH)))


def holds_runs(folder: Path) -> bool:
    """Whether an mlruns folder has a run, deleted or not."""
    experiments = (*_active(folder), *_looked_into(folder / TRASH))
    return any(
        tree.is_file(run / META)
        for one in experiments
        for run in tree.subfolders(one, _nobody)
        if run.name not in NO_RUNS
    )


def _active(folder: Path) -> list[Path]:
    return [one for one in _looked_into(folder) if one.name not in NO_EXPERIMENTS]


def _looked_into(folder: Path) -> list[Path]:
    refused: list[str] = []
    found = tree.subfolders(folder, lambda place, why: refused.append(why) if place == folder else None)
    if refused:
        raise BadInputError(f"{folder} {refused[0]}.", f"look at `ls -ld {folder}`.")
    return found


def _nobody(place: Path, why: str) -> None:
    """For a first look; who reads the store tells."""


def is_experiment(folder: Path) -> bool:
    """With its meta.yaml, or at least with runs that have theirs."""
    try:
        meta = (folder / META).read_bytes()
    except OSError:
        found = (one for one in tree.subfolders(folder, _nobody) if one.name not in NO_RUNS)
        return any(tree.is_file(one / META) and tree.is_folder(one / "metrics") for one in found)
    return b"run_id:" not in meta and b"run_uuid:" not in meta  # else it is a run, and `folder` too low a place


def is_deleted(experiment: Path) -> bool:
    """Whether an experiment is deleted, and its runs with it."""
    if experiment.parent.name == TRASH:
        return True
    try:
        return bool(read_meta(experiment / META).get("lifecycle_stage") == DELETED)
    except BrokenFileError:
        return False


def is_lost(folder: Path) -> bool:
    """Whether a folder that is no experiment has what was recorded in one.

    One that has artifacts alone is the artifact root of another store, or its user's own.
    """
    if folder.name.startswith((".", "__")):
        return False
    try:
        (folder / META).read_bytes()
        return False
    except FileNotFoundError:
        pass
    except OSError:
        return True
    for one in tree.files(folder, _nobody):
        parts = one.relative_to(folder).parts
        of_experiment = parts[0] in NO_RUNS and ARTIFACTS not in parts[:3]
        if (of_experiment or OF_RUNS.intersection(parts[1:2])) and not tree.is_clutter(one.name):
            return True
    return False


def belongs(run: Path) -> bool:
    """Whether a run says that it is of the experiment in whose folder it is."""
    try:
        return str(read_meta(run / META).get("experiment_id")) == run.parent.name
    except BrokenFileError:
        return False
