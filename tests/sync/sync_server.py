"""A real tracking server for the tests: MLflow as the kit locks it, with PostgreSQL, on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "roles/mlflow/files"
# Of the versions that a lab may run: the default, or the one that is to be tested.
REQUIREMENTS = LOCKS / f"requirements-{os.environ.get('LABTRACK_TEST_MLFLOW', '3.17.2')}.txt"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "labtrack" / "mlflow-servers"
STARTS = 240.0  # seconds: two processes that import MLflow on a busy machine
_EMPTY = (
    "import sys; from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine_with_retry as engine\n"
    "_initialize_tables(engine('sqlite:///' + sys.argv[1]))"
)


def mlflow_bin(requirements: Path = REQUIREMENTS) -> Path:
    """The bin folder of an environment with the server's MLflow, or of another lock, made once for each lock file."""
    folder = CACHE / hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]
    done = folder / ".complete"
    if not done.exists():
        uv = Path(sys.executable).with_name("uv")
        python = folder / "bin/python"
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder], check=True)
        install = [uv, "pip", "install", "-q", "--python", python, "--require-hashes", "-r", requirements]
        subprocess.run(install, check=True)
        done.touch()
    return folder / "bin"


def empty_database() -> Path:
    """A SQLite file with the tables of the server's MLflow and nothing in them, made once for each lock file."""
    found = mlflow_bin().parent / "empty.db"
    if not found.exists():
        part = found.with_suffix(".part")
        part.unlink(missing_ok=True)
        subprocess.run([mlflow_bin() / "python", "-c", _EMPTY, part], check=True, capture_output=True)
        with contextlib.closing(sqlite3.connect(part)) as database:
            database.execute("DELETE FROM experiments")
            database.commit()
        part.replace(found)
    return found


def postgresql_bin() -> Path | None:
    """Where the distribution keeps PostgreSQL's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda one: int(one.parts[4]))
    return found[-1].parent if found else None


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until a server of MLflow's answers.  Raises RuntimeError, with the log's end, where it does not."""
    end = time.monotonic() + STARTS
    while True:
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{url}/health", timeout=2).ok:
                return
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the server does not start:\n{log.read_text()[-3000:]}")
        time.sleep(0.2)


class Postgres:
    """A throw-away cluster that listens on a socket only."""

    def __init__(self, folder: Path) -> None:
        self._bin, self.folder = postgresql_bin(), folder
        self._data = folder / "data"
        self._as = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []

    def start(self) -> None:
        assert self._bin is not None
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres")
        quick = "-c fsync=off -c full_page_writes=off -c synchronous_commit=off"
        whole = "-c track_activity_query_size=8192"  # what a test reads of a statement
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.folder}' {quick} {whole}"
        for command in (
            [self._bin / "initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"],
            [self._bin / "pg_ctl", "-D", self._data, "-w", "-l", self.folder / "log", "-o", options, "start"],
        ):
            subprocess.run([*self._as, *command], check=True, capture_output=True, cwd="/")

    def create(self, name: str) -> str:
        """Makes a database; gives its address."""
        assert self._bin is not None
        subprocess.run([self._bin / "createdb", "-h", self.folder, "-U", "postgres", name], check=True, cwd="/")
        return f"postgresql+psycopg2://postgres@/{name}?host={self.folder}"

    def stop(self) -> None:
        assert self._bin is not None
        command = [self._bin / "pg_ctl", "-D", self._data, "-m", "immediate", "stop"]
        subprocess.run([*self._as, *command], check=False, capture_output=True, cwd="/")


@dataclass
class TrackingServer:
    """`mlflow server` with its artifacts in a folder of its own.

    plain: with the event loop that `pip install mlflow` brings; the kit's requirements have a faster one.
    """

    database: str
    folder: Path
    workers: int = 1
    serve_artifacts: bool = True
    login: bool = False
    plain: bool = False
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        artifacts = self.folder / "artifacts"
        where = ["--artifacts-destination", artifacts] if self.serve_artifacts else ["--no-serve-artifacts"]
        root = [] if self.serve_artifacts else ["--default-artifact-root", artifacts]
        guard = ["--app-name", "basic-auth"] if self.login else []
        loop = ["--uvicorn-opts", "--loop asyncio --http h11"] if self.plain else []
        command = [
            mlflow_bin() / "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--backend-store-uri",
            self.database, "--workers", str(self.workers), *where, *root, *guard, *loop,
        ]  # fmt: skip
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
        env = {
            **plain, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true",
            "PATH": f"{mlflow_bin()}:{os.environ['PATH']}", "MLFLOW_FLASK_SERVER_SECRET_KEY": "of a test",
            "MLFLOW_AUTH_ADMIN_USERNAME": "admin", "MLFLOW_AUTH_ADMIN_PASSWORD": "a word of the tests",
        }  # fmt: skip
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            command, env=env, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
        )
        answers(self.url, self.process, self.folder / "log")

    def kill(self) -> None:
        """kill -9, the whole group."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def forget(self) -> None:
        """Removes all runs and models for good, as if nothing had ever been sent."""
        self.sql("TRUNCATE runs, logged_models CASCADE")

    def sql(self, statement: str) -> None:
        """One statement in the server's database."""
        programs, (_, _, host) = postgresql_bin(), self.database.partition("host=")
        assert programs is not None
        command = [programs / "psql", "-q", "-h", host, "-U", "postgres", "-d", "mlflow", "-c"]
        subprocess.run([*command, statement], check=True, capture_output=True, cwd="/")

    def post(self, path: str, **data: Any) -> dict[str, Any]:
        """One call of the REST interface, by requests alone: an independent witness."""
        answer = requests.post(f"{self.url}/api/2.0/mlflow/{path}", json=data, timeout=60)
        assert answer.ok, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        answer = requests.get(f"{self.url}/api/2.0/mlflow/{path}", params=query, timeout=60)
        assert answer.ok, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def experiments(self) -> dict[str, str]:
        found = self.post("experiments/search", max_results=1000, view_type="ALL").get("experiments", [])
        return {one["name"]: one["experiment_id"] for one in found}

    def runs(self, *names: str) -> list[dict[str, Any]]:
        """All runs of these experiments, or of all, deleted ones too."""
        ids = [one for name, one in self.experiments().items() if not names or name in names]
        found = self.post("runs/search", experiment_ids=ids, max_results=10_000, run_view_type="ALL")
        return list(found.get("runs", []))

    def history(self, run_id: str, key: str) -> list[tuple[int, int, float]]:
        found = self.get("metrics/get-history", run_id=run_id, metric_key=key).get("metrics", [])
        return sorted((int(one["timestamp"]), int(one.get("step", 0)), float(one["value"])) for one in found)

    def files(self, artifact_uri: str) -> dict[str, bytes]:
        """What is in the store, read where the server keeps it."""
        inside = artifact_uri.partition("mlflow-artifacts:/")[2].strip("/")
        root = self.folder / "artifacts" / inside if inside else Path(artifact_uri)
        return {
            path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
        }


@contextlib.contextmanager
def postgresql(prefix: str = "labtrack-sync-") -> Iterator[Postgres]:
    """A cluster in a folder of its own, in which there is room for others; gone at the end."""
    with tempfile.TemporaryDirectory(prefix=prefix) as name:
        folder = Path(name)
        folder.chmod(0o755)
        place = folder / "postgresql"
        place.mkdir()
        found = Postgres(place)
        found.start()
        try:
            yield found
        finally:
            found.stop()


@contextlib.contextmanager
def tracking_server(*, workers: int = 1, login: bool = False, plain: bool = False) -> Iterator[TrackingServer]:
    """PostgreSQL and a server, gone at the end."""
    with postgresql() as postgres:
        folder = postgres.folder.parent / "mlflow"
        server = TrackingServer(postgres.create("mlflow"), folder, workers, login=login, plain=plain)
        server.start()
        try:
            yield server
        finally:
            server.kill()


@contextlib.contextmanager
def server_with_a_file(folder: Path) -> Iterator[TrackingServer]:
    """A server with a SQLite file in a folder, gone at the end."""
    server = TrackingServer(f"sqlite:///{folder}/mlflow.db", folder / "server")
    server.start()
    try:
        yield server
    finally:
        server.kill()


def tag(run: dict[str, Any], key: str) -> str | None:
    """A tag of a run as the server gives it."""
    return {one["key"]: one["value"] for one in run["data"].get("tags", [])}.get(key)


# facts of a copy that are not the recording's
_OURS = ("labtrack.created", "labtrack.source_store")


def snapshot(server: TrackingServer, *experiments: str) -> list[Any]:
    """Everything that is in these experiments, with recorded ids in the place of the server's, in a fixed order.

    Empty copies that a sync deleted itself, and says so, are left out; what else is there twice is there twice.
    """
    runs = [one for one in server.runs(*experiments) if not tag(one, "labtrack.duplicate_of")]
    ids = {one["info"]["run_id"]: tag(one, "labtrack.source_run_id") or "?" for one in runs}
    numbers = server.experiments()
    models = server.post("logged-models/search", experiment_ids=[numbers[one] for one in experiments], max_results=50)
    for model in models.get("models", []):
        marks = {one["key"]: one["value"] for one in model["info"].get("tags", [])}
        ids[model["info"]["model_id"]] = marks.get("labtrack.source_model_id", "?")

    def old(text: str) -> str:
        for new, recorded in ids.items():
            text = text.replace(new, recorded)
        return text

    def pairs(values: list[dict[str, str]]) -> list[tuple[str, str]]:
        return sorted((one["key"], old(one.get("value", ""))) for one in values if one["key"] not in _OURS)

    found: list[Any] = [_run(server, one, old, pairs) for one in runs]
    for model in models.get("models", []):
        info = model["info"]
        facts = [old(info["model_id"]), info["name"], info["status"], old(info.get("source_run_id", ""))]
        data = model.get("data", {})
        scores = sorted((one["key"], one["value"], old(one.get("run_id", ""))) for one in data.get("metrics", []))
        found.append([*facts, pairs(info.get("tags", [])), pairs(data.get("params", [])), scores,
                      server.files(info["artifact_uri"])])  # fmt: skip
    return sorted(found, key=repr)


def _run(server: TrackingServer, run: dict[str, Any], old: Any, pairs: Any) -> list[Any]:
    info, data = run["info"], run["data"]
    names = ("run_name", "user_id", "status", "start_time", "end_time", "lifecycle_stage")
    histories = {one["key"]: repr(server.history(info["run_id"], one["key"])) for one in data.get("metrics", [])}
    datasets = [
        (one["dataset"]["name"], one["dataset"]["digest"], pairs(one.get("tags", [])))
        for one in run.get("inputs", {}).get("dataset_inputs", [])
    ]
    outputs = sorted(old(one["model_id"]) for one in run.get("outputs", {}).get("model_outputs", []))
    return [old(info["run_id"]), [info.get(one) for one in names], pairs(data.get("params", [])),
            pairs(data.get("tags", [])), sorted(histories.items()), sorted(datasets), outputs,
            server.files(info["artifact_uri"])]  # fmt: skip
