"""A lab in a temporary folder, and the stand-in cloud."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_services import FakeServices
from fake_terraform import FakeTerraform
from fakes import SSH_KEY, FakeCloud
from receivers import Hook, serving
from recorded import make_files

from labtrack import lab as labs
from labtrack import secrets
from labtrack.envfile import lifecycle
from labtrack.lab import Lab
from labtrack.provision.terraform import Place
from labtrack.tracking.server import Server

ROOT = Path(__file__).resolve().parents[2]
CA = "-----BEGIN CERTIFICATE-----\nMIIBlabCA\n-----END CERTIFICATE-----\n"
LAB = {
    "lab_name": "climate",
    "lab_fqdn": "mlflow.example.org",
    "lab_admins": [{"name": "ada", "ssh_keys": [SSH_KEY]}],
    "lab_admin_networks": ["203.0.113.0/24"],
    "lab_users": [{"name": "ada"}, {"name": "grace"}],
    "lab_cloud": "arbutus",
    "lab_bucket": "climate-mlflow",
    "lab_s3_endpoint": "https://s3.example.org",
}


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees the caller's credentials, settings, home folder or repository."""
    for name in os.environ:
        if name.startswith(("OS_", "AWS_", "MLFLOW_", "LABTRACK_", "GIT_", "ANSIBLE_")):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("LABTRACK_VAULT_PASSWORD_FILE", str(home / "vault-password"))
    for name in ("CONFIG_HOME", "CACHE_HOME", "STATE_HOME", "RUNTIME_DIR"):
        monkeypatch.delenv(f"XDG_{name}", raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """The first admin's checkout, and the vault password that both admins have."""
    import copied  # which takes the lab from here

    copied.use_password(monkeypatch, tmp_path / "password", "of the lab")
    return copied.deployed(tmp_path / "first")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A second admin's clone, with the same vault password."""
    import copied

    copied.use_password(monkeypatch, tmp_path / "password", "of the lab")
    return copied.checkout(tmp_path / "second")


@pytest.fixture
def lab_dir(tmp_path: Path) -> Path:
    """inventory/climate of a checkout, with its lab.yml and the CA that a deploy has put into private/."""
    folder = tmp_path / "checkout" / "inventory" / "climate"
    (folder / "group_vars" / "all").mkdir(parents=True)
    labs.lab_yml(folder).write_text(yaml.safe_dump(LAB, sort_keys=False))
    private = tmp_path / "checkout" / "private" / "climate"
    private.mkdir(mode=0o700, parents=True)
    (private / "ca.pem").write_text(CA)
    return folder


@pytest.fixture
def cloud() -> Iterator[FakeCloud]:
    """The stand-in cloud, running."""
    fake = FakeCloud()
    server = fake.start()
    yield fake
    server.shutdown()
    server.server_close()


@pytest.fixture
def lab(lab_dir: Path, cloud: FakeCloud) -> Lab:
    """The lab, with its store, and its entry of clouds.yaml, in the stand-in."""
    clouds_file = lab_dir.parents[1] / "clouds.yaml"
    auth = {
        "auth_url": f"{cloud.url}/v3",
        "username": "labadmin",
        "password": "right",
        "project_name": "climate",
        "user_domain_name": "Default",
        "project_domain_name": "Default",
    }
    clouds_file.write_text(yaml.safe_dump({"clouds": {"arbutus": {"auth": auth}}}))
    return dataclasses.replace(labs.load(lab_dir), s3_endpoint=cloud.url, clouds_file=clouds_file)


@pytest.fixture
def context(lab: Lab, cloud: FakeCloud) -> Callable[..., Iterator[lifecycle.Context]]:
    """Opens the lab's context, with the stand-in as the server: `with context() as opened`."""
    secrets.add(lab, {"secret_mlflow_admin_password": cloud.accounts["admin"]})

    def opened(**more: object) -> Iterator[lifecycle.Context]:
        return at(lab, cloud, **more)

    return opened


def at(lab: Lab, cloud: FakeCloud, **more: object) -> Iterator[lifecycle.Context]:
    """The context of a lab whose server is the stand-in."""

    @contextlib.contextmanager
    def opened() -> Iterator[lifecycle.Context]:
        with lifecycle.opened(lab, "a test", **more) as found:
            found.server = Server(cloud.url, "admin", cloud.accounts["admin"])
            yield found

    return opened()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key in the same file."""
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-addext", "keyUsage=critical,digitalSignature,keyCertSign", "-keyout", file, "-out", f"{file}.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    file.write_text(Path(f"{file}.crt").read_text() + file.read_text())
    return file


def nothing_was_made(lab: Lab, cloud: FakeCloud) -> bool:
    """Whether no key, account, file or note of one is there."""
    register = lab.private / "keys.json"
    keys = json.loads(register.read_text())["keys"] if register.exists() else []
    return (cloud.keys, list(cloud.accounts), lab.env_file("ada").exists(), keys) == ({}, ["admin"], False, [])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where `run` puts an mlruns folder."""
    return tmp_path / "mlruns"


@pytest.fixture
def run(root: Path) -> str:
    """The id of the first of three recorded runs."""
    return make_files(root, runs=3)[0]


@pytest.fixture
def services() -> Iterator[FakeServices]:
    """The services, running."""
    fake = FakeServices()
    server = fake.start()
    yield fake
    server.shutdown()
    server.server_close()


@pytest.fixture
def there(lab: Lab, services: FakeServices) -> Lab:
    """The lab in the project of the services."""
    entry = yaml.safe_load(lab.clouds_file.read_text())["clouds"]["arbutus"]
    entry["auth"]["auth_url"] = f"{services.url}/v3"
    lab.clouds_file.write_text(yaml.safe_dump({"clouds": {"arbutus": {**entry, "region_name": "R"}}}))
    wishes = dataclasses.replace(lab.machine, image="Debian-13", flavor="p2-3gb")
    return dataclasses.replace(lab, machine=wishes, fqdn="localhost")


@pytest.fixture
def terraform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTerraform:
    """The stand-in, first on PATH."""
    fake = FakeTerraform(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.folder}:{os.environ['PATH']}")
    return fake


@pytest.fixture
def place(there: Lab, terraform: FakeTerraform, services: FakeServices) -> Place:
    """The lab in the services' project, with the modules in its checkout; its port is the server's."""
    services.answers["/ports/p1$"] = (200, {"port": {"id": "p1", "device_id": "s1"}})
    source = there.root / "terraform"
    source.mkdir()
    (source / "versions.tf").write_text("")
    return Place.of(there)


@pytest.fixture
def hook() -> Iterator[Any]:
    """A receiver of alarms over HTTP."""
    server = Hook()
    with serving(server):
        yield server


@pytest.fixture
def alarms(tmp_path: Path, hook: Any) -> Any:
    """labtrack-alarm, with that receiver."""
    import alarm_receivers  # which takes the root from here

    return alarm_receivers.Alarms(tmp_path, hook)
