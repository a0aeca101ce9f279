"""What a researcher installs: quick, small, and without the admin's libraries."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

LABTRACK = Path(sys.executable).with_name("labtrack")
ADMINS = ("ansible", "jinja2", "jsonschema", "keystoneauth1", "openstack")


@pytest.fixture
def without_admin(tmp_path: Path) -> dict[str, str]:
    """An environment in which the admin's libraries can't be imported."""
    return without(tmp_path, ADMINS)


def without(tmp_path: Path, names: tuple[str, ...]) -> dict[str, str]:
    """An environment in which these can't be imported."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {names!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    return {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PYTHONPATH": str(tmp_path)}


def run(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LABTRACK, *arguments], capture_output=True, text=True, check=False, timeout=60, **more)


def test_help_comes_at_once_since_it_imports_little() -> None:
    script = (
        "import json, sys, labtrack.cli\n"
        "try:\n    labtrack.cli.cli(['--help'], standalone_mode=False)\n"
        "finally:\n    sys.stderr.write(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout
    modules = json.loads(done.stderr)
    heavy = {"boto3", "botocore", "requests", "rich", "yaml", "sqlite3", "asyncio", "mlflow", *ADMINS}
    assert {name.partition(".")[0] for name in modules} & heavy == set()
    rooms = {name.split(".")[1] for name in modules if name.startswith("labtrack.")}
    assert rooms == {"cli", "doctor", "errors", "printable"}, "a command's own modules are imported when it is called"


def test_the_client_needs_nothing_of_the_admins(without_admin: dict[str, str], tmp_path: Path) -> None:
    doctor = run("doctor", env=without_admin)
    assert doctor.returncode == 2 and "MLFLOW_TRACKING_URI is not set" in doctor.stdout
    check = run("env", "check", str(tmp_path / "none.sh"), env=without_admin)
    assert check.returncode == 2 and "To fix" in check.stdout


def test_the_client_needs_boto3_only_for_a_store(tmp_path: Path) -> None:
    env = without(tmp_path, ("boto3", "botocore", *ADMINS))
    script = (
        "from labtrack.doctor.context import Context\n"
        "from labtrack.doctor.run import _store\n"
        "import labtrack.sync.artifacts as artifacts, labtrack.cli, labtrack.doctor.tracking\n"
        "print([one.status.value for one in _store(Context({}))])\n"
        "print([one.hint for one in _store(Context({'AWS_ACCESS_KEY_ID': 'a'}))])\n"
        "try: artifacts.target(None, {}, 's3://bucket/1')\n"
        "except labtrack.BadInputError as error: print(error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "['skipped']" and done.stdout.count('pip install "labtrack[s3]"') == 2


@pytest.mark.parametrize(
    "command", [("preflight", "x"), ("env", "create", "x", "ada"), ("users", "sync", "x"), ("secrets", "ensure", "x")]
)
def test_the_admins_commands_say_what_to_install(command: tuple[str, ...], without_admin: dict[str, str]) -> None:
    done = run(*command, env=without_admin)
    assert done.returncode == 2 and 'pip install "labtrack[admin]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_usage_is_2() -> None:
    assert run("env", "create").returncode == 2
    assert run("nonsense").returncode == 2


def test_an_installed_package_has_schema_and_template(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
         "--wheel-dir", tmp_path, _copy_of_the_checkout(tmp_path / "source")],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as found:
        assert found.read("labtrack/lab.json") == (ROOT / "schema" / "lab.json").read_bytes()
        assert "labtrack/envfile/mlflow_env.sh.j2" in found.namelist()
        assert not any(name.startswith(("dev/", "vault")) for name in found.namelist())


def _copy_of_the_checkout(place: Path) -> Path:
    """What git has of it, links as links; a build writes into its source."""
    place.mkdir()
    listed = ["git", "ls-files", "-z", "pyproject.toml", "README.md", "schema", "scripts/labtrack"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout
    archive = ["tar", "--create", "--null", "--files-from=-"]
    packed = subprocess.run(archive, cwd=ROOT, input=names, capture_output=True, check=True).stdout
    subprocess.run(["tar", "--extract"], cwd=place, input=packed, check=True)
    return place


def test_modules_import_each_other_in_one_direction() -> None:
    """Also in functions and for types: who needs whom is read from the first lines, and changes with one of them."""
    package = ROOT / "scripts" / "labtrack"
    names = {
        ".".join(file.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): file
        for file in package.rglob("*.py")
    }
    imports = {name: _imported(file, name, names) for name, file in names.items() if name != "__init__"}
    while free := [name for name, used in imports.items() if not used & set(imports)]:
        for name in free:
            del imports[name]
    # what is left is in a circle, or uses one
    in_circles = {name for name in imports if _reaches(imports, name, name)}
    assert in_circles == set()


def _imported(file: Path, name: str, names: dict[str, Path]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "labtrack":
            place = (node.module or "").partition(".")[2]
            inside = {f"{place}.{one.name}".lstrip(".") for one in node.names}
            found |= {one if one in names else place for one in inside}
    return found & set(names) - {name}


def _reaches(imports: dict[str, set[str]], start: str, end: str) -> bool:
    seen, left = set(), [start]
    while left:
        used = imports.get(left.pop(), set())
        if end in used:
            return True
        left += used - seen
        seen |= used
    return False
