"""A session as the portal's job runs it, with the real MLflow, behind a portal: who sees what, and what is left."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path

import ood_app
import pytest
import requests
from eyes import Eyes, chromium, watched
from ood_app import Job, submitted, until
from ood_portal import WHO, Web, portal
from playwright.sync_api import Browser, BrowserContext, expect
from sync_recording import Recording
from sync_server import mlflow_bin

from labtrack.ui.portal import user_name

OWNER = user_name()
CLOSED = ("/mlflow/assistant/", "/mlflow/ui-telemetry", "/mlflow/users/current")  # without accounts there is no user
WAYS = ("/node", "/rnode")


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with portal(tmp_path_factory.mktemp("portal")) as found:
        yield found


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Two runs, in a folder with a name that a shell would trip over."""
    made = Recording(tmp_path_factory.mktemp("recorded") / "it's $(here) & there", "coast")
    for number in (1, 2):
        made.run(
            name=f"run {number}", params={"rate": str(number / 10)}, files={"notes.txt": b"the honest text"},
            metrics={"loss": [1 / (step + 1) for step in range(9)]},
        )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def job(web: Web, recording: Recording, environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """A session that is running, as somebody has started it with the form."""
    folder = tmp_path_factory.mktemp("session")
    text = f"portal: {web.url}\nclusters: [one]\nvenv: {environment}\nmlflow: {mlflow_bin()}/mlflow\n"
    context = ood_app.answered(ood_app.site(folder / "etc", text), source_path=str(recording.path))
    found = submitted(folder / "job", context, host="localhost")
    try:
        until(lambda: found.running)
        yield found
    finally:
        found.end()
    # the end of the module is the end of the job
    until(found.nothing_left, 20)


@pytest.fixture(scope="module")
def browser(web: Web) -> Iterator[Browser]:
    with chromium(web.certificate) as found:
        yield found


def base(job: Job, way: str) -> str:
    return f"{way}/localhost/{job.port}"


def button(job: Job, way: str) -> str:
    """The card's button, as a portal with this way has it."""
    return ood_app.render("view.html.erb", "view", {**job.connection, "labtrack_base": base(job, way)})


def person(browser: Browser, web: Web, user: str, job: Job, way: str) -> BrowserContext:
    """A browser that is logged in to the portal, whose page /card has the session's button."""
    context = browser.new_context(extra_http_headers={WHO: user}, viewport={"width": 1400, "height": 1000})
    card = f"<!doctype html>{button(job, way)}"
    context.route(f"{web.url}/card", lambda route: route.fulfill(body=card, content_type="text/html"))
    return context


def test_connection_file_has_what_the_card_needs(job: Job) -> None:
    assert job.connection["labtrack_base"] == base(job, "/node")
    assert len(job.connection["password"]) == 32
    assert (job.staged / "connection.yml").stat().st_mode & 0o077 == 0
    assert all(one.stat().st_mode & 0o077 == 0 for one in job.tmp.iterdir())
    assert job.connection["password"] not in job.log + "".join(job.processes())


def test_button_leads_to_the_runs(browser: Browser, web: Web, job: Job, results: Path) -> None:
    context, here = person(browser, web, OWNER, job, "/node"), f"{web.url}{base(job, '/node')}"
    push_the_button(context, web, here)
    (cookie,) = context.cookies()
    assert cookie["path"] == base(job, "/node") and cookie["httpOnly"] and cookie["secure"]
    assert cookie["sameSite"] == "Strict"

    eyes = watched(context, here, CLOSED)
    eyes.visit("/#/experiments/1/runs")
    shows_the_runs(eyes, results / "ondemand-1-runs.png")
    eyes.page.get_by_role("link", name="run 1").first.click()
    expect(eyes.page.get_by_text("rate", exact=True).first).to_be_visible()
    eyes.check(results / "ondemand-2-run.png")
    eyes.page.get_by_role("tab", name="Artifacts").first.click()
    eyes.page.get_by_text("notes.txt", exact=True).first.click()
    expect(eyes.page.get_by_text("the honest text").first).to_be_visible()
    context.close()


def push_the_button(context: BrowserContext, web: Web, here: str) -> None:
    page = context.new_page()
    page.goto(f"{web.url}/card")
    with page.expect_popup() as popup:
        page.get_by_role("button", name="Connect to MLflow").click()
    popup.value.wait_for_url(f"{here}/")  # loaded: a page that is closed on its way may never be
    popup.value.close()
    page.close()


def shows_the_runs(eyes: Eyes, picture: Path) -> None:
    for name in ("run 1", "run 2"):
        expect(eyes.page.get_by_role("link", name=name).first).to_be_visible()
    eyes.check(picture)


def test_portal_that_takes_the_prefix_away_shows_the_runs(browser: Browser, web: Web, job: Job, results: Path) -> None:
    context, here = person(browser, web, OWNER, job, "/rnode"), f"{web.url}{base(job, '/rnode')}"
    push_the_button(context, web, here)
    eyes = watched(context, here, CLOSED)
    eyes.visit("/#/experiments/1/runs")
    shows_the_runs(eyes, results / "ondemand-3-runs.png")
    context.close()


def test_page_without_the_button_is_refused_with_a_sentence(
    browser: Browser, web: Web, job: Job, results: Path
) -> None:
    context = person(browser, web, OWNER, job, "/node")
    page = context.new_page()
    answer = page.goto(f"{web.url}{base(job, '/node')}/")
    assert answer is not None and answer.status == 403
    expect(page.get_by_text("on the session's card")).to_be_visible()
    page.screenshot(path=results / "ondemand-4-refused.png")
    context.close()


@pytest.mark.parametrize("way", WAYS)
def test_others_get_403(web: Web, job: Job, way: str) -> None:
    password = {"password": job.connection["password"]}
    own = web.ask(OWNER, "POST", f"{base(job, way)}/open", data=password, headers={"Origin": web.url})
    cookie = {"Cookie": own.headers["Set-Cookie"].partition(";")[0]}
    search, query = f"{base(job, way)}/ajax-api/2.0/mlflow/runs/search", {"experiment_ids": ["1"]}
    found = web.ask(OWNER, "POST", search, json=query, headers={**cookie, "Origin": web.url})
    assert len(found.json()["runs"]) == 2
    # another user of the portal: without a cookie, with the password, with the owner's cookie, as the owner
    assert web.ask("eve", "GET", f"{base(job, way)}/").status_code == 403
    assert web.ask("eve", "POST", f"{base(job, way)}/open", data=password).status_code == 403
    assert web.ask("eve", "POST", search, json=query, headers=cookie).status_code == 403
    forged = {**cookie, "X-Forwarded-User": OWNER}
    assert web.ask("eve", "POST", search, json=query, headers=forged).status_code == 403
    # another page of the internet, by the owner's browser
    foreign = {**cookie, "Origin": "https://evil.example"}
    assert web.ask(OWNER, "POST", search, json=query, headers=foreign).status_code == 403
    assert web.ask(None, "GET", f"{base(job, way)}/").status_code == 401


def test_port_itself_gives_nothing(job: Job) -> None:
    for path in ("/", base(job, "/node") + "/", "/ajax-api/2.0/mlflow/experiments/search?max_results=1", "/health"):
        for headers in ({}, {"Host": f"localhost:{job.port}", "X-Forwarded-User": OWNER}):
            answer = requests.get(f"http://127.0.0.1:{job.port}{path}", headers=headers, timeout=60)
            assert answer.status_code == 403, path


def test_card_says_what_is_shown(job: Job, recording: Recording) -> None:
    said = job.card("info.md.erb")
    assert "MLflow 3." in said and "2 experiments, 2 runs" in said and job.connection["password"] not in said
    assert str(recording.path) in html.unescape(said) and "it's" not in said


def test_recording_is_not_touched(web: Web, job: Job, recording: Recording) -> None:
    before = (recording.path.read_bytes(), recording.path.stat().st_mtime_ns)
    password = {"password": job.connection["password"]}
    own = web.ask(OWNER, "POST", f"{base(job, '/node')}/open", data=password)
    cookie = {"Cookie": own.headers["Set-Cookie"].partition(";")[0], "Content-Type": "application/json"}
    ((run,), *_) = recording.sql("SELECT run_uuid FROM runs ORDER BY name")
    change = json.dumps({"run_id": run, "key": "mine", "value": "1"})
    path = f"{base(job, '/node')}/ajax-api/2.0/mlflow/runs/set-tag"
    assert web.ask(OWNER, "POST", path, data=change, headers=cookie).ok
    assert (recording.path.read_bytes(), recording.path.stat().st_mtime_ns) == before
    assert [one.name for one in recording.path.parent.glob("mlflow.db*")] == ["mlflow.db"]


def test_form_shows_what_belongs_to_the_choice(browser: Browser) -> None:
    def select(name: str, *values: str) -> str:
        options = "".join(f"<option>{one}</option>" for one in values)
        return f'<div class="mb-3"><select id="batch_connect_session_context_{name}">{options}</select></div>'

    def text(name: str) -> str:
        return f'<div class="mb-3"><input id="batch_connect_session_context_{name}"></div>'

    page = browser.new_page()
    page.set_content(
        f"<form>{select('source_kind', 'path', 'server')}{text('source_path')}{text('env_file')}"
        f"{select('view_mode', 'snapshot')}{select('software', 'venv', 'module')}{text('software_venv')}"
        f"{text('software_module')}<button type=submit>Launch</button></form>"
    )
    page.add_script_tag(path=ood_app.APP / "form.js")

    def shown() -> set[str]:
        names = ("source_path", "env_file", "view_mode", "software_venv", "software_module")
        return {one for one in names if page.locator(f"#batch_connect_session_context_{one}").is_visible()}

    assert shown() == {"source_path", "view_mode", "software_venv"}
    page.select_option("#batch_connect_session_context_source_kind", "server")
    page.select_option("#batch_connect_session_context_software", "module")
    assert shown() == {"env_file", "software_module"}
    page.select_option("#batch_connect_session_context_source_kind", "path")
    path = page.locator("#batch_connect_session_context_source_path")
    for value, wrong in (("", "Choose a folder"), ("mlruns", "whole path"), ("https://x.org", "My lab's server"),
                         ("/scratch/it's mine", ""), ("~/mlruns", ""), (" sqlite:////x/y.db ", "")):  # fmt: skip
        path.fill(value)
        said = path.evaluate("one => one.validationMessage")
        assert wrong in said if wrong else not said, value
    page.close()
