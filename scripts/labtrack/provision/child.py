"""A command that whoever stops this process stops gently, and once."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# The second of them makes Terraform leave at once.
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it has printed.  stopped: whether this process was told to stop meanwhile."""

    code: int
    out: str
    err: str
    stopped: bool


def run(command: Sequence[str], folder: Path, env: Mapping[str, str], *, shown: bool = False) -> Ended:
    """Runs a command to its end; SIGINT, SIGTERM and SIGHUP of this process are SIGINT to it.

    Its files are born private.  shown: it has this process's standard output.  Raises OSError where it can't be run.
    """
    with _stopped_gently() as stops:
        child = subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=None if shown else subprocess.PIPE,
            stderr=subprocess.PIPE, encoding="utf-8", errors="replace", umask=0o077, process_group=0,
        )  # fmt: skip
        stops.child = child
        out, err = child.communicate()
    return Ended(child.returncode, out or "", err, bool(stops.count))


class _Stops:
    """Signals that came, and the process that they are passed on to."""

    def __init__(self) -> None:
        self.count = 0
        self._child: subprocess.Popen[str] | None = None

    @property
    def child(self) -> subprocess.Popen[str] | None:
        """The process that is at work."""
        return self._child

    @child.setter
    def child(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        if self.count:  # before it was there
            child.send_signal(signal.SIGINT)

    def come(self, *_: object) -> None:
        """Passes one on."""
        self.count += 1
        if self._child:
            self._child.send_signal(signal.SIGINT)


@contextmanager
def _stopped_gently() -> Iterator[_Stops]:
    """Passes signals on to the child, which has a process group of its own: a terminal would tell it twice."""
    stops = _Stops()
    if threading.current_thread() is not threading.main_thread():
        yield stops
        return
    heard = [number for number in _STOPS if signal.getsignal(number) != signal.SIG_IGN]  # nohup's is to go on
    before = {number: signal.signal(number, stops.come) for number in heard}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
