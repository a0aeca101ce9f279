"""The server's own web page in a real browser, as a person sees it.  Screenshots stay in test-results/."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from labtrack.envfile import read_envfile

if TYPE_CHECKING:
    from conftest import Rehearsal

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox",  # Chromium's own sandbox refuses to run as root
    "--disable-background-networking", "--disable-component-update", "--disable-quic", "--disable-sync",
]  # fmt: skip
WAIT = 30_000  # milliseconds; two busy cores are slow to draw


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's chromium, without a window."""
    if not CHROMIUM.exists():
        pytest.skip("needs Debian's chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, rehearsal: Rehearsal) -> Iterator[Page]:
    """A page on which Ada has logged in; fails the test when the page met a refusal it can't have expected."""
    ada = read_envfile(rehearsal.private / "ada" / "mlflow_env.sh").variables
    context = browser.new_context(
        http_credentials={"username": "ada", "password": ada["MLFLOW_TRACKING_PASSWORD"], "origin": rehearsal.url},
        viewport={"width": 1400, "height": 1000},
        ignore_https_errors=True,  # the browser's own store doesn't know the lab's CA; curl checks it elsewhere
    )
    page = context.new_page()
    page.set_default_timeout(WAIT)
    expect.set_options(timeout=WAIT)
    refused: list[str] = []
    page.on("response", lambda r: refused.append(f"{r.status} {r.request.method} {r.url}") if r.status >= 400 else None)
    yield page
    context.close()
    # the assistant is closed on purpose, and the page asks for it on every visit
    surprising = [line for line in refused if "/mlflow/assistant/" not in line]
    assert not surprising, "the page was refused:\n" + "\n".join(surprising)


def test_a_person_finds_the_run_its_chart_and_its_artifacts(
    page: Page, rehearsal: Rehearsal, trained: str, results: Path
) -> None:
    page.goto(f"{rehearsal.url}/#/experiments")
    page.get_by_role("link", name="digits", exact=True).click()
    # the page forwards itself to one of its tabs; going on before that would be overtaken by it
    page.wait_for_url(re.compile(r"experiments/\d+/\w+"), timeout=WAIT)
    page.screenshot(path=results / "web-1-experiment.png")
    experiment = re.search(r"experiments/(\d+)", page.url)
    assert experiment, page.url

    run = f"{rehearsal.url}/#/experiments/{experiment[1]}/runs/{trained}"
    page.goto(run)
    expect(page.get_by_text("SGDClassifier").first).to_be_visible()
    expect(page.get_by_text("learning_rate").first).to_be_visible()
    page.screenshot(path=results / "web-2-run.png")

    page.goto(f"{run}/model-metrics")
    expect(page.locator(".js-plotly-plot path.js-line").first).to_be_attached()
    page.screenshot(path=results / "web-3-chart.png")

    page.goto(f"{run}/artifacts")
    page.get_by_text("report.txt").click()
    expect(page.get_by_text("precision").first).to_be_visible()
    page.screenshot(path=results / "web-4-artifact.png")


def test_a_wrong_password_sees_nothing(browser: Browser, rehearsal: Rehearsal) -> None:
    context = browser.new_context(
        http_credentials={"username": "ada", "password": "not hers"}, ignore_https_errors=True
    )
    answer = context.new_page().goto(rehearsal.url)
    assert answer is not None
    assert answer.status == 401
    context.close()
