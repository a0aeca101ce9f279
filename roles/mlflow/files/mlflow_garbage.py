"""Takes away for good what was deleted long ago: runs, logged models and experiments, with their artifacts, and what
the bucket keeps of objects that were deleted or written over.

`mlflow gc` is for that too.  But it ends at the first that it can't delete, takes away what a registered model is made
of, and deletes whatever an address says.  Here each is tried, and what a version refers to is kept.  Artifacts go
first: a call that was killed leaves nothing that the next one does not find.
"""

import argparse
import contextlib
import fcntl
import json
import os
import re
import time
from collections import Counter
from datetime import datetime, timezone
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import mlflow_databases

STATE = Path("/var/lib/mlflow")  # gc.json: what the last call has done
TIMEOUT = 30  # seconds without a word from the store
GONE = "Deleted_Internal"  # the stage of a version that was deleted


class Kept(Exception):
    """Why something that was deleted long ago stays."""


class StoreDown(Exception):
    """The object store does not answer: no sense in asking it a thousand times more."""


class Store:
    """The folder of the bucket that is the server's."""

    def __init__(self, values):
        self.client, self.root = mlflow_databases.store(values, connect_timeout=TIMEOUT, read_timeout=TIMEOUT)
        self.bucket = self.root.removeprefix("s3://").partition("/")[0]

    def prefix(self, uri, name):
        """The part of an address up to `name`, as a prefix of keys; Kept where it is not one of the server's."""
        whole = re.sub("^mlflow-artifacts:/+", f"{self.root}/", uri or "")
        before, found, _ = f"{whole}/".partition(f"/{name}/")
        if not found or not f"{before}/".startswith(f"{self.root}/") or ".." in before.split("/"):
            raise Kept(f"its artifacts are not in the server's folder: {uri}")
        return f"{before}/{name}/".removeprefix(f"s3://{self.bucket}/")

    @contextlib.contextmanager
    def asked(self):
        """StoreDown where it does not answer."""
        from botocore.exceptions import ConnectionError as Lost
        from botocore.exceptions import HTTPClientError

        try:
            yield
        except (Lost, HTTPClientError) as error:
            raise StoreDown(str(error)) from error

    def objects(self, prefix):
        """Key and size of each."""
        pages = iter(self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix))
        while True:
            with self.asked():
                page = next(pages, None)
            if page is None:
                return
            for one in page.get("Contents", ()):
                yield one["Key"], one["Size"]

    def outdated(self, before):
        """Key, id and size of each version of an object that outdated() gives."""
        prefix = f"{self.root}/".removeprefix(f"s3://{self.bucket}/")
        pages = self.client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=prefix)
        found = outdated(pages, before)
        while True:
            with self.asked():
                one = next(found, None)
            if one is None:
                return
            yield one["Key"], one["VersionId"], one.get("Size", 0)

    def delete(self, key, **version):
        # one by one: OpenStack's Swift wants an MD5 for several at once, which newer SDKs do not send
        with self.asked():
            self.client.delete_object(Bucket=self.bucket, Key=key, **version)


def outdated(pages, before):
    """The versions of objects that were deleted or written over before a time, of a key the oldest first.

    pages: of list_object_versions, in the order of keys.  A delete marker goes when nothing is left behind it, and
    after all that is: without it the object would be there again.
    """
    read = []
    for page in pages:
        read += page.get("Versions", ())
        read += [{**one, "marker": True} for one in page.get("DeleteMarkers", ())]
        # a key may go on in the next page
        last = max((one["Key"] for one in read), default="")
        whole, read = [one for one in read if one["Key"] != last], [one for one in read if one["Key"] == last]
        for _, versions in groupby(sorted(whole, key=itemgetter("Key")), itemgetter("Key")):
            yield from _outdated(list(versions), before)
    yield from _outdated(read, before)


def _outdated(versions, before):
    """outdated() of one key."""
    versions.sort(key=lambda one: (one["IsLatest"], one["LastModified"]))
    left = len(versions)
    for one, newer in zip(versions, versions[1:]):
        if newer["LastModified"] < before:
            left -= 1
            yield one
    if left == 1 and versions[-1].get("marker") and versions[-1]["LastModified"] < before:
        yield versions[-1]


class Garbage:
    """What was deleted at least so many `days` ago, and the versions of as many days; taking them away.  0: none."""

    def __init__(self, values, days, versions, *, dry):
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        self.store = Store(values)
        self.dry = dry
        self.days, self.versions = days, versions
        self.before = int((time.time() - days * 86400) * 1000)
        self.tracking = SqlAlchemyStore(values["_MLFLOW_SERVER_FILE_STORE"], self.store.root)
        self.counts = Counter(runs=0, models=0, experiments=0, objects=0, bytes=0, versions=0, bytes_of_versions=0)
        self.kept, self.failed = [], []

    def query(self, sql, **values):
        from sqlalchemy import text

        with self.tracking.engine.connect() as connection:
            return connection.execute(text(sql), {"before": self.before, **values}).all()

    def collect(self):
        """Take everything away that may go."""
        kinds = (
            ("models", self.model, "model_id FROM logged_models", "last_updated_timestamp_ms"),
            ("runs", self.run, "run_uuid FROM runs", "deleted_time"),
            ("experiments", self.experiment, "experiment_id FROM experiments", "last_update_time"),
        )
        try:
            for kind, take, table, since in kinds if self.days else ():
                where = f"lifecycle_stage = 'deleted' AND {since} < :before ORDER BY 1"
                for (name,) in self.query(f"SELECT {table} WHERE {where}"):
                    self.one(kind, take, name)
            if self.versions:
                self.collect_versions()
        except StoreDown as error:
            self.failed.append({"what": "the object store", "why": str(error)})

    def collect_versions(self):
        """Take the old versions away that may go: after the runs, whose objects become old versions now."""
        from botocore.exceptions import ClientError

        before = datetime.fromtimestamp(time.time() - self.versions * 86400, timezone.utc)
        try:
            for key, version, size in self.store.outdated(before):
                if not self.dry:
                    self.store.delete(key, VersionId=version)
                self.counts["versions"] += 1
                self.counts["bytes_of_versions"] += size
        except ClientError as error:
            why = f"the store refuses it, or has no versions: {error}"
            self.failed.append({"what": "old versions of objects", "why": why})

    def one(self, kind, take, name):
        try:
            take(name)
        except Kept as why:
            self.kept.append({"what": f"{kind[:-1]} {name}", "why": str(why)})
        except StoreDown:
            raise
        except Exception as error:
            self.failed.append({"what": f"{kind[:-1]} {name}", "why": f"{type(error).__name__}: {error}"})
        else:
            self.counts[kind] += 1

    def run(self, run_id):
        rows = self.query(
            "SELECT artifact_uri FROM runs WHERE run_uuid = :id AND lifecycle_stage = 'deleted'", id=run_id
        )
        self.take(rows, run_id, lambda: self.tracking._hard_delete_run(run_id))

    def model(self, model_id, stage="deleted"):
        rows = self.query(
            "SELECT artifact_location FROM logged_models WHERE model_id = :id AND lifecycle_stage LIKE :stage",
            id=model_id,
            stage=stage,
        )
        self.take(rows, model_id, lambda: self.tracking._hard_delete_logged_model(model_id))

    def experiment(self, experiment_id):
        rows = self.query(
            "SELECT artifact_location FROM experiments WHERE experiment_id = :id AND lifecycle_stage = 'deleted'",
            id=experiment_id,
        )
        ((runs,),) = self.query(
            "SELECT count(*) FROM runs WHERE experiment_id = :id"
            " AND NOT (lifecycle_stage = 'deleted' AND :dry AND deleted_time < :before)",
            id=experiment_id,
            dry=self.dry,
        )
        if runs:
            raise Kept(f"{runs} of its runs are still there")
        # MLflow marks the runs of an experiment that is deleted, and not its models
        for (model,) in self.query(
            "SELECT model_id FROM logged_models WHERE experiment_id = :id"
            " AND NOT (lifecycle_stage = 'deleted' AND last_updated_timestamp_ms < :before)",
            id=experiment_id,
        ):
            self.model(model, "%")
            self.counts["models"] += 1

        def delete():
            self.tracking.delete_traces(str(experiment_id), max_timestamp_millis=int(time.time() * 1000))
            self.tracking._hard_delete_experiment(str(experiment_id))

        self.take(rows, str(experiment_id), delete)

    def unreferred(self, name, *places):
        """Kept where a version of a registered model is made of it."""
        versions = self.query(
            "SELECT name, version, coalesce(run_id, ''), coalesce(source, ''), coalesce(storage_location, '')"
            " FROM model_versions WHERE current_stage <> :gone",
            gone=GONE,
        )
        for model, version, run_id, *sources in versions:
            led = [one for one in sources if one.startswith((*places, f"runs:/{name}/")) or one == f"models:/{name}"]
            if led or run_id == name:
                raise Kept(f"version {version} of the registered model {model} refers to it")

    def take(self, rows, name, delete):
        """Artifacts, then rows; nothing where somebody has taken the thing back meanwhile."""
        if not rows:
            raise Kept("somebody has restored it meanwhile")
        prefix = self.store.prefix(rows[0][0], name)
        self.unreferred(name, f"s3://{self.store.bucket}/{prefix}", f"mlflow-artifacts:/{prefix.partition('/')[2]}")
        for key, size in self.store.objects(prefix):
            if not self.dry:
                self.store.delete(key)
            self.counts["objects"] += 1
            self.counts["bytes"] += size
        if not self.dry:
            delete()


def main(values, arguments):
    """`mlflowctl gc`: 0 all is done, 1 something could not be deleted."""
    parser = argparse.ArgumentParser(prog="mlflowctl gc", description=__doc__.partition("\n")[0])
    parser.add_argument("--days", type=int, default=0, help="how long ago runs, models and experiments were deleted")
    parser.add_argument("--versions", type=int, default=0, help="how long ago objects were deleted or written over")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args(arguments)
    if min(wanted.days, wanted.versions) < 0 or wanted.days + wanted.versions < 1:
        parser.error("--days or --versions has to be 1 or more: what was deleted just now may have been a slip.")
    mlflow_databases.become()
    os.environ.update(values)
    with (STATE / "gc.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        garbage = Garbage(values, wanted.days, wanted.versions, dry=wanted.dry_run)
        garbage.collect()
        result = {
            "version": 1, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "days": wanted.days,
            "days_of_versions": wanted.versions, "dry_run": wanted.dry_run, **garbage.counts,
            "kept": garbage.kept, "failed": garbage.failed,
        }  # fmt: skip
        if not wanted.dry_run:
            part = STATE / "gc.json.part"
            part.write_text(json.dumps(result, indent=1) + "\n")
            part.rename(STATE / "gc.json")
    print(json.dumps(result) if wanted.json else said(result))
    return 1 if garbage.failed else 0


def said(result):
    """The result in words."""
    counted = ", ".join(f"{result[kind]} {kind}" for kind in ("runs", "models", "experiments"))
    done = "would go for good" if result["dry_run"] else "are gone for good"
    lines = []
    if result["days"]:
        lines.append(
            f"{counted} deleted at least {result['days']} days ago {done}, with {result['objects']} objects"
            f" ({result['bytes'] / 1e6:.1f} MB) of the bucket."
        )
    if result["days_of_versions"]:
        lines.append(
            f"{result['versions']} versions ({result['bytes_of_versions'] / 1e6:.1f} MB) of objects that were"
            f" deleted or written over at least {result['days_of_versions']} days ago {done}."
        )
    lines += [f"kept: {one['what']}: {one['why']}" for one in result["kept"]]
    lines += [f"failed: {one['what']}: {one['why']}" for one in result["failed"]]
    if result["failed"]:
        lines.append("To fix: see to what is said above; the next call tries again what is left.")
    return "\n".join(lines)
