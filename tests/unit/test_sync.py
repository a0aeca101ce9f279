"""The parts of a sync that need no server."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from labtrack.errors import BadInputError
from labtrack.stores import filters
from labtrack.stores.model import Artifact, DatasetInput, MetricPoint, Run
from labtrack.stores.summary import Summaries
from labtrack.stores.summing import of_points
from labtrack.sync import limits, lineage, state, watch
from labtrack.sync.journal import Entry, Journal
from labtrack.sync.rebuild import kept
from labtrack.sync.report import Report
from labtrack.tracking.address import parse
from labtrack.tracking.credentials import Credentials
from labtrack.tracking.destination import MISSING, Destination, point
from labtrack.tracking.http import ApiError, Http

LABTRACK = [sys.executable, "-m", "labtrack"]
A, B, C = "a" * 32, "b" * 32, "c" * 32


def run(run_id: str = A, **more: object) -> Run:
    return Run(id=run_id, experiment_id="1", **more)  # type: ignore[arg-type]


# what fits


@given(st.text(max_size=300))
def test_every_key_fits_and_a_good_one_stays(key: str) -> None:
    sent = limits.fit_key(key)
    assert 0 < len(sent) <= 250 and limits.fit_key(sent) == sent


@given(st.lists(st.text(st.sampled_from("ab/.*é "), min_size=1, max_size=4), unique=True, max_size=30))
def test_different_keys_stay_different(keys: list[str]) -> None:
    assert len({limits.fit_key(key) for key in keys}) == len(keys)


def test_what_is_cut_is_kept_whole_beside() -> None:
    fit = limits.fit({"p": "x" * 6001, "ok": "1"}, {"t": "y" * 8001}, (DatasetInput("d" * 501, "1", "local", "s"),))
    assert (len(fit.params["p"]), fit.params["ok"], len(fit.tags["t"]), len(fit.datasets[0].name)) == (
        6000,
        "1",
        8000,
        500,
    )
    whole = json.loads(fit.document())
    assert whole["params"]["p"]["value"] == "x" * 6001 and whole["tags"]["t"]["value"] == "y" * 8001
    assert len(fit.cuts) == 3 and fit.summary().startswith("3 changed")


def test_portions_stay_below_the_servers_limits() -> None:
    params = {f"p{one}": "v" * 5000 for one in range(250)}
    tags = {f"t{one}": "ö" * 8000 for one in range(120)}
    found = list(limits.portions(params, tags))
    assert {key: value for some, _ in found for key, value in some.items()} == params
    assert {key: value for _, some in found for key, value in some.items()} == tags
    for some_params, some_tags in found:
        assert len(some_params) < 100 and len(some_tags) < 100
        assert len(json.dumps([some_params, some_tags])) < limits.BODY


@pytest.mark.parametrize(
    ("value", "sent"), [(float("nan"), "NaN"), (float("inf"), "Infinity"), (float("-inf"), "-Infinity")]
)
def test_values_that_json_has_not(value: str, sent: str) -> None:
    assert point(MetricPoint("k", float(value), 1, 2)) == {"key": "k", "value": sent, "timestamp": 1, "step": 2}


def test_points_are_told_apart() -> None:
    ones = [
        MetricPoint("k", value, time, step)
        for value in (1.0, -1.0, float("nan"))
        for time in (1, 2)
        for step in (-1, -2)
    ]
    assert len({kept(one) for one in ones}) == len(ones)
    assert kept(MetricPoint("k", 0.0, 1, 1)) == kept(MetricPoint("k", -0.0, 1, 1))


# who refers to whom


def test_parents_come_first_and_rings_are_broken() -> None:
    child = run(A, tags={"mlflow.parentRunId": B}, start_time=1)
    parent, other = run(B, start_time=2), run(C, start_time=3)
    assert [[one.id for one in group] for group in lineage.generations([child, parent, other])] == [[B, C], [A]]
    ring = [run(A, tags={"forkedRunId": B}, start_time=2), run(B, tags={"forkedRunId": A}, start_time=1)]
    assert [[one.id for one in group] for group in lineage.generations(ring)] == [[B], [A]]


def test_a_missing_parent_is_pending_and_nothing_else_changes() -> None:
    found = lineage.link(
        run(tags={"mlflow.parentRunId": B, "x": "y"}, params={"a": B}), "new", lambda _: None, "offline"
    )
    assert found.tags == {"x": "y"} and found.params == {"a": B}
    assert lineage.pending_of(found.pending_tag()) == {"tags": {"mlflow.parentRunId": B}}


@pytest.mark.parametrize("tag", ["", "{", "[]", '{"tags": 1}', "null", '{"other": {}}'])
def test_a_pending_tag_of_somebody_else_is_nothing(tag: str) -> None:
    assert lineage.pending_of(tag) == {} and state.parse(tag) is None


def test_the_history_of_models_names_the_new_run() -> None:
    tags = {"mlflow.log-model.history": json.dumps([{"run_id": A, "artifact_path": "model"}])}
    found = lineage.link(run(tags=tags), "n" * 32, lambda _: None, "offline")
    assert json.loads(found.tags["mlflow.log-model.history"])[0]["run_id"] == "n" * 32


# what has changed


def test_the_digest_sees_every_change_but_not_a_moved_recording() -> None:
    files = [Artifact("a.txt", 3, modified=1)]
    plain = state.digest(run(), {"loss": 2}, files)
    assert plain == state.digest(run(), {"loss": 2, "none": 0}, [Artifact("a.txt", 3, modified=99)])
    changed = [
        state.digest(run(status="FAILED"), {"loss": 2}, files),
        state.digest(run(params={"a": "1"}), {"loss": 2}, files),
        state.digest(run(tags={"a": "1"}), {"loss": 2}, files),
        state.digest(run(), {"loss": 3}, files),
        state.digest(run(), {"loss": 2}, [Artifact("a.txt", 4)]),
        state.digest(run(inputs=(DatasetInput("d", "1", "local", "s"),)), {"loss": 2}, files),
        state.digest(run(status="RUNNING"), {"loss": 2}, files),
        state.digest(run(status="RUNNING"), {"loss": 2}, [Artifact("a.txt", 3, modified=2)]),
    ]
    assert len({plain, *changed}) == len(changed) + 1


# the journal


def test_the_journal_is_read_again_and_counts_only_for_its_copy(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "https://s", "store")
    journal.start(A, Entry("copy"))
    journal.add(A, points={"loss": 1000})
    journal.add(A, points={"loss": 2000}, artifacts={"a": (1, 2)})
    journal.add(A, next="N")
    journal.close()
    with journal.path.open("a") as file:
        file.write('{"run": "' + A + '", "copy": "copy", "points": {"loss": 99')  # killed while writing
    again = Journal(tmp_path, "https://s", "store")
    found = again.entry(A, "copy", "")
    assert found is not None and found.points == {"loss": 2000} and found.artifacts == {"a": (1, 2, "")}
    assert again.entry(A, "copy", "N") is found
    assert again.entry(A, "other", "") is None and again.entry(A, "copy", "another state") is None
    again.add(A, points={"loss": 3000})
    again.close()
    third = Journal(tmp_path, "https://s", "store").entry(A, "copy", "")
    assert third is not None and third.points == {"loss": 3000}
    assert oct(journal.path.stat().st_mode & 0o777) == "0o600"


def test_the_journal_of_a_long_watch_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labtrack.sync.journal._COMPACT", 10_000)
    journal = Journal(tmp_path, "https://s", "store")
    journal.start(A, Entry("copy"))
    tags = {f"t{one}": "f" * 12 for one in range(50)}
    for count in range(1000):
        journal.add(A, points={f"m{one}": count if one == 0 else 7 for one in range(50)}, tags=tags)
        journal.add(A, points={"m0": count}, tags=tags)  # nothing new
    assert journal.path.stat().st_size < 30_000
    journal.close()
    found = Journal(tmp_path, "https://s", "store").entry(A, "copy", "")
    assert found is not None and found.points["m0"] == 999 and found.tags == tags


def test_a_full_disk_is_told_and_the_sync_goes_on(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys; from pathlib import Path; from labtrack.sync.journal import Entry, Journal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "journal = Journal(Path(sys.argv[1]), 's', 't'); journal.start('r', Entry('c'))\n"
        "for count in range(99): journal.add('r', points={'loss': count})\n"
        "print(journal.entry('r', 'c', '').points['loss'], journal.trouble)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("98 The journal") and "free some space" in done.stdout


@given(st.binary(max_size=200))
def test_whatever_is_in_the_journal_it_opens(data: bytes) -> None:
    folder = Path(os.environ["HOME"]) / "journals"
    folder.mkdir(exist_ok=True)
    Journal(folder, "s", "t").path.write_bytes(data)
    journal = Journal(folder, "s", "t")
    journal.start(A, Entry("c"))
    journal.close()
    assert Journal(folder, "s", "t").entry(A, "c", "") == Entry("c")


# logging in


def test_the_login_is_read_again_when_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "mlflow_env.sh"
    env = {"LABTRACK_ENV_FILE": str(file), "MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "old"}
    file.write_text("export MLFLOW_TRACKING_USERNAME=ada\nexport MLFLOW_TRACKING_PASSWORD='old'\n")
    credentials = Credentials({**env, "HOME": str(tmp_path)})
    refused = credentials.login
    assert not credentials.renewed(refused) and "old" not in repr(refused)
    file.write_text("export MLFLOW_TRACKING_USERNAME=ada\nexport MLFLOW_TRACKING_PASSWORD='new one'\n")
    assert credentials.renewed(refused) and credentials.login.password == "new one"


def test_mlflows_own_credentials_file_is_read(tmp_path: Path) -> None:
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").write_text(
        "[mlflow]\nmlflow_tracking_username = eve\nmlflow_tracking_password = 1%x\n"
    )
    login = Credentials({"HOME": str(tmp_path), "MLFLOW_TRACKING_TOKEN": "t"}).login
    assert (login.user, login.password, login.token) == ("eve", "1%x", "t")


def test_a_certificate_that_is_not_there_is_named() -> None:
    with pytest.raises(BadInputError, match=r"/none\.pem, which is not there"):
        Credentials({"MLFLOW_TRACKING_SERVER_CERT_PATH": "/none.pem"}).trust()


@pytest.mark.parametrize(
    ("destination", "said"),
    [
        ("mlflow.example.org", "-d https://mlflow.example.org"),
        ("mlflow.example.org:5000", "-d https://mlflow.example.org:5000"),
        ("sqlite:////x/mlflow.db", "is not the address of a tracking server"),
        ("/home/ada/mlruns", "is not the address of a tracking server"),
        ("https://", "names no host"),
        ("https://ada:secret@host", "has a login in it"),
    ],
)
def test_a_destination_that_is_none(destination: str, said: str) -> None:
    with pytest.raises(BadInputError) as raised:
        parse(destination)
    assert said in str(raised.value) and "secret" not in str(raised.value)


# --filter


class Points:
    """A store that has only points."""

    def points(self, *_: object, **__: object) -> list[MetricPoint]:
        return [MetricPoint("val/loss", 0.5, 1, 1), MetricPoint("val/loss", 0.3, 2, 2)]

    def summaries(self, *asked: object) -> Summaries:
        return of_points(self, *asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expression", "holds"),
    [
        ("params.model = 'unet'", True),
        ("params.model=\"unet\" and status = 'FINISHED'", True),
        ("params.model != 'unet'", False),
        ("params.none = 'unet'", False),
        ("tags.`mlflow.user` LIKE 'a%'", True),
        ("tags.mlflow.user ILIKE '%DA'", True),
        ("tags.mlflow.user LIKE '%DA'", False),
        ("metrics.val/loss < 0.4", True),
        ('metrics."val/loss" >= 0.4', False),
        ("attributes.start_time > 100 AND name = 'it\\'s'", True),
        ("start_time <= 1e2", False),
        ("end_time > 0", False),
    ],
)
def test_filter(expression: str, holds: bool) -> None:
    one = run(name="it's", start_time=200, params={"model": "unet"}, tags={"mlflow.user": "ada"})
    assert filters.parse(expression)(Points(), one) is holds  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "can't be read from 'its end'"),
        ("loss < 1", "asks for loss"),
        ("params.a = unet", "can't be read"),
        ("params.a = 'x' OR params.b = 'y'", "can't be read from \"OR"),
        ("metrics.loss = 'low'", "takes a number"),
        ("params.a = 3", "a string in quotes"),
        ("params.a < '3'", "compares texts"),
        ("params.a = 'x' AND", "its end"),
    ],
)
def test_a_filter_that_cannot_be_read(expression: str, said: str) -> None:
    with pytest.raises(BadInputError) as raised:
        filters.parse(expression)
    assert said in str(raised.value)


# the command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-d", "https://s"), "Missing option '-s'"),
        (("-s", "none.db", "-d", "https://s"), "none.db"),
        (("-s", "text.db", "-d", "https://s"), "text.db"),
        (("-s", "text.db"), "MLFLOW_TRACKING_URI is not set"),
        (("-s", "text.db", "-d", "s:5000"), "To fix: give the server's address: -d https://s:5000"),
        (("-s", "text.db", "-d", "https://s", "--jobs", "0"), "--jobs"),
        (("-s", "text.db", "-d", "https://s", "--filter", "x"), "--filter can't be read"),
        (("-s", "text.db", "-d", "https://s", "--watch", "soon"), "--watch"),
    ],
)
def test_wrong_usage_is_2_and_says_why(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database")
    done = subprocess.run([*LABTRACK, "sync", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


# calls


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="Linux has it")
def test_each_answer_on_a_kept_connection_is_acknowledged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    said: list[int] = []

    class Socket(socket.socket):
        def setsockopt(self, level: int, option: int, *more: Any) -> None:
            if (level, option) == (socket.IPPROTO_TCP, socket.TCP_QUICKACK):
                said.append(self.fileno())
            super().setsockopt(level, option, *more)

    monkeypatch.setattr(socket, "socket", Socket)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        http = Http(f"http://127.0.0.1:{server.server_port}", {})
        for _ in range(3):
            assert http.call("GET", "/").json() == {}
        server.shutdown()
    assert len(said) == 3 and len(set(said)) == 1


@pytest.mark.parametrize(("status", "code"), [(404, ""), (403, "PERMISSION_DENIED"), (404, MISSING), (503, "")])
def test_points_go_by_batches_where_the_server_does_not_know_columns(status: int, code: str) -> None:
    asked: list[tuple[str, int]] = []

    def call(_method: str, path: str, data: bytes, headers: dict[str, str]) -> requests.Response:
        packed = headers.get("Content-Encoding") == "gzip"
        document = json.loads(gzip.decompress(data) if packed else data)
        asked.append((path.rpartition("/")[2], len(document["step" if packed else "metrics"])))
        if packed:
            raise ApiError(status, code, "refused")
        answer = requests.Response()
        answer.status_code, answer._content = 200, b"{}"
        return answer

    destination = Destination(SimpleNamespace(call=call, base="http://lab"), "me")  # type: ignore[arg-type]
    points = [MetricPoint("loss", float(step), 7, step) for step in range(2500)]
    if code == MISSING or status == 503:
        with pytest.raises(ApiError):
            destination.log_points("r", points)
        assert asked == [("log-points", 2500)] and destination.columns
        return
    for _ in range(2):
        destination.log_points("r", points)
    batches = [("log-batch", 1000), ("log-batch", 1000), ("log-batch", 500)]
    assert asked == [("log-points", 2500), *batches, *batches], "asked once"


def test_a_watch_counts_the_traces_of_all_its_passes() -> None:
    first, second, third = (Report("mlflow.db", "https://host") for _ in range(3))
    first.traces = {"a": {"sent": 2, "there": 1, "damaged": 0, "failed": 0}}
    second.traces = {"a": {"sent": 1, "there": 3, "damaged": 0, "failed": 1}}
    both = watch._together(first, second)
    assert both.traces == {"a": {"sent": 3, "there": 1, "damaged": 0, "failed": 1}}
    assert watch._together(both, third).traces == {"a": {"sent": 3, "there": 1, "damaged": 0, "failed": 1}}
