"""Requests that are too large, too slow, ambiguous, or meant for somebody else."""

from __future__ import annotations

import contextlib
import gzip
import json
import secrets
import statistics
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from api import Api
from wire import Answer, basic, connect, request, send

SEARCH = "/api/2.0/mlflow/experiments/search"
BODY = b'{"max_results": 1}'
JSON = "Content-Type: application/json"


def post(api: Api, *headers: str, body: bytes = BODY, path: str = SEARCH, **more: Any) -> Answer:
    """A POST with these headers beside the usual ones."""
    return send(api, request(api, path, JSON, *headers, method="POST", body=body), **more)


def length(body: bytes = BODY) -> str:
    return f"Content-Length: {len(body)}"


def entries(rehearsal: Any, what: str) -> int:
    """How many requests for this path nginx has passed on; its log is written within two seconds."""
    count = f"sleep 2.2; awk '/{what}/ && $NF != \"-\"' /var/log/nginx/access.log | wc -l"
    return int(rehearsal.ssh("server", count, check=True).stdout)


def test_the_honest_form_of_these_requests_works(ann: Api) -> None:
    """Or the refusals below would prove nothing."""
    assert post(ann, length()).status == 200
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    assert post(ann, "Transfer-Encoding: chunked", body=chunked).status == 200


# --- 27: somebody else's name


@pytest.mark.parametrize(
    "name", ["elsewhere.example", "127.0.0.1", "localhost", "mlflow.rehearsal.test.elsewhere.example"]
)
def test_host_that_is_not_ours(ann: Api, name: str) -> None:
    host = ann.url.removeprefix("https://")
    asked = request(ann, "/version").replace(f"Host: {host}".encode(), f"Host: {name}".encode())
    assert send(ann, asked).status in {0, 421}


def test_host_twice(ann: Api) -> None:
    assert send(ann, request(ann, "/version", "Host: elsewhere.example")).status == 400
    assert send(ann, request(ann, "/version", f"Host: {ann.url.removeprefix('https://')}")).status == 400


@pytest.mark.parametrize(
    "target", ["https://elsewhere.example/version", "http://169.254.169.254/latest", "//elsewhere.example/"]
)
def test_absolute_form_of_another_place(ann: Api, target: str) -> None:
    answer = send(ann, request(ann, target))
    assert answer.status in {0, 400, 404, 421}
    assert "3.17" not in answer.body


def test_server_name_that_differs_from_the_host(ann: Api) -> None:
    with contextlib.suppress(OSError):
        assert send(ann, request(ann, "/version"), name="elsewhere.example").status == 0


def test_forwarded_headers_change_nothing(ann: Api) -> None:
    forged = (
        "X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "X-Forwarded-Host: evil.example", "Forwarded: for=[::1]",
        "X-Remote-User: admin", "X-Login: x", "X-Known: EXPIRED",
    )  # fmt: skip
    assert send(ann, request(ann, "/api/2.0/mlflow/users/current", *forged)).body.count(ann.login[0])  # type: ignore[index]
    assert send(ann, request(ann, "/ajax-api/3.0/mlflow/assistant/config", *forged)).status == 404


# --- 28: another site's page


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "null", "http://mlflow.rehearsal.test", "https://mlflow.rehearsal.test.evil.example"],
)
def test_post_from_another_site(ann: Api, origin: str) -> None:
    for path in (SEARCH, "/ajax-api/2.0/mlflow/experiments/search", "/graphql"):
        assert post(ann, length(), f"Origin: {origin}", path=path).status == 403


def test_form_of_another_site(ann: Api) -> None:
    """A form sends no JSON, and needs no leave; a browser names its page."""
    name = secrets.token_hex(8)
    body = json.dumps({"name": name}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        headers = [f"Content-Type: {kind}", length(body), "Origin: https://evil.example", "Sec-Fetch-Site: cross-site"]
        assert (
            send(ann, request(ann, "/api/2.0/mlflow/experiments/create", *headers, method="POST", body=body)).status
            == 403
        )
    assert ann.get(f"experiments/get-by-name?experiment_name={name}").status_code == 404


# --- 31: too large


def test_body_that_is_too_large(ann: Api) -> None:
    answer = post(ann, f"Content-Length: {20 * 2**20}")
    assert (answer.status, json.loads(answer.body)["error_code"]) == (413, "INVALID_PARAMETER_VALUE")


def test_chunks_that_are_too_large(ann: Api) -> None:
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    assert post(ann, "Transfer-Encoding: chunked", body=chunk * 17 + b"0\r\n\r\n").status == 413


def test_headers_that_are_too_large(ann: Api) -> None:
    assert send(ann, request(ann, "/version", *(f"X-{n}: {'x' * 8000}" for n in range(1250)))).status in {0, 431}
    assert send(ann, request(ann, "/version", f"X: {'x' * 9000}")).status == 431
    answer = send(ann, request(ann, f"/version?{'x' * 9000}"))
    assert (answer.status, json.loads(answer.body)["error_code"]) == (414, "INVALID_PARAMETER_VALUE")


def test_compressed_body_is_not_unpacked(rehearsal: Any, ann: Api) -> None:
    """100 MB in 100 kB."""
    bomb = gzip.compress(b" " * 100 * 2**20, 9)
    memory = "cat /proc/$(systemctl show -P MainPID mlflow@1)/status | sed -n 's/VmHWM:[^0-9]*//p'"
    before = int(rehearsal.ssh("server", memory, check=True).stdout.split()[0])
    assert post(ann, "Content-Encoding: gzip", length(bomb), body=bomb).status in {400, 415}
    assert int(rehearsal.ssh("server", memory, check=True).stdout.split()[0]) - before < 50_000  # kB


def test_deep_json(ann: Api) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    assert post(ann, length(deep), body=deep).status in {400, 500}
    assert post(ann, length()).status == 200


# --- 32: too slow


def slow(api: Api, sent: bytes) -> float:
    """Seconds until the server closes a connection on which nothing more is sent."""
    start = time.monotonic()
    with connect(api, timeout=60) as tls:
        tls.sendall(sent)
        with contextlib.suppress(OSError):
            while tls.recv(65536):
                pass
    return time.monotonic() - start


def test_slow_clients_are_cut_off_and_others_do_not_notice(ann: Api) -> None:
    def took(_: object = None) -> float:
        start = time.monotonic()
        assert ann.get("users/current").status_code == 200
        return time.monotonic() - start

    def p95(of: list[float]) -> float:
        return statistics.quantiles(of, n=20)[-1]

    quiet = p95([took() for _ in range(60)])
    headers = request(ann, "/version")[:-2]  # the end is missing
    body = request(ann, SEARCH, JSON, "Content-Length: 100", method="POST", body=b"{")
    with ThreadPoolExecutor(4) as pool, contextlib.ExitStack() as held:
        closing = pool.map(lambda sent: slow(ann, sent), [headers, headers[:30], b"", body])
        for _ in range(500):
            held.enter_context(connect(ann)).sendall(headers)
        busy = p95([took() for _ in range(60)])
        closed = list(closing)
    assert busy < 2 * quiet + 0.05, (quiet, busy)
    assert [9 < seconds < 15 for seconds in closed[:3]] == [True] * 3, closed
    assert 15 < closed[3] < 30, closed


# --- 33: two readings of one request

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nX: "


@pytest.mark.parametrize(
    "headers",
    [
        ("Transfer-Encoding: chunked", "Content-Length: 4"),
        ("Content-Length: 4", "Transfer-Encoding: chunked"),
        ("Content-Length: 4", "Content-Length: 60"),
        ("Content-Length: 4, 60",),
        ("Content-Length: +4",),
        ("Content-Length: 0x4",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        ("Transfer-Encoding: identity, chunked",),
        ("Transfer-Encoding : chunked",),
        ("Transfer-Encoding: chunked", "Transfer-encoding: cow"),
        ("X: x\rTransfer-Encoding: chunked",),
        ("Transfer-Encoding:\x0bchunked",),
    ],
)
def test_smuggling_with_two_lengths(ann: Api, headers: tuple[str, ...]) -> None:
    answer = post(ann, *headers, body=b"0\r\n\r\n" + SMUGGLED)
    assert answer.status == 400
    assert "\r\nServer:" in answer.head
    assert "\r\nServer:" not in answer.body


def test_smuggling_reaches_mlflow_never(rehearsal: Any, ann: Api) -> None:
    assert entries(rehearsal, "smuggled") == 0
    path = f"/get-artifact?path={secrets.token_hex(4)}"
    for ending in (b"\n", b"\r\n"):
        raw = request(ann, path).replace(b"\r\n", ending)
        answer = send(ann, raw + b"GET /smuggled HTTP/1.1" + ending * 2)
        assert "\r\nServer:" not in answer.body
    assert entries(rehearsal, "smuggled") == 0


def test_bare_line_feed_in_a_chunk(ann: Api) -> None:
    for body in (
        b"1;a\nx\r\n{\r\n0\r\n\r\n",
        b"2\r\n{}\n0\r\n\r\n",
        b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
    ):
        answer = post(ann, "Transfer-Encoding: chunked", body=body + SMUGGLED)
        assert answer.status == 400, (body, answer)


# --- HTTP/2


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def text(value: str) -> bytes:
    """A string of HPACK, not compressed."""
    raw = value.encode()
    assert len(raw) < 127 + 128
    return (bytes([len(raw)]) if len(raw) < 127 else bytes([127, len(raw) - 127])) + raw


def headers(fields: dict[str, str]) -> bytes:
    """A block of headers, each with its name, none remembered."""
    return b"".join(b"\x00" + text(n) + text(v) for n, v in fields.items())


def ask(api: Api, **more: str) -> bytes:
    host = api.url.removeprefix("https://")
    login = basic(api).partition(": ")[2]
    named = {f"{name.replace('_', '-')}": value for name, value in more.items()}
    return headers(
        {":method": "GET", ":path": "/version", ":scheme": "https", ":authority": host, "authorization": login} | named
    )


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)


def answers(api: Api, sent: bytes, patience: float = 3.0) -> tuple[list[tuple[int, int, bytes]], bool]:
    """The frames that come back, and whether the server closed the connection."""
    received, closed = b"", False
    with connect(api, protocol="h2", timeout=patience) as tls:
        try:
            tls.sendall(PREFACE + sent)
            while chunk := tls.recv(65536):
                received += chunk
            closed = True
        except TimeoutError:
            pass
        except OSError:
            closed = True
    frames = []
    while len(received) >= 9:
        size = int.from_bytes(received[:3], "big")
        frames.append((received[3], int.from_bytes(received[5:9], "big"), received[9 : 9 + size]))
        received = received[9 + size :]
    return frames, closed


def test_http2_works(ann: Api) -> None:
    frames, _ = answers(ann, frame(1, 5, 1, ask(ann)), 1.0)
    assert any(kind == 0 and b"3.17" in data for kind, _, data in frames)


@pytest.mark.parametrize(("name", "value"), [
    ("x", "a\r\nTransfer-Encoding: chunked"), ("x", "a\nHost: evil.example"), ("x\r\ny", "a"),
    ("transfer_encoding", "chunked"), ("host", "evil.example"), ("connection", "keep-alive\r\nx: y"),
])  # fmt: skip
def test_http2_is_not_made_into_two_requests(rehearsal: Any, ann: Api, name: str, value: str) -> None:
    frames, _ = answers(ann, frame(1, 5, 1, ask(ann, **{name: value})), 1.0)
    assert not any(kind == 0 and b"3.17" in data for kind, _, data in frames) or name == "transfer_encoding"
    assert entries(rehearsal, "evil.example") == 0


def test_http2_streams_that_are_reset_at_once_are_bounded(ann: Api) -> None:
    pairs = [frame(1, 5, n, ask(ann)) + frame(3, 0, n, b"\0\0\0\x08") for n in range(1, 20_001, 2)]

    def flood() -> int:
        """How many streams could be opened and reset.

        With pauses, so that nginx sends each on to MLflow: more than 128 read together are a flood by themselves.
        """
        sent = 0
        with connect(ann, protocol="h2", timeout=10) as tls, contextlib.suppress(OSError):
            tls.sendall(PREFACE)
            for sent in range(0, len(pairs), 60):
                tls.sendall(b"".join(pairs[sent : sent + 60]))
                time.sleep(0.02)
            return len(pairs)
        return sent

    assert ann.get("users/current").status_code == 200  # once checked, it does not slow the floods down
    with ThreadPoolExecutor(2) as pool:
        floods = [pool.submit(flood) for _ in range(2)]
        waited = []
        while not all(one.done() for one in floods) or not waited:
            begun = time.monotonic()
            assert ann.get("users/current").status_code == 200
            waited.append(time.monotonic() - begun)
    # What is reset still counts, and nginx closes a connection that goes on opening more than it may.
    assert max(one.result() for one in floods) < len(pairs)
    assert max(waited) < 2, waited


def test_http2_concurrent_streams_are_bounded(ann: Api) -> None:
    frames, _ = answers(ann, b"", 1.0)
    settings = next(data for kind, _, data in frames if kind == 4)
    pairs = {
        int.from_bytes(settings[i : i + 2], "big"): int.from_bytes(settings[i + 2 : i + 6], "big")
        for i in range(0, len(settings), 6)
    }
    assert pairs[3] == 64


# --- 34: what people have written is not run


def test_uploaded_pages_are_shown_without_the_right_to_run(ann: Api) -> None:
    for path in (
        f"/get-artifact?run_id={ann.new_run()}&path=page.{kind}" for kind in ("html", "svg", "xml", "xhtml", "js")
    ):
        answer = ann.get(path)
        assert answer.headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "script" not in answer.headers["Content-Security-Policy"]
