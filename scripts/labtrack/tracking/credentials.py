"""The login for a tracking server, from the variables that MLflow itself reads."""

from __future__ import annotations

import base64
import configparser
import contextlib
import datetime
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import requests
from requests.auth import AuthBase, HTTPBasicAuth

from labtrack.envfile import read_envfile
from labtrack.errors import BadInputError, LabtrackError
from labtrack.files import home

USER, PASSWORD, TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
PLUGIN = "MLFLOW_TRACKING_AUTH"  # the name of a plugin that logs in
_PLUGINS = "mlflow.request_auth_provider"  # the entry points that MLflow looks for it in
_SECTION = "mlflow"


@dataclass(frozen=True)
class Login:
    """How to log in.  A user and password win over a token, as in MLflow."""

    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    @property
    def whom(self) -> str:
        """The login in words, without the secret."""
        if self.user:
            return f"the login of {self.user}"
        return "the token in MLFLOW_TRACKING_TOKEN" if self.token else "a call without login"

    @property
    def expired(self) -> str:
        """When the token ended, in words; empty where it has not, or does not tell."""
        with contextlib.suppress(ValueError, TypeError, KeyError, IndexError, OverflowError, OSError):
            said = self.token.split(".")[1]
            ends = json.loads(base64.urlsafe_b64decode(said + "=" * (-len(said) % 4)))["exp"]
            when = datetime.datetime.fromtimestamp(float(ends), datetime.timezone.utc)
            if when < datetime.datetime.now(datetime.timezone.utc):
                return f"it ended at {when:%Y-%m-%d %H:%M} UTC"
        return ""


class Bearer(AuthBase):
    """A token, as requests wants it: a header alone would give way to an entry in ~/.netrc."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


@dataclass(frozen=True)
class Trust:
    """How the server's certificate is checked, and which one the client shows."""

    verify: bool | str | None = None
    client: str | None = None


class Credentials:
    """The login as it is now.

    A sync may take longer than a password lives, so the file that was sourced (LABTRACK_ENV_FILE) and
    MLflow's own ~/.mlflow/credentials are read again when they change.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._lock = threading.Lock()
        file = env.get("LABTRACK_ENV_FILE")
        self._file = Path(file) if file else None
        self._stamps = self._seen()
        self._login = self._of(env)
        if env.get("MLFLOW_TRACKING_AWS_SIGV4", "").lower() in ("true", "1"):
            raise BadInputError(
                "MLFLOW_TRACKING_AWS_SIGV4 is set, and labtrack can't sign calls in Amazon's way.",
                "unset it, if the server does not need it; else log in with the plugin of MLFLOW_TRACKING_AUTH.",
            )
        name = env.get(PLUGIN, "")
        self._plugin = _plugin(name) if name else None

    def auth(self) -> Any:
        """The login as requests takes it; None where there is none, and ~/.netrc may have one, as for MLflow."""
        if self._plugin is not None:
            return self._plugin.get_auth()  # each time: it is the plugin that renews
        login = self._login
        if login.user and login.password:
            return HTTPBasicAuth(login.user.encode(), login.password.encode())
        return Bearer(login.token) if login.token else None

    @property
    def whom(self) -> str:
        """Who logs in, in words."""
        return f"the login of {PLUGIN}={self._env[PLUGIN]}" if self._plugin is not None else self._login.whom

    @property
    def hint(self) -> str:
        """What to do where this login is refused."""
        login = self._login
        if self._plugin is not None:
            return "log in anew where that plugin does, then run the same command again: it goes on where it stopped."
        if login.token and not (login.user and login.password):
            why = f" ({login.expired})" if login.expired else ""
            return f"get a new token{why}, export MLFLOW_TRACKING_TOKEN, and run it again: it goes on where it stopped."
        return "source your newest mlflow_env.sh (or set MLFLOW_TRACKING_USERNAME and _PASSWORD), then run it again."

    @property
    def login(self) -> Login:
        """What to log in with."""
        return self._login

    def renewed(self, refused: Login) -> bool:
        """Whether there is another login than the one that was `refused`, after a look at the files."""
        with self._lock:
            if self._login == refused and self._seen() != self._stamps:
                self._stamps = self._seen()
                variables: Mapping[str, str] = self._env
                if self._file is not None:
                    with contextlib.suppress(LabtrackError):
                        variables = {**self._env, **read_envfile(self._file).variables}
                self._login = self._of(variables)
            return self._login != refused

    def trust(self) -> Trust:
        """MLflow's TLS variables.  Raises BadInputError for a certificate file that is not there."""
        env = self._env
        client = env.get("MLFLOW_TRACKING_CLIENT_CERT_PATH") or None
        if env.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
            return Trust(verify=False, client=client)
        # those of requests too: they may be of a file that is looked at, and not of this process
        for name in ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            file = env.get(name)
            if file and not Path(file).exists():
                raise BadInputError(
                    f"{name} names {file}, which is not there.", "source your mlflow_env.sh again, which writes it."
                )
            if file:
                return Trust(verify=file, client=client)
        return Trust(client=client)

    def _of(self, env: Mapping[str, str]) -> Login:
        user, password = env.get(USER, ""), env.get(PASSWORD, "")
        if not (user and password):
            parser = configparser.ConfigParser(interpolation=None)
            with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
                parser.read(self._mlflows_own())
            section = parser[_SECTION] if parser.has_section(_SECTION) else {}
            user, password = user or section.get(USER.lower(), ""), password or section.get(PASSWORD.lower(), "")
        token = env.get(TOKEN, "").strip()
        if not re.fullmatch("[!-~]*", token):
            raise BadInputError(f"{TOKEN} has a blank or a character in it that no token has.", f"export {TOKEN} anew.")
        return Login(user, password, token)

    def _mlflows_own(self) -> Path:
        return home(self._env) / ".mlflow" / "credentials"

    def _seen(self) -> list[tuple[int, int]]:
        stamps = []
        for file in filter(None, (self._file, self._mlflows_own())):
            with contextlib.suppress(OSError):
                found = file.stat()
                stamps.append((found.st_mtime_ns, found.st_ino))
        return stamps


def _plugin(name: str) -> Any:
    """The plugin of that name, as MLflow would find it.  Raises BadInputError where there is none."""
    found: Any = metadata.entry_points()
    said = ""
    # Python 3.9 gives a mapping
    for point in found.select(group=_PLUGINS) if hasattr(found, "select") else found.get(_PLUGINS, ()):
        try:
            provider = point.load()()
            if provider.get_name() == name:
                return provider
        except Exception as error:  # somebody else's code
            said += f"; {point.value} can't be used here ({error})"
    raise BadInputError(
        f"MLFLOW_TRACKING_AUTH is {name!r}, and no plugin of that name is beside labtrack{said}.",
        "install labtrack where that plugin is installed, or unset it and set MLFLOW_TRACKING_TOKEN.",
    )
