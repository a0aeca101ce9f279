"""The application that uvicorn runs: MLflow's, with what the other modules add."""

import mlflow
from mlflow.environment_variables import MLFLOW_ENABLE_WORKSPACES
from mlflow.server import auth

from labtrack_server import (
    answers,
    caches,
    datasets,
    figures,
    identities,
    limits,
    locations,
    native,
    points,
    spellings,
    storage,
    traces,
)
from labtrack_server.closed import Closed
from labtrack_server.patching import UnknownMlflow
from labtrack_server.straight import Straight

# With which tests/abuse pass: those that lab_mlflow_version offers (docs/decisions/0011-what-the-server-adds.md).
KNOWN_VERSIONS = ("3.17.2",)


def unknown():
    """Why this MLflow must not run; empty when it may."""
    if mlflow.__version__ not in KNOWN_VERSIONS:
        return f"labtrack_server is written for MLflow {' and '.join(KNOWN_VERSIONS)}, found {mlflow.__version__}"
    return "workspaces are on, and labtrack_server does not know them" if MLFLOW_ENABLE_WORKSPACES.get() else ""


def create_app():
    """The application.  Raises UnknownMlflow where accounts could not be kept apart."""
    if why := unknown():
        raise UnknownMlflow(f"{why}. To fix: install the release of the kit's lock (playbooks/deploy.yml).")
    app = auth.create_app()
    locations.install()
    traces.install(auth.app)
    storage.install(auth.app)
    datasets.install()
    identities.install()
    points.install(auth.app)
    answers.install(auth.app)
    limits.install(auth.app)
    spellings.install()
    caches.install()  # after what decides: it remembers that
    straight = Straight(app, auth.app, native.install(auth.app))
    return figures.install(Closed(straight), straight)
