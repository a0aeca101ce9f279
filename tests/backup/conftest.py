"""A server with backups in a store, both on this machine: one for all tests of the folder, as it takes seconds."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifact_copies import Artifacts
from backed_up import BUCKET, Machine
from mlflow_lab import Lab
from s3_server import Store
from sync_server import postgresql, postgresql_bin


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


@pytest.fixture(scope="package")
def lab() -> Iterator[Lab]:
    """A lab whose database MLflow has made."""
    if postgresql_bin() is None:
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    with postgresql("labtrack-lab-") as postgres:
        store = Store(postgres.folder.parent, "climate")
        with store.serving():
            made = Lab(postgres.folder.parent, postgres, store)
            yield made
            assert made.worker.stdin
            made.worker.stdin.close()
            made.worker.wait()


@pytest.fixture
def artifacts(machine: Machine) -> Iterator[Artifacts]:
    # the databases' account reads what is there: not below pytest's own folder, which another pytest closes to it
    with tempfile.TemporaryDirectory(prefix="labtrack-artifacts-") as folder:
        Path(folder).chmod(0o755)
        made = Artifacts(machine, Path(folder))
        made.store.page = 3  # so that listings have several pages
        try:
            yield made
        finally:
            made.store.page = 1000
            made.close()
