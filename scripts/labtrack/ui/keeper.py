"""Ends what a session started and removes its folder, however the session ends, `kill -9` included.

Run as a program with the folders as its arguments, in a session of its own, it reads from its standard input the
numbers of process groups, one a line.  The end of the input is the end of the session.  It is run by its path with
`python -I -S`, so nothing but the standard library can be imported here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time

PREFIX = "labtrack-ui-"
LOCK = "lock"
_GRACE = 3.0  # seconds in which a server may end by itself


def end(groups: list[int], folders: list[str]) -> None:
    """Ends process groups and removes a session's folders."""
    for number, seconds in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
        for group in groups:
            with contextlib.suppress(OSError):
                os.killpg(group, number)
        deadline = time.monotonic() + seconds
        while any(map(_lives, groups)) and time.monotonic() < deadline:
            time.sleep(0.02)
    for folder in folders:
        if os.path.basename(folder).startswith(PREFIX):  # noqa: PTH119  pathlib is slow to import
            shutil.rmtree(folder, ignore_errors=True)


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    with contextlib.suppress(OSError):  # the dead that nobody has asked after would count
        os.waitpid(-group, os.WNOHANG)
    return True


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT})
    groups = [int(line) for line in sys.stdin]
    end(groups, sys.argv[1:])


if __name__ == "__main__":
    main()
