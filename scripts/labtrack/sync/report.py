"""What a sync has done, for a person and for a program."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from labtrack.errors import Exit
from labtrack.sync import state
from labtrack.sync.plan import Todo
from labtrack.sync.push import Outcome

VERSION = 2  # of --json; 1 was without endings


@dataclass
class Planned:
    """A run, or a logged model that belongs to none, as the plan has it.

    experiment: where it is or will be at the server.  ending: how far it is, empty where it is not there yet.
    """

    run_id: str
    name: str
    experiment: str
    todo: str
    points: int = 0
    artifacts: int = 0
    bytes: int = 0
    ending: str = ""


@dataclass
class Report:
    """The result of one sync.

    narrowed: only some of the recording's runs were asked for.
    planned: every run that was looked at.  outcomes: those that something was sent for.
    models, model_outcomes: the same of logged models that belong to no run.
    failed: run or model id to why it is not all there.  damaged: the same, where the reason is that it can't be read
    in the recording.  unreadable: what can't be read and belongs to no run.  accepted: what can't be read, and the
    user knows.  left: runs that were not reached.
    registered: how many versions were registered; versions: how many are there; unregistered: why others are left out.
    names: how many registered models were made.  experiments: those without runs that were made or, like any other of
    this recording, given tags.
    unsent: by kind, how much was recorded that no sync sends.
    traces: by experiment, how many traces were sent, are there, lack their spans, and failed.
    differences: what --verify found, by run or model; verified: how many runs and models it compared.
    """

    source: str
    destination: str
    dry_run: bool = False
    narrowed: bool = False
    planned: list[Planned] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    models: list[Planned] = field(default_factory=list)
    model_outcomes: list[Outcome] = field(default_factory=list)
    failed: dict[str, list[str]] = field(default_factory=dict)
    damaged: dict[str, list[str]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    accepted: dict[str, list[str]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    linked: int = 0
    names: int = 0
    experiments: list[str] = field(default_factory=list)
    unsent: dict[str, int] = field(default_factory=dict)
    registered: int = 0
    versions: int = 0
    unregistered: dict[str, str] = field(default_factory=dict)
    traces: dict[str, dict[str, int]] = field(default_factory=dict)
    verified: int | None = None
    differences: dict[str, list[str]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    stopped: str = ""
    interrupted: bool = False

    @property
    def exit_code(self) -> Exit:
        """0 all whole, 1 something failed or differs, 3 the recording is damaged, 130 stopped by the user."""
        if self.interrupted:
            return Exit.INTERRUPTED
        if self.failed or self.differences or self.stopped or self.left:
            return Exit.FAILED
        return Exit.DAMAGED if self.damaged or self.unreadable else Exit.OK

    def count(self, todo: Todo) -> int:
        """How many runs needed this."""
        return sum(one.todo == todo.value for one in self.planned)

    @property
    def recording(self) -> int:
        """Runs that were still being recorded when they were sent last."""
        return sum(one.recording for one in self.outcomes)

    def take(self, outcome: Outcome) -> None:
        """Adds what became of a run or model."""
        for found, what in (
            (self.failed, outcome.failed), (self.damaged, outcome.damaged), (self.accepted, outcome.accepted),
        ):  # fmt: skip
            if what:
                found.setdefault(outcome.run_id, []).extend(what)
        self.notes += [f"run {outcome.run_id}: {note}" for note in outcome.notes]

    def settle(self) -> None:
        """Says of each run and model how it ended: whole, changed, incomplete, accepted or recording."""
        endings = {one.run_id: one.ending for one in (*self.outcomes, *self.model_outcomes)}
        for one in (*self.planned, *self.models):
            one.ending = endings.get(one.run_id, one.ending)
            if one.run_id in self.failed or one.run_id in self.damaged:
                one.ending = state.INCOMPLETE

    def endings(self) -> dict[str, int]:
        """How many runs and models ended how."""
        return _counted(one.ending or "not there" for one in (*self.planned, *self.models))

    def as_data(self) -> dict[str, Any]:
        """For --json."""
        data = {"version": VERSION, **asdict(self)}
        data["endings"] = self.endings()
        data["counts"] = {
            "new": self.count(Todo.CREATE),
            "changed": self.count(Todo.UPDATE),
            "there": self.count(Todo.NOTHING),
            "deleted_at_server": self.count(Todo.GONE),
            "left_out": self.count(Todo.LEFT),
            "failed": len(self.failed),
            "damaged": len(self.damaged) + len(self.unreadable),
            "points": sum(one.points for one in self.outcomes),
            "artifacts": sum(one.artifacts for one in (*self.outcomes, *self.model_outcomes)),
            "bytes": sum(one.bytes for one in (*self.outcomes, *self.model_outcomes)),
            "models": len(self.models),
            "experiments": len(self.experiments),
        }
        data["exit_code"] = int(self.exit_code)
        return data


def _counted(words: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in words:
        found[one] = found.get(one, 0) + 1
    return found
