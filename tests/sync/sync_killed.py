"""Runs syncs that kill themselves with SIGKILL: started by test_sync_killed.py with an order on standard input.

The order: {"source", "to", "experiment", "state", "seed", "kills", "most", "forgets"}.  Each sync is a fork of this
process and ends itself at a random event: before or after a call, or before or after a line of the journal.  With
"forgets" the journal is lost after each.  One that is not killed comes last.  Prints how many were killed, and the last
one's exit code.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
from typing import Any

import requests

from labtrack.sync import Options, journal, sync


def doomed(fatal: int) -> None:
    """Makes this process die at its `fatal`-th event."""
    events = itertools.count(1)

    def tick() -> None:
        if next(events) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(function: Any) -> Any:
        def called(*args: Any, **more: Any) -> Any:
            tick()
            found = function(*args, **more)
            tick()
            return found

        return called

    requests.Session.request = around(requests.Session.request)  # type: ignore[method-assign]
    journal.Journal._write = around(journal.Journal._write)  # type: ignore[method-assign]


def one(order: dict[str, Any], fatal: int) -> int:
    """One sync in a fork; gives its wait status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 99
    try:
        os.environ["XDG_STATE_HOME"] = order["state"]
        if fatal:
            doomed(fatal)
        options = Options(experiment=order["experiment"], deleted=True, jobs=order.get("jobs", 3))
        code = int(sync(order["source"], order["to"], options).exit_code)
    finally:
        os._exit(code)


def main() -> None:
    order = json.load(sys.stdin)
    chance = random.Random(order["seed"])  # noqa: S311
    killed, most = 0, order["most"]
    while killed < order["kills"]:
        if os.WIFSIGNALED(one(order, chance.randint(1, most))):
            killed += 1
        else:  # it ended before its event: there is less left to do
            most = max(2, most // 2)
        if order["forgets"]:
            shutil.rmtree(order["state"], ignore_errors=True)
    print(json.dumps({"killed": killed, "code": os.waitstatus_to_exitcode(one(order, 0))}))


if __name__ == "__main__":
    main()
