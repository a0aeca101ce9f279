"""Somebody else's trace: not moved, not added to, not sent elsewhere, by any route."""

from __future__ import annotations

import base64
import json
import secrets
import time
from typing import Any

import pytest
from api import Api
from conftest import SECRET, Secret, start_trace

ELSEWHERE = "file:///etc"
OTLP = "/v1/traces"


def still_there(ann: Api, secret: Secret) -> bool:
    """Is Ann's trace in her experiment, as she left it?"""
    info = ann.get(f"/api/3.0/mlflow/traces/{secret.trace}").json()["trace"]["trace_info"]
    place = info["trace_location"]["mlflow_experiment"]["experiment_id"]
    return bool(place == secret.experiment and info["tags"]["said"] == SECRET and "stolen" not in info["tags"])


def spans(trace: str, **attributes: str) -> dict[str, Any]:
    """One root span for OTLP's JSON, in a trace of MLflow's."""
    now = time.time_ns()
    given = [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()]
    span = {
        "traceId": trace.removeprefix("tr-"),
        "spanId": secrets.token_hex(8),
        "name": "root",
        "kind": 1,
        "startTimeUnixNano": str(now),
        "endTimeUnixNano": str(now + 1000),
        "attributes": given,
    }
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": [span]}]}]}


def export(api: Api, experiment: str, trace: str, headers: dict[str, str] | None = None, **attributes: str) -> Any:
    """Send a span by OTLP."""
    return api.call(OTLP, spans(trace, **attributes), headers={"x-mlflow-experiment-id": experiment, **(headers or {})})


def test_start_trace_with_the_id_of_another_s_trace_is_refused(ann: Api, eve: Api, secret: Secret) -> None:
    answer = start_trace(eve, eve.new_experiment(), secret.trace, tags={"stolen": "yes"})
    assert (answer.status_code, answer.json()["error_code"]) == (403, "PERMISSION_DENIED")
    assert still_there(ann, secret)
    for path in (f"traces/{secret.trace}", f"traces/get?trace_id={secret.trace}"):
        assert eve.get(f"/api/3.0/mlflow/{path}").status_code == 403


def test_start_trace_of_one_s_own_twice_works_and_keeps_its_experiment(ann: Api) -> None:
    experiment, trace = ann.new_experiment(), f"tr-{secrets.token_hex(16)}"
    assert start_trace(ann, experiment, trace).status_code == 200
    assert start_trace(ann, experiment, trace, tags={"more": "yes"}).status_code == 200
    assert start_trace(ann, ann.new_experiment(), trace).status_code == 403


def test_otlp_spans_for_another_s_trace_are_refused(ann: Api, eve: Api, secret: Secret) -> None:
    answer = export(eve, eve.new_experiment(), secret.trace)
    assert answer.status_code == 403, answer.text
    assert still_there(ann, secret)


def test_otlp_with_login_writes_a_trace_and_without_does_not(ann: Api, nobody: Api, eve: Api) -> None:
    experiment, trace = ann.new_experiment(), f"tr-{secrets.token_hex(16)}"
    assert export(nobody, experiment, trace).status_code == 401
    assert export(eve, experiment, trace).status_code == 403
    answer = export(ann, experiment, trace)
    assert answer.status_code == 200, answer.text
    assert ann.get(f"/api/3.0/mlflow/traces/get?trace_id={trace}&allow_partial=true").status_code == 200


def test_otlp_cannot_link_traces_to_another_s_run(ann: Api, eve: Api, secret: Secret) -> None:
    experiment = eve.new_experiment()
    for run in (secret.run, ann.new_run()):
        answer = export(eve, experiment, f"tr-{secrets.token_hex(16)}", {"x-mlflow-run-id": run})
        assert answer.status_code == 403
    own = export(eve, experiment, f"tr-{secrets.token_hex(16)}", {"x-mlflow-run-id": eve.new_run(experiment)})
    assert own.status_code == 200


@pytest.mark.parametrize(
    "key", ["mlflow.artifactLocation", "mlflow.trace.archiveLocation", "mlflow.trace.spansLocation"]
)
def test_no_route_says_where_a_trace_s_data_are(eve: Api, key: str) -> None:
    experiment, trace = eve.new_experiment(), f"tr-{secrets.token_hex(16)}"
    value = "ARCHIVE_REPO" if key.endswith("spansLocation") else ELSEWHERE
    assert start_trace(eve, experiment, f"tr-{secrets.token_hex(16)}", tags={key: value}).status_code == 400
    assert start_trace(eve, experiment, f"tr-{secrets.token_hex(16)}", trace_metadata={key: value}).status_code == 400
    assert (
        export(eve, experiment, f"tr-{secrets.token_hex(16)}", **{f"mlflow.traceTag.{key}": value}).status_code == 400
    )

    assert start_trace(eve, experiment, trace).status_code == 200
    assert start_trace(eve, experiment, trace, tags={key: value}).status_code == 400
    assert export(eve, experiment, trace, **{f"mlflow.traceTag.{key}": value}).status_code == 400
    body = {"key": key, "value": value}
    for version in ("2.0", "3.0"):
        tags = f"/api/{version}/mlflow/traces/{trace}/tags"
        assert eve.call(tags, body, "PATCH").status_code == 400
        assert eve.call(f"{tags}?key={key}", None, "DELETE").status_code == 400

    pair = [{"key": key, "value": value}]
    started = {"experiment_id": experiment, "timestamp_ms": 1, "request_metadata": [], "tags": pair}
    assert eve.call("traces", started).status_code == 400
    own = eve.done("traces", {**started, "tags": []})["trace_info"]["request_id"]
    ended = {"request_id": own, "timestamp_ms": 2, "status": "OK", "request_metadata": [], "tags": pair}
    assert eve.call(f"traces/{own}", ended, "PATCH").status_code == 400


def test_a_trace_s_own_location_may_be_sent_back(ann: Api) -> None:
    """Clients of MLflow 2 end a trace with all of the tags that its start gave them."""
    experiment = ann.new_experiment()
    started = {"experiment_id": experiment, "timestamp_ms": 1, "request_metadata": [], "tags": []}
    info = ann.done("traces", started)["trace_info"]
    assert [tag["key"] for tag in info["tags"]] == ["mlflow.artifactLocation"]
    ended = {"request_id": info["request_id"], "timestamp_ms": 2, "status": "OK", "tags": info["tags"]}
    assert ann.call(f"traces/{info['request_id']}", ended, "PATCH").status_code == 200


@pytest.mark.parametrize("trace", ["../../1/x", "a/b", "..", "tr-%2e%2e", "a\\b", ""])
def test_an_id_that_would_be_another_folder_is_refused(eve: Api, trace: str) -> None:
    assert start_trace(eve, eve.new_experiment(), trace).status_code == 400


def test_an_assessment_of_another_s_trace_stays(ann: Api, eve: Api, secret: Secret) -> None:
    source = {"source_type": "HUMAN", "source_id": "x"}
    assessment = {"assessment_name": "good", "source": source, "feedback": {"value": True}}
    made = ann.done(f"/api/3.0/mlflow/traces/{secret.trace}/assessments", {"assessment": assessment})["assessment"]
    experiment, trace = eve.new_experiment(), f"tr-{secrets.token_hex(16)}"
    assert start_trace(eve, experiment, trace).status_code == 200
    answer = start_trace(eve, experiment, trace, assessments=[{**assessment, "assessment_id": made["assessment_id"]}])
    assert answer.status_code in (400, 403)
    kept = ann.get(f"/api/3.0/mlflow/traces/{secret.trace}/assessments/{made['assessment_id']}")
    assert kept.json()["assessment"]["trace_id"] == secret.trace


def test_a_denied_trace_is_not_read_deleted_or_tagged(ann: Api, eve: Api, secret: Secret) -> None:
    gone = {"experiment_id": secret.experiment, "request_ids": [secret.trace]}
    assert eve.call("/api/3.0/mlflow/traces/delete-traces", gone).status_code == 403
    # in an experiment of her own there is no such trace to delete
    mine = {"experiment_id": eve.new_experiment(), "request_ids": [secret.trace]}
    answer = eve.call("/api/3.0/mlflow/traces/delete-traces", mine)
    assert answer.status_code != 200 or answer.json().get("traces_deleted", 0) == 0
    assert eve.get(f"/ajax-api/3.0/mlflow/get-trace-artifact?request_id={secret.trace}").status_code == 403
    batch = eve.call("/api/3.0/mlflow/traces/batchGet", {"trace_ids": [secret.trace]})
    assert SECRET not in batch.text
    assert still_there(ann, secret)


def test_otlp_takes_protobuf_and_refuses_a_gzip_bomb(ann: Api) -> None:
    import gzip

    experiment = ann.new_experiment()
    # ResourceSpans{ScopeSpans{Span{trace_id, span_id, name, start, end}}}, by hand
    trace_id, span_id = secrets.token_bytes(16), secrets.token_bytes(8)
    span = b"\x0a\x10" + trace_id + b"\x12\x08" + span_id + b"\x2a\x01r" + b"\x39" + bytes(8) + b"\x41" + bytes(8)
    for _ in range(3):
        span = (b"\x0a" if _ == 2 else b"\x12") + bytes([len(span)]) + span
    headers = {"x-mlflow-experiment-id": experiment, "Content-Type": "application/x-protobuf"}
    sent = ann.session.post(ann.url + OTLP, data=span, headers=headers, timeout=30)
    assert sent.status_code == 200, sent.text
    bomb = gzip.compress(bytes(70 * 2**20))
    bombed = ann.session.post(ann.url + OTLP, data=bomb, headers={**headers, "Content-Encoding": "gzip"}, timeout=30)
    assert bombed.status_code == 400
    assert "more than" in bombed.text


def test_trace_ids_in_base64_are_the_same_trace(ann: Api, eve: Api, secret: Secret) -> None:
    """OTLP's JSON has hex ids; what else decodes to the same bytes must not get around the check."""
    number = secret.trace.removeprefix("tr-")
    document = json.dumps(spans(secret.trace)).replace(number, number.upper())
    headers = {"x-mlflow-experiment-id": eve.new_experiment(), "Content-Type": "application/json"}
    assert eve.session.post(eve.url + OTLP, data=document, headers=headers, timeout=30).status_code == 403
    coded = base64.b64encode(bytes.fromhex(number)).decode()
    again = json.dumps(spans(secret.trace)).replace(number, coded)
    assert eve.session.post(eve.url + OTLP, data=again, headers=headers, timeout=30).status_code in (400, 403)
    assert still_there(ann, secret)
