"""`labtrack follow`: which way it takes, that asking twice is asking once, what it submits.  Slurm is a stand-in."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm

from labtrack.errors import BadInputError, LabtrackError
from labtrack.run import follow as following
from labtrack.run.follow import AFTER, AGAIN, CRON, Wanted, follow, stop, wanted

JOB = {"SLURM_JOB_ID": "12"}
CRON_ALLOWED = "ScronParameters         = enable\nClusterName = c\n"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    found = FakeSlurm(tmp_path / "slurm", monkeypatch, ["sbatch", "squeue", "scontrol", "sinfo", "scancel", "scrontab"])
    found.says(sbatch="77\n", scontrol="ScronParameters = (null)\n", sinfo="main*\ntransfer\n")
    return found


@pytest.fixture
def what(tmp_path: Path) -> Wanted:
    return Wanted(tmp_path / "my runs", "https://mlflow.test", env_file="/home/ada/mlflow_env.sh")


def test_in_a_job_one_job_follows_it(fake: FakeSlurm, what: Wanted) -> None:
    done = follow(what, JOB)
    assert done.way == AFTER and done.new and "submitted job 77" in done.what
    (call,) = fake.calls("sbatch")
    assert "--dependency=afterany:12" in call
    (script,) = fake.scripts()
    assert "#SBATCH --partition=transfer\n" in script and ". /home/ada/mlflow_env.sh\n" in script
    assert "sync -s labtrack://" in script and "my%20runs" in script and "-d https://mlflow.test" in script
    assert subprocess.run(["sh", "-n"], input=script, text=True, check=False).returncode == 0


def test_asked_twice_there_is_one(fake: FakeSlurm, what: Wanted) -> None:
    follow(what, JOB)
    again = follow(what, JOB)
    assert not again.new and "job 77 follows job 12 already" in again.what
    assert len(fake.calls("sbatch")) == 1
    follow(what, {"SLURM_JOB_ID": "13"})
    assert len(fake.calls("sbatch")) == 2


def test_of_an_array_one_task_submits(fake: FakeSlurm, what: Wanted) -> None:
    for task in range(3):
        follow(what, {"SLURM_JOB_ID": str(20 + task), "SLURM_ARRAY_JOB_ID": "20", "SLURM_ARRAY_TASK_ID": str(task)})
    (call,) = fake.calls("sbatch")
    assert "--dependency=afterany:20" in call


def test_a_submission_that_fails_can_be_asked_again(fake: FakeSlurm, what: Wanted) -> None:
    fake.says(sbatch=[1, "sbatch: error: invalid account"], sinfo="")
    with pytest.raises(LabtrackError, match="invalid account"):
        follow(what, JOB)
    fake.says(sbatch="78\n", sinfo="")
    assert follow(what, JOB).new


def test_scrontab_is_taken_where_the_site_allows_it(fake: FakeSlurm, what: Wanted) -> None:
    fake.scrontab = "# mine\n0 1 * * * true\n"
    fake.says(scontrol=CRON_ALLOWED, sinfo="main*\n")
    assert follow(what, {}).way == CRON and not follow(what, {}).new
    assert fake.scrontab.startswith("# mine\n0 1 * * * true\n") and fake.scrontab.count("*/10 * * * *") == 1
    assert "#SCRON --time=00:30:00\n" in fake.scrontab and fake.calls("sbatch") == []
    assert stop(what.folder) == ["removed the line of scrontab"]
    assert fake.scrontab == "# mine\n0 1 * * * true\n"
    assert stop(what.folder) == []


def test_otherwise_a_job_submits_itself_again(fake: FakeSlurm, what: Wanted) -> None:
    assert follow(what, {}).way == AGAIN
    (script,) = fake.scripts()
    assert "--begin=now+10minutes --dependency=singleton" in script
    name = next(line.partition("=")[2] for line in script.splitlines() if "--job-name" in line)
    fake.says(sbatch="78\n", squeue=f"77 {name}\n99 another\n", scontrol="", sinfo="")
    again = follow(what, {})
    assert not again.new and "job 77 comes again" in again.what and len(fake.calls("sbatch")) == 1
    assert stop(what.folder) == [f"cancelled job 77 ({name})"]
    assert fake.calls("scancel") == [["scancel", "77"]]


def test_a_job_that_comes_again_ends_when_it_was_stopped(fake: FakeSlurm, what: Wanted) -> None:
    follow(what, {})
    (script,) = fake.scripts()
    stop(what.folder)
    done = subprocess.run(["sh"], input=script, text=True, capture_output=True, check=False, env=dict(os.environ))
    assert done.returncode == 0 and len(fake.calls("sbatch")) == 1, "it does not submit itself any more"


def test_stop_leaves_other_folders_alone(fake: FakeSlurm, what: Wanted, tmp_path: Path) -> None:
    follow(what, {})
    name = next(line.partition("=")[2] for line in fake.scripts()[0].splitlines() if "--job-name" in line)
    fake.says(squeue=f"77 {name}\n", sinfo="")
    assert stop(tmp_path / "others") == []


def test_default_partition_is_said(fake: FakeSlurm, what: Wanted) -> None:
    fake.says(sbatch="77\n", sinfo="main*\ngpu\n")
    assert "default partition" in follow(what, JOB).lines[0]
    assert "--partition" not in fake.scripts()[0]


def test_script_holds_no_login(fake: FakeSlurm, what: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden")
    follow(what, JOB)
    assert "hidden" not in fake.scripts()[0]
    assert "#SBATCH --export=HOME,USER" in fake.scripts()[0]


def test_without_slurm_the_other_ways_are_named(what: Wanted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeSlurm(tmp_path / "none", monkeypatch, [])
    with pytest.raises(LabtrackError, match="there is no Slurm here") as error:
        follow(what, {})
    assert "--watch" in error.value.hint


@pytest.mark.parametrize("partition", ["a b", "x;y", "$(id)"])
def test_a_partition_that_is_none_is_refused(tmp_path: Path, partition: str) -> None:
    with pytest.raises(BadInputError, match="is no partition"):
        wanted(tmp_path, "https://mlflow.test", partition, None, {})


def test_without_a_server_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="not known to which server"):
        wanted(tmp_path, None, None, None, {"MLFLOW_TRACKING_URI": "labtrack:///x"})


def test_answer_of_sbatch_that_is_none_is_told() -> None:
    assert following._number("12;cluster\n") == "12"
    with pytest.raises(LabtrackError, match="no job's number"):
        following._number("Submitted batch job 12")
