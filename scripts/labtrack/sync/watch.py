"""Following a recording while it is being written."""

from __future__ import annotations

import time
from collections.abc import Callable

from labtrack.errors import LabtrackError
from labtrack.stores.model import Run
from labtrack.sync import state
from labtrack.sync.main import Syncer
from labtrack.sync.report import Report

EVERY = 2.0  # seconds
_Seen = dict[str, str]


def watch(syncer: Syncer, every: float = EVERY, sleep: Callable[[float], None] = time.sleep) -> Report:
    """Syncs again and again, until no run is being recorded any more; the report is of all of it.

    The server is only spoken to when the recording has grown.  While it is away, the recording goes on and
    is sent later.  Raises what a sync raises, if the first one does.
    """
    # Looked at before each sync, which then sees no less: a run that ends while it is sent is sent once more.
    recording, seen = _look(syncer)
    report = syncer.once()
    while not report.interrupted and (recording or _unsent(report)):
        sleep(every)
        recording, now = _look(syncer)
        if now == seen and not _unsent(report):
            continue
        try:
            changed = [one for one, what in now.items() if seen.get(one) != what]
            report = _together(report, syncer.once(() if report.stopped else changed))
            seen = now
        except LabtrackError as error:
            report.stopped = str(error)
            syncer.meter.say(str(error).replace("\n", " "))
    return report


def _look(syncer: Syncer) -> tuple[bool, _Seen]:
    """Whether a run is being recorded, or none has begun; and what tells whether the recording has grown.

    In this order: a run that ends in between has then grown.
    """
    syncer.source.refresh()
    wanted = set(syncer.options.run_ids)

    def runs(deleted: bool) -> list[Run]:
        return [run for run in syncer.source.runs(deleted=deleted) if not wanted or run.id in wanted]

    here = runs(deleted=False)
    recording = not here or any(run.status in state.OPEN for run in here)
    # counting the points of all that have ended, every few seconds, would keep a login node busy
    return recording, {
        run.id: syncer.source.digest(run) if run.status in state.OPEN else f"{run.status} {run.end_time} {run.tags}"
        for run in runs(deleted=syncer.options.deleted)
    }


def _unsent(report: Report) -> bool:
    return bool(report.stopped)


def _together(before: Report, after: Report) -> Report:
    """The report of both: what was sent by each, what failed in the later one."""
    known = {one.run_id: one for one in before.outcomes}
    for one in after.outcomes:
        earlier = known.get(one.run_id)
        if earlier is not None:
            one.created = earlier.created
            one.points, one.bytes = one.points + earlier.points, one.bytes + earlier.bytes
            one.artifacts += earlier.artifacts
        known[one.run_id] = one
    after.outcomes = list(known.values())
    after.seconds += before.seconds
    after.linked += before.linked
    after.notes = list(dict.fromkeys(before.notes + after.notes))
    planned = {one.run_id: one for one in after.planned}
    planned.update({one.run_id: one for one in before.planned})
    after.planned = list(planned.values())
    again = {one.run_id for one in after.outcomes} | set(after.left)
    after.failed.update({run_id: why for run_id, why in before.failed.items() if run_id not in again})
    return after
