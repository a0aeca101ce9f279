"""A report in a real browser: with and without its script, by keyboard, without network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from results_made import learned

from labtrack.analysis import page
from labtrack.analysis.board import Asked
from labtrack.analysis.report import Wish

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip("needs Debian's chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("browser")
    learned(folder / "mlflow.db")
    page.write(Asked([str(folder / "mlflow.db")]), folder / "report.html", Wish("max:f1", over="seed"))
    return (folder / "report.html").as_uri()


def members(shown: Page, place: int) -> bool:
    return shown.locator(f".g{place} .members .run").first.is_visible()


def test_without_its_script_and_by_keyboard_a_group_shows_its_runs(browser: Browser, report: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    shown = context.new_page()
    shown.goto(report)
    assert not members(shown, 0)
    shown.locator("#m0").focus()
    shown.keyboard.press("Space")
    assert members(shown, 0) and not members(shown, 1)
    assert shown.locator("table").count() == 3 and shown.get_by_text("What was left out").is_visible()
    context.close()


@pytest.mark.parametrize("width", [400, 1280])
def test_page_asks_nobody_fits_its_window_and_sorts(browser: Browser, report: str, width: int) -> None:
    said: list[str] = []
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark")
    shown = context.new_page()
    shown.on("request", lambda request: said.append(request.url))
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.goto(report)
    names = shown.locator("table").nth(2).locator("tbody tr td:nth-child(2)")
    first = names.first.inner_text()
    head = shown.locator("table").nth(2).get_by_role("button", name="max:f1")
    head.press("Enter")
    assert names.first.inner_text().startswith("mlp-") and first.startswith("unet-")
    shown.get_by_label("Filter these rows").fill("unet yes")
    left = shown.locator("table").nth(2).locator("tbody tr:visible td:nth-child(2)")
    assert left.all_inner_texts() == ["unet-3"]
    shown.locator("svg").first.hover()
    assert shown.locator("svg .readout text").count() >= 2
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    assert said == [report]
    context.close()
