"""A page in Debian's chromium, and what goes wrong on it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, Response, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",  # Chromium's own sandbox refuses to run as root
    "--disable-background-networking", "--disable-component-update", "--disable-quic", "--disable-sync",
]  # fmt: skip
WAIT = 30_000  # milliseconds; two busy cores are slow to draw
QUIET = 10  # tenths of a second without a request, after which a page is drawn
# The page's own words for something that it did not expect.
BROKEN = re.compile(
    r"something went wrong|an error occurred|unexpected error|page not found|can.t be rendered|failed to load", re.I
)


@contextlib.contextmanager
def chromium(*trusted: Path, arguments: Sequence[str] = ()) -> Iterator[Browser]:
    """A browser without a window.

    trusted: certificates that its person has installed.  Told to ignore errors of certificates, the browser starts a
    request anew for each of them, and under load gives up a style sheet with ERR_TOO_MANY_RETRIES.
    """
    if not CHROMIUM.exists() or not shutil.which("certutil"):
        pytest.skip("needs Debian's chromium and libnss3-tools")
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        known = Path(home, ".pki", "nssdb")
        known.mkdir(parents=True)
        for number, one in enumerate(trusted):
            add = ["certutil", "-A", "-d", f"sql:{known}", "-t", "C,,", "-n", f"trusted {number}", "-i", one]
            subprocess.run(add, check=True, capture_output=True)
        found = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*ARGUMENTS, *arguments], env={**os.environ, "HOME": home}
        )
        yield found
        found.close()


@dataclass
class Eyes:
    """A page of the browser, and what went wrong on it.

    closed: parts of what the page may be refused.
    """

    page: Page
    url: str
    closed: tuple[str, ...] = ()
    refused: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    pending: set[Request] = field(default_factory=set)

    def visit(self, path: str) -> None:
        """Go to a page."""
        # a change after # alone would not load the page again
        self.page.goto("about:blank")
        self.page.goto(self.url + path)

    def check(self, picture: Path) -> None:
        """Take a picture, and fail if the page was refused anything unexpected or shows that it is broken."""
        deadline, quiet = time.monotonic() + WAIT / 1000, 0
        while quiet < QUIET and time.monotonic() < deadline:
            self.page.wait_for_timeout(100)
            quiet = 0 if self.pending else quiet + 1
        self.page.screenshot(path=picture)
        broken = BROKEN.search(self.page.inner_text("body"))
        assert not broken, f"{picture} shows: {broken[0]}"
        surprising = [line for line in self.refused if not any(part in line for part in self.closed)]
        assert not surprising, "the page was refused:\n" + "\n".join(surprising)
        assert not self.errors, "the page's console has:\n" + "\n".join(self.errors)


def watched(context: BrowserContext, url: str, closed: tuple[str, ...] = ()) -> Eyes:
    """A page of a context that reaches nothing but `url`; whatever goes wrong on it is noted."""
    page = context.new_page()
    page.set_default_timeout(WAIT)
    expect.set_options(timeout=WAIT)
    eyes = Eyes(page, url, closed)

    def answered(answer: Response) -> None:
        if answer.status >= 400:
            eyes.refused.append(f"{answer.status} {answer.request.method} {answer.url}")

    def sent(request: Request) -> None:
        # a worker's script is never said to have come
        if request.resource_type in ("fetch", "xhr"):
            eyes.pending.add(request)

    def ended(request: Request) -> None:
        eyes.pending.discard(request)

    def failed(request: Request) -> None:
        ended(request)
        print(f"{request.method} {request.url}: {request.failure}")

    context.route(lambda asked: not asked.startswith(url), lambda route: route.abort())  # there is no internet
    page.on("response", answered)
    page.on("request", sent)
    page.on("requestfinished", ended)
    page.on("requestfailed", failed)
    # shown with a test that fails: a page that catches its own error tells nobody else what it was
    page.on("console", lambda said: print(f"console: {said.type}: {said.text}"))
    page.on("pageerror", lambda error: eyes.errors.append(str(error)))
    return eyes
