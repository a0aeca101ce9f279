"""MLflow on the drill's restored copy, for one drill: run by labtrack-drill@.service, with the release's Python.

Usage: labtrack_serve.py CODE   (the folder that has the lab's application)

Standard input and output are the drill's connection.  A line of JSON comes first: the databases' addresses, and the
socket to answer at.  What goes back, if anything does, is why MLflow does not run.  When the connection ends, so does
this, whatever has ended the drill.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import threading
import traceback
from pathlib import Path

AUTH_INI = """[mlflow]
default_permission = NO_PERMISSIONS
database_uri = {auth}
admin_username = admin
auth_cache_ttl_seconds = 60
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


def end_with(connection: int) -> None:
    """At once: of what is here, nothing is kept."""
    while os.read(connection, 1024):
        pass
    os._exit(0)


def main() -> int:
    given = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with, args=(sys.stdin.fileno(),), daemon=True).start()
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what MLflow prints is for the journal
    folder = Path(os.environ["RUNTIME_DIRECTORY"])
    (folder / "auth.ini").write_text(AUTH_INI.format(**given))
    os.environ |= {
        "_MLFLOW_SERVER_FILE_STORE": given["tracking"], "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(), "_MLFLOW_AUTH_ADMIN_BOOTSTRAPPED": "true",
        "LABTRACK_RUN_DIRECTORY": str(folder), "HOME": str(folder),
    }  # fmt: skip
    sys.path.insert(0, sys.argv[1])
    try:
        import uvicorn
        from labtrack_server import create_app
        from mlflow.server.handlers import _get_tracking_store

        app = create_app()  # which has the accounts' database
        _get_tracking_store()  # else it is opened by the first request
        uvicorn.run(app, uds=given["socket"], access_log=False, log_level="warning")
    except (Exception, SystemExit) as error:  # whatever it is, the drill tells it
        traceback.print_exc()
        answer.write(f"{type(error).__name__}: {error}"[:2000])
        answer.flush()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
