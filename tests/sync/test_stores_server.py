"""A tracking server as a source, and what was exported as one: read and sent with a real server."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sync_server import ROOT, TrackingServer

from labtrack import portable
from labtrack.errors import BadInputError, LabtrackError
from labtrack.stores import Store, open_store

FIXTURES = ROOT / "tests" / "fixtures" / "stores"
VERSIONS = sorted(path.name[: -len(".tar.xz")] for path in FIXTURES.glob("*.tar.xz"))


def unpacked(version: str, place: Path) -> Path:
    with tarfile.open(FIXTURES / f"{version}.tar.xz") as tar:
        tar.extractall(place)  # noqa: S202  our own archive
    return place


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """What MLflow 3.17.2 recorded, and a server of that version on the same file."""
    folder = unpacked("3.17.2", tmp_path_factory.mktemp("served"))
    server = TrackingServer(f"sqlite:///{folder}/sqlite/mlflow.db", folder / "server")
    server.start()
    try:
        yield folder / "sqlite" / "mlflow.db", server.url
    finally:
        server.kill()


def told(store: Store) -> dict[str, Any]:
    runs = list(store.runs(deleted=True))
    return {
        "identity": store.identity,
        "experiments": store.experiments(deleted=True),
        "active": [run.id for run in store.runs()],
        "runs": {run.id: run for run in runs},
        "points": {run.id: sorted(map(repr, store.points(run.id))) for run in runs},
        "keys": {run.id: store.metric_keys(run.id) for run in runs},
        "models": {one.id: (one, sorted(map(repr, store.model_points(one.id)))) for one in store.logged_models()},
        "registered": store.registered_models(),
    }


def test_a_server_tells_what_its_file_tells(served: tuple[Path, str]) -> None:
    path, url = served
    with open_store(path) as file, open_store(url) as server:
        expected, found = told(file), told(server)
        for name, value in expected.items():
            assert found[name] == value, name
        parent = next(run for run in server.runs() if run.name == "parent")
        rest = [point.step for point in server.points(parent.id, {"loss": 38}) if point.key == "loss"]
        assert rest == [38, 39]


def test_artifacts_through_the_server(server: TrackingServer, send: Any, tmp_path: Path) -> None:
    folder = unpacked("3.17.2", tmp_path)
    assert send(folder / "sqlite", experiment="artifacts back").exit_code == 0
    with open_store(server.url) as store:
        (experiment,) = (one for one in store.experiments() if one.name == "artifacts back")
        parent = next(run for run in store.runs(experiment.id) if run.name == "parent")
        files = {one.path: (one.size, store.open_artifact(parent, one.path).read()) for one in store.artifacts(parent)}
        assert files == {
            "plots/fig 1.svg": (6, b"<svg/>"),
            "plots/täglich/empty": (0, b""),
            "readme.txt": (6, b"hello\n"),
        }
        (model,) = (one for one in store.logged_models() if one.source_run_id == parent.id)
        assert [one.path for one in store.artifacts(model)] == ["MLmodel"]
        assert store.open_artifact(model, "MLmodel").read()
        with pytest.raises(LabtrackError, match="There is no artifact"):
            store.open_artifact(parent, "nothing.txt")


def test_bad_input(served: tuple[Path, str]) -> None:
    _, url = served
    with open_store(url) as store:
        with pytest.raises(BadInputError, match="There is no run"):
            store.run("0" * 32)
        with pytest.raises(BadInputError, match="There is no run"):
            store.run("../../etc/passwd")
    for wrong in ("https://", "http:///runs"):
        with pytest.raises(BadInputError, match="names no host"):
            open_store(wrong)
    with pytest.raises(BadInputError, match="everybody on this machine can read"):
        open_store(url.replace("http://", "http://ada:secret@"))


@pytest.mark.parametrize("version", VERSIONS)
def test_export_and_import(version: str, server: TrackingServer, tmp_path: Path) -> None:
    folder = unpacked(version, tmp_path)
    with open_store(folder / "files") as store:
        parent = next(run for run in store.runs() if run.name == "parent")
        portable.export(store, [parent.id], tmp_path / "runs.zip", children=True)
    command = [
        *(sys.executable, "-m", "labtrack", "import", tmp_path / "runs.zip", "-d", server.url),
        *("-e", f"imported {version}", "--verify", "--json"),
    ]
    for new in (5, 0):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr + done.stdout
        assert json.loads(done.stdout)["counts"]["new"] == new
    assert len(server.runs(f"imported {version}")) == 5


def test_reports(server: TrackingServer, tmp_path: Path) -> None:
    (tmp_path / "reports" / "figures").mkdir(parents=True)
    (tmp_path / "reports" / "config.yaml").write_text("name: poisson\nmlflow_experiment_name: from reports\nseed: 7\n")
    (tmp_path / "reports" / "metrics.json").write_text('[{"epoch": 0, "loss": 1.5}, {"epoch": 1, "loss": 0.5}]')
    (tmp_path / "reports" / "figures" / "a.png").write_bytes(b"png")
    command = [sys.executable, "-m", "labtrack", "import", tmp_path / "reports", "-d", server.url, "--verify"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr + done.stdout
    (run,) = server.runs("from reports")
    assert run["info"]["run_name"] == "poisson"
    assert [one[1:] for one in server.history(run["info"]["run_id"], "loss")] == [(0, 1.5), (1, 0.5)]
    files = server.files(run["info"]["artifact_uri"])
    assert sorted(files) == ["config.yaml", "figures/a.png", "metrics.json"] and files["figures/a.png"] == b"png"
