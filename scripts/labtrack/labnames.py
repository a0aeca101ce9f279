"""Names that are no settings of lab.yml: older names of settings, secrets, and misspelt ones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

_SECRET_NAME = re.compile(r"(^|_)(secret|password|passwd|token|private_key|access_key)(_|$)", re.IGNORECASE)
SECRETS_HINT = (
    "Take it out. Generated secrets are in the encrypted secrets.yml beside lab.yml, made by "
    "`labtrack secrets ensure`. If it is a real secret and was committed, change it."
)


def why_not(
    shown: str, given: Mapping[str, Any], known: list[str], renamed: Mapping[str, Mapping[str, str]]
) -> tuple[str, str]:
    """What is to be said of a name that is no setting, and what helps.

    shown: the name with those around it (lab_backup.bucket).  given: what is beside it.  known: the settings that there
    are in its place.  renamed: `x-renamed` of the schema there, the names of older versions of the kit: `since` which
    another holds, and perhaps what to `do`; `to` is that other one, and not there for what was removed.
    """
    above, _, name = shown.rpartition(".")
    if about := renamed.get(name):
        since, to, do = about["since"], about.get("to", ""), about.get("do", "")
        new = f"{above}.{to}".lstrip(".")
        if not to:
            return f"{shown} is no setting any more since {since}.", do
        if to in given:
            return f"{shown} is called {new} since {since}, and that is there, too.", f"Take {shown} out. {do}".strip()
        return f"{shown} is called {new} since {since}.", f"Rename it in lab.yml. {do}".strip()
    if _SECRET_NAME.search(name):
        return f"{shown} looks like a secret, and lab.yml is not a place for one.", SECRETS_HINT
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"Did you mean {near[0]}? " if near else ""
    return f"There is no setting {shown}.", f"{guess}Known here: {', '.join(known)}."
