"""`labtrack prune`: puts old runs into MLflow's trash, and has MLflow empty it when asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from labtrack.errors import BadInputError, LabtrackError
from labtrack.stores import Store, filters, open_store
from labtrack.stores.model import ACTIVE, Run
from labtrack.stores.pull import refuse
from labtrack.stores.sqlite import SqliteStore
from labtrack.sync import state
from labtrack.ui.private import environment
from labtrack.ui.program import Mlflow, find_mlflow

_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
_STATUS = ("FINISHED", "FAILED", "KILLED", "RUNNING", "SCHEDULED")
_AT_ONCE = 500  # runs in one call of `mlflow gc`
_SAID = 800  # characters of what MLflow says
# through MLflow's client; tells each run that is done, so that what an interruption has left is known
_DELETE = r"""
import json, os, sys, mlflow
client = mlflow.MlflowClient(os.environ["LABTRACK_PRUNED"])
for run_id in json.load(sys.stdin):
    client.delete_run(run_id)
    sys.stdout.write(f"deleted {run_id}\n")
    sys.stdout.flush()
"""


@dataclass(frozen=True)
class Choice:
    """Which runs: ended before so many seconds, with these statuses, like this expression of `sync --filter`."""

    older_than: float | None = None
    statuses: tuple[str, ...] = ()
    expression: str | None = None


@dataclass(frozen=True)
class Pruned:
    """What was found, and of it what was put into the trash and what was removed for good."""

    runs: tuple[Run, ...]
    deleted: tuple[str, ...]
    removed: tuple[str, ...]


def seconds(text: str) -> float:
    """An age: 90d, 12h, 2w.  Raises BadInputError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([mhdwy])\s*", text.lower())
    if not found:
        raise BadInputError(f"{text!r} is no age.", "for example 90d, 12h or 2w")
    return float(found[1]) * _UNITS[found[2]]


def statuses(text: str) -> tuple[str, ...]:
    """Statuses joined by commas.  Raises BadInputError for one that there is not."""
    given = tuple(one.strip().upper() for one in text.split(",") if one.strip())
    unknown = [one for one in given if one not in _STATUS]
    if unknown or not given:
        raise BadInputError(f"{text!r} is no status.", f"use {', '.join(_STATUS)}, joined by commas.")
    return given


def prune(
    source: str,
    choice: Choice,
    confirm: Callable[[tuple[Run, ...]], bool],
    *,
    gc: bool = False,
    mlflow: str | None = None,
) -> Pruned:
    """Deletes runs as MLflow's page does: they can be restored until `mlflow gc`.

    A run that may be at work (RUNNING, SCHEDULED) is taken only where its status is asked for.
    confirm: is given the runs, if there are any, and says whether to delete them.
    gc: then removes these runs and their artifacts for good, by `mlflow gc`.  mlflow: see `find_mlflow`.
    Raises BadInputError where nothing was chosen, or the source can't be pruned this way.
    """
    if choice.older_than is None and not choice.statuses and not choice.expression:
        raise BadInputError("Nothing says which runs.", "for example: --older-than 90d --status FAILED,KILLED")
    refuse(source, "prune")
    wanted = filters.chosen(choice.expression)
    with open_store(source) as store:
        if store.kind == "recordings":
            raise BadInputError(
                f"{store.location} is a folder of recordings, of which no single runs are deleted.",
                "labtrack prune FOLDER --synced --older-than 30d removes those that a server has.",
            )
        runs = tuple(
            run
            for run in store.runs()
            if run.lifecycle_stage == ACTIVE and _is_chosen(run, choice) and (wanted is None or wanted(store, run))
        )
        if store.kind == "server" and gc:
            raise BadInputError(
                "`mlflow gc` needs the server's own database, which is not reached from here.",
                "leave --gc away, and ask the server's admin to run `mlflow gc`.",
            )
        # what would stop it is told before anybody is asked
        found = None if store.kind == "server" else _usable(store, find_mlflow(mlflow, ui=False))
        if not runs or not confirm(runs):
            return Pruned(runs, (), ())
        ids = [run.id for run in runs]
        if found is None:
            return Pruned(runs, tuple(_delete_at_server(source, ids)), ())
        address = _address(store)
    deleted = tuple(_delete(found, address, ids))
    if gc:
        for start in range(0, len(deleted), _AT_ONCE):
            chunk = ",".join(deleted[start : start + _AT_ONCE])
            _call(found, ["-m", "mlflow", "gc", "--backend-store-uri", address, "--run-ids", chunk], address)
    return Pruned(runs, deleted, deleted if gc else ())


def _is_chosen(run: Run, choice: Choice) -> bool:
    if choice.statuses:
        if run.status not in choice.statuses:
            return False
    elif run.status in state.OPEN:
        return False
    if choice.older_than is None:
        return True
    ended = run.end_time or run.start_time
    return ended is not None and ended / 1000 < time.time() - choice.older_than


def _usable(store: Store, mlflow: Mlflow) -> Mlflow:
    if type(store) is SqliteStore:
        if store.schema != mlflow.schema:
            raise BadInputError(
                f"{store.location} has the schema {store.schema or 'of an old version'}, and MLflow {mlflow.version} "
                f"deletes only in {mlflow.schema}.",
                "use the MLflow that writes it: --mlflow PATH",
            )
    elif store.kind != "files":
        raise BadInputError(
            f"{store.location} is not a store that MLflow deletes in.", "name a SQLite file, mlruns or a server."
        )
    return mlflow


def _address(store: Store) -> str:
    path = Path(store.location).absolute()
    return f"sqlite:///{path}" if type(store) is SqliteStore else path.as_uri()


def _delete(mlflow: Mlflow, address: str, ids: Sequence[str]) -> list[str]:
    said = _call(mlflow, ["-c", _DELETE], address, json.dumps(list(ids)))
    return [line.split()[1] for line in said.splitlines() if line.startswith("deleted ")]


def _call(mlflow: Mlflow, arguments: list[str], address: str, given: str = "") -> str:
    env = {**environment(), "MLFLOW_ALLOW_FILE_STORE": "true", "LABTRACK_PRUNED": address}
    env["MLFLOW_TRACKING_URI"] = address  # of `mlflow gc`
    done = subprocess.run(
        [mlflow.python, *arguments], input=given, env=env, cwd="/", capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        count = done.stdout.count("deleted ")
        raise LabtrackError(
            f"MLflow failed after {count} runs:\n{(done.stderr or done.stdout).strip()[-_SAID:]}",
            "run the same command again; what is deleted is not looked at any more.",
        )
    return done.stdout


def _delete_at_server(source: str, ids: Sequence[str]) -> list[str]:
    from labtrack.tracking.address import parse
    from labtrack.tracking.destination import Destination
    from labtrack.tracking.http import Http

    server = Destination(Http(parse(source, "The source", "{}"), os.environ), "")
    for run_id in ids:
        server.delete_run(run_id)
    return list(ids)
