"""The user's own ssh, and rsync over it: one login for a pull, and what went wrong in plain words."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from labtrack.errors import BadInputError, Exit, LabtrackError
from labtrack.stores.pull.address import Address

_CONNECT, _SILENCE = 20, 120  # seconds for a connection, and without any byte from the far side
_PLAIN = re.compile(r"[A-Za-z0-9_./+=@%,:-]+")
_SHORT = 60  # characters of a folder for a socket
_SAID = 600  # characters of the other side's words that are shown
_QUOTES = (3, 2, 4)
VANISHED, PARTLY = 24, 23  # exit codes of rsync


@dataclass(frozen=True)
class Done:
    """How a command ended: its exit code, and what it said."""

    code: int
    out: str
    err: str


@dataclass
class Connection:
    """ssh to one machine.  ssh: the command with its options, without the machine.

    follow: the options of rsync with which a link to a database is followed.  note: a file that says which process
    is under way, for the next call to end it should this one be killed.
    """

    address: Address
    ssh: list[str]
    env: Mapping[str, str] = field(repr=False)
    follow: list[str] = field(default_factory=lambda: ["--copy-links"])
    note: Path | None = None

    def rsync(self, arguments: Sequence[str], path: str, target: Path | None = None) -> Done:
        """Fetches `path` of that machine.  Raises LabtrackError where rsync could not do its work at all.

        What it left out, it says: exit codes 23 and 24.
        """
        program = shutil.which("rsync", path=self.env.get("PATH"))
        if program is None:
            raise LabtrackError(
                "rsync is not on this machine, and it is what fetches recordings from another one.",
                "apt install rsync   (or dnf, brew: install rsync)",
            )
        command = [program, "-e", self._shell(), *_quoting(program, path)]
        command += [*arguments, self.address.remote(path), *([f"{target}/"] if target else [])]
        done = self.call(command)
        if done.code in (0, VANISHED):
            return done
        if done.code == PARTLY and "change_dir" not in done.err and "link_stat" not in done.err:
            return done
        raise trouble(self.address, done)

    def call(self, command: Sequence[str], out: IO[bytes] | None = None) -> Done:
        """Runs a command of this machine to its end, or ends it when this process is told to stop."""
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as err:
            # files, not pipes: an ssh that stays for the next call would keep a pipe open
            stdin = None if _asks() else subprocess.DEVNULL
            process = subprocess.Popen(
                command, stdin=stdin, stdout=out or said, stderr=err, env={**self.env, "LC_ALL": "C"}, umask=0o077
            )
            try:
                if self.note:
                    self.note.write_text(f"{process.pid} {_born(process.pid)}")
                process.wait()
                if self.note:
                    self.note.unlink(missing_ok=True)
            except BaseException:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                process.kill()
                raise
            texts = []
            for file in (said, err):
                file.seek(0)
                texts.append(file.read().decode("utf-8", "replace"))
        return Done(process.returncode, *texts)

    def run(self, remote: Sequence[str], out: IO[bytes]) -> Done:
        """Runs a command of that machine, whose output goes to `out`."""
        return self.call([*self.ssh, "--", self.address.machine, shlex.join(remote)], out)

    def _shell(self) -> str:
        for one in self.ssh:
            if "'" in one or '"' in one:
                raise BadInputError(f"LABTRACK_SSH has a quote in it that rsync can't take: {one!r}.", "leave it out.")
        return " ".join(one if _PLAIN.fullmatch(one) else f"'{one}'" for one in self.ssh)


def _quoting(program: str, path: str) -> list[str]:
    """The option with which a path comes through the far side's shell: from 3.2.4 on, rsync quotes it itself."""
    return [] if _PLAIN.fullmatch(path) or _version(program) >= _QUOTES else ["-s"]


@functools.lru_cache
def _version(program: str) -> tuple[int, ...]:
    try:
        said = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=_CONNECT, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", said)
    return tuple(map(int, found.groups())) if found else ()


@contextmanager
def connected(
    address: Address, env: Mapping[str, str] | None = None, *, asks: bool | None = None, shares: bool = True
) -> Iterator[Connection]:
    """ssh as the user has configured it, made so that all calls of one pull share one login.

    env: LABTRACK_SSH is the command to use instead of `ssh`, with options.  asks: whether ssh may ask for a password;
    where it is not given, whether there is somebody to answer.  shares: whether there will be several calls.
    Raises LabtrackError where there is no ssh.
    """
    env = os.environ if env is None else env
    try:
        ssh = shlex.split(env.get("LABTRACK_SSH") or "ssh")
    except ValueError as error:
        raise BadInputError(f"LABTRACK_SSH can't be read: {error}.", "LABTRACK_SSH='ssh -F file'") from None
    if not ssh or shutil.which(ssh[0], path=env.get("PATH")) is None:
        raise LabtrackError(f"{ssh[0] if ssh else 'ssh'} is not on this machine.", "apt install openssh-client")
    options = {"ConnectTimeout": str(_CONNECT), "ServerAliveInterval": "15", "ServerAliveCountMax": "4"}
    if not (_asks() if asks is None else asks):
        options["BatchMode"] = "yes"
    ssh += [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    if address.port:
        ssh += ["-p", str(address.port)]
    if not shares or os.name == "nt" or _has_own_socket(ssh, address, env):
        yield Connection(address, ssh, env)
        return
    # a socket's name has room for a hundred characters, of which ssh takes some itself
    short = "/tmp" if len(tempfile.gettempdir()) > _SHORT and os.path.isdir("/tmp") else None  # noqa: S108, PTH112
    with tempfile.TemporaryDirectory(prefix="lt-", dir=short) as folder:
        ssh += ["-o", "ControlMaster=auto", "-o", f"ControlPath={folder}/s", "-o", "ControlPersist=30"]
        connection = Connection(address, ssh, env)
        try:
            yield connection
        finally:
            if Path(folder, "s").exists():
                with contextlib.suppress(OSError):
                    connection.call([*ssh, "-O", "exit", "--", address.machine])


def end_left_over(note: Path, patience: float = 10.0) -> None:
    """Ends what a call that was killed has left running, and waits for its end; nothing else that has its number."""
    try:
        pid, born = note.read_text().split()
    except (OSError, ValueError):
        return
    until = time.monotonic() + patience
    while born != "-" and born == _born(int(pid)) and time.monotonic() < until:
        with contextlib.suppress(OSError):
            os.kill(int(pid), signal.SIGTERM)
        time.sleep(0.05)
    note.unlink(missing_ok=True)


def _born(pid: int) -> str:
    """When a process began; what is no process has none, and one that has ended neither."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "-" if state == "Z" else fields[18]
    except (OSError, IndexError, ValueError):
        return "-"


def _has_own_socket(ssh: Sequence[str], address: Address, env: Mapping[str, str]) -> bool:
    """Whether the user's configuration shares connections already."""
    try:
        done = subprocess.run(
            [*ssh, "-G", "--", address.machine], stdin=subprocess.DEVNULL, capture_output=True, env=env,
            timeout=_CONNECT, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return True  # what is wrong with it, the first call tells
    found = re.search(r"^controlpath (.+)$", done.stdout.decode("utf-8", "replace"), re.MULTILINE)
    return done.returncode != 0 or (found is not None and found[1].strip() != "none")


def _asks() -> bool:
    """Whether there is somebody to answer ssh's questions."""
    return bool(sys.stdin and sys.stdin.isatty())


_WORDS: tuple[tuple[str, str, str], ...] = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the host key of {host} is another one than before: it was installed anew, or somebody is in between",
        "ask the site whether its host key changed, and only then: ssh-keygen -R '{known}'",
    ),
    (
        "Host key verification failed|No [A-Za-z0-9-]+ host key is known",
        "the host key of {host} is not known here",
        "compare its fingerprint with what the site publishes, once by hand: {try_it}",
    ),
    (
        "Permission denied \\((?!13)|Too many authentication failures|no mutual signature|passphrase",
        "{host} refuses the login: no key or other way in that it takes, without asking somebody",
        "try `{try_it}`; a key with a passphrase needs ssh-agent (`ssh-add`), and a second factor a terminal or a "
        "connection that is open already (ControlMaster, ControlPersist in ~/.ssh/config).",
    ),
    (
        "Could not resolve hostname|Name or service not known",
        "{host} is not a name that can be resolved here",
        "check the spelling; a short name needs `Host` and `HostName` in ~/.ssh/config.",
    ),
    (
        "Connection refused|Connection timed out|No route to host|Network is unreachable|Operation timed out"
        "|timed out during banner|not responding",
        "{host} can't be reached by ssh",
        "try `{try_it}`; a firewall or a VPN may be in between, and -p or `Port` in ~/.ssh/config may be needed.",
    ),
    (
        "rsync.*(unknown|unrecognized|invalid) option|rsync error: syntax",
        "the rsync here, or the one on {host}, is another one than it has to be",
        "rsync 3.1 or later is needed on both: rsync --version   (macOS has its own: brew install rsync)",
    ),
    (
        "Bad owner or permissions|Bad configuration option|terminating, \\d+ bad|unknown option",
        "ssh can't use its own configuration",
        "correct ~/.ssh/config: {try_it}",
    ),
    (
        "rsync(: command)?:? not found|No such file or directory.*rsync|exec.*rsync.*No such",
        "there is no rsync on {host}",
        "install it there, or load its module in ~/.bashrc, before the line that ends it for shells that don't ask.",
    ),
    ("No space left on device|Disk quota exceeded", "the disk is full here", "df -h {cache}"),
    (
        "protocol version mismatch|is your shell clean|unexpected tag|invalid message|Invalid remote",
        "what answers on {host} is not rsync: its ~/.bashrc prints something, or this key runs another command",
        "`ssh {machine} true` must print nothing; see \"a key for a robot\" in docs/researcher/pull.md",
    ),
    (
        "(link_stat|change_dir).*Permission denied",
        "{path} on {host} may not be read with this login",
        "look at it there: ssh {machine} ls -ld {quoted}",
    ),
    (
        "(link_stat|change_dir|rrsync error.*No such file)",
        "there is no {path} on {host}, or not for this login",
        "look there: ssh {machine} ls {quoted}; with `rrsync FOLDER` in authorized_keys the path counts from FOLDER.",
    ),
    (
        "connection unexpectedly closed \\(0 bytes|[Rr]estricted|not allowed|rejected|refused|rrsync",
        "{host} let this key in, and then did not run rsync",
        "its `command=` in authorized_keys refuses that; see \"a key for a robot\" in docs/researcher/pull.md",
    ),
    (
        "unexpectedly closed|[Bb]roken pipe|[Cc]onnection (reset|closed)|timeout in data|io timeout",
        "the connection to {host} broke",
        "run the same command again: it goes on where it stopped.",
    ),
)  # fmt: skip


def trouble(address: Address, done: Done, cache: Path | None = None) -> LabtrackError:
    """What an ssh or rsync that failed says, in plain words, with what to do."""
    port = f"-p {address.port} " if address.port else ""
    words = {
        "host": address.host, "machine": f"{port}{address.machine}", "path": address.path,
        "quoted": shlex.quote(shlex.quote(address.path)) if shlex.quote(address.path) != address.path else address.path,
        "try_it": f"ssh {port}{address.machine}", "cache": cache or "~/.cache",
        "known": f"[{address.host}]:{address.port}" if address.port else address.host,
    }  # fmt: skip
    said = done.err.strip() or done.out.strip()
    for pattern, what, hint in _WORDS:
        if re.search(pattern, done.err):
            code = Exit.BAD_INPUT if "link_stat" in pattern else Exit.FAILED
            return LabtrackError(
                f"Nothing was fetched: {what.format(**words)}.\n{_last(said)}", hint.format(**words), code
            )
    return LabtrackError(
        f"Nothing was fetched from {address}: ssh or rsync ended with {done.code}.\n{_last(said)}",
        f"try `ssh {words['machine']}` by hand.",
    )


def _last(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip() and not set(line) <= set("@ ")]
    return "\n".join(lines)[-_SAID:]


def remote_labtrack(env: Mapping[str, str]) -> list[str]:
    """The command that is labtrack at the far side: LABTRACK_REMOTE, or `labtrack` on its PATH."""
    try:
        return shlex.split(env.get("LABTRACK_REMOTE") or "labtrack") or ["labtrack"]
    except ValueError as error:
        raise BadInputError(f"LABTRACK_REMOTE can't be read: {error}.", "LABTRACK_REMOTE=/path/bin/labtrack") from None


SILENCE = f"--timeout={_SILENCE}"
