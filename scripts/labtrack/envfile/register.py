"""The register of keys, private/<lab>/keys.json: which access key is whose.  It holds no secret.

Keystone's EC2 keys carry no name, so this file is the only place that knows.  A key passes through
three states: `new` (made, not in the person's file yet), `active` (in the file), `old` (replaced, to
be deleted).  Before a key is made, the access keys known then are noted as an intent: after a crash,
the one that is new is the one that was made.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from labtrack import files
from labtrack.errors import LabtrackError

NEW, ACTIVE, OLD = "new", "active", "old"


@dataclass(frozen=True)
class Entry:
    """One key.

    user_id, project_id: in Keystone; empty for a key that was handed in without them.
    handed_in: made elsewhere, so it may belong to a login that the kit never had.
    made: when, ISO 8601, UTC.
    """

    access: str
    owner: str
    state: str
    user_id: str = ""
    project_id: str = ""
    handed_in: bool = False
    made: str = ""


@dataclass
class Register:
    """The register's content.  Every change is written at once."""

    path: Path
    keys: dict[str, Entry] = field(default_factory=dict)
    intents: dict[str, list[str]] = field(default_factory=dict)  # owner: access keys known before
    outputs: dict[str, str] = field(default_factory=dict)  # owner: where the file is, if not at its usual place
    passwords: list[str] = field(default_factory=list)  # owners whose password may have changed, file not yet written

    def of(self, owner: str, *states: str) -> list[Entry]:
        """A person's keys, optionally in some states only, oldest first."""
        return [key for key in self.keys.values() if key.owner == owner and (not states or key.state in states)]

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

    def save(self) -> None:
        """Writes the register, whole."""
        data = {
            "version": 1,
            "keys": [asdict(entry) for entry in self.keys.values()],
            "intents": self.intents,
            "outputs": self.outputs,
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
            data["intents"],
            data["outputs"],
            data["passwords"],
        )
    except FileNotFoundError:
        return Register(path)
    except (ValueError, KeyError, TypeError) as error:
        raise LabtrackError(
            f"The register of keys {path} is damaged ({error}).",
            "put it back from a backup; without one, move it away: `labtrack env list` then shows the keys that "
            "nobody is registered for, and `labtrack env create` makes new ones.",
        ) from None
