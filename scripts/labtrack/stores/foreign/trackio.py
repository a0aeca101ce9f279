"""Trackio: a SQLite file for each project, `<project>.db`, and beside it `inbox/<writer>/*.jsonl`, `media/<project>`.

    metrics(id, run_id, timestamp, run_name, step, metrics)  configs(run_id, run_name, config)  system_metrics(...)

Versions before 0.24 have no run_id.  What is in the inbox is taken into the database later, and is there only once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from labtrack.errors import BadInputError, LabtrackError
from labtrack.stores import tree
from labtrack.stores.database import HEADER, Database
from labtrack.stores.foreign.walk import walk
from labtrack.stores.foreign.written import WrittenRun
from labtrack.stores.gathered import GatheredStore, Place, counted, run_id_of
from labtrack.stores.model import RUNNING, Findings, MetricPoint, Run
from labtrack.stores.numbers import floor
from labtrack.stores.values import QUIET, flat, number_in, owner, params, read_json

KIND = "trackio"
_SYSTEM, _TYPE = "system/", "_type"
_INBOX, _MEDIA = "inbox", "media"
_COLUMNS = frozenset({"id", "timestamp", "run_name", "step", "metrics"})
_PAGE = 2000  # rows
_NOT_READ = {"traces": "traces", "alerts": "alerts", "artifact_versions": "versions of artifacts"}  # by their tables


def claims(folder: Path, files: Iterable[str], folders: Iterable[str]) -> bool:
    """Whether a folder has a project of Trackio in it."""
    return any(name.endswith(".db") and is_project(folder / name) for name in files)


def is_project(path: Path) -> bool:
    """Whether a file is a project's database."""
    try:
        database = _opened(path)
    except LabtrackError:
        return False
    if database:
        database.close()
    return database is not None


def _opened(path: Path) -> Database | None:
    """A project's database; None where it is another file.  Raises LabtrackError where it can't be read."""
    try:
        with path.open("rb") as file:
            if file.read(len(HEADER)) != HEADER:
                return None
    except OSError as error:
        raise LabtrackError(f"{path} can't be read: {error.strerror}.") from error
    database = Database(path)
    try:
        if database.columns("metrics") >= _COLUMNS and database.columns("configs"):
            return database
    except BaseException:
        database.close()
        raise
    database.close()
    return None


class TrackioStore(GatheredStore):
    """The folder of projects, or one project's database."""

    kind = KIND

    def __init__(self, root: Path) -> None:
        """Looks for projects.  Raises BadInputError where a file is no project."""
        self._projects: dict[Path, _Project] = {}
        self._file = not tree.is_folder(root)
        self._known: dict[str, _Run] = {}
        if self._file:
            found = _opened(root)
            if found is None:
                raise BadInputError(f"{root} is no project of Trackio.", "name the file <project>.db in its folder.")
            self._projects[root] = _Project(root, found)
        super().__init__(root)

    def _look(self) -> Iterator[_Run]:
        if not self._file:
            for folder, names, folders in walk(self.root, self.looked.problem):
                folders[:] = [name for name in folders if name not in (_INBOX, _MEDIA)]
                for path in (folder / name for name in names if name.endswith(".db")):
                    self._open(path)
        for project in self._projects.values():
            if project.database.danger:
                self.looked.warning(project.path, project.database.danger)
            if project.not_read():
                self.looked.warning(project.path, f"not read: {project.not_read()}")
            for key, name in project.runs(self.looked):
                began = project.began(key)
                if began:
                    run_id = run_id_of(KIND, project.name, name, began)
                    yield self._known.setdefault(run_id, _Run(run_id, project, key, name, began))

    def _open(self, path: Path) -> None:
        if path in self._projects:
            return
        try:
            found = _opened(path)
        except LabtrackError as error:
            self.looked.problem(path, f"it can't be read: {str(error).splitlines()[0]}")
            return
        if found:
            self._projects[path] = _Project(path, found)

    def close(self) -> None:
        for project in self._projects.values():
            project.database.close()


class _Project:
    """A database and its part of the inbox.  A run is known by its run_id, or by its name where there is none."""

    def __init__(self, path: Path, database: Database) -> None:
        self.path, self.name, self.database = path, path.stem, database
        self._parsed: tuple[object, list[dict[str, Any]]] = (), []
        self.key = "run_id" if "run_id" in self.database.columns("metrics") else "run_name"

    def runs(self, found: Findings) -> list[tuple[str, str]]:
        """Key and name of each run, also of those that are only in the inbox."""
        sql = f"SELECT {self.key}, run_name FROM metrics GROUP BY {self.key} ORDER BY MIN(id)"  # noqa: S608 a constant
        runs = {str(key): str(name) for key, name in self.database.rows(sql)}
        for record in self.inbox(found):
            runs.setdefault(self._key_of(record), str(record.get("run")))
        return list(runs.items())

    def not_read(self) -> str:
        """What is in it beside runs, with counts; empty where there is nothing."""
        tables = {table: what for table, what in _NOT_READ.items() if self.database.columns(table)}
        counts = {what: self.database.rows(f"SELECT count(*) FROM {table}")[0][0] for table, what in tables.items()}  # noqa: S608 constants
        return ", ".join(f"{count} {what}" for what, count in counts.items() if count)

    def began(self, key: str) -> str:
        """The time of the first point, as it is written."""
        sql = f"SELECT MIN(timestamp) FROM metrics WHERE {self.key} = ?"  # noqa: S608 a constant
        times = [str(one) for (one,) in self.database.rows(sql, [key]) if one]
        records = (one for one in self.inbox(None) if self._key_of(one) == key and one.get("kind") == "metric")
        return min([*times, *(str(one["timestamp"]) for one in records if one.get("timestamp"))], default="")

    def rows(self, table: str, key: str) -> Iterator[tuple[str, int, object]]:
        """Time, step and values of each row of a run, in the order of their recording."""
        if not self.database.columns(table):
            return
        step = "step" if table == "metrics" else "0"
        last = -1
        while True:
            sql = (
                f"SELECT id, timestamp, {step}, metrics FROM {table} "  # noqa: S608 constants
                f"WHERE {self.key} = ? AND id > ? ORDER BY id LIMIT {_PAGE}"
            )
            page = self.database.rows(sql, [key, last])
            for number, moment, at, values in page:
                last = number
                yield moment, at, values
            if len(page) < _PAGE:
                break
        kind = "metric" if table == "metrics" else "system_metric"
        for one in self.inbox(None):
            if self._key_of(one) == key and one.get("kind") == kind:
                yield str(one.get("timestamp")), one.get("step") or 0, one.get("metrics")

    def config(self, key: str) -> object:
        """The configuration of a run as it is written; None where there is none."""
        own = "run_id" if "run_id" in self.database.columns("configs") else "run_name"
        sql = f"SELECT config FROM configs WHERE {own} = ?"  # noqa: S608 a constant
        found: list[object] = [config for (config,) in self.database.rows(sql, [key])]
        found += [one["config"] for one in self.inbox(None) if self._key_of(one) == key and one.get("config")]
        return found[-1] if found else None

    def inbox(self, found: Findings | None) -> list[dict[str, Any]]:
        """The records that are not in the database yet.  found: where what can't be read is told."""
        place = self.path.parent / _INBOX
        paths = sorted(place.glob("*/*.jsonl")) if tree.is_folder(place) else []
        if found is not None or self._parsed[0] != paths:  # a file of it is never changed
            self._parsed = paths, [one for path in paths for one in self._records(path, found or Findings())]
        records = self._parsed[1]
        known = self._known([str(one["log_id"]) for one in records if one.get("log_id")])
        return [one for one in records if one.get("log_id") not in known]

    def _records(self, path: Path, found: Findings) -> Iterator[dict[str, Any]]:
        try:
            lines = path.read_bytes().splitlines()
        except FileNotFoundError:
            return  # it has just been taken into the database
        except OSError as error:
            found.problem(path, f"it can't be read: {error.strerror}")
            return
        for line in lines:
            try:
                record = read_json(line)
            except ValueError:
                if line.strip():
                    found.problem(path, "a line in it is no record and was left out")
                continue
            if record.get("project") == self.name:
                yield record

    def _known(self, ids: list[str]) -> set[str]:
        known: set[str] = set()
        for table in ("metrics", "system_metrics"):
            if "log_id" in self.database.columns(table):
                for first in range(0, len(ids), 500):
                    some = ids[first : first + 500]
                    sql = f"SELECT log_id FROM {table} WHERE log_id IN ({', '.join('?' * len(some))})"  # noqa: S608
                    known.update(str(one) for (one,) in self.database.rows(sql, some))
        return known

    def _key_of(self, record: Mapping[str, Any]) -> str:
        return str(record.get("run_id" if self.key == "run_id" and record.get("run_id") else "run"))


class _Run(WrittenRun):
    """One run of a project."""

    appends = False  # what comes from the inbox is put behind what is there then

    def __init__(self, run_id: str, project: _Project, key: str, name: str, began: str) -> None:
        super().__init__(project.path.parent)
        self.id = run_id
        self._project, self._key, self._name, self._began = project, key, name, began

    def run(self) -> Run:
        config = self._config()
        facts = {key: value for key, value in config.items() if key.startswith("_")}
        last = max((floor(moment) or 0 for moment, _, _ in self._project.rows("metrics", self._key)), default=0)
        status = RUNNING if time.time() - last / 1000 < QUIET else "FINISHED"
        tags = {"trackio.group": facts.get("_Group")}
        return Run(
            self.id,
            self._project.name,
            self._name,
            str(facts.get("_Username") or owner(self._project.path)),
            status,
            floor(self._began),
            None if status == RUNNING else last or None,
            artifact_uri=str(self.folder.absolute()),
            params=params({key: value for key, value in config.items() if key not in facts}),
            tags={
                **{"mlflow.runName": self._name, "labtrack.recorded_with": "Trackio"},
                **{key: str(value) for key, value in tags.items() if value},
            },
        )

    def counts(self) -> dict[str, int]:
        return counted(self._points())

    def places(self) -> list[Place]:
        media = self.folder / _MEDIA / self._project.name
        names = dict.fromkeys((self._key, self._name))
        found = [media / name for name in names if "/" not in name and name not in ("", ".", "..")]
        return [Place(one, (), _MEDIA) for one in found if tree.is_folder(one)][:1]

    def read(self) -> Iterator[MetricPoint]:
        begun = floor(self._began) or 0
        for table, prefix in (("metrics", ""), ("system_metrics", _SYSTEM)):
            for moment, step, found in self._project.rows(table, self._key):
                at = floor(moment) or 0
                for key, value in self._values(found):
                    # what is measured of the machine has no steps: the second since the first point stands in
                    yield MetricPoint(f"{prefix}{key}", value, at, (at - begun) // 1000 if prefix else floor(step) or 0)

    def _values(self, found: object) -> Iterator[tuple[str, float]]:
        try:
            values = dict(flat(found if isinstance(found, dict) else read_json(_bytes(found))))
        except ValueError:
            self.unread[self._project.path] = "a row of it holds no values and was left out"
            return
        typed = {key[: -len(_TYPE)]: str(kind) for key, kind in values.items() if key.endswith(f".{_TYPE}")}
        for above, kind in typed.items():
            self.other(kind, above[:-1])
        for key, value in values.items():
            number = number_in(value)
            if any(key.startswith(above) for above in typed):
                continue
            if number is not None:
                yield key, number
            elif value is not None:
                self.other("text" if isinstance(value, str) else type(value).__name__, key)

    def _config(self) -> dict[str, Any]:
        found = self._project.config(self._key)
        try:
            return found if isinstance(found, dict) else read_json(_bytes(found)) if found else {}
        except ValueError:
            self.unread[self._project.path] = f"the configuration of the run {self._name} can't be read"
            return {}


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")
