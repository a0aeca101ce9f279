"""MLflow's tracking server with its accounts, as a lab runs it.

`labtrack_server:create_app` is what uvicorn runs instead of `mlflow.server.auth:create_app`: the same application, with
what a lab adds to it (docs/decisions/0011-what-the-server-adds.md).

- caches    permissions and passwords are remembered, and forgotten by all instances when an account changes
- locations where artifacts may be, and whose they are
- traces    a trace stays in its experiment, and its data where the experiment keeps them
- storage   artifacts on their way through the server, without a file on its disk
- answers   refusals that name the way out, and lists of the asker's own grants
- points    thousands of points of a run in one request, for `labtrack sync`
- spellings an experiment's number has one spelling, and no other has a permission
- closed    what this server does not offer, each with a sentence
- limits    how long and how deep a request may be
- straight  the training loop's requests without MLflow's layers for other routes
- native    its writes, and reads of runs, without MLflow's handlers, where that is certain: writes, runs and reads
            (what is asked), database (one statement), printing (MLflow's JSON)
- figures   how many requests, how long, and what they brought, for Prometheus

All of it reaches into MLflow, and MLflow without it lets accounts read each other's artifacts.  So with another version
than those that it was written and tested for, or with workspaces, the server does not start.
"""

from labtrack_server.patching import without

# MLflow takes them along where they are there, for signatures of models and tables in memory, which no route of a
# server has: of 268 MiB (PSS) of an instance alone 50.
with without("pyarrow", "scipy"):
    from labtrack_server.application import KNOWN_VERSIONS, create_app

__all__ = ["KNOWN_VERSIONS", "create_app"]
