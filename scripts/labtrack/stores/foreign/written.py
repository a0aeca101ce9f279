"""Runs in small files that are read whole, and of which those that did not change are not counted again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from labtrack.stores import tree
from labtrack.stores.foreign.logs import said
from labtrack.stores.foreign.tables import natural
from labtrack.stores.foreign.walk import walk
from labtrack.stores.gathered import GatheredStore, Place, counted, skipping
from labtrack.stores.model import Findings, MetricPoint, Run


class WrittenRun:
    """A run in a folder.  others: by kind and key, how many values there were that are no numbers."""

    appends = True
    id = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.others: dict[str, dict[str, int]] = {}
        self.unread: dict[Path, str] = {}
        self._counted: tuple[object, dict[str, int]] = (), {}

    def begins(self) -> bool:
        """Whether there is what says which run it is."""
        raise NotImplementedError

    def run(self) -> Run:
        """The run as it is now."""
        raise NotImplementedError

    def places(self) -> Iterable[Place]:
        """Where its artifacts are."""
        raise NotImplementedError

    def files(self) -> list[Path]:
        """The files that have the points."""
        raise NotImplementedError

    def read(self) -> Iterator[MetricPoint]:
        """All points, and notes in `others` what is none."""
        raise NotImplementedError

    def counts(self) -> dict[str, int]:
        state = self._state()
        if self._counted[0] != state:
            self._counted = state, counted(self._points())
        return self._counted[1]

    def points(self, skip: Mapping[str, int]) -> Iterator[MetricPoint]:
        return skipping(self._points(), skip)

    def tell(self, found: Findings) -> None:
        """Tells what could not be read, as far as it was looked at."""
        for path, why in self.unread.items():
            found.problem(path, why, self.id or None)
        if self.others:
            found.warning(self.folder, f"what is no number is no metric: {said(self.others)}", self.id or None)

    def other(self, kind: str, key: str) -> None:
        """Notes something that can't be a metric."""
        keys = self.others.setdefault(kind, {})
        keys[key] = keys.get(key, 0) + 1

    def reading(self, path: Path, read: Callable[[bytes], Mapping[str, object]]) -> dict[str, object]:
        """What a file has; nothing where there is none, and where it can't be read, which will be told."""
        self.unread.pop(path, None)
        if not tree.is_file(path):
            return {}
        try:
            return dict(read(path.read_bytes()))
        except (OSError, ValueError) as error:
            self.unread[path] = f"it can't be read: {' '.join(str(error).split())[:200]}"
            return {}

    def _points(self) -> Iterator[MetricPoint]:
        self.others = {}
        yield from self.read()

    def _state(self) -> object:
        found = []
        for path in self.files():
            try:
                facts = path.stat()
                found.append((path, facts.st_size, facts.st_mtime_ns))
            except OSError:
                continue
        return found


class WrittenStore(GatheredStore):
    """A folder with runs that are a folder each, or one of them.

    nests: whether a run's folder may have others in it.  nothing: a file and what is told of it where no run has begun.
    """

    nests: ClassVar[bool] = False
    nothing: ClassVar[tuple[str, str]]

    def __init__(self, root: Path) -> None:
        """Looks for runs.  Raises BadInputError where the folder can't be read."""
        self._known: dict[Path, WrittenRun] = {}
        super().__init__(root)

    @staticmethod
    def _claims(folder: Path, files: Iterable[str], folders: Iterable[str]) -> bool:
        """Whether a folder is a run."""
        raise NotImplementedError

    def _made(self, folder: Path, there: list[Path]) -> WrittenRun:
        """The run of a folder.  there: the folders of all runs."""
        raise NotImplementedError

    def _look(self) -> Iterator[WrittenRun]:
        there = []
        for folder, names, folders in walk(self.root, self.looked.problem):
            if self._claims(folder, names, folders):
                there.append(folder)
                folders[:] = folders if self.nests else []
        for folder in sorted(there, key=natural):
            if folder not in self._known:
                self._known[folder] = self._made(folder, there)
            one = self._known[folder]
            if one.begins():
                yield one
            elif one.unread:
                one.tell(self.looked)
            else:
                file, why = self.nothing
                self.looked.warning(folder / file, why)
