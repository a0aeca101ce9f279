"""An `mlruns` folder that is being written, was cut off, was moved, or is damaged in one place."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded import KINDS, make_sqlite, unpack

from labtrack.errors import BadInputError, LabtrackError
from labtrack.stores import MetricPoint, Run, Store, open_store
from labtrack.stores.plainfiles import MetricFile, parse

POINTS = st.lists(
    st.tuples(st.integers(0, 2_000_000_000_000), st.floats(allow_nan=False), st.integers(-(2**40), 2**40)),
    min_size=1,
    max_size=12,
)


def metric(root: Path, run: str, content: bytes, key: str = "loss") -> Path:
    path = root / "0" / run / "metrics" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def points(root: Path, run: str) -> list[tuple[float, int, int]]:
    with open_store(root) as store:
        found = [(point.value, point.timestamp, point.step) for point in store.points(run)]
        assert sum(store.metric_keys(run).values()) == len(found)
        return found


class TestTornLines:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(written=POINTS, data=st.data())
    def test_a_file_cut_anywhere_never_gives_a_wrong_point(
        self, written: list[tuple[int, float, int]], data: st.DataObject, tmp_path: Path
    ) -> None:
        whole = b"".join(f"{time} {value} {step}\n".encode() for time, value, step in written)
        cut = data.draw(st.integers(0, len(whole)))
        path = tmp_path / "loss"
        path.write_bytes(whole[:cut])
        file = MetricFile(path)
        found = [(line.timestamp, line.value, line.step) for line in file.lines()]
        assert found == written[: whole[:cut].count(b"\n")]
        assert file.count() == len(found)
        with path.open("ab") as rest:  # the job goes on
            rest.write(whole[cut:])
        assert [(line.timestamp, line.value, line.step) for line in file.lines()] == written
        assert file.count() == len(written)

    @pytest.mark.parametrize("torn", [b"3000 0.2", b"3000 0.25 1", b"3000", b"3000 ", b"3"])
    def test_the_last_line(self, root: Path, run: str, torn: bytes) -> None:
        metric(root, run, b"1000 0.5 10\n2000 0.4 11\n" + torn)
        assert points(root, run) == [(0.5, 1000, 10), (0.4, 2000, 11)]

    @settings(max_examples=60, deadline=None)
    @given(step=st.integers(0, 99_999), value=st.floats(0, 1e6, allow_nan=False), data=st.data())
    def test_a_killed_job_whose_run_is_resumed(self, step: int, value: float, data: st.DataObject) -> None:
        """The cut line and the first one of the next job become one, which must not be taken for a point."""
        first = f"1700000000000 {value} {step}".encode()
        cut = data.draw(st.integers(1, len(first)))
        second = f"1700000060000 {value} {step + 1}\n".encode()
        place = Path(data.draw(st.just("/dev/shm")), f"labtrack-{os.getpid()}-torn")
        place.write_bytes(b"1600000000000 1.0 0\n" + first[:cut] + second + second)
        try:
            found = [(line.timestamp, line.step) for line in MetricFile(place).lines()]
        finally:
            place.unlink()
        assert found[0] == (1_600_000_000_000, 0) and found[-1] == (1_700_000_060_000, step + 1)
        assert len(found) == 2, "the line that is two"

    def test_a_damaged_line_in_the_middle_is_named(self, root: Path, run: str) -> None:
        path = metric(root, run, b"1000 0.5 10\n" + b"\0" * 20 + b"\n2000 0.4\n3000 0.3 12\n")
        with open_store(root) as store:
            assert [point.step for point in store.points(run)] == [10, 12]
            (problem,) = store.problems()
        assert problem.place == str(path) and "2 damaged line(s) of the metric loss" in problem.what
        assert problem.run_id == run

    def test_lines_of_the_first_versions_have_no_step(self, root: Path, run: str) -> None:
        metric(root, run, b"1000 0.5\n2000 0.4\n")
        assert points(root, run) == [(0.5, 1000, 0), (0.4, 2000, 0)]

    def test_what_follows_the_step(self) -> None:
        line = parse(b"1 0.5 40 era5 land d1gest\n")
        assert line and (line.step, line.rest) == (40, ("era5", "land", "d1gest"))
        assert parse(b"1 0.5 40\r\n") == (1, 0.5, 40, ())
        for bad in (b"1 0.5 4_0\n", b"1 x 4\n", b"1 0.5 4.5 era5 d1\n", b" 1 0.5 4\n", b"1 0.5\n", b"\n"):
            assert parse(bad) is None, bad


class TestGrowing:
    def test_points_are_counted_on_from_where_the_last_count_ended(self, root: Path, run: str) -> None:
        path = metric(root, run, b"")
        with open_store(root) as store:
            assert store.metric_keys(run) == {}
            lines = [f"{1_700_000_000_000 + i} {i / 3} {i}\n" for i in range(300)]
            with path.open("a") as file:
                for count, line in enumerate(lines):
                    file.write(line[: len(line) // 2])
                    file.flush()
                    if count % 50 == 0:
                        assert store.metric_keys(run).get("loss", 0) == count
                    file.write(line[len(line) // 2 :])
            assert store.metric_keys(run) == {"loss": 300}
            assert [point.step for point in store.points(run, {"loss": 298})] == [298, 299]
            path.write_text(lines[0])
            assert store.metric_keys(run) == {"loss": 1}

    def test_a_tag_in_the_moment_in_which_it_is_written_anew(self, root: Path, run: str) -> None:
        tag = root / "0" / run / "tags" / "state"
        tag.write_text("")
        with open_store(root) as store:
            assert store.run(run).tags["state"] == ""
            os.utime(tag, (time.time() - 60, time.time() - 60))
            assert store.run(run).tags["state"] == ""
            tag.unlink()
            assert "state" not in store.run(run).tags

    def test_keys_that_are_paths(self, root: Path, run: str) -> None:
        metric(root, run, b"1 0.5 1\n", "val/deep/loss")
        metric(root, run, b"1 0.5 1\n", "größe")
        with open_store(root) as store:
            assert store.metric_keys(run) == {"größe": 1, "val/deep/loss": 1}
            assert list(store.points(run, {"größe": 1})) == [MetricPoint("val/deep/loss", 0.5, 1, 1)]


class TestDamage:
    @pytest.mark.parametrize(
        ("meta", "said"),
        [
            (None, "missing"),
            ("", "empty"),
            ("{{{", "damaged"),
            ("- a\n", "not a list of keys"),
            ("\udce4: 1\n", "damaged"),
        ],
    )
    def test_one_broken_run_loses_no_other(self, root: Path, run: str, meta: str | None, said: str) -> None:
        path = root / "0" / run / "meta.yaml"
        if meta is None:
            path.unlink()
        else:
            path.write_text(meta.replace("RUN", run), errors="surrogateescape")
        with open_store(root) as store:
            assert [one.name for one in store.runs()] == ["run 1", "run 2"]
            (problem,) = store.problems()
            assert problem.run_id == run and run in problem.place and said in problem.what
            with pytest.raises(BadInputError):
                store.run(run)

    def test_an_experiment_without_its_file_keeps_its_runs(self, root: Path, run: str) -> None:
        (root / "0" / "meta.yaml").unlink()
        with open_store(root) as store:
            assert [one.name for one in store.experiments()] == ["unnamed experiment 0"]
            assert len(list(store.runs())) == 3
            assert "name is lost" in str(store.problems()[0])

    def test_a_time_that_is_none_loses_only_itself(self, root: Path, run: str) -> None:
        path = root / "0" / run / "meta.yaml"
        path.write_text(path.read_text().replace("start_time: 17", "start_time: x17"))
        with open_store(root) as store:
            found = {one.id: one.start_time for one in store.runs()}
            assert len(found) == 3 and found[run] is None
            (problem,) = store.problems()
        assert problem.run_id == run and "start_time 'x17" in problem.what

    def test_a_run_whose_dataset_is_gone_is_named(self, tmp_path: Path) -> None:
        root = unpack("2.22.0", tmp_path) / KINDS["files"]
        with open_store(root) as store:
            parent = next(run for run in store.runs() if run.name == "parent")
            assert parent.inputs
        shutil.rmtree(root / parent.experiment_id / "datasets")
        with open_store(root) as store:
            assert store.run(parent.id).inputs == () and parent.name in [run.name for run in store.runs()]
            assert {problem.run_id for problem in store.problems()} == {parent.id}

    def test_a_copy_of_a_run_beside_it_is_not_a_second_run(self, root: Path, run: str) -> None:
        metric(root, run, b"1 0.5 1\n")
        shutil.copytree(root / "0" / run, root / "0" / f"{run}.bak")
        with open_store(root) as store:
            assert len(list(store.runs())) == 3
            (problem,) = store.problems()
            assert "copy of the run" in problem.what and not problem.damage
        metric(root, f"{run}.bak", b"1 0.5 1\n2 0.4 2\n")
        with open_store(root) as store:
            assert len(list(store.runs())) == 3
            (problem,) = store.problems()
        assert problem.run_id == run and "metrics/loss is only here" in problem.what and problem.damage

    def test_a_run_in_a_folder_of_another_name_only(self, root: Path, run: str) -> None:
        (root / "0" / run).rename(root / "0" / "best")
        with open_store(root) as store:
            assert len(list(store.runs())) == 2
            (problem,) = store.problems()
        assert problem.run_id == run and "rename the folder" in problem.what

    def test_an_unknown_run(self, root: Path, run: str) -> None:
        with open_store(root) as store:
            for wrong in (run[:6], run.replace(run[5], "-")):
                with pytest.raises(BadInputError) as raised:
                    store.run(wrong)
                assert run in raised.value.hint
            for wrong in ("", "..", "../0", "models"):
                with pytest.raises(BadInputError):
                    store.run(wrong)


def change(database: Path, sql: str, *values: str) -> None:
    with sqlite3.connect(database) as db:
        db.execute(sql, values)
    db.close()


def artifact(store: Store, run: Run, path: str) -> bytes:
    with store.open_artifact(run, path) as file:
        return file.read()


class TestArtifactsThatMoved:
    """The recorded places are absolute, and of another machine."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_store_was_copied_with_them(self, tmp_path: Path, kind: str) -> None:
        place = (unpack("3.17.2", tmp_path) / KINDS[kind]).parent.rename(tmp_path / "laptop")
        with open_store(place) as store:
            parent = next(run for run in store.runs() if run.name == "parent")
            assert [one.path for one in store.artifacts(parent)] == [
                "plots/fig 1.svg",
                "plots/täglich/empty",
                "readme.txt",
            ]
            assert artifact(store, parent, "readme.txt") == b"hello\n"
            assert store.local_path(parent, "readme.txt") == next(place.rglob("readme.txt"))
            assert store.problems() == []

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_store_was_copied_without_them(self, tmp_path: Path, kind: str) -> None:
        place = (unpack("3.17.2", tmp_path) / KINDS[kind]).parent
        shutil.rmtree(place / "artifacts")
        with open_store((place / Path(KINDS[kind]).name).rename(tmp_path / "elsewhere.db")) as store:
            runs = list(store.runs())
            assert [path for run in runs for path in store.artifacts(run)] == []
            problems = store.problems()
        assert {problem.run_id for problem in problems} == {run.id for run in runs}
        for problem in problems:
            assert "artifacts were recorded there" in problem.what and problem.place.endswith("artifacts/climate")

    @pytest.mark.parametrize("name", ["mlruns", "mlartifacts", "artifacts"])
    def test_a_servers_own_artifact_addresses(self, tmp_path: Path, name: str) -> None:
        (run,) = make_sqlite(tmp_path / "mlflow.db")
        kept = tmp_path / name / "0" / run / "artifacts"
        kept.mkdir(parents=True)
        (kept / "a.txt").write_text("a")
        change(tmp_path / "mlflow.db", "UPDATE runs SET artifact_uri = ?", f"mlflow-artifacts:/0/{run}/artifacts")
        with open_store(tmp_path) as store:
            assert artifact(store, store.run(run), "a.txt") == b"a"

    def test_the_copys_own_come_before_the_originals(self, root: Path, run: str, tmp_path: Path) -> None:
        (root / "0" / run / "artifacts" / "a.txt").write_text("original")
        shutil.copytree(root, tmp_path / "copy")
        (tmp_path / "copy" / "0" / run / "artifacts" / "a.txt").write_text("copy")
        with open_store(tmp_path / "copy") as store:
            assert artifact(store, store.run(run), "a.txt") == b"copy"

    def test_no_artifacts_are_no_problem(self, root: Path, run: str) -> None:
        with open_store(root) as store:
            assert list(store.artifacts(store.run(run))) == []
            assert store.problems() == []

    def test_a_recorded_place_that_is_not_the_runs_own(self, tmp_path: Path) -> None:
        """Somebody else's database must not make the reader's own files into artifacts."""
        (tmp_path / ".ssh").mkdir()
        (tmp_path / ".ssh" / "id_ed25519").write_text("secret")
        (run,) = make_sqlite(tmp_path / "mlflow.db")
        change(tmp_path / "mlflow.db", "UPDATE runs SET artifact_uri = ?", f"{tmp_path}/.ssh")
        with open_store(tmp_path / "mlflow.db") as store:
            assert list(store.artifacts(store.run(run))) == []
            assert store.local_path(store.run(run), "id_ed25519") is None
            assert "not a folder of that run" in str(store.problems()[0])

    def test_artifacts_in_a_bucket_are_named(self, tmp_path: Path) -> None:
        (run,) = make_sqlite(tmp_path / "mlflow.db")
        change(tmp_path / "mlflow.db", "UPDATE runs SET artifact_uri = ?", f"s3://bucket/0/{run}/artifacts")
        with open_store(tmp_path) as store:
            assert list(store.artifacts(store.run(run))) == []
            assert "s3://" in str(store.problems()[0])


class TestOddArtifacts:
    def test_links_and_pipes(self, root: Path, run: str, tmp_path: Path) -> None:
        folder = root / "0" / run / "artifacts"
        (folder / "epoch1").mkdir()
        (folder / "epoch1" / "w.bin").write_bytes(b"w")
        (folder / "latest").symlink_to("epoch1")
        (folder / "best.bin").symlink_to("epoch1/w.bin")
        (tmp_path / "secret").write_text("mine")
        (folder / "out").symlink_to(tmp_path / "secret")
        (folder / "out_folder").symlink_to(tmp_path)
        (folder / "gone").symlink_to("nowhere")
        os.mkfifo(folder / "pipe")
        with open_store(root) as store:
            one = store.run(run)
            assert [found.path for found in store.artifacts(one)] == ["best.bin", "epoch1/w.bin"]
            said = "\n".join(map(str, store.problems()))
            for name in ("out ", "out_folder", "gone", "pipe"):
                assert f"the artifact {name}" in said
            for path in ("out", "../meta.yaml", "/etc/passwd", "out_folder/secret"):
                assert store.local_path(one, path) is None
                with pytest.raises(LabtrackError):
                    store.open_artifact(one, path)
            with pytest.raises(LabtrackError, match=r"nothing\.txt"):
                store.open_artifact(one, "nothing.txt")

    def test_a_name_that_is_not_text(self, root: Path, run: str) -> None:
        folder = os.fsencode(root / "0" / run / "artifacts")
        with open(os.path.join(folder, b"bad\xff.txt"), "wb"):  # noqa: PTH118, PTH123
            pass
        with open_store(root) as store:
            assert list(store.artifacts(store.run(run))) == []
            assert "is not UTF-8" in str(store.problems()[0])


def test_many_points_are_read_with_little_memory(root: Path, run: str) -> None:
    import tracemalloc

    lines = [f"{1_700_000_000_000 + i} {random.random()} {i}\n" for i in range(50_000)]  # noqa: S311
    metric(root, run, "".join(lines).encode())
    with open_store(root) as store:
        assert sum(1 for _ in store.points(run)) == 50_000
        tracemalloc.start()
        assert sum(1 for _ in store.points(run)) == store.metric_keys(run)["loss"]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 3_000_000, "bytes: a chunk of the file, not the run"
