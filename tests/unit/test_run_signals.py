"""`labtrack run` as the parent of a real command: signals, exit codes, terminals, and labtrack's own failures."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

LABTRACK = [sys.executable, "-m", "labtrack", "run", "--no-sync"]
COUNTS = """
import os, signal, sys, time
names = sys.argv[2:]
def seen(number, _):
    print(signal.Signals(number).name, flush=True)
for name in names:
    signal.signal(getattr(signal, name), seen)
print("ready", os.getpid(), os.getppid(), flush=True)
sys.stdin.readline()
sys.exit(int(sys.argv[1]))
"""
SIGNALS = ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGCONT", "SIGHUP", "SIGINT", "SIGQUIT", "SIGALRM", "SIGWINCH"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def run(folder: Path, *command: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LABTRACK, "-f", folder, "--", *command], capture_output=True, text=True, timeout=60, check=False, **more
    )


@contextlib.contextmanager
def started(folder: Path, code: int = 0) -> Iterator[subprocess.Popen[str]]:
    """A command that says which signals it gets, in a group of its own."""
    process = subprocess.Popen(
        [*LABTRACK, "-f", folder, "--", sys.executable, "-c", COUNTS, str(code), *SIGNALS],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@pytest.mark.parametrize("group", [False, True], ids=["to the parent", "to the group"])
def test_run_forwards_each_signal_once(folder: Path, group: bool) -> None:
    with started(folder, 5) as process:
        assert process.stdout.readline().startswith("ready")
        for name in SIGNALS:
            (os.killpg if group else os.kill)(process.pid, getattr(signal, name))
            assert process.stdout.readline().strip() == name
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stdout.read() == "", "no signal came twice"
        assert process.wait(30) == 5


@pytest.mark.parametrize("code", [0, 3, 143])
def test_run_passes_the_exit_code_through(folder: Path, code: int) -> None:
    assert run(folder, sys.executable, "-c", f"raise SystemExit({code})").returncode == code


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_run_ends_with_128_and_the_signal(folder: Path, name: str) -> None:
    done = run(folder, "sh", "-c", f"kill -{name[3:]} $$")
    assert done.returncode == 128 + getattr(signal, name)


def test_run_waits_for_a_command_that_ignores_sigterm(folder: Path) -> None:
    with started(folder, 0) as process:
        process.stdout.readline()
        process.terminate()
        assert process.stdout.readline().strip() == "SIGTERM"
        assert process.poll() is None
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait(30) == 0


def test_run_of_a_command_that_is_not_there_is_127(folder: Path) -> None:
    done = run(folder, "no-such-command-at-all")
    assert done.returncode == 127 and "no-such-command-at-all: No such file" in done.stderr


def test_run_of_what_is_no_program_is_126(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "data.txt"
    file.write_text("not a program")
    done = run(folder, str(file))
    assert done.returncode == 126 and "Permission denied" in done.stderr


def test_run_of_a_script_without_a_first_line_works_as_in_a_shell(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "script"
    file.write_text("echo from the script; exit 4\n")
    file.chmod(0o755)
    done = run(folder, str(file))
    assert (done.returncode, done.stdout) == (4, "from the script\n")


def test_run_without_a_command_is_2(folder: Path) -> None:
    done = run(folder)
    assert done.returncode == 2 and "Traceback" not in done.stderr


def test_run_gives_input_and_output_through(folder: Path) -> None:
    done = run(folder, "sh", "-c", "cat; echo wrong >&2", input="some text\n")
    assert (done.returncode, done.stdout) == (0, "some text\n") and done.stderr.endswith("wrong\n")


def test_run_passes_options_of_the_command_on(folder: Path) -> None:
    done = subprocess.run(
        [*LABTRACK, "-f", folder, "echo", "-f", "--no-sync", "--help"], capture_output=True, text=True, check=False
    )
    assert done.stdout == "-f --no-sync --help\n"


def test_run_sets_the_environment_of_the_training(folder: Path) -> None:
    env = {
        **os.environ, "MLFLOW_TRACKING_URI": "https://mlflow.test", "MLFLOW_TRACKING_USERNAME": "ada",
        "MLFLOW_TRACKING_PASSWORD": "hidden", "SLURM_JOB_ID": "5", "SLURM_CLUSTER_NAME": "c",
        "SLURM_RESTART_COUNT": "1", "MLFLOW_EXPERIMENT_NAME": "mine",
    }  # fmt: skip
    done = run(folder, "env", env=env)
    found = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    assert found["MLFLOW_TRACKING_URI"] == f"labtrack://{folder}"
    assert (found["LABTRACK_JOB"], found["LABTRACK_ATTEMPT"], found["LABTRACK_RESUME"]) == ("c/5/batch", "1", "same")
    assert Path(found["LABTRACK_JOB_TAGS"]).is_file() and found["MLFLOW_EXPERIMENT_NAME"] == "mine"
    assert not {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"} & set(found)


def test_run_inside_a_run_leaves_the_environment_alone(folder: Path, tmp_path: Path) -> None:
    env = {**os.environ, "SLURM_JOB_ID": "5", "SLURM_CLUSTER_NAME": "c"}
    inner = [*map(str, LABTRACK), "-f", str(tmp_path / "other"), "--", "env"]
    found = run(folder, *inner, env=env).stdout
    assert f"MLFLOW_TRACKING_URI=labtrack://{folder}" in found and "LABTRACK_JOB=c/5/batch\n" in found
    assert not (tmp_path / "other").exists()


def test_second_run_in_a_job_has_a_key_of_its_own_and_the_same_after_a_requeue(folder: Path) -> None:
    def keys(attempt: str, *commands: str) -> list[str]:
        env = {**os.environ, "SLURM_JOB_ID": "5", "SLURM_CLUSTER_NAME": "c", "SLURM_RESTART_COUNT": attempt}
        found = []
        for command in commands:
            done = run(folder, "sh", "-c", f"echo $LABTRACK_JOB; : {command}", env=env)
            found.append(done.stdout.strip())
        return found

    assert keys("0", "one", "two") == ["c/5/batch", "c/5/batch.1"]
    assert keys("1", "two", "three") == ["c/5/batch.1", "c/5/batch.2"]


def test_only_rank_0_makes_a_folder(folder: Path) -> None:
    env = {**os.environ, "SLURM_JOB_ID": "5", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0"}
    done = run(folder, "sh", "-c", "echo $MLFLOW_TRACKING_URI $LABTRACK_JOB $PYTHONPATH", env=env)
    assert done.stdout.startswith(f"labtrack://{folder} slurm/5/0")
    assert not (folder / "jobs").exists()


def test_a_folder_that_can_not_be_written_costs_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file" / "runs", sys.executable, "-c", "print('trained'); raise SystemExit(3)")
    assert (done.returncode, done.stdout) == (3, "trained\n")
    assert "Not a directory" in done.stderr and "Traceback" not in done.stderr


def test_a_server_that_is_none_costs_a_warning(folder: Path) -> None:
    command = [*LABTRACK[:-1], "-f", folder, "-d", "https://", "--gateway", "-oProxyCommand=x", "--", "echo", "trained"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "trained\n")
    assert "nothing is sent while the job runs" in done.stderr and "Traceback" not in done.stderr


def in_terminal(folder: Path, *command: str, options: tuple[str, ...] = (), keys: bytes = b"") -> tuple[int, str]:
    """Runs it in a terminal of its own, types keys once it is ready; gives exit code and what the terminal shows."""
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [*LABTRACK, *options, "-f", str(folder), "--", *command])  # noqa: S606
    said, typed, deadline = b"", not keys, time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            said += os.read(terminal, 65536)
        except OSError:
            break
        if not typed and b"ready" in said:
            os.write(terminal, keys)
            typed = True
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), said.decode()


TERMINAL = (
    "import os, sys; print([os.isatty(one) for one in range(3)], os.get_terminal_size(1).lines >= 0); print('x\\ny')"
)


@pytest.mark.parametrize("options", [(), ("--console",)])
def test_a_terminal_stays_one(folder: Path, options: tuple[str, ...]) -> None:
    code, said = in_terminal(folder, sys.executable, "-c", TERMINAL, options=options)
    assert code == 0 and "[True, True, True] True\r\nx\r\ny\r\n" in said


@pytest.mark.parametrize("options", [(), ("--console",)])
def test_ctrl_c_reaches_the_command_once_and_ends_the_script_around(folder: Path, options: tuple[str, ...]) -> None:
    code, said = in_terminal(folder, sys.executable, "-c", COUNTS, "7", "SIGINT", options=options, keys=b"\x03\n")
    assert said.count("SIGINT") == 1 and code == 7
    waits = "print('ready', flush=True)\nimport time\ntime.sleep(60)"
    code, _ = in_terminal(folder, sys.executable, "-c", waits, options=options, keys=b"\x03")
    # a shell that waits for it must see that the signal ended it, or it goes on with the script's next line
    assert code in (-signal.SIGINT, 128 + signal.SIGINT)


def test_console_keeps_what_is_printed(folder: Path) -> None:
    command = ["sh", "-c", "echo out; echo err >&2; printf '%s' last"]
    done = subprocess.run(
        [*LABTRACK, "--console", "-f", folder, "--", *command], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "outlast".replace("out", "out\n"))
    kept = b"".join(one.read_bytes() for one in sorted(folder.glob("jobs/*/console/*.log")))
    assert all(one in kept for one in (b"out\n", b"err\n", b"last")) and len(kept) == 12


def test_console_that_can_not_be_kept_costs_a_warning(folder: Path) -> None:
    folder.mkdir()
    (folder / "jobs").write_text("")
    command = [*LABTRACK, "--console", "-f", folder, "--", "echo", "shown"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "shown\n") and "the output is not kept" in done.stderr


def test_what_runs_beside_ends_soon_after_its_parent_is_killed(folder: Path) -> None:
    options = ["--sync-timeout", "1", "-d", "http://127.0.0.1:9", "-f", folder]
    command = [*LABTRACK[:-1], *options, "--", sys.executable, "-c", COUNTS, "0", "SIGTERM"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline().split()[1])
    beside: list[int] = []
    deadline = time.monotonic() + 20
    while len(beside) != 2:  # the witness of signals, and what sends, which starts beside the command
        assert time.monotonic() < deadline, beside
        beside = [one for one in _children(process.pid) if one != child]
        time.sleep(0.05)
    process.kill()
    process.wait()
    os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while any(map(_is_there, beside)):
        assert time.monotonic() < deadline, "what sends must not outlive its parent"
        time.sleep(0.1)


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _is_there(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:4]
    except OSError:
        return False
