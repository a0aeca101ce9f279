"""The snapshot: the same views on every source, whole or not at all, and opened by datasette as it is."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recorded import KINDS, VERSIONS, kept
from results_made import Recorded, distilled

import labtrack
from labtrack import portable
from labtrack.analysis import snapshot
from labtrack.errors import BadInputError, LabtrackError
from labtrack.stores import open_store

LABTRACK = [sys.executable, "-m", "labtrack"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return distilled(tmp_path_factory.mktemp("snapshot") / "mlflow.db").path


@pytest.fixture(scope="module")
def results(source: Path) -> Path:
    file = source.with_name("results.sqlite")
    snapshot.write([str(source)], file)
    return file


def rows(file: Path, sql: str) -> list[Any]:
    database = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    try:
        return database.execute(sql).fetchall()
    finally:
        database.close()


def test_runs_has_a_column_for_each_tag_and_parameter(results: Path) -> None:
    found = rows(results, "SELECT name, stage, lr, layers, use_kd, status FROM runs WHERE dataset = 'hcrl_sa' LIMIT 1")
    assert found == [("hcrl_sa/teacher_evaluation", "evaluation", "0.001", "3", "False", "FINISHED")]
    # the attribute has the name; the tag has it with its kind in front
    assert ("complete",) in rows(results, 'SELECT DISTINCT "tags.status" FROM runs')
    columns = [row[1] for row in rows(results, "PRAGMA table_info(runs)")]
    assert columns[: len(snapshot.ATTRIBUTES)] == list(snapshot.ATTRIBUTES)
    assert {"dataset", "stage", "model", "model_size", "scenario", "seed", "teacher_run_id"} < set(columns)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT type, count(*) FROM sqlite_master WHERE type = 'view' GROUP BY 1", [("view", 7)]),
        ("SELECT count(*), count(DISTINCT run_id) FROM params", [(20, 8)]),
        ("SELECT value FROM tags WHERE name = 'status' ORDER BY value LIMIT 1", [("complete",)]),
        ("SELECT value, step, count FROM metrics WHERE name = 'f1' ORDER BY value DESC LIMIT 1", [(0.95, 1, 2)]),
        ("SELECT max, max_step, min, min_step FROM best WHERE name = 'val_loss' AND run_id LIKE '00000002%'",
         [(0.5, 0, 0.25, 1)]),
        ("SELECT step, value FROM history WHERE name = 'val_loss' AND run_id LIKE '00000001%' ORDER BY step",
         [(0, 0.4), (1, 0.2)]),
        ("SELECT relation, found, count(*) FROM lineage GROUP BY 1, 2", [("teacher", 1, 4)]),
        ("SELECT r.name FROM lineage l JOIN runs r ON r.run_id = l.related_run_id GROUP BY 1 ORDER BY 1",
         [("hcrl_sa/teacher_evaluation",), ("set_01/teacher_evaluation",)]),
    ],
)  # fmt: skip
def test_a_view_says(sql: str, expected: list[Any], results: Path) -> None:
    assert rows(results, sql) == expected


def test_nothing_but_the_owner_reads_it_and_nothing_is_left_beside(results: Path) -> None:
    assert results.stat().st_mode & 0o777 == 0o600
    assert sorted(one.name for one in results.parent.iterdir()) == ["mlflow.db", "results.sqlite"]


def test_the_same_runs_give_the_same_bytes(source: Path, results: Path, tmp_path: Path) -> None:
    snapshot.write([str(source)], tmp_path / "again.sqlite")
    assert (tmp_path / "again.sqlite").read_bytes() == results.read_bytes()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_kind_of_every_version_has_the_same_views(version: str, tmp_path: Path) -> None:
    said = []
    for kind, place in KINDS.items():
        file = tmp_path / f"{kind}.db"
        frame = snapshot.write([str(kept(version) / place)], file)
        assert len(frame) == rows(file, "SELECT count(*) FROM runs")[0][0] > 0
        with open_store(kept(version) / place) as store:
            points = sum(len(list(store.points(run.id))) for run in store.runs())
        assert rows(file, "SELECT count(*) FROM history") == [(points,)]
        sql = "SELECT r.name, b.name, max, max_step, min, min_step FROM best b JOIN runs r USING (run_id)"
        said.append(rows(file, f"{sql} ORDER BY 1, 2, 3, 4"))
    assert said[0] and said[0] == said[1]


def test_of_an_exported_file_and_of_reports(source: Path, tmp_path: Path) -> None:
    with open_store(source) as store:
        run = next(store.runs())
        portable.export(store, [run.id], tmp_path / "one.zip")
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "metrics.json").write_text(json.dumps({"f1": [0.1, 0.7]}))
    (tmp_path / "reports" / "config.yaml").write_text("dataset: hcrl_sa\nlr: 0.1\n")
    snapshot.write([str(tmp_path / "one.zip"), str(tmp_path / "reports")], tmp_path / "out.db")
    found = rows(
        tmp_path / "out.db", "SELECT r.dataset, b.max FROM runs r JOIN best b USING (run_id) WHERE b.name = 'f1'"
    )
    assert sorted(found) == [("hcrl_sa", 0.7), ("hcrl_sa", 0.95)]


def test_names_that_sql_finds_hard(tmp_path: Path) -> None:
    made = Recorded(tmp_path / "mlflow.db")
    odd = ['a"b', "Name", "NAME", "select", "x y", "run_id", "é", "params.lr", ""]
    made.run("one", params={name: f"p {name}" for name in odd}, tags={name: f"t {name}" for name in odd})
    snapshot.write([str(made.path)], tmp_path / "out.db")
    (run,) = rows(tmp_path / "out.db", 'SELECT run_id, name, "a""b", "select", "x y", "tags.Name" FROM runs')
    # SQLite's names know no case, so of two that differ in nothing else one has the column
    assert run[1:] == ("one", 't a"b', "t select", "t x y", "t NAME")
    assert len(rows(tmp_path / "out.db", "SELECT * FROM params")) == len(odd)


def test_more_names_than_sqlite_has_columns(tmp_path: Path) -> None:
    made = Recorded(tmp_path / "mlflow.db")
    made.run("one", params={f"p{number:04}": "1" for number in range(3000)}, tags={"dataset": "d"})
    made.run("two", params={"p2999": "2"})
    snapshot.write([str(made.path)], tmp_path / "out.db")
    assert rows(tmp_path / "out.db", "SELECT dataset, p2999 FROM runs") == [("d", "1"), (None, "2")]
    assert rows(tmp_path / "out.db", "SELECT count(*) FROM params") == [(3001,)]


class TestOutput:
    def test_a_file_that_is_there_is_kept(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "out.db").write_text("mine")
        with pytest.raises(BadInputError, match="there already"):
            snapshot.write([str(source)], tmp_path / "out.db")
        assert (tmp_path / "out.db").read_text() == "mine"
        snapshot.write([str(source)], tmp_path / "out.db", force=True)
        assert rows(tmp_path / "out.db", "SELECT count(*) FROM runs") == [(10,)]

    def test_a_failure_leaves_what_was_there(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        (tmp_path / "out.db").write_text("mine")
        monkeypatch.setattr(snapshot, "_write_history", full)
        with pytest.raises(LabtrackError, match="disk is full"):
            snapshot.write([str(source)], tmp_path / "out.db", force=True)
        assert [one.name for one in tmp_path.iterdir() if one.name != "home"] == ["out.db"]
        assert (tmp_path / "out.db").read_text() == "mine"

    def test_a_query_of_a_snapshot_reads_it_as_it_is(self, results: Path) -> None:
        words = [*LABTRACK, "query", "-s", str(results), "SELECT count(*) AS n FROM history", "--format", "json"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["rows"] == [{"n": 53}]


DATASETTE = """
import asyncio, json, sys
from datasette.app import Datasette

async def ask():
    datasette = Datasette([sys.argv[1]])
    await datasette.invoke_startup()
    answers = [await datasette.client.get(path) for path in sys.argv[2:]]
    print(json.dumps([one.json() for one in answers]))

asyncio.run(ask())
"""


def test_datasette_opens_it_as_it_is(results: Path) -> None:
    if importlib.util.find_spec("datasette") is None:
        pytest.skip("datasette is not installed")
    asked = "/results.json?sql=select+name,+lr+from+runs+where+dataset+%3D+'hcrl_sa'+order+by+1&_shape=array"
    paths = ["/results.json", asked, "/results/runs.json?_shape=objects&dataset=set_01"]
    words = [sys.executable, "-c", DATASETTE, results, *paths]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    about, of_a_dataset, runs = json.loads(done.stdout)
    assert {one["name"] for one in about["views"]} == set(snapshot.VIEWS)
    assert len(of_a_dataset) == 6
    assert {one["dataset"] for one in runs["rows"]} == {"set_01"} and len(runs["rows"]) == 4


class TestFrame:
    def test_a_record_for_each_run(self, source: Path) -> None:
        found = labtrack.frame(source)
        first = found.records()[0]
        assert (len(found), first["tags.dataset"], first["params.lr"], first["metrics.f1"]) == (
            10,
            "hcrl_sa",
            "0.001",
            0.95,
        )
        assert found.rows[1].metrics["f1"].max == pytest.approx(0.93) and not found.damaged

    def test_only_some_metrics_and_runs(self, source: Path) -> None:
        found = labtrack.frame(str(source), metrics=["f1"], filter="tags.dataset = 'set_01' AND metrics.f1 > 0.8")
        assert [row.run.name for row in found] == ["set_01/teacher_evaluation", "set_01/student_kd_0.001"]
        assert found.names("metrics") == ["f1"] and "lr" in found.names("params")

    def test_several_sources_and_a_run_twice(self, source: Path, tmp_path: Path) -> None:
        shutil.copy(source, tmp_path / "copy.db")
        Recorded(tmp_path / "other.db").run("other", run_id="f" * 32)
        found = labtrack.frame([source, tmp_path])
        assert len(found) == 11 and "10 runs are in more than one source" in found.notes[0]

    def test_pandas_is_asked_for_only_where_it_is_needed(self, source: Path) -> None:
        try:
            import pandas  # noqa: F401
        except ModuleNotFoundError:
            with pytest.raises(BadInputError, match="pandas is not installed"):
                labtrack.frame(source).to_pandas()
        else:
            assert len(labtrack.frame(source).to_pandas()) == 10
