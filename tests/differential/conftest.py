"""Two of the lab's servers on one PostgreSQL: one with MLflow's handlers alone, one with native routes before them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from lab_server import LabServer
from sync_server import Postgres, postgresql, postgresql_bin


@pytest.fixture(scope="package")
def postgres() -> Iterator[Postgres]:
    """Durable, where a database asks for it; without fsync, as no test takes the power away."""
    if postgresql_bin() is None:
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    with postgresql("labtrack-native-") as found:
        yield found


@pytest.fixture(scope="package")
def serve(postgres: Postgres) -> Iterator[Callable[..., LabServer]]:
    """Starts servers, and ends them."""
    with contextlib.ExitStack() as ends:

        def started(name: str, **more: object) -> LabServer:
            server = LabServer(postgres, name, postgres.folder.parent / name, **more)  # type: ignore[arg-type]
            ends.callback(server.kill)
            server.prepare()
            return server

        yield started


@pytest.fixture(scope="package")
def pair(serve: Callable[..., LabServer]) -> tuple[LabServer, LabServer]:
    """MLflow's handlers, and ours before them."""
    with ThreadPoolExecutor() as pool:
        plain, native = pool.map(lambda one: serve(one[0], native=one[1]), [("plain", "0"), ("native", "1")])
    return plain, native
