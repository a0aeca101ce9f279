"""Measures the kit's server against the usual `mlflow server` on the running rehearsal: `make bench`."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import bench_page
from labtrack import lab as labs
from labtrack import secrets

ROOT = Path(__file__).resolve().parents[2]
PROBE = Path(__file__).with_name("bench_probe.py")
TARGETS = {
    "log_metric": ("<=", 0.06), "throughput": (">=", 5), "log_batch_1000": ("<=", 0.2), "batches": (">=", 5),
    "search": ("<=", 0.2), "search_many": ("<=", 0.2), "pss": ("<=", 0.2),
}  # fmt: skip
ROWS = {
    "log_metric": ("`log_metric`, 1 client, p50", "ms"),
    "throughput": ("`log_metric`, 16 clients", "calls/s"),
    "log_batch_100": ("`log_batch` of 100 metrics, 1 client, p50", "ms"),
    "log_batch_1000": ("`log_batch` of 1000 metrics, 1 client, p50", "ms"),
    "batches": ("`log_batch` of 1000 metrics, 16 clients", "calls/s"),
    "search": ("`search_runs`, 20 runs, 1 client, p50", "ms"),
    "search_many": ("`search_runs`, 20 of 10,000 runs, 1 client, p50", "ms"),
    "pss": ("memory of all MLflow processes, idle (PSS)", "MiB"),
}


def ready(lab_dir: Path) -> None:
    """End with what to do where there is no server to measure."""
    if not (lab_dir / "hosts.yml").exists():
        sys.exit(f"{lab_dir}/hosts.yml is not there.  To fix: make demo, which deploys the server, then this again.")
    if not shutil.which("ssh"):
        sys.exit("ssh is not installed.  To fix: apt install openssh-client.")


def login_of(lab_dir: Path) -> list[str]:
    """The command that logs in to the lab's server, through the lab's own SSH settings."""
    host = yaml.safe_load((lab_dir / "hosts.yml").read_text())["mlflow"]["hosts"]["server"]
    options = host.get("ansible_ssh_common_args", "").replace("{{ inventory_dir }}", str(lab_dir)).split()
    key = host["ansible_ssh_private_key_file"].replace("{{ inventory_dir }}", str(lab_dir))
    login = f"{host['ansible_user']}@{host['ansible_host']}"
    return ["ssh", "-q", "-o", "BatchMode=yes", "-i", key, *options, login]


def remote(lab_dir: Path, command: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run COMMAND on the lab's server as root."""
    argv = [*login_of(lab_dir), f"sudo {command}"]
    return subprocess.run(argv, text=True, stdout=subprocess.PIPE, check=True, **more)


@contextlib.contextmanager
def room() -> Iterator[None]:
    """8 GiB for the rehearsal's machines: the usual server's workers and PostgreSQL do not fit into their 3 GiB."""
    limits = list(Path("/sys/fs/cgroup").glob("memory/labtrack/cloud/guest-*/memory.limit_in_bytes"))
    limits += Path("/sys/fs/cgroup").glob("labtrack/cloud/guest-*/memory.max")
    before = [(limit, limit.read_text()) for limit in limits]
    try:
        for limit in limits:
            limit.write_text(f"{8 * 2**30}")
        yield
    finally:
        for limit, value in before:
            limit.write_text(value)


def measure(lab_dir: Path, *, seconds: float, rounds: int) -> dict[str, Any]:
    """The figures of both servers, as bench_probe.py prints them."""
    lab = labs.load(lab_dir)
    order = {
        "fqdn": lab.fqdn,
        "password": secrets.get(lab, "secret_mlflow_admin_password"),
        "clients": 16,
        "seconds": seconds,
        "rounds": rounds,
        "settle": 10,
    }
    # The order has a password in it and so goes by standard input, the program before it by a file.
    remote(lab_dir, "tee /run/labtrack-bench.py >/dev/null", input=PROBE.read_text())
    try:
        done = remote(lab_dir, "/opt/mlflow/current/bin/python /run/labtrack-bench.py", input=json.dumps(order) + "\n")
    finally:
        remote(lab_dir, "rm -f /run/labtrack-bench.py", stdin=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def table(result: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| what | usual `mlflow server` | this kit | ratio | target | `pgbench` |",
        "|---|---:|---:|---:|---|---:|",
    ]
    for key, (what, unit) in ROWS.items():
        usual, kit = result["usual"][key], result["kit"][key]
        sign, limit = TARGETS.get(key, ("", ""))
        alone = f"{result['limit'][key]:.1f} {unit}" if key in result["limit"] else ""
        row = (what, f"{usual:.1f} {unit}", f"{kit:.1f} {unit}", f"{kit / usual:.2f}", f"{sign} {limit}".strip(), alone)
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", "`pgbench`: PostgreSQL alone inserts the same rows by prepared statements, 1 client's mean."]
    return "\n".join(lines)


def missed(result: dict[str, Any]) -> list[str]:
    """The targets that were not reached."""
    ratio = {key: result["kit"][key] / result["usual"][key] for key in TARGETS}
    return [
        f"{ROWS[key][0]}: {ratio[key]:.2f}, not {sign} {limit}"
        for key, (sign, limit) in TARGETS.items()
        if (ratio[key] > limit if sign == "<=" else ratio[key] < limit)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lab", type=Path, default=ROOT / "inventory/rehearsal")
    parser.add_argument("--seconds", type=float, default=5, help="for each figure and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-page", action="store_true", help="only print, leave docs/reference/performance.md")
    options = parser.parse_args()
    ready(options.lab)
    with room():
        result = measure(options.lab, seconds=options.seconds, rounds=options.rounds)
    print(table(result))
    if not options.no_page:
        machine = result["machine"]
        where = f"rehearsal on {machine['cores']} cores, MLflow {machine['mlflow']}, Python {machine['python']}"
        bench_page.write("bench", where, table(result))
    for miss in missed(result):
        print(f"missed: {miss}", file=sys.stderr)
    return 1 if missed(result) else 0


if __name__ == "__main__":
    sys.exit(main())
