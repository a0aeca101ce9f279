"""Fixtures of more than one file here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from admin import PERSON, Kit

if TYPE_CHECKING:
    from conftest import Rehearsal


@pytest.fixture(scope="module")
def at_work(rehearsal: Rehearsal) -> Iterator[Kit]:
    """The admin at work; at the end Keystone has the keys that it had before."""
    admin = Kit(rehearsal)
    before = admin.witnessed()
    assert before == admin.seen()
    yield admin
    assert admin.witnessed() == before, "a key was left behind, or one too many was deleted"


@pytest.fixture
def kit(at_work: Kit) -> Iterator[Kit]:
    """The admin at work; whatever was made for the person of these tests is taken away."""
    before = at_work.seen()
    yield at_work
    at_work("env", "revoke", at_work.lab, PERSON, check=True)
    assert at_work.seen() == before
