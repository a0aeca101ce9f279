"""Measures what `mlflow.log_metric` costs the training: `make bench-record`.

The training calls it in a loop, a process for each way of recording, with the MLflow of the server's lock file: into a
SQLite file on local disk, to a live server, to a server that is gone, and through labtrack's recorder into a folder on
local disk and into one that hangs (FUSE of which nobody answers, as after the death of an NFS server).  And how long it
takes from the start of Python to the first metric of the first run, on a fresh path.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "sync"))
sys.path.insert(0, str(ROOT / "tests" / "recorder"))

from recorder_env import entry_points  # noqa: E402 - of the tests
from sync_server import REQUIREMENTS, TrackingServer, mlflow_bin  # noqa: E402

import bench_page  # noqa: E402 - beside this file
from hanging_disk import can_hang, hanging  # noqa: E402 - beside this file

SHARE, HANGING = 0.1, 1e-3  # the goals: of SQLite's median; seconds
SQLITE, RECORDER, HANGS = "MLflow, SQLite on local disk", "`labtrack:`, local disk", "`labtrack:`, a folder that hangs"
SERVER, GONE = "MLflow, a live server on this machine", "MLflow, a server that is gone"

_CALLS = """
import json, sys, time
import mlflow
mlflow.set_experiment("bench")
run = mlflow.start_run()
mlflow.log_metric("loss", 1.0, step=-1)
times = []
for step in range(int(sys.argv[1])):
    began = time.perf_counter()
    mlflow.log_metric("loss", 1.0 / (step + 1), step=step)
    times.append(time.perf_counter() - began)
    time.sleep(0.002)  # a step of the training
print(json.dumps(times), flush=True)
"""
_GONE = """
import json, time
import mlflow
from mlflow.entities import Metric
client = mlflow.MlflowClient()
began = time.perf_counter()
try:
    client.log_metric("0" * 32, "loss", 1.0)
except Exception as error:
    print(json.dumps([time.perf_counter() - began]))
"""
_FIRST = """
import time
import mlflow
mlflow.set_experiment("bench")
run = mlflow.start_run()
mlflow.log_metric("loss", 1.0)
print(time.time())
import os; os._exit(0)
"""


class Times(NamedTuple):
    """Seconds of a call: the median, the 99th percentile; cut: whether it takes longer than was waited."""

    p50: float
    p99: float
    cut: bool = False


def of(times: list[float]) -> Times:
    """The figures of some calls."""
    ordered = sorted(times)
    return Times(ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)])


class Bench:
    """folder: on local disk.  calls: for each way.  limit: seconds for a call to a server that is gone."""

    def __init__(self, folder: Path, calls: int, limit: float) -> None:
        self.folder, self.calls, self.limit = folder, calls, limit
        plain = {
            key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "AWS_", "LABTRACK_"))
        }
        self.env = {
            **plain, "MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet",
            "PYTHONPATH": f"{entry_points(folder / 'installed')}:{ROOT / 'scripts'}",
        }  # fmt: skip

    def run(self, code: str, uri: str, timeout: float = 900) -> str:
        """What a program of MLflow's environment prints.  Raises TimeoutExpired."""
        done = subprocess.run(
            [mlflow_bin() / "python", "-c", code, str(self.calls)], env={**self.env, "MLFLOW_TRACKING_URI": uri},
            cwd=self.folder, capture_output=True, text=True, check=False, timeout=timeout,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"{uri} failed:\n{done.stderr[-3000:]}")
        return next(line for line in reversed(done.stdout.splitlines()) if line[:1] in "[0123456789")

    def calls_to(self, uri: str) -> Times:
        """The times of log_metric."""
        return of(json.loads(self.run(_CALLS, uri)))

    def gone(self) -> Times:
        """One call to a port where nobody answers."""
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            try:
                (time,) = json.loads(self.run(_GONE, f"http://127.0.0.1:{nobody.getsockname()[1]}", self.limit))
            except subprocess.TimeoutExpired:
                return Times(self.limit, self.limit, cut=True)
        return Times(time, time)

    def first(self, uri: str) -> float:
        """Seconds from the start of Python to the first metric."""
        began = time.time()
        return float(self.run(_FIRST, uri)) - began


def measure(calls: int, rounds: int, limit: float) -> tuple[dict[str, Times], dict[str, float]]:
    """The times of calls, and of first runs (the best of some rounds), by the way of recording."""
    with _folder() as folder:
        bench = Bench(folder, calls, limit)
        calls_of = {
            SQLITE: bench.calls_to(f"sqlite:///{folder}/a.db"),
            RECORDER: bench.calls_to(f"labtrack://{folder}/runs"),
        }
        if can_hang():
            (folder / "hangs").mkdir()
            with hanging(folder / "hangs"):
                calls_of[HANGS] = bench.calls_to(f"labtrack://{folder}/hangs/runs")
        server = TrackingServer(f"sqlite:///{folder}/server.db", folder / "server")
        server.start()
        try:
            calls_of[SERVER] = bench.calls_to(server.url)
        finally:
            server.kill()
        firsts: dict[str, float] = {}
        for at in range(rounds):
            for name, uri in ((SQLITE, f"sqlite:///{folder}/f{at}.db"), (RECORDER, f"labtrack://{folder}/f{at}")):
                firsts[name] = min(firsts.get(name, 1e9), bench.first(uri))
        calls_of[GONE] = bench.gone()
    return calls_of, firsts


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="labtrack-bench-") as name:
        yield Path(name)


def table(calls: dict[str, Times], firsts: dict[str, float]) -> str:
    """The figures as Markdown."""
    lines = [
        "| recorded by | median | 99 of 100 within | first metric after the start of Python |",
        "|---|---:|---:|---:|",
    ]
    for name, one in calls.items():
        above = "> " if one.cut else ""
        first = f"{firsts[name]:.2f} s" if name in firsts else ""
        lines.append(f"| {name} | {above}{_shown(one.p50)} | {above}{_shown(one.p99)} | {first} |")
    return "\n".join(lines)


def _shown(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds * 1000:.3f} ms"


def missed(calls: dict[str, Times], firsts: dict[str, float]) -> list[str]:
    """The goals that were not reached."""
    found = []
    if calls[RECORDER].p50 > SHARE * calls[SQLITE].p50:
        found.append(f"the median is {calls[RECORDER].p50 / calls[SQLITE].p50:.2f} of SQLite's, not <= {SHARE}")
    if HANGS in calls and calls[HANGS].p99 > HANGING:
        found.append(f"99 of 100 calls within {_shown(calls[HANGS].p99)} where the folder hangs, not 1 ms")
    if firsts[RECORDER] > firsts[SQLITE]:
        found.append(f"the first metric after {firsts[RECORDER]:.2f} s, by SQLite {firsts[SQLITE]:.2f} s")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=300, help="seconds for the call to a server that is gone")
    parser.add_argument("--no-page", action="store_true", help="only print, leave docs/reference/performance.md")
    options = parser.parse_args()
    calls, firsts = measure(options.calls, options.rounds, options.limit)
    print(table(calls, firsts))
    if not options.no_page:
        locked = REQUIREMENTS.read_text()
        version = re.search(r"^mlflow==(\S+)", locked, re.MULTILINE)
        where = (
            f"{bench_page.HERE}, MLflow {version[1] if version else '?'}, {options.calls:,} calls of "
            "`mlflow.log_metric`, 2 ms between two. The folder that hangs is FUSE of which nobody answers; the server "
            "that is gone has nobody at its port; MLflow's defaults"
        )
        bench_page.write("bench-record", where, table(calls, firsts))
    found = missed(calls, firsts)
    for one in found:
        print(f"missed: {one}", file=sys.stderr)
    if not can_hang():
        print("not measured: a folder that hangs needs root and /dev/fuse", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
