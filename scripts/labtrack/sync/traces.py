"""Traces (MLflow >= 2.14): they belong to an experiment, keep their ids, and are sent where the server takes them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

import requests

from labtrack.stores.model import Store, Trace
from labtrack.sync.faults import FAULTS, words
from labtrack.sync.plan import Plan
from labtrack.sync.push import Context
from labtrack.sync.report import Report
from labtrack.tracking import names
from labtrack.tracking.destination import Destination, has_tag
from labtrack.tracking.http import ApiError, Http, ServerError

_API = "/api/3.0/mlflow/traces"
_PAGE = 500
_SPANS = "traces.json"  # what MLflow reads a trace's spans from
_PLACE = "mlflow.artifactLocation"
_RUN = "mlflow.sourceRun"
# facts of the recording's store
_KEPT_ELSEWHERE = (_PLACE, "mlflow.trace.spansLocation", "mlflow.trace.archiveLocation")


def send(context: Context, plan: Plan, report: Report, experiment: str | None) -> None:
    """Sends the recording's traces that are not at the server; what can't be sent is named.

    experiment: where they are to go, None for the experiment of the same name.
    """
    for recorded, name, reader in _experiments(context, plan, experiment):
        counts = {"sent": 0, "there": 0, "damaged": 0, "failed": 0}
        there: dict[str, Mapping[str, str]] | None = None
        for trace in reader.traces(recorded):
            try:
                number = context.experiments.id_of(name)
                if there is None:
                    there = _there(context.destination, number, context.source.identity)
                counts[_send_one(context, trace, reader, number, there.get(trace.id, {}))] += 1
            except ServerError:
                raise
            except FAULTS as error:
                counts["failed"] += 1
                # what holds for one holds for all: no experiment, or a server without traces
                about = f"traces of experiment {name}" if there is None else f"trace {trace.id}"
                report.failed.setdefault(about, []).append(_why(error))
                if there is None:
                    break
        if any(counts.values()):
            before = report.traces.get(name, {})
            report.traces[name] = {what: count + before.get(what, 0) for what, count in counts.items()}


def plan_traces(context: Context, plan: Plan, report: Report, experiment: str | None) -> Iterator[str]:
    """The names of the experiments that traces would be sent to; how many is in the report."""
    for recorded, name, reader in _experiments(context, plan, experiment):
        there: dict[str, Mapping[str, str]] | None = None
        new = known = 0
        for trace in reader.traces(recorded):
            if there is None:
                place = plan.experiments.get(name)
                there = _there(context.destination, place.id, context.source.identity) if place else {}
            known += 1
            new += there.get(trace.id, {}).get(names.STATE) != _digest(trace, _linked(context, trace))
        if known:
            report.traces[name] = {"sent": 0, "there": known - new, "damaged": 0, "failed": 0}
        if new:
            report.notes.append(f"{new} traces would be sent to experiment {name}")
            yield name


def verify(context: Context, plan: Plan, report: Report, experiment: str | None) -> None:
    """Compares the recording's traces, and their spans, with the server's."""
    for recorded, name, reader in _experiments(context, plan, experiment):
        there: dict[str, Mapping[str, str]] | None = None
        for trace in reader.traces(recorded):
            if there is None:
                known = plan.experiments.get(name)
                there = _there(context.destination, known.id, context.source.identity) if known else {}
            tags = there.get(trace.id) or (_elsewhere(context.destination.http, trace.id) or ("", None))[1]
            found = list(_differences(context, trace, reader, tags))
            if found:
                report.differences[f"trace {trace.id}"] = found


def _experiments(context: Context, plan: Plan, experiment: str | None) -> Iterator[tuple[str, str, Store]]:
    for recorded, fitted in plan.wanted.items():
        yield recorded, experiment or fitted.name, context.source.store


def _send_one(context: Context, trace: Trace, reader: Store, number: str, there: Mapping[str, str]) -> str:
    if not there:  # an earlier sync may have put it into another experiment, where it stays
        number, there = _elsewhere(context.destination.http, trace.id) or (number, there)
    digest = _digest(trace, linked := _linked(context, trace))
    if there.get(names.STATE) == digest and not context.repair:
        return "there"
    http = context.destination.http
    info = _info(context, trace, number)
    tags = _update(http, info, there) if there else {}
    if not tags:
        made = http.call("POST", _API, json={"trace": {"trace_info": info}}).json()
        tags = made["trace"]["trace_info"]["tags"]
    spans = reader.spans(trace)
    if spans is None:  # the reader tells; without the tag it is looked for again by the next sync
        return "damaged"
    context.files.put(context.files.place(tags[_PLACE]), _SPANS, len(spans), lambda: io.BytesIO(spans))
    for run_id in linked.values():  # the same again changes nothing
        context.destination.ask("POST", "traces/link-to-run", {"trace_ids": [trace.id], "run_id": run_id})
    http.call("PATCH", f"{_API}/{trace.id}/tags", json={"trace_id": trace.id, "key": names.STATE, "value": digest})
    return "sent"


def _update(http: Http, info: dict[str, Any], there: Mapping[str, str]) -> Mapping[str, str]:
    """Adds tags and assessments that a trace at the server has not; MLflow gives each assessment a new id.

    there: its tags.  One that has ended since can't be told so: it is deleted, for the caller to make it anew with
    the assessments of both sides.  Gives its tags, empty where it is to be made.
    """

    def known(one: Mapping[str, Any]) -> str:
        said = {kind: one[kind].get("value", one[kind]) for kind in ("feedback", "expectation") if kind in one}
        return json.dumps([one.get("assessment_name"), one.get("source"), said], sort_keys=True)

    trace_id, recorded = info["trace_id"], info.get("assessments", [])
    found = http.call("GET", f"{_API}/{trace_id}").json()["trace"]["trace_info"]
    theirs = {known(one): one for one in found.get("assessments", ())}
    if found.get("state") == "IN_PROGRESS" != info["state"]:
        ours = {known(one) for one in recorded}
        info["assessments"] = [*recorded, *(one for said, one in theirs.items() if said not in ours)]
        number = info["trace_location"]["mlflow_experiment"]["experiment_id"]
        http.call("POST", f"{_API}/delete-traces", json={"experiment_id": number, "request_ids": [trace_id]})
        return {}
    for one in [one for one in recorded if known(one) not in theirs]:
        http.call("POST", f"{_API}/{trace_id}/assessments", json={"assessment": one}, once=True)
    for key, value in info["tags"].items():
        if there.get(key) != value:
            http.call("PATCH", f"{_API}/{trace_id}/tags", json={"trace_id": trace_id, "key": key, "value": value})
    return there


def _info(context: Context, trace: Trace, number: str) -> dict[str, Any]:
    """A trace as MLflow's interface takes it, with the server's ids of experiment and run."""
    tags = {key: value for key, value in trace.tags.items() if key not in (*_KEPT_ELSEWHERE, *names.OWN)}
    tags.update({names.SOURCE_STORE: context.source.identity, "mlflow.trace.spansLocation": "ARTIFACT_REPO"})
    metadata = dict(trace.metadata)
    if metadata.get(_RUN):
        metadata[_RUN] = context.resolve(metadata[_RUN]) or metadata[_RUN]
    found: dict[str, Any] = {
        "trace_id": trace.id,
        "client_request_id": trace.client_request_id,
        "trace_location": {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": number}},
        "request_preview": trace.request_preview,
        "response_preview": trace.response_preview,
        "request_time": _moment(trace.timestamp or 0),
        "state": trace.state,
        "trace_metadata": metadata,
        "tags": tags,
        "assessments": [dict(one) for one in trace.assessments],
    }
    if trace.duration is not None:
        found["execution_duration"] = f"{trace.duration / 1000:.3f}s"
    return {key: value for key, value in found.items() if value not in ("", None)}


def _there(destination: Destination, number: str, store: str) -> dict[str, Mapping[str, str]]:
    """The tags of the traces that a sync of this recording has sent, by their ids."""
    found: dict[str, Mapping[str, str]] = {}
    asked = {
        "locations": [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": number}}],
        "filter": has_tag(names.SOURCE_STORE, store),
        "max_results": _PAGE,
    }
    token = ""
    while True:
        page = destination.http.call(
            "POST", f"{_API}/search", json={**asked, **({"page_token": token} if token else {})}
        ).json()
        found.update({one["trace_id"]: one.get("tags", {}) for one in page.get("traces", ())})
        token = page.get("next_page_token", "")
        if not token:
            return found


def _elsewhere(http: Http, trace_id: str) -> tuple[str, Mapping[str, str]] | None:
    """The experiment that a trace is in at the server, and its tags; None where there is none that may be read."""
    answer = http.call("GET", f"{_API}/{trace_id}", missing_ok=True)
    if answer.status_code == requests.codes.not_found:
        return None
    info = answer.json()["trace"]["trace_info"]
    place = info.get("trace_location", {}).get("mlflow_experiment", {})
    return str(place.get("experiment_id", "")), info.get("tags", {})


def _differences(context: Context, trace: Trace, reader: Store, there: Mapping[str, str] | None) -> Iterator[str]:
    if there is None:
        yield "is not at the server"
        return
    try:
        spans = reader.spans(trace)
        if spans is None:
            return  # damage of the recording, which the reader tells
        if there.get(names.STATE) != _digest(trace, _linked(context, trace)):
            yield "is not as it was recorded"
        if context.files.place(there[_PLACE]).digest(_SPANS) != hashlib.sha256(spans).hexdigest():
            yield "has other spans at the server"
    except ServerError:
        raise
    except FAULTS as error:
        yield f"its spans can't be compared: {words(error)}"


def _linked(context: Context, trace: Trace) -> dict[str, str]:
    """The runs that a trace was linked to later: recorded id to the server's, of those that are there."""
    found = {one: context.resolve(one) for one in trace.linked if one != trace.run_id}
    return {one: new for one, new in found.items() if new}


def _digest(trace: Trace, linked: Iterable[str]) -> str:
    recorded = dataclasses.asdict(trace)
    if not (links := sorted(linked)):
        recorded.pop("linked")
    facts = json.dumps({**recorded, **({"linked": links} if links else {})}, sort_keys=True, default=str)
    return hashlib.sha256(facts.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _moment(milliseconds: int) -> str:
    """A time as the interface has it."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}.{rest:03d}Z"


def _why(error: BaseException) -> str:
    gone = isinstance(error, ApiError) and error.status in (requests.codes.not_found, requests.codes.not_allowed)
    return (
        "can't be sent: the server's MLflow is older than 3.0.  To fix: have the lab's admin upgrade it"
        if gone
        else f"can't be sent: {words(error)}"
    )
