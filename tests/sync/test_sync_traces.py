"""Traces reach the server with their spans, tags and assessments, once."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import requests
from sync_proxy import HostileProxy
from sync_recording import T0, Recording
from sync_server import TrackingServer, tag

from labtrack.sync import Report

Send = Callable[..., Report]


def trace(recording: Recording, trace_id: str, run_id: str = "") -> None:
    recording.insert(
        "trace_info", request_id=trace_id, experiment_id=1, timestamp_ms=T0, execution_time_ms=1500, status="OK",
        request_preview="what?", response_preview="that",
    )  # fmt: skip
    for key, value in (("mlflow.traceName", "ask"), ("kind", "test"), ("mlflow.trace.spansLocation", "TRACKING_STORE")):
        recording.insert("trace_tags", request_id=trace_id, key=key, value=value)
    if run_id:
        recording.insert("trace_request_metadata", request_id=trace_id, key="mlflow.sourceRun", value=run_id)
    content = {
        "trace_id": "AAAAAAAAAAAAAAAAAAAAAQ==", "span_id": "AAAAAAAAAAE=", "parent_span_id": None, "name": "ask",
        "start_time_unix_nano": T0 * 10**6, "end_time_unix_nano": (T0 + 1500) * 10**6, "events": [],
        "status": {"code": "STATUS_CODE_OK", "message": ""},
        "attributes": {"mlflow.traceRequestId": json.dumps(trace_id), "mlflow.spanInputs": '"what?"'},
    }  # fmt: skip
    recording.insert(
        "spans", trace_id=trace_id, experiment_id=1, span_id="0000000000000001", name="ask", type="UNKNOWN",
        status="OK", start_time_unix_nano=T0 * 10**6, end_time_unix_nano=(T0 + 1500) * 10**6,
        content=json.dumps(content),
    )  # fmt: skip
    recording.insert(
        "assessments", assessment_id=f"a-{trace_id[-30:]}", trace_id=trace_id, name="good", assessment_type="feedback",
        value="true", created_timestamp=T0, last_updated_timestamp=T0, source_type="HUMAN", source_id="ada", valid=1,
    )  # fmt: skip


def found(server: TrackingServer, trace_id: str) -> dict[str, Any]:
    answer = requests.get(f"{server.url}/api/3.0/mlflow/traces/{trace_id}", timeout=30)
    assert answer.ok, answer.text
    return dict(answer.json()["trace"]["trace_info"])


def test_traces_arrive_with_all_that_belongs_to_them(recording: Recording, server: TrackingServer, send: Send) -> None:
    run_id = recording.run()
    one, other = f"tr-{run_id}", f"tr-{run_id[::-1]}"
    trace(recording, one, run_id)
    trace(recording, other)
    report = send(verify=True)
    assert report.exit_code == 0 and report.differences == {}, report
    assert report.traces == {recording.name: {"sent": 2, "there": 0, "damaged": 0, "failed": 0}}
    (run,) = server.runs(recording.name)
    info = found(server, one)
    assert info["trace_metadata"]["mlflow.sourceRun"] == run["info"]["run_id"]
    assert (info["tags"]["kind"], info["tags"]["mlflow.traceName"]) == ("test", "ask")
    assert (info["request_preview"], info["state"], info["execution_duration"]) == ("what?", "OK", "1.500s")
    assert info["assessments"][0]["assessment_name"] == "good" and info["assessments"][0]["feedback"]["value"] is True
    spans = json.loads(server.files(info["tags"]["mlflow.artifactLocation"])["traces.json"])["spans"]
    assert [span["name"] for span in spans] == ["ask"]
    report = send(verify=True)
    assert (
        report.traces == {recording.name: {"sent": 0, "there": 2, "damaged": 0, "failed": 0}}
        and report.differences == {}
    )
    assert tag(run, "labtrack.sync_state")


def test_one_trace_that_is_refused(recording: Recording, server: TrackingServer, send: Send) -> None:
    run_id = recording.run()
    bad, good = f"tr-{run_id}", f"tr-{run_id[::-1]}"
    for one in (bad, good):
        trace(recording, one)
    with HostileProxy(server.url, lambda *_: "") as proxy:
        proxy.choose_path = lambda path: "400" if path.endswith(f"{bad}/tags") else ""
        report = send(to=proxy.url)
    assert report.exit_code == 1 and list(report.failed) == [f"trace {bad}"]
    assert report.traces == {recording.name: {"sent": 1, "there": 0, "damaged": 0, "failed": 1}}
    report = send(verify=True)
    assert report.exit_code == 0 and report.traces == {
        recording.name: {"sent": 1, "there": 1, "damaged": 0, "failed": 0}
    }


def test_spans_that_are_gone_are_repaired(recording: Recording, server: TrackingServer, send: Send) -> None:
    one = f"tr-{recording.run()}"
    trace(recording, one)
    send()
    place = found(server, one)["tags"]["mlflow.artifactLocation"].partition(":/")[2].strip("/")
    (server.folder / "artifacts" / place / "traces.json").write_text("{}")
    assert list(send(verify=True).differences) == [f"trace {one}"]
    report = send(repair=True, verify=True)
    assert report.exit_code == 0 and report.differences == {}, report


def test_a_trace_that_ends_later_is_sent_again(recording: Recording, server: TrackingServer, send: Send) -> None:
    one = f"tr-{recording.run()}"
    trace(recording, one)
    recording.sql("UPDATE trace_info SET status = 'IN_PROGRESS' WHERE request_id = ?", one)
    send()
    recording.sql("UPDATE trace_info SET status = 'OK' WHERE request_id = ?", one)
    recording.insert(
        "assessments", assessment_id=f"b-{one[-30:]}", trace_id=one, name="better", assessment_type="feedback",
        value="0.5", created_timestamp=T0, last_updated_timestamp=T0, source_type="HUMAN", source_id="ada", valid=1,
    )  # fmt: skip
    for _ in range(2):
        assert send(verify=True).exit_code == 0
    info = found(server, one)
    assert info["state"] == "OK"
    assert sorted(each["assessment_name"] for each in info["assessments"]) == ["better", "good"]
