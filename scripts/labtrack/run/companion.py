"""The process beside the training, which sends what is recorded: run as `python -m labtrack.run.companion`.

Its standard input has a line of JSON that says what to do, and later one that says how the command ended; the end of
the input without that means that the parent was killed.  Its standard output has one line of JSON at the end.  Whatever
hangs or fails here costs the training nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from labtrack.errors import Exit, LabtrackError
from labtrack.run import attaching, ending, recording
from labtrack.run.prepare import said_of
from labtrack.run.task import Task, Told
from labtrack.run.ways import Ways
from labtrack.sync import Options, Report, Syncer, opened
from labtrack.sync.watch import watch
from labtrack.tracking.http import AwayError

_EVERY = 2.0  # seconds between two looks at the recording
_PAUSE = 1.0  # seconds between two tries
_LOCKED_PAUSE = 10.0  # the same while another job of this folder sends for all
_LOCKED = 15.0  # seconds after the end for which it is waited for
_ATTACHED = 30.0  # seconds between two looks for portions of the output
_PATIENCE = "20"  # seconds for a call: then another way is looked for
_IGNORED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTSTP", "SIGTTIN", "SIGTTOU")


class Companion:
    """One job's.  log: a file for what is worth a line."""

    def __init__(self, task: Task, env: Mapping[str, str]) -> None:
        self.task, self._env = task, {**env, "LABTRACK_SYNC_PATIENCE": env.get("LABTRACK_SYNC_PATIENCE") or _PATIENCE}
        self.folder = Path(task.folder)
        self.told = Told()
        self.ended = threading.Event()
        self._deadline = float("inf")
        self._attached = 0.0
        self._attacher = attaching.Attacher(self.folder, task.key, task.attempt)
        self._ways: Ways | None = None
        self._way = ""
        self._said = ""
        self._locked = ""  # who sends the folder in this process's place

    def say(self, text: str) -> None:
        """Writes a line into the job's log, and the same only once while nothing else happens."""
        same = re.sub("[0-9]+", "", text)
        if same == self._said:
            return
        self._said = same
        sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n")  # a log, which buffers no line

    def end(self, code: int | None, requeued: bool) -> None:
        """The command has ended.  code: None where nobody can say, since the parent was killed."""
        self._deadline = time.monotonic() + self.task.sync_timeout
        if code is not None and recording.holds_recordings(self.folder):
            try:
                closed = ending.close_runs(self.folder, self.task.key, self.task.attempt, code, requeued=requeued)
                self.told.closed = len(closed)
            except Exception as error:  # whatever it is, the rest is done
                self._trouble(f"the runs that the command left open are not ended: {said_of(error)}")
        self.ended.set()

    def go_on(self) -> None:
        """Sends, until the command has ended and all is sent, or the time is up."""
        if self.task.destination:
            self._ways = Ways(self.task.destination, self.task.gateways, self._env, self.say)
        try:
            while not self.ended.is_set():
                self._attach()
                self._send_for_now()
                self.ended.wait(_LOCKED_PAUSE if self._locked else _PAUSE)
            self._attach(last=True)
            if self._ways is not None and recording.holds_recordings(self.folder):
                self._send_the_rest(self._ways)
        finally:
            if self._ways is not None:
                self._ways.close()

    def _send_for_now(self) -> None:
        """Follows the recordings while there is a way, and something to send."""
        way = self._ways.best if self._ways is not None else ""
        if not way or self._ways is None or not recording.holds_recordings(self.folder):
            return
        self._way = way
        with self._told("while the job ran"), self._ways.taken(way), self._syncer() as syncer:
            report = watch(syncer, _EVERY, self._sleep, self._is_over)
            self._take(report)

    def _is_over(self) -> bool:
        return self.ended.is_set() or (self._ways is not None and self._ways.best != self._way)

    def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)
        self._attach()

    def _send_the_rest(self, ways: Ways) -> None:
        locked_until = time.monotonic() + _LOCKED
        while time.monotonic() < self._deadline and not self.told.sent:
            if self._locked and time.monotonic() > locked_until:
                self._trouble(f"another job of this folder sends them: {self._locked}")
                return
            way = ways.wait(self._deadline - time.monotonic())
            if way:
                with self._told("after the end"), ways.taken(way), self._syncer() as syncer:
                    self._take(syncer.once(), last=True)
            if not self.told.sent:
                time.sleep(_PAUSE)
        if not self.told.sent and not ways.best:
            self._trouble(f"{self.task.destination} can't be reached: {ways.why}")

    def _take(self, report: Report, *, last: bool = False) -> None:
        self.told.way, self.told.runs = self._way or self.told.way, len(report.planned)
        self.told.sent = last and report.exit_code in (Exit.OK, Exit.DAMAGED)
        for run_id, why in report.failed.items():
            self.say(f"{run_id}: {'; '.join(why)}")
        if last and not self.told.sent and report.failed:
            self._trouble(f"{len(report.failed)} runs are not sent: {next(iter(report.failed.values()))[0]}")
        if report.stopped:
            self.say(report.stopped.replace("\n", " "))

    @contextlib.contextmanager
    def _told(self, when: str) -> Any:
        try:
            yield
            self._locked = ""
        except LabtrackError as error:
            self._locked = error.what if error.code is Exit.LOCKED else ""
            if error.code is not Exit.LOCKED and not isinstance(error, AwayError):
                self._trouble(said_of(error))
            self.say(f"{when}: {said_of(error)}")
        except Exception as error:  # the next try may do
            self._trouble(said_of(error))
            self.say(f"{when}: {type(error).__name__}: {error}")

    def _syncer(self) -> contextlib.AbstractContextManager[Syncer]:
        return opened(recording.address_of(self.folder), self.task.destination, Options(env=self._env), _Shows(self))

    def _attach(self, *, last: bool = False) -> None:
        if last or time.monotonic() - self._attached > _ATTACHED:
            try:
                self._attacher.attach(last=last)
            except Exception as error:  # a later look may do
                self.say(f"what belongs to the job is not attached yet: {type(error).__name__}: {error}")
            self._attached = time.monotonic()

    def _trouble(self, text: str) -> None:
        if text not in self.told.problems:
            self.told.problems = [*self.told.problems, text][-3:]
        self.say(text)


class _Shows:
    """Progress of a sync: only what is worth a line."""

    def __init__(self, companion: Companion) -> None:
        self._companion = companion

    def begin(self, totals: object) -> None:
        """Nothing."""

    def update(self, runs: int, points: int, sent: int) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Writes it down."""
        self._companion.say(text)

    def end(self) -> None:
        """Nothing."""


def _listen(companion: Companion) -> None:
    """Waits for the word that the command has ended."""
    line = sys.stdin.readline()
    try:
        said = json.loads(line) if line.strip() else {}
    except ValueError:
        said = {}
    companion.end(said.get("code"), bool(said.get("requeued")))
    # the parent waits so long; a thread that hangs in a call shall not keep the process for ever
    time.sleep(companion.task.sync_timeout + 5)
    os._exit(Exit.FAILED)


def main() -> None:
    """Does it, and tells."""
    for name in _IGNORED:  # what Slurm sends to all of a job is the command's; the parent says when to end
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    given = json.loads(sys.stdin.readline())
    task = Task(**{**given, "gateways": tuple(given.get("gateways", ()))})
    companion = Companion(task, os.environ)
    threading.Thread(target=_listen, args=(companion,), daemon=True, name="labtrack-listen").start()
    companion.go_on()
    with contextlib.suppress(OSError):
        sys.stdout.write(json.dumps(asdict(companion.told)) + "\n")
        sys.stdout.flush()
    os._exit(Exit.OK)  # no thread that hangs in a call keeps the process


if __name__ == "__main__":
    main()
