"""A lab's database, with MLflow's own schema, and its bucket; the process that has MLflow stays: it starts slowly."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from s3_server import REGION, Store
from sync_server import Postgres, mlflow_bin, postgresql_bin

FILES = Path(__file__).resolve().parents[2] / "roles" / "mlflow" / "files"
DAY = 86_400_000  # milliseconds

# MLflow takes seconds to import: one process, to which each call is a line.
WORKER = """
import contextlib, io, json, os, sys, traceback
from pathlib import Path
import mlflow
import mlflow_garbage
mlflow_garbage.os.geteuid = lambda: 1000

def gc(values, state, *arguments):
    mlflow_garbage.STATE = Path(state)
    return mlflow_garbage.main(values, arguments)

def make(values, program, name):
    exec(program, {"values": values, "name": name})

for line in sys.stdin:
    call, values, arguments = json.loads(line)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = globals()[call](values, *arguments) or 0
        except SystemExit as error:
            code = error.code
        except BaseException:
            traceback.print_exc()
            code = -1
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""

# Two runs, of which one is deleted, a model of each, a registered version, and a deleted experiment with a trace.
MAKE = """
import json
import mlflow
from mlflow.entities import Metric, TraceInfo, TraceLocation, TraceState
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
mlflow.set_tracking_uri(values["_MLFLOW_SERVER_FILE_STORE"])
store = SqlAlchemyStore(values["_MLFLOW_SERVER_FILE_STORE"], values["_MLFLOW_SERVER_ARTIFACT_ROOT"])
registry = Registry(values["_MLFLOW_SERVER_FILE_STORE"])
made = {}
def run(what, experiment):
    found = store.create_run(experiment, "ada", 1, [], what)
    store.log_batch(found.info.run_id, [Metric("loss", 0.5, 1, step) for step in range(3)], [], [])
    made[what] = [found.info.run_id, found.info.artifact_uri]
    return found.info
def model(what, experiment, source=None):
    found = store.create_logged_model(experiment, what, source)
    made[what] = [found.model_id, found.artifact_location]
    return found
kept = store.create_experiment(f"{name} kept")
gone = store.create_experiment(f"{name} gone")
elsewhere = store.create_experiment(f"{name} elsewhere", artifact_location="s3://another/place")
run("alive", kept)
runs = [run(what, kept) for what in ("old", "fresh", "named")] + [run("elsewhere", elsewhere)]
model("model alive", kept)
models = [model(what, kept) for what in ("model old", "model named")]
registry.create_registered_model(f"{name} registered")
registry.create_model_version(f"{name} registered", made["named"][1] + "/model", made["named"][0])
registry.create_model_version(f"{name} registered", "models:/" + made["model named"][0])
for one in runs:
    store.delete_run(one.run_id)
for one in models:
    store.delete_logged_model(one.model_id)
run("in the experiment", gone)
model("model in the experiment", gone)
made["experiment"] = [gone, values["_MLFLOW_SERVER_ARTIFACT_ROOT"] + "/" + gone]
trace = TraceInfo("tr-" + gone, TraceLocation.from_experiment_id(gone), 1, TraceState.OK)
store.start_trace(trace)
store.delete_experiment(gone)
print(json.dumps(made))
"""


class Lab:
    """A database and a bucket, as the server has them."""

    def __init__(self, folder: Path, postgres: Postgres, store: Store) -> None:
        self.folder, self.postgres, self.store = folder, postgres, store
        self.values = {
            "_MLFLOW_SERVER_FILE_STORE": postgres.create("mlflow"),
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "s3://climate/artifacts",
            "MLFLOW_S3_ENDPOINT_URL": store.endpoint,
            "AWS_ACCESS_KEY_ID": store.access_key,
            "AWS_SECRET_ACCESS_KEY": store.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CA_BUNDLE": str(store.ca),
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
        self.worker = subprocess.Popen(
            [mlflow_bin() / "python", "-c", WORKER], env={**plain, "PYTHONPATH": str(FILES)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
        )  # fmt: skip

    @property
    def bucket(self) -> dict[str, bytes]:
        return self.store.buckets["climate"]

    def python(self, call: str, *arguments: str, **values: str) -> tuple[int, str, str]:
        """Exit code and what was said of a call of the worker's."""
        assert self.worker.stdin and self.worker.stdout
        self.worker.stdin.write(json.dumps([call, {**self.values, **values}, arguments]) + "\n")
        self.worker.stdin.flush()
        code, out, err = json.loads(self.worker.stdout.readline())
        return code, out, err

    def make(self, name: str) -> dict[str, tuple[str, str]]:
        """Id and address of what is made; each has two files, and an experiment one of its own."""
        code, out, err = self.python("make", MAKE, name)
        assert code == 0, err
        made: dict[str, tuple[str, str]] = json.loads(out.splitlines()[-1])
        for _, uri in made.values():
            for file in ("a", "b/c"):
                self.bucket[f"{uri.removeprefix('s3://climate/')}/{file}"] = b"x" * 1000
        for statement in (
            "UPDATE runs SET deleted_time = deleted_time - :days WHERE name <> 'fresh'",
            "UPDATE logged_models SET last_updated_timestamp_ms = last_updated_timestamp_ms - :days",
            "UPDATE experiments SET last_update_time = last_update_time - :days",
        ):
            self.sql(statement, days=40 * DAY)
        return made

    def gc(self, *arguments: str, **values: str) -> tuple[int, dict[str, Any]]:
        code, out, err = self.python("gc", str(self.folder), "--json", "--days", "30", *arguments, **values)
        assert out, err
        return code, json.loads(out)

    def sql(self, statement: str, **values: object) -> list[str]:
        """The rows that psql gives; `:'name'` and `:"name"` are values."""
        programs = postgresql_bin()
        assert programs is not None
        command = [programs / "psql", "-qAt", "-h", self.postgres.folder, "-U", "postgres", "-d", "mlflow", "-X"]
        command += [f"--set={key}={value}" for key, value in {"ON_ERROR_STOP": 1, **values}.items()]
        done = subprocess.run(command, input=statement, check=True, capture_output=True, text=True, cwd="/")
        return done.stdout.splitlines()

    def empty(self) -> None:
        """Delete all that tests have made before, if MLflow has made its tables by then."""
        if self.sql("SELECT to_regclass('runs')") == [""]:
            return
        self.sql("TRUNCATE runs, logged_models, registered_models CASCADE")
        self.sql("DELETE FROM experiments WHERE experiment_id <> 0")

    def files(self, uri: str) -> list[str]:
        prefix = f"{uri.removeprefix('s3://climate/')}/"
        return sorted(key.removeprefix(prefix) for key in self.bucket if key.startswith(prefix))

    def there(self) -> set[str]:
        """The ids of all runs, models and experiments."""
        return set(self.sql("SELECT run_uuid FROM runs UNION SELECT model_id FROM logged_models")) | {
            f"experiment {one}" for one in self.sql("SELECT experiment_id FROM experiments")
        }
