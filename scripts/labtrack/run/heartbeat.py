"""Signs of life of jobs, for where no scheduler can be asked: a file that the parent of the command touches."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from labtrack.files import boot_id
from labtrack.recorder.place import END as LABTRACK_END
from labtrack.recorder.place import EXIT_CODE
from labtrack.run import recording
from labtrack.run.ending import FAILED, status_of, words_of
from labtrack.run.verdict import Verdict

STALE = 3600.0  # seconds without a sign of life after which a job is over
_MISSED = 180.0  # the same where the process can be looked for: three of its beats


@dataclass(frozen=True)
class Beat:
    """host, pid, boot: of the parent.  at: when it was last alive, in s.  code: the command's, once it has ended."""

    host: str
    pid: int
    boot: str
    at: float
    code: int | None = None


def read(folder: Path, key: str) -> Beat | None:
    """The last sign of life of a job; None where there is none that can be read."""
    file = recording.job_folder(folder, key) / recording.HEARTBEAT
    try:
        said = json.loads(file.read_text())
        code = said.get("code")
        return Beat(
            str(said["host"]), int(said["pid"]), str(said.get("boot", "")), float(said["at"]),
            int(code) if code is not None else None,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def judge(beat: Beat | None, now: float | None = None) -> Verdict | None:
    """What a sign of life says about the end of a job; None while it may live, or nothing is known."""
    if beat is None:
        return None
    now = time.time() if now is None else now
    end = int(beat.at * 1000)
    if beat.code is not None:
        return Verdict(status_of(beat.code), end, {LABTRACK_END: words_of(beat.code), EXIT_CODE: str(beat.code)})
    silent = now - beat.at
    here = beat.host == socket.gethostname()
    if (here and silent > _MISSED and not _lives(beat)) or (not here and silent > STALE):
        minutes = f"{silent / 60:.0f} minutes"
        return Verdict(FAILED, end, {LABTRACK_END: f"lost: no sign of life from {beat.host} for {minutes}"})
    return None


def _lives(beat: Beat) -> bool:
    """Whether the parent is still a process of this machine; after a restart its number is another's."""
    booted = boot_id()
    if beat.boot and booted and beat.boot != booted:
        return False
    try:
        os.kill(beat.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
