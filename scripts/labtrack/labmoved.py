"""Where `labtrack lab move` has taken a lab: a note in its files, beside what its server is closed with.

The server's own file says it as long as there is that server.  The note goes with the lab's files to the other admins,
into each export and into the backup.  So whichever way a lab that has moved is deployed again, on whatever machine, the
deploy closes it, and what would give people files and accounts there is refused.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from labtrack import files
from labtrack.errors import BadInputError
from labtrack.lab import Lab

FILE = "moved.json"  # in private/<lab>
_STATE = re.compile(r"(arriving from|arrived from|left for|given up for) (\S+)")


class _Told(NamedTuple):
    """What is said of a state, with {here} and {other} for the two labs' names."""

    what: str
    hint: str


_MOVE = "labtrack lab move inventory/{0} inventory/{1}"
_OUT, _IN = _MOVE.format("{here}", "{other}"), _MOVE.format("{other}", "{here}")
_TOLD = {
    "left for": _Told(
        "The lab {here} has moved: it is {other} now, and only one of the two may take requests.",
        f"go on with inventory/{{other}}.  To go back to {{here}}: `{_OUT} --step back`, or, where {{other}} has no "
        "server any more, `ansible-playbook -i inventory/{here} playbooks/open.yml -e open_anyway=true`.  "
        "playbooks/deploy.yml alone brings this server up to date, or a new machine back, and keeps it closed.",
    ),
    "given up for": _Told(
        "The lab {here} was given up: it is in its old place, {other}, and only one of the two may take requests.",
        f"go on with inventory/{{other}}.  To move again: `{_IN}`.",
    ),
    "arriving from": _Told(
        "A move into this lab was not finished: {here} has not all of {other} yet.",
        f"`{_IN}` goes on; with --step back, {{other}} is opened again.",
    ),
    "arrived from": _Told(
        "The lab {here} has all of {other}, and nobody was let in yet.",
        f"let the lab's name lead here, then `{_IN} --step open`; with --step back, {{other}} is opened again.",
    ),
}


def where(lab: Lab) -> str:
    """How far a move is, as the server is closed with it ("left for NAME"); empty for a lab that is here.

    Raises BadInputError for a note that can't be read.
    """
    file = lab.private / FILE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))["moved"]
        if not _STATE.fullmatch(state):
            raise ValueError(f"{state!r} is no state of a move")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BadInputError(
            f"{file} does not say where the lab is: {error}.",
            f"`labtrack status {lab.shown_folder}` says in its row `closed` what the server is closed with.  Where it "
            f"is open, or closed for work: rm {file}",
        ) from None
    return str(state)


def note(lab: Lab, state: str) -> bool:
    """Keeps how far a move is; whether that is another than before.

    state: as `where` gives it; empty for a lab that is here.  Raises BadInputError for no state of a move.
    """
    file = lab.private / FILE
    if not state:
        known = file.exists()
        file.unlink(missing_ok=True)
        return known
    if not _STATE.fullmatch(state):
        raise BadInputError(f"{state!r} is no state of a move.", f"one of {', '.join(_TOLD)}; then the other's name.")
    text = (json.dumps({"moved": state}) + "\n").encode()
    if file.is_file() and file.read_bytes() == text:
        return False
    files.make_private_folder(lab.private)
    files.write_private(file, text)
    return True


def check(lab: Lab) -> None:
    """Raises BadInputError for a lab that is not here: it says where it is, and how to go back."""
    found = _STATE.fullmatch(where(lab))
    if found:
        told = _TOLD[found[1]]
        names = {"here": lab.name, "other": found[2]}
        raise BadInputError(told.what.format(**names), told.hint.format(**names))
