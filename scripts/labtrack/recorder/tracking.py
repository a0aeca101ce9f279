"""MLflow's stores on the database in memory: nothing of MLflow's interface is written anew, but the way of a metric."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as db_utils
from mlflow.store.db.base_sql_model import Base
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.dbmodels.models import SqlExperiment
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as TrackingStore
from mlflow.utils.validation import _validate_batch_log_data, _validate_batch_log_limits, _validate_metric
from sqlalchemy.schema import CreateIndex, CreateTable

from labtrack.errors import BadInputError
from labtrack.recorder import jobs, loading
from labtrack.recorder.live import Live
from labtrack.recorder.place import root_of, settings

_POOL = "MLFLOW_SQLALCHEMYSTORE_POOLCLASS"
_MOST, _LEAST = 1.7976931348623157e308, -1.7976931348623157e308  # what MLflow's databases have for infinities
_lives: dict[Path, Live] = {}
_making = threading.RLock()


def live_of(address: str) -> Live:
    """What this process records into a folder; made with the first call.  Raises MlflowException."""
    try:
        root = root_of(address)
    except BadInputError as error:
        raise MlflowException.invalid_parameter_value(str(error)) from None
    with _making, _own_pool():
        if root not in _lives:
            _lives[root] = _made(root)
        return _lives[root]


def tracking_store(address: str) -> Any:
    """The tracking store of an address."""
    return _store(RecordingTracking, live_of(address), address)


def registry_store(address: str) -> Any:
    """The model registry's store of an address."""
    return _store(RecordingRegistry, live_of(address), address)


def _made(root: Path) -> Live:
    live = Live(root, settings(os.environ))
    engine = sqlalchemy.create_engine(live.uri)
    with engine.begin() as connection:
        for table in Base.metadata.sorted_tables:
            connection.execute(CreateTable(table))
            for index in table.indexes:
                if len(index.expressions):  # some of MLflow's name no column
                    connection.execute(CreateIndex(index))
    engine.dispose()
    live.complete()
    revision = _head()
    live.database.execute(
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
        "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
    )
    live.database.execute("INSERT INTO alembic_version VALUES (?)", [revision])
    live.default_tracking = _store(RecordingTracking, live, "")
    live.capture_from_now(mlflow.__version__, revision)
    return live


def _store(kind: Any, live: Live, address: str) -> Any:
    with _making, _own_pool():
        return kind(live, address)


@functools.lru_cache(maxsize=1)
def _head(found: Callable[[], str] = db_utils._get_latest_schema_revision) -> str:
    """The revision of the installed MLflow's schema."""
    return found()


@contextlib.contextmanager
def _own_pool() -> Iterator[None]:
    """A connection for each session: SQLAlchemy gives a database in memory one for each thread.  And no words on it."""
    before = os.environ.get(_POOL)
    os.environ[_POOL] = "QueuePool"
    loggers = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic.runtime.migration")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.WARNING)
    head = db_utils._get_latest_schema_revision
    db_utils._get_latest_schema_revision = _head  # which reads all migrations each time
    try:
        yield
    finally:
        db_utils._get_latest_schema_revision = head
        for one, level in zip(loggers, levels):
            one.setLevel(level)
        if before is None:
            del os.environ[_POOL]
        else:
            os.environ[_POOL] = before


def _read_uncommitted(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA read_uncommitted = 1")  # a session in a session reads what the outer has written


class _Recording:
    """Around each of MLflow's methods: the lock, points that wait, what has changed."""

    _live: Live

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name.startswith("_") or not callable(found) or name in _OWN or not hasattr(found, "__func__"):
            return found
        return functools.wraps(found)(functools.partial(_called, object.__getattribute__(self, "_live"), found))


def _called(live: Live, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with live.call():
        try:
            return method(*args, **kwargs)
        except MlflowException as error:
            named = isinstance(getattr(method, "__self__", None), RegistryStore)
            given = [*args, *kwargs.values()]
            if error.error_code != "RESOURCE_DOES_NOT_EXIST" or not loading.load(live, given, named=named):
                raise
            return method(*args, **kwargs)


_OWN = ("log_metric", "log_batch", "log_param", "create_run", "ManagedSessionMaker", "engine")


class RecordingTracking(_Recording, TrackingStore):  # type: ignore[misc]
    """MLflow's tracking store."""

    def __init__(self, live: Live, address: str) -> None:
        self._live = live
        with live.lock:
            super().__init__(live.uri, f"{live.base}artifacts")
        if not sqlalchemy.event.contains(self.engine, "connect", _read_uncommitted):
            sqlalchemy.event.listen(self.engine, "connect", _read_uncommitted)
            self.engine.dispose()
        self._address = address

    def log_metric(self, run_id: str, metric: Any) -> None:
        """Takes a point, which is put into the database later."""
        if getattr(metric, "model_id", None) is not None or not self._may_be_logged_to(run_id):
            _called(self._live, super().log_metric, run_id, metric)
            return
        _validate_metric(metric.key, metric.value, metric.timestamp, metric.step)
        self._live.point(_point(run_id, metric))

    def log_batch(self, run_id: str, metrics: Any, params: Any, tags: Any) -> None:
        """Takes points; parameters and tags are MLflow's."""
        simple = all(getattr(metric, "model_id", None) is None for metric in metrics)
        if not metrics or not simple or not self._may_be_logged_to(run_id):
            with jobs.lenient(self._live, run_id, params) as new:
                _called(self._live, super().log_batch, run_id, metrics, new, tags)
            return
        _validate_batch_log_data(metrics, params, tags)
        _validate_batch_log_limits(metrics, params, tags)
        if params or tags:
            with jobs.lenient(self._live, run_id, params) as new:
                _called(self._live, super().log_batch, run_id, [], new, tags)
        for metric in metrics:
            self._live.point(_point(run_id, metric))

    def log_param(self, run_id: str, param: Any) -> Any:
        """Takes a parameter, which of a run that goes on may be another than before."""
        with jobs.lenient(self._live, run_id, [param]) as new:
            return _called(self._live, super().log_param, run_id, param) if new else param

    def create_run(self, *args: Any, **kwargs: Any) -> Any:
        """Makes a run, or goes on with the job's."""
        live = self._live
        with live.call():
            return jobs.create_run(live, self, super().create_run, *args, **kwargs)

    def _may_be_logged_to(self, run_id: str) -> bool:
        known = self._live.known
        if run_id in known:
            return True
        with self._live.call():
            if self._live.run_of(run_id).get("lifecycle_stage") != "active":
                return False  # MLflow says why not
        known.add(run_id)
        return True


class RecordingRegistry(_Recording, RegistryStore):  # type: ignore[misc]
    """MLflow's model registry."""

    def __init__(self, live: Live, address: str) -> None:
        self._live = live
        with live.lock:
            super().__init__(live.uri)
        if not sqlalchemy.event.contains(self.engine, "connect", _read_uncommitted):
            sqlalchemy.event.listen(self.engine, "connect", _read_uncommitted)
            self.engine.dispose()
        self._address = address


def _point(run_id: str, metric: Any) -> tuple[Any, ...]:
    number = float(metric.value)
    if number - number == 0.0:
        return run_id, metric.key, number, _whole(metric.timestamp), _whole(metric.step), 0
    if math.isnan(number):
        return run_id, metric.key, 0.0, _whole(metric.timestamp), _whole(metric.step), 1
    return run_id, metric.key, _MOST if number > 0 else _LEAST, _whole(metric.timestamp), _whole(metric.step), 0


def _whole(given: Any) -> Any:
    if type(given) is int:
        return given
    return int(given) if given == int(given) else float(given)


@sqlalchemy.event.listens_for(SqlExperiment, "before_insert")  # type: ignore[untyped-decorator]
def _experiment_id(_: Any, connection: Any, experiment: Any) -> None:
    """Gives an experiment an id made from its name, so that all processes have the same without talking."""
    if not (connection.engine.url.database or "").startswith("file:labtrack-") or experiment.experiment_id is not None:
        return
    taken = {row[0] for row in connection.execute(sqlalchemy.text("SELECT experiment_id FROM experiments"))}
    salt = ""
    while (found := experiment_number(f"{experiment.name}{salt}")) in taken:
        salt += "\n"  # the name was another's, that has been renamed
    experiment.experiment_id = found


def experiment_number(name: str) -> int:
    """15 digits, that JavaScript can hold too."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return 10**14 + int.from_bytes(digest[:8], "big") % (9 * 10**14)


def _in_child() -> None:
    for live in _lives.values():
        live.forked()


def _before_fork() -> None:
    for live in _lives.values():  # nobody is in SQLite while the process is copied
        live.lock.acquire(timeout=5)


def _in_parent() -> None:
    for live in _lives.values():
        with contextlib.suppress(RuntimeError):
            live.lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
