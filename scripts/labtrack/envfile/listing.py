"""Whose key is whose: the register, Keystone and the files side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from labtrack.doctor.result import worst
from labtrack.envfile import read
from labtrack.envfile.lifecycle import Context
from labtrack.envfile.register import OLD, Entry, seconds_until
from labtrack.errors import LabtrackError
from labtrack.lab import ADMIN_USER, DRILL_USER, SERVER_OWNER, VERIFY_USER

UNITS = (("d", 86400), ("h", 3600), ("min", 60))  # seconds


@dataclass(frozen=True)
class Line:
    """One key.

    owner: empty for a key that the register does not know.  until: when an old key is deleted, ISO 8601, UTC.
    left: the time until then, in words.
    """

    owner: str
    access: str
    state: str
    made: str
    in_keystone: str
    file: str
    until: str = ""
    left: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """The line for a table."""
        state = f"{self.state}, {self.left}" if self.left else self.state
        return (self.owner or "(nobody)", self.access, state, self.made, self.in_keystone, self.file)


@dataclass
class Listing:
    """All lines, and what the admin should know."""

    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def listed(context: Context) -> Listing:
    """What is known of every key.  Without a login to Keystone, what the register says."""
    found, known = Listing(), context.keys.register.keys
    try:
        in_cloud = set(context.keys.listed)
    except LabtrackError as error:
        in_cloud = None
        found.notes.append(f"Keystone was not asked: {error.what.splitlines()[0]}")

    def there(access: str) -> str:
        return "?" if in_cloud is None else ("yes" if access in in_cloud else "no")

    for entry in sorted(known.values(), key=lambda entry: (entry.owner, entry.made)):
        place = "" if entry.state == OLD else _place(context, entry.owner)
        line = Line(entry.owner, entry.access, entry.state, entry.made, there(entry.access), place, entry.until)
        found.lines.append(replace(line, left=_left(entry)))
    asked = [one for one in context.keys.register.asked.values() if one.access not in known]
    for one in asked:
        if not one.spent or there(one.access) == "yes":
            found.lines.append(Line(one.owner, one.access, "asked for", one.at, there(one.access), ""))
    moving = context.keys.tell_of_other_logins()
    if moving and in_cloud is not None:
        found.notes.append(moving)
    others = context.keys.register.others()
    strangers = sorted((in_cloud or set()) - set(known) - {one.access for one in asked})
    found.lines += [Line(others.get(access, ""), access, "", "", "yes", "") for access in strangers]
    nobodys = [access for access in strangers if access not in others]
    if nobodys:
        found.notes.append(
            f"{len(nobodys)} key(s) of your login in this project are not this lab's. They reach the same buckets; "
            "delete those that nobody uses: openstack ec2 credentials delete KEY"
        )
    try:
        for name, what in unlisted(context).items():
            found.notes.append(f"{name} {how_to_remove(context, name, what)}")
    except LabtrackError as error:
        found.notes.append(f"The server was not asked for its accounts: {error.what.splitlines()[0]}")
    return found


def unlisted(context: Context) -> Mapping[str, str]:
    """Who has an account or a key without being in `lab_users`, with what they have.

    Raises LabtrackError when the server can't be asked.
    """
    listed = {user.name for user in context.lab.users} | {ADMIN_USER, VERIFY_USER, DRILL_USER, SERVER_OWNER}
    owners = {entry.owner for entry in context.keys.register.keys.values()} - listed
    accounts = set(context.server.users()) - listed
    return {
        name: " and ".join(["an account"] * (name in accounts) + ["a key"] * (name in owners))
        for name in sorted(accounts | owners)
    }


def how_to_remove(context: Context, name: str, what: str) -> str:
    """What the admin is told of somebody who is not in lab_users."""
    return (
        f"has {what} but is not in lab_users. To remove it: labtrack env revoke {context.lab.shown_folder} {name}, "
        f"or {{name: {name}, state: absent}} in lab_users; to keep it: {{name: {name}}}."
    )


def _place(context: Context, owner: str) -> str:
    if owner == SERVER_OWNER:
        return "secrets.yml"
    host, file = context.keys.register.elsewhere(owner), context.file_of(owner)
    if host:
        return f"on {host}"
    return worst(read.check(file)).value if file.exists() else "missing"


def _left(entry: Entry) -> str:
    """How long an old key still works: it outlives its end until somebody runs what deletes it."""
    if entry.state != OLD:
        return ""
    if entry.is_over:
        last = "at the end of the next deploy" if entry.owner == SERVER_OWNER else "by the next `labtrack users sync`"
        return f"to be deleted {last}"
    seconds = seconds_until(entry.until)
    unit, size = next(((unit, size) for unit, size in UNITS if seconds >= size), ("s", 1))
    return f"{int(seconds // size)} {unit} left"
