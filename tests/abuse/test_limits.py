"""Requests that are too long or too deep, and artifacts that are larger than the server's disk should be."""

from __future__ import annotations

import contextlib
import json
import resource
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from api import Api
from wire import connect, request

QUICK = 3  # seconds: what is refused costs no more than reading it


def refused(api: Api, path: str, body: Any, words: str) -> None:
    """Is a request refused at once, with words?"""
    start = time.monotonic()
    text = body if isinstance(body, str) else json.dumps(body)
    answer = api.session.post(api.url + path, data=text, headers={"Content-Type": "application/json"}, timeout=30)
    assert time.monotonic() - start < QUICK
    assert answer.status_code == 400, answer.text[:300]
    assert words in answer.json()["message"]


@pytest.mark.parametrize("prefix", ["/api/2.0/mlflow/", "/ajax-api/2.0/mlflow/"])
def test_lists_are_bounded(ann: Api, prefix: str) -> None:
    many = [str(number) for number in range(200_000)]
    refused(ann, f"{prefix}runs/search", {"experiment_ids": many}, "'experiment_ids' has 200000 items")
    refused(ann, f"{prefix}logged-models/search", {"experiment_ids": many}, "To fix: ask in several requests")
    metrics = [{"key": "x", "value": 1, "timestamp": 1, "step": step} for step in range(100_000)]
    refused(ann, f"{prefix}runs/log-batch", {"run_id": ann.new_run(), "metrics": metrics}, "'metrics' has 100000 items")
    experiments = [ann.new_experiment()]
    order = [f"metrics.`m{number}` DESC" for number in range(60)]
    refused(ann, f"{prefix}runs/search", {"experiment_ids": experiments, "order_by": order}, "'order_by' has 60 items")


def test_filters_are_bounded(ann: Api) -> None:
    experiments = [ann.new_experiment()]
    clauses = " and ".join(f"params.p{number} = 'x'" for number in range(60))
    for path in (
        "/api/2.0/mlflow/runs/search",
        "/api/2.0/mlflow/logged-models/search",
        "/api/3.0/mlflow/traces/search",
    ):
        refused(ann, path, {"experiment_ids": experiments, "filter": clauses}, "60 clauses")
    refused(ann, "/api/2.0/mlflow/runs/search", {"experiment_ids": experiments, "filter": "x" * 30_000}, "characters")
    answer = ann.get("experiments/search", params={"max_results": 5, "filter": clauses})
    assert answer.status_code == 400
    ids = ", ".join(f"'{number:032x}'" for number in range(400))  # as the page asks for runs that it has marked
    fine = {"experiment_ids": experiments, "filter": f"attributes.run_id IN ({ids})"}
    assert ann.call("runs/search", fine).status_code == 200


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"a":' * 60 + "1" + "}" * 60, "[" * 60 + "]" * 60])
def test_depth_is_bounded(ann: Api, text: str) -> None:
    start = time.monotonic()
    answer = ann.session.post(
        f"{ann.url}/api/2.0/mlflow/runs/search", data=text, headers={"Content-Type": "application/json"}, timeout=30
    )
    assert answer.status_code == 400, answer.text[:300]
    headers = {"Content-Type": "application/json", "x-mlflow-experiment-id": ann.new_experiment()}
    otlp = ann.session.post(f"{ann.url}/v1/traces", data=text, headers=headers, timeout=30)
    assert otlp.status_code == 400, otlp.text[:300]
    assert time.monotonic() - start < QUICK


def test_a_batch_as_large_as_mlflow_takes_works(ann: Api) -> None:
    metrics = [{"key": f"m{step}", "value": 1, "timestamp": 1, "step": step} for step in range(1000)]
    assert ann.call("runs/log-batch", {"run_id": ann.new_run(), "metrics": metrics}).status_code == 200


def test_graphql_aliases_are_bounded(ann: Api) -> None:
    run = ann.new_run()
    one = f'mlflowGetRun(input: {{runId: "{run}"}}) {{run {{info {{runId}}}}}}'
    query = "{" + " ".join(f"a{number}: {one}" for number in range(500)) + "}"
    start = time.monotonic()
    answer = ann.call("/graphql", {"query": query})
    assert time.monotonic() - start < QUICK
    assert run not in answer.text
    assert "errors" in answer.json() or answer.status_code == 400


IDLE = 1900  # the firewall lets an address have 2,000 connections: tests/abuse/test_egress.py


def test_1900_clients_that_keep_their_connection_leave_room_for_others(ann: Api) -> None:
    """Jobs keep their connection between two epochs; a cluster's nodes often come from one address."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    whole = request(ann, "/api/2.0/mlflow/users/current").replace(b"Connection: close", b"Connection: keep-alive")
    with contextlib.ExitStack() as ends:
        ends.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

        def client(_: int) -> tuple[bytes, ssl.SSLSocket]:
            tls = connect(ann)
            tls.sendall(whole)
            return tls.recv(65536)[:15], tls

        with ThreadPoolExecutor(16) as pool:
            idle = list(pool.map(client, range(IDLE)))
        for _, tls in idle:
            ends.enter_context(tls)
        assert {answer for answer, _ in idle} == {b"HTTP/1.1 200 OK"}
        run = ann.new_run(ann.new_experiment())
        for step in range(20):
            ann.done("runs/log-metric", {"run_id": run, "key": "loss", "value": 1, "timestamp": step, "step": step})
        # those that have kept it may go on, the first as the last
        for _, tls in (idle[0], idle[-1]):
            tls.sendall(whole)
            assert tls.recv(65536).startswith(b"HTTP/1.1 200 OK")
