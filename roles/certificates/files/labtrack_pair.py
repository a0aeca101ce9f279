"""A server's certificate and its key: looked at, and given to nginx or not.  A part of labtrack-certificate."""

from __future__ import annotations

import os
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(os.environ.get("LABTRACK_CERTIFICATE_ROOT", "/"))  # of another tree, for tests
STATE = ROOT / "var/lib/labtrack-certificate"
RELOADED = ROOT / "run/labtrack/nginx.service.reloaded"  # where the role systemd_unit notes when nginx was reloaded


class Fault(Exception):
    """What happened, and how to fix it."""


def openssl(*arguments: str | Path, stdin: str = "") -> str:
    """What openssl prints.  Raises Fault where it fails."""
    done = subprocess.run(["openssl", *arguments], input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise Fault(f"openssl {arguments[0]} failed: {said}", "what it says; `openssl version` shows which it is.")
    return done.stdout


def holds(*arguments: str | Path) -> bool:
    """Whether openssl says yes."""
    return subprocess.run(["openssl", *arguments], capture_output=True, check=False).returncode == 0


def write(path: Path, text: str) -> None:
    """Put a text at a path, for root alone: after a crash at any moment the old or the new one is there."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)


def read(path: Path) -> str:
    """The text of a file; empty for none."""
    return path.read_text() if path.exists() else ""


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for root alone, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=STATE) as folder:
        yield Path(folder)


def new_key() -> str:
    """A new private key, P-256."""
    return openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")


class Pair:
    """What nginx serves for a name: server.pem and server.key of a folder."""

    def __init__(self, folder: Path, fqdn: str) -> None:
        self.folder, self.fqdn = folder, fqdn
        self.certificate, self.key = folder / "server.pem", folder / "server.key"

    # --- what is there

    def why_unfit(self, certificate: Path, key: Path) -> str:
        """Why a pair can't be served; empty where it can."""
        if not certificate.exists() or not key.exists():
            return "it is not there"
        if not holds("x509", "-in", certificate, "-noout") or not holds("pkey", "-in", key, "-noout"):
            return "it can't be read"
        if openssl("x509", "-in", certificate, "-noout", "-pubkey") != openssl("pkey", "-in", key, "-pubout"):
            return "the key is another one's"
        match = ["openssl", "x509", "-in", certificate, "-noout", "-checkhost", self.fqdn]
        if "does match" not in subprocess.run(match, capture_output=True, text=True, check=False).stdout:
            return f"it is not for {self.fqdn}"
        return "" if holds("x509", "-in", certificate, "-noout", "-checkend", "0") else "it has ended"

    def installed(self) -> str:
        """Why what nginx serves can't be served."""
        return self.why_unfit(self.certificate, self.key)

    def dates(self, certificate: Path) -> tuple[float, float]:
        """When a certificate begins and ends, in seconds since the epoch."""
        said = openssl("x509", "-in", certificate, "-noout", "-startdate", "-enddate")
        begins, ends = (ssl.cert_time_to_seconds(line.partition("=")[2]) for line in said.splitlines())
        return begins, ends

    # --- what nginx serves

    def install(self, certificate: str, key: str) -> bool:
        """Serve another pair, if nginx takes it; whether that is a change.  Where it does not, the old one stays."""
        before = read(self.certificate), read(self.key)
        if before == (certificate, key):
            return False
        with scratch() as folder:
            write(folder / "server.pem", certificate)
            write(folder / "server.key", key)
            if why := self.why_unfit(folder / "server.pem", folder / "server.key"):
                raise Fault(f"The new certificate is not taken: {why}. The one before is served on.", "get another.")
        write(self.key, key)
        write(self.certificate, certificate)
        said = self.refused()
        if said:
            for path, text in zip((self.certificate, self.key), before):
                write(path, text) if text else path.unlink()
            raise Fault(
                f"nginx does not take the new certificate, and serves the one before on: {said}", "get another."
            )
        self.reload()
        return True

    def refused(self) -> str:
        """What nginx has against the files; empty where it takes them, or is not there yet."""
        try:
            done = subprocess.run(["nginx", "-t", "-q"], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return ""
        return " ".join(done.stderr.split()) or "nginx -t failed" if done.returncode else ""

    def reload(self) -> None:
        """Have nginx read the files, without dropping a request; noted as the role systemd_unit notes it."""
        active = ["systemctl", "--quiet", "is-active", "nginx.service"]
        if subprocess.run(active, check=False).returncode:
            return
        RELOADED.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        part = RELOADED.with_suffix(".part")
        part.touch()
        os.utime(part)
        subprocess.run(["systemctl", "reload", "nginx.service"], check=True)
        part.replace(RELOADED)
