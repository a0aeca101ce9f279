"""What a copy says of itself: the tag that tells how much of the recorded run has been sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from labtrack.stores.model import Artifact, LoggedModel, Run

COMPLETE, RECORDING, INCOMPLETE = "complete", "recording", "incomplete"
ACCEPTED = "accepted"  # all but damage that the user knows of
WHOLE, CHANGED = "whole", "whole, changed"  # how a complete run ended
OPEN = ("RUNNING", "SCHEDULED")  # of these more may come


@dataclass(frozen=True)
class State:
    """How much was sent.

    state: complete, recording (the run is not over), incomplete (something could not be read or sent), accepted
    (what is missing is damage of the recording that the user has accepted).  digest: of all of it.
    contents: a hash of the files' bytes, empty where it is not known.
    """

    state: str
    points: int
    artifacts: int
    bytes: int
    digest: str
    contents: str = ""

    def tag(self) -> str:
        """As the tag's value."""
        return json.dumps(asdict(self))


def parse(tag: str) -> State | None:
    """What a tag says; None where there is none or somebody else wrote it."""
    try:
        return State(**json.loads(tag))
    except (ValueError, TypeError):
        return None


def ending_of(tag: str, *, changed: bool) -> str:
    """How a copy that is all there ended, by its tag and by whether something had to be changed."""
    said = parse(tag)
    if said is not None and said.state != COMPLETE:
        return said.state
    return CHANGED if changed else WHOLE


def end_time(run: Run, start_there: int | None) -> int | None:
    """When a run ends at the server.

    start_there: when its copy starts.  Nobody can change that, and Anemoi's sync sets it to the time of the sync: then
    the end is as much later, so that the run lasts as long as it did.
    """
    if run.end_time is None or run.start_time is None or not start_there or start_there <= run.start_time:
        return run.end_time
    return start_there + run.end_time - run.start_time


def digest(
    run: Run,
    points: Mapping[str, int],
    artifacts: Iterable[Artifact],
    models: Iterable[tuple[LoggedModel, tuple[Artifact, ...]]] = (),
    model_points: int = 0,
) -> str:
    """A hash that differs when anything in the recording that is to be sent has changed."""
    still = run.status in OPEN
    facts: list[object] = [
        run.status, run.end_time, run.lifecycle_stage, run.name, sorted(run.params.items()), sorted(run.tags.items()),
        sorted((one.name, one.digest, sorted(one.tags.items())) for one in run.inputs),
        sorted(one.model_id for one in (*run.model_inputs, *run.model_outputs)),
        sorted(item for item in points.items() if item[1]), _files(artifacts, still),
    ]  # fmt: skip
    for model, files in sorted(models, key=lambda one: one[0].id):
        facts += _model(model, files)
    facts.append(model_points)
    return _hash(facts)


def digest_of_model(model: LoggedModel, artifacts: Iterable[Artifact]) -> str:
    """The same for a logged model alone."""
    return _hash(_model(model, artifacts))


def _model(model: LoggedModel, artifacts: Iterable[Artifact]) -> list[object]:
    return [
        [model.id, model.status, sorted(model.tags.items()), sorted(model.params.items())],
        _files(artifacts, model.status == "PENDING"),
    ]


def _hash(facts: list[object]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def _files(artifacts: Iterable[Artifact], still: bool) -> list[list[object]]:
    """The time of a file counts while it may still be written: moving a recording changes times."""
    return [[one.path, one.size, one.modified if still else None] for one in artifacts]
