"""One request to a tracking server: with the login as it is now, its certificate checked, no redirect followed."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import requests
import urllib3

from labtrack.tracking.connections import PromptAdapter
from labtrack.tracking.credentials import Credentials

CONNECT = 10.0  # seconds for a connection


class Transport:
    """One server.  May be used by several threads, each of which keeps a connection of its own.

    timeout: seconds of silence that an answer may take, and that a block of an upload may.
    connect: seconds for a connection.
    """

    def __init__(self, base: str, credentials: Credentials, timeout: float, connect: float = CONNECT) -> None:
        """Raises BadInputError for a certificate file that is not there."""
        self.base, self.credentials = base, credentials
        self._trust = credentials.trust()
        self._timeout = (connect, timeout)
        self._local = threading.local()
        if self._trust.verify is False:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

    def send(self, method: str, path: str, **more: Any) -> requests.Response:
        """One request, whatever the answer's status.  Raises requests' exceptions where no answer comes."""
        given: Mapping[str, Any] = {"timeout": self._timeout, **more}
        return self._session().request(
            method,
            self.base + path,
            # with each request: ~/.netrc and REQUESTS_CA_BUNDLE would win over the session's
            auth=self.credentials.auth(),
            verify=self._trust.verify,
            cert=self._trust.client,
            allow_redirects=False,  # a login page is no answer
            **given,
        )

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            adapter = PromptAdapter(self._timeout[1], pool_connections=1, pool_maxsize=1, max_retries=0)
            session.mount(self.base, adapter)
        return session
