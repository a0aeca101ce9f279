"""doctor and verify on the deployed server, from the machine that plays the cluster's login node."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from recap import changed

if TYPE_CHECKING:
    from conftest import Rehearsal

Doctor = Callable[..., tuple[int, dict[str, dict[str, str]]]]
HOME = "/tmp/doctor-test"


@pytest.fixture(scope="module")
def doctor(rehearsal: Rehearsal) -> Iterator[Doctor]:
    """Runs doctor on `login`, in the researchers' Python, with Ada's file sourced; gives exit code and rows."""
    rehearsal.hand_package(HOME)
    file = (rehearsal.private / "ada" / "mlflow_env.sh").read_text()
    rehearsal.ssh("login", f"umask 077; cat > {HOME}/mlflow_env.sh", stdin=file, check=True)

    def run(*arguments: str, before: str = ":") -> tuple[int, dict[str, dict[str, str]]]:
        command = f"cd {HOME} && . ./mlflow_env.sh && {before}; {rehearsal.PYTHON} -m labtrack doctor --json"
        done = rehearsal.ssh("login", f"{command} {shlex.join(arguments)}")
        assert done.stdout, done.stderr
        return done.returncode, {row["check"]: row for row in json.loads(done.stdout)["results"]}

    yield run
    rehearsal.ssh("login", f"rm -rf {HOME}", check=True)


def failed(rows: dict[str, dict[str, str]]) -> list[str]:
    return [name for name, row in rows.items() if row["status"] == "failed"]


def test_a_healthy_lab_is_healthy(doctor: Doctor) -> None:
    code, rows = doctor("--write")
    bad = {name: row for name, row in rows.items() if row["status"] not in ("ok", "skipped")}
    assert (code, bad) == (0, {})
    for check in ("DNS", "TCP", "TLS", "login", "server version", "run", "artifact", "clock", "file mode"):
        assert rows[check]["status"] == "ok"
    for check in ("put", "get", "multipart", "presigned", "delete"):
        assert rows[f"store {check}"]["status"] == "ok"


def test_what_the_seed_wrote_is_named(doctor: Doctor) -> None:
    code, rows = doctor(before="export MLFLOW_TRACKING_URI=$(getent hosts mlflow.rehearsal.test | cut -d' ' -f1):5000")
    assert code == 2 and failed(rows) == ["variables"]
    assert "without https://" in rows["variables"]["seen"]


@pytest.mark.parametrize(
    ("before", "check", "hint"),
    [
        ("export MLFLOW_TRACKING_PASSWORD=wrong", "login", "newest mlflow_env.sh"),
        ("unset MLFLOW_TRACKING_SERVER_CERT_PATH REQUESTS_CA_BUNDLE CURL_CA_BUNDLE", "TLS", "get a new mlflow_env.sh"),
        ("export MLFLOW_TRACKING_URI=https://mlflow.rehearsal.test:444", "TCP", "login node"),
        ("export AWS_SECRET_ACCESS_KEY=wrong", "store put", "rotated or revoked"),
        ("export AWS_ACCESS_KEY_ID=wrong", "store put", "rotated or revoked"),
        ("unset AWS_CA_BUNDLE REQUESTS_CA_BUNDLE CURL_CA_BUNDLE", "store put", "source mlflow_env.sh again"),
        ("chmod 644 mlflow_env.sh; trap 'chmod 600 mlflow_env.sh' EXIT", "file", "chmod 600"),
    ],
)
def test_each_fault_is_found_where_it_is(doctor: Doctor, before: str, check: str, hint: str) -> None:
    code, rows = doctor(before=before)
    assert code == 2 and failed(rows) == [check], rows
    assert hint in rows[check]["hint"]


@pytest.mark.parametrize(
    ("unit", "check", "seen"), [("nginx", "TCP", "refuses the connection"), ("mlflow@*", "login", "50")]
)
def test_a_service_that_is_down(doctor: Doctor, rehearsal: Rehearsal, unit: str, check: str, seen: str) -> None:
    units = rehearsal.ssh("server", f"systemctl list-units --plain --no-legend '{unit}.service'", check=True).stdout
    names = " ".join(line.split()[0] for line in units.splitlines())
    rehearsal.ssh("server", f"systemctl stop {names}", check=True)
    try:
        code, rows = doctor()
    finally:
        rehearsal.ssh("server", f"systemctl start {names}", check=True)
    assert code == 2 and failed(rows) == [check]
    assert seen in rows[check]["seen"] and "admin" in rows[check]["hint"]


def verify(rehearsal: Rehearsal, *arguments: str) -> tuple[int, list[dict[str, str]]]:
    """Exit code and rows of `labtrack verify`."""
    done = rehearsal.run("labtrack", "verify", "--json", *arguments, str(rehearsal.lab_dir))
    return done.returncode, json.loads(done.stdout)["results"]


def test_verify_finds_everything_closed_on_all_ports(rehearsal: Rehearsal) -> None:
    code, rows = verify(rehearsal, "--all-ports")
    assert (code, [row for row in rows if row["status"] != "ok"]) == (0, [])
    seen = {row["check"]: row["seen"] for row in rows}
    assert re.search(r"open to this machine: (22, )?80, 443; all others are closed", seen["all ports"])
    assert seen["security group"] == "5 rules, as the lab wants them"
    assert len(rows) >= 20


def test_verify_finds_a_rule_that_was_added_by_hand_and_the_port_behind_it(rehearsal: Rehearsal) -> None:
    network = rehearsal.cloud("climate").network
    group = network.find_security_group(f"{rehearsal.lab['lab_name']}-server")
    added = network.create_security_group_rule(
        security_group_id=group.id, direction="ingress", protocol="tcp", port_range_min=8099, port_range_max=8099
    )
    try:
        code, rows = verify(rehearsal)
    finally:
        network.delete_security_group_rule(added.id)
    bad = [row for row in rows if row["status"] != "ok"]
    assert (code, [row["check"] for row in bad]) == (2, ["security group"])
    assert "added by hand lets in tcp 8099 from 0.0.0.0/0" in bad[0]["seen"]
    assert f"openstack security group rule delete {added.id}" in bad[0]["hint"]


def test_verify_says_where_the_cloud_can_not_be_asked(rehearsal: Rehearsal) -> None:
    code, rows = verify(rehearsal, "--cloud", "nowhere")
    (row,) = [row for row in rows if row["check"] == "security group"]
    assert (code, row["status"]) == (0, "skipped")
    assert "can't be asked" in row["seen"]


def test_verify_playbook_ends_with_the_address(rehearsal: Rehearsal) -> None:
    done = rehearsal.playbook("playbooks/verify.yml", check=True)
    assert changed(done.stdout) == []
    assert f"and exposes nothing else: {rehearsal.url}" in done.stdout
