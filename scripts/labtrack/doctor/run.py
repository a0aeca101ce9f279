"""The order of the checks, and which ones are pointless after which failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from labtrack.doctor import network, tracking, variables
from labtrack.doctor.context import Context
from labtrack.doctor.result import Result, Status, failed, skipped
from labtrack.envfile import read
from labtrack.errors import WITHOUT_BOTO3


@dataclass(frozen=True)
class _Group:
    name: str
    check: Callable[[Context], Iterator[Result]]
    after: str = ""  # the group without which this one is pointless


def _file(context: Context) -> Iterator[Result]:
    if context.file is None:
        yield skipped("file", "its place is not known here (this shell does not tell; --file FILE)")
    else:
        yield from read.check(context.file)


def _store(context: Context) -> Iterator[Result]:
    if not context.direct:
        yield skipped("store", "artifacts go through the server")
        return
    try:
        from labtrack.doctor import store
    except ModuleNotFoundError as error:
        yield failed("store", f"artifacts go straight to S3, which needs {error.name}", WITHOUT_BOTO3)
    else:
        yield from store.check(context)


def _write(context: Context) -> Iterator[Result]:
    if context.write:
        yield from tracking.write(context)
    else:
        yield skipped("run", "not asked for: --write makes a run and deletes it")


_GROUPS = (
    _Group("variables", variables.check),
    _Group("DNS", network.dns, "variables"),
    _Group("TCP", network.tcp, "DNS"),
    _Group("TLS", network.tls, "TCP"),
    _Group("login", tracking.login, "TLS"),
    _Group("server version", tracking.version, "login"),
    _Group("run", _write, "login"),
    _Group("store variables", variables.check_store),
    _Group("store", _store, "store variables"),
    _Group("clock", network.clock),
    _Group("file", _file),
)


def examine(context: Context) -> Iterator[Result]:
    """All checks in order.  One that an earlier failure makes pointless is skipped, with the reason."""
    because = context.because
    for group in _GROUPS:
        if group.after in because:
            because[group.name] = because[group.after]
            yield skipped(group.name, f"pointless after the failure of: {because[group.name]}")
            continue
        for result in group.check(context):
            if result.status is Status.FAILED:
                because[group.name] = group.name
            yield result
