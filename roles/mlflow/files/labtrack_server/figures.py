"""What this instance has answered, in the text format that Prometheus reads; see docs/decisions/0027-metrics.md.

Figures begin at 0 with each start, which Prometheus knows, and each instance tells its own.  Labels are classes of
routes and codes, never names: some hundred series, however many people and runs there are.  Only who can reach the
instance's socket may ask: a request that came by the proxy's public name carries X-Forwarded-For, and is MLflow's.
"""

import bisect
import functools
import os
import re
import threading
import time
from pathlib import Path

from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from labtrack_server.patching import replace

PATH = "/labtrack/metrics"
BOUNDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # seconds
GONE = 499  # the client went before it was answered, as nginx counts it
STARTED = time.time()
MANY = 4096  # paths whose class is remembered
FAMILY = re.compile(r"/(?:ajax-)?api/\d\.0/(?:labtrack|mlflow(-artifacts)?)/([a-z-]+)/?([a-z-]*)")
WRITES = {"log-batch", "log-inputs", "log-metric", "log-model", "log-outputs", "log-parameter", "log-points", "set-tag"}
CLASSES = {
    "artifacts": "artifacts", "datasets": "datasets", "get-trace-artifact": "traces", "logged-models": "models",
    "model-versions": "models", "registered-models": "models", "roles": "accounts", "traces": "traces",
    "unified-traces": "traces", "users": "accounts", "experiments": "experiments", "metrics": "metrics",
}  # fmt: skip

points = 0  # that the native routes have written; they count it in the event loop


@functools.lru_cache(MANY)
def kind(path):
    """The class of routes that PATH is one of."""
    if path == "/health":
        return "health"
    if "get-artifact" in path:
        return "artifacts"
    if (found := FAMILY.match(path)) is None:
        return "traces" if path == "/v1/traces" else "page"
    proxied, family, action = found.groups()
    if proxied:
        return "artifacts"
    if family != "runs":
        return CLASSES.get(family, "other")
    return "write" if action in WRITES else {"create": "create", "search": "search"}.get(action, "runs")


class Figures:
    """Counts the requests that go on to APP, and shows the counts.

    waiting: a function that gives how many requests have no thread yet.  Requests begin and end in the event loop's one
    thread, so nothing is locked there; only the points that MLflow's handlers write are counted by several.
    """

    def __init__(self, app, waiting):
        self.app, self.waiting = app, waiting
        self.under_way = 0
        self.counts = {}  # (class, code): requests
        self.times = {}  # class: [seconds in all, requests up to each bound, and beyond]
        self.handled = 0  # points by MLflow's handlers
        self.lock = threading.Lock()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if path == PATH and not any(name == b"x-forwarded-for" for name, _ in scope["headers"]):
            await self.show(send)
            return
        code = GONE

        def noting(message):
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            return send(message)

        self.under_way += 1
        start = time.perf_counter()
        try:
            await self.app(scope, receive, noting)
        finally:
            self.under_way -= 1
            self.note(kind(path), code, time.perf_counter() - start)

    def note(self, route, code, seconds):
        key = (route, code)
        self.counts[key] = self.counts.get(key, 0) + 1
        if (times := self.times.get(route)) is None:
            times = self.times[route] = [0.0] * (len(BOUNDS) + 2)
        times[0] += seconds
        times[bisect.bisect_left(BOUNDS, seconds) + 1] += 1

    def count_handled(self, original):
        """What is called in the place of MLflow's function that writes points."""

        def counting(store, run_id, metrics):
            answer = original(store, run_id, metrics)
            with self.lock:
                self.handled += len(metrics)
            return answer

        return counting

    async def show(self, send):
        body = "".join(f"{line}\n" for line in self.lines()).encode()
        sort = b"text/plain; version=0.0.4; charset=utf-8"
        headers = [(b"content-type", sort), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def lines(self):
        name = "labtrack_requests_total"
        yield from head(name, "counter", "Requests that were answered, by class of routes and code.")
        for (route, code), number in sorted(self.counts.items()):
            yield f'{name}{{route="{route}",code="{code}"}} {number}'
        name = "labtrack_request_duration_seconds"
        yield from head(name, "histogram", "How long they took in this instance, by class of routes.")
        for route, (seconds, *numbers) in sorted(self.times.items()):
            below = 0
            for bound, number in zip((*BOUNDS, "+Inf"), numbers, strict=True):
                below += int(number)
                yield f'{name}_bucket{{route="{route}",le="{bound}"}} {below}'
            yield f'{name}_sum{{route="{route}"}} {seconds:.6f}'
            yield f'{name}_count{{route="{route}"}} {below}'
        created = self.counts.get(("create", 200), 0)
        user, system, *_ = os.times()
        for name, sort, what, value in (
            ("labtrack_runs_created_total", "counter", "Runs that were made.", created),
            ("labtrack_metric_points_total", "counter", "Points of metrics that were taken.", points + self.handled),
            ("labtrack_requests_in_progress", "gauge", "Requests that are under way.", self.under_way),
            ("labtrack_requests_waiting", "gauge", "Those of them that wait for a thread.", self.waiting()),
            ("process_cpu_seconds_total", "counter", "Processor time of this process.", f"{user + system:.2f}"),
            ("process_resident_memory_bytes", "gauge", "Memory of this process.", memory()),
            ("process_start_time_seconds", "gauge", "When this process was started.", f"{STARTED:.3f}"),
        ):
            yield from head(name, sort, what)
            yield f"{name} {value}"


def head(name, sort, what):
    yield f"# HELP {name} {what}"
    yield f"# TYPE {name} {sort}"


def memory():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def install(app, straight):
    """Count what APP answers, and the points that MLflow's handlers write."""
    figures = Figures(app, straight.threads._work_queue.qsize)
    replace(SqlAlchemyStore, "_log_metrics", figures.count_handled)
    return figures
