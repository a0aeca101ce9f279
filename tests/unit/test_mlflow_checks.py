"""mlflowctl's checks: the store against an S3 server of this test, the rest with stand-ins for PostgreSQL."""

from __future__ import annotations

import http.server
import json
import os
import pwd
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

import pytest
from conftest import ROOT

FILES = ROOT / "roles/mlflow/files"
OLD, NEW = "2026-01-01T00:00:00.000Z", "2126-01-01T00:00:00.000Z"  # older than an hour, and not
GIB = 2**30


class Store(http.server.ThreadingHTTPServer):
    """A bucket that keeps versions, or not; what HEAD says of it is the test's."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.versions: list[dict[str, Any]] = []  # key, id, time, body; None is a delete marker
        self.keeps = False
        self.head: dict[str, str] = {}
        self.broken = ""  # method that is refused
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, key: str, body: bytes | None, when: str = NEW) -> str:
        if not self.keeps:
            self.versions = [one for one in self.versions if one["key"] != key]
        name = f"v{len(self.asked)}" if self.keeps else ""
        if body is not None or self.keeps:
            self.versions.append({"key": key, "id": name, "time": when, "body": body})
        return name


class Handler(http.server.BaseHTTPRequestHandler):
    server: Store

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_any(self) -> None:
        store, parts = self.server, urlsplit(self.path)
        query, key = (
            parse_qs(parts.query, keep_blank_values=True),
            parts.path.removeprefix("/artifacts-bucket").lstrip("/"),
        )
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        store.asked.append(f"{self.command} {self.path}")
        if store.broken == self.command:
            return self.answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        if self.command == "HEAD":
            return self.answer(200, **(store.head if "read-stats" in query else {}))
        if self.command == "PUT":
            name = store.put(key, body)
            return self.answer(200, **({"x_amz_version_id": name} if name else {}))
        if self.command == "DELETE":
            if "versionId" in query:
                store.versions = [one for one in store.versions if one["id"] != query["versionId"][0]]
            else:
                store.put(key, None)
            return self.answer(204)
        if key:
            found = [one["body"] for one in store.versions if one["key"] == key]
            return self.answer(200, found[-1]) if found else self.answer(404)
        return self.answer(200, self.listed("versions" in query).encode())

    def listed(self, versions: bool) -> str:
        kinds = {True: "Version" if versions else "Contents", False: "DeleteMarker"}
        rows = [
            f"<{kind}><Key>{escape(one['key'])}</Key><VersionId>{one['id']}</VersionId>"
            f"<LastModified>{one['time']}</LastModified></{kind}>"
            for one in self.server.versions
            for kind in (kinds[one["body"] is not None],)
        ]
        name = "ListVersionsResult" if versions else "ListBucketResult"
        return f"<{name}>{''.join(rows)}</{name}>"

    do_GET = do_PUT = do_DELETE = do_HEAD = do_any


@pytest.fixture
def store() -> Iterator[Store]:
    server = Store()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def checks(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, on a server whose settings name that store."""
    settings = tmp_path / "settings.env"
    lines = {
        "MLFLOW_S3_ENDPOINT_URL": store.url, "_MLFLOW_SERVER_ARTIFACT_ROOT": "s3://artifacts-bucket/artifacts",
        "AWS_DEFAULT_REGION": "RegionOne", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        "_MLFLOW_SERVER_FILE_STORE": "postgresql+psycopg2://mlflow@/mlflowdb?host=/run/postgresql",
    }  # fmt: skip
    settings.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.syspath_prepend(str(FILES))
    for name in ("mlflow_databases", "mlflow_checks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import mlflow_checks
    import mlflow_databases

    monkeypatch.setattr(mlflow_databases, "SETTINGS", [settings])
    monkeypatch.setattr(mlflow_databases, "ACCOUNT", pwd.getpwuid(os.getuid()).pw_name)
    return mlflow_checks


@pytest.mark.parametrize("keeps", [False, True])
def test_store_leaves_nothing_behind(checks: ModuleType, store: Store, keeps: bool) -> None:
    store.keeps = keeps
    row = checks.row("store")
    assert (row["status"], row["seen"]) == ("ok", "wrote, read and deleted an object in artifacts-bucket")
    assert store.versions == [], "no object, no version, no delete marker"


def test_store_leaves_nothing_behind_when_it_fails(checks: ModuleType, store: Store) -> None:
    store.keeps, store.broken = True, "GET"
    row = checks.row("store")
    assert row["status"] == "failed" and "AccessDenied" in row["seen"] and row["hint"]
    assert store.versions == []


@pytest.mark.parametrize("keeps", [False, True])
def test_store_removes_what_a_killed_check_has_left(checks: ModuleType, store: Store, keeps: bool) -> None:
    store.keeps = keeps
    for number, when in enumerate((OLD, NEW)):
        store.asked.append("")
        store.put(f"labtrack-health/{number}", b"labtrack", when)
    if keeps:
        store.asked.append("")
        store.put("labtrack-health/0", None, OLD)
    assert checks.row("store")["status"] == "ok"
    assert [one["key"] for one in store.versions] == ["labtrack-health/1"], "another check may be at work on it"


def test_store_that_does_not_answer(checks: ModuleType, store: Store) -> None:
    store.shutdown()
    store.server_close()
    row = checks.row("store")
    assert row["status"] == "failed" and "Could not connect to the endpoint" in row["seen"]
    assert checks.row("quota")["status"] == "skipped", "one trouble is one row"


@pytest.mark.parametrize(
    ("head", "status", "seen"),
    [
        ({}, "skipped", "the store tells neither use nor quota"),
        (
            {"x_rgw_bytes_used": str(GIB), "x_rgw_object_count": "7"},
            "skipped",
            "1,024 MiB in 7 objects; the store tells no",
        ),
        ({"x_rgw_bytes_used": str(GIB), "x_rgw_quota_bucket_size": "-1"}, "ok", "1,024 MiB in some objects, no quota"),
        (
            {"x_rgw_bytes_used": str(GIB), "x_rgw_quota_bucket_size": str(2 * GIB)},
            "ok",
            "1,024 MiB in some objects, of 2,048",
        ),
        (
            {"x_rgw_bytes_used": str(9 * GIB), "x_rgw_quota_bucket_size": "-1", "x_rgw_quota_user_size": str(10 * GIB)},
            "warning",
            "9,216 MiB in some objects, of 10,240 MiB",
        ),
        (
            {"x_rgw_bytes_used": str(GIB), "x_rgw_quota_bucket_size": str(GIB)},
            "failed",
            "1,024 MiB in some objects, of 1,024",
        ),
    ],
)
def test_quota(checks: ModuleType, store: Store, head: dict[str, str], status: str, seen: str) -> None:
    store.head = head
    row = checks.row("quota")
    assert row["status"] == status and row["seen"].startswith(seen)
    assert bool(row["hint"]) == (status in ("warning", "failed"))


def test_quota_of_a_store_that_does_not_know_the_question(checks: ModuleType, store: Store) -> None:
    store.broken = "HEAD"
    assert checks.row("quota")["status"] == "skipped"


@pytest.mark.parametrize(("used", "status"), [(10, "ok"), (80, "warning"), (96, "failed")])
def test_connections(checks: ModuleType, monkeypatch: pytest.MonkeyPatch, used: int, status: str) -> None:
    monkeypatch.setattr(checks, "connect", lambda _: None)
    monkeypatch.setattr(checks, "query", lambda *_: [(used, 100)])
    row = checks.row("connections")
    assert (row["status"], row["seen"]) == (status, f"{used} of 100 connections in use")


@pytest.mark.parametrize(
    ("archiver", "status"),
    [
        (("off", 0, False, None), "skipped"),
        (("on", 0, False, None), "ok"),
        (("on", 3, False, 60), "ok"),
        (("on", 3, True, 60), "ok"),
        (("on", 3, False, 400), "warning"),
        (("on", 3, True, 2000), "failed"),
    ],
)
def test_wal(
    checks: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, archiver: tuple[Any, ...], status: str
) -> None:
    *told, waited = archiver
    folder = tmp_path / "17/main/pg_wal/archive_status"
    folder.mkdir(parents=True)
    if waited is not None:
        file = folder / "000000010000000000000003.ready"
        file.touch()
        os.utime(file, (time.time() - waited,) * 2)
    monkeypatch.setattr(checks, "CLUSTERS", tmp_path)
    monkeypatch.setattr(checks, "connect", lambda _: None)
    monkeypatch.setattr(checks, "query", lambda *_: [told])
    row = checks.row("wal")
    assert row["status"] == status and bool(row["hint"]) == (status in ("warning", "failed"))
    if waited is not None:
        assert f"1 segments wait for the archive, the oldest for {waited / 60:.0f} minutes" in row["seen"]


def test_instances_that_are_silent_are_named(
    checks: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checks, "ENABLED", tmp_path)
    assert checks.row("instances")["seen"] == "none is enabled"
    for number in (1, 2):
        (tmp_path / f"mlflow@{number}.service").touch()
    monkeypatch.setattr(checks, "SOCKETS", tmp_path)
    monkeypatch.setattr(checks, "why_silent", lambda path: "refused" if path.stem == "2" else "")
    row = checks.row("instances")
    assert (row["status"], row["seen"], row["hint"]) == ("warning", "2: refused", "`journalctl -u mlflow@2`")
    monkeypatch.setattr(checks, "why_silent", lambda _: "refused")
    assert (checks.row("instances")["status"], checks.row("instances")["seen"]) == ("failed", "1: refused; 2: refused")
    monkeypatch.undo()
    assert "No such file" in checks.why_silent(tmp_path / "1.sock")


def test_mlflowctl_check_prints_a_line_each_and_the_worst_as_exit_code(tmp_path: Path) -> None:
    """The real program, on a machine without any of it: each check is a row, none stops another."""
    environment = {**os.environ, "PYTHONPATH": str(FILES)}
    command = [sys.executable, str(FILES / "mlflowctl.py"), "check"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    names = ["database", "accounts", "connections", "wal", "store", "quota", "instances"]
    assert [row["check"] for row in rows] == names and {row["status"] for row in rows} == {"failed"}
    assert done.returncode == 2 and all(row["hint"] for row in rows)
