"""What was deleted long ago goes for good: MLflow's own store, PostgreSQL, and an S3 server that checks signatures."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
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

    def files(self, uri: str) -> list[str]:
        prefix = f"{uri.removeprefix('s3://climate/')}/"
        return sorted(key.removeprefix(prefix) for key in self.bucket if key.startswith(prefix))

    def there(self) -> set[str]:
        """The ids of all runs, models and experiments."""
        return set(self.sql("SELECT run_uuid FROM runs UNION SELECT model_id FROM logged_models")) | {
            f"experiment {one}" for one in self.sql("SELECT experiment_id FROM experiments")
        }


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    if postgresql_bin() is None:
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    folder = tmp_path_factory.mktemp("garbage")
    for one in (folder, *list(folder.parents)[:2]):
        one.chmod(0o755)
    (folder / "postgresql").mkdir()
    postgres, store = Postgres(folder / "postgresql"), Store(folder, "climate")
    postgres.start()
    try:
        with store.serving():
            made = Lab(folder, postgres, store)
            yield made
            assert made.worker.stdin
            made.worker.stdin.close()
            made.worker.wait()
    finally:
        postgres.stop()


GOES = ("old", "model old", "in the experiment", "model in the experiment")
STAYS = ("alive", "fresh", "named", "model alive", "model named", "elsewhere")


def test_what_was_deleted_long_ago_goes_with_its_artifacts(lab: Lab) -> None:
    made = lab.make("first")
    before, there = dict(lab.bucket), lab.there()

    code, dry = lab.gc("--dry-run")
    assert code == 0 and (dict(lab.bucket), lab.there()) == (before, there) and not (lab.folder / "gc.json").exists()

    code, done = lab.gc()
    counted = {"runs": 2, "models": 2, "experiments": 1, "objects": 10, "bytes": 10_000}
    assert code == 0 and done["failed"] == [] and {key: done[key] for key in counted} == counted
    assert {key: dry[key] for key in ("runs", "models", "experiments")} == {"runs": 2, "models": 2, "experiments": 1}
    assert json.loads((lab.folder / "gc.json").read_text()) == done
    assert there - lab.there() == {made[one][0] for one in GOES} | {f"experiment {made['experiment'][0]}"}
    assert all(lab.files(made[one][1]) == [] for one in (*GOES, "experiment"))
    assert all(lab.files(made[one][1]) == ["a", "b/c"] for one in STAYS if one != "elsewhere")
    assert lab.sql("SELECT count(*) FROM metrics WHERE run_uuid = :'run'", run=made["old"][0]) == ["0"]
    assert lab.sql("SELECT count(*) FROM trace_info WHERE experiment_id = :one", one=made["experiment"][0]) == ["0"]

    kept = {one["what"]: one["why"] for one in done["kept"]}
    assert set(kept) == {
        f"run {made['named'][0]}", f"model {made['model named'][0]}", f"run {made['elsewhere'][0]}"
    }  # fmt: skip
    assert "version 1 of the registered model first registered" in kept[f"run {made['named'][0]}"]
    assert "version 2" in kept[f"model {made['model named'][0]}"]
    assert "s3://another/place" in kept[f"run {made['elsewhere'][0]}"]

    code, again = lab.gc()
    assert code == 0 and (again["runs"], again["models"], again["experiments"], again["objects"]) == (0, 0, 0, 0)


def test_one_that_cannot_be_deleted_stops_no_other(lab: Lab) -> None:
    made = lab.make("second")
    hold = "CREATE TABLE holds (run varchar(32) REFERENCES runs (run_uuid)); INSERT INTO holds VALUES (:'run')"
    lab.sql(hold, run=made["old"][0])
    try:
        code, done = lab.gc()
        assert code == 1 and [one["what"] for one in done["failed"]] == [f"run {made['old'][0]}"]
        assert "holds" in done["failed"][0]["why"]
        assert (done["runs"], done["experiments"]) == (1, 1) and made["old"][0] in lab.there()
    finally:
        lab.sql("DROP TABLE holds")
    assert lab.gc()[0] == 0 and made["old"][0] not in lab.there()


def test_addresses_of_a_server_that_passes_artifacts_on(lab: Lab) -> None:
    made = lab.make("proxied")
    for table, column in (
        ("runs", "artifact_uri"),
        ("logged_models", "artifact_location"),
        ("model_versions", "source"),
    ):
        lab.sql(
            """UPDATE :"table" SET :"column" = replace(:"column", 's3://climate/artifacts', 'mlflow-artifacts:')""",
            table=table,
            column=column,
        )
    where = {"_MLFLOW_SERVER_ARTIFACT_DESTINATION": "s3://climate/artifacts"}
    code, done = lab.gc(_MLFLOW_SERVER_ARTIFACT_ROOT="mlflow-artifacts:/", **where)
    assert code == 0 and (done["runs"], done["models"], done["experiments"], done["objects"]) == (2, 2, 1, 10)
    assert lab.files(made["old"][1]) == [] and lab.files(made["named"][1]) == ["a", "b/c"]


def test_a_store_that_is_down_is_one_finding_and_loses_nothing(lab: Lab) -> None:
    made, there = lab.make("third"), lab.there()
    began = time.monotonic()
    code, done = lab.gc(MLFLOW_S3_ENDPOINT_URL="https://localhost:9")
    assert code == 1 and [one["what"] for one in done["failed"]] == ["the object store"]
    assert lab.there() == there and lab.files(made["old"][1]) == ["a", "b/c"] and time.monotonic() - began < 60


def test_a_store_that_goes_away_while_it_deletes_is_one_finding_too(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    made, there = lab.make("fourth"), lab.there()
    monkeypatch.setattr(
        lab.store.server.RequestHandlerClass, "do_DELETE", lambda handler: setattr(handler, "close_connection", True)
    )
    code, done = lab.gc()
    assert code == 1 and [one["what"] for one in done["failed"]] == ["the object store"], done
    monkeypatch.undo()
    assert lab.there() == there
    assert lab.gc()[0] == 0 and made["old"][0] not in lab.there()


def test_nothing_that_was_deleted_just_now_goes_by_a_slip(lab: Lab) -> None:
    code, _, said = lab.python("gc", str(lab.folder), "--days", "0")
    assert code == 2 and "--days has to be 1 or more" in said
