"""A session behind a web portal that passes `/node/HOST/PORT/...` on to it, as Open OnDemand does.

The portal asks who somebody is, but lets everybody whom it knows pass to every port of every node.  So the session's
own password decides, which only the owner's page of the portal has.
"""

from __future__ import annotations

import hmac
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from labtrack.errors import BadInputError
from labtrack.files import user_number

SHORTEST = 16  # characters of a password
_LONGEST = 256
_FORM = "write it as https://ondemand.example.org/node/HOST/PORT, as the portal shows this machine and port."


@dataclass(frozen=True)
class Portal:
    """Where a portal shows the session, and what opens it.

    origin: of the portal, as browsers write it.  prefix: the path there.  host, port: of this session, as the portal
    reaches it.  owner: the only user whom the portal may name.
    """

    origin: str
    prefix: str
    host: str
    port: int
    owner: str
    password: str = field(repr=False)

    @property
    def hosts(self) -> tuple[str, ...]:
        """What a request may have as `Host`: the node as the portal asks it, or the portal's own."""
        return f"{self.host}:{self.port}".lower(), self.origin.partition("://")[2]

    def inside(self, target: str) -> str | None:
        """The target as MLflow knows it, whether the portal passes its prefix on or not; None to lead to the slash."""
        rest = target[len(self.prefix) :] if target.startswith(self.prefix) else None
        if rest is None or rest[:1] not in ("", "/", "?"):
            return target
        return rest if rest.startswith("/") else None

    def opens(self, body: bytes) -> bool:
        """Whether a form has the password."""
        try:
            given = parse_qs(body.decode("latin-1"), max_num_fields=8).get("password", [])
        except ValueError:
            return False
        return len(given) == 1 and hmac.compare_digest(given[0].encode(), self.password.encode())


def read_portal(address: str, password_file: str | os.PathLike[str]) -> Portal:
    """A portal from the session's address there and a file with the password.

    Raises BadInputError for another kind of address, and for a file that is missing, short, or can be read by others.
    """
    try:
        parts = urlsplit(address)
        named, origin = parts.port, f"https://{(parts.hostname or '').lower()}"
    except ValueError:
        raise BadInputError(f"{address!r} is no address of a portal.", _FORM) from None
    found = re.fullmatch(r"((?:/[\w.~-]+)+)/([A-Za-z0-9._-]+)/(\d{1,5})/?", parts.path, re.ASCII)
    port = int(found[3]) if found else 0
    plain = (
        parts.hostname
        and not re.search(r"[\0- \x7f]", address)
        and "@" not in parts.netloc
        and not parts.query
        and not parts.fragment
    )
    if parts.scheme != "https" or not plain or not found or not 0 < port < 1 << 16:
        raise BadInputError(f"{address!r} is no address of a portal.", _FORM)
    if named not in (None, 443):
        origin += f":{named}"
    prefix = quote(parts.path.rstrip("/"), safe="/~")
    return Portal(origin, prefix, found[2], port, user_name(), _password(Path(password_file)))


def user_name() -> str:
    """Who runs this, as the system says and no variable."""
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except (ImportError, KeyError):
        return user_number()


def _password(file: Path) -> str:
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as opened:
            facts = os.fstat(descriptor)
            said = opened.read(_LONGEST + 2) if stat.S_ISREG(facts.st_mode) else b""
    except OSError as error:
        raise BadInputError(
            f"The file with the password, {file}, can't be read: {error.strerror}.",
            "name a file of your own with mode 0600 and a random password in it.",
        ) from error
    if os.name != "nt" and (facts.st_mode & 0o077 or facts.st_uid != os.getuid()):
        raise BadInputError(f"Others can read {file}, which has the password.", f"make a new one: chmod 600 {file}")
    text = said.decode("ascii", "replace").rstrip("\r\n")
    if not SHORTEST <= len(text) <= _LONGEST or not re.fullmatch(r"[!-~]+", text):
        raise BadInputError(
            f"{file} has no password of {SHORTEST} to {_LONGEST} letters, digits and signs.",
            "write a random one: head -c 24 /dev/urandom | base64",
        )
    return text
