"""The address of a tracking server, as people write, paste and mistype it: one reader for every command."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from labtrack.errors import BadInputError

_LOCAL = re.compile(r"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?(/.*)?", re.IGNORECASE)
_PAGES = ("/api", "/ajax-api", "/graphql", "/get-artifact", "/static-files", "/health", "/version")
_LOGIN = re.compile(r"^((?:[A-Za-z][A-Za-z0-9+.-]*:/+|https?:)?)(?:(?!/#/).)*@")  # up to the last @ of host and path


def parse(text: str, what: str = "The destination", write: str = "-d {}") -> str:
    """The address that requests begin with: `https://host[:port][/prefix]`, without a slash at its end.

    Blanks around it, slashes at its end and the scheme's capitals are no matter; all else is refused.

    text: what was given.  what: its name in messages.  write: how it is given anew, `{}` for the address.
    Raises BadInputError, which says what was given instead and what to write; it never shows a login.
    """
    given = text.strip()
    if _LOGIN.match(given):
        raise BadInputError(
            f"{what} has a login in it, which everybody on this machine can read.",
            f"write {write.format(_LOGIN.sub(_kept, given).rstrip('/'))}, and set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, as your mlflow_env.sh does.",
        )
    scheme, slashes, rest = _scheme(given)
    if scheme not in ("http", "https"):
        raise _no_scheme(given, scheme, what, write)
    if slashes != "://" and rest:
        raise BadInputError(
            f"{what} {given!r} {'names no host' if len(slashes) > 3 else 'is no address'}: "  # noqa: PLR2004
            f"two slashes belong behind `{scheme}:`.",
            f"write {write.format(f'{scheme}://{rest}')}",
        )
    parts = _split(f"{scheme}://{rest}", given, what, write)
    path = parts.path.rstrip("/")
    root = f"{scheme}://{parts.netloc}"
    page = next((path[: path.index(one)] for one in _PAGES if f"{one}/" in f"{path}/"), None)
    if parts.fragment or parts.query or "#" in given or page is not None:
        kind = "of a page in the browser" if "#" in given or parts.query else "of one of the server's own calls"
        raise BadInputError(
            f"{what} {given!r} is the address {kind}, not the server's own.",
            f"write {write.format(root + (path if page is None else page).rstrip('/'))}"
            + (", and name the experiment with -e" * ("/experiments/" in given)),
        )
    return root + path


def hide_login(text: str) -> str:
    """`text` without the user and password that an address may carry; for messages."""
    return _LOGIN.sub(r"\1***@", text)


def _kept(found: re.Match[str]) -> str:
    return found[1] or "https://"


def _scheme(given: str) -> tuple[str, str, str]:
    """Scheme in small letters, the slashes behind it, and the rest; all is rest where there is none."""
    found = re.match(r"(?i)(https?)(:/*|/+)(.*)$", given) or re.match(r"([A-Za-z][A-Za-z0-9+.-]*)(://+)(.*)$", given)
    return (found[1].lower(), found[2], found[3]) if found else ("", "", given)


def _no_scheme(given: str, scheme: str, what: str, write: str) -> BadInputError:
    if not given:
        return BadInputError(f"{what} is empty.", f"write {write.format('https://host')}")
    first, slash, _ = given.partition("/")
    if scheme or given.startswith(("/", ".", "~", "file:", "sqlite:")) or (slash and not re.search("[.:]", first)):
        hint = f"give the server's address: {write.format('https://host')}"
        return BadInputError(f"{what} {given!r} is not the address of a tracking server.", hint)
    wanted = "http://" if _LOCAL.fullmatch(given) else "https://"
    return BadInputError(
        f"{what} {given!r} is not the address of a tracking server, without {wanted} in front.",
        f"give the server's address: {write.format(wanted + given)}",
    )


def _split(address: str, given: str, what: str, write: str) -> SplitResult:
    """The parts, of which host and port are sound."""
    example = write.format(f"{address.partition(':')[0]}://host")
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise BadInputError(
            f"{what} {given!r} can't be read: {_words(str(error))}.", f"write it as {example}, or {example}:5000"
        ) from None
    host = parts.hostname
    if not host:
        raise BadInputError(f"{what} {given!r} names no host.", f"write it as {example}")
    if port == 0 or parts.netloc.endswith(":") or re.search(r"[\s\\<>\"'{}|^`]", parts.netloc + parts.path):
        raise BadInputError(
            f"{what} {given!r} has a port that is none, or a blank or another character that no address has.",
            f"write it as {example}, or {example}:5000",
        )
    return parts


def _words(said: str) -> str:
    if "IPv6" in said or "address" in said:
        return "it opens a bracket for an IPv6 address and does not close it around one"
    return "what stands behind the colon is no port" if "ort" in said else said[:1].lower() + said[1:]
