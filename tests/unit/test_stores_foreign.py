"""The same training recorded by six trackers and by MLflow is read as the same."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from foreign_recorded import PLACES, expected, foreign, read, times, trainings
from recorded import add_points, make_sqlite

from labtrack.cli import cli
from labtrack.errors import BadInputError
from labtrack.stores import Run, Store, find_stores, open_store
from labtrack.stores.opening import is_portable

NO_TIMES = ("csvlogger", "sacred", "trackio", "wandb-0.12")  # none, or others: those of writing, or whole seconds


def runs_of(store: Store) -> dict[str, Run]:
    """The runs of the two trainings by their width, as Sacred has numbers for names."""
    found = {run.params.get("width", ""): run for run in store.runs() if "attempt" not in run.params}
    return {training.name: found[str(training.params["width"])] for training in trainings()}


@pytest.mark.parametrize("tracker", PLACES)
def test_same_training(tracker: str) -> None:
    with open_store(foreign(tracker) / PLACES[tracker]) as store:
        runs = runs_of(store)
        for training in trainings():
            run = runs[training.name]
            points = read(store, run.id)
            assert {key: values for key, values in points.items() if key != "result"} == expected(training)
            params = {key: str(value) for key, value in training.params.items()}
            assert {key: value for key, value in run.params.items() if key != "seed"} == params
            assert run.status == "FINISHED"
            assert len(run.id) == 32 and int(run.id, 16) >= 0
            if tracker not in NO_TIMES:
                recorded: dict[str, list[int]] = {}
                for point in store.points(run.id):
                    recorded.setdefault(point.key, []).append(point.timestamp)
                assert recorded == times(training)


def test_same_as_in_mlflow(tmp_path: Path) -> None:
    ids = make_sqlite(tmp_path / "mlflow.db", runs=2)
    for run_id, training in zip(ids, trainings()):
        points = [(one.key, one.value, round(one.time * 1000), one.step) for one in training.points]
        add_points(tmp_path / "mlflow.db", run_id, [one for one in points if one[1] == one[1]])
    with open_store(tmp_path / "mlflow.db") as mlflow, open_store(foreign("tensorboard") / "runs") as other:
        runs = runs_of(other)
        for run_id, training in zip(ids, trainings()):
            there = [one for one in other.points(runs[training.name].id) if one.value == one.value]
            assert sorted(mlflow.points(run_id)) == sorted(there)


@pytest.mark.parametrize("tracker", PLACES)
def test_moved_copied_and_alone_it_is_the_same(tracker: str, tmp_path: Path) -> None:
    place = foreign(tracker) / PLACES[tracker]
    with open_store(place) as store:
        before = store.identity, {run.id for run in store.runs()}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy = elsewhere / place.name
    if place.is_dir():
        for path in sorted(place.rglob("*")):  # without the times of the files, as `scp -r` does
            target = copy / path.relative_to(place)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.mkdir(exist_ok=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    else:
        copy.write_bytes(place.read_bytes())
    with open_store(copy) as store:
        assert (store.identity, {run.id for run in store.runs()}) == before
        statuses = {run.status for run in store.runs()}
        assert statuses <= {"FINISHED", "FAILED"}, "that it was copied does not make it look as if it were running"
    if place.is_dir():
        alone = set()
        for folder in copy.iterdir():
            with open_store(folder) as store:
                alone |= {run.id for run in store.runs()}
        assert alone == before[1]


@pytest.mark.parametrize("tracker", PLACES)
def test_import_and_sync_take_it(tracker: str) -> None:
    place = foreign(tracker) / PLACES[tracker]
    assert is_portable(place) and is_portable(foreign(tracker))
    assert find_stores(place) == [str(place)]
    with open_store(place) as one, open_store(place) as another:
        runs = list(one.runs())
        assert [another.run(run.id) for run in runs] == runs, "each thread opens it for itself"
        with pytest.raises(BadInputError, match="no run"):
            one.run("0" * 32)
        assert all([*one.runs("no such experiment")] == [] for _ in range(2))


def test_two_trackers_in_a_folder_are_told(tmp_path: Path) -> None:
    holds = tmp_path / "both"
    holds.mkdir()
    (holds / "1").mkdir()
    for name in ("run.json", "config.json"):
        (holds / "1" / name).write_bytes((foreign("sacred") / "runs" / "1" / name).read_bytes())
    log = next((foreign("wandb") / "wandb").glob("*/*.wandb"))
    (holds / "wandb").mkdir()
    (holds / "wandb" / log.name).write_bytes(log.read_bytes())
    with pytest.raises(BadInputError, match="more than one kind") as raised:
        open_store(holds)
    assert str(holds / "wandb") in str(raised.value) and str(holds / "1") in str(raised.value)
    done = CliRunner().invoke(cli, ["import", str(holds), "-d", "http://127.0.0.1:1"])
    assert isinstance(done.exception, BadInputError) and "more than one kind" in str(done.exception)
    with open_store(holds / "wandb") as store:
        assert store.kind == "wandb"


def test_mlflow_beside_other_trackers_is_what_is_meant(tmp_path: Path) -> None:
    make_sqlite(tmp_path / "mlflow.db")
    (tmp_path / "1").mkdir()
    for name in ("run.json", "config.json"):
        (tmp_path / "1" / name).write_bytes((foreign("sacred") / "runs" / "1" / name).read_bytes())
    assert not is_portable(tmp_path)
    with open_store(tmp_path) as store:
        assert store.kind == "sqlite"


def test_events_and_csv_of_one_training_are_read_once(tmp_path: Path) -> None:
    for tracker in ("tensorboard", "csvlogger"):
        for path in (foreign(tracker) / "runs" / "small").iterdir():
            if path.is_file():
                (tmp_path / path.name).write_bytes(path.read_bytes())
    with open_store(tmp_path) as store:
        assert store.kind == "tensorboard"
        assert [one.what for one in store.problems() if "metrics.csv" in one.what]
    with open_store(tmp_path / "metrics.csv") as store:
        assert store.kind == "csvlogger"


def test_opening_of_what_mlflow_recorded_does_not_look_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from labtrack.stores.foreign import formats

    make_sqlite(tmp_path / "mlflow.db")
    monkeypatch.setattr(formats, "walk", lambda *_: pytest.fail("it was looked for"))
    for place in (tmp_path, tmp_path / "mlflow.db"):
        with open_store(place) as store:
            assert store.kind == "sqlite"


def test_large_folders_are_looked_through(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"run{number}" / "checkpoints").mkdir(parents=True)
        (tmp_path / f"run{number}" / "notes.txt").touch()
    with pytest.raises(BadInputError, match="holds no runs"):
        open_store(tmp_path)


LOSSES = ["0.6931471824645996", "0.512345671", "0.4"]


def lightning(folder: Path, rows: int, lr: str = "0.1") -> Path:
    """What CSVLogger writes, with values as they are measured."""
    folder.mkdir(parents=True)
    (folder / "hparams.yaml").write_text(f"lr: {lr}\n")
    lines = ["epoch,loss,step", *(f"{index},{loss},{index * 50 + 49}" for index, loss in enumerate(LOSSES[:rows]))]
    (folder / "metrics.csv").write_text("".join(f"{line}\r\n" for line in lines))
    return folder


def test_csv_grows_gets_columns_and_is_in_a_folder_that_is_renamed(tmp_path: Path) -> None:
    place = lightning(tmp_path / "logs" / "version_0", 1)
    with open_store(place) as store:
        (run,) = store.runs()
        assert read(store, run.id) == {"epoch": [(49, 0.0)], "loss": [(49, 0.6931471824645996)]}
        (place / "metrics.csv").write_text(
            f"acc,epoch,loss,step\r\n,0,{LOSSES[0]},49\r\n,1,{LOSSES[1]},99\r\n0.5,1,,99\r\n0.7"
        )
        (place / "metrics.csv").touch()
        assert [(one.key, one.value) for one in store.points(run.id, {"epoch": 1, "loss": 1})] == [
            ("epoch", 1.0), ("loss", 0.512345671), ("acc", 0.5), ("epoch", 1.0)
        ]  # fmt: skip
        assert store.metric_keys(run.id) == {"epoch": 3, "loss": 2, "acc": 1}
        assert any("its last row" in one.what for one in store.problems())
    (tmp_path / "logs").rename(tmp_path / "results")
    with open_store(tmp_path / "results") as store:
        assert [one.id for one in store.runs()] == [run.id]


def test_csv_of_other_parameters_or_another_version_is_another_run(tmp_path: Path) -> None:
    places = [lightning(tmp_path / f"version_{number}", 2, lr) for number, lr in enumerate(("0.1", "0.1", "0.2"))]
    with open_store(tmp_path) as store:
        assert len({run.id for run in store.runs()}) == len(places)
        assert [run.params["lr"] for run in sorted(store.runs(), key=lambda one: one.name)] == ["0.1", "0.1", "0.2"]


def test_csv_is_running_while_it_is_written(tmp_path: Path) -> None:
    place = lightning(tmp_path / "version_0", 2)
    now = time.time()
    for began, written, status in ((0, 0, "FINISHED"), (-600, 0, "RUNNING"), (-9000, -4000, "FINISHED")):
        os.utime(place / "hparams.yaml", (now + began, now + began))
        os.utime(place / "metrics.csv", (now + written, now + written))
        with open_store(place) as store:
            (run,) = store.runs()
            assert run.status == status, "a copy has all files at one time"


def test_dvclive_what_only_the_summary_has(tmp_path: Path) -> None:
    with open_store(foreign("dvclive") / "dvclive") as store:
        (run,) = store.runs()
        assert read(store, run.id) == {
            "train/loss": [(0, 0.5), (1, 0.5), (2, 0.5)],
            **{"lr": [(2, 0.25)], "best": [(2, 0.75)], "of/all": [(2, 1.0)]},
        }
        assert run.params == {"model.width": "16"}
        names = ["metrics.json", "params.yaml", "plots/images/sample.png", "plots/sklearn/cm.json", "report.html"]
        assert [one.path for one in store.artifacts(run)] == names
        assert [one.what for one in store.problems()] == ["what is no number is no metric: text 3 (state)"]


def test_dvclive_folder_that_is_used_again_is_another_run(tmp_path: Path) -> None:
    ids = set()
    place = tmp_path / "project" / "dvclive"
    shutil.copytree(foreign("dvclive") / "dvclive", place)
    for width in (16, 32):
        (place / "params.yaml").write_text(f"model: {{width: {width}}}\n")
        with open_store(tmp_path) as store:
            (run,) = store.runs()
            assert run.name == "project"
            ids.add(run.id)
    assert len(ids) == 2


def test_sacred_endings_and_files() -> None:
    with open_store(foreign("sacred") / "others") as store:
        fails, stops = sorted(store.runs(), key=lambda one: one.name)
        assert (fails.status, stops.status) == ("FAILED", "KILLED")
        assert read(store, fails.id) == {"loss": [(0, 0.5)], "info.best": [(0, 0.75)]}
        names = ["config.json", "cout.txt", "info.json", "model.bin", "run.json"]
        assert [one.path for one in store.artifacts(fails)] == names
        assert fails.tags["mlflow.source.git.commit"] == "c0ffee" * 6 + "c0ff"
        assert (fails.experiment_id, fails.params["model.sizes"]) == ("others", "[1, 2]")


def test_sacred_that_was_killed(tmp_path: Path) -> None:
    place = Path(shutil.copytree(foreign("sacred") / "runs" / "1", tmp_path / "1"))
    facts = json.loads((place / "run.json").read_text())
    facts.update(status="RUNNING", stop_time=None, heartbeat="2025-06-15T15:00:00.5")
    (place / "run.json").write_text(json.dumps(facts))
    with open_store(place) as store:
        (run,) = store.runs()
        assert (run.status, run.end_time) == ("KILLED", 1_749_999_600_500)
    (place / "run.json").write_text("{")
    with open_store(tmp_path) as store:
        assert list(store.runs()) == []
        assert [one.place for one in store.problems() if one.damage] == [str(place / "run.json")]


def test_trackio_inbox_is_read_and_nothing_twice() -> None:
    with open_store(foreign("trackio") / "trackio") as store:
        (run,) = [one for one in store.runs() if one.name == "inbox"]
        assert read(store, run.id)["loss"] == [(step, 1 / (1 << step)) for step in range(4)]
        assert (run.experiment_id, run.params) == ("others", {"lr": "0.5"})


def test_trackio_before_it_had_ids_of_runs(tmp_path: Path) -> None:
    """The run stays the same when a newer Trackio gives it an id."""
    found = {}
    for key in ("run_name", "run_id"):
        with sqlite3.connect(tmp_path / "old.db") as made:
            more = ", run_id TEXT" if key == "run_id" else ""
            columns = f"id INTEGER PRIMARY KEY, timestamp TEXT, run_name TEXT, step, metrics{more}"
            made.execute(f"CREATE TABLE metrics ({columns})")
            made.execute(f"CREATE TABLE configs (run_name TEXT, config TEXT{more})")
            said = '{"loss": 0.5, "t": "x", "h": {"_type": "trackio.histogram", "n": 1}}'
            values = ["2025-06-15T15:00:00+00:00", "a", 3, said]
            made.execute("INSERT INTO metrics (timestamp, run_name, step, metrics) VALUES (?, ?, ?, ?)", values)
            made.execute('INSERT INTO configs (run_name, config) VALUES (\'a\', \'{"lr": 1, "_Username": "ada"}\')')
            if more:
                made.execute("UPDATE metrics SET run_id = 'x'")
                made.execute("UPDATE configs SET run_id = 'x'")
        made.close()
        with open_store(tmp_path / "old.db") as store:
            (run,) = store.runs()
            assert read(store, run.id) == {"loss": [(3, 0.5)]}
            assert (run.user_id, run.params) == ("ada", {"lr": "1"})
            (problem,) = store.problems()
            assert "text 1 (t), trackio.histogram 1 (h)" in problem.what
            found[key] = run.id
        (tmp_path / "old.db").unlink()
    assert len(set(found.values())) == 1


def test_what_trackio_keeps_beside_runs_is_told(tmp_path: Path) -> None:
    path = tmp_path / "denoising.db"
    shutil.copyfile(foreign("trackio") / PLACES["trackio"], path)
    with sqlite3.connect(path) as made:
        made.execute("INSERT INTO alerts (run_id, timestamp, run_name, title) VALUES ('a', '2026-01-01', 'r', 'hot')")
    made.close()
    with open_store(path) as store:
        list(store.runs())
        (told,) = [one for one in store.problems() if "not read" in one.what]
    assert told.what == "not read: 1 alerts" and not told.damage
    with open_store(foreign("trackio") / PLACES["trackio"]) as store:
        list(store.runs())
        assert not [one for one in store.problems() if "not read" in one.what]
