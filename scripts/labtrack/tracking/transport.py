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
        trust = credentials.trust()
        self._timeout = (connect, timeout)
        # of the environment, once: to look for a proxy is a third of what a call costs this process
        with requests.Session() as asked:
            found = asked.merge_environment_settings(base, {}, None, trust.verify, trust.client)
        self._settings = {name: found[name] for name in ("proxies", "verify", "cert")}
        self._local = threading.local()
        if trust.verify is False:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

    def send(self, method: str, path: str, **more: Any) -> requests.Response:
        """One request, whatever the answer's status.  Raises requests' exceptions where no answer comes."""
        session, login = self._session(), self.credentials.auth()
        session.trust_env = login is None  # what is left to look up is a login, in ~/.netrc, which would win over ours
        given: Mapping[str, Any] = {"timeout": self._timeout, **self._settings, **more}
        # a login page is no answer
        return session.request(method, self.base + path, auth=login, allow_redirects=False, **given)

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            adapter = PromptAdapter(self._timeout[1], pool_connections=1, pool_maxsize=1, max_retries=0)
            session.mount(self.base, adapter)
        return session
