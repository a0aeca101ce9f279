"""What the commands about results print: seed 004's words and look, in golden files."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from recorded import KINDS, kept, make_files
from results_made import Recorded, distilled, seeded

from labtrack import cli

GOLDEN = ROOT / "tests" / "fixtures" / "results"
# name of the golden file: command
COMMANDS = {
    "leaderboard": "leaderboard --metric f1 --top 10",
    "leaderboard-all": "leaderboard --metric f1 --all",
    "leaderboard-facts": "leaderboard --metric f1 --dataset set_01 --stage evaluation --model gat --scenario test_01",
    "leaderboard-loss": "leaderboard --metric val_loss --top 2",
    "leaderboard-best": "leaderboard --metric max:f1 --top 2 --columns 'f1@min:val_loss,step@max:f1,params.lr as rate'",
    "leaderboard-none": "leaderboard --metric f1 --dataset none",
    "leaderboard-changed": "leaderboard --metric f1 --only-changed",
    "compare": "compare hcrl_sa/teacher_evaluation hcrl_sa/student_kd_0.001",
    "diff": "diff hcrl_sa/teacher_evaluation hcrl_sa/student_kd_0.001",
    "diff-same": "diff hcrl_sa/teacher_evaluation set_01/teacher_evaluation",
    "sweep": "sweep --param lr --metric f1",
    "sweep-facts": "sweep --param lr --metric f1 --dataset hcrl_sa --stage evaluation",
    "sweep-unknown": "sweep --param none --metric f1",
    "dataset": "dataset hcrl_sa",
    "dataset-unknown": "dataset none",
    "query": "query \"SELECT run_id, name, stage, lr, use_kd FROM runs WHERE dataset = 'hcrl_sa'\"",
    "query-best": 'query "SELECT name, max(max) AS best FROM best GROUP BY name"',
    "query-nothing": "query \"SELECT * FROM runs WHERE dataset = 'none'\"",
    "lineage": "lineage hcrl_sa/teacher_evaluation --metric f1",
    "lineage-student": "lineage hcrl_sa/student_kd_0.001",
    "runs": "runs --dataset set_01",
    "runs-failed": "runs --failed",
    "runs-only": "runs --only 'name, status, max:f1, tags.use_kd' --filter \"tags.use_kd = 'True'\"",
    "kd-pairs": "table --rows params.lr --cols tags.use_kd --value f1 --filter \"tags.model_size = 'student'\"",
    "csv": "leaderboard --metric f1 --top 2 --format csv",
    "json": "leaderboard --metric f1 --top 2 --format json",
    "md": "leaderboard --metric f1 --top 2 --format md",
    "latex": "leaderboard --metric f1 --top 2 --format latex",
    "html": "leaderboard --metric f1 --top 2 --format html",
}
SEEDED = {
    "over": "leaderboard --metric max:f1 --over seed",
    "over-by": "leaderboard --metric max:f1 --over seed --by params.model --spread sem",
    "over-minmax": "leaderboard --metric max:f1 --over --spread minmax --precision 3",
    "over-csv": "leaderboard --metric max:f1 --over --format csv",
    "table": "table --rows params.model --cols tags.dataset --value max:f1 --over seed",
    "table-latex": "table --rows params.model --cols tags.dataset --value max:f1 --over seed --format latex",
    "table-json": "table --rows params.model --cols tags.dataset --value max:f1 --over seed --format json",
}


def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    monkeypatch.setattr(sys, "argv", ["labtrack", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.fixture(scope="session")
def kd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recording of teachers and students."""
    folder = tmp_path_factory.mktemp("kd")
    distilled(folder / "mlflow.db")
    return folder


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recording over seeds."""
    folder = tmp_path_factory.mktemp("seeds")
    seeded(folder / "mlflow.db")
    return folder


class Called:
    """Calls commands in a folder."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, line: str, folder: Path | None = None) -> tuple[int, str, str]:
        if folder:
            self.monkeypatch.chdir(folder)
        return call(self._capsys, self.monkeypatch, *shlex.split(line))


@pytest.fixture
def called(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Called:
    return Called(capsys, monkeypatch)


@pytest.mark.parametrize("name", [*COMMANDS, *SEEDED])
def test_a_command_prints_what_is_in_its_golden_file(name: str, called: Called, kd: Path, seeds: Path) -> None:
    line, folder = (COMMANDS[name], kd) if name in COMMANDS else (SEEDED[name], seeds)
    code, out, err = called(line, folder)
    assert code == 0
    said = f"$ labtrack {line}\n{out}" + (f"--- on standard error\n{err}" if err else "")
    said = "\n".join(one.rstrip() for one in said.split("\n"))
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("WRITE_GOLDEN"):
        file.write_text(said)
    assert said == file.read_text()


def test_every_golden_file_has_a_command() -> None:
    assert {file.stem for file in GOLDEN.glob("*.txt")} == {*COMMANDS, *SEEDED}


@pytest.mark.parametrize(
    "line",
    [
        "leaderboard --metric f1 --top 10",
        "compare hcrl_sa/teacher_evaluation set_01/teacher_evaluation",
        "diff hcrl_sa/teacher_evaluation hcrl_sa/student_0.001",
        "sweep --param lr --metric f1",
        "dataset hcrl_sa",
        "query \"SELECT * FROM runs WHERE dataset = 'hcrl_sa'\"",
    ],
)
def test_seed_004s_lines_as_a_module_with_the_uri_in_the_environment(line: str, kd: Path, tmp_path: Path) -> None:
    env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{kd}/mlflow.db"}
    words = [sys.executable, "-m", "labtrack", *shlex.split(line)]
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"\(\d+ rows\)", done.stdout) and "\x1b" not in done.stdout
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "home"])


class TestRuns:
    """Which run is meant."""

    def test_by_the_beginning_of_its_id(self, called: Called, kd: Path) -> None:
        code, out, _ = called("compare 00000001 00000002", kd)
        assert code == 0 and "Compare: 00000001 vs 00000002" in out

    def test_by_its_id_and_with_itself(self, called: Called, kd: Path) -> None:
        whole = "00000001000000000000000000001eef"
        _, out, _ = called(f"compare {whole} {whole} --metric f1", kd)
        assert "gat   test_01           f1  0.950000  0.950000  0.000000" in out
        assert called(f"compare {whole} {'0' * 32}", kd)[2].startswith(f"Error: Run not found: '{'0' * 32}'")

    @pytest.mark.parametrize("command", ["compare {} 00000001", "diff 00000001 {}", "lineage {}"])
    def test_one_that_there_is_not(self, command: str, called: Called, kd: Path) -> None:
        code, _, err = called(command.format("hcrl_sa/teacher_evaluatio"), kd)
        assert code == 2 and "Run not found: 'hcrl_sa/teacher_evaluatio'" in err
        assert "hcrl_sa/teacher_evaluation" in err.split("To fix")[1]

    def test_a_name_that_several_have(self, called: Called, tmp_path: Path) -> None:
        made = Recorded(tmp_path / "mlflow.db")
        ids = [made.run("again", status=status) for status in ("FAILED", "FINISHED")]
        code, _, err = called("lineage again", tmp_path)
        assert code == 2 and "2 runs are called 'again'" in err and all(one in err for one in ids)
        assert "FAILED" in err and "2023-11-14" in err

    def test_of_many_recordings_in_a_folder(self, called: Called, tmp_path: Path) -> None:
        first = Recorded(tmp_path / "run-1.db").run("one", metrics={"f1": [0.5]}, run_id="a" * 32)
        other = Recorded(tmp_path / "run-2.db").run("two", metrics={"f1": [0.7]}, run_id="b" * 32)
        code, out, _ = called("compare one two", tmp_path)
        assert code == 0 and "0.200000" in out
        code, out, _ = called("leaderboard --metric f1", tmp_path)
        assert code == 0 and out.index(other) < out.index(first)


class TestHonest:
    """What is left out, what is missing, what is no number."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        made = Recorded(tmp_path / "mlflow.db")
        made.run("good", metrics={"f1": [0.9]})
        made.run("diverged", metrics={"f1": [0.95, float("nan")]})
        made.run("endless", metrics={"f1": [float("inf")]})
        made.run("none", metrics={"other": [1.0]})
        for status in ("RUNNING", "RUNNING", "FAILED", "KILLED", "SCHEDULED"):
            made.run(status, status=status, metrics={"f1": [0.99]} if status == "RUNNING" else None)
        return tmp_path

    def test_the_last_line_says_what_was_left_out(self, called: Called, folder: Path) -> None:
        code, out, _ = called("leaderboard --metric f1", folder)
        assert code == 0
        last = out.rstrip().split("\n")[-1]
        assert last == "left out: 2 RUNNING, 1 SCHEDULED, 1 FAILED, 1 KILLED, 1 without f1; --all"
        _, out, err = called("leaderboard --metric f1 --format csv", folder)
        assert err.strip() == last and "left out" not in out
        _, out, err = called("leaderboard --metric f1 --format json", folder)
        assert json.loads(out)["left_out"] == {
            "RUNNING": 2, "SCHEDULED": 1, "FAILED": 1, "KILLED": 1, "without f1": 1
        }  # fmt: skip
        assert err == ""

    def test_nan_never_wins_and_missing_comes_last(self, called: Called, folder: Path) -> None:
        for how in ("--max", "--min"):
            _, out, _ = called(f"leaderboard --metric f1 --all {how} --only name,f1", folder)
            rows = [one.split() for one in out.split("-\n", 1)[1].split("\n\n")[0].split("\n")]
            values = [row[-1] for row in rows]
            assert values[values.index("nan") :] == ["nan", "-", "!", "!", "-"], values
            assert ("inf" in values[:1]) is (how == "--max")
        _, out, _ = called("leaderboard --metric max:f1 --top 1 --only name", folder)
        assert "endless" in out

    def test_json_has_words_for_what_it_cannot_write(self, called: Called, folder: Path) -> None:
        _, out, _ = called("leaderboard --metric f1 --format json --only f1", folder)
        assert [row["f1"] for row in json.loads(out)["rows"]] == ["Infinity", 0.9, "NaN"]

    def test_a_damaged_recording_is_told_and_the_exit_code_is_3(self, called: Called, tmp_path: Path) -> None:
        first, second = make_files(tmp_path / "mlruns", runs=2)
        (tmp_path / "mlruns" / "0" / first / "meta.yaml").write_text("{")
        (tmp_path / "mlruns" / "0" / second / "metrics" / "f1").write_text("1 0.5 0\n")
        code, out, err = called("leaderboard --metric f1 --all", tmp_path)
        assert code == 3 and second in out and f"could not be read: {tmp_path}" not in out
        assert "could not be read" in err and first in err

    def test_one_damaged_recording_of_many_keeps_no_other_away(self, called: Called, tmp_path: Path) -> None:
        Recorded(tmp_path / "run-1.db").run("one", metrics={"f1": [0.5]}, run_id="a" * 32)
        Recorded(tmp_path / "run-2.db").run("two", metrics={"f1": [0.7]}, run_id="b" * 32)
        data = (tmp_path / "run-2.db").read_bytes()
        (tmp_path / "run-2.db").write_bytes(data[:4096])
        code, out, err = called("leaderboard --metric f1", tmp_path)
        assert code == 3 and "a" * 32 in out and "run-2.db" in err


class TestInput:
    """What is written wrongly."""

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            ("leaderboard --metric f2", "f1"),
            ("leaderboard --metric max:f_1", "f1"),
            ("leaderboard --metric f1@min:loss", "val_loss"),
            ("leaderboard --metric params.lrr", "params.lr"),
            ("leaderboard --metric f1 --columns params.layer", "params.layers"),
            ("leaderboard --metric f1 --columns attr.duratoin", "attr.duration"),
            ("leaderboard --metric f1 --columns max:params.lr", "params.lr"),
            ("leaderboard --metric f1 --columns 'a b'", "double quotes"),
            ("leaderboard --metric ''", "can't be read"),
            ("leaderboard --metric f1 --columns f1 --only f1", "one of the two"),
            ("leaderboard --metric f1 --drop '('", "regular expression"),
            ("leaderboard --metric f1 --filter 'x'", "--filter"),
            ("leaderboard --metric f1 --by lr", "--over"),
            ("leaderboard --metric f1 --over seed --vs none", "no group"),
            ("leaderboard --metric max:f1@min:val_loss", "two values"),
            ("leaderboard --metric f1 -s none.db", "There is no"),
            ("table --rows params.none --value f1", "params"),
            ("query ''", "no statement"),
            ("query 'SELECT nme FROM runs'", "is it name"),
            ("query 'SELECT * FROM run'", "is it runs"),
            ("snapshot -o .", "is a folder"),
            ("snapshot -o none/x.db", "mkdir"),
            ("snapshot -o mlflow.db --force", "the recording itself"),
        ],
    )
    def test_is_named_with_what_to_write(self, line: str, said: str, called: Called, kd: Path) -> None:
        code, out, err = called(line, kd)
        assert code == 2, out
        assert said in err and "Traceback" not in err

    @pytest.mark.parametrize(
        "sql",
        [
            "DROP TABLE _run", "DELETE FROM runs", "INSERT INTO _run DEFAULT VALUES", "ATTACH 'x.db' AS x",
            "VACUUM INTO 'x.db'", "PRAGMA journal_mode = WAL", "PRAGMA writable_schema = 1", "PRAGMA user_version = 3",
            "CREATE TEMP TABLE x (a)", "SELECT load_extension('x')", "SELECT 1; DROP TABLE _run", "BEGIN",
            "WITH x AS (SELECT 1) DELETE FROM _run", "UPDATE _run SET name = ''",
            "REPLACE INTO _run (run_id) VALUES (1)",
        ],
    )  # fmt: skip
    def test_a_statement_that_would_change_something(self, sql: str, called: Called, kd: Path) -> None:
        called("snapshot -o asked.db --force", kd)
        for source in ("mlflow.db", "asked.db"):
            before = (kd / source).read_bytes()
            code, out, err = called(f"query -s {source} {shlex.quote(sql)}", kd)
            assert (code, out) == (2, "") and "`query`" in err
            assert (kd / source).read_bytes() == before and not (kd / "x.db").exists()
        (kd / "asked.db").unlink()

    def test_text_of_a_recording_reaches_no_terminal_raw(self, called: Called, tmp_path: Path) -> None:
        made = Recorded(tmp_path / "mlflow.db")
        bad = "\x1b[31m\x07\nevil\u202e"
        made.run(bad, tags={"dataset": bad}, metrics={"f1": [0.5], bad: [1.0]}, params={bad: bad, "a|b": "<b>&_%$#"})
        for line in ("leaderboard --metric f1 --columns 'params.*'", "runs", f"compare {'00000001'} 00000001",
                     "query 'SELECT * FROM runs'"):  # fmt: skip
            for form in ("table", "md", "latex", "html", "csv"):
                code, out, _ = called(f"{line} --format {form}", tmp_path)
                assert code == 0 and "\x1b" not in out and "\x07" not in out and "\u202e" not in out, (line, form)
        _, out, _ = called("leaderboard --metric f1 --columns 'params.*' --format html", tmp_path)
        assert "&lt;b&gt;&amp;_%$#" in out
        _, out, _ = called("leaderboard --metric f1 --columns 'params.*' --format latex", tmp_path)
        assert r"\textless{}b\textgreater{}\&\_\%\$\#" in out
        _, out, _ = called("leaderboard --metric f1 --columns 'params.*' --format md", tmp_path)
        assert r"params.a\|b" in out


class TestFormats:
    def test_csv_and_json_have_full_precision(self, called: Called, tmp_path: Path) -> None:
        Recorded(tmp_path / "mlflow.db").run(metrics={"f1": [1 / 3]}, params={"x": 'a,"b"'})
        _, out, _ = called("leaderboard --metric f1 --columns params.x --format csv", tmp_path)
        (row,) = csv.DictReader(io.StringIO(out))
        assert (row["value"], row["params.x"]) == (repr(1 / 3), 'a,"b"')
        _, out, _ = called("leaderboard --metric f1 --format json", tmp_path)
        assert json.loads(out)["rows"][0]["value"] == 1 / 3
        _, out, _ = called("leaderboard --metric f1 --precision 2", tmp_path)
        assert "0.33\n" in out

    @pytest.mark.parametrize("line", ["dataset hcrl_sa", "dataset none", "lineage hcrl_sa/teacher_evaluation"])
    def test_two_tables_are_one_json(self, line: str, called: Called, kd: Path) -> None:
        _, out, _ = called(f"{line} --format json", kd)
        assert [one["version"] for one in [json.loads(out), *json.loads(out)["tables"]]] == [1, 1, 1]

    def test_a_large_answer_is_never_in_memory_as_a_whole(self, kd: Path, tmp_path: Path) -> None:
        many = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 100000) "
        many += "SELECT x, printf('%0600d', x) FROM n"
        script = (
            "import resource, runpy, sys\n"
            "resource.setrlimit(resource.RLIMIT_DATA, (120_000_000, 120_000_000))\n"
            "runpy.run_module('labtrack', run_name='__main__', alter_sys=True)\n"
        )
        with (tmp_path / "out").open("wb") as out:
            words = [sys.executable, "-c", script, "query", "-s", str(kd / "mlflow.db"), many, "--format", "csv"]
            done = subprocess.run(words, stdout=out, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 0, done.stderr[-500:]
        assert (tmp_path / "out").stat().st_size > 60_000_000

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_same_runs_of_another_kind_give_the_same_table(self, kind: str, called: Called) -> None:
        code, out, _ = called(f"leaderboard --metric loss --all --only name,loss -s {kept('3.1.4') / KINDS[kind]}")
        other = next(one for one in KINDS if one != kind)
        _, expected, _ = called(f"leaderboard --metric loss --all --only name,loss -s {kept('3.1.4') / KINDS[other]}")
        assert code == 0 and sorted(out.split("\n")) == sorted(expected.split("\n"))


def test_looking_changes_nothing(called: Called, kd: Path) -> None:
    before = {one: (one.stat().st_mtime_ns, one.read_bytes()) for one in kd.iterdir()}
    for line in COMMANDS.values():
        called(line, kd)
    assert {one: (one.stat().st_mtime_ns, one.read_bytes()) for one in kd.iterdir()} == before


def test_the_recording_is_not_locked_while_it_is_looked_at(called: Called, kd: Path) -> None:
    with sqlite3.connect(kd / "mlflow.db") as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert called("leaderboard --metric f1", kd)[0] == 0
        writer.rollback()
    writer.close()


def test_a_metric_that_only_runs_have_that_are_left_out(called: Called, tmp_path: Path) -> None:
    made = Recorded(tmp_path / "mlflow.db")
    made.run("over", metrics={"f2": [1.0]})
    made.run("going", status="RUNNING", metrics={"f1": [1.0]})
    code, _, err = called("leaderboard --metric f1", tmp_path)
    assert code == 2 and "None of these runs has 'f1' (left out: 1 RUNNING; --all)" in err and "f2" in err
    assert called("leaderboard --metric f1 --all", tmp_path)[0] == 0


def test_a_metric_of_runs_that_are_not_shown_may_be_a_column(called: Called, tmp_path: Path) -> None:
    made = Recorded(tmp_path / "mlflow.db")
    made.run("best", metrics={"f1": [1.0]}, params={"lr": "1"})
    made.run("other", metrics={"f1": [0.5], "auc": [0.7]}, params={"lr": "2", "more": "3"})
    for column in ("auc", "max:auc", "params.more", "more"):
        code, out, _ = called(f"leaderboard --metric f1 --top 1 --columns {column} --only-changed", tmp_path)
        assert code == 0 and "best" in out


def test_ctrl_c_ends_a_query_that_has_no_end(kd: Path) -> None:
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"
    words = [sys.executable, "-m", "labtrack", "query", "-s", str(kd / "mlflow.db"), endless]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    busy = Path(f"/proc/{process.pid}/stat")
    while process.poll() is None and int(busy.read_text().rpartition(")")[2].split()[11]) < 100:
        pass  # until it has computed for a second, which its start does not take
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (130, "Stopped.")


def test_a_copy_at_another_place_counts_once(called: Called, tmp_path: Path) -> None:
    Recorded(tmp_path / "run-1.db").run("one", metrics={"f1": [0.5]}, run_id="a" * 32)
    tags = {"labtrack.source_run_id": "a" * 32}
    Recorded(tmp_path / "run-2.db").run("one", metrics={"f1": [0.5]}, run_id="b" * 32, tags=tags)
    code, out, err = called("leaderboard --metric f1", tmp_path)
    assert code == 0 and "(1 rows)" in out and "1 runs are in more than one source" in err
