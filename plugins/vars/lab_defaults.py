"""Ansible vars plugin: what lab.yml leaves out, from schema/lab.json, the one list of defaults."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from ansible.inventory.group import Group
from ansible.plugins.vars import BaseVarsPlugin

DOCUMENTATION = r"""
name: lab_defaults
short_description: The defaults of lab.yml
description:
  - A setting of C(schema/lab.json) that has a default is defined in every play. C(group_vars) with lab.yml wins.
  - It has to stand before C(host_group_vars) in C(vars_plugins_enabled).
"""

SCHEMA = Path(__file__).resolve().parents[2] / "schema" / "lab.json"


@lru_cache(maxsize=1)
def defaults() -> dict[str, Any]:
    """The settings that have a default."""
    properties = json.loads(SCHEMA.read_text(encoding="utf-8"))["properties"]
    return {key: about["default"] for key, about in properties.items() if "default" in about}


class VarsModule(BaseVarsPlugin):  # type: ignore[misc]  # Ansible has no types
    """Gives the defaults to the group `all` of a lab's inventory."""

    def get_vars(self, loader: Any, path: str, entities: Any) -> dict[str, Any]:
        """Called for each source of the inventory, each playbook's folder, and each group and host of them.

        Only where lab.yml itself is found: given to a host, or by a playbook, the defaults would win over it.
        """
        super().get_vars(loader, path, entities)
        entities = entities if isinstance(entities, list) else [entities]
        of_all = any(isinstance(entity, Group) and entity.name == "all" for entity in entities)
        return dict(defaults()) if of_all and Path(path, "group_vars", "all", "lab.yml").is_file() else {}
