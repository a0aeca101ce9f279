"""Commands for the lab's admin.  Libraries are imported where they are used, so that --help is quick."""

from __future__ import annotations

from pathlib import Path

import click

LAB = click.argument("lab_dir", type=click.Path(path_type=Path), metavar="LAB_DIR")


@click.group()
def secrets() -> None:
    """The lab's generated secrets."""


@secrets.command()
@LAB
def ensure(lab_dir: Path) -> None:
    """Make what is missing in inventory/<lab>/group_vars/all/secrets.yml; keep what is there."""
    from labtrack import files, lab
    from labtrack import secrets as lab_secrets

    loaded = lab.load(lab_dir)
    with files.lock(loaded.private / ".lock", "labtrack secrets ensure"):
        made = lab_secrets.ensure_passwords(loaded)
    for name in made:
        click.echo(f"made {name}")
    if not made:
        click.echo(f"unchanged: {loaded.secrets_file}")


COMMANDS: tuple[click.Command, ...] = (secrets,)
