"""What the destination of a sync has: experiments, runs and logged models, as the server tells of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from labtrack.tracking import names, parsing
from labtrack.tracking.parsing import plain


class RemoteExperiment(NamedTuple):
    """An experiment at the server."""

    id: str
    stage: str = "active"
    tags: Mapping[str, str] = MappingProxyType({})

    @property
    def accepted(self) -> str:
        """Its tag about damage that the user has accepted."""
        return self.tags.get(names.ACCEPTED, "")


@dataclass(frozen=True)
class RemoteRun:
    """A run at the server.  keys: its metrics.  inputs: (name, digest) of its datasets."""

    id: str
    experiment_id: str
    name: str = ""
    user_id: str = ""
    status: str = "RUNNING"
    start_time: int | None = None
    end_time: int | None = None
    lifecycle_stage: str = "active"
    artifact_uri: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()
    inputs: frozenset[tuple[str, str]] = frozenset()
    model_inputs: frozenset[str] = frozenset()
    model_outputs: frozenset[str] = frozenset()

    @property
    def source_id(self) -> str:
        """The id of the recorded run that this is the copy of; empty for any other run."""
        return self.tags.get(names.SOURCE_RUN, "")

    @property
    def rank(self) -> tuple[bool, str, str]:
        """Sorts copies of the same run: first the one to go on with, of which most is there, or the oldest."""
        return not self.tags.get(names.STATE), self.tags.get(names.CREATED, ""), self.id


@dataclass(frozen=True)
class RemoteModel:
    """A logged model at the server.  status: PENDING, READY or FAILED, as recordings have it."""

    id: str
    artifact_location: str
    status: str
    tags: Mapping[str, str]

    @property
    def is_whole(self) -> bool:
        """Whether a sync has said that its files are there."""
        return self.status in ("READY", "FAILED")

    @property
    def source_id(self) -> str:
        """The id of the recorded model that this is the copy of."""
        return self.tags.get(names.SOURCE_MODEL, "")


def as_experiment(data: Mapping[str, Any]) -> RemoteExperiment:
    """An experiment of an answer."""
    return RemoteExperiment(
        str(data["experiment_id"]), data.get("lifecycle_stage", "active"), plain(data.get("tags", ()))
    )


def as_run(data: Mapping[str, Any]) -> RemoteRun:
    """A run of an answer."""
    run, info = parsing.run(data), data["info"]
    return RemoteRun(
        id=run.id,
        experiment_id=run.experiment_id,
        name=run.name,
        user_id=run.user_id,
        status=run.status,
        start_time=info.get("start_time"),  # 0 is one too
        end_time=info.get("end_time"),
        lifecycle_stage=run.lifecycle_stage,
        artifact_uri=run.artifact_uri,
        params=run.params,
        tags=run.tags,
        keys=frozenset(one["key"] for one in data.get("data", {}).get("metrics", ())),
        inputs=frozenset((one.name, one.digest) for one in run.inputs),
        model_inputs=frozenset(one.model_id for one in run.model_inputs),
        model_outputs=frozenset(one.model_id for one in run.model_outputs),
    )


def as_model(data: Mapping[str, Any]) -> RemoteModel:
    """A logged model of an answer."""
    model = parsing.logged_model(data)
    return RemoteModel(model.id, model.artifact_location, model.status, model.tags)
