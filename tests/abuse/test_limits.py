"""Requests that are too long or too deep, and artifacts that are larger than the server's disk should be."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import requests
from api import Api

QUICK = 3  # seconds: what is refused costs little more than reading it
JSON = {"Content-Type": "application/json"}


def sent(api: Api, path: str, text: str) -> tuple[requests.Response, float]:
    """The answer to TEXT, and after how many seconds it came."""
    start = time.monotonic()
    answer = api.session.post(api.url + path, data=text, headers=JSON, timeout=60)
    return answer, time.monotonic() - start


def refused_at_once(api: Api, path: str, text: str) -> requests.Response:
    """The answer to TEXT, which came soon: on a machine that is busy with other work, too."""
    _, reading = sent(api, path, text[:-1])  # without its end it is read, and understood by nobody
    answer, seconds = sent(api, path, text)
    assert seconds < QUICK + 5 * reading
    return answer


def refused(api: Api, path: str, body: Any, words: str) -> None:
    """Is a request refused at once, with words?"""
    answer = refused_at_once(api, path, body if isinstance(body, str) else json.dumps(body))
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
    answer = refused_at_once(ann, "/api/2.0/mlflow/runs/search", text)
    assert answer.status_code == 400, answer.text[:300]
    headers = {**JSON, "x-mlflow-experiment-id": ann.new_experiment()}
    start = time.monotonic()
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
    answer = refused_at_once(ann, "/graphql", json.dumps({"query": query}))
    assert run not in answer.text
    assert "errors" in answer.json() or answer.status_code == 400
