"""A proxy on this machine's loopback that takes connections to the lab's hosts through a gateway by ssh.

It speaks HTTP CONNECT, which requests and boto3 both understand (botocore has no SOCKS), and never sees what is inside:
TLS goes from here to the server.  Each connection is `ssh -W host:port gateway`, and all share one login.  Who uses it
has to know its secret, as the node may have other users; it leads to the declared hosts alone.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import os
import re
import secrets
import shutil
import socket
import socketserver
import subprocess
import tempfile
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from labtrack.errors import BadInputError

USER = "labtrack"
_HEAD = 16 * 2**10  # bytes of a request, at most
_PATIENCE = 10.0  # seconds for a request's head
_BLOCK = 2**16
_MOST = 64  # connections at once
_GATEWAY = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]*)(?::(?P<port>[0-9]{1,5}))?"
)
_TARGET = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})")


def parse_gateway(text: str) -> tuple[str, str]:
    """`user@host[:port]` as ssh takes it: the host with its user, and the port or nothing.

    A host may be a name of ~/.ssh/config.  Raises BadInputError for anything else, also for what ssh would take as an
    option.
    """
    found = _GATEWAY.fullmatch(text.strip())
    if not found or (found["port"] and not 0 < int(found["port"]) < 2**16):
        raise BadInputError(
            f"{text!r} is no gateway.",
            "write it as ssh takes it: user@host, user@host:port, or a name of ~/.ssh/config.",
        )
    return (f"{found['user']}@" if found["user"] else "") + found["host"], found["port"] or ""


def gateways_of(given: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """The gateways to try, in their order: those given, else those of mlflow_env.sh.  Raises BadInputError."""
    found = list(given) or env.get("LABTRACK_GATEWAYS", "").replace(",", " ").split()
    for one in found:
        parse_gateway(one)
    return found


class Proxy:
    """The proxy, at work until it is closed.

    gateway: `user@host[:port]`.  allowed: (host, port) that it leads to.  Use it as a context manager.
    """

    def __init__(self, gateway: str, allowed: Collection[tuple[str, int]]) -> None:
        self._gateway, self._port = parse_gateway(gateway)
        self._allowed = frozenset((host.lower(), port) for host, port in allowed)
        self._secret = secrets.token_urlsafe(24)
        expected = base64.b64encode(f"{USER}:{self._secret}".encode())
        self._expected = b"Basic " + expected
        # of the socket's path only some 100 characters may be used
        self._folder = Path(tempfile.mkdtemp(prefix="labtrack-", dir="/tmp" if Path("/tmp").is_dir() else None))  # noqa: S108
        self._ways: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self.said = ""  # what ssh has said last
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True, name="labtrack-proxy").start()

    @property
    def url(self) -> str:
        """The proxy's address for HTTPS_PROXY; it has the secret in it."""
        return f"http://{USER}:{self._secret}@127.0.0.1:{self._server.server_address[1]}"

    def permits(self, head: bytes) -> bool:
        """Whether a request's head has the secret in it."""
        found = re.search(rb"(?im)^proxy-authorization:[ \t]*([^\r\n]*?)[ \t]*\r?$", head)
        return bool(found) and hmac.compare_digest(found[1] if found else b"", self._expected)

    def leads_to(self, host: str, port: int) -> bool:
        """Whether the host is one of the declared ones."""
        return (host.strip("[]").lower(), port) in self._allowed

    def way_to(self, target: str) -> subprocess.Popen[bytes]:
        """A connection through the gateway: its input and output are the other side's.  Raises OSError."""
        options = [
            "BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=15", "ServerAliveCountMax=3",
            "ControlMaster=auto", f"ControlPath={self._folder / 'ssh'}", "ControlPersist=60", "LogLevel=ERROR",
        ]  # fmt: skip
        words = [word for one in options for word in ("-o", one)]
        port = ["-p", self._port] if self._port else []
        with self._lock:
            if len(self._ways) >= _MOST:
                raise OSError(f"there are {_MOST} connections already")
        started = subprocess.Popen(
            ["ssh", *words, *port, "-W", target, "--", self._gateway],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        threading.Thread(target=self._listen, args=(started,), daemon=True).start()
        with self._lock:
            self._ways.add(started)
        return started

    def ended(self, way: subprocess.Popen[bytes]) -> None:
        """Ends a connection."""
        for stream in (way.stdin, way.stdout):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()
        with contextlib.suppress(OSError):
            way.kill()  # it ignores the milder signals, as the process beside the training does
        with contextlib.suppress(subprocess.TimeoutExpired):
            way.wait(2)
        with self._lock:
            self._ways.discard(way)

    def _listen(self, way: subprocess.Popen[bytes]) -> None:
        for line in way.stderr or ():
            self.said = line.decode("utf-8", "replace").strip() or self.said

    def close(self) -> None:
        """Ends all connections and the login."""
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            left = list(self._ways)
        for one in left:
            self.ended(one)
        if (self._folder / "ssh").exists():
            end = ["ssh", "-o", f"ControlPath={self._folder / 'ssh'}", "-O", "exit", "--", self._gateway]
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                subprocess.run(end, capture_output=True, timeout=5, check=False, stdin=subprocess.DEVNULL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = _MOST

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class _Handler(socketserver.BaseRequestHandler):
    request: socket.socket
    server: _Server

    def handle(self) -> None:
        proxy = self.server.proxy
        self.request.settimeout(_PATIENCE)
        head, rest = self._head()
        if not head:
            return
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split()
        target = _TARGET.fullmatch(words[1]) if len(words) == 3 else None  # noqa: PLR2004
        if not proxy.permits(head):
            self._refuse("407 Proxy Authentication Required", 'Proxy-Authenticate: Basic realm="labtrack"\r\n')
        elif words[:1] != ["CONNECT"]:
            self._refuse("405 Method Not Allowed", "Allow: CONNECT\r\n")
        elif not target or not proxy.leads_to(target[1], int(target[2])):
            self._refuse("403 Forbidden")
        else:
            self._connect(proxy, target[0], rest)

    def _connect(self, proxy: Proxy, target: str, rest: bytes) -> None:
        try:
            way = proxy.way_to(target)
        except OSError as error:
            proxy.said = f"ssh can't be run: {error.strerror or error}"
            self._refuse("502 Bad Gateway")
            return
        try:
            self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self.request.settimeout(None)
            self._relay(way, rest)
        finally:
            proxy.ended(way)

    def _head(self) -> tuple[bytes, bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            try:
                more = self.request.recv(_BLOCK)
            except OSError:
                return b"", b""
            data += more
            if not more:
                return b"", b""
            if len(data) > _HEAD:
                self._refuse("431 Request Header Fields Too Large")
                return b"", b""
        head, _, rest = data.partition(b"\r\n\r\n")
        return head + b"\r\n", rest

    def _refuse(self, status: str, more: str = "") -> None:
        with contextlib.suppress(OSError):
            said = f"HTTP/1.1 {status}\r\n{more}Content-Length: 0\r\nConnection: close\r\n\r\n"
            self.request.sendall(said.encode("latin-1"))

    def _relay(self, way: subprocess.Popen[bytes], first: bytes) -> None:
        """Carries bytes in both directions until one side has closed."""
        into, out = way.stdin, way.stdout
        if into is None or out is None:
            return

        def forth() -> None:
            with contextlib.suppress(OSError, ValueError):
                data = first
                while data or (data := self.request.recv(_BLOCK)):
                    into.write(data)
                    into.flush()
                    data = b""
            with contextlib.suppress(OSError, ValueError):
                into.close()

        sender = threading.Thread(target=forth, daemon=True)
        sender.start()
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(out.fileno(), _BLOCK):
                self.request.sendall(data)
        with contextlib.suppress(OSError):
            self.request.shutdown(socket.SHUT_RDWR)
        sender.join(2)
