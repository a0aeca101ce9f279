"""The thread that writes a journal: what may hang or fail is done here, nothing of it in the training's threads."""

from __future__ import annotations

import atexit
import contextlib
import errno
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from multiprocessing import util
from pathlib import Path
from typing import Any

from labtrack.stores import journals

log = logging.getLogger("labtrack.recorder")

TICK = 0.5  # seconds between two writes, at most
BUFFER = 256 * 2**20  # bytes that are kept where they can't be written
POINT_BYTES = 256  # of a point that waits, as a tuple
MOST_POINTS = BUFFER // 4 // POINT_BYTES
_AT_ONCE = 100  # points in a record: encoding more would keep the training from Python's lock
_PIECE = 1 << 20  # bytes of one write
_RETRY = 2.0  # seconds until a failed write is tried again
_AT_EXIT = 10.0  # seconds for the last write
_STUCK = 1.0  # seconds after which a write that does not come back is no reason to wait
_ROWS = "other records"
Point = tuple[Any, ...]  # run, key, value, timestamp, step, is_nan


class Writer:
    """One journal.

    begin: gives the path of the journal and the kinds and contents of its first records; called in the thread.
    lost: gives the records that tell what was lost of runs, by run.  flush: seconds until what was given is on disk.
    now_and_then: is called by the thread between two writes.
    """

    def __init__(
        self,
        begin: Callable[[], tuple[Path, list[tuple[Any, ...]]]],
        lost: Callable[[dict[str, str]], list[tuple[Any, ...]]],
        flush: float,
        now_and_then: Callable[[], None] = lambda: None,
    ) -> None:
        self._begin, self._lost_records, self._flush, self._now_and_then = begin, lost, flush, now_and_then
        self._points: deque[Point] = deque()
        self._rows: deque[tuple[int, int, tuple[Any, ...]]] = deque()  # clock, size, record
        self._given, self._taken = 0, 0  # bytes of rows, by the callers and by the thread
        self._framed = 0  # bytes of records that are not on disk
        self._frames: deque[bytes] = deque()
        self._lost: Counter[str] = Counter()
        self._lost_rows = 0
        self._lost_before: Counter[str] = Counter()  # and told: a later tag stands in for the earlier
        self._why = ""
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._wake = threading.Event()
        self._asked = 0  # flushes that were asked for, and done
        self._done = 0
        self._written = threading.Condition()
        self._descriptor = -1
        self._whole = 0  # bytes of the journal that are whole records
        self._safe = 0  # bytes of it that are on disk
        self._unsynced: list[bytes] = []  # records behind these
        self._torn = False
        self._number = 0
        self._clock = 0
        self._warned: set[str] = set()
        self._busy_since = 0.0
        self._synced = 0.0
        self._dirty = False
        self._failed = 0.0
        self._ending = False
        self.runs: set[str] = set()
        self.path: Path | None = None

    def point(self, point: Point) -> None:
        """Takes a metric point."""
        if len(self._points) >= MOST_POINTS and not self._has_room():
            self._lost[point[0]] += 1
            return
        self._points.append(point)
        if self._thread is None:
            self._start()

    def _has_room(self) -> bool:
        """Waits for a thread that writes but is slower than the training; one that can't write is not waited for."""
        end = time.monotonic() + _STUCK
        while len(self._points) >= MOST_POINTS and not self.is_stuck and time.monotonic() < end:
            self._wake.set()
            time.sleep(0.001)
        return len(self._points) < MOST_POINTS

    def rows(self, records: Sequence[tuple[Any, ...]], run_id: str = "") -> None:
        """Takes records, each a kind and what belongs to it."""
        clock = self.now()
        for one in records:
            size = sum(len(item) for item in one[-1] if isinstance(item, (str, bytes))) + 200
            if self._given - self._taken + size > BUFFER // 2:
                self._lost_rows += 1
                continue
            self._given += size
            self._rows.append((clock, size, one))
        if self._thread is None:
            self._start()

    def now(self) -> int:
        """The clock in ms, which never goes back."""
        self._clock = max(self._clock, int(time.time() * 1000))
        return self._clock

    def written(self, patience: float) -> bool:
        """Waits until all that was given so far is in the file, or for so many seconds; says whether it is."""
        if self._thread is None:
            return not (self._points or self._rows or self._frames)
        if self.is_stuck and not self._ending:
            return False
        with self._written:
            self._asked += 1
            asked = self._asked
            self._wake.set()
            return self._written.wait_for(lambda: self._done >= asked, patience)

    @property
    def stuck_for(self) -> float:
        """Seconds since which a write has not come back."""
        since = self._busy_since
        return time.monotonic() - since if since > 0 else 0.0

    @property
    def is_stuck(self) -> bool:
        """Whether the file system takes long, or the last write failed."""
        return bool(self._failed) or self.stuck_for > _STUCK

    def warn(self, kind: str, what: str) -> None:
        """Tells something once."""
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning("%s", what)

    def lose(self, run_id: str, what: str, why: str) -> None:
        """Notes something else of a run that was lost: a file."""
        self._why = why
        self._lost[f"{run_id}\0{what}"] += 1
        if self._thread is None:
            self._start()

    def end(self) -> None:
        """The process ends: writes what there is, with bounded patience, and tells what was not written."""
        if self._ending:
            return
        self._ending = True
        if self._thread is not None and not self.written(_AT_EXIT):
            left = len(self._points) + len(self._rows) + len(self._frames)
            where = self.path or "the recording"
            log.warning("labtrack: about %d records were not written to %s (%s)", left, where, self._why or "it hangs")

    def forked(self) -> None:
        """In a child process: what waits is the parent's to write."""
        fresh = Writer(self._begin, self._lost_records, self._flush, self._now_and_then)
        fresh._clock, fresh._warned = self._clock, self._warned
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
        self.__dict__.update(fresh.__dict__)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="labtrack-recorder", daemon=True)
                self._thread.start()
                atexit.register(self.end)
                util.Finalize(None, self.end, exitpriority=10)  # a child of multiprocessing ends without atexit

    def _work(self) -> None:
        while True:
            self._wake.wait(TICK)
            self._wake.clear()
            asked = self._asked
            self._now_and_then()
            try:
                whole = self._write_all()
            except Exception as error:  # a defect of ours must not end the recording without a word
                self._trouble(error)
                whole = False
            if whole:
                with self._written:
                    self._done = max(self._done, asked)
                    self._written.notify_all()

    def _write_all(self) -> bool:
        """Writes what waits; says whether all of it is in the file."""
        nothing = not (self._points or self._rows or self._frames or self._lost or self._lost_rows)
        if nothing and not self._dirty:
            return True
        if self._failed and time.monotonic() - self._failed < _RETRY and not self._ending:
            return False
        self._busy_since = time.monotonic()
        try:
            if self._descriptor < 0:
                self._open()
            while True:
                self._encode()
                if not self._frames:
                    break
                self._write()
                self._sync()
                self._busy_since = time.monotonic()  # it has come back
            self._failed = 0.0
            self._sync()
            return True
        except OSError as error:
            self._encode()
            self._trouble(error)
            return False
        finally:
            self._busy_since = 0.0

    def _open(self) -> None:
        path, first = self._begin()
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        self._descriptor = os.open(path, flags, 0o666)
        self.path, self._whole, self._safe, self._torn = path, 0, 0, False
        # what was encoded before counts on from the first records
        clock = self.now()
        number = self._number - len(self._frames) - len(first)
        frames = [journals.frame(number + at, clock, *record) for at, record in enumerate(first)]
        self._frames.extendleft(reversed(frames))
        self._framed += sum(map(len, frames))

    def _encode(self) -> None:
        """Makes records of what waits: points first, so that a run's end comes after them."""
        taken: dict[str, list[Point]] = {}
        for _ in range(min(len(self._points), 50 * _AT_ONCE)):
            run_id, *point = self._points.popleft()
            some = taken.setdefault(run_id, [])
            some.append(point)  # type: ignore[arg-type]
            if len(some) >= _AT_ONCE:
                self._frame(self.now(), ("m", run_id, some))
                taken[run_id] = []
        for run_id, some in taken.items():
            if some:
                self._frame(self.now(), ("m", run_id, some))
        if self._points:
            return
        while self._rows:
            clock, size, record = self._rows.popleft()
            self._taken += size
            self._frame(clock, record)
        if (self._lost or self._lost_rows) and not self._failed and self._descriptor >= 0:
            for record in self._lost_records(self._told()):
                self._frame(self.now(), record)

    def _frame(self, clock: int, record: tuple[Any, ...]) -> None:
        if self._framed > BUFFER // 2:
            if record[0] == "m":
                self._lost[record[1]] += len(record[2])
            else:
                self._lost_rows += 1
            return
        made = journals.frame(self._number, clock, *record)
        self._number += 1
        self._framed += len(made)
        self._frames.append(made)

    def _told(self) -> dict[str, str]:
        """What was lost of each run, as a tag says it; then it is told."""
        counts, self._lost = self._lost, Counter()
        rows, self._lost_rows = self._lost_rows, 0
        runs = {name.partition("\0")[0] for name in counts} | (self.runs if rows else set())
        self._lost_before.update(counts)
        self._lost_before.update(dict.fromkeys((f"{one}\0{_ROWS}" for one in self.runs), rows))
        told: dict[str, list[str]] = {}
        for name, count in self._lost_before.items():
            run_id, _, what = name.partition("\0")
            if count and run_id in runs:
                said = f"{count} {_ROWS}" if what == _ROWS else what or f"{count} points of metrics"
                told.setdefault(run_id, []).append(said)
        why, when = self._why or "not written in time", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return {run_id: f"{', '.join(what)} ({why}; {when})" for run_id, what in told.items()}

    def _write(self) -> None:
        pieces: list[bytes] = []
        size = 0
        for one in self._frames:
            if pieces and size + len(one) > _PIECE:
                break
            pieces.append(one)
            size += len(one)
        data = (b"\n" if self._torn else b"") + b"".join(pieces)
        at = 0
        try:
            while at < len(data):
                at += os.write(self._descriptor, data[at:])
        except OSError:
            self._cut(torn=at > 0)
            raise
        self._torn = False
        self._whole += len(data)
        self._dirty = True
        for _ in pieces:
            self._unsynced.append(self._frames.popleft())

    def _cut(self, *, torn: bool) -> None:
        """Takes away a record that was written in part; where that fails too, it is ended by a newline later."""
        self._torn = self._torn or torn
        try:
            os.ftruncate(self._descriptor, self._whole)
            self._torn = False
        except OSError:
            pass

    def _sync(self) -> None:
        """Has the file on disk, as often as is asked for."""
        if not self._dirty or self._descriptor < 0:
            return
        now = time.monotonic()
        if now - self._synced >= self._flush - TICK or self._ending:
            try:
                os.fsync(self._descriptor)
            except OSError:  # of a network's file system: what it had taken may be gone
                self._frames.extendleft(reversed(self._unsynced))
                self._unsynced = []
                self._whole = self._safe
                self._cut(torn=True)
                raise
            self._framed -= sum(map(len, self._unsynced))
            self._unsynced, self._safe, self._dirty = [], self._whole, False
            self._synced = time.monotonic()

    def _trouble(self, error: Exception) -> None:
        self._failed = time.monotonic()
        self._why = (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
        number = getattr(error, "errno", None)
        self.warn(
            f"write {number}",
            f"labtrack: the recording can't be written ({self._why}): {self.path or 'its folder'}. The training goes "
            f"on; up to {BUFFER >> 20} MiB are kept in memory, and it is tried again.",
        )
        if number in (errno.ESTALE, errno.EBADF) and self._descriptor >= 0:  # the file is no more: another one
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1
