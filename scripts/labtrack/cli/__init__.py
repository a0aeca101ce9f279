"""The command line: parsing and printing only.  Every command is a function elsewhere in the package."""

from __future__ import annotations

import sys

import click

from labtrack import __version__
from labtrack.cli import (
    admin,
    boards,
    checks,
    curves,
    local,
    output,
    portable,
    recorder,
    researcher,
    results,
    run,
    sync,
    ui,
)
from labtrack.cli.bucket import bucket
from labtrack.cli.bundle import bundle
from labtrack.cli.labcopy import lab
from labtrack.cli.provision import provision
from labtrack.cli.release import release
from labtrack.errors import Exit, LabtrackError

_ADMIN_PACKAGES = ("ansible", "jinja2", "jsonschema", "keystoneauth1", "openstack")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="labtrack")
def cli() -> None:
    """A research lab's own MLflow server: deployed, handed out, checked.

    For the lab's admin: preflight, provision, secrets, bucket, env, lab, users, verify,
    status, bundle.
    For researchers: doctor, sync, export, import, ui, and env check.
    On a cluster: setup, run, reconcile, follow.
    For their results: leaderboard, compare, diff, sweep, table, dataset, lineage, runs, query, snapshot,
    plot, report.
    Without a server: project, usage, clean, prune, backup, who, init-store.

    Exit codes: 0 fine, 1 something failed, 2 wrong usage or input, 3 a recording is damaged,
    69 Terraform can't be had here, 75 another call is at work.
    doctor, verify, status and env check: 0 ok, 1 warnings, 2 failed.
    """


for command in (
    *admin.COMMANDS,
    *checks.COMMANDS,
    bucket,
    bundle,
    lab,
    provision,
    release,
    *researcher.COMMANDS,
    *run.COMMANDS,
    *sync.COMMANDS,
    *portable.COMMANDS,
    *boards.COMMANDS,
    *results.COMMANDS,
    *curves.COMMANDS,
    *ui.COMMANDS,
    *local.COMMANDS,
    *recorder.COMMANDS,
):
    cli.add_command(command)
for command in admin.ENV_COMMANDS:
    researcher.env.add_command(command)


def main() -> None:
    """Runs the command line; every known failure ends with words and an exit code, not a traceback."""
    try:
        sys.exit(cli(standalone_mode=False))
    except LabtrackError as error:
        output.line(f"Error: {error}", err=True)
        sys.exit(error.code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        output.line("Stopped.", err=True)
        sys.exit(Exit.INTERRUPTED)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _ADMIN_PACKAGES:
            raise
        output.line(
            f"Error: this command is the admin's and needs the Python package {error.name}, which is not here.\n"
            'To fix: pip install "labtrack[admin]"',
            err=True,
        )
        sys.exit(Exit.BAD_INPUT)
