"""What could not be read in the recording, and what of it the user has accepted.

A run that lacks something is incomplete, and every sync says so, until it is there or the user gives
`--accept-damage`.  What was accepted is noted in a tag: of the run, or, for what belongs to no run that is
at the server, of the experiments that the recording's runs go to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from labtrack.sync.journal import fingerprint

_EVERYTHING = "*"
_MOST = 300  # fingerprints: a tag holds 5,000 characters, and who accepts more accepts the rest too
_WORDS = 500  # characters


def tag(what: Iterable[str]) -> str:
    """The tag that accepts these lines."""
    lines = sorted(set(what))
    marks = [fingerprint(one) for one in lines]
    some = marks if len(marks) <= _MOST else [_EVERYTHING]
    return json.dumps({"count": len(lines), "what": "; ".join(lines)[:_WORDS], "fingerprints": some})


def accepted(*tags: str) -> frozenset[str]:
    """The fingerprints of what some tags accept; nothing where somebody else wrote something else into them."""
    found: set[str] = set()
    for text in tags:
        try:
            found.update(str(one) for one in json.loads(text)["fingerprints"])
        except (ValueError, TypeError, KeyError):
            continue
    return frozenset(found)


def left(what: Iterable[str], known: frozenset[str]) -> list[str]:
    """The lines that nobody has accepted."""
    if _EVERYTHING in known:
        return []
    return [one for one in dict.fromkeys(what) if fingerprint(one) not in known]
