"""What the playbooks call to have the machine made."""

from __future__ import annotations

from pathlib import Path

import click

from labtrack.cli import output
from labtrack.cli.admin import CLOUD, JSON, LAB


@click.group()
def provision() -> None:
    """The machine and the bucket that Terraform makes."""


@provision.command()
@LAB
@CLOUD
@click.option("--lenient", is_flag=True, help="Let what lab.yml names be gone from the cloud: to destroy the rest.")
@JSON
def prepare(lab_dir: Path, cloud: str | None, lenient: bool, as_data: bool) -> None:
    """Write what Terraform reads: the completed lab, and the login.

    build/<lab>/lab.json has every setting of lab.yml, with defaults, and the ids of what it names in the cloud;
    private/<lab>/terraform/clouds.yaml the one login that was found.  Nothing is changed in the cloud.
    """
    from labtrack import lab
    from labtrack.provision import prepare as prepared

    ready = prepared.prepare(lab.load(lab_dir), cloud, lenient=lenient)
    if as_data:
        output.data({"lab_file": str(ready.lab_file), "environment": ready.environment})
        return
    output.line(f"Written: {ready.lab_file}")
    output.line(f"Written: {ready.clouds_file}, with the entry {ready.environment['OS_CLOUD']}")
