"""`labtrack setup`: the environment on a cluster, with a real venv, a real pip and small wheels."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from labtrack import setup
from labtrack.cli import cli
from labtrack.errors import BadInputError, LabtrackError


def wheel(folder: Path, name: str, version: str) -> None:
    """A package with nothing but its name."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text)}\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as made:
        for path, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            made.writestr(path, text)


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    wheel(tmp_path / "dist", "labtrack", "0.1.0")
    wheel(tmp_path / "dist", "mlflow", "3.17.2")
    return tmp_path / "dist"


@pytest.fixture
def alliance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the module system, in the login shell's profile, and one for virtualenv: they note each call."""
    log, programs = tmp_path / "log", tmp_path / "programs"
    says = 'case "$*" in *arrow*) ;; *) echo Lmod: unknown >&2; return 1;; esac'
    programs.mkdir()
    (tmp_path / "home" / ".bash_profile").write_text(
        f'module() {{ echo "module $*" >>{log}; {says}; }}\nPATH={programs}:$PATH\n'
    )
    (programs / "virtualenv").write_text(
        f'#!/bin/sh\necho "virtualenv $*" >>{log}\nexec {sys.executable} -m venv "$2"\n'
    )
    (programs / "virtualenv").chmod(0o755)
    monkeypatch.setenv("CC_CLUSTER", "fir")
    return log


def test_setup_on_the_alliance_loads_arrow_before_it_installs(alliance: Path, wheels: Path, tmp_path: Path) -> None:
    wheel(wheels, "pip", "99.0")  # what `--upgrade pip` would find is not what this test is about
    (wheels / "pip-99.0-py3-none-any.whl").unlink()
    found = setup.plan(tmp_path / "my env", wheels)
    done = setup.make(found)
    assert done.versions == {
        "python": ".".join(map(str, sys.version_info[:2])),
        "labtrack": "0.1.0",
        "mlflow": "3.17.2",
    }
    calls = alliance.read_text().splitlines()
    assert calls[:2] == ["module load StdEnv/2023 python/3.11 gcc arrow", f"virtualenv --no-download {tmp_path}/my env"]
    assert found.job_lines()[0] == (
        f"module load StdEnv/2023 python/3.11 gcc arrow && source '{tmp_path}/my env'/bin/activate"
    )
    assert setup.make(setup.plan(tmp_path / "my env", wheels)).made == ()


def test_setup_twice_interrupted_and_with_another_version(wheels: Path, tmp_path: Path) -> None:
    folder = tmp_path / "env"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text("half of one")  # as an interrupted call leaves it
    (folder / setup.MARK).write_text('{"made_by": "labtrack setup"}')
    runner = CliRunner()
    first = runner.invoke(cli, ["setup", str(folder), "--wheels", str(wheels)], catch_exceptions=False)
    assert f"source {folder}/bin/activate" in first.stdout
    assert "MLFLOW_TRACKING_URI=labtrack://" in first.stdout
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*.dist-info"))
    second = runner.invoke(cli, ["setup", str(folder), "--wheels", str(wheels), "--json"], catch_exceptions=False)
    assert json.loads(second.stdout)["made"] == []
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*.dist-info")) == before
    assert subprocess.run([folder / "bin" / "python", "-c", "import labtrack, mlflow"], check=False).returncode == 0
    (wheels / "labtrack-0.1.0-py3-none-any.whl").unlink()
    wheel(wheels, "labtrack", "0.2.0")
    done = setup.make(setup.plan(folder, wheels))
    assert (done.made, done.versions["labtrack"]) == (("labtrack", "MLflow"), "0.1.0")


def test_setup_touches_no_environment_that_it_did_not_make(wheels: Path, tmp_path: Path) -> None:
    folder = tmp_path / "env"
    folder.mkdir()
    (folder / "pyvenv.cfg").write_text("mine")
    with pytest.raises(BadInputError, match="did not make it"):
        setup.make(setup.plan(folder, wheels))
    assert [path.name for path in folder.iterdir()] == ["pyvenv.cfg"]
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="is a file"):
        setup.make(setup.plan(tmp_path / "file", wheels))


def test_setup_refuses_wheels_without_labtrack(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(BadInputError, match="no wheel of labtrack"):
            setup.plan(tmp_path / "env", folder)
    with pytest.raises(BadInputError, match="control character"):
        setup.plan(tmp_path / "a\nb")


def test_setup_on_the_alliance_needs_wheels_and_prints_without(alliance: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["setup", str(tmp_path / "env"), "--print"], catch_exceptions=False)
    lines = done.stdout.splitlines()
    assert lines[0] == "module load StdEnv/2023 python/3.11 gcc arrow"
    assert all("--no-index" in line for line in lines[2:])
    assert not (tmp_path / "env").exists()
    with pytest.raises(BadInputError, match="wheelhouse"):
        setup.make(setup.plan(tmp_path / "env"))


def test_setup_says_what_failed_and_goes_on_afterwards(
    alliance: Path, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "_MODULES", "StdEnv/2023 nonsense")
    with pytest.raises(LabtrackError, match="the environment was not made") as failed:
        setup.make(setup.plan(tmp_path / "env", wheels))
    assert "module spider" in failed.value.hint
    assert (tmp_path / "env" / setup.MARK).exists()


@pytest.mark.parametrize(
    ("env", "found"),
    [({}, False), ({"CC_CLUSTER": "narval"}, True), ({"LOADEDMODULES": "gentoo/2023:StdEnv/2023"}, True)],
)
def test_alliance_is_seen_by_its_variables(env: dict[str, str], found: bool) -> None:
    assert setup.is_alliance(env) is found


def test_notes_compare_with_the_server(tmp_path: Path) -> None:
    wanted = setup.Plan(tmp_path, "", (), None, "3.17.2")
    assert setup._notes(wanted, {"mlflow": "3.1.4", "python": "3.9"}) == []
    assert "different major versions" in setup._notes(wanted, {"mlflow": "2.22.0", "python": "3.9"})[0]
    assert "not known from here" in setup._notes(setup.Plan(tmp_path, "", (), None, ""), {"mlflow": "3.1.4"})[0]
