"""What Ansible says that it has done."""

from __future__ import annotations

import re

_LINE = re.compile(r"^(?:(?:TASK|RUNNING HANDLER) \[(?P<task>.*)\] \*+|changed: \[(?P<host>[^\]\s]+).*)$", re.MULTILINE)


def changed(said: str) -> list[str]:
    """The tasks that changed something, as `host: task`, each once; a failing test shows which they were."""
    task, found = "", []
    for line in _LINE.finditer(said):
        task = line["task"] or task
        if line["host"]:
            found.append(f"{line['host']}: {task}")
    return list(dict.fromkeys(found))
