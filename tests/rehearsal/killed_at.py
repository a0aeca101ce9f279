"""Ansible callback plugin: ends its own run with SIGKILL, all that it has started included, at a task of a play.

KILLED_AT has the play's name, the task's number in it and those after it, and seconds after its start, for example
"Set up the machine:12:0.5".
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

import psutil
from ansible.plugins.callback import CallbackBase


def kill() -> None:
    """End this process and all below it: Ansible gives each task a session of its own."""
    me = psutil.Process()
    for process in [*me.children(recursive=True), me]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


class CallbackModule(CallbackBase):  # type: ignore[misc]
    """Counts tasks."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "killed_at"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.play, number, seconds = os.environ["KILLED_AT"].split(":")
        self.left, self.seconds, self.counting = int(number), float(seconds), False

    def v2_playbook_on_play_start(self, play: Any) -> None:
        self.counting = self.counting or play.get_name() == self.play

    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        self.left -= self.counting
        if self.left == 0:
            threading.Timer(self.seconds, kill).start()
            self.left = -1
