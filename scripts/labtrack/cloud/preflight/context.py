"""What the checks look at: the lab, the login, the cloud, and what of the lab is already there."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import requests
from openstack.connection import Connection

from labtrack.cloud.login import Login
from labtrack.cloud.profiles import Profile
from labtrack.lab import Lab

TIMEOUT = 15.0  # seconds for one answer


@dataclass(frozen=True)
class Context:
    """Everything is looked up once.  Names of what Terraform makes start with the lab's name: terraform/README.md."""

    lab: Lab
    login: Login
    profile: Profile
    cloud: Connection = field(repr=False)

    @property
    def server_name(self) -> str:
        """The machine, and its port."""
        return f"{self.lab.name}-mlflow"

    @cached_property
    def server(self) -> Any:
        """The lab's machine, where it is already there."""
        return self.cloud.compute.find_server(self.server_name)

    @cached_property
    def flavor(self) -> Any:
        """The flavor that lab.yml names, or None."""
        return self.cloud.compute.find_flavor(self.lab.machine.flavor, get_extra_specs=False)

    @cached_property
    def address(self) -> str:
        """The server's public address: given, or already made; empty before."""
        if self.lab.machine.floating_ip:
            return self.lab.machine.floating_ip
        port = self.cloud.network.find_port(self.server_name)
        found = list(self.cloud.network.ips(port_id=port.id)) if port else []
        return str(found[0].floating_ip_address) if found else ""

    @property
    def verify(self) -> str | bool:
        """How the store's certificate is checked, as in requests."""
        return str(self.lab.s3_ca_file) if self.lab.s3_ca_file else True

    def status_of(self, bucket: str) -> int:
        """What the store answers to one who has no key.  Raises requests.RequestException."""
        return requests.head(f"{self.lab.s3_endpoint}/{bucket}", timeout=TIMEOUT, verify=self.verify).status_code


def choose(key: str, names: list[str]) -> str:
    """The hint of a setting that names something the cloud doesn't have."""
    if not names:
        return f"Correct {key} in lab.yml; the cloud shows nothing that would do."
    return f"Set {key} in lab.yml to one of: {', '.join(names)}."
