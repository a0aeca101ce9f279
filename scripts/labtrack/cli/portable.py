"""`labtrack export` and `labtrack import`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from labtrack.cli import output
from labtrack.errors import BadInputError, Exit

_SOURCE = "Where they are recorded: what `labtrack sync -s` takes.  [default: MLFLOW_TRACKING_URI, else this folder]"


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("-o", "--output", "file", required=True, type=click.Path(path_type=Path), metavar="FILE", help="A zip.")
@click.option("-s", "--source", metavar="SOURCE", help=_SOURCE)
@click.option("--children", is_flag=True, help="Also the runs that are nested in them.")
@click.option("--force", is_flag=True, help="Write over FILE.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is done, step by step.")
@click.option("--json", "as_data", is_flag=True, help="Print JSON.")
def export(runs: tuple[str, ...], file: Path, source: str | None, as_data: bool, **given: bool) -> None:
    """Put RUNs with their metrics, artifacts, datasets and models into one FILE that can be sent to somebody.

    `labtrack import FILE` brings them to a server; `labtrack sync -s FILE` does the same, and a run that is there
    already is known.  The same runs give the same FILE, byte by byte.

    Exit code 0 everything is in it, 1 something was left out, which is named, 2 wrong usage or input.
    """
    from labtrack import portable
    from labtrack.stores import open_store

    with open_store(source or os.environ.get("MLFLOW_TRACKING_URI") or ".") as store:
        step = (lambda text: output.line(f"... {text}", err=True)) if given["verbose"] else None
        done = portable.export(store, runs, file, children=given["children"], force=given["force"], step=step)
    if as_data:
        output.data({**vars(done), "file": str(done.file)})
    else:
        counts = f"{done.runs} runs, {done.points:,} points, {done.artifacts:,} artifacts"
        output.line(f"{done.file}: {counts}, {done.size / 1e6:.1f} MB")
    for problem in done.problems:
        output.line(f"left out: {problem}", err=True)
    sys.exit(Exit.FAILED if done.problems else Exit.OK)


@click.command("import")
@click.argument("file", metavar="PATH")
@click.option(
    "-d", "--destination", metavar="URI", help="The server's address; MLFLOW_TRACKING_URI where it is not given."
)
@click.option("-e", "--experiment-name", "experiment", help="The experiment at the server.  [default: the name it has]")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@click.option("--verify", is_flag=True, help="Then compare both sides point by point and byte by byte.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is done, run by run.")
@click.option("--json", "as_data", is_flag=True, help="Print a JSON report.")
def import_(file: str, **given: Any) -> None:
    """Bring runs to the server that MLflow did not record there: PATH is a file or a folder.

    \b
    - a FILE of `labtrack export`;
    - event files of TensorBoard, or a folder with folders of them;
    - a `wandb` folder with offline runs;
    - folders of Lightning's CSVLogger, of DVCLive, of Sacred; Trackio's folder or one of its databases;
    - reports: config.yaml, metrics.json and figures/, or subfolders of that kind, as recorded where MLflow is off.

    Again, or after they have grown, only what is new is sent.  The exit codes are those of `labtrack sync`, which does
    the work and takes the same PATH for its -s, with all its options.
    """
    from labtrack.cli.sync import run
    from labtrack.stores.opening import is_portable

    if "://" in file or not is_portable(Path(file)):
        raise BadInputError(
            f"{file} is neither a file that `labtrack export` wrote nor runs of a tracker other than MLflow.",
            f"for what MLflow recorded: labtrack sync -s {file}",
        )
    run({"sources": (file,), "run_ids": (), "deleted": True, "expression": None, "watch": None, "jobs": 4, **given})


COMMANDS: tuple[click.Command, ...] = (export, import_)
