"""Second copies of a run: from a create whose answer was lost, or that a killed sync had sent.

MLflow carries a create out long after its client has gone, and the search of the next sync may come before
that.  A copy says who made it; one that was made here, which no sync has finished and which is not the one
that is kept, is a duplicate: nobody else will ever go on with it.
"""

from __future__ import annotations

import hashlib
import socket
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from labtrack.files import user_number
from labtrack.stores.model import DELETED
from labtrack.tracking import names
from labtrack.tracking.destination import Destination, has_tag
from labtrack.tracking.remote import RemoteRun


def maker(folder: Path, *, locked: bool = True) -> str:
    """Who makes copies: one user on one machine with one state folder, whose lock lets one sync at a time work.

    locked: whether there is such a lock; without it this one sync, for another may be at work beside it.
    """
    who = f"{socket.gethostname()}\n{user_number()}\n{folder.resolve()}" if locked else uuid.uuid4().hex
    return hashlib.sha256(who.encode()).hexdigest()[:12]


def is_own(tags: Mapping[str, str], maker: str) -> bool:
    """Whether a copy of a run or a model was made by this maker."""
    return tags.get(names.CREATED, "").endswith(f"-{maker}")


def is_duplicate(copy: RemoteRun, maker: str) -> bool:
    """Whether a copy that is not the kept one was made here and never finished."""
    return is_own(copy.tags, maker) and names.STATE not in copy.tags and copy.lifecycle_stage != DELETED


def remove(destination: Destination, found: Iterable[tuple[RemoteRun, str]]) -> None:
    """Marks each duplicate with the copy that is kept, then deletes it; a call that is cut off between is repeated."""
    for duplicate, kept in found:
        destination.log_batch(duplicate.id, tags={names.DUPLICATE: kept})
        destination.delete_run(duplicate.id)


def late(
    destination: Destination, experiment_ids: list[str], store: str, made: Mapping[str, str]
) -> tuple[list[tuple[RemoteRun, str]], list[str]]:
    """Copies beside those that were just made: duplicates with what is kept, and notes about other people's.

    made: recorded run id to the server's.
    """
    found: list[tuple[RemoteRun, str]] = []
    notes: list[str] = []
    for copy in destination.search(experiment_ids, has_tag(names.SOURCE_STORE, store)):
        kept = made.get(copy.source_id)
        if kept is None or kept == copy.id:
            continue
        if is_duplicate(copy, destination.maker):
            found.append((copy, kept))
        elif names.DUPLICATE not in copy.tags:
            notes.append(f"run {copy.source_id} was made twice, by somebody else too: {kept} and {copy.id}")
    return found, notes
