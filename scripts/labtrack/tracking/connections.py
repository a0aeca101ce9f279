"""Connections that acknowledge what they receive at once.

`mlflow server` with more than one worker, as pip installs it, sends an answer in two parts and waits with the second
one until the first is acknowledged (uvicorn #3149); Linux takes 40 ms for that on a connection that is kept.
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


class _HTTPConnection(urllib3.connection.HTTPConnection):
    def getresponse(self, *args: Any, **more: Any) -> Any:
        _acknowledge_at_once(self)
        return super().getresponse(*args, **more)


class _HTTPSConnection(urllib3.connection.HTTPSConnection):
    def getresponse(self, *args: Any, **more: Any) -> Any:
        _acknowledge_at_once(self)
        return super().getresponse(*args, **more)


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class PromptAdapter(HTTPAdapter):
    """Requests' adapter with such connections."""

    def init_poolmanager(self, *args: Any, **more: Any) -> None:
        super().init_poolmanager(*args, **more)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
