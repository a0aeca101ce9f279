"""The lab's MLflow on the backed-up cluster, and systemd's program for starting another on the drill's copy."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from artifact_copies import LAB, LAB_KEY
from backed_up import ROOT, Machine
from s3_server import REGION
from sync_server import STARTS, mlflow_bin

HOST, ADMIN = "lab.example.org", ("admin", "a word of the tests")
CODE = ROOT / "roles/mlflow/files"
DATABASES = ("tracking", "accounts")
AUTH_INI = f"""[mlflow]
default_permission = READ
database_uri = {{}}
admin_username = {ADMIN[0]}
admin_password = {ADMIN[1]}
auth_cache_ttl_seconds = 60
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


class Served:
    """Both; settings: what labtrack-backup has to know of them."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.folder = machine, machine.folder / "mlflow"
        self.sockets, self.live, self.private = (self.folder / one for one in ("sockets", "live", "private"))
        for made in (self.folder, self.sockets, self.live, self.private):
            made.mkdir()
        shutil.chown(self.sockets, "postgres")
        self.folder.joinpath("settings.env").write_text(f"MLFLOW_SERVER_ALLOWED_HOSTS='{HOST}'\n")
        self.settings = machine.mlflow | {
            "account": "root", "groups": [], "switch": str(self.folder / "switch"), "sockets": str(self.sockets),
            "live": str(self.live), "settings": str(self.folder / "settings.env"),
        }  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Of both, as settings.env and secrets.env have it."""
        ours = ("MLFLOW_", "AWS_", "LABTRACK_")
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
            "_MLFLOW_SERVER_FILE_STORE": self.uri("tracking"), "_MLFLOW_SERVER_ARTIFACT_ROOT": f"s3://{LAB}/artifacts",
            "_MLFLOW_SGI_NAME": "uvicorn", "_MLFLOW_IN_JOB_EXECUTOR": "false",
            "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of a test",
            "MLFLOW_SERVER_ALLOWED_HOSTS": HOST, "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": f"https://{HOST}",
            "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "LABTRACK_NATIVE": "1", "LABTRACK_RUN_DIRECTORY": str(self.private),
        }  # fmt: skip

    def uri(self, database: str) -> str:
        return f"postgresql+psycopg2://mlflow@/{database}?host={self.machine.folder}"

    @contextmanager
    def running(self) -> Iterator[None]:
        """MLflow runs, with databases of its own, and the other would be started."""
        machine = self.machine
        machine.sql("CREATE ROLE mlflow LOGIN", "postgres")
        for name, line in (("pg_hba", "local all mlflow peer map=lab"), ("pg_ident", "lab root mlflow")):
            file = machine.folder / f"{name}.conf"
            file.write_text(f"{line}\n{file.read_text()}")
        machine.sql("SELECT pg_reload_conf()", "postgres")
        for database in DATABASES:
            machine.sql(f"CREATE DATABASE {database} OWNER mlflow", "postgres")
        (self.folder / "auth.ini").write_text(AUTH_INI.format(self.uri("accounts")))
        store = machine.store
        keys = {
            "MLFLOW_S3_ENDPOINT_URL": store.endpoint, "AWS_CA_BUNDLE": str(store.ca), "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": LAB_KEY[0], "AWS_SECRET_ACCESS_KEY": LAB_KEY[1],
            "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        }  # fmt: skip
        python, socket_ = mlflow_bin() / "python", self.live / "1.sock"
        uvicorn = [python, "-m", "uvicorn", "--factory", "labtrack_server:create_app", "--app-dir", CODE]
        of_copy = {**self.environment(), "RUNTIME_DIRECTORY": str(self.private)}
        given = ["env", "-i", *(f"{name}={value}" for name, value in of_copy.items())]
        copy = [*given, python, ROOT / "roles/backup/files/labtrack_serve.py", CODE]
        with ExitStack() as ends, (self.folder / "log").open("ab") as log:
            for command, env in (
                ([*uvicorn, "--uds", socket_, "--no-access-log"], {**self.environment(), **keys}),
                (["systemd-socket-activate", "--accept", "--inetd", "-l", self.settings["switch"], *copy], None),
            ):
                process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=self.folder)
                ends.callback(process.wait)
                ends.callback(process.kill)
            self.until(lambda: self.ask("GET", "/health")[0] == http.client.OK)
            self.until(Path(self.settings["switch"]).exists)
            Path(self.settings["switch"]).chmod(0o666)
            self.post("experiments/search", {"max_results": 1})  # which makes the tables
            yield
        for database in DATABASES:
            machine.sql(f"DROP DATABASE {database} WITH (FORCE)", "postgres")

    def until(self, is_so: Callable[[], bool]) -> None:
        end = time.monotonic() + STARTS
        while not is_so():
            assert time.monotonic() < end, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.1)

    def ask(self, method: str, path: str, document: Any = None) -> tuple[int, Any]:
        """Status and answer of the running MLflow; 0 where there is none yet."""
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        login = base64.b64encode(":".join(ADMIN).encode()).decode()
        headers = {"Host": HOST, "Authorization": f"Basic {login}", "Content-Type": "application/json"}
        try:
            connection.sock.connect(str(self.live / "1.sock"))
            connection.request(method, path, body=json.dumps(document) if document else None, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        except OSError:
            return 0, None
        finally:
            connection.close()
        return answer.status, json.loads(body) if body.startswith(b"{") else body

    def post(self, path: str, document: Any) -> dict[str, Any]:
        """A call that must succeed."""
        status, answer = self.ask("POST", f"/api/2.0/mlflow/{path}", document)
        assert status == http.client.OK, answer
        found: dict[str, Any] = answer
        return found

    def run(self, experiment: str, name: str, end: int) -> dict[str, Any]:
        """A run with two metrics that ended then, in milliseconds; what is known of it."""
        made = self.post("runs/create", {"experiment_id": experiment, "start_time": end - 1, "run_name": name})
        info: dict[str, Any] = made["run"]["info"]
        steps = [(key, step) for key in ("loss", "f1") for step in range(1, 40)]
        logged = {
            "metrics": [{"key": key, "value": 1 / step, "timestamp": step, "step": step} for key, step in steps],
            "params": [{"key": "lr", "value": "0.1"}], "tags": [{"key": "by", "value": "ada"}],
        }  # fmt: skip
        self.post("runs/log-batch", {"run_id": info["run_id"], **logged})
        self.post("runs/update", {"run_id": info["run_id"], "status": "FINISHED", "end_time": end})
        return info

    def accounts(self) -> list[str]:
        return self.machine.sql("SELECT username FROM users ORDER BY id", "accounts")

    def at_work(self) -> list[str]:
        """The commands of MLflow on a copy; what starts them has the same words, and others before."""
        found = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):  # it has ended
                found.append(os.fsdecode(file.read_bytes()).replace("\0", " "))
        return [one for one in found if one.startswith(f"{mlflow_bin()}/python ") and "labtrack_serve.py" in one]
