"""What preflight says of a project: as Terraform would, and before it.  The cloud is `fake_openstack`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_openstack
import pytest
import requests
from fake_openstack import FakeOpenStack, refused, thing
from fakes import SSH_KEY
from openstack.exceptions import raise_from_response

from labtrack.cloud import preflight
from labtrack.cloud.preflight import identity, machine, network, quota
from labtrack.cloud.preflight.context import Context
from labtrack.cloud.profiles import GENERIC
from labtrack.doctor.result import Result, Status
from labtrack.lab import Lab


@pytest.fixture
def project() -> FakeOpenStack:
    """An ordinary project."""
    return FakeOpenStack()


def context(lab: Lab, project: FakeOpenStack, **wishes: Any) -> Context:
    """The context of a lab that names an image and a flavor."""
    return fake_openstack.context(lab, project, **{"image": "Debian-13", "flavor": "p2-3gb", **wishes})


def answer(status: int, said: Any, url: str = "https://cloud:9696/v2.0/networks") -> Exception:
    """What openstacksdk raises for an answer of a service."""
    response = requests.Response()
    response.status_code, response.url = status, url
    response.request = requests.Request("GET", url).prepare()
    response.headers["Content-Type"] = "application/json"
    response.json = lambda **_: said  # type: ignore[method-assign]
    try:
        raise_from_response(response)
    except Exception as error:
        return error
    raise AssertionError(status)


class TestImages:
    """lab_image."""

    def test_the_newest_of_a_name(self, lab: Lab, project: FakeOpenStack) -> None:
        assert machine.image(context(lab, project)).seen == "Debian-13"
        project.images.append(thing("Debian-13", status="active", created_at="2026-05-05T00:00:00Z"))
        row = machine.image(context(lab, project))
        assert row.status is Status.OK and "newest of 2" in row.seen and "2026-05-05" in row.seen

    def test_one_that_is_not_ready(self, lab: Lab, project: FakeOpenStack) -> None:
        project.images[0].status = "saving"
        refused(machine.image(context(lab, project)), "is saving", "Wait")

    def test_one_that_the_flavor_is_too_small_for(self, lab: Lab, project: FakeOpenStack) -> None:
        project.flavors.append(thing("p4-15gb", vcpus=4, ram=15360, disk=20))
        project.images[0].min_ram = 8192
        refused(machine.flavor(context(lab, project)), "wants 8192 MB", "p4-15gb")
        project.images[0].min_ram, project.images[0].min_disk = 0, 30
        refused(machine.flavor(context(lab, project)), "wants a disk of 30 GB", "lab_flavor")
        assert machine.flavor(context(lab, project, boot_volume_gb=30)).status is Status.OK

    @pytest.mark.parametrize(
        ("about", "seen"),
        [
            ({"properties": {"image_type": "snapshot"}}, "snapshot of a server"),
            ({"properties": {"base_image_ref": "x"}}, "snapshot of a server"),
            ({"architecture": "aarch64"}, "is for aarch64"),
        ],
    )
    def test_one_that_nobody_should_want(
        self, lab: Lab, project: FakeOpenStack, about: dict[str, Any], seen: str
    ) -> None:
        for key, value in about.items():
            setattr(project.images[0], key, value)
        row = machine.image(context(lab, project))
        assert row.status is Status.WARNING and seen in row.seen and "lab_image" in row.hint

    def test_a_snapshot_that_is_the_newest_of_its_name(self, lab: Lab, project: FakeOpenStack) -> None:
        plain = project.images[0].id
        project.images.append(
            thing("Debian-13", status="active", created_at="2026-05", properties={"image_type": "snapshot"})
        )
        row = machine.image(context(lab, project))
        assert row.status is Status.WARNING and "snapshot" in row.seen and plain in row.hint
        assert machine.debians(project) == [plain]

    def test_what_init_chooses(self, project: FakeOpenStack) -> None:
        def active(name: str, **about: Any) -> Any:
            return thing(name, status="active", **about)

        project.images = [
            active("Debian-14-daily"), active("debian-12-bookworm"), active("Debian-13-arm64"), active("Debian-11"),
            active("Debian-13-genericcloud-amd64-daily"), active("my Debian-13", properties={"image_type": "snapshot"}),
            active("debian-trixie"), active("other", os_distro="debian", os_version="13"),
            thing("Debian-13", status="queued"),
        ]  # fmt: skip
        names = [name for name, _ in machine.debian_images(project)]
        assert names[:4] == ["other", "debian-trixie", "debian-12-bookworm", "Debian-13-genericcloud-amd64-daily"]
        assert not {"Debian-13-arm64", "my Debian-13", "Debian-13"} & set(names)


class TestNames:
    """Things that have the lab's names already."""

    def judged(self, lab: Lab, project: FakeOpenStack) -> list[Result]:
        return list(machine.lab_names(context(lab, project)))

    def state(self, lab: Lab) -> Path:
        file = lab.private / "terraform.tfstate"
        file.write_text("{}")
        return file

    def test_nothing_and_one_of_each(self, lab: Lab, project: FakeOpenStack) -> None:
        (row,) = self.judged(lab, project)
        assert row.seen == "nothing has them yet"
        project.servers.append(thing("climate-mlflow", status="ACTIVE"))
        project.ports.append(thing("climate-mlflow", device_id=project.servers[0].id, device_owner="compute:nova"))
        (row,) = self.judged(lab, project)
        assert row.status is Status.OK and row.seen == "there already: port, server (what the run finds, it takes over)"
        self.state(lab)
        assert self.judged(lab, project)[0].seen == "there already: port, server"

    @pytest.mark.parametrize(
        ("where", "name", "kind"),
        [
            ("networks", "climate-network", "network"), ("subnets", "climate-subnet", "subnet"),
            ("routers", "climate-router", "router"), ("groups", "climate-server", "security group"),
            ("ports", "climate-mlflow", "port"), ("servers", "climate-mlflow", "server"),
        ],
    )  # fmt: skip
    def test_two_of_a_name(self, lab: Lab, project: FakeOpenStack, where: str, name: str, kind: str) -> None:
        getattr(project, where).extend(thing(name, status="ACTIVE", device_owner="") for _ in range(2))
        (row,) = self.judged(lab, project)
        refused(row, f"2 of the kind {kind}", f"openstack {kind} show")
        self.state(lab)  # which knows the right one
        (row,) = self.judged(lab, project)
        assert row.status is Status.WARNING
        (lab.private / "terraform").mkdir()
        (lab.private / "terraform" / "unfinished").touch()
        assert self.judged(lab, project)[0].status is Status.FAILED

    def test_of_several_floating_ips_the_one_on_the_labs_port(self, lab: Lab, project: FakeOpenStack) -> None:
        project.ips = [thing("", description="labtrack: climate", floating_ip_address=f"203.0.113.{n}") for n in (1, 2)]
        (row,) = self.judged(lab, project)
        refused(row, "2 of the kind floating IP", "openstack floating ip set --description")
        assert network.floating_ip(context(lab, project)).status is Status.SKIPPED
        project.ports.append(thing("climate-mlflow", device_owner=""))
        project.ips[1].port_id = project.ports[-1].id
        (row,) = self.judged(lab, project)
        assert row.status is Status.OK
        assert network.floating_ip(context(lab, project)).seen == "203.0.113.2"

    def test_a_port_that_another_machine_has(self, lab: Lab, project: FakeOpenStack) -> None:
        project.ports.append(thing("climate-mlflow", device_id="another", device_owner="compute:nova"))
        (row,) = self.judged(lab, project)
        refused(row, "belongs to another machine (another)", "openstack port set --name")

    def test_a_port_in_another_network(self, lab: Lab, project: FakeOpenStack) -> None:
        project.ports.append(thing("climate-mlflow", device_owner="", network_id=project.networks[1].id))
        (row,) = self.judged(lab, project)
        refused(row, "is in another network", "openstack port set --name")
        (row,) = machine.lab_names(context(lab, project, network="def-net"))
        assert row.status is Status.OK

    def test_another_labs_things_are_nobodys_business(self, lab: Lab, project: FakeOpenStack) -> None:
        project.routers += [thing("climate-router", project_id="theirs") for _ in range(2)]
        (row,) = self.judged(lab, project)
        assert row.status is Status.OK


class TestKeyPairs:
    """The key pair that is made has the lab's name."""

    def test_one_of_that_name(self, lab: Lab, project: FakeOpenStack) -> None:
        assert machine.key_pair(context(lab, project)).seen == "made from the first admin's key"
        project.keypairs.append(thing("climate-key", public_key=f"{SSH_KEY} another comment"))
        assert machine.key_pair(context(lab, project)).seen == "climate-key is there"
        project.keypairs[0].public_key = "ssh-ed25519 AAAAanother"
        refused(machine.key_pair(context(lab, project)), "with another key", "lab_key_pair: climate-key")
        project.servers.append(thing("climate-mlflow", status="ACTIVE"))
        assert machine.key_pair(context(lab, project)).status is Status.WARNING


class TestDataVolumes:
    """lab_data_volume."""

    def judged(self, lab: Lab, project: FakeOpenStack, wanted: str = "mine") -> Result:
        return machine.data_volume(context(lab, project, data_volume=wanted))

    def test_which_volume(self, lab: Lab, project: FakeOpenStack) -> None:
        project.volumes = [thing("mine", status="available", size=20, attachments=[])]
        for wanted in ("none", "manage", "mine", project.volumes[0].id):
            assert self.judged(lab, project, wanted).status is Status.OK
        refused(self.judged(lab, project, "lost"), "no volume 'lost'", "mine")
        project.volumes[0].attachments = [{"server_id": "another"}]
        refused(self.judged(lab, project), "attached to another machine", "openstack server remove volume another")
        project.volumes.append(thing("mine"))
        refused(self.judged(lab, project), "there are 2 volumes", project.volumes[1].id)


class TestRoles:
    """A role is judged by its name only where that tells enough."""

    @pytest.mark.parametrize(
        ("roles", "status"),
        [
            (("Member",), Status.OK), (("_member_", "heat_stack_owner"), Status.OK), (("reader",), Status.FAILED),
            ((), Status.FAILED), (("climate-team",), Status.WARNING), (("heat_stack_owner", "reader"), Status.WARNING),
        ],
    )  # fmt: skip
    def test_roles(self, lab: Lab, roles: tuple[str, ...], status: Status) -> None:
        login = SimpleNamespace(roles=roles, delegated=False, found="here")
        _, row = identity.credentials(SimpleNamespace(login=login, profile=GENERIC))
        assert row.status is status and (row.hint or status is Status.OK)


class TestQuotasThatAreNotTold:
    """Clouds without the extension, without a field, without an answer."""

    def rows(self, lab: Lab, project: FakeOpenStack, **limits: Any) -> dict[str, Result]:
        known = {"instances": 5, "instances_used": 1, "total_cores": 8, "total_cores_used": 0, "total_ram": 8192}
        project.compute.get_limits = lambda: SimpleNamespace(absolute=SimpleNamespace(**{**known, **limits}))
        return {row.check: row for row in quota.quotas(context(lab, project))}

    def test_without_details_what_is_there_is_counted(self, lab: Lab, project: FakeOpenStack) -> None:
        project.details, project.quota = None, {"routers": 1, "networks": -1, "floating_ips": 2}
        found = self.rows(lab, project)
        refused(found["quota: routers"], "1 needed, 0 left", "lab_router")
        assert found["quota: networks"].seen == "1 needed, no limit"
        assert found["quota: floating IPs"].seen == "1 needed, 2 left"
        assert found["quota: subnets"].status is Status.SKIPPED

    def test_a_field_that_is_missing_is_not_told(self, lab: Lab, project: FakeOpenStack) -> None:
        project.details = {"routers": {"limit": 1, "used": 0}}
        found = self.rows(lab, project, instances=None)
        assert found["quota: instances"].status is Status.SKIPPED and found["quota: routers"].seen == "1 needed, 1 left"
        assert found["quota: memory (MB)"].status is Status.OK and found["quota: ports"].status is Status.SKIPPED

    def test_quotas_that_only_the_clouds_admins_see(self, lab: Lab, project: FakeOpenStack) -> None:
        project.details, project.fails["quota"] = None, answer(403, {"NeutronError": {"message": "policy"}})
        found = self.rows(lab, project)
        assert found["quota: routers"].status is Status.SKIPPED and found["quota: instances"].status is Status.OK


class TestServicesThatDoNotAnswer:
    """One row with the service, its status and its words; the others point at it."""

    def rows(self, lab: Lab, project: FakeOpenStack, error: Exception) -> list[Result]:
        project.fails["networks"] = error
        at, told = context(lab, project), {}
        checks = (network.network, network.external_network, network.floating_ip, machine.lab_names)
        return [row for one in checks for row in preflight.once_told(preflight.rows(one, at), told)]

    def test_a_broken_neutron(self, lab: Lab, project: FakeOpenStack) -> None:
        error = answer(500, {"NeutronError": {"type": "HTTPInternalServerError", "message": "The database is away."}})
        first, *others = self.rows(lab, project, error)
        refused(first, "network (Neutron) answers 500: The database is away", "Try again in a minute")
        assert [(row.status, "see: network" in row.seen) for row in others] == [(Status.SKIPPED, True)] * 3
        assert [row.check for row in others] == ["external network", "floating IP", "lab's names"]
        assert project.asked.count("networks") <= 2  # of all networks, and of the lab's

    @pytest.mark.parametrize("status", [401, 403])
    def test_a_service_that_access_rules_leave_out(self, lab: Lab, project: FakeOpenStack, status: int) -> None:
        error = answer(status, {"error": {"message": "The request you have made requires authentication."}})
        first, *_ = self.rows(lab, project, error)
        refused(first, f"network (Neutron) answers {status}: The request", "access rules")
        assert "again in a minute" not in first.hint

    def test_no_volumes_asked_for_no_cinder_needed(self, lab: Lab, project: FakeOpenStack) -> None:
        project.fails["volumes"] = answer(403, {"forbidden": {"message": "no"}}, "https://cloud:8776/v3/x/volumes")
        assert next(machine.lab_names(context(lab, project))).status is Status.OK
