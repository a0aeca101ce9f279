"""How a job ended: sacct's answers read, judged, and written to recordings.  Slurm is a stand-in: see fake_slurm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_slurm import FakeSlurm, job
from job_recorded import left, read, record

from labtrack.cli import cli
from labtrack.cli import sync as syncing
from labtrack.errors import LabtrackError
from labtrack.run import sacct, slurm, verdict
from labtrack.run.reconcile import reconcile
from labtrack.tracking.destination import Destination

FIELDS = ("JobID", "State", "ExitCode")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "c")
    return FakeSlurm(tmp_path / "slurm", monkeypatch, ["sacct", "scontrol", "squeue"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs"


TABLE = [
    ("COMPLETED", "FINISHED"), ("FAILED", "FAILED"), ("BOOT_FAIL", "FAILED"), ("NODE_FAIL", "FAILED"),
    ("OUT_OF_MEMORY", "FAILED"), ("TIMEOUT", "KILLED"), ("DEADLINE", "KILLED"), ("CANCELLED by 0", "KILLED"),
    ("PREEMPTED", "KILLED"), ("REQUEUED", "RUNNING"), ("SUSPENDED", "RUNNING"), ("RESIZING", "RUNNING"),
    ("PENDING", "RUNNING"), ("RUNNING", "RUNNING"), ("COMPLETING", "RUNNING"), ("SOMETHING_NEW", "RUNNING"),
]  # fmt: skip


def test_status_by_slurms_state(fake: FakeSlurm, folder: Path) -> None:
    runs = {number: left(folder, f"c/{number}/batch") for number in range(len(TABLE))}
    fake.says([job(f"{number}{step}", TABLE[number][0]) for number in runs for step in ("", ".batch")])
    outcome = reconcile(folder)
    for number, (state, status) in enumerate(TABLE):
        run = read(folder, runs[number])
        assert (state, run.status) == (state, status)
        assert (run.id in outcome.left) == (status == "RUNNING"), state
        assert run.tags.get("slurm.end", "") == ("" if status == "RUNNING" else state.partition(" ")[0])


@pytest.mark.parametrize(
    ("key", "state", "status"),
    [
        ("c/5/batch.0", "COMPLETED", "FAILED"),  # the script went on after its process
        ("c/5/interactive.0", "COMPLETED", "FAILED"),
        ("c/5/3.0", "COMPLETED", "FINISHED"),  # a step's end is its process's own
        ("c/5/batch.1", "COMPLETED", "FINISHED"),
        ("c/5/batch.0", "TIMEOUT", "KILLED"),
    ],
)
def test_a_process_that_nobody_watched(fake: FakeSlurm, folder: Path, key: str, state: str, status: str) -> None:
    run_id = left(folder, key)
    fake.says([job(f"5{step}", state) for step in ("", ".batch", ".3")])
    reconcile(folder)
    run = read(folder, run_id)
    assert (run.status, run.tags["slurm.end"]) == (status, state)
    assert ("labtrack.end" in run.tags) == (status == "FAILED")


def test_tags_say_why(fake: FakeSlurm, folder: Path) -> None:
    run_id = left(folder)
    fake.says([
        job("5", "OUT_OF_MEMORY", ExitCode="0:125"),
        job("5.batch", "OUT_OF_MEMORY", ExitCode="0:9", MaxRSS="7900M"),
        job("5.0", "COMPLETED", MaxRSS="100M"),
    ])  # fmt: skip
    reconcile(folder)
    wanted = {
        "slurm.end": "OUT_OF_MEMORY", "slurm.exit_code": "0", "slurm.exit_signal": "125", "slurm.nodes": "n1",
        "slurm.max_rss_bytes": str(7900 * 2**20), "slurm.memory_bytes": str(8 * 2**30), "slurm.elapsed_s": "3600",
        "slurm.time_limit_s": "3600", "slurm.gpu_hours": "2",
    }  # fmt: skip
    tags = read(folder, run_id).tags
    assert {name: tags.get(name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("row", "node"),
    [
        ({"FailedNode": "n7", "NNodes": "4", "NodeList": "n[5-8]"}, "n7"),
        ({"FailedNode": "", "NNodes": "1", "NodeList": "n5"}, "n5"),  # Debian 12's Slurm names none
        ({"FailedNode": "None assigned", "NNodes": "1", "NodeList": "n5"}, "n5"),
        ({"FailedNode": "", "NNodes": "4", "NodeList": "n[5-8]"}, None),
        ({"FailedNode": "", "NNodes": "1", "NodeList": "None assigned"}, None),
    ],
)
def test_which_node_failed(fake: FakeSlurm, folder: Path, row: dict[str, str], node: str | None) -> None:
    run_id = left(folder)
    fake.says([job("5", "NODE_FAIL", **row)])
    reconcile(folder)
    assert read(folder, run_id).tags.get("slurm.failed_node") == node


def test_who_cancelled_a_job(fake: FakeSlurm, folder: Path) -> None:
    run_id = left(folder)
    fake.says([job("5", "CANCELLED by 0")])
    reconcile(folder)
    assert read(folder, run_id).tags["slurm.cancelled_by"] == "root"


def test_an_end_before_the_run_began_is_not_taken(fake: FakeSlurm, folder: Path) -> None:
    run_id = left(folder)
    fake.says([job("5", "FAILED", End="1000")])
    reconcile(folder)
    run = read(folder, run_id)
    assert run.end_time >= run.start_time


def attempts(*states: str) -> list[dict[str, object]]:
    return [job("5", state, Submit=str(1760000000 + n), Start=str(1760000000 + n)) for n, state in enumerate(states)]


@pytest.mark.parametrize(
    ("states", "attempt", "status"),
    [
        (["PREEMPTED", "RUNNING"], 0, None),
        (["PREEMPTED", "PENDING"], 0, None),
        (["REQUEUED", "RUNNING"], 1, None),
        (["REQUEUED", "COMPLETED"], 1, "FINISHED"),
        (["REQUEUED", "REQUEUED", "TIMEOUT"], 2, "KILLED"),
        (["NODE_FAIL", "COMPLETED"], 0, "FAILED"),
        (["PREEMPTED", "COMPLETED"], 0, "KILLED"),
        (["COMPLETED"], 3, "FINISHED"),  # a site that shows only the last
    ],
)
def test_attempt_of_a_requeued_job(states: list[str], attempt: int, status: str | None) -> None:
    text = "\n".join(
        "|".join(str(row[name]) for name in ("JobID", "State", "Submit", "Start")) for row in attempts(*states)
    )
    records = sacct.parse(text, ("JobID", "State", "Submit", "Start")).records["5"]
    found = verdict.judge(records, attempt)
    assert (found.status if found else None) == status


@pytest.mark.parametrize(
    ("rows", "step", "end"),
    [
        (["5|FAILED|1:0", "5.batch|FAILED|1:0", "5.0|OUT_OF_MEMORY|0:125"], "batch", "OUT_OF_MEMORY"),
        (["5|COMPLETED|0:0", "5.0|FAILED|2:0"], "0", "FAILED"),
        (["5|COMPLETED|0:0", "5.0|FAILED|2:0", "5.1|COMPLETED|0:0"], "1", "COMPLETED"),
        (["5|TIMEOUT|0:0", "5.0|CANCELLED|0:15"], "0", "TIMEOUT"),
        (["5|RUNNING|0:0", "5.0|FAILED|2:0", "5.1|RUNNING|0:0"], "0", "FAILED"),
        (["5|RUNNING|0:0", "5.0|FAILED|2:0", "5.1|RUNNING|0:0"], "1", None),
        (["5|RUNNING|0:0", "5.0|FAILED|2:0"], "batch", None),
    ],
)
def test_step_of_a_run_counts(rows: list[str], step: str, end: str | None) -> None:
    found = verdict.judge(sacct.parse("\n".join(rows), FIELDS).records["5"], 0, step)
    assert (found.tags["slurm.end"] if found else None) == end


def test_step_of_a_run_counts_where_one_command_has_started_several(fake: FakeSlurm, folder: Path) -> None:
    first, second = (left(folder, tags={"slurm.step_id": step}) for step in "01")
    fake.says([job("5", "RUNNING"), job("5.0", "OUT_OF_MEMORY"), job("5.1", "RUNNING")])
    reconcile(folder)
    assert (read(folder, first).status, read(folder, second).status) == ("FAILED", "RUNNING")


def test_a_job_that_sacct_does_not_know_yet_is_left_and_asked_again(fake: FakeSlurm, folder: Path) -> None:
    run_id = left(folder)
    fake.says([], scontrol=[1, "slurm_load_jobs error: Invalid job id specified"])
    assert list(reconcile(folder).left) == [run_id]
    fake.says([job("5", "FAILED", ExitCode="1:0")])
    assert [one.run_id for one in reconcile(folder).changes] == [run_id]
    assert reconcile(folder).changes == []


def test_the_same_number_on_another_cluster_is_another_job(fake: FakeSlurm, folder: Path) -> None:
    run_id = left(folder, "d/5/batch")
    fake.says([job("5", "FAILED")], scontrol="ClusterName = c\n")
    assert list(reconcile(folder).left) == [run_id]
    assert fake.calls("sacct")[-1][5:7] == ["-M", "d"]


def test_arrays_and_het_jobs_are_asked_by_their_ids(fake: FakeSlurm, folder: Path) -> None:
    array, het = left(folder, "c/7_3/batch"), left(folder, "c/8+1/0")
    fake.says([job("7_3", "TIMEOUT"), job("8+1", "COMPLETED"), job("7_4", "FAILED")])
    reconcile(folder)
    assert (read(folder, array).status, read(folder, het).status) == ("KILLED", "FINISHED")
    assert "7_3,8+1" in fake.calls("sacct")[-1]


def test_fields_that_a_site_lacks_are_not_asked_for(fake: FakeSlurm, folder: Path) -> None:
    left(folder)
    fake.says([job("5", "FAILED")], fields="JobID JobIDRaw State ExitCode End")
    assert len(reconcile(folder).changes) == 1
    assert "--format=JobIDRaw,JobID,State,ExitCode,End" in fake.calls("sacct")[-1]


def test_a_site_without_the_needed_fields_is_told(fake: FakeSlurm) -> None:
    fake.says([], fields="JobName")
    with pytest.raises(LabtrackError, match="does not know ExitCode, JobID, JobIDRaw, State"):
        sacct.ask(["5"])


def test_runs_of_others_and_ended_ones_are_left_alone(fake: FakeSlurm, folder: Path) -> None:
    ended = left(folder, status="FINISHED")
    without = record(folder)
    strange = record(folder, tags={"labtrack.job": "what is this"})
    fake.says([job("5", "FAILED")])
    assert reconcile(folder).changes == [] and fake.calls("sacct") == []
    assert [read(folder, one).status for one in (ended, without, strange)] == ["FINISHED", "RUNNING", "RUNNING"]


def test_runs_nested_in_a_jobs_run_end_with_it(fake: FakeSlurm, folder: Path) -> None:
    parent = left(folder)
    child = record(folder, tags={"mlflow.parentRunId": parent})
    done = record(folder, tags={"mlflow.parentRunId": parent}, status="FINISHED")
    fake.says([job("5", "TIMEOUT")])
    reconcile(folder)
    assert [read(folder, one).status for one in (parent, child, done)] == ["KILLED", "KILLED", "FINISHED"]


def test_dry_run_changes_nothing(fake: FakeSlurm, folder: Path) -> None:
    run_id = left(folder)
    fake.says([job("5", "FAILED")])
    assert len(reconcile(folder, dry_run=True).changes) == 1
    assert read(folder, run_id).status == "RUNNING"


SCONTROL = (
    "JobId=5 JobName=a b=c UserId=ada(1000) Priority=1 JobState=TIMEOUT Reason=TimeLimit Dependency=(null) Restarts=0 "
    "ExitCode=0:15 RunTime=00:01:00 StartTime=1760000100 EndTime=1760003700 NodeList=n1 AllocTRES=cpu=4,gres/gpu=1"
)


@pytest.mark.parametrize("accounting", [False, True])
def test_without_accounting_scontrol_is_asked(fake: FakeSlurm, folder: Path, accounting: bool) -> None:
    run_id = left(folder)
    fake.says(sacct=[1, "Slurm accounting storage is disabled"], fields="", scontrol=SCONTROL)
    if not accounting:
        fake.has_not("sacct")
    outcome = reconcile(folder)
    run = read(folder, run_id)
    assert run.status == "KILLED" and run.tags["slurm.end"] == "TIMEOUT" and run.tags["slurm.gpu_hours"] == "1"
    assert len(outcome.notes) == 1 and "sacct" in outcome.notes[0]


def test_fields_of_scontrol() -> None:
    found = slurm.fields_of("JobId=5 JobName=two words Command=/a b/c.sh --x=1 JobState=FAILED Reason=None ")
    assert (found["JobName"], found["JobState"], found["Reason"]) == ("two words", "FAILED", "None")


def test_sacct_that_hangs_is_told(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "slurm" / "bin" / "sacct"
    file.write_text("#!/bin/sh\nexec sleep 30\n")
    monkeypatch.setattr(slurm.ask, "__defaults__", (0.2,))
    with pytest.raises(LabtrackError, match="sacct gave no answer within 0 s"):
        sacct.ask(["5"])


def test_sacct_answer_that_can_not_be_read_is_told_and_the_rest_is_used(
    fake: FakeSlurm, folder: Path, tmp_path: Path
) -> None:
    run_id = left(folder)
    file = tmp_path / "slurm" / "bin" / "sacct"
    file.write_text(
        "#!/bin/sh\ncase $1 in --helpformat) echo JobID JobIDRaw State ExitCode;;\n"
        "*) printf 'slurm: hello\\n5|5|FAILED|1:0\\n5|5|FAI\\n';; esac\n"
    )
    outcome = reconcile(folder)
    assert read(folder, run_id).status == "FAILED"
    assert len(outcome.notes) == 1 and outcome.notes[0].startswith("2 lines of sacct's answer can't be read")


@pytest.fixture
def call() -> Callable[..., object]:
    return lambda *words: CliRunner().invoke(cli, [*map(str, words)], standalone_mode=False, catch_exceptions=True)


def test_command_shows_what_it_did(fake: FakeSlurm, folder: Path, call: Callable[..., object]) -> None:
    run_id = left(folder)
    fake.says([job("5", "CANCELLED by 0", ExitCode="0:15")])
    done = call("reconcile", "-s", folder)
    assert "CANCELLED, by root, signal 15" in done.output and run_id in done.output
    assert "1 runs ended, 0 left RUNNING, 0 failed." in done.output


def test_command_of_a_folder_without_recordings_is_bad_input(
    fake: FakeSlurm, tmp_path: Path, call: Callable[..., object]
) -> None:
    done = call("reconcile", "-s", tmp_path)
    assert done.exception.code == 2 and "holds no recordings of jobs" in done.exception.what


class Answers:
    """A tracking server that has one run of Ada's and one of Grace's: a stand-in for what reconcile asks."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, object]] = []

    def ask(self, _: object, path: str, data: object = None, **more: object) -> dict[str, object]:
        self.asked.append((path, data))
        if path == "experiments/search":
            return {"experiments": [{"experiment_id": "1", "name": "x"}]}
        runs = [
            {
                "info": {
                    "run_id": user * 4,
                    "experiment_id": "1",
                    "status": "RUNNING",
                    "user_id": user,
                    "start_time": 1,
                },
                "data": {"tags": [{"key": "labtrack.job", "value": "c/5/batch"}]},
            }
            for user in ("ada", "grace")
        ]
        return {"runs": runs} if path == "runs/search" else {}


def test_runs_at_a_server_are_ended_but_other_peoples(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    server, sent = Answers(), []
    monkeypatch.setattr(Destination, "ask", server.ask)
    monkeypatch.setattr(Destination, "log_batch", lambda _, run_id, tags: sent.append((run_id, tags["slurm.end"])))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    fake.says([job("5", "TIMEOUT")])
    outcome = reconcile(None, "https://mlflow.test")
    assert [one.run_id for one in outcome.changes] == ["ada" * 4]
    assert sent == [("ada" * 4, "TIMEOUT")]
    updated = [data for path, data in server.asked if path == "runs/update"]
    assert updated == [{"run_id": "ada" * 4, "status": "KILLED", "end_time": 1760003700000}]


def test_command_gives_json(fake: FakeSlurm, folder: Path, call: Callable[..., object]) -> None:
    run_id = left(folder)
    fake.says([job("5", "COMPLETED")])
    data = json.loads(call("reconcile", "-s", folder, "--json", "--dry-run").output)
    assert data["changes"][0]["run_id"] == run_id and data["changes"][0]["status"] == "FINISHED"


@pytest.mark.parametrize("option", [(), ("--no-reconcile",)])
def test_sync_asks_slurm_first(
    fake: FakeSlurm, folder: Path, call: Callable[..., object], monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...]
) -> None:
    run_id = left(folder)
    fake.says([job("5", "TIMEOUT")])
    monkeypatch.setenv("LABTRACK_SYNC_PATIENCE", "0.1")
    monkeypatch.setattr(syncing, "_stop_when_told", lambda **_: [])  # this process keeps its signals
    done = call("sync", "-s", folder, "-d", "http://127.0.0.1:9", *option)
    assert (f"run {run_id} KILLED: TIMEOUT" in done.stderr) == (not option)
    assert read(folder, run_id).status == ("RUNNING" if option else "KILLED")
    assert bool(fake.calls("sacct")) == (not option)
