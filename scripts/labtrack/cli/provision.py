"""What the playbooks call to have the machine made and taken away."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from labtrack.cli import output
from labtrack.cli.admin import CLOUD, JSON, LAB

SOURCE = click.option(
    "--source",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The kit's folder terraform/, where it is another's.",
)
PROGRAM = click.option(
    "--program", default="", metavar="NAME", help="terraform or tofu, in place of the first of the two that PATH has."
)
PROJECT = click.option(
    "--expected-project", default="", metavar="ID", help="The project that the lab's server is in: another is refused."
)


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


@provision.command()
@LAB
@CLOUD
@SOURCE
@PROGRAM
@PROJECT
@click.option("--replace-server", is_flag=True, help="Make the server anew: everything on its own disk is lost.")
@click.option("--only-look", is_flag=True, help="Show the plan and keep none.")
@JSON
def plan(lab_dir: Path, source: Path | None, as_data: bool, **given: Any) -> None:
    """Plan what lab.yml asks for, and show it: `labtrack provision apply` carries it out.

    What the project has under the lab's names, and Terraform does not know, is taken over.  What lab.yml no longer
    wants made (address, volume, bucket) is kept and forgotten.  A plan that takes the server away is refused without
    --replace-server.  Exit code 69: Terraform or its provider can't be had here.
    """
    from labtrack import lab
    from labtrack.provision import make
    from labtrack.provision.terraform import Place, UnavailableError

    place = Place.of(lab.load(lab_dir), source)
    planned = make.plan(place, make.Wish(**given))
    if as_data:
        why = planned.error.why if isinstance(planned.error, UnavailableError) else ""
        output.data(
            {
                "changes": planned.changes,
                "plan": place.plan_id,
                "lines": planned.lines,
                "forgotten": planned.forgotten,
                "environment": planned.ready.environment,
                "why_not": why,
            }
        )
    else:
        for line in planned.lines:
            output.line(line)
    if planned.error:
        raise planned.error
    if not as_data and not planned.changes:
        output.line("Nothing to do: the cloud has what lab.yml asks for.")


@provision.command()
@LAB
@SOURCE
@PROGRAM
@click.option("--plan", "plan_id", default="", metavar="ID", help="The plan that `plan --json` showed: no other.")
@JSON
def apply(lab_dir: Path, source: Path | None, program: str, plan_id: str, as_data: bool) -> None:
    """Carry out the plan that was made last, and write hosts.yml.

    Ctrl-C lets Terraform end what it has begun and write it down; the next plan and apply go on from there.
    """
    from labtrack import lab
    from labtrack.provision import make
    from labtrack.provision.terraform import Place

    _done(make.apply(Place.of(lab.load(lab_dir), source), program, plan_id, shown=not as_data).lines, as_data)


@provision.command()
@LAB
@click.option("--server", "server_id", required=True, metavar="ID", help="Nova's id of the server.")
@click.option("--address", required=True, help="The address that it is reached at.")
@JSON
def host_keys(lab_dir: Path, server_id: str, address: str, as_data: bool) -> None:
    """Learn a server's SSH host keys from its console, so that the first login knows whom it talks to."""
    from labtrack import lab
    from labtrack.provision import known

    loaded = lab.load(lab_dir)
    new = known.learn_host_keys(loaded, server_id, address)
    _done([f"written: {loaded.private / 'known_hosts'}"] if new else [], as_data)


@provision.command()
@LAB
@CLOUD
@SOURCE
@PROGRAM
@PROJECT
@click.option("--also", default="", metavar="NAME,...", help="Which of bucket, volume and address are deleted too.")
@click.option("--confirm", default="", metavar="NAME", help="The lab's name, where nobody can be asked.")
@click.option("--only-look", is_flag=True, help="Say what would be lost, and lose nothing.")
@JSON
def destroy(lab_dir: Path, source: Path | None, also: str, confirm: str, as_data: bool, **given: Any) -> None:
    """Take away what Terraform has made; bucket, volume and address only where they are named.

    Says what will be lost, and wants the lab's name typed.  A bucket has to be empty.
    """
    from labtrack import lab
    from labtrack.provision import destroy as destruction
    from labtrack.provision.make import Wish
    from labtrack.provision.terraform import Place

    place = Place.of(lab.load(lab_dir), source)
    named = tuple(filter(None, (name.strip() for name in also.split(","))))
    begun = destruction.begin(place, Wish(**given), named)
    if given["only_look"]:
        begun.try_out()
        _done(begun.lines, as_data, changed=False)
        return
    if not as_data:
        for line in begun.lines:
            output.line(line)
    if not confirm and sys.stdin.isatty():
        confirm = click.prompt(f"Type {place.lab.name} to destroy this", default="", show_default=False)
    begun.refuse_without(confirm)
    _done(begun.carry_out(shown=not as_data), as_data)


def _done(lines: list[str], as_data: bool, *, changed: bool | None = None) -> None:
    """Prints what was done, a line each."""
    if as_data:
        output.data({"changed": bool(lines) if changed is None else changed, "lines": lines})
        return
    for line in lines or ["unchanged"]:
        output.line(line)
