"""A tracking server as a source of results: runs by the thousand, histories only of metrics that are asked for.

The last values come with the runs.  Anything else needs the history of a metric, which is a call for each run; what was
read is kept in a file of the user's cache folder, and used again as long as the metric's last point and the run's end
are the same.  A point that is logged later with an earlier step is not seen until then.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import sys
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from labtrack.errors import LabtrackError
from labtrack.files import home, make_private_folder
from labtrack.stores.model import Having, MetricPoint, Run
from labtrack.stores.server import ServerStore
from labtrack.stores.summary import LAST, PARTS, Summaries, Summary
from labtrack.stores.summing import summarise

_CALLS = 8  # at once
_LARGEST = 2_000_000_000  # bytes of the cache of one server, beyond which it begins anew
_MADE = "CREATE TABLE IF NOT EXISTS history (run TEXT, metric TEXT, mark TEXT, points BLOB, PRIMARY KEY (run, metric))"


def cache_folder(env: Mapping[str, str]) -> Path:
    """Where histories are kept: $XDG_CACHE_HOME/labtrack/results, or what the platform has for it."""
    if env.get("XDG_CACHE_HOME"):
        base = Path(env["XDG_CACHE_HOME"])
    elif sys.platform == "win32":
        base = Path(env.get("LOCALAPPDATA") or home(env))
    else:
        base = home(env) / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return base / "labtrack" / "results"


class Served:
    """A server's runs and points; everything else is the store's own."""

    def __init__(self, store: ServerStore, env: Mapping[str, str] = os.environ) -> None:
        self._store = store
        self._last: dict[str, tuple[Run, dict[str, MetricPoint]]] = {}
        self._cache = _Cache(cache_folder(env), store.location)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self._cache.close()
        self._store.close()

    def runs(self, experiment_id: str | None = None, *, deleted: bool = False, having: Having = ()) -> Iterator[Run]:
        """All runs, without their models."""
        for run, last in self._store.searched(experiment_id, deleted=deleted):
            self._last[run.id] = run, last
            yield run

    def points(
        self, run_id: str, skip: Mapping[str, int] | None = None, keys: Collection[str] | None = None
    ) -> Iterator[MetricPoint]:
        """The points of a run's metrics."""
        if skip:
            yield from self._store.points(run_id, skip, keys)
            return
        for _, points in self._histories([run_id], keys):
            yield from points

    def summaries(
        self, run_ids: Sequence[str], keys: Collection[str] | None = None, parts: Collection[str] = PARTS
    ) -> Summaries:
        """What the points of some runs come to."""
        found: Summaries = {run_id: {} for run_id in run_ids}
        if set(parts) <= {LAST}:
            for run_id in run_ids:
                for key, point in self._last_of(run_id)[1].items():
                    if keys is None or key in keys:
                        found[run_id][key] = Summary(last=point.value, last_step=point.step, latest=point.timestamp)
            return found
        for run_id, points in self._histories(run_ids, keys):
            found[run_id].update(summarise(points, parts))
        return found

    def latest(self, run_id: str) -> dict[str, MetricPoint]:
        """The last point of each metric of a run."""
        return self._last_of(run_id)[1]

    def _last_of(self, run_id: str) -> tuple[Run, dict[str, MetricPoint]]:
        if run_id not in self._last:
            self._last[run_id] = self._store.run(run_id), self._store.latest(run_id)
        return self._last[run_id]

    def _histories(
        self, run_ids: Sequence[str], keys: Collection[str] | None
    ) -> Iterator[tuple[str, list[MetricPoint]]]:
        """The points of each metric of each run, from the cache or by some calls at once."""
        asked = []
        for run_id in run_ids:
            run, last = self._last_of(run_id)
            for key, point in last.items():
                if keys is None or key in keys:
                    mark = json.dumps([point.step, point.timestamp, point.value, run.end_time])
                    kept = self._cache.get(run_id, key, mark)
                    if kept is None:
                        asked.append((run_id, key, mark))
                    else:
                        yield run_id, kept
        if not asked:
            return
        executor = ThreadPoolExecutor(_CALLS)
        try:
            answers = executor.map(lambda one: list(self._store.history(one[0], one[1])), asked)
            for (run_id, key, mark), points in zip(asked, answers):
                self._cache.put(run_id, key, mark, points)
                yield run_id, points
            self._cache.save()
        finally:
            executor.shutdown(cancel_futures=True)


class _Cache:
    """Histories of one server in a file that only its owner can read; a file that can't be used costs only time."""

    def __init__(self, folder: Path, location: str) -> None:
        self._database: sqlite3.Connection | None = None
        path = folder / f"{hashlib.sha256(location.encode()).hexdigest()[:32]}.db"
        for _ in range(2):
            try:
                make_private_folder(folder)
                if path.exists() and path.stat().st_size > _LARGEST:
                    path.unlink()
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
                self._database = sqlite3.connect(path, timeout=5)
                self._database.execute(_MADE)
                return
            except sqlite3.OperationalError:  # locked, a full disk
                self.close()
                return
            except sqlite3.DatabaseError:  # damaged
                self.close()
                with contextlib.suppress(OSError):
                    path.unlink()
            except (OSError, LabtrackError):
                return

    def get(self, run_id: str, key: str, mark: str) -> list[MetricPoint] | None:
        """What is kept, if the metric still ends so."""
        if self._database is None:
            return None
        try:
            sql = "SELECT points FROM history WHERE run = ? AND metric = ? AND mark = ?"
            row = self._database.execute(sql, (run_id, key, mark)).fetchone()
            found = json.loads(zlib.decompress(row[0])) if row else None
        except (sqlite3.Error, zlib.error, ValueError):
            return None
        return None if found is None else [MetricPoint(key, value, time, step) for value, time, step in found]

    def put(self, run_id: str, key: str, mark: str, points: Sequence[MetricPoint]) -> None:
        """Keeps a history."""
        if self._database is not None:
            packed = zlib.compress(json.dumps([(one.value, one.timestamp, one.step) for one in points]).encode(), 1)
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("REPLACE INTO history VALUES (?, ?, ?, ?)", (run_id, key, mark, packed))

    def save(self) -> None:
        """Writes what was kept."""
        if self._database is not None:
            with contextlib.suppress(sqlite3.Error):
                self._database.commit()

    def close(self) -> None:
        """Lets go of the file."""
        if self._database is not None:
            self.save()
            self._database.close()
            self._database = None
