"""One session: a snapshot, MLflow's server over it, and the gate in front; gone together."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from labtrack.errors import BadInputError, LabtrackError
from labtrack.stores import open_store
from labtrack.stores.pull import refuse
from labtrack.stores.sqlite import SqliteStore
from labtrack.ui import server, snapshot, tunnel
from labtrack.ui.gate import Gate
from labtrack.ui.portal import Portal, read_portal
from labtrack.ui.private import Private
from labtrack.ui.program import Mlflow, find_mlflow
from labtrack.ui.snapshot import Snapshot

PORT = 5000
_TRIED = 100  # ports after PORT that are tried before any free one is taken
_OURS = "127.0.0.1"
_LOOPBACK = ("localhost", _OURS, "::1", "[::1]")


@dataclass(frozen=True)
class Settings:
    """How it is shown.

    live: the file itself, not a snapshot.  port: None for 5000 or the next that is free.  host: a name of loopback.
    socket: a Unix socket in the place of a port.  mlflow: see `find_mlflow`.  portal, password_file: see `read_portal`;
    the port that the portal names is then open to the network, and the password opens the pages.
    """

    live: bool = False
    port: int | None = None
    host: str = _OURS
    socket: bool = False
    mlflow: str | None = None
    portal: str | None = None
    password_file: str | None = None


class View:
    """A session that is running.

    shown: the snapshot, None where the file itself is shown.  port: the port here, or to choose at the other end.
    socket: the path of the Unix socket.  portal: where it is shown instead.  seconds: from the start to a page that
    answers.
    """

    def __init__(
        self, mlflow: Mlflow, shown: Snapshot | None, listening: socket.socket, private: Private, portal: Portal | None
    ) -> None:
        self.mlflow, self.shown, self.portal = mlflow, shown, portal
        name = listening.getsockname()
        self.socket = Path(name) if isinstance(name, str) else None
        self.port = PORT if isinstance(name, str) else int(name[1])
        self.seconds = 0.0
        self._private = private
        self._gate: Gate | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address that opens the page in a browser, once; behind a portal only for who has given the password."""
        if self.portal:
            return f"{self.portal.origin}{self.portal.prefix}/"
        return self._address(self._gate.link if self._gate else "/")

    @property
    def ssh(self) -> str:
        """The command by which one's own computer reaches it."""
        return tunnel.ssh_line(self.port, str(self.socket) if self.socket else f"{_OURS}:{self.port}")

    @property
    def alive(self) -> bool:
        """Whether MLflow's server is still there."""
        return self._process is not None and self._process.poll() is None

    def failure(self) -> LabtrackError:
        """Why the server is not there any more."""
        return server.failed(self._private, "MLflow's server has ended")

    def page(self) -> Path:
        """A file that leads to the page, for a program that opens a browser: its arguments can be seen by others."""
        file = self._private.folder / "open.html"
        file.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={self.url}">\n', encoding="utf-8")
        return file

    def _address(self, path: str) -> str:
        return f"http://{_OURS}:{self.port}{path}"

    def _serve(self, gate: Gate, process: subprocess.Popen[bytes], seconds: float) -> None:
        self._gate, self._process, self.seconds = gate, process, seconds


@contextlib.contextmanager
def view(
    source: str,
    settings: Settings | None = None,
    *,
    step: Callable[[str], None] = lambda _: None,
    used: Callable[[str], None] = lambda _: None,
) -> Iterator[View]:
    """Shows what was recorded until the context is left; then nothing is left of it.

    source: what `open_store` takes, or a folder with many recordings.  step: told what is done.  used: called with the
    next address each time one was used.
    Raises BadInputError where there is no such source, no MLflow or no such port, LabtrackError where MLflow fails.
    """
    settings = settings or Settings()
    begun = time.monotonic()
    portal = _portal(settings)
    mlflow = find_mlflow(settings.mlflow)
    with contextlib.ExitStack() as stack:
        private = stack.enter_context(Private())
        listening = stack.enter_context(_outside(portal) if portal else _listening(settings, private))
        shown = None
        (private.folder / "artifacts").mkdir()
        if settings.live:
            _link(source, mlflow, private)
        # it imports MLflow for seconds, and opens the database only when it is asked
        process = server.start(mlflow, private, snapshot.DATABASE)
        if not settings.live:
            shown = snapshot.make(source, mlflow, private, step)
        step("wait for MLflow's server")
        server.wait(process, private)
        here = View(mlflow, shown, listening, private, portal)
        gate = Gate(
            listening, private.sockets / server.SOCKET, read_only=not settings.live,
            used=lambda link: used(here._address(link)), portal=portal,
        )  # fmt: skip
        stack.callback(gate.close)
        here._serve(gate, process, time.monotonic() - begun)
        yield here


def _link(source: str, mlflow: Mlflow, private: Private) -> None:
    """Puts a link to the file itself where a snapshot would be.  Raises BadInputError where that can't be shown."""
    refuse(source, "ui --live")
    with open_store(source) as store:
        if type(store) is not SqliteStore:
            raise BadInputError(
                f"--live shows a SQLite file itself, and {store.location} is none.", "leave --live away: a snapshot."
            )
        schema, path = store.schema, store.path.absolute()
    if schema != mlflow.schema:
        raise BadInputError(
            f"{path} has the schema {schema or 'of an old version'}, and MLflow {mlflow.version} has {mlflow.schema}: "
            "it would have to be upgraded, and then no other version could write it.",
            "leave --live away: the snapshot is upgraded, the file is not.",
        )
    (private.folder / snapshot.DATABASE).symlink_to(path)


def _portal(settings: Settings) -> Portal | None:
    if settings.portal is None and settings.password_file is None:
        return None
    if settings.portal is None or settings.password_file is None:
        raise BadInputError("--portal and --password-file belong together.", "see docs/admin/ondemand.md.")
    portal = read_portal(settings.portal, settings.password_file)
    if settings.socket or settings.host != _OURS or settings.port not in (None, portal.port):
        raise BadInputError(
            f"--portal says where this listens: at port {portal.port} of all addresses of this machine.",
            "leave --host, --port and --socket away.",
        )
    return portal


def _outside(portal: Portal) -> socket.socket:
    """A socket that the portal reaches.  It takes no connection before the pages are there, so that one can wait."""
    found = socket.socket()
    try:
        found.bind(("", portal.port))
    except OSError as error:
        found.close()
        raise BadInputError(
            f"The port {portal.port} can't be had: {error.strerror}.", "start a new session: it takes another port."
        ) from error
    return found


def _listening(settings: Settings, private: Private) -> socket.socket:
    if settings.host not in _LOOPBACK:
        raise BadInputError(
            f"--host {settings.host} would show it to others; only this machine's own address is taken (127.0.0.1).",
            "leave --host away and use the ssh line that is printed; for everybody there is the lab's server.",
        )
    if settings.socket:
        return _unix(private)
    wanted = [settings.port] if settings.port is not None else [*range(PORT, PORT + _TRIED), 0]
    for port in wanted:
        found = socket.socket()
        try:
            if os.name != "nt":  # where it would let two programs have the port
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((_OURS, port))
            found.listen()
            return found
        except (OSError, OverflowError) as error:
            found.close()
            trouble = error
    raise BadInputError(
        f"The port {settings.port} can't be had: {getattr(trouble, 'strerror', None) or trouble}.",
        "leave --port away: a free one is found.",
    )


def _unix(private: Private) -> socket.socket:
    found = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        found.bind(str(private.sockets / "ui.sock"))
    finally:
        os.umask(mask)
    return found
