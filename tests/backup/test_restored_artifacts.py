"""The artifacts of a lab, put back from their copies, and held against the databases."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from artifact_copies import Artifacts
from backed_up import Machine
from mlflow_lab import Lab
from s3_server import Content
from sync_server import postgresql_bin

MIB = 2**20

# A run that has ended; models that are ready, one that is not and one that was deleted; versions of each kind.
MODELS = """
import json
from mlflow.entities import LoggedModelStatus, RunStatus
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
import mlflow
mlflow.set_tracking_uri(values["_MLFLOW_SERVER_FILE_STORE"])
store = SqlAlchemyStore(values["_MLFLOW_SERVER_FILE_STORE"], values["_MLFLOW_SERVER_ARTIFACT_ROOT"])
registry = Registry(values["_MLFLOW_SERVER_FILE_STORE"])
experiment = store.create_experiment(name)
run = store.create_run(experiment, "ada", 1, [], "trained").info
made = {"run": run.artifact_uri}
for what in ("whole", "lost", "pending", "deleted"):
    model = store.create_logged_model(experiment, what, run.run_id)
    made[what] = model.artifact_location
    if what != "pending":
        store.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    if what == "deleted":
        store.delete_logged_model(model.model_id)
    if what in ("whole", "lost"):
        registry.create_registered_model(f"{name} {what}")
        registry.create_model_version(f"{name} {what}", "models:/" + model.model_id, run.run_id)
registry.create_registered_model(f"{name} of run")
for source in (f"runs:/{run.run_id}/file", f"runs:/{run.run_id}/whole", f"runs:/{run.run_id}/gone", "s3://another/place",
               run.artifact_uri + "/file", run.artifact_uri + "/fil"):
    registry.create_model_version(f"{name} of run", source, run.run_id)
store.update_run_info(run.run_id, RunStatus.FINISHED, 1, None)
print(json.dumps(made))
"""


def models(lab: Lab, artifacts: Artifacts, name: str) -> None:
    """What MODELS makes, with files of what is whole; all of it is a day old."""
    code, out, err = lab.python("make", MODELS, name)
    assert code == 0, err
    made = json.loads(out.splitlines()[-1])
    for what, file in {"whole": "MLmodel", "run": "file/MLmodel"}.items():
        artifacts.put(f"{made[what].removeprefix('s3://climate/artifacts/')}/{file}", b"flavors: {}")
    lab.sql("UPDATE logged_models SET last_updated_timestamp_ms = last_updated_timestamp_ms - 86400000")
    lab.sql("UPDATE model_versions SET last_updated_time = last_updated_time - 86400000")


@pytest.fixture
def trained(lab: Lab, artifacts: Artifacts) -> Iterator[Lab]:
    """A database that has models and nothing else."""
    artifacts.more["socket"] = str(lab.postgres.folder)
    lab.empty()
    models(lab, artifacts, "trained")
    yield lab
    lab.empty()


def test_a_time_is_put_back_and_what_is_newer_stays(artifacts: Artifacts) -> None:
    artifacts.put("1/lost", b"lost")
    artifacts.put("1/changed", b"before")
    artifacts.put("1/same", b"same")
    artifacts.lab["artifacts/1/same"].headers = (("Content-Type", "text/x-notes"),)  # type: ignore[attr-defined]
    artifacts.night()
    artifacts.long_ago(3)
    artifacts.put("1/changed", b"after")
    artifacts.put("1/new", b"new")
    artifacts.night()
    del artifacts.lab["artifacts/1/lost"]
    early = artifacts.time(0)
    there = dict(artifacts.lab)
    said = artifacts("artifacts-restore", early, "--dry-run")
    assert "would be put back: artifacts/1/lost" in said and "left, as it is newer: artifacts/1/changed" in said
    assert artifacts.lab == there
    said = artifacts("artifacts-restore", early)
    assert "put back: artifacts/1/lost" in said and "1 of 3 objects" in said and "--overwrite" in said
    assert artifacts.lab == there | {"artifacts/1/lost": b"lost"}
    artifacts("artifacts-restore", early, "--overwrite")
    assert artifacts.lab["artifacts/1/changed"] == b"before" and artifacts.lab["artifacts/1/new"] == b"new"

    del artifacts.lab["artifacts/1/same"]
    artifacts("artifacts-restore", "latest")
    same = artifacts.lab["artifacts/1/same"]
    assert isinstance(same, Content) and dict(same.headers)["Content-Type"] == "text/x-notes"

    assert "No listing is as old as that" in artifacts("artifacts-restore", "2020-01-01 00:00:00Z", fails=True)
    assert "is not a time with its zone" in artifacts("artifacts-restore", "yesterday", fails=True)
    lost = next(key for key in artifacts.copies if "/same/" in key)
    del artifacts.copies[lost], artifacts.lab["artifacts/1/same"], artifacts.lab["artifacts/1/lost"]
    said = artifacts("artifacts-restore", "latest", fails=True)
    assert "artifacts/1/same: is not in the backup" in said


def test_before_the_first_night_there_is_nothing_to_put_back(artifacts: Artifacts) -> None:
    said = artifacts("artifacts-restore", "latest", fails=True)
    assert "There is no listing of the artifacts yet.\nTo fix: labtrack-backup artifacts" in said
    artifacts.settings = {}
    assert "The artifacts are not backed up.\nTo fix: set lab_backup.artifacts" in artifacts("artifacts", fails=True)
    # whether the other jobs are as they should be is another test's
    assert '"artifacts"' not in artifacts("status", fails=None)


LOST = [
    "logged model lost (",
    "version 1 of trained lost",
    "version 3 of trained of run",
    "version 6 of trained of run",
]


def test_models_of_the_databases_that_a_listing_has_not_are_named(trained: Lab, artifacts: Artifacts) -> None:
    artifacts.night()
    said = artifacts("artifacts-check", fails=True)
    assert "5 of 9 models and versions are there" in said and "4 need a look" in said
    assert [what for what in LOST if what not in said] == []
    assert not any(f"version {number} of trained of run" in said for number in (1, 2, 4, 5))
    assert "pending" not in said and "deleted" not in said


def test_what_came_after_a_listing_is_counted_and_not_missed(trained: Lab, artifacts: Artifacts) -> None:
    trained.sql("DELETE FROM model_versions WHERE version IN ('3', '6') OR name LIKE '%lost'")
    trained.sql("DELETE FROM logged_models WHERE name = 'lost'")
    artifacts.night()
    said = artifacts("artifacts-check", "2999-01-01 00:00:00Z", fails=True)
    assert "has not come yet" in said
    said = artifacts("artifacts-check")
    assert "5 of 5 models and versions are there; 0 were changed and 0 runs ended later." in said
    # the database of 03:00, with the artifacts of 02:50
    code, _, err = trained.python("make", MODELS, "later")
    assert code == 0, err
    trained.sql("UPDATE runs SET end_time = (extract(epoch FROM now()) * 1000)::bigint WHERE end_time = 1")
    said = artifacts("artifacts-check", "latest")
    assert "5 of 5 models and versions are there; 10 were changed and 2 runs ended later." in said


def test_the_drill_looks_for_the_models_of_the_databases_it_has_restored(
    trained: Lab, artifacts: Artifacts, machine: Machine
) -> None:
    artifacts.more.clear()
    artifacts.night()
    shutil.chown(artifacts.state, "postgres")
    artifacts.state.chmod(0o755)
    (artifacts.state / "listing.jsonl.gz").chmod(0o644)
    dump = trained.folder / "mlflow.sql"
    programs = postgresql_bin()
    assert programs is not None
    of = ["-h", str(trained.postgres.folder), "-U", "postgres", "-f", str(dump), "--no-owner", "mlflow"]
    subprocess.run([programs / "pg_dump", *of], check=True, cwd="/")
    machine.sql("CREATE DATABASE trained", "postgres")
    try:
        machine.as_postgres(machine.bin / "psql", "-Xq", "-h", machine.folder, "-d", "trained", "-f", dump)
        artifacts("drill")
        result = machine.result("drill")
        assert result["ok"] and "artifacts-restore TIME" in result["warning"]
        assert "5 of 9 models and versions are there, without any object are: logged model lost" in result["message"]
        assert result["artifacts"]["missing"][1:] == LOST[1:]
    finally:
        machine.sql("DROP DATABASE trained", "postgres")
