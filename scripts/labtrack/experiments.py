"""The experiments that a lab has from the start: one of each person's own, and those that all members write to.

A plain `mlflow.start_run()` needs an experiment that its caller may write to.  Each person's mlflow_env.sh names one
of their own, made here.  Names that everybody's tools use (`lab_shared_experiments`) would belong to whoever used them
first, so they are made here too, and MLflow's own roles let all members write to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from labtrack.tracking.server import Server

ROLE = "lab-members"
WORKSPACE = "default"  # the one that a server without workspaces has
EXPERIMENT = "experiment"
WRITE = "EDIT"
MAY_WRITE = (WRITE, "MANAGE")
OWNER_TAG = "labtrack.owner"  # an experiment that the kit made for the person of that name
_V2, _V3 = "/api/2.0/mlflow", "/api/3.0/mlflow"


@dataclass
class Members:
    """The lab's members as MLflow knows them: a role, and what was changed to have it so."""

    role_id: int
    changed: list[str]


def share(server: Server, names: tuple[str, ...]) -> Members:
    """Sees to it that the shared experiments are there, and that the role of all members may write to them.

    server: with the admin's login.  Raises LabtrackError when the server refuses.
    """
    changed: list[str] = []
    roles = server.call("GET", f"{_V3}/roles/list", "listing the roles", params={"workspace": WORKSPACE})["roles"]
    role = next((one for one in roles if one["name"] == ROLE), None)
    if role is None:
        about = {"workspace": WORKSPACE, "name": ROLE, "description": "Everybody in lab_users; kept by labtrack"}
        role = server.call("POST", f"{_V3}/roles/create", f"making the role {ROLE}", json=about)["role"]
        changed.append(f"role {ROLE} made")
    ids = {}
    for name in names:
        found = _by_name(server, name)
        if found is None:
            found = {"experiment_id": _create(server, name)}
            changed.append(f"experiment {name} made")
        elif found["lifecycle_stage"] == "deleted":
            body = {"experiment_id": found["experiment_id"]}
            server.call("POST", f"{_V2}/experiments/restore", f"restoring the experiment {name}", json=body)
            changed.append(f"experiment {name} restored")
        ids[found["experiment_id"]] = name
    has = server.call(
        "GET", f"{_V3}/roles/permissions/list", "listing what members may", params={"role_id": role["id"]}
    )["role_permissions"]
    ours = {one["resource_pattern"]: one for one in has if one["resource_type"] == EXPERIMENT}
    for experiment_id, name in ids.items():
        if experiment_id not in ours:
            about = {"role_id": role["id"], "resource_type": EXPERIMENT, "resource_pattern": experiment_id}
            body = {**about, "permission": WRITE}
            server.call("POST", f"{_V3}/roles/permissions/add", f"sharing the experiment {name}", json=body)
            changed.append(f"experiment {name} shared")
    for experiment_id, one in ours.items():
        if experiment_id not in ids:
            body = {"role_permission_id": one["id"]}
            server.call("DELETE", f"{_V3}/roles/permissions/remove", "ending the sharing", json=body)
            changed.append(f"experiment {experiment_id} no longer shared")
    return Members(role["id"], changed)


def join(server: Server, members: Members, user: str) -> list[str]:
    """Makes `user` a member; gives what was changed."""
    roles = server.call("GET", f"{_V3}/users/roles/list", f"listing the roles of {user}", params={"username": user})
    if any(one["id"] == members.role_id for one in roles["roles"]):
        return []
    body = {"username": user, "role_id": members.role_id}
    server.call("POST", f"{_V3}/roles/assign", f"making {user} a member", json=body)
    return [f"member of {ROLE}"]


def own(server: Server, user: str, password: str) -> tuple[list[str], list[str]]:
    """Sees to it that the experiment with `user`'s name is there and theirs; gives what was changed, and notes.

    server: with the admin's login.  An experiment of that name that somebody else made is told and left as it is.
    """
    found = _by_name(server, user)
    if found is None:
        # with their own login: whoever makes an experiment manages it
        _create(server.as_user(user, password), user, {OWNER_TAG: user})
        return [f"experiment {user} made"], []
    what = {"resource_type": EXPERIMENT, "resource_id": found["experiment_id"]}
    asking = f"asking what {user} may"
    permission = server.call("GET", f"{_V3}/users/permissions/get", asking, params={"username": user, **what})[
        "permission"
    ]
    if permission in MAY_WRITE:
        gone = found["lifecycle_stage"] == "deleted"
        note = f"has deleted the experiment {user}, where runs go that name none: restore it, or choose another name."
        return [], [note] if gone else []
    if {"key": OWNER_TAG, "value": user} in found.get("tags", []):  # of an account that was made anew
        body = {"username": user, "permission": "MANAGE", **what}
        server.call("POST", f"{_V3}/users/permissions/grant", f"giving {user} their experiment", json=body)
        return [f"experiment {user} given back"], []
    note = (
        f"may not write to the experiment {user}, which somebody else has made, and where runs go that name none. "
        f"To fix: rename that experiment and run this again, or let its owner give {user} EDIT."
    )
    return [], [note]


def _by_name(server: Server, name: str) -> dict[str, Any] | None:
    where = f"{_V2}/experiments/get-by-name"
    found = server.find(where, f"asking for the experiment {name}", params={"experiment_name": name})
    return dict(found["experiment"]) if found else None


def _create(server: Server, name: str, tags: dict[str, str] | None = None) -> str:
    body = {"name": name, "tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]}
    made = server.call("POST", f"{_V2}/experiments/create", f"making the experiment {name}", json=body)
    return str(made["experiment_id"])
