"""Runs on the lab's server, as root: measures two tracking servers against each other over loopback.

Reads a JSON object (host name, admin's password, sizes), a line of standard input, and prints one with the figures.
The usual way of starting MLflow is given a database and a unit of its own, which are removed at the end, and so are the
account and the experiment on the kit's server.  Only the one that is measured runs: a small machine has no memory for
both.
"""

import contextlib
import json
import multiprocessing
import os
import re
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter, Retry

DATABASE = UNIT = "labtrack-bench"
KIT_DATABASE = "mlflowdb"
PORT = 5001
SCRIPT = Path("/run/labtrack-bench.sql")
PYTHON = "/opt/mlflow/current/bin/python"
# What `pip install mlflow` brings: the kit's environment has faster parts beside it, which uvicorn would find.
PLAIN = "--loop asyncio --http h11"
PEOPLE = "labtrack-bench"
MANY = 10_000  # runs of the experiment that is searched
# They have 5 params, 3 tags and 3 metrics each.
RUN_OF = "md5('bench {experiment} ' || {number})"
FILL = """
INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time,
                  source_version, lifecycle_stage, artifact_uri, experiment_id)
SELECT {run}, 'run ' || r, 'UNKNOWN', '', '', 'ada', 'FINISHED', {time} + r * 1000, {time} + r * 1000 + 900, '',
       'active', 's3://nowhere/' || r, {experiment} FROM generate_series(1, {many}) r;
INSERT INTO params (key, value, run_uuid)
SELECT 'param_' || p, r * p % 97, {run} FROM generate_series(1, {many}) r, generate_series(1, 5) p;
INSERT INTO tags (key, value, run_uuid)
SELECT 'tag_' || t, r * t % 89, {run} FROM generate_series(1, {many}) r, generate_series(1, 3) t;
INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)
SELECT 'metric_' || m, r * m % 1000 / 1000.0, {time}, 0, false, {run}
FROM generate_series(1, {many}) r, generate_series(1, 3) m;
ANALYZE runs, params, tags, latest_metrics;
"""
# What MLflow deletes stays there until the garbage is collected.
FORGET = "DELETE FROM {table} WHERE run_uuid IN (SELECT run_uuid FROM runs WHERE experiment_id IN ({experiments}));\n"
# What no server can be quicker than: the rows of a log_metric or log_batch, inserted by PostgreSQL's own benchmark.
LIMIT = """
\\set step random(1, 2000000000)
WITH points AS (INSERT INTO metrics (key, timestamp, step, value, is_nan, run_uuid)
                SELECT 'm' || n % 20, n, :step + n, n, false, {run} FROM generate_series(1, {points}) n)
INSERT INTO latest_metrics AS old (key, timestamp, step, value, is_nan, run_uuid)
SELECT 'm' || n % 20, n, :step + n, n, false, {run} FROM generate_series({points} - least({points}, 20) + 1, {points}) n
ON CONFLICT (key, run_uuid) DO UPDATE SET step = EXCLUDED.step WHERE EXCLUDED.step > old.step;
"""
# Of clients: enough to keep two cores busy, few enough to leave the memory of a small machine to the two servers.
PROCESSES = 4


def run(*command, given=None):
    done = subprocess.run(command, check=False, capture_output=True, text=True, input=given, cwd="/")
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed: {done.stderr}")
    return done.stdout


def as_postgres(*command, given=None):
    return run("runuser", "-u", "postgres", "--", *command, given=given)


def psql(database, statements):
    as_postgres("psql", "-Xqv", "ON_ERROR_STOP=1", "-d", database, given=statements)


class Server:
    """One of the two, with what is needed to talk to it as a client does: one kept-alive connection for each client.

    database: where its runs are.  units: what runs it.  start: the command that starts them.
    """

    def __init__(self, name, base, database, units, *, start, login=None):
        self.name, self.base, self.database, self.units, self.login = name, base, database, units, login
        self._start = start
        self.runs, self.experiments = [], []

    def start(self):
        run(*self._start)
        for _ in range(240):
            with contextlib.suppress(requests.ConnectionError):
                if self.session().get(f"{self.base}/health", timeout=5).ok:
                    return
            time.sleep(0.5)
        raise SystemExit(f"{self.base} does not answer")

    def stop(self):
        subprocess.run(["systemctl", "stop", *self.units], check=False, capture_output=True)

    def session(self):
        session = requests.Session()
        session.trust_env = False
        session.auth = self.login
        session.verify = "/etc/ssl/labtrack/ca.pem"
        # as MLflow's client: uvicorn closes a connection that was idle for 5 s, which the first to be ready here were
        session.mount(self.base, HTTPAdapter(max_retries=Retry(total=3, allowed_methods=None)))
        return session

    def call(self, session, path, body, method="POST"):
        answer = session.request(method, f"{self.base}/api/2.0/mlflow/{path}", json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def prepare(self, runs=MANY):
        """Two experiments: one with a few runs, to which the clients write, and one with as many as told."""
        session = self.session()
        for _ in range(2):
            name = f"labtrack-bench-{secrets.token_hex(4)}"
            self.experiments.append(self.call(session, "experiments/create", {"name": name})["experiment_id"])
        few, many = self.experiments
        body = {"experiment_id": few, "start_time": now()}
        self.runs = [self.call(session, "runs/create", body)["run"]["info"]["run_id"] for _ in range(20)]
        where = RUN_OF.format(experiment=many, number="r")
        psql(self.database, FILL.format(run=where, experiment=many, many=runs, time=now() - 10**8))

    def forget(self):
        if self.experiments:
            tables, these = ("metrics", "latest_metrics", "params", "tags", "runs"), ", ".join(self.experiments)
            psql(self.database, "".join(FORGET.format(table=table, experiments=these) for table in tables))

    def log_metric(self, session, step, run=0):
        body = {"run_id": self.runs[run], "key": "loss", "value": 0.5, "timestamp": now(), "step": step}
        self.call(session, "runs/log-metric", body)

    def log_batch(self, session, step, run=0, size=1000):
        metrics = [{"key": f"m{i % 20}", "value": i, "timestamp": now(), "step": step * size + i} for i in range(size)]
        self.call(session, "runs/log-batch", {"run_id": self.runs[run], "metrics": metrics})

    def log_batch_100(self, session, step):
        self.log_batch(session, step, size=100)

    def search(self, session, _step):
        self.call(session, "runs/search", {"experiment_ids": self.experiments[:1], "max_results": 100})

    def search_many(self, session, _step):
        self.call(session, "runs/search", {"experiment_ids": self.experiments[1:], "max_results": 20})


def now():
    return int(time.time() * 1000)


def latency(server, action, seconds):
    """Milliseconds of each call of one client."""
    session, took = server.session(), []
    action(session, 0)
    end = time.perf_counter() + seconds
    step = 1
    while time.perf_counter() < end:
        start = time.perf_counter()
        action(session, step)
        took.append((time.perf_counter() - start) * 1000)
        step += 1
    return took


def throughput(server, action, clients, seconds):
    """Calls in a second that CLIENTS make together, in a few processes that don't wait for one another."""
    fork = multiprocessing.get_context("fork")
    ready, counts = fork.Barrier(clients), fork.Array("q", clients)

    def client(number):
        session = server.session()
        action(session, 0, number)
        ready.wait(timeout=60)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            action(session, counts[number] + 1, number)
            counts[number] += 1

    def process(numbers):
        with ThreadPoolExecutor(len(numbers)) as pool:
            try:
                list(pool.map(client, numbers))
            except (requests.RequestException, threading.BrokenBarrierError) as error:
                ready.abort()
                sys.exit(f"{server.base}: {error}")

    shares = [range(first, clients, PROCESSES) for first in range(PROCESSES)]
    processes = [fork.Process(target=process, args=(numbers,)) for numbers in shares]
    for one in processes:
        one.start()
    for one in processes:
        one.join()
    if any(one.exitcode for one in processes):
        raise SystemExit(f"a client of {server.base} failed: see above")
    return sum(counts) / seconds


def memory(units):
    """MiB of memory (PSS: shared pages counted once) of all processes of some units."""
    total = 0
    for unit in units:
        group = run("systemctl", "show", "--value", "--property", "ControlGroup", unit).strip()
        for folder in ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
            processes = Path(f"{folder}{group}/cgroup.procs")
            if processes.exists():
                break
        for pid in processes.read_text().split():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1024


def limit(server, points, clients, seconds):
    """Milliseconds of an insert of so many points by one client, and how many CLIENTS make in a second; no server."""
    run_id = RUN_OF.format(experiment=server.experiments[1], number="(:client_id + 1)")
    SCRIPT.write_text(LIMIT.format(run=run_id, points=points))
    SCRIPT.chmod(0o644)
    program = max(Path("/usr/lib/postgresql").glob("*/bin/pgbench"))
    seconds, said = f"{max(1, round(seconds))}", []
    try:
        for many in (1, clients):
            options = ["-n", "-M", "prepared", "-c", f"{many}", "-j", "2", "-T", seconds, "-f", SCRIPT]
            said.append(as_postgres(program, *options, server.database))
    finally:
        SCRIPT.unlink()
    (each,) = re.findall(r"latency average = ([0-9.]+) ms", said[0])
    (rate,) = re.findall(r"tps = ([0-9.]+)", said[1])
    return float(each), float(rate)


@contextlib.contextmanager
def usual():
    """`mlflow server` as its documentation shows it, with four workers and a database of its own."""
    database = f"postgresql+psycopg2://postgres@/{DATABASE}?host=/var/run/postgresql"
    started = ["systemd-run", "--collect", f"--unit={UNIT}", "--uid=postgres", "--property=PrivateTmp=yes"]
    started += ["--setenv=HOME=/tmp", "--working-directory=/tmp"]  # the unit has a /tmp of its own
    command = ["/opt/mlflow/current/bin/mlflow", "server", "--host", "127.0.0.1", "--port", str(PORT), "--workers", "4"]
    command += ["--uvicorn-opts", PLAIN, "--default-artifact-root", "/tmp/artifacts"]  # noqa: S108
    start = [*started, *command, "--backend-store-uri", database]
    server = Server("usual", f"http://127.0.0.1:{PORT}", DATABASE, [UNIT], start=start)
    as_postgres("createdb", DATABASE)
    try:
        yield server
    finally:
        server.stop()
        as_postgres("dropdb", "--force", DATABASE)


@contextlib.contextmanager
def kit(fqdn, password):
    """The kit's server, as an ordinary account of its own sees it."""
    listed = run("systemctl", "list-units", "--plain", "--no-legend", "mlflow@*").splitlines()
    units = [line.split()[0] for line in listed]
    start = ["systemctl", "start", *units]
    admin = Server("admin", f"https://{fqdn}", KIT_DATABASE, units, start=start, login=("admin", password))
    person = secrets.token_hex(16)
    admin.call(admin.session(), "users/create", {"username": PEOPLE, "password": person})
    server = Server("kit", f"https://{fqdn}", KIT_DATABASE, units, start=start, login=(PEOPLE, person))
    try:
        yield server
    finally:
        admin.start()
        server.forget()
        for one in server.experiments:
            admin.call(admin.session(), "experiments/delete", {"experiment_id": one})
        admin.call(admin.session(), "users/delete", {"username": PEOPLE}, "DELETE")


def measure(server, order):
    """All figures of one server in one round."""
    seconds, clients = order["seconds"], order["clients"]
    if not server.runs:
        server.prepare()
    time.sleep(order["settle"])
    return {
        "pss": memory(server.units),
        "log_metric": latency(server, server.log_metric, seconds),
        "log_batch_100": latency(server, server.log_batch_100, seconds),
        "log_batch_1000": latency(server, server.log_batch, seconds),
        "search": latency(server, server.search, seconds),
        "search_many": latency(server, server.search_many, seconds),
        "throughput": throughput(server, server.log_metric, clients, seconds * 2),
        "batches": throughput(server, server.log_batch, clients, seconds * 2),
    }


def over_loopback(fqdn):
    """Have the server's name mean this machine, for this process alone."""
    resolve = socket.getaddrinfo
    socket.getaddrinfo = lambda host, *more, **named: resolve("127.0.0.1" if host == fqdn else host, *more, **named)


def show(server, runs):
    """Leave the looking at an experiment to who reads the next line, until a line comes back."""
    if not server.runs:
        server.prepare(runs)
    print(json.dumps({"server": server.name, "experiment": server.experiments[1], "login": server.login}), flush=True)
    if not sys.stdin.readline():
        raise SystemExit("nobody looks any more")


def by_turns(rounds, ours, theirs):
    """Each server alone, in turns that change from round to round."""
    for number in range(rounds):
        for server, other in ((ours, theirs), (theirs, ours))[:: 1 if number % 2 == 0 else -1]:
            other.stop()
            server.stop()
            server.start()
            yield server


def main():
    order = json.loads(sys.stdin.readline())
    for ends in (signal.SIGHUP, signal.SIGTERM):  # an interrupted `make bench` leaves the kit's server running
        signal.signal(ends, lambda *_: sys.exit("interrupted"))
    over_loopback(order["fqdn"])
    rounds = {}
    with kit(order["fqdn"], order["password"]) as ours, usual() as theirs:
        if "drawn" in order:
            for server in by_turns(order["rounds"], ours, theirs):
                show(server, order["drawn"])
            return
        for server in by_turns(order["rounds"], ours, theirs):
            rounds.setdefault(server.name, []).append(measure(server, order))
        ours.stop()
        theirs.stop()
        alone = {points: limit(theirs, points, order["clients"], order["seconds"]) for points in (1, 1000)}
    (one, many), (batch, batches) = alone[1], alone[1000]
    result = {"limit": {"log_metric": one, "throughput": many, "log_batch_1000": batch, "batches": batches}}
    for name, measured in rounds.items():
        result[name] = {}
        for key in measured[0]:
            values = [m[key] for m in measured]  # of one figure a round, or of one for each call
            if isinstance(values[0], list):
                values = [value for one in values for value in one]
            result[name][key] = statistics.median(values)
    result["machine"] = {
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "mlflow": version("mlflow"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
