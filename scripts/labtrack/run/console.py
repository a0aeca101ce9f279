"""The output of a command, passed on as it comes and kept in portions beside the recording."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import struct
import threading
import time
from pathlib import Path

try:
    import fcntl
    import termios
except ModuleNotFoundError:  # Windows, where `labtrack run` says that it is not for it
    fcntl = termios = None  # type: ignore[assignment]

FOLDER = "console"
_PORTION = 2**20  # bytes
_SECONDS = 30.0  # after which a portion ends, however small it is
_MOST = 256 * 2**20  # bytes that are kept of one command
_WAITING = 256  # blocks that wait for a slow disk; what comes then is passed on and not kept
_BLOCK = 2**16
_WRITING = ".part"


class Console:
    """Passes on what a command writes, and keeps it.

    A terminal stays one for the command: then it writes to a terminal of our own.  A disk that is slow, full or hangs
    keeps no output back.  trouble: why something was not kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._queue: queue.Queue[bytes | None] = queue.Queue(_WAITING)
        self.trouble = ""
        self._theirs: list[int] = []
        self._ours: list[tuple[int, int]] = []
        self.outputs: dict[int, int] = {}
        for number in (1, 2):
            ours, theirs = _terminal(number) if os.isatty(number) else os.pipe()
            self._ours.append((ours, number))
            self._theirs.append(theirs)
            self.outputs[number] = theirs
        self._threads: list[threading.Thread] = []
        self._keeper = threading.Thread(target=self._keep, daemon=True, name="labtrack-console-kept")

    def start(self) -> None:
        """Begins; the command has been started."""
        for one in self._theirs:
            os.close(one)
        self._theirs = []
        self._keeper.start()
        for ours, number in self._ours:
            thread = threading.Thread(target=self._pass, args=(ours, number), daemon=True, name="labtrack-console")
            thread.start()
            self._threads.append(thread)

    def resized(self) -> None:
        """The terminal has another size now."""
        for ours, number in self._ours:
            if os.isatty(number):
                with contextlib.suppress(OSError):
                    _copy_size(number, ours)

    def finish(self, seconds: float) -> None:
        """Waits for what is still on its way; a process that the command has left behind may write for ever."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=max(0.0, deadline - time.monotonic()))
            self._keeper.join(max(0.1, deadline - time.monotonic()))

    def _pass(self, ours: int, number: int) -> None:
        try:
            while True:
                try:
                    data = os.read(ours, _BLOCK)
                except OSError:  # of a terminal whose last writer is gone
                    return
                if not data:
                    return
                try:
                    self._queue.put_nowait(data)
                except queue.Full:
                    self.trouble = self.trouble or "the disk is too slow for the output, of which parts are missing"
                while data:
                    try:
                        data = data[os.write(number, data) :]
                    except BlockingIOError:
                        select.select([], [number], [], 1.0)
        except OSError:
            return  # nobody reads it any more: the command is told by the closed pipe
        finally:
            os.close(ours)

    def _keep(self) -> None:
        """Writes portions; the first error ends it."""
        number, size, total, began = 0, 0, 0, 0.0
        file = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            number = len(list(self._folder.iterdir()))
            while True:
                try:
                    data = self._queue.get(timeout=1.0)
                except queue.Empty:
                    data = b""
                if file is not None and (data is None or size >= _PORTION or time.monotonic() - began > _SECONDS):
                    file.close()
                    place = Path(file.name)
                    place.rename(place.with_suffix(""))
                    file = None
                if data is None:
                    return
                if not data:
                    continue
                total += len(data)
                if total > _MOST:
                    self.trouble = self.trouble or f"only the first {_MOST // 2**20} MiB of the output are kept"
                    continue
                if file is None:
                    number, size, began = number + 1, 0, time.monotonic()
                    file = (self._folder / f"{number:05}.log{_WRITING}").open("wb", buffering=0)
                file.write(data)
                size += len(data)
        except OSError as error:
            self.trouble = f"the output is not kept: {error.strerror or error}"
            while self._queue.get() is not None:
                pass


def portions(folder: Path, *, unfinished: bool = False) -> list[Path]:
    """The portions that are complete, in their order.  unfinished: also the last one of a command that was killed."""
    try:
        found = sorted(one for one in folder.iterdir() if one.is_file())
    except OSError:
        return []
    return [one for one in found if unfinished or one.suffix != _WRITING]


def _terminal(number: int) -> tuple[int, int]:
    """A terminal like the one at `number`, which leaves line ends as they are: the real one turns them."""
    ours, theirs = os.openpty()
    with contextlib.suppress(OSError, termios.error):
        _copy_size(number, theirs)
        settings = termios.tcgetattr(number)
        settings[1] &= ~termios.OPOST
        termios.tcsetattr(theirs, termios.TCSANOW, settings)
    return ours, theirs


def _copy_size(source: int, target: int) -> None:
    size = fcntl.ioctl(source, termios.TIOCGWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
    fcntl.ioctl(target, termios.TIOCSWINSZ, size)
