#!/usr/bin/python
"""Ansible module: how this host reaches package archives, so that its machines can do the same."""

from __future__ import annotations

import configparser
import io
import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: outward_access
short_description: Find out how this host reaches packages
description:
  - Users behind a mirror, a proxy or an inspecting firewall have told their host; machines on it need the same.
  - Reads apt's sources and settings, pip's configuration, the local certificate authorities and the name servers.
options: {}
"""

EXAMPLES = r"""
- name: Find out how this host reaches packages
  outward_access:
  register: access
"""

RETURN = r"""
mirror: {type: str, returned: always, description: Where Debian's packages come from.}
security_mirror: {type: str, returned: always, description: Where Debian's security updates come from.}
apt_conf: {type: list, returned: always, description: Settings of apt that decide whether an archive is reached.}
pip_conf: {type: str, returned: always, description: "Content of a pip.conf, may be empty."}
certificates: {type: dict, returned: always, description: Local certificate authorities by file name.}
nameservers: {type: list, returned: always, description: Addresses of name servers that a machine can reach.}
resolv_conf: {type: str, returned: always, description: Content of a resolv.conf.}
environment: {type: dict, returned: always, description: Proxy variables.}
"""

# Settings that decide if an archive can be reached; the others are the host's own business.
REACH = ("http", "https", "ForceIPv4", "ForceIPv6", "Check-Valid-Until", "Check-Date", "Retries", "Max-Future-Time")
PIP_KEYS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout")
PIP_FILES = ("/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")
AUTHORITIES = Path("/usr/local/share/ca-certificates")
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def mirrors(module: AnsibleModule) -> tuple[str, str]:
    """The host's own Debian mirrors, as apt understands its sources; Debian's where the host is not a Debian."""
    form = "$(RELEASE) $(REPO_URI)"
    code, out, _ = module.run_command(["apt-get", "indextargets", "--format", form, "Created-By: Packages"])
    found = {}
    for line in out.splitlines() if code == 0 else []:
        release, _, uri = line.partition(" ")
        uri = uri.rstrip("/")
        if uri.startswith(("http:", "https:")) and "debian" in uri:
            kind = "security" if release.endswith("-security") else "main" if "-" not in release else None
            found.setdefault(kind, uri)
    if "main" not in found:
        raise ValueError("apt has no Debian archive here. To fix: run the rehearsal on a Debian machine.")
    # mirrors keep the security archive beside the main one
    return found["main"], found.get("security", f"{found['main'].rstrip('/')}-security")


def apt_conf(module: AnsibleModule) -> list[str]:
    """apt's settings about reaching archives, in apt's own canonical form."""
    _, out, _ = module.run_command(["apt-config", "dump", "--format", '%F "%v";%n', "Acquire"], check_rc=True)
    kept = []
    for line in out.splitlines():
        name, _, value = line.partition(" ")
        if name.split("::")[1:2] and name.split("::")[1] in REACH and value != '"";':
            kept.append(line)
    return sorted(kept)


def pip_conf() -> str:
    """pip's settings about its index, from files and environment, with the certificates that machines get."""
    settings: dict[str, str] = {}
    for name in PIP_FILES:
        parser = configparser.RawConfigParser()
        try:
            parser.read(Path(name).expanduser())
        except configparser.Error:
            continue
        if parser.has_section("global"):
            settings |= {key: value for key, value in parser.items("global") if key in PIP_KEYS}
    for key in PIP_KEYS:
        value = os.environ.get("PIP_" + key.upper().replace("-", "_"))
        if value:
            settings[key] = value
    # pip's own list lacks local authorities; the machines' bundle has them
    settings["cert"] = BUNDLE
    parser = configparser.RawConfigParser()
    parser["global"] = settings
    text = io.StringIO()
    parser.write(text)
    return text.getvalue().strip() + "\n"


def resolv_conf() -> str:
    """The name servers in use; not a stub on this host's own loopback, which a machine can't reach."""
    for name in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        try:
            text = Path(name).read_text()
        except OSError:
            continue
        if any(not server.startswith("127.") for server in servers(text)):
            return text
    return "nameserver 9.9.9.9\n"


def servers(text: str) -> list[str]:
    return [line.split()[1] for line in text.splitlines() if line.startswith("nameserver ")]


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    mirror, security = mirrors(module)
    resolv = resolv_conf()
    module.exit_json(
        changed=False,
        mirror=mirror,
        security_mirror=security,
        apt_conf=apt_conf(module),
        pip_conf=pip_conf(),
        certificates={path.name: path.read_text() for path in sorted(AUTHORITIES.glob("**/*.crt"))},
        nameservers=[server for server in servers(resolv) if not server.startswith("127.")],
        resolv_conf=resolv,
        environment={name: os.environ[name] for name in PROXY_VARIABLES if name in os.environ},
    )


if __name__ == "__main__":
    main()
