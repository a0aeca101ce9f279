"""Who may read and write is decided as by MLflow, and a right that is taken away ends with the next request."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import pytest
from lab_server import ADA, ADMIN, LabServer
from read_calls import CURVES, GET, HISTORY, SEARCH, Question
from test_reads_equal import LOGINS, ask

ROLES = "/api/3.0/mlflow/roles"
numbers = itertools.count()


@pytest.fixture(scope="module")
def server(serve: Callable[..., LabServer]) -> LabServer:
    """One where an account may not even read what nobody has given it."""
    return serve("rights", default="NO_PERMISSIONS")


class Eve:
    """An account and a run of somebody else's: what it is answered."""

    def __init__(self, server: LabServer) -> None:
        self.server, self.login = server, (f"eve{next(numbers)}", "a fourth word of the tests")
        LOGINS[self.login[0]] = self.login
        self.user = server.post("users/create", dict(zip(("username", "password"), self.login)), ADMIN)["user"]
        self.experiment = server.experiment(f"rights {self.login[0]}")
        self.run_id = server.run(self.experiment)
        self.about = {"username": self.login[0], "resource_type": "experiment", "resource_id": self.experiment}
        self.step = itertools.count()

    def asks(self, path: str) -> tuple[int, bool]:
        """Status, and whether the answer holds what was asked for."""
        name = self.login[0]
        questions = {
            SEARCH: Question(SEARCH, {"experiment_ids": ["own"]}, login=name),
            GET: Question(GET, run=0, login=name),
            HISTORY: Question(HISTORY, query=(("metric_key", "loss"),), run=0, login=name),
            CURVES: Question(CURVES, query=(("metric_key", "loss"),), many=(0,), login=name),
        }
        answer = ask(self.server, questions[path], [self.experiment] * 2, [self.run_id])
        return answer.status_code, (self.run_id if path != HISTORY else '"loss"') in answer.text

    def writes(self) -> int:
        point = {"run_id": self.run_id, "key": "loss", "value": 1, "timestamp": 1, "step": next(self.step)}
        return self.server.send("runs/log-metric", json.dumps(point).encode(), self.login).status_code

    def begins(self) -> int:
        """A run, and how it ends."""
        made = self.server.send("runs/create", json.dumps({"experiment_id": self.experiment}).encode(), self.login)
        if made.status_code != 200:
            return made.status_code
        end = {"run_id": made.json()["run"]["info"]["run_id"], "status": "FINISHED"}
        return self.server.send("runs/update", json.dumps(end).encode(), self.login).status_code

    def renames(self) -> int:
        name = json.dumps({"run_id": self.run_id, "run_name": f"{next(self.step)}"}).encode()
        return self.server.send("runs/update", name, self.login).status_code

    def natively(self, call: Callable[[], object]) -> bool:
        before = self.server.last_native()
        call()
        return self.server.last_native() > before


def grant(eve: Eve) -> None:
    eve.server.post("/api/3.0/mlflow/users/permissions/grant", {**eve.about, "permission": "EDIT"}, ADA)


def by_role(eve: Eve) -> tuple[int, int]:
    """The right by a role: the role's id and its permission's."""
    role = eve.server.post(f"{ROLES}/create", {"name": eve.login[0], "workspace": "default"}, ADMIN)["role"]["id"]
    edit = {"role_id": role, "resource_type": "experiment", "resource_pattern": eve.experiment, "permission": "EDIT"}
    added = eve.server.post(f"{ROLES}/permissions/add", edit, ADMIN)["role_permission"]["id"]
    eve.server.post(f"{ROLES}/assign", {"username": eve.login[0], "role_id": role}, ADMIN)
    return role, added


@pytest.mark.parametrize("how", ["revoked", "account", "unassigned", "role", "permission"])
def test_a_right_that_is_taken_away_ends_with_the_next_request(server: LabServer, how: str) -> None:
    eve = Eve(server)
    if how in ("revoked", "account"):
        grant(eve)
    else:
        role, permission = by_role(eve)
    for does in (eve.writes, eve.renames, eve.begins):
        assert does() == 200
        assert eve.natively(does)
    for path in (SEARCH, GET, HISTORY, CURVES):
        assert eve.asks(path) == (200, True)
        assert eve.natively(lambda path=path: eve.asks(path))
    if how == "revoked":
        server.post("/api/3.0/mlflow/users/permissions/revoke", eve.about, ADA)
    elif how == "account":
        server.call("DELETE", "users/delete", {"username": eve.login[0]})
    elif how == "unassigned":
        server.call("DELETE", f"{ROLES}/unassign", {"username": eve.login[0], "role_id": role})
    elif how == "role":
        server.call("DELETE", f"{ROLES}/delete", {"role_id": role})
    else:
        server.call("DELETE", f"{ROLES}/permissions/remove", {"role_permission_id": permission})
    refused = 401 if how == "account" else 403
    assert not eve.natively(lambda: None)
    before = server.last_native()
    assert eve.asks(GET) == (refused, False)
    assert eve.asks(HISTORY) == (refused, False)
    assert eve.asks(SEARCH) == (401 if how == "account" else 200, False)
    assert eve.asks(CURVES) == (refused, False)
    assert [eve.writes(), eve.renames(), eve.begins()] == [refused] * 3
    assert server.last_native() == before


def test_another_account_s_runs_are_refused_however_often_they_are_asked_for(server: LabServer) -> None:
    """Also when their owner has just read them."""
    eve = Eve(server)
    ada = [Question(SEARCH, {"experiment_ids": ["own"]}), Question(GET, run=0)]
    for question in ada * 2:
        assert ask(server, question, [eve.experiment] * 2, [eve.run_id]).ok
    before = server.last_native()
    for _ in range(2):
        assert [eve.asks(path) for path in (SEARCH, GET, HISTORY, CURVES)] == [(200, False), *[(403, False)] * 3]
        assert [eve.writes(), eve.renames(), eve.begins()] == [403] * 3
    # an experiment of its own beside it: only that is searched
    own = str(server.post("experiments/create", {"name": f"of {eve.login[0]}"}, eve.login)["experiment_id"])
    for _ in range(3):
        question = Question(SEARCH, {"experiment_ids": ["own", "other"]}, login=eve.login[0])
        answer = ask(server, question, [own, eve.experiment], [eve.run_id])
        assert (answer.status_code, eve.run_id in answer.text) == (200, False)
    assert server.last_native() == before
    made = server.post("runs/create", {"experiment_id": own}, eve.login)["run"]["info"]["run_id"]
    before = server.last_native()
    for many, status in (((0,), 200), ((0, 1), 403), ((1, 0), 403)):
        question = Question(CURVES, query=(("metric_key", "loss"),), many=many, login=eve.login[0])
        assert ask(server, question, [own, own], [made, eve.run_id]).status_code == status
    assert server.last_native() == before


def test_the_rights_of_an_admin_are_never_remembered(server: LabServer) -> None:
    eve = Eve(server)
    before = server.last_native()
    admin = {"username": eve.login[0], "is_admin": True}
    server.call("PATCH", "users/update-admin", admin)
    for _ in range(2):
        assert [eve.asks(path)[0] for path in (SEARCH, GET, HISTORY, CURVES)] == [200] * 4
        assert [eve.writes(), eve.renames(), eve.begins()] == [200] * 3
    assert server.last_native() == before
    server.call("PATCH", "users/update-admin", {**admin, "is_admin": False})
    assert [eve.asks(path) for path in (SEARCH, GET, HISTORY, CURVES)] == [(200, False), *[(403, False)] * 3]
    assert [eve.writes(), eve.renames(), eve.begins()] == [403] * 3
    assert server.last_native() == before
