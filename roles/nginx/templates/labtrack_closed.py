#!/usr/bin/python3
"""Whether the server is closed, since when and why, as labtrack-status has its rows.

labtrack-closed    prints {"status", "seen", "hint", "elsewhere"} as JSON.  Exit code 0.

A template, so that the file's name is said in the role's variables alone.  playbooks/close.yml and `labtrack lab move`
write the file: its text says how far a move is, its time since when nobody is let in.  elsewhere: whether a move has
taken the lab to another server, so that nobody comes to this one any more.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

FILE = Path("{{ __nginx_closed_file }}")
LONG = 24 * 3600  # seconds: longer than work on a server takes, so it has been forgotten
MOVE = "`labtrack lab move OLD NEW{}`, with these two labs: {}."
OPEN = "when the work is done: `ansible-playbook -i inventory/<lab> playbooks/open.yml`."
LEFT = MOVE.format(" --step back", "opens this one; playbooks/destroy.yml takes it away")
# By the text's first word.  Where the lab is elsewhere the server is meant to stay closed, however long.
HINTS = {
    "arriving": MOVE.format("", "goes on with the move, which has stopped on its way"),
    "arrived": MOVE.format(" --step open", "lets people in, once the lab's name leads here"),
    "left": LEFT,
    "given": "the lab is in its old place: `labtrack lab move` begins anew, playbooks/destroy.yml takes this one away.",
}
ELSEWHERE = ("left", "given")


def found(now: float) -> dict[str, object]:
    """What is printed; now: seconds since the epoch.  Raises OSError where the file can't be read."""
    try:
        since, why = FILE.stat().st_mtime, FILE.read_text().strip()
    except FileNotFoundError:
        return {"status": "ok", "seen": "no: requests are taken", "hint": "", "elsewhere": False}
    moment = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(since))
    kind = why.partition(" ")[0]
    elsewhere = kind in ELSEWHERE
    status = "failed" if now - since > LONG and not elsewhere else "warning"
    seen = f"since {moment} no requests are taken: {why}"
    return {"status": status, "seen": seen, "hint": HINTS.get(kind, OPEN), "elsewhere": elsewhere}


if __name__ == "__main__":
    print(json.dumps(found(time.time())))
