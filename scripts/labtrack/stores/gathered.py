"""Stores whose runs are gathered from files: reports, and what other trackers recorded.

A reader finds `Recording`s, one for each run; everything else that a store has to do is done here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from labtrack.stores.artifacts import LocalArtifacts
from labtrack.stores.model import (
    Artifact,
    Experiment,
    Findings,
    Having,
    LoggedModel,
    MetricPoint,
    ModelPoint,
    Owner,
    Problem,
    RegisteredModel,
    Run,
    Trace,
    shown,
)
from labtrack.stores.sqlite import unknown_run
from labtrack.stores.summary import PARTS, Summaries
from labtrack.stores.summing import of_points


class Place(NamedTuple):
    """A folder with files of a run.  only: the names in it that are meant; empty for all.

    prefix: the folder in which they are among the run's artifacts; empty for none.
    """

    folder: Path
    only: tuple[str, ...] = ()
    prefix: str = ""


class Recording(Protocol):
    """One run.  Each call sees what is there at that moment."""

    @property
    def id(self) -> str:
        """32 hex digits, from what does not change while the run is recorded, moved or copied."""

    @property
    def folder(self) -> Path:
        """Where it is, for what is told of it."""

    @property
    def appends(self) -> bool:
        """Whether new points of a metric always come behind those that are there."""

    def run(self) -> Run:
        """The run as it is now."""

    def counts(self) -> Mapping[str, int]:
        """The number of points of each metric."""

    def points(self, skip: Mapping[str, int]) -> Iterator[MetricPoint]:
        """The points without the first skip[key] of each key."""

    def places(self) -> Iterable[Place]:
        """Where its artifacts are."""

    def tell(self, found: Findings) -> None:
        """Tells what could not be read, as far as it was looked at."""


class GatheredStore:
    """A folder, or a file, with runs of one kind."""

    kind = ""

    def __init__(self, root: Path) -> None:
        """Looks for runs.  Raises BadInputError where `root` can't be read."""
        self.root = root
        self.found = Findings()
        self.looked = Findings()  # what the last look told
        self._files = LocalArtifacts(root, self.found)
        self._recordings: dict[str, Recording] = {}
        self._gather()

    def _look(self) -> Iterable[Recording]:
        """The runs that are there now; those that were known are the same objects again.

        What can't be read, and is of no run, is told by `looked`.
        """
        raise NotImplementedError

    def _gather(self) -> None:
        self.looked = Findings()
        found: dict[str, Recording] = {}
        for one in self._look():
            known = found.setdefault(one.id, one)
            if known is not one:
                less, more = (known, one) if _size(known) < _size(one) else (one, known)
                found[one.id] = more
                what = f"it is a copy of the run in {shown(more.folder)}, which is read in its place"
                self.looked.warning(less.folder, what, one.id)
        self._recordings = found

    @property
    def location(self) -> str:
        return str(self.root)

    @property
    def identity(self) -> str:
        """Made from the oldest run, which stays the same when others come."""
        return hashlib.sha256(f"{self.kind}\n{self._oldest()}".encode()).hexdigest()[:32]

    def _oldest(self) -> str:
        """The id of the oldest run; empty where there is none."""
        return min(((run.start_time or 0, run.id) for run in self._runs()), default=(0, ""))[1]

    def experiments(self, *, deleted: bool = False) -> list[Experiment]:
        self._gather()
        return [Experiment(name, name) for name in sorted({run.experiment_id for run in self._runs()})]

    def runs(self, experiment_id: str | None = None, *, deleted: bool = False, having: Having = ()) -> Iterator[Run]:
        self._gather()
        return (run for run in self._runs() if experiment_id in (None, run.experiment_id))

    def heads(self, *, deleted: bool = False) -> Iterator[Run]:
        return self.runs(deleted=deleted)

    def run(self, run_id: str) -> Run:
        if run_id not in self._recordings:
            self._gather()
        return self._recording(run_id).run()

    def appends(self, run_id: str) -> bool:
        return self._recording(run_id).appends

    def metric_keys(self, run_id: str) -> dict[str, int]:
        return {key: count for key, count in self._recording(run_id).counts().items() if count}

    def points(
        self, run_id: str, skip: Mapping[str, int] | None = None, keys: Collection[str] | None = None
    ) -> Iterator[MetricPoint]:
        found = self._recording(run_id).points(skip or {})
        return found if keys is None else (point for point in found if point.key in keys)

    def summaries(
        self, run_ids: Sequence[str], keys: Collection[str] | None = None, parts: Collection[str] = PARTS
    ) -> Summaries:
        return of_points(self, run_ids, keys, parts)

    def artifacts(self, owner: Owner) -> Iterator[Artifact]:
        found = [
            replace(one, path=f"{place.prefix}/{one.path}") if place.prefix else one
            for place in self._places(owner)
            for one in self._files.list(self._at(owner, place), only=place.only)
        ]
        return iter(sorted({one.path: one for one in found}.values(), key=lambda one: one.path.split("/")))

    def local_path(self, owner: Owner, path: str) -> Path | None:
        place, name = self._placed(owner, path)
        return self._files.path(self._at(owner, place), name)

    def open_artifact(self, owner: Owner, path: str) -> BinaryIO:
        place, name = self._placed(owner, path)
        return self._files.open(self._at(owner, place), name)

    def logged_models(self, *, deleted: bool = False) -> Iterator[LoggedModel]:
        return iter(())

    def model_points(self, model_id: str) -> Iterator[ModelPoint]:
        return iter(())

    def registered_models(self) -> list[RegisteredModel]:
        return []

    def traces(self, experiment_id: str | None = None) -> Iterator[Trace]:
        return iter(())

    def spans(self, trace: Trace) -> bytes | None:
        return None

    def unread(self) -> Mapping[str, int]:
        return {}

    def problems(self) -> list[Problem]:
        told = Findings()
        for one in self._recordings.values():
            one.tell(told)
        return [*self.found.problems(), *self.looked.problems(), *told.problems()]

    def close(self) -> None:
        """Nothing is kept open."""

    def __enter__(self) -> GatheredStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _runs(self) -> list[Run]:
        found = [one.run() for one in self._recordings.values()]
        return sorted(found, key=lambda run: run.start_time or 0)

    def _recording(self, run_id: str) -> Recording:
        if run_id not in self._recordings:
            raise unknown_run(run_id, self.location, self._recordings)
        return self._recordings[run_id]

    def _places(self, owner: Owner) -> list[Place]:
        return list(self._recording(owner.id).places())

    def _placed(self, owner: Owner, path: str) -> tuple[Place, str]:
        """The place that an artifact is in, and its name there."""
        places = self._places(owner)
        for place in sorted(places, key=lambda one: -len(one.prefix)):
            if place.prefix and path.startswith(f"{place.prefix}/"):
                return place, path[len(place.prefix) + 1 :]
        plain = [place for place in places if not place.prefix]
        return (plain[-1] if plain else Place(self.root / "nowhere")), path

    def _at(self, owner: Owner, place: Place) -> Owner:
        """The owner as one whose artifacts are there."""
        folder = place.folder.absolute()
        run = owner if isinstance(owner, Run) else self.run(owner.id)
        at = replace(run, artifact_uri=str(folder))
        self._files.prefer(at, folder)
        return at


def _size(one: Recording) -> int:
    return sum(one.counts().values())


def skipping(points: Iterable[MetricPoint], skip: Mapping[str, int]) -> Iterator[MetricPoint]:
    """The points without the first skip[key] of each key."""
    left = {key: count for key, count in skip.items() if count}
    for point in points:
        if left.get(point.key):
            left[point.key] -= 1
        else:
            yield point


def counted(points: Iterable[MetricPoint]) -> dict[str, int]:
    """The number of points of each metric."""
    found: dict[str, int] = {}
    for point in points:
        found[point.key] = found.get(point.key, 0) + 1
    return found


def run_id_of(kind: str, *facts: object) -> str:
    """The id of a run by what does not change of it."""
    said = "\0".join(str(one) for one in (kind, *facts))
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:32]
