"""The register of keys, private/<lab>/keys.json: which access key is whose.  It holds no secret.

Keystone's EC2 keys carry no name, so this file is the only place that knows.  A key passes through
three states: `new` (made, not in the person's file yet), `active` (in the file), `old` (replaced, to
be deleted when its time is over).  The access key of a key that is going to be made is noted before
Keystone is asked for it: after a lost answer or a crash, that very key is looked for, and no other
(docs/decisions/0010).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from labtrack import files
from labtrack.errors import LabtrackError

NEW, ACTIVE, OLD = "new", "active", "old"
_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def now(later: float = 0.0) -> str:
    """This moment, or the one `later` seconds after it, as the register and the files write it (UTC)."""
    moment = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=later)
    return moment.strftime(_FORMAT)


def seconds_until(moment: str) -> float:
    """How long it is until a moment that `now` wrote; negative when it is over."""
    then = datetime.datetime.strptime(moment, _FORMAT).replace(tzinfo=datetime.timezone.utc)
    return (then - datetime.datetime.now(datetime.timezone.utc)).total_seconds()


@dataclass(frozen=True)
class Entry:
    """One key.

    user_id, project_id: in Keystone; empty for a key that was handed in without them.
    handed_in: made elsewhere, so it may belong to a login that the kit never had.
    made: when, ISO 8601, UTC.
    until: when an old key is to be deleted; empty: at once.
    kept: found in secrets.yml, where somebody put it by hand: the kit never deletes it.
    """

    access: str
    owner: str
    state: str
    user_id: str = ""
    project_id: str = ""
    handed_in: bool = False
    made: str = ""
    until: str = ""
    kept: bool = False

    @property
    def is_over(self) -> bool:
        """Whether an old key's time has come."""
        return self.state == OLD and (not self.until or seconds_until(self.until) <= 0)


@dataclass(frozen=True)
class Asked:
    """A key that Keystone was asked for, with nothing known of its end.

    at: when it was asked for last.  again: more than once, so that one of the requests may still be carried out
    after the key was made by another, and deleted.  spent: the key was made and registered.
    """

    access: str
    owner: str
    user_id: str
    project_id: str
    at: str
    again: bool = False
    spent: bool = False


@dataclass
class Register:
    """The register's content.  Every change is written at once.

    asked: keys that may have been made, by access key.  intents: by owner, the access keys that were known
    before a key was asked for that Keystone chose itself.  outputs: by owner, where the file is, if not at
    its usual place; hosts: on which computer.  passwords: owners whose password may have changed while
    their file was not yet written.
    """

    path: Path
    keys: dict[str, Entry] = field(default_factory=dict)
    asked: dict[str, Asked] = field(default_factory=dict)
    intents: dict[str, list[str]] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    passwords: list[str] = field(default_factory=list)

    def of(self, owner: str, *states: str) -> list[Entry]:
        """A person's keys, optionally in some states only, oldest first."""
        return [key for key in self.keys.values() if key.owner == owner and (not states or key.state in states)]

    def asked_for(self, owner: str) -> list[Asked]:
        """The keys that were asked for and are not there, as far as the register knows."""
        return [one for one in self.asked.values() if one.owner == owner and one.access not in self.keys]

    def owners(self) -> set[str]:
        """Everybody for whom there is, or may be, a key."""
        return {entry.owner for entry in self.keys.values()} | {one.owner for one in self.asked.values()}

    def put(self, *entries: Entry) -> None:
        """Adds keys, or replaces what is known of them."""
        self.keys.update({entry.access: entry for entry in entries})
        self.save()

    def move(self, state: str, *entries: Entry) -> None:
        """Gives keys another state."""
        self.put(*(replace(entry, state=state) for entry in entries))

    def drop(self, *access: str) -> None:
        """Forgets keys."""
        for one in access:
            self.keys.pop(one, None)
        self.save()

    def settle(self, access: str) -> None:
        """Notes that nothing more can come of a key that was asked for."""
        if self.asked.pop(access, None):
            self.save()

    def made(self, asked: Asked, entry: Entry) -> None:
        """Notes that a key that was asked for is there."""
        if asked.again:
            self.asked[asked.access] = replace(asked, spent=True)
        else:
            self.asked.pop(asked.access, None)
        self.put(entry)

    def place(self, owner: str, file: Path | None) -> None:
        """Notes where a person's file is, on this computer; None: at its usual place."""
        before = (self.outputs.get(owner), self.hosts.get(owner))
        self.outputs.pop(owner, None)
        self.hosts.pop(owner, None)
        if file:
            self.outputs[owner], self.hosts[owner] = str(file), socket.gethostname()
        if before != (self.outputs.get(owner), self.hosts.get(owner)):
            self.save()

    def elsewhere(self, owner: str) -> str:
        """The computer that has a person's file, where that is another one; empty when it should be here.

        A file that is not there was lost, if its folder is on this computer and it was written here.
        """
        if owner not in self.outputs or Path(self.outputs[owner]).exists():
            return ""
        host = self.hosts.get(owner, "")
        here = host in ("", socket.gethostname())
        if here and Path(self.outputs[owner]).parent.is_dir():
            return ""
        return "another computer" if here else host

    def others(self) -> dict[str, str]:
        """The keys of the other labs of this checkout: whose each is, in words."""
        found: dict[str, str] = {}
        private = self.path.parent.parent
        for path in private.glob(f"*/{self.path.name}"):
            lab = path.parent.name
            # a copy that somebody has put aside is no lab
            if lab != self.path.parent.name and (private.parent / "inventory" / lab).is_dir():
                with contextlib.suppress(LabtrackError, OSError):  # that lab's own calls say it
                    found.update({key.access: f"{key.owner} of the lab {lab}" for key in load(path).keys.values()})
        return found

    def save(self) -> None:
        """Writes the register, whole."""
        data = {
            "version": 1,
            "keys": [asdict(entry) for entry in self.keys.values()],
            "asked": [asdict(one) for one in self.asked.values()],
            "intents": self.intents,
            "outputs": self.outputs,
            "hosts": self.hosts,
            "passwords": self.passwords,
        }
        files.make_private_folder(self.path.parent)
        files.write_private(self.path, (json.dumps(data, indent=1) + "\n").encode())


def load(path: Path) -> Register:
    """Reads the register; an empty one when there is none.  Raises LabtrackError when it is damaged."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Register(
            path,
            {one["access"]: Entry(**one) for one in data["keys"]},
            {one["access"]: Asked(**one) for one in data.get("asked", ())},
            data["intents"],
            data["outputs"],
            data.get("hosts", {}),
            data["passwords"],
        )
    except FileNotFoundError:
        return Register(path)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise LabtrackError(
            f"The register of keys {path} is damaged ({error}).",
            "put it back from a backup; without one, move it away: `labtrack env list` then shows the keys that "
            "nobody is registered for, and `labtrack env create` makes new ones.",
        ) from None
