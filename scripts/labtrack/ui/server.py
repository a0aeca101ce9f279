"""MLflow's server on a Unix socket: no port, so nobody reaches it who can't enter its folder."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import time
from pathlib import Path

from labtrack.errors import LabtrackError
from labtrack.ui.private import Private
from labtrack.ui.program import Mlflow

SOCKET = "mlflow.sock"
LOG = "mlflow.log"
STARTS = 300.0  # seconds: MLflow's modules on a cold network file system
_SAID = 1500  # characters of its log that are shown when it fails


def start(mlflow: Mlflow, private: Private, database: str) -> subprocess.Popen[bytes]:
    """Starts the server, one worker, with its socket in the private folder.

    database: as in SQLAlchemy's sqlite:///, from the private folder.  It is opened at the first question to it.
    """
    place = str(private.sockets / SOCKET)
    # what `mlflow server` itself starts, without the second time that it takes to import MLflow
    if mlflow.on_uvicorn:
        program = ["uvicorn", "--uds", place, "--workers", "1", "--log-level", "warning", "--no-access-log"]
        program += ["--no-server-header", "mlflow.server.fastapi_app:app"]
    else:
        program = ["gunicorn", "-b", f"unix:{place}", "-w", "1", "--threads", "8", "--timeout", "600"]
        program += ["--log-level", "warning", "mlflow.server:app"]
    with (private.folder / LOG).open("wb") as log:
        return private.start(
            mlflow.python, "-m", *program, out=log, _MLFLOW_SERVER_FILE_STORE=f"sqlite:///{database}",
            _MLFLOW_SERVER_REGISTRY_STORE=f"sqlite:///{database}",
            _MLFLOW_SERVER_ARTIFACT_ROOT=str(private.folder / "artifacts" / "new"),
        )  # fmt: skip


def wait(process: subprocess.Popen[bytes], private: Private) -> None:
    """Waits until the pages and the runs can be had.  Raises LabtrackError with what the server says when it fails."""
    deadline = time.monotonic() + STARTS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise failed(private, f"MLflow's server ended with exit code {process.returncode}")
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, said = _ask(private.sockets / SOCKET, "/ajax-api/2.0/mlflow/experiments/search?max_results=1")
            if status == http.HTTPStatus.OK:
                return
            # it has come, and can't read the database
            raise failed(private, f"MLflow's server answers {status}: {said[:300]}")
        time.sleep(0.05)
    raise failed(private, f"MLflow's server did not answer for {STARTS:.0f} s")


def failed(private: Private, what: str) -> LabtrackError:
    """An error with the last lines of the server's log."""
    log = (private.folder / LOG).read_text(encoding="utf-8", errors="replace").strip()[-_SAID:]
    return LabtrackError(f"{what}.\n{log}".strip(), "does `mlflow server` start in the same environment?")


def _ask(place: Path, path: str) -> tuple[int, str]:
    connection = _Connection("localhost", timeout=60)
    connection.place = place
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode("utf-8", "replace")


class _Connection(http.client.HTTPConnection):
    place: Path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.place))
