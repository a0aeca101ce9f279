"""A server with backups in a store, both on this machine: one for all tests of the folder, as it takes seconds."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from backed_up import BUCKET, Machine
from s3_server import Store


@pytest.fixture(scope="package")
def machine() -> Iterator[Machine]:
    """A server whose first backup is made."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be PostgreSQL's account")
    if not shutil.which("pgbackrest") or not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("needs pgBackRest and PostgreSQL: apt install pgbackrest postgresql")
    # not below pytest's own folder, which nobody else can enter
    with tempfile.TemporaryDirectory(prefix="labtrack-backup-") as folder:
        store = Store(Path(folder), BUCKET, "climate-mlflow")
        with store.serving():
            made = Machine(Path(folder), store)
            with made.running():
                made("setup")
                yield made
