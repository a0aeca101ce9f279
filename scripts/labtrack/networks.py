"""Networks as lab.yml names them: in the one spelling that Neutron, Terraform and the server's firewall give back."""

from __future__ import annotations

import ipaddress


def why_no_network(text: str) -> tuple[str, str]:
    """What is wrong with a network like 203.0.113.0/24, and what to write; both empty where nothing is.

    Neutron keeps an address in its shortest spelling.  Another one would be a change for Terraform at each run, and for
    a moment nobody could log in.  The hint is empty for what is no network at all.
    """
    try:
        network = ipaddress.ip_network(text)
    except ValueError as error:
        return f"{text!r} is not a network: {error}.", _without_host_bits(text)
    right = _short(network)
    if network.prefixlen == 0 or right.endswith("/0"):
        return f"{text!r} is everybody, and SSH is for the admins' own networks.", (
            "Name the networks that the admins work from; one address is 203.0.113.7/32."
        )
    if right == text:
        return "", ""
    kind = "an IPv4 address written as IPv6" if ":" in text and ":" not in right else "another spelling of a network"
    return f"{text!r} is {kind}, which Neutron would give back as {right}.", f"Write {right}."


def _short(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    """The shortest spelling; of an IPv4 network that is mapped into IPv6, the IPv4 one."""
    address = network.network_address
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    bits = network.prefixlen - 96  # ::ffff:0:0/96 holds all of IPv4
    return f"{mapped}/{bits}" if mapped is not None and bits >= 0 else str(network)


def _without_host_bits(text: str) -> str:
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        return ""
    one = ipaddress.ip_network(interface.ip)
    return f"Write {_short(interface.network)} for the whole network, or {_short(one)} for the one address."
