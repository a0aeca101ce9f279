"""The security-group rules that let somebody in, compared with what the lab wants (terraform/modules/network)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

from labtrack.cloud import answers
from labtrack.cloud.login import login
from labtrack.doctor.result import Result, failed, ok, skipped
from labtrack.errors import LabtrackError
from labtrack.lab import Lab

CHECK = "security group"
EVERYWHERE = {"IPv4": "0.0.0.0/0", "IPv6": "::/0"}
Rule = tuple[str, str, str]  # protocol, ports, from where


def wanted(admin_networks: tuple[str, ...]) -> set[Rule]:
    """The rules of a lab: HTTP and HTTPS from everywhere, SSH from the admins' networks."""
    networks = {str(ipaddress.ip_network(network, strict=False)) for network in admin_networks}
    return {("tcp", port, place) for port in ("80", "443") for place in EVERYWHERE.values()} | {
        ("tcp", "22", network) for network in networks
    }


def rule(found: Any) -> Rule:
    """A rule of Neutron's in the same form."""
    low, high = found.port_range_min, found.port_range_max
    ports = "all" if low is None else str(low) if low == high else f"{low}-{high}"
    place = found.remote_ip_prefix or EVERYWHERE.get(found.ether_type, "everywhere")
    if found.remote_group_id:
        place = f"the group {found.remote_group_id}"
    elif getattr(found, "remote_address_group_id", None):
        place = f"the address group {found.remote_address_group_id}"
    protocol = str(found.protocol or "any")
    return {"6": "tcp", "17": "udp"}.get(protocol, protocol), ports, place


def check(lab: Lab, cloud: str | None = None) -> Iterator[Result]:
    """One row for each rule that is not the lab's or is missing; skipped where the cloud can't be asked.

    cloud: an entry of clouds.yaml instead of `lab_cloud`.
    """
    if lab.own_machine:
        yield skipped(CHECK, "the lab brought its own machine: look at the rules in front of it yourself")
        return
    try:
        network = login(lab, cloud).connect().network
        port = network.find_port(f"{lab.name}-mlflow")
        if port is None:
            yield skipped(CHECK, f"this project of the cloud has no port {lab.name}-mlflow")
            return
        found = [
            one for group in port.security_group_ids for one in network.security_group_rules(security_group_id=group)
        ]
    except LabtrackError as error:
        yield skipped(CHECK, f"the cloud can't be asked: {error.what}")
        return
    except answers.ERRORS as error:
        what, hint = answers.explain(error)
        yield skipped(CHECK, f"the cloud can't be asked: {what}. {hint}")
        return
    expected = wanted(lab.admin_networks)
    ingress = {one.id: rule(one) for one in found if one.direction == "ingress"}
    bad = False
    for identity, (protocol, ports, place) in ingress.items():
        if (protocol, ports, place) not in expected:
            bad = True
            hint = f"`openstack security group rule delete {identity}`, or say what you want in lab.yml."
            yield failed(CHECK, f"a rule that was added by hand lets in {protocol} {ports} from {place}", hint)
    for protocol, ports, place in sorted(expected - set(ingress.values())):
        bad = True
        yield failed(CHECK, f"no rule lets in {protocol} {ports} from {place}", "run playbooks/provision.yml again.")
    if not bad:
        yield ok(CHECK, f"{len(ingress)} rules, as the lab wants them")
