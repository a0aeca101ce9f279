"""labtrack lab: all that an admin has of a lab, as one encrypted file; and a lab that goes elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from labtrack.cli import output
from labtrack.cli.admin import LAB


@click.group()
def lab() -> None:
    """What the admin has of a lab beside git, as one file; and moving a lab to another project or cloud."""


@lab.command()
@LAB
@click.option(
    "--output", "-o", "where", type=click.Path(path_type=Path), metavar="FILE", required=True,
    help="Write it here, readable by you alone.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Write over a file that is no export.")
def export(lab_dir: Path, where: Path, force: bool) -> None:
    """Write all that the next run needs and git does not have, encrypted with the lab's vault password.

    That is private/<lab> without what can be had again, secrets.yml and hosts.yml; not your login to the cloud, and no
    SSH key but those that lab.yml names.
    """
    from labtrack import lab as labs
    from labtrack.labcopy import byhand

    found = byhand.export(labs.load(lab_dir), where, force=force)
    output.line(
        f"Written: {where}, with {len(found.files)} files.  It opens with the vault password only: keep that elsewhere."
    )
    for skipped in found.skipped:
        output.line(f"not in it: {skipped}", err=True)


@lab.command("import")
@LAB
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--from-backup", is_flag=True, help="Take the newest that the bucket of lab_backup has, and no FILE.")
@click.option("--force", is_flag=True, help="Replace files that differ; the old ones are put aside.")
def import_(lab_dir: Path, file: Path | None, from_backup: bool, force: bool) -> None:
    """Put the files of an export back where they belong, all of them or none; nothing that differs is written over.

    With --from-backup the export is the one that the server had last night.  The key is the one in secrets.yml, or,
    where that is lost, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the project that owns the bucket.
    """
    from labtrack import lab as labs
    from labtrack.labcopy import byhand

    if from_backup is bool(file):
        raise click.UsageError("Name a FILE of `labtrack lab export`, or give --from-backup.")
    brought = byhand.bring(labs.load(lab_dir), file, force=force)
    output.line(f"The export is of {brought.export.by}, {brought.export.at}.")
    for name in brought.written:
        output.line(f"written: {name.partition('/')[2]}")
    if brought.same:
        output.line(f"unchanged: {len(brought.same)} files")
    if brought.aside:
        output.line(f"what was here is in {brought.aside}")


@lab.command(hidden=True)
@LAB
@click.argument("state")
def moved(lab_dir: Path, state: str) -> None:
    """For the playbooks of a move: keep how far it is, "left for NAME"; "" for a lab that is here."""
    from labtrack import lab as labs
    from labtrack import labmoved

    if labmoved.note(labs.load(lab_dir), state):
        output.line(state or "here")


@lab.command()
@click.argument("old", type=click.Path(path_type=Path), metavar="OLD_LAB_DIR")
@click.argument("new", type=click.Path(path_type=Path), metavar="NEW_LAB_DIR")
@click.option(
    "--step", type=click.Choice(["files", "copy", "all", "open", "back"]), default="all", show_default=True,
    help="files: passwords, CA and people's files, before the new server is first deployed.  copy: artifacts, while "
    "the lab is in use.  all: close the old lab, and fill the new one.  open: let people into the new one.  back: open "
    "the old one again.",
)  # fmt: skip
@click.option("--discard-newer", is_flag=True, help="With back: give up what was recorded in the new lab.")
def move(old: Path, new: Path, step: str, discard_newer: bool) -> None:
    """Move a lab to another project or cloud: databases, artifacts, accounts, passwords, CA and name.

    Both labs are in this checkout and have the same lab_fqdn.  Each step can be called again; what was interrupted goes
    on.  The whole way is in docs/admin/move.md.
    """
    from labtrack import lab as labs
    from labtrack import labmove

    for line in labmove.between(labs.load(old), labs.load(new))(step, discard_newer=discard_newer):
        output.line(line)
