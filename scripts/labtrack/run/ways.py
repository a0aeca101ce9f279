"""How the server can be reached from here: directly, through a gateway, or not now."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from urllib.parse import urlsplit

import requests

from labtrack.errors import LabtrackError, innermost
from labtrack.run.proxy import Proxy
from labtrack.tracking.credentials import Credentials
from labtrack.tracking.transport import Transport

DIRECT = "direct"
QUICK = 3.0  # seconds in which a server that can be used directly answers
_THROUGH = 20.0  # the same through a gateway, where ssh has to log in first
EVERY = 15.0  # seconds between two looks
_FAILS = 2  # looks that fail before a way is left
_FIRST_PAUSE, _LONGEST_PAUSE = 60.0, 3600.0  # of a gateway that does not let us in: many logins look like an attack
_PROXIES = ("HTTPS_PROXY", "https_proxy")
_NO_PROXIES = ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy")
_SERVER_ERROR = 500


def answers(
    base: str, env: Mapping[str, str], seconds: float = QUICK, proxies: Mapping[str, str | None] | None = None
) -> str:
    """Asks the server for a sign of life; empty if it gave one, else what was wrong.

    proxies: as requests has them; those of the environment where there are none.  Takes no longer than `seconds`, also
    where a name server hangs.
    """
    said = [f"no answer within {seconds:.0f} s"]

    def ask() -> None:
        try:
            transport = Transport(base, Credentials(env), seconds, seconds)
            more = {"proxies": dict(proxies)} if proxies else {}
            with contextlib.closing(transport.send("GET", "/health", **more)) as answer:
                status = answer.status_code
            said[0] = f"it answered {status}" if status >= _SERVER_ERROR else ""
        except requests.exceptions.Timeout:
            pass  # the same that is said where it notices too late
        except requests.exceptions.RequestException as error:
            said[0] = innermost(error)
        except LabtrackError as error:
            said[0] = error.what
        except Exception as error:  # a plugin for logging in may raise anything
            said[0] = f"{type(error).__name__}: {error}"

    asking = threading.Thread(target=ask, daemon=True, name="labtrack-probe")
    asking.start()
    asking.join(seconds + 0.5)
    return said[0]


def hosts_of(base: str, env: Mapping[str, str]) -> list[tuple[str, int]]:
    """What a gateway's proxy may lead to: the server, and the object store that artifacts go to."""
    found = []
    for address in (base, env.get("MLFLOW_S3_ENDPOINT_URL", "")):
        with contextlib.suppress(ValueError):
            parts = urlsplit(address)
            if parts.hostname:
                found.append((parts.hostname, parts.port or (80 if parts.scheme == "http" else 443)))
    return list(dict.fromkeys(found))


class Ways:
    """Looks for a way, again and again, in a thread of its own.

    best: `direct`, a gateway, or nothing.  why: what is wrong where there is none.
    """

    def __init__(
        self, base: str, gateways: Sequence[str], env: Mapping[str, str], say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._base, self._env, self._say = base, dict(env), say
        self._gateways = list(gateways) if base.startswith("https:") else []
        self._proxies: dict[str, Proxy] = {}
        self._pauses = dict.fromkeys(self._gateways, (0.0, _FIRST_PAUSE))
        self._fails = 0
        found = requests.utils.get_environ_proxies(base)
        # named one by one, as those of the environment change while a gateway is taken
        self._sites = {name: found.get(name) for name in ("https", "http", "all")}
        self._stop, self._looked = threading.Event(), threading.Event()
        self.best, self.why = "", "no answer yet"
        self._thread = threading.Thread(target=self._go_on, daemon=True, name="labtrack-ways")
        self._thread.start()

    def wait(self, seconds: float) -> str:
        """The way that the first look found, once that is done."""
        self._looked.wait(seconds)
        return self.best

    def close(self) -> None:
        """Ends looking, and the proxies."""
        self._stop.set()
        self._thread.join(1)
        for one in self._proxies.values():
            one.close()

    @contextlib.contextmanager
    def taken(self, way: str) -> Iterator[None]:
        """Has this process's requests, and boto3's, go that way."""
        before = {name: os.environ.get(name) for name in (*_PROXIES, *_NO_PROXIES)}
        if way != DIRECT:
            for name in _NO_PROXIES:
                os.environ.pop(name, None)
            os.environ.update(dict.fromkeys(_PROXIES, self._proxies[way].url))
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    def _go_on(self) -> None:
        while not self._stop.is_set():
            found, why = self._look()
            self._fails = 0 if found else self._fails + 1
            if found or self._fails >= _FAILS or not self.best:
                if found != self.best or not self._looked.is_set():
                    self._say(f"the server is reached {_words(found)}" if found else f"the server is away: {why}")
                self.best, self.why = found, why
            self._looked.set()
            self._stop.wait(EVERY)

    def _look(self) -> tuple[str, str]:
        why = answers(self._base, self._env, proxies=self._sites)
        if not why:
            return DIRECT, ""
        for gateway in self._gateways:
            before, pause = self._pauses[gateway]
            if gateway != self.best and time.monotonic() < before:
                continue
            try:
                proxy = self._proxies.get(gateway) or Proxy(gateway, hosts_of(self._base, self._env))
                self._proxies[gateway] = proxy
                said = answers(self._base, self._env, _THROUGH, {"https": proxy.url, "http": None, "all": None})
            except OSError as error:
                said = str(error)
            else:
                if not said:
                    self._pauses[gateway] = (0.0, _FIRST_PAUSE)
                    return gateway, ""
                said = proxy.said or said
            self._pauses[gateway] = (time.monotonic() + pause, min(_LONGEST_PAUSE, 2 * pause))
            why += f"; through {gateway}: {said}"
        return "", why


def _words(way: str) -> str:
    return "directly" if way == DIRECT else f"through {way}"
