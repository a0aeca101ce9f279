"""Makes tests/fixtures/foreign/<name>.tar.xz: what other trackers record, by their own packages.

    .venv/bin/python scripts/dev/make_foreign_fixtures.py [NAME]...

Needs uv (in .venv), a way to PyPI, and Python 3.11 on the PATH.  What is recorded is in foreign_recorder.py.  An
archive that has a name or a path of this machine in it is refused.
"""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parents[1] / "tests" / "fixtures" / "foreign"
UV = Path(sys.prefix) / "bin" / "uv"


@dataclass(frozen=True)
class Tracker:
    """The packages that record, and what foreign_recorder.py calls the format."""

    packages: tuple[str, ...]
    records: str
    python: str = "3.11"
    options: tuple[str, ...] = ()


TRACKERS = {
    "tensorboard": Tracker(("tensorboardX==2.6.5", "tensorboard==2.21.0"), "tensorboard"),
    "csvlogger": Tracker(
        ("pytorch-lightning==2.6.6", "lightning-utilities", "packaging", "pyyaml", "fsspec", "typing-extensions"),
        "csvlogger",
        options=("--no-deps",),
    ),
    "dvclive": Tracker(("dvclive==3.49.1", "pillow", "scikit-learn"), "dvclive"),
    "sacred": Tracker(("sacred==0.8.7", "setuptools<81"), "sacred"),
    "trackio": Tracker(("trackio==0.43.0",), "trackio"),
    "wandb": Tracker(("wandb==0.31.0", "numpy", "pillow"), "wandb"),
    "wandb-0.12": Tracker(("wandb==0.12.21", "setuptools<81", "protobuf<3.21", "numpy<2"), "wandb"),
}


def make(name: str, folder: Path) -> Path:
    """Records with one tracker in an environment of its own; gives the archive."""
    tracker = TRACKERS[name]
    python = folder / f"venv-{name}" / "bin" / "python"
    subprocess.run([UV, "venv", "--quiet", "--python", tracker.python, python.parents[1]], check=True)
    subprocess.run(
        [UV, "pip", "install", "--quiet", "--python", python, *tracker.options, *tracker.packages], check=True
    )
    place = folder / name
    home = folder / f"home-{name}"
    home.mkdir()
    neutral = {"HOME": str(home), "USER": "ada", "LOGNAME": "ada", "USERNAME": "ada", "PATH": os.environ["PATH"]}
    subprocess.run([python, HERE / "foreign_recorder.py", tracker.records, place], check=True, env=neutral)
    told = told_of_this_machine(place, folder)
    if told:
        raise SystemExit(f"{name} has something of this machine in it: {told}")
    FIXTURES.mkdir(parents=True, exist_ok=True)
    archive = FIXTURES / f"{name}.tar.xz"
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for path in sorted(place.iterdir()):
            tar.add(path, path.name, filter=_nobodys)
    return archive


def told_of_this_machine(place: Path, folder: Path) -> list[str]:
    """Files that have its name, its user or a path of it in them, with what it is."""
    words = {socket.gethostname(), getpass.getuser(), str(folder), str(Path.home()), os.uname().nodename, str(HERE)}
    files = [path for path in place.rglob("*") if path.is_file()]
    return [
        f"{path.relative_to(place)}: {word}"
        for path in files
        for word in sorted(words)
        if word.encode() in path.read_bytes() or word in path.name
    ]


def unpack(name: str, place: Path) -> Path:
    """What one tracker recorded, at `place`."""
    with tarfile.open(FIXTURES / f"{name}.tar.xz") as tar:
        tar.extractall(place, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(place)  # noqa: S202
    return place


def _nobodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="labtrack-foreign-") as folder:
        for name in sys.argv[1:] or TRACKERS:
            made = make(name, Path(folder))
            print(f"{made.relative_to(HERE.parents[1])}: {made.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
