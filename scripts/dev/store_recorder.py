"""Records one small, varied store with the MLflow that runs it, and writes down what MLflow reads back.

    python store_recorder.py URI ARTIFACTS WITNESS

URI: `sqlite:////…` or `file:///…`.  ARTIFACTS: a folder for artifacts.  WITNESS: the JSON file to write.
Runs with MLflow 1.30 to 3.x, on Python 3.9 and later; called by make_store_fixtures.py.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"
os.environ["LOGNAME"] = "ada"  # MLflow asks getpass who the user is

import mlflow
from mlflow.entities import Metric, Param, RunTag, ViewType
from mlflow.tracking import MlflowClient

VERSION = tuple(int(part) for part in mlflow.__version__.split(".")[:2])
HAS_REGISTRY = VERSION >= (2, 0) or sys.argv[1].startswith("sqlite")
BORN = 1_700_000_000_000  # ms
RECORDED = tuple(
    Metric("loss", 1 / (1 + step), BORN + 1000 * step, step)
    for step in range(40)
)  # fmt: skip
ODD = (
    Metric("val/loss", 0.5, BORN + 10, 0),
    Metric("val/loss", 0.25, BORN + 20, 0),  # the same step again
    Metric("val/loss", -1e-300, BORN + 5, 7),  # earlier than the one before
    Metric("warm up", 3.0, BORN, -5),
    Metric("größe", 1e300, BORN, 2**40),
    Metric("broken", math.nan, BORN + 1, 1),
    Metric("broken", math.inf, BORN + 2, 2),
    Metric("broken", -math.inf, BORN + 3, 3),
    Metric("broken", 0.1 + 0.2, BORN + 4, 4),
)


def record(client: MlflowClient, artifacts: str) -> None:
    """Everything that a reader could get wrong."""
    experiment = client.create_experiment("climate", f"{artifacts}/climate")
    client.set_experiment_tag(experiment, "mlflow.note.content", "Emulators of the coast.\nSecond line.")
    gone = client.create_experiment("gone", f"{artifacts}/gone")
    kept = client.create_run(gone, start_time=BORN - 5000).info.run_id
    client.set_terminated(kept, "FINISHED", BORN - 4000)
    client.delete_experiment(gone)

    parent = client.create_run(experiment, start_time=BORN, tags={"mlflow.user": "ada", "mlflow.runName": "parent"})
    run = parent.info.run_id
    params = {"lr": "1e-3", "model.width/deep": "64", "empty": "", "größe": "12 µm", "long": "x" * 480, "line": "a\nb"}
    client.log_batch(run, RECORDED, [Param(*pair) for pair in params.items()], [RunTag("team", "Küste")])
    client.log_batch(run, ODD)
    client.set_tag(run, "mlflow.note.content", "# Note\n" + "long words " * 400)
    client.set_tag(run, "a.b/c", "slash")
    client.set_tag(run, "quote", 'it\'s "so": [1]\t#')
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        (made / "plots" / "täglich").mkdir(parents=True)
        (made / "readme.txt").write_text("hello\n")
        (made / "plots" / "fig 1.svg").write_text("<svg/>")
        (made / "plots" / "täglich" / "empty").write_bytes(b"")
        client.log_artifacts(run, str(made))
    ends = {"child": "FINISHED", "failed": "FAILED", "killed": "KILLED", "running": None, "deleted": "FINISHED"}
    for number, (name, status) in enumerate(ends.items(), 1):
        tags = {"mlflow.user": "grace", "mlflow.runName": name, "mlflow.parentRunId": run}
        one = client.create_run(experiment, start_time=BORN + number, tags=tags).info.run_id
        client.log_metric(one, "loss", number / 8, BORN + number, number)
        if status:
            client.set_terminated(one, status, BORN + 60_000 + number)
        if name == "deleted":
            client.delete_run(one)
    if VERSION >= (2, 4):
        datasets(client, run)
    if VERSION >= (3, 0):
        models(client, experiment, run, artifacts)
    if HAS_REGISTRY:
        registry(client, run)
    client.set_terminated(run, "FINISHED", BORN + 90_000)


def datasets(client: MlflowClient, run: str) -> None:
    """Two inputs of one run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    first = Dataset("era5", "d1gest", "local", '{"uri": "/data/era5"}', '{"x": 1}', '{"rows": 3}')
    second = Dataset("wrf", "0ther", "code", '{"tags": {}}')
    inputs = [
        DatasetInput(first, [InputTag("mlflow.data.context", "training"), InputTag("part", "1")]),
        DatasetInput(second, []),
    ]
    client.log_inputs(run, inputs)


def models(client: MlflowClient, experiment: str, run: str, artifacts: str) -> None:
    """A model that the run made, with files, parameters and metrics, and one that it read."""
    from mlflow.entities import LoggedModelInput, LoggedModelOutput, LoggedModelStatus

    made = client.create_logged_model(experiment, "emulator", run, {"size": "small"}, {"depth": "4"}, "pytorch")
    read = client.create_logged_model(experiment, "teacher", None)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "MLmodel").write_text(f"model_id: {made.model_id}\nrun_id: {run}\n")
        client.log_model_artifacts(made.model_id, folder)
    client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
    client.finalize_logged_model(read.model_id, LoggedModelStatus.FAILED)
    client.log_inputs(run, models=[LoggedModelInput(read.model_id)])
    client.log_outputs(run, [LoggedModelOutput(made.model_id, 39)])
    client.log_metric(run, "skill", 0.75, BORN + 7, 39, model_id=made.model_id)
    client.log_metric(
        run, "skill", 0.5, BORN + 8, 40, model_id=made.model_id, dataset_name="era5", dataset_digest="d1gest"
    )


def registry(client: MlflowClient, run: str) -> None:
    """A registered model with two versions."""
    source = f"{client.get_run(run).info.artifact_uri}/model"
    client.create_registered_model("coast", {"owner": "ada"}, "Coast emulator")
    client.create_model_version("coast", source, run, {"checked": "yes"}, description="first")
    client.create_model_version("coast", source, run)
    if VERSION >= (2, 3):
        client.set_registered_model_alias("coast", "champion", "2")


def witness(client: MlflowClient) -> dict[str, Any]:
    """What MLflow itself reads."""
    search = client.search_experiments if VERSION >= (1, 28) else client.list_experiments
    experiments = list(search(view_type=ViewType.ALL))
    runs = client.search_runs([one.experiment_id for one in experiments], run_view_type=ViewType.ALL)
    found: dict[str, Any] = {
        "mlflow": mlflow.__version__,
        "experiments": {
            one.experiment_id: {
                "name": one.name,
                "artifact_location": one.artifact_location,
                "lifecycle_stage": one.lifecycle_stage,
                "creation_time": getattr(one, "creation_time", None),
                "tags": one.tags,
            }
            for one in experiments
        },
        # a search leaves out the models of a run
        "runs": {one.info.run_id: _run(client, client.get_run(one.info.run_id)) for one in runs},
        "registered": {},
        "models": {},
    }
    versions = client.search_model_versions("name = 'coast'") if HAS_REGISTRY else []
    for version in sorted(versions, key=lambda one: int(one.version)):
        found["registered"][version.version] = {
            "name": version.name,
            "run_id": version.run_id,
            "source": version.source,
            "description": version.description or "",
            "tags": version.tags,
            "creation_time": version.creation_timestamp,
        }
    if VERSION >= (3, 0):
        everywhere = [one.experiment_id for one in experiments if one.lifecycle_stage == "active"]
        for model in client.search_logged_models(everywhere):
            found["models"][model.model_id] = {
                "experiment_id": model.experiment_id,
                "name": model.name,
                "status": str(model.status),
                "model_type": model.model_type or "",
                "source_run_id": model.source_run_id or None,
                "artifact_location": model.artifact_location,
                "creation_time": model.creation_timestamp,
                "params": model.params,
                "tags": model.tags,
                "metrics": sorted(
                    [one.key, one.value, one.timestamp, one.step, one.run_id, one.dataset_name, one.dataset_digest]
                    for one in model.metrics or []
                ),
            }
    return found


def _run(client: MlflowClient, run: Any) -> dict[str, Any]:
    run_id, info = run.info.run_id, run.info
    metrics = {}
    for key in run.data.metrics:
        history = client.get_metric_history(run_id, key)
        metrics[key] = sorted([repr(one.value), one.timestamp, one.step] for one in history)
    artifacts, folders = [], [""]
    while folders:
        for one in client.list_artifacts(run_id, folders.pop()):
            if one.is_dir:
                folders.append(one.path)
            else:
                artifacts.append([one.path, one.file_size])
    inputs = []
    for one in run.inputs.dataset_inputs if VERSION >= (2, 4) else ():
        data = one.dataset
        inputs.append(
            {
                **{name: getattr(data, name) for name in ("name", "digest", "source_type", "source")},
                "schema": data.schema or None,
                "profile": data.profile or None,
                "tags": {tag.key: tag.value for tag in one.tags},
            }
        )
    three = VERSION >= (3, 0)
    return {
        "experiment_id": info.experiment_id,
        "name": run.data.tags.get("mlflow.runName", getattr(info, "run_name", None) or ""),
        "user_id": info.user_id,
        "status": info.status,
        "start_time": info.start_time,
        "end_time": info.end_time,
        "lifecycle_stage": info.lifecycle_stage,
        "artifact_uri": info.artifact_uri,
        "params": run.data.params,
        "tags": run.data.tags,
        "metrics": metrics,
        "artifacts": sorted(artifacts),
        "inputs": sorted(inputs, key=lambda one: str(one["name"])),
        "model_inputs": [one.model_id for one in (run.inputs and run.inputs.model_inputs) or []] if three else [],
        "model_outputs": [[one.model_id, one.step] for one in (run.outputs and run.outputs.model_outputs) or []]
        if three
        else [],
    }


def main() -> None:
    uri, artifacts, place = sys.argv[1:]
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    client = MlflowClient(uri, uri)
    record(client, artifacts)
    Path(place).write_text(json.dumps(witness(client), indent=1, sort_keys=True, ensure_ascii=False))


main()
