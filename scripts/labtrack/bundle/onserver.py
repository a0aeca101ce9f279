"""Looks at the lab's server for `labtrack bundle`.  Sent there, run as root, with nothing but Python's own library.

Prints one line: {"version": 1, "files": ...}, all files as JSON {name: text}, compressed, in base64.  Changes nothing.
"""

import base64
import json
import os
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

LIMIT = 60  # seconds for a command
MOST = 1_000_000  # bytes of one; the end is kept
LINES = "20000"
OURS = ("labtrack-*", "mlflow@*", "nginx*", "postgresql*", "certbot*", "unattended-upgrades*", "apt-daily*", "ssh*")
JOURNAL = ("journalctl", "--no-pager", "--output=short-iso", "--since=-1d", f"--lines={LINES}")
PACKAGES = "${db:Status-Abbrev} ${Package} ${Version}\n"

COMMANDS = {
    "system.txt": [["cat", "/etc/os-release"], ["uname", "-a"], ["uptime"], ["systemd-detect-virt"]],
    "versions.txt": [
        ["ls", "-l", "/opt/mlflow", "/opt/mlflow/releases"],
        [
            "/opt/mlflow/current/bin/python",
            "-c",
            "import importlib.metadata as m, sys; sys.stdout.write(m.version('mlflow') + ' on Python ' + sys.version)",
        ],
        ["pg_lsclusters"],
        ["psql", "--version"],
        ["nginx", "-v"],
        ["pgbackrest", "version"],
        ["python3", "--version"],
    ],
    "packages.txt": [["dpkg-query", "--show", f"--showformat={PACKAGES}"]],
    "upgrades.txt": [
        ["tail", "-c", "200000", "/var/log/apt/history.log"],
        ["tail", "-c", "200000", "/var/log/unattended-upgrades/unattended-upgrades.log"],
    ],
    "journal.txt": [[*JOURNAL, *(f"--unit={unit}" for unit in OURS)]],
    "journal-warnings.txt": [[*JOURNAL, "--priority=warning"]],
    "nginx-error.log": [["tail", "-c", "500000", "/var/log/nginx/error.log"]],
    "units.txt": [
        ["systemctl", "list-units", "--all", "--full", "--no-pager"],
        ["systemctl", "list-timers", "--all", "--no-pager"],
    ],
    "unit-status.txt": [["systemctl", "status", "--no-pager", "--full", "--lines=20", *OURS]],
    "disks.txt": [["df", "-hT"], ["df", "-i"], ["lsblk"]],
    "memory.txt": [["free", "-m"], ["ps", "-eo", "pid,user,rss,pcpu,etime,stat,comm", "--sort=-rss"]],
    "network.txt": [["ip", "address"], ["ip", "route"], ["ss", "-lntup"], ["resolvectl", "status"]],
    "firewall.txt": [["nft", "list", "ruleset"]],
    "clock.txt": [["timedatectl"]],
    "backups.txt": [["labtrack-backup", "status"]],
    "certificate.txt": [["labtrack-certificate", "status", "--json"]],
    "reboot.txt": [["ls", "-l", "/run/reboot-required"], ["cat", "/run/reboot-required.pkgs"], ["needrestart", "-b"]],
}


def said(command: list[str]) -> str:
    """What a command says, with the command above it."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT,
            check=False,
        )
        output, end = done.stdout, "" if done.returncode == 0 else f"[exit code {done.returncode}]\n"
    except FileNotFoundError:
        output, end = b"", "[not installed]\n"
    except subprocess.TimeoutExpired as error:
        output, end = error.stdout or b"", f"[no answer within {LIMIT} s]\n"
    except OSError as error:
        output, end = b"", f"[{error}]\n"
    left_out = max(0, len(output) - MOST)
    if left_out:  # from the beginning of a line on: half a secret would not be known
        output = output[left_out:].partition(b"\n")[2]
        end += f"[{left_out} bytes before these are left out]\n"
    text = output.decode("utf-8", "replace")
    return f"$ {' '.join(command)}\n{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{end}"


def look(commands: list[list[str]]) -> str:
    return "\n".join(map(said, commands))


def main() -> None:
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    os.environ.update(LC_ALL="C.UTF-8", SYSTEMD_COLORS="0")
    with ThreadPoolExecutor() as pool:
        files = dict(zip(COMMANDS, pool.map(look, COMMANDS.values())))
    packed = base64.b64encode(zlib.compress(json.dumps(files).encode())).decode()
    sys.stdout.write(json.dumps({"version": 1, "files": packed}) + "\n")


if __name__ == "__main__":
    main()
