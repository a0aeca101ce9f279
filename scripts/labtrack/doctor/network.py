"""The way to the server: name, port, certificate; and the clocks."""

from __future__ import annotations

import datetime
import errno
import socket
import ssl
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from labtrack.doctor.context import Context
from labtrack.doctor.result import Result, failed, ok, skipped, warning
from labtrack.tracking import address

SKEW_NOTED, SKEW_BAD = 60.0, 600.0  # seconds; signatures for the store hold 900 s
_NO_WAY_OUT = (
    "compute nodes often have no internet access: try on a login node; elsewhere, ask whether a firewall is in between."
)


def _target(context: Context) -> tuple[str, int, str]:
    """Host and port to connect to: the server's, or those of the proxy in front of it."""
    proxy = context.proxy(context.uri)
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else context.server
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.hostname or "", port, f" (the proxy {address.hide_login(proxy)})" if proxy else ""


def dns(context: Context) -> Iterator[Result]:
    """Does the name resolve?"""
    host, port, note = _target(context)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        said = getattr(error, "strerror", None) or error
        hint = f"check the spelling (`getent hosts {host}`). If it is right: {_NO_WAY_OUT}"
        yield failed("DNS", f"{host}{note} does not resolve: {said}", hint)
        return
    addresses = sorted({str(one[4][0]) for one in found})
    yield ok("DNS", f"{host}{note} is {', '.join(addresses)}")


def tcp(context: Context) -> Iterator[Result]:
    """Does somebody answer at the port?"""
    host, port, note = _target(context)
    before = time.monotonic()
    try:
        socket.create_connection((host, port), context.timeout).close()
    except OSError as error:
        seen = f"{host}:{port}{note} "
        if isinstance(error, socket.timeout):
            yield failed("TCP", seen + "does not answer", _NO_WAY_OUT)
        elif error.errno == errno.ECONNREFUSED:
            hint = "the machine is there, but nginx is not: tell the lab's admin (`systemctl status nginx`)."
            yield failed("TCP", seen + "refuses the connection", hint)
        else:
            yield failed("TCP", seen + f"can't be reached: {error.strerror or error}", _NO_WAY_OUT)
        return
    yield ok("TCP", f"{host}:{port}{note} answers in {(time.monotonic() - before) * 1000:.0f} ms")


def tls(context: Context) -> Iterator[Result]:
    """Is the certificate trusted, for this name, and for some time to come?"""
    host, port = context.server.hostname or "", context.server.port or 443
    if context.server.scheme != "https":
        yield skipped("TLS", "the address has no https://")
        return
    if context.proxy(context.uri):
        yield skipped("TLS", "a proxy is in between; the login shows whether the certificate is trusted")
        return
    trusted = context.trust("MLFLOW_TRACKING_SERVER_CERT_PATH")
    try:
        version, days, soon = presented(host, port, trusted, context.timeout)
    except ssl.SSLCertVerificationError as error:
        yield _untrusted(host, trusted, error)
        return
    except (ssl.SSLError, OSError) as error:
        plain = f"export MLFLOW_TRACKING_URI=http://{context.uri.partition('://')[2]}"
        hint = f"is it the right port? A service without https answers so; if it is a server of your own: {plain}"
        yield failed("TLS", f"no https at {host}:{port}: {getattr(error, 'reason', None) or error}", hint)
        return
    seen = f"{version}, trusted, valid for {days} more days"
    hint = "less than a third of its time is left: tell the lab's admin that it has to be renewed."
    yield warning("TLS", seen, hint) if soon else ok("TLS", seen)


def presented(host: str, port: int, trusted: str | None, timeout: float) -> tuple[str, int, bool]:
    """The version of TLS, the days that the server's certificate is valid for, and whether that is its last third.

    trusted: the file of the CA, or None for what the system trusts.  Raises ssl.SSLError and OSError.
    """
    ssl_context = ssl.create_default_context(cafile=trusted)
    with (
        socket.create_connection((host, port), timeout) as raw,
        ssl_context.wrap_socket(raw, server_hostname=host) as secured,
    ):
        certificate = secured.getpeercert() or {}
        version = secured.version() or ""
    begins, ends = (ssl.cert_time_to_seconds(str(certificate[key])) for key in ("notBefore", "notAfter"))
    left = ends - time.time()
    return version, int(left // 86400), left < (ends - begins) / 3


def _untrusted(host: str, trusted: str, error: ssl.SSLCertVerificationError) -> Result:
    said = error.verify_message or str(error)
    if "expired" in said:
        hint = f"tell the lab's admin to renew it; if `date` is wrong here ({_today()}), set this machine's clock."
    elif "match" in said or "mismatch" in said.lower():
        hint = "the address must be the server's name exactly: compare MLFLOW_TRACKING_URI with your mlflow_env.sh."
    elif "not yet valid" in said:
        hint = f"set this machine's clock: it says {_today()}."
    else:
        hint = (
            f"the CA in {trusted} is another one than the server's: get a new mlflow_env.sh from the lab's admin, "
            "source it again; if it stays, somebody may be in between."
        )
    return failed("TLS", f"the certificate of {host} is not trusted: {said}", hint)


def _today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def clock(context: Context) -> Iterator[Result]:
    """This machine's clock against those of the server and the store."""
    if not context.dates:
        yield skipped("clock", "nobody answered with a date")
    for party, (theirs, ours) in context.dates.items():
        skew = ours - theirs
        seen = f"this machine is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the {party}"
        hint = "set the clock (`timedatectl`, chrony); on a cluster, tell its support."
        if abs(skew) > SKEW_BAD:
            yield failed("clock", seen + ": the store refuses requests from 900 s on", hint)
        elif abs(skew) > SKEW_NOTED:
            yield warning("clock", seen, hint)
        else:
            yield ok("clock", f"equal to the {party}'s within {max(1, round(abs(skew)))} s")
