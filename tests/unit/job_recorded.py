"""A folder of recordings as jobs leave it, written without MLflow."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from journalled import HEADER, experiment, run, tag, write

from labtrack.run import recording
from labtrack.stores.model import Run


def record(
    folder: Path, *, status: str = "RUNNING", tags: Mapping[str, str] | None = None, user: str = "", name: str = "a run"
) -> str:
    """One process's recording of one run; gives its id."""
    now = int(time.time() * 1000)
    run_id = uuid.uuid4().hex
    made = run(run_id, name=name, user_id=user, status=status, start_time=now, experiment_id=7)
    records = [experiment(7, "jobs", now), made, *(tag(key, value, run_id) for key, value in (tags or {}).items())]
    # a second ago: what is written by the test comes later
    write(folder, f"{now}-node1-{run_id[:8]}", *records, clock=now - 1000, header=replace(HEADER, pid=1, started=now))
    return run_id


def left(folder: Path, key: str = "c/5/batch", **more: object) -> str:
    """A run that nobody ended."""
    tags = {"labtrack.job": key, "labtrack.attempt": "0", **more.pop("tags", {})}
    return record(folder, tags=tags, **more)


def read(folder: Path, run_id: str) -> Run:
    with recording.opened(folder) as store:
        return store.run(run_id)
