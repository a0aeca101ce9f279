"""Measures `labtrack leaderboard | compare | runs` against MLflow's own client on this machine: `make bench-results`.

The work: recordings of 1,000 and of 100,000 runs, each with 10 parameters, 5 tags and a metric f1; in the first 1,000
points of it a run and 10 of three others, in the second 2.  Both sides read the same SQLite file, each call is a
process.  The peers are what people write: `mlflow.search_runs`, `MlflowClient`, `mlflow experiments csv`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "sync"))

from sync_server import empty_database, mlflow_bin  # noqa: E402 - of the tests

import bench_page  # noqa: E402 - beside this file

TARGET = 0.2  # of the peers' time
T0 = 1_700_000_000_000
_SEARCH = "import sys, mlflow; mlflow.set_tracking_uri(sys.argv[1]); found = "
PEERS = {
    "leaderboard": _SEARCH + 'mlflow.search_runs(["1"], order_by=["metrics.f1 DESC"], max_results=10); '
    'print(found[["run_id", "metrics.f1"]].to_string())',
    "leaderboard of all, as a table": _SEARCH + 'mlflow.search_runs(["1"], max_results=200_000); '
    'print(found.sort_values("metrics.f1", ascending=False)[["run_id", "metrics.f1"]].head(10).to_string())',
    "leaderboard by the best value": _SEARCH
    + "[(max(point.value for point in mlflow.MlflowClient().get_metric_history("
    'run.info.run_id, "f1")), run.info.run_id) for run in mlflow.search_runs(["1"], max_results=200_000, '
    'output_format="list")]; print(sorted(found, reverse=True)[:10])',
    "compare": "import sys, mlflow; client = mlflow.MlflowClient(sys.argv[1]); "
    "a, b = (client.get_run(one).data.metrics for one in sys.argv[2:]); "
    "print({key: (a.get(key), b.get(key)) for key in {*a, *b}})",
    "search": _SEARCH + "mlflow.search_runs([\"1\"], filter_string=\"params.lr = '0.1' and tags.dataset = 'set_01'\", "
    "max_results=200_000); print(len(found))",
}


class Recording(NamedTuple):
    """A file, and two runs in it."""

    path: Path
    runs: tuple[str, str]


def recording(path: Path, runs: int, points: int, others: int) -> Recording:
    """A SQLite file as MLflow 3.17.2 writes it."""
    shutil.copyfile(empty_database(), path)
    chance = random.Random(runs)  # noqa: S311
    ids = [f"{chance.getrandbits(128):032x}" for _ in range(runs)]
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute("PRAGMA synchronous = OFF")
        made.execute(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage, creation_time, "
            "workspace) VALUES (1, 'bench', '/tmp', 'active', ?, 'default')",
            [T0],
        )
        made.executemany(
            "INSERT INTO runs (run_uuid, name, user_id, status, start_time, end_time, lifecycle_stage, artifact_uri, "
            "experiment_id) VALUES (?, ?, 'ada', 'FINISHED', ?, ?, 'active', '', 1)",
            [(one, f"run {at}", T0 + at * 1000, T0 + at * 1000 + 500) for at, one in enumerate(ids)],
        )
        made.executemany(
            "INSERT INTO params (run_uuid, key, value) VALUES (?, ?, ?)",
            ((one, key, value) for at, one in enumerate(ids) for key, value in _params(at)),
        )
        made.executemany(
            "INSERT INTO tags (run_uuid, key, value) VALUES (?, ?, ?)",
            ((one, key, value) for at, one in enumerate(ids) for key, value in _tags(at)),
        )
        for table in ("metrics", "latest_metrics"):
            made.executemany(
                f"INSERT INTO {table} (run_uuid, key, value, timestamp, step, is_nan) VALUES (?, ?, ?, ?, ?, 0)",  # noqa: S608
                _points(ids, points, others, only_last=table == "latest_metrics"),
            )
        made.commit()
    return Recording(path, (ids[0], ids[-1]))


def _params(at: int) -> Iterator[tuple[str, str]]:
    yield "lr", ("0.1", "0.01", "0.001")[at % 3]
    yield from ((f"p{number}", str(at * number % 7)) for number in range(9))


def _tags(at: int) -> Iterator[tuple[str, str]]:
    yield from (("dataset", ("hcrl_sa", "set_01")[at % 2]), ("stage", "evaluation"), ("model_arch", "gat"))
    yield from (("mlflow.user", "ada"), ("mlflow.runName", f"run {at}"))


def _points(ids: list[str], points: int, others: int, *, only_last: bool) -> Iterator[tuple[Any, ...]]:
    chance = random.Random(1)  # noqa: S311
    for at, one in enumerate(ids):
        for key, count in (("f1", points), *((name, others) for name in ("loss", "acc", "auc"))):
            for step in range(count):
                value = chance.random()
                if not only_last or step == count - 1:
                    yield one, key, value, T0 + at + step, step


def timed(command: list[Any], env: dict[str, str], limit: float) -> float:
    """Seconds that a command takes; the limit where it takes longer.  One that fails ends the benchmark."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as out:
        try:
            done = subprocess.run(
                [str(one) for one in command], env=env, stdout=out, stderr=subprocess.PIPE, check=False, timeout=limit
            )
        except subprocess.TimeoutExpired:
            return limit
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command[:6]))} failed:\n{done.stderr.decode()[-3000:]}")
    return time.perf_counter() - began


def measure(sizes: list[tuple[int, int, int]], rounds: int, limit: float) -> dict[str, tuple[float, float]]:
    """Seconds of ours and of the peer's for each kind of work; the better of some rounds."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "AWS_", "PYTHON"))}
    env = {**plain, "MLFLOW_DISABLE_TELEMETRY": "true"}
    found: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for runs, points, others in sizes:
            made = recording(Path(folder) / f"{runs}.db", runs, points, others)
            source, uri = ("-s", made.path), f"sqlite:///{made.path}"
            ours: dict[str, list[Any]] = {
                "leaderboard": ["leaderboard", *source, "--metric", "f1"],
                "leaderboard of all, as a table": ["leaderboard", *source, "--metric", "f1", "--columns", "params.*"],
                "leaderboard by the best value": ["leaderboard", *source, "--metric", "max:f1"],
                "compare": ["compare", *source, *made.runs],
                "search": ["runs", *source, "--filter", "params.lr = '0.1' AND tags.dataset = 'set_01'"],
                "export": ["runs", *source, "--format", "csv", "--columns", "params.*,tags.*,metrics.*"],
            }
            for name, words in ours.items():
                peer: list[Any] = [mlflow_bin() / "python", "-c", PEERS.get(name, ""), uri, *made.runs]
                if name == "export":
                    peer = [mlflow_bin() / "mlflow", "experiments", "csv", "-x", "1", "-o", Path(folder) / "peer.csv"]
                at = f"{name}, {runs:,} runs"
                for _ in range(rounds):
                    one = timed([sys.executable, "-m", "labtrack", *words], env, limit)
                    other = timed(peer, {**env, "MLFLOW_TRACKING_URI": uri}, limit)
                    before = found.get(at, (one, other))
                    found[at] = min(before[0], one), min(before[1], other)
                print(f"{at}: {found[at][0]:.2f} s, {found[at][1]:.2f} s", file=sys.stderr)
            made.path.unlink()
    return found


def table(found: dict[str, tuple[float, float]], limit: float) -> str:
    """The figures as Markdown."""
    lines = ["| work | `labtrack` | MLflow | ratio |", "|---|---:|---:|---:|"]
    for name, (one, other) in found.items():
        above = "> " if other >= limit else ""
        lines.append(f"| {name} | {one:.2f} s | {above}{other:.2f} s | {'< ' if above else ''}{one / other:.2f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--runs", type=int, action="append", help="sizes; 1000 and 100000 where it is not given")
    parser.add_argument("--limit", type=float, default=900, help="seconds after which a call is ended")
    parser.add_argument("--no-page", action="store_true", help="only print, leave docs/reference/performance.md")
    options = parser.parse_args()
    sizes = [(runs, *((1000, 10) if runs <= 1000 else (2, 0))) for runs in options.runs or (1000, 100_000)]  # noqa: PLR2004
    found = measure(sizes, options.rounds, options.limit)  # type: ignore[arg-type]
    print(table(found, options.limit))
    if not options.no_page:
        where = f"{bench_page.HERE}, MLflow 3.17.2, both on the same SQLite file, each call a process of its own"
        bench_page.write("bench-results", where, table(found, options.limit))
    missed = [name for name, (one, other) in found.items() if one > TARGET * other]
    for name in missed:
        print(
            f"missed: {name}: {found[name][0] / found[name][1]:.2f} of MLflow's time, not <= {TARGET}", file=sys.stderr
        )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
