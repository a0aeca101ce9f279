"""Requests as bytes, for what an honest client can't be made to send."""

from __future__ import annotations

import base64
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from api import Api

TIMEOUT = 20.0  # seconds for a whole answer


@dataclass
class Answer:
    """What came back: 0 as status where the connection was just closed."""

    status: int
    head: str
    body: str


def connect(api: Api, name: str | None = None, protocol: str = "http/1.1", timeout: float = TIMEOUT) -> ssl.SSLSocket:
    """A TLS connection to the server, which asks for the certificate of NAME (else the server's own)."""
    host = urlsplit(api.url).hostname
    context = ssl.create_default_context(cafile=api.ca)
    context.set_alpn_protocols([protocol])
    return context.wrap_socket(socket.create_connection((host, 443), timeout), server_hostname=name or host)


def basic(api: Api) -> str:
    """The header that logs in."""
    assert api.login
    return f"Authorization: Basic {base64.b64encode(':'.join(api.login).encode()).decode()}"


def request(api: Api, path: str, *headers: str, method: str = "GET", body: bytes = b"", version: str = "1.1") -> bytes:
    """A request with login and Host, whose connection ends with its answer."""
    lines = [f"{method} {path} HTTP/{version}", f"Host: {urlsplit(api.url).hostname}", "Connection: close", basic(api)]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def send(api: Api, data: bytes, name: str | None = None) -> Answer:
    """What the server answers to these bytes, until it closes the connection."""
    received = b""
    with connect(api, name) as tls:
        try:
            tls.sendall(data)
            while chunk := tls.recv(65536):
                received += chunk
        except (ConnectionError, ssl.SSLError):
            pass
    head, _, body = received.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1]) if head else 0
    return Answer(status, head.decode("latin-1"), body.decode("utf-8", "replace"))


def get(api: Api, path: str, *headers: str) -> Answer:
    """The answer to a GET whose path is sent as it is."""
    return send(api, request(api, path, *headers))


def get_all(api: Api, paths: list[str]) -> list[Answer]:
    """The answers to many GETs, some at a time."""
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda path: get(api, path), paths))
