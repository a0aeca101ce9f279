"""`labtrack clean`: removes what MLflow records in a project, and nothing that is nowhere else."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from labtrack.errors import BadInputError, LabtrackError
from labtrack.local.holders import holders
from labtrack.local.project import IGNORED
from labtrack.stores import open_store, tree
from labtrack.stores.model import Run, Store
from labtrack.sync import state
from labtrack.sync.journal import Entry, acknowledged, state_folder

_DATABASE = IGNORED[0]
_STILL = 600.0  # seconds since the last change, in which a run that is RUNNING may be at work
_NAMED = 3  # runs that are named in a sentence


@dataclass(frozen=True)
class Plan:
    """What is removed, with its bytes, and why it is better not to."""

    folder: Path
    paths: tuple[tuple[Path, int], ...]
    reasons: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.paths)


def plan(folder: Path, env: Mapping[str, str] | None = None) -> Plan:
    """Looks at what a project has of mlflow.db, *.db-shm, *.db-wal, mlruns/, mlartifacts/ and .mlflow/.

    A journal of mlflow.db goes with it: left behind it would damage the next one.
    env: where the journals of `labtrack sync` are.  Raises BadInputError where there is no such folder.
    """
    if not folder.is_dir():
        raise BadInputError(f"There is no folder {folder.absolute()}.", "name the project's folder.")
    patterns = [one.rstrip("/") for one in IGNORED] + [f"{_DATABASE}-journal"]
    paths = sorted({path for one in patterns for path in folder.glob(one)})
    reasons = [reason for path in paths for reason in _reasons(path, folder, os.environ if env is None else env)]
    return Plan(folder, tuple((path, _bytes(path)) for path in paths), tuple(dict.fromkeys(reasons)))


def remove(what: Plan) -> None:
    """Removes it; of a link only the link.  Raises LabtrackError for what can't be removed, after all else."""
    remove_all((path for path, _ in what.paths), what.folder)


def remove_all(paths: Iterable[Path], folder: Path) -> None:
    """Removes files, links and folders of a folder.  Raises as `remove` does."""
    failed = []
    for path in paths:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            failed.append(f"{error.filename or path}: {error.strerror}")
    if failed:
        raise LabtrackError("Not removed:\n" + "\n".join(failed), f"look at `ls -ld {folder}`.")


def _reasons(path: Path, folder: Path, env: Mapping[str, str]) -> Iterator[str]:
    name = path.name
    if name.endswith(("-wal", "-shm", "-journal")):
        owner = path.with_name(name.rpartition("-")[0])
        if owner.name != _DATABASE and owner.exists() and path.stat().st_size:
            yield f"{path} belongs to {owner}, which is not removed, and may have its last changes"
        return
    if name not in (_DATABASE, "mlruns"):
        return
    if name == _DATABASE:
        for one in holders(path).holders:
            job = f", {one.job}" if one.job else ""
            yield f"{path} is open in process {one.pid} of {one.user}{job}: {one.command[:100]}"
    elif not any(path.iterdir()):
        return
    try:
        with open_store(path) as store:
            yield from _of_runs(store, path, acknowledged(state_folder(env)))
    except BadInputError as error:
        if name == _DATABASE or any(path.rglob("meta.yaml")):
            yield f"{path} can't be looked at: {error.what}"
    except LabtrackError as error:
        yield f"{path} can't be looked at: {error.what}"


def _of_runs(store: Store, path: Path, known: Mapping[str, list[Entry]]) -> Iterator[str]:
    runs = list(store.runs())
    at_work = [run for run in runs if run.status in state.OPEN]
    if at_work and time.time() - _newest(path) < _STILL:
        yield f"{_names(at_work)} RUNNING, and {path} has just changed"
    left = [run for run in runs if not any(has_all(one, store, run) for one in known.get(run.id, ()))]
    if left:
        verb = "were" if len(left) > 1 else "was"
        yield f"{len(left)} of {len(runs)} runs in {path} {verb} never sent to a server, or not all of them"


def has_all(entry: Entry, store: Store, run: Run) -> bool:
    """Whether a server has acknowledged all that there is of a run now."""
    said = state.parse(entry.state)
    if said is None or said.state not in (state.COMPLETE, state.ACCEPTED) or run.status in state.OPEN:
        return False
    counts = store.metric_keys(run.id)
    sizes = sorted(one.size for one in store.artifacts(run))
    sent = [facts[0] for facts in entry.artifacts.values()]
    return all(entry.points.get(key, 0) >= count for key, count in counts.items()) and all(
        sent.count(size) >= sizes.count(size) for size in set(sizes)
    )


def _names(runs: list[Run]) -> str:
    names = ", ".join(run.name or run.id for run in runs[:_NAMED])
    more = f" and {len(runs) - _NAMED} more" if len(runs) > _NAMED else ""
    return f"{names}{more} {'are' if len(runs) > 1 else 'is'}"


def _newest(path: Path) -> float:
    """When something in it changed last."""
    newest = 0.0
    for one in [*_beside(path), *(tree.files(path, lambda *_: None) if path.is_dir() else ())]:
        with contextlib.suppress(OSError):
            newest = max(newest, one.stat().st_mtime)
    return newest


def _beside(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-journal")]


def _bytes(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    total = 0
    for one in tree.files(path, lambda *_: None):
        with contextlib.suppress(OSError):
            total += one.lstat().st_size
    return total
