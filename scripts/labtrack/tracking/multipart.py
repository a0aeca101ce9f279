"""A large file in parts, straight to the store behind a server that hands out addresses for them.

This is MLflow's multipart upload through the proxy.  It is used where MLflow's own client would use it, that is with
MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD=true: only who set it knows that the store can be reached from here.  A part
that breaks off is sent again by itself, so a line that never lasts for a whole file is good enough.
"""

from __future__ import annotations

import contextlib
import posixpath
import threading
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote

import requests

from labtrack.errors import BadInputError, innermost
from labtrack.tracking.answers import ApiError

_PLACE = "/api/2.0/mlflow-artifacts/mpu"
_MOST_PARTS = 10_000  # S3's limit
_TRIES = 8  # of a part
_LONGEST_PAUSE = 30.0


class Body(Protocol):
    """What is read from: exactly as many bytes as were told."""

    def read(self, count: int = -1, /) -> bytes:
        """The next bytes."""


class Calls(Protocol):
    """`tracking.http.Http`, as far as it is needed here."""

    stop: threading.Event

    def call(self, method: str, path: str, **more: Any) -> requests.Response:
        """A call to the server."""

    def elsewhere(self, url: str, data: bytes, headers: Mapping[str, str]) -> requests.Response:
        """Bytes to an address that the server gave."""


class NoPartsError(Exception):
    """The file can't be sent in parts; it may still be sent whole."""


class Parts:
    """How files are sent in parts, as the variables that MLflow reads have it.

    smallest: bytes from which on a file is sent so; None for never.  size: bytes of a part.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        wanted = env.get("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "").lower() in ("true", "1")
        self.smallest = _bytes(env, "MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE", 500 * 2**20) if wanted else None
        self.size = max(5 * 2**20, _bytes(env, "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", 10 * 2**20))  # S3's smallest

    def send(self, http: Calls, path: str, length: int, body: Body) -> None:
        """Sends `length` bytes of `body` to the artifact `path`.  Raises NoPartsError; what was sent is then undone."""
        folder, name = posixpath.split(path)
        size = max(self.size, -(-length // _MOST_PARTS))
        made = self._ask(http, "create", folder, {"path": name, "num_parts": -(-length // size)})
        about = {"path": name, "upload_id": made.get("upload_id")}
        try:
            parts = []
            for number, credential in enumerate(_credentials(made)):
                data = _exactly(body, min(size, length - size * number))
                parts.append(self._part(http, credential, data))
            self._ask(http, "complete", folder, {**about, "parts": parts})
        except BaseException:
            with contextlib.suppress(Exception):  # the store's own rule takes away what is left
                self._ask(http, "abort", folder, about)
            raise

    def _ask(self, http: Calls, what: str, folder: str, data: Mapping[str, Any]) -> dict[str, Any]:
        try:
            found = http.call("POST", f"{_PLACE}/{what}/{quote(folder)}", json=data).json()
        except (ApiError, BadInputError, ValueError) as error:  # it can't, or may not
            raise NoPartsError(str(error)) from None
        return found if isinstance(found, dict) else {}

    def _part(self, http: Calls, credential: Mapping[str, Any], data: bytes) -> dict[str, Any]:
        """Sends one part, again where it broke off; gives what `complete` wants to know of it."""
        said = ""
        for tried in range(_TRIES):
            try:
                answer = http.elsewhere(str(credential["url"]), data, credential.get("headers") or {})
            except requests.exceptions.RequestException as error:
                said = innermost(error)
            else:
                if answer.ok:
                    etag = answer.headers.get("ETag", "")
                    return {"part_number": credential["part_number"], "etag": etag, "url": credential["url"]}
                said = f"the store answered {answer.status_code}"
                if answer.status_code < requests.codes.server_error:  # an address that has run out, for one
                    break
            if http.stop.wait(min(_LONGEST_PAUSE, 0.5 * 2**tried)):
                break
        raise NoPartsError(said)


def _exactly(body: Body, count: int) -> bytes:
    """The next `count` bytes: a file may give fewer at once."""
    found = bytearray()
    while len(found) < count:
        found += body.read(count - len(found))
    return bytes(found)


def _credentials(made: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = sorted(made.get("credentials") or (), key=lambda one: int(one["part_number"]))
    if not found:
        raise NoPartsError("the server gave no addresses for parts")
    return found


def _bytes(env: Mapping[str, str], name: str, otherwise: int) -> int:
    said = env.get(name, "")
    if said and not said.isdecimal():
        raise BadInputError(f"{name} is {said!r}, not a number of bytes.", f"unset {name}")
    return int(said) if said else otherwise
