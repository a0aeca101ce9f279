"""The login for Terraform, the provider and OpenStack's other tools: the one that was resolved here, and no other.

Each of them reads clouds.yaml and the shell in its own way: gophercloud takes each OS_ variable of the shell in place
of the entry's, knows no keys outside of `auth`, no older names and no built-in profiles.  So they are given an entry
without any of that, and none of the shell's variables.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from openstack.config import OpenStackConfig
from openstack.connection import Connection

from labtrack import files
from labtrack.cloud.login import Login
from labtrack.errors import BadInputError
from labtrack.lab import Lab

ENTRY = "labtrack"  # in the clouds.yaml that is written
_SECRETS = ("password", "application_credential_id", "application_credential_name", "application_credential_secret")
_KEPT = ("region_name", "interface", "verify", "cacert", "cert", "key")
_KEPT_ENDS = ("_endpoint_override", "_service_type")


def entry(login: Login) -> dict[str, Any]:
    """The clouds.yaml entry of a login: with ids, so that nothing is left to names and domains.

    A way to log in that others may not know (single sign-on, a token of the shell) is passed on as its token.
    """
    config = login.region.config
    secrets = {name: config["auth"][name] for name in _SECRETS if config["auth"].get(name)}
    kept = {name: value for name, value in config.items() if value and (name in _KEPT or name.endswith(_KEPT_ENDS))}
    for name in ("cacert", "cert", "key"):
        if name in kept:
            kept[name] = str(Path(kept[name]).expanduser().absolute())
    auth: dict[str, Any] = {"auth_url": login.url}
    if login.delegated and "application_credential_secret" in secrets:
        secrets.pop("password", None)
        auth.update(secrets)
        if "application_credential_id" not in auth:
            auth["user_id"] = login.user_id
        kind = "v3applicationcredential"
    elif login.by_password:
        auth.update(user_id=login.user_id, password=secrets["password"], project_id=login.project_id)
        kind = "v3password"
    else:
        auth.update(token=login.session.get_token(), project_id=login.project_id)
        kind = "v3token"
    return {"auth_type": kind, "auth": auth, **kept, "verify": config.get("verify", True)}


def file_of(lab: Lab) -> Path:
    """Where a lab's resolved login is written."""
    return lab.private / "terraform" / "clouds.yaml"


def write(lab: Lab, login: Login) -> Path:
    """Writes that entry where only the admin looks, and says where."""
    file = file_of(lab)
    files.make_private_folder(lab.private)
    files.make_private_folder(file.parent)
    files.write_private(file, yaml.safe_dump({"clouds": {ENTRY: entry(login)}}).encode())
    return file


def environment(file: Path) -> dict[str, str]:
    """What has to be set, so that the entry is taken, and nothing of the shell's (an empty variable is none)."""
    unset = {name: "" for name in sorted(os.environ) if name.startswith("OS_")}
    return {**unset, "OS_CLOUD": ENTRY, "OS_CLIENT_CONFIG_FILE": str(file)}


def connect(lab: Lab) -> Connection:
    """The cloud, through the login that was written last, whatever the shell says.

    Raises BadInputError where none was written.
    """
    file = file_of(lab)
    if not file.is_file():
        raise BadInputError(f"{file} is not there.", f"`labtrack provision prepare {lab.shown_folder}` writes it.")
    settings = OpenStackConfig(config_files=[str(file)], vendor_files=[], secure_files=[], load_envvars=False)
    return Connection(config=settings.get_one(cloud=ENTRY, app_name="labtrack"))
