"""A server that is a folder: real certbot and openssl, stand-ins for nginx and systemctl; and Pebble beside it.

Pebble never says 429 of itself, so its way in is a relay that can.
"""

from __future__ import annotations

import functools
import http.client
import http.server
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles/certificates"
PROGRAM = ROLE / "files/labtrack-certificate.py"
NAME = "mlflow.example.org"
KID, HMAC_KEY = "kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
RATE_LIMIT = "too many new orders (300) in the last 3h0m0s, retry after 2099-01-02 03:04:05 UTC"


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def until(is_so: Any, seconds: float = 20) -> Any:
    """What a function gives, once that is something."""
    end = time.monotonic() + seconds
    while True:
        try:
            if found := is_so():
                return found
        except OSError:
            pass
        assert time.monotonic() < end, f"not in {seconds} s"
        time.sleep(0.02)


@contextmanager
def program(*command: str, **environment: str) -> Iterator[None]:
    """A program in the background."""
    with subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield
        finally:
            process.terminate()


@contextmanager
def serving(server: http.server.ThreadingHTTPServer) -> Iterator[None]:
    """An HTTP server in the background."""
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.02))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, as nginx serves them for the directory's questions."""

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Server:
    """The server: its files, and the program on it."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin = folder / "root", folder / "bin"
        self.folder, self.letsencrypt = self.root / "etc/ssl/labtrack", self.root / "etc/letsencrypt"
        self.webroot = self.root / "var/lib/labtrack-acme"
        for made in (self.bin, self.folder, self.letsencrypt, self.webroot):
            made.mkdir(parents=True)
        self.renewal_failed = folder / "failed"
        self.answers, self.names = (
            http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=self.webroot)),
            free_port(),
        )
        env = f"env LABTRACK_CERTIFICATE_ROOT={self.root} PATH={self.bin}:/usr/sbin:/usr/bin:/sbin:/bin"
        self.script("nginx", "exit 0")
        self.script("systemctl", f'case "$*" in *is-failed*) test -e {self.renewal_failed};; esac')
        self.script("labtrack-certificate", f'exec {env} {sys.executable} {PROGRAM} "$@"')

    def script(self, name: str, text: str) -> None:
        """Install a program."""
        (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.bin / name).chmod(0o755)

    @classmethod
    @contextmanager
    def running(cls, folder: Path) -> Iterator[Server]:
        """A server that answers the directory's questions, under its name."""
        made = cls(folder)
        dns = ("-defaultIPv4", "127.0.0.1", "-defaultIPv6", "", "-dns01", f"127.0.0.1:{made.names}")
        off = [f"-{kind}=" for kind in ("http01", "https01", "tlsalpn01")]
        management = ("-management", f"127.0.0.1:{free_port()}")
        with program("pebble-challtestsrv", *dns, *off, *management), serving(made.answers):
            yield made

    def configure(self, directory: Directory, **changed: str) -> None:
        """What the role writes for `lab_certificate: acme`; certbot's folders are the server's."""
        variables = yaml.safe_load((ROLE / "defaults/main.yml").read_text()) | {
            "ansible_managed": "test", "certificates_fqdn": NAME, "certificates_acme_webroot": str(self.webroot),
            "__certificates_acme_directory": directory.url,
            "__certificates_program": f"{self.bin}/labtrack-certificate",
            **changed,
        }  # fmt: skip
        environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701
        environment.filters["comment"] = lambda text: f"# {text}"
        made = environment.from_string((ROLE / "templates/certbot.ini.j2").read_text()).render(variables)
        for name in ("config", "work", "logs"):
            made += f"\n{name}-dir = {self.letsencrypt if name == 'config' else self.root / name}"
        (self.letsencrypt / "labtrack.ini").write_text(made + "\n")
        (self.letsencrypt / "ca.pem").write_text(directory.https_ca.read_text())
        settings = {
            "method": "acme", "fqdn": NAME, "directory": "/etc/ssl/labtrack", "days": 365, "ca_days": 3650,
            "acme": {"directory": directory.url, "ca": str(self.letsencrypt / "ca.pem")},
        }  # fmt: skip
        (self.root / "etc/labtrack-certificate.json").write_text(json.dumps(settings))

    def __call__(self, *arguments: str, fails: bool = False) -> str:
        """Call labtrack-certificate; what it prints."""
        done = subprocess.run(
            [self.bin / "labtrack-certificate", *arguments], input="", capture_output=True, text=True, check=False
        )
        assert (done.returncode != 0) is fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def timer(self) -> str:
        """What certbot.service does twice a day, with every certificate due; what it prints."""
        renewal = self.letsencrypt / "renewal/labtrack.conf"
        due = renewal.read_text().replace("# renew_before_expiry = 30 days", "renew_before_expiry = 3650 days")
        renewal.write_text(due)
        command = ["certbot", "-q", "renew", "--no-random-sleep-on-renew"]
        folders = [f"--{name}-dir={self.root / name}" for name in ("work", "logs")]
        ca = {"REQUESTS_CA_BUNDLE": str(self.letsencrypt / "ca.pem.joined")}
        done = subprocess.run(
            [*command, *folders, f"--config-dir={self.letsencrypt}"],
            env={**os.environ, **ca}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        self.renewal_failed.touch() if done.returncode else self.renewal_failed.unlink(missing_ok=True)
        return done.stdout + done.stderr

    @property
    def served(self) -> str:
        """What nginx was given."""
        return (self.folder / "server.pem").read_text()

    def is_of(self, directory: Directory) -> bool:
        """Whether what is served is trusted by who trusts the directory's root, as openssl sees it."""
        root, chain = self.root / "trusted.pem", self.folder / "server.pem"
        root.write_text(directory.root)
        command = ["openssl", "verify", "-verify_hostname", NAME, "-purpose", "sslserver", "-CAfile", root]
        return subprocess.run([*command, "-untrusted", chain, chain], capture_output=True, check=False).returncode == 0


class Directory:
    """A Pebble with an https of a CA of its own, and the relay before it: what was asked, and what to refuse."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.limited, self.asked = folder, False, list[str]()
        self.pebble, self.management = free_port(), free_port()
        self.relay = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Relay", (_Relay,), {"directory": self}))
        self.https_ca, self.key = folder / "https.pem", folder / "https.key"
        new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-batch"]
        files = ["-keyout", str(self.key), "-out", str(self.https_ca)]
        subprocess.run(
            [*new, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", *files],
            check=True, capture_output=True,
        )  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.https_ca, self.key)
        self.relay.socket = context.wrap_socket(self.relay.socket, server_side=True)
        self.url = f"https://localhost:{self.relay.server_address[1]}/dir"

    @classmethod
    @contextmanager
    def running(cls, folder: Path, server: Server, **settings: Any) -> Iterator[Directory]:
        """A directory that looks for a server's answers.  settings: more of Pebble's own."""
        made = cls(folder)
        said = {
            "listenAddress": f"127.0.0.1:{made.pebble}", "managementListenAddress": f"127.0.0.1:{made.management}",
            "certificate": str(made.https_ca), "privateKey": str(made.key), "tlsPort": 1, "ocspResponderURL": "",
            "httpPort": server.answers.server_address[1], "externalAccountBindingRequired": False, **settings,
        }  # fmt: skip
        (folder / "pebble.json").write_text(json.dumps({"pebble": said}))
        command = ("pebble", "-config", str(folder / "pebble.json"), "-dnsserver", f"127.0.0.1:{server.names}")
        with program(*command, PEBBLE_VA_NOSLEEP="1", PEBBLE_WFE_NONCEREJECT="0"), serving(made.relay):
            until(lambda: made.root)
            yield made

    def ask(self, port: int, verb: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any, bytes]:
        """What Pebble answers: status, headers, body."""
        context = ssl.create_default_context(cafile=self.https_ca)
        connection = http.client.HTTPSConnection("localhost", port, timeout=10, context=context)
        try:
            connection.request(verb, path, body, {**headers})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    @property
    def root(self) -> str:
        """The certificate of the CA that it issues with."""
        return self.ask(self.management, "GET", "/roots/0")[2].decode()

    def times(self, what: str) -> int:
        """How often it was asked for something."""
        return sum(path.startswith(f"/{what}") for path in self.asked)


_PASSED = ("Host", "Content-Type", "User-Agent")


class _Relay(http.server.BaseHTTPRequestHandler):
    directory: Directory
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.pass_on()

    def do_HEAD(self) -> None:
        self.pass_on()

    def do_POST(self) -> None:
        self.pass_on()

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.directory.asked.append(self.path)
        headers = {name: value for name, value in self.headers.items() if name in _PASSED}
        status, said, answer = self.directory.ask(self.directory.pebble, self.command, self.path, body, **headers)
        if self.directory.limited and self.path.startswith("/order-plz"):
            status = http.client.TOO_MANY_REQUESTS
            problem = {"type": "urn:ietf:params:acme:error:rateLimited", "detail": RATE_LIMIT, "status": status}
            answer = json.dumps(problem).encode()
        self.send_response(status)
        for name, value in said.items():
            if name not in ("Content-Length", "Date", "Transfer-Encoding", "Connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Print nothing."""
