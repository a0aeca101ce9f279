"""The beginning and the end of a run: `labtrack.labcopy.handover`, by the connection that Ansible has.

An action and no module, because it works on both sides at once: one task each, and one command on the server.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from ansible import context
from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

from labtrack import lab as labs
from labtrack import labmoved
from labtrack.errors import LabtrackError
from labtrack.lab import Lab
from labtrack.labcopy import handover
from labtrack.labcopy.remote import Server
from labtrack.printable import clean

NONE = "none"


class ActionModule(ActionBase):
    """lab_files: the lab's files here and on the server.

    at: begin or end.  choice: here, server, none or empty.  take_lock: whoever has the lock.  may_be_missing: it is no
    failure when the server does not answer (it may be about to be made anew).  refuse_moved: it is one that the lab is
    in another place since a move.  Sets the facts lab_files, which machine's they are, and lab_moved: labmoved.where.
    """

    _supports_check_mode = True
    _requires_connection = True

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Runs the action."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec({
            "at": {"type": "str", "choices": ["begin", "end"], "required": True},
            "choice": {"type": "str", "choices": [*handover.CHOICES, NONE], "default": ""},
            "take_lock": {"type": "bool", "default": False},
            "may_be_missing": {"type": "bool", "default": False},
            "refuse_moved": {"type": "bool", "default": False},
        })  # fmt: skip
        variables = task_vars or {}
        done, facts = handover.Done(), {"lab_files": str(variables.get("cloud_server_id", "own"))}
        try:
            lab = labs.load(Path(variables["inventory_dir"]))
            try:
                if given["choice"] != NONE:
                    done = self._handed(lab, given)
            except AnsibleConnectionFailure as error:
                if not given["may_be_missing"]:
                    raise
                result["msg"], facts = f"The server does not answer yet: {error}", {}
            if given["refuse_moved"]:  # where the server could not be asked, by what is here
                labmoved.check(lab)
            facts["lab_moved"] = labmoved.where(lab)
        except LabtrackError as error:
            return {**result, "failed": True, "msg": clean(str(error))}
        for line in done.lines:
            self._display.display(f"{lab.name}: {clean(line)}")
        return {**result, "changed": done.changed, "lines": done.lines, "ansible_facts": facts}

    def _handed(self, lab: Lab, given: dict[str, Any]) -> handover.Done:
        """The beginning or the end.  Raises LabtrackError, AnsibleConnectionFailure."""
        server, look = Server(self._as_root), self._task.check_mode
        # the process of ansible-playbook: it lives as long as the run, this one as long as the task
        me = handover.holder(lab, _command(), os.getppid())
        if given["at"] == "end":
            return handover.Done() if look else handover.end(lab, server, me)
        chosen = {name: given[name] for name in ("choice", "take_lock", "refuse_moved")}
        return handover.begin(lab, server, me, look=look, **chosen)

    def _as_root(self, script: str, data: bytes) -> tuple[int, str, str]:
        done = self._low_level_execute_command(f"/bin/sh -c {shlex.quote(script)}", in_data=data or None)
        return done["rc"], done["stdout"], done["stderr"]


def _command() -> str:
    return "ansible-playbook " + " ".join(Path(name).name for name in context.CLIARGS.get("args") or ())
