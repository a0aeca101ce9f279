"""Traces, recorded and read back by the server's own MLflow."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from sync_recording import TRACES
from sync_server import TrackingServer, mlflow_bin

from labtrack.stores import open_store
from labtrack.sync import Report

READ = """
import json, mlflow, sys
mlflow.set_tracking_uri(sys.argv[1])
found = {}
for one in sys.argv[2:]:
    trace = mlflow.get_trace(one)
    spans = trace.data.spans
    found[one] = {
        "spans": [[span.name, span.inputs, span.outputs, span.start_time_ns, span.end_time_ns] for span in spans],
        "info": [trace.info.request_time, trace.info.execution_duration, trace.info.state, trace.info.request_preview],
        "tags": {key: value for key, value in trace.info.tags.items() if not key.startswith(("labtrack.", "mlflow."))},
        "name": trace.info.tags.get("mlflow.traceName"),
        "run": trace.info.trace_metadata.get("mlflow.sourceRun"),
        "assessments": sorted([a.name, repr(a.value), a.rationale, a.source.source_id] for a in trace.info.assessments),
    }
print(json.dumps(found))
"""


def mlflow(code: str, *words: str, folder: Path) -> str:
    env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    done = subprocess.run(
        [mlflow_bin() / "python", "-c", code, *words], cwd=folder, env=env, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sent(report: Report) -> int:
    return sum(one["sent"] for one in report.traces.values())


@pytest.fixture(scope="module")
def recorded_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traces")
    mlflow(TRACES, f"sqlite:///{folder}/mlflow.db", folder=folder)
    return folder / "mlflow.db"


@pytest.fixture
def path(recorded_once: Path, tmp_path: Path) -> Path:
    """The recording, in an experiment of the test's own."""
    found = Path(shutil.copyfile(recorded_once, tmp_path / "mlflow.db"))
    with sqlite3.connect(found) as db:
        db.execute("UPDATE experiments SET name = ? WHERE name = 'asked'", [tmp_path.name])
    db.close()
    return found


def test_traces_with_spans_tags_and_assessments(
    path: Path, server: TrackingServer, send: Callable[..., Report], tmp_path: Path
) -> None:
    report = send(path)
    assert report.exit_code == 0 and sent(report) == 2, report
    again = send(path)
    assert again.exit_code == 0 and sent(again) == 0, again
    elsewhere = send(path, experiment=f"{tmp_path.name}-other")
    assert sent(elsewhere) == 0, "a trace is one: it stays where it is"
    with open_store(path) as store:
        (run,) = store.runs()
        ids = [one.id for one in store.traces(run.experiment_id)]
    (copy,) = server.runs(tmp_path.name)
    recorded = json.loads(mlflow(READ, f"sqlite:///{path}", *ids, folder=tmp_path))
    there = json.loads(mlflow(READ, server.url, *ids, folder=tmp_path))
    assert {one["run"] for one in recorded.values()} == {run.id, None}
    for one in recorded.values():
        one["run"] = one["run"] and copy["info"]["run_id"]
    assert there == recorded
    assert any(len(one["spans"]) == 2 and len(one["assessments"]) == 2 for one in there.values())


def test_a_trace_whose_spans_are_gone_keeps_no_other_away(path: Path, send: Callable[..., Report]) -> None:
    with sqlite3.connect(path) as db:
        # other ids than those of the other test: a trace is one, wherever it is
        for table, column in (("trace_info", "request_id"), ("spans", "trace_id")):
            db.execute(f"UPDATE {table} SET {column} = 'tr-' || substr({column}, 5) || substr({column}, 4, 1)")  # noqa: S608
        db.execute("DELETE FROM assessments")
        (gone,) = db.execute("SELECT request_id FROM trace_info LIMIT 1").fetchone()
        db.execute("DELETE FROM spans WHERE trace_id = ?", [gone])
    db.close()
    first, second = send(path, verify=True), send(path)
    assert (sent(first), sent(second)) == (1, 0)
    for report in (first, second):
        assert report.exit_code == 3 and len(report.unreadable) == 1, "and again"
        assert f"{gone}: the spans of the trace can't be read" in report.unreadable[0]
    assert send(path, accept_damage=True).exit_code == 0
    assert send(path).exit_code == 0
