"""Makes tests/fixtures/stores/<version>.tar.xz: what each MLflow version records, and how it reads it itself.

    .venv/bin/python scripts/dev/make_store_fixtures.py [VERSION]...

Needs uv (in .venv), a way to PyPI, and Pythons 3.9, 3.10 and 3.11 on the PATH.  An archive has

    sqlite/mlflow.db  sqlite/artifacts/     sqlite.json   what MLflow reads from it
    files/mlruns/     files/artifacts/      files.json

The ids and times in them are new each time; tests compare with the witness beside them, never with fixed ones.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parents[1] / "tests" / "fixtures" / "stores"
UV = Path(sys.prefix) / "bin" / "uv"


@dataclass(frozen=True)
class Old:
    """Which Python and which other packages a version of MLflow still works with."""

    python: str
    packages: tuple[str, ...] = ()


VERSIONS = {
    "1.30.1": Old("3.9", ("numpy<2", "sqlalchemy<2", "setuptools<81")),
    "2.9.2": Old("3.10", ("numpy<2", "sqlalchemy<2.1", "setuptools<81")),
    "2.22.0": Old("3.11", ("sqlalchemy<2.1",)),
    "3.1.4": Old("3.11", ("sqlalchemy<2.1",)),
    "3.17.2": Old("3.11"),
}


def make(version: str, folder: Path) -> Path:
    """Records with one version in an environment of its own; gives the archive."""
    old = VERSIONS[version]
    python = folder / f"venv-{version}" / "bin" / "python"
    subprocess.run([UV, "venv", "--quiet", "--python", old.python, python.parents[1]], check=True)
    packages = [f"mlflow=={version}", *old.packages]
    subprocess.run([UV, "pip", "install", "--quiet", "--python", python, *packages], check=True)
    place = folder / version
    for kind, uri in (("sqlite", f"sqlite:///{place}/sqlite/mlflow.db"), ("files", f"file://{place}/files/mlruns")):
        (place / kind).mkdir(parents=True)
        # MLflow leaves folders where it stands
        command = [python, HERE / "store_recorder.py", uri, place / kind / "artifacts", place / f"{kind}.json"]
        subprocess.run(command, check=True, cwd=place / kind)
    archive = FIXTURES / f"{version}.tar.xz"
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for path in sorted(place.iterdir()):
            tar.add(path, path.name, filter=_nobodys)
    return archive


def _nobodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def main() -> None:
    FIXTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="labtrack-stores-") as folder:
        for version in sys.argv[1:] or VERSIONS:
            made = make(version, Path(folder))
            print(f"{made.relative_to(HERE.parents[1])}: {made.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
