"""Checks that may hang, each group in a process of its own: what a dead file system holds, nobody has to wait for."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from labtrack.doctor.result import Result, Status, failed

_PIECE = 65536


@dataclass(frozen=True)
class Group:
    """Checks that are done one after the other.

    check: gives the rows.  late: the row for what has not answered in time, given the name of the check under way.
    """

    name: str
    check: Callable[[], Iterator[Result]]
    late: Callable[[str, float], Result]


@dataclass
class _Child:
    group: Group
    pid: int
    pipe: int
    data: bytes = b""
    ended: bool = False
    rows: list[Result] = field(default_factory=list)
    doing: str = ""

    def take(self) -> None:
        """Takes up what it has said since."""
        piece = os.read(self.pipe, _PIECE)
        self.ended = not piece
        self.data += piece
        *lines, self.data = self.data.split(b"\n")
        for line in lines:
            said = json.loads(line)
            if isinstance(said, str):
                self.doing = said
            else:
                self.rows.append(Result(said[0], Status(said[1]), said[2], said[3]))


def examine(groups: Sequence[Group], seconds: float) -> Iterator[Result]:
    """All rows of all groups, in the order of the groups, at the latest after so many seconds.

    The groups run at the same time.  One that has not ended by then is left alone: a process that waits for a file
    system can't be ended, and nothing here waits for it.
    """
    until = time.monotonic() + seconds
    children = [_start(group) for group in groups]
    while any(not one.ended for one in children):
        left = until - time.monotonic()
        waiting = {one.pipe: one for one in children if not one.ended}
        ready = select.select(list(waiting), [], [], max(0.0, left))[0]
        if not ready:
            break
        for pipe in ready:
            waiting[pipe].take()
    for one in children:
        os.close(one.pipe)
        if not one.ended:
            with contextlib.suppress(OSError):
                os.killpg(one.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.waitpid(one.pid, 0 if one.ended else os.WNOHANG)
        yield from one.rows
        if not one.ended:
            yield one.group.late(one.doing, seconds)


def doing(what: str) -> None:
    """Says, in a group's process, what it is about to do; elsewhere nothing."""
    if _say is not None:
        _write(_say, what)


_say: int | None = None


def _start(group: Group) -> _Child:
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        os.close(write)
        return _Child(group, pid, read)
    code = 1
    try:
        os.setpgid(0, 0)  # what it starts ends with it
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.close(read)
        _run(group, write)
        code = 0
    finally:
        os._exit(code)


def _run(group: Group, write: int) -> None:
    global _say  # noqa: PLW0603  this process has one group
    _say = write
    try:
        for row in group.check():
            _write(write, (row.check, row.status.value, row.seen, row.hint))
    except Exception as error:
        row = failed(group.name, f"the check itself failed: {type(error).__name__}: {error}", "report this.")
        _write(write, (row.check, row.status.value, row.seen, row.hint))


def _write(pipe: int, what: object) -> None:
    data = json.dumps(what).encode() + b"\n"
    while data:
        data = data[os.write(pipe, data) :]
