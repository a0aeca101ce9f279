"""What a copy says of itself: the tag that tells how much of the recorded run has been sent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from labtrack.stores.model import Artifact, LoggedModel, Run

COMPLETE, RECORDING, INCOMPLETE = "complete", "recording", "incomplete"
OPEN = ("RUNNING", "SCHEDULED")  # of these more may come


@dataclass(frozen=True)
class State:
    """How much was sent.

    state: complete, recording (the run is not over), incomplete (something failed).  digest: of all of it.
    """

    state: str
    points: int
    artifacts: int
    bytes: int
    digest: str

    def tag(self) -> str:
        """As the tag's value."""
        return json.dumps(asdict(self))


def parse(tag: str) -> State | None:
    """What a tag says; None where there is none or somebody else wrote it."""
    try:
        return State(**json.loads(tag))
    except (ValueError, TypeError):
        return None


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
        facts.append([model.id, model.status, sorted(model.tags.items()), sorted(model.params.items())])
        facts.append(_files(files, model.status == "PENDING"))
    facts.append(model_points)
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def _files(artifacts: Iterable[Artifact], still: bool) -> list[list[object]]:
    """The time of a file counts while it may still be written: moving a recording changes times."""
    return [[one.path, one.size, one.modified if still else None] for one in artifacts]
