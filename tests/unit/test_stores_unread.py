"""Recordings as people really have them: clutter, copies, and things that can't be read."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from recorded import add_points, make_files, make_sqlite

from labtrack.stores import Problem, Store, open_store

NOBODY = 65534
as_somebody_else = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def open_root() -> Iterator[Path]:
    """A place that others may look into; pytest closes its own whenever another one starts."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder, "mlruns")


@contextlib.contextmanager
def somebody_else() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def metric(root: Path, run: str, content: str, key: str = "loss") -> Path:
    path = root / "0" / run / "metrics" / key
    path.write_text(content)
    return path


def all_of(store: Store) -> list[Problem]:
    """What is told when everything is read."""
    store.experiments(deleted=True)
    for one in store.runs(deleted=True):
        store.metric_keys(one.id)
        list(store.points(one.id))
        list(store.artifacts(one))
    list(store.logged_models(deleted=True))
    store.registered_models()
    list(store.traces())
    return store.problems()


class TestClutter:
    def test_desktop_files_are_nobodys(self, root: Path, run: str) -> None:
        folder = root / "0" / run
        for name in ("params/.DS_Store", "params/._lr", "tags/.DS_Store", "params/Thumbs.db", "tags/desktop.ini"):
            (folder / name).write_bytes(b"\x00\x01Bud1\x80")
        (folder / "metrics/.nfs000000000012ab").write_text("1700000000000 9 7\n")
        (folder / "params/lr~").write_text("old")
        (folder / "params/.lr.swp").write_text("old")
        (root / "0" / "tags").mkdir()
        (root / "0" / "tags" / ".DS_Store").write_bytes(b"\x00\x01Bud1")
        (root / "._0").mkdir()
        with open_store(root) as store:
            found = store.run(run)
            assert found.params == {} and list(found.tags) == ["mlflow.runName"]
            assert store.metric_keys(run) == {}
            assert store.experiments()[0].tags == {}
            assert all_of(store) == []

    def test_artifacts_are_all_somebodys(self, root: Path, run: str) -> None:
        folder = root / "0" / run / "artifacts"
        for name in (".DS_Store", "train.py~", ".nfs000000000012ab00000001"):
            (folder / name).write_bytes(b"x")
        with open_store(root) as store:
            assert [one.path for one in store.artifacts(store.run(run))] == [".DS_Store", "train.py~"]


class TestUnreadable:
    """A fault belongs to a file, a run or an experiment; everything else is read, and the fault is told."""

    @as_somebody_else
    @pytest.mark.parametrize(
        "place",
        ["RUN", "RUN/meta.yaml", "RUN/params", "RUN/params/lr", "RUN/metrics", "RUN/metrics/loss", "RUN/tags",
         "RUN/artifacts", "RUN/artifacts/sub", "RUN/artifacts/a.txt"],
    )  # fmt: skip
    def test_a_part_of_a_run(self, open_root: Path, place: str) -> None:
        root, run = open_root, make_files(open_root, runs=3)[0]
        folder = root / "0" / run
        (folder / "params" / "lr").write_text("0.1")
        metric(root, run, "1 0.5 1\n")
        (folder / "artifacts" / "sub").mkdir()
        (folder / "artifacts" / "a.txt").write_text("a")
        (root / "0" / place.replace("RUN", run)).chmod(0)
        with somebody_else(), open_store(root) as store:
            problems = all_of(store)
            runs = {one.id for one in store.runs()}
        assert problems and {one.run_id for one in problems} == {run}
        assert len(runs) == (2 if place in ("RUN", "RUN/meta.yaml") else 3)

    @as_somebody_else
    def test_an_experiment(self, open_root: Path) -> None:
        root = open_root
        make_files(root, runs=3)
        shutil.copytree(root / "0", root / "1")
        for one in (root / "1").iterdir():
            if one.is_dir():
                shutil.rmtree(one)
        (root / "1").chmod(0)
        with somebody_else(), open_store(root) as store:
            assert len(list(store.runs())) == 3
            problems = all_of(store)
        assert [one.experiment_id for one in problems] == ["1"]

    @pytest.mark.parametrize("error", [OSError(5, "Input/output error"), OSError(116, "Stale file handle")])
    def test_a_disk_that_fails(self, root: Path, run: str, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
        (root / "0" / run / "params" / "lr").write_text("0.1")
        (root / "0" / run / "artifacts" / "a").write_text("0.1")
        metric(root, run, "1 0.5 1\n")
        real: Callable[[str], object] = os.scandir

        def scandir(place: str) -> object:
            if run in os.fspath(place) and os.fspath(place) != str(root / "0" / run):
                raise OSError(error.errno, error.strerror, place)
            return real(place)

        monkeypatch.setattr(os, "scandir", scandir)
        with open_store(root) as store:
            problems = all_of(store)
            assert len(list(store.runs())) == 3
        assert {one.run_id for one in problems} == {run}
        assert {Path(one.place).name for one in problems} >= {"params", "tags", "metrics", "artifacts"}
        assert all(error.strerror in one.what for one in problems)

    def test_links_to_nowhere(self, root: Path, run: str) -> None:
        folder = root / "0" / run
        (folder / "params" / "lr").symlink_to("gone")
        (folder / "metrics" / "loss").symlink_to("gone")
        (folder / "artifacts" / "last.ckpt").symlink_to("nowhere")
        (root / "0" / ("f" * 32)).symlink_to("/scratch/purged/run")
        (root / "9").symlink_to("/scratch/purged/experiment")
        with open_store(root) as store:
            problems = all_of(store)
            assert len(list(store.runs())) == 3
        places = {Path(one.place).name: (one.run_id, one.experiment_id) for one in problems}
        assert places == {
            "lr": (run, None),
            "loss": (run, None),
            "last.ckpt": (run, None),
            "f" * 32: ("f" * 32, None),
            "9": (None, "9"),
        }

    def test_an_artifact_folder_that_is_a_link_to_nowhere(self, tmp_path: Path) -> None:
        (run,) = make_sqlite(tmp_path / "mlflow.db")
        place = tmp_path / "mlruns" / "0" / run
        place.mkdir(parents=True)
        (place / "artifacts").symlink_to("/scratch/purged")
        with open_store(tmp_path / "mlflow.db") as store:
            (problem,) = all_of(store)
        assert problem.run_id == run and "/scratch/purged" in problem.what


class TestArtifactsThatAreGone:
    def test_a_model_that_the_run_says_it_logged(self, root: Path, run: str) -> None:
        tag = root / "0" / run / "tags" / "mlflow.log-model.history"
        tag.write_text('[{"artifact_path": "model", "run_id": "x"}, {"artifact_path": "m-1", "model_id": "m-1"}, 7]')
        with open_store(root) as store:
            assert all_of(store) == [], "a tag of somebody else's making"
        tag.write_text('[{"artifact_path": "model", "run_id": "x"}, {"artifact_path": "m-1", "model_id": "m-1"}]')
        with open_store(root) as store:
            (problem,) = all_of(store)
            assert problem.run_id == run and "the model model, which the run says it logged, is gone" in problem.what
        (root / "0" / run / "artifacts" / "model").mkdir()
        with open_store(root) as store:
            assert all_of(store) == []

    def test_a_servers_database_without_its_artifacts(self, tmp_path: Path) -> None:
        (run,) = make_sqlite(tmp_path / "mlflow.db")
        with sqlite3.connect(tmp_path / "mlflow.db") as db:
            db.execute("UPDATE runs SET artifact_uri = ?", [f"mlflow-artifacts:/0/{run}/artifacts"])
        db.close()
        with open_store(tmp_path / "mlflow.db") as store:
            (problem,) = all_of(store)
            assert not problem.damage and "sent to a server" in problem.what
        (tmp_path / "mlartifacts").mkdir()
        with open_store(tmp_path / "mlflow.db") as store:
            assert all_of(store) == []


def overwrite(path: Path, table: str) -> None:
    """Destroys the first page of a table."""
    with sqlite3.connect(path) as db:
        ((page,),) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [table])
        ((size,),) = db.execute("PRAGMA page_size")
    db.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * 100)


def test_a_damaged_table_beside_the_runs(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    (run,) = make_sqlite(path)
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO registered_models (name, creation_time, workspace) VALUES ('m', 1, 'default')")
    db.close()
    overwrite(path, "registered_models")
    with open_store(path) as store:
        (problem,) = all_of(store)
        assert [one.id for one in store.runs()] == [run]
    assert "the table registered_models can't be read" in problem.what and problem.damage


@pytest.mark.parametrize(("table", "left"), [("metrics", 2), ("params", 1)])
def test_a_damaged_table_of_the_runs(tmp_path: Path, table: str, left: int) -> None:
    path = tmp_path / "mlflow.db"
    runs = make_sqlite(path, runs=2)
    add_points(path, runs[0], [("loss", 0.5, 1, 1)])
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO params (key, value, run_uuid) VALUES ('lr', '0.1', ?)", [runs[0]])
    db.close()
    overwrite(path, table)
    with open_store(path) as store:
        problems = all_of(store)
        assert len(list(store.runs())) == left
    assert {one.run_id for one in problems if one.damage} == {runs[0]}


class TestCopiedRuns:
    def second(self, root: Path, run: str) -> Path:
        """The run, copied into a second experiment, whose folder comes first."""
        (root / "1").mkdir()
        meta = (root / "0" / "meta.yaml").read_text()
        (root / "1" / "meta.yaml").write_text(meta.replace("'0'", "'1'").replace("Default", "other"))
        target = root / "1" / run
        shutil.copytree(root / "0" / run, target)
        return target

    def test_are_one_run(self, root: Path, run: str) -> None:
        self.second(root, run)
        meta = root / "0" / run / "meta.yaml"
        meta.write_text(meta.read_text().replace("experiment_id: '0'", "experiment_id: '1'"))
        with open_store(root) as store:
            found = [one for one in store.runs() if one.id == run]
            assert len(found) == 1
            assert len(store.problems()) == 1

    def test_the_one_that_is_where_it_says(self, root: Path, run: str) -> None:
        self.second(root, run)
        with open_store(root) as store:
            (found,) = [one for one in store.runs() if one.id == run]
            assert found.experiment_id == store.run(run).experiment_id == "0"
            (problem,) = store.problems()
            assert "copy of the run" in problem.what and not problem.damage

    def test_what_only_the_copy_has_is_a_problem(self, root: Path, run: str) -> None:
        (self.second(root, run) / "artifacts" / "more.txt").write_text("more")
        with open_store(root) as store:
            assert len(list(store.runs())) == 3
            (problem,) = store.problems()
        assert problem.run_id == run and "artifacts/more.txt is only here" in problem.what


class TestWindowsPaths:
    @pytest.mark.parametrize(
        "uri",
        [
            "C:\\data\\mlruns\\0\\RUN\\artifacts",
            "file:///C:/data/mlruns/0/RUN/artifacts",
            "\\\\host\\share\\0\\RUN\\artifacts",
        ],
    )
    def test_artifacts_are_found_beside_the_store(self, tmp_path: Path, uri: str) -> None:
        (run,) = make_sqlite(tmp_path / "mlflow.db")
        place = tmp_path / "mlruns" / "0" / run / "artifacts"
        with sqlite3.connect(tmp_path / "mlflow.db") as db:
            db.execute("UPDATE runs SET artifact_uri = ?", [uri.replace("RUN", run)])
        db.close()
        with open_store(tmp_path / "mlflow.db") as store:
            (problem,) = all_of(store)
            assert problem.run_id == run and "recorded there" in problem.what
        place.mkdir(parents=True)
        (place / "a.txt").write_text("a")
        with open_store(tmp_path / "mlflow.db") as store:
            assert [one.path for one in store.artifacts(store.run(run))] == ["a.txt"]
            assert store.problems() == []


class TestTraces:
    def test_in_sqlite(self, tmp_path: Path) -> None:
        path = tmp_path / "mlflow.db"
        (run,) = make_sqlite(path)
        with sqlite3.connect(path) as db:
            db.execute(
                "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status) VALUES ('tr-1', 0, 5, 'OK')"
            )
            db.execute(
                "INSERT INTO trace_request_metadata (key, value, request_id) VALUES ('mlflow.sourceRun', ?, 'tr-1')",
                [run],
            )
            for span in "ab":
                db.execute(
                    "INSERT INTO spans (trace_id, experiment_id, span_id, status, start_time_unix_nano, content) "
                    "VALUES ('tr-1', 0, ?, 'OK', 1, '{}')",
                    [span],
                )
        db.close()
        with open_store(path) as store:
            (trace,) = store.traces("0")
            assert (trace.id, trace.run_id, trace.timestamp) == ("tr-1", run, 5)
            assert json.loads(store.spans(trace) or b"") == {"spans": [{}, {}]}
            assert list(store.traces()) == [trace] and list(store.traces("1")) == []

    def test_in_files(self, root: Path, run: str) -> None:
        folder = root / "0" / "traces" / "tr-1"
        (folder / "request_metadata").mkdir(parents=True)
        (folder / "request_metadata" / "mlflow.sourceRun").write_text(run)
        (folder / "assessments").mkdir()
        (folder / "assessments" / "a-1.yaml").write_text("name: good\n")
        (folder / "trace_info.yaml").write_text("trace_id: tr-1\nrequest_time: '2024-05-01T12:00:00Z'\n")
        (root / "0" / "traces" / "tr-2").mkdir()
        with open_store(root) as store:
            (trace,) = store.traces("0")
            assert (trace.run_id, trace.assessments, trace.timestamp) == (run, ({"name": "good"},), 1_714_564_800_000)
            (problem,) = store.problems()
            assert store.spans(trace) is None and "the spans of the trace can't be read" in store.problems()[-1].what
        assert problem.experiment_id == "0" and "tr-2" in problem.place
