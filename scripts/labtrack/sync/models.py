"""Logged models (MLflow >= 3.0): they live beside runs, have ids of their own, and are linked to runs or to none."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import requests

from labtrack.errors import BadInputError
from labtrack.stores.model import LoggedModel, ModelLink, Run
from labtrack.sync import damage, limits, state
from labtrack.sync.duplicates import is_own
from labtrack.sync.files import Sender, Sent
from labtrack.sync.journal import Entry, Journal, fingerprint
from labtrack.sync.source import Source
from labtrack.tracking import names
from labtrack.tracking.destination import Destination, has_tag
from labtrack.tracking.http import ApiError
from labtrack.tracking.remote import RemoteModel, RemoteRun


@dataclass
class SentModel:
    """What became of a logged model, or of several.  As in a run's outcome."""

    copy: str = ""
    created: bool = False
    artifacts: int = 0
    bytes: int = 0
    failed: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    cuts: list[str] = field(default_factory=list)

    def add(self, other: SentModel, name: str) -> None:
        """Takes up what became of one model of a run."""
        self.failed += [f"model {name}: {one}" for one in other.failed]
        self.damaged += [f"model {name}: {one}" for one in other.damaged]


class ModelSender:
    """Sends logged models, each once.  copies: recorded model id to the server's.

    experiment_ids: gives all experiments of the server.  repair, accept: as in `push.Context`.
    """

    def __init__(
        self,
        source: Source,
        destination: Destination,
        files: Sender,
        journal: Journal,
        experiment_ids: Callable[[], Sequence[str]],
        *,
        repair: bool = False,
        accept: bool = False,
    ) -> None:
        self._source, self._destination, self._files, self._journal = source, destination, files, journal
        self._experiment_ids, self._repair, self._accept = experiment_ids, repair, accept
        self._there: dict[str, RemoteModel] | None = None
        self._old_server = False
        self._lock = threading.Lock()  # of the dictionaries, never held during a call that sends
        self._asking = threading.Lock()
        self._sent: dict[str, Future[SentModel]] = {}
        self.copies: dict[str, str] = {}

    def send(self, run: Run, copy: RemoteRun, notes: list[str]) -> SentModel:
        """Sends the models that a run made, and links those that it made or read."""
        found = SentModel()
        linked = [*run.model_inputs, *run.model_outputs]
        made = self._source.models.made_by(run)
        if not made and not linked:
            return found
        self._known()
        if self._old_server:
            found.failed.append(
                f"{len(made)} logged models can't be sent: the server's MLflow is older than 3.0, has none"
            )
            return found
        for model in made:
            found.add(self.send_one(model, copy.experiment_id, copy.id), model.name)
        models = self._source.models
        gone = sorted(
            {one for one, _ in linked if one not in (*models.by_id, *models.deleted) and not self.copy_of(one)}
        )
        found.damaged += [f"a link leads to the logged model {one}, which the recording does not have" for one in gone]
        self._link(run, copy, notes)
        return found

    def send_one(self, model: LoggedModel, experiment_id: str, run_id: str | None) -> SentModel:
        """Sends a model, in this sync once: who comes second waits for the first.

        run_id: the run that made it, at the server; None for one that belongs to no run.
        """
        with self._lock:
            claimed = self._sent.get(model.id)
            mine: Future[SentModel] = Future()
            if claimed is None:
                self._sent[model.id] = mine
        if claimed is not None:
            return claimed.result()
        try:
            mine.set_result(self._send(model, experiment_id, run_id))
        except BaseException as error:
            mine.set_exception(error)
        return mine.result()

    def copy_of(self, model_id: str) -> str | None:
        """The server's id for a recorded model."""
        found = self.copies.get(model_id)
        if found is None:
            there = self._known().get(model_id)
            found = there.id if there else None
        return found

    def alone(self) -> list[LoggedModel]:
        """The recording's models that belong to none of its runs."""
        return [model for model in self._source.models.by_id.values() if not self._has_run(model)]

    def _has_run(self, model: LoggedModel) -> bool:
        if not model.source_run_id:
            return False
        try:
            self._source.store.run(model.source_run_id)
        except BadInputError:
            return False
        return True

    def there(self, model: LoggedModel) -> RemoteModel | None:
        """A model's copy at the server, as it was when it was asked for first."""
        return self._known().get(model.id)

    def is_whole(self, model: LoggedModel, there: RemoteModel) -> bool:
        """Whether a copy has all that the recording has now."""
        said = state.parse(there.tags.get(names.STATE, ""))
        if said is None or said.state == state.INCOMPLETE or said.digest != self._digest(model):
            return False
        new = damage.left(self._damage(model), damage.accepted(there.tags.get(names.ACCEPTED, "")))
        return not new

    def remove_duplicates(self, experiment_ids: list[str]) -> None:
        """Deletes second copies of models, as `duplicates` describes them for runs."""
        if not self._source.models.by_id or self._old_server:
            return
        try:
            found = self._destination.models(experiment_ids, has_tag(names.SOURCE_STORE, self._source.identity))
        except ApiError as error:
            if error.status != requests.codes.not_found:  # MLflow before 3.0
                raise
            return
        kept = dict(self.copies)
        for model in found:
            own = is_own(model.tags, self._destination.maker) and not model.is_whole
            if kept.setdefault(model.source_id, model.id) != model.id and own:
                self._destination.delete_model(model.id)

    def _known(self) -> dict[str, RemoteModel]:
        """What is at the server from earlier syncs: of this recording, and of others that have the same models."""
        with self._asking:
            if self._there is None:
                self._there = self._ask()
            return self._there

    def _ask(self) -> dict[str, RemoteModel]:
        found: dict[str, RemoteModel] = {}
        if not self._source.models.by_id:
            return found
        everywhere = list(self._experiment_ids())
        try:
            of_store = has_tag(names.SOURCE_STORE, self._source.identity)
            for model in self._destination.models(everywhere, of_store) if everywhere else ():
                found.setdefault(model.source_id, model)
            for model_id in self._source.models.by_id:
                if model_id not in found and everywhere:
                    for model in self._destination.models(everywhere, has_tag(names.SOURCE_MODEL, model_id))[:1]:
                        found[model_id] = model
        except ApiError as error:
            if error.status != requests.codes.not_found:
                raise
            self._old_server = True
        return found

    def _send(self, model: LoggedModel, experiment_id: str, run_id: str | None) -> SentModel:
        there = self._known()
        name, fit = limits.fit_model(model)
        found, result = there.get(model.id), SentModel()
        if found is None:
            sendable = dataclasses.replace(model, name=name, params=fit.params, tags=fit.tags)
            found = self._destination.create_model(experiment_id, self._source.identity, sendable, run_id)
            result.created = True
        result.copy = self.copies[model.id] = found.id
        known = found.tags.get(names.STATE, "")
        entry = None if self._repair else self._journal.entry(model.id, found.id, known)
        if entry is None:
            entry = Entry(found.id, known)
            self._journal.start(model.id, entry)
        place = found.artifact_location
        parts = [self._files.start(
            model, place, entry.artifacts, fresh=result.created, compare=self._repair
        ).finish()]  # fmt: skip
        if fit.overflow:
            parts.append(
                self._files.own(place, names.OVERFLOW_FILE, fit.document(), entry.artifacts, compare=self._repair)
            )
        for sent in parts:
            self._journal.add(model.id, artifacts=sent.files)
            result.artifacts += sent.count
            result.bytes += sent.bytes
            result.failed += sent.failed
            result.damaged += sent.damaged
        result.cuts = fit.cuts
        self._judge(model, found, result)
        self._close(model, found, result, fit, entry=entry, sent=parts[0])
        return result

    def _judge(self, model: LoggedModel, found: RemoteModel, result: SentModel) -> None:
        seen = list(dict.fromkeys([*result.damaged, *self._damage(model)]))
        new = [] if self._accept else damage.left(seen, damage.accepted(found.tags.get(names.ACCEPTED, "")))
        result.accepted = [one for one in seen if one not in new]
        result.damaged = new

    def _close(
        self, model: LoggedModel, found: RemoteModel, result: SentModel, fit: limits.Fit, *, entry: Entry, sent: Sent
    ) -> None:
        """Status, changed tags, and the tag that says that all is there."""
        if not result.failed and model.status in ("READY", "FAILED") and model.status != found.status:
            self._destination.finalize_model(found.id, model.status)
        ending = state.INCOMPLETE if result.failed or result.damaged else state.COMPLETE
        if ending == state.COMPLETE and result.accepted:
            ending = state.ACCEPTED
        size = sum(one.size for one in sent.listed)
        tag = state.State(ending, 0, len(sent.listed), size, self._digest(model)).tag()
        tags = {
            key: value
            for key, value in ({} if result.created else fit.tags).items()
            if (entry.tags[key] != fingerprint(value) if key in entry.tags else found.tags.get(key) != value)
        }
        tags[names.STATE] = tag
        if result.accepted:
            tags[names.ACCEPTED] = damage.tag(result.accepted)
        if fit.overflow:
            tags[names.OVERFLOW] = fit.summary()
        self._journal.add(model.id, next=tag)
        if any(found.tags.get(key) != value for key, value in tags.items()):
            self._destination.set_model_tags(found.id, tags)
        known = {key: fingerprint(value) for key, value in fit.tags.items()}
        self._journal.add(model.id, state=tag, tags=known)
        with self._asking:
            if self._there is not None:
                self._there[model.id] = dataclasses.replace(
                    found, status=model.status if not result.failed else found.status, tags={**found.tags, **tags}
                )

    def _digest(self, model: LoggedModel) -> str:
        return state.digest_of_model(model, self._source.store.artifacts(model))

    def _damage(self, model: LoggedModel) -> list[str]:
        """What could not be read of a model that belongs to no run; of any other it is its run's."""
        return [] if model.source_run_id else [one for one in self._source.damage(None) if model.id in one]

    def _link(self, run: Run, copy: RemoteRun, notes: list[str]) -> None:
        linked = {one for one, _ in (*run.model_inputs, *run.model_outputs) if one in self._source.models.by_id}
        missing = sorted(one for one in linked if self.copy_of(one) is None)
        if missing:
            notes.append(f"links to models that are not at the server yet are left out: {', '.join(missing)}")
        read = {new for one in run.model_inputs for new in [self.copy_of(one.model_id)] if new}
        if read - copy.model_inputs:
            self._destination.log_inputs(copy.id, [], sorted(read - copy.model_inputs))
        made = [ModelLink(new, one.step) for one in run.model_outputs for new in [self.copy_of(one.model_id)] if new]
        left = [one for one in made if one.model_id not in copy.model_outputs]
        if left:
            self._destination.log_outputs(copy.id, left)
