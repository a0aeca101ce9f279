"""`ssh://[user@]host[:port]/path`, read and checked."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote

from labtrack.errors import BadInputError

_ADDRESS = re.compile(
    r"ssh://(?:(?P<user>[^/]*)@)?(?P<host>\[[^]/]*\]|[^/:@]*)(?::(?P<port>[^/]*))?(?P<path>/.*)?", re.I | re.S
)
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?\]")
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.+@$-]*")
_PORTS = 65535
_FORM = "ssh://user@host/abs/path, ssh://host:2222/abs/path, or ssh://host/~/path for one in your home there."


@dataclass(frozen=True)
class Address:
    """A place on another machine.  user, port: empty and 0 where ssh's own configuration says.

    path: absolute, or relative to the home there.
    """

    user: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Reads an address.  Raises BadInputError for one that can't be meant, or would not be safe to hand on."""
        found = _ADDRESS.fullmatch(text.strip())
        if found is None or not found["host"]:
            raise BadInputError(f"{text!r} is not the address of a folder on another machine.", _FORM)
        user, host, port = unquote(found["user"] or ""), found["host"], found["port"]
        path = unquote(found["path"] or "", errors="surrogateescape")
        if ":" in user:
            raise BadInputError(
                "There is a password in the ssh address, which others on this machine could read.",
                f"leave it out: ssh asks, or takes a key. ssh://{user.partition(':')[0]}@{host}{found['path'] or ''}",
            )
        if (found["user"] is not None and not _USER.fullmatch(user)) or not _HOST.fullmatch(host):
            raise BadInputError(f"{user + '@' if user else ''}{host} is not the name of a machine for ssh.", _FORM)
        if port is not None and not (port.isascii() and port.isdecimal() and 0 < int(port) <= _PORTS):
            raise BadInputError(f"{port!r} in {text!r} is not a port.", f"a number from 1 to {_PORTS}; {_FORM}")
        return cls(user, host, int(port or 0), _path(path, text))

    @property
    def machine(self) -> str:
        """What ssh is told: user and host."""
        host = self.host.strip("[]")
        return f"{self.user}@{host}" if self.user else host

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.path).name

    @property
    def key(self) -> str:
        """The name of a folder for what comes from there: the same for the same address."""
        digest = hashlib.sha256(str(self).encode("utf-8", "surrogateescape")).hexdigest()[:12]
        return f"{re.sub('[^A-Za-z0-9_.-]', '_', self.host.strip('[]'))}-{digest}"

    def __str__(self) -> str:
        user, port = f"{self.user}@" if self.user else "", f":{self.port}" if self.port else ""
        return f"ssh://{user}{self.host}{port}{self.path if self.path.startswith('/') else f'/~/{self.path}'}"

    def remote(self, path: str) -> str:
        """A path of that machine as rsync takes it."""
        host = f"[{self.host.strip('[]')}]" if ":" in self.host else self.host
        return f"{self.user + '@' if self.user else ''}{host}:{path}"


def is_address(text: str) -> bool:
    """Whether a source is on another machine."""
    return text.strip().lower().startswith("ssh:/")


def refuse(source: str, doing: str) -> None:
    """Raises BadInputError where a source is on another machine: only its copy would be changed.

    doing: the command that changes what it is given.
    """
    if is_address(source):
        where = Address.parse(source)
        raise BadInputError(
            f"{doing} changes what is recorded, and {where} is on another machine, of which there is only a copy here.",
            f"do it there: ssh {f'-p {where.port} ' if where.port else ''}{where.machine} labtrack {doing} ...",
        )


def _path(path: str, text: str) -> str:
    if any(ord(one) < 32 or ord(one) == 127 for one in path):  # noqa: PLR2004  control characters
        raise BadInputError(f"There is a line end or another control character in the path of {text!r}.", _FORM)
    if ".." in path.split("/"):
        raise BadInputError(f"There is .. in the path of {text!r}.", f"name the folder itself. {_FORM}")
    home = path.startswith("/~/")
    clean = "/".join(one for one in path.split("/") if one not in ("", "."))
    clean = clean[2:] if home else f"/{clean}"
    if path.startswith("/~") and not home:
        raise BadInputError(f"Whose home is meant by {path}?", _FORM)
    if clean in ("", "/"):
        raise BadInputError(
            f"{text!r} names a whole machine, and no folder of it.",
            f"name the folder with the recordings. {_FORM}",
        )
    return clean if clean.startswith("/") or not clean.startswith("-") else f"./{clean}"
