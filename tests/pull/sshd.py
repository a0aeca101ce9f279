"""A real sshd on this machine, for one test or many: its own process, port, host keys and authorized_keys."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "labtrack" / "tests" / "openssh"
_PACKAGES = ("openssh-server", "libwrap0")  # unpacked only: installing it would start one on port 22


@dataclass
class Sshd:
    """A running sshd.  env: what labtrack needs to get to it."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    env: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"ssh://{pwd.getpwuid(os.getuid()).pw_name}@127.0.0.1:{self.port}"

    def authorize(self, options: str = "") -> None:
        """Says what the key may do: the options that stand before it in authorized_keys."""
        key = (self.folder / "id.pub").read_text()
        (self.folder / "authorized_keys").write_text(f"{options} {key}".lstrip())

    def log(self) -> str:
        return (self.folder / "log").read_text()


@functools.cache
def program() -> tuple[str, str] | None:
    """sshd, and the folder of libraries that it needs; unpacked from Debian's package where it is not installed."""
    found = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found:
        return found, ""
    unpacked = CACHE / "usr/sbin/sshd"
    if not unpacked.exists() and shutil.which("apt-get"):
        CACHE.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(subprocess.CalledProcessError, subprocess.TimeoutExpired):
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.run(["apt-get", "download", *_PACKAGES], cwd=CACHE, check=True, timeout=120, **quiet)
            for one in CACHE.glob("*.deb"):
                subprocess.run(["dpkg", "-x", one, CACHE], check=True, **quiet)
    if not unpacked.exists():
        return None
    return str(unpacked), ":".join(str(one.parent) for one in CACHE.rglob("libwrap.so.0"))


def missing() -> str:
    """What is not here to run these tests, and how to get it; empty where all is."""
    needed = {"ssh": "openssh-client", "ssh-keygen": "openssh-client", "rsync": "rsync"}
    absent = [f"{name} (apt install {package})" for name, package in needed.items() if not shutil.which(name)]
    if program() is None:
        absent.append("sshd (apt install openssh-server)")
    elif os.getuid() == 0 and not _has_user() and not shutil.which("unshare"):
        absent.append("the user sshd (apt install openssh-server)")
    return ", ".join(absent)


def _has_user() -> bool:
    with contextlib.suppress(KeyError):
        pwd.getpwnam("sshd")
        return Path("/run/sshd").is_dir()
    return False


@contextmanager
def running(folder: Path, *more: str) -> Iterator[Sshd]:
    """Starts one, or skips the test that asks.  more: further lines of its configuration."""
    if missing():
        pytest.skip(f"needs {missing()}")
    folder.mkdir(mode=0o700, parents=True)
    for name in ("host", "id"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    host_key = (folder / "host.pub").read_text().rpartition(" ")[0]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    (folder / "sshd_config").write_text("\n".join([
        f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {folder}/host", f"PidFile {folder}/pid", "StrictModes no",
        f"AuthorizedKeysFile {folder}/authorized_keys", "PasswordAuthentication no", "KbdInteractiveAuthentication no",
        "UsePAM no", "PermitRootLogin yes", "MaxStartups 100", *more,
    ]) + "\n")  # fmt: skip
    (folder / "ssh_config").write_text("\n".join([
        f"IdentityFile {folder}/id", "IdentitiesOnly yes", f"UserKnownHostsFile {folder}/known_hosts",
        "GlobalKnownHostsFile /dev/null", "StrictHostKeyChecking yes",
    ]) + "\n")  # fmt: skip
    found = program()
    assert found
    command, env = [found[0], "-D", "-E", str(folder / "log"), "-f", str(folder / "sshd_config")], dict(os.environ)
    if found[1]:
        env["LD_LIBRARY_PATH"] = found[1]
    if os.getuid() == 0 and not _has_user():
        passwd = folder / "passwd"
        passwd.write_text(Path("/etc/passwd").read_text() + "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n")
        script = (
            f"mount --bind {shlex.quote(str(passwd))} /etc/passwd && mount -t tmpfs tmpfs /run "
            f"&& mkdir -m 755 /run/sshd && exec {shlex.join(command)}"
        )
        command = ["unshare", "--mount", "sh", "-c", script]
    process = subprocess.Popen(command, env=env)
    found_env = {"LABTRACK_SSH": f"ssh -F {folder}/ssh_config"}
    sshd = Sshd(folder, port, process, found_env)
    sshd.authorize()
    try:
        _wait(sshd)
        yield sshd
    finally:
        process.terminate()
        process.wait(10)


def _wait(sshd: Sshd) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until and sshd.process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", sshd.port), 1):
            return
    raise RuntimeError(
        f"sshd does not start: {(sshd.folder / 'log').read_text() if (sshd.folder / 'log').exists() else ''}"
    )
