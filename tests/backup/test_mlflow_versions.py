"""From one MLflow to the next, and back: mlflowctl with both releases, on databases of this machine.

The steps are those between the MLflows that a lab may run, and one from before the first of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from sync_server import CACHE, LOCKS, ROOT, Postgres, mlflow_bin, postgresql, postgresql_bin

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

BEFORE = "3.16.0"  # no lab may run it; its schema is older than that of all that may
OFFERED = json.loads((ROOT / "schema/lab.json").read_text())["properties"]["lab_mlflow_version"]["enum"]
VERSIONS = [BEFORE, *OFFERED]
DATABASES = {"tracking": "mlflowdb", "auth": "mlflow_auth"}
# mlflowctl as it is, where databases, dumps and what the release needs are elsewhere.  argv: a folder, the call.
CONTROL = f"""
import runpy, sys
from importlib.metadata import version
from pathlib import Path
import mlflow_databases, mlflow_dumps
folder = Path(sys.argv.pop(1))
def database(which):
    return {{"dbname": {DATABASES!r}[which], "user": "owner", "host": (folder / "host").read_text()}}
mlflow_databases.database = mlflow_dumps.database = database
mlflow_databases.RELEASE = folder / version("mlflow")
mlflow_dumps.BACKUPS = folder / "dumps"
sys.argv[0] = "mlflowctl"
exec((folder / "disturbed.py").read_text())
runpy.run_path({str(LOCKS / "mlflowctl.py")!r}, run_name="__main__")
"""
# For the program above: dies before its KILL-th step on the databases, or fails once both are upgraded, like a trial.
DISTURBED = """
import os, subprocess
KILL, FAIL, done = {kill}, {fail}, []
def step(call):
    def counted(*given, **more):
        done.append(call.__name__)
        if len(done) == KILL:
            os._exit(137)
        return call(*given, **more)
    return counted
mlflow_dumps.begin, mlflow_dumps.end = step(mlflow_dumps.begin), step(mlflow_dumps.end)
mlflow_dumps.restore, run = step(mlflow_dumps.restore), subprocess.run
def ran(command, **more):
    said = run(command, **more)
    if FAIL and "mlflow.server.auth" in command:
        raise subprocess.CalledProcessError(1, command)
    return said
subprocess.run = ran
"""
RECORD = """
import sys
from mlflow.entities import Metric
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
store = SqlAlchemyStore(sys.argv[1], "s3://bucket/artifacts")
for name in sys.argv[2:]:
    run = store.create_run("0", "ada", 1, [], name).info
    store.log_batch(run.run_id, [Metric("loss", 0.5, 1, step) for step in range(3)], [], [])
"""
READ = """
import sys
from mlflow.entities import ViewType
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
store = SqlAlchemyStore(sys.argv[1], "s3://bucket/artifacts")
for run in store.search_runs(["0"], "", ViewType.ALL):
    print(run.info.run_name, len(store.get_metric_history(run.info.run_id, "loss")))
"""
# Has one instance, which starts at boot, so that it is known when it is stopped; writes down what it is asked to do.
SYSTEMCTL = """#!/bin/sh
case "$*" in
"list-units --all "*) echo "mlflow@1.service loaded any any MLflow" ;;
list-units*) [ -e "$0.stopped" ] || echo "mlflow@1.service loaded active running MLflow" ;;
stop*) touch "$0.stopped" ;;
start*) rm -f "$0.stopped" ;;
esac
[ "$1" = list-units ] || echo "$@" >>"$0.log"
"""


class Server:
    """Both databases, the dumps, and a systemctl that only writes down what it is asked."""

    def __init__(self, folder: Path, postgres: Postgres) -> None:
        self.folder, self.host = folder, str(postgres.folder)
        (folder / "host").write_text(self.host)
        (folder / "dumps").mkdir()
        self.disturb()
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.program("systemctl", SYSTEMCTL)
        self.sql("postgres", "CREATE ROLE owner LOGIN")
        for name in DATABASES.values():
            self.sql("postgres", f"CREATE DATABASE {name} OWNER owner")

    def program(self, name: str, text: str) -> Path:
        made = self.programs / name
        made.write_text(text)
        made.chmod(0o755)
        return made

    def disturb(self, *, kill: int = 0, fail: bool = False) -> None:
        """Have all later calls of mlflowctl die before that step, or fail once both databases are upgraded."""
        (self.folder / "disturbed.py").write_text(DISTURBED.format(kill=kill, fail=fail))

    def sql(self, database: str, statement: str) -> str:
        """What psql gives, as PostgreSQL's superuser."""
        command = ["psql", "-XqAt", "-h", self.host, "-U", "postgres", "-d", database, "-c", statement]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout.strip()

    def python(self, version: str, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """A program with the MLflow of a version."""
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
        path = f"{self.programs}:{os.environ['PATH']}"
        return subprocess.run(
            [release(version) / "bin/python", "-W", "ignore", "-c", program, *map(str, arguments)], cwd=self.folder,
            env={**plain, "PATH": path, "PYTHONPATH": str(LOCKS)}, check=False, capture_output=True, text=True,
        )  # fmt: skip

    def control(self, version: str, *call: object, code: int = 0) -> str:
        """What mlflowctl says of a call that has to end with this code."""
        done = self.python(version, CONTROL, self.folder, *call)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    @property
    def uri(self) -> str:
        return f"postgresql+psycopg2://owner@/{DATABASES['tracking']}?host={self.host}"

    def record(self, version: str, *names: str) -> None:
        done = self.python(version, RECORD, self.uri, *names)
        assert done.returncode == 0, done.stderr

    def runs(self, version: str) -> list[str]:
        """Name and number of points of each run, as the MLflow of a version reads them."""
        done = self.python(version, READ, self.uri)
        assert done.returncode == 0, done.stderr
        return sorted(done.stdout.splitlines())

    def start(self) -> None:
        """Its instance, as the role does at the end of a deploy."""
        subprocess.run([self.programs / "systemctl", "start", "mlflow@1.service"], check=True)

    def asked(self) -> list[str]:
        """What systemctl was asked to do since the last time."""
        log = self.programs / "systemctl.log"
        said = log.read_text().splitlines() if log.exists() else []
        log.write_text("")
        return said

    def dumps(self) -> set[Path]:
        return set((self.folder / "dumps").iterdir())


def release(version: str) -> Path:
    """The environment of a version, made once."""
    if version != BEFORE:
        return mlflow_bin(LOCKS / f"requirements-{version}.txt").parent
    folder = CACHE / version
    if not (folder / ".complete").exists():
        uv = Path(sys.executable).with_name("uv")
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder], check=True)
        install = [uv, "pip", "install", "-q", "--python", folder / "bin/python"]
        subprocess.run([*install, f"mlflow[auth]=={version}", "psycopg2-binary"], check=True)
        (folder / ".complete").touch()
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    if postgresql_bin() is None:
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    with postgresql("labtrack-versions-") as postgres:
        made = Server(tmp_path, postgres)
        for version in VERSIONS:
            (tmp_path / version).mkdir()
            (tmp_path / version / ".complete").write_text(
                made.python(version, CONTROL, tmp_path, "heads").stdout
            )  # as the role notes it
        yield made


@pytest.mark.parametrize(("older", "newer"), list(pairwise(VERSIONS)))
def test_up_with_all_runs_and_back_by_the_dumps(server: Server, older: str, newer: str) -> None:
    server.control(older, "schema", code=3)
    server.control(older, "upgrade")
    server.record(older, "one", "two")
    assert server.asked() == ["stop mlflow@1.service"]

    server.control(newer, "schema", code=3)
    server.control(newer, "upgrade")
    server.control(newer, "schema")
    assert server.runs(newer) == ["one 3", "two 3"]
    assert server.asked() == ["stop mlflow@1.service"]  # what starts it is the new release's unit
    of_upgrade = sorted(server.dumps())
    assert len(of_upgrade) == len(DATABASES)

    server.record(newer, "three")
    for call in ("schema", "upgrade"):
        said = server.control(older, call, code=1)
        assert f"of a newer MLflow, and {older} can't read it" in said and "docs/admin/upgrade.md" in said
    assert server.asked() == []
    assert server.runs(newer) == ["one 3", "three 3", "two 3"]

    said = server.control(newer, "back", of_upgrade[0], of_upgrade[0], code=1)
    assert "To fix: name one of each database" in said and server.asked() == []
    server.control(newer, "back", *of_upgrade)
    assert server.asked() == ["stop mlflow@1.service"]
    server.control(older, "schema")
    assert server.runs(older) == ["one 3", "two 3"]
    since = sorted(server.dumps() - set(of_upgrade))
    server.control(older, "back", *since)
    assert server.runs(newer) == ["one 3", "three 3", "two 3"]


@pytest.mark.parametrize(("older", "newer"), list(pairwise(VERSIONS)))
def test_a_dump_that_fails_leaves_the_old_server_running(server: Server, older: str, newer: str) -> None:
    server.control(older, "upgrade")
    server.record(older, "one")
    server.asked()
    at = server.sql(DATABASES["tracking"], "SELECT oid FROM pg_class WHERE relname = 'runs'")
    real = subprocess.run(["sh", "-c", "command -v pg_dump"], check=True, capture_output=True, text=True).stdout
    broken = f'#!/bin/sh\ncase "$*" in *{DATABASES["auth"]}*) exit 1 ;; esac\nexec {real.strip()} "$@"\n'
    program = server.program("pg_dump", broken)
    said = server.control(newer, "upgrade", code=1)
    assert f"{DATABASES['auth']} could not be dumped" in said and "what ran before runs again" in said
    assert server.asked() == ["stop mlflow@1.service", "start mlflow@1.service"]
    # not even put back: the same table is there
    assert server.sql(DATABASES["tracking"], "SELECT oid FROM pg_class WHERE relname = 'runs'") == at
    assert server.runs(older) == ["one 3"]
    program.unlink()
    server.control(newer, "upgrade")
    assert server.runs(newer) == ["one 3"]


# What a call does to the databases, whose first instance runs: it forgets what was begun (2), notes a beginning for
# each (4, as that forgets, too), upgrades both, and notes the ends (2), or, where that fails, puts both back (2).
# Killed where the instance stands still and nothing is noted; with one note; with both, upgraded; with one end; and
# with one put back.
WORKS, FAILS = (3, 5, 7, 8), (8,)
BETWEEN_ENDS = WORKS[-1]


@pytest.mark.parametrize(("older", "newer"), list(pairwise(VERSIONS)))
def test_killed_at_any_step_the_next_run_goes_back_or_has_no_need_to(server: Server, older: str, newer: str) -> None:
    server.control(older, "upgrade")
    server.record(older, "one")
    server.control(newer, "upgrade")
    (kept := server.folder / "kept").mkdir()  # where no later dump takes their place
    behind = [shutil.copy(dump, kept) for dump in sorted(server.dumps())]
    assert len(behind) == len(DATABASES)
    for fails, kill in [*((False, step) for step in WORKS), *((True, step) for step in FAILS)]:
        server.control(newer, "back", *behind)
        server.start()
        server.disturb(kill=kill, fail=fails)
        server.control(newer, "upgrade", code=137)
        server.asked()
        server.disturb(fail=True)
        if (fails, kill) == (False, BETWEEN_ENDS):  # it was tried, and has worked
            server.control(newer, "upgrade")
            server.disturb()
            server.control(newer, "schema")
            assert server.runs(newer) == ["one 3"] and server.asked() == []
            continue
        said = server.control(newer, "upgrade", code=1)
        server.disturb()
        assert "The databases are as they were, and what ran before runs again." in said
        assert server.asked()[-1] == "start mlflow@1.service", kill
        server.control(older, "schema")
        assert server.runs(older) == ["one 3"]
    server.control(newer, "upgrade")
    assert server.runs(newer) == ["one 3"]
