"""Logged models, the model registry and traces in a SQLite file of MLflow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from labtrack.stores.model import (
    ACTIVE,
    DELETED,
    LoggedModel,
    MetricPoint,
    ModelPoint,
    ModelVersion,
    RegisteredModel,
)
from labtrack.stores.numbers import Steps, floor, metric_value, text, whole
from labtrack.stores.tables import Tables

MODEL_STATUS = {0: "UNSPECIFIED", 1: "PENDING", 2: "READY", 3: "FAILED"}


def logged_models(tables: Tables, *, deleted: bool = False) -> Iterator[LoggedModel]:
    """The models that MLflow >= 3.0 keeps beside runs."""
    fields = (
        *("model_id", "experiment_id", "name", "artifact_location", "status", "status_message", "model_type"),
        *("source_run_id", "lifecycle_stage", "creation_timestamp_ms", "last_updated_timestamp_ms"),
    )
    params = tables.texts("logged_model_params", "model_id", ("param_key", "param_value"))
    tags = tables.texts("logged_model_tags", "model_id", ("tag_key", "tag_value"))
    for row in tables.select("logged_models", fields, "1 ORDER BY rowid"):
        model_id, experiment, name, location, status, message, kind, run_id, stage, born, changed = row
        if deleted or stage != DELETED:
            owner = (text(run_id), None) if run_id else (None, text(experiment))
            made, edited = (tables.time(one, text(model_id), "model's time", *owner) for one in (born, changed))
            yield LoggedModel(
                text(model_id), text(experiment), text(name), text(location),
                MODEL_STATUS.get(status, text(status)), text(message), text(kind), text(run_id) or None,
                text(stage) or ACTIVE, made, edited, params.get(model_id, {}), tags.get(model_id, {}),
            )  # fmt: skip


def points(tables: Tables, model_id: str, page: int) -> Iterator[ModelPoint]:
    """The metric points that are linked to a logged model, `page` of them in a statement."""
    fields = (
        *("metric_name", "metric_value", "metric_timestamp_ms", "metric_step"),
        *("run_id", "dataset_name", "dataset_digest"),
    )
    steps: dict[str, Steps] = defaultdict(Steps)
    condition, last = f"model_id = ? AND rowid > ? ORDER BY rowid LIMIT {page}", -1
    while found := tables.select("logged_model_metrics", ("rowid", *fields), condition, [model_id, last]):
        for row in found:
            last, key, value, timestamp, step, run_id, name, digest = row
            given = steps[text(run_id)].of(text(key), step)
            number, time = metric_value(value), floor(timestamp)
            if number is None:
                what = f"a point of the model's metric {text(key)} was left out: its value {value!r} is no number"
                tables.found.problem(model_id, what, text(run_id) or None)
                continue
            odd = time is None or given != whole(step)
            point = MetricPoint(text(key), number, time or 0, given, (timestamp, step) if odd else None)
            yield ModelPoint(point, text(run_id), text(name) or None, text(digest) or None)


def registered_models(tables: Tables) -> list[RegisteredModel]:
    """The model registry."""
    tags = tables.texts("registered_model_tags", "name")
    versions = defaultdict(list)
    for version in _versions(tables):
        versions[version.name].append(version)
    fields = ("name", "description", "creation_time", "last_updated_time")
    return [
        RegisteredModel(
            text(name), text(said), floor(born), floor(changed), tags.get(name, {}), tuple(versions[text(name)])
        )
        for name, said, born, changed in tables.select("registered_models", fields, "1 ORDER BY name")
    ]


def _versions(tables: Tables) -> Iterator[ModelVersion]:
    tags: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for row in tables.select("model_version_tags", ("name", "version", "key", "value"), "1"):
        name, version, key, value = map(text, row)
        tags[name, version][key] = value
    aliases = defaultdict(list)
    for row in tables.select("registered_model_aliases", ("name", "version", "alias"), "1"):
        name, version, alias = map(text, row)
        aliases[name, version].append(alias)
    fields = (
        *("name", "version", "run_id", "source", "current_stage", "status", "description", "user_id"),
        *("storage_location", "creation_time", "last_updated_time"),
    )
    for row in tables.select("model_versions", fields, "1 ORDER BY name, version"):
        name, version, run_id, source, stage, status, said, user, place = map(text, row[:9])
        # MLflow 3 writes models:/m-… there, and where that was in the other column
        model_id = source[len("models:/") :] if source.startswith("models:/m-") else _model_in(place or source)
        if stage == "Deleted_Internal":
            continue
        yield ModelVersion(
            name, version, run_id or None, model_id, source, stage or "None", status or "READY", said, user,
            floor(row[9]), floor(row[10]), tuple(sorted(aliases[name, version])), tags[name, version],
        )  # fmt: skip


def _model_in(place: str) -> str | None:
    """The id of the logged model in a path like …/models/m-…/artifacts."""
    for part in place.split("/"):
        if part.startswith("m-") and len(part) == len("m-") + 32:
            return part
    return None
