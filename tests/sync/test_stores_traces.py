"""Traces as the server's own MLflow records them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from sync_recording import TRACES
from sync_server import mlflow_bin

from labtrack.stores import open_store


def test_traces_that_mlflow_recorded(tmp_path: Path) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW")}
    subprocess.run(
        [mlflow_bin() / "python", "-c", TRACES, f"sqlite:///{tmp_path}/mlflow.db"],
        cwd=tmp_path, env=env, check=True, capture_output=True,
    )  # fmt: skip
    with open_store(tmp_path / "mlflow.db") as store:
        (run,) = store.runs()
        # each is written by a thread of its own, in any order
        found = sorted(store.traces(run.experiment_id), key=lambda one: one.run_id is None)
        spans = [json.loads(store.spans(one) or b"")["spans"] for one in found]
        assert store.problems() == []
    assert [one.run_id for one in found] == [run.id, None]
    assert [sorted(span["name"] for span in those) for those in spans] == [["chain", "llm"], ["alone"]]
    assert found[0].tags["kind"] == "good" and found[0].tags["mlflow.traceName"] == "chain"
    assert found[0].state == "OK" and found[0].timestamp and found[0].duration is not None
    right, facts = sorted(found[0].assessments, key=lambda one: str(one["assessment_name"]), reverse=True)
    assert right["feedback"] == {"value": True} and right["source"] == {"source_type": "HUMAN", "source_id": "ada"}
    assert right["rationale"] == "it is"
    assert json.loads(facts["expectation"]["serialized_value"]["value"]) == {"a": [1, 2]}
