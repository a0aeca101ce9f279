"""notebooks/analysis.ipynb, run from top to bottom."""

from __future__ import annotations

import csv
from pathlib import Path

import nbformat
import pytest
from recorded import make_sqlite
from results_made import Recorded, distilled

import notebook


def test_the_committed_notebook_has_no_outputs() -> None:
    read = nbformat.read(notebook.NOTEBOOK, as_version=4)
    nbformat.validate(read)
    code = [cell for cell in read.cells if cell.cell_type == "code"]
    assert len(code) > 5 and not any(cell.outputs or cell.execution_count for cell in code)
    assert set(read.metadata) == {"kernelspec", "language_info"} and not any(cell.metadata for cell in read.cells)


def test_notebook_runs_on_a_recording(tmp_path: Path) -> None:
    distilled(tmp_path / "mlflow.db")
    before = (tmp_path / "mlflow.db").read_bytes()
    said = notebook.run(str(tmp_path / "mlflow.db"), tmp_path)
    assert "10 runs: {'FINISHED': 8, 'FAILED': 1, 'RUNNING': 1}" in said
    assert "1 failed: ['hcrl_sa/failed']" in said and "4 students with a teacher" in said
    board = list(csv.DictReader((tmp_path / "leaderboard.csv").open()))
    assert [one["metrics.f1"] for one in board[:3]] == ["0.95", "0.91", "0.88"]
    pairs = list(csv.DictReader((tmp_path / "teacher_student.csv").open()))
    assert {one["teacher"] for one in pairs} == {"hcrl_sa/teacher_evaluation", "set_01/teacher_evaluation"}
    assert round(float(pairs[0]["delta"]), 6) == -0.04
    assert (tmp_path / "mlflow.db").read_bytes() == before


def executed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the notebook's code in this process, which takes a tenth of the time."""
    monkeypatch.setenv("LABTRACK_SOURCE", str(folder / "mlflow.db"))
    monkeypatch.setenv("LABTRACK_OUTPUT", str(folder))
    seen: dict[str, object] = {}
    for cell in nbformat.read(notebook.NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            exec(cell.source, seen)  # noqa: S102 our own


@pytest.mark.parametrize("metrics", [{}, {"loss": [0.5, 0.25]}])
def test_notebook_runs_on_runs_without_its_facts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], metrics: dict[str, list[float]]
) -> None:
    Recorded(tmp_path / "mlflow.db").run("plain", metrics=metrics)
    executed(tmp_path, monkeypatch)
    said = capsys.readouterr().out
    assert "No run has 'f1'; there is " + (", ".join(metrics) or "no metric") in said
    assert "0 students with a teacher" in said and "no run says use_kd" in said


def test_notebook_says_that_there_are_no_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_sqlite(tmp_path / "mlflow.db", runs=0)
    with pytest.raises(SystemExit, match="There are no runs in"):
        executed(tmp_path, monkeypatch)
