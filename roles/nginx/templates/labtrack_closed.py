#!/usr/bin/python3
"""Whether the server is closed, since when and why, as labtrack-status has its rows.

labtrack-closed    prints {"status", "seen", "hint"} as JSON.  Exit code 0.

A template, so that the file's name is said in the role's variables alone.  playbooks/close.yml and `labtrack lab move`
write the file: its text says how far a move is, its time since when nobody is let in.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

FILE = Path("{{ __nginx_closed_file }}")
LONG = 24 * 3600  # seconds: longer than work on a server takes, so it has been forgotten
MOVE = "`labtrack lab move OLD NEW{}`, with these two labs: {}."
OPEN = "when the work is done: `ansible-playbook -i inventory/<lab> playbooks/open.yml`."
ELSEWHERE = MOVE.format(" --step back", "opens this one; playbooks/destroy.yml takes it away")
# By the text's first word.  Where the lab is elsewhere the server is meant to stay closed, however long.
HINTS = {
    "arriving": MOVE.format("", "goes on with the move, which has stopped on its way"),
    "arrived": MOVE.format(" --step open", "lets people in, once the lab's name leads here"),
    "left": ELSEWHERE,
    "given": "the lab is in its old place: `labtrack lab move` begins anew, playbooks/destroy.yml takes this one away.",
}
FOR_GOOD = ("left", "given")


def row(now: float) -> tuple[str, str, str]:
    """Status, what was seen, how to open it; now: seconds since the epoch.  Raises OSError where it can't be read."""
    try:
        since, why = FILE.stat().st_mtime, FILE.read_text().strip()
    except FileNotFoundError:
        return "ok", "no: requests are taken", ""
    moment = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(since))
    kind = why.partition(" ")[0]
    status = "failed" if now - since > LONG and kind not in FOR_GOOD else "warning"
    return status, f"since {moment} no requests are taken: {why}", HINTS.get(kind, OPEN)


if __name__ == "__main__":
    print(json.dumps(dict(zip(("status", "seen", "hint"), row(time.time())))))
