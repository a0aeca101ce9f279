"""What was acknowledged is there, whatever ends meanwhile; and who may write is decided as by MLflow."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from lab_server import ADA, ADMIN, BOB, LabServer
from sync_server import Postgres, postgresql_bin

POINT = {"key": "loss", "value": 0.5, "timestamp": 1, "step": 0}


@pytest.fixture(scope="module")
def server(serve: Callable[..., LabServer]) -> LabServer:
    """One that may be killed; what PostgreSQL acknowledges is durable, and nothing waits for long."""
    found = serve("killed", more={"LABTRACK_NATIVE_STATEMENT_SECONDS": "2"})
    found.sql("ALTER DATABASE killed SET synchronous_commit = on")
    return found


@pytest.fixture
def run_id(server: LabServer) -> Iterator[str]:
    if server.process is None or server.process.poll() is not None:
        server.start()
    yield server.run(server.experiment(f"faults {time.monotonic_ns()}"))
    if server.process is not None and server.process.poll() is None:
        server.process.send_signal(signal.SIGCONT)


def log(server: LabServer, run_id: str, **more: object) -> requests.Response:
    return server.send("runs/log-metric", json.dumps({"run_id": run_id, **POINT, **more}).encode())


def steps(server: LabServer, run_id: str) -> list[int]:
    return sorted(int(row) for row in server.sql(f"SELECT step FROM metrics WHERE run_uuid = '{run_id}'"))


def writers(server: LabServer, run_id: str, meanwhile: Callable[[], object]) -> tuple[list[int], list[int]]:
    """Eight writers of a step after the other, until one has gone wrong for each: (acknowledged, not acknowledged)."""
    good: list[int] = []
    bad: list[int] = []
    begun = threading.Barrier(9)

    def write(first: int) -> None:
        begun.wait(timeout=60)
        for step in range(first, 8 * 5000, 8):
            try:
                answer = log(server, run_id, step=step)
            except requests.RequestException:
                bad.append(step)
                return
            if answer.status_code != 200:
                assert answer.status_code == 503, answer.text
                assert answer.headers["Retry-After"] or answer.json()["error_code"] == "TEMPORARILY_UNAVAILABLE"
                bad.append(step)
                return
            good.append(step)

    with ThreadPoolExecutor(9) as pool:
        all_of_them = [pool.submit(write, first) for first in range(8)]
        begun.wait(timeout=60)
        while len(good) < 100:
            time.sleep(0.01)
        meanwhile()
        for one in all_of_them:
            one.result(timeout=60)
    return good, bad


def test_an_acknowledged_write_survives_a_killed_server_and_a_retry_makes_no_double(
    server: LabServer, run_id: str
) -> None:
    before = server.natively()
    good, bad = writers(server, run_id, server.kill)
    there = steps(server, run_id)
    assert server.natively() - before >= len(good)
    assert set(good) <= set(there) <= set(good + bad)
    assert len(bad) == 8  # each writer was in the middle of something
    server.start()
    for step in bad:  # as a client does that has had no answer
        for _ in range(2):
            assert log(server, run_id, step=step).status_code == 200
    assert steps(server, run_id) == sorted(good + bad)
    (latest,) = server.sql(f"SELECT step FROM latest_metrics WHERE run_uuid = '{run_id}'")
    assert int(latest) == max(good + bad)


def test_an_acknowledged_run_survives_a_killed_server_and_none_is_there_by_the_half(
    server: LabServer, run_id: str
) -> None:
    (experiment,) = server.sql(f"SELECT experiment_id FROM runs WHERE run_uuid = '{run_id}'")
    good: list[str] = []
    body = json.dumps({"experiment_id": experiment, "tags": [{"key": "why", "value": "a test"}]}).encode()

    def begin(_: int) -> None:
        with contextlib.suppress(requests.RequestException):
            answer = server.send("runs/create", body)
            assert answer.status_code == 200, answer.text
            good.append(answer.json()["run"]["info"]["run_id"])

    before = server.natively()
    with ThreadPoolExecutor(8) as pool:
        begun = [pool.submit(begin, number) for number in range(4000)]
        while len(good) < 100:
            time.sleep(0.01)
        server.kill()
        for one in begun:
            one.result(timeout=60)
    mine = f"FROM runs WHERE run_uuid <> '{run_id}' AND experiment_id = {experiment}"
    there = server.sql(f"SELECT run_uuid {mine}")
    assert set(good) <= set(there)
    assert len(there) <= len(good) + 8
    tags = "SELECT count(*) FROM tags WHERE run_uuid = runs.run_uuid AND key IN ('why', 'mlflow.runName')"
    assert server.sql(f"SELECT DISTINCT ({tags}) {mine}") == ["2"]
    assert server.natively() - before >= 2 * len(good)


def test_a_restart_of_the_database_loses_nothing_and_is_over_by_itself(
    server: LabServer, run_id: str, postgres: Postgres
) -> None:
    programs = postgresql_bin()
    assert programs is not None
    restart = [programs / "pg_ctl", "-D", postgres.folder / "data", "-m", "immediate", "-w", "restart"]
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []

    def restarted() -> None:
        subprocess.run(
            [*as_postgres, *restart], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
        )

    good, bad = writers(server, run_id, restarted)
    assert set(good) <= set(steps(server, run_id)) <= set(good + bad)
    before = server.natively()
    end = time.monotonic() + 30
    while log(server, run_id, step=-1).status_code != 200:
        assert time.monotonic() < end, server.log()[-2000:]
        time.sleep(0.1)
    assert log(server, run_id, step=-2).status_code == 200
    assert server.natively() > before


def test_a_write_that_waits_too_long_is_not_acknowledged_and_not_written(server: LabServer, run_id: str) -> None:
    """Somebody holds the run's row; the statement's time is over before."""
    held = f"BEGIN; SELECT FROM runs WHERE run_uuid = '{run_id}' FOR UPDATE; SELECT pg_sleep(4)"
    with ThreadPoolExecutor() as pool:
        holder = pool.submit(server.sql, held)
        while not server.sql(
            "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(4)%' AND pid <> pg_backend_pid()"
        ):
            time.sleep(0.05)
        answer = log(server, run_id)
        holder.result()
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    assert answer.json()["error_code"] == "TEMPORARILY_UNAVAILABLE"
    assert steps(server, run_id) == []
    assert log(server, run_id).status_code == 200


def memory(server: LabServer) -> int:
    """MiB of the server's process."""
    assert server.process is not None
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) // 1024


def test_too_many_waiting_writes_are_told_to_come_again_and_memory_stays(server: LabServer, run_id: str) -> None:
    """Nobody gets a connection: 200 wait, the others are answered at once."""
    metrics = [{**POINT, "key": f"{number:0200d}"} for number in range(100)]
    body = json.dumps({"run_id": run_id, "metrics": metrics}).encode()
    assert log(server, run_id).status_code == 200
    before, answers = memory(server), []

    def told() -> int:
        return sum("too many requests are waiting" in answer.text for answer in answers)

    with ThreadPoolExecutor(261) as pool:
        holder = pool.submit(
            server.sql, f"BEGIN; SELECT FROM runs WHERE run_uuid = '{run_id}' FOR UPDATE; SELECT pg_sleep(60)"
        )
        held = "FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid()"
        while not server.sql(f"SELECT 1 {held}"):
            time.sleep(0.05)
        sent = [pool.submit(lambda: answers.append(server.send("runs/log-batch", body))) for _ in range(260)]
        while told() < 20 and not all(one.done() for one in sent):
            time.sleep(0.05)
        server.sql(f"SELECT pg_terminate_backend(pid) {held}")
        assert holder.exception() is not None
        for one in sent:
            one.result()
    assert told() >= 20, collections.Counter((one.status_code, one.text[:150]) for one in answers)
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert all(answer.headers["Retry-After"] == "1" for answer in answers if answer.status_code == 503)
    assert memory(server) - before < 64
    assert server.send("runs/log-batch", body).status_code == 200


@pytest.mark.parametrize("how", ["revoked", "deleted"])
def test_a_right_that_is_taken_away_ends_with_the_next_native_write(server: LabServer, run_id: str, how: str) -> None:
    name, word = f"eve-{how}", "a fourth word of the tests"
    server.post("users/create", {"username": name, "password": word}, ADMIN)

    def eve(step: int) -> int:
        body = json.dumps({"run_id": run_id, **POINT, "step": step}).encode()
        return server.send("runs/log-metric", body, (name, word)).status_code

    (experiment,) = server.sql(f"SELECT experiment_id FROM runs WHERE run_uuid = '{run_id}'")
    about = {"username": name, "resource_type": "experiment", "resource_id": experiment}
    assert eve(0) == 403
    server.post("/api/3.0/mlflow/users/permissions/grant", {**about, "permission": "EDIT"}, ADA)
    before = server.natively()
    assert [eve(step) for step in range(4)] == [200] * 4
    assert server.natively() - before == 4, "the first too, after MLflow was asked"
    if how == "revoked":
        server.post("/api/3.0/mlflow/users/permissions/revoke", about, ADA)
    else:
        where, headers = f"{server.url}/api/2.0/mlflow/users/delete", {"Host": "lab.example.org"}
        assert requests.delete(where, json={"username": name}, auth=ADMIN, headers=headers, timeout=60).ok
    assert eve(9) == (401 if how == "deleted" else 403)
    assert steps(server, run_id) == [0, 1, 2, 3]


def test_a_changed_password_ends_the_old_one_with_the_next_native_write(server: LabServer, run_id: str) -> None:
    assert log(server, run_id).status_code == 200
    before = server.natively()
    assert log(server, run_id, step=1).status_code == 200
    assert server.natively() == before + 1
    for word in ("a new word of the tests", ADA[1]):
        answer = requests.patch(
            f"{server.url}/api/2.0/mlflow/users/update-password", json={"username": ADA[0], "password": word},
            auth=ADMIN, headers={"Host": "lab.example.org"}, timeout=60,
        )  # fmt: skip
        assert answer.ok, answer.text
        assert log(server, run_id, step=2).status_code == (200 if word == ADA[1] else 401)


def test_an_admin_s_and_a_stranger_s_writes_are_mlflow_s(server: LabServer, run_id: str) -> None:
    """That somebody is an admin is never remembered, and a refusal neither."""
    before = server.natively()
    body = json.dumps({"run_id": run_id, **POINT}).encode()
    assert [server.send("runs/log-metric", body, who).status_code for who in (ADMIN, BOB, BOB)] == [200, 403, 403]
    assert server.natively() == before


def test_without_remembered_permissions_the_routes_are_mlflow_s_and_the_journal_says_why(
    server: LabServer, run_id: str
) -> None:
    usual, server.more = server.more, {"LABTRACK_PERMISSION_CACHE_SECONDS": "0"}
    server.kill()
    server.start()
    before = server.natively()
    assert [log(server, run_id, step=step).status_code for step in range(3)] == [200] * 3
    assert server.natively() == before
    assert "routes of training loops are MLflow's own: permissions or passwords are not remembered" in server.log()
    server.more = usual
    server.kill()


@pytest.fixture(params=["by the statement alone", "by PostgreSQL, too"])
def locked(request: pytest.FixtureRequest, server: LabServer) -> Iterator[None]:
    """Who locks a run: where MLflow's role may not leave PostgreSQL's own checks out, they are made."""
    if request.param == "by the statement alone":
        yield
        return
    usual = server.database
    server.sql(
        "DROP ROLE IF EXISTS plain; CREATE ROLE plain LOGIN; GRANT USAGE ON SCHEMA public TO plain; "
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO plain; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO plain"
    )
    assert server.sql("SELECT has_parameter_privilege('plain', 'session_replication_role', 'SET')") == ["f"]
    server.kill()
    server.database = usual.replace("//postgres@", "//plain@")
    server.start()
    yield
    server.kill()
    server.database = usual
    server.sql("DROP OWNED BY plain; DROP ROLE plain")
    server.start()


@pytest.mark.usefixtures("locked")
def test_no_point_stays_of_a_run_that_is_deleted_for_good_meanwhile(server: LabServer, run_id: str) -> None:
    """The garbage collection has deleted it, and has not committed that: the point waits, and is MLflow's to refuse."""
    metrics = [{**POINT, "key": f"metric {number}"} for number in range(500)]
    body = json.dumps({"run_id": run_id, "metrics": metrics, "params": [{"key": "lr", "value": "1"}]}).encode()
    before = server.natively()
    assert [server.send("runs/log-batch", body).status_code for _ in range(2)] == [200, 200]
    assert server.natively() - before >= 501
    for table in ("metrics", "latest_metrics", "params"):
        server.sql(f"DELETE FROM {table} WHERE run_uuid = '{run_id}'")
    programs = postgresql_bin()
    assert programs is not None
    command = [programs / "psql", "-XqAt", "-h", server.postgres.folder, "-U", "postgres", "-d", server.name]
    delete = "".join(f"DELETE FROM {table} WHERE run_uuid = '{run_id}'; " for table in ("tags", "runs"))
    waits = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'labtrack' AND wait_event_type = 'Lock'"
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1, cwd="/") as psql,
        ThreadPoolExecutor(1) as pool,
    ):
        assert psql.stdin is not None
        assert psql.stdout is not None
        psql.stdin.write(f"BEGIN; {delete} SELECT 'deleted';\n")
        assert psql.stdout.readline() == "deleted\n"
        answer = pool.submit(log, server, run_id)
        while not answer.done() and not server.sql(waits):
            pass
        psql.stdin.write("COMMIT;\n")
        psql.stdin.close()
        assert answer.result().status_code == 404
    assert steps(server, run_id) == []


def test_rows_refer_to_nothing_that_the_statements_do_not_lock(server: LabServer) -> None:
    """These references are not checked by PostgreSQL: database.REFERENCES."""
    tables = "'experiments', 'runs', 'metrics', 'latest_metrics', 'params', 'tags'"
    refer = f"""SELECT conrelid::regclass || ' to ' || confrelid::regclass FROM pg_constraint
        WHERE contype = 'f' AND conrelid = ANY(ARRAY[{tables}]::regclass[]) ORDER BY 1"""
    of_a_run = [f"{table} to runs" for table in ("latest_metrics", "metrics", "params", "tags")]
    assert server.sql(refer) == sorted([*of_a_run, "runs to experiments"])
