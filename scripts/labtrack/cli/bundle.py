"""labtrack bundle: what somebody needs who helps with a lab that has trouble."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from labtrack.cli import output
from labtrack.cli.admin import CLOUD, LAB
from labtrack.errors import Exit


@click.command()
@LAB
@CLOUD
@click.option(
    "--output", "-o", "where", type=click.Path(path_type=Path), metavar="FILE",
    help="Write it here instead of labtrack-bundle-<lab>-<time>.tar.gz in this folder.",
)  # fmt: skip
def bundle(lab_dir: Path, cloud: str | None, where: Path | None) -> None:
    """Write what a helper needs to see when a lab has trouble, without secrets: settings, versions, states, logs.

    Names of people and addresses are in it: read it before you send it.  Exit code 1 where the server can't be
    reached; the bundle then has what is here.
    """
    from labtrack import lab
    from labtrack.bundle import make

    loaded = lab.load(lab_dir)
    where = where or make.name_for(loaded.name)
    make.refuse_existing(where)
    gathered = make.gather(loaded, cloud)
    output.table(
        ("file", "bytes", "secrets removed"),
        [(name, f"{len(text.encode()):,}", str(gathered.removed[name] or "")) for name, text in gathered.files.items()],
    )
    for name in gathered.too_short:
        output.line(f"attention: a secret of {name} is too short to be looked for: choose a longer one.", err=True)
    make.write(gathered, where)
    output.line(f"Written: {where}.  Names of people and addresses are in it: read it before you send it.")
    if gathered.not_reached:
        output.line(f"The server is not in it.  {gathered.not_reached}", err=True)
        sys.exit(Exit.FAILED)
