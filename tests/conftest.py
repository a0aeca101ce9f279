"""The rehearsal for the tests: started once, deployed with site.yml, and taken down if the tests started it."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ahead
import psutil
import pytest
import testinfra
import yaml
from api import Api, account

import rehearsal as steps

if TYPE_CHECKING:
    import openstack.connection

ROOT = Path(__file__).resolve().parents[1]
START = pytest.StashKey[ahead.Start]()
RESULTS = ROOT / "test-results"
# What OpenStack's services said went wrong, the last of it; without the frames of tracebacks.
CLOUD_ERRORS = """
    { journalctl --boot --no-pager --output=cat; cat /var/log/{cinder,neutron,nova}/*.log; } |
    grep -E '^[0-9-]+ [0-9:.]+ [0-9]+ (ERROR|CRITICAL) ' | grep -vE ' {3,}|\\^\\^' | sort | tail -n 40 | cut -c 1-300
"""

# Why the lab's server may have been slow: how busy it and this machine are, what was restarted, what took long.
SERVER_STATE = """
    uptime; free -m | head -n 2; head -v -n 2 /proc/pressure/*; ss -xtn | awk '{print $1, $2}' | sort | uniq -c
    systemctl show 'mlflow@*' nginx 'postgresql@*' -p Id -p NRestarts -p ActiveEnterTimestamp | paste -sd ' '
    nstat -az | grep -E 'RetransSegs|TCPTimeouts|TCPAbort|ListenDrops'; head -n 3 /proc/net/stat/nf_conntrack
    ss -tinoH sport = :443 | cut -c 1-300 | tail -n 12
    awk '$(NF-1) > 5' /var/log/nginx/access.log | tail -n 20 | cut -c 1-200
    journalctl --boot --no-pager --output=short-iso --priority=warning --lines=30 | cut -c 1-200
    runuser -u postgres -- psql -XAt -c "SELECT now() - xact_start, state, wait_event_type, wait_event
        FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid()"
"""


class Rehearsal:
    """What a test may ask of the running rehearsal."""

    PYTHON = "/opt/researcher/venv/bin/python"
    root = ROOT
    lab_dir = steps.LAB
    private = steps.PRIVATE

    @cached_property
    def lab(self) -> dict[str, Any]:
        """The variables of lab.yml."""
        return yaml.safe_load((self.lab_dir / "group_vars/all/lab.yml").read_text())

    @property
    def fqdn(self) -> str:
        """The name of the lab's server."""
        return self.lab["lab_fqdn"]

    @property
    def url(self) -> str:
        """Where the lab's server answers."""
        return f"https://{self.fqdn}"

    @property
    def ca(self) -> Path:
        """The certificate of the lab's own CA."""
        return self.private / "ca.pem"

    @property
    def secrets(self) -> dict[str, str]:
        """The lab's secrets, decrypted.  Read each time, because a rotation changes them."""
        file = self.lab_dir / "group_vars/all/secrets.yml"
        shown = self.run("ansible-vault", "view", str(file), check=True)
        return yaml.safe_load(shown.stdout)

    @property
    def canaries(self) -> list[str]:
        """What must be found nowhere, each in one line: all secrets; of those in PEM the lines of the private key."""
        found = []
        for name, value in self.secrets.items():
            if "-----BEGIN" in value:
                found += re.search(r"PRIVATE KEY-----\n(.*?)\n-----END", value, re.DOTALL)[1].splitlines()
            elif not name.endswith("access_key_id"):
                found.append(value)
        return found

    @cached_property
    def addresses(self) -> dict[str, tuple[str, str]]:
        """For each machine its address and the user who logs in."""
        hosts = yaml.safe_load((self.lab_dir / "hosts.yml").read_text())
        server = hosts["mlflow"]["hosts"]["server"]
        return {
            "cloud": ("10.99.0.10", "root"),
            "login": ("10.99.0.20", "root"),
            "node1": ("10.99.0.21", "root"),
            "node2": ("10.99.0.22", "root"),
            "transfer": ("10.99.0.23", "root"),
            "server": (server["ansible_host"], server["ansible_user"]),
        }

    def run(
        self, *command: str, check: bool = False, timeout: float = 1200, **more: Any
    ) -> subprocess.CompletedProcess:
        """Run a command of this checkout's environment, in the checkout unless another folder is named."""
        where = {"cwd": more.pop("cwd", ROOT), "env": steps.ansible_environment() | more.pop("env", {})}
        done = subprocess.run(command, **where, capture_output=True, text=True, timeout=timeout, check=False, **more)
        if check:
            assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    @staticmethod
    def machine(name: str) -> psutil.Process:
        """The process of this host that runs one of its machines; its only child is the machine's PID 1."""
        (found,) = (
            process
            for process in psutil.process_iter(["cmdline"])
            if f"--machine={name}" in (process.info["cmdline"] or []) and "systemd-nspawn" in process.info["cmdline"][0]
        )
        return found

    def playbook(self, playbook: str, *arguments: str, check: bool = False, **more: Any) -> subprocess.CompletedProcess:
        """Run a playbook against the rehearsal's lab."""
        return self.run("ansible-playbook", playbook, *arguments, check=check, **more)

    def ssh(
        self, host: str, command: str, *, check: bool = False, timeout: float = 300, stdin: str | None = None
    ) -> subprocess.CompletedProcess:
        """Run a shell command as root on a machine of the rehearsal, or on the `server`, there through sudo."""
        address, user = self.addresses[host]
        as_root = ["sudo", "sh", "-c", shlex.quote(command)] if user != "root" else [command]
        ssh = [
            "ssh", "-q", "-i", str(self.private / "id_ed25519"), "-o", "BatchMode=yes", "-o", "ConnectTimeout=10",
            "-o", f"UserKnownHostsFile={self.private / 'known_hosts'}", "-o", "StrictHostKeyChecking=yes",
        ]  # fmt: skip
        # compute nodes are reached from within their cluster only
        through = ["-o", f"ProxyCommand={shlex.join(ssh)} -W %h:%p root@{self.addresses['login'][0]}"]
        way = through if host in ("node1", "node2") else []
        return self.run(*ssh, *way, f"{user}@{address}", *as_root, check=check, timeout=timeout, input=stdin)

    def hand_file(self, user: str) -> None:
        """Put a researcher's mlflow_env.sh, as it is now, into their home on the login node."""
        text = (self.private / user / "mlflow_env.sh").read_text()
        install = f"install -o {user} -g {user} -m 600 /dev/stdin /home/{user}/mlflow_env.sh"
        self.ssh("login", install, stdin=text, check=True)

    def as_ada(self, command: str, *, shell: str = "bash", check: bool = True, timeout: float = 300) -> str:
        """What a command prints that Ada runs on the login node with her file sourced."""
        sourced = f"cd && . ./mlflow_env.sh && {command}"
        as_her = f"su ada -c {shlex.quote(f'{shell} -c {shlex.quote(sourced)}')}"
        return self.ssh("login", as_her, check=check, timeout=timeout).stdout

    def hand_package(self, folder: str) -> None:
        """Put this checkout's labtrack package into a new folder on the login node."""
        pack = ["tar", "--create", "--gzip", "--dereference", "--exclude=__pycache__", "labtrack"]
        packed = subprocess.run(pack, cwd=ROOT / "scripts", capture_output=True, check=True).stdout
        unpack = f"rm -rf {folder} && mkdir -m 755 {folder} && base64 -d | tar --extract --gzip -C {folder}"
        self.ssh("login", unpack, stdin=base64.b64encode(packed).decode(), check=True)

    def cloud(self, name: str) -> openstack.connection.Connection:
        """A connection to one of the clouds of the tenant's clouds.yaml."""
        import openstack

        os.environ["OS_CLIENT_CONFIG_FILE"] = str(self.private / "clouds.yaml")
        return openstack.connect(cloud=name)

    @property
    def server(self) -> testinfra.host.Host:
        """The lab's server, for testinfra."""
        address, user = self.addresses["server"]
        options = f"-o UserKnownHostsFile={self.private / 'known_hosts'} -o StrictHostKeyChecking=yes"
        return testinfra.get_host(
            f"ssh://{user}@{address}?sudo=true",
            ssh_identity_file=str(self.private / "id_ed25519"),
            ssh_extra_args=options,
        )


def why_not() -> str | None:
    """Why the rehearsal can't run on this machine, or None."""
    if os.geteuid() != 0:
        return "needs root (machines by systemd-nspawn)"
    if not shutil.which("apt-get"):
        return "needs apt (the machines are made of Debian packages)"
    return None


def needs_machines(item: pytest.Item) -> bool:
    return "rehearsal" in getattr(item, "fixturenames", ())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that need machines can be chosen by their mark, and come last."""
    for item in filter(needs_machines, items):
        item.add_marker("rehearsal")
    items.sort(key=needs_machines)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the rehearsal, if any test needs it."""
    # A terminated run takes down what it started, as an interrupted one does.
    signal.signal(signal.SIGTERM, _interrupt)
    # Started in the background of a script, this process ignores Ctrl-C, and so would every command that it tests.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if session.config.option.collectonly or why_not() or not any(map(needs_machines, session.items)):
        return
    session.config.stash[START] = ahead.Start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show beside a failure what the machines have to say about it."""
    report = yield
    rehearsal = getattr(item, "funcargs", {}).get("rehearsal")
    if report.failed and rehearsal:
        for host, title, command in (
            ("server", "The server's state", SERVER_STATE),
            ("cloud", "The cloud's last errors", CLOUD_ERRORS),
        ):
            with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                said = rehearsal.ssh(host, f"bash -c {shlex.quote(command)}", timeout=30)
                report.sections.append((title, said.stdout + said.stderr))
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Take down what was started."""
    start = session.config.stash.get(START, None)
    if start and (trouble := start.end()):
        print(trouble, file=sys.__stderr__)
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt("terminated")


@pytest.fixture(scope="session")
def rehearsal(pytestconfig: pytest.Config) -> Rehearsal:
    """The rehearsal with the lab deployed; one that was up before stays up."""
    if reason := why_not():
        pytest.skip(reason)
    pytestconfig.stash[START].wait()
    return Rehearsal()


@pytest.fixture
def server(rehearsal: Rehearsal) -> testinfra.host.Host:
    """The lab's server, for testinfra."""
    return rehearsal.server


@pytest.fixture(scope="session")
def trained(rehearsal: Rehearsal) -> str:
    """The id of the run that Ada's unmodified script has logged, from the login node."""
    rehearsal.hand_file("ada")
    install = "install -o ada -g ada -m 644 /dev/stdin /home/ada/train.py"
    rehearsal.ssh("login", install, stdin=(ROOT / "examples/train.py").read_text(), check=True)
    said = rehearsal.as_ada(f"{rehearsal.PYTHON} train.py")
    match = re.search(r"run (\w{32}): loss", said)
    assert match, said
    return match[1]


@pytest.fixture(scope="session")
def results() -> Path:
    """Where tests leave what a person may want to look at."""
    RESULTS.mkdir(exist_ok=True)
    return RESULTS


@pytest.fixture(scope="module")
def admin(rehearsal: Rehearsal) -> Api:
    """The lab's admin."""
    return Api(rehearsal.url, str(rehearsal.ca), ("admin", rehearsal.secrets["secret_mlflow_admin_password"]))


@pytest.fixture(scope="module")
def ann(admin: Api) -> Iterator[Api]:
    """An account."""
    with account(admin) as api:
        yield api


@pytest.fixture(scope="module")
def bob(admin: Api) -> Iterator[Api]:
    """Another account."""
    with account(admin) as api:
        yield api


@pytest.fixture(scope="module")
def nobody(admin: Api) -> Api:
    """Somebody without an account."""
    return Api(admin.url, admin.ca, None)
