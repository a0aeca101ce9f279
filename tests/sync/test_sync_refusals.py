"""What can't be done is said in a sentence, and the next call finishes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from sync_proxy import HostileProxy
from sync_recording import T0, Recording
from sync_server import TrackingServer, tracking_server
from test_sync_traces import trace

from labtrack.errors import BadInputError
from labtrack.sync import Options, Report, sync

Send = Callable[..., Report]


def labtrack(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "labtrack", "sync", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **env}, timeout=120)


def test_an_unknown_run_id_names_near_ones(recording: Recording, server: TrackingServer) -> None:
    run_id = recording.run()
    wrong = run_id[:-1] + ("0" if run_id[-1] != "0" else "1")
    done = labtrack("-s", recording.path, "-d", server.url, "-r", wrong)
    assert done.returncode == 2 and run_id in done.stderr and wrong in done.stderr


def test_an_empty_recording_is_no_failure(recording: Recording, server: TrackingServer) -> None:
    done = labtrack("-s", recording.path, "-d", server.url)
    assert done.returncode == 0 and "has no runs" in done.stdout
    recording.run()
    done = labtrack("-s", recording.path, "-d", server.url, "--filter", "name = 'none'")
    assert done.returncode == 0 and "has no such runs" in done.stdout


def test_an_experiment_that_was_deleted_at_the_server(recording: Recording, server: TrackingServer, send: Send) -> None:
    recording.run()
    number = server.post("experiments/create", name=recording.name)["experiment_id"]
    server.post("experiments/delete", experiment_id=number)
    done = labtrack("-s", recording.path, "-d", server.url)
    assert done.returncode == 1 and f"restore --experiment-id {number}" in done.stderr and "-e NAME" in done.stderr
    assert send(experiment=f"{recording.name} again").exit_code == 0


def test_a_page_that_is_no_tracking_server(recording: Recording, server: TrackingServer) -> None:
    recording.run()
    with HostileProxy("http://127.0.0.1:9", lambda *_: "429") as proxy:
        done = labtrack("-s", recording.path, "-d", proxy.url, LABTRACK_SYNC_PATIENCE="1")
        assert done.returncode == 1 and "it answered 429" in done.stderr
    done = labtrack("-s", recording.path, "-d", f"{server.url}/nothing/here")
    assert done.returncode in (1, 2) and "To fix" in done.stderr and "Traceback" not in done.stderr


def test_dry_run_sends_nothing_and_counts(recording: Recording, server: TrackingServer) -> None:
    recording.run(name="unet", metrics={"loss": [1.0] * 1234}, files={"a.bin": b"a" * 2048})
    done = labtrack("-s", recording.path, "-d", server.url, "--dry-run")
    assert done.returncode == 0 and recording.name not in server.experiments()
    assert "Would send 1 new runs" in done.stdout and "1,234 points, 2.0 KiB" in done.stdout and "unet" in done.stdout


def test_one_bad_run_does_not_keep_the_others_back(recording: Recording, server: TrackingServer, send: Send) -> None:
    """A param that the server has with another value is told and left; a call that is refused fails its run alone."""
    bad, good = recording.run(name="bad"), recording.run(name="good", params={"a": "1"})
    recording.params(bad, {"a": "1"})
    send()
    # at the server first, then in the recording: can't be changed
    runs = {one["info"]["run_name"]: one["info"]["run_id"] for one in server.runs(recording.name)}
    server.post("runs/log-parameter", run_id=runs["bad"], key="b", value="theirs")
    recording.params(bad, {"b": "ours"})
    recording.insert("metrics", run_uuid=good, key="z", value=2.0**70, timestamp=1, step=1)
    report = send()
    assert any("param b is 'theirs' at the server" in one for one in report.notes)
    assert server.history(runs["good"], "z") == [(1, 1, 2.0**70)]
    ids = [recording.run(name=f"new {number}") for number in range(4)]
    refuse = HostileProxy(server.url, lambda kind, number: "400" if (kind, number) == ("POST runs/create", 2) else "")
    with refuse:
        report = send(to=refuse.url)
    assert report.exit_code == 1 and len(report.failed) == 1 and report.failed.keys() <= set(ids)
    assert "not today" in str(report.failed)
    assert send().exit_code == 0
    assert len(server.runs(recording.name)) == 6


@pytest.fixture(scope="module")
def guarded() -> Iterator[TrackingServer]:
    """The server with accounts, as the kit deploys it."""
    with tracking_server(login=True) as found:
        yield found


def test_logins(guarded: TrackingServer, tmp_path: Path) -> None:
    recording = Recording(tmp_path / "recording")
    recording.run(metrics={"loss": [1.0]})
    there = ("-s", recording.path, "-d", guarded.url)
    without = labtrack(*there)
    assert without.returncode == 1 and "refuses a call without login (401)" in without.stderr
    wrong = labtrack(*there, MLFLOW_TRACKING_USERNAME="admin", MLFLOW_TRACKING_PASSWORD="no such word")
    assert wrong.returncode == 1 and "refuses the login of admin (401)" in wrong.stderr
    assert "no such word" not in wrong.stderr + wrong.stdout
    right = labtrack(*there, MLFLOW_TRACKING_USERNAME="admin", MLFLOW_TRACKING_PASSWORD="a word of the tests")
    assert right.returncode == 0, right.stderr


def test_dry_run_asks_what_the_account_may_do(guarded: TrackingServer, tmp_path: Path) -> None:
    recording = Recording(tmp_path / "recording")
    run_id = recording.run()
    admin, api = ("admin", "a word of the tests"), f"{guarded.url}/api/2.0/mlflow"
    eve = {"username": "eve", "password": "a password of eve"}
    assert requests.post(f"{api}/users/create", json=eve, auth=admin, timeout=30).ok
    made = requests.post(f"{api}/experiments/create", json={"name": recording.name}, auth=admin, timeout=30).json()
    login = {"MLFLOW_TRACKING_USERNAME": "eve", "MLFLOW_TRACKING_PASSWORD": "a password of eve"}
    there = ("-s", recording.path, "-d", guarded.url, "--dry-run")
    done = labtrack(*there, **login)
    assert done.returncode == 1 and f"run {run_id}: would not be sent: " in done.stderr, done.stderr + done.stdout
    assert "(403)" in done.stderr and "Would send 0 new runs" in done.stdout and "1 can not be sent" in done.stdout
    done = labtrack(*there, MLFLOW_TRACKING_USERNAME=admin[0], MLFLOW_TRACKING_PASSWORD=admin[1])
    assert done.returncode == 0 and "Would send 1 new runs" in done.stdout
    done = labtrack(*there, "-e", "new of eve", **login)
    assert done.returncode == 0, done.stderr
    found = requests.get(f"{api}/experiments/get", params=made, auth=admin, timeout=30).json()["experiment"]
    assert found["name"] == recording.name


def test_dry_run_asks_for_models_names_and_experiments(guarded: TrackingServer, tmp_path: Path) -> None:
    recording = Recording(tmp_path / "recording")
    model = recording.model(None, "lonely", {"MLmodel": b"x"})
    name = f"known {recording.name}"
    recording.insert("registered_models", name=name, creation_time=T0, last_updated_time=T0, workspace="default")
    recording.insert(
        "model_versions", name=name, version=1, creation_time=T0, last_updated_time=T0, current_stage="None",
        source=f"models:/{model}", run_id=None, status="READY", workspace="default", description="",
    )  # fmt: skip
    recording.insert("experiment_tags", experiment_id=1, key="team", value="ocean")
    trace(recording, f"tr-{model[2:]}")
    admin, api = ("admin", "a word of the tests"), f"{guarded.url}/api/2.0/mlflow"
    joe = {"username": "joe", "password": "a password of joe"}
    assert requests.post(f"{api}/users/create", json=joe, auth=admin, timeout=30).ok
    for path, made in (("experiments", recording.name), ("registered-models", name)):
        assert requests.post(f"{api}/{path}/create", json={"name": made}, auth=admin, timeout=30).ok
    there = ("-s", recording.path, "-d", guarded.url, "--dry-run")
    done = labtrack(*there, "--json", MLFLOW_TRACKING_USERNAME="joe", MLFLOW_TRACKING_PASSWORD="a password of joe")
    assert done.returncode == 1, done.stdout + done.stderr
    failed = json.loads(done.stdout)["failed"]
    assert set(failed) == {model, f"model {name}", f"traces of experiment {recording.name}"}, failed
    assert all("would not be sent: " in why for whys in failed.values() for why in whys)
    done = labtrack(*there, MLFLOW_TRACKING_USERNAME=admin[0], MLFLOW_TRACKING_PASSWORD=admin[1])
    assert done.returncode == 0 and "1 traces would be sent" in done.stderr, done.stdout + done.stderr
    found = requests.get(f"{api}/registered-models/get", params={"name": name}, auth=admin, timeout=30).json()
    assert not found["registered_model"].get("latest_versions")


def test_a_password_that_changes_during_a_sync_is_read_again(guarded: TrackingServer, tmp_path: Path) -> None:
    recording = Recording(tmp_path / "recording")
    for number in range(10):
        recording.run(name=str(number), metrics={"loss": [1.0]})
    admin = ("admin", "a word of the tests")
    users = f"{guarded.url}/api/2.0/mlflow/users"
    made = requests.post(
        f"{users}/create", json={"username": "ada", "password": "first password"}, auth=admin, timeout=30
    )
    assert made.ok, made.text
    file = tmp_path / "mlflow_env.sh"
    line = "export MLFLOW_TRACKING_USERNAME=ada\nexport MLFLOW_TRACKING_PASSWORD='{}'\n"
    file.write_text(line.format("first password"))
    env = {
        "LABTRACK_ENV_FILE": str(file), "MLFLOW_TRACKING_USERNAME": "ada",
        "MLFLOW_TRACKING_PASSWORD": "first password", "XDG_STATE_HOME": str(tmp_path / "state"),
    }  # fmt: skip

    def rotate(kind: str, number: int) -> str:
        if (kind, number) == ("POST runs/create", 4):
            word = {"username": "ada", "password": "second password"}
            assert requests.patch(f"{users}/update-password", json=word, auth=admin, timeout=30).ok
            file.write_text(line.format("second password"))
        return ""

    with HostileProxy(guarded.url, rotate) as proxy:
        report = sync(recording.path, proxy.url, Options(env=env, jobs=2))
    assert report.exit_code == 0, report
    assert len(report.outcomes) == 10


def test_a_state_folder_that_can_not_be_used_is_told(
    recording: Recording, server: TrackingServer, tmp_path: Path
) -> None:
    """No lock and no journal: the run is there all the same, once."""
    (tmp_path / "state").write_text("a file where a folder should be")
    recording.run()
    for sent in (1, 0):
        report = sync(recording.path, server.url)
        assert (report.exit_code, len(report.outcomes)) == (0, sent), report
        assert [one.split(":")[0] for one in report.notes if "no lock is held" in one]
        assert [one for one in report.notes if "goes on without it" in one and str(tmp_path / "state") in one]
    with pytest.raises(BadInputError):
        sync(recording.path, "not a server")
