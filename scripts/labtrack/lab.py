"""A lab: what its lab.yml says, and where its files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labtrack import labfile, sshkeys
from labtrack.errors import BadInputError

VERIFY_USER = "labtrack-verify"
DRILL_USER = "labtrack-drill"  # which the server has while a drill is at work
SERVER_OWNER = "server"
ADMIN_USER = "admin"
MADE_HERE = "Written by playbooks/provision.yml"  # in the first line of a hosts.yml that may be written again


@dataclass(frozen=True)
class User:
    """A researcher of the lab, as lab.yml lists them."""

    name: str
    present: bool


@dataclass(frozen=True)
class Machine:
    """What the kit makes the server from, where it makes one.  Empty or 0: not given."""

    image: str
    flavor: str
    external_network: str
    network: str
    router: str
    network_cidr: str
    floating_ip: str
    key_pair: str
    data_volume: str  # none, manage, or the one to use
    data_volume_gb: int
    boot_volume_gb: int
    bucket_manage: bool
    bucket_versioning: bool

    @property
    def needs_volumes(self) -> bool:
        """Whether the cloud must have Cinder."""
        return self.data_volume != "none" or self.boot_volume_gb > 0


@dataclass(frozen=True)
class Lab:
    """The settings of one lab that the kit's own tools need, with the defaults filled in."""

    folder: Path
    root: Path
    name: str
    fqdn: str
    admin_networks: tuple[str, ...]
    users: tuple[User, ...]
    shared_experiments: tuple[str, ...]
    gateways: tuple[str, ...]
    cloud: str
    clouds_file: Path | None
    bucket: str
    s3_endpoint: str
    s3_region: str
    s3_ca_file: Path | None
    artifact_access: str
    clients_reach_store: bool
    certificate: str
    key_grace: float  # seconds
    machine: Machine
    settings: Mapping[str, Any] = field(repr=False)  # all of lab.yml's, with the defaults; None: not given
    certificate_file: Path | None = None
    certificate_key_file: Path | None = None
    acme_ca_file: Path | None = None
    acme_eab_kid: str = ""

    @property
    def url(self) -> str:
        """The server's address, as everybody uses it."""
        return f"https://{self.fqdn}"

    @property
    def direct(self) -> bool:
        """Whether researchers' programs write to the store themselves."""
        return self.artifact_access == "direct"

    @property
    def private(self) -> Path:
        """What only the lab's admin holds: keys, files of people, the register."""
        return self.root / "private" / self.name

    @property
    def secrets_file(self) -> Path:
        """The lab's generated secrets, encrypted."""
        return self.folder / "group_vars" / "all" / "secrets.yml"

    @property
    def own_machine(self) -> bool:
        """Whether the lab brought its machine: its hosts.yml is there, and playbooks/provision.yml didn't write it."""
        try:
            with (self.folder / "hosts.yml").open(encoding="utf-8", errors="replace") as file:
                return MADE_HERE not in file.readline()
        except FileNotFoundError:
            return False

    @property
    def keys_file(self) -> Path:
        """The register of keys: whose each is.  It holds no secret."""
        return self.private / "keys.json"

    @property
    def public_keys(self) -> tuple[str, ...]:
        """The SSH keys of the admins who are there, each once."""
        return tuple(sshkeys.of_admins(self.settings["lab_admins"], self.root))

    @property
    def own_key(self) -> Path:
        """A private SSH key that only this lab uses; most use the admin's own."""
        return self.private / "id_ed25519"

    @property
    def ca_file(self) -> Path:
        """Where the CA of the server's certificate is, when that is the lab's own, or an admin has put one there."""
        return self.private / "ca.pem"

    @property
    def server_ca(self) -> Path | None:
        """The CA by which the server is trusted, as far as it is there; None where its certificate is a public one.

        What an earlier lab_certificate has left in ca.pem is not it.
        """
        if self.certificate == "acme":
            return self.acme_ca_file
        if not self.ca_file.is_file():
            return None
        if self.certificate == "provided" and self.certificate_file:
            from labtrack import certificates

            return self.ca_file if certificates.signs(self.ca_file, self.certificate_file) else None
        return self.ca_file

    def env_file(self, user: str) -> Path:
        """Where a person's mlflow_env.sh is kept."""
        return self.private / user / "mlflow_env.sh"

    @property
    def shown_folder(self) -> str:
        """The lab's folder as one types it at the repository's root."""
        try:
            return str(self.folder.relative_to(self.root))
        except ValueError:
            return str(self.folder)


def lab_yml(folder: Path) -> Path:
    """The one configuration file of a lab."""
    return folder / "group_vars" / "all" / "lab.yml"


def root_of(folder: Path) -> Path:
    """The repository that a lab's folder (inventory/<lab>) belongs to; relative paths start there."""
    return folder.resolve().parent.parent


def load(folder: Path) -> Lab:
    """The lab in `folder` (inventory/<lab>).  Raises BadInputError with every problem of lab.yml."""
    if not folder.is_dir():
        raise BadInputError(f"There is no lab {folder}.", "Name the lab's folder, like inventory/rehearsal.")
    folder, root = folder.resolve(), root_of(folder)
    read = labfile.read(lab_yml(folder))
    problems = labfile.check(read, folder, root)
    if problems:
        what = "\n".join(f"{problem.place}: {problem.what}\n    {problem.hint}" for problem in problems)
        raise BadInputError(what, f"change what is said above; `labtrack preflight {folder}` looks again.")
    return _lab(labfile.completed(read.data), folder, root)


def _lab(data: Mapping[str, Any], folder: Path, root: Path) -> Lab:
    def path(key: str) -> Path | None:
        return labfile.expand(data[key], root) if data[key] else None

    return Lab(
        folder=folder,
        root=root,
        name=data["lab_name"],
        fqdn=data["lab_fqdn"],
        admin_networks=tuple(data["lab_admin_networks"]),
        users=tuple(User(u["name"], u.get("state", "present") == "present") for u in data["lab_users"]),
        shared_experiments=tuple(data["lab_shared_experiments"]),
        gateways=tuple(data["lab_gateways"]),
        cloud=data["lab_cloud"],
        clouds_file=path("lab_clouds_file"),
        bucket=data["lab_bucket"],
        s3_endpoint=data["lab_s3_endpoint"].rstrip("/"),
        s3_region=data["lab_s3_region"],
        s3_ca_file=path("lab_s3_ca_file"),
        artifact_access=data["lab_artifact_access"],
        clients_reach_store=data["lab_clients_reach_store"],
        certificate=data["lab_certificate"],
        key_grace=labfile.seconds(data["lab_key_grace"]),
        machine=Machine(
            image=data["lab_image"] or "",
            flavor=data["lab_flavor"] or "",
            external_network=data["lab_external_network"] or "",
            network=data["lab_network"] or "",
            router=data["lab_router"] or "",
            network_cidr=data["lab_network_cidr"],
            floating_ip=data["lab_floating_ip"] or "",
            key_pair=data["lab_key_pair"] or "",
            data_volume=data["lab_data_volume"],
            data_volume_gb=data["lab_data_volume_gb"],
            boot_volume_gb=data["lab_boot_volume_gb"] or 0,
            bucket_manage=data["lab_bucket_manage"],
            bucket_versioning=data["lab_bucket_versioning"],
        ),
        settings=data,
        certificate_file=path("lab_certificate_file"),
        certificate_key_file=path("lab_certificate_key_file"),
        acme_ca_file=path("lab_acme_ca_file"),
        acme_eab_kid=data["lab_acme_eab_kid"] or "",
    )
