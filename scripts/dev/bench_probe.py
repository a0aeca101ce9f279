"""Runs on the lab's server, as root: measures two tracking servers against each other over loopback.

Reads a JSON object from standard input (host name, admin's password, sizes) and prints one with the figures.  The usual
way of starting MLflow is given a database and a unit of its own, which are removed at the end, and so are the account
and the experiment on the kit's server.  Only the one that is measured runs: a small machine has no memory for both.
"""

import contextlib
import json
import multiprocessing
import os
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

DATABASE = UNIT = "labtrack-bench"
PORT = 5001
PYTHON = "/opt/mlflow/current/bin/python"
# What `pip install mlflow` brings: the kit's environment has faster parts beside it, which uvicorn would find.
PLAIN = "--loop asyncio --http h11"
PEOPLE = "labtrack-bench"
# Of clients: enough to keep two cores busy, few enough to leave the memory of a small machine to the two servers.
PROCESSES = 4


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Server:
    """One of the two, with what is needed to talk to it as a client does: one kept-alive connection for each client.

    units: what runs it.  start: the command that starts them.
    """

    def __init__(self, name, base, units, start, login=None):
        self.name, self.base, self.units, self.login = name, base, units, login
        self._start = start
        self.runs, self.experiment_id = [], ""

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
        return session

    def call(self, session, path, body, method="POST"):
        answer = session.request(method, f"{self.base}/api/2.0/mlflow/{path}", json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def prepare(self):
        session = self.session()
        name = f"labtrack-bench-{secrets.token_hex(4)}"
        self.experiment_id = self.call(session, "experiments/create", {"name": name})["experiment_id"]
        body = {"experiment_id": self.experiment_id, "start_time": now()}
        self.runs = [self.call(session, "runs/create", body)["run"]["info"]["run_id"] for _ in range(20)]

    def log_metric(self, session, step, run=0):
        body = {"run_id": self.runs[run], "key": "loss", "value": 0.5, "timestamp": now(), "step": step}
        self.call(session, "runs/log-metric", body)

    def log_batch(self, session, step, size):
        metrics = [{"key": f"m{i % 20}", "value": i, "timestamp": now(), "step": step * size + i} for i in range(size)]
        self.call(session, "runs/log-batch", {"run_id": self.runs[0], "metrics": metrics})

    def search(self, session, _step):
        self.call(session, "runs/search", {"experiment_ids": [self.experiment_id], "max_results": 100})


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


def throughput(server, clients, seconds):
    """log_metric calls in a second that CLIENTS make together, in a few processes that don't wait for one another."""
    fork = multiprocessing.get_context("fork")
    ready, counts = fork.Barrier(clients), fork.Array("q", clients)

    def client(number):
        session = server.session()
        server.log_metric(session, 0, number)
        ready.wait(timeout=60)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            server.log_metric(session, counts[number] + 1, number)
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


@contextlib.contextmanager
def usual():
    """`mlflow server` as its documentation shows it, with four workers and a database of its own."""
    database = f"postgresql+psycopg2://postgres@/{DATABASE}?host=/var/run/postgresql"
    started = ["systemd-run", "--collect", f"--unit={UNIT}", "--uid=postgres", "--property=PrivateTmp=yes"]
    started += ["--setenv=HOME=/tmp", "--working-directory=/tmp"]  # the unit has a /tmp of its own
    command = ["/opt/mlflow/current/bin/mlflow", "server", "--host", "127.0.0.1", "--port", str(PORT), "--workers", "4"]
    command += ["--uvicorn-opts", PLAIN, "--default-artifact-root", "/tmp/artifacts"]  # noqa: S108
    server = Server("usual", f"http://127.0.0.1:{PORT}", [UNIT], [*started, *command, "--backend-store-uri", database])
    run("runuser", "-u", "postgres", "--", "createdb", DATABASE)
    try:
        yield server
    finally:
        server.stop()
        run("runuser", "-u", "postgres", "--", "dropdb", "--force", DATABASE)


@contextlib.contextmanager
def kit(fqdn, password):
    """The kit's server, as an ordinary account of its own sees it."""
    listed = run("systemctl", "list-units", "--plain", "--no-legend", "mlflow@*").splitlines()
    units = [line.split()[0] for line in listed]
    start = ["systemctl", "start", *units]
    admin = Server("admin", f"https://{fqdn}", units, start, ("admin", password))
    person = secrets.token_hex(16)
    admin.call(admin.session(), "users/create", {"username": PEOPLE, "password": person})
    server = Server("kit", f"https://{fqdn}", units, start, (PEOPLE, person))
    try:
        yield server
    finally:
        admin.start()
        if server.experiment_id:
            admin.call(admin.session(), "experiments/delete", {"experiment_id": server.experiment_id})
        admin.call(admin.session(), "users/delete", {"username": PEOPLE}, "DELETE")


def measure(server, order):
    """All figures of one server in one round."""
    seconds = order["seconds"]
    if not server.runs:
        server.prepare()
    time.sleep(order["settle"])
    return {
        "pss": memory(server.units),
        "log_metric": latency(server, server.log_metric, seconds),
        "log_batch_100": latency(server, lambda session, step: server.log_batch(session, step, 100), seconds),
        "log_batch_1000": latency(server, lambda session, step: server.log_batch(session, step, 1000), seconds),
        "search": latency(server, server.search, seconds),
        "throughput": throughput(server, order["clients"], seconds * 2),
    }


def over_loopback(fqdn):
    """Have the server's name mean this machine, for this process alone."""
    resolve = socket.getaddrinfo
    socket.getaddrinfo = lambda host, *more, **named: resolve("127.0.0.1" if host == fqdn else host, *more, **named)


def main():
    order = json.load(sys.stdin)
    for ends in (signal.SIGHUP, signal.SIGTERM):  # an interrupted `make bench` leaves the kit's server running
        signal.signal(ends, lambda *_: sys.exit("interrupted"))
    over_loopback(order["fqdn"])
    rounds = {}
    with kit(order["fqdn"], order["password"]) as ours, usual() as theirs:
        for number in range(order["rounds"]):
            for server, other in ((ours, theirs), (theirs, ours))[:: 1 if number % 2 == 0 else -1]:
                other.stop()
                server.stop()
                server.start()
                rounds.setdefault(server.name, []).append(measure(server, order))
    result = {}
    for name, measured in rounds.items():
        figures = {key: statistics.median(m[key] for m in measured) for key in ("pss", "throughput")}
        for key in ("log_metric", "log_batch_100", "log_batch_1000", "search"):
            figures[key] = statistics.median(value for m in measured for value in m[key])
        result[name] = figures
    result["machine"] = {
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "mlflow": version("mlflow"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
