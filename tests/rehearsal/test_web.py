"""The server's own web page in a real browser, as a person sees it.  Screenshots stay in test-results/."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from eyes import WAIT, Eyes, chromium, watched
from playwright.sync_api import Browser, expect

from labtrack.envfile import read_envfile

if TYPE_CHECKING:
    from conftest import Rehearsal


@pytest.fixture(scope="module")
def browser(rehearsal: Rehearsal) -> Iterator[Browser]:
    """Debian's chromium, without a window, of a person who has installed the lab's CA."""
    with chromium(rehearsal.ca) as found:
        yield found


# What is closed on purpose, and what the page asks for all the same; each answer says so in words.
CLOSED = (
    "/mlflow/assistant/",
    "/mlflow/webhooks",
    "/mlflow/ui-telemetry",
    "404 GET https://mlflow.rehearsal.test/model-versions/get-artifact?path=MLmodel",  # the version has no files
    "403 POST https://mlflow.rehearsal.test/ajax-api/3.0/mlflow/traces/search",  # of the judges page
)
# Two runs with all kinds of artifacts, and a version of a model.
RECORD = """
import mlflow, sys
import matplotlib
matplotlib.use("Agg")
from matplotlib import pyplot
name = sys.argv[1]
mlflow.set_experiment(name)
runs = []
for rate in (0.1, 0.2):
    with mlflow.start_run() as run:
        runs.append(run.info.run_id)
        mlflow.log_params({"rate": rate})
        for step in range(5):
            mlflow.log_metric("loss", rate / (step + 1), step=step)
        figure, axes = pyplot.subplots()
        axes.plot([1, 2, 3])
        axes.set_title("A plot of Ada's")
        mlflow.log_figure(figure, "plot.pdf")
        mlflow.log_figure(figure, "plot.png")
        mlflow.log_text("<h1>A page of Ada's</h1><script>document.title = 'it ran'</script>", "page.html")
        mlflow.log_text("the honest text", "a..b 100%.txt")
client = mlflow.MlflowClient()
client.create_registered_model(name)
client.create_model_version(name, f"runs:/{runs[0]}/model", runs[0])
print("recorded", client.get_experiment_by_name(name).experiment_id, *runs)
"""
FORGET = """
import mlflow, sys
client = mlflow.MlflowClient()
client.delete_registered_model(sys.argv[1])
client.delete_experiment(client.get_experiment_by_name(sys.argv[1]).experiment_id)
"""


@dataclass
class Recorded:
    """What Ada has recorded for these tests."""

    name: str
    experiment: str
    runs: list[str]


@pytest.fixture(scope="module")
def recorded(rehearsal: Rehearsal) -> Iterator[Recorded]:
    """Runs of Ada's in an experiment of their own, gone afterwards."""
    name = f"web-{time.time_ns()}"
    rehearsal.hand_file("ada")

    def python(code: str) -> str:
        return rehearsal.as_ada(f"{rehearsal.PYTHON} -c {shlex.quote(code)} {name}")

    experiment, *runs = re.search(r"recorded (.*)", python(RECORD))[1].split()  # type: ignore[index]
    yield Recorded(name, experiment, runs)
    python(FORGET)


@pytest.fixture
def eyes(browser: Browser, rehearsal: Rehearsal) -> Iterator[Eyes]:
    """A page on which Ada has logged in."""
    ada = read_envfile(rehearsal.private / "ada" / "mlflow_env.sh").variables
    context = browser.new_context(
        http_credentials={"username": "ada", "password": ada["MLFLOW_TRACKING_PASSWORD"], "origin": rehearsal.url},
        viewport={"width": 1400, "height": 1000},
    )
    yield watched(context, rehearsal.url, CLOSED)
    context.close()


def test_a_person_finds_the_run_its_chart_and_its_artifacts(eyes: Eyes, recorded: Recorded, results: Path) -> None:
    page = eyes.page
    eyes.visit("/#/experiments")
    page.get_by_placeholder("Search experiments").fill(recorded.name)
    page.keyboard.press("Enter")
    page.get_by_role("link", name=recorded.name, exact=True).click()
    # the page forwards itself to one of its tabs; going on before that would be overtaken by it
    page.wait_for_url(re.compile(r"experiments/\d+/\w+"), timeout=WAIT)
    eyes.check(results / "web-1-experiment.png")

    run = f"/#/experiments/{recorded.experiment}/runs/{recorded.runs[0]}"
    eyes.visit(run)
    expect(page.get_by_text("rate").first).to_be_visible()
    eyes.check(results / "web-2-run.png")

    eyes.visit(f"{run}/model-metrics")
    expect(page.locator(".js-plotly-plot path.js-line").first).to_be_attached()
    eyes.check(results / "web-3-chart.png")


@pytest.mark.parametrize("file", ["a..b 100%.txt", "plot.png", "plot.pdf", "page.html"])
def test_artifact_is_shown(eyes: Eyes, recorded: Recorded, results: Path, file: str) -> None:
    page = eyes.page
    eyes.visit(f"/#/experiments/{recorded.experiment}/runs/{recorded.runs[0]}/artifacts")
    page.get_by_text(file, exact=True).first.click()
    if file.endswith(".txt"):
        expect(page.get_by_text("the honest text").first).to_be_visible()
    elif file.endswith(".png"):
        expect(
            page.locator("img[src^='blob:'], img[src*='get-artifact'], .image-outer-container img").first
        ).to_be_visible()
    elif file.endswith(".pdf"):
        expect(page.locator("canvas").first).to_be_visible()
    else:
        expect(page.frame_locator("iframe").get_by_text("A page of Ada's")).to_be_visible()
        assert page.title() != "it ran"
    eyes.check(results / f"web-artifact-{file.rpartition('.')[2]}.png")


def test_compare_page_shows_artifacts(eyes: Eyes, recorded: Recorded, results: Path) -> None:
    runs, experiments = json.dumps(recorded.runs), json.dumps([recorded.experiment])
    eyes.visit(f"/#/compare-runs?runs={runs}&experiments={experiments}")
    expect(eyes.page.get_by_text("Comparing 2 Runs").first).to_be_visible()
    eyes.page.get_by_role("tab", name="Artifacts").or_(eyes.page.get_by_text("Artifacts", exact=True)).first.click()
    expect(eyes.page.get_by_text("plot.png").first).to_be_attached()
    eyes.check(results / "web-compare.png")


@pytest.mark.parametrize(
    "case",
    [
        ("home", "/", "Welcome to MLflow"),
        ("runs", "/#/experiments/{0.experiment}/runs", "matching runs"),
        ("traces", "/#/experiments/{0.experiment}/traces", "Traces"),
        ("judges", "/#/experiments/{0.experiment}/judges", "judges"),
        ("datasets", "/#/experiments/{0.experiment}/datasets", "dataset"),
        ("evaluation", "/#/experiments/{0.experiment}/evaluation-runs", "Evaluation runs"),
        ("models", "/#/models", "Registered Models"),
        ("model", "/#/models/{0.name}", "Version 1"),
        ("version", "/#/models/{0.name}/versions/1", "Version 1"),
        ("prompts", "/#/prompts", "Prompts"),
        ("settings", "/#/settings", "General"),
        ("account", "/#/account", "Logged in as"),
        ("admin", "/#/admin", "Users"),
    ],
    ids=lambda case: case[0],
)
def test_page_is_whole(eyes: Eyes, recorded: Recorded, results: Path, case: tuple[str, str, str]) -> None:
    name, path, shows = case
    eyes.visit(path.format(recorded))
    expect(eyes.page.get_by_text(shows).first).to_be_visible()
    eyes.check(results / f"web-page-{name}.png")


def test_what_is_closed_says_so_to_the_person(eyes: Eyes, results: Path) -> None:
    eyes.visit("/#/settings/webhooks")
    expect(eyes.page.get_by_text("This lab's server does not offer webhooks").first).to_be_visible()
    eyes.check(results / "web-closed.png")


def test_a_wrong_password_sees_nothing(browser: Browser, rehearsal: Rehearsal) -> None:
    context = browser.new_context(http_credentials={"username": "ada", "password": "not hers"})
    answer = context.new_page().goto(rehearsal.url)
    assert answer is not None
    assert answer.status == 401
    context.close()
