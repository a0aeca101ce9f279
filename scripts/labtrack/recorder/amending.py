"""Changing a run that another process has recorded: how its job ended, what was found out later."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Union

from labtrack.errors import BadInputError, LabtrackError
from labtrack.recorder.live import path_of
from labtrack.recorder.place import SCHEME, root_of
from labtrack.stores import journals
from labtrack.stores.journals import Header, frame

_STATUSES = ("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")
Given = Union[Path, str, "tuple[Path | str, str]"]


def amend(
    folder: Path | str,
    run_id: str,
    *,
    status: str | None = None,
    end_time: int | None = None,
    tags: Mapping[str, str] | None = None,
    artifacts: Iterable[Given] = (),
) -> None:
    """Changes a run of a folder of recordings; it is a small recording of its own, and nobody has to wait for it.

    folder: the folder or its `labtrack:///...`.  status: RUNNING, SCHEDULED, FINISHED, FAILED or KILLED.
    end_time: ms since 1970.  tags: are set, those that are there keep theirs.
    artifacts: files to copy to the run's artifacts, each a path, or a path and the folder it goes to there.
    Raises BadInputError where there is no such run or something given can't be used, LabtrackError where the folder
    can't be written to.
    """
    root = root_of(folder) if isinstance(folder, str) and folder.startswith(f"{SCHEME}:") else Path(folder)
    if status is not None and status not in _STATUSES:
        raise BadInputError(f"{status!r} is no status.", f"use {', '.join(_STATUSES)}.")
    header, clock, place = _known(root, run_id)
    records: list[tuple[Any, ...]] = []
    changes = {"status": status, "end_time": end_time}
    changes = {name: what for name, what in changes.items() if what is not None}
    if changes:
        records.append(("p", "runs", {"run_uuid": run_id}, changes))
    for key, text in (tags or {}).items():
        row = {"run_uuid": run_id, "key": key, "value": str(text)}
        records.append(("u", "tags", [row.get(one) for one in header.tables["tags"].columns]))
    for one in artifacts:
        path, below = one if isinstance(one, tuple) else (one, "")
        _copy(Path(path), root, place, below, run_id)
    if records:
        _write(root, header, max(int(time.time() * 1000), clock + 1), records)


def _known(root: Path, run_id: str) -> tuple[Header, int, str]:
    """A header with the tables, the last clock of the run, and the place of its artifacts."""
    header: Header | None = None
    clock, place = 0, ""
    try:
        for path in journals.journals(root):
            own: Header | None = None
            for one in journals.read(path, needles=[b',"h",', run_id.encode()]):
                if one.record is None:
                    continue
                if one.record[2] == "h":
                    own = Header.of(one.record[3])
                    continue
                clock = max(clock, one.record[1])
                if own is not None and one.record[3] == "runs" and one.record[2] in ("i", "u"):
                    row = dict(zip(own.tables["runs"].columns, one.record[4]))
                    if row.get("run_uuid") == run_id:
                        header, place = own, str(row.get("artifact_uri") or "")
    except OSError as error:
        raise BadInputError(f"{root} can't be read: {error.strerror}.", f"look at `ls -ld {root}`.") from error
    except ValueError as error:
        raise LabtrackError(f"{root} can't be read: {error}.", "use the labtrack that recorded it.") from error
    if header is None:
        raise BadInputError(
            f"There is no run {run_id} in the recordings of {root}.",
            "its ids are 32 hexadecimal digits; `labtrack runs -s FOLDER` lists them.",
        )
    return header, clock, place


def _copy(source: Path, root: Path, place: str, below: str, run_id: str) -> None:
    inside = PurePosixPath(below)
    if inside.is_absolute() or ".." in inside.parts:
        raise BadInputError(f"{below} is no folder among a run's artifacts.", "name one like logs/slurm.")
    target = Path(journals.absolute(place, f"{root}/"))
    if not place.startswith(journals.RELATIVE):
        raise BadInputError(f"The artifacts of {run_id} are in {place}, not in {root}.", "copy the file there by hand.")
    try:
        (target / inside).mkdir(parents=True, exist_ok=True)
        part = target / inside / f".{source.name}.part"
        shutil.copyfile(source, part)
        part.replace(target / inside / source.name)
    except OSError as error:
        what = f"{source} can't be copied to the artifacts of {run_id}: {error.strerror}."
        raise LabtrackError(what, f"look at `ls -ld {source} {target}` and `df -h {root}`.") from error


def _write(root: Path, header: Header, clock: int, records: list[tuple[Any, ...]]) -> None:
    host = socket.gethostname()
    mine = dataclasses.replace(header, host=host, pid=os.getpid(), started=clock, job="", kind="amend").data()
    path = path_of(root, host, "")
    part = path.with_name(f".{path.name}.part")  # it is there as a whole or not at all
    lines = [frame(at, clock, *one) for at, one in enumerate([("h", mine), *records])]
    try:
        with part.open("xb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        what = f"{path} can't be written: {error.strerror}."
        raise LabtrackError(what, f"look at `ls -ld {path.parent}` and `df -h {root}`, and try again.") from error
