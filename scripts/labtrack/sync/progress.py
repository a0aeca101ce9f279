"""How far a sync is: counted here, shown by whoever wants to."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Totals:
    """What there is to send, as far as it is known before."""

    runs: int = 0
    points: int = 0
    bytes: int = 0


class Shows(Protocol):
    """Shows progress to the user.  Called by several threads, but never by two at once."""

    def begin(self, totals: Totals) -> None:
        """What there is to do."""

    def update(self, runs: int, points: int, sent: int) -> None:
        """What has been done so far: runs, metric points, bytes of files."""

    def say(self, text: str) -> None:
        """Something worth a line."""

    def end(self) -> None:
        """It is over, one way or the other."""


class Quiet:
    """Shows nothing."""

    def begin(self, totals: Totals) -> None:
        """Nothing."""

    def update(self, runs: int, points: int, sent: int) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class Meter:
    """Counts what was sent, from all threads."""

    def __init__(self, shows: Shows) -> None:
        self._shows = shows
        self._lock = threading.Lock()
        self._runs = self._points = self._bytes = 0

    def runs(self, count: int) -> None:
        """Runs that are done."""
        with self._lock:
            self._runs += count
            self._shows.update(self._runs, self._points, self._bytes)

    def points(self, count: int) -> None:
        """Metric points that the server has acknowledged."""
        with self._lock:
            self._points += count
            self._shows.update(self._runs, self._points, self._bytes)

    def bytes(self, count: int) -> None:
        """Bytes of files on their way."""
        with self._lock:
            self._bytes += count
            self._shows.update(self._runs, self._points, self._bytes)

    def say(self, text: str) -> None:
        """Something worth a line."""
        with self._lock:
            self._shows.say(text)
