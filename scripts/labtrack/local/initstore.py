"""`labtrack init-store`: a SQLite file with the tables of an installed MLflow, made without a server or a race.

It is made beside its place and put there whole, so of many jobs that start at once one makes it and all can use it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labtrack.errors import BadInputError, LabtrackError
from labtrack.files import umask
from labtrack.stores.sqlite import SqliteStore
from labtrack.ui.private import environment
from labtrack.ui.program import Mlflow, find_mlflow

DATABASE, ARTIFACTS = "MLFLOW_SQLITE_DB_PATH", "MLFLOW_ARTIFACTS_PATH"
_SHARED_FILE, _SHARED_FOLDER = 0o660, 0o2770
_SAID = 800  # characters of what MLflow says
_MAKE = r"""
import json, logging, os, sys
logging.disable(logging.INFO)
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
given = json.load(sys.stdin)
store = SqlAlchemyStore("sqlite:///" + given["file"], given["artifacts"])
for name in given["experiments"]:
    if store.get_experiment_by_name(name) is None:
        store.create_experiment(name)
"""
# MLflow has an experiment that is made later in ./mlruns of whoever makes it: the place of artifacts is no part of a
# database, but of a server's command line
_TRIGGER = """
CREATE TRIGGER labtrack_artifact_location AFTER UPDATE OF artifact_location ON experiments
WHEN NEW.artifact_location LIKE '%/mlruns/' || NEW.experiment_id
BEGIN
    UPDATE experiments SET artifact_location = {place} || '/' || NEW.experiment_id
    WHERE experiment_id = NEW.experiment_id;
END
"""


@dataclass(frozen=True)
class Made:
    """The file, where artifacts go, and whether it was there already."""

    file: Path
    artifacts: str
    mlflow: str
    was_there: bool

    @property
    def address(self) -> str:
        """As MLFLOW_TRACKING_URI takes it."""
        return f"sqlite:///{self.file}"


def init_store(
    file: str | None,
    artifacts: str | None = None,
    *,
    experiments: Sequence[str] = (),
    group: str | None = None,
    mlflow: str | None = None,
    env: Mapping[str, str] = os.environ,
) -> Made:
    """Makes a SQLite file for MLflow, or finds that it is there.

    file: a path, or `sqlite:////abs/path`; None for MLFLOW_SQLITE_DB_PATH.  artifacts: an absolute folder or an
    address; None for MLFLOW_ARTIFACTS_PATH, or `mlartifacts` beside the file.  experiments: made with it.
    group: the members of this group may write to both; "" for the group that the folder has.
    mlflow: see `find_mlflow`.
    Raises BadInputError for what can't be used, LabtrackError where MLflow or the disk fails.
    """
    path = _file(file, env)
    place = _artifacts(artifacts, env, path)
    number = _group(group) if group else None
    found = find_mlflow(mlflow, ui=False)
    if path.exists():
        return Made(path, place, found.version, was_there=_usable(path, found))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if group is not None:
            _share(path.parent, number)
        folder = Path(place) if place.startswith("/") else None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if group is not None:
                _share(folder, number)
        was_there = _make(path, place, experiments, found, (group is not None, number))
    except OSError as error:
        raise LabtrackError(
            f"{error.filename or path} can't be made: {error.strerror}.",
            f"look at `ls -ld {path.parent}` and `df -h {path.parent}`.",
        ) from error
    return Made(path, place, found.version, was_there)


def _file(given: str | None, env: Mapping[str, str]) -> Path:
    text, said = (given, given) if given else (env.get(DATABASE, ""), DATABASE)
    if not text:
        raise BadInputError(
            "No file was named.", f"labtrack init-store /scratch/me/mlflow.db, or export {DATABASE}=..."
        )
    if re.match(r"sqlite:", text, re.IGNORECASE):
        rest = text.split(":", 1)[1]
        slashes = len(rest) - len(rest.lstrip("/"))
        if slashes != 4:  # noqa: PLR2004
            raise BadInputError(
                f"{text} has {slashes} slashes after `sqlite:`, and an absolute path needs four.",
                f"sqlite:////{rest.lstrip('/')}",
            )
        text = rest[3:]
    elif re.match(r"[a-z][a-z0-9+.-]*:", text, re.IGNORECASE):
        raise BadInputError(f"{said} is {text}, which is no SQLite file.", "name a path: /scratch/me/mlflow.db")
    _refuse_unexpanded(text)
    path = Path(os.path.normpath(Path(text).expanduser().absolute()))
    if path.is_dir() or text.endswith("/"):
        raise BadInputError(f"{text} is a folder.", f"name the file in it: {path}/mlflow.db")
    return path


def _artifacts(given: str | None, env: Mapping[str, str], file: Path) -> str:
    text = given or env.get(ARTIFACTS, "") or f"{file.parent}/mlartifacts"
    _refuse_unexpanded(text)
    if text.startswith("file:"):
        rest = text[len("file:") :]
        if not rest.startswith("/") or (rest.startswith("//") and not rest.startswith("///")):
            raise BadInputError(
                f"{text} names a host where a path is meant.", f"file:///{rest.lstrip('/')}, or /{rest.lstrip('/')}"
            )
        text = "/" + rest.lstrip("/")
    elif re.match(r"[a-z][a-z0-9+.-]*://", text, re.IGNORECASE):
        return text.rstrip("/")
    elif re.match(r"[a-z][a-z0-9+.-]*:/", text, re.IGNORECASE):
        raise BadInputError(f"{text} has too few slashes.", "an address is like s3://bucket/folder")
    if not text.startswith(("/", "~")):
        raise BadInputError(
            f"{text} is not absolute, and would be another folder in each job.",
            f"name it from / on: {Path(text).absolute()}",
        )
    path = os.path.normpath(Path(text).expanduser())
    if Path(path) == file:
        raise BadInputError(f"{text} is the database itself.", f"name a folder: {file.parent}/mlartifacts")
    return path


def _refuse_unexpanded(text: str) -> None:
    if "$" in text:
        raise BadInputError(f"{text} holds a $ that no shell has replaced.", "write it without single quotes.")


def _group(name: str) -> int:
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise BadInputError(f"There is no group {name} on this machine.", "`id -Gn` lists yours.") from None


def _share(folder: Path, group: int | None) -> None:
    """Members may write: SQLite makes its journal beside the file."""
    if group is not None and folder.stat().st_gid != group:
        os.chown(folder, -1, group)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & _SHARED_FOLDER != _SHARED_FOLDER:
        folder.chmod(mode | _SHARED_FOLDER)


def _usable(path: Path, mlflow: Mlflow) -> bool:
    """Raises BadInputError where a file that is there is not what this MLflow writes to."""
    with SqliteStore(path) as store:
        schema = store.schema
    if schema != mlflow.schema:
        raise BadInputError(
            f"{path} is there, and has the schema {schema or 'of an old MLflow'}; MLflow {mlflow.version} writes only "
            f"to {mlflow.schema}.",
            f"{mlflow.python} -m mlflow db upgrade sqlite:///{path}\nwhile nothing has it open, or name another file.",
        )
    return True


def _make(path: Path, place: str, experiments: Sequence[str], mlflow: Mlflow, shared: tuple[bool, int | None]) -> bool:
    """Makes the file; says whether somebody else was quicker."""
    import sqlite3

    part = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
    given = {"file": str(part), "artifacts": place, "experiments": list(experiments)}
    env = {name: value for name, value in environment().items() if name not in (DATABASE, ARTIFACTS)}
    try:
        done = subprocess.run(
            [mlflow.python, "-c", _MAKE], input=json.dumps(given), env=env, cwd="/", capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode != 0 or not part.exists():
            raise LabtrackError(
                f"MLflow {mlflow.version} could not make the file:\n{done.stderr.strip()[-_SAID:]}",
                f"look at `df -h {path.parent}`, or name another MLflow: --mlflow PATH",
            )
        with contextlib.closing(sqlite3.connect(part)) as database:
            literal = "'" + place.replace("'", "''") + "'"
            database.execute(_TRIGGER.format(place=literal))
            database.commit()
        is_shared, group = shared
        if group is not None:
            os.chown(part, -1, group)
        part.chmod(_SHARED_FILE if is_shared else 0o666 & ~umask())
        return _put(part, path, mlflow)
    finally:
        for left in (part, part.with_name(part.name + "-journal")):
            left.unlink(missing_ok=True)


def _put(part: Path, path: Path, mlflow: Mlflow) -> bool:
    try:
        os.link(part, path)  # never over another's
    except FileExistsError:
        return _usable(path, mlflow)
    except OSError:  # a file system without hard links: the same for all but the last instant
        if path.exists():
            return _usable(path, mlflow)
        part.replace(path)
    return False
