"""labtrack-certificate on a server that is a folder, with stand-ins for nginx, systemctl and certbot."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from labtrack import secrets
from labtrack.lab import Lab

PROGRAM = ROOT / "roles/certificates/files/labtrack-certificate.py"
NAME = "mlflow.example.org"
URL = "https://acme.example.org/directory"
# What the program calls.  nginx refuses what the file REFUSES says; certbot does what the file CERTBOT has.
CALLED = {
    "nginx": 'echo "nginx $*" >>"$LOG"; test ! -e "$HERE/refuses" || { echo "emerg: refused" >&2; exit 1; }',
    "systemctl": 'echo "systemctl $*" >>"$LOG"; case "$*" in *is-failed*) test -e "$HERE/failed";; esac',
    "certbot": 'echo "certbot $*" >>"$LOG"; . "$HERE/certbot.sh"',
}
# A directory that issues: a certificate of its own CA, as certbot leaves it.
ISSUES = f"""
live="$LABTRACK_CERTIFICATE_ROOT/etc/letsencrypt/live/labtrack"
mkdir -p "$live" "$LABTRACK_CERTIFICATE_ROOT/etc/letsencrypt/renewal"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 90 -subj /CN=x \\
  -addext subjectAltName=DNS:{NAME} -keyout "$live/privkey.pem" -out "$live/fullchain.pem" 2>/dev/null
echo "server = {URL}" >"$LABTRACK_CERTIFICATE_ROOT/etc/letsencrypt/renewal/labtrack.conf"
"$PYTHON" "$PROGRAM" install
"""
LIMITED = """
echo "An unexpected error occurred:" >&2
echo "There were too many requests of a given type :: Error creating new order :: too many certificates (5) already \\
issued, retry after 2099-01-02 03:04:05 UTC: see https://letsencrypt.org/docs/rate-limits/" >&2
exit 1
"""


class Server:
    """A server's files, and the program on it."""

    def __init__(self, here: Path) -> None:
        self.root, self.here, self.log = here / "root", here, here / "log"
        self.folder = self.root / "etc/ssl/labtrack"
        self.folder.mkdir(parents=True)
        (here / "bin").mkdir()
        for name, script in CALLED.items():
            (here / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
            (here / "bin" / name).chmod(0o755)
        self.certbot(ISSUES)
        self.settings()

    def settings(self, method: str = "selfsigned", fqdn: str = NAME, days: int = 365, url: str = URL) -> None:
        said = {"method": method, "fqdn": fqdn, "directory": "/etc/ssl/labtrack", "days": days, "ca_days": 3650}
        file = self.root / "etc/labtrack-certificate.json"
        file.write_text(json.dumps({**said, "acme": {"directory": url, "ca": ""}}))

    def certbot(self, script: str) -> None:
        (self.here / "certbot.sh").write_text(script)

    def __call__(self, *arguments: str, fails: bool = False, **given: str) -> str:
        env = {**os.environ, "PATH": f"{self.here / 'bin'}:{os.environ['PATH']}", "HERE": str(self.here)}
        env |= {"LOG": str(self.log), "LABTRACK_CERTIFICATE_ROOT": str(self.root)}
        env |= {"PYTHON": sys.executable, "PROGRAM": str(PROGRAM)}
        command = [sys.executable, PROGRAM, *arguments]
        done = subprocess.run(command, input=json.dumps(given), env=env, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) is fails, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stderr if fails and done.stderr else done.stdout

    @property
    def files(self) -> dict[str, str]:
        return {file.name: file.read_text() for file in sorted(self.folder.iterdir())}

    @property
    def ca(self) -> str:
        return self.files["ca.key"] + self.files["ca.pem"]

    def calls(self, what: str) -> int:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return sum(line.startswith(what) for line in lines)

    def verified(self, ca: str = "") -> bool:
        """Whether what is served is trusted by who has the CA."""
        (self.here / "trusted.pem").write_text(ca or self.files["ca.pem"])
        command = ["openssl", "verify", "-purpose", "sslserver", "-verify_hostname", NAME, "-CAfile"]
        command += [str(self.here / "trusted.pem"), str(self.folder / "server.pem")]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def greets(self, ca: str) -> str:
        """The name for which Python's client takes what is served.  Raises SSLCertVerificationError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server.pem", self.folder / "server.key")
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        trusting = ssl.create_default_context(cadata=ca)
        client = trusting.wrap_bio(to_client, to_server, server_hostname=NAME)
        served = context.wrap_bio(to_server, to_client, server_side=True)
        for side in (client, served, client):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
        return client.getpeercert()["subjectAltName"][0][1]  # type: ignore[index]

    def age(self, days: int) -> None:
        """Have a certificate of the lab's CA served that ends in some days."""
        self.settings(days=days)
        (self.folder / "server.pem").unlink()
        self("renew")
        self.settings()


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


class TestSelfsigned:
    """A CA of the lab's own."""

    def test_made_once_and_handed_out_to_be_kept(self, server: Server) -> None:
        assert server("apply", "--check") == "changed\n" and server.files == {}
        assert server("apply") == "changed\nchanged ca\n"
        first = server.files
        assert server.verified() and sorted(first) == ["ca.key", "ca.pem", "server.key", "server.pem"]
        assert {file.stat().st_mode & 0o777 for file in server.folder.iterdir()} == {0o600}
        assert server("apply") == "changed ca\n", "until the lab has it"
        assert server("apply", ca=server.ca) == "" == server("apply", "--check", ca=server.ca)
        assert server.files == first

    def test_a_ca_signs_for_its_name_alone(self, server: Server) -> None:
        server("apply")
        text = subprocess.run(["openssl", "x509", "-noout", "-text"], input=server.files["ca.pem"], text=True,
                              capture_output=True, check=True).stdout  # fmt: skip
        assert f"Permitted:\n                  DNS:{NAME}" in text
        assert "IP:0.0.0.0/0.0.0.0" in text and "IP:0:0:0:0:0:0:0:0/0:0:0:0:0:0:0:0" in text

    def test_after_a_new_machine_old_files_stay_true(self, server: Server, lab: Lab, tmp_path: Path) -> None:
        server("apply")
        assert secrets.keep_ca(lab, server.ca)
        secrets.write_ca(lab)
        bundle = (lab.private / "ca.pem").read_text()  # what everybody's mlflow_env.sh names
        assert b"PRIVATE KEY" not in lab.secrets_file.read_bytes(), "encrypted"

        (lab.private / "ca.pem").unlink()
        (tmp_path / "new").mkdir()
        new = Server(tmp_path / "new")
        assert new("apply", ca=secrets.read(lab)[secrets.CA]) == "changed\n", "nothing that the lab does not have"
        assert new.files["server.key"] != server.files["server.key"] and new.ca == server.ca
        assert secrets.write_ca(lab) and (lab.private / "ca.pem").read_text() == bundle

        assert new.verified(bundle), "openssl's view"
        assert new.greets(bundle) == NAME, "Python's"
        (tmp_path / "other").mkdir()
        other = Server(tmp_path / "other")
        other("apply")
        with pytest.raises(ssl.SSLCertVerificationError):
            other.greets(bundle)

    def test_renewed_by_the_timer_with_the_key_that_is_there(self, server: Server) -> None:
        server("apply")
        before = server.files
        assert server("renew") == "", "it is young"
        server.age(130)
        assert server("apply", "--check", ca=server.ca) == "changed\n"
        reloads = server.calls("systemctl reload")
        assert server("renew") == "changed\n"
        assert server.verified(before["ca.pem"]) and server.files["server.key"] == before["server.key"]
        assert server.calls("systemctl reload") == reloads + 1
        assert server("renew") == ""

    def test_the_timer_makes_no_ca(self, server: Server) -> None:
        server("apply")
        (server.folder / "ca.key").unlink()
        assert "run playbooks/deploy.yml" in server("renew", fails=True)

    def test_another_name(self, server: Server) -> None:
        server.settings(fqdn="old.example.org")
        server("apply")
        kept, key = server.ca, server.files["ca.key"]
        server.settings()
        assert server("apply", ca=kept) == "changed\nchanged ca\n"
        assert server.verified() and server.files["ca.key"] == key

    @pytest.mark.parametrize(
        ("file", "data"), [("server.pem", None), ("server.key", ""), ("ca.pem", "-----BEGIN"), ("ca.key", None)]
    )
    def test_repaired_whatever_is_missing_or_broken(self, server: Server, file: str, data: str | None) -> None:
        server("apply")
        kept = server.ca
        (server.folder / file).unlink() if data is None else (server.folder / file).write_text(data)
        assert "changed\n" in server("apply", ca=kept)
        assert server.verified() and server.ca == kept and server("apply", ca=kept) == ""

    def test_open_files_are_closed(self, server: Server) -> None:
        server("apply")
        (server.folder / "server.key").chmod(0o644)
        assert server("apply", ca=server.ca) == "changed\n"
        assert (server.folder / "server.key").stat().st_mode & 0o777 == 0o600


class TestServed:
    """What reaches nginx."""

    def other(self, server: Server, tmp_path: Path) -> dict[str, str]:
        (tmp_path / "other").mkdir()
        other = Server(tmp_path / "other")
        other("apply")
        return {"certificate": other.files["server.pem"], "key": other.files["server.key"]}

    def test_what_nginx_refuses_is_taken_back(self, server: Server, tmp_path: Path) -> None:
        server("apply")
        before, given = server.files, self.other(server, tmp_path)
        server.settings("provided")
        (tmp_path / "refuses").touch()
        said = server("apply", fails=True, **given)
        assert "nginx does not take the new certificate" in said and "emerg: refused" in said
        assert server.files == before and server.calls("systemctl reload") == 1
        (tmp_path / "refuses").unlink()
        assert server("apply", "--check", **given) == "changed\n" and server.files == before
        assert server("apply", **given) == "changed\n" and server("apply", **given) == ""
        assert server.files["server.pem"] == given["certificate"]

    def test_half_of_another_pair_never_reaches_nginx(self, server: Server, tmp_path: Path) -> None:
        server("apply")
        before, given = server.files, self.other(server, tmp_path)
        server.settings("provided")
        tests = server.calls("nginx -t")
        assert "the key is another one's" in server("apply", fails=True, **{**given, "key": before["server.key"]})
        assert "can't be read" in server("apply", fails=True, **{**given, "certificate": "broken"})
        assert server.files == before and server.calls("nginx -t") == tests

    def test_back_to_selfsigned_has_the_same_ca(self, server: Server, tmp_path: Path) -> None:
        server("apply")
        kept, given = server.ca, self.other(server, tmp_path)
        server.settings("provided")
        server("apply", **given)
        server.settings()
        assert server("apply", ca=kept) == "changed\n" and server.ca == kept and server.verified()


class TestAcme:
    """What certbot gets."""

    @pytest.fixture
    def acme(self, server: Server) -> Server:
        server.settings("acme")
        return server

    def test_a_placeholder_until_the_first_one(self, acme: Server) -> None:
        assert acme("apply") == "changed\n" and acme("apply") == ""
        assert "there is none of https://acme.example.org/directory yet" in acme("status", fails=True)
        assert acme("issue") == "changed\n"
        live = acme.root / "etc/letsencrypt/live/labtrack/fullchain.pem"
        assert acme.files["server.pem"] == live.read_text()
        assert acme("issue") == "" == acme("apply") and acme.calls("certbot") == 1

    def test_the_earlier_one_until_the_first_one(self, server: Server) -> None:
        server("apply")
        before = server.files
        server.settings("acme")
        server.certbot("echo 'Detail: 192.0.2.1: Timeout during connect' >&2; exit 1")
        assert server("apply") == ""
        said = server("issue", fails=True)
        assert "Timeout during connect" in said and f"http://{NAME}/" in said and "port 80" in said
        assert server.files == before

    def test_a_rate_limit_is_told_and_not_tried_again(self, acme: Server) -> None:
        acme.certbot(LIMITED)
        acme("apply")
        for _ in range(3):
            said = acme("issue", fails=True)
            assert "too many certificates (5)" in said and "2099-01-02 03:04:05 UTC" in said
        assert acme.calls("certbot") == 1
        assert "too many certificates" in acme("status", fails=True)
        acme.settings("acme", url=f"{URL}/staging")
        acme("issue", fails=True)
        assert acme.calls("certbot") == 2, "another directory has limits of its own"

    def test_a_limit_without_an_end_holds_for_an_hour(self, acme: Server) -> None:
        acme.certbot("echo 'Error: urn:ietf:params:acme:error:rateLimited :: slow down' >&2; exit 1")
        acme("issue", fails=True)
        limit = acme.root / "var/lib/labtrack-certificate/limited.json"
        noted = json.loads(limit.read_text())
        assert 3500 < noted["until"] - time.time() <= 3600
        limit.write_text(json.dumps({**noted, "until": time.time() - 1}))
        acme.certbot(ISSUES)
        assert acme("issue") == "changed\n" and not limit.exists()

    def test_from_staging_to_another_directory(self, acme: Server) -> None:
        acme.settings("acme", url=f"{URL}/staging")
        acme.certbot(ISSUES.replace(URL, f"{URL}/staging"))
        acme("issue")
        before = acme.files["server.pem"]
        acme.settings("acme")
        acme.certbot(ISSUES)
        assert acme("apply") == "" and acme("issue") == "changed\n" and acme.files["server.pem"] != before
        assert acme.calls("certbot certonly") == 2

    def test_a_broken_renewal_is_told_and_the_old_one_served(self, acme: Server) -> None:
        acme("apply")
        acme("issue")
        before = acme.files
        (acme.root / "etc/letsencrypt/live/labtrack/privkey.pem").write_text(before["server.key"][:80])
        assert "can't be read" in acme("install", fails=True)
        assert acme.files == before

    def test_a_renewal_that_fails_is_told(self, acme: Server, tmp_path: Path) -> None:
        acme("apply")
        acme("issue")
        assert "valid for 89 more days" in acme("status")
        (tmp_path / "failed").touch()
        assert "its renewal failed: journalctl -u certbot.service" in acme("status", fails=True)

    def test_certbots_hook_changes_nothing_once_another_way_is_chosen(self, acme: Server) -> None:
        acme("apply")
        acme("issue")
        acme.settings()
        acme("apply")
        before = acme.files
        assert acme("install") == "" and acme.files == before


def test_status_warns_in_the_last_third(server: Server, tmp_path: Path) -> None:
    assert "it is not there" in server("status", fails=True)
    server("apply")
    assert json.loads(server("status", "--json")) == {"status": "ok", "seen": "selfsigned, valid for 364 more days"}


def test_usage(server: Server) -> None:
    assert "labtrack-certificate apply" in server("no-such", fails=True)
