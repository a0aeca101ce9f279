"""Addresses of tracking servers, as people write, paste and mistype them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labtrack.doctor.context import Context
from labtrack.doctor.run import examine
from labtrack.errors import BadInputError
from labtrack.stores import open_store
from labtrack.tracking.address import hide_login, parse


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("https://mlflow.example.org", "https://mlflow.example.org"),
        (" https://mlflow.example.org/ \n", "https://mlflow.example.org"),
        ("HTTP://localhost:5000//", "http://localhost:5000"),
        ("https://example.org/mlflow/", "https://example.org/mlflow"),
        ("http://[::1]:5000", "http://[::1]:5000"),
    ],
)
def test_parse_takes_what_can_only_mean_one_thing(text: str, address: str) -> None:
    assert parse(text) == address


@pytest.mark.parametrize(
    ("text", "said", "write"),
    [
        ("https://h.org/#/experiments/1", "of a page in the browser", "-d https://h.org, and name the experiment"),
        ("https://h.org/mlflow/#/models/a@best", "of a page in the browser", "-d https://h.org/mlflow"),
        ("https://h.org/api", "one of the server's own calls", "-d https://h.org"),
        ("https://h.org/x/api/2.0/mlflow/", "one of the server's own calls", "-d https://h.org/x"),
        ("https://h.org?a=b", "of a page in the browser", "-d https://h.org"),
        ("http://ada:secret@h.org:5/", "has a login in it", "-d http://h.org:5,"),
        ("https://ada:sec/ret@h.org", "has a login in it", "-d https://h.org,"),
        ("https://ada:sec#ret@h.org", "has a login in it", "-d https://h.org,"),
        ("ada:secret@h.org", "has a login in it", "-d https://h.org,"),
        ("http://[::1", "does not close it", "-d http://host"),
        ("http://h.org:port", "no port", "-d http://host:5000"),
        ("http://h.org:70000", "no port", "-d http://host:5000"),
        ("http://h.org:", "a port that is none", "-d http://host:5000"),
        ("http://h org", "a blank", "-d http://host"),
        ("localhost:5000", "without http:// in front", "-d http://localhost:5000"),
        ("127.0.0.1:5000", "without http:// in front", "-d http://127.0.0.1:5000"),
        ("h.org:5000", "without https:// in front", "-d https://h.org:5000"),
        ("h.org/mlflow", "without https:// in front", "-d https://h.org/mlflow"),
        ("https:/h.org", "two slashes", "-d https://h.org"),
        ("https//h.org", "two slashes", "-d https://h.org"),
        ("https://", "names no host", "-d https://host"),
        ("", "is empty", "-d https://host"),
        ("/home/ada/mlruns", "is not the address", "-d https://host"),
        ("sqlite:////x.db", "is not the address", "-d https://host"),
    ],
)
def test_parse_says_what_an_address_is_instead_and_what_to_write(text: str, said: str, write: str) -> None:
    with pytest.raises(BadInputError) as raised:
        parse(text)
    assert said in raised.value.what and write in raised.value.hint
    assert "sec" not in str(raised.value) and "\n" not in raised.value.what


@given(st.text(max_size=40), st.sampled_from(["", "http://", "https://", "https://h/"]))
def test_parse_gives_an_address_or_an_error_in_words(text: str, before: str) -> None:
    try:
        found = parse(before + text)
    except BadInputError:
        return
    assert parse(found) == found and found.startswith(("http://", "https://"))


def test_hide_login_is_for_proxies_too() -> None:
    assert hide_login("http://ada:secret@proxy:3128") == "http://***@proxy:3128"
    assert hide_login("https://h.org/#/models/a@best") == "https://h.org/#/models/a@best"


def test_sources_are_read_by_the_same_parser() -> None:
    assert open_store(" HTTPS://h.org/ ").location == "https://h.org"
    with pytest.raises(BadInputError, match="The source has a login in it"):
        open_store("https://ada:secret@h.org")


@pytest.mark.parametrize("uri", ["http://ada:secret@localhost:1", "http://[::1", "https://h.org/#/experiments/1"])
def test_doctor_names_an_address_that_is_none_and_shows_no_login(uri: str) -> None:
    env = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "p"}
    rows = list(examine(Context(env, timeout=1.0)))
    assert rows[0].status == "failed" and "export MLFLOW_TRACKING_URI=http" in rows[0].hint
    assert not [row for row in rows if "secret" in row.seen + row.hint]


def test_doctor_shows_no_login_of_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://ada:secret@127.0.0.1:1")
    env = {"MLFLOW_TRACKING_URI": "https://h.org", "MLFLOW_TRACKING_TOKEN": "t"}
    rows = list(examine(Context(env, timeout=1.0)))
    assert any("***@127.0.0.1:1" in row.seen for row in rows)
    assert not [row for row in rows if "secret" in row.seen + row.hint]
