"""`labtrack ui`: who passes its gate, and what.  The MLflow behind it is not the real one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import fake_mlflow
import pytest
import recorded
from ui_asked import ask, opened, raw

from labtrack.ui import Settings, View, view


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[View]:
    """A session for all tests of the gate."""
    mlflow = fake_mlflow.make(tmp_path_factory.mktemp("environment"))
    source = recorded.kept("3.17.2") / recorded.KINDS["sqlite"]
    with view(str(source), Settings(mlflow=str(mlflow), port=0)) as found:
        yield found


def test_gate_lets_nobody_in_without_the_cookie(here: View) -> None:
    for cookie in ("", "labtrack_ui_00000000=x", opened(here)[:-1], opened(here).replace("=", "=x")):
        status, _, said = ask(here, "/", Cookie=cookie)
        assert status == 403 and "Open the link that `labtrack ui` printed" in said
    status, _, said = ask(here, "/static-files/x.js?a=1", Cookie=f"other=1; {opened(here)}")
    assert status == 200 and json.loads(said)["path"] == "/static-files/x.js?a=1"


def test_gate_link_works_once_and_not_ahead_of_time(here: View) -> None:
    path = "/" + here.url.split("/", 3)[3]
    assert ask(here, path, Sec_Purpose="prefetch;prerender")[0] == 503
    assert ask(here, path, "POST", b"")[0] == 403
    status, headers, said = ask(here, path)
    assert status == 200 and 'content="0; url=/"' in said and headers["Referrer-Policy"] == "no-referrer"
    assert "HttpOnly; SameSite=Strict; Path=/" in headers["Set-Cookie"]
    status, _, said = ask(here, path)
    assert status == 403 and "has been used" in said
    assert ask(here, "/" + here.url.split("/", 3)[3])[0] == 200, "the next link"


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:5000", "", "[::1"])
def test_gate_has_no_other_name(here: View, host: str) -> None:
    assert ask(here, "/", Cookie=opened(here), Host=host)[0] == 403


def test_gate_refuses_what_other_pages_send(here: View) -> None:
    cookie, own = opened(here), f"http://127.0.0.1:{here.port}"
    for origin in ("http://evil.example", f"http://127.0.0.1:{here.port + 1}", "null"):
        assert ask(here, "/ajax-api/2.0/mlflow/runs/search", "POST", b"{}", Cookie=cookie, Origin=origin)[0] == 403
    status, _, said = ask(here, "/ajax-api/2.0/mlflow/runs/search", "POST", b"{}", Cookie=cookie, Origin=own)
    sent = dict(json.loads(said)["headers"])
    assert status == 200 and sent["Host"] == "localhost" and "Origin" not in sent and "Cookie" not in sent
    # through a tunnel the port at the other end may be another
    assert ask(here, "/", Cookie=cookie, Host="localhost:7777", Origin="http://localhost:7777")[0] == 200


@pytest.mark.parametrize(
    "text",
    ["GET\n\n", "GET / HTTP/1.1\nHost: 127.0.0.1\nHost: evil\n\n", "GET http://x/ HTTP/1.1\nHost: x\n\n",
     "\x16\x03\x01\n\n", "GET / HTTP/1.1\nHost: 127.0.0.1\n Folded: 1\n\n", "GET / HTTP/1.1\nHost : 127.0.0.1\n\n"],
)  # fmt: skip
def test_gate_answers_what_is_no_request(here: View, text: str) -> None:
    assert re.match(r"HTTP/1.1 40[03] ", raw(here, text))


def test_gate_refuses_heads_and_bodies_without_end(here: View) -> None:
    cookie = opened(here)
    assert " 431 " in raw(here, f"GET / HTTP/1.1\nHost: 127.0.0.1\nX: {'x' * 70_000}\n\n")
    head = f"POST / HTTP/1.1\nHost: 127.0.0.1\nCookie: {cookie}\n"
    assert " 411 " in raw(here, f"{head}Transfer-Encoding: chunked\n\n")
    assert " 400 " in raw(here, f"{head}Content-Length: -1\n\n")
    assert " 400 " in raw(here, f"{head}Content-Length: 1\nContent-Length: 2\n\n")


def test_gate_passes_large_bodies(here: View) -> None:
    body = b"x" * 3_000_000
    status, _, said = ask(here, "/ajax-api/2.0/mlflow/runs/log-batch", "POST", body, Cookie=opened(here))
    assert status == 200 and json.loads(said)["length"] == len(body)


def test_snapshot_refuses_changes_of_artifacts(here: View) -> None:
    cookie = opened(here)
    for method, path in (
        ("POST", "/ajax-api/2.0/mlflow/upload-artifact?run_uuid=1&path=x"),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/x"),
        ("DELETE", "/ajax-api/2.0/mlflow-artifacts/artifacts/x"),
        ("POST", "/ajax-api/2.0/mlflow/runs/create-promptlab-run"),
    ):
        status, _, said = ask(here, path, method, b"x", Cookie=cookie)
        assert status == 403 and "snapshot" in said, path
    assert ask(here, "/ajax-api/2.0/mlflow/artifacts/list?run_id=1", Cookie=cookie)[0] == 200
    assert ask(here, "/ajax-api/3.0/mlflow/assistant/status", Cookie=cookie)[0] == 404


def test_secrets_are_in_no_arguments_and_no_logs(here: View) -> None:
    link = here.url.rpartition("/")[2]
    _, _, secret = opened(here).partition("=")
    lines = b"".join(one.read_bytes() for one in Path("/proc").glob("[0-9]*/cmdline") if one.exists())
    folder = here.page().parent
    (folder / "open.html").unlink()
    logs = b"".join(one.read_bytes() for one in folder.rglob("*") if one.is_file())
    for word in (link, secret, here.url.rpartition("/")[2]):
        assert word.encode() not in lines + logs
    assert folder.stat().st_mode & 0o777 == 0o700
