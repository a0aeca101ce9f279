"""A server that is a folder: Debian's PostgreSQL and pgBackRest, with what the roles write for them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from s3_server import REGION, Store

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "roles/backup/files/labtrack_backup.py"
CIPHER = "KvT0cipherPassOfTheLab"
BUCKET = "climate-backup"
# MLflow's tables, as far as the drill looks into them.
TABLES = {
    "mlflowdb": """
        CREATE TABLE runs (run_uuid varchar(32) PRIMARY KEY, name text, status text, start_time bigint);
        CREATE TABLE params (key text, value text, run_uuid varchar(32) REFERENCES runs, PRIMARY KEY (key, run_uuid));
        CREATE TABLE tags (key text, value text, run_uuid varchar(32) REFERENCES runs, PRIMARY KEY (key, run_uuid));
        CREATE TABLE metrics (key text, value float, timestamp bigint, step bigint, is_nan bool,
            run_uuid varchar(32) REFERENCES runs, PRIMARY KEY (key, timestamp, step, run_uuid, value, is_nan));
        CREATE TABLE spans (content bytea);
        """,
    "mlflow_auth": "CREATE TABLE users (id serial PRIMARY KEY, username text UNIQUE, password_hash text);",
}
RUNS = """
    INSERT INTO runs SELECT md5(n::text), 'run ' || n, 'FINISHED', n FROM generate_series({0}, {1}) n;
    INSERT INTO params SELECT 'lr', n::text, md5(n::text) FROM generate_series({0}, {1}) n;
    INSERT INTO tags SELECT 'user', 'ada', md5(n::text) FROM generate_series({0}, {1}) n;
    INSERT INTO metrics SELECT 'loss', 1.0 / s, s, s, false, md5(n::text)
        FROM generate_series({0}, {1}) n, generate_series(1, {2}) s;
    """
# In systemd's place: notes what it is asked, starts and stops the cluster alone, and fails once where a file says so.
SYSTEMCTL = """#!/bin/sh
echo "$@" >>{folder}/systemctl.log
case "$*" in
    "start postgresql@"*) ! rm {folder}/fails-to-start 2>/dev/null || exit 1 ;;
    "stop postgresql@"*) test -e {folder}/main/postmaster.pid || exit 0 ;;
    *) exit 0 ;;
esac
exec runuser -u postgres -- {control} -m fast "$1"
"""


class Machine:
    """The server: its cluster, and the program on it."""

    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self.store = folder, store
        self.data, self.results, self.drills = folder / "main", folder / "results", folder / "drills"
        for made in (self.results, self.drills):
            made.mkdir()
        for owned in (folder, self.results, self.drills):
            shutil.chown(owned, "postgres", "postgres")
        self.settings_file, self.config = folder / "labtrack-backup.json", folder / "pgbackrest.conf"
        self._render()
        systemctl = folder / "systemctl"
        self.settings = json.loads(self.settings_file.read_text()) | {"systemctl": str(systemctl)}
        self.mlflow, self.settings["mlflow"] = self.settings["mlflow"], {}  # there is none but for the tests of it
        self.settings_file.write_text(json.dumps(self.settings))
        self.bin = Path(self.settings["bin"])
        systemctl.write_text(SYSTEMCTL.format(folder=folder, control=shlex.join(map(str, self._control()))))
        systemctl.chmod(0o755)

    def _render(self) -> None:
        """What the roles write, by Ansible; only the places are others."""
        archive = self.folder / "archive-by-pgbackrest"
        archive.write_text((ROOT / "roles/backup/files/archive-by-pgbackrest.sh").read_text())
        archive.chmod(0o755)
        (play,) = [one for one in yaml.safe_load((ROOT / "playbooks/deploy.yml").read_text())
                   if one["name"] == "Run PostgreSQL"]  # fmt: skip
        there = f"PGBACKREST_CONFIG={self.config} {self.folder}"
        push = play["vars"]["deploy_archive_command"].replace("/var/lib/labtrack-backup", str(self.results))
        push = push.replace("/usr/local/lib/labtrack-backup", there)
        given = {
            "backup_endpoint": self.store.endpoint, "backup_bucket": BUCKET, "backup_path": "/climate",
            "backup_region": REGION, "backup_ca": self.store.ca.read_text(), "backup_cipher_pass": CIPHER,
            "backup_access_key_id": self.store.access_key, "backup_secret_access_key": self.store.secret_key,
            "backup_scratch": str(self.drills / "scratch"), "__backup_ca_file": str(self.store.ca),
            "__backup_data": str(self.data), "__backup_socket": str(self.folder),
            "__backup_configuration": str(self.config),
            "__backup_lock": str(self.folder / "lock"), "__backup_spool": str(self.folder / "spool"),
            "__backup_results": str(self.results), "__backup_restore": str(self.folder / "restore"),
            "backup_clients": ["mlflow@1.service", "mlflow@2.service"], "__postgresql_socket": str(self.folder),
            "postgresql_memory_mb": 512, "postgresql_archive_command": push,
        }  # fmt: skip
        (self.folder / "given.json").write_text(json.dumps(given))
        roles = ROOT / "roles"
        template = "ansible.builtin.template"
        conf = {"src": str(roles / "backup/templates/pgbackrest.conf.j2"), "dest": str(self.config)}
        tasks = [
            {template: {**conf, "owner": "root", "group": "postgres", "mode": "0640"}},
            {template: {"src": str(roles / "postgresql/templates/postgresql.conf.j2"),
                        "dest": str(self.folder / "labtrack.conf"), "mode": "0644"}},
            {"ansible.builtin.copy": {"content": "{{ __backup_settings | to_json }}", "dest": str(self.settings_file),
                                      "mode": "0644"}},
            *({template: {"src": str(roles / "backup/templates" / src), "mode": "0644",
                          "dest": str(self.folder / f"{unit}.service")}}
              for unit, src in (("labtrack-backup@drill", "service.j2"), ("labtrack-drill@", "drill.service.j2"),
                                ("labtrack-backup@artifacts", "artifacts.service.j2"))),
        ]  # fmt: skip
        files = [
            str(roles / role / kind / "main.yml") for role in ("backup", "postgresql") for kind in ("defaults", "vars")
        ]
        play = {"hosts": "localhost", "connection": "local", "gather_facts": True, "vars_files": files, "tasks": tasks}
        (self.folder / "play.yml").write_text(yaml.safe_dump([play]))
        program = Path(sys.executable).with_name("ansible-playbook")
        done = subprocess.run(
            [program, "-i", "localhost,", "-e", f"@{self.folder / 'given.json'}", self.folder / "play.yml"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def as_postgres(self, *command: Any, fails: bool = False, **more: Any) -> str:
        """What a command prints that PostgreSQL's account runs."""
        done = subprocess.run(
            ["runuser", "-u", "postgres", "--", *command], capture_output=True, text=True, check=False, cwd="/", **more
        )
        assert (done.returncode != 0) is fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def sql(self, text: str, database: str = "mlflowdb") -> list[str]:
        """The lines of an answer of the server's cluster."""
        psql = (self.bin / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", self.folder, "-d", database, "-c", text)
        return self.as_postgres(*psql).splitlines()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The cluster runs, with some runs and accounts in it."""
        self.initdb()
        for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):  # which Debian keeps elsewhere
            (self.data / name).rename(self.folder / name)
        with (self.folder / "postgresql.conf").open("a") as conf:
            conf.write(f"hba_file = '{self.folder}/pg_hba.conf'\nident_file = '{self.folder}/pg_ident.conf'\n")
            conf.write(f"include '{self.folder / 'labtrack.conf'}'\nfsync = off\n")
        self.control("start")
        try:
            for database, tables in TABLES.items():
                self.sql(f"CREATE DATABASE {database}", "postgres")
                self.sql(tables, database)
            self.sql(RUNS.format(1, 300, 20))
            # more rows than are compared one by one, and more than goes to the store in one part
            self.sql("INSERT INTO spans SELECT sha512(n::text::bytea) FROM generate_series(1, 120000) n")
            self.sql("INSERT INTO users (username, password_hash) VALUES ('admin', 'x'), ('ada', 'y')", "mlflow_auth")
            yield
        finally:
            self.control("-m", "immediate", "stop")

    def initdb(self) -> None:
        """Make the cluster, as Debian's package does."""
        options = ("-A", "peer", "-E", "UTF8", "--data-checksums", "--no-sync")
        self.as_postgres(self.bin / "initdb", "-D", self.data, *options)

    def control(self, *arguments: str) -> None:
        """Start or stop the cluster, and wait until that is so; at the end of the test it runs again."""
        self.as_postgres(*self._control(), *arguments)

    def _control(self) -> list[Any]:
        conf = ("-o", f"-c config_file={self.folder / 'postgresql.conf'}", "-l", self.folder / "log")
        return [self.bin / "pg_ctl", "-D", self.data, "-w", "-t", "600", *conf]

    def asked(self) -> list[str]:
        """What systemd was asked to do with MLflow's units since it was last asked here."""
        log = self.folder / "systemctl.log"
        done = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line for line in done if "mlflow" in line and "is-enabled" not in line]

    def environment(self, changed: dict[str, Any]) -> dict[str, str]:
        """Where the program finds its settings, with some of them changed."""
        file = self.settings_file
        if changed:
            file = self.folder / "changed.json"
            file.write_text(json.dumps(self.settings | changed))
        return {**os.environ, "LABTRACK_BACKUP_SETTINGS": str(file)}

    def __call__(self, *command: str, fails: bool | None = False, **changed: Any) -> str:
        """Call labtrack-backup as root; what it prints. `fails=None` takes either exit code."""
        done = subprocess.run(
            ["/usr/bin/python3", PROGRAM, *command],
            env=self.environment(changed), capture_output=True, text=True, check=False,
        )  # fmt: skip
        print(command, done.stdout, done.stderr)
        assert fails in (None, done.returncode != 0), done.stdout + done.stderr
        return done.stdout + done.stderr

    def result(self, job: str) -> dict[str, Any]:
        """What a job has left."""
        found: dict[str, Any] = json.loads((self.results / f"{job}.json").read_text())
        return found

    def config_with(self, old: str, new: str) -> str:
        """Another pgbackrest.conf, with one thing changed; its path."""
        text = self.config.read_text()
        assert old in text
        file = self.folder / "other.conf"
        file.write_text(text.replace(old, new))
        shutil.chown(file, "root", "postgres")
        file.chmod(0o640)
        return str(file)
