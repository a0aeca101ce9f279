"""What the roles give PostgreSQL and MLflow of a machine's memory: all of it together fits, on small machines too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROOT = Path(__file__).resolve().parents[2]
REAL = 0.96  # of what a flavor promises Linux has so much to give
POSTGRES_MOST = 0.5  # of the machine: MemoryMax of the unit
# MiB, as estimated: make bench, and docs/reference/performance.md.
BACKEND = 2  # of a connection beside what it sorts
VACUUMS = 3  # autovacuum_max_workers, PostgreSQL's own number
IDLE = 200  # an instance of MLflow
SYSTEM = 190  # kernel, systemd, journal, ssh
NGINX = 60
FIGURES = 250  # with lab_metrics


def rendered(role: str, memory: int, **more: Any) -> Templar:
    """What the role ROLE would compute on a machine with so many MiB."""
    loader = DataLoader()
    variables: dict[str, Any] = {"ansible_facts": {"memtotal_mb": memory, "distribution_release": "trixie"}}
    for part in ("defaults", "vars"):
        variables |= loader.load_from_file(str(ROOT / f"roles/{role}/{part}/main.yml"), trusted_as_template=True)
    return Templar(loader, variables | more)


def megabytes(value: str) -> int:
    assert value.endswith("MB"), value
    return int(value.removesuffix("MB"))


def deployed(instances: int) -> dict[str, Any]:
    """What playbooks/deploy.yml tells the role postgresql about who comes."""
    plays = yaml.safe_load((ROOT / "playbooks/deploy.yml").read_text())
    (said,) = (
        role["vars"]["postgresql_connections"]
        for play in plays
        for role in play.get("roles", [])
        if role["role"] == "postgresql"
    )
    templar = Templar(DataLoader(), {"lab_mlflow_instances": instances})
    found: list[dict[str, Any]] = templar.template(
        [{key: trust_as_template(value) for key, value in one.items()} for one in said]
    )
    return {"postgresql_connections": found}


def postgres(memory: int, instances: int) -> int:
    """MiB that PostgreSQL has where all connections sort, and all that vacuums does."""
    role = rendered("postgresql", memory, **deployed(instances))
    settings = role.template(trust_as_template("{{ __postgresql_settings }}"))
    connections = int(role.template(trust_as_template("{{ __postgresql_needed }}")))
    assert connections == instances * 30 + 10
    return (
        megabytes(settings["shared_buffers"])
        + megabytes(settings["maintenance_work_mem"])
        + VACUUMS * megabytes(settings["autovacuum_work_mem"])
        + connections * (megabytes(settings["work_mem"]) + BACKEND)
    )


def instance(memory: int, instances: int) -> int:
    """MiB that one instance may have."""
    role = rendered("mlflow", memory, mlflow_instances=instances)
    return int(role.template(trust_as_template("{{ __mlflow_memory_mb }}")))


# 2 is less than a lab is told to have, 3 is that; with more cores come more instances.
@pytest.mark.parametrize(("gigabytes", "instances"), [(2, 2), (3, 2), (4, 2), (4, 1), (8, 2), (8, 4), (16, 6)])
def test_all_that_a_server_runs_fits_into_its_memory(gigabytes: int, instances: int) -> None:
    memory = int(gigabytes * 1024 * REAL)
    database, most = postgres(memory, instances), instance(memory, instances)
    assert database <= memory * POSTGRES_MOST  # else PostgreSQL is ended by its own unit
    assert f"MemoryMax={POSTGRES_MOST:.0%}" in (ROOT / "roles/postgresql/templates/unit.conf.j2").read_text()
    # one instance that takes all that it may is ended before the machine has none left
    figures = FIGURES if gigabytes >= 4 else 0
    together = database + most + (instances - 1) * IDLE + NGINX + SYSTEM + figures
    assert together <= memory, (database, most)
    assert most >= 2 * IDLE


SIZES = ("shared_buffers", "work_mem", "maintenance_work_mem", "autovacuum_work_mem")


@pytest.mark.parametrize(
    ("gigabytes", "expected"), [(2, (393, 4, 78, 19)), (4, (786, 8, 157, 39)), (8, (1572, 16, 314, 78))]
)
def test_postgresql_s_settings_follow_the_machine(gigabytes: int, expected: tuple[int, ...]) -> None:
    role = rendered("postgresql", int(gigabytes * 1024 * REAL), **deployed(2))
    settings = role.template(trust_as_template("{{ __postgresql_settings }}"))
    assert tuple(megabytes(settings[name]) for name in SIZES) == expected
