"""Measures artifacts by keys of the store against artifacts through the server: `make bench-artifacts`."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import bench_page
from rehearsal import LAB, PRIVATE, ROOT, ansible_environment

ROUNDS = 2
PYTHON = "/opt/researcher/venv/bin/python"
LOGIN = "root@10.99.0.20"
WORK = {
    "1 file of 200 MiB": (1, 200 * 2**20),
    "100 files of 100 KiB": (100, 100 * 2**10),
}
PROBE = """
import json, os, pathlib, shutil, sys, tempfile, time, uuid
import mlflow

mlflow.set_experiment(f"artifacts {uuid.uuid4().hex[:8]}")
found = {}
for name, (number, size) in json.loads(sys.argv[1]).items():
    folder = pathlib.Path(tempfile.mkdtemp(dir="/var/tmp"))
    for one in range(number):
        (folder / f"{one}.bin").write_bytes(os.urandom(size))
    with mlflow.start_run() as run:
        started = time.monotonic()
        mlflow.log_artifacts(str(folder), "files")
        sent = time.monotonic()
        where = f"runs:/{run.info.run_id}/files"
        back = mlflow.artifacts.download_artifacts(where, dst_path=str(folder / "back"))
        found[name] = [sent - started, time.monotonic() - sent]
    assert len(list(pathlib.Path(back).iterdir())) == number
    shutil.rmtree(folder)
    mlflow.MlflowClient().delete_run(run.info.run_id)
print("figures", json.dumps(found))
"""


def deploy(access: str) -> None:
    """The server with this lab_artifact_access."""
    command = [
        "ansible-playbook",
        "playbooks/deploy.yml",
        "--tags",
        "mlflow,nginx",
        "-e",
        f"lab_artifact_access={access}",
    ]
    subprocess.run(command, cwd=ROOT, env=ansible_environment(), stdout=subprocess.DEVNULL, check=True)


def measure(access: str, work: dict[str, tuple[int, int]]) -> dict[str, list[float]]:
    """Seconds to upload and to download each piece of work, from the login node as Ada."""
    forget = "unset AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY MLFLOW_S3_ENDPOINT_URL"
    plain = "export MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD=false MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD=false"
    before = f"{forget}; {plain}; export MLFLOW_HTTP_REQUEST_TIMEOUT=120" if access == "proxied" else ":"
    run = f"cd && . ./mlflow_env.sh && {before} && {PYTHON} - {shlex.quote(json.dumps(work))}"
    ssh = ["ssh", "-q", "-o", "BatchMode=yes", "-i", str(PRIVATE / "id_ed25519")]
    known = ["-o", f"UserKnownHostsFile={PRIVATE / 'known_hosts'}", LOGIN, f"su ada -c {shlex.quote(run)}"]
    done = subprocess.run([*ssh, *known], input=PROBE, text=True, stdout=subprocess.PIPE, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("figures "))
    result: dict[str, list[float]] = json.loads(line.removeprefix("figures "))
    return result


def main() -> int:
    """Measure by turns, because the machine's speed changes from minute to minute, and write the page."""
    if not (LAB / "hosts.yml").exists():
        sys.exit("The rehearsal is not up.  To fix: make demo, then make bench-artifacts.")
    figures: dict[str, list[dict[str, list[float]]]] = {"direct": [], "proxied": []}
    try:
        for _ in range(ROUNDS):
            for access, found in figures.items():
                deploy(access)
                measure(access, {"1 small file": (1, 1000)})  # the first one warms up
                found.append(measure(access, WORK))
    finally:
        deploy("direct")
    lines = ["| work | direct: up, down | proxied: up, down | ratio up | ratio down |", "|---|---:|---:|---:|---:|"]
    for name in WORK:
        up, down = (min(one[name][way] for one in figures["direct"]) for way in (0, 1))
        far_up, far_down = (min(one[name][way] for one in figures["proxied"]) for way in (0, 1))
        shown = f"| {name} | {up:.1f}, {down:.1f} s | {far_up:.1f}, {far_down:.1f} s"
        lines.append(f"{shown} | {far_up / up:.1f} | {far_down / down:.1f} |")
    print("\n".join(lines))
    bench_page.write("bench-artifacts", f"all machines on 2 cores, the better of {ROUNDS} rounds", "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
