"""Requests to a tracking server: bounded patience with one that is busy or away, and honesty about lost answers."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import requests
import urllib3
from requests.auth import HTTPBasicAuth

from labtrack.errors import BadInputError, Exit, LabtrackError, innermost
from labtrack.sync.connections import PromptAdapter
from labtrack.sync.credentials import Credentials

PATIENCE = 600.0  # seconds that one call may take in all while the server is unreachable; LABTRACK_SYNC_PATIENCE
FIRST = 30.0  # seconds of that before the first answer
TIMEOUT = 120.0  # seconds for an answer; MLFLOW_HTTP_REQUEST_TIMEOUT
CONNECT = 10.0  # seconds for a connection
LONGEST_PAUSE = 30.0
_BUSY = (408, 425, 429, 502, 503, 504)
_GATEWAY = (502, 504)  # a gateway gave up on the server: it may be away, or choke on this one call
_NOT_DONE = (429,)  # the call was not carried out: also a create may be tried again
_COLLISIONS = ("UniqueViolation", "UNIQUE constraint", "DeadlockDetected", "deadlock", "SerializationFailure")
_SERVER_ERROR = 500
_TRIES_OF_A_500 = 4  # it may be a passing deadlock, but also what was sent


class ApiError(Exception):
    """The server understood and said no.  status: HTTP.  code: MLflow's, as RESOURCE_DOES_NOT_EXIST."""

    def __init__(self, status: int, code: str, said: str) -> None:
        super().__init__(f"{status} {code}: {said}".strip())
        self.status, self.code, self.said = status, code, said


class UnclearError(Exception):
    """No answer came, so the call may or may not have been carried out."""


class ServerError(LabtrackError):
    """The server can't be used at all: no other run would fare better."""


class AwayError(ServerError):
    """The server does not answer, or is busy for too long; later it may not be."""


class Stopped(Exception):
    """The user wants the sync to end."""


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
        self._trust = self._credentials.trust()
        self._patience = _seconds(env, "LABTRACK_SYNC_PATIENCE", PATIENCE)
        self._timeout = (CONNECT, _seconds(env, "MLFLOW_HTTP_REQUEST_TIMEOUT", TIMEOUT))
        self._local = threading.local()
        self._lock = threading.Lock()
        self._reached = False
        if self._trust.verify is False:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

    def call(
        self,
        method: str,
        path: str,
        *,
        once: bool = False,
        body: Callable[[], Any] | None = None,
        missing_ok: bool = False,
        most: int = 0,
        **more: Any,
    ) -> requests.Response:
        """One call, tried again while the server is busy or away.

        once: never tried again where it may have been carried out (a create): UnclearError then.
        body: opens what is uploaded, anew for each try.
        missing_ok: a 404 is an answer.
        most: how many answers of a gateway (502, 504) are taken for a passing trouble; 0 for any number.

        Raises ApiError for a refusal, LabtrackError where the user has to do something.
        """
        began, tries, errors, gateway = time.monotonic(), 0, 0, 0
        while True:
            if self.stop.is_set():
                raise Stopped
            tries += 1
            login = self._credentials.login
            wait: float | None = None
            try:
                answer = self._send(method, path, body, more)
            except requests.exceptions.RequestException as error:
                said = self._lost(error, once)
            else:
                status, self._reached = answer.status_code, True
                if answer.ok or (missing_ok and status == requests.codes.not_found):
                    return answer
                if status == requests.codes.unauthorized and self._credentials.renewed(login):
                    continue
                collided = _collided(answer)
                if status not in _BUSY and status != _SERVER_ERROR and not collided:
                    raise self._refused(answer)
                if once and status not in _NOT_DONE and not collided:
                    raise UnclearError(f"the server answered {status}")
                errors += status == _SERVER_ERROR or collided
                gateway += status in _GATEWAY
                if errors >= _TRIES_OF_A_500 or (most and gateway >= most):
                    raise self._refused(answer)
                said, wait = f"it answered {status}", _asked_pause(answer)
            self._pause(tries, began, said, wait)

    def _send(
        self, method: str, path: str, body: Callable[[], Any] | None, more: Mapping[str, Any]
    ) -> requests.Response:
        login, headers = self._credentials.login, dict(more.get("headers") or {})
        auth = HTTPBasicAuth(login.user.encode(), login.password.encode()) if login.user and login.password else None
        if auth is None and login.token:
            headers["Authorization"] = f"Bearer {login.token}"
        opened = body() if body else None
        with self._lock:
            name = f"{method} {_kind(path)}"
            self.calls[name] = self.calls.get(name, 0) + 1
        try:
            return self._session().request(
                method,
                self.base + path,
                **{**more, "headers": headers, **({"data": opened} if body else {})},
                auth=auth,
                timeout=self._timeout,
                verify=self._trust.verify,
                cert=self._trust.client,
                allow_redirects=False,  # a login page is no answer
            )
        finally:
            if opened is not None:
                opened.close()

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            session.mount(self.base, PromptAdapter(pool_connections=1, pool_maxsize=1, max_retries=0))
        return session

    def _lost(self, error: requests.exceptions.RequestException, once: bool) -> str:
        """What to say about a call without an answer; raises where trying again is of no use or not safe."""
        said = innermost(error)
        if isinstance(error, requests.exceptions.SSLError) and "certificate" in str(error).lower():
            raise ServerError(
                f"{self.base} shows a certificate that is not trusted here: {said}.",
                "source your mlflow_env.sh, which names the right one (MLFLOW_TRACKING_SERVER_CERT_PATH).",
                Exit.FAILED,
            ) from None
        if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidHeader)):
            raise BadInputError(f"{self.base} can't be used: {said}.", "look at -d and at your login.") from None
        if once and not _never_sent(error):
            raise UnclearError(said) from None
        return said

    def _pause(self, tries: int, began: float, said: str, wait: float | None) -> None:
        spent = time.monotonic() - began
        if wait is None:
            wait = min(LONGEST_PAUSE, 0.25 * 2 ** min(tries, 10)) * random.uniform(0.5, 1)  # noqa: S311
        # a server that has never answered is more likely a wrong address than one that restarts
        if spent + wait > (self._patience if self._reached else min(self._patience, FIRST)):
            raise AwayError(
                f"{self.base} could not be used for {spent:.0f} s: {said}.",
                "run the same command again later: it goes on where it stopped.  `labtrack doctor` looks closer.",
            )
        self._waits(f"the server is unreachable or busy ({said}); trying again in {wait:.0f} s")
        if self.stop.wait(wait):
            raise Stopped

    def _refused(self, answer: requests.Response) -> Exception:
        status, (code, said) = answer.status_code, _words(answer)
        whom = self._credentials.login.whom
        if status == requests.codes.unauthorized:
            hint = (
                "source your newest mlflow_env.sh (or set MLFLOW_TRACKING_USERNAME and _PASSWORD), then run it again."
            )
            return ServerError(f"{self.base} refuses {whom} (401).", hint)
        if status == requests.codes.forbidden and not code:
            hint = "use the server's own name in -d; and is the experiment yours? Try another with -e."
            return LabtrackError(f"{self.base} forbids this to {whom} (403): {said}", hint)
        if 300 <= status < 400:  # noqa: PLR2004
            where = answer.headers.get("Location", "elsewhere")
            return BadInputError(f"{self.base} sends calls on to {where}.", "give that server's own address to -d.")
        return ApiError(status, code, said)


def _collided(answer: requests.Response) -> bool:
    """Whether two calls met in the server's database, so that this one was not carried out and may be tried again.

    MLflow looks whether a row is there, then adds it: of thirty runs with the same dataset some find it added.
    """
    if answer.status_code != requests.codes.bad_request:
        return False
    code, said = _words(answer)
    return code == "BAD_REQUEST" and any(one in said for one in _COLLISIONS)


def _kind(path: str) -> str:
    """What is called, for counting: without ids and file names."""
    if "/mlflow-artifacts/artifacts" in path:
        return "artifacts"
    found = path.partition("/mlflow/")[2]
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
        seconds = float(said) if said.isdigit() else parsedate_to_datetime(said).timestamp() - time.time()
    except (ValueError, TypeError, IndexError):
        return None
    return min(120.0, max(0.1, seconds))


def _words(answer: requests.Response) -> tuple[str, str]:
    """MLflow's error code, and what was said, on one line."""
    try:
        data = answer.json()
        return str(data.get("error_code", "")), " ".join(str(data.get("message", "")).split())[:500]
    except (ValueError, AttributeError):
        return "", " ".join(answer.text.split())[:200]


def _seconds(env: Mapping[str, str], name: str, otherwise: float) -> float:
    said = env.get(name, "")
    try:
        return float(said) if said else otherwise
    except ValueError:
        raise BadInputError(f"{name} is {said!r}, not a number of seconds.", f"unset {name}") from None
