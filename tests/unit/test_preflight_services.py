"""All of preflight, and init, through the real openstacksdk: `fake_services` gives the answers."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import yaml
from fake_services import FakeServices, ident

from labtrack import newlab
from labtrack.cloud import preflight
from labtrack.cloud.login import login
from labtrack.cloud.preflight.context import Context
from labtrack.doctor.result import Result, Status
from labtrack.errors import LabtrackError
from labtrack.lab import Lab, lab_yml

AWAY = {"NeutronError": {"message": "The database is away.", "type": "x"}}
WHO = {"error": {"code": 401, "message": "The request you have made requires authentication."}}


def rows(lab: Lab, **wishes: Any) -> dict[str, Result]:
    """The rows of a preflight."""
    changed = dataclasses.replace(lab, machine=dataclasses.replace(lab.machine, **wishes))
    found = list(preflight.check(changed))
    assert len({row.check for row in found}) == len(found), found
    return {row.check: row for row in found if not row.check.startswith("S3")}


def failures(found: dict[str, Result]) -> list[str]:
    """What failed."""
    assert all(row.hint for row in found.values() if row.status in (Status.FAILED, Status.WARNING))
    return [check for check, row in found.items() if row.status is Status.FAILED]


def test_an_ordinary_project_without_details_of_quotas(there: Lab) -> None:
    found = rows(there)
    assert failures(found) == ["quota: routers"] and "lab_router" in found["quota: routers"].hint
    assert found["quota: networks"].seen == "1 needed, 9 left"
    assert found["quota: security group rules"].status is Status.SKIPPED
    assert failures(rows(there, router="def-router")) == []
    assert failures(rows(there, network="def-net")) == []


def test_names_and_ids(there: Lab) -> None:
    wishes = {"image": ident(6), "flavor": "f1", "external_network": ident(1), "network": ident(2)}
    assert failures(rows(there, **wishes)) == []
    changed = dataclasses.replace(there, machine=dataclasses.replace(there.machine, **wishes))
    assert Context.of(changed, login(changed)).ids() == wishes


@pytest.mark.parametrize(
    ("pattern", "answer", "told"),
    [
        ("^/network/v2.0/", (500, AWAY), "network: network (Neutron) answers 500: The database is away"),
        ("^/network/v2.0/", (401, WHO), "network: network (Neutron) answers 401"),
        ("^/compute/v2.1/", (503, {}), "flavor: compute (Nova) answers 503"),
        ("^/image/v2/", (403, WHO), "image: image (Glance) answers 403"),
        ("OS-EC2", (500, WHO), "S3 keys: answered 500"),
    ],
)
def test_one_service_in_trouble_is_one_row(
    services: FakeServices, there: Lab, pattern: str, answer: tuple[int, object], told: str
) -> None:
    services.answers[pattern] = answer
    troubled = re.compile(r"answer(s|ed) [45]\d\d")
    (row,) = [row for row in preflight.check(there) if row.status is Status.FAILED and troubled.search(row.seen)]
    check, _, seen = told.partition(": ")
    assert row.check == check and seen in row.seen
    assert ("in a minute" in row.hint) is (answer[0] >= 500)


def test_init_of_a_project_where_a_service_refuses(services: FakeServices, there: Lab) -> None:
    folder = there.root / "inventory" / "second"
    services.answers["^/network/v2.0/"] = (401, WHO)
    with pytest.raises(LabtrackError, match="answers 401") as raised:
        newlab.init(folder, "arbutus", there.clouds_file)
    assert "access rules" in raised.value.hint
    services.answers.clear()
    services.things["images"].append({**services.things["images"][0], "id": ident(7), "image_type": "snapshot",
                                      "created_at": "2026-02-02T00:00:00Z"})  # fmt: skip
    newlab.init(folder, "arbutus", there.clouds_file)
    data = yaml.safe_load(lab_yml(folder).read_text())
    assert data["lab_image"] == ident(6)  # the name is the snapshot's
    assert (data["lab_router"], data["lab_data_volume"], data["lab_flavor"]) == ("def-router", "none", "p2-3gb")


def test_a_project_without_swift(services: FakeServices, there: Lab) -> None:
    del services.services["object-store"]
    assert "service object-store" in failures(rows(there, router="def-router"))
    found = rows(there, router="def-router", bucket_manage=False)
    assert found["service object-store"].status is Status.SKIPPED and "answer" not in found["bucket"].seen
