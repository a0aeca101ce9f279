"""Copies all of one bucket into another, as it is: of a lab that moves.  Run with MLflow's Python.

Usage: labtrack_across.py <WHERE   (JSON: "from" and "to", each with endpoint, bucket, region, ca, access, secret)

What is there already is not copied again, so that most can be copied days before, while the lab is in use.  Killed
anywhere, the next call goes on.  Nothing is deleted, and what somebody else has written to the second bucket is left.
The last line that it prints is the result, JSON.  Exit code 1: with "error" and "fix".
"""

from __future__ import annotations

import io
import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from labtrack_buckets import FAILED, PART, BotoCoreError, Bucket, ClientError, DamagedError, StoreError, code, kept
from labtrack_index import Pair, shown, size

PROBES = ".labtrack-probe/"  # objects of checks, which live for a second
# The etag of a copy's original, in its metadata: what has it is a copy that nobody has written over since.  That of an
# object in parts says nothing by itself, as the copy may have been sent in others.
MARK = "labtrack-copy-of"
FIX = "see to each; all others are done, and the next call tries again."
OTHER = """SELECT wanted.key, etag, wanted.size FROM wanted
    LEFT JOIN there ON there.name = wanted.key || char(10) || etag AND there.size = wanted.size
    WHERE there.name IS NULL"""
MISSING = """SELECT wanted.key, wanted.size FROM wanted
    LEFT JOIN there ON there.name = wanted.key AND there.size = wanted.size WHERE there.name IS NULL AND stored"""


class Across(Pair):
    """From `lab`, the old bucket, into `store`, the new one."""

    def __call__(self) -> dict[str, Any]:
        self.apart()
        rows = ((key, etag, length, at, key, 1) for key, etag, length, at in self.lab.list("")
                if not key.startswith(PROBES))  # fmt: skip
        self.fill("wanted", rows)
        objects, length = self.one("SELECT count(*), coalesce(sum(size), 0) FROM wanted")
        self.fill("there", ((f"{key}\n{etag}", size_, at) for key, etag, size_, at in self.store.list("")))
        for (key, _, bytes_), done in self.all(OTHER, self.copy):
            if done:
                self.counts[done] += 1
            if done == "copied":
                self.counts["bytes"] += bytes_
            elif done != "there":  # gone, left, or a finding that is told already
                self.index.execute("UPDATE wanted SET stored = 0 WHERE key = ?", (key,))
        self.find_full()
        self.check()
        copied = f"{self.counts['copied']} ({size(self.counts['bytes'])})"
        message = f"The old bucket has {objects} objects ({size(length)}), of which {copied} were copied now"
        if self.counts["left"]:
            message += f", {self.counts['left']} were left, as somebody has written them in the new bucket"
        counts = {name: self.counts[name] for name in ("copied", "left")}
        return {"objects": objects, "bytes": length, **counts, "message": f"{message}."}

    def apart(self) -> None:
        """See that these are two buckets: in Swift each project has names of its own, so that a name says nothing."""
        if self.lab.name != self.store.name:
            return
        marker = f"{PROBES}moved"
        try:
            self.store.put(marker, io.BytesIO(), 0, "")
            try:
                found = self.lab.head(marker)
            finally:
                self.store.delete(marker)
        except (BotoCoreError, ClientError) as error:
            if code(error) != "403":
                raise self.store.error(error) from error
            found = {}
        if found:
            raise StoreError(
                f"Both labs have the same bucket, {self.lab.name}.", "name another one in the new lab's lab_bucket."
            )

    def copy(self, key: str, etag: str, length: int) -> str:
        """Copy an object where the new bucket has it not, or an earlier copy of it; what was done."""
        self.store.fits()
        now = self.store.head(key)
        if now:
            mark = now.get("Metadata", {}).get(MARK)
            if mark is None:
                return "left"
            if mark == etag and now["ContentLength"] == length:
                return "there"
        if length > PART:
            self.store.clear(key, only=key)  # of a call that was killed
        got = self.lab.get(key)
        if got is None:
            return "gone"
        with got["Body"] as body:
            etag, more = got["ETag"].strip('"'), kept(got)  # which may be another than what was listed
            more["Metadata"] = more.get("Metadata", {}) | {MARK: etag}
            encrypted = got.get("ServerSideEncryption", "AES256") != "AES256"  # then no etag is an MD5
            self.store.put(key, body, got["ContentLength"], "" if encrypted else etag, **more)
        if length != got["ContentLength"]:
            raise DamagedError("it was written to while it was copied")  # and so it may be again
        return "copied"

    def check(self) -> None:
        """Look whether the new bucket has what it was given."""
        self.fill("there", ((key, length, at) for key, _, length, at in self.store.list("")))

        def there(key: str, length: int) -> bool:
            # of what was stored a moment ago, listings of OpenStack's Swift may not know yet
            return bool(self.store.head(key).get("ContentLength") == length)

        for (key, *_), found in self.all(MISSING, there):
            if found is False:
                self.find(f"{shown(key)}: is not in the new bucket, though it was copied")


def bucket(what: str, of: dict[str, str]) -> Bucket:
    keys = {"AWS_ACCESS_KEY_ID": of["access"], "AWS_SECRET_ACCESS_KEY": of["secret"]}
    fix = "see lab_s3_endpoint, lab_s3_ca_file, lab_bucket and the server's key of that lab"
    where = {name: of[name] for name in ("endpoint", "region", "ca")}
    return Bucket(what, fix, of["bucket"], keys, **where)


def main() -> int:
    given = json.load(sys.stdin)
    work = Across(bucket("the old lab's store", given["from"]), bucket("the new lab's store", given["to"]))
    try:
        result = work()
    except StoreError as error:
        result = {"error": error.args[0], "fix": error.args[1]}
    except (sqlite3.Error, *FAILED) as error:
        result = {"error": f"{type(error).__name__}: {error}", "fix": "see to what is said; the next call goes on."}
    else:
        if work.counts["findings"]:
            error = f"{result.pop('message')}\n{work.counts['findings']} need a look:{work.told_findings()}"
            result |= {"error": error, "fix": FIX}
    print(json.dumps(result))
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main())
