"""The people of lab.yml against the server's accounts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from labtrack import experiments, labmoved
from labtrack.envfile import lifecycle, listing
from labtrack.envfile.lifecycle import Context, Outcome
from labtrack.errors import LabtrackError
from labtrack.lab import ADMIN_USER, VERIFY_USER


@dataclass
class Person:
    """What was done for one person, or why it could not be done."""

    outcome: Outcome
    error: str = ""

    def as_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self.outcome), "file": str(self.outcome.file), "error": self.error}


def sync(context: Context, *, remove_unlisted: bool = False) -> Iterator[Person]:
    """Account, key and file for everybody in `lab_users` and for the verifying account.

    Who has something without being listed is told, and with remove_unlisted loses it.  What fails for one
    person is reported and does not stop the others.  Raises LabtrackError when the server can't be asked at all, or the
    lab is in another place since a move: where its name leads, accounts would be changed and keys given that are not
    of that place.
    """
    labmoved.check(context.lab)
    context.server.has_user(ADMIN_USER)
    if context.members.changed:
        yield Person(Outcome(experiments.ROLE, context.lab.private, context.members.changed))
    for user in context.lab.users:
        yield _one(context, user.name, present=user.present)
    yield _one(context, VERIFY_USER, present=True)
    if moving := context.keys.tell_of_other_logins():
        yield Person(Outcome("keys", context.lab.keys_file, notes=[moving]))
    for name, what in listing.unlisted(context).items():
        if remove_unlisted:
            yield _one(context, name, present=False)
        else:
            yield Person(Outcome(name, context.file_of(name), notes=[listing.how_to_remove(context, name, what)]))


def _one(context: Context, name: str, *, present: bool) -> Person:
    try:
        if present:
            known = context.keys.register
            host = known.elsewhere(name)
            if host and context.server.has_user(name):
                note = f"the file {known.outputs[name]} is on {host}: it was not looked at, and nothing was changed."
                return Person(Outcome(name, context.file_of(name), notes=[note]))
            return Person(lifecycle.create(context, name))
        return Person(lifecycle.revoke(context, name))
    except LabtrackError as error:
        return Person(Outcome(name, context.file_of(name)), str(error))
