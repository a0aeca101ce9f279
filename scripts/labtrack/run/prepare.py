"""What is made ready before the command starts: the job's folder, its tags, and the environment of the training."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labtrack.errors import LabtrackError
from labtrack.recorder.place import SAME, SCHEME
from labtrack.recorder.scheduler import LOCAL, Job, find_job
from labtrack.run import code, lending, recording
from labtrack.run.container import Container, bindable, container_of
from labtrack.run.proxy import gateways_of
from labtrack.tracking import address

TAGS_FILE, DIFF_FILE, SQLITE_FILE = "tags.json", "git.diff", "mlflow.db"
_PATIENCE = 15.0  # seconds for all of it: the training does not wait longer for a file system or a Python
_SERVERS = (
    "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH", "MLFLOW_TRACKING_INSECURE_TLS",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What the user wants of `labtrack run`.

    folder: to record into.  destination: the server.  gateways: `user@host`.  sync: whether to send at all.
    sync_timeout: seconds for sending after the end.  resume: `same` or `child`, of a requeued job.
    console: whether the output is recorded.  container: the image that the command runs in.
    """

    folder: str | None = None
    destination: str | None = None
    gateways: tuple[str, ...] = ()
    sync: bool = True
    sync_timeout: float = 60.0
    resume: str = SAME
    console: bool = False
    container: str | None = None


@dataclass
class Plan:
    """What is to be done.

    command: as it is started.  env: of the training.  server_env: of what sends.  destination: the server; empty for
    none.  records: whether this process's job is recorded here (rank 0, and not inside another `labtrack run`).
    notes: what the user should know.
    """

    job: Job
    folder: Path
    command: list[str]
    env: dict[str, str]
    server_env: dict[str, str] = field(default_factory=dict)
    destination: str = ""
    gateways: list[str] = field(default_factory=list)
    records: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def job_folder(self) -> Path:
        """Where what belongs to the job and to none of its runs is kept."""
        return recording.job_folder(self.folder, self.job.key)


def prepare(command: Sequence[str], options: Options, env: Mapping[str, str], cwd: Path) -> Plan:
    """Makes everything ready; what goes wrong is a note, and takes no longer than a few seconds.

    Raises BadInputError for a folder or a container that can't be used.
    """
    container = container_of(options.container, command, env) if options.container else None
    plan = Plan(find_job(env), recording.folder_of(options.folder, env), list(command), dict(env))
    if _is_inside(plan.job, env):
        plan.records = False
        if container:
            plan.command = container.wrapped(command, _bound(plan), env)
        return plan
    if container:
        plan.command = container.wrapped(command, (), env)
    plan.records = plan.job.rank == 0
    _find_server(plan, options, env)
    plan.env = _environment(plan, options, env)
    done, started = threading.Event(), time.monotonic()

    def work() -> None:
        # a signal is for the main thread alone
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        with _noted(plan.notes):
            if plan.records:
                _make_folder(plan, command, container, env, cwd)
        with _noted(plan.notes):
            folders = _bound(plan) if container else []
            if container:
                plan.command = container.wrapped(command, folders, env)
            _lend(plan, command, container, folders)
        done.set()

    threading.Thread(target=work, daemon=True, name="labtrack-prepare").start()
    if not done.wait(_PATIENCE):
        plan.notes.append(
            f"{plan.folder} did not answer within {time.monotonic() - started:.0f} s; the command is started anyway"
        )
    return plan


def _is_inside(job: Job, env: Mapping[str, str]) -> bool:
    """Whether a `labtrack run` around this one records already; a job that was submitted from one is another job."""
    around = env.get("LABTRACK_JOB", "")
    if not around or not env.get("MLFLOW_TRACKING_URI", "").startswith((f"{SCHEME}:", "sqlite:")):
        return False
    return around.startswith(f"{LOCAL}/") if job.scheduler == LOCAL else around.startswith(f"{job.base}/")


def _find_server(plan: Plan, options: Options, env: Mapping[str, str]) -> None:
    variables = dict(env)
    said = options.destination or env.get("MLFLOW_TRACKING_URI", "")
    if not said.lower().startswith("http") and not options.destination and env.get("LABTRACK_ENV_FILE"):
        from labtrack.envfile.read import read_envfile

        with contextlib.suppress(LabtrackError):  # also in a job that a tracked job has submitted
            variables.update(read_envfile(Path(env["LABTRACK_ENV_FILE"])).variables)
            said = variables.get("MLFLOW_TRACKING_URI", "")
    if said and not options.destination and not said.lower().startswith(("http", f"{SCHEME}:")):
        plan.notes.append(
            f"MLFLOW_TRACKING_URI={address.hide_login(said)} is not used: the job records into {plan.folder}"
        )
        said = ""
    plan.server_env = variables
    if not options.sync or said.startswith(f"{SCHEME}:") or not said:
        return
    with _noted(plan.notes, "nothing is sent while the job runs: "):
        plan.destination = address.parse(said)
        plan.server_env["MLFLOW_TRACKING_URI"] = plan.destination
        plan.gateways = gateways_of(options.gateways, variables)
        if plan.gateways and plan.destination.startswith("http:"):
            plan.notes.append(f"no gateway is used for {plan.destination}: only https:// stays unread on the way")
            plan.gateways = []


def _environment(plan: Plan, options: Options, env: Mapping[str, str]) -> dict[str, str]:
    """The training's: recorded into the folder, and without the server's address and login."""
    found = {name: value for name, value in env.items() if name not in _SERVERS}
    found.update(
        MLFLOW_TRACKING_URI=recording.address_of(plan.folder),
        LABTRACK_JOB=plan.job.key,
        LABTRACK_ATTEMPT=str(plan.job.attempt),
        LABTRACK_RESUME=options.resume,
    )
    return found


def _bound(plan: Plan) -> list[Path]:
    """What the image has to see, where it can: an image that is told of what is not there does not start."""
    if not plan.folder.is_dir():
        return []
    if not bindable(plan.folder):
        plan.notes.append(f"{plan.folder} can't be seen in the container, as its path has a colon or a comma")
        return []
    return [plan.folder]


def _make_folder(
    plan: Plan, command: Sequence[str], container: Container | None, env: Mapping[str, str], cwd: Path
) -> None:
    plan.folder.mkdir(parents=True, exist_ok=True)
    if plan.job.scheduler != LOCAL:
        plan.job = plan.job.numbered(_claim(plan.folder, plan.job, command))
        plan.env["LABTRACK_JOB"] = plan.job.key
    folder = plan.job_folder
    folder.mkdir(parents=True, exist_ok=True)
    tags = code.tags_of(plan.job, command, env, cwd)
    if container:
        tags[code.IMAGE] = container.image
    _write(folder / TAGS_FILE, json.dumps(tags))  # at once: what git says may take seconds
    plan.env["LABTRACK_JOB_TAGS"] = str(folder / TAGS_FILE)
    facts = code.with_code(tags, env, cwd)
    _write(folder / TAGS_FILE, json.dumps(facts.tags))
    if facts.diff:
        _write(folder / DIFF_FILE, facts.diff)


def _claim(folder: Path, job: Job, command: Sequence[str]) -> int:
    """Which call of `labtrack run` in this step this is: the same command has the same number after a requeue."""
    place = recording.job_folder(folder, f"{job.base}/{job.step}.calls")
    mine = hashlib.sha256(json.dumps(list(command)).encode()).hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    while True:
        known = [(one.name.partition(".")[0], int(one.name.partition(".")[2])) for one in place.glob("*.*")]
        taken = {number for attempt, number in known if attempt == str(job.attempt)}
        before = sorted(
            number
            for attempt, number in known
            if attempt != str(job.attempt) and number not in taken and _read(place / f"{attempt}.{number}") == mine
        )
        number = before[0] if before else max((number for _, number in known), default=-1) + 1
        try:
            with (place / f"{job.attempt}.{number}").open("x") as file:
                file.write(mine)
            return number
        except FileExistsError:
            continue


def _lend(plan: Plan, command: Sequence[str], container: Container | None, folders: Sequence[Path]) -> None:
    """Sees to it that the training's MLflow can record; where it can't, into a SQLite file of the job's own."""
    if container:
        named = next(filter(lending.is_python, command), "python3")
        python = container.inside([named], folders)
    else:
        named = lending.python_of(command, plan.env)
        python = [named] if named else []
    found = lending.look_at(python, plan.env)
    if found.plugin:
        return
    lent = lending.lend(plan.folder / "lib")
    if lent is not None:
        env = lending.with_path(plan.env, lent)
        found = lending.look_at(python, env, loads=True)
        # a Python without MLflow may make room for another one, which finds it, too
        if found.plugin or not found.mlflow:
            plan.env["PYTHONPATH"] = env["PYTHONPATH"]
            return
    why = found.why or "labtrack is not installed there"
    # what the other ranks record is nobody's, but has to go somewhere; an image that can't see the folder sees /tmp
    seen = folders or not container
    folder = plan.job_folder if plan.records and seen else Path(tempfile.mkdtemp(prefix="labtrack-"))
    if container:  # whose MLflow makes the file itself
        plan.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / SQLITE_FILE}"
    else:
        from labtrack.local.initstore import init_store

        plan.env["MLFLOW_TRACKING_URI"] = init_store(
            str(folder / SQLITE_FILE), mlflow=named or None, env=plan.env
        ).address
    if plan.records:
        where = f"{named} in {container.image}" if container else named or "the training"
        plan.notes.append(f"MLflow of {where} can't use labtrack ({why}): the job records into {folder / SQLITE_FILE}")


@contextlib.contextmanager
def _noted(notes: list[str], before: str = "") -> Iterator[None]:
    try:
        yield
    except (LabtrackError, OSError, ValueError, ImportError) as error:
        notes.append(before + said_of(error))


def said_of(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, LabtrackError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{type(error).__name__}: {error}"


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
