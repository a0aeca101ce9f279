"""Experiments and roles of the stand-in's tracking server, as far as the kit makes them."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field
from typing import Any

Given = dict[str, Any]
Answer = tuple[int, dict[str, Any]]


@dataclass
class Sharing:
    """experiments: by name, as MLflow shows them, and their owner.  roles: by name, with permissions and members."""

    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    roles: dict[str, dict[str, Any]] = field(default_factory=dict)

    def answer(self, action: str, given: Given, user: str) -> Answer:
        """Status and body for a route after /mlflow/, with what was given, from a user."""
        done = getattr(self, re.sub(r"\W", "_", action))(given, user)
        return (404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}) if done is None else (200, done)

    def writers(self, name: str) -> set[str]:
        """Who may write to an experiment: its owner, and members with whom it is shared."""
        one = self.experiments[name]
        shared = {
            member
            for role in self.roles.values()
            for given in role["permissions"]
            if given["resource_pattern"] == one["experiment_id"] and given["permission"] == "EDIT"
            for member in role["members"]
        }
        return {one["owner"], *shared}

    def _experiment(self, given: Given) -> dict[str, Any]:
        wanted = given.get("experiment_id", given.get("resource_id"))
        return next(one for one in self.experiments.values() if one["experiment_id"] == wanted)

    def _role(self, given: Given) -> dict[str, Any]:
        return next(one for one in self.roles.values() if one["id"] == int(given["role_id"]))

    def experiments_get_by_name(self, given: Given, _user: str) -> dict[str, Any] | None:
        found = self.experiments.get(given["experiment_name"])
        return found and {"experiment": found}

    def experiments_create(self, given: Given, user: str) -> dict[str, Any]:
        made = {"experiment_id": str(len(self.experiments)), "lifecycle_stage": "active", "owner": user}
        self.experiments[given["name"]] = {**made, "tags": given["tags"]}
        return made

    def experiments_restore(self, given: Given, _user: str) -> dict[str, Any]:
        self._experiment(given)["lifecycle_stage"] = "active"
        return {}

    def users_permissions_get(self, given: Given, _user: str) -> dict[str, Any]:
        return {"permission": "MANAGE" if self._experiment(given)["owner"] == given["username"] else "READ"}

    def users_permissions_grant(self, given: Given, _user: str) -> dict[str, Any]:
        self._experiment(given)["owner"] = given["username"]
        return {}

    def roles_list(self, _given: Given, _user: str) -> dict[str, Any]:
        return {"roles": list(self.roles.values())}

    def roles_create(self, given: Given, _user: str) -> dict[str, Any]:
        made = {"id": len(self.roles) + 1, "name": given["name"], "permissions": [], "members": []}
        return {"role": self.roles.setdefault(given["name"], made)}

    def users_roles_list(self, given: Given, _user: str) -> dict[str, Any]:
        return {"roles": [one for one in self.roles.values() if given["username"] in one["members"]]}

    def roles_assign(self, given: Given, _user: str) -> dict[str, Any]:
        self._role(given)["members"].append(given["username"])
        return {}

    def roles_permissions_list(self, given: Given, _user: str) -> dict[str, Any]:
        return {"role_permissions": self._role(given)["permissions"]}

    def roles_permissions_add(self, given: Given, _user: str) -> dict[str, Any]:
        self._role(given)["permissions"].append({**given, "id": uuid.uuid4().hex})
        return {}

    def roles_permissions_remove(self, given: Given, _user: str) -> dict[str, Any]:
        for one in self.roles.values():
            one["permissions"] = [p for p in one["permissions"] if p["id"] != given["role_permission_id"]]
        return {}
