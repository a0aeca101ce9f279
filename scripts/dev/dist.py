"""Fills dist/: the wheel of labtrack, those of all that it needs, and labtrack.pyz for any Python 3.9 to 3.13.

Of PyYAML, the one package with compiled code, there is a wheel for each of these Pythons (Linux, x86_64) and one
without compiled code, which every other machine takes, and labtrack.pyz.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipapp
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
COMPILED = "pyyaml"
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
WITHOUT_COMPILER = {"PYYAML_FORCE_CYTHON": "0", "PYYAML_FORCE_LIBYAML": "0"}


def main() -> None:
    """Makes the folder anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "dist")
    folder = parser.parse_args().folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        own = build(Path(scratch), folder)
        needed = [own, *download(Path(scratch), folder)]
        pyz(Path(scratch) / "pyz", needed, folder / "labtrack.pyz")
    size = sum(one.stat().st_size for one in folder.iterdir()) / 1e6
    print(f"{folder}: {len(list(folder.iterdir()))} files, {size:.0f} MB")


def build(scratch: Path, folder: Path) -> Path:
    """The wheel of what git has here: a build leaves its own files beside its source."""
    source = scratch / "source"
    names = ("pyproject.toml", "README.md", "LICENSE", "schema", "scripts/labtrack")
    listed = subprocess.run(["git", "ls-files", "-z", *names], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("labtrack-*.whl")
    return wheel


def download(scratch: Path, folder: Path) -> list[Path]:
    """The wheels of what labtrack and labtrack[s3] need, by their hashes; gives those of labtrack that run anywhere."""
    for name in ("dist-s3", "dist"):
        before = set(folder.iterdir())
        plain, compiled = _split(ROOT / "requirements" / f"{name}.txt", scratch / name)
        anywhere = ("--platform", "any", "--implementation", "py", "--abi", "none", "--python-version", PYTHONS[0])
        _download(folder, plain, *anywhere)
        if compiled is not None:
            for python in PYTHONS:
                platforms = [part for one in PLATFORMS for part in ("--platform", one)]
                _download(folder, compiled, *platforms, "--python-version", python)
            _pip("wheel", "--no-deps", "--require-hashes", "--no-binary", COMPILED, "--wheel-dir", folder,
                 "--requirement", compiled, **WITHOUT_COMPILER)  # fmt: skip
    return sorted(one for one in set(folder.iterdir()) - before if one.name.endswith("-none-any.whl"))


def pyz(place: Path, wheels: list[Path], file: Path) -> None:
    """Puts wheels without compiled code into one file that Python runs."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as found:
            found.extractall(place)
    (place / "__main__.py").write_text("from labtrack.cli import main\n\nmain()\n")
    zipapp.create_archive(place, file, interpreter="/usr/bin/env python3", compressed=True)
    file.chmod(0o755)


def _split(lock: Path, folder: Path) -> tuple[Path, Path | None]:
    """A lock without the package that has compiled code, and that one alone, if it is in it."""
    folder.mkdir()
    entries = re.split(r"(?m)^(?=[a-z0-9])", lock.read_text(encoding="utf-8"))[1:]
    compiled = [one for one in entries if one.startswith(f"{COMPILED}==")]
    plain = [re.sub(r"(?m)^(\S+) ; [^\\\n]*", r"\1 ", one) for one in entries if one not in compiled]  # all systems
    (folder / "plain.txt").write_text("".join(plain), encoding="utf-8")
    (folder / "compiled.txt").write_text("".join(compiled), encoding="utf-8")
    return folder / "plain.txt", folder / "compiled.txt" if compiled else None


def _download(folder: Path, lock: Path, *what: str) -> None:
    _pip("download", "--no-deps", "--require-hashes", "--only-binary=:all:", "--dest", folder, *what,
         "--requirement", lock)  # fmt: skip


def _pip(command: str, *arguments: str | Path, **env: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check")
    subprocess.run([sys.executable, "-m", "pip", command, *quiet, *arguments], check=True, env={**os.environ, **env})


if __name__ == "__main__":
    main()
