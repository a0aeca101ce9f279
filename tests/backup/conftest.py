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
from sync_server import Postgres, postgresql_bin


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
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab whose database MLflow has made."""
    if postgresql_bin() is None:
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    folder = tmp_path_factory.mktemp("lab")
    for one in (folder, *list(folder.parents)[:2]):
        one.chmod(0o755)
    (folder / "postgresql").mkdir()
    postgres, store = Postgres(folder / "postgresql"), Store(folder, "climate")
    postgres.start()
    try:
        with store.serving():
            made = Lab(folder, postgres, store)
            yield made
            assert made.worker.stdin
            made.worker.stdin.close()
            made.worker.wait()
    finally:
        postgres.stop()


@pytest.fixture
def artifacts(machine: Machine, tmp_path: Path) -> Iterator[Artifacts]:
    made = Artifacts(machine, tmp_path)
    made.store.page = 3  # so that listings have several pages
    try:
        yield made
    finally:
        made.store.page = 1000
        made.close()
