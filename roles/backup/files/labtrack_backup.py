#!/usr/bin/python3
"""Backs up the databases, and proves that the backup can be restored.  Run as root or postgres.

labtrack-backup setup    make the repository and the first backup, where there is none; prints "changed" if it did
labtrack-backup run      back up: in full once a week, else what differs from the last full one
labtrack-backup check    whether the log reaches the repository, and how old the newest backup is
labtrack-backup drill    restore into a scratch cluster, compare it with the server's databases, start MLflow on it and
                         compare what it answers with what the server does
labtrack-backup restore latest | TIME [--discard-newer] [--onto-empty]
                         put the databases of the backup, or of that time, into the place of the server's. Refused where
                         the server has what they lack, but with --discard-newer; with --onto-empty where it has data
labtrack-backup artifacts   copy what is new in the lab's bucket, and leave a listing of all that is there
labtrack-backup artifacts-restore latest | TIME [--dry-run] [--overwrite]
                         put back what that listing has, and the lab's bucket not, or otherwise. What is newer there
                         stays, but with --overwrite; nothing is deleted
labtrack-backup artifacts-check [TIME]   whether the databases' models have their objects in that listing
labtrack-backup status   the last result of each, as JSON; exit code 1 unless all are well

run, check, drill and artifacts leave their result in a file that all may read, <job>.json.  Only the class Repository
knows pgBackRest.
"""

from __future__ import annotations

import fcntl
import grp
import json
import os
import pwd
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, "/usr/local/lib/labtrack-backup")
import labtrack_artifacts
from labtrack_copy import BackupError, Cluster, failed, tied
from labtrack_drill import Drill
from labtrack_restore import Restore, chosen

SETTINGS = Path(os.environ.get("LABTRACK_BACKUP_SETTINGS", "/etc/labtrack-backup.json"))
ACCOUNT = "postgres"
# In a cluster that labtrack-postgresql has filled from the dump of another: which one.
CAME_FROM = "labtrack-came-from.json"
DAY = 24 * 3600  # seconds
FULL_AFTER = 6.5 * DAY  # a full backup each week, also where the timer is a little early
TOO_OLD = {"run": 2 * DAY, "check": DAY / 4, "drill": 9 * DAY, "artifacts": 2 * DAY}
# What each command that takes a time may be given beside it.
OPTIONS = {
    "restore": {"--discard-newer", "--onto-empty"},
    "artifacts-restore": {"--dry-run", "--overwrite"},
    "artifacts-check": set[str](),
}


class Repository:
    """Where the backups are, by pgBackRest: another tool would be another class with these methods."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.command = [
            settings["pgbackrest"], f"--config={settings['config']}", f"--stanza={settings['stanza']}",
            "--log-level-console=off", "--log-level-stderr=error",
        ]  # fmt: skip

    def _call(self, what: str, *arguments: str) -> str:
        done = subprocess.run(
            [*self.command, *arguments], preexec_fn=tied(signal.SIGTERM),
            capture_output=True, text=True, errors="replace", check=False, cwd="/",
        )  # fmt: skip
        if done.returncode:
            raise failed(what, done.stderr + done.stdout)
        return done.stdout

    def create(self) -> None:
        """Make the repository; one that is there stays as it is."""
        self._call("The repository could not be made", "stanza-create")

    def upgrade(self) -> None:
        """Take another database for the one that is backed up; the backups of the earlier one stay."""
        self._call("The repository could not be upgraded", "stanza-upgrade")

    def check(self) -> None:
        """Have PostgreSQL end a segment of its log, and wait until it is in the repository."""
        self._call("The log does not reach the repository", "check")

    def backups(self) -> list[dict[str, Any]]:
        """All backups, the newest last: label, type, time (seconds since the epoch), size and stored (bytes)."""
        return [
            {
                "label": one["label"], "type": one["type"], "time": one["timestamp"]["stop"],
                "size": one["info"]["size"], "stored": one["info"]["repository"]["delta"],
            }
            for one in self._info().get("backup", []) if not one.get("error")
        ]  # fmt: skip

    def version(self) -> str:
        """Of the PostgreSQL that the newest backups are of; empty where there are none."""
        return self._newest("version")

    def system(self) -> str:
        """The system identifier of the database that the newest backups are of; empty where there are none."""
        return self._newest("system-id")

    def _newest(self, what: str) -> str:
        return "".join(str(one[what]) for one in self._info().get("db", [])[-1:])

    def _info(self) -> dict[str, Any]:
        said = self._call("The repository can't be read", "info", "--output=json")
        stanza: dict[str, Any]
        (stanza,) = json.loads(said, strict=False)  # its messages have what it could not read, as it is
        for repo in stanza.get("repo", []):
            # 0: ok, 1 and 3: not made yet, or half; 2: no backup yet; the exit code is 0 whatever is wrong
            if repo["status"]["code"] not in (0, 1, 2, 3):
                raise failed("The repository can't be read", repo["status"]["message"])
        return stanza

    def backup(self, kind: str) -> None:
        """Make a backup: full, or diff, which keeps what differs from the last full one."""
        self._call(f"The {kind} backup failed", f"--type={kind}", "backup")

    def restore(self, data: Path, to: str = "") -> None:
        """Put a backup into an empty folder; a cluster that starts there replays the log.

        to: the time until which it does; without one the newest backup is taken, and all of the log.
        """
        options = [f"--pg1-path={data}", f"--tablespace-map-all={data.parent / 'tablespaces'}", "--archive-mode=off"]
        until = ["--type=time", f"--target={to}", "--target-action=promote"] if to else []
        self._call("The backup could not be restored", *options, *until, "restore")


def size(number: int) -> str:
    return f"{number / 2**20:.1f} MiB"


def run(settings: dict[str, Any]) -> dict[str, Any]:
    repository = Repository(settings)
    full = [one["time"] for one in repository.backups() if one["type"] == "full"]
    kind = "diff" if full and time.time() - full[-1] < FULL_AFTER else "full"
    repository.backup(kind)
    made = repository.backups()[-1]
    message = f"{made['label']}: {size(made['size'])} of databases, {size(made['stored'])} stored."
    sizes = {"bytes": made["size"], "stored_bytes": made["stored"]}
    return {"type": made["type"], "backup": made["label"], **sizes, "message": message}


def check(settings: dict[str, Any]) -> dict[str, Any]:
    repository = Repository(settings)
    backups = repository.backups()
    if not backups:
        raise BackupError("There is no backup yet.", "labtrack-backup run.")
    age = time.time() - backups[-1]["time"]
    if age > TOO_OLD["run"]:
        fix = "`journalctl -u labtrack-backup@run` says why; then `systemctl start labtrack-backup@run`."
        raise BackupError(f"The newest backup is {age / DAY:.1f} days old.", fix)
    if not Path(settings["archiving"]).exists():
        raise BackupError("PostgreSQL's log is not archived.", "run playbooks/deploy.yml.")
    repository.check()
    message = f"The log is archived, and the newest of {len(backups)} backups is {age / 3600:.1f} h old."
    return {"backups": len(backups), "newest": backups[-1]["label"], "age_seconds": round(age), "message": message}


def drill(settings: dict[str, Any]) -> dict[str, Any]:
    return Drill(settings, Repository(settings))()


JOBS = {"run": run, "check": check, "drill": drill}
ARTIFACTS = "artifacts"


def place(name: str, settings: dict[str, Any]) -> Path:
    """The result of a job, in the folder of its account."""
    return Path(settings[ARTIFACTS]["state"] if name == ARTIFACTS else settings["results"], f"{name}.json")


def job(name: str, settings: dict[str, Any], work: Callable[[dict[str, Any]], dict[str, Any]]) -> int:
    """Do one, and leave its result; the exit code."""
    file = place(name, settings)
    start = time.time()
    try:
        seen, error = work(settings), None
    except Exception as caught:  # whatever is wrong is the result
        seen, error = {}, caught
    last = start if error is None else kept(file).get("last_ok")
    fix = error.args[1] if isinstance(error, BackupError) else ""
    if error is not None:
        seen["message"] = f"{error.args[0]}\nTo fix: {fix}" if fix else f"{type(error).__name__}: {error}"
    took = round(time.time() - start, 1)
    result = {"job": name, "ok": error is None, "time": start, "last_ok": last, "seconds": took}
    part = file.with_suffix(".part")
    part.write_text(json.dumps(result | seen) + "\n")
    part.chmod(0o644)
    part.replace(file)
    print(seen["message"], file=sys.stderr if error else sys.stdout)
    return 1 if error else 0


def kept(file: Path) -> dict[str, Any]:
    """A result that is there; empty if there is none."""
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return found


def setup(settings: dict[str, Any]) -> int:
    repository, archiving = Repository(settings), Path(settings["archiving"])
    backups = repository.backups()
    # of before that, the log has a gap
    if backups and archiving.exists() and archiving.stat().st_mtime <= backups[-1]["time"]:
        failing = "SELECT last_failed_time > coalesce(last_archived_time, '-infinity') FROM pg_stat_archiver"
        if Cluster(settings, settings["socket"], settings["port"]).ask(failing) == ["t"]:
            repository.check()  # which knows why: on a new machine, that these are another database's
        return 0
    if not (backups and archiving.exists()):  # else it is there, and may be locked by a segment on its way
        came_from = kept(Path(settings["data"], CAME_FROM))
        if came_from and repository.system() == came_from["system"]:
            repository.upgrade()
        repository.create()  # which refuses another database's
        archiving.touch()  # changes the time of one that is there
    repository.check()
    print("changed")
    return job("run", settings, run)


def status(settings: dict[str, Any]) -> int:
    results = {name: kept(place(name, settings)) for name in TOO_OLD if name != ARTIFACTS or settings[ARTIFACTS]}
    for name, result in results.items():
        result["too_old"] = time.time() - (result.get("last_ok") or 0) > TOO_OLD[name]
    print(json.dumps(results, indent=2))
    return 0 if all(result.get("ok") and not result["too_old"] for result in results.values()) else 1


def restore(settings: dict[str, Any], arguments: list[str]) -> int:
    """As root, which stops and starts the units; all else is done by the databases' account."""
    work = Restore(settings, Repository(settings), chosen(arguments[0]), "--discard-newer" in arguments)

    def control(verb: str, *units: str) -> bool:
        return not units or subprocess.run([settings["systemctl"], verb, *units], check=False).returncode == 0

    clients = [unit for unit in settings["clients"] if control("is-enabled", "--quiet", unit)]
    if not work.begun() and not as_account(lambda: work.beside("--onto-empty" in arguments)):
        return 1
    control("stop", *clients)
    try:
        done = as_account(work.commit) and control("stop", settings["unit"])
        if done:
            done = as_account(work.swap) and control("start", settings["unit"])
            if not done:
                control("stop", settings["unit"])
                as_account(work.back)
                control("start", settings["unit"])
    finally:
        # not waited for: where MLflow was upgraded since, the next deploy upgrades the databases
        control("start", "--no-block", *clients)
    return 0 if done and as_account(work.end) and as_account(lambda: setup(settings)) else 1


def as_account(step: Callable[[], int | None]) -> bool:
    """Do a step in a process of the databases' account; whether it went well."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    code = 1
    try:
        become()
        tied(signal.SIGTERM)()
        code = told(step)
    except Exception:  # nothing of the parent's is to run here
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def told(step: Callable[[], int | None]) -> int:
    """The exit code of a step, whose error is told."""
    try:
        return step() or 0
    except BackupError as error:
        print(f"{error.args[0]}\nTo fix: {error.args[1]}", file=sys.stderr)
        return 1


def alone(folder: str, account: str = ACCOUNT) -> None:
    """Wait until no other call is at work; the lock goes with the process."""
    lock = os.open(Path(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    if os.getuid() == 0:
        os.fchown(lock, pwd.getpwnam(account).pw_uid, -1)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Another call is at work; this one waits until it has ended.", file=sys.stderr, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def become(name: str = ACCOUNT, groups: Iterable[str] = ()) -> None:
    """Be the account that the databases belong to, or another, in further groups."""
    if os.getuid() == 0:
        account = pwd.getpwnam(name)
        os.setgroups([*os.getgrouplist(name, account.pw_gid), *(grp.getgrnam(one).gr_gid for one in groups)])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
        os.environ.update(HOME=account.pw_dir, USER=name, LOGNAME=name)
    os.umask(0o077)


def of_artifacts(command: str, settings: dict[str, Any], arguments: list[str]) -> int:
    """The keys are opened as root, or are the unit's; all else is done by the account that they are for."""
    work, account = labtrack_artifacts.Artifacts(settings), settings[ARTIFACTS]["account"]
    if command == "artifacts-check":
        return labtrack_artifacts.check(work, settings, arguments)
    become(account)
    alone(settings[ARTIFACTS]["state"])
    if command == ARTIFACTS:
        return job(ARTIFACTS, settings, lambda _: work("run"))
    print(work("restore", labtrack_artifacts.moment(arguments[0]), *arguments[1:])["message"])
    return 0


def main() -> int:
    command, *arguments = sys.argv[1:] or [""]
    known = set(arguments[1:]) <= OPTIONS[command] if command in OPTIONS else not arguments
    missing = command in ("restore", "artifacts-restore") and not arguments
    if command not in (*JOBS, *OPTIONS, ARTIFACTS, "setup", "status") or not known or missing:
        print(__doc__, file=sys.stderr)
        return 2
    settings = json.loads(SETTINGS.read_text())
    if command == "status":
        return status(settings)
    if command == "restore":
        if os.getuid() != 0:
            print("A restore stops and starts the server.\nTo fix: run it as root.", file=sys.stderr)
            return 2
        alone(settings["results"])
        return told(lambda: restore(settings, arguments))
    if command.startswith(ARTIFACTS):
        return told(lambda: of_artifacts(command, settings, arguments))
    become(groups=settings["mlflow"].get("groups", ()) if command == "drill" else ())
    alone(settings["results"])
    return told(lambda: setup(settings) if command == "setup" else job(command, settings, JOBS[command]))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
