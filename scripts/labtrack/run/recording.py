"""The folder that jobs record into, as `labtrack run` and `labtrack reconcile` use it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from labtrack.errors import BadInputError
from labtrack.recorder.place import JOB_RUN_TAG, SCHEME, root_of
from labtrack.recorder.scheduler import ATTEMPT_TAG, JOB_TAG
from labtrack.stores import journals

if TYPE_CHECKING:
    from labtrack.stores.model import Run, Store

VARIABLE = "LABTRACK_FOLDER"
JOBS = "jobs"
HEARTBEAT = "heartbeat"


def folder_of(given: str | None, env: Mapping[str, str]) -> Path:
    """The folder that is recorded into, absolute.

    given: `--folder`.  Else LABTRACK_FOLDER, a `labtrack://` address in MLFLOW_TRACKING_URI, `$SCRATCH/labtrack`, or
    `labtrack-runs` where the job was submitted.  Raises BadInputError for what is no folder.
    """
    text = given or env.get(VARIABLE) or ""
    if not text and env.get("MLFLOW_TRACKING_URI", "").startswith(f"{SCHEME}:"):
        text = env["MLFLOW_TRACKING_URI"]
    if text.startswith(f"{SCHEME}:"):
        return root_of(text)
    if text:
        path = Path(text).expanduser() if text.startswith("~") else Path(text)
        if "\n" in text or "\0" in text or re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
            raise BadInputError(
                f"{text!r} is no folder on this machine.", "--folder takes a path, as /scratch/me/runs."
            )
        if path.exists() and not path.is_dir():
            raise BadInputError(f"{path} is a file, and jobs record into a folder.", "give another --folder.")
        return path.absolute()
    scratch = env.get("SCRATCH", "")
    if scratch.startswith("/") and Path(scratch).is_dir():
        return Path(scratch) / SCHEME
    return Path(env.get("SLURM_SUBMIT_DIR") or env.get("PBS_O_WORKDIR") or os.getcwd()).absolute() / "labtrack-runs"  # noqa: PTH109


def address_of(folder: Path) -> str:
    """The folder as MLflow takes it in MLFLOW_TRACKING_URI."""
    return f"{SCHEME}://{quote(str(folder))}"


def job_folder(folder: Path, key: str) -> Path:
    """Where what belongs to a job and to none of its runs is kept."""
    return folder / JOBS / re.sub(r"[^A-Za-z0-9_.+-]", "-", key)


def holds_recordings(folder: Path) -> bool:
    """Whether anything was recorded there."""
    try:
        return any((folder / journals.FOLDER).iterdir())
    except OSError:
        return False


def opened(folder: Path) -> Store:
    """The folder's recordings, as one store.  Raises what `open_store` raises."""
    from labtrack.stores import open_store

    return open_store(address_of(folder))


def runs_of(store: Store, key: str, attempt: int | None = None) -> list[Run]:
    """The runs of a job, in the order in which it made them; `attempt`: only those of this one."""
    found = [
        one
        for one in store.runs()
        if one.tags.get(JOB_TAG) == key and (attempt is None or one.tags.get(ATTEMPT_TAG, "0") == str(attempt))
    ]
    return sorted(found, key=lambda one: (_order(one.tags.get(JOB_RUN_TAG, "")), one.start_time or 0, one.id))


def with_children(store: Store, runs: Sequence[Run]) -> list[Run]:
    """Runs and what is nested in them, which has no tags of the job."""
    ids, found, more = {one.id for one in runs}, list(runs), True
    others = [one for one in store.runs() if one.parent_id and one.id not in ids]
    while more:
        new = [one for one in others if one.parent_id in ids and one.id not in ids]
        ids |= {one.id for one in new}
        found += new
        more = bool(new)
    return found


def are_open(runs: Sequence[Run]) -> list[Run]:
    """Those that nobody has ended."""
    return [one for one in runs if one.status == "RUNNING"]


def amend(folder: Path, run_id: str, **changes: Any) -> None:
    """Changes a run that another process has recorded; see `labtrack.recorder.amend`."""
    from labtrack.recorder import amend as recorder_amend

    recorder_amend(folder, run_id, **changes)


def attach(folder: Path, run_id: str, file: Path, where: str = "") -> None:
    """Puts a file to a run's artifacts.  where: a folder in them."""
    amend(folder, run_id, artifacts=[(file, where)])


def _order(number: str) -> list[int]:
    """`2`, or `1.2` for the second run of step 1."""
    return [int(one) if one.isdecimal() else 0 for one in number.split(".")]
