"""Listings of the lab's bucket, as labtrack-backup keeps them, and whether the databases' models are in one.

A listing is JSON lines, compressed: what it is of, then an object a line, {"key", "etag", "size", "modified"}, with
"stored": false where the backup does not have it.  It is written when all objects have been tried, so that one that is
there is whole.
"""

from __future__ import annotations

import datetime
import gzip
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

LOCAL = "listing.jsonl.gz"  # the newest, beside the result: for the drill, which has no key
LONGEST = 900  # bytes of a name: 1024 less what stands before it
STAMP = "%Y%m%dT%H%M%SZ"  # of a listing's name
NAMED = 5  # what a message names one by one
FIX = (
    "the lab's bucket had lost their files by then, or never had them: `labtrack-backup artifacts-restore TIME` puts "
    "those of an earlier listing back; else delete the models."
)

# What has to have objects, and where; several rows of one are places of which one will do.
REFERENCES = """
    WITH versions AS (
        SELECT 'version ' || version || ' of ' || name AS what, last_updated_time AS at, source,
            coalesce(nullif(storage_location, ''), source) AS place
        FROM model_versions WHERE current_stage <> 'Deleted_Internal' AND status = 'READY'),
    found AS (
        SELECT 'logged model ' || name || ' (' || model_id || ')' AS what, last_updated_timestamp_ms AS at,
            artifact_location AS place
        FROM logged_models WHERE status = 2 AND lifecycle_stage = 'active'
        UNION SELECT what, at, coalesce(replace(place, 'runs:/' || run_uuid, artifact_uri), place)
        FROM versions LEFT JOIN runs ON source LIKE 'runs:/' || run_uuid || '/%'
        UNION SELECT what, at, artifact_location FROM versions
        JOIN logged_models ON source IN ('models:/' || model_id, 'runs:/' || source_run_id || '/' || name))
    SELECT json_build_object('what', what, 'at', at, 'place', place) FROM found WHERE place NOT LIKE 'models:/%'
    """
ENDED_AFTER = "SELECT count(*) FROM runs WHERE end_time > "


def name(key: str, etag: str) -> str:
    """Where the backup has this content of an object: below its key, so that any S3 client finds it."""
    plain = f"{key}/{etag}"
    return plain if len(plain.encode()) <= LONGEST else f"{hashlib.sha256(key.encode()).hexdigest()}/{etag}"


def stamp(seconds: float) -> str:
    """A time as names of listings have it, which sort as they follow."""
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime(STAMP)


def seconds(of: str) -> float:
    """The time in the name of a listing, since the epoch."""
    return datetime.datetime.strptime(of, STAMP).replace(tzinfo=datetime.timezone.utc).timestamp()


def write(file: Path, head: dict[str, Any], rows: Iterable[dict[str, Any]]) -> None:
    with gzip.open(file, "wt", encoding="utf-8", compresslevel=6) as lines:
        for row in itertools.chain([head], rows):
            lines.write(json.dumps(row) + "\n")


def read(source: IO[bytes]) -> Iterator[dict[str, Any]]:
    """What it is of, and then the objects."""
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def prefix(place: str, root: str) -> str | None:
    """An address of MLflow's as the beginning of keys; None where it is not below the server's artifact root."""
    whole = re.sub("^mlflow-artifacts:/+", f"{root}/", place).rstrip("/")
    return whole.removeprefix("s3://").partition("/")[2] if whole.startswith(f"{root}/") else None


def compare(rows: Iterator[dict[str, Any]], references: Iterable[str], runs: str) -> dict[str, Any]:
    """Which models of the databases have no object in a listing.

    rows: see read.  references: the answer to REFERENCES.  runs: that to ENDED_AFTER, for the time of the listing.
    """
    head = next(rows)
    begun = seconds(head["time"]) * 1000
    wanted: dict[str, set[str]] = {}
    later, elsewhere = set(), set()
    for one in map(json.loads, references):
        place = prefix(one["place"], head["root"])
        if one["at"] >= begun:
            later.add(one["what"])
        elif place is None:
            elsewhere.add(one["what"])
        else:
            wanted.setdefault(one["what"], set()).add(place)
    places = set().union(*wanted.values())
    seen = set()
    for row in rows:
        if row.get("stored", True):
            parts = row["key"].split("/")
            seen |= {whole for end in range(1, len(parts) + 1) if (whole := "/".join(parts[:end])) in places}
    missing = sorted(what for what, where in wanted.items() if not where & seen)
    there = f"{len(wanted) - len(missing)} of {len(wanted)} models and versions are there"
    text = f"artifacts of {when(head['time'])}: {there}"
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        text += f", without any object are: {', '.join(missing[:NAMED])}{more}"
    text += f"; {len(later)} were changed and {runs} runs ended later."
    return {
        "listing": head["time"], "models": len(wanted), "missing": missing, "later": len(later),
        "elsewhere": len(elsewhere - wanted.keys()), "runs_ended_later": int(runs), "message": text,
    }  # fmt: skip


def when(of: str) -> str:
    return datetime.datetime.fromtimestamp(seconds(of), datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def database(tables: Iterable[tuple[str, str]]) -> str | None:
    """MLflow's, among all databases with their tables."""
    listed = set(tables)
    return next(
        (base for base, table in listed if table == "logged_models" and (base, "model_versions") in listed), None
    )


def asked(of: str, ask: Callable[[str], list[str]]) -> list[str]:
    """What MLflow's database says for compare: the number of runs, and then the models, a line each."""
    return [*ask(f"{ENDED_AFTER}{int(seconds(of) * 1000)}"), *ask(REFERENCES)]
