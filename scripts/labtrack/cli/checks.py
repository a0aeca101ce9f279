"""Commands that look: at a new lab's settings, at what would stop a deploy, and at the deployed server from outside."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from pathlib import Path

import click

from labtrack.cli import output
from labtrack.cli.admin import CLOUD, JSON, LAB, tell_of_checkout
from labtrack.doctor.result import Result, Status, worst
from labtrack.errors import Exit


@click.command(hidden=True)
@click.argument("fqdn")
@click.argument("certificate_file", type=click.Path(path_type=Path))
@click.argument("key_file", type=click.Path(path_type=Path))
@click.option("--ca-file", type=click.Path(path_type=Path), metavar="FILE", help="Where a private CA may be.")
def certificate(fqdn: str, certificate_file: Path, key_file: Path, ca_file: Path | None) -> None:
    """Judge a certificate and its key for the server FQDN; print both as nginx takes them, as JSON."""
    from labtrack import certificates

    served = certificates.provided(certificate_file, key_file, fqdn, ca_file)
    for what, hint in served.warnings:
        output.line(f"attention: {what} {hint}", err=True)
    output.data({"certificate": served.chain, "key": served.key})


@click.command()
@LAB
@CLOUD
@click.option(
    "--clouds-file", type=click.Path(path_type=Path, exists=True), metavar="FILE", help="Read this clouds.yaml."
)
@click.option("--fqdn", default="", metavar="NAME", help="The server's DNS name: with it, the certificate is chosen.")
def init(lab_dir: Path, cloud: str | None, clouds_file: Path | None, fqdn: str) -> None:
    """Write the lab.yml of a new lab, filled in with what its cloud has."""
    from labtrack import lab, newlab

    made = newlab.init(lab_dir, cloud, clouds_file, fqdn)
    tell_of_checkout(lab_dir)
    output.line(f"Written: {lab.lab_yml(lab_dir)}, from what {made.found.title} has.")
    if made.name.fqdn:
        output.line(f"Chosen:  lab_certificate: {made.name.certificate}, because {made.name.why}")
    output.line(f"Fill in: {', '.join(made.missing)}; they are marked FILL IN.")
    output.line(f"Then:    labtrack preflight {lab_dir}")


@click.command()
@LAB
@CLOUD
@click.option("--local", is_flag=True, help="Look at this machine alone; ask no cloud.")
@JSON
def preflight(lab_dir: Path, cloud: str | None, local: bool, as_data: bool) -> None:
    """Check what can be checked before anything is made: lab.yml, tools, vault; login, quotas, names in the cloud.

    Nothing is changed anywhere.
    """
    from labtrack import preflight as on_this_machine

    rows = list(on_this_machine.check(lab_dir))
    bad_lab = any(row.status is Status.FAILED and row.check.startswith("lab.yml") for row in rows)
    if not (local or bad_lab):
        from labtrack import lab
        from labtrack.cloud import preflight as in_the_cloud

        rows += in_the_cloud.check(lab.load(lab_dir), cloud)
    if output.results(rows, as_data=as_data) is Status.FAILED:
        sys.exit(Exit.BAD_INPUT if bad_lab else Exit.FAILED)


@click.command()
@LAB
@CLOUD
@click.option("--all-ports", is_flag=True, help="Try all TCP ports, which looks like an attack: ask the cloud first.")
@JSON
def verify(lab_dir: Path, cloud: str | None, all_ports: bool, as_data: bool) -> None:
    """Check from outside that the server exposes only what it should; exit 0 ok, 1 warnings, 2 failed.

    The cloud is asked for security-group rules that the lab does not want.
    """
    from concurrent.futures import ThreadPoolExecutor

    from labtrack import bucket, lab
    from labtrack import preflight as on_this_machine
    from labtrack.cloud import rules
    from labtrack.doctor import closed
    from labtrack.envfile import read_envfile

    loaded = lab.load(lab_dir)
    variables = read_envfile(loaded.env_file(lab.VERIFY_USER)).variables
    login = (variables["MLFLOW_TRACKING_USERNAME"], variables["MLFLOW_TRACKING_PASSWORD"])
    exposed = partial(closed.check, every_port=all_ports, renewal=loaded.certificate)
    parts: tuple[Callable[[], Iterable[Result]], ...] = (
        lambda: on_this_machine.moved(loaded),
        lambda: exposed(loaded.fqdn, login, loaded.server_ca),
        lambda: rules.check(loaded, cloud),
        lambda: bucket.check(loaded),
    )
    with ThreadPoolExecutor() as pool:  # each waits for somebody else's answers
        rows = chain.from_iterable(pool.map(lambda part: list(part()), parts))
        status = output.results(rows, as_data=as_data)
    sys.exit(output.DOCTOR_EXIT[status])


@click.command()
@LAB
@click.option(
    "--report", is_flag=True, help="What the week brought instead: runs, people, growth, until when there is room."
)
@JSON
def status(lab_dir: Path, report: bool, as_data: bool) -> None:
    """Show how the server is: services, backups, certificate, room; exit 0 ok, 1 warnings, 2 failed.

    The server looks at itself (labtrack-status there), and is asked by the way that the playbooks take.
    """
    from labtrack import lab, serverstatus

    said = (serverstatus.week if report else serverstatus.ask)(lab.load(lab_dir))
    if "text" in said:
        if as_data:
            output.data(said)
        else:
            output.line(said["text"])
        return
    rows = serverstatus.rows(said)
    if as_data:
        output.data(said)
    else:
        output.results(rows, as_data=False)
    sys.exit(output.DOCTOR_EXIT[worst(rows)])


COMMANDS: tuple[click.Command, ...] = (certificate, init, preflight, verify, status)
