"""`ssh://host/path` as a source, with a real sshd and a real rsync."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest
import test_recordings as recordings
from recorded import make_files, make_sqlite
from sshd import Sshd

from labtrack.errors import Exit, LabtrackError
from labtrack.stores import find_stores, open_store
from labtrack.stores.pull import pull

LABTRACK = Path(sys.executable).with_name("labtrack")


def url(sshd: Sshd, path: Path) -> str:
    return sshd.address + quote(str(path))


def ids(source: str | Path) -> list[str]:
    with open_store(source) as store:
        return sorted(run.id for run in store.runs())


def cached(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "cache" / "labtrack" / "pulled").iterdir()
    return found


@contextlib.contextmanager
def writing(database: Path) -> Iterator[None]:
    """Somebody who commits all the time."""
    script = (
        "import sqlite3, sys\n"
        "made = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)\n"
        "made.execute('CREATE TABLE IF NOT EXISTS pairs (a, b)')\n"
        "print('on', flush=True)\n"
        "for number in range(10**9):\n"
        "    made.execute('BEGIN IMMEDIATE')\n"
        "    made.execute('INSERT INTO pairs VALUES (?, 0)', (number,))\n"
        "    made.execute('UPDATE pairs SET b = a WHERE a = ?', (number,))\n"
        "    made.execute('COMMIT')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(database)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.communicate()


def test_pull_of_a_folder_with_databases_and_files(sshd: Sshd, there: Path, tmp_path: Path) -> None:
    first, second = make_sqlite(there / "run-1.db", 2), make_sqlite(there / "run-2.db", 1)
    places = find_stores(url(sshd, there))
    assert sorted(one for place in places for one in ids(place)) == sorted(first + second)
    with open_store(there / "run-1.db") as here, open_store(places[0]) as copy:
        assert here.identity == copy.identity
    for path in cached(tmp_path).rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_pull_of_one_database_takes_its_artifacts_along(sshd: Sshd, there: Path) -> None:
    (run,) = make_sqlite(there / "mlflow.db", 1)
    (there / "mlruns" / "0" / run / "artifacts").mkdir(parents=True)
    (there / "mlruns" / "0" / run / "artifacts" / "model.bin").write_bytes(b"weights")
    (there / "other").write_text("not asked for")
    place = pull(url(sshd, there / "mlflow.db"))
    assert ids(place) == [run]
    assert (place.parent / "mlruns/0" / run / "artifacts/model.bin").read_bytes() == b"weights"
    assert not (place.parent / "other").exists()


@pytest.mark.parametrize("name", ["", "/mlflow.db"])
def test_pull_brings_artifacts_from_where_the_database_says(sshd: Sshd, there: Path, tmp_path: Path, name: str) -> None:
    first, second = make_sqlite(there / "mlflow.db", 2)
    away = tmp_path / "project" / "mlruns" / "0"
    for run in (first, second, "0123456789abcdef0123456789abcdef"):
        (away / run / "artifacts").mkdir(parents=True)
        (away / run / "artifacts" / "model.bin").write_text(run)
    with contextlib.closing(sqlite3.connect(there / "mlflow.db", isolation_level=None)) as made:
        made.execute("UPDATE runs SET artifact_uri = 'file://' || ? || '/' || run_uuid || '/artifacts'", (str(away),))
        made.execute("UPDATE runs SET artifact_uri = '/etc/ssh' WHERE run_uuid = ?", (second,))
    place = pull(url(sshd, there) + name)
    shutil.move(away, tmp_path / "gone")  # as it is on another machine
    with open_store(place) as store:
        run = store.run(first)
        assert [one.path for one in store.artifacts(run)] == ["model.bin"]
        assert store.open_artifact(run, "model.bin").read().decode() == first
    copied = sorted(path.read_text() for path in cached(tmp_path).rglob("model.bin"))
    assert copied == [first]


def test_pull_of_a_folder_of_recordings_follows_their_growth(sshd: Sshd, there: Path) -> None:
    journal = recordings.write(there, "a", recordings.experiment(), recordings.run(), recordings.points())
    place = pull(url(sshd, there))
    with open_store(there) as here, open_store(place) as store:
        assert (store.identity, store.metric_keys(recordings.RUN)) == (here.identity, {"loss": 3})
        recordings.write(there, "b", recordings.experiment(), recordings.run("b" * 32), clock=recordings.T0 + 1)
        with journal.open("ab") as file:
            file.write(b"half of a rec")
        pull(url(sshd, there))
    assert ids(place) == sorted([recordings.RUN, "b" * 32])
    with open_store(place) as store:
        assert not [one for one in store.problems() if one.damage]


def test_pull_again_brings_what_is_new_and_takes_away_what_is_gone(sshd: Sshd, there: Path) -> None:
    make_files(there / "mlruns", runs=2)
    place = pull(url(sshd, there))
    assert ids(place) == ids(there)
    gone = next(path for path in (there / "mlruns").glob("*/*/meta.yaml")).parent
    shutil.rmtree(gone)
    assert ids(pull(url(sshd, there))) == ids(there)
    make_sqlite(there / "mlflow.db", 1)
    assert len(find_stores(url(sshd, there))) == len(find_stores(there))


def test_pull_into_an_open_reader_shows_what_is_new(sshd: Sshd, there: Path) -> None:
    (run,) = make_sqlite(there / "mlflow.db", 1)
    with open_store(pull(url(sshd, there))) as store:
        assert store.run(run).status != "KILLED"
        with contextlib.closing(sqlite3.connect(there / "mlflow.db", isolation_level=None)) as made:
            made.execute("UPDATE runs SET status = 'KILLED'")
        pull(url(sshd, there))
        assert store.run(run).status == "KILLED"


def test_pull_of_a_database_with_a_hot_journal_undoes_the_half_of_a_commit(sshd: Sshd, there: Path) -> None:
    make_sqlite(there / "whole.db", 3)
    script = (
        "import sqlite3, os, sys, signal\n"
        "made = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "made.execute('PRAGMA cache_size = 1')\n"
        "made.execute('CREATE TABLE big (x)'); made.execute('BEGIN')\n"
        "made.executemany('INSERT INTO big VALUES (?)', [('x' * 4000,)] * 500)\n"
        "made.execute(\"UPDATE runs SET status = 'KILLED'\")\n"
        "made.execute(\"UPDATE big SET x = 'y'\")\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", script, there / "whole.db"], check=False)
    assert (there / "whole.db-journal").stat().st_size > 0
    place = pull(url(sshd, there / "whole.db"))
    assert not place.with_name("whole.db-journal").exists()
    with contextlib.closing(sqlite3.connect(place)) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert copy.execute("SELECT count(*) FROM big").fetchone() == (0,)
    with open_store(place) as store:
        assert {run.status for run in store.runs()} != {"KILLED"}
    assert (there / "whole.db-journal").stat().st_size > 0  # nothing is repaired there


def test_pull_of_a_database_in_wal_mode_has_what_is_only_in_the_log(sshd: Sshd, there: Path) -> None:
    make_sqlite(there / "mlflow.db", 1, wal=True)
    with contextlib.closing(sqlite3.connect(there / "mlflow.db", isolation_level=None)) as made:
        made.execute("PRAGMA wal_autocheckpoint = 0")
        made.execute("UPDATE runs SET status = 'KILLED'")
        place = pull(url(sshd, there / "mlflow.db"))
    with open_store(place) as store:
        assert [run.status for run in store.runs()] == ["KILLED"]
    assert place.read_bytes()[18] == 1


def test_pull_of_a_database_that_is_written_all_the_time_is_left_for_the_next_time(
    sshd: Sshd, there: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs = make_sqlite(there / "mlflow.db", 1)
    monkeypatch.setenv("LABTRACK_REMOTE", "/nowhere/labtrack")
    with writing(there / "mlflow.db"):
        with pytest.raises(LabtrackError, match="written all the time") as refused:
            pull(url(sshd, there))
        assert refused.value.code == Exit.LOCKED
    place = pull(url(sshd, there))
    assert ids(place) == runs
    with writing(there / "mlflow.db"), caplog.at_level(logging.WARNING, "labtrack.pull"):
        pull(url(sshd, there))
    assert "read as it was before" in caplog.text
    assert ids(place) == runs


def test_pull_of_a_database_that_is_written_all_the_time_by_labtrack_at_the_far_side(
    sshd: Sshd, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = make_sqlite(there / "mlflow.db", 1)
    monkeypatch.setenv("LABTRACK_REMOTE", f"env LC_X='a b' {LABTRACK}")
    with writing(there / "mlflow.db"):
        place = pull(url(sshd, there))
    assert ids(place) == runs
    with contextlib.closing(sqlite3.connect(place / "mlflow.db")) as copy:
        assert copy.execute("SELECT count(*), sum(a != b) FROM pairs").fetchone()[1] == 0
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_pull_goes_on_after_ssh_was_killed(sshd: Sshd, there: Path, tmp_path: Path, monkeypatch) -> None:
    big = there / "mlruns" / "0" / "model.bin"
    make_files(there / "mlruns", runs=1)
    big.parent.mkdir(exist_ok=True)
    big.write_bytes(os.urandom(20_000_000))
    slowly = "sed 's/--server/--server --bwlimit=4000/'"
    sshd.authorize(f'command="eval $(echo \\"$SSH_ORIGINAL_COMMAND\\" | {slowly})"')
    monkeypatch.setenv("LABTRACK_SSH", f"{sshd.env['LABTRACK_SSH']} -o ControlPath=/dev/null/none")
    errors: list[LabtrackError] = []

    def attempt() -> None:
        try:
            pull(url(sshd, there))
        except LabtrackError as error:
            errors.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    until = time.monotonic() + 30
    while time.monotonic() < until and thread.is_alive() and not _kill_ssh(tmp_path, over=1_000_000):
        pass
    thread.join()
    (error,) = errors
    assert "again" in error.hint
    assert not (cached(tmp_path) / "files/runs/mlruns/0/model.bin").exists()
    kept = cached(tmp_path) / "partial" / "model.bin"
    assert kept.stat().st_size > 1_000_000
    sshd.authorize()
    place = pull(url(sshd, there))
    assert (place / "mlruns/0/model.bin").read_bytes() == big.read_bytes()
    assert not kept.exists()


def _kill_ssh(tmp_path: Path, over: int) -> bool:
    """Kills the ssh processes of this test, once so much of a file is there."""
    for part in tmp_path.glob("cache/labtrack/pulled/*/tmp/model.bin.*"):
        with contextlib.suppress(FileNotFoundError):
            if part.stat().st_size > over:
                for process in Path("/proc").glob("[0-9]*"):
                    with contextlib.suppress(OSError):
                        command = (process / "cmdline").read_bytes().split(b"\0")
                        if command[0] == b"ssh" and str(tmp_path.parent).encode() in b" ".join(command):
                            os.kill(int(process.name), signal.SIGKILL)
                return True
    return False


def test_pull_that_was_killed_itself_goes_on_with_what_came(sshd: Sshd, there: Path, tmp_path: Path) -> None:
    make_files(there / "mlruns", runs=1)
    pull(url(sshd, there))
    (cached(tmp_path) / "tmp" / "model.bin.a1B2c3").write_bytes(b"weights, half")
    (there / "model.bin").write_bytes(b"weights, half and whole")
    place = pull(url(sshd, there))
    assert (place / "model.bin").read_bytes() == b"weights, half and whole"
    assert not list((cached(tmp_path) / "tmp").iterdir())


def test_pull_that_is_killed_again_and_again_comes_to_its_end(sshd: Sshd, there: Path, tmp_path: Path) -> None:
    runs = make_sqlite(there / "mlflow.db", 3)
    files = {there / "mlruns" / "0" / run / "artifacts" / "model.bin": os.urandom(3_000_000) for run in runs}
    for path, data in files.items():
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    slowly = "sed 's/--server/--server --bwlimit=3000/'"
    sshd.authorize(f'command="eval $(echo \\"$SSH_ORIGINAL_COMMAND\\" | {slowly})"')
    script = "import sys; from labtrack.stores.pull import pull; pull(sys.argv[1])"
    for number in range(6):
        process = subprocess.Popen([sys.executable, "-c", script, url(sshd, there)], stderr=subprocess.DEVNULL)
        until = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < until and not list(tmp_path.glob("cache/*/*/*/child")):
            pass
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.3 * number)
        process.kill()
        process.wait()
        for path in cached(tmp_path).glob("files/runs/mlruns/0/*/artifacts/*"):
            assert path.read_bytes() == files[there / path.relative_to(cached(tmp_path) / "files" / "runs")]
    sshd.authorize()
    place = pull(url(sshd, there))
    assert ids(place) == sorted(runs)
    copies = {there / path.relative_to(place): path.read_bytes() for path in place.rglob("model.bin")}
    assert copies == files
    assert not list(cached(tmp_path).glob("partial/*"))
    assert not list(cached(tmp_path).glob("work-*"))


def test_pull_follows_no_link_out_of_the_folder(sshd: Sshd, there: Path, tmp_path: Path, caplog) -> None:
    make_files(there / "mlruns", runs=1)
    (tmp_path / "secret").write_text("of this machine")
    (there / "mlruns" / "secret").symlink_to(tmp_path / "secret")
    with caplog.at_level(logging.WARNING, "labtrack.pull"):
        place = pull(url(sshd, there))
    assert not os.path.lexists(place / "mlruns" / "secret")
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    "name", ["a b", "it's", 'q"q', "$(touch x)", "semi;colon", "*", "[1]", "été", "-rf", "back\\slash"]
)
def test_pull_quotes_odd_names(sshd: Sshd, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "far" / name
    folder.mkdir(parents=True)
    runs = make_sqlite(folder / "mlflow.db", 1)
    assert ids(pull(url(sshd, folder))) == runs
    assert ids(pull(url(sshd, folder / "mlflow.db"))) == runs


def test_pull_with_a_key_for_a_robot(sshd: Sshd, there: Path) -> None:
    """The lines of docs/researcher/pull.md."""
    if not shutil.which("rrsync"):
        pytest.skip("needs rrsync (apt install rsync)")
    runs = make_sqlite(there / "mlflow.db", 1)
    sshd.authorize(f"restrict,command=\"rrsync -ro '{there.parent}'\"")
    assert ids(pull(f"{sshd.address}/runs")) == runs
    with pytest.raises(LabtrackError, match="there is no /elsewhere"):
        pull(f"{sshd.address}/elsewhere")
    # as the wrappers of automation nodes, which take rsync and refuse all else
    taken = (
        r"case \"$SSH_ORIGINAL_COMMAND\" in \"rsync --server --sender \"*) eval \"$SSH_ORIGINAL_COMMAND\";; *) exit 1"
    )
    sshd.authorize(f'restrict,command="{taken};; esac"')
    assert ids(pull(url(sshd, there))) == runs
    sshd.authorize('restrict,command="echo Not allowed here >&2; exit 1"')
    with pytest.raises(LabtrackError, match="did not run rsync") as refused:
        pull(url(sshd, there))
    assert "Not allowed here" in refused.value.what


def test_pull_says_what_is_wrong_with_the_login(sshd: Sshd, there: Path, tmp_path: Path, monkeypatch) -> None:
    make_sqlite(there / "mlflow.db", 1)
    folder, plain = sshd.folder, f"{sshd.env['LABTRACK_SSH']} -o UserKnownHostsFile={tmp_path}/known"
    monkeypatch.setenv("LABTRACK_SSH", plain)
    with pytest.raises(LabtrackError, match=r"host key of .* is not known"):
        pull(url(sshd, there))
    other = (folder / "id.pub").read_text().rpartition(" ")[0]
    (tmp_path / "known").write_text(f"[127.0.0.1]:{sshd.port} {other}\n")
    with pytest.raises(LabtrackError, match="another one than before") as refused:
        pull(url(sshd, there))
    assert f"ssh-keygen -R '[127.0.0.1]:{sshd.port}'" in refused.value.hint
    monkeypatch.setenv("LABTRACK_SSH", sshd.env["LABTRACK_SSH"])
    (folder / "authorized_keys").write_text("")
    with pytest.raises(LabtrackError, match="refuses the login"):
        pull(url(sshd, there))
    sshd.authorize('environment="PATH=/nowhere",command="PATH=/nowhere; eval $SSH_ORIGINAL_COMMAND"')
    with pytest.raises(LabtrackError, match="there is no rsync"):
        pull(url(sshd, there))
    sshd.authorize('command="echo Welcome to fir; eval $SSH_ORIGINAL_COMMAND"')
    with pytest.raises(LabtrackError, match="is not rsync"):
        pull(url(sshd, there))


def test_pull_that_does_not_go_on_this_disk_is_refused(sshd: Sshd, there: Path, monkeypatch) -> None:
    make_files(there / "mlruns", runs=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=500_000_100))
    with pytest.raises(LabtrackError, match=r"has room for 0\.0 GB") as refused:
        pull(url(sshd, there))
    assert "XDG_CACHE_HOME" in refused.value.hint


def test_two_pulls_at_once_do_not_meet(sshd: Sshd, there: Path, tmp_path: Path) -> None:
    from labtrack.files import lock

    make_sqlite(there / "mlflow.db", 1)
    pull(url(sshd, there))
    with lock(cached(tmp_path) / "lock", "a pull"), pytest.raises(LabtrackError) as refused:
        pull(url(sshd, there))
    assert refused.value.code == Exit.LOCKED


def test_commands_take_the_address(sshd: Sshd, there: Path) -> None:
    runs = make_sqlite(there / "mlflow.db", 2)
    done = subprocess.run(
        [LABTRACK, "runs", "-s", url(sshd, there), "--format", "csv"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert all(run[:8] in done.stdout for run in runs), done.stdout
    done = subprocess.run(
        [LABTRACK, "leaderboard", "-s", f"{sshd.address}/nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode == Exit.BAD_INPUT
    assert "Traceback" not in done.stderr
