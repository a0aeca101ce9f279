"""Local mode with the real MLflow and a real server: experiments, reports on their way, pruning."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from sync_server import ROOT, TrackingServer, mlflow_bin, tag

from labtrack.stores import open_store

LABTRACK = Path(sys.executable).with_name("labtrack")
WORK = """
import sys, labtrack, mlflow
class Mine(labtrack.BaseExperiment):
    def evaluate(self, model, data):
        return {"accuracy": 0.95, "loss": 0.15}
class Figure:
    def savefig(self, file):
        open(file, "wb").write(b"picture")
with Mine("config.yaml") as mine:
    print("tracked", mine.tracking.tracked, flush=True)
    mine.tracking.log_metric("loss", 1.0)
    if mine.tracking.tracked:
        mlflow.log_param("by.mlflow", 1)
    mine.tracking.log_figure(Figure(), "loss.png")
    mine.evaluate(None, None)
    if len(sys.argv) > 1:
        raise ValueError("of the work")
print("done", mine.config["name"])
"""


def python(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs the experiment with MLflow's own environment, in which labtrack's package can be imported."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return subprocess.run(
        [mlflow_bin() / "python", "-c", WORK, *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**plain, "PYTHONPATH": str(ROOT / "scripts"), "MLFLOW_DISABLE_TELEMETRY": "true", **more}, timeout=200,
    )  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        f"name: coast\nseed: 42\nmlflow_tracking: true\nmlflow_experiment_name: e-{uuid.uuid4().hex[:8]}\n"
    )
    return folder


def test_experiment_is_recorded_by_mlflow_in_the_project(project: Path) -> None:
    done = python(project)
    assert done.returncode == 0 and "tracked True" in done.stdout, done.stderr
    failed = python(project, "fail")
    assert failed.returncode == 1 and "ValueError: of the work" in failed.stderr
    assert not (project / "reports").exists()
    with open_store(project / "mlflow.db") as store:
        first, second = store.runs()
        assert (first.status, second.status) == ("FINISHED", "FAILED")
        assert {"seed": "42", "by.mlflow": "1"}.items() <= first.params.items()
        assert [(one.key, one.value) for one in store.points(first.id) if one.key == "loss"] == [
            ("loss", 1.0), ("loss", 0.15),
        ]  # fmt: skip
        assert {one.path for one in store.artifacts(first)} == {"config.yaml", "figures/loss.png"}


@pytest.mark.parametrize("server", ["refuses", "is silent"])
def test_experiment_does_not_wait_for_a_server_that_is_away(project: Path, server: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if server == "is silent":
            silent.listen()
        begun = time.monotonic()
        done = python(project, MLFLOW_TRACKING_URI=f"http://127.0.0.1:{silent.getsockname()[1]}")
        taken = time.monotonic() - begun
    assert done.returncode == 0 and "tracked False" in done.stdout, done.stderr
    assert done.stderr.count("MLflow does not record this run") == 1 and "Traceback" not in done.stderr
    assert taken < 60, taken
    with open_store(project / "reports") as store:
        (run,) = store.runs()
        assert {one.key for one in store.points(run.id)} == {"loss", "accuracy"}


def test_reports_are_imported_into_a_server(project: Path, server: TrackingServer) -> None:
    name = f"e-{uuid.uuid4().hex[:8]}"
    (project / "config.yaml").write_text(f"name: coast\nmlflow_experiment_name: {name}\nseed: 42\n")
    assert python(project, "fail").returncode == 1
    for _ in range(2):  # the second time there is nothing to do
        done = subprocess.run(
            [LABTRACK, "import", project / "reports", "-d", server.url], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr + done.stdout
    (run,) = server.runs(name)
    assert run["info"]["status"] == "FAILED" and run["info"]["run_name"] == "coast"
    assert [value for _, _, value in server.history(run["info"]["run_id"], "loss")] == [1.0, 0.15]
    assert {"config.yaml", "metrics.json", "figures/loss.png"} <= set(server.files(run["info"]["artifact_uri"]))
    assert tag(run, "labtrack.source_run_id")


def test_prune_deletes_through_mlflow_and_gc_removes(project: Path) -> None:
    assert python(project).returncode == 0
    assert python(project, "fail").returncode == 1
    database = project / "mlflow.db"
    with open_store(database) as store:
        first, second = store.runs()
        kept = {run.id: Path(run.artifact_uri.replace("file://", "")) for run in (first, second)}
    prune = [LABTRACK, "prune", database, "--mlflow", mlflow_bin().parent, "--yes"]
    subprocess.run([*prune, "--status", "FAILED"], check=True)
    with open_store(database) as store:
        assert [run.id for run in store.runs()] == [first.id]
        assert {run.id for run in store.runs(deleted=True)} == {first.id, second.id}
    assert kept[second.id].is_dir()
    subprocess.run([*prune, "--filter", "params.seed = '42'", "--older-than", "0d", "--gc"], check=True)
    with open_store(database) as store:
        assert [run.id for run in store.runs(deleted=True)] == [second.id], "gc takes only what was just deleted"
    assert not list(kept[first.id].rglob("*.png")) and kept[second.id].is_dir()
    with contextlib.closing(sqlite3.connect(database)) as made:
        assert made.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_prune_deletes_at_a_server(server: TrackingServer) -> None:
    name = f"e-{uuid.uuid4().hex[:8]}"
    number = server.post("experiments/create", name=name)["experiment_id"]
    ids = []
    for status in ("FAILED", "FINISHED", "RUNNING"):
        run = server.post("runs/create", experiment_id=number, start_time=1, run_name=status.lower())
        ids.append(run["run"]["info"]["run_id"])
        server.post("runs/update", run_id=ids[-1], status=status, end_time=2)
    server.post("runs/set-tag", run_id=ids[0], key="of", value=name)
    prune = [LABTRACK, "prune", server.url, "--filter", f"tags.of = '{name}'"]
    done = subprocess.run([*prune, "--gc", "--yes"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "ask the server's admin" in done.stderr
    subprocess.run([*prune, "--yes"], check=True)
    stages = {run["info"]["run_id"]: run["info"]["lifecycle_stage"] for run in server.runs(name)}
    assert [stages[one] for one in ids] == ["deleted", "active", "active"]
