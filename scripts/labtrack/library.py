"""What `import labtrack` offers beside the readers of recordings: to send runs, and to compare."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from labtrack.sync.main import Options
from labtrack.sync.main import sync as _sync
from labtrack.sync.progress import Quiet, Shows
from labtrack.sync.report import Report

_log = logging.getLogger("labtrack")


class _Logged(Quiet):
    """Says what a sync waits for in the log."""

    def say(self, text: str) -> None:
        _log.info(text)


def sync(source: str | Path, destination: str, options: Options | None = None, shows: Shows | None = None) -> Report:
    """Sends what a recording has and a tracking server has not: each run exactly once, as `labtrack sync` does.

    source: anything that `open_store` takes.  destination: the server's address.  options: which runs, and where to.
    shows: is told the progress.

    Gives a report, also where runs failed: its `exit_code` is 0 where everything is there.
    Raises BadInputError for what can't be used, ServerError for a server that can't, LabtrackError with
    `code == Exit.LOCKED` while another sync of the recording is at work, and KeyboardInterrupt: after each of them the
    same call goes on where the last one stopped.
    """
    report = _sync(source, destination, options, shows or _Logged())
    for note in report.notes:
        _log.warning(note)
    for run_id, why in report.failed.items():
        _log.error("run %s: %s", run_id, "; ".join(why))
    if report.interrupted:
        raise KeyboardInterrupt
    return report


def verify(source: str | Path, destination: str, options: Options | None = None, shows: Shows | None = None) -> Report:
    """Compares a recording with the server, point by point and byte by byte, and sends nothing.

    What differs is in the report's `differences`, by run id; `verified` says how many runs were compared.
    Takes and raises what `sync` does.
    """
    return sync(source, destination, dataclasses.replace(options or Options(), dry_run=True, verify=True), shows)
