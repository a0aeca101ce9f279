"""`labtrack report`: one file that fetches nothing, with the same bytes for the same runs."""

from __future__ import annotations

import os
import re
import shutil
import stat
from html.parser import HTMLParser
from pathlib import Path

import pytest
from recorded import make_files
from results_made import Recorded, seeded
from test_results_commands import Called, called

from labtrack.analysis import page
from labtrack.analysis.board import Asked
from labtrack.analysis.curves import Curve, Point, fewer, mean
from labtrack.analysis.report import Wish

__all__ = ["called"]
VOID = {"meta", "input", "br"}


class Read(HTMLParser):
    """The page's elements, with what is open at the end, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def has(self, words: str) -> bool:
        return words in " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    made = seeded(folder / "mlflow.db")
    made.run("gone", status="FAILED", params={"model": "gat"})
    made.run("now", status="RUNNING", params={"model": "gat"}, metrics={"f1": [0.1]})
    return folder


def written(called: Called, folder: Path, more: str = "") -> Read:
    code, out, err = called(f"report -o results.html {more}", folder)
    assert code == 0, err
    assert re.match(r"results\.html: \d+ runs, \d+\.\d MB\n$", out)
    return Read((folder / "results.html").read_text())


def test_page_has_the_groups_their_curves_and_what_was_left_out(called: Called, seeds: Path) -> None:
    read = written(called, seeds, "--over seed --metric max:f1")
    assert read.open == []
    for words in (
        "0.9100 ± 0.0032 (5)",
        "21 runs, 5 groups",
        "1 run: FAILED",
        "1 run: RUNNING",
        "out_dir",
        "gat",
        "mlp",
    ):
        assert read.has(words), words
    charts = [attributes for tag, attributes in read.elements if tag == "svg"]
    assert len(charts) == 2 and all(one["role"] == "img" for one in charts)
    classes = [attributes.get("class") or "" for tag, attributes in read.elements if tag == "path"]
    # four groups of five runs, and one of a single run whose metrics have one point
    assert classes.count("band") == 2 * 4 and classes.count("run") == 2 * 20


def test_page_without_over_draws_each_run(called: Called, seeds: Path) -> None:
    read = written(called, seeds, "--metric f1 --curves 3 -m val_loss")
    groups = [attributes for tag, attributes in read.elements if (attributes.get("class") or "").startswith("g g")]
    assert len(groups) == 3 and read.has("curves of 18 runs: the best 3 are drawn")
    assert not any(attributes.get("type") == "checkbox" for _, attributes in read.elements)


def test_members_are_shown_by_a_box_before_the_charts_without_a_script(called: Called, seeds: Path) -> None:
    read = written(called, seeds, "--over seed")
    boxes = [attributes["id"] for tag, attributes in read.elements if tag == "input"]
    labels = [attributes["for"] for tag, attributes in read.elements if tag == "label"]
    assert boxes == labels == [f"m{place}" for place in range(5)]
    text = (seeds / "results.html").read_text()
    for place in range(24):
        assert f".m{place}:checked ~ .charts .g{place} .members" in text


def test_page_fetches_nothing(called: Called, seeds: Path) -> None:
    read = written(called, seeds, "--over seed")
    text = (seeds / "results.html").read_text()
    assert set(re.findall(r"https?://[^\"' )]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\(|@import|\bfetch\(|XMLHttpRequest|import\(", text)
    assert not {"link", "img", "iframe", "object", "embed"} & {tag for tag, _ in read.elements}
    assert not any({"src", "href", "style"} & set(attributes) for _, attributes in read.elements)
    policy = next(attributes["content"] for tag, attributes in read.elements if attributes.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none';")


def test_same_runs_give_the_same_bytes_wherever_they_are(called: Called, seeds: Path, tmp_path: Path) -> None:
    written(called, seeds, "--over seed --metric max:f1")
    shutil.copyfile(seeds / "mlflow.db", tmp_path / "mlflow.db")
    written(called, tmp_path, "--over seed --metric max:f1")
    assert (tmp_path / "results.html").read_bytes() == (seeds / "results.html").read_bytes()
    before = (tmp_path / "results.html").read_bytes()
    written(called, tmp_path, "--over seed --metric max:f1")
    assert (tmp_path / "results.html").read_bytes() == before


def test_text_of_recordings_is_text(called: Called, tmp_path: Path) -> None:
    bad = "<script>alert(1)</script>\"'&\x1b[31m"
    made = Recorded(tmp_path / "mlflow.db")
    for seed in (1, 2):
        made.run(
            bad, params={"seed": seed, bad: f"{bad}{seed % 2}", "model": bad}, tags={"dataset": bad},
            metrics={bad: [1.0, 2.0], "f1": [0.1, 0.2]},
        )  # fmt: skip
    for more in ("", f"--over seed --title '{bad.replace(chr(39), '')}'"):
        read = written(called, tmp_path, more)
        tags = [tag for tag, _ in read.elements]
        assert tags.count("script") == 1 and read.open == []
        assert read.has("<script>alert(1)</script>") and "\x1b" not in (tmp_path / "results.html").read_text()


@pytest.mark.parametrize("values", [[float("nan"), float("inf")], [1e308, -1e308], [0.0, 0.0], [1e-300, 1e300], [5.0]])
def test_values_without_a_place_break_nothing(called: Called, tmp_path: Path, values: list[float]) -> None:
    made = Recorded(tmp_path / "mlflow.db")
    for seed in (1, 2):
        made.run(params={"seed": seed}, metrics={"f1": [0.5, 0.6], "loss": values, "nan": [1.0, float("nan"), 2.0]})
    for more in ("", "--over seed", "--over seed --spread minmax --x time"):
        read = written(called, tmp_path, more)
        assert read.has("points are nan or infinite, not drawn")
        drawn = [attributes.get("d") or "" for tag, attributes in read.elements if tag == "path"]
        assert drawn and not any("nan" in one or "inf" in one for one in drawn)


def test_metrics_that_are_not_drawn_are_named(called: Called, tmp_path: Path) -> None:
    made = Recorded(tmp_path / "mlflow.db")
    many = {f"metric_{number:02}": [0.1, 0.2] for number in range(15)}
    made.run(metrics={"f1": [0.1, 0.2], "test_f1": [0.3], **many})
    read = written(called, tmp_path)
    assert read.has("1 metric logged once, so without a curve test_f1")
    assert read.has("4 metrics not drawn (-m NAME draws it) metric_11 , metric_12")
    read = written(called, tmp_path, "-m 'metric_1*'")
    assert sum(tag == "svg" for tag, _ in read.elements) == 5


def test_commits_and_uncommitted_changes_are_told(called: Called, tmp_path: Path) -> None:
    made = Recorded(tmp_path / "mlflow.db")
    tags = {"mlflow.source.git.commit": "abcdef0123456789", "git.dirty": "true"}
    made.run("changed", tags=tags, metrics={"f1": [0.1]})
    made.run("unknown", metrics={"f1": [0.1]})
    read = written(called, tmp_path)
    assert read.has("abcdef01 yes") and read.has("No metric has more than one point.")
    Recorded(tmp_path / "other.db").run("unknown", metrics={"f1": [0.1]})
    read = written(called, tmp_path, "-s other.db")
    assert read.has("No run says from which commit it was made.") and not read.has("uncommitted changes")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("report", "--output"),
        ("report -o .", "is a folder"),
        ("report -o none/r.html", "no folder"),
        ("report -o /dev/null", "not a file"),
        ("report -o mlflow.db --force", "is the recording itself"),
        ("report -o mine.html", "is no report of labtrack's"),
        ("report -o r.html --metric f2", "f1"),
        ("report -o r.html -m f2", "f1"),
        ("report -o r.html -m max:f1", "-m f1"),
        ("report -o r.html --by params.model", "--over seed"),
        ("report -o r.html --curves 0", "--curves"),
        ("report -o r.html -s none.db", "none.db"),
        ("report -o r.html --filter \"status = 'KILLED'\"", "has a metric"),
    ],
)
def test_report_bad_input_is_said_and_nothing_is_written(called: Called, seeds: Path, line: str, said: str) -> None:
    (seeds / "mine.html").write_text("mine")
    (seeds / "r.html").unlink(missing_ok=True)
    before = (seeds / "mlflow.db").read_bytes()
    code, out, err = called(line, seeds)
    assert (code, out) == (2, "") and said in err and "Traceback" not in err
    assert (seeds / "mine.html").read_text() == "mine" and not (seeds / "r.html").exists()
    assert (seeds / "mlflow.db").read_bytes() == before


def test_report_replaces_reports_and_others_only_by_force(called: Called, seeds: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("mine")
    file.chmod(0o640)
    assert called(f"report -o {file} --force", seeds)[0] == 0
    assert page.MARK in file.read_text() and stat.S_IMODE(file.stat().st_mode) == 0o640
    assert called(f"report -o {file}", seeds)[0] == 0
    os.umask(mask := os.umask(0o022))
    called(f"report -o {tmp_path / 'new.html'}", seeds)
    assert stat.S_IMODE((tmp_path / "new.html").stat().st_mode) == 0o666 & ~mask
    assert sorted(one.name for one in tmp_path.iterdir() if one.is_file()) == ["new.html", "page.html"]


def test_report_of_a_damaged_recording_says_so(called: Called, tmp_path: Path) -> None:
    first, second = make_files(tmp_path / "mlruns", runs=2)
    (tmp_path / "mlruns" / "0" / first / "meta.yaml").write_text("{")
    (tmp_path / "mlruns" / "0" / second / "metrics" / "f1").write_text("1 0.5 0\n2 0.6 1\n")
    code, _, err = called("report -o r.html --all", tmp_path)
    assert code == 3 and first in err
    assert Read((tmp_path / "r.html").read_text()).has("can not be read:")


def test_report_of_many_runs_is_bounded(tmp_path: Path) -> None:
    made = Recorded(tmp_path / "mlflow.db")
    for number in range(32):
        made.run(params={"seed": number}, metrics={"f1": [float(step % 97) for step in range(1000)]})
    report, size = page.write(Asked([str(tmp_path / "mlflow.db")]), tmp_path / "r.html", Wish(over="seed"))
    drawn = report.charts[0].drawn[0]
    assert (drawn.runs, len(drawn.members), len(drawn.mean)) == (32, 30, 200) and size < 300_000
    assert all(len(curve) <= 300 for _, curve in drawn.members)
    assert "runs beyond the first 30: mean and band are of all" in (tmp_path / "r.html").read_text()


class TestCurves:
    """Fewer points, and means."""

    def test_fewer_points_keep_ends_least_and_greatest(self) -> None:
        points = [Point(float(x), float((x * 7919) % 1000)) for x in range(10_000)]
        points[5_555] = Point(5_555.0, 1e6)
        points[7_777] = Point(7_777.0, -1e6)
        found = fewer(points, 200)
        assert len(found) <= 202 and found[0] == points[0] and found[-1] == points[-1]
        assert points[5_555] in found and points[7_777] in found and found == sorted(found)
        assert fewer(points[:150], 200) == points[:150]

    def test_mean_counts_only_runs_that_have_a_value(self) -> None:
        long, short = Curve([(0, 1.0), (1, 3.0), (2, 5.0)]), Curve([(0, 3.0), (1, float("nan"))])
        found = mean([long, short])
        assert [(one.x, one.y, one.n) for one in found] == [(0.0, 2.0, 2), (1.0, 3.0, 1), (2.0, 5.0, 1)]
        assert found[0].high == pytest.approx(2 + 2**0.5) and found[1].low == found[1].high == 3.0

    def test_mean_of_long_curves_is_that_of_parts(self) -> None:
        found = mean([Curve((x, 1.0) for x in range(1000)), Curve((x, 2.0) for x in range(1000))], most=50)
        assert len(found) == 50 and {one.y for one in found} == {1.5} and {one.n for one in found} == {2}
