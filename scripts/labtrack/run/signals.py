"""A command run as a child that gets every signal once, and whose end becomes this process's end.

The child stays in this process's group, so that a terminal, its input and its job control are what they were.  A signal
may then come to this process alone, and has to be forwarded, or to the whole group or cgroup (Ctrl-C, `timeout`, Slurm
at a time limit), and must not be.  A witness, which is another process of the group that does nothing else, tells
which of the two it was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

NOT_FOUND, NOT_EXECUTABLE = 127, 126
OF_SIGNAL = 128
_STOPPING = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_NEVER = (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD)
_WITNESSED = 0.1  # seconds in which the witness has seen what came to all
_REMEMBERED = 1.0  # seconds for which it counts
_GRACE = 10.0  # seconds after a signal to end: enough to write down how the runs ended
_AGAIN = 1.0  # seconds after which another signal is meant as one
_TICK = 1.0  # seconds between two looks at the child, should its SIGCHLD be lost
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_SIGNALS = frozenset(one for one in signal.valid_signals() if one not in _NEVER)
_WAITED = _SIGNALS | {signal.SIGCHLD}
_CAN_WAIT = hasattr(signal, "sigtimedwait")  # not on macOS


@dataclass(frozen=True)
class Ending:
    """How a command ended.

    code: as a shell has it, 128 and the signal's number for a signal.  number: of the signal, 0 for none.
    interrupted: whether a Ctrl-C that came to the whole group ended it.  started: whether there was a command.
    """

    code: int
    number: int = 0
    interrupted: bool = False
    started: bool = True


class Child:
    """A running command.  `wait` gives its end; until then signals are kept from this process."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], outputs: Mapping[int, int] | None = None
    ) -> None:
        """Starts it.  outputs: what its file descriptors 1 and 2 are, where not those of this process.

        Raises OSError as `exec` does.
        """
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by the caller, it would take the child's end away
        self._witness = _Witness() if _CAN_WAIT else None
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED)
        self._interrupted = False
        try:
            self.pid = _spawn(command, env, outputs or {}, self._before)
        except BaseException:
            self.close()
            raise

    def wait(self) -> Ending:
        """Forwards signals until the command ends."""
        while True:
            number = self._next(_TICK)
            if number and number != signal.SIGCHLD:
                self._forward(number)
            found, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
            if not found:
                continue
            if os.WIFSTOPPED(status):
                # a child that somebody stopped otherwise (a debugger, Slurm) may be continued alone
                if os.WSTOPSIG(status) in _STOPPING:
                    os.kill(os.getpid(), signal.SIGSTOP)
                continue
            if os.WIFSIGNALED(status):
                number = os.WTERMSIG(status)
                return Ending(OF_SIGNAL + number, number, self._interrupted and number == signal.SIGINT)
            return Ending(os.WEXITSTATUS(status))

    def wait_for(self, done: Callable[[], bool], seconds: float) -> bool:
        """Waits after the end until something is done, for so many seconds at most; False if it is not.

        A signal to end leaves it some seconds, since Slurm sends more than one; a later one leaves none.
        """
        deadline, told = time.monotonic() + seconds, float("inf")
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                return done()
            if self._next(min(left, 0.1)) in _ENDING:
                now = time.monotonic()
                deadline = now if now > told + _AGAIN else min(deadline, now + _GRACE)
                told = min(told, now)
        return True

    def close(self) -> None:
        """Lets signals through again."""
        if self._witness is not None:
            self._witness.close()
        if _CAN_WAIT:
            while signal.sigtimedwait(_WAITED, 0) is not None:
                pass  # what came meanwhile was for the command
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def _next(self, seconds: float) -> int:
        if not _CAN_WAIT:
            pending = signal.sigpending() & _WAITED
            if not pending:
                time.sleep(min(seconds, 0.05))
                return 0
            return signal.sigwait(pending)
        try:
            found = signal.sigtimedwait(_WAITED, seconds)
        except InterruptedError:
            return 0
        # SIGPIPE of an own write is nobody's message
        return found.si_signo if found and found.si_pid != os.getpid() else 0

    def _forward(self, number: int) -> None:
        to_all = self._witness.saw(number) if self._witness is not None else False
        self._interrupted = self._interrupted or (to_all and number == signal.SIGINT)
        if not to_all:
            with contextlib.suppress(OSError):
                os.kill(self.pid, number)


class _Witness:
    """Another process of the group, which writes down what it gets."""

    def __init__(self) -> None:
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        self._seen: dict[int, list[float]] = {}
        parent = os.getpid()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._pid = os.fork()
        if not self._pid:
            _watch(parent, write)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(write)

    def saw(self, number: int) -> bool:
        """Whether the signal that has just come to this process came to all."""
        deadline = time.monotonic() + _WITNESSED
        while True:
            now = time.monotonic()
            times = [one for one in self._seen.get(number, []) if now - one < _REMEMBERED]
            self._seen[number] = times[1:]
            if times:
                return True
            if now >= deadline or not self._read_more(deadline - now):
                return False

    def _read_more(self, seconds: float) -> bool:
        """False where the witness is gone."""
        if select.select([self._read], [], [], seconds)[0]:
            try:
                found = os.read(self._read, 256)
            except OSError:
                return False
            for number in found:
                self._seen.setdefault(number, []).append(time.monotonic())
            return bool(found)
        return True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.waitpid(self._pid, 0)
        os.close(self._read)


def _watch(parent: int, write: int) -> None:
    """The witness's whole life."""
    try:
        nothing = os.open(os.devnull, os.O_RDWR)
        for one in range(3):  # a pipe to or from the parent must see its end
            os.dup2(nothing, one)
        os.closerange(3, write)
        os.closerange(write + 1, 1024)
        while os.getppid() == parent:
            found = signal.sigtimedwait(_SIGNALS, 1.0)
            if found is not None:
                os.write(write, bytes([found.si_signo]))
    finally:
        os._exit(0)


def _spawn(command: Sequence[str], env: Mapping[str, str], outputs: Mapping[int, int], mask: Iterable[int]) -> int:
    actions = [(os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in outputs.items()]
    again = [signal.SIGPIPE, getattr(signal, "SIGXFSZ", signal.SIGPIPE)]  # which Python ignores

    def start(words: Sequence[str]) -> int:
        return os.posix_spawnp(words[0], list(words), env, file_actions=actions, setsigmask=mask, setsigdef=again)

    try:
        return start(command)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        return start(["/bin/sh", *command])  # a script without a first line, which shells run themselves


def die_interrupted() -> None:
    """Ends this process by SIGINT, so that a shell knows that a Ctrl-C ended the command and ends its script, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
