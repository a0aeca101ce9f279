"""What an attack needs: accounts with and without permissions, and somebody's secret.

The rehearsal comes from tests/conftest.py, the accounts `admin`, `ann`, `bob` and `nobody` too.  Another MLflow than
the default is attacked on this machine: LABTRACK_TEST_MLFLOW=VERSION pytest -m "not rehearsal" tests/abuse.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from api import Api, account

if "LABTRACK_TEST_MLFLOW" in os.environ:  # then what needs no machines is asked of a server here
    from local_server import admin, lab_server  # noqa: F401 - fixtures

    collect_ignore_glob = ["test_nginx_*"]

SECRET = "the-secret-of-ann"


@dataclass
class Secret:
    """A run, a logged model and a trace of Ann's, in an experiment of hers that is denied to Eve."""

    experiment: str
    run: str
    model: str
    trace: str
    name: str


@pytest.fixture(scope="module")
def eve(admin: Api) -> Iterator[Api]:
    """An account that attacks."""
    with account(admin) as api:
        yield api


@pytest.fixture(scope="module")
def secret(admin: Api, ann: Api, eve: Api) -> Secret:
    """What Eve may not even read."""
    experiment = ann.new_experiment()
    run = ann.new_run(experiment)
    body = {"experiment_id": experiment, "name": "model", "source_run_id": run}
    model = ann.done("logged-models", body)["model"]["info"]["model_id"]
    trace = f"tr-{secrets.token_hex(16)}"
    start_trace(ann, experiment, trace, tags={"said": SECRET}).raise_for_status()
    name = f"test-{secrets.token_hex(6)}"
    ann.done("registered-models/create", {"name": name})
    ann.done("model-versions/create", {"name": name, "source": f"runs:/{run}/model", "run_id": run})
    for kind, identity in (("experiment", experiment), ("registered_model", name)):
        admin.grant(eve, kind, identity, "DENY")
    return Secret(experiment, run, model, trace, name)


def start_trace(api: Api, experiment: str, trace: str, **more: object) -> object:
    """Start a trace as the client of MLflow 3 does."""
    place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
    info = {"trace_id": trace, "trace_location": place, "request_time": "2026-01-01T00:00:00Z", "state": "OK", **more}
    return api.call("/api/3.0/mlflow/traces", {"trace": {"trace_info": info}})
