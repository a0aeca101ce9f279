"""lab_admin_networks: one spelling for each network, that which Neutron gives back."""

from __future__ import annotations

import pytest

from labtrack.networks import why_no_network


@pytest.mark.parametrize("text", ["203.0.113.0/24", "203.0.113.7/32", "2001:db8::/32", "2001:db8::7/128"])
def test_a_network_as_neutron_writes_it(text: str) -> None:
    assert why_no_network(text) == ("", "")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("2001:DB8::/32", "2001:db8::/32"),
        ("2001:0db8:0000::/32", "2001:db8::/32"),
        ("2001:db8:0:0:0:0:0:7/128", "2001:db8::7/128"),
        ("203.0.113.0/024", "203.0.113.0/24"),
        ("::ffff:203.0.113.7/128", "203.0.113.7/32"),
        ("::FFFF:cb00:7100/120", "203.0.113.0/24"),
    ],
)
def test_another_spelling(text: str, right: str) -> None:
    what, hint = why_no_network(text)
    assert text in what and right in what and hint == f"Write {right}."


@pytest.mark.parametrize(
    ("text", "whole", "one"),
    [
        ("203.0.113.7/24", "203.0.113.0/24", "203.0.113.7/32"),
        ("2001:DB8::7/32", "2001:db8::/32", "2001:db8::7/128"),
        ("::ffff:203.0.113.7/120", "203.0.113.0/24", "203.0.113.7/32"),
    ],
)
def test_host_bits(text: str, whole: str, one: str) -> None:
    what, hint = why_no_network(text)
    assert "host bits set" in what and hint == f"Write {whole} for the whole network, or {one} for the one address."


@pytest.mark.parametrize("text", ["0.0.0.0/0", "::/0", "::ffff:0.0.0.0/96"])
def test_everybody(text: str) -> None:
    what, hint = why_no_network(text)
    assert "is everybody" in what and "203.0.113.7/32" in hint


@pytest.mark.parametrize("text", ["203.0.113/24", "203.0.113.300/32", "2001:db8::/129", "203.0.113.07/32"])
def test_no_network(text: str) -> None:
    what, hint = why_no_network(text)
    assert "is not a network" in what and not hint
