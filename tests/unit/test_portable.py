"""Runs in one file: what goes in comes out, and a file that means harm is refused."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recorded import KINDS, VERSIONS, add_points, kept, make_files, make_sqlite

from labtrack import portable
from labtrack.cli import cli
from labtrack.errors import BadInputError, LabtrackError
from labtrack.stores import Run, Store, open_store
from labtrack.stores import portable as packed

EACH = pytest.mark.parametrize(("version", "kind"), [(version, kind) for version in VERSIONS for kind in KINDS])


def parent(store: Store) -> Run:
    return next(run for run in store.runs() if run.name == "parent")


def everything(store: Store, run_ids: list[str]) -> dict[str, Any]:
    runs = [store.run(run_id) for run_id in run_ids]
    experiments = {run.experiment_id for run in runs}
    models = [one for one in store.logged_models() if one.experiment_id in experiments]
    return {
        "identity": store.identity,
        "experiments": [one for one in store.experiments(deleted=True) if one.id in experiments],
        "runs": [(run, sorted(map(repr, store.points(run.id))), store.metric_keys(run.id)) for run in runs],
        "models": [(model, list(store.model_points(model.id))) for model in models],
        "registered": store.registered_models(),
        "files": [
            (owner.id, file.path, file.size, store.open_artifact(owner, file.path).read())
            for owner in (*runs, *models)
            for file in store.artifacts(owner)
        ],
    }


@EACH
def test_what_goes_in_comes_out(version: str, kind: str, tmp_path: Path) -> None:
    with open_store(kept(version) / KINDS[kind]) as store:
        done = portable.export(store, [parent(store).id], tmp_path / "runs.zip", children=True)
        ids = [run.id for run in store.runs() if run.name != "gone"]
        expected = everything(store, ids)
    assert (done.runs, done.artifacts, done.problems) == (5, 4 if version.startswith("3.") else 3, ())
    with open_store(tmp_path / "runs.zip") as store:
        assert sorted(run.id for run in store.runs()) == sorted(ids)
        assert everything(store, ids) == expected
        assert store.problems() == []


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    with open_store(kept("3.17.2") / KINDS["sqlite"]) as store:
        for name in ("a.zip", "b.zip"):
            portable.export(store, [parent(store).id], tmp_path / name)
            digests.add(hashlib.sha256((tmp_path / name).read_bytes()).digest())
    assert len(digests) == 1


def test_an_export_of_an_export_is_the_same(tmp_path: Path) -> None:
    with open_store(kept("3.17.2") / KINDS["sqlite"]) as store:
        run = parent(store).id
        portable.export(store, [run], tmp_path / "a.zip")
    with open_store(tmp_path / "a.zip") as store:
        portable.export(store, [run], tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_unpacked_by_hand_it_is_a_store_too(tmp_path: Path) -> None:
    with open_store(kept("2.22.0") / KINDS["files"]) as store:
        run = parent(store).id
        portable.export(store, [run], tmp_path / "runs.zip")
        expected = everything(store, [run])
    with zipfile.ZipFile(tmp_path / "runs.zip") as file:
        file.extractall(tmp_path / "unpacked")
    with open_store(tmp_path / "unpacked") as store:
        assert everything(store, [run])["files"] == expected["files"]
        assert store.identity == expected["identity"]


def test_several_readers_unpack_once_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(packed.tempfile, "tempdir", str(tmp_path / "tmp"))
    with open_store(kept("3.17.2") / KINDS["sqlite"]) as store:
        portable.export(store, [parent(store).id], tmp_path / "runs.zip")
    with open_store(tmp_path / "runs.zip") as one:
        with open_store(tmp_path / "runs.zip") as other:
            assert list(one.runs()) == list(other.runs())
            assert len(list((tmp_path / "tmp").iterdir())) == 1
        assert len(list(one.runs())) == 1
        one.close()
        one.close()
    assert not list((tmp_path / "tmp").iterdir())


VALUES = st.floats().map(lambda value: value + 0.0)  # SQLite, and so MLflow, knows no -0.0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    params=st.dictionaries(st.text("abcü/. -", min_size=1, max_size=8), st.text(max_size=30), max_size=5),
    points=st.lists(st.tuples(st.sampled_from("ab"), VALUES, st.integers(0, 2**60), st.integers(-(2**60), 2**60))),
    files=st.dictionaries(st.sampled_from(["a", "b c", "ü", "x y.txt"]), st.binary(max_size=200), max_size=3),
)
def test_any_run(tmp_path: Path, params: dict[str, str], points: list[Any], files: dict[str, bytes]) -> None:
    for old in tmp_path.iterdir():
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    (run,) = make_files(tmp_path / "mlruns")
    folder = tmp_path / "mlruns" / "0" / run
    for number, (_, value) in enumerate(params.items()):
        (folder / "params" / f"p{number}").write_bytes(value.encode())
    for key, value, time, step in points:
        with (folder / "metrics" / key).open("a") as file:
            file.write(f"{time} {value} {step}\n")
    for name, data in files.items():
        (folder / "artifacts" / name).write_bytes(data)
    with open_store(tmp_path / "mlruns") as store:
        portable.export(store, [run], tmp_path / "runs.zip")
        expected = everything(store, [run])
    with open_store(tmp_path / "runs.zip") as store:
        assert everything(store, [run]) == expected


class TestBadInput:
    @pytest.fixture
    def store_file(self, tmp_path: Path) -> Path:
        make_sqlite(tmp_path / "mlflow.db")
        return tmp_path / "mlflow.db"

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        with open_store(kept("3.17.2") / KINDS["sqlite"]) as store:
            return portable.export(store, [parent(store).id], tmp_path / "runs.zip").file

    def test_an_unknown_run_makes_no_file(self, store_file: Path, tmp_path: Path) -> None:
        before = sorted(tmp_path.iterdir())
        with open_store(store_file) as store, pytest.raises(BadInputError, match="no run"):
            portable.export(store, ["nope"], tmp_path / "runs.zip")
        assert sorted(tmp_path.iterdir()) == before

    def test_a_file_that_is_there(self, file: Path) -> None:
        before = file.read_bytes()
        with open_store(kept("2.9.2") / KINDS["sqlite"]) as store:
            with pytest.raises(BadInputError, match="is there already"):
                portable.export(store, [parent(store).id], file)
            assert file.read_bytes() == before
            portable.export(store, [parent(store).id], file, force=True)
        assert file.read_bytes() != before

    def test_a_failure_in_the_middle_leaves_the_old_file(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before, beside = file.read_bytes(), sorted(file.parent.iterdir())

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(portable, "_pack", full)
        with open_store(kept("2.9.2") / KINDS["sqlite"]) as store, pytest.raises(LabtrackError, match="disk is full"):
            portable.export(store, [parent(store).id], file, force=True)
        assert file.read_bytes() == before and sorted(file.parent.iterdir()) == beside

    @pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
    def test_cut_off(self, file: Path, keep: float) -> None:
        data = file.read_bytes()
        file.write_bytes(data[: int(len(data) * keep)])
        with pytest.raises(BadInputError, match="damaged or not whole"):
            open_store(file)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_a_flipped_byte_is_noticed_or_harmless(self, data: st.DataObject, tmp_path: Path) -> None:
        whole = _exported()
        at = data.draw(st.integers(0, len(whole) - 1))
        broken = bytearray(whole)
        broken[at] ^= data.draw(st.integers(1, 255))
        path = tmp_path / "broken.zip"
        path.write_bytes(broken)
        try:
            with open_store(path) as store:
                for run in store.runs():
                    list(store.points(run.id))
                    for file in store.artifacts(run):
                        with store.open_artifact(run, file.path) as artifact:
                            artifact.read()
        except LabtrackError:
            pass

    def test_a_directory_that_begins_before_the_file_is_damage(self, tmp_path: Path) -> None:
        whole = bytearray(_exported())
        offset = whole.rindex(b"PK\5\6") + 16  # of the directory, in the last record
        whole[offset : offset + 4] = struct.pack("<I", struct.unpack_from("<I", whole, offset)[0] + len(whole))
        path = tmp_path / "broken.zip"
        path.write_bytes(whole)
        with pytest.raises(LabtrackError, match="damaged"):
            open_store(path)

    @pytest.mark.parametrize(
        "name", ["../evil", "/etc/evil", "artifacts/x/artifacts/../../evil", "a/..\\b", "C:/x/../y"]
    )
    def test_names_that_lead_out(self, file: Path, name: str) -> None:
        with zipfile.ZipFile(file, "a") as more:
            more.writestr(name, "x")
        with pytest.raises(BadInputError, match="no export has"):
            open_store(file)

    def test_the_same_name_twice(self, file: Path) -> None:
        with zipfile.ZipFile(file, "a") as more, pytest.warns(UserWarning, match="Duplicate"):
            more.writestr("mlflow.db", "x")
        with pytest.raises(BadInputError, match="no export has"):
            open_store(file)

    def test_a_bomb(self, file: Path) -> None:
        with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as more:
            more.writestr("artifacts/x/artifacts/zeros", b"\0" * 1_000_000)
        data = bytearray(file.read_bytes())
        at = data.rindex(b"PK\x01\x02")
        struct.pack_into("<L", data, at + 24, 0xFFFFFFF0)  # its unpacked size, as the directory has it
        file.write_bytes(data)
        with pytest.raises(BadInputError, match="unpacks to 4 GB"):
            open_store(file)

    def test_another_zip(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "thesis.zip", "w") as file:
            file.writestr("a.txt", "a")
        with pytest.raises(BadInputError, match="not one of `labtrack export`"):
            open_store(tmp_path / "thesis.zip")

    def test_a_database_that_would_keep_a_reader_busy(self, file: Path, tmp_path: Path) -> None:
        with zipfile.ZipFile(file) as whole:
            (tmp_path / "evil.db").write_bytes(whole.read("mlflow.db"))
        with sqlite3.connect(tmp_path / "evil.db") as db:
            db.execute("DROP TABLE tags")
            db.execute(
                "CREATE VIEW tags AS WITH RECURSIVE x(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM x) "
                "SELECT 'k' AS key, i AS value, '' AS run_uuid FROM x"
            )
        db.close()
        with zipfile.ZipFile(tmp_path / "evil.zip", "w") as evil:
            evil.write(tmp_path / "evil.db", "mlflow.db")
        with pytest.raises(BadInputError, match="not one of `labtrack export`"):
            open_store(tmp_path / "evil.zip")

    def test_a_zip_whose_database_is_none(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
            file.writestr("mlflow.db", "no database")
        with pytest.raises(BadInputError, match="is not a SQLite file"):
            open_store(tmp_path / "x.zip")


def _exported() -> bytes:
    place = kept("3.17.2") / "whole.zip"
    if not place.exists():
        with open_store(kept("3.17.2") / KINDS["sqlite"]) as store:
            portable.export(store, [parent(store).id], place)
    return place.read_bytes()


class TestCommand:
    def test_export(self, tmp_path: Path) -> None:
        (run,) = make_sqlite(tmp_path / "mlflow.db")
        add_points(tmp_path / "mlflow.db", run, [("loss", 0.5, 1, 1)])
        done = CliRunner().invoke(cli, ["export", run, "-s", str(tmp_path), "-o", str(tmp_path / "x.zip")])
        assert done.exit_code == 0, done.output
        assert "1 runs, 1 points, 0 artifacts" in done.output
        with open_store(tmp_path / "x.zip") as store:
            assert [point.value for point in store.points(run)] == [0.5]

    def test_what_is_left_out_is_named(self, tmp_path: Path) -> None:
        (run,) = make_files(tmp_path / "mlruns")
        (tmp_path / "mlruns" / "0" / run / "artifacts" / "gone").symlink_to("nowhere")
        done = CliRunner().invoke(cli, ["export", run, "-s", str(tmp_path), "-o", str(tmp_path / "x.zip")])
        assert done.exit_code == 1 and "left out:" in done.output and "gone" in done.output

    def test_import_wants_what_export_wrote(self, tmp_path: Path) -> None:
        make_sqlite(tmp_path / "mlflow.db")
        command = [sys.executable, "-m", "labtrack", "import", tmp_path / "mlflow.db", "-d", "http://127.0.0.1:1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert f"labtrack sync -s {tmp_path / 'mlflow.db'}" in done.stderr
