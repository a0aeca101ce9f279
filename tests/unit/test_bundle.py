"""`labtrack bundle`, the real program; the server is this machine, with stand-ins for programs.  No secret gets in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from commandline import labtrack
from conftest import LAB, ROOT
from leaks import ENCODINGS, cut_in_two, journal, wrapped

from labtrack import lab as labs
from labtrack import secrets
from labtrack.bundle import known, make, onserver
from labtrack.errors import BadInputError
from labtrack.lab import Lab

VAULT = "the vault's own password, long"
# Whose each is; all of them are in files of this machine, and in what each program of the server says.
SECRETS = {
    "secret_mlflow_admin_password": "Adm1nPassw0rdAdm1nPassw0rd",
    "secret_s3_access_key_id": "0a1b2c3d4e5f60718293a4b5c6d7e8f9",
    "secret_s3_secret_access_key": "f9e8d7c6b5a4938271605f4e3d2c1b0a",
    "secret_alerts_mail_password": "it's/a+relay=with &odd%21 signs\u00e9",
    "secret_alerts_webhook_url": "https://hooks.example.org/services/T0B1/zQ8wL2xK",
    "secret_short": "7 kX!",
}
WEBHOOK = "https://ntfy.example.org/zz7f3a-topic-of-lab"
CLOUD_PASSWORD, CREDENTIAL = "hunter2-of-the-cloud", "app-cred-secret-9x8c7v"
ADA = {
    "MLFLOW_TRACKING_PASSWORD": "ada's own'word 1",
    "AWS_ACCESS_KEY_ID": "ad0a1b2c3d4e",
    "AWS_SECRET_ACCESS_KEY": "ad9f8e7d6c5b",
}
NETRC = "netrc-passw0rd-of-ada"
KEY_LINES = ["MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ", "C7VJTUt9Us8cKjMzEfYyjiWA4R4"]
OLD_KEY = "old1b2c3d4e5f607"
ALL = [
    *SECRETS.values(), WEBHOOK, "zz7f3a-topic-of-lab", "zQ8wL2xK", VAULT,
    CLOUD_PASSWORD, CREDENTIAL, *ADA.values(), NETRC,
    *KEY_LINES, OLD_KEY,
]  # fmt: skip
PROGRAMS = ("journalctl", "systemctl", "nft", "df", "ps", "ss", "labtrack-backup", "labtrack-certificate", "dpkg-query")


@pytest.fixture
def full_lab(lab_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A lab with a secret in each place that has one."""
    password = tmp_path / "password"
    password.write_text(VAULT)
    monkeypatch.setenv("ANSIBLE_VAULT_PASSWORD_FILE", str(password))
    root = lab_dir.parents[1]
    alerts = {"webhook": {"url": WEBHOOK, "template": "ntfy"}}
    data = {**LAB, "lab_clouds_file": "clouds.yaml", "lab_alerts": alerts}
    labs.lab_yml(lab_dir).write_text(yaml.safe_dump(data) + f"# my note: password: {CLOUD_PASSWORD}\n")
    auth = {
        "auth_url": "http://127.0.0.1:9/v3",
        "username": "labadmin",
        "password": CLOUD_PASSWORD,
        "project_name": "climate",
    }
    other = {"auth": {"auth_url": "http://127.0.0.1:9/v3", "application_credential_secret": CREDENTIAL}}
    (root / "clouds.yaml").write_text(yaml.safe_dump({"clouds": {"arbutus": {"auth": auth}, "other": other}}))
    lab = labs.load(lab_dir)
    for name, value in SECRETS.items():
        secrets.add(lab, {name: value})
    ada = lab.env_file("ada")
    ada.parent.mkdir()
    ada.write_text("".join(f"export {name}='{_for_shell(value)}'\n" for name, value in ADA.items()))
    (lab.private / "id_ed25519").write_text(
        "-----BEGIN PRIVATE KEY-----\n" + "\n".join(KEY_LINES) + "\n-----END PRIVATE KEY-----\n"
    )
    lab.keys_file.write_text(json.dumps({"keys": [{"access": OLD_KEY, "owner": "ada", "state": "old"}]}))
    (Path.home() / ".netrc").write_text(f"machine mlflow.example.org login ada password {NETRC}\n")
    return lab


def _for_shell(value: str) -> str:
    return value.replace("'", "'\"'\"'")


def _leaks(encodings: list[str]) -> str:
    """All secrets as programs may write them."""
    return "".join(
        f"{encoding}: {written}\n{journal(written)}{wrapped(written)}"
        for secret in ALL
        for encoding in encodings
        for written in [ENCODINGS[encoding](secret)]
    )


@pytest.fixture
def server(full_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine is the server, reached by the real ansible; its programs say all secrets, and who ada is."""
    programs = tmp_path / "programs"
    programs.mkdir()
    row = {
        "check": "store",
        "status": "failed",
        "seen": f"refused: {CLOUD_PASSWORD} ada",
        "hint": SECRETS["secret_short"],
    }
    status = {
        "version": 1,
        "status": "failed",
        "time": 1.0,
        "host": "server",
        "results": [{**row, "seconds": 0, "parts": []}],
    }
    (tmp_path / "status").write_text(json.dumps(status))
    for number, name in enumerate(PROGRAMS):  # each some of the encodings, for speed
        said = _leaks(list(ENCODINGS)[number :: len(PROGRAMS)])
        (tmp_path / f"{name}.said").write_text(f"{said}ada is here, at 203.0.113.7\n")
        (programs / name).write_text(f"#!/bin/sh\nexec /bin/cat {tmp_path}/{name}.said\n")
    (programs / "labtrack-status").write_text(f"#!/bin/sh\nexec /bin/cat {tmp_path}/status\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    local = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}
    hosts = {"mlflow": {"hosts": {"server": local}}}
    (full_lab.folder / "hosts.yml").write_text(yaml.safe_dump(hosts))
    return programs


def unpacked(file: Path) -> dict[str, str]:
    with tarfile.open(file) as archive:
        return {
            one.name.partition("/")[2]: archive.extractfile(one).read().decode()  # type: ignore[union-attr]
            for one in archive.getmembers()
        }


def what_leaks(files: dict[str, str]) -> list[tuple[str, str, str]]:
    """Each secret, or half of one, that is in a file: which file, in what encoding, which."""
    found = []
    for secret in ALL:
        for encoding, encode in ENCODINGS.items():
            written = encode(secret)
            parts = [written, *(part for part in cut_in_two(written) if len(part) > 5)]
            found += [(name, encoding, part) for name, text in files.items() for part in parts if part in text]
    return found


def test_the_test_finds_leaks() -> None:
    leaks = _leaks(["plain"])
    assert {secret for secret in ALL if any(part in secret for _, _, part in what_leaks({"x": leaks}))} == set(ALL)


def test_no_secret_is_in_it(full_lab: Lab, server: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.tar.gz"
    done = labtrack("bundle", full_lab.folder, "-o", file)
    assert done.returncode == 0, done.stderr
    files = unpacked(file)
    assert what_leaks(files) == []
    assert what_leaks({"said": done.stdout + done.stderr}) == []
    assert file.stat().st_mode & 0o777 == 0o600
    for name in ("journal.txt", "firewall.txt", "unit-status.txt", "units.txt", "disks.txt", "packages.txt"):
        assert "ada is here, at 203.0.113.7" in files[f"server/{name}"], "what is no secret stays"
    assert json.loads(files["server/status.json"])["results"][0]["seen"] == "refused: *** ada"
    assert "url: ***\n" in files["here/lab.yml"] and "template: ntfy\n" in files["here/lab.yml"]
    settings = json.loads(files["here/lab.json"])
    assert settings["lab_fqdn"] == "mlflow.example.org" and settings["lab_mlflow_instances"] == 2
    assert "labtrack 0." in files["here/versions.txt"] and "ansible-core" in files["here/versions.txt"]
    assert "lab.yml" in files["here/preflight.json"] and "id_ed25519" in files["here/private.txt"]
    listed = done.stdout[: done.stdout.index("Written: ")]
    assert all(f"\n{name} " in listed for name in files), "before it is written"
    assert "read it before you send it" in done.stdout and "Names of people" in done.stdout
    assert "Not to be had" in files["here/preflight-cloud.json"] or "login" in files["here/preflight-cloud.json"]


def test_a_server_that_can_t_be_reached(full_lab: Lab, tmp_path: Path) -> None:
    server = {"ansible_host": "127.0.0.1", "ansible_port": 9}
    (full_lab.folder / "hosts.yml").write_text(yaml.safe_dump({"mlflow": {"hosts": {"server": server}}}))
    file = tmp_path / "out.tar.gz"
    done = labtrack("bundle", full_lab.folder, "-o", file)
    assert done.returncode == 1
    assert "The server is not in it.  The server can't be reached: " in done.stderr and "To fix: " in done.stderr
    files = unpacked(file)
    assert "here/lab.yml" in files and "can't be reached" in files["server/NOT-REACHED.txt"]
    assert what_leaks(files) == []


def test_a_file_that_is_there_is_not_written_over(full_lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    done = labtrack("bundle", full_lab.folder, "-o", tmp_path / "there")
    assert done.returncode == 2 and "is there already" in done.stderr and (tmp_path / "there").read_text() == "mine"
    with pytest.raises(BadInputError, match="There is no folder"):
        make.refuse_existing(tmp_path / "none" / "x")


def test_without_the_secrets_there_is_no_bundle(full_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not known can't be removed."""
    (tmp_path / "password").write_text("another")
    done = labtrack("bundle", full_lab.folder, "-o", tmp_path / "x")
    assert done.returncode == 1 and "can't be decrypted" in done.stderr and not (tmp_path / "x").exists()


def test_git_takes_no_notice_of_it(tmp_path: Path) -> None:
    ignored = (ROOT / ".gitignore").read_text()
    for command in (
        ["git", "init", "-q", str(tmp_path)],
        ["git", "-C", str(tmp_path), "check-ignore", str(make.name_for("x"))],
    ):
        (tmp_path / ".gitignore").write_text(ignored)
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("export AWS_SECRET_ACCESS_KEY='cut off", "cut off"),
        ("aws_secret_access_key = abcdefgh", "abcdefgh"),
        ("# export MLFLOW_TRACKING_PASSWORD=plain", "plain"),
    ],
)
def test_files_that_were_edited(full_lab: Lab, text: str, secret: str) -> None:
    (full_lab.private / "ada" / "mlflow_env.sh.old").write_text(text)
    assert secret in known.secrets_of(full_lab)


def test_a_secret_that_is_too_short_is_told(full_lab: Lab) -> None:
    secrets.add(full_lab, {"secret_tiny": "abc"})
    assert known.too_short(known.secrets_of(full_lab)) == ["secret_tiny"]


def test_the_end_of_a_long_answer_is_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(onserver, "MOST", 10)
    assert onserver.said(["printf", "first secret\nlast\n"]).endswith("\nlast\n[8 bytes before these are left out]\n")
    assert onserver.said(["no-such-program"]) == "$ no-such-program\n[not installed]\n"
    assert onserver.said(["sh", "-c", "echo no; exit 3"]).endswith("no\n[exit code 3]\n")
    monkeypatch.setattr(onserver, "LIMIT", 0.2)
    assert "[no answer within 0.2 s]" in onserver.said(["sleep", "60"])
