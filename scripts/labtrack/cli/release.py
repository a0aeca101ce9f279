"""labtrack release: for deploy.yml, which kit a lab was deployed with."""

from __future__ import annotations

from pathlib import Path

import click

from labtrack.cli import output
from labtrack.cli.admin import LAB


@click.group(hidden=True)
def release() -> None:
    """Which version of the kit the lab was deployed with."""


@release.command()
@LAB
@click.option("--older", is_flag=True, help="The lab was deployed with a later version, and that is meant.")
def check(lab_dir: Path, older: bool) -> None:
    """Refuse where this kit must not deploy what the lab has."""
    from labtrack import lab
    from labtrack import release as its

    its.check(lab.load(lab_dir), older=older)


@release.command()
@LAB
def deployed(lab_dir: Path) -> None:
    """Note that the lab was deployed with this kit."""
    from labtrack import __version__, lab
    from labtrack import release as its

    if its.note(lab.load(lab_dir)):
        output.line(f"deployed with version {__version__}")
