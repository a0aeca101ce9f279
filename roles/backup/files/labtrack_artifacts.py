"""The artifacts' part of labtrack-backup: an account of its own, which alone has the keys of both stores.

What speaks to them is labtrack_objects, run with MLflow's Python: Debian's has no boto3 here.  The keys are handed to
it as open files, so that they are in no argument, no environment and no further file.
"""

from __future__ import annotations

import datetime
import json
import os
import pwd
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import labtrack_listing as listing
from labtrack_copy import BackupError, Cluster, tied
from labtrack_restore import chosen


class Artifacts:
    """Both stores, by a process that has their keys; made as root, or by the unit, which has been given them."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings["artifacts"]
        if not self.settings:
            raise BackupError("The artifacts are not backed up.", "set lab_backup.artifacts to true, and deploy.")
        self.account = self.settings["account"]
        self.keys = [self._open(name) for name in ("lab", "store")]

    def _open(self, name: str) -> int:
        given = os.environ.get("CREDENTIALS_DIRECTORY")
        file = Path(given, name) if given else Path(self.settings["keys"][name])
        try:
            return os.open(file, os.O_RDONLY)
        except PermissionError:
            raise BackupError("Only root can hand out the keys of the stores.", "run it as root.") from None
        except FileNotFoundError:
            raise BackupError(f"{file} is not there.", "run playbooks/deploy.yml.") from None

    def _command(self, command: str, *arguments: str) -> list[str]:
        python, library = self.settings["python"], Path(__file__).parent
        if not Path(python).exists():
            raise BackupError(f"{python} is not there, whose boto3 speaks to the stores.", "run playbooks/deploy.yml.")
        program, settings = str(library / "labtrack_objects.py"), json.dumps(self.settings)
        return [python, "-I", program, settings, *map(str, self.keys), command, *arguments]

    def __call__(
        self, command: str, *arguments: str, answer: Callable[[str], Iterator[str]] | None = None
    ) -> dict[str, Any]:
        """Do it, and print what it says meanwhile; its result.  Raises BackupError.

        answer: what its first line is answered with.
        """
        root: dict[str, Any] = {}
        if os.getuid() == 0:
            root = {"user": self.account, "group": pwd.getpwnam(self.account).pw_gid, "extra_groups": []}
        environment = {"PATH": "/usr/bin:/bin", "TMPDIR": self.settings["state"], "LC_ALL": "C.UTF-8"}
        with subprocess.Popen(
            self._command(command, *arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/",
            pass_fds=self.keys, env=environment, umask=0o077, preexec_fn=tied(signal.SIGTERM), **root,  # noqa: PLW1509
        ) as process:  # fmt: skip
            try:
                last = self._heard(process, answer)
            except BaseException:
                process.terminate()  # or it would be waited for, who knows how long
                raise
        try:
            result: dict[str, Any] = json.loads(last)
        except ValueError:
            fix = "`journalctl -u labtrack-backup@artifacts` has all of it; the next call goes on."
            raise BackupError(f"It was ended (exit code {process.returncode}).", fix) from None
        if "error" in result:
            raise BackupError(result["error"], result["fix"])
        return result

    @staticmethod
    def _heard(process: subprocess.Popen[str], answer: Callable[[str], Iterator[str]] | None) -> str:
        """The last line that it prints."""
        assert process.stdin and process.stdout  # noqa: S101
        last = process.stdout.readline()
        if answer and last and not last.startswith("{"):
            process.stdin.writelines(f"{line}\n" for line in answer(last.strip()))
        process.stdin.close()
        for line in process.stdout:
            if not answer:
                print(last, end="", flush=True)
            last = line
        return last


def moment(text: str) -> str:
    """A time as labtrack_objects takes it; see chosen."""
    to = chosen(text)
    return str(datetime.datetime.fromisoformat(to).timestamp()) if to else "latest"


def check(work: Artifacts, settings: dict[str, Any], arguments: list[str]) -> int:
    """As root, which asks the databases as their account and the store as the account of the artifacts."""
    cluster = Cluster(settings, settings["socket"], settings["port"])
    cluster.psql = ["runuser", "-u", "postgres", "--", *cluster.psql]

    def models(stamp: str) -> Iterator[str]:
        database = listing.database(cluster.tables())
        if database is None:
            raise BackupError("No database has MLflow's tables.", "run playbooks/deploy.yml.")
        yield from listing.asked(stamp, lambda sql: cluster.ask(sql, database))

    found = work("check", moment(arguments[0] if arguments else "latest"), answer=models)
    print(found["message"])
    return 0


def of_drill(settings: dict[str, Any], restored: Cluster) -> dict[str, Any]:
    """Whether the newest listing has the models of restored databases; what a drill's result gets of it."""
    database = listing.database(restored.tables())
    file = Path(settings["artifacts"].get("state", "/nonexistent"), listing.LOCAL)
    if database is None or not file.exists():
        return {"message": ""}
    with file.open("rb") as lines:
        stamp = next(listing.read(lines))["time"]
    runs, *references = listing.asked(stamp, lambda sql: restored.ask(sql, database))
    with file.open("rb") as lines:
        found = listing.compare(listing.read(lines), references, runs)
    message = " The " + found.pop("message")
    return {"artifacts": found, "message": message, **({"warning": listing.FIX} if found["missing"] else {})}
