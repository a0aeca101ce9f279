"""`labtrack run`: a command as a tracked job, which gets its own result whatever happens to the tracking."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, TypeVar

from labtrack.files import boot_id
from labtrack.recorder.scheduler import SLURM
from labtrack.run import console, recording, slurm
from labtrack.run.prepare import Options, Plan, prepare, said_of
from labtrack.run.signals import NOT_EXECUTABLE, NOT_FOUND, Child, Ending
from labtrack.run.task import Task, Told

_T = TypeVar("_T")
LOG = "companion.log"
_SOON = 5.0  # seconds for a file system to answer
_BEAT = 60.0  # seconds between two signs of life
_CLOSING = 10.0  # seconds more than the sending takes, for ending the runs
_OUTPUT = 5.0  # seconds for the last of the output


def run(
    command: Sequence[str],
    options: Options,
    say: Callable[[str], None],
    env: Mapping[str, str] | None = None,
) -> Ending:
    """Runs a command, records it, sends what it records, and gives its end.

    say: shows a warning or a note.  env: the environment, os.environ otherwise.
    Nothing of labtrack's own that fails changes the result.  Raises BadInputError for a `folder` that is none, or a
    `container` that can't be used.
    """
    env = dict(os.environ if env is None else env)
    plan = prepare(command, options, env, Path.cwd())
    for note in plan.notes:
        say(note)
    output = _console(plan, options, say)
    try:
        child = Child(plan.command, dict(plan.env), output.outputs if output else None)
    except OSError as error:
        code = NOT_FOUND if isinstance(error, (FileNotFoundError, NotADirectoryError)) else NOT_EXECUTABLE
        say(f"{plan.command[0]}: {error.strerror}")
        return Ending(code, started=False)
    try:
        return _accompanied(child, plan, options, output, say)
    finally:
        child.close()


def _accompanied(
    child: Child, plan: Plan, options: Options, output: console.Console | None, say: Callable[[str], None]
) -> Ending:
    if output is not None:
        output.start()
    beside = _Beside(plan, options, say) if plan.records else None
    ending = child.wait()
    if output is not None:
        output.finish(_OUTPUT)
        if output.trouble:
            say(output.trouble)
    if beside is not None:
        beside.end(child, ending)
    return ending


def _console(plan: Plan, options: Options, say: Callable[[str], None]) -> console.Console | None:
    if not (options.console and plan.records):
        return None
    try:
        return console.Console(plan.job_folder / console.FOLDER)
    except OSError as error:
        say(f"the output is not recorded: {said_of(error)}")
        return None


class _Beside:
    """The process beside the training, and the heartbeat; nothing here raises, and nothing waits for long."""

    def __init__(self, plan: Plan, options: Options, say: Callable[[str], None]) -> None:
        self._plan, self._say, self._options = plan, say, options
        self._process: subprocess.Popen[bytes] | None = None
        self._over = threading.Event()
        self._code: int | None = None
        self._answer = b""
        self._reader: threading.Thread | None = None
        threading.Thread(target=self._beat, daemon=True, name="labtrack-beat").start()
        if plan.destination or options.console:  # otherwise there is nothing to do before the end
            _within(_SOON, self._start)

    def _start(self) -> None:
        plan = self._plan
        task = Task(
            str(plan.folder), plan.job.key, plan.job.attempt, plan.destination, tuple(plan.gateways),
            self._options.sync_timeout,
        )  # fmt: skip
        try:
            with _log(plan.job_folder / LOG) as log:
                started = subprocess.Popen(
                    [sys.executable, "-m", "labtrack.run.companion"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=log, env=_importable(plan.server_env), start_new_session=True,
                )  # fmt: skip
            self._process = started
            self._tell(asdict(task))
            self._reader = threading.Thread(target=self._read, daemon=True, name="labtrack-beside-read")
            self._reader.start()
        except OSError as error:
            self._say(f"nothing is sent while the job runs: {said_of(error)}")

    def _beat(self) -> None:
        """Shows, as long as the parent lives, that the job does."""
        file = self._plan.job_folder / recording.HEARTBEAT
        facts = {"host": os.uname().nodename, "pid": os.getpid(), "boot": boot_id(), "since": time.time()}
        while True:
            with contextlib.suppress(OSError):
                file.write_text(json.dumps({**facts, "at": time.time()}))
            if self._over.wait(_BEAT):
                break
        with contextlib.suppress(OSError):
            file.write_text(json.dumps({**facts, "at": time.time(), "code": self._code}))

    def _tell(self, what: Mapping[str, object]) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                self._process.stdin.write(json.dumps(what).encode() + b"\n")
                self._process.stdin.flush()

    def _read(self) -> None:
        if self._process is not None and self._process.stdout is not None:
            self._answer = self._process.stdout.read()

    def end(self, child: Child, ending: Ending) -> None:
        """Says that the command has ended, and waits for what is still to be sent."""
        plan = self._plan
        requeued = plan.job.scheduler == SLURM and slurm.was_requeued(plan.job.id, plan.job.attempt, plan.server_env)
        self._code = None if requeued else ending.code
        self._over.set()
        if self._process is None and _within(_SOON, lambda: recording.holds_recordings(plan.folder)):
            _within(_SOON, self._start)
        self._tell({"code": ending.code, "requeued": requeued})
        reader = self._reader
        patience = self._options.sync_timeout + _CLOSING
        if reader is not None and not child.wait_for(lambda: not reader.is_alive(), patience):
            self._kill()
        self._report()

    def _kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._process.kill()

    def _report(self) -> None:
        plan = self._plan
        if not _within(_SOON, lambda: recording.holds_recordings(plan.folder)):
            return
        told = Told(problems=["what sends it ended without a word" if self._process else "it could not be started"])
        with contextlib.suppress(ValueError, TypeError, IndexError):
            told = Told(**json.loads(self._answer.splitlines()[-1]))
        if told.sent or not plan.destination:
            for problem in told.problems if not plan.destination else ():
                self._say(problem)
            return
        why = f": {'; '.join(told.problems)}" if told.problems else ""
        self._say(f"not everything is sent{why}")
        self._say(f"To send it: {send_command(plan.folder, plan.destination)}")


def _within(seconds: float, call: Callable[[], _T]) -> _T | None:
    """What a call gives; None where a file system hangs, which is waited for no longer."""
    found: list[_T] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def send_command(folder: Path, destination: str) -> str:
    """The command that sends a folder."""
    words = ["labtrack", "sync", "-s", recording.address_of(folder), *(["-d", destination] if destination else [])]
    return shlex.join(words)


def _log(file: Path) -> IO[bytes]:
    """The log; where the folder can't be written to there is none, and all else is tried."""
    try:
        return file.open("ab")
    except OSError:
        return Path(os.devnull).open("ab")


def _importable(env: Mapping[str, str]) -> dict[str, str]:
    """An environment in which Python finds labtrack wherever this process has it from."""
    place = str(Path(__file__).absolute().parents[2])
    return {**env, "PYTHONPATH": os.pathsep.join(filter(None, (place, env.get("PYTHONPATH", ""))))}
