"""What a tracking server answers, read: one reader for recordings at a server and for the destination of a sync."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import requests

from labtrack.errors import BadInputError
from labtrack.stores.model import (
    ACTIVE,
    DatasetInput,
    Experiment,
    LoggedModel,
    MetricPoint,
    ModelLink,
    ModelVersion,
    Run,
)

PROMPT = "mlflow.prompt.is_prompt"  # the tag by which a registered model, or version, is one of a prompt
_PROXY = "/api/2.0/mlflow-artifacts/artifacts"


def data(answer: requests.Response, base: str) -> dict[str, Any]:
    """The body of an answer of MLflow's.  base: the server's address.  Raises BadInputError where it is none."""
    try:
        found = answer.json()
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BadInputError(
            f"{base} answers, but not as a tracking server does.",
            "give the server's own address, as MLFLOW_TRACKING_URI in your mlflow_env.sh has it.",
        )
    return found


def plain(pairs: Any) -> dict[str, str]:
    """Tags or params as a mapping."""
    return {pair["key"]: pair.get("value", "") for pair in pairs}


def when(data: Mapping[str, Any], name: str) -> int | None:
    """A time in ms since 1970; None where there is none."""
    return int(data[name]) if data.get(name) else None


def point(data: Mapping[str, Any]) -> MetricPoint:
    """A metric's point."""
    return MetricPoint(data["key"], float(data["value"]), int(data["timestamp"]), int(data.get("step", 0)))


def experiment(data: Mapping[str, Any]) -> Experiment:
    """An experiment."""
    return Experiment(
        data["experiment_id"], data["name"], data.get("artifact_location", ""), data.get("lifecycle_stage", ACTIVE),
        when(data, "creation_time"), when(data, "last_update_time"), plain(data.get("tags", ())),
    )  # fmt: skip


def run(data: Mapping[str, Any]) -> Run:
    """A run, as `runs/get` has it; a search leaves out its models."""
    info, inside, inputs = data["info"], data.get("data", {}), data.get("inputs", {})
    tags = plain(inside.get("tags", ()))
    return Run(
        info.get("run_id") or info["run_uuid"], info["experiment_id"],
        info.get("run_name") or tags.get("mlflow.runName", ""), info.get("user_id", ""), info.get("status", "RUNNING"),
        when(info, "start_time"), when(info, "end_time"), info.get("lifecycle_stage", ACTIVE),
        info.get("artifact_uri", ""), plain(inside.get("params", ())), tags,
        tuple(_dataset(one) for one in inputs.get("dataset_inputs", ())),
        tuple(ModelLink(one["model_id"]) for one in inputs.get("model_inputs", ())),
        tuple(
            ModelLink(one["model_id"], int(one.get("step", 0)))
            for one in data.get("outputs", {}).get("model_outputs", ())
        ),
    )  # fmt: skip


def _dataset(data: Mapping[str, Any]) -> DatasetInput:
    one = data["dataset"]
    texts = (one.get("source_type", ""), one.get("source", ""), one.get("schema") or None, one.get("profile") or None)
    return DatasetInput(one["name"], one["digest"], *texts, plain(data.get("tags", ())))


def logged_model(data: Mapping[str, Any]) -> LoggedModel:
    """A logged model."""
    info, inside = data["info"], data.get("data", {})
    return LoggedModel(
        info["model_id"], info["experiment_id"], info.get("name", ""), info.get("artifact_uri", ""),
        str(info.get("status", "READY")).replace("LOGGED_MODEL_", "").replace("UPLOAD_", ""),
        info.get("status_message", ""), info.get("model_type", ""), info.get("source_run_id") or None, ACTIVE,
        when(info, "creation_timestamp_ms"), when(info, "last_updated_timestamp_ms"),
        plain(inside.get("params", ())), plain(info.get("tags", ())),
    )  # fmt: skip


def quoted(value: str) -> str:
    """A value in MLflow's filters."""
    quote = "'" if "'" not in value else '"'
    return f"{quote}{value}{quote}"


def version(data: Mapping[str, Any], aliases: set[tuple[str, str, str]]) -> ModelVersion:
    """A registered version.  aliases: name, version and alias of all that there are."""
    name, number, source = data["name"], str(data["version"]), data.get("source", "")
    model_id = data.get("model_id") or (source[len("models:/") :] if source.startswith("models:/m-") else None)
    return ModelVersion(
        name, number, data.get("run_id") or None, model_id, source, data.get("current_stage") or "None",
        data.get("status", "READY"), data.get("description", ""), data.get("user_id", ""),
        when(data, "creation_timestamp"), when(data, "last_updated_timestamp"),
        tuple(sorted(alias for one, of, alias in aliases if (one, of) == (name, number))),
        plain(data.get("tags", ())),
    )  # fmt: skip


def proxied(call: Callable[..., requests.Response], root: str) -> Iterator[tuple[str, int]]:
    """Path and size in bytes of each file below `root` that is kept behind the server (`mlflow-artifacts:`).

    call: `tracking.http.Http.call`, or one like it.
    """
    folders = [""]
    while folders:
        folder = folders.pop()
        where = posixpath.join(root, folder) if folder else root
        answer = call("GET", _PROXY, params={"path": where}, missing_ok=True)
        for one in answer.json().get("files", ()) if answer.status_code == requests.codes.ok else ():
            path = posixpath.join(folder, posixpath.basename(one["path"]))
            if one.get("is_dir"):
                folders.append(path)
            else:
                yield path, int(one.get("file_size") or 0)
