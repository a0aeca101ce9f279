"""The cloud preflight and `labtrack init`, asked of a real OpenStack: each finds what Terraform would stumble over."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from labtrack import lab as labs
from labtrack.cloud import preflight
from labtrack.doctor.result import Result, Status
from labtrack.lab import Lab

if TYPE_CHECKING:
    from conftest import Rehearsal


@pytest.fixture
def lab(rehearsal: Rehearsal) -> Lab:
    """The rehearsal's lab, whose machine is there."""
    return labs.load(rehearsal.lab_dir)


@pytest.fixture
def another(lab: Lab) -> Lab:
    """A second lab in the same project, of which nothing is there yet."""
    return replace(lab, name="another", fqdn="another.rehearsal.test", bucket="another-mlflow", folder=Path("/nowhere"))


def rows(lab: Lab, cloud: str | None = None) -> dict[str, Result]:
    """The rows of a preflight, by what was looked at."""
    return {row.check: row for row in preflight.check(lab, cloud)}


def with_machine(lab: Lab, **changed: object) -> Lab:
    """The lab with other wishes for its machine."""
    return replace(lab, machine=replace(lab.machine, **changed))


def failures(found: dict[str, Result]) -> dict[str, str]:
    """What failed, and how to fix it."""
    return {check: row.hint for check, row in found.items() if row.status is Status.FAILED}


def test_a_lab_that_stands_passes_and_needs_no_quota(lab: Lab) -> None:
    found = rows(lab)
    assert not failures(found), found
    assert found["DNS"].status is Status.OK and found["S3 endpoint"].status is Status.OK
    assert found["bucket"].seen == f"{lab.bucket} is the project's"
    assert not [check for check in found if check.startswith("quota")], found


def test_a_new_lab_in_the_same_project_passes(another: Lab) -> None:
    found = rows(another)
    assert not failures(found), found
    assert found["quota: instances"].status is Status.OK and found["quota: floating IPs"].status is Status.OK
    assert found["DNS"].status is Status.WARNING and "A record" in found["DNS"].hint
    assert found["bucket"].seen == "another-mlflow is free and will be made"


@pytest.mark.parametrize(
    ("changed", "row", "hint"),
    [
        ({"image": "Debian-99"}, "image", "Debian-13"),
        ({"image": ""}, "image", "Debian-13"),
        ({"flavor": "c99"}, "flavor", "p2-3gb"),
        ({"flavor": "p1-1.5gb"}, "flavor", "p2-3gb"),
        ({"external_network": "Outside"}, "external network", "Public-Network"),
        ({"network": "nowhere"}, "network", "lab_network"),
        ({"router": "nobody"}, "network", "lab_router"),
        ({"key_pair": "lost"}, "key pair", "lab_key_pair"),
        ({"floating_ip": "198.51.100.2"}, "floating IP", "lab_floating_ip"),
        ({"bucket_manage": False}, "bucket", "openstack container create another-mlflow"),
    ],
)
def test_what_the_cloud_does_not_have(another: Lab, changed: dict[str, Any], row: str, hint: str) -> None:
    failed = failures(rows(with_machine(another, **changed)))
    assert row in failed and hint in failed[row], failed


def test_an_address_that_another_machine_has(lab: Lab, another: Lab) -> None:
    theirs = rows(lab)["DNS"].seen.split()[-1]
    failed = failures(rows(with_machine(another, floating_ip=theirs)))
    assert "in use" in rows(with_machine(another, floating_ip=theirs))["floating IP"].seen
    assert f"openstack floating ip show {theirs}" in failed["floating IP"]


def test_a_quota_that_is_used_up(rehearsal: Rehearsal, another: Lab) -> None:
    with used_up_addresses(rehearsal):
        failed = failures(rows(another))
        assert failed == {"quota: floating IPs": failed["quota: floating IPs"]}
        assert "lab_floating_ip" in failed["quota: floating IPs"]
    assert not failures(rows(another))


@contextlib.contextmanager
def used_up_addresses(rehearsal: Rehearsal) -> Iterator[None]:
    """All floating IPs that the project may have are taken, and given back."""
    tenant = rehearsal.cloud("climate")
    outside = tenant.network.find_network("Public-Network")
    quota = tenant.network.get_quota(tenant.current_project_id, details=True).floating_ips
    taken = []
    try:
        for _ in range(quota["limit"] - quota["used"]):
            taken.append(tenant.network.create_ip(floating_network_id=outside.id))
        yield
    finally:
        for address in taken:
            tenant.network.delete_ip(address)


@pytest.mark.parametrize(
    ("endpoint", "seen", "hint"),
    [
        ("https://cloud.rehearsal.test:5000", "not as S3 does", "not that of Swift"),
        ("https://cloud.rehearsal.test:9", "does not answer", "lab_s3_endpoint"),
        ("https://object-arbutus.cloud.computecanada.ca", "has retired", "https://object-arbutus.alliancecan.ca"),
    ],
)
def test_an_endpoint_that_is_not_the_stores(another: Lab, endpoint: str, seen: str, hint: str) -> None:
    found = rows(replace(another, s3_endpoint=endpoint))
    assert found["S3 endpoint"].status is Status.FAILED and seen in found["S3 endpoint"].seen
    assert hint in found["S3 endpoint"].hint


def test_a_store_whose_authority_is_unknown_here(another: Lab) -> None:
    found = rows(replace(another, s3_ca_file=None))["S3 endpoint"]
    assert found.status is Status.FAILED and "lab_s3_ca_file" in found.hint


@pytest.mark.parametrize("cloud", ["climate-appcred", "climate-appcred-unrestricted"])
def test_an_application_credential_gets_no_keys(another: Lab, cloud: str) -> None:
    found = rows(another, cloud)
    assert found["S3 keys"].status in (Status.WARNING, Status.FAILED), found["S3 keys"]
    assert "openstack ec2 credentials create" in found["S3 keys"].hint
    assert "an application credential" in found["credentials"].seen


def test_a_token_that_expired(another: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OS_TOKEN", "gAAAAAexpired")
    found = rows(another)
    assert list(found) == ["login"] and "token" in found["login"].seen and "OS_TOKEN" in found["login"].hint


def test_a_lab_with_its_own_machine_asks_no_compute(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("mlflow: {hosts: {server: {ansible_host: 203.0.113.9}}}\n")
    found = rows(with_machine(replace(lab, folder=tmp_path), image="", flavor=""))
    assert not failures(found) and "image" not in found and "service compute" not in found


def test_the_command_changes_nothing_and_speaks_json(rehearsal: Rehearsal) -> None:
    tenant = rehearsal.cloud("climate")

    def there() -> tuple[set[str], ...]:
        return (
            {one.name for one in tenant.object_store.containers()},
            {one.id for one in tenant.network.ips()},
            {one.id for one in tenant.identity.credentials(user_id=tenant.current_user_id)},
            {one.id for one in tenant.network.security_groups()},
        )

    before = there()
    done = rehearsal.run("labtrack", "preflight", "--json", str(rehearsal.lab_dir), check=True)
    assert json.loads(done.stdout)["status"] in ("ok", "warning")
    assert there() == before


def test_init_writes_a_lab_that_only_lacks_what_no_machine_knows(rehearsal: Rehearsal, tmp_path: Path) -> None:
    folder = tmp_path / "inventory" / "fresh"
    made = rehearsal.run(
        "labtrack", "init", str(folder), "--cloud", "climate", "--clouds-file", str(rehearsal.private / "clouds.yaml"),
        check=True,
    )  # fmt: skip
    file = labs.lab_yml(folder)
    text = file.read_text()
    assert "FILL IN" in text and "lab_fqdn" in made.stdout
    mine = {
        "lab_fqdn: # FILL IN": "lab_fqdn: fresh.rehearsal.test #",
        "lab_admin_networks: # FILL IN": "lab_admin_networks: [10.99.0.0/24] #",
        "ssh_key_files: # FILL IN": f"ssh_key_files: [{rehearsal.private / 'id_ed25519.pub'}] #",
    }
    for missing, filled in mine.items():
        text = text.replace(missing, filled)
    file.write_text(text)
    data = yaml.safe_load(text)
    assert data["lab_image"] == "Debian-13" and data["lab_flavor"] == "p2-3gb" and data["lab_s3_region"] == "RegionOne"
    assert data["lab_s3_endpoint"] == rehearsal.lab["lab_s3_endpoint"]
    assert data["lab_artifact_access"] == "direct"
    assert not failures(rows(labs.load(folder)))


def test_init_with_a_login_that_makes_no_keys_hands_none_out(rehearsal: Rehearsal, tmp_path: Path) -> None:
    folder, clouds = tmp_path / "inventory" / "fresh", str(rehearsal.private / "clouds.yaml")
    rehearsal.run("labtrack", "init", str(folder), "--cloud", "climate-appcred", "--clouds-file", clouds, check=True)
    assert yaml.safe_load(labs.lab_yml(folder).read_text())["lab_artifact_access"] == "proxied"
