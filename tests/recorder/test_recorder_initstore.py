"""`labtrack init-store` with the MLflow that is to use the file."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from recorder_env import ROOT, Training, python_of

from labtrack.errors import BadInputError
from labtrack.local.initstore import init_store
from labtrack.stores import open_store


def test_init_store_by_several_at_once_is_made_by_one_and_used_by_all(newest: Training, tmp_path: Path) -> None:
    file = tmp_path / "new" / "mlflow.db"
    command = [sys.executable, "-m", "labtrack", "init-store", file, "--mlflow", newest.python, "--group"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    started = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = [one.communicate(timeout=300)[0] for one in started]
    assert [one.returncode for one in started] == [0] * 3
    assert sum(": made, for MLflow" in one for one in said) == 1
    assert all(f"export MLFLOW_TRACKING_URI=sqlite:///{file}\n" in one for one in said)
    assert sorted(path.name for path in file.parent.iterdir()) == ["mlartifacts", "mlflow.db"]
    assert file.stat().st_mode & 0o777 == 0o660
    assert file.parent.stat().st_mode & 0o2070 == 0o2070


def test_init_store_has_artifacts_where_it_says(training: Training, tmp_path: Path) -> None:
    file, artifacts = tmp_path / "a.db", tmp_path / "kept"
    env = {"MLFLOW_SQLITE_DB_PATH": f"sqlite:///{file}", "MLFLOW_ARTIFACTS_PATH": str(artifacts)}
    made = init_store(None, experiments=["early"], mlflow=str(training.python), env=env)
    assert (made.was_there, made.address) == (False, f"sqlite:///{file}")
    code = """
import mlflow
for name in ("early", "late"):
    mlflow.set_experiment(name)
    with mlflow.start_run(): mlflow.log_text("x", "a.txt")
"""
    training.run(code, MLFLOW_TRACKING_URI=made.address)
    with open_store(file) as store:
        for run in store.runs():
            assert run.artifact_uri.startswith(f"{artifacts}/{run.experiment_id}/")
            assert [one.path for one in store.artifacts(run)] == ["a.txt"]
        assert {one.name for one in store.experiments()} == {"Default", "early", "late"}
    assert init_store(str(file), mlflow=str(training.python), env={}).was_there


def test_init_store_refuses_a_file_of_another_mlflow(tmp_path: Path) -> None:
    file = tmp_path / "a.db"
    init_store(str(file), mlflow=str(python_of("oldest")), env={})
    with pytest.raises(BadInputError, match="has the schema"):
        init_store(str(file), mlflow=str(python_of("newest")), env={})
    with contextlib.closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
