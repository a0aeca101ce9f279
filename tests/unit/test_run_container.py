"""`labtrack run --container`.  apptainer is not in Debian: a script stands in for it, as strict about folders."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from labtrack.errors import BadInputError
from labtrack.run import recording
from labtrack.run.container import Container, container_of

# Like the real one: it refuses folders that are not there, and has programs of its own.
APPTAINER = """#!/bin/sh -e
printf '%s\\n' "$@" >>"$APPTAINER_CALLS"
[ "$1" = exec ] || exit 64
shift
while [ "${1#--}" != "$1" ]; do
    if [ "$1" = --bind ]; then
        [ -e "$2" ] || { echo "FATAL: mount source $2 doesn't exist" >&2; exit 255; }
        shift
    fi
    shift
done
image=$1
shift
PATH=$image/bin:/usr/bin:/bin exec "$@"
"""
TRAIN = "import os; print(os.environ['MLFLOW_TRACKING_URI']); print(os.environ.get('PYTHONPATH', ''))"


@pytest.fixture
def there(tmp_path: Path) -> Mapping[str, str]:
    """An environment with the stand-in, `image` beside it with a Python in it, and no other Python on the PATH."""
    for place, text in (("bin/apptainer", APPTAINER), ("bin/srun", '#!/bin/sh -e\nshift 2\nexec "$@"\n')):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(text)
        (tmp_path / place).chmod(stat.S_IRWXU)
    (tmp_path / "image/bin").mkdir(parents=True)
    (tmp_path / "image/bin/python").symlink_to(sys.executable)
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "LABTRACK_", "SLURM_"))}
    return {**plain, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "APPTAINER_CALLS": str(tmp_path / "calls")}


def _run(env: Mapping[str, str], folder: Path, *command: str, image: str = "image") -> subprocess.CompletedProcess[str]:
    options = ["-f", str(folder), "--no-sync", "--container", image]
    return subprocess.run(
        [sys.executable, "-m", "labtrack", "run", *options, "--", *command], env=dict(env),
        cwd=Path(env["APPTAINER_CALLS"]).parent, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_the_command_is_in_the_image_and_sees_the_folder(tmp_path: Path, there: Mapping[str, str]) -> None:
    done = _run(there, tmp_path / "runs", "python", "-c", f"{TRAIN}; raise SystemExit(7)")
    assert done.returncode == 7, done.stderr
    address, lent = done.stdout.splitlines()
    assert address == f"labtrack://{tmp_path / 'runs'}"
    assert lent.startswith(f"{tmp_path / 'runs'}/lib/labtrack-")  # one file, in the folder that the image sees
    calls = (tmp_path / "calls").read_text()
    assert (
        calls.count(f"exec\n--bind\n{tmp_path / 'runs'}\n{tmp_path / 'image'}\npython\n-c\n") == 3
    )  # asked twice, then the command
    (tags,) = (tmp_path / "runs" / recording.JOBS).glob("*/tags.json")
    assert json.loads(tags.read_text())["labtrack.container"] == str(tmp_path / "image")
    assert json.loads(tags.read_text())["labtrack.command"].startswith("python -c ")


def test_srun_stays_outside(tmp_path: Path, there: Mapping[str, str]) -> None:
    done = _run(there, tmp_path / "runs", "srun", "-n", "1", "python", "-c", TRAIN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("labtrack://")


@pytest.mark.parametrize(
    ("command", "start"),
    [
        (["python", "train.py"], 0),
        (["./train.sh"], 0),
        (["srun", "python3.12", "train.py"], 1),
        (["/opt/slurm/bin/srun", "--mpi=pmix", "-c", "2", "python", "train.py"], 4),
        (["mpirun", "-np", "4", "sh", "-c", "python train.py"], 3),
    ],
)
def test_where_the_image_begins(command: list[str], start: int) -> None:
    found = Container("apptainer", "a.sif").wrapped(command, [Path("/scratch/me")], {"PATH": "/usr/bin:/bin"})
    assert found[:start] == command[:start]
    assert found[start : start + 2] == ["apptainer", "exec"]
    assert found[-len(command) + start - 3 :] == ["--bind", "/scratch/me", "a.sif", *command[start:]]


def test_what_can_not_be_is_said_before_anything_starts(tmp_path: Path, there: Mapping[str, str]) -> None:
    with pytest.raises(BadInputError, match="neither apptainer nor singularity is on the PATH"):
        container_of("docker://python", ["python"], {"PATH": "/nowhere"})
    with pytest.raises(BadInputError, match="which word of `srun -n 4 trainer` is the program"):
        container_of("docker://python", ["srun", "-n", "4", "trainer"], there)
    done = _run(there, tmp_path / "runs", "python", image="missing.sif")
    assert done.returncode == 2
    assert "--container missing.sif: there is no such image." in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_can_not_be_shown_costs_the_command_nothing(tmp_path: Path, there: Mapping[str, str]) -> None:
    done = _run(there, tmp_path / "a,b", "python", "-c", "print('trained')")
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
    assert "can't be seen in the container, as its path has a colon or a comma" in done.stderr
    (tmp_path / "file").touch()
    done = _run(there, tmp_path / "file" / "runs", "python", "-c", "print('trained')")
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr


def test_an_image_whose_mlflow_can_not_use_labtrack_records_into_a_file(
    tmp_path: Path, there: Mapping[str, str]
) -> None:
    python = tmp_path / "image/bin/python"
    python.unlink()
    python.write_text(
        f'#!/bin/sh\ncase "$2" in *entry_points*) echo \'{{"mlflow": true, "plugin": false, "sqlalchemy": false}}\';; '
        f'*) exec {sys.executable} "$@";; esac\n'
    )
    python.chmod(stat.S_IRWXU)
    done = _run(there, tmp_path / "runs", "python", "-c", TRAIN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"sqlite:///{tmp_path / 'runs'}/")
    assert f"MLflow of python in {tmp_path / 'image'} can't use labtrack (labtrack is not installed" in done.stderr
    # a folder that the image does not see is no place for its file: MLflow would end the training
    done = _run(there, tmp_path / "a,b", "python", "-c", TRAIN)
    assert done.returncode == 0, done.stderr
    file = Path(done.stdout.splitlines()[0].replace("sqlite://", "", 1))
    assert file.parent.is_dir() and tmp_path not in file.parents
    file.parent.rmdir()
