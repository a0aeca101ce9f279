"""The cloud preflight's own reasoning.  What a real cloud answers is asked in tests/rehearsal/test_preflight.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import requests
from fakes import FakeCloud
from keystoneauth1.exceptions import EndpointNotFound
from openstack.exceptions import HttpException

from labtrack.cloud import preflight, profiles
from labtrack.cloud.preflight import machine, quota, store
from labtrack.doctor.result import Result, Status
from labtrack.lab import Lab


class TestProfiles:
    """Addresses of known clouds."""

    @pytest.mark.parametrize(
        ("url", "name"),
        [
            ("https://identity.arbutus.alliancecan.ca/v3", "arbutus"),
            ("https://arbutus.cloud.computecanada.ca:5000", "arbutus"),
            ("https://nibi.cloud.alliancecan.ca", "nibi"),
            ("https://notarbutus.alliancecan.ca.example.org", "generic"),
            ("", "generic"),
        ],
    )
    def test_a_cloud_is_known_by_its_host(self, url: str, name: str) -> None:
        assert profiles.of(url).name == name

    def test_the_new_address_of_a_cloud_that_moved(self) -> None:
        left = profiles.moved("https://object-arbutus.cloud.computecanada.ca")
        assert left is not None and left.s3_endpoint == "https://object-arbutus.alliancecan.ca"
        assert profiles.moved("https://object-arbutus.alliancecan.ca") is None


class TestRows:
    """Each check ends in rows, whatever the cloud does."""

    def rows(self, error: Exception) -> list[str]:
        def network(_: object) -> object:
            raise error

        (row,) = preflight.rows(network, SimpleNamespace())
        assert row.status is Status.FAILED and row.hint and row.check == "network"
        return row.seen

    def test_a_broken_cloud_is_a_row(self) -> None:
        assert "quite broken" in self.rows(HttpException("quite broken", http_status=500))

    def test_an_unreachable_cloud_is_a_row(self) -> None:
        assert "no route" in self.rows(requests.exceptions.ConnectionError("no route"))

    def test_a_defect_of_ours_is_not_hidden(self) -> None:
        with pytest.raises(KeyError):
            self.rows(KeyError("x"))

    def test_no_login_no_further_question(self, lab: Lab, cloud: FakeCloud) -> None:
        cloud.password = "changed"
        (row,) = preflight.check(lab)
        assert (row.check, row.status) == ("login", Status.FAILED) and "401" in row.seen


class TestQuotas:
    """What is left against what is needed."""

    def test_minus_one_is_no_limit(self) -> None:
        assert quota._left(-1, 5) == quota.NO_LIMIT and quota._left(3, 2) == 1 and quota._left(None, None) is None

    def test_reserved_is_not_free(self) -> None:
        assert quota._detail({"limit": 3, "used": 1, "reserved": 1}) == 1
        assert quota._detail(7) is None

    def test_too_little_says_how_to_mend_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        needs = [quota.Need("routers", 1, 0), quota.Need("ports", 3, 2), quota.Need("cores", 2, 2)]
        needs += [quota.Need("networks", 1, quota.NO_LIMIT), quota.Need("subnets", 0, 0)]
        monkeypatch.setattr(quota, "_compute", lambda _: needs)
        monkeypatch.setattr(quota, "_network", lambda _: [])
        monkeypatch.setattr(quota, "_volumes", lambda _: [])
        rows = {row.check: row for row in quota.quotas(SimpleNamespace())}
        assert set(rows) == {"quota: routers", "quota: ports", "quota: cores", "quota: networks"}
        assert rows["quota: routers"].status is Status.FAILED and "lab_router" in rows["quota: routers"].hint
        assert rows["quota: ports"].seen == "3 needed, 2 left" and rows["quota: ports"].hint
        assert rows["quota: cores"].status is Status.OK and rows["quota: networks"].seen == "1 needed, no limit"


def test_the_newest_debian_comes_first() -> None:
    names = ["Debian-9", "debian-12-bookworm", "Ubuntu-24.04", "Debian-13", None, "Debian"]
    cloud = SimpleNamespace(image=SimpleNamespace(images=lambda status: [SimpleNamespace(name=name) for name in names]))
    assert machine.debians(cloud) == ["Debian-13", "debian-12-bookworm", "Debian-9", "Debian"]


def test_a_flavor_that_is_too_small_is_not_offered() -> None:
    flavors = [SimpleNamespace(name=f"p-{ram}-{disk}", ram=ram, disk=disk, vcpus=2)
               for ram, disk in [(8192, 20), (1024, 20), (3072, 20), (4096, 0)]]  # fmt: skip
    cloud = SimpleNamespace(compute=SimpleNamespace(flavors=lambda: flavors))
    assert machine.sufficient(cloud) == ["p-3072-20", "p-8192-20"]


@pytest.mark.parametrize("check", ["S3 login", "S3 multipart", "S3 versions", "S3 checksums"])
def test_each_thing_that_a_store_lacks_has_words(check: str) -> None:
    row = store._unable(check, "NotImplemented")
    assert "NotImplemented" in row.seen and (row.hint or row.status is Status.OK)


class TestBucketNames:
    """Ceph, whose names are unique over all projects, says 404 for a free name and 403 for somebody's."""

    def row(self, statuses: dict[str, int], *, mine: bool = False, manage: bool = True) -> Result:
        """What is said of the bucket `climate` on a store that answers so to one without a key."""
        names = [SimpleNamespace(name="climate")] if mine else [SimpleNamespace(name="climate-old")]
        return store.bucket(
            SimpleNamespace(
                lab=SimpleNamespace(bucket="climate", own_machine=False, machine=SimpleNamespace(bucket_manage=manage)),
                login=SimpleNamespace(project_id="p" * 32),
                cloud=SimpleNamespace(object_store=SimpleNamespace(containers=lambda prefix: names)),
                status_of=lambda name: statuses["climate" if name == "climate" else "another"],
            )
        )

    def test_free(self) -> None:
        row = self.row({"climate": 404, "another": 404})
        assert row.status is Status.OK and "free" in row.seen

    def test_somebody_elses(self) -> None:
        row = self.row({"climate": 403, "another": 404})
        assert row.status is Status.FAILED and "somebody else's" in row.seen and "lab_bucket" in row.hint

    def test_ours(self) -> None:
        assert "the project's" in self.row({"climate": 403, "another": 404}, mine=True).seen

    def test_a_store_that_tells_nothing_is_believed(self) -> None:
        assert self.row({"climate": 412, "another": 412}).status is Status.OK

    def without_swift(self, statuses: dict[str, int], *, manage: bool) -> Result:
        """What is said on a cloud whose catalogue has no Swift."""

        def containers(prefix: str) -> None:
            raise EndpointNotFound("object-store")

        return store.bucket(
            SimpleNamespace(
                lab=SimpleNamespace(bucket="climate", own_machine=False, machine=SimpleNamespace(bucket_manage=manage)),
                login=SimpleNamespace(project_id="p" * 32),
                cloud=SimpleNamespace(object_store=SimpleNamespace(containers=containers)),
                status_of=lambda name: statuses["climate" if name == "climate" else "another"],
            )
        )

    def test_a_bucket_made_by_hand_needs_no_swift(self) -> None:
        assert self.without_swift({"climate": 403, "another": 404}, manage=False).status is Status.OK
        assert self.without_swift({"climate": 412, "another": 412}, manage=False).status is Status.SKIPPED
        assert "is not there" in self.without_swift({"climate": 404, "another": 404}, manage=False).seen
        row = self.without_swift({"climate": 404, "another": 404}, manage=True)
        assert row.status is Status.FAILED and "no such service" in row.seen

    def test_one_that_nobody_will_make(self) -> None:
        row = self.row({"climate": 404, "another": 404}, manage=False)
        assert row.status is Status.FAILED and "openstack container create climate" in row.hint
