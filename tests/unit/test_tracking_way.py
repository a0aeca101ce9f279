"""What stands between a sync and its server: logins, proxies, pages, redirects, slow lines."""

from __future__ import annotations

import base64
import io
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import requests

from labtrack.doctor.context import Context
from labtrack.doctor.run import examine
from labtrack.errors import BadInputError, LabtrackError
from labtrack.tracking import http as calls
from labtrack.tracking.http import ApiError, Http
from labtrack.tracking.server import Server

SEARCH = "/api/2.0/mlflow/experiments/search"
UPLOAD = "/api/2.0/mlflow-artifacts/artifacts/1/a.bin"
PAGE = "text/html; charset=utf-8"


class Way:
    """A server that answers what the test says, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes, dict[str, str]]] = {}
        self.seen: list[tuple[str, str, str, int]] = []  # method, path, Authorization, bytes
        way = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                way.seen.append((self.command, self.path, self.headers.get("Authorization", ""), len(body)))
                default = (200, b"{}", {"Content-Type": "application/json"})
                status, data, headers = way.answers.get(self.command, way.answers.get("*", default))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_PUT = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def says(self, status: int, body: str = "", method: str = "*", **headers: str) -> None:
        self.answers[method] = (status, body.encode(), {name.replace("_", "-"): one for name, one in headers.items()})


@pytest.fixture
def way() -> Iterator[Way]:
    found = Way()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "LONGEST_PAUSE", 0.0)


def said_by(way: Way, **env: str) -> LabtrackError:
    """What a first call ends with; doctor says the same."""
    with pytest.raises(LabtrackError) as raised:
        Http(way.url, env).call("POST", SEARCH, json={})
    rows = examine(Context({"MLFLOW_TRACKING_URI": way.url, "MLFLOW_TRACKING_TOKEN": "t", **env}, timeout=2.0))
    login = next(row for row in rows if row.check == "login")
    assert login.status == "failed" and login.hint
    for text in (str(raised.value), login.seen, login.hint):
        assert "<" not in text and "Traceback" not in text and "hunter2" not in text
    assert "\n" not in login.seen
    return raised.value


@pytest.mark.parametrize(
    ("status", "body", "headers", "said", "hint"),
    [
        (302, "", {"Location": "https://sso.example.org/login?state=hunter2"}, "sso.example.org/login.", "login page"),
        (308, "", {"Location": "https://ada:hunter2@h.org/"}, "sends calls on to", "own address"),
        (403, "<html><title>ERROR: not retrieved</title>", {"Content_Type": PAGE, "Via": "1.1 squid"},
         "A proxy between", "NO_PROXY=127.0.0.1"),
        (407, "<html>", {"Content_Type": PAGE}, "a login of its own (407)", "NO_PROXY"),
        (404, "<html><h1>Not <b>Found</b></h1>", {"Content_Type": PAGE}, "'Not Found'", "up to `/#/`"),
        (404, '{"detail":"Not Found"}', {"Content_Type": "application/json"}, "no such call", "up to `/#/`"),
        (200, "<html>Please log in", {"Content_Type": PAGE}, "not as a tracking server does", "another service"),
        (400, "<html><title>400 The plain HTTP request was sent to HTTPS port</title>", {"Content_Type": PAGE},
         "speaks https there", "https://127.0.0.1"),
        (401, "<html>no", {"Content_Type": PAGE}, "refuses", ""),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_the_servers(  # noqa: PLR0917
    way: Way, status: int, body: str, headers: dict[str, str], said: str, hint: str
) -> None:
    way.says(status, body, **headers)
    error = said_by(way)
    assert said in error.what and hint in error.hint


def test_https_on_a_port_without_it(way: Way) -> None:
    way.url = way.url.replace("http:", "https:")
    with pytest.raises(BadInputError, match="does not speak https") as raised:
        Http(way.url, {}).call("POST", SEARCH, json={})
    assert way.url.replace("https:", "http:") in raised.value.hint


def test_http_on_a_port_with_https(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    way = Way()
    way.server.handle_error = lambda *_: None  # type: ignore[method-assign]
    way.server.socket = context.wrap_socket(way.server.socket, server_side=True)
    with pytest.raises(BadInputError, match="speaks https there, not http"):
        Http(way.url, {}).call("POST", SEARCH, json={})
    way.server.shutdown()
    way.server.server_close()


def test_a_redirect_is_no_success_for_an_upload(way: Way) -> None:
    http = Http(way.url, {})
    http.call("POST", SEARCH, json={})
    way.says(302, Location="https://sso.example.org/")
    with pytest.raises(BadInputError, match="sends calls on"):
        http.call("PUT", UPLOAD, body=lambda: Body(b"x"))
    with pytest.raises(LabtrackError, match="sends calls on"):
        Server(way.url, "admin", "p").users()


def test_a_page_is_no_success_for_a_batch(way: Way) -> None:
    http = Http(way.url, {})
    http.call("POST", SEARCH, json={})
    way.says(200, "<html>Please log in", Content_Type=PAGE)
    with pytest.raises(LabtrackError, match="not as a tracking server"):
        http.call("POST", "/api/2.0/mlflow/runs/log-batch", json={})
    assert http.call("GET", UPLOAD).text  # an artifact may well be a page


# logins


def netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine 127.0.0.1 login eve password other\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))


@pytest.mark.parametrize(
    ("env", "sent"),
    [
        ({"MLFLOW_TRACKING_TOKEN": "tok"}, "Bearer tok"),
        ({"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "pä", "MLFLOW_TRACKING_TOKEN": "tok"},
         "Basic " + base64.b64encode("ada:pä".encode()).decode()),
        ({}, "Basic " + base64.b64encode(b"eve:other").decode()),
    ],
)  # fmt: skip
def test_the_login_of_the_environment_wins_over_netrc(
    way: Way, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, env: dict[str, str], sent: str
) -> None:
    netrc(monkeypatch, tmp_path)
    Http(way.url, {**env, "HOME": str(tmp_path)}).call("POST", SEARCH, json={})
    assert way.seen[-1][2] == sent


def test_a_token_with_a_line_end(way: Way) -> None:
    Http(way.url, {"MLFLOW_TRACKING_TOKEN": "tok\r\n"}).call("POST", SEARCH, json={})
    assert way.seen[-1][2] == "Bearer tok"
    with pytest.raises(BadInputError, match="MLFLOW_TRACKING_TOKEN has a blank") as raised:
        Http(way.url, {"MLFLOW_TRACKING_TOKEN": "sec\nret"})
    assert "ret" not in str(raised.value)


def test_doctor_logs_in_with_a_token(way: Way, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc(monkeypatch, tmp_path)
    rows = list(examine(Context({"MLFLOW_TRACKING_URI": way.url, "MLFLOW_TRACKING_TOKEN": "tok"}, timeout=2.0)))
    assert next(row for row in rows if row.check == "login").status == "ok"
    assert {one[2] for one in way.seen} == {"Bearer tok"}


def test_a_token_that_has_ended_is_named(way: Way) -> None:
    body = base64.urlsafe_b64encode(json.dumps({"exp": 1_700_000_000}).encode()).rstrip(b"=").decode()
    way.says(401, "{}")
    error = said_by(way, MLFLOW_TRACKING_TOKEN=f"x.{body}.y")
    assert "the token in MLFLOW_TRACKING_TOKEN" in error.what and "it ended at 2023-11-14 22:13 UTC" in error.hint


class Plugin:
    """A plugin that logs in, with another token each time."""

    given = 0

    def get_name(self) -> str:
        return "site"

    def get_auth(self) -> Any:
        type(self).given += 1
        number = self.given

        def auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
            request.headers["Authorization"] = f"Site {number}"
            return request

        return auth


def test_a_plugin_logs_in_anew_for_each_call(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    point = metadata.EntryPoint("site", f"{__name__}:Plugin", "mlflow.request_auth_provider")
    monkeypatch.setattr(metadata.EntryPoint, "load", lambda _: Plugin)
    monkeypatch.setattr(metadata, "entry_points", lambda: {"mlflow.request_auth_provider": [point]})
    http = Http(way.url, {"MLFLOW_TRACKING_AUTH": "site"})
    for _ in range(2):
        http.call("POST", SEARCH, json={})
    first, second = (one[2] for one in way.seen)
    assert first.startswith("Site ") and second.startswith("Site ") and first != second


def test_a_plugin_that_is_not_there_is_named() -> None:
    with pytest.raises(BadInputError, match="MLFLOW_TRACKING_AUTH is 'site', and no plugin"):
        Http("http://127.0.0.1:1", {"MLFLOW_TRACKING_AUTH": "site"})


def test_calls_signed_for_amazon_are_named() -> None:
    with pytest.raises(BadInputError, match="can't sign calls"):
        Http("http://127.0.0.1:1", {"MLFLOW_TRACKING_AWS_SIGV4": "true"})


def test_a_proxy_that_does_not_answer_is_named_without_its_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://ada:hunter2@127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(LabtrackError, match="the proxy in between") as raised:
        Http("http://h.invalid", {"LABTRACK_SYNC_PATIENCE": "-1"}).call("POST", SEARCH, json={})
    assert "hunter2" not in str(raised.value)


# uploads


class Body(io.BytesIO):
    """What a recording's file is sent as."""

    def __len__(self) -> int:
        return len(self.getvalue())


@pytest.mark.parametrize("status", [413, 502, 504])
def test_a_file_that_is_refused_for_ever_does_not_look_like_a_server_that_is_away(way: Way, status: int) -> None:
    way.says(status, "<html><title>Too Large</title>", method="PUT", Content_Type=PAGE)
    http = Http(way.url, {})
    with pytest.raises(ApiError) as raised:
        http.call("PUT", UPLOAD, body=lambda: Body(b"x" * 100))
    assert raised.value.status == status and "<" not in str(raised.value)
    assert http.call("POST", SEARCH, json={}).ok


def test_patience_counts_silence_and_not_work(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload of two hours that breaks off is begun again, though the patience is ten minutes."""
    clock = [0.0]
    monkeypatch.setattr(calls.time, "monotonic", lambda: clock[0])
    http = Http(way.url, {})

    class Slow(Body):
        def read(self, count: int | None = -1, /) -> bytes:
            clock[0] += 3600
            if clock[0] < 2 * 3600 + 1:
                return super().read(1)
            if not broken:
                broken.append(True)
                raise requests.exceptions.ConnectionError("the line broke")
            return super().read(count)

    broken: list[bool] = []
    assert http.call("PUT", UPLOAD, body=lambda: Slow(b"x" * 10)).ok
    assert broken and way.seen[-1][3] == 10


def test_a_line_that_stands_still_for_longer_than_a_connection_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for while sending is the time-out for answers, not the one for connections."""
    times: list[Any] = []

    class Socket(socket.socket):
        def sendall(self, data: Any, *more: Any) -> None:
            if self.gettimeout() is not None:  # the server's have none
                times.append(self.gettimeout())
            super().sendall(data, *more)

    way = Way()
    monkeypatch.setattr(socket, "socket", Socket)
    http = Http(way.url, {"MLFLOW_HTTP_REQUEST_TIMEOUT": "77"})
    for _ in range(2):  # on a connection that is kept too
        http.call("PUT", UPLOAD, body=lambda: Body(b"x" * 100))
    assert times[0] in (calls.CONNECT, 77.0) and set(times[1:2] + times[3:]) == {77.0}
    way.server.shutdown()
    way.server.server_close()


def test_doctor_takes_no_redirect_for_a_run_that_was_written(way: Way) -> None:
    way.says(302, method="POST", Location="https://sso.example.org/")
    way.says(302, method="*", Location="https://sso.example.org/")
    way.answers["GET"] = (200, b"3.17.2", {"Content-Type": "text/plain"})
    env = {"MLFLOW_TRACKING_URI": way.url, "MLFLOW_TRACKING_TOKEN": "t"}
    rows = {row.check: row for row in examine(Context(env, write=True, timeout=2.0))}
    assert rows["login"].status == "ok" and rows["run"].status == "failed" and "302" in rows["run"].seen
