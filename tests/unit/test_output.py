"""What reaches a terminal."""

from __future__ import annotations

import io
import re
import sys

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from labtrack.cli import output
from labtrack.doctor.result import failed

ODD = "a\x1b]0;title\x07b\x9b31m\rc\u202ed\udcff"
SEEN = "a\\x1b]0;title\\x07b\\x9b31m\\rc\\u202ed\\udcff"


def test_line_makes_control_characters_visible(capsys: pytest.CaptureFixture[str]) -> None:
    output.line(f"note: {ODD}")
    output.line(ODD, err=True)
    assert capsys.readouterr() == (f"note: {SEEN}\n", f"{SEEN}\n")


def test_tables_and_results_do_so_too(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("run", "name"), [("1", f"{ODD}\nsecond line")])
    output.results([failed("login", f"{ODD}\nmore", f"hint {ODD}")], as_data=False)
    said = capsys.readouterr().out
    assert f"1    {SEEN} second line\n" in said and f"{SEEN}\n" in said and f"To fix: hint {SEEN}" in said
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", re.sub("\x1b\\[[0-9;]*m", "", said))


@given(st.text())
def test_clean_leaves_nothing_that_a_terminal_obeys(text: str) -> None:
    found = output.clean(text)
    assert all(one in "\t\n" or one.isprintable() or ord(one) > 0x9F for one in found)
    found.encode()


def test_a_terminal_without_unicode(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    output.line("größe")
    stream.flush()
    assert stream.buffer.getvalue() == b"gr\\xf6\\xdfe\n"


def test_only_output_prints() -> None:
    for file in (ROOT / "scripts" / "labtrack").rglob("*.py"):
        if file.name != "output.py":
            assert not re.search(r"(^|\s)(click\.(s?echo|secho)|print)\(", file.read_text(), re.MULTILINE), file
