"""An environment with something that looks like MLflow from outside, and answers in a tenth of a second.

Its server says what it was asked; its database has MLflow's tables.  What the real one does is asked in tests/sync.
"""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

from recorded import KINDS, kept

SCHEMA = "3.17.2"
_PYTHON = """#!/bin/sh
exec {python} {folder}/program.py "$@"
"""
_PROGRAM = """
import http.server, json, os, shutil, socketserver, sys
from pathlib import Path
here, arguments = Path(__file__).parent, sys.argv[1:]
if arguments[:1] == ["-c"] and "find_spec" in arguments[1]:
    print(here / "mlflow" / "__init__.py")
elif arguments[:1] == ["-c"]:
    shutil.copyfile(here / "empty.db", "mlflow.db")
elif arguments[:3] == ["-m", "mlflow", "db"]:
    sys.exit("this one upgrades nothing")
elif (here / "broken").exists():
    sys.exit("it can't start")
else:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            said = json.dumps({"path": self.path, "method": self.command, "headers": self.headers.items(),
                               "length": len(body), "pid": os.getpid(), "arguments": sys.argv}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)
        do_POST = do_PUT = do_DELETE = do_GET
        def address_string(self):
            return "somebody"
    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True
    (here / "pid").write_text(str(os.getpid()))
    Server(arguments[arguments.index("--uds") + 1], Handler).serve_forever()
"""


def make(folder: Path) -> Path:
    """The environment, at `folder`; its schema is that of the recordings of MLflow 3.17.2."""
    package = folder / "mlflow"
    for part in ("server/js/build", "store/db_migrations/versions"):
        (package / part).mkdir(parents=True)
    for name in ("__init__.py", "server/js/build/index.html", "server/fastapi_app.py"):
        (package / name).touch()
    (package / "version.py").write_text(f'VERSION = "{SCHEMA}"\n')
    with sqlite3.connect(kept(SCHEMA) / KINDS["sqlite"]) as source:
        (schema,) = source.execute("SELECT version_num FROM alembic_version").fetchone()
    (package / "store/db_migrations/versions/one.py").write_text(f'revision = "{schema}"\ndown_revision = "before"\n')
    with sqlite3.connect(folder / "empty.db") as made:
        for (sql,) in source.execute("SELECT sql FROM sqlite_master WHERE sql NOT NULL AND name NOT LIKE 'sqlite_%'"):
            made.execute(sql)
        made.execute("INSERT INTO alembic_version VALUES (?)", [schema])
        made.execute("INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (0, 'Default', 'active')")
    source.close()
    made.close()
    (folder / "program.py").write_text(_PROGRAM)
    (folder / "bin").mkdir()
    (folder / "bin/python").write_text(_PYTHON.format(python=sys.executable, folder=folder))
    (folder / "bin/python").chmod(0o755)
    return folder
