"""What `labtrack run` takes from the environment: the job's key, attempt, rank and tags; and what it must not show."""

from __future__ import annotations

import string
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labtrack.local import git
from labtrack.recorder.scheduler import Key, find_job, parse_key, rank_of
from labtrack.run import code
from labtrack.run.masking import MASK, is_secret, mask, mask_command

JOB = {"SLURM_JOB_ID": "12", "SLURM_CLUSTER_NAME": "nibi"}
ARRAY = {**JOB, "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "3"}
HET = {**JOB, "SLURM_HET_SIZE": "2", "SLURM_JOB_ID_HET_GROUP_0": "11", "SLURM_JOB_ID_HET_GROUP_1": "12"}


@pytest.mark.parametrize(
    ("env", "key"),
    [
        (JOB, "nibi/12/batch"),
        ({**JOB, "SLURM_STEP_ID": "0"}, "nibi/12/0"),
        ({**JOB, "SLURM_STEP_ID": "4294967291"}, "nibi/12/batch"),
        ({**JOB, "SLURM_STEP_ID": "4294967290"}, "nibi/12/interactive"),
        (ARRAY, "nibi/10_3/batch"),
        ({**ARRAY, "SLURM_STEP_ID": "1"}, "nibi/10_3/1"),
        (HET, "nibi/11+1/batch"),
        ({"SLURM_JOB_ID": "12"}, "slurm/12/batch"),
        ({**JOB, "SLURM_CLUSTER_NAME": "a b/c"}, "a-b-c/12/batch"),
        ({"PBS_JOBID": "77.pbs01"}, "pbs/77/batch"),
        ({"PBS_JOBID": "77[].pbs01", "PBS_ARRAY_INDEX": "4"}, "pbs/77_4/batch"),
        ({"LSB_JOBID": "5", "LSB_JOBINDEX": "0"}, "lsf/5/batch"),
        ({"LSB_JOBID": "5", "LSB_JOBINDEX": "2"}, "lsf/5_2/batch"),
        ({**JOB, "PBS_JOBID": "77"}, "nibi/12/batch"),
    ],
)
def test_key_of_a_job(env: dict[str, str], key: str) -> None:
    job = find_job(env)
    assert job.key == key
    assert job.numbered(2).key == f"{key}.2"


def test_key_without_a_scheduler_is_random() -> None:
    keys = {find_job({}).key for _ in range(5)}
    assert len(keys) == 5 and all(one.startswith("local/") for one in keys)
    assert parse_key(keys.pop()).cluster == "local"


@given(
    st.fixed_dictionaries(
        {name: st.text(max_size=12) for name in ("SLURM_JOB_ID", "SLURM_CLUSTER_NAME", "SLURM_STEP_ID")},
        optional={
            name: st.text(max_size=12)
            for name in (
                "SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_HET_SIZE",
                "SLURM_JOB_END_TIME", "SLURM_PROCID", "PBS_JOBID", "LSB_JOBID",
            )
        },
    )
)  # fmt: skip
def test_any_environment_has_a_key_that_can_be_read(env: dict[str, str]) -> None:
    job = find_job(env)
    assert parse_key(job.key) is not None
    assert job.key.count("/") == (1 if job.scheduler == "local" else 2)
    assert job.attempt >= 0 and job.rank >= 0


@given(st.integers(1, 10**9), st.integers(0, 10**6), st.sampled_from(["", "+", "_"]), st.integers(0, 99))
def test_key_comes_apart_as_it_was_put_together(job: int, part: int, kind: str, step: int) -> None:
    number = f"{job}{kind}{part}" if kind else str(job)
    assert parse_key(f"c/{number}/{step}") == Key("c", number, str(step))
    assert parse_key(f"c/{number}/batch.4") == Key("c", number, "batch")
    assert parse_key(f"c/{number}/{step}").is_slurms


@pytest.mark.parametrize("text", ["", "12", "a/b", "a/b/c/d", "a/b/c", "/1/batch", "local/", "a/1/batch.x"])
def test_key_of_somebody_else_is_none(text: str) -> None:
    assert parse_key(text) is None


@pytest.mark.parametrize("key", ["pbs/7/batch", "lsf/7/batch", "local/ab12", "nibi/x/batch"])
def test_slurm_is_not_asked_about_other_schedulers(key: str) -> None:
    assert not parse_key(key).is_slurms


@pytest.mark.parametrize(
    ("env", "rank"),
    [
        ({}, 0),
        ({"SLURM_PROCID": "0"}, 0),
        ({"SLURM_PROCID": "3"}, 3),
        ({"RANK": "2"}, 2),
        ({"OMPI_COMM_WORLD_RANK": "1"}, 1),
        ({"PMI_RANK": "5"}, 5),
        ({"SLURM_PROCID": "0", "RANK": "2"}, 2),  # of srun torchrun
        ({"SLURM_PROCID": "1", "RANK": "0"}, 1),
        ({"RANK": "none"}, 0),
    ],
)
def test_rank_is_0_where_all_say_so(env: dict[str, str], rank: int) -> None:
    assert rank_of(env) == rank


def test_attempt_is_slurms_restart_count() -> None:
    assert find_job(JOB).attempt == 0
    assert find_job({**JOB, "SLURM_RESTART_COUNT": "2"}).attempt == 2
    assert find_job({**JOB, "SLURM_RESTART_COUNT": "x"}).attempt == 0


def test_tags_say_what_slurm_says() -> None:
    env = {
        **ARRAY, "SLURM_RESTART_COUNT": "1", "SLURM_JOB_PARTITION": "gpu", "SLURM_JOB_QOS": "normal",
        "SLURM_JOB_ACCOUNT": "def-ada", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4", "SLURM_MEM_PER_NODE": "8000", "SLURM_SUBMIT_DIR": "/home/ada",
        "SLURM_SUBMIT_HOST": "login1", "SLURM_JOB_END_TIME": "1760000000", "SLURM_STEP_ID": "4294967291",
        "LOADEDMODULES": "StdEnv/2023:python/3.11", "APPTAINER_CONTAINER": "/scratch/a.sif",
    }  # fmt: skip
    tags = code.tags_of(find_job(env), ["python", "train.py", "--lr", "1"], env, Path("/work"))
    wanted = {
        "slurm.job_id": "12", "slurm.array_job_id": "10", "slurm.array_task_id": "3", "slurm.restart_count": "1",
        "slurm.partition": "gpu", "slurm.qos": "normal", "slurm.account": "def-ada", "slurm.nodes": "n[1-2]",
        "slurm.node_count": "2", "slurm.gpus_on_node": "4", "slurm.memory_per_node_mb": "8000",
        "slurm.submit_dir": "/home/ada", "slurm.submit_host": "login1",
        "slurm.planned_end": "2025-10-09T08:53:20+00:00", "labtrack.modules": "StdEnv/2023, python/3.11",
        "labtrack.container": "/scratch/a.sif", "labtrack.command": "python train.py --lr 1",
        "mlflow.source.name": "train.py", "labtrack.job": "nibi/10_3/batch", "labtrack.attempt": "1",
    }  # fmt: skip
    assert {name: tags.get(name) for name in wanted} == wanted
    assert "slurm.step_id" not in tags


@pytest.mark.parametrize(
    ("command", "image"),
    [
        ("apptainer exec --nv image.sif python train.py", "image.sif"),
        ("srun singularity run docker://python:3.11 x", "docker://python:3.11"),
        ("srun --container-image=nvcr.io/x python train.py", "nvcr.io/x"),
        ("srun --container-image nvcr.io/x python train.py", "nvcr.io/x"),
        ("python train.py image.sif", ""),
    ],
)
def test_image_of_a_command(command: str, image: str) -> None:
    assert code.image_in(command.split()) == image


HIDDEN = "s3cr3t-value"


@pytest.mark.parametrize(
    "command",
    [
        ["python", "t.py", "--password", HIDDEN],
        ["python", "t.py", f"--password={HIDDEN}"],
        ["python", "t.py", f"--db-password={HIDDEN}"],
        ["python", "t.py", "--hf_token", HIDDEN],
        ["python", "t.py", f"logger.api_key={HIDDEN}"],
        ["python", "t.py", f"+wandb.apiKey={HIDDEN}"],
        ["env", f"TOKEN={HIDDEN}", "python", "t.py"],
        ["env", f"AWS_SECRET_ACCESS_KEY={HIDDEN}", "python"],
        ["srun", f"--export=ALL,WANDB_API_KEY={HIDDEN},X=1", "python"],
        ["bash", "-c", f"TOKEN={HIDDEN} python t.py"],
        ["bash", "-c", f"python t.py --password {HIDDEN} --lr 1"],
        ["bash", "-c", f"python t.py --password '{HIDDEN}'"],
        ["git", "clone", f"https://ada:{HIDDEN}@example.org/x.git"],
        ["curl", "-H", f"Authorization: Bearer {HIDDEN}"],
        ["python", "t.py", f"postgresql://u:{HIDDEN}@db/x"],
    ],
)
def test_command_shows_no_secret(command: list[str]) -> None:
    shown = mask_command(command)
    assert HIDDEN not in shown and MASK in shown


def test_command_shows_no_secret_of_the_environment() -> None:
    shown = mask_command(["python", "t.py", "--user", HIDDEN], {"MLFLOW_TRACKING_PASSWORD": HIDDEN})
    assert shown == "python t.py --user ***"


def test_working_directory_is_no_secret() -> None:
    env = {"PWD": "/scratch/ada/project", "OLDPWD": "/scratch/ada/x", "PGPASSFILE": "/home/ada/.pgpass"}
    tags = code.tags_of(find_job({}), ["python", "/scratch/ada/project/t.py"], env, Path("/scratch/ada/project"))
    assert tags["labtrack.cwd"] == "/scratch/ada/project"
    assert tags["labtrack.command"] == "python /scratch/ada/project/t.py"


def test_command_shows_no_token_of_a_known_shape() -> None:
    token = "ghp_" + "a" * 36
    assert token not in mask(f"python t.py {token}")


@pytest.mark.parametrize(
    "command",
    [
        "python train.py --tokenizer bert --max-tokens 512 --pad-token x --lr 1e-3",
        "python train.py --keep-key loss --author ada --compass north",
        "srun --ntasks=4 python train.py data.path=/scratch/x model=unet",
        "python train.py --monkey=1 --pass-rate 0.5 --password-file x",
    ],
)
def test_command_shows_what_is_no_secret(command: str) -> None:
    assert mask_command(command.split()) == command


@given(st.text(string.ascii_letters + string.digits, min_size=8, max_size=20).filter(lambda one: one not in "password"))
def test_no_value_of_a_password_option_is_shown(value: str) -> None:
    assert value not in mask_command(["train", "--password", value])
    assert value not in mask_command(["train", f"--password={value}"])


@pytest.mark.parametrize("name", ["PASSWORD", "db_passwd", "hf-token", "apiKey", "API_KEY", "secret", "HF_TOKEN"])
def test_names_of_secrets(name: str) -> None:
    assert is_secret(name)


def test_git_tells_the_remote_without_its_login_and_the_diff(tmp_path: Path) -> None:
    def do(*words: str) -> None:
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    do("init", "-q")
    (tmp_path / "a.py").write_text("x = 1\n")
    do("add", "a.py")
    do("commit", "-qm", "one")
    do("remote", "add", "origin", f"https://ada:{HIDDEN}@example.org/x.git")
    (tmp_path / "a.py").write_text(f"f(token=x)\nx = '{HIDDEN}'\nurl = 'https://a:b@c/'\n")
    assert git.state(tmp_path).remote == "https://example.org/x.git"
    facts = code.with_code({}, {"DB_PASSWORD": HIDDEN}, tmp_path)
    assert facts.tags["mlflow.source.git.repoURL"] == "https://example.org/x.git"
    assert facts.tags["git.dirty"] == "true" and "+f(token=x)" in facts.diff
    assert HIDDEN not in facts.diff and "a:b" not in facts.diff


def test_git_remote_of_ssh_is_kept() -> None:
    assert git._without_login("git@example.org:x.git") == "git@example.org:x.git"


def test_diff_is_cut_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git, "state", lambda _: git.State("c", diff="x" * 3_000_000))
    diff = code.with_code({}, {}, tmp_path).diff
    assert len(diff) < 1_100_000 and "cut: the diff has" in diff
