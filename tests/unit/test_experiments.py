"""The experiments that a lab has from the start: one of each person's own, and those that all share."""

from __future__ import annotations

import pytest
from fakes import FakeCloud

from labtrack import experiments
from labtrack.envfile import lifecycle
from labtrack.lab import Lab
from labtrack.tracking.server import Server

SHARED = ("Default", "lightning_logs", "anemoi-debug")


@pytest.fixture
def server(lab: Lab, cloud: FakeCloud) -> Server:
    """The stand-in's server, with the admin's login."""
    return Server(cloud.url, "admin", cloud.accounts["admin"])


def test_each_person_has_an_experiment_and_all_share_some(lab: Lab, cloud: FakeCloud, context) -> None:
    with context() as opened:
        for user in ("ada", "grace"):
            lifecycle.create(opened, user)
    assert cloud.sharing.writers("ada") == {"ada"}
    assert all(cloud.sharing.writers(name) == {"admin", "ada", "grace"} for name in SHARED)


def test_share_again_changes_nothing(server: Server, cloud: FakeCloud) -> None:
    assert experiments.share(server, SHARED).changed
    before = repr(cloud.sharing)
    members = experiments.share(server, SHARED)
    assert members.changed == []
    assert repr(cloud.sharing) == before
    assert experiments.join(server, members, "ada") != []
    assert experiments.join(server, members, "ada") == []


def test_share_what_a_person_made_first(server: Server, cloud: FakeCloud) -> None:
    cloud.accounts["ada"] = "p"
    experiments.own(server, "ada", "p")  # takes the first id
    server.as_user("ada", "p").call("POST", "/api/2.0/mlflow/experiments/create", "", json={"name": "x", "tags": []})
    experiments.join(server, experiments.share(server, ("x",)), "grace")
    assert cloud.sharing.writers("x") == {"ada", "grace"}


def test_share_follows_the_list(server: Server, cloud: FakeCloud) -> None:
    experiments.join(server, experiments.share(server, ("a", "b")), "ada")
    changed = experiments.share(server, ("b", "c")).changed
    assert "experiment c shared" in changed
    assert cloud.sharing.writers("a") == {"admin"}
    assert cloud.sharing.writers("b") == cloud.sharing.writers("c") == {"admin", "ada"}


def test_share_restores_what_was_deleted(server: Server, cloud: FakeCloud) -> None:
    experiments.share(server, ("a",))
    cloud.sharing.experiments["a"]["lifecycle_stage"] = "deleted"
    assert experiments.share(server, ("a",)).changed == ["experiment a restored"]
    assert cloud.sharing.experiments["a"]["lifecycle_stage"] == "active"


class TestOwn:
    """The experiment that a person's file names."""

    @pytest.fixture(autouse=True)
    def ada(self, cloud: FakeCloud) -> None:
        cloud.accounts.update(ada="p", grace="q")

    def test_is_made_once(self, server: Server, cloud: FakeCloud) -> None:
        assert experiments.own(server, "ada", "p") == (["experiment ada made"], [])
        assert experiments.own(server, "ada", "p") == ([], [])

    def test_somebody_else_s_is_told_and_left(self, server: Server, cloud: FakeCloud) -> None:
        body = {"name": "ada", "tags": []}
        server.as_user("grace", "q").call("POST", "/api/2.0/mlflow/experiments/create", "", json=body)
        changed, notes = experiments.own(server, "ada", "p")
        assert changed == [] and "To fix" in notes[0]
        assert cloud.sharing.writers("ada") == {"grace"}

    def test_of_an_account_made_anew_is_given_back(self, server: Server, cloud: FakeCloud) -> None:
        experiments.own(server, "ada", "p")
        cloud.sharing.experiments["ada"]["owner"] = "a former ada"
        assert experiments.own(server, "ada", "p")[0] == ["experiment ada given back"]
        assert cloud.sharing.writers("ada") == {"ada"}

    def test_one_that_they_deleted_is_told(self, server: Server, cloud: FakeCloud) -> None:
        experiments.own(server, "ada", "p")
        cloud.sharing.experiments["ada"]["lifecycle_stage"] = "deleted"
        changed, notes = experiments.own(server, "ada", "p")
        assert changed == [] and "has deleted" in notes[0]
        assert cloud.sharing.experiments["ada"]["lifecycle_stage"] == "deleted"


def test_share_nothing_makes_no_experiment(cloud: FakeCloud, server: Server) -> None:
    assert experiments.share(server, ()).changed == [f"role {experiments.ROLE} made"]
    assert cloud.sharing.experiments == {}
