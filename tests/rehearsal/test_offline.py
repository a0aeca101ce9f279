"""Runs that were recorded without the server reach the deployed one: TLS, login, artifacts straight into the store."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Rehearsal

HOME = "/tmp/sync-test"
BIG = 12 * 2**20  # bytes: more than one part
LONG = 8000  # points: more than one call's
RECORD = f"""
import mlflow, pathlib
mlflow.set_tracking_uri("sqlite:///{HOME}/mlflow.db")
mlflow.create_experiment("recorded", artifact_location="{HOME}/artifacts")
mlflow.set_experiment("recorded")
pathlib.Path("{HOME}/big.bin").write_bytes(b"b" * {BIG})
with mlflow.start_run(run_name="sweep") as parent:
    for number in range(3):
        with mlflow.start_run(run_name=f"trial {{number}}", nested=True):
            mlflow.log_params({{"lr": number, "text": "x" * 500}})
            for step in range(30):
                mlflow.log_metric("loss", 1 / (step + 1), step=step)
            mlflow.log_text("hello", "notes/hello.txt")
    mlflow.log_artifact("{HOME}/big.bin")
with mlflow.start_run(run_name="long") as run:
    for first in range(0, {LONG}, 1000):
        points = [mlflow.entities.Metric("loss", 1 / (step + 1), step, step) for step in range(first, first + 1000)]
        mlflow.MlflowClient().log_batch(run.info.run_id, metrics=points)
"""


@pytest.fixture(scope="module")
def recorded(rehearsal: Rehearsal, trained: str) -> Iterator[None]:
    """The package and a recording on the login node, made with MLflow itself and no server.

    Ada has her file there since she trained.
    """
    rehearsal.hand_package(HOME)
    rehearsal.ssh("login", f"chown ada {HOME}", check=True)
    rehearsal.ssh("login", f"cat > {HOME}/record.py", stdin=RECORD, check=True)
    rehearsal.ssh("login", f"su ada -c 'cd {HOME} && {rehearsal.PYTHON} record.py'", check=True)
    yield
    rehearsal.ssh("login", f"rm -rf {HOME} ~ada/.local/state/labtrack/sync", check=True)


def sync(rehearsal: Rehearsal, *arguments: str) -> dict[str, Any]:
    """What `labtrack sync --json` reports when Ada runs it."""
    more = shlex.join(arguments)
    command = f"cd {HOME} && {rehearsal.PYTHON} -m labtrack sync -s mlflow.db --json {more} || true"
    report: dict[str, Any] = json.loads(rehearsal.as_ada(command))
    return report


def test_a_recording_arrives_whole_and_once(rehearsal: Rehearsal, recorded: None) -> None:
    first = sync(rehearsal, "--verify")
    assert (first["exit_code"], first["failed"], first["differences"]) == (0, {}, {})
    assert (first["counts"]["new"], first["counts"]["points"], first["verified"]) == (5, 90 + LONG, 5)
    # nginx lets the route through, too, and each of the others goes with one batch
    calls = first["calls"]
    assert (calls["POST runs/log-points"], calls["POST runs/log-batch"]) == (2, 6), calls
    again = sync(rehearsal)
    assert (again["counts"]["there"], again["counts"]["new"], again["counts"]["changed"]) == (5, 0, 0)
    assert (again["counts"]["points"], again["counts"]["artifacts"]) == (0, 0)


def test_mlflow_finds_runs_parents_and_files(rehearsal: Rehearsal, recorded: None) -> None:
    """MLflow's own client, which knows nothing of the sync."""
    sync(rehearsal)
    code = (
        "import mlflow, os; runs = mlflow.search_runs(experiment_names=['recorded'], output_format='list');"
        "ids = {run.info.run_name: run.info.run_id for run in runs};"
        "big = mlflow.artifacts.download_artifacts(run_id=ids['sweep'], artifact_path='big.bin');"
        "print('found', sorted(ids), {run.data.tags.get('mlflow.parentRunId') for run in runs} == {None, ids['sweep']},"
        " {run.info.user_id for run in runs}, os.path.getsize(big))"
    )
    said = rehearsal.as_ada(f"{rehearsal.PYTHON} -c {shlex.quote(code)}")
    assert f"found ['long', 'sweep', 'trial 0', 'trial 1', 'trial 2'] True {{'ada'}} {BIG}" in said


def test_a_wrong_password_is_said_and_not_shown(rehearsal: Rehearsal, recorded: None) -> None:
    command = f"cd {HOME} && {rehearsal.PYTHON} -m labtrack sync -s mlflow.db -e elsewhere 2>&1; echo exit $?"
    said = rehearsal.as_ada(f"export MLFLOW_TRACKING_PASSWORD=not-the-word LABTRACK_ENV_FILE=; {command}")
    assert "refuses the login of ada (401)" in said and "exit 1" in said and "not-the-word" not in said
