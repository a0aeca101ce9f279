"""Somebody who runs code as the server: what the unit's sandbox leaves him.  And what the server can be made to ask."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from api import Api

# What a transient unit must have to be the sandbox of mlflow@.service.
SANDBOX = re.compile(
    r"(User|Group|UMask|Protect\w+|ProcSubset|Private\w+|Restrict\w+|ReadWritePaths|InaccessiblePaths|IPAddress\w+"
    r"|LockPersonality|MemoryDenyWriteExecute|NoNewPrivileges|CapabilityBoundingSet|AmbientCapabilities|KeyringMode|RemoveIPC|SystemCall\w+)="
)
PROGRAM = """
import ctypes, json, mmap, os, socket, subprocess

def attempt(function, *arguments):
    try:
        result = function(*arguments)
    except BaseException as error:
        return type(error).__name__
    return "done" if result in (None, 0) or not isinstance(result, int) else f"returned {result}"

def write(path):
    with open(path, "w") as file:
        file.write("x")

def read(path):
    with open(path, "rb") as file:
        file.read(1)

def unshare():
    assert ctypes.CDLL(None).unshare(0x10000000) == 0  # CLONE_NEWUSER

def executable_memory():
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)

def metadata():
    socket.create_connection(("169.254.169.254", 80), 2).close()

print(json.dumps({
    "home": attempt(write, "/var/lib/mlflow/.probe"), "home_gone": attempt(os.unlink, "/var/lib/mlflow/.probe"),
    "etc": attempt(write, "/etc/probe"), "code": attempt(write, "/usr/local/lib/labtrack/labtrack_server/probe.py"),
    "release": attempt(write, "/opt/mlflow/current/probe"), "cron": attempt(write, "/etc/cron.d/probe"),
    "secrets": attempt(read, "/etc/mlflow/secrets.env"), "accounts": attempt(read, "/etc/mlflow/auth.ini"),
    "key": attempt(read, "/etc/ssl/labtrack/server.key"), "shadow": attempt(read, "/etc/shadow"),
    "backups": attempt(os.listdir, "/var/backups"), "database": attempt(os.listdir, "/var/lib/postgresql"),
    "hostkeys": attempt(os.listdir, "/etc/ssh"), "root": attempt(os.setuid, 0), "namespace": attempt(unshare),
    "memory": attempt(executable_memory), "metadata": attempt(metadata),
    "others": [name for name in os.listdir("/proc")
               if name.isdigit() and os.stat(f"/proc/{name}").st_uid != os.getuid()],
    "suid": attempt(os.chmod, "/var/lib/mlflow", 0o4700),
}))
"""
KEPT_OUT = (
    "etc", "code", "release", "cron", "secrets", "accounts", "key", "shadow", "backups", "database", "hostkeys", "root",
    "namespace", "memory", "metadata", "suid",
)  # fmt: skip


@pytest.fixture
def probe(rehearsal: Any) -> Iterator[dict[str, Any]]:
    """What the program finds in a unit that has the sandbox of mlflow@.service and nothing else of it."""
    unit = rehearsal.ssh("server", "systemctl cat mlflow@1.service", check=True).stdout
    properties = [line for line in unit.splitlines() if SANDBOX.match(line)]
    assert len(properties) > 30
    name, folder = "labtrack-probe", "/run/labtrack-probe"
    service = "\n".join([
        "[Service]", "Type=oneshot", *properties, f"ExecStart=/usr/bin/python3 {folder}/probe.py",
        f"StandardOutput=truncate:{folder}/out", "",
    ])  # fmt: skip
    try:
        rehearsal.ssh("server", f"mkdir -p {folder} && cat > {folder}/probe.py", stdin=PROGRAM, check=True)
        rehearsal.ssh("server", f"cat > /run/systemd/system/{name}.service", stdin=service, check=True)
        started = f"systemctl daemon-reload && systemctl start {name} && cat {folder}/out"
        yield json.loads(rehearsal.ssh("server", started, check=True).stdout)
    finally:
        rehearsal.ssh("server", f"rm -rf {folder} /run/systemd/system/{name}.service; systemctl daemon-reload")


def test_code_in_the_unit_s_sandbox_gets_nowhere(probe: dict[str, Any]) -> None:
    assert (probe["home"], probe["home_gone"]) == ("done", "done")
    assert {name: probe[name] for name in KEPT_OUT if probe[name] == "done"} == {}
    assert probe["others"] == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/2.0/mlflow/webhooks"), ("POST", "/ajax-api/2.0/mlflow/webhooks"),
        ("POST", "/api/2.0/mlflow/webhooks/x/test"), ("POST", "/gateway/x/mlflow/invocations"),
        ("POST", "/api/3.0/mlflow/gateway/endpoints/create"), ("POST", "/ajax-api/3.0/mlflow/scorer/invoke"),
        ("POST", "/ajax-api/2.0/mlflow/gateway-proxy"), ("PUT", "/ajax-api/3.0/mlflow/scorers/online-config"),
        ("PUT", "/ajax-api/3.0/mlflow/assistant/config"), ("POST", "/ajax-api/3.0/mlflow/assistant/message"),
        ("POST", "/ajax-api/3.0/jobs"), ("POST", "/ajax-api/3.0/mlflow/demo/generate"),
        ("POST", "/ajax-api/3.0/mlflow/genai/evaluate/invoke"), ("POST", "/ajax-api/3.0/mlflow/issues/invoke"),
        ("POST", "/api/3.0/mlflow/prompt-optimization/jobs"), ("POST", "/ajax-api/2.0/mlflow/upload-artifact"),
        ("POST", "/api/3.0/mlflow/mcp-servers"), ("POST", "/api/3.0/mlflow/skills"),
        ("POST", "/api/3.0/mlflow/workspaces"),
    ],
)  # fmt: skip
def test_what_makes_the_server_ask_others_is_closed_with_a_sentence(
    admin: Api, ann: Api, method: str, path: str
) -> None:
    """For an admin too, and from the server itself."""
    forged = {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "localhost", "Forwarded": "for=127.0.0.1"}
    for api in (admin, ann):
        answer = api.call(path, {"url": "http://169.254.169.254/"}, method, headers=forged)
        assert (answer.status_code, answer.json()["error_code"]) == (404, "ENDPOINT_NOT_FOUND")
        assert answer.json()["message"].startswith("This lab's server does not offer")
        assert "To fix: " in answer.json()["message"]


def test_a_judge_with_an_address_or_a_program_is_not_taken(ann: Api) -> None:
    experiment = ann.new_experiment()
    program = {"name": "x", "call_source": "import os\nreturn os.getcwd()", "call_signature": "(outputs)"}
    body = {"experiment_id": experiment, "name": "x", "serialized_scorer": json.dumps(program)}
    assert ann.call("/api/3.0/mlflow/scorers/register", body).status_code == 400


def test_no_secret_of_the_server_is_in_what_it_answers_or_logs(rehearsal: Any, ann: Api) -> None:
    canaries = [*rehearsal.canaries, rehearsal.secrets["secret_s3_access_key_id"]]
    assert canaries and min(map(len, canaries)) > 12
    run = ann.new_run()
    answers = [
        ann.get("/api/3.0/mlflow/server-info").text, ann.get("/version").text, ann.get(f"runs/get?run_id={run}").text,
        ann.call("experiments/create", {"name": "x", "artifact_location": "file:///etc/mlflow/secrets.env"}).text,
        ann.get(f"/get-artifact?run_id={run}&path=absent").text, ann.call("/graphql", {"query": "{"}).text,
    ]  # fmt: skip
    assert [canary for canary in canaries if any(canary in text for text in answers)] == []
    logs = "journalctl --no-pager --output=cat --since=-30min -u 'mlflow@*' -u nginx; cat /var/log/nginx/*.log"
    search = (
        f"secrets=$(mktemp); cat >$secrets; ({logs}) | grep --text --count --fixed-strings --file $secrets; rm $secrets"
    )
    assert rehearsal.ssh("server", search, stdin="\n".join(canaries) + "\n").stdout.strip() == "0"
