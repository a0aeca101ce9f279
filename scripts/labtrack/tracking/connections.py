"""Connections that acknowledge what they receive at once, and wait longer for a slow line than for a connection.

`mlflow server` with more than one worker, as pip installs it, sends an answer in two parts and waits with the second
one until the first is acknowledged (uvicorn #3149); Linux takes 40 ms for that on a connection that is kept.

urllib3 sends with the time-out that was meant for connecting, which ends an upload through a line that stands
still for as many seconds.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import urllib3
from requests.adapters import HTTPAdapter

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)  # Linux only


def _acknowledge_at_once(connection: Any) -> None:
    """Linux forgets this after a while, so it is said again for each answer."""
    if _QUICKACK is not None:
        with contextlib.suppress(OSError, AttributeError):
            connection.sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)


class _Prompt:
    """What both kinds of connection have.  silence: seconds that a block which is sent may take."""

    silence: float
    sock: Any

    def send(self, data: Any) -> None:
        if self.sock is not None:
            self.sock.settimeout(self.silence)
        super().send(data)  # type: ignore[misc]

    def getresponse(self, *args: Any, **more: Any) -> Any:
        _acknowledge_at_once(self)
        return super().getresponse(*args, **more)  # type: ignore[misc]


def _pools(seconds: float) -> dict[str, Any]:
    class HTTPConnection(_Prompt, urllib3.connection.HTTPConnection):
        silence = seconds

    class HTTPSConnection(_Prompt, urllib3.connection.HTTPSConnection):
        silence = seconds

    class HTTPPool(urllib3.HTTPConnectionPool):
        ConnectionCls = HTTPConnection

    class HTTPSPool(urllib3.HTTPSConnectionPool):
        ConnectionCls = HTTPSConnection

    return {"http": HTTPPool, "https": HTTPSPool}


class PromptAdapter(HTTPAdapter):
    """Requests' adapter with such connections.  silence: seconds that sending a block may take."""

    def __init__(self, silence: float, **more: Any) -> None:
        self._silence = silence
        super().__init__(**more)

    def init_poolmanager(self, *args: Any, **more: Any) -> None:
        super().init_poolmanager(*args, **more)
        self.poolmanager.pool_classes_by_scheme = _pools(self._silence)

    def proxy_manager_for(self, proxy: Any, **more: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **more)
        if not str(proxy).lower().startswith("socks"):  # which has connections of its own
            manager.pool_classes_by_scheme = _pools(self._silence)
        return manager
