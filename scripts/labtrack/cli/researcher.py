"""Commands for researchers.  Nothing here needs more than the client's packages."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import click

from labtrack.cli import output
from labtrack.doctor.result import Status, worst
from labtrack.errors import BadInputError

FILE = "mlflow_env.sh"


@click.group()
def env() -> None:
    """mlflow_env.sh, the one file that a researcher gets."""


@env.command()
@click.argument("file", type=click.Path(path_type=Path), default=FILE)
@click.option("--json", "as_data", is_flag=True, help="Print JSON.")
def check(file: Path, as_data: bool) -> None:
    """Look at FILE (./mlflow_env.sh) without the network: owner, mode, place, complete and unedited.

    Exit code 0 ok, 1 warnings, 2 failed.  `labtrack doctor --file FILE` asks the server and the store too.
    """
    from labtrack.envfile import read

    sys.exit(output.DOCTOR_EXIT[output.results(read.check(file), as_data=as_data)])


@click.command()
@click.option("--write", is_flag=True, help="Also make a run with a metric and an artifact, and delete it.")
@click.option("--json", "as_data", is_flag=True, help="Print JSON.")
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Use this mlflow_env.sh instead of the variables that are set now.",
)
@click.option(
    "--cluster", is_flag=False, flag_value="", metavar="[FOLDER]",
    help="Look at a folder that jobs record into, and at the cluster around it.  [default: of MLFLOW_TRACKING_URI]",
)  # fmt: skip
def doctor(write: bool, as_data: bool, file: Path | None, cluster: str | None) -> None:
    """Say what is wrong between here, the tracking server and the object store, and how to fix it.

    The store is tried with a few small objects that are deleted again.

    --cluster looks at other things, in less than 3 seconds, which fits a job's prologue: file system, locks (also
    between the nodes of a job), SQLite files, room, quota, age, proxies, modules, containers, gateways, clock.

    Exit code 0 ok, 1 warnings, 2 failed.
    """
    from labtrack.doctor import context, run
    from labtrack.envfile import read

    if cluster is not None:
        from labtrack.doctor import cluster as clusters

        if write or file:
            raise BadInputError("--cluster looks at a folder, not at a server.", "leave --write and --file out.")
        place = Path(cluster or clusters.folder_of(os.environ)).expanduser()
        sys.exit(output.DOCTOR_EXIT[output.results(clusters.examine(place), as_data=as_data)])
    with tempfile.TemporaryDirectory(prefix="labtrack-doctor-") as folder:
        if file is not None:
            looked_at = read.check(file)
            if worst(looked_at) is Status.FAILED:  # what can't be trusted is not sourced
                sys.exit(output.DOCTOR_EXIT[output.results(looked_at, as_data=as_data)])
            variables = context.of_file(file, Path(folder))
        else:
            variables = dict(os.environ)
            known = variables.get("LABTRACK_ENV_FILE")
            file = Path(known) if known and Path(known).exists() else None
        found = run.examine(context.Context(variables, file, write))
        sys.exit(output.DOCTOR_EXIT[output.results(found, as_data=as_data)])


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default="~/labtrack-env", metavar="[FOLDER]")
@click.option(
    "--wheels",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Take labtrack from this folder, as `make dist` makes it.",
)
@click.option("--print", "shows", is_flag=True, help="Print the commands, and do nothing.")
@click.option("--json", "as_data", is_flag=True, help="Print JSON.")
def setup(folder: Path, wheels: Path | None, shows: bool, as_data: bool) -> None:
    """Make the Python environment for jobs in FOLDER (~/labtrack-env), the way this cluster wants it.

    On the Alliance's clusters: modules first, arrow before pip, then virtualenv and the wheelhouse; elsewhere a venv.
    MLflow is not newer than the server's, where MLFLOW_TRACKING_URI names one that answers.

    A second call does nothing, one after an interruption goes on. An environment that it did not make is not touched.

    Exit code 0 all is there, 1 a step failed, 2 wrong usage or input, 75 another call is at work on the folder.
    """
    from labtrack import setup as environments

    wanted = environments.plan(folder, wheels)
    if shows:
        output.line(wanted.script().rstrip())
        return
    done = environments.make(wanted, lambda text: output.line(text, err=True))
    if as_data:
        output.data(environments.as_data(wanted, done))
        return
    versions = ", ".join(f"{name} {version}" for name, version in done.versions.items())
    output.line(f"{wanted.folder}: {'made' if done.made else 'all there'}; {versions}")
    for note in done.notes:
        output.line(f"note: {note}", err=True)
    output.line("\nIn the job script, before the training:\n")
    for one in wanted.job_lines():
        output.line(f"    {one}")


COMMANDS: tuple[click.Command, ...] = (doctor, env, setup)
