"""`labtrack ui`."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from labtrack.cli import output
from labtrack.errors import Exit

if TYPE_CHECKING:
    from labtrack.ui import View

_SHOWN = 5  # problems of the recording that are named
_LOOKED = 0.5  # seconds between two looks at whether the session has ended


@click.command()
@click.argument("source", required=False, metavar="[SOURCE]")
@click.option("--live", is_flag=True, help="Show the SQLite file itself, not a snapshot; what you change is changed.")
@click.option("-p", "--port", type=click.IntRange(0, 65535), help="The port.  [default: 5000, or the next free one]")
@click.option("--host", default="127.0.0.1", help="Only names of this machine's own loopback address.")
@click.option("--socket", "socket", is_flag=True, help="Listen on a Unix socket; nothing on a port.")
@click.option("--mlflow", metavar="PATH", help="The `mlflow` to use, or its environment.  [default: where labtrack is]")
@click.option("--browser/--no-browser", default=None, help="Open a browser.  [default: where there is a display]")
@click.option("--portal", metavar="URL", hidden=True, help="For the Open OnDemand app: docs/admin/ondemand.md.")
@click.option("--password-file", metavar="FILE", hidden=True, help="For the Open OnDemand app.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is done, also into a file.")
def ui(source: str | None, browser: bool | None, verbose: bool, **given: Any) -> None:
    """Show SOURCE in MLflow's own pages, to you alone.

    SOURCE is what `labtrack sync -s` takes: a SQLite file or an mlruns folder of any MLflow version, a folder with many
    recordings, an exported file, a folder of reports, a server.  [default: MLFLOW_TRACKING_URI, else this folder]

    What is shown is a snapshot; nothing in SOURCE is written, upgraded or locked.  Only who opens the printed link sees
    anything: others on the same machine get 403.  It ends with Ctrl-C or with the session, and leaves nothing.

    Exit code 0 the session has ended, 1 MLflow failed, 2 wrong usage or input, 130 Ctrl-C.
    """
    from labtrack.ui import Settings, view
    from labtrack.ui.tunnel import has_display

    parent, outlives = os.getppid(), _heed_signals()
    shows = verbose or sys.stderr.isatty()
    said = (lambda text: output.line(f"... {text}", err=True)) if shows else (lambda _: None)
    where = source or os.environ.get("MLFLOW_TRACKING_URI") or "."

    def used(url: str) -> None:
        output.line(f"A browser has opened it.  For another one:  {url}")

    with view(where, Settings(**given), step=said, used=used) as here:
        _tell(here, where, given)
        if not here.portal and (browser if browser is not None else has_display(os.environ, sys.platform)):
            import webbrowser

            webbrowser.open(here.page().as_uri())
        while here.alive and (outlives or os.getppid() == parent):
            time.sleep(_LOOKED)
        if not here.alive:
            raise here.failure()
    sys.exit(Exit.OK)


def _heed_signals() -> bool:
    """Clears away when the session ends.  Gives whether it is to outlive the session: it was started by nohup."""
    hangup = getattr(signal, "SIGHUP", None)
    for number in filter(None, (signal.SIGINT, signal.SIGTERM, hangup)):
        if signal.getsignal(number) is not signal.SIG_IGN or number != hangup:
            signal.signal(number, _ended)
    return hangup is not None and signal.getsignal(hangup) is signal.SIG_IGN


def _ended(number: int, _: FrameType | None) -> None:
    for other in filter(None, (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None))):
        signal.signal(other, signal.SIG_IGN)  # while it clears away
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def _tell(here: View, where: str, given: dict[str, Any]) -> None:
    from labtrack.ui.session import PORT

    shown = here.shown
    if shown is None:
        output.line(f"MLflow {here.mlflow.version} over {where} itself: what you change on the page is changed there.")
    else:
        counts = f"{shown.experiments} experiments, {shown.runs} runs"
        of = f"a snapshot of {shown.location}, {shown.taken:%H:%M:%S}"
        output.line(f"MLflow {here.mlflow.version} over {of}: {counts}.")
        output.line("What you change on the page is gone at the end; what was recorded is never written.")
        for problem in shown.problems[:_SHOWN]:
            output.line(f"left out: {problem}", err=True)
        if len(shown.problems) > _SHOWN:
            output.line(f"left out: and {len(shown.problems) - _SHOWN} more", err=True)
    if here.portal:
        output.line(f"It is shown at {here.url} to who has the password.  (It answered after {here.seconds:.1f} s.)")
        sys.stdout.flush()
        return
    if given["port"] is None and here.port != PORT:
        output.line(f"Port {PORT} is taken by another program; this is {here.port}.")
    output.line(f"\n    {here.url}\n")
    output.line("The link works once.  From your own computer, first:\n")
    output.line(f"    {here.ssh}\n")
    output.line(f"Ctrl-C ends it and leaves nothing.  (It answered after {here.seconds:.1f} s.)")
    sys.stdout.flush()


COMMANDS: tuple[click.Command, ...] = (ui,)
