"""Runs of a tracking server, over REST, in pages of the size that MLflow allows."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import quote, unquote, urlsplit

from labtrack.errors import BadInputError, LabtrackError
from labtrack.stores.model import (
    Artifact,
    Experiment,
    Findings,
    Having,
    LoggedModel,
    MetricPoint,
    ModelPoint,
    ModelVersion,
    Owner,
    Problem,
    RegisteredModel,
    Run,
    Trace,
    identity_of,
)
from labtrack.stores.summary import PARTS, Summaries
from labtrack.stores.summing import of_points
from labtrack.stores.tracefiles import trace
from labtrack.tracking import parsing

if TYPE_CHECKING:
    import requests

_API = "/api/2.0/mlflow"
_API_3 = "/api/3.0/mlflow"
_PROXY = "/api/2.0/mlflow-artifacts/artifacts"
_RUNS, _POINTS, _MODELS, _VERSIONS = 1000, 25_000, 50, 1000  # a page
_TRACES, _LOCATIONS = 500, 100
_NOT_FOUND = 404
_BAD_FILTER = 400
_NO_SUCH_CALL = (404, 405)


class RefusedError(LabtrackError):
    """The server understood and said no.  status: HTTP's.  api_code: MLflow's, as RESOURCE_DOES_NOT_EXIST."""

    def __init__(self, location: str, status: int, api_code: str, said: str) -> None:
        super().__init__(f"{location} refuses: {said}", "`labtrack doctor` looks closer.")
        self.status, self.api_code = status, api_code


class ServerStore:
    """A tracking server, MLflow 1.30 or later.

    The login is that of MLflow's own variables.  Points come in the server's order, by time, so one that is
    logged later with an earlier time is only seen by a reader that begins anew.
    """

    kind = "server"

    def __init__(self, address: str, env: Mapping[str, str] | None = None) -> None:
        """Makes no call yet.  Raises BadInputError for an address that can't be one."""
        # the tracking server's client reads stores' types, so it is imported late
        from labtrack.tracking.address import parse
        from labtrack.tracking.http import Http

        self._http = Http(parse(address, "The source", "{}"), os.environ if env is None else env)
        self.found = Findings()
        self._counts: dict[tuple[str, str], tuple[Any, int]] = {}
        self._with_models: bool | None = None

    @property
    def location(self) -> str:
        return self._http.base

    @property
    def identity(self) -> str:
        return identity_of(self.experiments(deleted=True))

    def experiments(self, *, deleted: bool = False) -> list[Experiment]:
        asked = {"max_results": _RUNS, "view_type": "ALL" if deleted else "ACTIVE_ONLY"}
        found = [parsing.experiment(one) for one in self._pages("experiments/search", asked, "experiments")]
        return sorted(found, key=lambda one: (one.creation_time or 0, len(one.id), one.id))

    def runs(self, experiment_id: str | None = None, *, deleted: bool = False, having: Having = ()) -> Iterator[Run]:
        for run, _ in self.searched(experiment_id, deleted=deleted):
            # a search leaves out the models that a run read and made
            yield self.run(run.id) if self._has_models() else run

    def heads(self, *, deleted: bool = False) -> Iterator[Run]:
        return (run for run, _ in self.searched(deleted=deleted))

    def searched(
        self, experiment_id: str | None = None, *, deleted: bool = False
    ) -> Iterator[tuple[Run, dict[str, MetricPoint]]]:
        """The runs of `runs` without their models, each with the last point of each metric: a call for a thousand."""
        ids = [one.id for one in self.experiments(deleted=deleted) if experiment_id in (None, one.id)]
        if not ids:
            return
        asked = {
            "experiment_ids": ids,
            "run_view_type": "ALL" if deleted else "ACTIVE_ONLY",
            "max_results": _RUNS,
            "order_by": ["attributes.start_time ASC"],
        }
        for one in self._pages("runs/search", asked, "runs"):
            last = map(parsing.point, one.get("data", {}).get("metrics", ()))
            yield parsing.run(one), {point.key: point for point in last}

    def run(self, run_id: str) -> Run:
        try:
            return parsing.run(self._get("runs/get", {"run_id": run_id})["run"])
        except RefusedError as error:
            if error.api_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            hint = "a run's page shows its id; may you read it?"
            raise BadInputError(f"There is no run {run_id} at {self.location}.", hint) from None

    def metric_keys(self, run_id: str) -> dict[str, int]:
        """Counts by reading: MLflow tells no numbers.  What has not changed since is not read again."""
        counts = {}
        for key, point in self.latest(run_id).items():
            mark = point.step, point.timestamp, repr(point.value)
            known = self._counts.get((run_id, key))
            if known is None or known[0] != mark:
                known = self._counts[run_id, key] = (mark, sum(1 for _ in self.history(run_id, key)))
            counts[key] = known[1]
        return counts

    def latest(self, run_id: str) -> dict[str, MetricPoint]:
        """The last point of each metric of a run, by one call."""
        data = self._get("runs/get", {"run_id": run_id})["run"].get("data", {})
        return {one["key"]: parsing.point(one) for one in data.get("metrics", ())}

    def points(
        self, run_id: str, skip: Mapping[str, int] | None = None, keys: Collection[str] | None = None
    ) -> Iterator[MetricPoint]:
        data = self._get("runs/get", {"run_id": run_id})["run"].get("data", {})
        for key in sorted(one["key"] for one in data.get("metrics", ()) if keys is None or one["key"] in keys):
            left = (skip or {}).get(key, 0)
            for point in self.history(run_id, key):
                if left:
                    left -= 1
                else:
                    yield point

    def summaries(
        self, run_ids: Sequence[str], keys: Collection[str] | None = None, parts: Collection[str] = PARTS
    ) -> Summaries:
        return of_points(self, run_ids, keys, parts)

    def history(self, run_id: str, key: str) -> Iterator[MetricPoint]:
        """The points of one metric."""
        asked = {"run_id": run_id, "metric_key": key, "max_results": _POINTS}
        for one in self._pages("metrics/get-history", asked, "metrics", method="GET"):
            yield parsing.point(one)

    def appends(self, run_id: str) -> bool:
        return False  # a server gives points in the order of their times

    def artifacts(self, owner: Owner) -> Iterator[Artifact]:
        run_id = owner.source_run_id if isinstance(owner, LoggedModel) else owner.id
        try:
            yield from self._artifacts(owner)
        except RefusedError as error:
            experiment = None if run_id else owner.experiment_id
            self.found.problem(owner.id, f"its artifacts can't be listed: {error}", run_id, experiment)

    def _artifacts(self, owner: Owner) -> Iterator[Artifact]:
        if isinstance(owner, Run):
            yield from sorted(self._listed("artifacts/list", {"run_id": owner.id}, "path"), key=_by_path)
        elif urlsplit(owner.artifact_location).scheme == "mlflow-artifacts":
            found = (Artifact(*one) for one in parsing.proxied(self._call, _proxy_root(owner)))
            yield from sorted(found, key=_by_path)
        else:
            path = f"logged-models/{owner.id}/artifacts/directories"
            yield from sorted(self._listed(path, {}, "artifact_directory_path"), key=_by_path)

    def _listed(self, path: str, asked: Mapping[str, str], parameter: str) -> Iterator[Artifact]:
        folders = [""]
        while folders:
            folder = folders.pop()
            found = self._get(path, {**asked, **({parameter: folder} if folder else {})})
            for one in found.get("files", ()):
                if one.get("is_dir"):
                    folders.append(one["path"])
                else:
                    yield Artifact(one["path"], int(one.get("file_size") or 0))

    def local_path(self, owner: Owner, path: str) -> Path | None:
        return None

    def open_artifact(self, owner: Owner, path: str) -> BinaryIO:
        recorded = owner.artifact_location if isinstance(owner, LoggedModel) else owner.artifact_uri
        if urlsplit(recorded).scheme == "mlflow-artifacts":
            where, asked = f"{_PROXY}/{quote(posixpath.join(_proxy_root(owner), path))}", {}
        elif isinstance(owner, Run):
            where, asked = "/get-artifact", {"run_id": owner.id, "run_uuid": owner.id, "path": path}
        else:
            where = f"/ajax-api/2.0/mlflow/logged-models/{owner.id}/artifacts/files"
            asked = {"artifact_file_path": path}
        answer = self._call("GET", where, params=asked, stream=True, missing_ok=True)
        if answer.status_code == _NOT_FOUND:
            answer.close()
            raise LabtrackError(f"There is no artifact {path} of {owner.id} at {self.location}.", "was it deleted?")
        answer.raw.decode_content = True
        return cast("BinaryIO", answer.raw)

    def logged_models(self, *, deleted: bool = False) -> Iterator[LoggedModel]:
        for one in self._models(deleted=deleted):
            yield parsing.logged_model(one)

    def _models(self, *, deleted: bool) -> Iterator[dict[str, Any]]:
        ids = [one.id for one in self.experiments(deleted=deleted)]
        try:
            for start in range(0, len(ids), 100):
                asked = {"experiment_ids": ids[start : start + 100], "max_results": _MODELS}
                yield from self._pages("logged-models/search", asked, "models")
        except RefusedError as error:
            if error.status not in _NO_SUCH_CALL:  # MLflow 3.0 brought it
                raise

    def _has_models(self) -> bool:
        if self._with_models is None:
            self._with_models = next(self._models(deleted=True), None) is not None
        return self._with_models

    def model_points(self, model_id: str) -> Iterator[ModelPoint]:
        for one in self._get(f"logged-models/{model_id}", {})["model"].get("data", {}).get("metrics", ()):
            point = parsing.point(one)
            yield ModelPoint(
                point, one.get("run_id", ""), one.get("dataset_name") or None, one.get("dataset_digest") or None
            )

    def registered_models(self) -> list[RegisteredModel]:
        names, found_versions = (self._registry(kind, name) for kind, name in (
            ("registered-models", "registered_models"), ("model-versions", "model_versions"),
        ))  # fmt: skip
        versions: dict[str, list[ModelVersion]] = {}
        aliases = {
            (one["name"], str(alias["version"]), alias["alias"]) for one in names for alias in one.get("aliases", ())
        }
        for one in found_versions:
            found = parsing.version(one, aliases)
            versions.setdefault(found.name, []).append(found)
        return [
            RegisteredModel(
                one["name"], one.get("description", ""), parsing.when(one, "creation_timestamp"),
                parsing.when(one, "last_updated_timestamp"), parsing.plain(one.get("tags", ())),
                tuple(sorted(versions.get(one["name"], ()), key=lambda version: int(version.version))),
            )
            for one in sorted(names, key=lambda one: str(one["name"]))
        ]  # fmt: skip

    def _registry(self, kind: str, name: str) -> list[dict[str, Any]]:
        """Names or versions; those of prompts are only found by who asks for them."""
        found = list(self._pages(f"{kind}/search", {"max_results": _VERSIONS}, name, method="GET"))
        asked = {"max_results": _VERSIONS, "filter": f"tags.`{parsing.PROMPT}` = 'true'"}
        try:
            prompts = list(self._pages(f"{kind}/search", asked, name, method="GET"))
        except RefusedError as error:
            if error.status != _BAD_FILTER:  # MLflow before it had prompts
                raise
            prompts = []
        known = {(one["name"], one.get("version")) for one in found}
        return found + [one for one in prompts if (one["name"], one.get("version")) not in known]

    def traces(self, experiment_id: str | None = None) -> Iterator[Trace]:
        ids = [one.id for one in self.experiments(deleted=True)] if experiment_id is None else [experiment_id]
        for start in range(0, len(ids), _LOCATIONS):
            places = [
                {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": one}}
                for one in ids[start : start + _LOCATIONS]
            ]
            try:
                asked = {"locations": places, "max_results": _TRACES}
                yield from (_trace(one) for one in self._pages("traces/search", asked, "traces", api=_API_3))
            except RefusedError as error:
                if error.status not in _NO_SUCH_CALL:  # MLflow 3.0 brought it
                    raise
                return

    def spans(self, trace: Trace) -> bytes | None:
        asked = {"request_id": trace.id}
        answer = self._call("GET", "/ajax-api/2.0/mlflow/get-trace-artifact", params=asked, missing_ok=True)
        if answer.status_code == _NOT_FOUND:
            self.found.problem(trace.id, "the spans of the trace are not there", None, trace.experiment_id)
            return None
        return cast("bytes", answer.content)

    def unread(self) -> Mapping[str, int]:
        found = {
            "evaluation datasets": self._count("datasets/search", "datasets"),
            "scorers": self._count("scorers/list", "scorers", "GET"),
            "issues": self._count("issues/search", "issues"),
        }
        return {kind: count for kind, count in found.items() if count}

    def _count(self, path: str, name: str, method: str = "POST") -> int:
        try:
            return sum(1 for _ in self._pages(path, {}, name, method=method, api=_API_3))
        except RefusedError as error:
            if error.status not in (*_NO_SUCH_CALL, _BAD_FILTER):  # later versions brought it, or all at once
                raise
            return 0

    def problems(self) -> list[Problem]:
        return self.found.problems()

    def close(self) -> None:
        """Connections end with the object."""

    def __enter__(self) -> ServerStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: str, path: str, **more: Any) -> requests.Response:
        from labtrack.tracking.http import ApiError

        try:
            return self._http.call(method, path, **more)
        except ApiError as error:
            raise RefusedError(self.location, error.status, error.code, str(error)) from None

    def _get(self, path: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        return self._asked("GET", path, asked)

    def _asked(self, method: str, path: str, asked: Mapping[str, Any], api: str = _API) -> dict[str, Any]:
        more: dict[str, Any] = {"params": asked} if method == "GET" else {"json": asked}
        answer = self._call(method, f"{api}/{path}", **more)
        return parsing.data(answer, self.location)

    def _pages(
        self, path: str, asked: Mapping[str, Any], name: str, method: str = "POST", api: str = _API
    ) -> Iterator[dict[str, Any]]:
        token = ""
        while True:
            found = self._asked(method, path, {**asked, **({"page_token": token} if token else {})}, api)
            yield from found.get(name, ())
            token = found.get("next_page_token", "")
            if not token:
                return


def _by_path(artifact: Artifact) -> list[str]:
    return artifact.path.split("/")


def _proxy_root(owner: Owner) -> str:
    recorded = owner.artifact_location if isinstance(owner, LoggedModel) else owner.artifact_uri
    return unquote(urlsplit(recorded).path).strip("/")


def _trace(data: Mapping[str, Any]) -> Trace:
    experiment = data.get("trace_location", {}).get("mlflow_experiment", {}).get("experiment_id", "")
    about = {"tags": data.get("tags", {}), "metadata": data.get("trace_metadata", {})}
    return trace(data, data["trace_id"], str(experiment), **about, assessments=tuple(data.get("assessments", ())))
