"""labtrack bucket: the bucket of artifacts."""

from __future__ import annotations

from pathlib import Path

import click

from labtrack.cli import output
from labtrack.cli.admin import LAB


@click.group()
def bucket() -> None:
    """The bucket of artifacts in the object store."""


@bucket.command()
@LAB
def protect(lab_dir: Path) -> None:
    """Keep earlier versions of objects and block public access, where the store has these."""
    from labtrack import bucket as its
    from labtrack import lab

    for line in its.protect(lab.load(lab_dir)):
        output.line(line)
