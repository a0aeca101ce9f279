"""Names and ids of lab.yml are looked up once, and as Terraform's data sources would."""

from __future__ import annotations

import threading

import pytest
from fake_openstack import FakeOpenStack, context, thing
from openstack.exceptions import SDKException

from labtrack.cloud.preflight.context import once
from labtrack.errors import LabtrackError
from labtrack.lab import Lab


@pytest.mark.parametrize("by", ["name", "id"])
def test_a_name_and_an_id_lead_to_the_same_things(lab: Lab, by: str) -> None:
    cloud = FakeOpenStack()
    wishes = {
        "image": cloud.images[0], "flavor": cloud.flavors[0], "external_network": cloud.networks[0],
        "network": cloud.networks[1],
    }  # fmt: skip
    found = context(lab, cloud, **{key: getattr(one, by) for key, one in wishes.items()})
    assert found.ids() == {key: one.id for key, one in wishes.items()}
    router = context(lab, cloud, router=getattr(cloud.routers[0], by))
    assert router.ids() == {"external_network": cloud.networks[0].id, "router": cloud.routers[0].id}


def test_nothing_that_lab_yml_does_not_name_but_the_external_network(lab: Lab) -> None:
    cloud = FakeOpenStack()
    assert context(lab, cloud).ids() == {"external_network": cloud.networks[0].id}
    cloud.networks.append(thing("Second", is_router_external=True))
    assert context(lab, cloud).ids() == {}


def test_what_is_there_twice_is_left_out_but_the_projects_own_comes_first(lab: Lab) -> None:
    cloud = FakeOpenStack()
    cloud.networks.append(thing("theirs", project_id="other"))
    cloud.networks.append(thing("def-net", project_id="other"))
    assert context(lab, cloud, network="def-net").ids()["network"] == cloud.networks[1].id
    cloud.networks.append(thing("def-net"))
    assert "network" not in context(lab, cloud, network="def-net").ids()


def test_the_newest_usable_image_of_a_name(lab: Lab) -> None:
    cloud = FakeOpenStack()
    newer = thing("Debian-13", status="active", created_at="2026-03-01T00:00:00Z")
    cloud.images += [newer, thing("Debian-13", status="queued", created_at="2026-09-01T00:00:00Z")]
    found = context(lab, cloud, image="Debian-13")
    assert found.ids()["image"] == newer.id and len(found.images.things) == 2


def test_of_several_external_networks_the_routers(lab: Lab) -> None:
    cloud = FakeOpenStack()
    cloud.networks.append(thing("Second", is_router_external=True))
    outside = cloud.networks[0].id
    assert context(lab, cloud, router="def-router").ids()["external_network"] == outside
    assert context(lab, cloud, network="def-net").ids()["external_network"] == outside


def test_the_subnet_with_a_way_out(lab: Lab) -> None:
    cloud = FakeOpenStack()
    net = cloud.networks[1]
    cloud.subnets.insert(
        0, thing("dead-end", network_id=net.id, cidr="10.9.0.0/24", ip_version=4, gateway_ip="10.9.0.1")
    )
    assert context(lab, cloud, network=net.name).subnet == cloud.subnets[1]


def test_a_cloud_that_does_not_answer(lab: Lab) -> None:
    cloud = FakeOpenStack()
    cloud.fails["networks"] = SDKException("away")
    with pytest.raises(LabtrackError, match="can't be looked up: away"):
        context(lab, cloud).ids()


class TestOnce:
    """A property that several threads ask for."""

    def test_one_question_for_all_threads(self) -> None:
        asked: list[int] = []
        begun = threading.Event()

        class Asked:
            @once
            def answer(self) -> int:
                asked.append(1)
                begun.wait(10)
                return 42

        at, got = Asked(), []
        threads = [threading.Thread(target=lambda: got.append(at.answer)) for _ in range(4)]
        for one in threads:
            one.start()
        begun.set()
        for one in threads:
            one.join()
        assert got == [42] * 4 and asked == [1]

    def test_an_error_is_everybodys(self) -> None:
        asked: list[int] = []

        class Asked:
            @once
            def answer(self) -> int:
                asked.append(1)
                raise KeyError("x")

        at = Asked()
        for _ in range(2):
            with pytest.raises(KeyError):
                _ = at.answer
        assert asked == [1]
