"""What the server tells Prometheus about itself: right numbers, few series, no names, and nothing to the outside."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
import requests
from lab_server import ADA, BOB, LabServer

PATH = "/labtrack/metrics"
POINT = {"key": "loss", "value": 0.5, "timestamp": 1, "step": 0}


@pytest.fixture(scope="module", params=["1", "0"], ids=["native", "handlers"])
def server(serve: Callable[..., LabServer], request: pytest.FixtureRequest) -> LabServer:
    return serve(f"figures{request.param}", native=request.param)


def told(server: LabServer, **headers: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.get(server.url + PATH, headers=headers, timeout=60)


def figures(server: LabServer) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in told(server).text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def test_figures_count_runs_points_and_requests(server: LabServer) -> None:
    before = figures(server)
    run_id = server.run(server.experiment("figures"))
    for step in range(5):
        server.post("runs/log-metric", {"run_id": run_id, **POINT, "step": step})
    server.post("runs/log-batch", {"run_id": run_id, "metrics": [{**POINT, "step": step} for step in range(5, 12)]})
    refused = server.send("runs/log-metric", json.dumps({"run_id": run_id, **POINT}).encode(), ("ada", "no word"))
    assert refused.status_code == 401
    more = {name: value - before.get(name, 0) for name, value in figures(server).items()}
    assert more["labtrack_runs_created_total"] == 1
    assert more["labtrack_metric_points_total"] == 12
    assert more['labtrack_requests_total{route="write",code="200"}'] == 7  # a tag, five metrics, a batch
    assert more['labtrack_requests_total{route="write",code="401"}'] == 1
    assert more['labtrack_request_duration_seconds_count{route="write"}'] == 8
    assert more['labtrack_request_duration_seconds_bucket{route="write",le="+Inf"}'] == 8
    assert more["labtrack_requests_in_progress"] == 0
    assert figures(server)["process_resident_memory_bytes"] > 2**26


def test_series_are_few_and_name_nobody(server: LabServer) -> None:
    for number in range(30):
        server.send(f"experiments/no-such-{number}", b"{}", BOB)
        server.send(f"/nowhere/{number}", b"{}", ADA)
    text = told(server).text
    assert len(figures(server)) < 300
    assert not re.search(r"ada|bob|nowhere|no-such", text)


def test_figures_are_not_for_who_comes_by_the_proxy(server: LabServer) -> None:
    """As any path that MLflow does not have: a login is asked for first."""
    answer = told(server, **{"X-Forwarded-For": "192.0.2.1", "Host": "lab.example.org"})
    assert answer.status_code in (401, 404)
    assert "labtrack_" not in answer.text
