"""`labtrack run`, `labtrack reconcile` and `labtrack follow`: jobs on a cluster, and how they ended."""

from __future__ import annotations

import sys
from typing import Any

import click

from labtrack.cli import output
from labtrack.cli.options import together

_FOLDER = (
    "Where jobs record.  [default: LABTRACK_FOLDER, $SCRATCH/labtrack, or labtrack-runs where the job was submitted]"
)


@click.command(context_settings={"allow_interspersed_args": False})
@together([
    click.option("-f", "--folder", metavar="FOLDER", help=_FOLDER),
    click.option("-d", "--destination", metavar="URI", help="The server.  [default: that of your mlflow_env.sh]"),
    click.option(
        "--gateway", "gateways", multiple=True, metavar="USER@HOST",
        help="A host to reach the server through by ssh, where it can't be reached directly; repeatable.",
    ),
    click.option("--no-sync", is_flag=True, help="Send nothing; `labtrack sync` does it later."),
    click.option(
        "--sync-timeout", type=click.FloatRange(min=0), default=60.0, show_default=True, metavar="SECONDS",
        help="How long to go on sending after the command has ended.",
    ),
    click.option(
        "--resume", type=click.Choice(["same", "child"]), default="same", show_default=True,
        help="A requeued job goes on with its run, or makes a child of it with the tag resumedRun.",
    ),
    click.option("--console", is_flag=True, help="Record what the command prints, as an artifact."),
])  # fmt: skip
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(command: tuple[str, ...], no_sync: bool, **given: Any) -> None:
    """Run a command as a tracked job: labtrack run -- srun python train.py

    What it logs with MLflow is recorded into a folder, with what Slurm says of the job, and sent to the server while it
    runs: directly if that answers within 3 s, else through a gateway, else later.  A server or a disk that fails never
    changes the command's result.  Runs that the command leaves open are ended by its exit code.

    Every signal goes to the command once.  To get those that Slurm sends to the batch script (--signal=B:...), make it
    the script's last line: exec labtrack run -- ...

    Exit code: the command's own; 128 and the signal's number if one ended it; 127 there is no such command, 126 it
    can't be run; 2 wrong usage.
    """
    from labtrack.run.main import run as run_command
    from labtrack.run.prepare import Options
    from labtrack.run.signals import die_interrupted

    options = Options(sync=not no_sync, **given)
    ending = run_command(command, options, lambda text: output.line(f"labtrack: {text}", err=True))
    if ending.interrupted:
        die_interrupted()
    sys.exit(ending.code)


COMMANDS: tuple[click.Command, ...] = (run,)
