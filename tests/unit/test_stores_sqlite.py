"""A SQLite file that somebody is writing, was writing when he was killed, or has put in a bad place."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded import add_points, make_sqlite

from labtrack.errors import BadInputError, Exit, LabtrackError
from labtrack.stores import MetricPoint, database, filters, open_store, sqlite, sqliteruns
from labtrack.stores.database import Database
from labtrack.stores.mounts import Mount, mount_of
from labtrack.stores.sqlite import PAGE

WRITER = """
import sqlite3, sys, time
path, run, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
db = sqlite3.connect(path, timeout=20, isolation_level=None)
for step in range(count):
    db.execute("BEGIN IMMEDIATE")
    for key in ("a", "b"):
        db.execute("INSERT INTO metrics VALUES (?, ?, ?, ?, ?, 0)".replace("VALUES", COLUMNS + " VALUES"),
                   [key, step / 4, 1700000000000 + step, step, run])
    db.execute("COMMIT")
print("done", flush=True)
""".replace("COLUMNS", '"(key, value, timestamp, step, run_uuid, is_nan)"')

KILLED = """
import os, signal, sqlite3, sys
path, run, wal = sys.argv[1], sys.argv[2], sys.argv[3] == "wal"
db = sqlite3.connect(path, isolation_level=None)
db.execute("PRAGMA cache_size = 2")  # so that the pages reach the file before the commit
db.execute("BEGIN IMMEDIATE")
rows = [["x", i / 3, 1700000000000 + i, i, run] for i in range(5000)]
db.executemany("INSERT INTO metrics (key, value, timestamp, step, run_uuid, is_nan) VALUES (?, ?, ?, ?, ?, 0)", rows)
if wal:
    db.execute("COMMIT")
os.kill(os.getpid(), signal.SIGKILL)
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)


def beside(path: Path) -> dict[str, tuple[int, int]]:
    return {one.name: (one.stat().st_size, one.stat().st_mtime_ns) for one in path.parent.iterdir() if one.is_file()}


@pytest.fixture
def store_file(tmp_path: Path) -> Path:
    return tmp_path / "job" / "mlflow.db"


@pytest.fixture
def run_id(store_file: Path) -> str:
    store_file.parent.mkdir()
    return make_sqlite(store_file)[0]


class TestWhileAJobWrites:
    @pytest.mark.parametrize("wal", [False, True])
    def test_the_reader_follows_and_the_writer_is_not_held_up(self, tmp_path: Path, wal: bool) -> None:
        path = tmp_path / "mlflow.db"
        (run,) = make_sqlite(path, wal=wal)
        alone = time.monotonic()
        python(WRITER, path, run, 400).wait(60)
        alone = time.monotonic() - alone
        with sqlite3.connect(path) as db:
            db.execute("DELETE FROM metrics")
        db.close()

        started = time.monotonic()
        writer = python(WRITER, path, run, 400)
        seen: dict[str, int] = {"a": 0, "b": 0}
        reads = 0
        with open_store(path) as store:
            while writer.poll() is None or reads == 0:
                points = list(store.points(run, seen))
                for key, had in seen.items():
                    new = [point.step for point in points if point.key == key]
                    assert new == list(range(had, had + len(new))), "no point twice, none left out"
                    seen[key] += len(new)
                reads += 1
            took = time.monotonic() - started
            assert writer.stdout and writer.stdout.read() == "done\n"
            for point in store.points(run, seen):
                seen[point.key] += 1
            assert seen == {"a": 400, "b": 400} == store.metric_keys(run)
        assert reads > 5
        assert took < 10 * alone + 5

    def test_points_that_were_handed_out_hold_no_lock(self, store_file: Path, run_id: str) -> None:
        add_points(store_file, run_id, [("a", 1.0, 1, step) for step in range(PAGE + 10)])
        with open_store(store_file) as store:
            points = store.points(run_id)
            next(points)
            with sqlite3.connect(store_file, timeout=0) as db:
                db.execute("BEGIN EXCLUSIVE")
                db.execute("UPDATE runs SET status = 'FINISHED'")
            db.close()
            assert len(list(points)) == PAGE + 9
            assert store.run(run_id).status == "FINISHED"

    def test_a_file_that_stays_locked_is_named(self, store_file: Path, run_id: str) -> None:
        db = sqlite3.connect(store_file, isolation_level=None)
        db.execute("BEGIN EXCLUSIVE")
        # the time that SQLite itself waits is 5 s
        found = Database(store_file, patience=0.1)
        with pytest.raises(LabtrackError, match="locked by another program") as raised:
            found.rows("SELECT 1 FROM runs")
        assert raised.value.code == Exit.LOCKED and "fuser" in raised.value.hint
        db.close()


class TestKilledWriter:
    """`kill -9` in the middle of a transaction."""

    def killed(self, path: Path, run: str, mode: str = "rollback") -> None:
        writer = python(KILLED, path, run, mode)
        assert writer.wait(60) == -signal.SIGKILL

    def test_what_was_not_committed_is_not_read_and_the_journal_stays(self, store_file: Path, run_id: str) -> None:
        add_points(store_file, run_id, [("a", 1.0, 1, 1)])
        self.killed(store_file, run_id)
        assert store_file.with_name("mlflow.db-journal").stat().st_size > 0
        before = beside(store_file)
        with open_store(store_file) as store:
            assert list(store.points(run_id)) == [MetricPoint("a", 1.0, 1, 1)]
            assert store.metric_keys(run_id) == {"a": 1}
        assert beside(store_file) == before, "to undo it is the job's business, not the reader's"

    def test_no_room_for_the_copy(self, store_file: Path, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.killed(store_file, run_id)
        usage = shutil.disk_usage(store_file.parent)._replace(free=1000)
        monkeypatch.setattr(database.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(LabtrackError, match="was killed in the middle") as raised:
            open_store(store_file).metric_keys(run_id)
        assert "TMPDIR" in raised.value.hint

    def test_the_copy_goes_with_the_store(self, store_file: Path, run_id: str, monkeypatch, tmp_path: Path) -> None:
        self.killed(store_file, run_id)
        (tmp_path / "copies").mkdir()
        monkeypatch.setattr(database.tempfile, "tempdir", str(tmp_path / "copies"))
        with open_store(store_file) as store:
            store.run(run_id)
            assert list((tmp_path / "copies").iterdir())
        assert not list((tmp_path / "copies").iterdir())

    def test_a_job_that_comes_back_is_followed(self, store_file: Path, run_id: str) -> None:
        """Slurm requeues it: what was read from the copy must not be all that is ever read."""
        self.killed(store_file, run_id)
        with open_store(store_file) as store:
            assert store.metric_keys(run_id) == {}
            add_points(store_file, run_id, [("a", 1.0, 1, 1)])
            assert store.metric_keys(run_id) == {"a": 1}
            add_points(store_file, run_id, [("a", 1.0, 1, 2)])
            assert store.metric_keys(run_id) == {"a": 2}

    @pytest.mark.parametrize("lost", [(), ("-shm",)])
    def test_a_log_that_nobody_put_into_the_file(self, tmp_path: Path, lost: tuple[str, ...]) -> None:
        path = tmp_path / "mlflow.db"
        (run,) = make_sqlite(path, wal=True)
        self.killed(path, run, "wal")
        for suffix in lost:  # as `rsync mlflow.db mlflow.db-wal` leaves it
            path.with_name(path.name + suffix).unlink()
        before = beside(path)
        with open_store(path) as store:
            assert store.metric_keys(run) == {"x": 5000}
        assert beside(path) == before


class TestWal:
    def test_reading_makes_no_files(self, tmp_path: Path) -> None:
        path = tmp_path / "mlflow.db"
        (run,) = make_sqlite(path, wal=True)
        before = beside(path)
        assert before.keys() == {"mlflow.db"}
        with open_store(path) as store:
            assert store.run(run).name == "run 0"
            assert beside(path) == before

    def test_a_writer_that_comes_later_is_seen(self, tmp_path: Path) -> None:
        path = tmp_path / "mlflow.db"
        (run,) = make_sqlite(path, wal=True)
        with open_store(path) as store:
            assert store.metric_keys(run) == {}
            db = sqlite3.connect(path)
            db.execute(
                "INSERT INTO metrics (key, value, timestamp, step, run_uuid, is_nan) VALUES ('a',1,1,1,?,0)", [run]
            )
            db.commit()
            assert store.metric_keys(run) == {"a": 1}
            db.close()
            assert store.metric_keys(run) == {"a": 1}

    @pytest.mark.parametrize(
        ("kind", "named"), [("lustre", True), ("nfs4", True), ("wekafs", True), ("fuse.sshfs", True), ("ext4", False)]
    )
    def test_the_danger_of_a_network_file_system_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, named: bool
    ) -> None:
        make_sqlite(tmp_path / "mlflow.db", wal=True)
        make_sqlite(tmp_path / "usual.db")
        monkeypatch.setattr(database, "mount_of", lambda _: Mount("far", "/", kind, ()))
        with open_store(tmp_path / "mlflow.db") as store, open_store(tmp_path / "usual.db") as usual:
            said = [str(problem) for problem in store.problems()]
            assert usual.problems() == [], "a rollback journal is not what is dangerous"
        assert bool(said) == named
        if named:
            assert kind in said[0] and "journal_mode=DELETE" in said[0]

    def test_the_file_system_of_a_path(self) -> None:
        assert mount_of(Path("/proc/self/status")).kind == "proc"
        assert mount_of(Path("/proc/../tmp/none")).kind != "proc"


class TestPlace:
    def test_a_file_that_may_only_be_read(self, store_file: Path, run_id: str) -> None:
        add_points(store_file, run_id, [("a", 0.5, 1, 1)])
        store_file.chmod(0o444)
        store_file.parent.chmod(0o555)
        try:
            with open_store(store_file) as store:
                assert list(store.points(run_id)) == [MetricPoint("a", 0.5, 1, 1)]
        finally:
            store_file.parent.chmod(0o755)

    def test_odd_names(self, tmp_path: Path) -> None:
        path = tmp_path / "50% of #1? ü" / "mlflow.db"
        path.parent.mkdir()
        (run,) = make_sqlite(path)
        for where in (str(path), str(path.parent), f"sqlite:///{path}".replace("%", "%25").replace("?", "%3F")):
            with open_store(where) as store:
                assert store.run(run).id == run


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("big") / "mlflow.db"
    (run,) = make_sqlite(path)
    add_points(path, run, [(f"m{i % 10}", i / 7, 1_700_000_000_000 + i, i // 10) for i in range(100_000)])
    return path, run


class TestBig:
    def test_memory_does_not_grow_with_the_run(self, big: tuple[Path, str]) -> None:
        code = textwrap.dedent("""
            import resource, sys
            from labtrack.stores import open_store
            with open_store(sys.argv[1]) as store:
                next(store.points(sys.argv[2]))
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                for _ in store.points(sys.argv[2]):
                    pass
                print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        """)
        grown = subprocess.run(
            [sys.executable, "-c", code, *map(str, big)], check=True, capture_output=True, text=True, timeout=60
        ).stdout
        # 100,000 points are 20 MB as objects; a page of 20,000 is in memory already
        assert int(grown) < 5_000, "kB"

    def test_it_is_read_with_little_memory_at_all(self, big: tuple[Path, str]) -> None:
        path, run = big
        code = (
            "import sys; from labtrack.stores import open_store\n"
            "with open_store(sys.argv[1]) as store: print(sum(1 for _ in store.points(sys.argv[2])))"
        )

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (300_000_000, 300_000_000))

        done = subprocess.run(
            [sys.executable, "-c", code, path, run],
            preexec_fn=limit,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout == "100000\n", done.stderr


POINTS = st.lists(
    st.tuples(
        st.sampled_from(["loss", "val/loss", "größe", "a b"]),
        st.floats(allow_nan=False),
        st.integers(0, 2**53),
        st.integers(-(2**62), 2**62),
    ),
    unique=True,
    max_size=30,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(points=POINTS, at=st.integers(0, 30))
def test_whatever_is_written_is_read_in_its_order(
    tmp_path: Path, points: list[tuple[str, float, int, int]], at: int
) -> None:
    path = tmp_path / "mlflow.db"
    path.unlink(missing_ok=True)
    one, other = make_sqlite(path, runs=2)
    add_points(path, other, [("loss", 0.5, 1, 1)])
    add_points(path, one, points[:at])
    with mock.patch.multiple(sqlite, PAGE=4, COUNTED=3), open_store(path) as store:
        first = list(store.points(one))
        seen = store.metric_keys(one)
        add_points(path, one, points[at:])
        rest = list(store.points(one, seen))
        assert store.metric_keys(one) == Counter(point[0] for point in points)
    with open_store(path) as store:
        assert store.metric_keys(one) == Counter(point[0] for point in points)
    assert [tuple(point[:4]) for point in first + rest] == points


def test_an_unknown_run_names_near_ones(store_file: Path, run_id: str) -> None:
    with open_store(store_file) as store:
        with pytest.raises(BadInputError, match="no run") as raised:
            store.run(run_id[:8])
        assert run_id in raised.value.hint
        wrong = run_id[:-1] + ("0" if run_id[-1] != "0" else "1")
        with pytest.raises(BadInputError) as raised:
            store.run(wrong)
        assert run_id in raised.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_file_that_may_not_be_read(store_file: Path, run_id: str) -> None:
    store_file.chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(BadInputError, match="can't be"):
            open_store(store_file)
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("piece", [1, 2, 7, 40_000])
@pytest.mark.parametrize(
    "expression",
    ["params.lr = '0.1'", "tags.stage = 'test'", "params.lr = '0.1' AND tags.stage = 'test'",
     "params.lr = '\ufffd'", "params.lr = '0.1' AND params.lr != '0.2'", "params.none = 'x'"],
)  # fmt: skip
def test_a_filter_finds_the_same_runs_when_the_file_looks_them_up(
    tmp_path: Path, expression: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = make_sqlite(tmp_path / "a.db", runs=6)
    odd: list[tuple[object, object]] = [("lr", "0.1"), ("lr", "0.2"), ("lr", b"0.1"), (b"lr", "0.1"), ("lr", b"\xff")]
    with sqlite3.connect(tmp_path / "a.db") as made:
        for run_id, (key, value) in zip(ids, odd):
            made.execute("INSERT INTO params (run_uuid, key, value) VALUES (?, ?, ?)", [run_id, key, value])
        for run_id in ids[::2]:
            made.execute("INSERT INTO tags (run_uuid, key, value) VALUES (?, 'stage', 'test')", [run_id])
    for statement in ("_HAVING", "_LAST"):
        text = getattr(sqliteruns, statement).replace("40000", str(piece)).replace("39999", str(piece - 1))
        monkeypatch.setattr(sqliteruns, statement, text)
    wanted = filters.parse(expression)
    with open_store(str(tmp_path / "a.db")) as store:
        looked_up = [run.id for run in store.runs(having=filters.having(wanted)) if wanted(store, run)]
        every = [run.id for run in store.runs() if wanted(store, run)]
    assert looked_up == every
    assert bool(every) == ("none" not in expression)
