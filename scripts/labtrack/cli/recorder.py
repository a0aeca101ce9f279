"""The commands around recording on a cluster."""

from __future__ import annotations

from typing import Any

import click

from labtrack.cli import output


@click.command("init-store")
@click.argument("file", required=False)
@click.option(
    "--artifacts", metavar="PLACE", help="Where artifacts go.  [default: $MLFLOW_ARTIFACTS_PATH, or mlartifacts]"
)
@click.option("-e", "--experiment", "experiments", multiple=True, metavar="NAME", help="Make this experiment too.")
@click.option(
    "--group", is_flag=False, flag_value="", metavar="GROUP", help="Its members may write; alone: the folder's."
)
@click.option("--mlflow", metavar="PATH", help="The `mlflow` to use, or its environment.  [default: where labtrack is]")
@click.option("--json", "as_data", is_flag=True, help="Print JSON.")
def init_store(file: str | None, artifacts: str | None, as_data: bool, **given: Any) -> None:
    """Make the SQLite file FILE ($MLFLOW_SQLITE_DB_PATH) for MLflow: no server, nothing to press, no race.

    For training environments in which labtrack itself can't be installed; where it can, record by
    MLFLOW_TRACKING_URI=labtrack:///... .  Many jobs may call it at once for the same FILE: one makes it.

    Exit code 0 made, or there already, 1 MLflow or the disk failed, 2 wrong usage or input.
    """
    from labtrack.local.initstore import init_store as make

    made = make(file, artifacts, **given)
    if as_data:
        output.data({
            "file": str(made.file), "uri": made.address, "artifacts": made.artifacts, "mlflow": made.mlflow,
            "was_there": made.was_there,
        })  # fmt: skip
        return
    output.line(f"{made.file}: {'is there' if made.was_there else 'made'}, for MLflow {made.mlflow}.")
    if not made.was_there:
        output.line(f"Artifacts of its experiments go to {made.artifacts}.")
    output.line(f"export MLFLOW_TRACKING_URI={made.address}")


COMMANDS: tuple[click.Command, ...] = (init_store,)
