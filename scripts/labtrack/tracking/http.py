"""Requests to a tracking server: bounded patience with one that is busy or away, and honesty about lost answers."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import requests
import urllib3

from labtrack.errors import BadInputError, LabtrackError, innermost
from labtrack.tracking import answers
from labtrack.tracking.answers import ApiError, ServerError, Stopped
from labtrack.tracking.credentials import Credentials
from labtrack.tracking.multipart import Parts
from labtrack.tracking.transport import CONNECT, Transport

__all__ = ["ApiError", "Http", "ServerError", "Stopped", "UnclearError"]

PATIENCE = 600.0  # seconds of silence in one call while the server is unreachable; LABTRACK_SYNC_PATIENCE
FIRST = 30.0  # seconds of that before the first answer
TIMEOUT = 120.0  # seconds for an answer, or for a block that is sent; MLFLOW_HTTP_REQUEST_TIMEOUT
LONGEST_PAUSE = 30.0
_STORES = 10e6  # bytes a second with which a server puts an upload away before it answers, at the least
_BLOCK = 2**20  # bytes
_BUSY = (408, 425, 429, 502, 503, 504)
_GATEWAY = (502, 504)  # a gateway gave up on the server: it may be away, or choke on this one call
_NOT_DONE = (429,)  # the call was not carried out: also a create may be tried again
_COLLISIONS = ("UniqueViolation", "UNIQUE constraint", "DeadlockDetected", "deadlock", "SerializationFailure")
_SERVER_ERROR = 500
_TRIES = 4  # of what is answered with 500, or of an upload that a gateway gives up on: it may be what was sent
_API = "/api/"
_ARTIFACTS = "/mlflow-artifacts/artifacts/"


class UnclearError(Exception):
    """No answer came, so the call may or may not have been carried out."""


class AwayError(ServerError):
    """The server does not answer, or is busy for too long; later it may not be."""


class Http:
    """One server.  May be used by several threads, each of which keeps a connection of its own.

    waits: called with a sentence whenever a call has to wait for the server.
    """

    def __init__(self, base: str, env: Mapping[str, str], waits: Callable[[str], None] | None = None) -> None:
        self.base = base
        self.calls: dict[str, int] = {}
        self.stop = threading.Event()
        self._waits = waits or (lambda _: None)
        self._credentials = Credentials(env)
        self._patience = _seconds(env, "LABTRACK_SYNC_PATIENCE", PATIENCE)
        self._timeout = _seconds(env, "MLFLOW_HTTP_REQUEST_TIMEOUT", TIMEOUT)
        self._transport = Transport(base, self._credentials, self._timeout)
        self.parts = Parts(env)
        self._lock = threading.Lock()
        self._reached = False
        self._known = False  # whether an answer of MLflow's own has come

    def call(
        self,
        method: str,
        path: str,
        *,
        once: bool = False,
        body: Callable[[], Any] | None = None,
        missing_ok: bool = False,
        **more: Any,
    ) -> requests.Response:
        """One call, tried again while the server is busy or away.

        once: never tried again where it may have been carried out (a create): UnclearError then.
        body: opens what is uploaded, anew for each try.
        missing_ok: a 404 is an answer.

        Raises ApiError for a refusal, LabtrackError where the user has to do something.
        """
        silent, tries, errors, gateway = 0.0, 0, 0, 0
        while True:
            if self.stop.is_set():
                raise Stopped
            tries += 1
            login = self._credentials.login
            wait: float | None = None
            began = time.monotonic()
            upload = _Upload(body()) if body else None
            try:
                answer = self._send(method, path, upload, more)
            except requests.exceptions.RequestException as error:
                said = self._lost(error, once)
            else:
                status, self._reached = answer.status_code, True
                done = status < 300 or (missing_ok and status == requests.codes.not_found)  # noqa: PLR2004
                if done:
                    return self._checked(method, path, answer)
                if status == requests.codes.unauthorized and self._credentials.renewed(login):
                    continue
                collided = _collided(answer)
                if status not in _BUSY and status != _SERVER_ERROR and not collided:
                    raise self._refused(answer)
                if once and status not in _NOT_DONE and not collided:
                    raise UnclearError(f"the server answered {status}")
                errors += status == _SERVER_ERROR or collided
                gateway += upload is not None and status in _GATEWAY
                if _TRIES in (errors, gateway):
                    raise self._refused(answer)
                said, wait = f"it answered {status}", _asked_pause(answer)
            # an upload that takes an hour is work; what counts is how long nothing has moved
            silent += time.monotonic() - max(began, upload.moved if upload is not None else began)
            silent += self._pause(tries, silent, said, wait)

    def elsewhere(self, url: str, data: bytes, headers: Mapping[str, str]) -> requests.Response:
        """Puts bytes to an address that the server gave, which has its own permission in it and gets no login."""
        timeout = (CONNECT, self._timeout)
        return requests.put(url, data=data, headers=headers, timeout=timeout, auth=_nobody, allow_redirects=False)

    def _send(self, method: str, path: str, upload: _Upload | None, more: Mapping[str, Any]) -> requests.Response:
        with self._lock:
            name = f"{method} {_kind(path)}"
            self.calls[name] = self.calls.get(name, 0) + 1
        if upload is None:
            return self._transport.send(method, path, **more)
        timeout = (CONNECT, self._timeout + len(upload) / _STORES)
        try:
            return self._transport.send(method, path, **{**more, "data": upload, "timeout": timeout})
        finally:
            upload.close()

    def _checked(self, method: str, path: str, answer: requests.Response) -> requests.Response:
        """The answer, if it is one: a page for people with status 200 means that nothing was done."""
        if path.startswith(_API) and not (method == "GET" and _ARTIFACTS in path):
            if answer.ok and answers.is_page(answer):
                raise answers.unusable(answer, self.base, self._credentials.whom) or ServerError(self.base)
            self._known = self._known or answer.ok
        return answer

    def _lost(self, error: requests.exceptions.RequestException, once: bool) -> str:
        """What to say about a call without an answer; raises where trying again is of no use or not safe."""
        said = innermost(error)
        why = answers.unreached(error, self.base)
        if why is None and not self._reached:
            why = answers.waits_for_tls(error, self.base)
        if why is not None:
            raise why from None
        if isinstance(error, requests.exceptions.ProxyError):
            said = f"the proxy in between says: {said}"
        if once and not _never_sent(error):
            raise UnclearError(said) from None
        return said

    def _pause(self, tries: int, silent: float, said: str, wait: float | None) -> float:
        """Waits, and gives for how many seconds."""
        if wait is None:
            wait = min(LONGEST_PAUSE, 0.25 * 2 ** min(tries, 10)) * random.uniform(0.5, 1)  # noqa: S311
        # a server that has never answered is more likely a wrong address than one that restarts
        if silent + wait > (self._patience if self._reached else min(self._patience, FIRST)):
            raise AwayError(
                f"{self.base} could not be used for {silent:.0f} s: {said}.",
                "run the same command again later: it goes on where it stopped.  `labtrack doctor` looks closer.",
            )
        self._waits(f"the server is unreachable or busy ({said}); trying again in {wait:.0f} s")
        if self.stop.wait(wait):
            raise Stopped
        return wait

    def _refused(self, answer: requests.Response) -> Exception:
        status, (code, said) = answer.status_code, answers.code_and_words(answer)
        whom = self._credentials.whom
        if status == requests.codes.unauthorized:
            return ServerError(f"{self.base} refuses {whom} (401).", self._credentials.hint)
        if not self._known or status < 400:  # noqa: PLR2004
            why = answers.unusable(answer, self.base, whom)
            if why is not None:
                return why
        if status == requests.codes.forbidden and not code:
            hint = "use the server's own name in -d; and is the experiment yours? Try another with -e."
            return LabtrackError(f"{self.base} forbids this to {whom} (403): {said}", hint)
        if status == requests.codes.request_entity_too_large:
            said = f"too large for the server or a proxy in front of it ({said})"
        return ApiError(status, code, said)


class _Upload:
    """What is uploaded, and when a part of it was last taken.  moved: on the monotonic clock."""

    def __init__(self, body: Any) -> None:
        self._body, self.moved = body, time.monotonic()

    def __len__(self) -> int:
        return len(self._body)

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(_BLOCK), b"")

    def read(self, count: int = -1) -> bytes:
        self.moved = time.monotonic()  # the block before was taken
        try:
            return bytes(self._body.read(count))
        finally:
            self.moved = time.monotonic()

    def close(self) -> None:
        self._body.close()


def _collided(answer: requests.Response) -> bool:
    """Whether two calls met in the server's database, so that this one was not carried out and may be tried again.

    MLflow looks whether a row is there, then adds it: of thirty runs with the same dataset some find it added.
    """
    if answer.status_code != requests.codes.bad_request:
        return False
    code, said = answers.code_and_words(answer)
    return code == "BAD_REQUEST" and any(one in said for one in _COLLISIONS)


def _nobody(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request  # without it, requests looks into ~/.netrc


def _kind(path: str) -> str:
    """What is called, for counting: without ids and file names."""
    if "/mlflow-artifacts/artifacts" in path:
        return "artifacts"
    found = path.partition("/mlflow/")[2] or path.partition("/labtrack/")[2]
    return "logged-models/ID" if found.startswith("logged-models/m-") else found


def _never_sent(error: requests.exceptions.RequestException) -> bool:
    """Whether the connection was not even made, so that nothing can have been carried out."""
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return True
    cause = error.args[0] if error.args else None
    return isinstance(getattr(cause, "reason", None), urllib3.exceptions.NewConnectionError)


def _asked_pause(answer: requests.Response) -> float | None:
    """Retry-After in seconds (RFC 9110: a number or a date); never more than two minutes."""
    said = answer.headers.get("Retry-After", "")
    try:
        seconds = float(said) if said.isdecimal() else parsedate_to_datetime(said).timestamp() - time.time()
    except (ValueError, TypeError, IndexError):
        return None
    return min(120.0, max(0.1, seconds))


def _seconds(env: Mapping[str, str], name: str, otherwise: float) -> float:
    said = env.get(name, "")
    try:
        return float(said) if said else otherwise
    except ValueError:
        raise BadInputError(f"{name} is {said!r}, not a number of seconds.", f"unset {name}") from None
