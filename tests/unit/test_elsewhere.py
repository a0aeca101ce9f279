"""Machines that lack what Linux at home has: modules, locks, a home that may be written to."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from labtrack import files
from labtrack.errors import Exit, LabtrackError
from labtrack.sync import duplicates
from labtrack.sync.journal import Entry, Journal

# What Windows has not; some of it macOS neither.  Of the package all is imported but what needs the admin's packages.
HIDDEN = """
import os, sys, pkgutil, importlib
ADMIN = ("ansible", "jinja2", "jsonschema", "keystoneauth1", "openstack")
for name in ("fcntl", "pwd", "grp", "resource", "termios", *ADMIN):
    sys.modules[name] = None
for name in ("getuid", "geteuid", "O_CLOEXEC", "pread", "pwrite"):
    delattr(os, name)
import labtrack
for one in pkgutil.walk_packages(labtrack.__path__, "labtrack."):
    if not one.name.endswith("__main__"):
        try:
            importlib.import_module(one.name)
        except ModuleNotFoundError as error:
            if error.name.split(".")[0] not in (*ADMIN, "mlflow", "sqlalchemy"):  # the recorder is MLflow's plugin
                raise
for name in ("labtrack.sync.main", "labtrack.doctor.run", "labtrack.cli", "labtrack.doctor.closed"):
    assert name in sys.modules, name
from pathlib import Path
from labtrack import files
from labtrack.envfile.read import check
from labtrack.stores.values import owner
with files.lock(Path(sys.argv[1]) / "lock", "x", needed=False) as trouble:
    print("lock:", trouble)
print("owner:", owner(Path(sys.argv[1])))
Path(sys.argv[1], "file").write_text("x")
print("file:", [one.seen for one in check(Path(sys.argv[1], "file"))][0])
"""


def test_all_of_the_client_is_imported_where_unix_modules_are_missing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HIDDEN, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert "no such locks" in lines["lock"] and "no owners and modes" in lines["file"]
    assert lines["owner"] == str(os.getuid())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with files.lock(tmp_path / "lock", "x", needed=False) as trouble:
        assert "can't be locked" in trouble and os.strerror(number) in trouble
    with pytest.raises(LabtrackError, match="can't be locked"), files.lock(tmp_path / "lock", "x"):
        pass


def test_a_home_that_can_not_be_written_to_is_told(tmp_path: Path) -> None:
    home = tmp_path / "full"
    home.write_text("not even a folder: root may write to any")
    with files.lock(home / "state" / "lock", "x", needed=False) as trouble:
        assert str(home) in trouble
    journal = Journal(home / "state", "https://s", "store")
    journal.start("a", Entry("copy"))
    assert journal.entry("a", "copy", "") and "goes on without it" in journal.trouble
    with pytest.raises(LabtrackError), files.lock(home / "state" / "lock", "x"):
        pass


def test_a_lock_that_somebody_has_ends_a_sync_all_the_same(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(files.lock(tmp_path / "lock", "first"))
        with pytest.raises(LabtrackError, match="`first`") as raised, files.lock(tmp_path / "lock", "x", needed=False):
            pass
    assert raised.value.code == Exit.LOCKED


def test_without_a_lock_no_other_sync_takes_these_copies_for_its_own(tmp_path: Path) -> None:
    assert duplicates.maker(tmp_path) == duplicates.maker(tmp_path)
    assert duplicates.maker(tmp_path, locked=False) != duplicates.maker(tmp_path, locked=False)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert files.home({}) == tmp_path / f"labtrack-{os.getuid()}"
    assert files.home({"HOME": "/x"}) == Path("/x")
