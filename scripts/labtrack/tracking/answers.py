"""What an answer of a server, or of something in front of it, says: one sentence, never a page."""

from __future__ import annotations

import html
import re
import socket
import ssl
from urllib.parse import urlsplit

import requests

from labtrack.errors import BadInputError, Exit, LabtrackError, innermost
from labtrack.tracking.address import hide_login

_LONGEST = 500
_TLS_EXPECTED = ("plain http request was sent to https port", "client sent an http request to an https server")
_NOT_TLS = ("wrong_version_number", "wrong version number", "record_layer_failure", "record layer failure",
            "http_request", "http request", "unknown_protocol", "packet length too long")  # fmt: skip
_TLS_PROBE = 5.0  # seconds


class ApiError(Exception):
    """The server understood and said no.  status: HTTP.  code: MLflow's, as RESOURCE_DOES_NOT_EXIST."""

    def __init__(self, status: int, code: str, said: str) -> None:
        super().__init__(f"{status} {code}".strip() + (f": {said}" if said else ""))
        self.status, self.code, self.said = status, code, said


class Stopped(Exception):
    """The user wants the sync to end."""


class ServerError(LabtrackError):
    """The server can't be used at all: no other run would fare better."""


def is_page(answer: requests.Response) -> bool:
    """Whether a page for people came, which no call of MLflow's interface is answered with."""
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return kind in ("text/html", "application/xhtml+xml")


def code_and_words(answer: requests.Response) -> tuple[str, str]:
    """MLflow's error code (empty where the answer is not MLflow's), and what was said, on one line."""
    try:
        data = answer.json()
        return str(data.get("error_code", "")), _line(str(data.get("message", "")))
    except (ValueError, AttributeError):
        return "", words(answer)


def words(answer: requests.Response) -> str:
    """What an answer that is not MLflow's says, on one line: of a page its title."""
    text = answer.text
    if is_page(answer) or re.match(r"\s*<(!doctype|html)", text, re.IGNORECASE):
        found = re.search(r"(?is)<title[^>]*>(.*?)</title>", text) or re.search(r"(?is)<h1[^>]*>(.*?)</h1>", text)
        title = _line(html.unescape(re.sub(r"<[^>]*>", " ", found[1]))) if found else ""
        return f"a page, {title!r}" if title else "a page without a title"
    return _line(text)[:200]


def unusable(answer: requests.Response, base: str, whom: str) -> LabtrackError | None:
    """What is wrong with the way to the server, where an answer tells; None where it is MLflow's own.

    base: the server's address.  whom: the login in words.
    """
    status, (code, said) = answer.status_code, code_and_words(answer)
    if code:
        return None
    host = urlsplit(base).hostname or base
    if 300 <= status < 400:  # noqa: PLR2004
        where = hide_login(answer.headers.get("Location", "elsewhere")).partition("?")[0]
        return BadInputError(
            f"{base} sends calls on to {where}.",
            "give that server's own address; if it is a login page, the server's calls need a login of another kind "
            "(a token, MLFLOW_TRACKING_TOKEN): ask its admin.",
        )
    if any(one in said.lower() for one in _TLS_EXPECTED):
        return BadInputError(f"{base} speaks https there, not http.", f"write https://{base.partition('://')[2]}")
    if status == requests.codes.not_found or (answer.ok and is_page(answer)):
        what = said if is_page(answer) else "there is no such call (404)"
        return BadInputError(
            f"{base} answers, but not as a tracking server does: {what}.",
            f"give the address that its page has in a browser, up to `/#/`: is there a path behind {host}, "
            f"as in {base}/mlflow?  Or does another service listen there?",
        )
    return _in_between(answer, base, whom)


def _in_between(answer: requests.Response, base: str, whom: str) -> LabtrackError | None:
    """What a proxy, or a gate in front of the server, refuses."""
    status, host = answer.status_code, urlsplit(base).hostname or base
    if status == requests.codes.proxy_authentication_required:
        return ServerError(
            f"The proxy between here and {base} asks for a login of its own (407).",
            f"if {host} can be reached without it: export NO_PROXY={host}; else ask your site for the proxy's address.",
        )
    if status == requests.codes.forbidden and is_page(answer):
        proxy = answer.headers.get("Via") or answer.headers.get("X-Squid-Error")
        who = "A proxy between here and" if proxy else "Something in front of"
        return ServerError(
            f"{who} {base} forbids this to {whom} (403): {words(answer)}.",
            f"if {host} can be reached without a proxy: export NO_PROXY={host}; else ask whoever runs it.",
        )
    return None


def unreached(error: requests.exceptions.RequestException, base: str) -> LabtrackError | None:
    """What is wrong with the way to the server, where no answer came and trying again is of no use."""
    said, text = innermost(error), str(error).lower()
    if isinstance(error, requests.exceptions.ProxyError):
        return _no_tunnel(text, base)
    if isinstance(error, requests.exceptions.SSLError):
        if any(one in text for one in _NOT_TLS):
            plain = f"http://{base.partition('://')[2]}"
            return BadInputError(
                f"{base} does not speak https at that port.",
                f"give the port of https, mostly none; for a server of your own without a certificate: {plain}",
            )
        if "certificate" in text:
            return ServerError(
                f"{base} shows a certificate that is not trusted here: {said}.",
                "source your mlflow_env.sh, which names the right one (MLFLOW_TRACKING_SERVER_CERT_PATH).",
                Exit.FAILED,
            )
    if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidHeader)):
        return BadInputError(f"{base} can't be used: {said}.", "look at the address and at your login.")
    return None


def waits_for_tls(error: requests.exceptions.RequestException, base: str) -> LabtrackError | None:
    """Whether a server that was asked in http:// hung up because it speaks https.  Makes one connection."""
    if base.startswith("http:") and _closed(str(error).lower()):
        return _speaks_tls(base)
    return None


def _no_tunnel(text: str, base: str) -> LabtrackError | None:
    why = re.search(r"tunnel connection failed: (40[37] [a-z ]*[a-z])", text)
    if not why:
        return None
    return ServerError(
        f"The proxy between here and {base} lets nothing through ({why[1]}).",
        f"if {urlsplit(base).hostname} can be reached without it: export NO_PROXY={urlsplit(base).hostname}; "
        "else ask your site.",
    )


def _closed(text: str) -> bool:
    return any(one in text for one in ("without response", "badstatusline", "reset by peer", "connection aborted"))


def _speaks_tls(base: str) -> LabtrackError | None:
    """Whether the server hangs up because it waits for TLS."""
    parts = urlsplit(base)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 80), _TLS_PROBE) as raw:
            context.wrap_socket(raw, server_hostname=parts.hostname).close()
    except (OSError, ValueError):
        return None
    return BadInputError(f"{base} speaks https there, not http.", f"write https://{base.partition('://')[2]}")


def _line(text: str) -> str:
    return " ".join(text.split())[:_LONGEST]
