"""Run on a lab's server as root: prints, as JSON, what runs there otherwise than the disk says; and what there is."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

FIREWALL = """
table="nft --stateless --terse list table inet labtrack"
test "$($table)" = "$(unshare --net sh -c "nft -f /etc/nftables.conf; $table")"
"""
MANAGED = (
    "/etc/mlflow /etc/nginx/nginx.conf /etc/ssl/labtrack /etc/systemd/system /etc/systemd/journald.conf.d"
    " /etc/nftables.conf /etc/ssh/sshd_config.d /etc/sudoers.d /etc/sysctl.d /etc/postgresql /etc/apt/apt.conf.d"
    " /usr/local /run/mlflow /run/nginx -maxdepth 5 ! -path '/run/nginx/*/*' ! -name '*.epoch' ! -path '*/__pycache__*'"
)


def said(command: str) -> str:
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False).stdout.strip()


def works(command: str) -> bool:
    return subprocess.run(["sh", "-c", command], capture_output=True, check=False).returncode == 0


def main_pid(unit: str) -> str:
    return said(f"systemctl show --property=MainPID --value {unit}")


def environment(pid: str) -> dict[str, str]:
    pairs = (entry.partition("=") for entry in Path(f"/proc/{pid}/environ").read_text().split("\0"))
    return {name: value for name, _, value in pairs}


def instances() -> Iterator[str]:
    units = [path.name for path in Path("/etc/systemd/system/multi-user.target.wants").glob("mlflow@*.service")]
    for unit in units:
        pid = main_pid(unit)
        runs = environment(pid)
        for file in ("settings.env", "secrets.env"):
            for line in Path("/etc/mlflow", file).read_text().splitlines():
                name, sep, value = line.partition("=")
                if sep and not line.startswith("#") and runs.get(name) != "".join(shlex.split(value)):
                    yield f"{unit} has another {name} than {file}"
        loaded = Path(runs["CREDENTIALS_DIRECTORY"], "auth.ini")
        if loaded.read_text() != Path("/etc/mlflow/auth.ini").read_text():
            yield f"{unit} has another auth.ini"
        if str(Path("/opt/mlflow/current").resolve()) not in Path(f"/proc/{pid}/cmdline").read_text():
            yield f"{unit} runs another release than /opt/mlflow/current"
        if newer("/usr/local/lib/labtrack", pid):
            yield f"{unit} was started before its code was written"
    if said("systemctl list-units --plain --no-legend 'mlflow@*' | cut -d' ' -f1 | sort").split() != sorted(units):
        yield "other instances run than are started at boot"
    if said("stat -c '%a %U %G' /run/mlflow") != "710 mlflow www-data":
        yield "/run/mlflow is open to others, or to nobody"
    if not works("mlflowctl check"):
        yield said("mlflowctl check")


def newer(path: str, pid: str) -> bool:
    """Whether anything was written after a process began."""
    began = int(said(f'date +%s -d "$(ps -o lstart= -p {pid})"'))
    return bool(said(f"find {path} -newerct @{began + 1} ! -path '*__pycache__*'"))


def proxy() -> Iterator[str]:
    workers = said(f"pgrep -P {main_pid('nginx')} -f 'worker process$'").split()
    for file in ("/etc/nginx/nginx.conf", "/etc/ssl/labtrack/server.pem", "/etc/ssl/labtrack/server.key"):
        if any(newer(file, worker) for worker in workers):
            yield f"nginx has not read {file}"
    name = said("sed -n 's/^ *server_name \\([^_; ]*\\);/\\1/p' /etc/nginx/nginx.conf | head -1")
    served = f"openssl s_client -connect 127.0.0.1:443 -servername {name} </dev/null | openssl x509"
    certificate = "openssl x509 -in /etc/ssl/labtrack/server.pem"
    if said(f"{served} -noout -serial") != said(f"{certificate} -noout -serial"):
        yield "nginx serves another certificate"
    if said(f"{certificate} -noout -pubkey") != said("openssl pkey -pubout -in /etc/ssl/labtrack/server.key"):
        yield "the key is not the certificate's"


def database() -> Iterator[str]:
    def ask(sql: str) -> str:
        return said(f"runuser -u postgres -- psql -XtAc {shlex.quote(sql)}")

    if waiting := ask("SELECT name FROM pg_settings WHERE pending_restart"):
        yield f"PostgreSQL has to be restarted for {waiting}"
    hba = said("stat -c %Z /etc/postgresql/*/main/pg_hba.conf")
    if ask(f"SELECT pg_conf_load_time() >= to_timestamp({hba})") != "t":
        yield "PostgreSQL has not read pg_hba.conf"
    settings = ask("SELECT name FROM pg_file_settings WHERE NOT applied OR error IS NOT NULL")
    if [name for name in settings.split() if name not in ask("SELECT name FROM pg_file_settings WHERE applied")]:
        yield f"PostgreSQL has not applied {settings}"


def machine() -> Iterator[str]:
    if not works(FIREWALL):
        yield "the firewall is another than its file"
    options = "-o StrictHostKeyChecking=no -o PubkeyAuthentication=no -o BatchMode=yes"
    login = said(f"ssh {options} nobody@127.0.0.1 2>&1 | tail -1")
    if "(publickey)" not in login:
        yield f"sshd says: {login}"
    for line in Path("/etc/sysctl.d/60-labtrack.conf").read_text().splitlines():
        name, sep, value = line.lstrip("-").partition(" = ")
        if sep and name.startswith("net.ipv4") and said(f"sysctl -n {name}") != value:
            yield f"{name} is not {value}"
    if units := said("systemctl show --property=Id,NeedDaemonReload '*' | grep -B1 NeedDaemonReload=yes | grep Id="):
        yield f"systemd has not read {units}"
    if units := said("systemctl --failed --plain --no-legend"):
        yield units
    if packages := said("dpkg --audit"):
        yield packages
    if half := [path for path in Path("/opt/mlflow/releases").iterdir() if not (path / ".complete").exists()]:
        yield f"half-made: {half}"


def there() -> list[str]:
    """What of the kit's there is: files with modes and owners, units, roles; without Debian's version numbers."""

    def ask(sql: str) -> str:
        return said(f"cd /; runuser -u postgres -- psql -XtAc {shlex.quote(sql)}")

    listed = said(f"find {MANAGED} -printf '%p %y %m %u:%g\\n'")
    units = said("systemctl list-unit-files --state=enabled --plain --no-legend | cut -d' ' -f1")
    roles = ask("SELECT rolname, rolsuper FROM pg_roles")
    databases = ask("SELECT datname, datdba::regrole FROM pg_database")
    lines = re.sub(r"/1[57]\b|@1[57]-", "/N", f"{listed}\n{units}\n{roles}\n{databases}").splitlines()
    return sorted(line for line in lines if re.search("labtrack|mlflow|nginx|postgres|logrotate", line))


if __name__ == "__main__":
    parts = (instances, proxy, database, machine)
    json.dump({"otherwise": [line for part in parts for line in part()], "there": there()}, sys.stdout)
