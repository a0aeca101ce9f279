"""`labtrack setup`: the Python environment that jobs record with, made the way that a cluster wants it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import labtrack
from labtrack.errors import BadInputError, LabtrackError
from labtrack.files import lock, write_private

MARK = ".labtrack-setup"
_MODULES = "StdEnv/2023 python/3.11 gcc arrow"
_ALLIANCE = Path("/cvmfs/soft.computecanada.ca")
_OLDEST, _NEWEST = (3, 9), (3, 13)
_ASKED = 3.0  # seconds that the server has to say its version
_SAID = 1500  # characters of pip's words that are shown
_FACTS = (
    "import json, sys\nfrom importlib import metadata\nfound = {'python': '%d.%d' % sys.version_info[:2]}\n"
    "for name in ('labtrack', 'mlflow', 'mlflow-skinny'):\n"
    "    try:\n        found[name] = metadata.version(name)\n    except metadata.PackageNotFoundError:\n        pass\n"
    "print(json.dumps(found))"
)


@dataclass(frozen=True)
class Plan:
    """What is to be made.

    folder: of the environment.  modules: to load first; empty where there is no module system that it is known for.
    steps: the shell commands, each with what it is for.  wheels: where wheels come from besides the index.
    server: the server's MLflow, empty where it did not say.
    """

    folder: Path
    modules: str
    steps: tuple[tuple[str, str], ...]
    wheels: Path | None
    server: str

    def script(self) -> str:
        """All of it, for a shell."""
        load = f"module load {self.modules}\n" if self.modules else ""
        return load + "".join(f"{command}\n" for _, command in self.steps)

    def job_lines(self) -> list[str]:
        """The two lines that a job script needs before the training."""
        activate = f"source {shlex.quote(str(self.folder))}/bin/activate"
        load = f"module load {self.modules} && " if self.modules else ""
        return [load + activate, "export MLFLOW_TRACKING_URI=labtrack://${SCRATCH:-/scratch/$USER}/runs"]


@dataclass(frozen=True)
class Done:
    """What is there now.  made: the steps that were done; none where it was all there.  notes: what to know."""

    made: tuple[str, ...]
    versions: Mapping[str, str]
    notes: tuple[str, ...]


def plan(folder: Path, wheels: Path | None = None, env: Mapping[str, str] | None = None) -> Plan:
    """What `make` would do for a folder, here.

    wheels: a folder of wheels, as `make dist` makes it; without it the one beside labtrack.pyz, if that is running.
    Raises BadInputError where the folder of wheels has no labtrack, or this Python is not one that it runs on.
    """
    env = os.environ if env is None else env
    folder = Path(os.path.abspath(folder.expanduser()))  # noqa: PTH100  a link stays as it is written
    if any(ord(one) < 32 for one in str(folder)):  # noqa: PLR2004  control characters
        raise BadInputError(f"There is a line end or another control character in {str(folder)!r}.", "another folder.")
    wheels = _wheels(wheels)
    modules = _MODULES if is_alliance(env) else ""
    if not modules and not _OLDEST <= sys.version_info[:2] <= _NEWEST:
        here = ".".join(map(str, sys.version_info[:2]))
        raise BadInputError(
            f"This is Python {here}, and labtrack is tried with 3.9 to 3.13.",
            "run it with one of these: python3.11 -m labtrack setup",
        )
    server = _server_version(env) or str(_read(folder / MARK).get("server", ""))
    python, quoted = shlex.quote(f"{folder}/bin/python"), shlex.quote(str(folder))
    source = "--no-index " if modules else ""
    if wheels or modules:
        source += f"--find-links {shlex.quote(str(wheels or 'dist'))} "
    own = source if modules or not wheels else f"--no-index {source}"
    needs_index = wheels and not modules and not any(wheels.glob("mlflow-*.whl"))
    mlflow = source if modules or needs_index or not wheels else f"--no-index {source}"
    wanted = f"mlflow<={server}" if server else "mlflow"
    pip = f"{python} -m pip install --disable-pip-version-check"
    steps = [
        ("the environment", f"virtualenv --no-download {quoted}" if modules
         else f"{shlex.quote(sys.executable)} -m venv {quoted}"),
        *([("pip", f"{pip} --no-index --upgrade pip")] if modules else []),
        ("labtrack", f"{pip} {own}{shlex.quote('labtrack' if wheels or modules else _labtrack())}"),
        ("MLflow", f"{pip} {mlflow}{shlex.quote(wanted)}"),
    ]  # fmt: skip
    return Plan(folder, modules, tuple(steps), wheels, server)


def make(wanted: Plan, say: Callable[[str], None] = lambda _: None) -> Done:
    """Makes what is not there yet; what an earlier call was interrupted in is gone on with.

    Raises BadInputError where the folder holds something that `make` did not put there, or there is no labtrack for it,
    LabtrackError where a step fails.
    """
    folder = wanted.folder
    if wanted.modules and wanted.wheels is None:
        raise BadInputError(
            "labtrack is not in this cluster's wheelhouse.",
            "make dist   in a clone elsewhere, copy dist/ here, and: labtrack setup --wheels dist",
        )
    _refuse_foreign(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(
            f"{folder} can't be made: {error.strerror}.", f"look at `ls -ld {folder.parent}`."
        ) from error
    with lock(folder / f"{MARK}.lock", f"labtrack setup {folder}", f"the environment {folder}", needed=False):
        mark = folder / MARK
        done = {**_read(mark), "server": wanted.server}
        if not done.get("steps"):
            for one in folder.iterdir():  # of a call that was interrupted
                if not one.name.startswith(MARK):
                    shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()
        _write(mark, done)
        made = []
        for name, command in wanted.steps:
            sign = _sign(command, wanted.wheels)
            if done.get("steps", {}).get(name) == sign and _versions(wanted):
                continue
            say(f"{name}: {command}")
            _run(wanted, name, command)
            done.setdefault("steps", {})[name] = sign
            _write(mark, done)
            made.append(name)
        versions = _versions(wanted)
    return Done(tuple(made), versions, tuple(_notes(wanted, versions)))


def is_alliance(env: Mapping[str, str]) -> bool:
    """Whether this is a cluster of the Digital Research Alliance of Canada, or one with its software."""
    return bool(env.get("CC_CLUSTER")) or "StdEnv/" in env.get("LOADEDMODULES", "") or (
        bool(env.get("LMOD_CMD")) and _ALLIANCE.is_dir()
    )  # fmt: skip


def as_data(wanted: Plan, done: Done) -> dict[str, Any]:
    """Both as plain data."""
    return {
        "version": 1, "folder": str(wanted.folder), "modules": wanted.modules, "server": wanted.server, **asdict(done),
        "job": wanted.job_lines(),
    }  # fmt: skip


def _wheels(given: Path | None) -> Path | None:
    if given is None:
        beside = Path(sys.argv[0]).absolute().parent
        return beside if any(beside.glob("labtrack-*.whl")) else None
    folder = Path(os.path.abspath(given.expanduser()))  # noqa: PTH100
    if not folder.is_dir() or not any(folder.glob("labtrack-*.whl")):
        raise BadInputError(
            f"{folder} has no wheel of labtrack.", "`make dist` in a clone of the project makes such a folder, dist/."
        )
    return folder


def _labtrack() -> str:
    """What pip is told to install where there are no wheels."""
    clone = Path(labtrack.__file__).resolve().parents[2]
    if (clone / "pyproject.toml").is_file():
        return str(clone)
    return f"labtrack=={labtrack.__version__}"


def _server_version(env: Mapping[str, str]) -> str:
    """The server's MLflow; empty where there is no server, or no way to it from here."""
    if not env.get("MLFLOW_TRACKING_URI", "").startswith(("https://", "http://")):
        return ""
    import requests

    from labtrack.doctor.context import Context

    try:
        answer = Context(env, timeout=_ASKED).transport.send("GET", "/version")
    except (requests.exceptions.RequestException, LabtrackError):
        return ""
    said = answer.text.strip()
    return said if answer.ok and re.fullmatch(r"\d+(\.\d+)+", said) else ""


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise BadInputError(f"{folder} is a file.", "name a folder that is not there yet.")
    foreign = folder.is_dir() and any(not one.name.startswith(MARK) for one in folder.iterdir())
    if foreign and not (folder / MARK).exists():
        raise BadInputError(
            f"{folder} is there already, and `labtrack setup` did not make it; nothing in it was touched.",
            f"name another folder; or put labtrack into it yourself: {folder}/bin/python -m pip install labtrack",
        )


def _run(wanted: Plan, name: str, command: str) -> None:
    script = f"module load {wanted.modules} || exit 97\n{command}\n" if wanted.modules else f"{command}\n"
    # `module` is a function of the login shell; PIP_* of the site stay, PYTHONPATH of an active environment must not
    shell = ["bash", "-lc", script] if wanted.modules else ["sh", "-c", script]
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    try:
        done = subprocess.run(
            shell, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except OSError as error:
        raise LabtrackError(f"{shell[0]} can't be run: {error.strerror}.", "is it on the PATH?") from error
    if not done.returncode:
        return
    said = done.stdout.decode("utf-8", "replace").strip()[-_SAID:]
    raise LabtrackError(f"{name} was not made: `{command}` ended with {done.returncode}.\n{said}", _hint(wanted, said))


def _hint(wanted: Plan, said: str) -> str:
    again = "then run the same command again; it goes on where it stopped."
    if "No matching distribution" in said or "Could not find a version" in said:
        if wanted.modules:
            return f"`avail_wheels mlflow labtrack` shows what the wheelhouse has; for labtrack: --wheels dist, {again}"
        there = "on a machine with internet: make dist; pip download -d dist mlflow; copy dist here"
        return f"{there}, --wheels dist, {again}"
    if "No space left" in said or "quota" in said.lower():
        return f"free some room (df -h {wanted.folder.parent}; quota), {again}"
    if "module" in said or "Lmod" in said:
        return f"`module spider arrow` says what has to be loaded here; make it by hand as --print shows, or {again}"
    if "ensurepip" in said:
        return f"apt install python3-venv, or load a Python module, {again}"
    return f"see what it says above, {again}"


def _versions(wanted: Plan) -> dict[str, str]:
    """What is installed; nothing where the environment does not run."""
    try:
        asked = subprocess.run(
            [wanted.folder / "bin" / "python", "-I", "-c", _FACTS], capture_output=True, text=True, check=False
        )
        found: dict[str, str] = json.loads(asked.stdout)
    except (OSError, ValueError):
        return {}
    return found


def _notes(wanted: Plan, versions: Mapping[str, str]) -> list[str]:
    here, server = versions.get("mlflow") or versions.get("mlflow-skinny", ""), wanted.server
    if not server:
        return ["the server's version is not known from here: `labtrack doctor` compares, where it can be reached"]
    if here.partition(".")[0] != server.partition(".")[0]:
        return [
            f"MLflow {here} here and {server} at the server are different major versions; Python "
            f"{versions.get('python', '?')} may have no nearer one: take a newer Python"
        ]
    return []


def _sign(command: str, wheels: Path | None) -> str:
    """Changes when the step has to be done again."""
    takes = wheels is not None and str(wheels) in command
    names = sorted(one.name for one in wheels.glob("*.whl")) if wheels and takes else []
    return hashlib.sha256("\n".join([command, *names]).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _read(mark: Path) -> dict[str, Any]:
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        what = f"{mark} can't be read, which says what has been made: {error}."
        raise BadInputError(what, "name another folder; nothing in this one was touched.") from None
    return found if isinstance(found, dict) else {}


def _write(mark: Path, done: Mapping[str, Any]) -> None:
    write_private(mark, json.dumps({"made_by": "labtrack setup", **done}).encode())
