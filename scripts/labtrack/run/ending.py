"""How a command's end becomes the end of the runs that it left open."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from labtrack.recorder.place import END, EXIT_CODE, REQUEUED
from labtrack.run import recording
from labtrack.stores.model import Run

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
_OF_SIGNAL = 128
_CRASHES = frozenset(
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSYS", "SIGTRAP")
    if hasattr(signal, name)
)


def signal_of(code: int) -> int:
    """The signal that an exit code of a shell stands for; 0 for none."""
    number = code - _OF_SIGNAL
    return number if number in signal.valid_signals() else 0


def status_of(code: int) -> str:
    """The status of a run whose process ended with this exit code: a crash is FAILED, a signal from outside KILLED."""
    if not code:
        return FINISHED
    number = signal_of(code)
    return KILLED if number and number not in _CRASHES else FAILED


def words_of(code: int) -> str:
    """The end in words, for a tag."""
    number = signal_of(code)
    return f"signal {signal.Signals(number).name}" if number in set(signal.Signals) else f"exit code {code}"


def close_runs(folder: Path, key: str, attempt: int, code: int, *, requeued: bool = False) -> list[Run]:
    """Ends the job's runs that nobody ended, by the exit code; gives those.

    requeued: the job goes on with them, so they stay RUNNING, and what happened is in their tags.
    Raises what opening the folder raises, and OSError.
    """
    with recording.opened(folder) as store:
        runs = recording.runs_of(store, key, attempt)
        left = recording.are_open(recording.with_children(store, runs))
    now = time.time_ns() // 10**6
    for run in left:
        if requeued:
            recording.amend(folder, run.id, tags={REQUEUED: f"attempt {attempt}: {words_of(code)}"})
        else:
            tags = {EXIT_CODE: str(code), END: words_of(code)}
            recording.amend(folder, run.id, status=status_of(code), end_time=now, tags=tags)
    if code and not requeued:  # a run that was closed before the failure shows it, too
        for run in (one for one in runs if one not in left):
            recording.amend(folder, run.id, tags={EXIT_CODE: str(code)})
    return left
