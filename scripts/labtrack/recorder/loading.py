"""What other processes have recorded in the folder, taken into this process's database when it asks for it."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from labtrack.recorder.live import Live, job_mark
from labtrack.stores import journals
from labtrack.stores.journals import Header
from labtrack.stores.replay import BrokenRecordError, Replay

_PATIENCE = 5.0  # seconds that the training waits for it
_ID = re.compile(r"[0-9a-f]{32}|m-[0-9a-f]{32}|tr-[0-9a-f]{32}|[1-9]\d{14}")


class _Record(NamedTuple):
    header: Header
    record: Sequence[Any]


def load(live: Live, given: Sequence[Any], *, named: bool) -> bool:
    """Takes in what belongs to the ids among some arguments; says whether there was anything.

    named: whether they may be names in the model registry, which is small and is taken in as a whole.
    """
    ids = [one for one in given if isinstance(one, str) and _ID.fullmatch(one)]
    needles = [one.encode() for one in ids]
    if named and not ids:
        needles = [b'"registered_model', b'"model_version']
    if not needles or tuple(needles) in live.looked_for:
        return False
    live.looked_for.add(tuple(needles))
    return _take(live, needles, lambda _: True)


def load_job(live: Live) -> None:
    """Takes in the runs of this job that other processes have recorded."""
    mark = f"-{job_mark(live.settings.job)}{journals.SUFFIX}"
    needle = live.settings.job.encode()
    found = _collect(live, [needle], lambda path: path.name.endswith(mark))
    runs = {one.record[4][_column(one, "run_uuid")] for one in found if one.record[3] == "tags"}
    if runs:
        _take(live, [run.encode() for run in sorted(runs)], lambda _: True)


def _column(one: _Record, name: str) -> int:
    return one.header.tables[one.record[3]].columns.index(name)


def _take(live: Live, needles: Sequence[bytes], wanted: Callable[[Path], bool]) -> bool:
    records = _collect(live, needles, wanted)
    if not records:
        return False
    with live.unrecorded() as database:
        _apply(live, database, records)
    # the experiments that the runs belong to
    known = {row[0] for row in live.database.execute("SELECT experiment_id FROM experiments").fetchall()}
    missing = {row[0] for row in live.database.execute("SELECT experiment_id FROM runs").fetchall()} - known
    if missing:
        records = _collect(live, [f"{one}".encode() for one in missing], wanted)
        with live.unrecorded() as database:
            _apply(live, database, [one for one in records if one.record[3] in ("experiments", "experiment_tags")])
    return True


def _apply(live: Live, database: sqlite3.Connection, records: Iterable[_Record]) -> None:
    replay = Replay(database, live.base)
    replay.prepare()
    known = {run_id for (run_id,) in database.execute("SELECT run_uuid FROM runs").fetchall()}  # which went on here
    header: Header | None = None
    for header, record in records:
        if _run_of(header, record) in known:
            continue
        try:
            replay.apply(header, record)
        except BrokenRecordError as error:
            live.writer.warn("broken", f"labtrack: a record of another process can't be used: {error}")
    if header is not None:
        replay.again(header)


def _run_of(header: Header, record: Sequence[Any]) -> Any:
    _, _, kind, first, *rest = record
    if kind == "m":
        return first
    columns = header.tables[first].columns if first in header.tables else ()
    at = columns.index("run_uuid") if "run_uuid" in columns else -1
    return rest[0][at] if kind in ("i", "u") and 0 <= at < len(rest[0]) else None


def _collect(live: Live, needles: Sequence[bytes], wanted: Callable[[Path], bool]) -> list[_Record]:
    """The records with one of the needles; those that could be read in time."""
    found: list[_Record] = []
    ended = threading.Event()

    def look() -> None:
        try:
            own = live.writer.path
            for path in reversed(journals.journals(live.root)):
                if path != own and wanted(path):
                    found.extend(_records(path, needles, ended))
        except OSError as error:
            live.writer.warn("read", f"labtrack: {live.root} can't be read: {error.strerror}")
        finally:
            ended.set()

    thread = threading.Thread(target=look, name="labtrack-look", daemon=True)
    thread.start()
    if not ended.wait(_PATIENCE):
        ended.set()
        what = f"labtrack: not all of {live.root} could be read for runs of other processes in {_PATIENCE:.0f} s"
        live.writer.warn("slow", what)
    return sorted(found, key=lambda one: one.record[1])


def _records(path: Path, needles: Sequence[bytes], ended: threading.Event) -> Iterator[_Record]:
    header: Header | None = None
    try:
        for one in journals.read(path, needles=[b',"h",', *needles]):
            if ended.is_set():
                return
            if one.record is None:
                continue
            if one.record[2] == "h":
                header = Header.of(one.record[3])
            elif header is not None:
                yield _Record(header, one.record)
    except (OSError, ValueError):
        return
