"""The same training, whatever recorded it, gives the same leaderboard: byte for byte."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
from click.testing import CliRunner
from foreign_recorded import PLACES, foreign, trainings
from recorded import make_sqlite

from labtrack.cli import cli

METRICS = sorted({point.key for training in trainings() for point in training.points})
WIDTHS = [str(training.params["width"]) for training in trainings()]


def leaderboard(source: Path, metric: str, form: str) -> str:
    """What is printed of the two trainings; a folder may hold other runs beside them."""
    name = f'"{metric}"'
    shown = f"params.width,max:{name},min:{name},step@max:{name},first:{name},last:{name},mean:{name},count:{name}"
    widths = [f"params.width = '{one}'" for one in WIDTHS]
    printed = ""
    for width in widths:
        line = [
            "leaderboard",
            "--top",
            "1",
            "-s",
            str(source),
            "--metric",
            f"max:{name}",
            "--only",
            shown,
            "--filter",
            width,
        ]
        done = CliRunner().invoke(cli, [*line, "--format", form])
        assert done.exit_code == 0, done.output
        printed += done.stdout
    assert all(one in printed for one in WIDTHS)
    return printed


@pytest.fixture(scope="module")
def by_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trainings as MLflow has them."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    ids = make_sqlite(path, runs=len(trainings()))
    with contextlib.closing(sqlite3.connect(path)) as made:
        for run_id, training in zip(ids, trainings()):
            made.execute("UPDATE runs SET status = 'FINISHED', end_time = start_time WHERE run_uuid = ?", [run_id])
            made.executemany(
                "INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)",
                [(key, str(value), run_id) for key, value in training.params.items()],
            )
            made.executemany(
                "INSERT INTO metrics (key, value, timestamp, step, run_uuid, is_nan) VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        one.key,
                        0 if (nan := one.value != one.value) else one.value,
                        round(one.time * 1000),
                        one.step,
                        run_id,
                        nan,
                    )
                    for one in training.points
                ],
            )
        made.commit()
    return path


@pytest.mark.parametrize("form", ["table", "csv", "md"])
@pytest.mark.parametrize("metric", METRICS)
def test_the_same_training_gives_the_same_leaderboard(metric: str, form: str, by_mlflow: Path) -> None:
    printed = {name: leaderboard(foreign(name) / place, metric, form) for name, place in PLACES.items()}
    assert set(printed.values()) == {leaderboard(by_mlflow, metric, form)}, printed
