"""`labtrack prune --synced`: removes recordings whose runs a server has, with their artifacts."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labtrack.errors import BadInputError
from labtrack.local.clean import has_all, remove_all
from labtrack.stores import journals, open_store
from labtrack.stores.journals import Header
from labtrack.stores.model import Owner, Run
from labtrack.stores.pull import refuse
from labtrack.stores.recordings import RecordingsStore
from labtrack.sync import state
from labtrack.sync.journal import Entry, acknowledged, state_folder

_STILL = 3600.0  # seconds since the last record, in which a process may be at work
_OF_NO_RUN = {"registered_models": "registered models", "model_versions": "registered models", "trace_info": "traces"}
_RUN_COLUMNS = ("run_uuid", "run_id", "source_run_id")


@dataclass(frozen=True)
class Plan:
    """What is removed: recordings, folders of artifacts, and what that frees.  kept: how many are not, by the reason.

    inodes: files and folders, which many clusters count.
    """

    root: Path
    journals: tuple[Path, ...]
    folders: tuple[Path, ...]
    runs: tuple[Run, ...]
    bytes: int
    inodes: int
    kept: Mapping[str, int]


@dataclass
class _Group:
    """Journals that share runs: a job's attempts, a process and its children."""

    journals: list[Path]
    runs: set[str]
    models: set[str]
    reason: str = ""


def plan(source: str, older_than: float = 0.0, env: Mapping[str, str] | None = None) -> Plan:
    """Looks for recordings of which nothing would be lost.

    older_than: seconds since their runs ended.  env: where the journals of `labtrack sync` are.
    Raises BadInputError where the source is no folder of recordings.
    """
    refuse(source, "prune")
    known = acknowledged(state_folder(os.environ if env is None else env))
    with open_store(source) as store:
        if not isinstance(store, RecordingsStore):
            raise BadInputError(
                f"{store.location} is no folder of recordings (labtrack:///...).",
                "for other sources leave --synced away; `labtrack clean` removes a project's files once they are sent.",
            )
        runs = {run.id: run for run in store.runs(deleted=True)}
        groups = _groups(store.root)
        for one in groups:
            one.reason = one.reason or _reason(one, runs, store, known, time.time() - older_than)
        gone = [one for one in groups if not one.reason]
        ids = set().union(*(one.runs for one in gone)) & runs.keys()
        folders = []
        for run_id in sorted(ids):
            folders += _own_folder(store, runs[run_id])
        models = set().union(*(one.models for one in gone))
        for model in store.logged_models(deleted=True):
            folders += _own_folder(store, model) if model.id in models else []
        kept: dict[str, int] = {}
        for one in groups:
            if one.reason:
                kept[one.reason] = kept.get(one.reason, 0) + len(one.journals)
        paths = tuple(path for one in gone for path in one.journals)
        found = [path for folder in folders if folder.is_dir() for path in (folder, *folder.rglob("*"))]
        size = sum(path.lstat().st_size for path in (*paths, *found) if not path.is_dir() or path.is_symlink())
        chosen = tuple(runs[one] for one in sorted(ids))
        return Plan(store.root, paths, tuple(folders), chosen, size, len(paths) + len(found), kept)


def remove(what: Plan) -> None:
    """Removes it: the artifacts first, so that what is left after an interruption is found again.

    Raises LabtrackError for what can't be removed, after all else.
    """
    remove_all((*what.folders, *what.journals), what.root)


def inodes(root: Path) -> int:
    """The files and folders below a folder of recordings."""
    return sum(1 for part in (journals.FOLDER, journals.ARTIFACTS) for _ in (root / part).rglob("*"))


def _groups(root: Path) -> list[_Group]:
    groups: list[_Group] = []
    for path in journals.journals(root):
        new = _read(path)
        for one in [one for one in groups if one.runs & new.runs]:
            groups.remove(one)
            new = _Group(
                one.journals + new.journals, one.runs | new.runs, one.models | new.models, one.reason or new.reason
            )
        groups.append(new)
    return groups


def _read(path: Path) -> _Group:
    found = _Group([path], set(), set())
    header: Header | None = None
    try:
        if time.time() - path.stat().st_mtime < _STILL:
            found.reason = "written within the last hour"
        for one in journals.read(path):
            if one.record is None:
                found.reason = found.reason or ("damaged" if one.size > 1 else "")
            elif one.record[2] == "h":
                header = Header.of(one.record[3])
            elif header is not None:
                _take(found, header, one.record)
        if header is None:
            found.reason = found.reason or "damaged"
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        found.reason = "damaged"
    return found


def _take(found: _Group, header: Header, record: Sequence[Any]) -> None:
    kind, what = record[2], record[3]
    if kind == "m":
        found.runs.add(what)
        return
    if what in _OF_NO_RUN:
        found.reason = found.reason or f"with {_OF_NO_RUN[what]}, of which no journal says that the server has them"
    if kind == "p":
        found.runs |= {record[4]["run_uuid"]} if "run_uuid" in record[4] else set()
    elif kind in ("i", "u"):
        row = dict(zip(header.tables[what].columns, record[4]))
        found.runs |= {str(row[one]) for one in _RUN_COLUMNS if row.get(one)}
        if what == "logged_models":
            found.models.add(str(row["model_id"]))


def _reason(
    group: _Group, runs: Mapping[str, Run], store: RecordingsStore, known: Mapping[str, list[Entry]], before: float
) -> str:
    """Why a group stays; empty where nothing would be lost."""
    mine = [runs[one] for one in group.runs if one in runs]
    if not mine:
        return "without a run"
    if any(run.status in state.OPEN for run in mine):
        return "with a run that has not ended"
    if any((run.end_time or run.start_time or 0) / 1000 > before for run in mine):
        return "not old enough"
    sent = all(any(has_all(one, store, run) for one in known.get(run.id, ())) for run in mine)
    return "" if sent and all(_complete(known.get(one, ())) for one in group.models) else "not sent, or not all of it"


def _complete(entries: Sequence[Entry]) -> bool:
    said = [state.parse(one.state) for one in entries]
    return any(one is not None and one.state in (state.COMPLETE, state.ACCEPTED) for one in said)


def _own_folder(store: RecordingsStore, owner: Owner) -> list[Path]:
    """The folder that holds the artifacts of a run or a model and nothing else, where it is among the recordings."""
    place = store.artifact_folder(owner)
    if place is None or place.parent.name != owner.id or store.root.resolve() not in place.resolve().parents:
        return []
    return [place.parent]
