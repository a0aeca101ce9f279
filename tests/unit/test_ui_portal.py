"""`labtrack ui --portal`: the gate behind a web portal.  The MLflow behind it is not the real one."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import fake_mlflow
import pytest
import recorded
from click.testing import CliRunner

from labtrack.cli.ui import ui
from labtrack.errors import BadInputError
from labtrack.ui import Settings, View, view
from labtrack.ui.portal import read_portal, user_name

PASSWORD = "3fPq0Zr8sXkT5vYw"
ORIGIN = "https://ondemand.example.org"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def secret(folder: Path, text: str = PASSWORD, mode: int = 0o600) -> str:
    file = folder / "password"
    file.write_text(f"{text}\n")
    file.chmod(mode)
    return str(file)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[View]:
    source = recorded.kept("3.17.2") / recorded.KINDS["sqlite"]
    mlflow = fake_mlflow.make(tmp_path_factory.mktemp("environment"))
    address = f"{ORIGIN}/node/n17.example.org/{free_port()}"
    password_file = secret(tmp_path_factory.mktemp("secret"))
    with view(str(source), Settings(mlflow=str(mlflow), portal=address, password_file=password_file)) as found:
        yield found


def ask(
    here: View, path: str, method: str = "GET", body: bytes | None = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, str]:
    """Asks as the portal does; path: after the node's prefix, or `/rnode` before the whole path."""
    assert here.portal is not None
    given = {"Host": f"n17.example.org:{here.port}", "X_Forwarded_User": user_name(), **headers}
    whole = path.removeprefix("/rnode") if path.startswith("/rnode") else here.portal.prefix + path
    connection = http.client.HTTPConnection("127.0.0.1", here.port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, whole, body, {name.replace("_", "-"): one for name, one in given.items() if one})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()


def opened(here: View, way: str = "", **headers: str) -> tuple[int, http.client.HTTPMessage, str]:
    return ask(here, f"{way}/open", "POST", f"password={PASSWORD}".encode(), **{"Origin": ORIGIN, **headers})


def test_password_sets_the_cookie_of_this_session_only(here: View) -> None:
    for way in ("", "/rnode"):
        status, headers, said = opened(here, way)
        assert status == 200 and 'content="0; url=./"' in said
        cookie, _, rest = headers["Set-Cookie"].partition("; ")
        assert rest == f"HttpOnly; SameSite=Strict; Path=/node/n17.example.org/{here.port}/; Secure"
        status, _, said = ask(here, f"{way}/static-files/x.js?a=1", Cookie=cookie)
        assert status == 200 and json.loads(said)["path"] == "/static-files/x.js?a=1"
        assert opened(here, way)[0] == 200, "the button works again"


def test_nobody_comes_in_without_it(here: View) -> None:
    for path in ("/", "/open", "/open/x", "/ajax-api/2.0/mlflow/experiments/search", "/rnode/", "/rnode/x"):
        status, _, said = ask(here, path)
        assert status == 403 and "on the session's card" in said
    for body in ("", "password=", "password=x", f"password={PASSWORD}x", f"passwort={PASSWORD}",
                 f"password={PASSWORD}&password={PASSWORD}", "&".join(["a=1"] * 20), "\xff\0"):  # fmt: skip
        status, headers, said = ask(here, "/open", "POST", body.encode(), Origin=ORIGIN)
        assert status in (400, 403) and "Set-Cookie" not in headers, body
    assert ask(here, "/open", "POST", b"x" * 5000, Origin=ORIGIN)[0] == 413
    assert ask(here, f"/open?password={PASSWORD}")[0] == 403


def test_another_user_of_the_portal_is_refused_even_with_the_password(here: View) -> None:
    cookie = opened(here)[1]["Set-Cookie"].partition(";")[0]
    for user in ("eve", user_name().upper() + "x", f"{user_name()}, eve"):
        assert opened(here, X_Forwarded_User=user)[0] == 403
        status, _, said = ask(here, "/", Cookie=cookie, X_Forwarded_User=user)
        assert status == 403 and "another user of the portal" in said
    # who asks the port directly may write what they like
    assert ask(here, "/", X_Forwarded_User=user_name())[0] == 403
    assert ask(here, "/", Cookie=cookie, X_Forwarded_User="")[0] == 200


def test_other_pages_and_names_are_refused(here: View) -> None:
    cookie = opened(here)[1]["Set-Cookie"].partition(";")[0]
    search = "/ajax-api/2.0/mlflow/runs/search"
    for origin in ("https://evil.example", "http://ondemand.example.org", "https://ondemand.example.org:8443", "null"):
        assert ask(here, search, "POST", b"{}", Cookie=cookie, Origin=origin)[0] == 403
        assert opened(here, Origin=origin)[0] == 403
    status, _, said = ask(here, search, "POST", b"{}", Cookie=cookie, Origin=ORIGIN, Authorization="Basic eDp5")
    sent = dict(json.loads(said)["headers"])
    assert status == 200 and sent["Host"] == "localhost" and not {"Origin", "Cookie", "Authorization"} & set(sent)
    for host in ("evil.example", "127.0.0.1", f"127.0.0.1:{here.port}", "n17.example.org:1"):
        assert ask(here, "/", Cookie=cookie, Host=host)[0] == 403
    assert ask(here, "/", Cookie=cookie, Host="ondemand.example.org")[0] == 200, "a portal that keeps the name"


def test_prefix_without_a_slash_leads_to_the_page(here: View) -> None:
    for query in ("", "?x=1"):
        status, headers, _ = ask(here, query)
        assert status == 308 and headers["Location"] == f"/node/n17.example.org/{here.port}/"
    status, _, _ = ask(here, "1/")
    assert status == 403, "another port's prefix is no prefix"


def test_password_is_in_no_arguments_no_logs_and_no_words(here: View) -> None:
    opened(here)
    lines = b"".join(one.read_bytes() for one in Path("/proc").glob("[0-9]*/cmdline") if one.exists())
    folder = here.page().parent
    logs = b"".join(one.read_bytes() for one in folder.rglob("*") if one.is_file())
    assert PASSWORD.encode() not in lines + logs and PASSWORD not in f"{here.portal!r}{here.url}"


@pytest.mark.parametrize(
    "address",
    ["", "https://", "http://p.org/node/h/5000", "https://p.org/node/h", "https://p.org/node/h/0", "https://p.org",
     "https://p.org/node/h/65536", "https://u:p@p.org/node/h/5000", "https://p.org/node/h/5000?x=1", "https://[/a/b/1",
     "https://p.org:x/node/h/5000", "https://p.org/no de/h/5000", "https://p.org/node/h/5000/more", "/node/h/5000",
     "https://p.org/node/h\n/5000", "https://p.org/h/5000"],
)  # fmt: skip
def test_address_of_a_portal_is_refused_as_no_such(address: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="is no address of a portal"):
        read_portal(address, secret(tmp_path))


def test_address_of_a_portal_as_browsers_write_it(tmp_path: Path) -> None:
    found = read_portal("https://OnDemand.example.org:443/pun/node/n1/5000/", secret(tmp_path))
    assert (found.origin, found.prefix, found.host, found.port) == (ORIGIN, "/pun/node/n1/5000", "n1", 5000)
    assert read_portal("https://p.org:8443/node/n1/5000", secret(tmp_path)).origin == "https://p.org:8443"


def test_password_file_is_a_secret_of_ones_own(tmp_path: Path) -> None:
    address = "https://p.org/node/n1/5000"
    for text, mode, said in (
        (PASSWORD, 0o644, "Others can read"), (PASSWORD, 0o620, "Others can read"), ("short", 0o600, "has no password"),
        ("", 0o600, "has no password"), ("x" * 300, 0o600, "has no password"), ("ä" * 20, 0o600, "has no password"),
        ("a password in words", 0o600, "has no password"),
    ):  # fmt: skip
        with pytest.raises(BadInputError, match=said):
            read_portal(address, secret(tmp_path, text, mode))
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "link").symlink_to(tmp_path / "password")
    for name in ("nowhere", "pipe", "link", "."):
        with pytest.raises(BadInputError):
            read_portal(address, tmp_path / name)


@pytest.mark.parametrize(
    "arguments",
    [["--portal", "https://p.org/node/n1/5000"], ["--password-file", "password"],
     ["--portal", "https://p.org/node/n1/5000", "--password-file", "password", "--host", "n1"],
     ["--portal", "https://p.org/node/n1/5000", "--password-file", "password", "--socket"],
     ["--portal", "https://p.org/node/n1/5000", "--password-file", "password", "--port", "5001"]],
)  # fmt: skip
def test_options_that_contradict_are_refused(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    secret(tmp_path)
    done = CliRunner().invoke(ui, arguments)
    assert isinstance(done.exception, BadInputError) and done.exception.hint


def test_port_that_is_taken_is_told(tmp_path: Path, here: View) -> None:
    address = f"https://p.org/node/n1/{here.port}"
    settings = Settings(mlflow=str(here.mlflow.python), portal=address, password_file=secret(tmp_path))
    with pytest.raises(BadInputError, match="can't be had"), view(str(tmp_path), settings):
        pass
