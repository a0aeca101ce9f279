"""Questions to a session of `labtrack ui`, as a browser or a raw connection asks them."""

from __future__ import annotations

import contextlib
import http.client
import socket

from labtrack.ui import View

ANSWERS = 20.0  # seconds that are waited for what takes one


def ask(
    here: View, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, str]:
    connection = http.client.HTTPConnection("127.0.0.1", here.port, timeout=ANSWERS)
    with contextlib.closing(connection):
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()


def opened(here: View) -> str:
    """The cookie that the link gives."""
    status, headers, _ = ask(here, "/" + here.url.split("/", 3)[3])
    assert status == 200
    return headers["Set-Cookie"].partition(";")[0]


def raw(here: View, text: str) -> str:
    """The first line of the answer to a request as it is written."""
    with socket.create_connection(("127.0.0.1", here.port), timeout=ANSWERS) as connection:
        connection.sendall(text.replace("\n", "\r\n").encode())
        return connection.makefile().readline()
