"""An answer for loggers that ask a server for its health by `requests` before they use it, as Anemoi's does.

To them a folder is an address like any other: GET labtrack:///scratch/me/runs/health says OK, as MLflow's server does.
"""

from __future__ import annotations

import io
from typing import Any

import requests
from requests.adapters import BaseAdapter

from labtrack.recorder.place import SCHEME


class _Folder(BaseAdapter):
    """What a folder answers: OK at /health, 404 elsewhere."""

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        """The answer; nothing is looked at, since recording never fails either."""
        healthy = str(request.url).endswith("/health")
        answer = requests.Response()
        answer.status_code, answer.reason = (200, "OK") if healthy else (404, "Not Found")
        answer.url, answer.request, answer.encoding = str(request.url), request, "utf-8"
        answer.raw = io.BytesIO(b"OK" if healthy else b"labtrack records into a folder, which is no server")
        return answer

    def close(self) -> None:
        """Nothing is held."""


def answer() -> None:
    """Has every session of this process take such addresses; all others go their own way."""
    known = requests.Session.get_adapter
    if getattr(known, "of_labtrack", False):
        return

    def get_adapter(session: requests.Session, url: str) -> BaseAdapter:
        # an adapter that somebody has mounted for the scheme would be theirs, but nobody has one
        return _Folder() if url.lower().startswith(f"{SCHEME}:") else known(session, url)

    get_adapter.of_labtrack = True  # type: ignore[attr-defined]
    requests.Session.get_adapter = get_adapter  # type: ignore[method-assign,assignment]
