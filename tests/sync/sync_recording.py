"""Recordings for the tests, written as MLflow's SQLite store has them, without MLflow."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sqlite3
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sync_server import empty_database

T0 = 1_700_000_000_000  # ms


def new_id() -> str:
    return uuid.uuid4().hex


# Two traces, of which one belongs to a run, and has a tag and two assessments; for MLflow 3, with the address.
TRACES = """
import mlflow, sys
from mlflow.entities import AssessmentSource
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_experiment("asked")
with mlflow.start_run():
    with mlflow.start_span("chain") as outer:
        outer.set_inputs({"question": "wie groß?"})
        with mlflow.start_span("llm") as inner:
            inner.set_outputs({"answer": 42})
        outer.set_outputs({"answer": 42})
first = mlflow.get_last_active_trace_id()
with mlflow.start_span("alone"):
    pass
mlflow.flush_trace_async_logging()
mlflow.set_trace_tag(first, "kind", "good")
source = AssessmentSource(source_type="HUMAN", source_id="ada")
mlflow.log_feedback(trace_id=first, name="right", value=True, rationale="it is", source=source)
mlflow.log_expectation(trace_id=first, name="facts", value={"a": [1, 2]}, source=source)
"""


class Recording:
    """A SQLite file and its artifacts beside it."""

    def __init__(self, folder: Path, experiment: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / "mlflow.db"
        if not self.path.exists():
            shutil.copyfile(empty_database(), self.path)
            # what makes the recording this one: its birth
            self.experiment("Default", 0, born=int(uuid.uuid4().int % 10**12))
        self.name = experiment or f"e-{uuid.uuid4().hex[:8]}"
        self.experiment(self.name, 1)

    def sql(self, text: str, *values: Any) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=30)) as database:
            found = database.execute(text, values).fetchall()
            database.commit()
            return found

    def many(self, text: str, rows: Iterable[tuple[Any, ...]]) -> None:
        with contextlib.closing(sqlite3.connect(self.path, timeout=30)) as database:
            database.executemany(text, rows)
            database.commit()

    def insert(self, table: str, **values: Any) -> None:
        names, marks = ", ".join(f'"{one}"' for one in values), ", ".join("?" * len(values))
        self.sql(f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({marks})", *values.values())  # noqa: S608

    def experiment(self, name: str, number: int, born: int = T0) -> None:
        place = self.folder / "artifacts" / str(number)
        self.insert(
            "experiments", experiment_id=number, name=name, artifact_location=str(place),
            lifecycle_stage="active", creation_time=born, last_update_time=born, workspace="default",
        )  # fmt: skip

    def run(
        self,
        *,
        run_id: str = "",
        status: str = "FINISHED",
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        metrics: Mapping[str, Iterable[float]] | None = None,
        files: Mapping[str, bytes] | None = None,
        name: str = "a run",
        user: str = "ada",
        start: int = T0,
        end: int | None = T0 + 5000,
        stage: str = "active",
        experiment: int = 1,
    ) -> str:
        run_id = run_id or new_id()
        place = self.folder / "artifacts" / str(experiment) / run_id / "artifacts"
        self.insert(
            "runs", run_uuid=run_id, name=name, source_type="UNKNOWN", source_name="", entry_point_name="",
            user_id=user, status=status, start_time=start, source_version="",
            end_time=end if status not in ("RUNNING", "SCHEDULED") else None,
            lifecycle_stage=stage, artifact_uri=str(place), experiment_id=experiment,
        )  # fmt: skip
        self.params(run_id, params or {})
        self.tags(run_id, {"mlflow.user": user, "mlflow.runName": name, **(tags or {})})
        for key, values in (metrics or {}).items():
            self.points(run_id, key, values)
        for path, data in (files or {}).items():
            self.file(run_id, path, data)
        return run_id

    def params(self, run_id: str, values: Mapping[str, str]) -> None:
        self.many(
            "INSERT INTO params (run_uuid, key, value) VALUES (?, ?, ?)", [(run_id, *one) for one in values.items()]
        )

    def tags(self, run_id: str, values: Mapping[str, str]) -> None:
        rows = [(run_id, *one) for one in values.items()]
        self.many("INSERT OR REPLACE INTO tags (run_uuid, key, value) VALUES (?, ?, ?)", rows)

    def points(self, run_id: str, key: str, values: Iterable[float], first: int = 0) -> None:
        rows = [_row(run_id, key, value, T0 + step * 10, step) for step, value in enumerate(values, first)]
        text = "INSERT OR IGNORE INTO metrics (run_uuid, key, value, timestamp, step, is_nan) VALUES (?, ?, ?, ?, ?, ?)"
        self.many(text, rows)
        if rows:
            last = rows[-1]
            self.insert(
                "latest_metrics",
                run_uuid=run_id,
                key=key,
                value=last[2],
                timestamp=last[3],
                step=last[4],
                is_nan=last[5],
            )

    def file(self, run_id: str, path: str, data: bytes, experiment: int = 1) -> Path:
        place = self.folder / "artifacts" / str(experiment) / run_id / "artifacts" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        return place

    def end(self, run_id: str, status: str = "FINISHED", at: int = T0 + 9000) -> None:
        self.sql("UPDATE runs SET status = ?, end_time = ? WHERE run_uuid = ?", status, at, run_id)

    def dataset(self, run_id: str, name: str, digest: str, tags: Mapping[str, str] | None = None) -> None:
        dataset, link = new_id(), new_id()
        self.insert(
            "datasets", dataset_uuid=dataset, experiment_id=1, name=name, digest=digest, dataset_source_type="local",
            dataset_source=json.dumps({"uri": "/data/era5"}), dataset_schema='{"mlflow_colspec": []}',
            dataset_profile='{"num_rows": 3}',
        )  # fmt: skip
        self.insert(
            "inputs", input_uuid=link, source_type="DATASET", source_id=dataset, destination_type="RUN",
            destination_id=run_id, step=0,
        )  # fmt: skip
        for key, value in (tags or {}).items():
            self.insert("input_tags", input_uuid=link, name=key, value=value)

    def model(self, run_id: str | None, name: str, files: Mapping[str, bytes], step: int = 0) -> str:
        """A logged model; one without a run is as `log_model` makes it where no run is active."""
        model = f"m-{new_id()}"
        place = self.folder / "artifacts" / "1" / "models" / model / "artifacts"
        self.insert(
            "logged_models", model_id=model, experiment_id=1, name=name, artifact_location=str(place),
            creation_timestamp_ms=T0, last_updated_timestamp_ms=T0, status=2, lifecycle_stage="active",
            model_type="", source_run_id=run_id,
        )  # fmt: skip
        if run_id:
            self.insert(
                "inputs", input_uuid=new_id(), source_type="RUN_OUTPUT", source_id=run_id, step=step,
                destination_type="MODEL_OUTPUT", destination_id=model,
            )  # fmt: skip
        self.insert("logged_model_params", model_id=model, experiment_id=1, param_key="depth", param_value="3")
        self.insert("logged_model_tags", model_id=model, experiment_id=1, tag_key="kind", tag_value="unet")
        for path, data in files.items():
            place.joinpath(path).parent.mkdir(parents=True, exist_ok=True)
            place.joinpath(path).write_bytes(data)
        return model


def _row(run_id: str, key: str, value: float, time: int, step: int) -> tuple[Any, ...]:
    """As MLflow's SQL store writes a point: NaN beside the value, infinities as the largest number."""
    if math.isnan(value):
        return run_id, key, 0.0, time, step, 1
    if math.isinf(value):
        value = math.copysign(1.7976931348623157e308, value)
    return run_id, key, value, time, step, 0


def anemois(run_id: str, *, parent: str = "", fork: str = "") -> dict[str, dict[str, str]]:
    """Params and tags of a run that Anemoi recorded offline: alone, resumed from or forked off another."""
    params = {
        "metadata.run_id": parent or run_id,
        "config.training.run_id": parent or run_id,
        "config.training.fork_run_id": fork or "None",
        "config.training.max_epochs": "2",
    }
    tags = {"projectName": "anemoi"}
    if parent:
        tags.update({"mlflow.parentRunId": parent, "resumedRun": "True"})
    if fork:
        tags.update({"forkedRun": "True", "forkedRunId": fork})
    return {"params": params, "tags": tags}


def mixed(folder: Path) -> Recording:
    """Something of everything that a sync has to keep."""
    found = Recording(folder, "mixed")
    parent = found.run(name="sweep", metrics={"best": [1.0]})
    for number in range(2):
        tags = {"mlflow.parentRunId": parent}
        found.run(name=f"trial {number}", tags=tags, metrics={"loss": [1.0, 0.5]}, files={"log.txt": b"x" * 100})
    first, resumed, forked = new_id(), new_id(), new_id()
    # the child is older in the file than its parent
    found.run(run_id=resumed, name="resumed", metrics={"loss": [0.4]}, **anemois(resumed, parent=first))
    found.run(run_id=first, name="first", status="FAILED", metrics={"loss": [2.0]}, **anemois(first))
    found.run(run_id=forked, name="forked", status="KILLED", **anemois(forked, fork=first))
    data = found.run(name="data", params={"text": "p" * 7000}, tags={"mlflow.note.content": "n" * 9000})
    found.dataset(data, "era5", "d1", {"mlflow.data.context": "training"})
    found.dataset(data, "orog", "d2")
    made = found.run(name="model", metrics={"score": [0.9]})
    found.model(made, "unet", {"MLmodel": b"flavors: {}", "data/weights.bin": b"w" * 5000})
    found.run(name="recording", status="RUNNING", metrics={"loss": [3.0, 2.9]}, files={"out.log": b"step 1"})
    found.run(name="deleted", stage="deleted", params={"a": "1"})
    long = {f"m{key}": [step / (key + 1) for step in range(900)] for key in range(3)}
    found.run(name="long", metrics=long, files={f"plots/{one}.png": bytes([one]) * 3000 for one in range(5)})
    return found
