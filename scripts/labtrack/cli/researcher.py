"""Commands for researchers.  Nothing here needs more than the client's packages."""

from __future__ import annotations

import click


@click.group()
def env() -> None:
    """mlflow_env.sh, the one file that a researcher gets."""


COMMANDS: tuple[click.Command, ...] = (env,)
