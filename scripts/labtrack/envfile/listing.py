"""Whose key is whose: the register, Keystone and the files side by side."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from labtrack.doctor.result import worst
from labtrack.envfile import read
from labtrack.envfile.lifecycle import Context
from labtrack.errors import LabtrackError
from labtrack.lab import SERVER_OWNER


@dataclass(frozen=True)
class Line:
    """One key.  owner is empty for a key that the register does not know."""

    owner: str
    access: str
    state: str
    made: str
    in_keystone: str
    file: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The line for a table."""
        return (self.owner or "(nobody)", self.access, self.state, self.made, self.in_keystone, self.file)


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
    for entry in sorted(known.values(), key=lambda entry: (entry.owner, entry.made)):
        there = "?" if in_cloud is None else ("yes" if entry.access in in_cloud else "no")
        place = "secrets.yml" if entry.owner == SERVER_OWNER else _file(context, entry.owner)
        found.lines.append(Line(entry.owner, entry.access, entry.state, entry.made, there, place))
    strangers = sorted((in_cloud or set()) - set(known))
    found.lines += [Line("", access, "", "", "yes", "") for access in strangers]
    if strangers:
        found.notes.append(
            f"{len(strangers)} key(s) of your login in this project are not this lab's. They reach the same buckets; "
            "delete those that nobody uses: openstack ec2 credentials delete KEY"
        )
    return found


def _file(context: Context, user: str) -> str:
    file = context.file_of(user)
    return worst(read.check(file)).value if file.exists() else "missing"
