"""Accounts: out at once, for every instance; grants for their owner's eyes; refusals that say what to do."""

from __future__ import annotations

import secrets
import time
from typing import Any

import pytest
from api import Api, account
from conftest import Secret

CALLS = range(8)  # so that each instance is asked


# --- a right that is taken away ends at once


def test_a_revoked_permission_ends_at_once(ann: Api, bob: Api) -> None:
    experiment = ann.new_experiment()
    run = ann.new_run(experiment)
    for turn in range(3):
        ann.grant(bob, "experiment", experiment, "EDIT")
        assert [bob.log(run, 10 * turn + step).status_code for step in CALLS] == [200] * len(CALLS)
        ann.revoke(bob, "experiment", experiment)
        assert [bob.log(run, 1000).status_code for _ in CALLS] == [403] * len(CALLS)


def test_a_denied_account_is_out_at_once(admin: Api, ann: Api, bob: Api) -> None:
    experiment = ann.new_experiment()
    run = ann.new_run(experiment)
    assert {bob.get(f"runs/get?run_id={run}").status_code for _ in CALLS} == {200}
    admin.grant(bob, "experiment", experiment, "DENY")
    assert {bob.get(f"runs/get?run_id={run}").status_code for _ in CALLS} == {403}


def test_a_role_that_is_taken_away_ends_at_once(admin: Api, ann: Api, bob: Api) -> None:
    experiment = ann.new_experiment()
    run = ann.new_run(experiment)
    roles = "/api/3.0/mlflow/roles"
    role = admin.done(f"{roles}/create", {"name": f"test-{secrets.token_hex(4)}", "workspace": "default"})["role"]["id"]
    try:
        edit = {"resource_type": "experiment", "resource_pattern": experiment, "permission": "EDIT", "role_id": role}
        admin.done(f"{roles}/permissions/add", edit)
        admin.done(f"{roles}/assign", {"username": bob.login[0], "role_id": role})
        assert {bob.log(run, step).status_code for step in CALLS} == {200}
        admin.done(f"{roles}/unassign", {"username": bob.login[0], "role_id": role}, "DELETE")
        assert {bob.log(run, 1000).status_code for _ in CALLS} == {403}
    finally:
        admin.call(f"{roles}/delete", {"role_id": role}, "DELETE")


def test_a_changed_password_ends_the_old_one_at_once(admin: Api) -> None:
    with account(admin) as api:
        run = api.new_run()
        assert {api.log(run, step).status_code for step in CALLS} == {200}
        new = secrets.token_hex(16)
        admin.done("users/update-password", {"username": api.login[0], "password": new}, "PATCH")
        assert {api.log(run, 1000).status_code for _ in CALLS} == {401}
        assert {Api(api.url, api.ca, (api.login[0], new)).log(run, step).status_code for step in CALLS} == {200}


def test_a_deleted_account_is_out_at_once(admin: Api) -> None:
    with account(admin) as gone:
        run = gone.new_run()
        assert {gone.log(run, step).status_code for step in CALLS} == {200}
    assert {gone.log(run, 1000).status_code for _ in CALLS} == {401}


def test_an_admin_who_is_one_no_more_loses_it_at_once(admin: Api, ann: Api) -> None:
    run = ann.new_run()
    with account(admin) as deputy:
        admin.done("users/update-admin", {"username": deputy.login[0], "is_admin": True}, "PATCH")
        assert {deputy.log(run, step).status_code for step in CALLS} == {200}
        admin.done("users/update-admin", {"username": deputy.login[0], "is_admin": False}, "PATCH")
        assert {deputy.log(run, 1000).status_code for _ in CALLS} == {403}


def test_mlflowctl_forget_ends_what_was_changed_by_hand_at_once(rehearsal: Any, ann: Api, bob: Api) -> None:
    experiment = ann.new_experiment()
    run = ann.new_run(experiment)
    ann.grant(bob, "experiment", experiment, "EDIT")
    assert {bob.log(run, step).status_code for step in CALLS} == {200}
    statement = "DELETE FROM role_permissions WHERE permission = 'EDIT' AND resource_pattern = :'experiment';"
    psql = f"runuser -u postgres -- psql --quiet --set=ON_ERROR_STOP=1 --set=experiment={experiment} mlflow_auth"
    rehearsal.ssh("server", f"cd / && {psql} && mlflowctl forget", stdin=statement, check=True)
    assert {bob.log(run, 1000).status_code for _ in CALLS} == {403}


# --- whose grants are shown


def test_lists_of_roles_show_one_s_own_and_an_admin_all(admin: Api, ann: Api, bob: Api) -> None:
    experiment = ann.new_experiment()
    ann.grant(bob, "experiment", experiment, "EDIT")
    listed = "/api/3.0/mlflow/roles/list?workspace=default"
    every, own = admin.get(listed).json()["roles"], bob.get(listed).json()["roles"]
    assert any(row["resource_pattern"] == experiment for role in own for row in role["permissions"])
    assert {role["id"] for role in own} < {role["id"] for role in every}
    foreign = next(role["id"] for role in every if role["id"] not in {role["id"] for role in own})
    for ask in (
        f"roles/get?role_id={foreign}",
        f"roles/permissions/list?role_id={foreign}",
        f"roles/users?role_id={foreign}",
    ):
        for prefix in ("/api", "/ajax-api"):
            assert bob.get(f"{prefix}/3.0/mlflow/{ask}").status_code in (403, 404), ask
    assert bob.get(f"/api/3.0/mlflow/roles/get?role_id={own[0]['id']}").status_code == 200


def test_nobody_sees_another_s_grants(ann: Api, bob: Api) -> None:
    name, experiment = ann.login[0], ann.new_experiment()
    for ask in (
        f"3.0/mlflow/users/permissions/list?username={name}", f"3.0/mlflow/users/roles/list?username={name}",
        f"2.0/mlflow/users/get?username={name}",
        f"3.0/mlflow/users/permissions/get?username={name}&resource_type=experiment&resource_id={experiment}",
    ):  # fmt: skip
        for prefix in ("/api", "/ajax-api"):
            assert bob.get(f"{prefix}/{ask}").status_code in (403, 404), ask


def test_the_list_of_users_says_no_more_than_names(admin: Api, ann: Api, bob: Api) -> None:
    rows = {row["username"]: row for row in bob.get("users/list").json()["users"]}
    assert rows[ann.login[0]] == {"username": ann.login[0]}
    assert rows[bob.login[0]]["is_admin"] is False
    assert {row["username"]: row for row in admin.get("users/list").json()["users"]}["admin"]["is_admin"] is True


# --- what a refusal says


def said(answer: object) -> str:
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.json()["error_code"] == "PERMISSION_DENIED"
    return answer.json()["message"]


def test_a_403_names_the_owner_of_what_may_be_read_and_the_way_out(ann: Api, bob: Api) -> None:
    experiment = ann.new_experiment()
    name = ann.get(f"experiments/get?experiment_id={experiment}").json()["experiment"]["name"]
    run, start = ann.new_run(experiment), {"experiment_id": experiment, "start_time": int(time.time() * 1000)}
    owner = ann.login[0]
    message = said(bob.call("runs/create", start))
    assert message == (
        f"Experiment '{name}' (id {experiment}) belongs to {owner}; you may read it. To fix: use an experiment of your "
        f"own (mlflow.set_experiment(...)), ask {owner} for EDIT, or ask the admin to add the name to "
        "lab_shared_experiments."
    )
    assert said(bob.log(run, 1)).startswith(f"Run {run} is in experiment '{name}' (id {experiment}), which belongs to")
    model = f"test-{secrets.token_hex(4)}"
    ann.done("registered-models/create", {"name": model})
    assert said(bob.call("registered-models/update", {"name": model, "description": "x"}, "PATCH")) == (
        f"Model '{model}' belongs to {owner}; you may read it. To fix: register it under a name of your own, or ask "
        f"{owner} for EDIT."
    )


def test_a_403_does_not_name_what_may_not_be_read(ann: Api, eve: Api, secret: Secret) -> None:
    name = ann.get(f"experiments/get?experiment_id={secret.experiment}").json()["experiment"]["name"]
    for answer in (
        eve.get(f"runs/get?run_id={secret.run}"), eve.log(secret.run, 1), eve.get(f"logged-models/{secret.model}"),
        eve.get(f"/api/3.0/mlflow/traces/{secret.trace}"),
        eve.get(f"experiments/get?experiment_id={secret.experiment}"),
        eve.get(f"registered-models/get?name={secret.name}"), eve.get("runs/get?run_id=" + "0" * 32),
    ):  # fmt: skip
        message = said(answer)
        assert name not in message
        assert ann.login[0] not in message
        assert "To fix" in message


@pytest.mark.parametrize("login", ["Bearer abc", "Digest username=ann", "Basic", "Basic !", "Basic AGFubjp4", "x"])
def test_a_login_of_another_kind_is_401_and_json(nobody: Api, login: str) -> None:
    for path in ("/api/2.0/mlflow/experiments/search", "/v1/traces"):
        answer = nobody.call(path, {"max_results": 1}, headers={"Authorization": login})
        assert answer.status_code == 401, answer.text
        assert answer.headers["WWW-Authenticate"].startswith("Basic")
        assert answer.json()["error_code"] == "UNAUTHENTICATED"
