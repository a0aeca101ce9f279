"""The server is closed on purpose and opened again: what people, `labtrack status` and the playbooks say meanwhile."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from api import Api

if TYPE_CHECKING:
    from conftest import Rehearsal

pytestmark = pytest.mark.long

CLOSE, OPEN = "playbooks/close.yml", "playbooks/open.yml"
ANYWAY = ("-e", "open_anyway=true")


@pytest.fixture
def opened(rehearsal: Rehearsal) -> Iterator[Rehearsal]:
    """A server that takes requests, at the end too."""
    rehearsal.playbook(OPEN, *ANYWAY, check=True)
    yield rehearsal
    rehearsal.playbook(OPEN, *ANYWAY, check=True)


def rows(rehearsal: Rehearsal) -> dict[str, dict[str, Any]]:
    """What `labtrack status` shows, by row."""
    said = json.loads(rehearsal.run("labtrack", "status", str(rehearsal.lab_dir), "--json").stdout)
    return {row["check"]: row for row in said["results"]}


def test_a_closed_server_says_so_until_it_is_opened(opened: Rehearsal, nobody: Api) -> None:
    assert rows(opened)["closed"] | {"seconds": 0} == {
        "check": "closed", "status": "ok", "seen": "no: requests are taken", "hint": "", "seconds": 0, "parts": [],
    }  # fmt: skip
    opened.playbook(CLOSE, "-e", json.dumps({"close_why": "a new disk"}), check=True)
    assert nobody.get("/health").status_code == 503
    shown = rows(opened)
    seen = shown["closed"]["seen"]
    assert shown["closed"]["status"] == "warning" and "playbooks/open.yml" in shown["closed"]["hint"]
    assert re.fullmatch(r"since 20\d\d-\d\d-\d\d \d\d:\d\d UTC no requests are taken: a new disk", seen), seen
    assert shown["instances"]["status"] == "ok", "what is inside is looked at as ever"
    on_it = json.loads(opened.ssh("server", "mlflowctl health --json").stdout)
    assert [row["seen"] for row in on_it["results"] if row["check"] == "closed"] == [seen]
    opened.playbook(OPEN, check=True)
    assert nobody.get("/health").status_code == 200
    assert rows(opened)["closed"]["status"] == "ok"


def test_work_on_a_server_that_a_move_has_closed_does_not_open_it(opened: Rehearsal, nobody: Api) -> None:
    opened.playbook(CLOSE, "-e", json.dumps({"close_why": "left for elsewhere"}), check=True)
    opened.playbook(CLOSE, check=True)
    row = rows(opened)["closed"]
    assert row["seen"].endswith(": left for elsewhere") and "--step back" in row["hint"]
    refused = opened.playbook(OPEN)
    assert refused.returncode != 0 and "only one of the two may be open" in " ".join(refused.stdout.split())
    assert nobody.get("/health").status_code == 503
