"""What a sync has done, for a person and for a program."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from labtrack.errors import Exit
from labtrack.sync.plan import Todo
from labtrack.sync.push import Outcome


@dataclass
class Planned:
    """A run as the plan has it."""

    run_id: str
    name: str
    experiment: str
    todo: str
    points: int = 0
    artifacts: int = 0
    bytes: int = 0


@dataclass
class Report:
    """The result of one sync.

    narrowed: only some of the recording's runs were asked for.
    planned: every run that was looked at.  outcomes: those that something was sent for.
    failed: run id to why it is not all there.  left: runs that were not reached.
    differences: what --verify found, by run id; verified: how many runs it compared.
    """

    source: str
    destination: str
    dry_run: bool = False
    narrowed: bool = False
    planned: list[Planned] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    failed: dict[str, list[str]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    linked: int = 0
    registered: int = 0
    verified: int | None = None
    differences: dict[str, list[str]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    stopped: str = ""
    interrupted: bool = False

    @property
    def exit_code(self) -> Exit:
        """0 all there, 1 something failed or differs, 130 stopped by the user."""
        if self.interrupted:
            return Exit.INTERRUPTED
        return Exit.FAILED if self.failed or self.differences or self.stopped or self.left else Exit.OK

    def count(self, todo: Todo) -> int:
        """How many runs needed this."""
        return sum(one.todo == todo.value for one in self.planned)

    @property
    def recording(self) -> int:
        """Runs that were still being recorded when they were sent last."""
        return sum(one.recording for one in self.outcomes)

    def as_data(self) -> dict[str, Any]:
        """For --json."""
        data = asdict(self)
        data["counts"] = {
            "new": self.count(Todo.CREATE),
            "changed": self.count(Todo.UPDATE),
            "there": self.count(Todo.NOTHING),
            "deleted_at_server": self.count(Todo.GONE),
            "left_out": self.count(Todo.LEFT),
            "failed": len(self.failed),
            "points": sum(one.points for one in self.outcomes),
            "artifacts": sum(one.artifacts for one in self.outcomes),
            "bytes": sum(one.bytes for one in self.outcomes),
        }
        data["exit_code"] = int(self.exit_code)
        return data
