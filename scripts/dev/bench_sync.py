"""Measures `labtrack sync` against its peers on this machine: `make bench-sync`.

The work: "big" is 1 run of 10 metrics x 10,000 steps, 200 params and 100 files of 10 KiB; "small" is 100 runs of
10 params, 100 points and 2 files of 1 KiB; "planned" is what `--dry-run` takes for 100,000 runs of 3 params and
2 metrics with 2 points each, none of which is at the server.
The destinations, which this program starts: `mlflow server --workers 2` as `pip install mlflow` brings it, with
PostgreSQL; and for `labtrack sync` also the lab's application as the kit deploys it, to an ordinary account, with a
store to which artifacts go by its keys over TLS, without nginx.
Peers: a loop over MlflowClient, and mlflow-export-import where LABTRACK_BENCH_MEI names a checkout of it, for which an
environment with its dependencies is made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("sync", "differential", "backup")]

from lab_server import ADA, LabServer  # noqa: E402 - of the tests
from s3_server import REGION, Store  # noqa: E402
from sync_recording import T0, Recording  # noqa: E402
from sync_server import CACHE, REQUIREMENTS, mlflow_bin, postgresql, tracking_server  # noqa: E402

import bench_page  # noqa: E402 - beside this file

PEER = "LABTRACK_BENCH_MEI"
# What mlflow-export-import's setup.py names beside MLflow, of which it gets the server's version.
PEER_NEEDS = ("databricks-cli==0.18.0", "packaging>=20.0", "pandas>=1.5.2", "tabulate==0.9.0", "wheel")
PEER_MODULES = (
    "mlflow_export_import.experiment.export_experiment",
    "mlflow_export_import.experiment.import_experiment",
)

# What people write themselves: every fact by one call of the client, artifacts by log_artifacts.
NAIVE = """
import sys, os, mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
source, target, name = MlflowClient(sys.argv[1]), MlflowClient(sys.argv[2]), sys.argv[3]
where = target.create_experiment(name)
(experiment,) = [one for one in source.search_experiments() if one.name == sys.argv[4]]
for run in source.search_runs([experiment.experiment_id], max_results=1000):
    made = target.create_run(where, start_time=run.info.start_time, tags=run.data.tags).info.run_id
    target.log_batch(made, params=[])
    params = [Param(*one) for one in run.data.params.items()]
    for first in range(0, len(params), 100):
        target.log_batch(made, params=params[first:first + 100])
    for key in run.data.metrics:
        points = source.get_metric_history(run.info.run_id, key)
        for first in range(0, len(points), 1000):
            target.log_batch(made, metrics=points[first:first + 1000])
    target.log_artifacts(made, run.info.artifact_uri)
    target.set_terminated(made, run.info.status, run.info.end_time)
"""


def big(folder: Path) -> Recording:
    """One long run."""
    recording = Recording(folder, "big")
    metrics = {f"metric {one}": [step / (one + 1) for step in range(10_000)] for one in range(10)}
    files = {f"files/{one:03}.bin": os.urandom(10 * 1024) for one in range(100)}
    recording.run(params={f"param {one}": str(one) for one in range(200)}, metrics=metrics, files=files)
    return recording


def small(folder: Path) -> Recording:
    """Many short runs."""
    recording = Recording(folder, "small")
    for number in range(100):
        recording.run(
            name=f"run {number}",
            params={f"param {one}": str(one) for one in range(10)},
            metrics={"loss": [1 / (step + 1) for step in range(100)]},
            files={"a.bin": os.urandom(1024), "b.bin": os.urandom(1024)},
        )
    return recording


def numerous(folder: Path, runs: int) -> Recording:
    """A sweep that nobody would look through."""
    recording = Recording(folder, "numerous")
    ids = [uuid.uuid4().hex for _ in range(runs)]
    columns = (
        "runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time, "
        "source_version, lifecycle_stage, artifact_uri, experiment_id)"
    )
    recording.many(
        f"INSERT INTO {columns} VALUES (?, ?, 'UNKNOWN', '', '', 'ada', 'FINISHED', ?, ?, '', 'active', ?, 1)",  # noqa: S608
        ((one, f"run {n}", T0 + n, T0 + n + 9, f"{folder}/none/{one}") for n, one in enumerate(ids)),
    )
    for one in ("lr", "depth", "seed"):
        recording.many(
            "INSERT INTO params (run_uuid, key, value) VALUES (?, ?, ?)",
            ((run_id, one, str(n % 97)) for n, run_id in enumerate(ids)),
        )
    recording.many(
        "INSERT INTO tags (run_uuid, key, value) VALUES (?, 'mlflow.runName', ?)",
        ((run_id, f"run {n}") for n, run_id in enumerate(ids)),
    )
    recording.many(
        "INSERT INTO metrics (run_uuid, key, value, timestamp, step, is_nan) VALUES (?, ?, ?, ?, ?, 0)",
        ((run_id, key, 0.5, T0 + step, step) for run_id in ids for key in ("loss", "f1") for step in range(2)),
    )
    return recording


class Timed(NamedTuple):
    """What a command took, and what it printed on its two outputs."""

    seconds: float
    said: str
    beside: str


def timed(command: list[Any], env: dict[str, str]) -> Timed:
    """Runs a command.  One that fails ends the benchmark."""
    began = time.perf_counter()
    done = subprocess.run([str(one) for one in command], env=env, capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command[:6]))} failed:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
    return Timed(took, done.stdout, done.stderr)


# The kernel's figures for a child include what its parent had at the fork: it has to look itself.
LABTRACK = """
import atexit, pathlib, runpy, sys
atexit.register(lambda: print(pathlib.Path("/proc/self/status").read_text(), file=sys.stderr))
runpy.run_module("labtrack", run_name="__main__", alter_sys=True)
"""


def memory(took: Timed) -> float:
    """The most memory that LABTRACK had at once, in MB."""
    return int(took.beside.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def peer_python(checkout: Path) -> Path:
    """A Python with all that mlflow-export-import needs, made once.  Ends the benchmark where it can't be imported."""
    key = hashlib.sha256(REQUIREMENTS.read_bytes() + repr(PEER_NEEDS).encode()).hexdigest()[:16]
    folder = CACHE.with_name("bench-peers") / key
    python, done = folder / "bin" / "python", folder / ".complete"
    if not done.exists():
        uv = Path(sys.executable).with_name("uv")
        shutil.rmtree(folder, ignore_errors=True)
        install = [uv, "pip", "install", "-q", "--python", python, "-r", REQUIREMENTS]
        for command in ([uv, "venv", "-q", "--python", sys.executable, folder], [*install, *PEER_NEEDS]):
            subprocess.run(command, check=True)
        done.touch()
    tried = f"import {', '.join(PEER_MODULES)}"
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    found = subprocess.run([python, "-c", tried], env=env, capture_output=True, text=True, check=False)
    if found.returncode:
        said = (found.stderr.strip() or "nothing").splitlines()[-1]
        sys.exit(f"{PEER}={checkout} is no mlflow-export-import that works here: {said}")
    return python


@contextmanager
def lab_server() -> Iterator[tuple[str, dict[str, str]]]:
    """The lab's application and its store: its address, and what a researcher's environment has for it."""
    with postgresql("labtrack-bench-") as postgres:
        folder = postgres.folder.parent
        store = Store(folder, "bucket")
        of_store = {
            "MLFLOW_S3_ENDPOINT_URL": store.endpoint, "AWS_ACCESS_KEY_ID": store.access_key,
            "AWS_SECRET_ACCESS_KEY": store.secret_key, "AWS_DEFAULT_REGION": REGION, "AWS_CA_BUNDLE": str(store.ca),
        }  # fmt: skip
        server = LabServer(postgres, "lab", folder / "server", more=of_store, counted=False)
        with store.serving():
            try:
                server.prepare()
                login = {"MLFLOW_TRACKING_USERNAME": ADA[0], "MLFLOW_TRACKING_PASSWORD": ADA[1]}
                yield server.url, of_store | login
            finally:
                server.kill()


class Bench:
    """The peers, each with a state and an experiment of its own."""

    def __init__(self, url: str, folder: Path, given: dict[str, str] | None = None) -> None:
        """given: what the environment has beside what everybody's has."""
        self.url, self.folder = url, folder
        plain = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "AWS_"))}
        self.env = {**plain, "XDG_STATE_HOME": str(folder / "state"), "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.env |= given or {}
        self.rounds = 0

    def sync(self, recording: Recording, name: str = "", *options: str) -> tuple[Timed, dict[str, Any]]:
        """labtrack sync; again without a name."""
        command = [sys.executable, "-c", LABTRACK, "sync", "-s", recording.path, "-d", self.url, "--json"]
        took = timed([*command, *(["-e", name] if name else []), *options], self.env)
        report: dict[str, Any] = json.loads(took.said)
        return took, report

    def naive(self, recording: Recording) -> float:
        """The loop."""
        self.rounds += 1
        source = f"sqlite:///{recording.path}"
        name = f"naive {recording.name} {self.rounds}"
        command = [mlflow_bin() / "python", "-c", NAIVE, source, self.url, name, recording.name]
        return timed(command, self.env).seconds

    def export_import(self, recording: Recording, checkout: Path, python: Path) -> tuple[float, float]:
        """mlflow-export-import: seconds of its export, and of its import."""
        self.rounds += 1
        out = self.folder / f"export {self.rounds}"
        env = {**self.env, "PYTHONPATH": str(checkout)}
        run = [python, "-m"]
        source = {**env, "MLFLOW_TRACKING_URI": f"sqlite:///{recording.path}"}
        command = [*run, PEER_MODULES[0], "--experiment", recording.name]
        exported = timed([*command, "--output-dir", out], source)
        name = f"peer {recording.name} {self.rounds}"
        command = [*run, PEER_MODULES[1], "--experiment-name", name]
        imported = timed([*command, "--input-dir", out], {**env, "MLFLOW_TRACKING_URI": self.url})
        return exported.seconds, imported.seconds


def measure(rounds: int, peers: bool, resumed: int, planned: int) -> dict[str, Any]:
    """All figures; of each the best of some rounds, the peers in between ours.

    resumed: points of the run that is resumed at half.  planned: runs of a recording that is only planned.
    """
    checkout = Path(os.environ[PEER]) if os.environ.get(PEER) else None
    python = peer_python(checkout) if checkout else None
    found: dict[str, Any] = {}

    def best(name: str, seconds: float) -> None:
        found[name] = min(found.get(name, seconds), seconds)

    with (
        tracking_server(workers=2, plain=True) as server,
        lab_server() as (lab, given),
        tempfile.TemporaryDirectory() as temporary,
    ):
        bench, to_lab = Bench(server.url, Path(temporary)), Bench(lab, Path(temporary), given)
        for number in range(rounds):
            for make in (big, small):
                kind = make.__name__
                recording = make(Path(temporary) / f"{kind} {number}")
                took, report = bench.sync(recording, f"ours {kind} {number}")
                best(f"sync {kind}", took.seconds)
                found[f"calls {kind}"] = sum(report["calls"].values())
                again, report = bench.sync(recording)
                best(f"again {kind}", again.seconds)
                found[f"again calls {kind}"] = sum(report["calls"].values())
                best(f"lab {kind}", to_lab.sync(recording, f"ours {kind} {number}")[0].seconds)
                if peers:
                    best(f"naive {kind}", bench.naive(recording))
                if checkout and python:
                    exported, imported = bench.export_import(recording, checkout, python)
                    best(f"peer export {kind}", exported)
                    best(f"peer import {kind}", imported)
        half(bench, Path(temporary) / "half", found, resumed // 2)
        recording = numerous(Path(temporary) / "numerous", planned)
        took, report = bench.sync(recording, "numerous", "--dry-run")
        if len(report["planned"]) != planned:
            sys.exit(f"{len(report['runs'])} runs were planned, and there are {planned}")
        found["planned"], found["planned seconds"], found["planned memory"] = planned, took.seconds, memory(took)
    return found


def half(bench: Bench, folder: Path, found: dict[str, Any], points: int) -> None:
    """A long run of which half is there: what sending the other half takes."""
    recording = Recording(folder, "half")
    run_id = recording.run(status="RUNNING", metrics={"loss": [float(one) for one in range(points)]})
    bench.sync(recording, "half")
    recording.points(run_id, "loss", [float(one) for one in range(points)], first=points)
    recording.end(run_id)
    took, report = bench.sync(recording)
    found["half points"], found["half all"] = report["counts"]["points"], 2 * points
    found["half seconds"], found["half memory"] = took.seconds, memory(took)


ROWS: tuple[tuple[str, str, str, Callable[[float], str]], ...] = (
    ("big", "1 run, 100,000 points, 200 params, 100 files of 10 KiB", "s", "{:.1f}".format),
    ("small", "100 runs of 10 params, 100 points, 2 files", "s", "{:.1f}".format),
)
# Of the peer's import: to the same server, and to the lab's.
TARGETS = {"sync big": 0.37, "sync small": 0.06, "lab big": 0.1, "lab small": 0.03}
MEMORY = 300  # MB
PLANNED_MEMORY = 500  # MB


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| work | `labtrack sync` | again, nothing new | calls | naive loop | mlflow-export-import: export + import |"
        " `labtrack sync` to the lab's application |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for kind, what, unit, form in ROWS:
        naive = f"{form(found[f'naive {kind}'])} {unit}" if f"naive {kind}" in found else "not measured"
        peer = "not measured"
        if f"peer import {kind}" in found:
            peer = f"{form(found[f'peer export {kind}'])} + {form(found[f'peer import {kind}'])} {unit}"
        ours = f"{form(found[f'sync {kind}'])} {unit} | {found[f'again {kind}']:.2f} {unit} | {found[f'calls {kind}']}"
        lines.append(f"| {what} | {ours} | {naive} | {peer} | {form(found[f'lab {kind}'])} {unit} |")
    lines += ["", f"Of a run of {found['half all']:,} points half was there: {found['half points']:,} were sent,"]
    lines += [f"in {found['half seconds']:.0f} s, with {found['half memory']:.0f} MB of memory at most."]
    lines += [
        "",
        f"`--dry-run` for {found['planned']:,} runs that are not at the server: {found['planned seconds']:.1f} s,",
    ]
    lines += [f"{found['planned memory']:.0f} MB of memory at most."]
    return "\n".join(lines)


def missed(found: dict[str, Any]) -> list[str]:
    """The targets that were not reached."""
    wrong = []
    for name, target in TARGETS.items():
        peer = found.get(f"peer import {name.split()[1]}")
        if peer and found[name] > target * peer:
            wrong.append(f"{name}: {found[name] / peer:.3f} of the peer's import, not <= {target}")
    for kind, *_ in ROWS:
        if found[f"again {kind}"] >= 1:
            wrong.append(f"{kind} again: {found[f'again {kind}']:.2f} s, not < 1")
    # what a sync needs once: experiments, copies, one experiment made, doubles looked for
    if found["calls small"] > 7 * 100 + 5:
        wrong.append(f"small: {found['calls small']} calls, not <= 7 a run and 5 a sync")
    if found["half memory"] >= MEMORY:
        wrong.append(f"resumed: {found['half memory']:.0f} MB of memory, not < {MEMORY}")
    if found["planned memory"] >= PLANNED_MEMORY:
        wrong.append(f"planned: {found['planned memory']:.0f} MB of memory, not < {PLANNED_MEMORY}")
    if found["half points"] * 2 != found["half all"]:
        wrong.append(f"resumed: {found['half points']} points sent of {found['half all']}, half of which was there")
    return wrong


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # what it has started ends with it
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--resumed", type=int, default=60_000, help="points of the run that is resumed at half")
    parser.add_argument("--planned", type=int, default=100_000, help="runs of the recording that is only planned")
    parser.add_argument("--no-peers", action="store_true", help="only labtrack sync")
    parser.add_argument("--no-page", action="store_true", help="only print, leave docs/reference/performance.md")
    options = parser.parse_args()
    if not os.environ.get(PEER):
        print(f"mlflow-export-import is not measured: set {PEER} to a checkout of it.", file=sys.stderr)
    found = measure(options.rounds, not options.no_peers, options.resumed, options.planned)
    print(table(found))
    if not options.no_page:
        where = (
            f"{bench_page.HERE}, `mlflow server --workers 2` as pip installs it, with PostgreSQL, all on one machine"
        )
        bench_page.write("bench-sync", where, table(found))
    for miss in missed(found):
        print(f"missed: {miss}", file=sys.stderr)
    return 1 if missed(found) else 0


if __name__ == "__main__":
    sys.exit(main())
