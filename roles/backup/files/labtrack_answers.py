"""The drill's second half: MLflow on the restored copy, and whether it answers as the server does.

MLflow is started by systemd (labtrack-drill.socket), in a sandbox and by an account of its own: it reaches the copy by
a socket, and nothing else.  It runs as long as the drill's connection to it, which the kernel ends in any case.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import random
import secrets
import select
import shlex
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import labtrack_listing as listing
from labtrack_copy import BackupError, Cluster, wait

ACCOUNT = "labtrack-drill"  # on the server for the time of a drill, with a password that the drill alone knows
STARTS = 300  # seconds, that MLflow may take on a busy machine
LASTS = 300  # seconds, after which no further run is asked for
PATIENCE = 60  # seconds for each answer
HISTORIES, POINTS = 10, 25_000  # of each run; of each history
WITH_FILES = 20  # runs whose artifacts are looked for
FOLDERS = 20  # of each of these
LOGINS = 5  # accounts that are tried with a wrong password
API = "/api/2.0/mlflow/"
START_FIX = (
    "`journalctl -t labtrack-drill` has all of it. Where it is the schema, an upgrade of MLflow was under way or has "
    "failed: run playbooks/deploy.yml, then the drill again. Else the restored databases are damaged: keep the "
    "server's disk, and report this."
)


class SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


class Server:
    """MLflow behind one of its sockets."""

    def __init__(self, what: str, fix: str, sockets: list[Path], host: str, login: tuple[str, str]) -> None:
        """what, fix: for messages.  host: that it takes itself for."""
        self.what, self.fix, self.sockets, self.host, self.login = what, fix, sockets, host, login

    def ask(self, path: str, /, login: tuple[str, str] | None = None, **query: Any) -> tuple[int, Any]:
        """Status and answer; of an instance that is being restarted, the next one's.  Raises BackupError."""
        coded = base64.b64encode(":".join(login or self.login).encode()).decode()
        headers = {"Host": self.host, "Authorization": f"Basic {coded}"}
        where = f"{path}?{urlencode(query)}" if query else path
        why: Exception = FileNotFoundError("it has no socket")
        for one in self.sockets:
            connection = SocketConnection(one)
            try:
                connection.request("GET", where, headers=headers)
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                why = error
                continue
            finally:
                connection.close()
            try:
                return answer.status, json.loads(body)
            except ValueError:
                return answer.status, body.decode(errors="replace")[:300]
        raise BackupError(f"{self.what} does not answer: {type(why).__name__}: {why}", self.fix)

    def must(self, path: str, /, **query: Any) -> Any:
        status, answer = self.ask(path, **query)
        if status != http.client.OK:
            raise BackupError(f"{self.what} answers {status} to {path} {query or ''}: {answer}", self.fix)
        return answer

    def healthy(self) -> bool:
        try:
            return self.ask("/health")[0] == http.client.OK
        except BackupError:
            return False


def in_any_order(answer: Any) -> Any:
    """An answer whose lists are sorted: databases give equal rows in the order that they lie in."""
    if isinstance(answer, dict):
        return {key: in_any_order(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return sorted(map(in_any_order, answer), key=lambda one: json.dumps(one, sort_keys=True))
    return answer


def hashed(password: str) -> str:
    """As MLflow's accounts have it, by werkzeug."""
    salt = secrets.token_hex(8)
    made = hashlib.scrypt(password.encode(), salt=salt.encode(), n=2**15, r=8, p=1, maxmem=2**26, dklen=64)
    return f"scrypt:32768:8:1${salt}${made.hex()}"


class Answers:
    """Both MLflows, of which the running one is asked nothing that changes anything."""

    def __init__(self, settings: dict[str, Any], live: Cluster, restored: Cluster) -> None:
        self.settings, self.live, self.restored = settings["mlflow"], live, restored
        self.clients = settings["clients"]  # the units of MLflow's instances
        self.listing = Path(settings["artifacts"].get("state", "/nonexistent"), listing.LOCAL)
        self.login = (ACCOUNT, secrets.token_urlsafe(24))
        self.meeting = Path(self.settings["sockets"])
        tables = live.tables()
        self.tracking = listing.database(tables) or ""
        self.auth = next((base for base, table in tables if table == "alembic_version_auth"), "")
        if not self.tracking or not self.auth:
            raise BackupError("No databases have MLflow's tables.", "run playbooks/deploy.yml.")
        self.seen: Counter[str] = Counter()

    @contextmanager
    def account(self) -> Iterator[None]:
        """The server has an account that may read all, and which the backup gets with the rest; gone at the end.

        Who was killed has left it, without anybody who knows its password.
        """
        self.live.ask(
            "INSERT INTO users (username, password_hash, is_admin) VALUES "  # noqa: S608
            f"('{ACCOUNT}', '{hashed(self.login[1])}', true) ON CONFLICT (username) DO UPDATE "
            "SET password_hash = excluded.password_hash, is_admin = true",
            self.auth,
        )
        try:
            yield
        finally:
            with suppress(BackupError):
                self.live.ask(f"DELETE FROM users WHERE username = '{ACCOUNT}'", self.auth)  # noqa: S608

    def clear(self) -> None:
        """Remove the sockets that a killed drill has left."""
        for left in self.meeting.iterdir():
            left.unlink()

    def owner(self, database: str) -> str:
        (found,) = self.live.ask(f"SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = '{database}'")  # noqa: S608
        return found

    def access(self) -> dict[str, str]:
        """What the restored cluster's files say of who may log in: MLflow as the owner of its databases alone."""
        self.clear()
        account, pairs = self.settings["account"], {(self.owner(one), one) for one in (self.tracking, self.auth)}
        return {
            "hba_file": "local all postgres peer\n"
            + "".join(f"local {base} {owner} peer map=drill\n" for owner, base in sorted(pairs)),
            "ident_file": "".join(f"drill {account} {owner}\n" for owner in sorted({owner for owner, _ in pairs})),
        }

    def host(self) -> str:
        for line in Path(self.settings["settings"]).read_text().splitlines():
            if line.startswith("MLFLOW_SERVER_ALLOWED_HOSTS="):
                return shlex.split(line.partition("=")[2])[0].partition(",")[0]
        return "localhost"

    @contextmanager
    def started(self) -> Iterator[Server]:
        """MLflow, on the restored cluster.  Raises BackupError, with what it says, where it does not run."""
        answers = self.meeting / "mlflow.sock"
        uris = {
            name: f"postgresql+psycopg2://{self.owner(base)}@/{base}?host={self.meeting}"
            for name, base in (("tracking", self.tracking), ("auth", self.auth))
        }
        found = Server("MLflow on the restored copy", START_FIX, [answers], self.host(), self.login)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            try:
                connection.connect(self.settings["switch"])
                connection.sendall(json.dumps({**uris, "socket": str(answers)}).encode() + b"\n")
            except OSError as error:
                fix = "run playbooks/deploy.yml, which starts labtrack-drill.socket."
                raise BackupError(f"MLflow can't be started on the restored copy: {error}", fix) from None

            def runs() -> bool:
                if select.select([connection], [], [], 0)[0]:
                    why = connection.recv(4096).decode(errors="replace")
                    why = " ".join(why.split()) or "it was ended"
                    raise BackupError(f"MLflow does not start on the restored copy: {why}", START_FIX)
                return found.healthy()

            try:
                wait("MLflow does not start on the restored copy", runs, STARTS, START_FIX)
                yield found
            finally:
                answers.unlink(missing_ok=True)

    def __call__(self, chosen: list[str], seed: int) -> dict[str, Any]:
        """Compare what both say of these runs and what belongs to them; for the result.  Raises BackupError.

        What the server says otherwise must have been changed since, which the rows say.
        """
        # by their names: the folder may be entered, and not listed
        sockets = [Path(self.settings["live"], f"{Path(unit).stem.partition('@')[2]}.sock") for unit in self.clients]
        fix = "`mlflowctl check instances`, `journalctl -u 'mlflow@*'`."
        now = Server("The running server", fix, sockets, self.host(), self.login)
        now.must("/health")
        begun = time.monotonic()
        with self.started() as copy:
            took, until = time.monotonic() - begun, time.monotonic() + LASTS
            self.accounts(copy, now, random.Random(seed))  # noqa: S311
            experiments, files = set(), {}
            for run in chosen:
                if time.monotonic() > until:
                    break
                info = self.run(copy, now, run)
                if info and info["experiment_id"] not in experiments:
                    experiments.add(info["experiment_id"])
                    self.experiment(copy, now, info["experiment_id"])
                if info and len(files) < WITH_FILES and self.listing.exists():
                    files[run] = info
        missing = self.files(now, files)
        seen = dict(self.seen)
        message = (
            f" MLflow started on the copy in {took:.1f} s and answers as the server does: {seen.get('runs', 0)} runs, "
            f"{seen.get('histories', 0)} metric histories, {seen.get('experiments', 0)} experiments, "
            f"{seen.get('accounts', 0)} accounts; {seen.get('changed', 0)} were changed since."
        )
        found: dict[str, Any] = {"mlflow": {**seen, "seed": seed, "start_seconds": round(took, 1)}}
        if files:
            message += f" {seen.get('files', 0)} files of {len(files)} runs were looked for in the artifacts' backup"
            message += f"; not in it: {', '.join(missing[:5])}." if missing else "."
        if missing:
            found["warning"] = (
                "see whether the nightly copy works (`labtrack-backup status`); a file that was logged to a run long "
                "after its end comes with the next night: `systemctl start labtrack-backup@artifacts`."
            )
        return {**found, "message": message}

    def same(self, what: str, path: str, query: dict[str, Any], rows: dict[str, str], both: list[Server]) -> Any:
        """What both answer; None where that is another, and so are the rows."""
        copied = both[0].must(path, **query)
        status, current = both[1].ask(path, **query)
        if status == http.client.OK and in_any_order(copied) == in_any_order(current):
            return copied
        if status >= http.client.INTERNAL_SERVER_ERROR:
            both[1].must(path, **query)
        base = self.auth if "users/" in path else self.tracking
        if all(self.live.rows(base, table, of) == self.restored.rows(base, table, of) for table, of in rows.items()):
            raise BackupError(
                f"MLflow on the restored copy answers otherwise than the server does for {what} ({path}), though the "
                f"rows are the same: {difference(copied, current)}",
                "run the drill again: an instance may have remembered what was changed by SQL (`mlflowctl forget`). "
                "If it stays, keep the server's disk, and report this.",
            )
        self.seen["changed"] += 1
        return None

    def of_run(self, run: str) -> dict[str, str]:
        """The tables that say something of a run, each with the rows that do."""
        listed = "SELECT quote_ident(table_name) FROM information_schema.columns WHERE column_name = 'run_uuid' AND "
        named = self.restored.ask(f"{listed} table_schema = 'public'", self.tracking)
        there = {table for base, table in self.restored.tables() if base == self.tracking}
        found = dict.fromkeys(there.intersection(named), f"run_uuid = '{run}'")
        return found | ({"inputs": f"'{run}' IN (source_id, destination_id)"} if "inputs" in there else {})

    def run(self, copy: Server, now: Server, run: str) -> dict[str, Any] | None:
        """Compare a run; what is known of it."""
        both, rows = [copy, now], self.of_run(run)
        found = self.same(f"the run {run}", f"{API}runs/get", {"run_id": run}, rows, both)
        if found is None:
            return None
        self.seen["runs"] += 1
        for metric in sorted({one["key"] for one in found["run"]["data"].get("metrics", ())})[:HISTORIES]:
            query = {"run_id": run, "metric_key": metric, "max_results": POINTS}
            what = f"the metric {metric!r} of the run {run}"
            self.seen["histories"] += self.same(what, f"{API}metrics/get-history", query, rows, both) is not None
        info: dict[str, Any] = found["run"]["info"]
        return info

    def experiment(self, copy: Server, now: Server, number: str) -> None:
        rows = dict.fromkeys(("experiments", "experiment_tags"), f"experiment_id = {int(number)}")
        what, query = f"the experiment {number}", {"experiment_id": number}
        self.seen["experiments"] += self.same(what, f"{API}experiments/get", query, rows, [copy, now]) is not None

    def accounts(self, copy: Server, now: Server, lot: random.Random) -> None:
        """Log in to the copy, and compare some accounts with what they may do; a wrong password is refused."""
        copy.must(f"{API}experiments/search", max_results=1)
        names = self.restored.ask(f"SELECT username FROM users WHERE username <> '{ACCOUNT}' ORDER BY id", self.auth)  # noqa: S608
        rows = {table: "true" for base, table in self.restored.tables() if base == self.auth}
        for name in lot.sample(names, min(LOGINS, len(names))):
            query = {"username": name}
            self.seen["accounts"] += (
                self.same(f"the account {name}", f"{API}users/get", query, rows, [copy, now]) is not None
            )
            status, answer = copy.ask(f"{API}experiments/search", login=(name, self.login[1]), max_results=1)
            if status != http.client.UNAUTHORIZED:
                raise BackupError(
                    f"MLflow on the restored copy answers {status} to {name} with a wrong password: {answer}",
                    "look into the row of that account in the table `users`; a password that is set anew "
                    "(`labtrack env rotate`) mends it.",
                )

    def files(self, now: Server, runs: dict[str, dict[str, Any]]) -> list[str]:
        """The files of runs which the server has, and the newest listing of the artifacts has not."""
        if not runs:
            return []
        with self.listing.open("rb") as lines:
            head = next(listing.read(lines))
        begun, wanted = listing.seconds(head["time"]) * 1000, {}
        for run, info in runs.items():
            place = listing.prefix(info["artifact_uri"], head["root"])
            if place is not None and 0 < int(info.get("end_time") or 0) < begun:
                wanted |= {f"{place}/{path}": f"{path} of the run {run}" for path in self.paths(now, run)}
        self.seen["files"] += len(wanted)
        with self.listing.open("rb") as lines:
            rows = listing.read(lines)
            next(rows)
            for row in rows:
                if row.get("stored", True):
                    wanted.pop(row["key"], None)
        return sorted(wanted.values())

    def paths(self, now: Server, run: str) -> Iterator[str]:
        """The artifacts of a run, as the server lists them."""
        folders = [""]
        for folder in folders:
            query = {"run_id": run, **({"path": folder} if folder else {})}
            for one in now.must(f"{API}artifacts/list", **query).get("files", ()):
                if not one.get("is_dir"):
                    yield one["path"]
                elif len(folders) < FOLDERS:
                    folders.append(one["path"])


def difference(one: Any, other: Any) -> str:
    """Where two answers differ, for a message."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in sorted({*one, *other}) if in_any_order(one.get(key)) != in_any_order(other.get(key))]
        return f"{keys[0]}: {difference(one.get(keys[0]), other.get(keys[0]))}" if keys else "their order"
    return f"{json.dumps(one)[:200]} and {json.dumps(other)[:200]}"
