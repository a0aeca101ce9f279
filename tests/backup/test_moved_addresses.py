"""The databases of a lab that moves: filled by MLflow itself, dumped, restored, and searched for the old bucket."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_lab import Lab

TEXTS = """SELECT table_name || '.' || column_name FROM information_schema.columns
    WHERE table_schema = 'public' AND data_type IN ('text', 'character varying', 'json', 'jsonb') ORDER BY 1"""
FOUND = """SELECT count(*) FROM {} WHERE {}::text LIKE '%s3://climate/%' OR {}::text LIKE '%s3://climate"%'"""
# What people have written, whatever it names.
TOLD = {"params.value", "tags.value", "experiment_tags.value", "spans.content", "model_versions.description"}
# Columns that sound like addresses, and have none of artifacts.
OTHERS = {
    "assessments.source_id", "assessments.source_type", "entity_associations.source_id",
    "entity_associations.source_type", "evaluation_dataset_records.source", "evaluation_dataset_records.source_id",
    "evaluation_dataset_records.source_type", "datasets.dataset_source_type", "endpoint_bindings.resource_id",
    "endpoint_bindings.resource_type", "endpoint_model_mappings.linkage_type", "endpoints.routing_strategy",
    "inputs.source_id", "inputs.source_type", "issues.root_causes", "issues.source_run_id",
    "logged_models.source_run_id", "mcp_access_endpoints.url", "mcp_server_versions.source",
    "model_versions.run_link", "runs.source_name", "runs.source_type", "runs.source_version", "webhooks.url",
}  # fmt: skip
SOUNDS = re.compile("uri|url|location|root|source|path|artifact|link|folder")

FILL = """
import json
import mlflow
from mlflow.entities import (Dataset, DatasetInput, ExperimentTag, InputTag, LoggedModelTag, Metric, Param, RunTag,
    TraceInfo, TraceLocation, TraceState)
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
mlflow.set_tracking_uri(values["_MLFLOW_SERVER_FILE_STORE"])
store = SqlAlchemyStore(values["_MLFLOW_SERVER_FILE_STORE"], values["_MLFLOW_SERVER_ARTIFACT_ROOT"])
registry = Registry(values["_MLFLOW_SERVER_FILE_STORE"])
told = 'see s3://climate/artifacts/1 and "s3://climate/artifacts"'
one = store.create_experiment(name, tags=[ExperimentTag("mlflow.note.content", told)])
run = store.create_run(one, "ada", 1, [RunTag("where", "s3://climate/artifacts/mine")], "run").info
history = [{"run_id": run.run_id, "artifact_path": run.artifact_uri + "/model", "note": 's3 "s3://climate/x"'}]
store.log_batch(run.run_id, [Metric("loss", 0.5, 1, 1)], [Param("data", "s3://climate/artifacts/data")],
    [RunTag("mlflow.log-model.history", json.dumps(history))])
source = json.dumps({"uri": "s3://climate/artifacts/data.csv", "other": "s3://climate-too/data", "text": told})
store.log_inputs(run.run_id, [DatasetInput(Dataset("data", "d1gest", "s3", source), [InputTag("a", "b")])])
model = store.create_logged_model(one, "model", run.run_id, [LoggedModelTag("a", "b")])
registry.create_registered_model(name, description="d")
registry.create_model_version(name, run.artifact_uri + "/model", run.run_id, description=told)
registry.create_model_version(name, "models:/" + model.model_id, run.run_id)
trace = TraceInfo("tr-" + one, TraceLocation.from_experiment_id(one), 1, TraceState.OK,
    tags={"mlflow.trace.archiveLocation": "s3://climate/archive/1"})
store.start_trace(trace)
elsewhere = store.create_experiment(name + " too", artifact_location="s3://climate-too/place")
print(json.dumps([run.artifact_uri, model.artifact_location]))
"""
# Both of mlflowctl's steps, on databases of this cluster.  name: a folder, and the databases to be filled.
MOVE = """
import json
from pathlib import Path
import mlflow_databases, mlflow_dumps, mlflow_moved
folder, step, bucket, heads = json.loads(name)
heads = dict(heads)
where = {
    "leave": {"tracking": "mlflow", "auth": "accounts"},
    "arrive": {"tracking": "mlflow_new", "auth": "accounts_new"},
}
user = {"leave": "postgres", "arrive": "owner"}[step]
host = values["_MLFLOW_SERVER_FILE_STORE"].rpartition("host=")[2]
def database(which):
    return {"dbname": where[step][which], "user": user, "host": host}
for module in (mlflow_databases, mlflow_dumps, mlflow_moved):
    module.database = database
mlflow_moved.idle = lambda: None
mlflow_moved.needed = lambda: heads
mlflow_moved.settings = lambda: {"_MLFLOW_SERVER_ARTIFACT_ROOT": "s3://climate/artifacts"}
if step == "leave":
    mlflow_moved.leave(Path(folder))
else:
    mlflow_moved.arrive(Path(folder), {"_MLFLOW_SERVER_ARTIFACT_ROOT": f"s3://{bucket}/artifacts"})
"""
VACANT = """
import mlflow_databases, mlflow_moved
host = values["_MLFLOW_SERVER_FILE_STORE"].rpartition("host=")[2]
mlflow_databases.database = lambda which: {"dbname": "mlflow", "user": "postgres", "host": host}
mlflow_moved.vacant()
"""


def psql(lab: Lab, database: str, statement: str) -> list[str]:
    return lab.sql(f'\\c "{database}"\n{statement};')


def texts(lab: Lab, database: str) -> dict[str, int]:
    """How many rows of each column with text name the old bucket."""
    names = psql(lab, database, TEXTS)
    every = " UNION ALL ".join(
        f"SELECT '{name}', ({FOUND.format(table, column, column)})"
        for name in names
        for table, column in [[f'"{part}"' for part in name.split(".")]]
    )
    counted = dict(line.split("|") for line in psql(lab, database, every))
    return {name: int(number) for name, number in counted.items() if int(number)}


def clear(lab: Lab) -> None:
    """Delete what this and other files of tests have made."""
    if lab.sql("SELECT to_regclass('runs')") != [""]:
        lab.sql("TRUNCATE experiment_tags, trace_info CASCADE")
    lab.empty()


class Moved:
    """A lab whose databases were left in a folder."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        clear(lab)
        code, said, errors = lab.python("make", FILL, "moving")
        assert code == 0, errors
        self.made: list[str] = json.loads(said.splitlines()[-1])
        lab.sql("CREATE ROLE owner LOGIN; CREATE DATABASE accounts;")
        for name in ("mlflow_new", "accounts_new"):
            lab.sql(f"CREATE DATABASE {name} OWNER owner;")
        psql(lab, "accounts", "CREATE TABLE users (name text); INSERT INTO users VALUES ('ada')")
        psql(lab, "accounts", "CREATE TABLE alembic_version_auth (version_num text)")
        psql(lab, "accounts", "INSERT INTO alembic_version_auth VALUES ('a')")
        self.heads = {"tracking": lab.sql("SELECT version_num FROM alembic_version")[0], "auth": "a"}

    def __call__(self, step: str, bucket: str = "tundra", **heads: str) -> tuple[int, str]:
        given = json.dumps([str(self.folder), step, bucket, list((self.heads | heads).items())])
        code, said, errors = self.lab.python("make", MOVE, given)
        return code, said + errors

    def of(self, table: str, column: str) -> list[str]:
        return psql(self.lab, "mlflow_new", f"SELECT DISTINCT {column} FROM {table} ORDER BY 1")  # noqa: S608


@pytest.fixture(scope="module")
def moved(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moved]:
    found = Moved(lab, tmp_path_factory.mktemp("moved"))
    code, said = found("leave")
    assert code == 0, said
    yield found
    for name in ("mlflow_new", "accounts_new", "accounts"):
        lab.sql(f"DROP DATABASE {name};")
    lab.sql("DROP ROLE owner;")
    clear(lab)


def addresses() -> set[str]:
    text = (Path(__file__).resolve().parents[2] / "roles/mlflow/files/mlflow_moved.py").read_text()
    return {f"{table}.{column}" for table, column in re.findall(r'^    \("(\w+)", "(\w+)", "', text, re.MULTILINE)}


def test_dumps_are_their_owner_s_alone_and_say_what_they_are(moved: Moved) -> None:
    files = {file.name: file for file in moved.folder.iterdir()}
    assert set(files) == {"tracking.dump", "auth.dump", "of.json"}
    assert {file.stat().st_mode & 0o077 for file in files.values()} == {0}
    of: dict[str, Any] = json.loads(files["of.json"].read_text())
    assert of["schema"] == moved.heads and of["bucket"] == "climate" and of["rows"]["auth"]["users"] == 1


def test_every_address_names_the_new_bucket_and_no_text_of_people_does(moved: Moved) -> None:
    before = texts(moved.lab, "mlflow")
    filled = {name for name in addresses() if not name.startswith("workspaces.")}
    assert filled <= before.keys(), "an address that this test does not fill"
    for _ in range(2):  # killed and called again, it begins anew
        code, said = moved("arrive")
        assert code == 0, said
    left = texts(moved.lab, "mlflow_new")
    assert left.keys() <= TOLD | {"datasets.dataset_source"}, "an address that is forgotten"
    assert {name: left.get(name) for name in ("params.value", "experiment_tags.value")} == {
        name: before[name] for name in ("params.value", "experiment_tags.value")
    }
    run, model = (one.replace("s3://climate/", "s3://tundra/") for one in moved.made)
    assert moved.of("runs", "artifact_uri") == [run]
    assert moved.of("logged_models", "artifact_location") == [model]
    assert f"{run}/model" in moved.of("model_versions", "source")
    assert "s3://climate-too/place" in moved.of("experiments", "artifact_location")
    (source,) = map(json.loads, moved.of("datasets", "dataset_source"))
    told = 'see s3://climate/artifacts/1 and "s3://climate/artifacts"'
    assert source == {"uri": "s3://tundra/artifacts/data.csv", "other": "s3://climate-too/data", "text": told}
    (history,) = psql(moved.lab, "mlflow_new", "SELECT value FROM tags WHERE key = 'mlflow.log-model.history'")
    assert json.loads(history)[0] | {"run_id": ""} == {
        "run_id": "", "artifact_path": f"{run}/model", "note": 's3 "s3://climate/x"'
    }  # fmt: skip
    assert psql(moved.lab, "accounts_new", "SELECT name FROM users") == ["ada"]


def test_a_bucket_of_the_same_name_leaves_the_rows_as_they_are(moved: Moved) -> None:
    code, said = moved("arrive", "climate")
    assert code == 0 and texts(moved.lab, "mlflow_new") == texts(moved.lab, "mlflow"), said


def test_another_mlflow_is_refused_before_anything_is_changed(moved: Moved) -> None:
    moved("arrive")
    code, said = moved("arrive", "taiga", tracking="another")
    assert code != 0 and "this server's MLflow wants another" in said
    assert not [one for one in moved.of("experiments", "artifact_location") if "taiga" in one]


def test_every_column_that_sounds_like_an_address_is_known(moved: Moved) -> None:
    sounding = {name for name in psql(moved.lab, "mlflow", TEXTS) if SOUNDS.search(name.split(".")[1])}
    assert sounding - addresses() - OTHERS == set()


def test_a_lab_in_which_somebody_has_recorded_is_not_vacant(moved: Moved) -> None:
    code, _, said = moved.lab.python("make", VACANT, "")
    assert code != 0 and "1 runs, 1 models, 1 registered models, 1 traces, which would be lost" in said
