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
