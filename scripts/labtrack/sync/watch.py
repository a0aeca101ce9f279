"""Following a recording while it is being written."""

from __future__ import annotations

import time
from collections.abc import Callable

from labtrack.errors import LabtrackError
from labtrack.stores.model import Run
from labtrack.sync import state
from labtrack.sync.faults import FAULTS
from labtrack.sync.main import Syncer
from labtrack.sync.report import Report
from labtrack.tracking.http import AwayError

EVERY = 2.0  # seconds
_SLICE = 0.2  # seconds of sleep between two looks at whether to end
_SHARE = 20  # a look at the whole recording takes at most this part of the time


def watch(
    syncer: Syncer,
    every: float = EVERY,
    sleep: Callable[[float], None] = time.sleep,
    ends: Callable[[], bool] = lambda: False,
    renew: Callable[[], object] | None = None,
) -> Report:
    """Syncs again and again, until no run is being recorded any more; the report is of all of it.

    The server is only spoken to when the recording has grown.  While it is away, the recording goes on and
    is sent later.  ends: says that the watching is to end: then everything is sent once more.
    renew: brings a copy of a recording that is elsewhere up to date, before each look.
    Raises what a sync raises, if the first one does and the server is not only away.
    """
    look, report = _Look(syncer), Report(syncer.source.location, syncer.http.base)
    first, reached, partly = True, False, False
    changed: list[str] = []
    while True:
        last = ends() or not look.recording
        whole = first or bool(report.stopped) or (last and partly)
        if whole or changed:
            try:
                report = _together(report, syncer.once(() if whole else changed))
                first, reached, partly = False, True, not whole
            except LabtrackError as error:
                if first and not isinstance(error, AwayError):
                    raise
                report.stopped = str(error)
                syncer.meter.say(str(error).replace("\n", " "))
        if report.interrupted or (last and not partly and (ends() or not report.stopped or not reached)):
            return report
        try:
            if not (last and partly):
                _wait(every, sleep, ends)
                _renewed(syncer, renew)
            # looked at before each sync, which then sees no less: a run that ends while it is sent is sent once more
            changed = look.again()
        except KeyboardInterrupt:
            report.interrupted = True
            return report


def _renewed(syncer: Syncer, renew: Callable[[], object] | None) -> None:
    """What goes wrong with it is told: the recording is looked at as it was, and there is a next time."""
    try:
        if renew:
            renew()
    except LabtrackError as error:
        syncer.meter.say(" ".join(error.what.split()))


def _wait(every: float, sleep: Callable[[float], None], ends: Callable[[], bool]) -> None:
    left = every
    while left > 0 and not ends():
        sleep(min(left, _SLICE))
        left -= _SLICE


class _Look:
    """What the recording has, as cheaply as it can be told.

    recording: whether a run is being recorded, or none has begun; only runs that are asked for count.
    Runs that have ended are looked at again now and then, so that a recording of many is not read all the time.
    """

    def __init__(self, syncer: Syncer) -> None:
        self._syncer = syncer
        self._seen: dict[str, str] = {}
        self._open: list[str] = []
        self._none_yet = True
        self._next_whole = 0.0
        self.again()

    @property
    def recording(self) -> bool:
        """Whether more may come."""
        return self._none_yet or bool(self._open)

    def again(self) -> list[str]:
        """Looks again; gives the runs that have grown or are new."""
        began = time.monotonic()
        before = dict(self._seen)
        try:
            if began >= self._next_whole:
                self._whole()
                self._next_whole = began + _SHARE * (time.monotonic() - began)
            else:
                self._note([self._syncer.source.store.run(one) for one in self._open])
        except FAULTS as error:  # a file that can't be read at this moment; there is a next time
            self._syncer.meter.say(" ".join(str(error).split()))
        return [one for one, what in self._seen.items() if before.get(one) != what]

    def _whole(self) -> None:
        source, options = self._syncer.source, self._syncer.options
        source.refresh()
        self._none_yet = True

        def runs(deleted: bool) -> list[Run]:
            found = []
            for run in source.runs(deleted=deleted):
                self._none_yet = False
                if (not options.run_ids or run.id in options.run_ids) and self._wanted(run):
                    found.append(run)
            return found

        # a deleted run that is RUNNING was left so for ever
        self._open = [run.id for run in runs(deleted=False) if run.status in state.OPEN]
        self._note(runs(deleted=True) if options.deleted else runs(deleted=False))

    def _wanted(self, run: Run) -> bool:
        wanted = self._syncer.options.wanted
        try:
            return wanted is None or wanted(self._syncer.source.store, run)
        except FAULTS:
            return False  # the sync itself tells

    def _note(self, runs: list[Run]) -> None:
        """Takes up how runs are now; those that have ended in between have then grown."""
        for run in runs:
            if run.status in state.OPEN:
                self._seen[run.id] = self._syncer.source.digest(run)
            else:
                # counting the points of all that have ended, every few seconds, would keep a login node busy
                self._seen[run.id] = f"{run.status} {run.end_time} {run.tags}"
                if run.id in self._open:
                    self._open.remove(run.id)


def _together(before: Report, after: Report) -> Report:
    """The report of both: what was sent by each, what failed or is missing in the later one."""
    again = {one.run_id for one in (*after.planned, *after.models)} - set(after.left)
    for mine, earlier in ((after.outcomes, before.outcomes), (after.model_outcomes, before.model_outcomes)):
        known = {one.run_id: one for one in earlier}
        for one in mine:
            first = known.get(one.run_id)
            if first is not None:
                one.created = first.created
                one.points, one.bytes = one.points + first.points, one.bytes + first.bytes
                one.artifacts += first.artifacts
            known[one.run_id] = one
        mine[:] = known.values()
    after.seconds += before.seconds
    after.linked += before.linked
    after.registered += before.registered
    after.names += before.names
    after.experiments = list(dict.fromkeys(before.experiments + after.experiments))
    after.notes = list(dict.fromkeys(before.notes + after.notes))
    for name, counted in before.traces.items():
        none_sent = {**counted, "sent": 0, "there": counted["there"] + counted["sent"]}
        traces = after.traces.setdefault(name, none_sent)
        traces["sent"], traces["there"] = traces["sent"] + counted["sent"], traces["there"] - counted["sent"]
    for planned, earlier_ones in ((after.planned, before.planned), (after.models, before.models)):
        endings = {one.run_id: one.ending for one in planned}
        all_planned = {one.run_id: one for one in planned}
        all_planned.update({one.run_id: one for one in earlier_ones})
        for run_id, ending in endings.items():
            all_planned[run_id].ending = ending
        planned[:] = all_planned.values()
    for now, then in (
        (after.failed, before.failed), (after.damaged, before.damaged), (after.accepted, before.accepted),
    ):  # fmt: skip
        now.update({name: why for name, why in then.items() if name not in again and name not in now})
    return after
