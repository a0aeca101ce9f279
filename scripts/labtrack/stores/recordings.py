"""Folders that labtrack's recorder wrote: `labtrack:///scratch/me/runs`."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from labtrack.errors import BadInputError
from labtrack.stores import journals
from labtrack.stores.artifacts import LocalArtifacts
from labtrack.stores.model import (
    Experiment,
    Having,
    LoggedModel,
    MetricPoint,
    Owner,
    Problem,
    RegisteredModel,
    Run,
    Trace,
)
from labtrack.stores.replayed import Replayed
from labtrack.stores.sqlite import SqliteStore
from labtrack.stores.summary import PARTS, Summaries

_EVERY = 0.2  # seconds between two looks at the journals
_SHARE = 5  # where a look takes long, it is so many times as long until the next


class RecordingsStore(SqliteStore):
    """All recordings of a folder, as one store."""

    kind = "recordings"

    def __init__(self, root: Path) -> None:
        """Opens a folder that holds `recordings`.  Raises BadInputError where nothing was recorded in it yet."""
        self.root = root
        self._replayed = Replayed(root)
        self._remade = self._replayed.remade
        self._looked, self._every = time.monotonic(), _EVERY
        try:
            super().__init__(self._replayed.path)
        except BadInputError as error:
            self._replayed.close()
            told = "; ".join(f"{one.journal}: {one.what}" for one in self._replayed.told)
            raise BadInputError(
                f"Nothing that was recorded in {root} can be read yet{': ' + told if told else ''}.",
                "if a job has just begun, wait until it has logged.",
            ) from error
        self._files = LocalArtifacts(root.absolute(), self.found)

    @property
    def location(self) -> str:
        return str(self.root)

    @property
    def identity(self) -> str:
        return self._replayed.identity()

    def experiments(self, *, deleted: bool = False) -> list[Experiment]:
        self._look()
        return super().experiments(deleted=deleted)

    def runs(self, experiment_id: str | None = None, *, deleted: bool = False, having: Having = ()) -> Iterator[Run]:
        self._look()
        return super().runs(experiment_id, deleted=deleted, having=having)

    def heads(self, *, deleted: bool = False) -> Iterator[Run]:
        self._look()
        return super().heads(deleted=deleted)

    def run(self, run_id: str) -> Run:
        self._look()
        return super().run(run_id)

    def metric_keys(self, run_id: str) -> dict[str, int]:
        self._look()
        return super().metric_keys(run_id)

    def points(
        self, run_id: str, skip: Mapping[str, int] | None = None, keys: Collection[str] | None = None
    ) -> Iterator[MetricPoint]:
        self._look()
        return super().points(run_id, skip, keys)

    def summaries(
        self, run_ids: Sequence[str], keys: Collection[str] | None = None, parts: Collection[str] = PARTS
    ) -> Summaries:
        self._look()
        return super().summaries(run_ids, keys, parts)

    def logged_models(self, *, deleted: bool = False) -> Iterator[LoggedModel]:
        self._look()
        return super().logged_models(deleted=deleted)

    def registered_models(self) -> list[RegisteredModel]:
        self._look()
        return super().registered_models()

    def traces(self, experiment_id: str | None = None) -> Iterator[Trace]:
        self._look()
        return super().traces(experiment_id)

    def appends(self, run_id: str) -> bool:
        # several processes wrote it: made anew elsewhere, the file may have their points in another order
        return self._replayed.writers(run_id) < 2  # noqa: PLR2004

    def problems(self) -> list[Problem]:
        folder = self.root / journals.FOLDER
        told = [Problem(str(folder / one.journal), one.what, damage=one.damage) for one in self._replayed.told]
        return told + self.found.problems()

    def artifact_folder(self, owner: Owner) -> Path | None:
        """The folder of a run's or a model's artifacts; None where there is none."""
        return self._files.folder(owner)

    def close(self) -> None:
        super().close()
        self._replayed.close()

    def _look(self) -> None:
        """Takes up what was recorded meanwhile."""
        if time.monotonic() - self._looked < self._every:
            return
        began = time.monotonic()
        self._replayed.refresh()
        self._looked = time.monotonic()
        self._every = max(_EVERY, _SHARE * (self._looked - began))
        if self._remade != self._replayed.remade:
            self._remade = self._replayed.remade
            self._reopen(self._replayed.path)

    def _reopen(self, path: Path) -> None:
        self._db.close()
        fresh: dict[str, Any] = vars(SqliteStore(path))
        kept = {"found": self.found, "_files": self._files}
        vars(self).update({**fresh, **kept})
