"""What preflight says of networks, routers and addresses: as Terraform would.  The cloud is `fake_openstack`."""

from __future__ import annotations

from typing import Any

import pytest
from fake_openstack import FakeOpenStack, context, refused, thing

from labtrack.cloud.preflight import network
from labtrack.doctor.result import Result, Status
from labtrack.lab import Lab


@pytest.fixture
def project() -> FakeOpenStack:
    """An ordinary project."""
    return FakeOpenStack()


class TestNetworks:
    """lab_network, lab_router, lab_network_cidr."""

    def judged(self, lab: Lab, project: FakeOpenStack, **wishes: Any) -> Result:
        return network.network(context(lab, project, **wishes))

    def test_a_network_with_a_way_out(self, lab: Lab, project: FakeOpenStack) -> None:
        row = self.judged(lab, project, network="def-net")
        assert row.status is Status.OK and "behind the router def-router" in row.seen

    @pytest.mark.parametrize(
        "owner", ["network:router_interface_distributed", "network:ha_router_replicated_interface"]
    )
    def test_distributed_and_highly_available_routers(self, lab: Lab, project: FakeOpenStack, owner: str) -> None:
        project.ports[0].device_owner = owner
        assert self.judged(lab, project, network="def-net").status is Status.OK

    def test_what_a_network_lacks(self, lab: Lab, project: FakeOpenStack) -> None:
        wishes = {"network": "def-net"}
        project.routers[0].external_gateway_info = None
        refused(self.judged(lab, project, **wishes), "has no gateway", "openstack router set --external-gateway Public")
        port = project.ports.pop()
        refused(self.judged(lab, project, **wishes), "has no router", "openstack router add subnet")
        project.ports.append(port)
        project.subnets[0].gateway_ip = None
        refused(self.judged(lab, project, **wishes), "has no gateway", "openstack subnet set --gateway 10.5.0.1")
        project.subnets[0].ip_version = 6
        refused(self.judged(lab, project, **wishes), "no subnet with IPv4", "openstack subnet create")
        project.networks[1].is_port_security_enabled = False
        refused(self.judged(lab, project, **wishes), "no port security", "lab_network out")
        project.networks[1].is_admin_state_up = False
        refused(self.judged(lab, project, **wishes), "switched off", "--enable")

    def test_which_network(self, lab: Lab, project: FakeOpenStack) -> None:
        refused(self.judged(lab, project, network="lost"), "no network 'lost'", "def-net")
        refused(self.judged(lab, project, network="Public"), "is an external one", "def-net")
        project.networks.append(thing("def-net"))
        refused(self.judged(lab, project, network="def-net"), "there are 2 networks", project.networks[1].id)

    def test_a_network_that_another_project_shares(self, lab: Lab, project: FakeOpenStack) -> None:
        project.networks[1].project_id = "another"
        project.ports.clear()
        assert self.judged(lab, project, network="def-net").status is Status.WARNING

    def test_which_router(self, lab: Lab, project: FakeOpenStack) -> None:
        assert self.judged(lab, project, router="def-router").status is Status.OK
        refused(self.judged(lab, project, router="lost"), "no router 'lost'", "def-router")
        project.routers[0].external_gateway_info = {}
        refused(self.judged(lab, project, router="def-router"), "has no gateway", "--external-gateway Public")
        project.routers.append(thing("def-router"))
        refused(self.judged(lab, project, router="def-router"), "there are 2 routers", project.routers[1].id)

    def test_a_router_to_another_external_network(self, lab: Lab, project: FakeOpenStack) -> None:
        project.networks.append(thing("Second", is_router_external=True))
        row = self.judged(lab, project, router="def-router", external_network="Second")
        refused(row, "leads to Public, and floating IPs come from Second", "lab_external_network: Public")

    def test_addresses_that_are_in_use_behind_the_router(self, lab: Lab, project: FakeOpenStack) -> None:
        wishes = {"router": "def-router", "network_cidr": "10.5.0.0/16"}
        refused(
            self.judged(lab, project, **wishes), "10.5.0.0/16 overlaps 10.5.0.0/24", "lab_network_cidr: 10.20.0.0/24"
        )
        wishes["network_cidr"] = "10.6.0.0/24"
        assert self.judged(lab, project, **wishes).status is Status.OK

    def test_the_labs_own_subnet_is_in_nobodys_way(self, lab: Lab, project: FakeOpenStack) -> None:
        project.networks[1].name, project.subnets[0].name = f"{lab.name}-network", f"{lab.name}-subnet"
        row = self.judged(lab, project, router="def-router", network_cidr="10.5.0.0/24")
        assert row.status is Status.OK and "is there" in row.seen


class TestExternalNetworks:
    """lab_external_network."""

    def judged(self, lab: Lab, project: FakeOpenStack, wanted: str = "", **wishes: Any) -> Result:
        return network.external_network(context(lab, project, external_network=wanted, **wishes))

    def test_name_id_and_the_only_one(self, lab: Lab, project: FakeOpenStack) -> None:
        for wanted in ("", "Public", project.networks[0].id):
            assert self.judged(lab, project, wanted).seen == "Public"

    def test_what_it_can_not_be(self, lab: Lab, project: FakeOpenStack) -> None:
        refused(self.judged(lab, project, "def-net"), "is an internal network", "Public")
        refused(self.judged(lab, project, "Outside"), "no external network 'Outside'", "Public")
        project.networks.append(thing("Second", is_router_external=True, project_id="admin"))
        refused(self.judged(lab, project), "there are 2, and lab.yml names none", "Public, Second")
        assert "of 2" in self.judged(lab, project, router="def-router").seen
        project.networks[-1].name = "Public"
        refused(self.judged(lab, project, "Public"), "there are 2 external networks Public", project.networks[0].id)
        refused(self.judged(lab, project), "there are 2", project.networks[0].id)
        del project.networks[0], project.networks[-1]
        refused(self.judged(lab, project), "no external network", "own-machine")


class TestFloatingIPs:
    """lab_floating_ip."""

    def judged(self, lab: Lab, project: FakeOpenStack, **about: Any) -> Result:
        known = {"floating_ip_address": "203.0.113.10", "floating_network_id": project.networks[0].id}
        project.ips = [thing("", **{**known, **about})]
        return network.floating_ip(context(lab, project, floating_ip="203.0.113.10"))

    def test_the_projects(self, lab: Lab, project: FakeOpenStack) -> None:
        assert self.judged(lab, project).status is Status.OK

    def test_somebody_elses(self, lab: Lab, project: FakeOpenStack) -> None:
        refused(self.judged(lab, project, project_id="another"), "not the project's", "lab_floating_ip")
        refused(self.judged(lab, project, port_id="p"), "in use by another machine", "openstack floating ip show")

    def test_of_another_external_network(self, lab: Lab, project: FakeOpenStack) -> None:
        project.networks.append(thing("Second", is_router_external=True))
        project.ips = [thing("", floating_ip_address="203.0.113.10", floating_network_id=project.networks[-1].id)]
        row = network.floating_ip(context(lab, project, floating_ip="203.0.113.10", external_network="Public"))
        refused(row, "comes from Second, and not from Public", "lab_external_network")
