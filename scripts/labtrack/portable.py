"""`labtrack export`: some runs of a recording as one file."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from labtrack.errors import BadInputError, LabtrackError
from labtrack.files import umask
from labtrack.stores.model import LoggedModel, Owner, RegisteredModel, Run, Store
from labtrack.stores.portable import DATABASE, artifact_name
from labtrack.stores.writing import Writer

_SAMPLE = 1 << 16  # bytes by which to see whether a file can be packed
_WORTH_IT = 0.9
_CHUNK = 1 << 20
_THE_SAME_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say: the same runs give the same bytes
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Exported:
    """What is in the file."""

    file: Path
    runs: int
    points: int
    artifacts: int
    size: int
    problems: tuple[str, ...]


def export(
    store: Store,
    run_ids: Sequence[str],
    file: Path,
    *,
    children: bool = False,
    force: bool = False,
    step: Callable[[str], None] | None = None,
) -> Exported:
    """Writes runs with all that belongs to them into `file`, which is there whole or not at all.

    children: also the runs nested in them, however deep.  force: write over a file.  step: told what comes next.
    Raises BadInputError for a run that is not in the store or a file that is there.
    """
    if file.is_dir() or (file.exists() and not force):
        raise BadInputError(f"{file} is there already.", "choose another -o, or write over it with --force.")
    if not file.absolute().parent.is_dir():
        raise BadInputError(f"There is no folder {file.absolute().parent}.", "make it first (mkdir).")
    runs = _chosen(store, run_ids, children)
    descriptor, name = -1, ""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".tmp", dir=file.absolute().parent)
        with os.fdopen(descriptor, "w+b") as out, tempfile.TemporaryDirectory(prefix="labtrack-export-") as folder:
            done = _write(store, runs, out, Path(folder) / DATABASE, step or (lambda _: None))
            out.flush()
            os.fsync(out.fileno())
        Path(name).chmod(0o666 & ~umask())
        Path(name).replace(file)
    except BaseException as error:
        if name:
            Path(name).unlink(missing_ok=True)
        if isinstance(error, (OSError, sqlite3.Error)):
            raise _cannot(file, error) from error
        raise
    problems = tuple(str(problem) for problem in store.problems() if problem.damage)
    return Exported(file, len(runs), done[0], done[1], file.stat().st_size, problems)


def _chosen(store: Store, run_ids: Sequence[str], children: bool) -> list[Run]:
    chosen = {run_id: store.run(run_id) for run_id in run_ids}
    if children:
        everything = list(store.runs())
        before = 0
        while before != len(chosen):
            before = len(chosen)
            chosen.update({run.id: run for run in everything if run.parent_id in chosen})
    return list(chosen.values())


def _write(
    store: Store, runs: Sequence[Run], out: BinaryIO, database: Path, step: Callable[[str], None]
) -> tuple[int, int]:
    """Gives the number of points and of artifacts."""
    models = _models(store, runs)
    writer = Writer(database, store)
    try:
        wanted = {run.experiment_id for run in runs} | {model.experiment_id for model in models}
        for experiment in store.experiments(deleted=True):
            if experiment.id in wanted:
                writer.experiment(experiment)
        points = 0
        for run in runs:
            step(f"read {run.name or run.id}")
            points += writer.run(run, store)
        for model in models:
            writer.logged_model(model, store)
        for registered in _registered(store, runs, models):
            writer.registered_model(registered)
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    with zipfile.ZipFile(out, "w", allowZip64=True) as packed:
        with database.open("rb") as source:
            _pack(packed, DATABASE, source)
        count = 0
        owners: Iterable[Owner] = (*runs, *models)
        for owner in owners:
            for artifact in store.artifacts(owner):
                step(f"pack {artifact.path}")
                with store.open_artifact(owner, artifact.path) as source:
                    _pack(packed, artifact_name(owner, artifact.path), source)
                count += 1
    return points, count


def _models(store: Store, runs: Sequence[Run]) -> list[LoggedModel]:
    """The logged models that the runs made or read."""
    ids = {run.id for run in runs}
    linked = {link.model_id for run in runs for link in (*run.model_inputs, *run.model_outputs)}
    return [one for one in store.logged_models(deleted=True) if one.id in linked or one.source_run_id in ids]


def _registered(store: Store, runs: Sequence[Run], models: Sequence[LoggedModel]) -> list[RegisteredModel]:
    """The registry's entries for the runs and models, with only these versions."""
    ids, model_ids = {run.id for run in runs}, {model.id for model in models}
    found = []
    for one in store.registered_models():
        versions = tuple(it for it in one.versions if it.run_id in ids or it.model_id in model_ids)
        if versions:
            found.append(replace(one, versions=versions))
    return found


def _pack(packed: zipfile.ZipFile, name: str, source: BinaryIO) -> None:
    sample = source.read(_SAMPLE)
    entry = zipfile.ZipInfo(name, _THE_SAME_DATE)
    entry.external_attr = 0o644 << 16
    small = len(zlib.compress(sample, 1)) < _WORTH_IT * len(sample)
    entry.compress_type = zipfile.ZIP_DEFLATED if small else zipfile.ZIP_STORED
    with packed.open(entry, "w", force_zip64=True) as target:
        target.write(sample)
        shutil.copyfileobj(source, target, _CHUNK)


def _cannot(file: Path, error: OSError | sqlite3.Error) -> LabtrackError:
    folders = f"{file.absolute().parent} {tempfile.gettempdir()}"
    if getattr(error, "errno", None) in _NO_ROOM or "disk is full" in str(error):
        return LabtrackError(
            f"The disk is full: {file} was not written.",
            f"free some space (`df -h {folders}`; TMPDIR says where the runs are put together) and run it again.",
        )
    return LabtrackError(f"{file} can't be written: {error}.", f"look at `ls -ld {folders}`.")
