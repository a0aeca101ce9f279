#!/usr/bin/python
"""Ansible module: waits until a cloud answers, and those that do its work have reported."""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: cloud_ready
short_description: Wait until a cloud's APIs answer and its services report
description:
  - An API answers before those that do the work are there. Without its scheduler, Nova makes a server that comes to
    nothing a minute later. What was reported before a boot or a pause says nothing, so each has to report once more.
options:
  cloud: {type: str, required: true, description: Name of the admin's cloud in C(clouds_file).}
  clouds_file: {type: path, required: true, description: The clouds.yaml.}
  ca_file: {type: path, required: true, description: Certificate of the cloud's CA.}
  addresses: {type: list, elements: str, required: true, description: URLs that have to answer 200 or 300.}
  compute: {type: list, elements: str, required: true, description: The services of Nova that have to report.}
  agents: {type: int, required: true, description: How many agents of Neutron have to report.}
  volume: {type: int, required: true, description: How many services of Cinder have to report.}
  timeout: {type: int, default: 300, description: Seconds that each of the two may take.}
"""

EXAMPLES = r"""
- name: Wait until the cloud answers
  cloud_ready:
    cloud: admin
    clouds_file: clouds.yaml
    ca_file: cloud-ca.pem
    addresses: ["https://cloud.rehearsal.test:5000/v3"]
    compute: [nova-compute, nova-conductor, nova-scheduler]
    agents: 4
    volume: 2
"""

RETURN = r"""
seconds: {type: float, returned: success, description: How long was waited.}
"""

PAUSE = 0.5
VERSIONS = 300  # an API's list of its versions


def silent(address: str, context: ssl.SSLContext) -> str:
    """What is wrong with an API that should answer, or nothing."""
    try:
        with urllib.request.urlopen(address, context=context, timeout=30):  # noqa: S310 - this role's own addresses
            return ""
    except urllib.error.HTTPError as error:
        return "" if error.code == VERSIONS else f"{address} answers {error.code}"
    except OSError as error:
        return f"{address} does not answer ({error})"


def unreported(cloud: Any, since: str, wanted: dict[str, Any]) -> Iterator[str]:
    """Who has not reported since that time."""
    compute = {s.binary for s in cloud.compute.services() if s.state == "up" and (s.updated_at or "") >= since}
    yield from sorted(set(wanted["compute"]) - compute)
    heard = [a for a in cloud.network.agents() if a.is_alive and (a.last_heartbeat_at or "") >= since.replace("T", " ")]
    if len(heard) != wanted["agents"]:
        yield f"agents of Neutron ({len(heard)} of {wanted['agents']} have)"
    volume = [s for s in cloud.block_storage.services() if s.state == "up" and (s.updated_at or "") >= since]
    if len(volume) != wanted["volume"]:
        yield f"services of Cinder ({len(volume)} of {wanted['volume']} have)"


def wait(module: AnsibleModule, what: str, missing: Callable[[], str]) -> None:
    """Ask again until nothing is missing."""
    deadline = time.monotonic() + module.params["timeout"]
    while found := missing():
        if time.monotonic() > deadline:
            waited = module.params["timeout"]
            module.fail_json(msg=f"{what} after {waited} s: {found}. See also: journalctl on the machine cloud.")
        time.sleep(PAUSE)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "cloud": {"type": "str", "required": True},
            "clouds_file": {"type": "path", "required": True},
            "ca_file": {"type": "path", "required": True},
            "addresses": {"type": "list", "elements": "str", "required": True},
            "compute": {"type": "list", "elements": "str", "required": True},
            "agents": {"type": "int", "required": True},
            "volume": {"type": "int", "required": True},
            "timeout": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    import keystoneauth1.exceptions
    import openstack

    given = module.params
    begun = time.monotonic()
    context = ssl.create_default_context(cafile=given["ca_file"])
    for address in given["addresses"]:
        wait(module, "The cloud does not answer", lambda address=address: silent(address, context))

    config = openstack.config.OpenStackConfig(config_files=[given["clouds_file"]], load_envvars=False)
    cloud = openstack.connection.Connection(config=config.get_one(cloud=given["cloud"]))
    # the cloud's machine has this host's clock
    since = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S")

    def missing() -> str:
        try:
            return ", ".join(unreported(cloud, since, given))
        except (keystoneauth1.exceptions.ClientException, openstack.exceptions.SDKException) as error:
            return f"the answer: {error}"

    wait(module, "Not reported", missing)
    module.exit_json(changed=False, seconds=round(time.monotonic() - begun, 1))


if __name__ == "__main__":
    main()
