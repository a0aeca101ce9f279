"""How long a person waits for MLflow's page of an experiment, in Chromium: `make bench-drawn`.

The kit's server and the usual `mlflow server` by turns, on the running rehearsal, with 1,000 runs each, which
bench_probe.py makes.  The browser is on this machine and reaches both through SSH tunnels, which cost both the same.
"""

from __future__ import annotations

import argparse
import base64
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bench_page
from bench import PROBE, ROOT, login_of, ready
from labtrack import lab as labs
from labtrack import secrets

sys.path.insert(0, str(ROOT / "tests" / "rehearsal"))

from eyes import WAIT, chromium
from playwright.sync_api import Browser

RUNS = 1000
TARGET = 0.5
PROGRAM = "/run/labtrack-bench.py"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def turns(lab_dir: Path, rounds: int, ways: dict[int, int]) -> Iterator[dict[str, Any]]:
    """What bench_probe.py says of the server whose turn it is: its name, its experiment's id, and a login.

    ways: ports of this machine, and where on the lab's server they lead.
    """
    lab, login = labs.load(lab_dir), login_of(lab_dir)
    order = {"fqdn": lab.fqdn, "password": secrets.get(lab, "secret_mlflow_admin_password")}
    order |= {"rounds": rounds, "drawn": RUNS}
    tunnels = [f"-L127.0.0.1:{here}:127.0.0.1:{there}" for here, there in ways.items()]
    subprocess.run([*login, f"sudo tee {PROGRAM} >/dev/null"], input=PROBE.read_text(), text=True, check=True)
    start = [login[0], *tunnels, *login[1:], f"sudo /opt/mlflow/current/bin/python {PROGRAM}"]
    try:
        with subprocess.Popen(start, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
            print(json.dumps(order), file=running.stdin, flush=True)
            for line in running.stdout or ():
                yield json.loads(line)
                print("next", file=running.stdin, flush=True)
        if running.returncode:
            sys.exit(f"The program on the server failed (exit code {running.returncode}): see above.")
    finally:
        subprocess.run([*login, f"sudo rm -f {PROGRAM}"], check=True)


def drawn(browser: Browser, base: str, told: dict[str, Any]) -> list[float]:
    """Seconds until the newest run is shown, and those in which the browser worked: of two visits, one by one."""
    # http_credentials would have the browser keep nothing for the second visit
    login = base64.b64encode(":".join(told["login"] or ()).encode()).decode()
    headers = {"Authorization": f"Basic {login}"} if told["login"] else {}
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, extra_http_headers=headers)
    took = []
    for _ in range(2):
        page = context.new_page()
        session = context.new_cdp_session(page)
        session.send("Performance.enable")
        start = time.perf_counter()
        page.goto(f"{base}/#/experiments/{told['experiment']}/runs", wait_until="commit")
        page.get_by_text(f"run {RUNS}", exact=True).first.wait_for(timeout=WAIT)
        took.append(time.perf_counter() - start)
        told_by = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
        took.append(told_by["TaskDuration"])
        page.close()
    context.close()
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lab", type=Path, default=ROOT / "inventory/rehearsal")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-page", action="store_true", help="only print, leave docs/reference/performance.md")
    options = parser.parse_args()
    ready(options.lab)
    lab, kit, usual = labs.load(options.lab), free_port(), free_port()
    bases = {"kit": f"https://{lab.fqdn}", "usual": f"http://127.0.0.1:{usual}"}
    there = f"--host-resolver-rules=MAP {lab.fqdn}:443 127.0.0.1:{kit}"
    took: dict[str, list[list[float]]] = {name: [] for name in bases}
    with chromium(lab.private / "ca.pem", arguments=[there]) as browser:
        for told in turns(options.lab, options.rounds, {kit: 443, usual: 5001}):
            took[told["server"]].append(drawn(browser, bases[told["server"]], told))
    rows = ("its newest run is shown, first visit", "of it the browser's own work", "second visit", "its own work")
    lines = [f"| page of an experiment of {RUNS:,} runs | usual `mlflow server` | this kit | ratio | target |"]
    lines.append("|---|---:|---:|---:|---|")
    worst = 0.0
    for number, what in enumerate(rows):
        kits, others = (statistics.median(one[number] for one in took[name]) for name in ("kit", "usual"))
        target = f"<= {TARGET}" if number % 2 == 0 else ""
        lines.append(f"| {what} | {others:.2f} s | {kits:.2f} s | {kits / others:.2f} | {target} |")
        worst = max(worst, kits / others) if target else worst
    print("\n".join(lines))
    if not options.no_page:
        where = f"rehearsal and browser on {bench_page.HERE}, medians of {options.rounds} rounds"
        bench_page.write("bench-drawn", where, "\n".join(lines))
    return 1 if worst > TARGET else 0


if __name__ == "__main__":
    sys.exit(main())
