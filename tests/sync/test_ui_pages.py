"""`labtrack ui` with the real MLflow: its pages in a browser, over recordings of all kinds."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from eyes import Eyes, chromium, watched
from playwright.sync_api import Browser, expect
from sync_recording import Recording
from sync_server import mlflow_bin

from labtrack.ui import Settings, View, view

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "stores"
CLOSED = ("/mlflow/assistant/", "/mlflow/ui-telemetry", "/mlflow/users/current")  # without accounts there is no user


def unpack(version: str, place: Path) -> Path:
    subprocess.run(["tar", "-xJf", FIXTURES / f"{version}.tar.xz", "-C", place], check=True)
    return place


def settings(**more: Any) -> Settings:
    return Settings(mlflow=str(mlflow_bin().parent), port=0, **more)


def logged_in(here: View) -> requests.Session:
    session = requests.Session()
    session.headers["Origin"] = f"http://127.0.0.1:{here.port}"
    assert session.get(here.url).ok
    return session


def everything(here: View) -> dict[str, Any]:
    """All runs by their names, as the page asks for them, with their artifacts."""
    session, api = logged_in(here), f"http://127.0.0.1:{here.port}/ajax-api/2.0/mlflow"
    found = session.get(f"{api}/experiments/search", params={"max_results": 100, "view_type": "ALL"}).json()
    query = {
        "experiment_ids": [one["experiment_id"] for one in found["experiments"]],
        "max_results": 100, "run_view_type": "ALL",
    }  # fmt: skip
    runs = {one["info"]["run_name"]: one for one in session.post(f"{api}/runs/search", json=query).json()["runs"]}
    for run in runs.values():
        listed = session.get(f"{api}/artifacts/list", params={"run_id": run["info"]["run_id"]}).json()
        run["files"] = sorted(one["path"] for one in listed.get("files", []))
        run["read"] = session.get(
            f"http://127.0.0.1:{here.port}/get-artifact",
            params={"run_id": run["info"]["run_id"], "path": "readme.txt"},
        ).text
    return runs


@pytest.mark.parametrize(("version", "kind"), [("1.30.1", "sqlite"), ("2.9.2", "files"), ("3.17.2", "files")])
def test_pages_show_what_any_version_recorded(version: str, kind: str, tmp_path: Path) -> None:
    place = unpack(version, tmp_path)
    source = place / {"sqlite": "sqlite/mlflow.db", "files": "files/mlruns"}[kind]
    before = {one: (one.read_bytes(), one.stat().st_mtime_ns) for one in place.rglob("*") if one.is_file()}
    witness = json.loads((place / f"{kind}.json").read_text())["runs"]
    with view(str(source), settings()) as here:
        assert here.shown is not None and here.shown.runs == len(witness)
        found = everything(here)
    assert {one["info"]["run_id"] for one in found.values()} == set(witness)
    parent = found["parent"]
    recorded = witness[parent["info"]["run_id"]]
    assert {one["key"]: one["value"] for one in parent["data"]["params"]} == recorded["params"]
    assert {one["key"] for one in parent["data"]["metrics"]} == set(recorded["metrics"])
    assert {one["key"]: one["value"] for one in parent["data"]["metrics"]}["loss"] == 1 / 40
    # the folder has moved since it was recorded
    assert parent["files"] == ["plots", "readme.txt"] and parent["read"] == "hello\n"
    assert {one["dataset"]["name"] for one in parent["inputs"].get("dataset_inputs", [])} == {
        one["name"] for one in recorded["inputs"]
    }
    assert {one: (one.read_bytes(), one.stat().st_mtime_ns) for one in place.rglob("*") if one.is_file()} == before


def test_pages_show_all_recordings_of_a_folder(tmp_path: Path) -> None:
    for number in (1, 2):
        made = Recording(tmp_path / f"made-{number}", "sweep")
        made.run(name=f"run {number}", metrics={"loss": [1.0, float("inf"), 0.5]}, params={"lr": str(number)})
        shutil.move(made.path, tmp_path / f"run-{number}.db")
    with view(str(tmp_path), settings()) as here:
        found = everything(here)
    assert set(found) == {"run 1", "run 2"}
    assert len({one["info"]["experiment_id"] for one in found.values()}) == 1
    assert found["run 2"]["data"]["metrics"][0]["value"] == 0.5


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Two runs of one experiment with curves and artifacts."""
    made = Recording(tmp_path_factory.mktemp("shown"), "coast")
    picture = bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c63f8cf"
        "c0f01f00050001ff5c0ef2b80000000049454e44ae426082"
    )
    for number in (1, 2):
        made.run(
            name=f"run {number}", params={"rate": str(number / 10)}, tags={"dataset": "era5"},
            metrics={"loss": [1 / (step + number) for step in range(20)]},
            files={"notes.txt": b"the honest text", "plot.png": picture},
        )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def here(recording: Recording) -> Iterator[View]:
    with view(str(recording.path), settings()) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def eyes(browser: Browser, here: View) -> Iterator[Eyes]:
    """A page that was opened with the link, as a person does it."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    eyes = watched(context, f"http://127.0.0.1:{here.port}", CLOSED)
    eyes.page.goto(here.url)
    eyes.page.wait_for_url(f"http://127.0.0.1:{here.port}/**")
    expect(eyes.page.get_by_text("Experiments").first).to_be_visible()
    yield eyes
    context.close()


def test_page_lists_the_runs_and_draws_the_curve(eyes: Eyes, here: View, results: Path) -> None:
    page = eyes.page
    runs = everything(here)
    experiment = runs["run 1"]["info"]["experiment_id"]
    eyes.visit(f"/#/experiments/{experiment}/runs")
    for name in ("run 1", "run 2"):
        expect(page.get_by_role("link", name=name).first).to_be_visible()
    expect(page.get_by_text("Welcome to MLflow Assistant")).to_have_count(0)
    eyes.check(results / "ui-1-runs.png")
    run = f"/#/experiments/{experiment}/runs/{runs['run 1']['info']['run_id']}"
    eyes.visit(f"{run}/model-metrics")
    expect(page.locator(".js-plotly-plot path.js-line").first).to_be_attached()
    eyes.check(results / "ui-2-chart.png")


def test_page_lists_runs_without_any_tag(browser: Browser, tmp_path: Path) -> None:
    made = Recording(tmp_path, "bare")
    for name in ("run 0", "run 1"):
        made.run(name=name, metrics={"loss": [0.5]})
    with contextlib.closing(sqlite3.connect(made.path)) as file, file:
        file.execute("DELETE FROM tags")
        ((experiment,),) = file.execute("SELECT DISTINCT experiment_id FROM runs").fetchall()
    with view(str(made.path), settings()) as here:
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        eyes = watched(context, f"http://127.0.0.1:{here.port}", CLOSED)
        eyes.page.goto(here.url)
        expect(eyes.page.get_by_text("Experiments").first).to_be_visible()
        eyes.visit(f"/#/experiments/{experiment}/runs")
        for name in ("run 0", "run 1"):
            expect(eyes.page.get_by_role("link", name=name).first).to_be_visible()
        context.close()


def test_page_shows_artifacts(eyes: Eyes, here: View, results: Path) -> None:
    page, info = eyes.page, everything(here)["run 1"]["info"]
    eyes.visit(f"/#/experiments/{info['experiment_id']}/runs/{info['run_id']}/artifacts")
    page.get_by_text("notes.txt", exact=True).first.click()
    expect(page.get_by_text("the honest text").first).to_be_visible()
    eyes.check(results / "ui-3-artifact.png")
    page.get_by_text("plot.png", exact=True).first.click()
    expect(
        page.locator("img[src^='blob:'], img[src*='get-artifact'], .image-outer-container img").first
    ).to_be_visible()
    eyes.check(results / "ui-4-picture.png")


def test_page_compares_runs(eyes: Eyes, here: View, results: Path) -> None:
    runs = everything(here)
    ids = json.dumps([runs[name]["info"]["run_id"] for name in ("run 1", "run 2")])
    experiments = json.dumps([runs["run 1"]["info"]["experiment_id"]])
    eyes.visit(f"/#/compare-runs?runs={ids}&experiments={experiments}")
    expect(eyes.page.get_by_text("Comparing 2 Runs").first).to_be_visible()
    eyes.check(results / "ui-5-compare.png")


def test_page_is_refused_without_the_link(browser: Browser, here: View, results: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    answer = page.goto(f"http://127.0.0.1:{here.port}/")
    assert answer is not None and answer.status == 403
    expect(page.get_by_text("Open the link that `labtrack ui` printed")).to_be_visible()
    page.screenshot(path=results / "ui-6-refused.png")
    context.close()


def test_change_on_the_page_stays_in_the_snapshot(recording: Recording, here: View) -> None:
    before = (recording.path.read_bytes(), recording.path.stat().st_mtime_ns)
    session, run = logged_in(here), everything(here)["run 2"]["info"]["run_id"]
    api = f"http://127.0.0.1:{here.port}/ajax-api/2.0/mlflow/runs"
    assert session.post(f"{api}/set-tag", json={"run_id": run, "key": "mine", "value": "1"}).ok
    assert session.post(f"{api}/delete", json={"run_id": run}).ok
    assert session.post(f"{api}/restore", json={"run_id": run}).ok
    assert (recording.path.read_bytes(), recording.path.stat().st_mtime_ns) == before
    assert sorted(one.name for one in recording.path.parent.glob("mlflow.db*")) == ["mlflow.db"]
