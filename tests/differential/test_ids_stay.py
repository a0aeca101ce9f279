"""A recorded run's copy has the recorded id at the lab's server, once."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from lab_server import ADA, ADMIN, BOB, LabServer
from sync_recording import Recording

IN = "SELECT %s FROM %s WHERE experiment_id = (SELECT experiment_id FROM experiments WHERE name = '%s')"


@pytest.fixture(scope="module")
def server(serve: Callable[..., LabServer]) -> LabServer:
    return serve("ids")


@pytest.fixture(scope="module")
def mine(server: LabServer) -> str:
    """An experiment of ada's."""
    return server.experiment("ada's")


def wanted(number: str, store: str = "a recording") -> dict[str, Any]:
    tags = {"labtrack.source_run_id": number, "labtrack.source_store": store, "labtrack.created": "1-me"}
    return {"start_time": 1, "tags": [{"key": key, "value": value} for key, value in tags.items()]}


def create(server: LabServer, experiment: str, number: str, store: str = "a recording") -> str:
    made = server.post("runs/create", {"experiment_id": experiment, "run_name": "copy", **wanted(number, store)})
    return str(made["run"]["info"]["run_id"])


def test_a_copy_has_the_recorded_id_and_the_same_create_gives_it_again(server: LabServer) -> None:
    experiment, number = server.experiment("again"), secrets.token_hex(16)
    assert [create(server, experiment, number) for _ in range(3)] == [number] * 3
    found = server.post("runs/search", {"experiment_ids": [experiment]})["runs"]
    assert [(run["info"]["run_id"], run["info"]["run_name"]) for run in found] == [(number, "copy")]
    assert found[0]["info"]["artifact_uri"].endswith(f"/{number}/artifacts")


def test_the_copy_is_made_natively_where_the_account_is_known(server: LabServer) -> None:
    experiment, number = server.experiment("natively"), secrets.token_hex(16)
    create(server, experiment, secrets.token_hex(16))
    before = server.natively()
    assert create(server, experiment, number) == number
    assert server.natively() - before == 4, "its three tags, and its name"
    assert create(server, experiment, number) == number
    assert server.natively() - before == 4


def test_the_same_create_many_times_at_once_makes_one(server: LabServer) -> None:
    experiment, number = server.experiment("at once"), secrets.token_hex(16)
    with ThreadPoolExecutor(12) as pool:
        assert set(pool.map(lambda _: create(server, experiment, number), range(24))) == {number}
    assert server.sql(f"SELECT count(*) FROM runs WHERE experiment_id = {experiment}") == ["1"]


def test_a_deleted_copy_is_that_copy(server: LabServer) -> None:
    experiment, number = server.experiment("deleted"), secrets.token_hex(16)
    create(server, experiment, number)
    server.post("runs/delete", {"run_id": number})
    again = server.post("runs/create", {"experiment_id": experiment, **wanted(number)})["run"]["info"]
    assert (again["run_id"], again["lifecycle_stage"]) == (number, "deleted")


@pytest.mark.parametrize("other", ["experiment", "recording"])
def test_an_id_that_another_one_has_is_left_to_it(server: LabServer, other: str) -> None:
    first, second = server.experiment(f"first {other}"), server.experiment(f"second {other}")
    number = secrets.token_hex(16)
    assert create(server, first, number) == number
    there = second if other == "experiment" else first
    store = "a recording" if other == "experiment" else "another recording"
    drawn = create(server, there, number, store)
    assert drawn != number and len(drawn) == 32
    (owner,) = server.sql(f"SELECT experiment_id FROM runs WHERE run_uuid = '{number}'")
    assert owner == first


@pytest.mark.parametrize("number", ["", "x" * 32, "AB" * 16, "ab" * 15, "ab" * 17, f"{'ab' * 16}\n"])
def test_what_is_no_id_is_drawn(server: LabServer, mine: str, number: str) -> None:
    drawn = create(server, mine, number)
    assert drawn != number and len(drawn) == 32


def test_without_a_recording_the_id_is_drawn(server: LabServer, mine: str) -> None:
    number = secrets.token_hex(16)
    body = {"experiment_id": mine, "tags": [{"key": "labtrack.source_run_id", "value": number}]}
    assert server.post("runs/create", body)["run"]["info"]["run_id"] != number


def test_who_may_not_write_to_the_experiment_gets_no_run_by_its_id(server: LabServer) -> None:
    experiment, number = server.experiment("of ada"), secrets.token_hex(16)
    assert create(server, experiment, number) == number
    body = json.dumps({"experiment_id": experiment, **wanted(number)}).encode()
    assert server.send("runs/create", body, BOB).status_code == 403
    assert (
        server.send("runs/create", body, ADA).status_code == server.send("runs/create", body, ADMIN).status_code == 200
    )


def test_a_refused_create_leaves_the_id_free(server: LabServer, mine: str) -> None:
    number = secrets.token_hex(16)
    body = {"experiment_id": mine, "run_name": "one", **wanted(number)}
    body["tags"].append({"key": "mlflow.runName", "value": "another"})
    assert server.send("runs/create", json.dumps(body).encode()).status_code == 400
    plain = server.post("runs/create", {"experiment_id": mine})["run"]["info"]["run_id"]
    assert plain != number, "the next of the same thread"
    assert create(server, mine, number) == number


def test_logged_models_too(server: LabServer) -> None:
    experiment, number = server.experiment("models"), f"m-{secrets.token_hex(16)}"
    tags = {"labtrack.source_model_id": number, "labtrack.source_store": "a recording"}
    body = {
        "experiment_id": experiment,
        "name": "net",
        "tags": [{"key": key, "value": value} for key, value in tags.items()],
        "params": [{"key": "depth", "value": "3"}],
    }
    made = [server.post("logged-models", body)["model"] for _ in range(2)]
    assert [one["info"]["model_id"] for one in made] == [number] * 2
    assert server.sql(f"SELECT count(*) FROM logged_models WHERE experiment_id = {experiment}") == ["1"]


def test_a_sync_keeps_the_ids_of_runs_nested_and_deleted_and_of_models(server: LabServer, tmp_path: Path) -> None:
    recording = Recording(tmp_path / "recorded")
    parent = recording.run(name="parent", metrics={"loss": [3.0, 2.0]})
    child = recording.run(name="child", tags={"mlflow.parentRunId": parent})
    gone = recording.run(name="gone", stage="deleted")
    model = recording.model(None, "net", {})
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_USERNAME": ADA[0],
        "MLFLOW_TRACKING_PASSWORD": ADA[1],
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "HOME": str(tmp_path),
    }
    command = [sys.executable, "-m", "labtrack", "sync", "-s", str(recording.path), "-d", server.url, "-x", "--json"]
    for new in (3, 0):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads(done.stdout)
        assert (report["failed"], report["counts"]["new"]) == ({}, new), report
    assert set(server.sql(IN % ("run_uuid", "runs", recording.name))) == {parent, child, gone}
    assert server.sql(IN % ("model_id", "logged_models", recording.name)) == [model]
    assert server.sql(f"SELECT value FROM tags WHERE run_uuid = '{child}' AND key = 'mlflow.parentRunId'") == [parent]
