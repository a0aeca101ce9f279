"""Artifacts that a database names at places outside of the folder that is fetched."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections import defaultdict
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_RUNS = "SELECT artifact_uri, run_uuid FROM runs"


def folders(database: Path, inside: str) -> dict[str, set[str]]:
    """The folders that have runs' artifacts in them and are not in `inside`, each with the names of the runs' in it.

    A place counts only where the run's id is a part of it: it can't be anything else of the user's then.
    """
    found: dict[str, set[str]] = defaultdict(set)
    with contextlib.suppress(sqlite3.DatabaseError), contextlib.closing(_open(database)) as opened:
        for uri, run_id in opened.execute(_RUNS):
            path = _path(str(uri or ""))
            if path is None or not _ID.fullmatch(str(run_id)) or str(run_id) not in path.parts:
                continue
            above = str(PurePosixPath(*path.parts[: path.parts.index(str(run_id))]))
            within = f"{inside.rstrip('/')}/"  # of one that is relative to a home, the home is not known here
            if not f"{above}/".startswith(within) and not (within[:1] != "/" and f"/{within}" in f"{above}/"):
                found[above].add(str(run_id))
    return dict(found)


def _open(database: Path) -> sqlite3.Connection:
    opened = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
    opened.execute("PRAGMA trusted_schema = 0")
    return opened


def _path(uri: str) -> PurePosixPath | None:
    path = unquote(re.sub(r"^file:(//(localhost)?(?=/))?", "", uri)) if uri.startswith("file:") else uri
    plain = path.startswith("/") and ".." not in path.split("/") and not any(ord(one) < 32 for one in path)  # noqa: PLR2004
    return PurePosixPath(path) if plain else None
