"""`labtrack init`: a lab.yml for a new lab, filled in with what its cloud has."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import jinja2
import yaml

from labtrack import labfile
from labtrack.cloud import cloudsfile, profiles
from labtrack.cloud.answers import explained
from labtrack.cloud.login import WAYS_OUT, login
from labtrack.errors import BadInputError
from labtrack.files import write_private
from labtrack.lab import lab_yml, root_of
from labtrack.newlab import name
from labtrack.newlab.ask import Found, ask


@dataclass(frozen=True)
class CloudEntry:
    """Which credentials to use."""

    cloud: str
    clouds_file: Path | None
    openrc: bool = False  # those of the shell


@dataclass(frozen=True)
class Made:
    """What a new lab.yml was filled in with."""

    found: Found
    name: name.Name

    @property
    def missing(self) -> list[str]:
        """The settings that are left to fill in."""
        return [key for key in self.found.missing if key != "lab_fqdn" or not self.name.fqdn]


def init(
    folder: Path,
    cloud: str | None = None,
    clouds_file: Path | None = None,
    fqdn: str = "",
    resolve: name.Resolver | None = None,
) -> Made:
    """Writes group_vars/all/lab.yml into `folder` (inventory/<lab>), and nothing else.

    fqdn: the server's name, where it is known: its certificate is chosen by what it resolves to.
    Raises BadInputError when there is one already, when the folder's name can't be a lab's or the server's none, or
    when there are no credentials; LabtrackError for what the cloud refuses.
    """
    folder = folder.resolve()
    file = lab_yml(folder)
    if file.exists():
        raise BadInputError(
            f"{file} is there already; it is not written over.",
            f"change it by hand (`labtrack preflight {folder}` checks it), or take another name.",
        )
    pattern = labfile.schema()["properties"]["lab_name"]
    if not re.match(pattern["pattern"], folder.name):
        raise BadInputError(
            f"A lab can't be named {folder.name!r}.",
            f"name the folder with {pattern['x-allowed']}: labtrack init inventory/climate",
        )
    fqdn = name.check(fqdn) if fqdn else ""
    entry = _entry(cloud, clouds_file)
    logged_in = login(entry, None if entry.openrc else entry.cloud)
    with explained("The cloud can't be asked what it has"):
        found = ask(logged_in)
    server = name.judge(fqdn, found.addresses, found.free_addresses, resolve) if fqdn else name.Name()
    names = {
        "lab_name": folder.name,
        "lab_cloud": entry.cloud,
        "openrc": entry.openrc,
        "lab_clouds_file": _shown(entry.clouds_file, root_of(folder)),
        "lab_s3_ca_file": _shown(found.s3_ca_file, root_of(folder)),
        "lab_bucket": f"{folder.name}-mlflow",
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_private(file, _template().render(found=found, server=server, **names).encode())
    return Made(found, server)


def _entry(cloud: str | None, clouds_file: Path | None) -> CloudEntry:
    """The credentials that were named, or those that OpenStack's own tools would take in this shell."""
    if cloud is None and clouds_file is None and os.environ.get("OS_AUTH_URL"):
        # the name is for those who come without the shell's variables: the dashboard's clouds.yaml calls it openstack
        known = profiles.of(os.environ["OS_AUTH_URL"]).name
        return CloudEntry("openstack" if known == profiles.GENERIC.name else known, None, openrc=True)
    named = os.environ.get("OS_CLIENT_CONFIG_FILE")
    if clouds_file is None and named:
        clouds_file = Path(named).expanduser()
        if not clouds_file.is_file():
            hint = "correct or unset OS_CLIENT_CONFIG_FILE, or name the file: --clouds-file FILE"
            raise BadInputError(f"OS_CLIENT_CONFIG_FILE names {clouds_file}, which is no file.", hint)
    return CloudEntry(cloud or _only_cloud(clouds_file), clouds_file)


def _only_cloud(clouds_file: Path | None) -> str:
    """The entry of clouds.yaml that OS_CLOUD names, or the only one."""
    if os.environ.get("OS_CLOUD"):
        return os.environ["OS_CLOUD"]
    names = cloudsfile.entries(clouds_file)
    if len(names) == 1:
        return names[0]
    if names:
        raise BadInputError(f"clouds.yaml has several entries: {', '.join(names)}.", "choose one: --cloud NAME")
    raise BadInputError(
        "No clouds.yaml was found, so there is no cloud to ask.",
        "put the one that your cloud's dashboard offers into ~/.config/openstack/clouds.yaml, source its openrc file, "
        f"or use {WAYS_OUT}",
    )


def _shown(path: Path | None, root: Path) -> str:
    if path is None:
        return ""
    path = path.resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("labtrack.newlab", "."),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 - YAML, not HTML: values pass through the filter `yaml`
    )
    environment.filters["yaml"] = _as_yaml
    return environment.get_template("lab.yml.j2")


def _as_yaml(value: object) -> str:
    """A value as YAML writes it in one line, in quotes only where it needs them."""
    plain = isinstance(value, str) and "#" not in value
    if plain and yaml.safe_load(f"key: {value}") == {"key": value}:
        return str(value)
    return json.dumps(value, ensure_ascii=False)
