"""What the tests of the server say to it."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import requests

LOGIN = tuple[str, str]


@dataclass
class Api:
    """One account's way to the server, over one kept-alive connection."""

    url: str
    ca: str
    login: LOGIN | None

    def __post_init__(self) -> None:
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = self.ca
        self.session.auth = self.login

    def call(
        self, path: str, body: dict[str, Any] | None = None, method: str = "POST", **more: Any
    ) -> requests.Response:
        """A request to the REST interface, PATH after /api/2.0/mlflow/ or from the root."""
        place = path if path.startswith("/") else f"/api/2.0/mlflow/{path}"
        return self.session.request(method, self.url + place, json=body, timeout=more.pop("timeout", 30), **more)

    def get(self, path: str, **more: Any) -> requests.Response:
        return self.call(path, method="GET", **more)

    def done(self, path: str, body: dict[str, Any], method: str = "POST") -> dict[str, Any]:
        """What the server answers to a request that has to work."""
        answer = self.call(path, body, method)
        assert answer.status_code == 200, (path, answer.status_code, answer.text)
        return answer.json()

    def grant(self, to: Api, kind: str, identity: str, permission: str) -> None:
        """Give an account a permission, as owner or as admin."""
        body = {"username": to.login[0], "resource_type": kind, "resource_id": identity, "permission": permission}
        self.done("/api/3.0/mlflow/users/permissions/grant", body)

    def revoke(self, of: Api, kind: str, identity: str) -> None:
        """Take an account's permission away."""
        body = {"username": of.login[0], "resource_type": kind, "resource_id": identity}
        self.done("/api/3.0/mlflow/users/permissions/revoke", body)

    def new_experiment(self) -> str:
        answer = self.call("experiments/create", {"name": f"test-{secrets.token_hex(6)}"})
        answer.raise_for_status()
        return answer.json()["experiment_id"]

    def new_run(self, experiment_id: str | None = None) -> str:
        body = {"experiment_id": experiment_id or self.new_experiment(), "start_time": int(time.time() * 1000)}
        answer = self.call("runs/create", body)
        answer.raise_for_status()
        return answer.json()["run"]["info"]["run_id"]

    def log(self, run_id: str, step: int, **more: Any) -> requests.Response:
        """A metric whose value and time are its step, so that sent twice it is there once."""
        body = {"run_id": run_id, "key": "step", "value": step, "timestamp": step, "step": step}
        return self.call("runs/log-metric", body, **more)

    def steps(self, run_id: str) -> list[int]:
        """The steps of the metric that are in the database."""
        answer = self.get(f"metrics/get-history?run_id={run_id}&metric_key=step&max_results=25000")
        answer.raise_for_status()
        return [int(metric.get("step", 0)) for metric in answer.json().get("metrics", [])]


@contextlib.contextmanager
def account(admin: Api) -> Iterator[Api]:
    """An ordinary account of its own, gone afterwards."""
    login = (f"test-{secrets.token_hex(4)}", secrets.token_hex(16))
    admin.call("users/create", {"username": login[0], "password": login[1]}).raise_for_status()
    try:
        yield Api(admin.url, admin.ca, login)
    finally:
        admin.call("users/delete", {"username": login[0]}, "DELETE")
