"""Folders of TensorBoard: one run for each folder with event files.

A run that was resumed has several files, which are joined in the order in which they were begun.  `add_hparams` of
torch writes a subfolder of its own: the first one below a run has the run's parameters, any other is a run.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path

from labtrack.stores import tree
from labtrack.stores.foreign.events import EventFile
from labtrack.stores.foreign.logs import LoggedRun
from labtrack.stores.foreign.walk import placed, walk
from labtrack.stores.gathered import GatheredStore, Place, run_id_of
from labtrack.stores.model import RUNNING, Findings, Run
from labtrack.stores.values import QUIET, milliseconds, owner, params, read_yaml

KIND = "tensorboard"
_MARK, _EMPTY = "tfevents", ".profile-empty"
_HPARAMS, _CHECKPOINTS = "hparams.yaml", "checkpoints"  # Lightning's logger keeps them beside the events


def claims(folder: Path, files: Iterable[str], folders: Iterable[str]) -> bool:
    """Whether a folder is a run of TensorBoard."""
    return any(is_event_file(name) for name in files)


def is_event_file(name: str) -> bool:
    """By its name, as TensorBoard itself does."""
    return _MARK in name and not name.endswith(_EMPTY)


class TensorBoardStore(GatheredStore):
    """A folder with event files, or with such folders at any depth."""

    kind = KIND

    def __init__(self, root: Path) -> None:
        """Looks for event files.  Raises BadInputError where the folder can't be read."""
        self._folders: dict[Path, _Folder] = {}
        super().__init__(root)

    def _look(self) -> Iterator[_Folder]:
        there = {}
        for folder, names, _ in walk(self.root, self.looked.problem):
            events = [name for name in names if is_event_file(name)]
            if events:
                there[folder] = events
        for folder, names in there.items():
            if folder not in self._folders:
                self._folders[folder] = _Folder(folder, *placed(self.root, folder, there))
            self._folders[folder].take(names, self.looked)
        known = {folder: self._folders[folder] for folder in there if self._folders[folder].own}
        for folder, session in _sessions(known, there).items():
            found = known.pop(session)
            if folder in known:
                known[folder].session = found
        for one in known.values():
            if one.is_run():
                yield one
            else:
                one.tell(self.looked)
                self.looked.warning(one.folder, "no scalar and no parameter is recorded in it, so that it is no run")


class _Folder(LoggedRun[EventFile]):
    """A run.  own: its event files by name.  session: the subfolder with its hparams, where torch made one."""

    def __init__(self, folder: Path, experiment: str, name: str) -> None:
        super().__init__(folder)
        self._experiment, self._name = experiment, name
        self.own: dict[str, EventFile] = {}
        self.session: _Folder | None = None
        self._config: dict[str, str] = {}

    def take(self, names: Iterable[str], found: Findings) -> None:
        """Takes the event files that are there now and have begun."""
        for name in names:
            file = self.own.get(name) or EventFile(self.folder / name)
            try:
                if file.head():
                    self.own[name] = file
                    continue
                found.warning(file.path, "there is no event in it yet")
            except OSError as error:
                found.problem(file.path, f"it can't be read: {error.strerror}")

    @property
    def first(self) -> EventFile:
        return min(self.own.values(), key=_order)

    @property
    def logs(self) -> list[EventFile]:
        return sorted([*self.own.values(), *(self.session.own.values() if self.session else ())], key=_order)

    @property
    def id(self) -> str:
        return run_id_of(KIND, self.first.path.name, self.first.head().hex())

    def is_run(self) -> bool:
        """Whether there is anything that makes a run of it."""
        self.scan()
        return any(file.seen.counts or file.seen.session.params for file in self.logs)

    def run(self) -> Run:
        self.scan()
        first = min(file.seen.first for file in self.logs)
        status, end = self._ending()
        return Run(
            self.id,
            self._experiment,
            self._name,
            owner(self.first.path),
            status,
            milliseconds(first) or None,
            None if status == RUNNING else milliseconds(end) or None,
            artifact_uri=str(self.folder.absolute()),
            params=self._params(),
            tags={"mlflow.runName": self._name, "labtrack.recorded_with": "tensorboard"},
        )

    def places(self) -> list[Place]:
        return [Place(self.folder, (_HPARAMS, _CHECKPOINTS))]

    def status(self) -> str:
        return self._ending()[0]

    def _ending(self) -> tuple[str, float]:
        """Status and end: recorded by TensorFlow's hparams, and else by how long ago the last event was."""
        last = max(file.seen.last for file in self.logs)
        for file in reversed(self.logs):
            if file.seen.session.status:
                return file.seen.session.status, max(last, file.seen.session.end)
        return (RUNNING if time.time() - last < QUIET else "FINISHED"), last

    def _params(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for file in self.logs:
            found.update(file.seen.session.params)
        config = self._hparams()
        same = {key.replace(".", "/") for key in config}  # Lightning joins with slashes
        return {**{key: value for key, value in found.items() if key not in same}, **config}

    def _hparams(self) -> dict[str, str]:
        """The params of Lightning's hparams.yaml, which still knows 1 from 1.0."""
        path = self.folder / _HPARAMS
        if tree.is_file(path):
            self.reading(path, lambda: self._config.update(params(read_yaml(path.read_bytes()))))
        return self._config


def _order(file: EventFile) -> tuple[float, str]:
    return file.began(), file.path.name


def _sessions(folders: Mapping[Path, _Folder], there: Container[Path]) -> dict[Path, Path]:
    """The subfolder with the hparams of a run, by the run's folder; also of one that can't be read now."""
    found: dict[Path, Path] = {}
    for folder, one in sorted(folders.items(), key=lambda item: _order(item[1].first)):
        if folder.parent in there and one.first.is_session():
            found.setdefault(folder.parent, folder)
    return found
