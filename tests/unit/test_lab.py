"""lab.yml: every way to get it wrong has its own words, with the line and the hint."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from conftest import LAB, ROOT

from labtrack import lab as labs
from labtrack import labfile, preflight
from labtrack.cli import cli
from labtrack.doctor.result import Status
from labtrack.errors import BadInputError, Exit

GOOD = yaml.safe_dump(LAB, sort_keys=False)


def problems(lab_dir: Path, text: str) -> list[labfile.Problem]:
    """What is said about a lab.yml with this text."""
    file = labs.lab_yml(lab_dir)
    file.write_text(text)
    return labfile.check(labfile.read(file), lab_dir, lab_dir.parents[1])


def with_(**changed: object) -> str:
    """A good lab.yml with other values; None takes the key out."""
    data = {key: value for key, value in {**LAB, **changed}.items() if value is not None}
    return yaml.safe_dump(data, sort_keys=False)


BACKUP = {"endpoint": "https://s3.example.org", "bucket": "climate-backup"}
MAIL = {"relay": "smtp.example.org", "from": "a@example.org", "to": ["b@example.org"]}
CASES = {
    "unknown key": (GOOD + "lab_fqnd: x\n", "no setting lab_fqnd", "Did you mean lab_fqdn?"),
    "unknown key inside": (with_(lab_users=[{"nmae": "ada", "name": "ada"}]), "lab_users[1].nmae", "mean name?"),
    "wrong type": (with_(lab_mlflow_instances="two"), 'lab_mlflow_instances is "two"', "a number from 1 to 6"),
    "missing key": (with_(lab_bucket=None), "lab_bucket is missing", "Add `lab_bucket:`"),
    "secret by name": (GOOD + "lab_s3_secret_key: abc\n", "looks like a secret", "labtrack secrets ensure"),
    "secret of secrets.yml": (GOOD + "secret_verify_password: abc\n", "looks like a secret", "secrets.yml"),
    "secret by value": (GOOD + "lab_image: |\n  -----BEGIN PRIVATE KEY-----\n", "has a secret in it", "Take it out"),
    "password in an address": (with_(lab_s3_endpoint="https://me:pw@s3.example.org"), "secret in it", "Take it"),
    "vault tag": (GOOD + "lab_image: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n", "is a secret", "Take it out"),
    "other tag": (GOOD + "lab_image: !unsafe x\n", "has the tag !unsafe", "plain value"),
    "Jinja": (with_(lab_bucket="{{ lab_name }}-x"), "has Jinja in it", "the value itself"),
    "duplicate key": (GOOD + "lab_cloud: other\n", "lab_cloud is given twice; line", "Keep one"),
    "YAML syntax": (GOOD + "lab_image: 'open\n", "It is not YAML", "a missing quote"),
    "a tab": (GOOD + "lab_x:\n\t- y\n", "It is not YAML", "indentation"),
    "not a mapping": ("- a\n", "holds no settings", "inventory/example"),
    "empty": ("", "holds no settings", "inventory/example"),
    "name is not the folder's": (with_(lab_name="weather"), "lab_name is weather", "lab_name: climate"),
    "person twice": (with_(lab_users=[{"name": "ada"}, {"name": "ada"}]), "ada is there twice; line", "Keep one"),
    "reserved person": (with_(lab_users=[{"name": "admin"}]), 'is "admin"', "which the kit uses itself"),
    "IPv6 in capitals": (with_(lab_admin_networks=["2001:DB8::/32"]), "give back as", "Write 2001:db8::/32"),
    "network twice": (with_(lab_admin_networks=["203.0.113.0/24"] * 2), "203.0.113.0/24 is there twice", "Keep one"),
    "too many instances": (with_(lab_mlflow_instances=8), "lab_mlflow_instances is 8", "PostgreSQL's 200 connections"),
    "a date": (GOOD + "lab_network: 2026-11-26\n", "takes for a date", 'in quotes: "2026-11-26"'),
    "a number": (GOOD + "lab_flavor: 013\n", "lab_flavor is 013, which YAML takes for a number", '"013"'),
    "a number with an exponent": (GOOD + "lab_key_pair: 1.5e+3\n", "takes for a number", 'in quotes: "1.5e+3"'),
    "minutes": (GOOD + "lab_image: 12:30\n", "lab_image is 12:30, which YAML takes for a number", '"12:30"'),
    "yes for a name": (GOOD + "lab_router: on\n", "takes for yes or no", 'in quotes: "on"'),
    "Norway": (with_().replace("- name: grace", "- name: no"), "lab_users[2].name is no, which", 'in quotes: "no"'),
    "a number in a list": (GOOD + "lab_shared_experiments: [2024]\n", "lab_shared_experiments[1] is 2024", '"2024"'),
    "a number that quotes do not save": (with_(lab_bucket=7), "lab_bucket is 7", "3 to 63 of a-z"),
    "host bits": (with_(lab_admin_networks=["203.0.113.7/24"]), "host bits set", "203.0.113.0/24"),
    "no network": (with_(lab_admin_networks=["anywhere"]), 'is "anywhere"', "a list of networks"),
    "address with scheme as name": (with_(lab_fqdn="https://mlflow.example.org"), "lab_fqdn is", "without https://"),
    "one-word name": (with_(lab_fqdn="mlflow"), "lab_fqdn is", "a full host name"),
    "bucket in capitals": (with_(lab_bucket="Climate"), "lab_bucket is", "3 to 63 of a-z"),
    "address without scheme": (with_(lab_s3_endpoint="s3.example.org"), "lab_s3_endpoint is", "with https://"),
    "missing SSH key file": (
        with_(lab_admins=[{"name": "ada", "ssh_key_files": ["~/no.pub"]}]),
        "there is no file",
        "name the right one",
    ),
    "admin without key": (with_(lab_admins=[{"name": "ada"}]), "has no SSH key", "ssh_key_files"),
    "root as admin": (with_(lab_admins=[{"name": "root", "ssh_keys": ["ssh-rsa AAAA x"]}]), 'is "root"', "not root"),
    "yes for true": (with_() + "lab_clients_reach_store: no\n", "is written 'no'", "Write false"),
    "provided without files": (with_(lab_certificate="provided"), "lab_certificate_file is missing", "PEM"),
    "everybody as admin": (with_(lab_admin_networks=["0.0.0.0/0"]), "'0.0.0.0/0' is everybody", "203.0.113.7/32"),
    "no network of its own": (with_(lab_network_cidr="10.20.0.1/24"), "host bits set", "from /8 to /28"),
    "no floating IP": (with_(lab_floating_ip="203.0.113.300"), "is not a network", "openstack floating ip list"),
    "router of a given network": (with_(lab_network="n", lab_router="r"), "lab_router has no effect", "router"),
    "a volume smaller than PostgreSQL": (with_(lab_data_volume_gb=1), "lab_data_volume_gb is 1", "from 5 to 16384"),
    "backup without a bucket": (
        with_(lab_backup={"endpoint": "https://s3.example.org"}),
        "lab_backup.bucket is missing",
        "3 to 63 of a-z",
    ),
    "backup without an address": (with_(lab_backup={"bucket": "b-1"}), "lab_backup.endpoint is missing", "https://"),
    "backup to an address with a path": (
        with_(lab_backup=BACKUP | {"endpoint": "https://s3.example.org/swift/v1"}),
        "lab_backup.endpoint is",
        "ignore",
    ),
    "backup without https": (
        with_(lab_backup=BACKUP | {"endpoint": "http://s3.example.org"}),
        "lab_backup.endpoint is",
        "with https://",
    ),
    "backup beside the artifacts": (
        with_(lab_backup=BACKUP | {"bucket": "climate-mlflow"}),
        "the bucket of the artifacts",
        "another project",
    ),
    "backup with its key": (
        with_(lab_backup=BACKUP | {"secret_access_key": "x"}),
        "lab_backup.secret_access_key looks like",
        "Take it out",
    ),
    "backup with another word": (
        with_(lab_backup=BACKUP | {"regoin": "x"}),
        "no setting lab_backup.regoin",
        "Did you mean region?",
    ),
    "backup as a word": (with_(lab_backup="climate-backup"), "lab_backup is", "entries like {endpoint:"),
    "backup switched on": (with_(lab_backup=True), "lab_backup is true", "entries like {endpoint:"),
    "backup left empty": (GOOD + "lab_backup:\n", "lab_backup is not filled in", "entries like {endpoint:"),
    "backup with a CA that is not there": (
        with_(lab_backup=BACKUP | {"ca_file": "~/no.pem"}),
        "lab_backup.ca_file: there is no file",
        "name the right one",
    ),
    "alerts for nobody": (with_(lab_alerts={}), "lab_alerts is {}", "at least one of them"),
    "alerts with a password in the address": (
        with_(lab_alerts={"heartbeat": "https://me:secret@example.org/x"}),
        "lab_alerts.heartbeat has a secret in it",
        "secrets.yml",
    ),
    "alerts to no address": (
        with_(lab_alerts={"heartbeat": "hc-ping.com/x"}),
        "lab_alerts.heartbeat is",
        "or vault for one in secrets.yml",
    ),
    "alerts by an unknown template": (
        with_(lab_alerts={"webhook": {"url": "vault", "template": "teams"}}),
        'lab_alerts.webhook.template is "teams"',
        "ntfy, slack, matrix or json",
    ),
    "alerts with a token": (
        with_(lab_alerts={"webhook": {"url": "vault", "template": "ntfy", "token": "x"}}),
        "lab_alerts.webhook.token looks like",
        "Take it out",
    ),
    "alerts by mail to nobody": (
        with_(lab_alerts={"mail": MAIL | {"to": []}}),
        "lab_alerts.mail.to is []",
        "a list of",
    ),
    "alerts by mail without a relay": (
        with_(lab_alerts={"mail": {"from": "a@example.org", "to": ["b@example.org"]}}),
        "lab_alerts.mail.relay is missing",
        "a name or an address",
    ),
    "alerts by mail that log in without encryption": (
        with_(lab_alerts={"mail": MAIL | {"user": "lab", "encryption": "none"}}),
        "the password would go over the network",
        "starttls or tls",
    ),
    "files without provided": (with_() + "lab_certificate_file: lab.yml\n", "has no effect here", "provided"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_said_once_with_line_and_mend(name: str, lab_dir: Path) -> None:
    text, what, hint = CASES[name]
    found = problems(lab_dir, text)
    matching = [problem for problem in found if what in problem.what]
    assert len(matching) == 1, found
    assert hint in matching[0].hint
    assert matching[0].what.count("\n") == 0
    if "holds no" not in what:
        assert matching[0].line >= 1
    with pytest.raises(BadInputError) as raised:
        labs.load(lab_dir)
    assert raised.value.code == Exit.BAD_INPUT and what in str(raised.value)


def test_the_line_is_the_one_that_is_wrong(lab_dir: Path) -> None:
    (problem,) = problems(lab_dir, GOOD + "\n# a comment\nlab_flavour: p2\n")
    lines = labs.lab_yml(lab_dir).read_text().splitlines()
    assert lines[problem.line - 1] == "lab_flavour: p2"
    assert problem.place == f"{labs.lab_yml(lab_dir)}:{problem.line}"
    assert "lab_flavor" in problem.hint


def test_a_private_key_named_as_public_is_refused(lab_dir: Path) -> None:
    key = lab_dir.parents[1] / "id_ed25519"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n")
    (problem,) = problems(lab_dir, with_(lab_admins=[{"name": "ada", "ssh_key_files": ["id_ed25519"]}]))
    assert "is a private key" in problem.what and ".pub" in problem.hint


def test_several_mistakes_are_all_told_in_the_order_of_the_lines(lab_dir: Path) -> None:
    found = problems(lab_dir, with_(lab_fqdn="x", lab_bucket="UP", lab_cloud=None))
    assert len(found) == 3
    assert [problem.line for problem in found] == sorted(problem.line for problem in found)


def test_a_good_lab_has_its_defaults(lab_dir: Path) -> None:
    lab = labs.load(lab_dir)
    assert (lab.s3_region, lab.artifact_access, lab.clients_reach_store) == ("us-east-1", "direct", False)
    assert lab.private == lab_dir.parents[1] / "private" / "climate"
    assert lab.url == "https://mlflow.example.org"


@pytest.mark.parametrize("name", ["rehearsal", "example"])
def test_the_labs_of_the_repository_are_good_but_for_files_that_are_made_later(name: str) -> None:
    folder = ROOT / "inventory" / name
    found = labfile.check(labfile.read(labs.lab_yml(folder)), folder, ROOT)
    later = ("there is no file", "ssh_keys[1] is no whole key") if name == "example" else ("there is no file",)
    assert [problem for problem in found if not any(one in problem.what for one in later)] == []
    first = labs.lab_yml(folder).read_text().splitlines()[0]
    schema = first.partition("$schema=")[2]
    assert (labs.lab_yml(folder).parent / schema).resolve() == ROOT / "schema" / "lab.json"


def test_as_many_instances_as_postgresql_can_carry() -> None:
    defaults = yaml.safe_load((ROOT / "roles/postgresql/defaults/main.yml").read_text())
    most = labfile.schema()["properties"]["lab_mlflow_instances"]["maximum"]
    each = 3 * 8 + 6
    assert "lab_mlflow_instances | int * (3 * 8 + 6)" in (ROOT / "playbooks/deploy.yml").read_text()
    room = defaults["postgresql_max_connections"] - defaults["postgresql_reserved_connections"]
    assert most * each <= room < (most + 1) * each


def test_every_setting_says_what_it_does_and_what_a_change_does() -> None:
    def entries(properties: dict) -> None:
        for key, about in properties.items():
            assert about["description"].endswith("."), key
            assert about["x-allowed"] and not about["x-allowed"].endswith("."), key
            entries(about.get("items", {}).get("properties", {}))

    properties = labfile.schema()["properties"]
    entries(properties)
    for key, about in properties.items():
        assert about["x-effect-of-change"].endswith("."), key


def test_preflight_prints_one_table_and_each_failed_row_says_how_to_mend(lab_dir: Path) -> None:
    problems(lab_dir, with_(lab_fqdn="x"))
    rows = list(preflight.check(lab_dir))
    bad = [row for row in rows if row.status is Status.FAILED]
    assert [row.check for row in bad] == ["lab.yml:2"] and all(row.hint for row in bad)
    printed = CliRunner().invoke(cli, ["preflight", str(lab_dir)])
    assert printed.exit_code == Exit.BAD_INPUT
    assert "a full host name" in printed.output


def test_preflight_is_content_with_a_good_lab_and_changes_nothing(lab_dir: Path, tmp_path: Path) -> None:
    before = sorted(path for path in tmp_path.rglob("*"))
    done = CliRunner().invoke(cli, ["preflight", "--local", str(lab_dir)])
    assert (done.exit_code, "failed" in done.output) == (0, False), done.output
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("folder", "shown"), [("my labs", "space"), ("50%", "%"), ('"quoted"', '"'), ("a:b", ":")])
def test_preflight_refuses_a_path_that_ssh_cannot_have(lab_dir: Path, tmp_path: Path, folder: str, shown: str) -> None:
    root = tmp_path / folder
    shutil.copytree(lab_dir.parents[1], root, ignore=shutil.ignore_patterns(folder))
    done = CliRunner().invoke(cli, ["preflight", "--local", str(root / lab_dir.relative_to(lab_dir.parents[1]))])
    assert done.exit_code == Exit.FAILED
    assert f"has {shown} in it" in " ".join(done.output.split())


def test_preflight_sees_files_that_others_can_read(lab_dir: Path, tmp_path: Path) -> None:
    password = tmp_path / "home" / "vault-password"
    password.write_text("x")
    password.chmod(0o644)
    (lab_dir.parents[1] / "private" / "climate").chmod(0o755)
    done = CliRunner().invoke(cli, ["preflight", str(lab_dir)])
    assert done.exit_code == Exit.FAILED
    assert f"chmod 600 {password}" in done.output and "chmod 700" in done.output
