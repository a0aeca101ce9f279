"""A DENY on an experiment holds however its number is spelled."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

import pytest
import requests
from lab_server import ADA, ADMIN, API, BOB, LabServer

SPELLINGS = ("{}", "0{}", "00{}", " {}", "{} ", "+{}", "-0{}", "٠{}", "{}.0", "\t{}", "{}\n")  # noqa: RUF001
GRANT = "/api/3.0/mlflow/users/permissions/grant"
PLACE = {"type": "MLFLOW_EXPERIMENT"}


def asked(spelled: str) -> list[tuple[str, str, Any]]:
    """Method, path and body of all that answers with what an experiment has."""
    place = {**PLACE, "mlflow_experiment": {"experiment_id": spelled}}
    query = urllib.parse.urlencode({"experiment_id": spelled})
    return [
        ("POST", "runs/search", {"experiment_ids": [spelled]}),
        ("POST", "runs/search", {"experiment_ids": ["0", spelled]}),
        ("GET", f"experiments/get?{query}", None),
        ("POST", "logged-models/search", {"experiment_ids": [spelled]}),
        ("POST", "/api/3.0/mlflow/traces/search", {"locations": [place]}),
        ("POST", "runs/create", {"experiment_id": spelled, "start_time": 1}),
        ("POST", "experiments/set-experiment-tag", {"experiment_id": spelled, "key": "k", "value": "v"}),
        ("POST", "experiments/delete", {"experiment_id": spelled}),
    ]


def call(server: LabServer, login: tuple[str, str], method: str, path: str, body: Any) -> Any:
    if method == "POST":
        return server.send(path, json.dumps(body).encode(), login)
    with requests.Session() as session:
        session.trust_env = False
        return session.get(server.url + API + path, auth=login, timeout=60)


@pytest.mark.parametrize("native", [False, True], ids=["MLflow's", "native"])
def test_a_denied_experiment_is_not_reached_by_another_spelling(
    pair: tuple[LabServer, LabServer], native: bool
) -> None:
    server = pair[native]
    experiment = server.experiment(f"denied {native}")
    run_id = server.run(experiment, "the secret of ada")
    server.post("experiments/set-experiment-tag", {"experiment_id": experiment, "key": "k", "value": "ada's secret"})
    denied = {"username": BOB[0], "resource_type": "experiment", "resource_id": experiment, "permission": "DENY"}
    server.post(GRANT, denied, ADMIN)
    for spelling in SPELLINGS:
        for method, path, body in asked(spelling.format(experiment)):
            answer = call(server, BOB, method, path, body)
            assert "secret" not in answer.text and run_id not in answer.text, (spelling, path, answer.text)
            if path.partition("/")[0] == "experiments" or path == "runs/create":
                assert answer.status_code in (400, 403, 404), (spelling, path, answer.text)
    # and it is all there still, for who may
    found = server.post("runs/search", {"experiment_ids": [experiment]}, ADA)
    assert [run["info"]["run_id"] for run in found["runs"]] == [run_id]
