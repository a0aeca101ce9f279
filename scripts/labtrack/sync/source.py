"""The recording as a sync looks at it: runs with what belongs to them."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from labtrack.stores.model import DELETED, Artifact, LoggedModel, ModelPoint, Owner, Problem, Run, Store
from labtrack.sync import limits, state

SERVER_KIND = "server"
SERVER_SOURCE = "server2server"  # as Anemoi calls it; anything else is "offline"


class Models:
    """The logged models of a recording and their points, read once and then looked up by run.

    Nearly all recordings have few or none of them, so they are kept in memory.  deleted: the ids of those that were
    deleted; a server finds no deleted model again, so none is sent.
    """

    def __init__(self, store: Store) -> None:
        everything = {model.id: model for model in store.logged_models(deleted=True)}
        self.deleted = {one for one, model in everything.items() if model.lifecycle_stage == DELETED}
        self.by_id = {one: model for one, model in everything.items() if one not in self.deleted}
        self._by_run: dict[str, list[LoggedModel]] = defaultdict(list)
        self._points: dict[str, list[tuple[str, ModelPoint]]] = defaultdict(list)
        for model in self.by_id.values():
            self._by_run[model.source_run_id or ""].append(model)
            for one in store.model_points(model.id):
                self._points[one.run_id].append((model.id, one))

    def made_by(self, run: Run) -> list[LoggedModel]:
        """The models that a run made."""
        linked = {one.model_id for one in run.model_outputs}
        found = {model.id: model for model in self._by_run.get(run.id, ())}
        found.update({one: self.by_id[one] for one in linked if one in self.by_id})
        return list(found.values())

    def makers(self, run: Run) -> set[str]:
        """The runs that made the models which a run read, or has points of."""
        linked = {one.model_id for one in (*run.model_inputs, *run.model_outputs)} | {
            one for one, _ in self.points(run)
        }
        found = {self.by_id[one].source_run_id for one in linked if one in self.by_id}
        return {one for one in found if one and one != run.id}

    def points(self, run: Run) -> list[tuple[str, ModelPoint]]:
        """The run's metric points that also belong to a model, with the model's id."""
        return self._points.get(run.id, [])


class Fitted:
    """A store whose artifacts have the names that the server keeps; everything else is the store's own.

    A name is the recorded one wherever the server keeps that: see `limits.fit_path`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._renamed: dict[str, dict[str, str]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def artifacts(self, owner: Owner) -> Iterator[Artifact]:
        """The files of a run or of a logged model, sorted by path."""
        listed = list(self._store.artifacts(owner))
        taken = {one.path for one in listed}
        renamed: dict[str, str] = {}
        found = []
        for one in listed:
            sent = limits.fit_path(one.path, taken)
            if sent != one.path:
                renamed[sent] = one.path
                taken.add(sent)
            found.append(replace(one, path=sent) if sent != one.path else one)
        self._renamed[owner.id] = renamed
        return iter(sorted(found, key=lambda one: one.path.split("/")) if renamed else found)

    def local_path(self, owner: Owner, path: str) -> Path | None:
        """Where an artifact is on this machine."""
        return self._store.local_path(owner, self._recorded(owner, path))

    def open_artifact(self, owner: Owner, path: str) -> BinaryIO:
        """An artifact's bytes."""
        return self._store.open_artifact(owner, self._recorded(owner, path))

    def renamed(self, owner: Owner) -> dict[str, str]:
        """The names of artifacts that are not sent as they were recorded: sent to recorded."""
        if owner.id not in self._renamed:
            self.artifacts(owner)
        return self._renamed[owner.id]

    def _recorded(self, owner: Owner, path: str) -> str:
        return self.renamed(owner).get(path, path)


class Source:
    """A recording that several threads read, each with a reader of its own.

    opens: opens the recording once more.
    """

    def __init__(self, opens: Callable[[], Store]) -> None:
        self._opens = opens
        self._local = threading.local()
        self._lock = threading.Lock()
        self._opened: list[Store] = []
        self.identity = self.store.identity
        self.location = self.store.location
        self.kind = SERVER_SOURCE if self.store.kind == SERVER_KIND else "offline"
        self.models = Models(self.store)

    @property
    def store(self) -> Store:
        """This thread's reader."""
        found: Store | None = getattr(self._local, "store", None)
        if found is None:
            found = self._local.store = cast("Store", Fitted(self._opens()))
            with self._lock:
                self._opened.append(found)
        return found

    def renamed(self, run: Run) -> dict[str, str]:
        """The artifacts of a run, and of the models that it made, that are sent under another name."""
        store = cast("Fitted", self.store)
        found = dict(store.renamed(run))
        for model in self.models.made_by(run):
            found.update({f"models/{model.id}/{sent}": recorded for sent, recorded in store.renamed(model).items()})
        return found

    def refresh(self) -> None:
        """Looks again for logged models."""
        self.models = Models(self.store)

    def problems(self) -> list[Problem]:
        """What could not be read so far."""
        found = (one for store in self._opened for one in store.problems())
        return list(dict.fromkeys(found))

    def damage(self, run_id: str | None) -> list[str]:
        """What of a run could not be read so far, a sentence each; None for what belongs to no run."""
        found = [str(one) for one in self.problems() if one.run_id == run_id and one.damage]
        return list(dict.fromkeys(" ".join(one.split()) for one in found))

    def close(self) -> None:
        """Closes all readers."""
        for store in self._opened:
            store.close()

    def digest(self, run: Run, points: Mapping[str, int] | None = None, files: list[Artifact] | None = None) -> str:
        """The hash of all of a run that is to be sent, as it is now."""
        store = self.store
        counted = store.metric_keys(run.id) if points is None else points
        listed = list(store.artifacts(run)) if files is None else files
        models = [(model, tuple(store.artifacts(model))) for model in self.models.made_by(run)]
        return state.digest(run, counted, listed, models, len(self.models.points(run)))

    def runs(self, *, deleted: bool) -> Iterator[Run]:
        """All runs."""
        return self.store.runs(deleted=deleted)
