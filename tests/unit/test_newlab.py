"""`labtrack init`: what it refuses, and the lab.yml that it writes."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_openstack import MINE, FakeOpenStack, thing
from fakes import SSH_KEY, FakeCloud
from openstack.exceptions import HttpException

from labtrack import labfile, newlab
from labtrack.cloud.login import login
from labtrack.errors import BadInputError, LabtrackError
from labtrack.lab import Lab, lab_yml
from labtrack.newlab.ask import Found

choices = importlib.import_module("labtrack.newlab.ask")  # the package has a function of that name
NOTHING = Found(
    title="a cloud", admin="ada", ssh_key_files=[], image="", flavor="", external_network="", external_networks=[],
    router="", addresses=[], free_addresses=[], data_volume="none", artifact_access="proxied", s3_endpoint="",
    s3_region="", s3_ca_file=None,
)  # fmt: skip
ALL = replace(
    NOTHING, ssh_key_files=["~/.ssh/id_ed25519.pub"], image="Debian #13: x", flavor="p2-3gb", external_network="Public",
    router="yes", addresses=["203.0.113.4"], free_addresses=["203.0.113.4"],
    data_volume="manage", artifact_access="direct", s3_endpoint="https://s3.example.org",
    s3_region="RegionOne",
)  # fmt: skip


def written(found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> labfile.LabFile:
    """The lab.yml that init writes for what was found."""
    monkeypatch.setattr(newlab, "login", lambda *_: None)
    monkeypatch.setattr(newlab, "ask", lambda _: found)
    folder = tmp_path / "inventory" / "climate"
    newlab.init(folder, "arbutus")
    return labfile.read(lab_yml(folder))


@pytest.mark.parametrize("found", [NOTHING, ALL], ids=["nothing", "all"])
def test_only_what_is_said_to_be_missing_is_missing(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / ".ssh"
    home.mkdir(parents=True, exist_ok=True)
    (home / "id_ed25519.pub").write_text(f"{SSH_KEY} ada\n")
    read = written(found, tmp_path, monkeypatch)
    problems = labfile.check(read, tmp_path / "inventory" / "climate", tmp_path)
    lines = read.path.read_text().splitlines()
    named = {key for key in found.missing if any(key in p.what for p in problems)}
    assert named == set(found.missing)
    assert all("FILL IN" in lines[problem.line - 1] for problem in problems), problems
    assert len(problems) == len(found.missing)


def test_what_was_found_is_written_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(ALL, tmp_path, monkeypatch).data
    assert data["lab_image"] == "Debian #13: x" and data["lab_router"] == "yes" and data["lab_s3_region"] == "RegionOne"
    assert data["lab_data_volume"] == "manage" and data["lab_bucket"] == "climate-mlflow"
    assert data["lab_artifact_access"] == "direct"
    (tmp_path / "other").mkdir()
    assert written(NOTHING, tmp_path / "other", monkeypatch).data["lab_artifact_access"] == "proxied"


def test_a_lab_that_is_there_is_not_written_over(lab_dir: Path) -> None:
    before = lab_yml(lab_dir).read_text()
    with pytest.raises(BadInputError, match="not written over"):
        newlab.init(lab_dir)
    assert lab_yml(lab_dir).read_text() == before


@pytest.mark.parametrize("name", ["Climate", "a b", "-x", "x"])
def test_a_name_that_no_lab_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="can't be named"):
        newlab.init(tmp_path / name)
    assert not list(tmp_path.rglob("lab.yml"))


def test_several_clouds_and_none_chosen(tmp_path: Path) -> None:
    clouds = tmp_path / "clouds.yaml"
    clouds.write_text("clouds: {one: {auth: {auth_url: x}}, two: {auth: {auth_url: x}}}")
    with pytest.raises(BadInputError, match="several entries: one, two"):
        newlab.init(tmp_path / "climate", clouds_file=clouds)


def test_no_cloud_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match="No clouds"):
        newlab.init(tmp_path / "climate")


class TestName:
    """The server's name, and the certificate that it can have."""

    FREE, USED, INSIDE = "132.205.7.4", "132.205.7.5", "10.1.2.3"

    def made(self, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[labfile.LabFile, Any]:
        has = replace(ALL, addresses=[self.FREE, self.USED, self.INSIDE], free_addresses=[self.FREE, self.INSIDE])
        monkeypatch.setattr(newlab, "login", lambda *_: None)
        monkeypatch.setattr(newlab, "ask", lambda _: has)
        folder = tmp_path / "inventory" / "climate"
        made = newlab.init(folder, "arbutus", fqdn="MLflow.Example.org.", resolve={"mlflow.example.org": found}.get)
        return labfile.read(lab_yml(folder)), made

    def test_a_public_address_that_is_free(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        read, made = self.made([self.FREE], tmp_path, monkeypatch)
        assert read.data["lab_fqdn"] == "mlflow.example.org" and read.data["lab_certificate"] == "acme"
        assert read.data["lab_floating_ip"] == self.FREE and made.missing == ["lab_admin_networks"]
        assert f"resolves to {self.FREE}, a public floating IP" in read.path.read_text()
        told = [problem.what for problem in labfile.check(read, read.path.parents[2], tmp_path)]
        assert all("lab_admin" in what for what in told), told

    @pytest.mark.parametrize(
        ("found", "why"),
        [
            ([], "does not resolve"),
            (["198.51.100.9"], "no floating IP of the project is 198.51.100.9"),
            ([FREE, "2001:db8::1"], "no floating IP of the project is 2001:db8::1"),
            ([USED], "which something else of the project has already"),
            ([FREE, INSIDE], "a server has one of them"),
            ([INSIDE], "no address of the public internet"),
        ],
    )
    def test_what_no_directory_could_reach(
        self, found: list[str], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read, made = self.made(found, tmp_path, monkeypatch)
        assert read.data["lab_certificate"] == "selfsigned" and why in made.name.why
        assert made.name.why in read.path.read_text()
        assert read.data.get("lab_floating_ip") == (self.INSIDE if found == [self.INSIDE] else None)

    @pytest.mark.parametrize("fqdn", ["mlflow", "https://mlflow.example.org", "10.0.0.1", "a b.org"])
    def test_what_is_no_name(self, fqdn: str, tmp_path: Path) -> None:
        with pytest.raises(BadInputError, match="can't be named") as raised:
            newlab.init(tmp_path / "climate", "arbutus", fqdn=fqdn)
        assert "--fqdn" in raised.value.hint and not list(tmp_path.rglob("lab.yml"))


class TestCredentials:
    """init logs in as OpenStack's own tools would in this shell."""

    def made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **given: Any) -> tuple[dict[str, Any], list[Any]]:
        """The lab.yml, and what was logged in with."""
        asked: list[Any] = []
        monkeypatch.setattr(newlab, "login", lambda *of: asked.append(of))
        monkeypatch.setattr(newlab, "ask", lambda _: ALL)
        folder = tmp_path / "inventory" / "climate"
        newlab.init(folder, **given)
        return labfile.read(lab_yml(folder)).data, asked

    def test_an_openrc_file_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("OS_AUTH_URL", "https://identity.arbutus.alliancecan.ca/v3")
        data, asked = self.made(tmp_path, monkeypatch)
        assert data["lab_cloud"] == "arbutus" and "lab_clouds_file" not in data
        assert [cloud for _, cloud in asked] == [None]  # the shell's

    def test_an_openrc_file_of_a_cloud_that_nobody_knows(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OS_AUTH_URL", "https://cloud.example.org/v3")
        assert self.made(tmp_path, monkeypatch)[0]["lab_cloud"] == "openstack"

    def test_a_clouds_yaml_that_the_shell_names(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "my-clouds.yaml"
        file.write_text("clouds: {nibi: {auth: {auth_url: x}}}")
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(file))
        data, asked = self.made(tmp_path, monkeypatch)
        assert data["lab_cloud"] == "nibi" and data["lab_clouds_file"] == "my-clouds.yaml"
        assert [cloud for _, cloud in asked] == ["nibi"]
        monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "lost.yaml"))
        with pytest.raises(BadInputError, match=r"OS_CLIENT_CONFIG_FILE names .*lost\.yaml, which is no file"):
            newlab.init(tmp_path / "inventory" / "second")

    def test_what_is_named_wins_over_the_shell(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "clouds.yaml"
        file.write_text("clouds: {one: {auth: {auth_url: x}}}")
        monkeypatch.setenv("OS_AUTH_URL", "https://cloud.example.org/v3")
        data, asked = self.made(tmp_path, monkeypatch, clouds_file=file)
        assert data["lab_cloud"] == "one" and [cloud for _, cloud in asked] == ["one"]

    def test_a_clouds_yaml_that_is_none(self, tmp_path: Path) -> None:
        file = tmp_path / "clouds.yaml"
        file.write_text("clouds:\n\tone: {}\n")
        with pytest.raises(BadInputError, match="no YAML in line 2"):
            newlab.init(tmp_path / "climate", clouds_file=file)

    def test_a_service_that_refuses(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_: object) -> Found:
            raise HttpException("no", http_status=403)

        monkeypatch.setattr(newlab, "login", lambda *_: None)
        monkeypatch.setattr(newlab, "ask", refuse)
        with pytest.raises(LabtrackError, match="403") as raised:
            newlab.init(tmp_path / "climate", "arbutus")
        assert "access rules" in raised.value.hint and not list(tmp_path.rglob("lab.yml"))


class TestChoices:
    """What init takes of what the cloud has."""

    def test_the_image(self) -> None:
        cloud = FakeOpenStack()
        snapshot = {"properties": {"image_type": "snapshot"}}
        cloud.images = [
            thing("Debian-13-mine", status="active", created_at="2026-09", **snapshot),
            thing("Debian-13-daily", status="active"), thing("Debian-13-arm64", status="active"),
            thing("Debian-11", status="active"), thing("Debian-12", status="active"),
            thing("Debian-13", status="active"),
        ]  # fmt: skip
        chosen = []
        while image := choices._image(cloud):
            chosen.append(image)
            cloud.images = [one for one in cloud.images if one.name != image]
        assert chosen == ["Debian-13", "Debian-12", "Debian-13-daily"]

    def test_an_application_credential_makes_no_keys(self, lab: Lab, cloud: FakeCloud) -> None:
        assert choices._makes_keys(login(lab))
        assert not choices._makes_keys(replace(login(lab), delegated=True))

    def test_a_router_is_joined_only_where_no_other_can_be_made(self) -> None:
        cloud, mine = FakeOpenStack(), SimpleNamespace(project_id=MINE)
        cloud.details = None  # without the extension that counts
        for limit, joined in ((2, ""), (-1, ""), (1, "def-router")):
            cloud.quota = {"routers": limit}
            assert choices._router_to_join(cloud, mine) == joined
        cloud.routers.append(thing("without a gateway"))
        cloud.quota = {"routers": 2}
        assert choices._router_to_join(cloud, mine) == "def-router"
        cloud.routers[1] = thing("def-router", external_gateway_info={"network_id": "x"})
        assert choices._router_to_join(cloud, mine) == cloud.routers[0].id
