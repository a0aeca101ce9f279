"""Both buckets of labtrack-backup's artifacts, and an index of what is in them."""

from __future__ import annotations

import itertools
import json
import shlex
import sqlite3
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import labtrack_listing as listing
from labtrack_buckets import CONNECTIONS, FAILED, NO_KEY, Bucket, DamagedError, FullError, StoreError, code, unanswered

CHUNK = 1000  # objects that are handed to the threads at once
NAMED = 20  # findings that are told one by one
DOWN = 10  # objects one after the other without an answer: then the store is down
SCHEMA = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA temp_store = FILE;
    CREATE TABLE wanted (key TEXT PRIMARY KEY, etag TEXT, size INTEGER, modified REAL, name TEXT, stored INTEGER)
        WITHOUT ROWID;
    CREATE INDEX by_name ON wanted (name);
    CREATE TABLE there (name TEXT PRIMARY KEY, size INTEGER, modified REAL) WITHOUT ROWID;
    CREATE TABLE same (name TEXT PRIMARY KEY, etag TEXT) WITHOUT ROWID;
    """


class Pair:
    """Two buckets, and an index on disk of what is in them, so that memory does not grow with their number."""

    def __init__(self, lab: Bucket, store: Bucket) -> None:
        self.lab, self.store = lab, store
        # made anew by each call, as what is in the buckets is what counts; in TMPDIR, under no name
        self.index = sqlite3.connect("", isolation_level=None)
        self.index.executescript(SCHEMA)
        self.counts: Counter[str] = Counter()
        self.findings: list[str] = []
        self.unanswered, self.lock = 0, threading.Lock()  # what the threads count

    def one(self, sql: str, *values: Any) -> Any:
        return self.index.execute(sql, values).fetchone()

    def fill(self, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
        marks = {"wanted": "?, ?, ?, ?, ?, ?", "there": "?, ?, ?", "same": "?, ?"}[table]
        self.index.execute("BEGIN")
        self.index.execute(f"DELETE FROM {table}")  # noqa: S608
        self.index.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", rows)  # noqa: S608
        self.index.execute("COMMIT")

    def all(self, sql: str, work: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
        """Each row with what work gives for it, several at once; None where that is a finding, which stops no other."""
        self.index.execute("DROP TABLE IF EXISTS todo")
        self.index.execute(f"CREATE TABLE todo AS {sql}")
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            for first in itertools.count(1, CHUNK):
                between = (first, first + CHUNK - 1)
                rows = self.index.execute("SELECT * FROM todo WHERE rowid BETWEEN ? AND ?", between).fetchall()
                if not rows:
                    return
                yield from zip(rows, threads.map(lambda row: self.told(work, *row), rows), strict=True)

    def told(self, work: Any, key: str, *more: Any) -> Any:
        if self.unanswered > DOWN:
            raise StoreError("A store gave no answer many times over.", "see that both are up; the next call goes on.")
        try:
            done = work(key, *more)
        except FullError:
            with self.lock:
                self.counts["full"] += 1
            return None
        except (DamagedError, *FAILED) as error:
            with self.lock:
                self.find(f"{shown(key)}: {error}")
                self.unanswered += unanswered(error)
            if code(error) in NO_KEY:
                raise StoreError(f"A store refuses more: {error}", "see its key, and the server's clock.") from error
            return None
        self.unanswered = 0
        return done

    def find(self, what: str) -> None:
        self.counts["findings"] += 1
        if len(self.findings) < NAMED:
            self.findings.append(what)

    def find_full(self) -> None:
        """One finding for all that a full store has not taken."""
        for full in filter(None, (self.lab.full, self.store.full)):
            self.find(f"{full.args[0]} {self.counts['full']} objects did not go into it: {full.args[1]}")

    def told_findings(self) -> str:
        more = self.counts["findings"] - len(self.findings)
        return "".join(f"\n  {one}" for one in self.findings) + (f"\n  and {more} more" if more else "")


class Backup(Pair):
    """The lab's bucket and that of its backups."""

    def __init__(self, settings: dict[str, Any], lab_key: str, store_key: str) -> None:
        values, lab, store = environment(Path(settings["lab"]).read_text()), environment(lab_key), settings["store"]
        root = values.get("_MLFLOW_SERVER_ARTIFACT_DESTINATION", values["_MLFLOW_SERVER_ARTIFACT_ROOT"])
        self.root = root.rstrip("/")
        bucket, _, self.below = self.root.removeprefix("s3://").partition("/")
        of_lab = Bucket(
            "the lab's store", "see lab_s3_endpoint, lab_s3_ca_file and the server's key, and deploy", bucket, lab,
            endpoint=values["MLFLOW_S3_ENDPOINT_URL"], region=values.get("AWS_DEFAULT_REGION", "us-east-1"),
            ca=values.get("AWS_CA_BUNDLE", ""),
        )  # fmt: skip
        of_backups = Bucket(
            "the store of the backups", "see lab_backup and secret_backup_access_key_id, and deploy", store["bucket"],
            environment(store_key), endpoint=store["endpoint"], region=store["region"], ca=store["ca"],
        )  # fmt: skip
        super().__init__(of_lab, of_backups)
        self.folder, self.days = Path(settings["state"]), int(settings["days"])
        whole = f"{store['path'].strip('/')}/artifacts"
        self.exports, self.of_lab = Path(settings["files"]), f"{store['path'].strip('/')}/lab/"
        self.objects, self.listings, self.whole = f"{whole}/objects/", f"{whole}/listings/", f"{whole}/"
        # Empty objects <key>/<etag>/<etag before>, of what was put back in other parts than it came in.  Not in the
        # metadata of the object: whoever has the lab's key could write it to what he has changed.
        self.same = f"{whole}/same/"

    def look(self) -> None:
        """What the backup has."""
        cut = len(self.objects)
        self.fill("there", ((key[cut:], size, at) for key, _, size, at in self.store.list(self.objects)))

    def lab_objects(self) -> Iterator[tuple[str, str, int, float]]:
        """See Bucket.list; what was put back in other parts has its etag of before."""
        cut = len(self.same)
        self.fill("same", (key[cut:].rpartition("/")[::2] for key, *_ in self.store.list(self.same)))
        before = "SELECT etag FROM same WHERE name = ?"
        return (
            (key, (self.one(before, listing.name(key, etag)) or (etag,))[0], length, at)
            for key, etag, length, at in self.lab.list(f"{self.below}/" if self.below else "")
        )

    # listings
    def stamps(self) -> list[str]:
        """The times of the listings, the oldest first."""
        cut = len(self.listings)
        return sorted(key[cut:].partition(".")[0] for key, *_ in self.store.list(self.listings))

    def rows(self, stamp: str) -> Iterator[dict[str, Any]]:
        """See listing.read."""
        got = self.store.get(self.place(stamp))
        if got is None:
            raise StoreError(f"The listing {stamp} is gone.", "name another time.")
        try:
            yield from listing.read(got["Body"])
        except (OSError, EOFError, ValueError, zlib.error) as error:
            fix = f"delete {self.place(stamp)} in the bucket of the backups; the others are as good without it."
            raise StoreError(f"The listing {stamp} is damaged: {error}", fix) from error

    def place(self, stamp: str) -> str:
        return f"{self.listings}{stamp}.jsonl.gz"

    def chosen(self, to: str) -> str:
        """The last listing that is not after a time (seconds since the epoch); all are before "latest"."""
        stamps = self.stamps()
        if not stamps:
            raise StoreError("There is no listing of the artifacts yet.", "labtrack-backup artifacts.")
        found = [one for one in stamps if to == "latest" or listing.seconds(one) <= float(to)]
        if not found:
            raise StoreError(
                f"No listing is as old as that: the oldest is of {listing.when(stamps[0])}.", "name a later time."
            )
        return found[-1]


def shown(key: str) -> str:
    """A key for the terminal, which no name of a file is to steer."""
    return key if key.isprintable() else json.dumps(key)


def size(number: int) -> str:
    return f"{number / 2**20:.1f} MiB"


def environment(text: str) -> dict[str, str]:
    """The variables of a file, as systemd reads it."""
    pairs = (line.partition("=") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: "".join(shlex.split(value)) for name, _, value in pairs}
