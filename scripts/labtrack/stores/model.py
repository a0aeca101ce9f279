"""What was recorded, as plain data: experiments, runs, metric points, datasets, models, artifacts.

The words are MLflow's.  Times are milliseconds since 1970, None where the recorder wrote none.  Every
object is frozen and light: a run has its parameters and tags, never its metric points, which are
millions and come from `Store.points` one after the other.

`Store` is what every reader is; `labtrack.stores.open_store` finds the right one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol, Union

from labtrack.stores.summary import PARTS, Summaries

ACTIVE = "active"
DELETED = "deleted"
RUNNING = "RUNNING"
Having = tuple[tuple[str, str, str], ...]  # "params" or "tags", a name, a value


@dataclass(frozen=True)
class Experiment:
    """A named set of runs.  `id` is unique in its store only; `name` is what a person knows."""

    id: str
    name: str
    artifact_location: str = ""
    lifecycle_stage: str = ACTIVE
    creation_time: int | None = None
    last_update_time: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


def unnamed(experiment_id: str) -> str:
    """What an experiment is called that has no name: not by its id alone, which may be another's name."""
    return f"unnamed experiment {experiment_id}"


@dataclass(frozen=True)
class DatasetInput:
    """A dataset that a run read (MLflow >= 2.4).  `tags` are those of the input, as `mlflow.data.context`."""

    name: str
    digest: str
    source_type: str
    source: str
    schema: str | None = None
    profile: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


class ModelLink(NamedTuple):
    """A logged model (MLflow >= 3.0) that a run read or made; `step` only of one that it made."""

    model_id: str
    step: int | None = None


@dataclass(frozen=True)
class Run:
    """A run, without its metric points.

    status: RUNNING, SCHEDULED, FINISHED, FAILED or KILLED.  name: also where only the tag
    `mlflow.runName` has it.  artifact_uri: as recorded; `Store.artifacts` finds the files where they are now.
    """

    id: str
    experiment_id: str
    name: str = ""
    user_id: str = ""
    status: str = "FINISHED"
    start_time: int | None = None
    end_time: int | None = None
    lifecycle_stage: str = ACTIVE
    artifact_uri: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[DatasetInput, ...] = ()
    model_inputs: tuple[ModelLink, ...] = ()
    model_outputs: tuple[ModelLink, ...] = ()

    @property
    def parent_id(self) -> str | None:
        """The run that this one is nested in, by its id in the same store."""
        return self.tags.get("mlflow.parentRunId") or None


class MetricPoint(NamedTuple):
    """One value of a metric.  `value` may be nan or infinite, `step` negative; `timestamp` in ms.

    recorded: time and step as they were recorded, where these are no whole numbers and others stand in for them.
    """

    key: str
    value: float
    timestamp: int
    step: int
    recorded: tuple[Any, Any] | None = None


class ModelPoint(NamedTuple):
    """A metric point that also belongs to a logged model, and the dataset it was computed on if any.

    The run's own points have it too: it is the same point, linked.
    """

    point: MetricPoint
    run_id: str
    dataset_name: str | None = None
    dataset_digest: str | None = None


@dataclass(frozen=True)
class LoggedModel:
    """A model of MLflow >= 3.0, which lives beside its run.  status: PENDING, READY or FAILED (upload failed)."""

    id: str
    experiment_id: str
    name: str
    artifact_location: str = ""
    status: str = "READY"
    status_message: str = ""
    model_type: str = ""
    source_run_id: str | None = None
    lifecycle_stage: str = ACTIVE
    creation_time: int | None = None
    last_update_time: int | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelVersion:
    """A version in the model registry; `run_id` and `model_id` link it to what was recorded."""

    name: str
    version: str
    run_id: str | None = None
    model_id: str | None = None
    source: str = ""
    stage: str = "None"
    status: str = "READY"
    description: str = ""
    user_id: str = ""
    creation_time: int | None = None
    last_update_time: int | None = None
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RegisteredModel:
    """A name in the model registry, with its versions in the order of their numbers."""

    name: str
    description: str = ""
    creation_time: int | None = None
    last_update_time: int | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    versions: tuple[ModelVersion, ...] = ()


@dataclass(frozen=True)
class Artifact:
    """A file of a run or of a logged model.  path: posix, relative.  size: bytes.  modified: ms, if known."""

    path: str
    size: int
    modified: int | None = None


@dataclass(frozen=True)
class Problem:
    """Something in the store that could not be read and was left out, or is read otherwise than one would expect.

    place: a run id, a file or a table, as the user can find it.  what: a sentence.
    run_id: of what belongs to a run.  experiment_id: of what belongs to an experiment and to none of its runs.
    damage: whether something that was recorded is missing for it; otherwise it is a warning.
    """

    place: str
    what: str
    run_id: str | None = None
    damage: bool = True
    experiment_id: str | None = None

    def __str__(self) -> str:
        return f"{self.place}: {self.what}"


@dataclass(frozen=True)
class Trace:
    """What MLflow >= 2.14 traced: one call, and its spans, which `Store.spans` gives.

    timestamp, duration: ms.  state: OK, ERROR or IN_PROGRESS.  assessments: as MLflow's REST interface has them.
    linked: runs that it was linked to after it was made.
    """

    id: str
    experiment_id: str
    timestamp: int | None = None
    duration: int | None = None
    state: str = "OK"
    client_request_id: str = ""
    request_preview: str = ""
    response_preview: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    assessments: tuple[Mapping[str, Any], ...] = ()
    linked: tuple[str, ...] = ()

    @property
    def run_id(self) -> str | None:
        """The run in which it was made, if any."""
        return self.metadata.get("mlflow.sourceRun") or None


Owner = Union[Run, LoggedModel]


class Findings:
    """What a reader has to tell, each thing once."""

    def __init__(self) -> None:
        self._problems: dict[tuple[str | None, ...], Problem] = {}

    def problem(
        self, place: object, what: str, run_id: str | None = None, experiment_id: str | None = None, about: str = ""
    ) -> None:
        """Tells what could not be read.  about: what it is about, where a later call says more of the same."""
        problem = Problem(shown(place), what, run_id, experiment_id=experiment_id)
        self._problems[problem.place, run_id, experiment_id, about or what] = problem

    def warning(self, place: object, what: str, run_id: str | None = None, experiment_id: str | None = None) -> None:
        """Tells what is read whole, but not as one would expect."""
        problem = Problem(shown(place), what, run_id, damage=False, experiment_id=experiment_id)
        self._problems[problem.place, run_id, experiment_id, what] = problem

    def problems(self) -> list[Problem]:
        """All of it so far, in the order in which it was found."""
        return list(self._problems.values())


def shown(place: object) -> str:
    """A path as text that can be printed and sent, whatever bytes are in it."""
    return os.fsencode(str(place)).decode("utf-8", "replace")


class Store(Protocol):
    """A recording, read-only.  Nothing in it is ever written, upgraded or kept locked.

    Use it as a context manager.  One thread at a time; open it once more for another thread.  A job may
    be writing: every call sees what is there at that moment.
    """

    @property
    def found(self) -> Findings:
        """What there is to tell; `problems` lists it."""

    @property
    def kind(self) -> str:
        """`sqlite`, `files`, `portable`, `server`, `reports`, or the tracker that recorded it, as `tensorboard`."""

    @property
    def location(self) -> str:
        """Where it is, as a person would write it: a path or an address without password."""

    @property
    def identity(self) -> str:
        """32 hex digits that stay the same when the store is moved, copied or grows: see `identity_of`."""

    def experiments(self, *, deleted: bool = False) -> list[Experiment]:
        """All experiments, oldest first; deleted ones too if asked."""

    def runs(self, experiment_id: str | None = None, *, deleted: bool = False, having: Having = ()) -> Iterator[Run]:
        """All runs, or those of one experiment, oldest first; deleted ones too if asked.

        Runs that can't be read are left out and told by `problems`.  having: runs without these parameters and tags
        are not needed; a store that can't look that up gives them too.
        """

    def heads(self, *, deleted: bool = False) -> Iterator[Run]:
        """The runs of `runs`, maybe without parameters, tags, datasets and models: quick, to choose among many."""

    def run(self, run_id: str) -> Run:
        """One run, also a deleted one, as it is now.  Raises BadInputError that names near ids when there is none."""

    def metric_keys(self, run_id: str) -> dict[str, int]:
        """Each metric's number of points at this moment; quick enough to be asked often."""

    def points(
        self, run_id: str, skip: Mapping[str, int] | None = None, keys: Collection[str] | None = None
    ) -> Iterator[MetricPoint]:
        """The points of all metrics of a run, without the first skip[key] of each key; only of `keys` if given.

        The order of the points of one key never changes, and new ones come at its end, so that
        a count of points per key is a place to go on from (but see `appends`).  How the keys are mixed is not defined.
        """

    def appends(self, run_id: str) -> bool:
        """Whether new points of a metric of this run always come at its end, as `points` says.

        False where its points are put into order by time from several places, one of which may be filled later.
        """

    def summaries(
        self, run_ids: Sequence[str], keys: Collection[str] | None = None, parts: Collection[str] = PARTS
    ) -> Summaries:
        """What the points of some runs come to, by run and metric: what `summarise` makes of `points`, but quicker.

        keys: only these metrics.  parts: what of a summary is needed.
        """

    def artifacts(self, owner: Owner) -> Iterator[Artifact]:
        """The files of a run or of a logged model, sorted by path, wherever they have been moved with the store.

        A folder that can't be found is told by `problems`.
        """

    def local_path(self, owner: Owner, path: str) -> Path | None:
        """Where an artifact is on this machine; None where it is not a local file."""

    def open_artifact(self, owner: Owner, path: str) -> BinaryIO:
        """An artifact's bytes.  Raises LabtrackError when it is gone."""

    def logged_models(self, *, deleted: bool = False) -> Iterator[LoggedModel]:
        """The models that MLflow >= 3.0 keeps beside runs."""

    def model_points(self, model_id: str) -> Iterator[ModelPoint]:
        """The metric points that are linked to a logged model."""

    def registered_models(self) -> list[RegisteredModel]:
        """The model registry, where the store has one."""

    def traces(self, experiment_id: str | None = None) -> Iterator[Trace]:
        """The traces of one experiment, or of all."""

    def spans(self, trace: Trace) -> bytes | None:
        """The spans of a trace as MLflow's traces.json has them: {"spans": [...]}; None where there are none."""

    def unread(self) -> Mapping[str, int]:
        """What else was recorded, which none of these calls gives: how many of each kind."""

    def problems(self) -> list[Problem]:
        """What the calls so far had to leave out, and warnings."""

    def close(self) -> None:
        """Lets go of files and connections; also when called twice."""

    def __enter__(self) -> Store: ...

    def __exit__(self, *_: object) -> None: ...


def identity_of(experiments: Iterable[Experiment]) -> str:
    """The id of a store: made from its first experiment's id and birth.

    MLflow makes experiment 0 together with the store and never changes these facts of it, so the id is
    the same when the store is moved, copied, renamed, grows, is upgraded or is served by a server.  A part
    of a store without experiment 0 has the id that its oldest experiment gives.  Versions before 1.30 noted
    no time of birth; for them the place of birth stands in.  Two stores can share an id when they were
    born in the same millisecond; their runs' ids still differ, so who looks for a run looks for both.
    """
    found = list(experiments)
    if not found:
        return hashlib.sha256(b"empty").hexdigest()[:32]
    first = min(found, key=lambda one: (one.id != "0", one.creation_time or 0, one.id))
    birth = first.creation_time or first.artifact_location
    return hashlib.sha256(f"{first.id}\n{birth}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
