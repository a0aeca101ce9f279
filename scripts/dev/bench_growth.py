"""Measures what grows with what a lab has recorded: `make bench-growth`.

For each size a PostgreSQL of its own is filled with runs of one experiment (20 params, 5 tags, 10 metrics each), whose
points are shared out evenly, and the lab's application answers an ordinary account on loopback, without nginx.  What
counts is how a row grows from the first size to the last: nothing that a person waits for may grow with the number of
other runs.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

import bench_page

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "sync"), str(ROOT / "tests" / "differential")]

from lab_server import ADA, API, LabServer  # noqa: E402 - of the tests
from sync_server import postgresql  # noqa: E402

SIZES = ((1_000, 1_000_000), (10_000, 10_000_000), (100_000, 30_000_000))
METRICS = 10  # of each run
T0 = 1_790_000_000_000
# Deterministic numbers that look drawn, and no two runs the same.
FILL = """
SET session_replication_role = replica; -- nobody looks for the run of each row
INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time,
                  source_version, lifecycle_stage, artifact_uri, experiment_id)
SELECT md5('run ' || r), 'run ' || r, 'UNKNOWN', '', '', 'ada', 'FINISHED', {t0} + r * 1000, {t0} + r * 1000 + 900,
       '', 'active', 's3://bucket/artifacts/' || r, {experiment} FROM generate_series(1, {runs}) r;
INSERT INTO params (key, value, run_uuid)
SELECT 'param_' || p, (r * p % 97)::text, md5('run ' || r) FROM generate_series(1, {runs}) r, generate_series(1, 20) p;
INSERT INTO tags (key, value, run_uuid)
SELECT 'tag_' || t, (r * t % 89)::text, md5('run ' || r) FROM generate_series(1, {runs}) r, generate_series(1, 5) t;
INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)
SELECT 'metric_' || m, (r * 31 + m * 17 + {each} * 13) % 1000 / 1000.0, {t0} + {each}, {each}, false, md5('run ' || r)
FROM generate_series(1, {runs}) r, generate_series(1, {metrics}) m;
"""
# By far the most: their indexes are made when they are there.
POINTS = """
SET maintenance_work_mem = '1GB';
{dropped}
INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan)
SELECT 'metric_' || m, (r * 31 + m * 17 + s * 13) % 1000 / 1000.0, {t0} + s, md5('run ' || r), s, false
FROM generate_series(1, {runs}) r, generate_series(1, {metrics}) m, generate_series(1, {each}) s;
{made}
"""
INDEXES = """
SELECT CASE WHEN conname IS NULL THEN 'DROP INDEX ' || indexrelid::regclass
            ELSE 'ALTER TABLE metrics DROP CONSTRAINT ' || quote_ident(conname) END || ';',
       coalesce('ALTER TABLE metrics ADD CONSTRAINT ' || quote_ident(conname) || ' ' || pg_get_constraintdef(c.oid),
                pg_get_indexdef(indexrelid)) || ';'
FROM pg_index LEFT JOIN pg_constraint c ON conindid = indexrelid AND contype IN ('p', 'u')
WHERE indrelid = 'metrics'::regclass
"""
SEARCH = {"max_results": 100, "run_view_type": "ACTIVE_ONLY"}


class Person:
    """An account that calls the server over one connection."""

    def __init__(self, server: LabServer) -> None:
        self.server, self.session = server, requests.Session()
        self.session.trust_env, self.session.auth = False, ADA

    def __call__(self, path: str, body: dict[str, Any] | None = None, **query: Any) -> dict[str, Any]:
        url = self.server.url + (path if path.startswith("/") else API + path)
        answer = self.session.request("POST" if body else "GET", url, json=body, params=query, timeout=600)
        if not answer.ok:
            sys.exit(f"{path}: {answer.status_code} {answer.text[:300]}")
        found: dict[str, Any] = answer.json()
        return found

    def median(self, times: int, call: Callable[[int], object]) -> float:
        """Milliseconds of a call, the middle of so many after a first."""
        call(0)
        took = []
        for number in range(1, times + 1):
            start = time.perf_counter()
            call(number)
            took.append((time.perf_counter() - start) * 1000)
        return statistics.median(took)


def measure(server: LabServer, experiment: str, runs: int, each: int) -> dict[str, float]:
    """The figures of one size."""
    ask = Person(server)
    mine = server.run(experiment)
    (old,) = server.sql(f"SELECT md5('run {runs // 2}')")
    here = {"experiment_ids": [experiment], **SEARCH}

    def point(step: int, number: int = 0) -> dict[str, Any]:
        return {"key": f"metric_{number}", "value": step / 7, "timestamp": T0 + step, "step": step}

    def batch(number: int) -> dict[str, Any]:
        return {"run_id": mine, "metrics": [point(number * 100 + one // 10, one % 10) for one in range(1000)]}

    found = {
        "log_metric": ask.median(200, lambda step: ask("runs/log-metric", {"run_id": mine, **point(step, 11)})),
        "log_batch": ask.median(10, lambda number: ask("runs/log-batch", batch(number))),
        "get": ask.median(20, lambda _: ask("runs/get", run_id=old)),
        "history": ask.median(10, lambda _: ask("metrics/get-history", run_id=old, metric_key="metric_3")),
        "curves": ask.median(
            5,
            lambda _: ask(
                "/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval", run_ids=[old], metric_key="metric_3",
                max_results=320,
            ),
        ),
        "newest": ask.median(10, lambda _: ask("runs/search", {**here, "order_by": ["attributes.start_time DESC"]})),
        "best": ask.median(5, lambda _: ask("runs/search", {**here, "order_by": ["metrics.metric_3 DESC"]})),
        "filter": ask.median(5, lambda _: ask("runs/search", {**here, "filter": "params.param_3 = '5'"})),
        "experiments": ask.median(10, lambda _: ask("experiments/search", {"max_results": 100})),
    }  # fmt: skip
    server.sql("CHECKPOINT")
    start = time.perf_counter()
    server.sql("VACUUM ANALYZE metrics")
    found["vacuum"] = time.perf_counter() - start
    found["size"] = float(server.sql(f"SELECT pg_database_size('{server.name}')")[0]) / 2**20
    return found


@contextmanager
def filled(runs: int, points: int) -> Iterator[tuple[LabServer, str, int]]:
    """A server with so many runs and points; its experiment, and the points of each metric of a run."""
    each = points // runs // METRICS
    with postgresql("labtrack-growth-") as postgres:
        server = LabServer(postgres, "growth", postgres.folder.parent / "server", counted=False)
        try:
            server.prepare()
            experiment = server.experiment("all")
            values = {"runs": runs, "each": each, "metrics": METRICS, "experiment": experiment, "t0": T0}
            indexes = [row.split("|", 1) for row in server.sql(INDEXES)]
            dropped, made = ("\n".join(one) for one in zip(*indexes, strict=True))
            server.sql((FILL + POINTS).format(**values, dropped=dropped, made=made))
            server.sql("VACUUM ANALYZE")
            yield server, experiment, each
        finally:
            server.kill()


ROWS = {
    "log_metric": ("`log_metric`, p50", "ms"),
    "log_batch": ("`log_batch` of 1,000 points, p50", "ms"),
    "get": ("a run, p50", "ms"),
    "history": ("the history of a metric of a run, p50", "ms"),
    "curves": ("its curve as the page asks for it, p50", "ms"),
    "newest": ("the newest 100 runs of the experiment, p50", "ms"),
    "best": ("the 100 with the highest metric, p50", "ms"),
    "filter": ("100 with a param, p50", "ms"),
    "experiments": ("the list of experiments, p50", "ms"),
    "vacuum": ("`VACUUM ANALYZE metrics`", "s"),
    "size": ("the database", "MiB"),
}


def table(sizes: list[tuple[int, int]], found: list[dict[str, float]]) -> str:
    """The figures as Markdown."""
    heads = [f"{runs:,} runs, {points / 1e6:g} million points" for runs, points in sizes]
    lines = [f"| what | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for key, (what, unit) in ROWS.items():
        lines.append(f"| {what} | " + " | ".join(f"{one[key]:,.1f} {unit}" for one in found) + " |")
    return "\n".join(lines)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # what it has started ends with it
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many of the sizes, the smallest first")
    parser.add_argument("--no-page", action="store_true", help="only print, leave docs/reference/performance.md")
    wanted = parser.parse_args()
    found = []
    for runs, points in SIZES[: wanted.sizes]:
        with filled(runs, points) as (server, experiment, each):
            found.append(measure(server, experiment, runs, each))
            print(json.dumps({"runs": runs, "points": points, **found[-1]}), flush=True)
    said = table(list(SIZES[: wanted.sizes]), found)
    print(said)
    if not wanted.no_page:
        bench_page.write("bench-growth", f"{bench_page.HERE}, one instance without nginx", said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
