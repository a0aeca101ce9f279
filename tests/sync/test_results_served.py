"""Results of a real tracking server: the same as of its file, with few calls."""

from __future__ import annotations

import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sync_server import ROOT, TrackingServer

from labtrack import frame
from labtrack.analysis import frame as frames
from labtrack.analysis import query
from labtrack.analysis.board import Asked, leaderboard, runs
from labtrack.analysis.frame import Needs
from labtrack.analysis.pairs import compare
from labtrack.analysis.plot import Paper, Plotter
from labtrack.analysis.report import Wish, gather
from labtrack.analysis.served import Served, cache_folder
from labtrack.stores.server import ServerStore
from labtrack.stores.summary import LAST, PARTS

FIXTURES = ROOT / "tests" / "fixtures" / "stores"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """What MLflow 3.17.2 recorded, and a server of that version on the same file."""
    folder = tmp_path_factory.mktemp("results")
    with tarfile.open(FIXTURES / "3.17.2.tar.xz") as tar:
        tar.extractall(folder)  # noqa: S202  our own archive
    server = TrackingServer(f"sqlite:///{folder}/sqlite/mlflow.db", folder / "server")
    server.start()
    try:
        yield str(folder / "sqlite" / "mlflow.db"), server.url
    finally:
        server.kill()


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return {"XDG_CACHE_HOME": str(tmp_path / "cache")}


def calls(store: Served) -> dict[str, int]:
    return {name: count for name, count in store._http.calls.items() if "histor" in name or "runs" in name}


def test_a_server_gives_the_tables_that_its_file_gives(served: tuple[str, str], env: dict[str, str]) -> None:
    path, url = served
    for metric in ("loss", "max:loss", "min:loss", "first:loss", "mean:loss", "count:loss", "step@min:loss"):
        of_file, _ = leaderboard(Asked([path], every=True), metric)
        of_server, _ = leaderboard(Asked([url], every=True), metric)
        assert of_server.rows == of_file.rows and of_file.rows, metric
    names = ["parent", "child"]
    assert compare([url], *names)[0].rows == compare([path], *names)[0].rows
    assert runs(Asked([url]), failed=True)[0].columns == runs(Asked([path]), failed=True)[0].columns
    keys = ("params.", "tags.", "metrics.")
    for one, other in zip(frame(url).records(), frame(path).records()):
        assert repr({k: v for k, v in one.items() if k.startswith(keys)}) == repr(
            {k: other[k] for k in one if k.startswith(keys)}
        )


@pytest.mark.parametrize("sql", ["SELECT * FROM best ORDER BY 1, 2", "SELECT * FROM history ORDER BY 1, 2, 3, 4, 5"])
def test_the_same_sql_on_a_server(sql: str, served: tuple[str, str], env: dict[str, str]) -> None:
    answers = []
    for source in served:
        with query.asked([source], sql) as (table, _):
            answers.append(list(table.all_rows()))
    assert answers[0] == answers[1] and answers[0]


def test_last_values_come_with_the_runs(served: tuple[str, str], env: dict[str, str]) -> None:
    with Served(ServerStore(served[1]), env) as store:
        ids = [run.id for run in store.runs()]
        assert any(store.summaries(ids, ["loss"], {LAST}).values())
        assert calls(store) == {"POST runs/search": 1}


def test_histories_are_read_once_and_only_of_what_is_asked_for(served: tuple[str, str], env: dict[str, str]) -> None:
    found = []
    for _ in range(2):
        with Served(ServerStore(served[1]), env) as store:
            ids = [run.id for run in store.runs()]
            found.append((repr(store.summaries(ids, ["loss"], PARTS)), calls(store)))
    with_loss = found[0][1].pop("GET metrics/get-history")
    assert 0 < with_loss <= len(ids)
    assert found[0] == found[1]
    (file,) = cache_folder(env).iterdir()
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", ["another end", "no database", "no folder"])
def test_a_cache_that_is_old_or_unusable_changes_nothing(
    damage: str, served: tuple[str, str], env: dict[str, str]
) -> None:
    expected, _ = leaderboard(Asked([served[1]], every=True), "max:loss")
    (file,) = cache_folder(env).iterdir()
    if damage == "another end":
        with sqlite3.connect(file) as cache:
            cache.execute("UPDATE history SET mark = '[]', points = x'00'")
        cache.close()
    elif damage == "no database":
        file.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    else:
        file.unlink()
        file.parent.rmdir()
        file.parent.write_text("")
    again, _ = leaderboard(Asked([served[1]], every=True), "max:loss")
    assert again.rows == expected.rows


def test_a_server_beside_a_file(served: tuple[str, str], env: dict[str, str]) -> None:
    found = frames.collect(list(served), Needs())
    assert len(found) == len(frames.collect([served[0]], Needs()))
    assert "in more than one source" in found.notes[0]


def test_a_server_gives_the_curves_that_its_file_gives(served: tuple[str, str], env: dict[str, str]) -> None:
    drawn, charts = [], []
    for source in served:
        plotter = Plotter([source], ["parent"], ["loss"])
        drawn.append(plotter.draw(Paper()))
        report = gather(Asked([source], every=True), Wish("loss"))
        charts.append([
            (one.metric, [[curve.points for _, curve in group.members] for group in one.drawn.values()])
            for one in report.charts
        ])  # fmt: skip
    assert drawn[0] == drawn[1] and len(drawn[0].lines) > 5
    assert repr(charts[0]) == repr(charts[1]) and charts[0]
