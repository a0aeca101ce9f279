"""Preflight's judgments of networks, names and rights, asked of a real Neutron, Nova and Keystone.

What is made here is small, named `judged-...`, and taken away at once.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from labtrack import lab as labs
from labtrack.cloud import preflight
from labtrack.cloud.login import login
from labtrack.cloud.preflight import identity, machine, network, quota
from labtrack.cloud.preflight.context import Context
from labtrack.doctor.result import Result, Status
from labtrack.lab import Lab

if TYPE_CHECKING:
    from conftest import Rehearsal
    from openstack.connection import Connection

SOON = 10.0  # seconds for all of `labtrack preflight`


@pytest.fixture
def tenant(rehearsal: Rehearsal) -> Connection:
    """The lab's project, as its user sees it."""
    return rehearsal.cloud("climate")


@pytest.fixture
def another(rehearsal: Rehearsal) -> Lab:
    """A second lab in the same project, of which nothing is there yet."""
    lab = labs.load(rehearsal.lab_dir)
    return replace(lab, name="judged", fqdn="judged.rehearsal.test", bucket="judged-mlflow", folder=Path("/nowhere"))


def judge(lab: Lab, check: Any, **wishes: Any) -> Result:
    """One check's row, or the last of its rows, for other wishes."""
    return preflight.rows(check, context(lab, **wishes))[-1]


def context(lab: Lab, **wishes: Any) -> Context:
    """What the checks look at, freshly asked."""
    lab = replace(lab, machine=replace(lab.machine, **wishes))
    return Context.of(lab, login(lab))


@contextlib.contextmanager
def gone(*delete: Any) -> Iterator[None]:
    """Takes away what a test has made, the last first."""
    try:
        yield
    finally:
        for one in delete:
            one()


def test_ids_are_taken_as_names_are(another: Lab, tenant: Connection) -> None:
    named = context(another, router="rehearsal-router").ids()
    assert {"image", "flavor", "external_network", "router"} <= set(named)
    by_id = {"image": named["image"], "flavor": named["flavor"], "external_network": named["external_network"]}
    found = context(another, router=named["router"], **by_id)
    assert found.ids() == named
    assert {one(found).status for one in (machine.image, machine.flavor, network.external_network)} == {Status.OK}
    inside = context(another, network="rehearsal-network").subnet
    assert inside.id == tenant.network.find_subnet("rehearsal-subnet").id


def test_a_network_step_by_step(another: Lab, tenant: Connection) -> None:
    net = tenant.network
    made = net.create_network(name="judged-by-hand")
    with gone(lambda: net.delete_network(made)):
        row = judge(another, network.network, network="judged-by-hand")
        assert row.status is Status.FAILED and "no subnet" in row.seen and "openstack subnet create" in row.hint
        subnet = net.create_subnet(network_id=made.id, ip_version=4, cidr="10.78.0.0/24", name="judged-by-hand")
        row = judge(another, network.network, network=made.id)
        assert row.status is Status.FAILED and "has no router" in row.seen and "add subnet" in row.hint
        net.update_subnet(subnet, gateway_ip=None)
        row = judge(another, network.network, network="judged-by-hand")
        assert row.status is Status.FAILED and "subnet set --gateway 10.78.0.1" in row.hint
    row = judge(another, network.network, network="rehearsal-network")
    assert row.status is Status.OK and "rehearsal-router" in row.seen


def test_addresses_in_use_and_networks_of_the_wrong_kind(another: Lab) -> None:
    row = judge(another, network.network, router="rehearsal-router")  # the default range is the rehearsal's
    assert row.status is Status.FAILED and "overlaps" in row.seen and "lab_network_cidr: 10." in row.hint
    assert judge(another, network.network, router="rehearsal-router", network_cidr="10.79.0.0/24").status is Status.OK
    row = judge(another, network.external_network, external_network="rehearsal-network")
    assert row.status is Status.FAILED and "internal" in row.seen and "Public-Network" in row.hint
    row = judge(another, network.network, network="Public-Network")
    assert row.status is Status.FAILED and "external" in row.seen


def test_stray_ports_and_a_key_pair_of_another_key(rehearsal: Rehearsal, another: Lab, tenant: Connection) -> None:
    net, compute = tenant.network, tenant.compute
    inside = net.find_network("rehearsal-network")
    ports = [net.create_port(network_id=inside.id, name="judged-mlflow") for _ in range(2)]
    with gone(*(lambda port=port: net.delete_port(port) for port in ports)):
        row = judge(another, machine.lab_names)
        assert row.status is Status.FAILED and "2 of the kind port" in row.seen and ports[0].id in row.seen
    compute.create_keypair(name="judged-key", public_key=(rehearsal.private / "id_ed25519.pub").read_text())
    with gone(lambda: compute.delete_keypair("judged-key")):
        assert judge(another, machine.key_pair).seen == "judged-key is there"
        other = {"lab_admins": [{"name": "ada", "ssh_keys": ["ssh-ed25519 AAAAanother"]}]}
        row = judge(replace(another, settings={**another.settings, **other}), machine.key_pair)
        assert row.status is Status.FAILED and "lab_key_pair: judged-key" in row.hint


def test_access_rules_name_the_services_that_they_leave_out(
    rehearsal: Rehearsal, another: Lab, tenant: Connection, tmp_path: Path
) -> None:
    rules = [{"path": "/v2.1/**", "method": "GET", "service": "compute"}]
    made = tenant.identity.create_application_credential(tenant.current_user_id, "judged", access_rules=rules)
    with gone(lambda: tenant.identity.delete_application_credential(tenant.current_user_id, made.id)):
        known = yaml.safe_load((rehearsal.private / "clouds.yaml").read_text())["clouds"]["climate-appcred"]
        secret = {"application_credential_id": made.id, "application_credential_secret": made.secret}
        file = tmp_path / "clouds.yaml"
        file.touch(0o600)
        file.write_text(yaml.safe_dump({"clouds": {"judged": {**known, "auth": {**known["auth"], **secret}}}}))
        limited = replace(another, cloud="judged", clouds_file=file)
        row = judge(limited, network.network)
        assert row.status is Status.FAILED and "network (Neutron) answers 401" in row.seen, row
        assert "access rules" in row.hint and "in a minute" not in row.hint
        assert judge(limited, identity.ec2_keys).status is Status.FAILED
        # the rehearsal's services are not told their own type, so that they know no rule at all
        assert "compute (Nova) answers 401" in judge(limited, machine.flavor).seen


def test_neutrons_plain_quotas_give_the_same_answer_as_its_details(another: Lab) -> None:
    def rows(*, details: bool) -> dict[str, str]:
        at = context(another)
        ask = at.cloud.network.get_quota

        def plain(project: str, details: bool) -> Any:
            return None if details else ask(project)

        if not details:
            at.cloud.network.get_quota = plain  # type: ignore[method-assign]
        return {row.check: row.seen for row in quota.quotas(at)}

    assert rows(details=False) == rows(details=True)


def test_it_is_over_soon(rehearsal: Rehearsal) -> None:
    begun = time.monotonic()
    rehearsal.run("labtrack", "preflight", str(rehearsal.lab_dir), check=True)
    assert time.monotonic() - begun < SOON
