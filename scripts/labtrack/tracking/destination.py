"""The tracking server that runs are sent to: MLflow's REST interface, as far as a sync needs it."""

from __future__ import annotations

import base64
import gzip
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import requests

from labtrack.errors import LabtrackError
from labtrack.stores.model import DatasetInput, LoggedModel, MetricPoint, ModelLink, Run
from labtrack.tracking import names, parsing
from labtrack.tracking.http import ApiError, Http, ServerError, UnclearError
from labtrack.tracking.remote import RemoteExperiment, RemoteModel, RemoteRun, as_experiment, as_model, as_run

API = "/api/2.0/mlflow"
COLUMNS_API = "/api/2.0/labtrack/runs"
BATCH, COLUMNS = 1000, 5000  # points of a call: as MLflow takes them, and as the kit's server does, which takes more
PAGE = 1000  # runs, models: the largest page that a server with few of memory answers quickly
HISTORY_PAGE = 25_000  # points: MLflow's limit
FEW = 500  # points that a server writes out as quickly as it answers two calls
TRIES = 6  # of a create whose answers are lost
LATER = "run the same command again later: it goes on where it stopped."
MISSING = "RESOURCE_DOES_NOT_EXIST"
_MODEL_STATUS = {"PENDING": 1, "READY": 2, "FAILED": 3}


class Destination:
    """What can be asked of, and sent to, the server.  May be used by several threads.

    maker: who makes copies, as `duplicates.maker` says it.
    Raises ApiError where the server refuses, LabtrackError where the user has to do something.
    """

    def __init__(self, http: Http, maker: str) -> None:
        self.http, self.maker = http, maker
        self.columns = True  # whether `log_points` may be tried; a server that keeps recorded ids is one of the kit's

    def ask(self, method: str, path: str, data: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """One call of MLflow's interface, and its answer."""
        if method == "GET":
            answer = self.http.call(method, f"{API}/{path}", params=data or {})
        else:
            answer = self.http.call(method, f"{API}/{path}", json=data or {}, **more)
        return parsing.data(answer, self.http.base)

    def _pages(self, path: str, data: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
        token = ""
        while True:
            found = self.ask("POST", path, {**data, **({"page_token": token} if token else {})})
            yield from found.get(name, ())
            token = found.get("next_page_token", "")
            if not token:
                return

    # experiments

    def experiments(self) -> dict[str, RemoteExperiment]:
        """All experiments by name, deleted ones too."""
        pages = self._pages("experiments/search", {"max_results": PAGE, "view_type": "ALL"}, "experiments")
        return {one["name"]: as_experiment(one) for one in pages}

    def create_experiment(self, name: str, store: str, tags: Mapping[str, str]) -> RemoteExperiment:
        """Makes an experiment of a recording, or finds the one that somebody else has just made."""
        ours = {**tags, **self.name_tags(store)}
        try:
            made = self.ask("POST", "experiments/create", {"name": name, "tags": pairs(ours)})
            return RemoteExperiment(str(made["experiment_id"]), tags=ours)
        except ApiError as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = self.ask("GET", "experiments/get-by-name", {"experiment_name": name})
        return as_experiment(found["experiment"])

    def set_experiment_tag(self, experiment_id: str, key: str, value: str) -> None:
        """Sets a tag of an experiment."""
        self.ask("POST", "experiments/set-experiment-tag", {"experiment_id": experiment_id, "key": key, "value": value})

    def refuses_writing(self, experiment_id: str | None) -> str:
        """Why the account may not write to an experiment, or make one (None); empty where it may.

        Asks for something that the server can't carry out, as the name is missing: it looks at the permission first.
        """
        path = "experiments/update" if experiment_id else "experiments/create"
        return self._refuses(path, {"experiment_id": experiment_id} if experiment_id else {})

    def refuses_registering(self, name: str | None) -> str:
        """Why the account may not add to a registered model, or make one (None); empty where it may.  As above."""
        path = "model-versions/create" if name else "registered-models/create"
        return self._refuses(path, {"name": name} if name else {})

    def _refuses(self, path: str, data: Mapping[str, str]) -> str:
        try:
            self.ask("POST", path, data)
        except ApiError as error:
            return str(error) if error.status == requests.codes.forbidden else ""
        except ServerError:
            raise
        except LabtrackError as error:  # a 403 that is not MLflow's own
            return " ".join(str(error).split())
        return ""

    # runs

    def search(self, experiment_ids: Sequence[str], where: str) -> Iterator[RemoteRun]:
        """Runs by MLflow's filter, deleted ones too."""
        if not experiment_ids:
            return
        data = {
            "experiment_ids": list(experiment_ids), "filter": where, "run_view_type": "ALL", "max_results": PAGE,
        }  # fmt: skip
        for run in self._pages("runs/search", data, "runs"):
            yield as_run(run)

    def get_run(self, run_id: str) -> RemoteRun | None:
        """One run, or None."""
        try:
            return as_run(self.ask("GET", "runs/get", {"run_id": run_id})["run"])
        except ApiError as error:
            if error.code in (MISSING, "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def copies(self, experiment_ids: Sequence[str], store: str, run_id: str) -> list[RemoteRun]:
        """The copies of one recorded run, the one to go on with first."""
        where = f"{has_tag(names.SOURCE_RUN, run_id)} AND {has_tag(names.SOURCE_STORE, store)}"
        return sorted(self.search(experiment_ids, where), key=lambda run: run.rank)

    def create_run(self, experiment_id: str, store: str, run: Run, name: str) -> RemoteRun:
        """Makes the copy of a recorded run, once: after a lost answer it is looked for before trying again."""
        data: dict[str, Any] = {
            "experiment_id": experiment_id,
            "user_id": run.user_id,
            "run_name": name,
            "tags": pairs(self.identity(store, run.id)),
        }
        if run.start_time is not None:
            data["start_time"] = run.start_time
        for tried in range(TRIES):
            try:
                return as_run(self.ask("POST", "runs/create", data, once=True)["run"])
            except UnclearError as error:
                said = error
            # what was sent may still be on its way
            self.http.stop.wait(0.1 * 2**tried)
            found = self.copies([experiment_id], store, run.id)
            if found:
                return found[0]
        raise ServerError(
            f"{self.http.base} lost {TRIES} answers in a row while run {run.id} was being made: {said}.",
            LATER,
        )

    def identity(self, store: str, run_id: str) -> dict[str, str]:
        """The tags that say which recorded run a copy is of."""
        return {names.SOURCE_RUN: run_id, names.SOURCE_STORE: store, names.CREATED: self._created()}

    def name_tags(self, store: str) -> dict[str, str]:
        """The tags that say which recording has made a registered model or an experiment."""
        return {names.SOURCE_STORE: store, names.CREATED: self._created()}

    def version_tags(self, number: str, store: str) -> dict[str, str]:
        """The tags that say which recorded version of a registered model one at the server is of."""
        return {names.SOURCE_VERSION: number, **self.name_tags(store)}

    def _created(self) -> str:
        return f"{time.time_ns() // 10**6}-{self.maker}"

    def log_batch(
        self,
        run_id: str,
        points: Iterable[Mapping[str, Any]] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """One batch, within MLflow's limits.  Sending the same again changes nothing."""
        # the id last: MLflow drops what stands behind a value that it can't read, and still answers 200
        data = {"metrics": list(points), "params": pairs(params or {}), "tags": pairs(tags or {}), "run_id": run_id}
        self._posted(f"{API}/runs/log-batch", json.dumps(data, separators=(",", ":")).encode())

    def log_points(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Points of a run, as many as COLUMNS.  Sending the same again changes nothing.

        In one call of the kit's server (its `points.py` says how), or by batches where that does not offer it.
        """
        if self.columns:
            keys = {key: number for number, key in enumerate(dict.fromkeys(one.key for one in points))}
            _, values, times, steps, _ = zip(*points)
            data = {
                "run_id": run_id, "keys": list(keys), "key": [keys[one.key] for one in points],
                "value": values if all(map(math.isfinite, values)) else [_value(one) for one in values],
                "timestamp": times, "step": steps,
            }  # fmt: skip
            body = gzip.compress(json.dumps(data, separators=(",", ":")).encode(), 1)
            try:
                self._posted(f"{COLUMNS_API}/log-points", body, {"Content-Encoding": "gzip"})
            except ApiError as error:
                # an older one of the kit's does not know the route, and forbids what it does not know
                if error.status not in (403, 404) or error.code == MISSING:
                    raise
                self.columns = False
            else:
                return
        for first in range(0, len(points), BATCH):
            self.log_batch(run_id, [point(one) for one in points[first : first + BATCH]])

    def _posted(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        given = {"Content-Type": "application/json", **(headers or {})}
        parsing.data(self.http.call("POST", path, data=body, headers=given), self.http.base)

    def update_run(self, run_id: str, status: str, end_time: int | None) -> None:
        """Sets status and end."""
        data: dict[str, Any] = {"run_id": run_id, "status": status}
        if end_time is not None:
            data["end_time"] = end_time
        self.ask("POST", "runs/update", data)

    def delete_run(self, run_id: str) -> None:
        """Marks a run as deleted; it can be restored."""
        self.ask("POST", "runs/delete", {"run_id": run_id})

    def restore_run(self, run_id: str) -> None:
        """Takes the mark away."""
        self.ask("POST", "runs/restore", {"run_id": run_id})

    def delete_tag(self, run_id: str, key: str) -> None:
        """Takes a tag away; fine when there is none."""
        try:
            self.ask("POST", "runs/delete-tag", {"run_id": run_id, "key": key})
        except ApiError as error:
            if error.code != MISSING:
                raise

    def log_inputs(self, run_id: str, datasets: Sequence[DatasetInput], models: Iterable[str] = ()) -> None:
        """Links datasets and logged models that the run read.  Sending the same again changes nothing."""
        data = {
            "run_id": run_id,
            "datasets": [_dataset(one) for one in datasets],
            "models": [{"model_id": model} for model in models],
        }
        self.ask("POST", "runs/log-inputs", data)

    def log_outputs(self, run_id: str, models: Sequence[ModelLink]) -> None:
        """Links logged models that the run made.  Not to be sent twice."""
        left, said = list(models), ""
        for tried in range(TRIES):
            data = [{"model_id": one.model_id, "step": one.step or 0} for one in left]
            try:
                self.ask("POST", "runs/outputs", {"run_id": run_id, "models": data}, once=True)
                return
            except (UnclearError, ApiError) as error:  # a refusal may be the answer to a call that came late
                said = str(error)
            self.http.stop.wait(0.1 * 2**tried)
            found = self.get_run(run_id)
            left = [one for one in left if found is None or one.model_id not in found.model_outputs]
            if not left:
                return
        raise LabtrackError(f"{self.http.base} does not link run {run_id} to its models: {said}.", LATER)

    def history(self, run_id: str, key: str) -> Iterator[MetricPoint]:
        """All points of a metric, sorted by time, step and value."""
        token = ""
        while True:
            asked: dict[str, Any] = {"run_id": run_id, "metric_key": key, "max_results": HISTORY_PAGE}
            found = self.ask("GET", "metrics/get-history", {**asked, **({"page_token": token} if token else {})})
            for one in found.get("metrics", ()):
                yield parsing.point(one)
            token = found.get("next_page_token", "")
            if not token:
                return

    def has_points(self, run_id: str, key: str, count: int) -> bool:
        """Whether the server has exactly so many points of a metric.  To write them all out is a fifth of its work.

        The page after `count - 1` points has to be the last one, with one point in it.  A token of MLflow is the number
        of points before its page (mlflow.utils.search_utils.SearchUtils.create_page_token); a server whose first token
        is another one is asked for all points.
        """
        if count > FEW:
            asked = {"run_id": run_id, "metric_key": key, "max_results": 1}
            first = self.ask("GET", "metrics/get-history", asked)
            if first.get("next_page_token") == _token(1):
                found = self.ask("GET", "metrics/get-history", {**asked, "page_token": _token(count - 1)})
                return len(found.get("metrics", ())) == 1 and not found.get("next_page_token")
        return sum(1 for _ in self.history(run_id, key)) == count

    # logged models

    def models(self, experiment_ids: Sequence[str], where: str) -> list[RemoteModel]:
        """Copies of recorded models by MLflow's filter: of each first the one to go on with, ready or the oldest."""
        data = {
            "experiment_ids": list(experiment_ids),
            "filter": where,
            "max_results": 50,
            "order_by": [{"field_name": "creation_timestamp", "ascending": True}],
        }
        found = [as_model(one) for one in self._pages("logged-models/search", data, "models")]
        return sorted(found, key=lambda one: not one.is_whole)

    def create_model(self, experiment_id: str, store: str, model: LoggedModel, run_id: str | None) -> RemoteModel:
        """Makes the copy of a logged model, once."""
        ours = {names.SOURCE_MODEL: model.id, names.SOURCE_STORE: store, names.CREATED: self._created()}
        data = {
            "experiment_id": experiment_id,
            "name": model.name,
            "model_type": model.model_type,
            "params": pairs(model.params),
            "tags": pairs({**model.tags, **ours}),
            **({"source_run_id": run_id} if run_id else {}),
        }
        for tried in range(TRIES):
            try:
                return as_model(self.ask("POST", "logged-models", data, once=True)["model"])
            except UnclearError as error:
                said = error
            self.http.stop.wait(0.1 * 2**tried)
            for found in self.models([experiment_id], has_tag(names.SOURCE_MODEL, model.id)):
                return found
        raise ServerError(
            f"{self.http.base} lost {TRIES} answers in a row while model {model.id} was being made: {said}.",
            LATER,
        )

    def get_model(self, model_id: str) -> dict[str, Any] | None:
        """All that the server tells of a logged model, or None."""
        try:
            return dict(self.ask("GET", f"logged-models/{model_id}")["model"])
        except ApiError as error:
            if error.code == MISSING:
                return None
            raise

    def set_model_tags(self, model_id: str, tags: Mapping[str, str]) -> None:
        """Sets tags of a logged model."""
        self.ask("PATCH", f"logged-models/{model_id}/tags", {"model_id": model_id, "tags": pairs(tags)})

    def delete_model(self, model_id: str) -> None:
        """Marks a logged model as deleted."""
        self.ask("DELETE", f"logged-models/{model_id}")

    def finalize_model(self, model_id: str, status: str) -> None:
        """Says that a model's files are all there, or that its upload failed."""
        self.ask("PATCH", f"logged-models/{model_id}", {"model_id": model_id, "status": _MODEL_STATUS[status]})


def point(one: MetricPoint, key: str = "", **more: str) -> dict[str, Any]:
    """A metric point as the server takes it."""
    return {"key": key or one.key, "value": _value(one.value), "timestamp": one.timestamp, "step": one.step, **more}


def _value(value: float) -> Any:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags, params as the interface has them."""
    return [{"key": key, "value": value} for key, value in values.items()]


def has_tag(key: str, value: str) -> str:
    """MLflow's filter for a tag."""
    return f"tags.`{key}` = {parsing.quoted(value)}"


def _token(before: int) -> str:
    return base64.b64encode(json.dumps({"offset": before}).encode()).decode()


def _dataset(one: DatasetInput) -> dict[str, Any]:
    facts: dict[str, str] = {
        "name": one.name, "digest": one.digest, "source_type": one.source_type, "source": one.source,
    }  # fmt: skip
    if one.schema is not None:
        facts["schema"] = one.schema
    if one.profile is not None:
        facts["profile"] = one.profile
    return {"dataset": facts, "tags": pairs(one.tags)}
