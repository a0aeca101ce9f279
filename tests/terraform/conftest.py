"""Terraform and OpenTofu on a copy of terraform/, with the provider where it can be had; no cloud."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("terraform", "tofu")
Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session", params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> str:
    """The path of the program; skipped by name where it is not installed."""
    path = shutil.which(request.param)
    if not path:
        pytest.skip(f"{request.param} is not installed")
    return path


def runner(program: str, folder: Path) -> Run:
    """Runs the program in a folder, without the caller's cloud."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OS_", "TF_"))}
    if "TF_CLI_CONFIG_FILE" in os.environ:
        kept["TF_CLI_CONFIG_FILE"] = os.environ["TF_CLI_CONFIG_FILE"]  # may name a mirror of the provider

    def run(*arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [program, *arguments],
            cwd=folder,
            env={**kept, "TF_IN_AUTOMATION": "1", **environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def terraform(program: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the program in a copy of terraform/ that is initialised; skipped where its provider can't be had."""
    checkout = tmp_path_factory.mktemp("checkout")
    (checkout / "private").mkdir()
    folder = Path(
        shutil.copytree(ROOT / "terraform", checkout / "terraform", ignore=shutil.ignore_patterns(".terraform*"))
    )
    run = runner(program, folder)
    done = run("init", "-input=false", "-no-color")
    if done.returncode:
        pytest.skip(f"the OpenStack provider can't be had: {' '.join(done.stderr.split())[:300]}")
    return run
