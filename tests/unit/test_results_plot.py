"""`labtrack plot`: curves in the terminal."""

from __future__ import annotations

import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from recorded import add_points
from results_made import T0, Recorded, seeded
from test_package import without
from test_results_commands import Called, called

from labtrack.analysis import scale
from labtrack.analysis.plot import Drawn, Paper, Plotter, watch
from labtrack.errors import Exit, LabtrackError

__all__ = ["called"]
LABTRACK = Path(sys.executable).with_name("labtrack")
RUN = "0" * 31 + "1"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plot")
    seeded(folder / "mlflow.db")
    return folder


def test_one_run_is_drawn_in_dots(called: Called, seeds: Path) -> None:
    code, out, err = called("plot gat-era5-1 -m f1", seeds)
    assert (code, err) == (0, "") and out.startswith("f1 by step\n") and "⠁" <= max(out) <= "⣿"
    assert "\x1b" not in out and max(map(len, out.split("\n"))) <= 80


def test_several_runs_have_letters_and_a_legend(called: Called, seeds: Path) -> None:
    code, out, _ = called("plot gat-era5-1 mlp-era5-1 -m f1 -m val_loss --x time", seeds)
    assert code == 0 and [line for line in out.split("\n") if " by " in line] == [
        "f1 by time (s)", "val_loss by time (s)"
    ]  # fmt: skip
    assert re.search(r"^  a gat-era5-1  \w{8}$", out, re.MULTILINE) and "bbb" in out and "\x1b" not in out


def test_width_is_that_of_the_terminal(called: Called, seeds: Path) -> None:
    for columns in (30, 50, 200):
        called.monkeypatch.setenv("COLUMNS", str(columns))
        _, out, _ = called("plot gat-era5-1 -m f1", seeds)
        assert max(map(len, out.split("\n"))) == columns


def test_log_scale_has_round_numbers_and_says_what_it_cannot_show(called: Called, tmp_path: Path) -> None:
    Recorded(tmp_path / "mlflow.db").run(metrics={"loss": [1000.0, 10.0, 0.1, 0.0, -1.0]})
    _, out, err = called("plot -m loss --log", tmp_path)
    assert "loss (log) by step" in out and "\n1000┤" in out and "\n 0.1┤" in out
    assert err == "note: loss: 2 points are 0 or less, which a log scale has no place for\n"


def test_nan_and_infinite_values_break_the_line_and_are_told(called: Called, tmp_path: Path) -> None:
    values = [1.0, 2.0, float("nan"), 3.0, float("inf"), 1e308, 4.0]
    made = Recorded(tmp_path / "mlflow.db")
    made.run("some", metrics={"loss": values, "none": [float("nan")]})
    code, out, err = called("plot -m loss -m none", tmp_path)
    assert code == 0 and "nothing that can be drawn" in out
    assert "loss: 3 points are nan or infinite, not drawn" in err
    assert "none: 1 point is nan or infinite, not drawn" in err


def test_one_point_is_a_point_and_said(called: Called, tmp_path: Path) -> None:
    Recorded(tmp_path / "mlflow.db").run(metrics={"f1": [0.5]})
    _, out, err = called("plot -m f1", tmp_path)
    assert out.count("o") == 1 and "0.5┤" in out
    assert err == "note: f1: 1 point: a metric that was logged once\n"


def test_text_of_recordings_is_never_obeyed(called: Called, tmp_path: Path) -> None:
    made = Recorded(tmp_path / "mlflow.db")
    for number in (1, 2):
        made.run(f"\x1b[31mred\n{number}", metrics={"\x1b]0;title\x07": [1.0, 2.0]})
    code, out, err = called("plot 00000001 00000002 -m '*'", tmp_path)
    assert code == 0 and "\x1b" not in out + err and "\x07" not in out + err and "\\x1b[31mred 1" in out


def test_ascii_terminals_get_ascii(seeds: Path) -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [LABTRACK, "plot", "gat-era5-1", "-m", "f1"], cwd=seeds, env=env, capture_output=True, check=True, timeout=60
    )
    assert done.stdout.isascii() and b"\\u" not in done.stdout and b"*" in done.stdout


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("plot gat-era5-1", "f1, val_loss"),
        ("plot gat-era5-1 -m f2", "f1"),
        ("plot gat-era5-1 -m max:f1", "-m f1"),
        ("plot gat-era5-1 mlp-era5-1 -m f2", "f1"),
        ("plot gat-era5 -m f1", "gat-era5-1"),
        ("plot gat-era5-1 -m f1 --watch 0", "from 0.2 seconds"),
        ("plot gat-era5-1 -m f1 --watch nan", "from 0.2 seconds"),
        ("plot gat-era5-1 -m f1 -s none.db", "none.db"),
        ("plot " + "gat-era5-1 " * 2000 + "-m f1", "2,000 runs are more than can be told apart here"),
    ],
)
def test_plot_bad_input_is_said(called: Called, seeds: Path, line: str, said: str) -> None:
    code, out, err = called(line, seeds)
    assert (code, out) == (2, "") and said in err and "To fix" in err


def test_plot_without_plotext_names_the_extra(seeds: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [LABTRACK, "plot", "gat-era5-1", "-m", "f1"], cwd=seeds, env=without(tmp_path, ("plotext",)),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and "pip install 'labtrack[plot]'" in done.stderr and "Traceback" not in done.stderr


def test_ticks_are_round_and_few() -> None:
    for low, high in [(0.0, 1.0), (-3.0, 1e6), (1e-9, 3e-9), (0.1, 0.1 + 1e-17), (-1e300, 1e300), (5.0, 5.0)]:
        found = scale.ticks(low, high, 5)
        assert 1 <= len(found) <= 9 and all(low - 1e-9 * abs(low) <= one <= high + 1e-9 * abs(high) for one in found)
    assert scale.ticks(0, 3, 6, whole=True) == [0.0, 1.0, 2.0, 3.0]
    assert [round(10**one, 9) for one in scale.log_ticks(-1, 1, 5)] == [0.1, 0.2, 0.5, 1, 2, 5, 10]
    assert len(scale.log_ticks(-300, 300, 5)) <= 7


class TestWatch:
    """A recording that is being written."""

    @pytest.fixture
    def live(self, tmp_path: Path) -> Path:
        path = tmp_path / "mlflow.db"
        Recorded(path).run("live", status="RUNNING", run_id=RUN)
        return path

    @staticmethod
    def end(path: Path) -> None:
        with sqlite3.connect(path) as made:
            made.execute("UPDATE runs SET status = 'FINISHED', end_time = start_time + 1")
        made.close()

    def drawn(self, path: Path, events: list[Callable[[], None]]) -> list[Drawn]:
        """All drawings; one of the events happens in each wait."""
        waiting = iter(events)
        plotter = Plotter([str(path)], [], ["loss"])
        return list(watch(plotter, Paper, 1.0, sleep=lambda _: next(waiting)()))

    def test_it_draws_what_is_new_and_ends_with_the_run(self, live: Path) -> None:
        found = self.drawn(live, [
            lambda: None,
            lambda: add_points(live, RUN, [("loss", 1.0, T0, 0)]),
            lambda: None,
            lambda: add_points(live, RUN, [("loss", 0.5, T0, 1)]),
            lambda: self.end(live),
        ])  # fmt: skip
        assert [one.running for one in found] == [True, True, True, False]
        assert found[0].lines == ["no points yet"] and found[1].lines != found[2].lines == found[3].lines
        assert "1 point: a metric that was logged once" in found[1].notes[0]

    def test_a_file_that_cannot_be_read_now_is_read_later(self, live: Path) -> None:
        add_points(live, RUN, [("loss", 1.0, T0, 0), ("loss", 0.5, T0, 1)])
        whole = live.read_bytes()
        found = self.drawn(live, [
            lambda: live.write_bytes(whole[:5000]) and None,
            live.unlink,
            lambda: live.write_bytes(whole) and None,
            lambda: self.end(live),
        ])  # fmt: skip
        assert not found[-1].running and found[-1].lines == found[0].lines
        told = [note for one in found for note in one.notes if "can't be read at this moment" in note]
        assert told and all(one.lines == found[0].lines for one in found)

    def test_a_recording_that_is_locked_at_first_is_waited_for(
        self, live: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plotter = Plotter([str(live)], [], ["loss"])
        draw, errors = plotter.draw, [LabtrackError("it is locked", "", Exit.LOCKED)]

        def locked(*given: Paper, **more: bool) -> Drawn:
            if errors:
                raise errors.pop()
            return draw(*given, **more)

        monkeypatch.setattr(plotter, "draw", locked)
        self.end(live)
        found = list(watch(plotter, Paper, 1.0, sleep=lambda _: None))
        assert [one.running for one in found] == [True, False] and "it is locked" in found[0].notes[0]

    @pytest.mark.parametrize("on_a_terminal", [True, False])
    def test_ctrl_c_ends_with_130(self, live: Path, on_a_terminal: bool) -> None:
        add_points(live, RUN, [("loss", 1.0, T0, 0), ("loss", 0.5, T0, 1)])
        ours, theirs = pty.openpty()
        begun = subprocess.Popen(
            [LABTRACK, "plot", "-m", "loss", "-s", live, "--watch", "0.2"], stderr=subprocess.PIPE,
            stdout=theirs if on_a_terminal else subprocess.PIPE, env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        os.close(theirs)
        place = ours if on_a_terminal else begun.stdout.fileno()  # type: ignore[union-attr]
        said, deadline = b"", time.monotonic() + 30
        while "┘".encode() not in said and time.monotonic() < deadline:
            said += os.read(place, 4096)
        begun.send_signal(signal.SIGINT)
        _, err = begun.communicate(timeout=30)
        os.close(ours)
        assert begun.returncode == 130 and b"Traceback" not in err and "⠑".encode() in said
        assert (b"\x1b[H" in said and b"\x1b[38;5" in said) if on_a_terminal else b"\x1b" not in said
