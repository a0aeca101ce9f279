"""`labtrack init`: what it refuses, and the lab.yml that it writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fakes import SSH_KEY

from labtrack import labfile, newlab
from labtrack.errors import BadInputError
from labtrack.lab import lab_yml
from labtrack.newlab.ask import Found

NOTHING = Found(
    title="a cloud", admin="ada", ssh_key_files=[], image="", flavor="", external_network="", external_networks=[],
    router="", free_addresses=[], data_volume="none", artifact_access="proxied", s3_endpoint="",
    s3_region="", s3_ca_file=None,
)  # fmt: skip
ALL = replace(
    NOTHING, ssh_key_files=["~/.ssh/id_ed25519.pub"], image="Debian #13: x", flavor="p2-3gb", external_network="Public",
    router="yes", free_addresses=["203.0.113.4"], data_volume="manage", artifact_access="direct", s3_endpoint="https://s3.example.org",
    s3_region="RegionOne",
)  # fmt: skip


def written(found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> labfile.LabFile:
    """The lab.yml that init writes for what was found."""
    monkeypatch.setattr(newlab, "login", lambda *_: None)
    monkeypatch.setattr(newlab, "ask", lambda _: found)
    folder = tmp_path / "inventory" / "climate"
    newlab.init(folder, "arbutus")
    return labfile.read(lab_yml(folder))


@pytest.mark.parametrize("found", [NOTHING, ALL], ids=["nothing", "all"])
def test_only_what_is_said_to_be_missing_is_missing(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / ".ssh"
    home.mkdir(parents=True, exist_ok=True)
    (home / "id_ed25519.pub").write_text(f"{SSH_KEY} ada\n")
    read = written(found, tmp_path, monkeypatch)
    problems = labfile.check(read, tmp_path / "inventory" / "climate", tmp_path)
    lines = read.path.read_text().splitlines()
    named = {key for key in found.missing if any(key in p.what for p in problems)}
    assert named == set(found.missing)
    assert all("FILL IN" in lines[problem.line - 1] for problem in problems), problems
    assert len(problems) == len(found.missing)


def test_what_was_found_is_written_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(ALL, tmp_path, monkeypatch).data
    assert data["lab_image"] == "Debian #13: x" and data["lab_router"] == "yes" and data["lab_s3_region"] == "RegionOne"
    assert data["lab_data_volume"] == "manage" and data["lab_bucket"] == "climate-mlflow"
    assert data["lab_artifact_access"] == "direct"
    (tmp_path / "other").mkdir()
    assert written(NOTHING, tmp_path / "other", monkeypatch).data["lab_artifact_access"] == "proxied"


def test_a_lab_that_is_there_is_not_written_over(lab_dir: Path) -> None:
    before = lab_yml(lab_dir).read_text()
    with pytest.raises(BadInputError, match="not written over"):
        newlab.init(lab_dir)
    assert lab_yml(lab_dir).read_text() == before


@pytest.mark.parametrize("name", ["Climate", "a b", "-x", "x"])
def test_a_name_that_no_lab_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="can't be named"):
        newlab.init(tmp_path / name)
    assert not list(tmp_path.rglob("lab.yml"))


def test_several_clouds_and_none_chosen(tmp_path: Path) -> None:
    clouds = tmp_path / "clouds.yaml"
    clouds.write_text("clouds: {one: {auth: {auth_url: x}}, two: {auth: {auth_url: x}}}")
    with pytest.raises(BadInputError, match="several entries: one, two"):
        newlab.init(tmp_path / "climate", clouds_file=clouds)


def test_no_cloud_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInputError, match="No clouds"):
        newlab.init(tmp_path / "climate")
