"""A lab that a move has taken to another place: what notes that, what carries the note, and what is refused then."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from commandline import labtrack
from conftest import ROOT, at
from fakes import FakeCloud

from labtrack import labmoved, preflight, secrets, users
from labtrack.envfile import lifecycle
from labtrack.errors import BadInputError
from labtrack.lab import Lab
from labtrack.labcopy import byhand

BACK = "labtrack lab move inventory/climate inventory/tundra --step back"


def refused(lab: Lab) -> str:
    with pytest.raises(BadInputError) as error:
        labmoved.check(lab)
    return str(error.value)


def test_a_lab_that_never_moved_is_here(full: Lab) -> None:
    assert labmoved.where(full) == ""
    labmoved.check(full)
    assert not labmoved.note(full, "")


@pytest.mark.parametrize(
    ("state", "what", "hint"),
    [
        ("left for tundra", "climate has moved: it is tundra now", BACK),
        ("left for tundra", "only one of the two may take requests", "playbooks/open.yml -e open_anyway=true"),
        ("given up for tundra", "in its old place, tundra", "inventory/tundra inventory/climate`"),
        ("arriving from tundra", "has not all of tundra yet", "inventory/tundra inventory/climate` goes on"),
        ("arrived from tundra", "nobody was let in yet", "inventory/tundra inventory/climate --step open"),
    ],
)
def test_a_note_says_where_the_lab_is_and_how_to_go_back(full: Lab, state: str, what: str, hint: str) -> None:
    assert labmoved.note(full, state) and not labmoved.note(full, state)
    assert labmoved.where(full) == state
    said = refused(full)
    assert what in said.partition("To fix: ")[0] and hint in said.partition("To fix: ")[2]
    assert (full.private / labmoved.FILE).stat().st_mode & 0o077 == 0
    assert labmoved.note(full, "") and labmoved.where(full) == ""


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"moved": 3}', '{"moved": "by hand"}', "left for tundra", "\udcff"])
def test_a_damaged_note_is_no_lab_that_is_here(full: Lab, text: str) -> None:
    (full.private / labmoved.FILE).write_bytes(text.encode(errors="surrogateescape"))
    assert "does not say where the lab is" in refused(full)


def test_server_and_playbooks_know_the_states_that_the_lab_s_files_know() -> None:
    states = set(labmoved._TOLD)
    playbooks = "".join(path.read_text() for path in (ROOT / "playbooks").rglob("*.yml"))
    written = re.findall(r"(?:close_moved|nginx_closed_why|note_moved): \"(\w+(?: \w+)+) {{", playbooks)
    assert set(written) == states
    words = {state.partition(" ")[0] for state in states}
    hints = (
        (ROOT / "roles/nginx/templates/labtrack_closed.py").read_text().partition("HINTS = {")[2].partition("}\n")[0]
    )
    assert set(re.findall(r'^    "(\w+)": ', hints, re.MULTILINE)) == words
    # Each of these asks by first words; open.yml leaves out the one that may be opened.
    asked = [set(one.split("|")) for one in re.findall(r"match(?:\(|', )'\(((?:\w+\|)+\w+)\) '", playbooks)]
    assert sorted(asked, key=len) == [words - {"arrived"}, words]


def test_only_states_of_a_move_are_noted(full: Lab) -> None:
    with pytest.raises(BadInputError, match="'a new disk' is no state of a move"):
        labmoved.note(full, "a new disk")
    assert labmoved.where(full) == ""


def test_the_playbooks_note_it_by_a_command(full: Lab) -> None:
    assert labtrack("lab", "moved", full.folder, "left for tundra").stdout == "left for tundra\n"
    assert labtrack("lab", "moved", full.folder, "left for tundra").stdout == ""
    assert labtrack("lab", "moved", full.folder, "").stdout == "here\n" and labmoved.where(full) == ""


def test_an_export_carries_it_to_an_empty_laptop(full: Lab, tmp_path: Path, empty: Lab) -> None:
    labmoved.note(full, "left for tundra")
    byhand.export(full, tmp_path / "lab.vault")
    byhand.bring(empty, tmp_path / "lab.vault")
    assert BACK in refused(empty)


@pytest.mark.parametrize(("machine", "status"), [(False, "failed"), (True, "warning")])
def test_preflight_tells_it_and_refuses_to_make_a_machine(full: Lab, machine: bool, status: str) -> None:
    """Where there is one, its newest files are asked: another admin may have gone back."""
    if machine:
        (full.folder / "hosts.yml").write_text("{}")
    assert [row for row in preflight.check(full.folder) if row.check == "lab"] == []
    labmoved.note(full, "left for tundra")
    (row,) = (row for row in preflight.check(full.folder) if row.check == "lab")
    assert row.status.value == status and "it is tundra now" in row.seen and BACK in row.hint


def test_nobody_gets_an_account_or_key_of_a_lab_that_is_elsewhere(lab: Lab, cloud: FakeCloud, context) -> None:
    with context():
        secrets.ensure_passwords(lab)
    labmoved.note(lab, "left for tundra")
    with at(lab, cloud) as here:
        for what in (lambda: list(users.sync(here)), lambda: lifecycle.create(here, "ada")):
            with pytest.raises(BadInputError, match="it is tundra now"):
                what()
        assert list(cloud.accounts) == ["admin"] and not cloud.keys
        labmoved.note(lab, "")
        assert lifecycle.create(here, "ada").changed


def plays(name: str) -> list[dict[str, object]]:
    return list(yaml.safe_load((ROOT / name).read_text()))


@pytest.mark.parametrize("name", ["site.yml", "playbooks/restore.yml"])
def test_runs_that_go_on_to_people_are_refused_at_their_beginning(name: str) -> None:
    """Each part before users.yml that takes over the newest files: the first one that can ask the server stops."""
    parts = [play for play in plays(name) if "ansible.builtin.import_playbook" in play]
    names = [Path(str(part["ansible.builtin.import_playbook"])).name for part in parts]
    assert "users.yml" in names
    beginning = [part for part, of in zip(parts, names) if of in ("provision.yml", "deploy.yml")]
    assert beginning and all(part["vars"]["refuse_moved"] is True for part in beginning)  # type: ignore[index]


def test_every_playbook_that_people_s_accounts_are_made_by_is_known() -> None:
    making = {
        path.relative_to(ROOT).as_posix()
        for path in [ROOT / "site.yml", *(ROOT / "playbooks").rglob("*.yml")]
        if "users.yml" in path.read_text() and path.name != "users.yml"
        and any("users.yml" in str(play.get("ansible.builtin.import_playbook")) for play in plays(str(path)))
    }  # fmt: skip
    assert making == {"site.yml", "playbooks/restore.yml"}
