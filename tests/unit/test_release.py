"""Releases of the kit, and labs that were deployed with one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from labtrack import __version__, release
from labtrack.errors import BadInputError
from labtrack.lab import Lab
from labtrack.release import Release

ROOT = Path(__file__).resolve().parents[2]
KNOWN = (
    Release("0.1.0", "2026-11-27", "a" * 40),
    Release("0.2.0", "2027-02-01", "b" * 40, "it moves the accounts to another table."),
    Release("0.3.0", "2027-05-01", "c" * 40),
)


@pytest.fixture
def here(lab: Lab) -> Lab:
    return lab


def was(here: Lab, version: str) -> None:
    (here.private / release.FILE).write_text(f'{{"version": "{version}"}}')


@pytest.mark.parametrize(
    ("there", "own"),
    [
        ("", "0.3.0"), ("0.1.0", "0.1.0"), ("0.1.0", "0.2.0.dev0"), ("0.1.0", "0.2.0"), ("0.2.0", "0.3.0"),
        ("0.2.0.dev0", "0.2.0"), ("0.3.0", "0.3.1"),
    ],
)  # fmt: skip
def test_a_kit_that_may_deploy(here: Lab, there: str, own: str) -> None:
    if there:
        was(here, there)
    release.check(here, own, KNOWN)


@pytest.mark.parametrize(("there", "own"), [("0.1.0", "0.3.0"), ("0.2.0.dev0", "0.2.1"), ("0.1.0", "0.3.0.dev0")])
def test_a_step_that_must_not_be_left_out_is_named(here: Lab, there: str, own: str) -> None:
    was(here, there)
    with pytest.raises(BadInputError) as refused:
        release.check(here, own, KNOWN)
    said = str(refused.value)
    assert "0.2.0 has to be deployed before" in said and "moves the accounts" in said and "b" * 40 in said


def test_an_older_kit_than_the_labs_is_refused_unless_it_is_meant(here: Lab) -> None:
    was(here, "0.3.0")
    with pytest.raises(BadInputError, match="deployed with version") as refused:
        release.check(here, "0.2.0", KNOWN)
    assert "0.3.0 of the kit, and this is 0.2.0" in str(refused.value) and "git pull" in str(refused.value)
    assert "allow_older_kit" in str(refused.value)
    release.check(here, "0.2.0", KNOWN, older=True)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": "new"}', '{"version": null}', "\0"])
def test_a_damaged_note_is_told(here: Lab, text: str) -> None:
    (here.private / release.FILE).write_text(text)
    with pytest.raises(BadInputError, match="does not say with which version"):
        release.check(here)


def test_the_version_is_noted_once(here: Lab) -> None:
    assert [release.note(here), release.note(here), release.deployed(here)] == [True, False, __version__]
    assert (here.private / release.FILE).stat().st_mode & 0o777 == 0o600


def test_each_release_is_a_commit_of_this_history_that_has_its_version() -> None:
    def git(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)

    if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("needs the whole history of the repository")
    known = release.releases()
    assert known and [one.version for one in known] == sorted(one.version for one in known)
    for one in known:
        assert git("merge-base", "--is-ancestor", one.commit, "HEAD").returncode == 0, one
        assert f'version = "{one.version}"' in git("show", f"{one.commit}:pyproject.toml").stdout
        assert f"## {one.version} - {one.date}" in (ROOT / "CHANGELOG.md").read_text()
