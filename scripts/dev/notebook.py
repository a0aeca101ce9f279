"""notebook.py SOURCE FOLDER: runs notebooks/analysis.ipynb from top to bottom, which writes into FOLDER."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "analysis.ipynb"


def run(source: str, folder: Path, env: Mapping[str, str] = os.environ, timeout: int = 300) -> str:
    """Runs the notebook; gives what its cells printed.

    env: the variables that it sees, with the login of a server.  timeout: seconds for each cell.
    Raises nbclient's CellExecutionError with the traceback of a cell that fails.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, kernel_name="python3", timeout=timeout, resources=where)
    variables = {**env, "LABTRACK_SOURCE": source, "LABTRACK_OUTPUT": str(folder)}
    client.execute(env=variables)
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", ())]
    return "\n".join(one.get("text") or one.get("data", {}).get("text/plain", "") for one in outputs)


if __name__ == "__main__":
    print(run(sys.argv[1], Path(sys.argv[2])))
