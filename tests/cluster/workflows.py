"""An environment with workflow and sweep programs that all nodes have, and what was recorded there."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Cluster

ROOT = Path(__file__).resolve().parents[2]
LOCK = (ROOT / "requirements" / "workflows.txt").read_text()
# This checkout's labtrack is found before the researcher's own environment.
INSTALL = r"""
set -e
uv venv --quiet --clear --python PYTHON env
PYTHON -c 'import site; print(site.getsitepackages()[0])' > "$(echo env/lib/python3*/site-packages)/researcher.pth"
export UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1
index=$(sed -n 's,^index-url *= *,,p' /etc/pip.conf)
if [ -n "$index" ]; then export UV_DEFAULT_INDEX=$index; fi
uv pip install --quiet --python env/bin/python PACKAGES
"""
READ = """
import json, sys
from labtrack.stores import open_store
with open_store(sys.argv[1]) as store:
    print(json.dumps([
        {"id": one.id, "name": one.name, "status": one.status, "parent": one.parent_id, "tags": dict(one.tags),
         "params": dict(one.params), "metrics": dict(store.metric_keys(one.id)),
         "files": [file.path for file in store.artifacts(one)]}
        for one in store.runs()
    ]))
"""


def installed(cluster: Cluster, folder: str, packages: set[str], sources: list[Path], **texts: str) -> None:
    """Makes the folder, with `env`, in the locked versions, `source` with packages of this checkout, and files.

    sources: folders of packages.  texts: files by their names, with _ for a dot.
    """
    cluster.ada(f"rm -rf {folder}; mkdir -p {folder}/source")
    for source in (ROOT / "scripts" / "labtrack", *sources):
        pack = ["tar", "--create", "--gzip", "--dereference", "--exclude=__pycache__", "-C", source.parent, source.name]
        packed = base64.b64encode(subprocess.run(pack, capture_output=True, check=True).stdout).decode()
        unpack = f"base64 -d | tar --extract --gzip --no-same-owner -C {folder}/source && chown -R ada: {folder}/source"
        cluster.root("login", unpack, stdin=packed, check=True)
    for name, text in {**texts, "read_py": READ}.items():
        cluster.ada(f"printf %s {shlex.quote(text)} >{folder}/{name.replace('_', '.')}")
    locked = dict(re.findall(r"^([\w-]+)(==[\w.]+)", LOCK, re.MULTILINE))
    words = " ".join(f"{name}{locked[name]}" for name in sorted(packages))
    install = INSTALL.replace("PYTHON", cluster.rehearsal.PYTHON).replace("PACKAGES", words)
    cluster.ada(f"cd {folder}\n{install}", timeout=300)


def within(folder: str, command: str) -> str:
    """A shell's line that runs a command in the folder's environment."""
    return f"cd {folder} && . env/bin/activate && export PYTHONPATH=$PWD/source && {command}"


def recorded(cluster: Cluster, folder: str) -> list[dict[str, Any]]:
    """The runs that were recorded into its `runs`."""
    found: list[dict[str, Any]] = json.loads(cluster.ada(within(folder, "python read.py runs"), timeout=60))
    return found
