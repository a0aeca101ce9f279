"""The lab's application on loopback, with accounts and a database of its own, with native routes or without."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from sync_server import LOCKS, Postgres, answers, free_port, mlflow_bin, postgresql_bin

ADMIN = ("admin", "a word of the tests")
ADA = ("ada", "another word of the tests")  # whose the runs are
BOB = ("bob", "a third word of the tests")  # who may read them
API = "/api/2.0/mlflow/"
JSON = {"Content-Type": "application/json"}
# Counts the rows that come by the native routes' own connections, and by no others.
COUNTED = """
CREATE SEQUENCE natively;
CREATE FUNCTION count_native() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF current_setting('application_name') = 'labtrack' THEN PERFORM nextval('natively'); END IF; RETURN NULL;
END $$;
CREATE TRIGGER native_metric AFTER INSERT ON metrics FOR EACH ROW EXECUTE FUNCTION count_native();
CREATE TRIGGER native_param AFTER INSERT ON params FOR EACH ROW EXECUTE FUNCTION count_native();
CREATE TRIGGER native_tag AFTER INSERT ON tags FOR EACH ROW EXECUTE FUNCTION count_native();
ALTER TABLE metrics ENABLE ALWAYS TRIGGER native_metric;
ALTER TABLE params ENABLE ALWAYS TRIGGER native_param;
ALTER TABLE tags ENABLE ALWAYS TRIGGER native_tag;
"""


# mlflowctl as it is, on the databases of a socket.  argv: a database, the socket's folder.
MAKE_INDEXES = f"""
import runpy, sys
import mlflow_databases
name, folder = sys.argv[1:]
mlflow_databases.database = lambda which: {{"dbname": name, "user": "postgres", "host": folder}}
sys.argv = ["mlflowctl", "indexes"]
runpy.run_path({str(LOCKS / "mlflowctl.py")!r}, run_name="__main__")
"""


@dataclass
class LabServer:
    """name: of its database.  native: as LABTRACK_NATIVE says it.  default: what accounts may without a grant.

    counted: whether its database counts what comes natively, which a benchmark would measure, too.
    """

    postgres: Postgres
    name: str
    folder: Path
    native: str = "1"
    default: str = "READ"
    counted: bool = True
    more: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def prepare(self) -> None:
        """Databases, accounts and the settings; then start()."""
        self.folder.mkdir(parents=True)
        self.database, accounts = (self.postgres.create(one) for one in (self.name, f"{self.name}_auth"))
        (self.folder / "auth.ini").write_text(
            f"[mlflow]\ndefault_permission = {self.default}\ndatabase_uri = {accounts}\nadmin_username = {ADMIN[0]}\n"
            f"admin_password = {ADMIN[1]}\nauth_cache_ttl_seconds = 3600\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        )
        self.start()
        for name, word in (ADA, BOB):
            self.post("users/create", {"username": name, "password": word}, ADMIN)
        self.post("experiments/search", {"max_results": 1})  # MLflow makes its tables when they are first needed
        if self.counted:
            self.sql(COUNTED)
        self.indexes()

    def indexes(self) -> list[str]:
        """Makes the kit's own indexes and statistics; what mlflowctl says of those that were not there."""
        python = mlflow_bin() / "python"
        command = [python, "-c", MAKE_INDEXES, self.name, self.postgres.folder]
        env = {**os.environ, "PYTHONPATH": str(LOCKS)}
        return subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()

    def start(self) -> None:
        ours = ("MLFLOW_", "AWS_", "LABTRACK_")
        env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
            "_MLFLOW_SERVER_FILE_STORE": self.database,
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "s3://bucket/artifacts",
            "_MLFLOW_SGI_NAME": "uvicorn",
            "_MLFLOW_IN_JOB_EXECUTOR": "false",
            "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "auth.ini"),
            "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "of a test",
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"lab.example.org,127.0.0.1:{self.port}",
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": "https://lab.example.org",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "LABTRACK_NATIVE": self.native,
            "LABTRACK_PERMISSION_CACHE_SECONDS": "3600",
            "LABTRACK_RUN_DIRECTORY": str(self.folder),
            **self.more,
        }  # fmt: skip
        command = [
            mlflow_bin() / "python", "-m", "uvicorn", "--factory", "labtrack_server:create_app", "--app-dir",
            LOCKS, "--port", str(self.port), "--no-access-log", "--no-server-header",
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=self.folder)
        answers(self.url, self.process, self.folder / "log")

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def send(self, path: str, body: bytes, login: tuple[str, str] | None = ADA, **headers: str) -> requests.Response:
        """One call, as it is."""
        with requests.Session() as session:
            session.trust_env = False
            given: dict[str, Any] = {**JSON, "Host": "lab.example.org", **headers}
            where = self.url + (path if path.startswith("/") else API + path)
            return session.post(where, data=body, auth=login, headers=given, timeout=60)

    def call(self, method: str, path: str, document: Any, login: tuple[str, str] = ADMIN) -> dict[str, Any]:
        """A call by any method that must succeed."""
        with requests.Session() as session:
            session.trust_env = False
            where = self.url + (path if path.startswith("/") else API + path)
            headers = {"Host": "lab.example.org"}
            answer = session.request(method, where, json=document, auth=login, headers=headers, timeout=60)
        assert answer.ok, answer.text
        found: dict[str, Any] = answer.json() if answer.content else {}
        return found

    def post(self, path: str, document: Any, login: tuple[str, str] = ADA) -> dict[str, Any]:
        """A call that must succeed."""
        answer = self.send(path, json.dumps(document).encode(), login)
        assert answer.ok, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def experiment(self, name: str) -> str:
        return str(self.post("experiments/create", {"name": name})["experiment_id"])

    def run(self, experiment_id: str, name: str = "a run") -> str:
        """A new run, to which the native routes know already that ada may write."""
        made = self.post("runs/create", {"experiment_id": experiment_id, "start_time": 1, "run_name": name})
        run_id = str(made["run"]["info"]["run_id"])
        self.post("runs/set-tag", {"run_id": run_id, "key": "made", "value": "by a test"})
        return run_id

    def sql(self, statement: str) -> list[str]:
        """Rows of a statement in the server's database, as psql prints them."""
        programs = postgresql_bin()
        assert programs is not None
        command = [programs / "psql", "-XqAt", "-h", self.postgres.folder, "-U", "postgres", "-d", self.name]
        done = subprocess.run([*command, "-c", statement], check=True, capture_output=True, cwd="/", text=True)
        return done.stdout.splitlines()

    def natively(self) -> int:
        """How many rows the native routes have written."""
        (row,) = self.sql("SELECT last_value - 1 + is_called::int FROM natively")
        return int(row)

    def last_native(self) -> str:
        """When a native route has last asked the database."""
        (at,) = self.sql("SELECT max(query_start) FROM pg_stat_activity WHERE application_name = 'labtrack'")
        return at
