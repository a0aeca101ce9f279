"""What the checks look at, and what they learn on the way."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import certifi
import requests

from labtrack.errors import LabtrackError
from labtrack.tracking import address
from labtrack.tracking.credentials import Credentials
from labtrack.tracking.transport import Transport

TIMEOUT = 15.0  # seconds for a connection, and for each answer


@dataclass
class Context:
    """A researcher's environment.

    env: the variables.  file: their mlflow_env.sh, if known.  write: whether a run may be made.
    dates: for each party that answered, its clock (the Date header) and ours, in seconds since 1970.
    because: for each group of checks that failed, or is pointless after one that did, the one that did.
    """

    env: Mapping[str, str] = field(repr=False)
    file: Path | None = None
    write: bool = False
    timeout: float = TIMEOUT
    dates: dict[str, tuple[float, float]] = field(default_factory=dict)
    because: dict[str, str] = field(default_factory=dict)

    @functools.cached_property
    def uri(self) -> str:
        """The server's address.  Raises BadInputError for one that is none."""
        write = "export MLFLOW_TRACKING_URI={}   (your mlflow_env.sh has it right)"
        return address.parse(self.env.get("MLFLOW_TRACKING_URI", ""), "MLFLOW_TRACKING_URI", write)

    @functools.cached_property
    def credentials(self) -> Credentials:
        """The login, as MLflow would find it."""
        return Credentials(self.env)

    @functools.cached_property
    def transport(self) -> Transport:
        """Requests to the server, as that login."""
        return Transport(self.uri, self.credentials, self.timeout, self.timeout)

    @property
    def server(self) -> SplitResult:
        """The parts of the tracking URI."""
        return urlsplit(self.uri)

    @property
    def direct(self) -> bool:
        """Whether this environment writes artifacts to a store itself."""
        return bool(self.env.get("MLFLOW_S3_ENDPOINT_URL") or self.env.get("AWS_ACCESS_KEY_ID"))

    def trust(self, *names: str) -> str:
        """The CA file that a library would use: the first of the named variables, or its own list."""
        for name in (*names, "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            if self.env.get(name):
                return self.env[name]
        return certifi.where()  # what requests itself uses

    def proxy(self, url: str) -> str:
        """The proxy that requests to `url` go through, if there is one; it may have a login in it."""
        return str(requests.utils.get_environ_proxies(url).get(urlsplit(url).scheme, ""))


def of_file(file: Path, folder: Path, shell: str = "/bin/sh") -> dict[str, str]:
    """The environment that sourcing `file` gives.  Only for a file that was looked at before.

    folder: where its certificates go, which a look at somebody's file should not leave in one's own cache.
    Raises LabtrackError when the shell can't source it.
    """
    script = 'PATH=$PATH; . "$1" && exec env -0'
    done = subprocess.run(
        [shell, "-c", script, shell, str(file.absolute())],
        capture_output=True,
        check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(folder)},
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-300:]
        raise LabtrackError(f"{shell} can't source {file}: {said}", "get the file again from the lab's admin.")
    pairs = (item.partition("=") for item in done.stdout.decode(errors="replace").split("\0") if item)
    return {name: value for name, _, value in pairs}
