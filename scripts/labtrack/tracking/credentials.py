"""The login for a tracking server, from the variables that MLflow itself reads."""

from __future__ import annotations

import configparser
import contextlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from labtrack.envfile import read_envfile
from labtrack.errors import BadInputError, LabtrackError

USER, PASSWORD, TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
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
        return "this token" if self.token else "a call without login"


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
        file = env.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or None
        if file and not Path(file).exists():
            raise BadInputError(
                f"MLFLOW_TRACKING_SERVER_CERT_PATH names {file}, which is not there.",
                "source your mlflow_env.sh again, which writes it.",
            )
        return Trust(verify=file, client=client)

    def _of(self, env: Mapping[str, str]) -> Login:
        user, password = env.get(USER, ""), env.get(PASSWORD, "")
        if not (user and password):
            parser = configparser.ConfigParser(interpolation=None)
            with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
                parser.read(self._mlflows_own())
            section = parser[_SECTION] if parser.has_section(_SECTION) else {}
            user, password = user or section.get(USER.lower(), ""), password or section.get(PASSWORD.lower(), "")
        return Login(user, password, env.get(TOKEN, ""))

    def _mlflows_own(self) -> Path:
        return Path(self._env.get("HOME") or Path.home()) / ".mlflow" / "credentials"

    def _seen(self) -> list[tuple[int, int]]:
        stamps = []
        for file in filter(None, (self._file, self._mlflows_own())):
            with contextlib.suppress(OSError):
                found = file.stat()
                stamps.append((found.st_mtime_ns, found.st_ino))
        return stamps
