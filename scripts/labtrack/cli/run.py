"""`labtrack run`, `labtrack reconcile` and `labtrack follow`: jobs on a cluster, and how they ended."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from labtrack.cli import output
from labtrack.cli.options import together
from labtrack.errors import BadInputError, Exit

if TYPE_CHECKING:
    from labtrack.run.reconcile import Outcome

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
    click.option(
        "--container", metavar="IMAGE", help="Run the command in this image, by apptainer, with the folder in it."
    ),
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
    if not hasattr(os, "fork"):
        raise BadInputError(
            "labtrack run needs Linux or macOS.", "record with MLFLOW_TRACKING_URI=labtrack:///... itself."
        )
    from labtrack.run.main import run as run_command
    from labtrack.run.prepare import Options
    from labtrack.run.signals import die_interrupted

    options = Options(sync=not no_sync, **given)
    ending = run_command(command, options, lambda text: output.line(f"labtrack: {text}", err=True))
    if ending.interrupted:
        die_interrupted()
    sys.exit(ending.code)


@click.command()
@click.option(
    "-s",
    "--source",
    "folder",
    metavar="FOLDER",
    help="The folder that jobs record into.  [default: that of `labtrack run`, if -d is not given]",
)
@click.option("-d", "--destination", metavar="URI", help="Also, or only, end your runs at this server.")
@click.option("--dry-run", is_flag=True, help="Show what would be changed, and change nothing.")
@click.option("--json", "as_data", is_flag=True, help="Print a JSON report.")
def reconcile(folder: str | None, destination: str | None, dry_run: bool, as_data: bool) -> None:
    """End the runs whose jobs have ended, with the reason that Slurm gives.

    Every run that is RUNNING and has the tag labtrack.job is looked up with `sacct`; its status and tags (slurm.end,
    exit code, memory, node, who cancelled it, limit, GPU hours) are written to the recording, from where `labtrack
    sync` brings them to the server.  `labtrack sync` does the same by itself where there is sacct.  Without accounting
    `scontrol` is asked; without Slurm the job's last sign of life counts, an hour after it.

    A run whose job may still go on, or that Slurm does not know (yet), is left alone.  So are other people's.

    Exit code 0 done, 1 something could not be written, 2 wrong usage or input.
    """
    from labtrack.run.reconcile import reconcile as work
    from labtrack.run.recording import folder_of

    place = folder_of(folder, os.environ) if folder or not destination else None
    outcome = work(place, destination, dry_run=dry_run)
    if as_data:
        output.data(outcome.as_data())
    else:
        _tell(outcome, dry_run=dry_run)
    sys.exit(Exit.FAILED if outcome.failed else Exit.OK)


def _tell(outcome: Outcome, *, dry_run: bool) -> None:
    for note in outcome.notes:
        output.line(f"note: {note}", err=True)
    rows = [
        (one.run_id, one.name, one.job, one.verdict.status or "as it was", why_of(one.verdict.tags))
        for one in outcome.changes
    ]
    if rows:
        output.table(("run", "name", "job", "status", "why"), rows)
    for run_id, why in outcome.failed.items():
        output.line(f"failed: run {run_id}: {why}", err=True)
    for run_id, why in outcome.left.items():
        output.line(f"left RUNNING: run {run_id}: {why}")
    ended = "would be ended" if dry_run else "ended"
    output.line(f"{len(rows)} runs {ended}, {len(outcome.left)} left RUNNING, {len(outcome.failed)} failed.")


def why_of(tags: Mapping[str, str]) -> str:
    """The end of a job in a few words."""
    end = tags.get("slurm.end") or tags.get("labtrack.end", "")
    more = [
        f"by {tags['slurm.cancelled_by']}" if "slurm.cancelled_by" in tags else "",
        f"exit code {tags['slurm.exit_code']}" if tags.get("slurm.exit_code", "0") != "0" else "",
        f"signal {tags['slurm.exit_signal']}" if "slurm.exit_signal" in tags else "",
        f"node {tags['slurm.failed_node']}" if "slurm.failed_node" in tags else "",
    ]
    return ", ".join(filter(None, (end, *more)))


@click.command()
@click.option("-f", "--folder", metavar="FOLDER", help=_FOLDER)
@click.option("-d", "--destination", metavar="URI", help="The server.  [default: that of your mlflow_env.sh]")
@click.option("--partition", metavar="NAME", help="Where the server can be reached from.  [default: looked for]")
@click.option("--account", metavar="NAME", help="The account for Slurm.")
@click.option("--stop", is_flag=True, help="Take away what follows the folder.")
def follow(folder: str | None, destination: str | None, partition: str | None, account: str | None, stop: bool) -> None:
    """Have recordings sent by Slurm itself: once in a job script, or once for ever.

    In a job: submits a job that sends the folder after this one has ended, however that was.  On a login node: writes
    a line of scrontab where the site allows it, else submits a short job that submits itself again.  Asked twice, there
    is one.  It says what it did; --stop takes it away.
    """
    from labtrack.run import follow as following
    from labtrack.run.recording import folder_of

    place = folder_of(folder, os.environ)
    if stop:
        for line in following.stop(place) or [f"nothing follows {place}"]:
            output.line(line)
        return
    done = following.follow(following.wanted(place, destination, partition, account, os.environ), os.environ)
    for line in (done.what, *done.lines):
        output.line(line)


COMMANDS: tuple[click.Command, ...] = (run, reconcile, follow)
