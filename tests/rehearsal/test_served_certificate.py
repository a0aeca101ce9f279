"""Where the server's certificate comes from, on a real server: its own CA, an admin's files, an ACME directory."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
import requests
import yaml

from labtrack import lab as labs
from labtrack import secrets

if TYPE_CHECKING:
    from conftest import Rehearsal

DEPLOY = "playbooks/deploy.yml"
ACME = "acme.rehearsal.test"
LOGIN = "10.99.0.20"
PEBBLE = {
    "listenAddress": "0.0.0.0:14000", "managementListenAddress": "0.0.0.0:15000", "httpPort": 80, "tlsPort": 443,
    "certificate": "/opt/acme/acme.pem", "privateKey": "/opt/acme/acme.key", "certificateValidityPeriod": 7776000,
    "ocspResponderURL": "", "externalAccountBindingRequired": False,
}  # fmt: skip
# A directory with an https of a CA of its own, on the login node.
START = f"""
mkdir -p /opt/acme && cd /opt/acme && cat >pebble.json
export DEBIAN_FRONTEND=noninteractive; install="apt-get install -qqy pebble"
command -v pebble || $install || {{ apt-get update -qq && $install; }}
new="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -batch"
openssl req -x509 $new -days 30 -subj /CN=acme-ca -addext keyUsage=critical,keyCertSign -keyout ca.key -out ca.pem
openssl req $new -subj /CN=acme -keyout acme.key -out acme.csr
printf 'subjectAltName=DNS:{ACME}\\nkeyUsage=critical,digitalSignature\\nextendedKeyUsage=serverAuth\\n' >ext
printf 'subjectKeyIdentifier=hash\\nauthorityKeyIdentifier=keyid\\n' >>ext
openssl x509 -req -in acme.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile ext -out acme.pem
systemd-run --quiet --unit=pebble --setenv=PEBBLE_VA_NOSLEEP=1 --setenv=PEBBLE_WFE_NONCEREJECT=0 \\
  "$(command -v pebble)" -config /opt/acme/pebble.json
timeout 20 sh -c 'until curl -sfk https://127.0.0.1:15000/roots/0 >root.pem; do sleep 0.2; done'
"""
STOP = "systemctl stop pebble; systemctl reset-failed pebble 2>/dev/null; rm -rf /opt/acme"
FORGET = (
    f"sed -i /{ACME}/d /etc/hosts; rm -rf /etc/letsencrypt/[alr]*; systemctl reset-failed certbot 2>/dev/null; true"
)


def served(rehearsal: Rehearsal) -> str:
    """The certificate that clients get."""
    connect = ["s_client", "-connect", f"{rehearsal.fqdn}:443", "-servername", rehearsal.fqdn]
    said = rehearsal.run("openssl", *connect, input="").stdout
    return rehearsal.run("openssl", "x509", input=said, check=True).stdout


def served_anew(rehearsal: Rehearsal, before: str) -> str:
    """The certificate that clients get after a reload: for a moment nginx's old workers still take connections."""
    deadline = time.monotonic() + 20
    while (found := served(rehearsal)) == before:
        assert time.monotonic() < deadline, "20 s after its reload nginx serves the certificate of before"
        time.sleep(0.2)
    return found


def health(rehearsal: Rehearsal) -> dict[str, Any]:
    """What the server says of its certificate."""
    said = json.loads(rehearsal.ssh("server", "mlflowctl health --json").stdout)
    return next(row for row in said["results"] if row["check"] == "certificate")


def deploy(rehearsal: Rehearsal, tmp_path: Path, **variables: str) -> str:
    """A deployment of what is in front, with other settings."""
    file = tmp_path / "variables.yml"
    file.write_text(yaml.safe_dump(variables))
    return rehearsal.playbook(DEPLOY, "--tags", "nginx", f"--extra-vars=@{file}", check=True).stdout


class Load:
    """Requests on connections of their own, one after the other; what failed."""

    def __init__(self, url: str, ca: Path) -> None:
        self.url, self.ca, self.over, self.failed, self.made = url, ca, Event(), list[str](), 0

    def run(self) -> None:
        while not self.over.is_set():
            try:
                if requests.get(f"{self.url}/health", verify=str(self.ca), timeout=10).status_code != requests.codes.ok:
                    self.failed.append("status")
            except requests.RequestException as error:
                self.failed.append(str(error))
            self.made += 1

    def __enter__(self) -> Load:
        self.pool = ThreadPoolExecutor()
        self.running = self.pool.submit(self.run)
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.running.result()
        self.pool.shutdown()


def test_the_labs_ca_is_kept_encrypted_and_the_timer_renews(rehearsal: Rehearsal) -> None:
    lab = labs.load(rehearsal.lab_dir)
    on_server = rehearsal.ssh("server", "cat /etc/ssl/labtrack/ca.key /etc/ssl/labtrack/ca.pem", check=True).stdout
    assert secrets.read(lab)[secrets.CA] == on_server
    assert rehearsal.ca.read_text() in on_server
    timer = rehearsal.ssh(
        "server", "systemctl show labtrack-certificate.timer -p ActiveState -p UnitFileState -p Persistent"
    )
    assert set(timer.stdout.split()) == {"ActiveState=active", "UnitFileState=enabled", "Persistent=yes"}
    before = served(rehearsal)
    aged = 'sed -i \'s/"days": "*365"*/"days": 100/\' /etc/labtrack-certificate.json'
    try:
        rehearsal.ssh("server", f"{aged}; rm /etc/ssl/labtrack/server.pem; labtrack-certificate renew", check=True)
    finally:
        rehearsal.ssh("server", 'sed -i \'s/"days": 100/"days": 365/\' /etc/labtrack-certificate.json', check=True)
    with Load(rehearsal.url, rehearsal.ca) as load:
        rehearsal.ssh("server", "systemctl start labtrack-certificate.service", check=True)
    assert load.failed == [] and load.made > 0
    served_anew(rehearsal, before)
    assert health(rehearsal)["seen"] == "selfsigned, valid for 364 more days"


@pytest.mark.long
def test_from_selfsigned_to_provided_and_back(rehearsal: Rehearsal, tmp_path: Path) -> None:
    own, kept = served(rehearsal), secrets.read(labs.load(rehearsal.lab_dir))[secrets.CA]
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-batch", "-subj", "/CN=x"]
    files = {kind: str(tmp_path / f"{kind}.pem") for kind in ("certificate", "key")}
    name = ["-addext", f"subjectAltName=DNS:{rehearsal.fqdn}", "-days", "30"]
    made = ["openssl", "req", "-x509", *new, *name, "-out", files["certificate"], "-keyout", files["key"]]
    rehearsal.run(*made, check=True)
    given = {"lab_certificate_file": files["certificate"], "lab_certificate_key_file": files["key"]}
    try:
        deploy(rehearsal, tmp_path, lab_certificate="provided", **given)
        assert served(rehearsal) == Path(files["certificate"]).read_text()
    finally:
        rehearsal.playbook(DEPLOY, "--tags", "nginx", check=True)
    assert served(rehearsal) != own, "signed anew"
    assert requests.get(f"{rehearsal.url}/health", verify=str(rehearsal.ca), timeout=10).text == "OK"
    assert secrets.read(labs.load(rehearsal.lab_dir))[secrets.CA] == kept


@pytest.fixture
def directory(rehearsal: Rehearsal, tmp_path: Path) -> Iterator[Path]:
    """An ACME directory on the login node; the CAs that one needs to trust it and what it issues."""
    rehearsal.ssh("server", f"echo '{LOGIN} {ACME}' >>/etc/hosts", check=True)
    try:
        rehearsal.ssh("login", f"set -e\n{START}", stdin=json.dumps({"pebble": PEBBLE}), check=True)
        authorities = tmp_path / "acme-ca.pem"
        authorities.write_text(rehearsal.ssh("login", "cat /opt/acme/ca.pem /opt/acme/root.pem", check=True).stdout)
        yield authorities
    finally:
        rehearsal.ssh("login", STOP)
        rehearsal.ssh("server", FORGET, check=True)
        rehearsal.playbook(DEPLOY, "--tags", "nginx", check=True)


def test_acme_issues_renews_under_load_and_serves_the_old_one_when_blocked(
    rehearsal: Rehearsal, directory: Path, tmp_path: Path
) -> None:
    url = f"https://{ACME}:14000/dir"
    own = served(rehearsal)
    deploy(rehearsal, tmp_path, lab_certificate="acme", lab_acme_directory=url, lab_acme_ca_file=str(directory))
    first = served(rehearsal)
    assert first != own and re.fullmatch("acme, valid for (89|90) more days", health(rehearsal)["seen"])
    assert requests.get(f"{rehearsal.url}/health", verify=str(directory), timeout=10).text == "OK"

    renew = "sed -i 's/^# renew_before_expiry.*/renew_before_expiry = 100 days/' "
    rehearsal.ssh("server", f"{renew} /etc/letsencrypt/renewal/labtrack.conf", check=True)
    with Load(rehearsal.url, directory) as load:
        rehearsal.ssh("server", "systemctl start certbot.service", check=True)
    assert load.failed == [] and load.made > 0
    second = served_anew(rehearsal, first)
    assert health(rehearsal)["status"] == "ok"

    rehearsal.ssh("login", "systemctl stop pebble", check=True)
    assert rehearsal.ssh("server", "systemctl start certbot.service").returncode != 0
    assert served(rehearsal) == second
    told = health(rehearsal)
    assert told["status"] == "warning" and "its renewal failed: journalctl -u certbot.service" in told["seen"]

    broken = "/etc/letsencrypt/live/labtrack"
    rehearsal.ssh("server", f"cp {broken}/chain.pem {broken}/fullchain.pem", check=True)
    assert "not taken" in rehearsal.ssh("server", "labtrack-certificate install").stderr
    assert served(rehearsal) == second
