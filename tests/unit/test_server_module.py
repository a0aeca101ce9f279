"""The server's module, as far as it can be asked without MLflow; tests/abuse asks the deployed one."""

from __future__ import annotations

import re

from conftest import ROOT

FILES = ROOT / "roles/mlflow/files"


def test_known_version_is_the_lock_s() -> None:
    known = re.search(r'^KNOWN_VERSION = "(.+)"', (FILES / "labtrack_server/application.py").read_text(), re.MULTILINE)
    locked = re.search(r"^mlflow==(\S+)", (FILES / "requirements.txt").read_text(), re.MULTILINE)
    assert known and locked
    assert known[1] == locked[1]


def test_native_routes_were_compared_with_the_lock_s_version() -> None:
    """With another MLflow: read what decision 0025 names, run tests/differential, then change the number."""
    compared = re.search(r'^COMPARED_VERSION = "(.+)"', (FILES / "labtrack_server/native.py").read_text(), re.MULTILINE)
    locked = re.search(r"^mlflow==(\S+)", (FILES / "requirements.txt").read_text(), re.MULTILINE)
    assert compared and locked
    assert compared[1] == locked[1]
