"""The server's machine as its admin finds it, and what a run of the playbook repairs."""

from __future__ import annotations

import json
import re
import secrets
import shlex
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from api import Api
from recap import changed

UNITS = "nginx.service 'postgresql@*.service' 'mlflow@*.service'"
DEPLOY = "playbooks/deploy.yml"
OUT_OF_REACH = "/etc/apt/sources.list.d/out-of-reach.list"
LONG = 90  # seconds for a site.yml that has nothing to do


def started(rehearsal: Any) -> str:
    """When the units were started: another text when one of them was restarted."""
    return rehearsal.ssh("server", f"systemctl show -p Id,MainPID,ActiveEnterTimestamp {UNITS}", check=True).stdout


@pytest.fixture
def extra(tmp_path: Path) -> Iterator[Any]:
    """Variables for one run, by a file, because arguments can be seen by everybody."""

    def write(variables: dict[str, Any]) -> str:
        file = tmp_path / "variables.yml"
        file.touch(0o600)
        file.write_text(yaml.safe_dump(variables))
        return f"--extra-vars=@{file}"

    return write


# --- running it again


BEHIND_THEIR_BACK = """
cd /etc/mlflow && sed "s/^MLFLOW_FLASK_SERVER_SECRET_KEY=.*/MLFLOW_FLASK_SERVER_SECRET_KEY='another'/" -i secrets.env
systemctl restart mlflow@1 && nft flush ruleset
cd /etc/systemd/system/nginx.service.d && printf '[Service]\nTasksMax=63\n' >x.conf
systemctl daemon-reload && systemctl restart nginx && rm x.conf && systemctl daemon-reload
"""


def test_what_a_killed_run_has_left_in_memory_is_brought_in_line_with_the_disk(rehearsal: Any) -> None:
    """Files as they should be, and services that were started with others: nothing is there to be written.

    That another run changes nothing after it, the next test sees.
    """
    rehearsal.ssh("server", BEHIND_THEIR_BACK, check=True)
    probe = (Path(__file__).parent / "disk_and_processes.py").read_text()
    rehearsal.playbook(DEPLOY, check=True)
    assert json.loads(rehearsal.ssh("server", "python3 -", stdin=probe, check=True).stdout)["otherwise"] == []
    tasks = rehearsal.ssh("server", "systemctl show --property=TasksMax --value nginx", check=True).stdout
    assert tasks == "64\n"


def test_a_second_site_changes_nothing_and_restarts_nothing(rehearsal: Any) -> None:
    rehearsal.playbook("playbooks/end.yml", check=True)  # what other tests did to keys, the server's copy has
    before, start = started(rehearsal), time.monotonic()
    done = rehearsal.playbook("site.yml", check=True)
    took = time.monotonic() - start
    assert changed(done.stdout) == []
    assert started(rehearsal) == before
    if took > LONG:  # said, not failed: a busy machine is no fault of the playbook
        warnings.warn(f"a second site.yml took {took:.0f} s, and should take less than {LONG}", stacklevel=1)


def test_check_mode_works_and_sees_no_difference(rehearsal: Any) -> None:
    done = rehearsal.playbook(DEPLOY, "--check", "--diff", check=True)
    assert changed(done.stdout) == []


def test_a_half_made_release_would_be_made_again(rehearsal: Any) -> None:
    mark = rehearsal.ssh("server", "readlink -f /opt/mlflow/current", check=True).stdout.strip() + "/.complete"
    rehearsal.ssh("server", f"mv {mark} {mark}.kept", check=True)
    try:
        done = rehearsal.playbook(DEPLOY, "--check", "--tags", "mlflow")
    finally:
        rehearsal.ssh("server", f"mv {mark}.kept {mark}", check=True)
    assert re.search(r"mlflow : Install the release.*\nchanged:", done.stdout), done.stdout[-3000:]


def test_one_run_repairs_what_was_changed_by_hand_and_rotates_what_is_new(
    rehearsal: Any, extra: Any, server: Any
) -> None:
    old = rehearsal.secrets
    new = {name: secrets.token_hex(20) for name in old if name.endswith("_password") and "verify" not in name}
    rehearsal.ssh(
        "server",
        "echo '# by hand' >> /etc/nginx/nginx.conf; chmod 644 /etc/mlflow/secrets.env;"
        "useradd --create-home mallory && install -d -o mallory -m 700 ~mallory/.ssh &&"
        "install -o mallory -m 600 ~debian/.ssh/authorized_keys ~mallory/.ssh/ && echo 'host all all all trust' >>"
        " /etc/postgresql/*/main/pg_hba.conf;"
        "ssh-keygen -q -t ed25519 -N '' -f /root/rogue && cat /root/rogue.pub >> ~debian/.ssh/authorized_keys;"
        "rm -f /root/rogue /root/rogue.pub;"
        f"echo 'deb http://127.0.0.1:9/none none main' > {OUT_OF_REACH};"
        "find /var/lib/apt/lists /var/lib/apt/periodic -maxdepth 1 -exec touch --date='3 days ago' {} +",
        check=True,
    )
    admins = [*rehearsal.lab["lab_admins"], {"name": "mallory", "state": "absent"}]
    variables = extra({**new, "lab_admins": admins, "lab_mlflow_instances": 3})
    try:
        done = rehearsal.playbook(DEPLOY, "-vvv", "--diff", variables, check=True)
        assert "Not all package lists could be read" in done.stdout
        assert not server.user("mallory").exists
        assert "by hand" not in server.file("/etc/nginx/nginx.conf").content_string
        assert server.file("/etc/mlflow/secrets.env").mode == 0o600
        assert "trust" not in rehearsal.ssh("server", "cat /etc/postgresql/*/main/pg_hba.conf").stdout
        keys = rehearsal.ssh("server", "cat ~debian/.ssh/authorized_keys", check=True).stdout
        assert len(keys.strip().splitlines()) == 1
        assert server.service("mlflow@3").is_running
        assert rehearsal.ssh("server", "mlflowctl check").returncode == 0

        password = "secret_mlflow_admin_password"
        logins = [Api(rehearsal.url, str(rehearsal.ca), ("admin", which[password])) for which in (new, old)]
        assert [api.get("users/current").status_code for api in logins] == [200, 401]

        said = done.stdout + done.stderr
        assert [name for name, value in {**old, **new}.items() if value in said and "access_key_id" not in name] == []
        shown = [name for name, value in new.items() if value in said]
        assert shown == []
    finally:
        rehearsal.ssh("server", f"userdel --force --remove mallory 2>/dev/null; rm -f {OUT_OF_REACH}")
        restored = rehearsal.playbook(DEPLOY, check=True)
    assert changed(restored.stdout) != []
    assert not server.service("mlflow@3").is_running
    assert not server.service("mlflow@3").is_enabled


def test_more_connections_than_the_database_takes_are_refused_with_the_sum(rehearsal: Any, extra: Any) -> None:
    before = started(rehearsal)
    done = rehearsal.playbook(DEPLOY, "--tags", "postgresql", extra({"lab_mlflow_instances": 40}))
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert "40 MLflow instances x (3 engines x 8 connections + 6)" in said
    assert "that makes 1210, and PostgreSQL takes 200" in said
    assert "lab_mlflow_instances" in said
    assert started(rehearsal) == before


DATA = "/var/lib/postgresql/9/main"
OTHER_DATA = """
- name: Install PostgreSQL where another one's data are
  hosts: login
  tasks:
    - name: Install PostgreSQL
      ansible.builtin.include_role: {name: postgresql, tasks_from: install.yml}
"""


def test_the_data_of_another_postgresql_are_not_hidden(rehearsal: Any, tmp_path: Path) -> None:
    """On the login node, which has none of its own."""
    (tmp_path / "play.yml").write_text(OTHER_DATA)
    rehearsal.ssh("login", f"mkdir -p {DATA} && echo 9 >{DATA}/PG_VERSION", check=True)
    try:
        done = rehearsal.playbook(str(tmp_path / "play.yml"))
        assert rehearsal.ssh("login", "test -e /etc/postgresql-common").returncode != 0
    finally:
        rehearsal.ssh("login", "rm -r /var/lib/postgresql", check=True)
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert "/var/lib/postgresql/9/main has a database, but Debian 12" in said
    assert "has no dump of them" in said and "run playbooks/dump.yml" in said


def test_services_on_several_machines_are_refused_with_a_word(rehearsal: Any, tmp_path: Path) -> None:
    hosts = yaml.safe_load((rehearsal.lab_dir / "hosts.yml").read_text())
    hosts["postgresql"]["hosts"] = {"another": {"ansible_host": "192.0.2.1"}}
    more = tmp_path / "hosts.yml"
    more.write_text(yaml.safe_dump({"postgresql": hosts["postgresql"]}))
    done = rehearsal.playbook(DEPLOY, "-i", str(rehearsal.lab_dir), "-i", str(more))
    assert done.returncode != 0
    assert "names 2 machines in the group" in " ".join(done.stdout.split())


def test_a_wrong_certificate_is_refused_before_anything_is_changed(rehearsal: Any, extra: Any, tmp_path: Path) -> None:
    """What is wrong with it is in tests/unit/test_certificates.py."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, given = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    certificate = make_certificate(x509, hashes, key, rehearsal.fqdn, 30)
    (tmp_path / "server.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    unprotected = serialization.NoEncryption()
    text = given.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, unprotected)
    (tmp_path / "server.key").write_bytes(text)
    before = rehearsal.ssh("server", "sha256sum /etc/ssl/labtrack/*", check=True).stdout
    variables = {
        "lab_certificate": "provided",
        "lab_certificate_file": str(tmp_path / "server.pem"),
        "lab_certificate_key_file": str(tmp_path / "server.key"),
    }
    done = rehearsal.playbook(DEPLOY, "--tags", "certificates", extra(variables))
    assert done.returncode != 0
    assert "The private key is not the one of the certificate" in " ".join(done.stdout.split())
    assert rehearsal.ssh("server", "sha256sum /etc/ssl/labtrack/*", check=True).stdout == before


def make_certificate(x509: Any, hashes: Any, key: Any, name: str, days: int) -> Any:
    from datetime import datetime, timedelta, timezone

    end = datetime.now(timezone.utc) + timedelta(days=days)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(end - timedelta(days=40))
    builder = builder.not_valid_after(end).add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
    return builder.sign(key, hashes.SHA256())


# --- the machine


def test_exactly_three_ports_are_open(rehearsal: Any) -> None:
    sockets = rehearsal.ssh("server", "ss -Hltn", check=True).stdout.splitlines()
    places = [line.split()[3].rpartition(":") for line in sockets]
    assert {port for address, _, port in places if not address.strip("[]").startswith(("127.", "::1"))} == {
        "22",
        "80",
        "443",
    }


@pytest.mark.parametrize(("unit", "tenths"), [("mlflow@1", 15), ("postgresql@*-main", 20), ("nginx", 30)])
def test_units_are_sandboxed(rehearsal: Any, unit: str, tenths: int) -> None:
    find = f"systemctl list-units --plain --no-legend {shlex.quote(unit + '.service')} | cut -d' ' -f1"
    name = rehearsal.ssh("server", find, check=True).stdout.strip()
    done = rehearsal.ssh("server", f"systemd-analyze security --no-pager --threshold={tenths} {name} | tail -1")
    score = re.search(r"([0-9.]+) [A-Z]+", done.stdout)
    assert score, done.stdout
    assert float(score[1]) <= tenths / 10


def test_ssh_takes_keys_only(rehearsal: Any) -> None:
    settings = dict(line.split(" ", 1) for line in rehearsal.ssh("server", "sshd -T", check=True).stdout.splitlines())
    assert settings["passwordauthentication"] == "no"
    assert settings["kbdinteractiveauthentication"] == "no"
    assert settings["permitrootlogin"] == "no"
    assert settings["authenticationmethods"] == "publickey"


def test_ssh_answers_the_admins_networks_only(rehearsal: Any) -> None:
    rules = json.loads(rehearsal.ssh("server", "nft -j list chain inet labtrack input", check=True).stdout)
    chain = next(item["chain"] for item in rules["nftables"] if "chain" in item)
    assert chain["policy"] == "drop"
    text = rehearsal.ssh("server", "nft list chain inet labtrack input", check=True).stdout
    line = next(line for line in text.splitlines() if "dport 22" in line)
    assert all(network in line for network in rehearsal.lab["lab_admin_networks"])


def test_services_cannot_reach_the_cloud_s_metadata(rehearsal: Any) -> None:
    ask = "curl -s -o /dev/null -m 3 http://169.254.169.254/"
    assert rehearsal.ssh("server", f"runuser -u www-data -- {ask}").returncode == 28
    assert rehearsal.ssh("server", f"{ask}").returncode != 28


def test_nobody_but_the_proxy_reaches_the_sockets(rehearsal: Any) -> None:
    ask = "curl -s -o /dev/null -m 3 --unix-socket /run/mlflow/1.sock http://x/health"
    assert rehearsal.ssh("server", f"runuser -u www-data -- {ask}").returncode == 0
    assert rehearsal.ssh("server", f"runuser -u nobody -- {ask}").returncode != 0


def test_mlflow_can_write_nothing_of_its_own_code(rehearsal: Any) -> None:
    found = rehearsal.ssh("server", "runuser -u mlflow -- find /opt/mlflow /usr/local /etc/mlflow -writable ! -type l")
    assert found.stdout == ""


# --- PostgreSQL


def psql(rehearsal: Any, sql: str) -> str:
    command = f"runuser -u postgres -- psql -XtAc {shlex.quote(sql)}"
    return rehearsal.ssh("server", command, check=True).stdout.strip()


def test_postgresql_has_checksums_no_passwords_and_no_port(rehearsal: Any) -> None:
    show = "SELECT current_setting('data_checksums'), current_setting('listen_addresses')"
    assert psql(rehearsal, show) == "on|"
    assert psql(rehearsal, "SELECT count(*) FROM pg_authid WHERE rolpassword IS NOT NULL") == "0"
    assert psql(rehearsal, "SELECT DISTINCT auth_method FROM pg_hba_file_rules") == "peer"


def test_each_database_is_open_to_its_own_role_alone(rehearsal: Any) -> None:
    tracking = rehearsal.lab.get("lab_database_name", "mlflowdb")
    owners = {tracking: "mlflow", "mlflow_auth": "mlflow_auth"}
    accounts = ("root", "mlflow", "www-data", "nobody")
    attempts = [
        f"runuser -u {account} -- psql -h /var/run/postgresql -U {role} -XtAc 'SELECT 1' {database} >/dev/null 2>&1"
        f" && echo {account} {role} {database}"
        for account in accounts for role in (*owners.values(), "postgres") for database in (*owners, "postgres")
    ]  # fmt: skip
    let_in = rehearsal.ssh("server", f"cd / && {{ {'; '.join(attempts)}; true; }}", check=True).stdout.split("\n")
    allowed = [f"{account} {owner} {name}" for account in ("root", "mlflow") for name, owner in owners.items()]
    assert sorted(filter(None, let_in)) == sorted(allowed)
    assert (
        psql(rehearsal, "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'mlflow%' AND (rolsuper OR rolcreaterole)")
        == "0"
    )


# --- secrets

LEAKS = r"""
patterns=$(mktemp -p /run); trap 'rm -f $patterns' EXIT; cat > $patterns
look() { if grep -qFf $patterns; then echo "$1"; fi; }
tr '\0' ' ' < /dev/null; for p in /proc/[0-9]*; do tr '\0' ' ' < $p/cmdline 2>/dev/null; echo; done | look arguments
systemctl show '*' 2>/dev/null | look systemctl
journalctl --no-pager -o cat 2>/dev/null | look journal
cat /var/log/nginx/* 2>/dev/null | look nginx-log
find / -xdev -type f -perm -o=r -size -4M ! -path '/proc/*' ! -path '/sys/*' ! -path '/opt/mlflow/releases/*' \
  ! -path '/usr/share/*' ! -path '/usr/lib/*' -print0 | xargs -0 grep -lFf $patterns 2>/dev/null | sed 's/^/readable: /'
find /run -type f -perm -o=r -size -4M -print0 | xargs -0 grep -lFf $patterns 2>/dev/null | sed 's/^/readable: /'
true
"""


def test_no_secret_is_where_others_can_see_it(rehearsal: Any) -> None:
    wanted = "\n".join(rehearsal.canaries) + "\n"
    done = rehearsal.ssh("server", f"bash -c {shlex.quote(LEAKS)}", stdin=wanted, check=True)
    assert done.stdout == ""
    marker = secrets.token_hex(20)
    look = f"echo {marker} | systemd-cat; journalctl --sync; bash -c {shlex.quote(LEAKS)}"
    planted = rehearsal.ssh("server", look, stdin=f"{marker}\n")
    assert "journal" in planted.stdout.split(), "the search itself must be able to find something"


def test_no_secret_is_in_git(rehearsal: Any) -> None:
    for value in rehearsal.secrets.values():
        found = rehearsal.run("git", "log", "--all", "--oneline", f"-S{value}")
        assert found.stdout == ""
