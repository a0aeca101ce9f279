"""What is known of public clouds: profiles.json.  A cloud that moves is a line there, and no code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Profile:
    """A cloud by its addresses.  Empty is what the cloud itself has to be asked for.

    hosts: host names (or the ends of them) that the cloud answers to.
    retired: host names that it once had.
    """

    name: str
    title: str
    hosts: tuple[str, ...] = ()
    dashboard: str = ""
    auth_url: str = ""
    s3_endpoint: str = ""
    external_network: str = ""
    retired: tuple[str, ...] = ()


GENERIC = Profile("generic", "an OpenStack cloud without a profile")


def profiles() -> tuple[Profile, ...]:
    """All profiles, in the order of the file."""
    text = resources.files("labtrack.cloud").joinpath("profiles.json").read_text(encoding="utf-8")
    known: dict[str, dict[str, Any]] = json.loads(text)
    return tuple(_profile(name, data) for name, data in known.items())


def _profile(name: str, data: dict[str, Any]) -> Profile:
    lists: dict[str, Any] = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
    return Profile(name, **{**data, **lists})


def of(url: str) -> Profile:
    """The profile of the cloud at an address; GENERIC when it is none of the known ones."""
    return next((profile for profile in profiles() if _at(url, (*profile.hosts, *profile.retired))), GENERIC)


def moved(url: str) -> Profile | None:
    """The profile of the cloud that gave this address up."""
    return next((profile for profile in profiles() if _at(url, profile.retired)), None)


def _at(url: str, hosts: tuple[str, ...]) -> bool:
    name = urlsplit(url).hostname or ""
    return any(name == host or name.endswith(f".{host}") for host in hosts)
