"""The one result type of everything that checks: `preflight`, `env check`, `doctor` and `verify`."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import asdict, dataclass


class Status(str, enum.Enum):
    """How a check ended, from harmless to bad."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Result:
    """One row of the table.

    check: what was looked at, a few words.
    seen: what was found.
    hint: what to do about it; empty when nothing is to be done.
    """

    check: str
    status: Status
    seen: str
    hint: str = ""


def ok(check: str, seen: str) -> Result:
    """A row that asks for nothing."""
    return Result(check, Status.OK, seen)


def warning(check: str, seen: str, hint: str) -> Result:
    """A row about something that works, but not as it should."""
    return Result(check, Status.WARNING, seen, hint)


def failed(check: str, seen: str, hint: str) -> Result:
    """A row about something that does not work."""
    return Result(check, Status.FAILED, seen, hint)


def skipped(check: str, why: str) -> Result:
    """A row about something that could not be looked at, with the reason."""
    return Result(check, Status.SKIPPED, why)


def worst(results: Iterable[Result]) -> Status:
    """The worst status among the results; `ok` when there are none."""
    order = list(Status)
    return max((result.status for result in results), key=order.index, default=Status.OK)


def as_json(results: Iterable[Result]) -> dict[str, object]:
    """The results as plain data, the same for every checker."""
    rows = list(results)
    return {
        "status": worst(rows).value,
        "results": [{**asdict(row), "status": row.status.value} for row in rows],
    }
