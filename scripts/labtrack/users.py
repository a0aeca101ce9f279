"""The people of lab.yml against the server's accounts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from labtrack import experiments
from labtrack.envfile import lifecycle
from labtrack.envfile.lifecycle import Context, Outcome
from labtrack.errors import LabtrackError
from labtrack.lab import ADMIN_USER, SERVER_OWNER, VERIFY_USER


@dataclass
class Person:
    """What was done for one person, or why it could not be done."""

    outcome: Outcome
    error: str = ""

    def as_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self.outcome), "file": str(self.outcome.file), "error": self.error}


def sync(context: Context) -> Iterator[Person]:
    """Account, key and file for everybody in `lab_users` and for the verifying account.

    What fails for one person is reported and does not stop the others.  Raises LabtrackError when the
    server can't be asked at all.
    """
    context.server.has_user(ADMIN_USER)
    if context.members.changed:
        yield Person(Outcome(experiments.ROLE, context.lab.private, context.members.changed))
    for user in context.lab.users:
        yield _one(context, user.name, present=user.present)
    yield _one(context, VERIFY_USER, present=True)
    listed = {user.name for user in context.lab.users} | {VERIFY_USER, SERVER_OWNER}
    for name in sorted({entry.owner for entry in context.keys.register.keys.values()} - listed):
        outcome = Outcome(name, context.file_of(name))
        outcome.notes.append(
            f"has a key but is not in lab_users. Put {{name: {name}, state: absent}} there to take it away."
        )
        yield Person(outcome)


def _one(context: Context, name: str, *, present: bool) -> Person:
    try:
        if present:
            return Person(lifecycle.create(context, name))
        return Person(lifecycle.revoke(context, name))
    except LabtrackError as error:
        return Person(Outcome(name, context.file_of(name)), str(error))
