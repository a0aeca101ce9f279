"""A copy of what was recorded, which the installed MLflow can show; what it is of is only read."""

from __future__ import annotations

import contextlib
import datetime
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labtrack.errors import LabtrackError
from labtrack.files import home, make_private_folder, write_private
from labtrack.stores import Store, open_stores
from labtrack.stores.sqlite import SqliteStore
from labtrack.ui import gathering, places
from labtrack.ui.private import Private
from labtrack.ui.program import Mlflow

DATABASE = "mlflow.db"
_MADE = 600  # seconds for an upgrade of a large database on a busy machine
_EMPTY = "import mlflow; mlflow.MlflowClient('sqlite:///mlflow.db').search_experiments()"  # makes the tables
# MLflow's page shows an error instead of all runs where one has no tag; its own runs always have this one
_TAGGED = (
    "INSERT INTO tags (run_uuid, key, value) SELECT run_uuid, 'mlflow.runName', coalesce(nullif(name, ''), run_uuid) "
    "FROM runs WHERE run_uuid NOT IN (SELECT run_uuid FROM tags)"
)
_SAID = 600  # characters of what MLflow says when it fails


@dataclass(frozen=True)
class Snapshot:
    """What is shown.

    location: of what it is.  taken: when.  upgraded: whether the copy has another schema than what was recorded.
    problems: what could not be read.
    """

    location: str
    experiments: int
    runs: int
    taken: datetime.datetime
    upgraded: bool
    problems: tuple[str, ...]


def make(where: str, mlflow: Mlflow, private: Private, step: Callable[[str], None]) -> Snapshot:
    """Puts a snapshot of a recording, or of all recordings in a folder, into mlflow.db in the private folder.

    step: told what is done.  Raises BadInputError where there is none, LabtrackError where it can't be made.
    """
    taken = datetime.datetime.now().astimezone()
    stores = open_stores(where)
    try:
        upgraded = _copied(stores, mlflow, private, step)
        if upgraded is None:
            _gathered(stores, mlflow, private, step)
        problems = [str(problem) for store in stores for problem in store.problems() if problem.damage]
        if upgraded is None:
            problems += [f"{store.location}: its traces" for store in stores if any(True for _ in store.traces())]
        location = ", ".join(store.location for store in stores[:3]) + ", ..." * (len(stores) > 3)  # noqa: PLR2004
    finally:
        for store in stores:
            store.close()
    with contextlib.closing(sqlite3.connect(private.folder / DATABASE)) as made:
        with made:
            made.execute(_TAGGED)
        counts = [made.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("experiments", "runs")]  # noqa: S608
    return Snapshot(location, counts[0], counts[1], taken, bool(upgraded), tuple(problems))


def _copied(stores: list[Store], mlflow: Mlflow, private: Private, step: Callable[[str], None]) -> bool | None:
    """Whether the copy of one SQLite file was upgraded; None where it has to be read and written anew."""
    store = stores[0]
    if len(stores) > 1 or type(store) is not SqliteStore:
        return None
    folder = private.folder
    copy, schema = folder / DATABASE, store.schema
    if schema not in mlflow.revisions:
        step(
            f"its schema ({schema or 'none'}) is unknown to MLflow {mlflow.version}: read the runs and write them anew"
        )
        return None
    _need_room(store.path, folder)
    step(f"copy {store.path}")
    store.copy_to(copy)
    places.relocate(store, copy, folder / "artifacts")
    if schema == mlflow.schema:
        return False
    step(f"upgrade the copy to the schema of MLflow {mlflow.version}")
    try:
        _run(mlflow, private, "-m", "mlflow", "db", "upgrade", f"sqlite:///{DATABASE}")
    except LabtrackError as error:
        step(f"{error.what.splitlines()[-1]}: read the runs and write them anew")
        copy.unlink()
        return None
    return True


def _gathered(stores: list[Store], mlflow: Mlflow, private: Private, step: Callable[[str], None]) -> None:
    folder = private.folder
    part, database, kept = folder / "part.db", folder / DATABASE, _empty_database(mlflow)
    making = None if kept.exists() else private.start(mlflow.python, "-c", _EMPTY, out=subprocess.PIPE)
    gathering.gather(stores, part, folder / "artifacts", step)
    if making is None:
        shutil.copyfile(kept, database)
    else:
        _finish(making)
        with contextlib.suppress(LabtrackError):  # the next one takes as long
            make_private_folder(kept.parent)
            write_private(kept, database.read_bytes())
    gathering.pour(part, database)
    part.unlink()


def _empty_database(mlflow: Mlflow) -> Path:
    """Where the tables of this MLflow are kept: it takes 70 migrations to make them."""
    base = os.environ.get("XDG_CACHE_HOME") or str(home(os.environ) / ".cache")
    return Path(base) / "labtrack" / "ui" / f"mlflow-{mlflow.version}-{mlflow.schema}.db"


def _need_room(path: Path, folder: Path) -> None:
    needed = 2 * path.stat().st_size
    if shutil.disk_usage(folder).free < needed:
        raise LabtrackError(
            f"A snapshot of {path} needs up to {needed / 1e9:.1f} GB, and {folder.parent} has no room for it.",
            "set TMPDIR to a folder with room, or show the file itself: --live",
        )


def _run(mlflow: Mlflow, private: Private, *arguments: str) -> None:
    _finish(private.start(mlflow.python, *arguments, out=subprocess.PIPE))


def _finish(process: subprocess.Popen[bytes]) -> None:
    said = process.communicate(timeout=_MADE)[0].decode("utf-8", "replace")
    if process.returncode != 0:
        raise LabtrackError(
            f"MLflow could not make its tables:\n{said.strip()[-_SAID:]}", "does `mlflow server` start?"
        )
