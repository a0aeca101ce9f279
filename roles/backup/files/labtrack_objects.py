"""The artifacts' part of labtrack-backup that speaks to both stores.  Run by labtrack_artifacts, with MLflow's Python.

Usage: labtrack_objects.py SETTINGS LAB_KEY STORE_KEY COMMAND ...   (the keys are open files, by their numbers)

    run                                       copy what is new, and the lab's files; look whether all is there, leave a
                                              listing, prune
    restore latest|TIME [--dry-run] [--overwrite]   put back what the lab's bucket has not, or otherwise
    check latest|TIME                         compare with the models that are on standard input

The last line that it prints is the result, JSON.  Exit code 1: with "error" and "fix".
"""

from __future__ import annotations

import datetime
import io
import json
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import labtrack_listing as listing

try:
    from labtrack_buckets import (
        FAILED,
        PART,
        BotoCoreError,
        ClientError,
        DamagedError,
        FullError,
        StoreError,
        code,
        kept,
    )
    from labtrack_index import NAMED, Backup, shown, size
except ModuleNotFoundError as missing:
    fix = "run playbooks/deploy.yml, which installs MLflow."
    print(json.dumps({"error": f"MLflow's release has no {missing.name}, which speaks to the stores.", "fix": fix}))
    sys.exit(1)

DAY = 24 * 3600  # seconds
MANY = 10  # objects: with fewer, losing half of them is nothing
EXPORTS_KEPT = 20  # of the lab's files


class Night(Backup):
    """What is done each night."""

    fix = "see to each; all others are done, and the next call tries again."

    def __call__(self) -> dict[str, Any]:
        begun = time.time()
        self.apart()
        rows = self.lab_objects()
        named = ((key, etag, size, at, listing.name(key, etag), 1) for key, etag, size, at in rows)
        self.fill("wanted", named)
        self.look()
        missing = """SELECT key, etag, wanted.size, wanted.modified, wanted.name FROM wanted
            LEFT JOIN there ON there.name = wanted.name AND there.size = wanted.size
            WHERE there.name IS NULL AND stored"""
        for (key, *_), done in self.all(missing, self.copy):
            if done is None:
                self.index.execute("UPDATE wanted SET stored = 0 WHERE key = ?", (key,))
                continue
            copied, *now = done  # which may be another than what was listed
            self.counts["copied"] += copied is not None
            self.counts["bytes"] += copied or 0
            self.index.execute("DELETE FROM wanted WHERE key = ?", (key,))
            self.index.executemany("INSERT INTO wanted VALUES (?, ?, ?, ?, ?, 1)", now)
        lab = self.lab_files()
        self.find_full()
        if self.counts["copied"]:
            self.check(missing)
        head = self.leave(begun)
        stamps = self.stamps()
        before = stamps[stamps.index(head["time"]) - 1] if len(stamps) > 1 else ""
        had = next(self.rows(before))["objects"] if before else 0
        if had >= MANY and head["objects"] < had / 2:
            self.find(f"the bucket has {head['objects']} objects, and had {had} on {listing.when(before)}")
        else:
            self.prune(head["time"], stamps)
        message = (
            f"{head['objects']} objects ({size(head['bytes'])}) are listed, {self.counts['copied']} "
            f"({size(self.counts['bytes'])}) were copied, {self.counts['pruned']} pruned. {lab.pop('message')}"
        )
        seen = {name: head[name] for name in ("objects", "bytes", "missing")}
        counts = {name: self.counts[name] for name in ("copied", "pruned")}
        return {"listing": head["time"], **seen, **counts, "lab": lab, "message": message}

    def lab_files(self) -> dict[str, Any]:
        """Copy the newest of the encrypted files of the lab, as its admins' last run has left it; which that is.

        Named by time and number, as a server that was made anew may count from the beginning.
        """
        try:
            newest = max(self.exports.glob("*.json"), default=None)
            if newest is None:
                return {"message": "The server has no file of the lab yet."}
            facts, file = json.loads(newest.read_text()), newest.with_suffix(".vault")
            length, made = file.stat().st_size, listing.stamp(datetime.datetime.fromisoformat(facts["at"]).timestamp())
            key = f"{self.of_lab}{made}-{newest.stem}.vault"
            if self.store.head(key).get("ContentLength") != length:
                with file.open("rb") as body:
                    self.store.put(key, body, length, "")
            for old in sorted(name for name, *_ in self.store.list(self.of_lab))[:-EXPORTS_KEPT]:
                self.store.delete(old)
        except FullError:
            self.counts["full"] += 1
        except (DamagedError, KeyError, ValueError, *FAILED) as error:
            self.find(f"the lab's files in {self.exports}: {type(error).__name__}: {error}")
        else:
            said = f"The lab's files are those of {listing.when(made)} (number {facts['serial']})."
            return {"time": made, "number": facts["serial"], "message": said}
        return {"message": "The lab's files were not copied."}

    def apart(self) -> None:
        """See that the store can be used, and that it is not the lab's own bucket.  Raises StoreError."""
        marker = f"{self.whole}marker"
        try:
            self.store.clear(self.whole)
            if self.lab.name != self.store.name:
                return
            # in Swift each project has names of its own, so that the name alone says nothing
            self.store.put(marker, io.BytesIO(), 0, "")
            try:
                found = self.lab.head(marker)
            except ClientError as error:
                if code(error) != "403":
                    raise self.lab.error(error) from error
                found = {}
            self.store.delete(marker)
        except (BotoCoreError, ClientError) as error:
            raise self.store.error(error) from error
        if found:
            fix = "name another bucket in lab_backup, of another project, and deploy."
            raise StoreError(f"The backups would go into the lab's own bucket, {self.lab.name}.", fix)

    def copy(self, key: str, etag: str, length: int, at: float, name: str) -> list[Any]:
        """Copy what the object is now: how many bytes, or None, and its row for the index, none where it is gone."""
        self.store.fits()
        got = self.lab.get(key)
        if got is None:
            return [None]
        with got["Body"] as body:
            now = got["ETag"].strip('"')
            if now != etag:  # overwritten meanwhile
                etag = now
                length, at, name = got["ContentLength"], got["LastModified"].timestamp(), listing.name(key, etag)
                if self.store.head(self.objects + name).get("ContentLength") == length:
                    return [None, (key, etag, length, at, name)]
            encrypted = got.get("ServerSideEncryption", "AES256") != "AES256"  # then no etag is an MD5
            self.store.put(self.objects + name, body, length, "" if encrypted else etag, **kept(got))
        return [length, (key, etag, length, at, name)]

    def check(self, missing: str) -> None:
        """Mark what the backup does not have, by a new look at it."""
        self.look()

        def there(key: str, _etag: str, length: int, _at: float, name: str) -> bool:
            # of what was stored a moment ago, listings of OpenStack's Swift may not know yet
            return bool(self.store.head(self.objects + name).get("ContentLength") == length)

        for (key, *_), found in self.all(missing, there):
            if not found:
                self.index.execute("UPDATE wanted SET stored = 0 WHERE key = ?", (key,))
            if found is False:
                self.find(f"{key}: is not in the backup, though it was copied")

    def leave(self, begun: float) -> dict[str, Any]:
        """Write the listing, here and into the backup; what it is of."""
        objects, length, stored = self.one(
            "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(stored), 0) FROM wanted"
        )
        head = {
            "version": 1, "time": listing.stamp(begun), "ended": listing.stamp(time.time()), "root": self.root,
            "objects": objects, "bytes": length, "missing": objects - stored,
        }  # fmt: skip
        rows = (
            {"key": key, "etag": etag, "size": length, "modified": at, **({} if stored else {"stored": False})}
            for key, etag, length, at, stored in self.index.execute(
                "SELECT key, etag, size, modified, stored FROM wanted ORDER BY key"
            )
        )
        part = self.folder / f"{listing.LOCAL}.part"
        part.unlink(missing_ok=True)
        listing.write(part, head, rows)
        part.chmod(0o640)
        with part.open("rb") as body:
            try:
                self.store.put(self.place(head["time"]), body, part.stat().st_size, "")
            except (BotoCoreError, ClientError) as error:
                raise self.store.error(error) from error
        part.replace(self.folder / listing.LOCAL)
        return head

    def prune(self, now: str, stamps: list[str]) -> None:
        """Delete listings that are too old, and what was stored before the oldest that stays and none names.

        The one before stays in any case: after a long time without, it alone says what there was.
        """
        limit = listing.seconds(now) - self.days * DAY
        old = [one for one in stamps[:-2] if listing.seconds(one) < limit]
        for one in old:  # first, because a listing that is there has all that it names
            self.store.delete(self.place(one))
        self.index.execute("DROP TABLE IF EXISTS gone")
        self.index.execute(f"""CREATE TABLE gone AS SELECT name FROM there
            WHERE modified < {limit} AND name NOT IN (SELECT name FROM wanted)""")  # noqa: S608
        if not self.one("SELECT 1 FROM gone"):
            return
        self.index.execute("CREATE INDEX gone_name ON gone (name)")
        for one in stamps[len(old) :]:
            rows = self.rows(one)
            next(rows)
            self.index.execute("BEGIN")
            names = ((listing.name(row["key"], row["etag"]),) for row in rows)
            self.index.executemany("DELETE FROM gone WHERE name = ?", names)
            self.index.execute("COMMIT")

        def delete(name: str) -> bool:
            self.store.delete(self.objects + name)
            return True

        self.counts["pruned"] = sum(bool(done) for _, done in self.all("SELECT name FROM gone", delete))


class Restore(Backup):
    """Puts back what the lab's bucket has not, or has otherwise."""

    fix = "name another time for what is not in the backup; all others are done, and the same call tries again."

    def __call__(self, to: str, *options: str) -> dict[str, Any]:
        self.dry, self.overwrite = "--dry-run" in options, "--overwrite" in options
        rows = self.rows(self.chosen(to))
        self.head = next(rows)
        if self.head["root"] != self.root:
            print(f"The listing is of {self.head['root']}; it goes to {self.root}.")
        self.moved = self.head["root"].removeprefix("s3://").partition("/")[2]
        self.fill("wanted", map(self.row, rows))
        # by key, as the etags of large objects are those of their parts
        self.fill("there", ((f"{key}\n{etag}", length, at) for key, etag, length, at in self.lab_objects()))
        other = """SELECT wanted.key, etag, wanted.size, wanted.name, stored FROM wanted
            LEFT JOIN there ON there.name = wanted.key || char(10) || etag AND there.size = wanted.size
            WHERE there.name IS NULL"""
        for (key, _, length, *_), done in self.all(other, self.back):
            if done:
                self.counts[done] += 1
            if done == "back":
                self.counts["bytes"] += length
                print(f"{'would be put back' if self.dry else 'put back'}: {shown(key)}")
            elif done == "newer":
                print(f"left, as it is newer: {shown(key)}")
        self.find_full()
        would = "would be put back" if self.dry else "were put back"
        message = (
            f"{self.counts['back']} of {self.head['objects']} objects ({size(self.counts['bytes'])}) of "
            f"{listing.when(self.head['time'])} {would}."
        )
        if self.counts["newer"]:
            message += f" {self.counts['newer']} are newer in the bucket, and left; `--overwrite` puts these back, too."
        return {"listing": self.head["time"], **self.counts, "message": message}

    def row(self, of: dict[str, Any]) -> tuple[Any, ...]:
        """An object of the listing, below the artifact root of the server as it is now."""
        key, etag = of["key"], of["etag"]
        here = f"{self.below}/{key.removeprefix(f'{self.moved}/')}".lstrip("/") if self.moved != self.below else key
        return here, etag, of["size"], of["modified"], listing.name(key, etag), of.get("stored", True)

    def back(self, key: str, etag: str, length: int, name: str, stored: int) -> str:
        """Put an object back; what was done: back or newer."""
        self.lab.fits()
        now = self.lab.head(key)
        if now and now["LastModified"].timestamp() > listing.seconds(self.head["time"]) and not self.overwrite:
            return "newer"
        if not stored:
            raise DamagedError("is not in the backup, as the listing says")
        if self.dry:
            return "back"
        got = self.store.get(self.objects + name)
        if got is None:
            raise DamagedError("is not in the backup")
        if length > PART:
            self.lab.clear(key, only=key)  # of a call that was killed
        with got["Body"] as body:
            made = self.lab.put(key, body, length, etag, **kept(got))
        if made != etag:
            self.store.put(f"{self.same}{listing.name(key, made)}/{etag}", io.BytesIO(), 0, "")
        return "back"


class Check(Backup):
    """Compares a listing with the models of the databases."""

    fix = listing.FIX

    def __call__(self, to: str) -> dict[str, Any]:
        stamp = self.chosen(to)
        print(stamp, flush=True)
        runs, *references = sys.stdin.read().splitlines() or [""]
        if not runs:
            raise StoreError("The databases have said nothing.", "systemctl status 'postgresql@*'.")
        found = listing.compare(self.rows(stamp), references, runs)
        self.counts["findings"] = len(found["missing"])
        self.findings = found["missing"][:NAMED]
        return found


def main() -> int:
    settings = json.loads(sys.argv[1])
    keys = [os.fdopen(int(number)).read() for number in sys.argv[2:4]]
    command, *arguments = sys.argv[4:]
    try:
        work = {"run": Night, "restore": Restore, "check": Check}[command](settings, *keys)
        result = work(*arguments)
    except StoreError as error:
        result = {"error": error.args[0], "fix": error.args[1]}
    except (sqlite3.Error, *FAILED) as error:
        fix = "see to what is said (where it is the disk: df -h /var/lib); the next call goes on."
        result = {"error": f"{type(error).__name__}: {error}", "fix": fix}
    else:
        if work.counts["findings"]:
            error = f"{result.pop('message')}\n{work.counts['findings']} need a look:{work.told_findings()}"
            result |= {"error": error, "fix": work.fix}
    print(json.dumps(result))
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main())
