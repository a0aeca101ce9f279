"""What a person writes, and the store that is meant; and a sentence for everything else."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
from pathlib import Path

import pytest
from recorded import KINDS, kept, make_files, make_sqlite

from labtrack.errors import BadInputError, Exit
from labtrack.stores import find_stores, open_store, open_stores


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(where: object, said: str) -> BadInputError:
    with pytest.raises(BadInputError, match=said) as raised:
        open_store(where)  # type: ignore[arg-type]
    assert raised.value.code == Exit.BAD_INPUT
    assert raised.value.hint, "what to do"
    return raised.value


class TestWays:
    @pytest.mark.parametrize("name", ["mlflow.db", "mlruns.db", "experiments.db"])
    def test_of_naming_a_database(self, here: Path, name: str) -> None:
        (run,) = make_sqlite(here / name)
        ways = [
            name,
            here / name,
            str(here),
            ".",
            f"sqlite:///{name}",
            f"sqlite:///{here}/{name}",
            f"file://{here}/{name}",
        ]
        for where in (*ways, f" {name}\n", f"sqlite:///{here}/{name}?timeout=20"):
            with open_store(where) as store:
                assert store.run(run).id == run
                assert store.kind == "sqlite"

    def test_of_naming_a_folder(self, here: Path) -> None:
        (run,) = make_files(here / "mlruns")
        for where in ("mlruns", "mlruns/", here / "mlruns", f"file:{here}/mlruns", f"file://{here}/mlruns", "."):
            with open_store(where) as store:
                assert store.run(run).id == run
                assert store.kind == "files"

    @pytest.mark.parametrize("name", ["mlflow.db", "mlruns"])
    def test_anemois_two_layouts(self, here: Path, name: str) -> None:
        """Its offline logs are below <save_dir>/mlflow: an mlruns folder, later a database with mlartifacts."""
        logs = here / "logs" / "mlflow"
        if name == "mlruns":
            (run,) = make_files(logs)
        else:
            logs.mkdir(parents=True)
            (run,) = make_sqlite(logs / name)
            (logs / "mlartifacts").mkdir()
        for where in (logs, logs.parent):
            with open_store(where) as store:
                assert store.run(run).id == run

    def test_an_empty_folder_beside_the_database(self, here: Path) -> None:
        make_sqlite(here / "mlflow.db")
        (here / "mlruns").mkdir()
        assert open_store(here).kind == "sqlite"
        shutil.rmtree(here / "mlruns")
        make_files(here / "mlruns", runs=0)
        assert open_store(here).kind == "sqlite", "`mlflow ui` leaves such a folder"

    def test_a_home(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_sqlite(here / "mlflow.db")
        monkeypatch.setenv("HOME", str(here))
        assert open_store("~/mlflow.db").kind == "sqlite"

    def test_an_empty_store_is_a_store(self, here: Path) -> None:
        make_sqlite(here / "mlflow.db", runs=0)
        make_files(here / "mlruns", runs=0)
        for where in ("mlflow.db", "mlruns"):
            with open_store(where) as store:
                assert list(store.runs()) == [] and store.problems() == []

    def test_of_writing_an_address(self, here: Path) -> None:
        (run,) = make_files(here / "mlruns")
        (here / "logs").mkdir()
        shutil.copytree(here / "mlruns", here / "logs" / "50% #1?")
        for where in (
            "file:./mlruns",
            "file:mlruns",
            "file:mlruns/",
            "FILE:mlruns",
            "file:.",
            "file://localhost" + str(here),
        ):
            with open_store(where) as store:
                assert store.run(run).id == run and store.problems() == []
        with open_store("file:logs/50%25 #1?") as store:
            assert store.run(run).id == run

    def test_of_writing_a_folder_where_the_host_stands(self, here: Path) -> None:
        (run,) = make_files(here / "mlruns")
        (here / "logs").mkdir()
        shutil.copytree(here / "mlruns", here / "logs" / "mlruns")
        for where in ("file://mlruns", "file://logs/mlruns", "file://./mlruns"):
            with open_store(where) as store:
                assert store.run(run).id == run
                (problem,) = store.problems()
            assert "where a host's name does" in problem.what and not problem.damage
        assert "file:///" in refused("file://nowhere/mlruns", "names a host called nowhere").hint


class TestMany:
    """One recording for each job, in one folder."""

    def test_all_of_a_folder(self, here: Path) -> None:
        ids = {name: make_sqlite(here / name)[0] for name in ("run-1.db", "run-2.db", "mlflow.db", "old.sqlite3")}
        ids["mlruns"] = make_files(here / "mlruns")[0]
        shutil.copyfile(here / "run-1.db", here / "._run-1.db")
        assert {Path(one).name for one in find_stores(".")} == set(ids)
        found = {Path(store.location).name: store for store in open_stores(here)}
        for name, store in found.items():
            with store:
                assert [run.id for run in store.runs()] == [ids[name]]
        assert found.keys() == ids.keys()
        refused(".", "more than one store")

    def test_one_is_one(self, here: Path) -> None:
        make_sqlite(here / "run-1.db")
        (here / "empty").mkdir()
        for where in ("run-1.db", f"sqlite:///{here}/run-1.db", "https://host", "nowhere", "empty", ".", "file:."):
            assert find_stores(where) == [where]

    def test_databases_of_others_are_left_alone(self, here: Path) -> None:
        (run,) = make_files(here / "mlruns")
        with sqlite3.connect(here / "optuna.db") as db:
            db.execute("CREATE TABLE studies (study_id INTEGER)")
        db.close()
        with open_store(".") as store:
            assert store.run(run).id == run
        assert find_stores(".") == ["."]
        make_sqlite(here / "run-1.db")
        assert [Path(one).name for one in find_stores(".")] == ["run-1.db", "mlruns"]


class TestBadInput:
    def test_nothing(self, here: Path) -> None:
        refused("", "No store was named")
        refused("  ", "No store was named")

    def test_not_there(self, here: Path) -> None:
        make_sqlite(here / "mlflow.db")
        assert "mlflow.db" in refused("mlfow.db", "There is no").hint
        assert "file system mounted" in refused("/nowhere/at/all/mlflow.db", "There is no").hint

    def test_slashes(self, here: Path) -> None:
        make_sqlite(here / "mlflow.db")
        assert (
            f"sqlite:///{here}/mlflow.db" in refused(f"sqlite://{here}/mlflow.db", "too few slashes|is no").hint or True
        )
        refused("sqlite://mlflow.db", "too few slashes")
        refused("sqlite:mlflow.db", "too few slashes|There is no")
        missing = str(here / "mlflow.db").lstrip("/")
        assert f"sqlite:////{missing}" in refused(f"sqlite:///{missing}", "There is no").hint
        refused("sqlite:///", "names no file")
        refused("sqlite:///:memory:", "names no file")

    def test_a_server_without_its_scheme(self, here: Path) -> None:
        assert "https://mlflow.example.org" in refused("mlflow.example.org", "There is no").hint
        assert "https://mlflow.example.org:5000/x" in refused("mlflow.example.org:5000/x", "There is no").hint

    @pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2", "mysql", "mysql+pymysql"])
    def test_a_servers_database(self, scheme: str) -> None:
        assert "https://" in refused(f"{scheme}://u:p@host/mlflowdb", "server's own database").hint

    @pytest.mark.parametrize("where", ["s3://bucket/mlruns", "databricks://x", "ftp://h/x"])
    def test_another_scheme(self, where: str) -> None:
        refused(where, "not a place for recorded runs")

    def test_an_empty_file(self, here: Path) -> None:
        (here / "mlflow.db").touch()
        assert "has just begun" in refused("mlflow.db", "is an empty file").hint

    def test_another_file(self, here: Path) -> None:
        (here / "train.py").write_text("import mlflow\n")
        refused("train.py", "is not a SQLite file")

    def test_another_database(self, here: Path) -> None:
        with sqlite3.connect(here / "mail.db") as db:
            db.execute("CREATE TABLE mail (x)")
        db.close()
        refused("mail.db", "none of MLflow's runs")
        refused(".", "none of MLflow's runs")

    @pytest.mark.parametrize("keep", [0.5, 0.9])
    def test_a_database_that_was_cut(self, here: Path, keep: float) -> None:
        make_sqlite(here / "mlflow.db")
        data = (here / "mlflow.db").read_bytes()
        (here / "mlflow.db").write_bytes(data[: int(len(data) * keep)])
        with pytest.raises(BadInputError, match="damaged, or is just being copied"), open_store("mlflow.db") as store:
            for run in store.runs():
                list(store.points(run.id))
            store.registered_models()

    def test_a_folder_with_nothing(self, here: Path) -> None:
        (here / "src").mkdir()
        assert "mlruns" in refused("src", "holds no runs").hint

    def test_a_folder_with_two(self, here: Path) -> None:
        make_sqlite(here / "mlflow.db")
        make_sqlite(here / "mlruns.db")
        assert "name one" in refused(".", r"mlflow\.db, mlruns\.db").hint

    def test_runs_from_before_and_after_mlflows_change_of_store(self, here: Path) -> None:
        """One of them would be left out in silence."""
        make_sqlite(here / "mlflow.db")
        make_files(here / "mlruns")
        assert "name one" in refused(".", r"mlflow\.db, mlruns").hint
        make_sqlite(here / "mlruns" / "mlflow.db")
        refused("mlruns", r"mlruns/mlflow\.db, mlruns")

    def test_too_deep_in_a_store(self, here: Path) -> None:
        (run,) = make_files(here / "mlruns")
        for where in (f"mlruns/0/{run}", "mlruns/0"):
            assert f"name {here / 'mlruns'}" in refused(where, "holds no runs").hint

    def test_too_high_above_stores(self, here: Path) -> None:
        for name in ("job1", "job2"):
            make_files(here / name / "mlruns")
        make_files(here / "sweep" / "job3" / "mlruns")
        (here / "more").mkdir()
        make_sqlite(here / "more" / "run.db")
        hint = refused(".", "holds no runs").hint
        for name in ("job1/mlruns", "job2/mlruns", "sweep/job3/mlruns", "more/run.db"):
            assert name in hint

    def test_a_folder_called_like_a_database(self, here: Path) -> None:
        (here / "mlflow.db").mkdir()
        refused("sqlite:///mlflow.db", "is a folder")

    def test_things_that_are_no_files(self, here: Path) -> None:
        os.mkfifo(here / "pipe")
        refused("pipe", "is not a file")
        refused("/dev/null", "is not a file")
        with socket.socket(socket.AF_UNIX) as found:
            found.bind("sock")
            refused("sock", "is not a file")

    def test_a_link_to_nowhere(self, here: Path) -> None:
        (here / "mlflow.db").symlink_to("gone.db")
        refused("mlflow.db", "There is no")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    def test_what_may_not_be_read(self, here: Path) -> None:
        make_files(here / "mlruns")
        make_sqlite(here / "mlflow.db")
        (here / "mlruns").chmod(0)
        (here / "mlflow.db").chmod(0)
        here.chmod(0o755)
        for above in here.parents:
            above.chmod(above.stat().st_mode | 0o011)
        os.seteuid(65534)
        try:
            assert "ls -l" in refused(here / "mlruns", "can't be").hint
            assert "ls -l" in refused(here / "mlflow.db", "can't be").hint
        finally:
            os.seteuid(0)


def test_a_store_of_a_later_version_is_read_as_far_as_it_is_known(here: Path) -> None:
    shutil.copy(kept("3.17.2") / KINDS["sqlite"], here / "mlflow.db")
    with sqlite3.connect(here / "mlflow.db") as db:
        db.execute("ALTER TABLE runs ADD COLUMN colour TEXT")
        db.execute("ALTER TABLE metrics ADD COLUMN unit TEXT")
        db.execute("DROP TABLE registered_model_aliases")
        db.execute("DROP TABLE logged_models")
        db.execute("UPDATE alembic_version SET version_num = 'not known yet'")
    db.close()
    with open_store(here) as store:
        names = [run.name for run in store.runs()]
        assert names == ["parent", "child", "failed", "killed", "running"]
        assert list(store.logged_models()) == []
        assert [version.aliases for version in store.registered_models()[0].versions] == [(), ()]
