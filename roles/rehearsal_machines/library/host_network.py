#!/usr/bin/python
"""Ansible module: a bridge with its address, routes and masquerading."""

from __future__ import annotations

import json
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: host_network
short_description: A bridge of the host, with routes through it and masquerading for what is behind it
description:
  - Lives in the kernel only, nothing is written to the host's network configuration.
  - An interface of that name that was not made by this module is never touched.
options:
  bridge: {type: str, required: true, description: Name of the bridge.}
  owner: {type: path, required: true, description: Written to the bridge as its alias; tells ours from others'.}
  address: {type: str, description: Address of the host with prefix length. Needed for C(state=present).}
  mtu: {type: int, description: Largest packet, so that nothing is too large for the host's way out.}
  routes: {type: list, elements: dict, default: [], description: "Each with C(to), a network, and C(via), an address."}
  table: {type: str, description: "Name of the nftables table (family ip)."}
  masquerade: {type: list, elements: str, default: [], description: Networks that reach the world through this host.}
  state: {type: str, choices: [present, absent], default: present, description: Make it or remove it.}
"""

EXAMPLES = r"""
- name: Make the rehearsal's network
  host_network:
    bridge: labtrack0
    owner: /root/.cache/labtrack/rehearsal
    address: 10.99.0.1/24
    table: labtrack
    masquerade: [10.99.0.0/24]
"""

RETURN = r"""
done: {type: list, returned: always, description: The commands that were needed.}
"""

FOREIGN = """There is an interface {bridge} already, which was not made by the rehearsal (its alias is "{alias}").
To fix: remove or rename it, then call this again."""

TABLE = """table ip {table} {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
{rules}
  }}
}}
"""


class Network:
    """The bridge and what belongs to it."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.bridge: str = module.params["bridge"]
        self.table: str = module.params["table"] or ""
        self.done: list[str] = []

    def run(self, *command: str, data: str | None = None) -> None:
        self.done.append(" ".join(command))
        if not self.module.check_mode:
            self.module.run_command(list(command), check_rc=True, data=data)

    def ask(self, *command: str) -> list[dict]:
        """What `ip -json` says; nothing if the object is not there."""
        code, out, _ = self.module.run_command(["ip", "-json", *command])
        return [entry for entry in json.loads(out or "[]") if entry] if code == 0 else []

    def alias(self) -> str | None:
        """The bridge's alias; None without such an interface."""
        interface = Path("/sys/class/net", self.bridge)
        return (interface / "ifalias").read_text().strip() if interface.exists() else None

    def rules(self) -> str:
        """The table as nft should be told.  Only what leaves through other interfaces is masqueraded."""
        rules = [
            f'    ip saddr {net} oifname != "{self.bridge}" masquerade' for net in self.module.params["masquerade"]
        ]
        return TABLE.format(table=self.table, rules="\n".join(rules))

    def present_table(self) -> str | None:
        code, out, _ = self.module.run_command(["nft", "--stateless", "list", "table", "ip", self.table])
        return out if code == 0 else None

    def make(self) -> None:
        owner = self.module.params["owner"]
        alias = self.alias()
        if alias not in (None, "", owner):
            self.module.fail_json(msg=FOREIGN.format(bridge=self.bridge, alias=alias))
        if alias is None:
            mtu = ["mtu", str(self.module.params["mtu"])] if self.module.params["mtu"] else []
            self.run("ip", "link", "add", "name", self.bridge, *mtu, "type", "bridge")
        if alias != owner:
            self.run("ip", "link", "set", "dev", self.bridge, "alias", owner)
        link = self.ask("address", "show", "dev", self.bridge)
        addresses = [f"{a['local']}/{a['prefixlen']}" for entry in link for a in entry.get("addr_info", [])]
        if self.module.params["address"] not in addresses:
            self.run("ip", "address", "add", self.module.params["address"], "dev", self.bridge)
        if not link or "UP" not in link[0]["flags"]:
            self.run("ip", "link", "set", "dev", self.bridge, "up")
        for route in self.module.params["routes"]:
            if not self.ask("route", "show", "exact", route["to"], "via", route["via"], "dev", self.bridge):
                self.run("ip", "route", "replace", route["to"], "via", route["via"], "dev", self.bridge)
        self.make_table()

    def make_table(self) -> None:
        """Load the table if it is not there, or differs: compared in nft's own words."""
        # the addition before the deletion makes the deletion valid where there is no table yet
        there, wanted = self.present_table(), self.rules()
        if there is None or there.split() != wanted.split():
            fresh = f"add table ip {self.table}\ndelete table ip {self.table}\n{wanted}"
            self.run("nft", "--file", "-", data=fresh)

    def remove(self) -> None:
        if self.table and self.present_table() is not None:
            self.run("nft", "delete", "table", "ip", self.table)
        if self.alias() in ("", self.module.params["owner"]):
            self.run("ip", "link", "delete", "dev", self.bridge)  # its address and routes go with it


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "bridge": {"type": "str", "required": True},
            "owner": {"type": "path", "required": True},
            "address": {"type": "str"},
            "mtu": {"type": "int"},
            "routes": {"type": "list", "elements": "dict", "default": []},
            "table": {"type": "str"},
            "masquerade": {"type": "list", "elements": "str", "default": []},
            "state": {"type": "str", "default": "present", "choices": ["present", "absent"]},
        },
        required_if=[("state", "present", ("address", "table"))],
        supports_check_mode=True,
    )
    network = Network(module)
    if module.params["state"] == "present":
        network.make()
    else:
        network.remove()
    module.exit_json(changed=bool(network.done), done=network.done)


if __name__ == "__main__":
    main()
