"""Logged models (MLflow >= 3.0): they live beside runs, have ids of their own, and are linked to runs."""

from __future__ import annotations

import threading

import requests

from labtrack.stores.model import LoggedModel, ModelLink, Run
from labtrack.sync.duplicates import is_own
from labtrack.sync.files import Sender
from labtrack.sync.source import Source
from labtrack.tracking.destination import Destination, RemoteModel, RemoteRun
from labtrack.tracking.http import ApiError


class ModelSender:
    """Sends logged models, each once.  copies: recorded model id to the server's."""

    def __init__(self, source: Source, destination: Destination, files: Sender, experiment_ids: list[str]) -> None:
        self._source, self._destination, self._files = source, destination, files
        self._experiment_ids = experiment_ids
        self._there: dict[str, RemoteModel] | None = None
        self._lock = threading.Lock()
        self._whole: dict[str, str] = {}  # the status that was sent last
        self.copies: dict[str, str] = {}

    def send(self, run: Run, copy: RemoteRun, notes: list[str]) -> list[str]:
        """Sends the models that a run made, and links those that it made or read.  Gives what failed."""
        linked = [*run.model_inputs, *run.model_outputs]
        made = self._source.models.made_by(run)
        if not made and not linked:
            return []
        failed: list[str] = []
        try:
            with self._lock:  # a model may be made by one run and read by others
                for model in made:
                    failed += self._model(model, copy)
        except ApiError as error:
            if error.status != requests.codes.not_found or self._there is not None:
                raise
            notes.append(f"{len(made)} logged models are left out: the server's MLflow is older than 3.0 and has none")
            return failed
        self._link(run, copy, notes)
        return failed

    def copy_of(self, model_id: str) -> str | None:
        """The server's id for a recorded model."""
        with self._lock:
            if model_id not in self.copies:
                known = self._known().get(model_id)
                if known is None:
                    return None
                self.copies[model_id] = known.id
            return self.copies[model_id]

    def _known(self) -> dict[str, RemoteModel]:
        """What is at the server from earlier syncs."""
        if self._there is None:
            self._there = {}
            for model in self._destination.models(self._experiment_ids, self._source.identity):
                self._there.setdefault(model.source_id, model)
        return self._there

    def remove_duplicates(self, experiment_ids: list[str]) -> None:
        """Deletes second copies of models, as `duplicates` describes them for runs."""
        if not self._source.models.by_id:
            return
        try:
            found = self._destination.models(experiment_ids, self._source.identity)
        except ApiError as error:
            if error.status != requests.codes.not_found:  # MLflow before 3.0
                raise
            return
        kept = dict(self.copies)
        for model in found:
            own = is_own(model.tags, self._destination.maker) and not model.is_whole
            if kept.setdefault(model.source_id, model.id) != model.id and own:
                self._destination.delete_model(model.id)

    def _model(self, model: LoggedModel, copy: RemoteRun) -> list[str]:
        there = self._known()
        found, fresh = there.get(model.id), False
        if found is None:
            found = self._destination.create_model(copy.experiment_id, self._source.identity, model, copy.id)
            there[model.id], fresh = found, True
        self.copies[model.id] = found.id
        sent = self._files.start(model, found.artifact_location, {}, fresh=fresh).finish()
        said = (found.status, self._whole.get(model.id))
        if not sent.failed and model.status in ("READY", "FAILED") and model.status not in said:
            self._destination.finalize_model(found.id, model.status)
            self._whole[model.id] = model.status
        return [f"model {model.name}: {one}" for one in sent.failed]

    def _link(self, run: Run, copy: RemoteRun, notes: list[str]) -> None:
        missing = [one for one, _ in (*run.model_inputs, *run.model_outputs) if self.copy_of(one) is None]
        if missing:
            notes.append(f"links to models that are not at the server are left out: {', '.join(sorted(missing))}")
        read = {self.copies[one.model_id] for one in run.model_inputs if one.model_id in self.copies}
        if read - copy.model_inputs:
            self._destination.log_inputs(copy.id, [], sorted(read - copy.model_inputs))
        made = [ModelLink(self.copies[one.model_id], one.step) for one in run.model_outputs if one[0] in self.copies]
        left = [one for one in made if one.model_id not in copy.model_outputs]
        if left:
            self._destination.log_outputs(copy.id, left)
