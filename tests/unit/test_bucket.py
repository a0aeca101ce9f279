"""Versions and the block of public access, on stores that can't be had here: Ceph has both, others have neither.

What Swift does is asked in tests/rehearsal/test_store.py.
"""

from __future__ import annotations

import dataclasses

import pytest
from fakes import FakeCloud

from labtrack import bucket
from labtrack.doctor.result import Status
from labtrack.errors import LabtrackError
from labtrack.lab import Lab
from labtrack.objectstore import Refusal


class FakeStore:
    """Answers as a store with these abilities does; `refuses` is what it says to everything."""

    def __init__(self, *abilities: str, refuses: str = "") -> None:
        self.abilities, self.refuses = abilities, refuses
        self.state: dict[str, object] = {}

    def ask(self, _lab: Lab, call: str, **more: object) -> dict[str, object]:
        verb, _, what = call.partition("_")
        if self.refuses:
            raise Refusal("forbidden", self.refuses)
        if call == "list_objects_v2":
            return {"Contents": [{"Key": "a b.txt"}]}
        if what not in self.abilities:
            raise Refusal("other", "NotImplemented: a header you provided implies functionality")
        if verb == "put":
            self.state[what] = next(iter(more.values()))
            return {}
        if what == "bucket_versioning":
            return dict(self.state.get(what, {}))
        if what not in self.state:
            raise Refusal("other", "NoSuchPublicAccessBlockConfiguration: there is none")
        return {"PublicAccessBlockConfiguration": self.state[what]}


@pytest.fixture
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    fake = FakeStore(*getattr(request, "param", ()))
    monkeypatch.setattr(bucket, "_ask", fake.ask)
    return fake


BOTH = ("bucket_versioning", "public_access_block")


@pytest.mark.parametrize(("store", "changes"), [(BOTH, 2), (BOTH[:1], 1), (BOTH[1:], 1), ((), 0)], indirect=["store"])
def test_protect_turns_on_what_the_store_has_and_once(lab: Lab, store: FakeStore, changes: int) -> None:
    assert len(bucket.protect(lab)) == changes
    assert bucket.protect(lab) == []
    assert store.state.keys() == set(store.abilities)


@pytest.mark.parametrize("store", [BOTH], indirect=True)
def test_protect_leaves_what_the_lab_manages_itself(lab: Lab, store: FakeStore) -> None:
    kept = dataclasses.replace(lab, machine=dataclasses.replace(lab.machine, bucket_versioning=False))
    assert bucket.protect(kept) == [f"public access to {lab.bucket} is blocked"]
    own = dataclasses.replace(lab, machine=dataclasses.replace(lab.machine, bucket_manage=False))
    store.state.clear()
    assert bucket.protect(own) == [] and store.state == {}


def test_protect_tells_a_refusal(lab: Lab, store: FakeStore) -> None:
    store.refuses = "AccessDenied"
    with pytest.raises(LabtrackError, match="AccessDenied"):
        bucket.protect(lab)


@pytest.mark.parametrize("store", [BOTH], indirect=True)
def test_check_tells_missing_versions(lab: Lab, store: FakeStore, cloud: FakeCloud) -> None:
    def rows() -> dict[str, Status]:
        return {row.check: row.status for row in bucket.check(lab)}

    assert rows() == {"bucket, without a key": Status.OK, "bucket's versions": Status.WARNING}
    bucket.protect(lab)
    assert rows() == {"bucket, without a key": Status.OK, "bucket's versions": Status.OK}


def test_check_tells_a_store_that_can_not_be_asked(lab: Lab, store: FakeStore) -> None:
    store.refuses = "InvalidAccessKeyId"
    (row,) = bucket.check(lab)
    assert row.status is Status.FAILED and "InvalidAccessKeyId" in row.seen
