"""The rehearsal's start, in the background: its machines are made while the tests run that need none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import rehearsal as steps

STATE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "labtrack" / "rehearsal"
LOG = steps.LOGS / "start.log"
PATIENCE = 300  # seconds for an interrupted start to end by itself


class Start:
    """playbooks/rehearsal/up.yml and site.yml.  Taken down again at the end, unless it was up before."""

    def __init__(self) -> None:
        self._was_up = STATE.exists()
        LOG.parent.mkdir(parents=True, exist_ok=True)
        with LOG.open("w") as log:
            # a session of its own: Ctrl-C is for pytest, which then ends this
            self._process = subprocess.Popen(
                [sys.executable, steps.__file__], stdout=log, stderr=log, cwd=steps.ROOT, start_new_session=True
            )

    def wait(self) -> None:
        """Wait until the lab is deployed.  Raises StepFailed with the log's words."""
        if self._process.poll() is None:
            print(f"\nWaiting for the rehearsal; how far it is: {LOG.relative_to(steps.ROOT)}", file=sys.__stderr__)
        if self._process.wait():
            raise steps.StepFailed(LOG.read_text(errors="replace"))

    def end(self) -> str:
        """Put the machine back as it was; gives what went wrong with that, or nothing."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGINT)
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        if self._was_up:
            return ""
        down = [steps.ROOT / "scripts/dev/down.sh"]
        done = subprocess.run(down, cwd=steps.ROOT, capture_output=True, text=True, check=False)
        return done.stderr if done.returncode else ""
