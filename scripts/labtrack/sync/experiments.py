"""The experiments at the server that a recording's runs go to."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from labtrack.errors import LabtrackError
from labtrack.stores.model import DELETED, Experiment, unnamed
from labtrack.sync import limits
from labtrack.sync.faults import FAULTS, words
from labtrack.tracking import names
from labtrack.tracking.destination import Destination
from labtrack.tracking.http import ServerError
from labtrack.tracking.remote import RemoteExperiment

NAME, TAG = 250, 5000  # characters: MLflow's database takes 256, its interface 5,000
_MARK = 9  # characters of a sign and a hash


@dataclass(frozen=True)
class Fitted:
    """An experiment as the server takes it.

    changed: what had to be changed for that, by the name that is sent: the original key and value.
    deleted: in the recording.
    """

    name: str
    tags: Mapping[str, str]
    changed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    deleted: bool = False

    def left(self, there: RemoteExperiment) -> dict[str, str]:
        """The tags that are missing at the server, or different there."""
        return {key: value for key, value in self.tags.items() if there.tags.get(key) != value}


def fitted(experiment: Experiment) -> Fitted:
    """Makes name and tags of a recorded experiment fit; one without a name is called after its id."""
    name = limits.fit_text(experiment.name, len(experiment.name)).strip() or unnamed(experiment.id)
    if len(name) > NAME or (name != experiment.name and experiment.name.strip()):
        name = f"{name[: NAME - _MARK]}~{limits.hash_of(experiment.name)}"
    changed: dict[str, dict[str, Any]] = {}
    if name != experiment.name:
        changed[name] = {"key": "name", "value": experiment.name}
    tags = {}
    for key, value in experiment.tags.items():
        if key in names.OWN:
            continue
        sent, text = limits.fit_key(key), limits.fit_text(str(value), TAG)
        tags[sent] = text
        if (sent, text) != (key, value):
            changed[f"tag {sent}"] = {"key": key, "value": value}
    return Fitted(name, tags, changed, experiment.lifecycle_stage == DELETED)


class Experiments:
    """Experiments by name, made when the first run needs them.  May be used by several threads.

    there: what the server has, by name; what is made is added.  store: the recording's identity.
    """

    def __init__(self, destination: Destination, there: dict[str, RemoteExperiment], store: str) -> None:
        self._destination, self._there, self._store = destination, there, store
        self._lock = threading.Lock()
        self._tags: dict[str, Mapping[str, str]] = {}
        self._refused: dict[str, str] = {}

    def expect(self, found: Fitted) -> None:
        """Notes the tags with which an experiment is to be made, if it is."""
        self._tags.setdefault(found.name, found.tags)

    def name_of(self, experiment_id: str) -> str:
        """The name of an experiment at the server."""
        return next((name for name, one in self._there.items() if one.id == experiment_id), "")

    def id_of(self, name: str) -> str:
        """The id of an experiment at the server, made where there is none.  Raises LabtrackError where it can't be."""
        with self._lock:
            if name in self._refused:
                raise LabtrackError(self._refused[name])
            if name not in self._there:
                try:
                    self._there[name] = self._destination.create_experiment(name, self._store, self._tags.get(name, {}))
                except ServerError:
                    raise
                except FAULTS as error:
                    self._refused[name] = f"Experiment {name!r} can't be made at the server: {words(error)}"
                    raise LabtrackError(self._refused[name]) from None
            number, stage, _ = self._there[name]
        if stage == DELETED:
            raise LabtrackError(
                f"Experiment {name!r} is deleted at the server, which takes no runs for it.",
                f"restore it (`mlflow experiments restore --experiment-id {number}`), or choose another: -e NAME.",
            )
        return number
