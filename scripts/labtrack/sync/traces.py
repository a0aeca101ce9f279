"""Sending traces (MLflow >= 2.14) with their spans, tags and assessments.

A trace keeps its id, which its maker chose: so the same trace is there once, however often it is sent.  First
comes what is known of it, then its spans, and last a tag that says that all is there.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import requests

from labtrack.errors import LabtrackError
from labtrack.stores.model import Store, Trace
from labtrack.stores.sqlitetraces import moment
from labtrack.stores.tracefiles import DATA, LOCATION
from labtrack.sync import limits, state
from labtrack.sync.artifacts import target
from labtrack.tracking import names
from labtrack.tracking.http import ApiError, Http, ServerError, Stopped

_TRACES = "/api/3.0/mlflow/traces"
_TAGS = "/api/2.0/mlflow/traces"
_PAGE = 500
_RUN, _MODEL, _EVALUATION = "mlflow.sourceRun", "mlflow.modelId", "mlflow.assessment.sourceRunId"
# what the server says of where it keeps a trace; the recording's is another place
_PLACES = (LOCATION, "mlflow.trace.spansLocation", "mlflow.trace.infoFinalized", names.STATE)
_NO_SUCH_CALL = (requests.codes.not_found, requests.codes.method_not_allowed)

Resolve = Callable[[str], "str | None"]


@dataclass
class SentTraces:
    """What became of the traces of an experiment.

    sent, there: how many were sent now, and were there already.  failed: a trace's id to why it is not all there.
    unsupported: how many the server can't take, because its MLflow is older than 3.0.
    """

    sent: int = 0
    there: int = 0
    unsupported: int = 0
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TraceSender:
    """Sends traces.  resolve: a recorded run's id to the server's.  model: the same for a logged model."""

    store: Store
    http: Http
    env: Mapping[str, str]
    resolve: Resolve
    model: Resolve

    def send(
        self, recorded: str, where: Callable[[], str], wanted: Callable[[Trace], bool] = lambda _: True
    ) -> SentTraces:
        """Sends the traces of one experiment.

        recorded: the experiment's id in the recording.  where: gives its id at the server; only asked where there is
        a trace to send.  Raises what `where` raises, and ApiError where the server refuses to list its traces.
        """
        found = SentTraces()
        experiment_id, there = "", None
        for trace in self.store.traces(recorded):
            if not wanted(trace):
                continue
            if there is None:
                experiment_id = where()
                try:
                    there = dict(self.there(experiment_id))
                except ApiError as error:
                    if error.status not in _NO_SUCH_CALL:
                        raise
                    found.unsupported = sum(1 for one in self.store.traces(recorded) if wanted(one))
                    return found
            self._try(trace, experiment_id, there.get(trace.id), found)
        return found

    def _try(self, trace: Trace, experiment_id: str, there: str | None, found: SentTraces) -> None:
        try:
            if there is None:  # an earlier sync may have put it into another experiment, where it stays
                experiment_id, there = self._elsewhere(trace.id) or (experiment_id, None)
            if there == self._fingerprint(trace):
                found.there += 1
                return
            self._send(trace, experiment_id)
        except (ServerError, Stopped):
            raise
        except (ApiError, LabtrackError, OSError) as error:
            found.failed[trace.id] = " ".join(str(error).split())
        else:
            found.sent += 1

    def _elsewhere(self, trace_id: str) -> tuple[str, str] | None:
        """The experiment that a trace is in at the server, and what was sent of it."""
        answer = self.http.call("GET", f"{_TRACES}/{trace_id}", missing_ok=True)
        if answer.status_code == requests.codes.not_found:
            return None
        info = answer.json()["trace"]["trace_info"]
        place = info.get("trace_location", {}).get("mlflow_experiment", {})
        return str(place.get("experiment_id", "")), info.get("tags", {}).get(names.STATE, "")

    def there(self, experiment_id: str) -> Iterator[tuple[str, str]]:
        """The traces of an experiment at the server: their ids, and what was sent of each."""
        place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment_id}}
        token = ""
        while True:
            more = {"page_token": token} if token else {}
            asked = {"locations": [place], "max_results": _PAGE, **more}
            answer = self.http.call("POST", f"{_TRACES}/search", json=asked).json()
            for one in answer.get("traces", ()):
                yield one["trace_id"], one.get("tags", {}).get(names.STATE, "")
            token = answer.get("next_page_token", "")
            if not token:
                return

    def _send(self, trace: Trace, experiment_id: str) -> None:
        made = self.http.call("POST", _TRACES, json={"trace": {"trace_info": self._info(trace, experiment_id)}}).json()
        data = self.store.spans(trace)
        if data is None:
            raise LabtrackError("its spans can't be read; what else is known of it is sent")
        place = made["trace"]["trace_info"].get("tags", {}).get(LOCATION, "")
        target(self.http, self.env, place).put(DATA, len(data), lambda: io.BytesIO(data), lambda _: None)
        tag = {"key": names.STATE, "value": self._fingerprint(trace)}
        self.http.call("PATCH", f"{_TAGS}/{trace.id}/tags", json=tag)

    def _info(self, trace: Trace, experiment_id: str) -> dict[str, Any]:
        """As MLflow's interface takes it."""
        metadata = dict(trace.metadata)
        for key, resolve in ((_RUN, self.resolve), (_MODEL, self.model)):
            if key in metadata:
                metadata[key] = resolve(metadata[key]) or metadata[key]
        info = {
            "trace_id": trace.id,
            "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment_id}},
            "request_time": moment(trace.timestamp or 0),
            "execution_duration": f"{(trace.duration or 0) / 1000:.3f}s",
            "state": trace.state,
            "client_request_id": trace.client_request_id,
            "request_preview": _fitted(trace.request_preview),
            "response_preview": _fitted(trace.response_preview),
            "tags": {key: _fitted(value) for key, value in trace.tags.items() if key not in _PLACES},
            "trace_metadata": {key: _fitted(value) for key, value in metadata.items() if key not in _PLACES},
            "assessments": [self._assessment(one) for one in trace.assessments],
        }
        return {key: value for key, value in info.items() if value not in ("", None, [])}

    def _assessment(self, one: Mapping[str, Any]) -> dict[str, Any]:
        about = dict(one.get("metadata") or {})
        if _EVALUATION in about:
            about[_EVALUATION] = self.resolve(about[_EVALUATION]) or about[_EVALUATION]
        return {**one, **({"metadata": about} if about else {})}

    def _fingerprint(self, trace: Trace) -> str:
        """The tag that says that all of a trace as it is now is there."""
        facts = (trace.state, trace.duration, sorted(trace.tags.items()), sorted(trace.metadata.items()))
        said = json.dumps([facts, list(trace.assessments)], sort_keys=True, default=str)
        return f"{state.COMPLETE} {limits.hash_of(said)}"


def _fitted(text: str) -> str:
    """Recorders keep to MLflow's limits; where one has not, the server's refusal is told."""
    return limits.fit_text(text, len(text))
