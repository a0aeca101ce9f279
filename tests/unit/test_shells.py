"""mlflow_env.sh in the four shells that researchers use, with everything their set-up may have switched on."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import CA
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from labtrack import lab as labs
from labtrack.cloud.key import Key
from labtrack.envfile import read
from labtrack.envfile.render import Contents, render
from labtrack.lab import Lab

NASTY = 'it\'s "q" $HOME `id` \\ ! #\tä\nend;'
BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
NAMES = ("MLFLOW_", "AWS_", "LABTRACK_", *BUNDLES)


@pytest.fixture(params=["bash", "dash", "zsh", "ksh"])
def shell(request: pytest.FixtureRequest) -> str:
    """Each of the four."""
    if not shutil.which(request.param):
        pytest.skip(f"{request.param} is not installed: apt install {request.param}")
    return request.param


@pytest.fixture
def lab(lab_dir: Path) -> Lab:
    """A lab whose server and store both have a private CA."""
    store_ca = lab_dir.parents[1] / "private" / "climate" / "store.pem"
    store_ca.write_text(CA.replace("labCA", "storeCA"))
    return dataclasses.replace(labs.load(lab_dir), s3_ca_file=store_ca)


def write(lab: Lab, path: Path, secrets: tuple[str, str] = ("s", "p"), *, direct: bool = True) -> Path:
    """A file of Ada's, with these: the key's secret and the password."""
    secret, password = secrets
    key = Key("ACCESS", secret) if direct else None
    path.write_bytes(render(Contents(lab, "ada", password, key, "2026-11-21T08:00:00Z")))
    path.chmod(0o600)
    return path


@pytest.fixture
def file(lab: Lab, tmp_path: Path) -> Path:
    """Ada's file, with a secret and a password that hold everything that shells treat specially."""
    return write(lab, tmp_path / "mlflow_env.sh", (NASTY, NASTY[::-1]))


def run(shell: str, script: str, *arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a shell; `$1`, `$2`... are the arguments."""
    return subprocess.run(
        [shell, "-c", script, shell, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=30,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "LC_ALL": "C.UTF-8", **env},
    )  # fmt: skip


def variables(output: str) -> dict[str, str]:
    """What `env -0` printed, as far as it is ours."""
    pairs = (item.partition("=") for item in output.split("\0"))
    return {name: value for name, _, value in pairs if name.startswith(NAMES)}


def test_the_variables_arrive_as_they_are(shell: str, file: Path) -> None:
    done = run(shell, 'set -euC; . "$1"; env -0', file)
    assert (done.returncode, done.stderr) == (0, "")
    found = variables(done.stdout)
    assert found["MLFLOW_TRACKING_URI"] == "https://mlflow.example.org"
    assert found["MLFLOW_TRACKING_USERNAME"] == "ada"
    assert found["MLFLOW_TRACKING_PASSWORD"] == NASTY[::-1]
    assert found["MLFLOW_S3_ENDPOINT_URL"] == "https://s3.example.org"
    assert found["AWS_ACCESS_KEY_ID"] == "ACCESS"
    assert found["AWS_SECRET_ACCESS_KEY"] == NASTY
    assert found["AWS_DEFAULT_REGION"] == "us-east-1"
    assert found["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"
    assert found["AWS_RESPONSE_CHECKSUM_VALIDATION"] == "when_required"
    assert int(found["MLFLOW_HTTP_REQUEST_MAX_RETRIES"]) < 7
    assert Path(found["MLFLOW_TRACKING_SERVER_CERT_PATH"]).read_text() == CA
    assert "storeCA" in Path(found["AWS_CA_BUNDLE"]).read_text()
    assert found["LABTRACK_ENV_FILE"] == str(file)
    assert found["MLFLOW_EXPERIMENT_NAME"] == "ada"


def test_reading_without_a_shell_gives_the_same(shell: str, file: Path) -> None:
    found = variables(run(shell, '. "$1"; env -0', file).stdout)
    parsed = read.parse(file, file.read_bytes()).variables
    assert parsed and {name: found[name] for name in parsed} == parsed


# any text a shell can hold; NUL is not one, and no credential has a lone surrogate
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.tuples(texts, texts), min_size=1, max_size=6))
@example(values=[(char, char * 2) for char in "'\"$\\! \n`#~*?[]{}()<>|&;=%-\r\t"])
def test_any_secret_survives(shell: str, lab: Lab, tmp_path: Path, values: list[tuple[str, str]]) -> None:
    files = [write(lab, tmp_path / f"{number}.sh", pair) for number, pair in enumerate(values)]
    script = 'for f; do . "$f" || exit 1; printf "%s\\0" "$AWS_SECRET_ACCESS_KEY" "$MLFLOW_TRACKING_PASSWORD"; done'
    done = subprocess.run(
        [shell, "-c", script, shell, *map(str, files)], capture_output=True, check=True,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    flat = [one for pair in values for one in pair]
    assert done.stdout.decode().split("\0")[:-1] == flat
    for path, pair in zip(files, values):
        parsed = read.parse(path, path.read_bytes()).variables
        assert (parsed["AWS_SECRET_ACCESS_KEY"], parsed["MLFLOW_TRACKING_PASSWORD"]) == pair


def test_off_puts_everything_back(shell: str, lab: Lab, file: Path, tmp_path: Path) -> None:
    shutil.copytree(lab.private, lab.root / "private" / "other")
    other = write(dataclasses.replace(lab, name="other"), tmp_path / "other_mlflow_env.sh", direct=False)
    before = {
        "MLFLOW_TRACKING_URI": "http://old value's",
        "AWS_SESSION_TOKEN": "old\ntoken",
        "AWS_PROFILE": "",
        "MLFLOW_TRACKING_INSECURE_TLS": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "99",
        "MLFLOW_EXPERIMENT_NAME": "mine",
        "REQUESTS_CA_BUNDLE": "/of/my/institute.pem",
    }
    script = """
        set -euC
        env -0; printf '====\\0'
        . "$1"; . "$1"; . "$2"; . "$1"
        env -0; printf '====\\0'
        mlflow_env_off; mlflow_env_off
        env -0
    """
    done = run(shell, script, file, other, **before)
    assert (done.returncode, done.stderr) == (0, "")
    first, inside, last = (variables(part) for part in done.stdout.split("====\0"))
    assert first == before == last
    assert inside["AWS_SECRET_ACCESS_KEY"] == NASTY
    assert inside["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "99", "a value of one's own is kept"
    assert inside.keys() & {"AWS_SESSION_TOKEN", "AWS_PROFILE", "MLFLOW_TRACKING_INSECURE_TLS"} == set()
    assert inside["MLFLOW_EXPERIMENT_NAME"] == "mine"
    assert "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD" not in inside, "of the other lab"


def test_off_gives_back_another_labs_file_sourced_by_the_parent(shell: str, file: Path) -> None:
    script = """. "$1"; exec "$0" -c '. "$1"; mlflow_env_off; env -0' "$0" "$1" """
    found = variables(run(shell, script, file).stdout)
    assert found["AWS_SECRET_ACCESS_KEY"] == NASTY, "a job that switches it off has what it was started with"


def test_an_experiment_given_by_id_is_not_contradicted(shell: str, file: Path) -> None:
    # MLflow raises when both are set and differ
    found = variables(run(shell, 'set -eu; . "$1"; env -0', file, MLFLOW_EXPERIMENT_ID="7").stdout)
    assert found["MLFLOW_EXPERIMENT_ID"] == "7"
    assert "MLFLOW_EXPERIMENT_NAME" not in found


def test_off_leaves_no_value_in_the_shell(shell: str, lab: Lab, tmp_path: Path) -> None:
    file = write(lab, tmp_path / "mlflow_env.sh", ("CANARY-KEY", "CANARY-PASSWORD"))
    done = run(shell, '. "$1"; mlflow_env_off; set; typeset -f 2>/dev/null || :', file)
    assert "mlflow_env" in done.stdout or shell == "dash"
    assert "CANARY" not in done.stdout


def test_tracing_shows_no_secret(shell: str, lab: Lab, tmp_path: Path) -> None:
    file = write(lab, tmp_path / "mlflow_env.sh", ("CANARY-KEY", "CANARY-PASSWORD"))
    # ksh prints with -v what it has read before it runs the first line, so no file can help it
    on = "x" if shell == "ksh" else "xv"
    done = run(shell, f'set -{on}; . "$1"; . "$1"; : still; mlflow_env_off; : traced; . "$1"; echo "$-"', file)
    assert "CANARY" not in done.stdout + done.stderr
    assert "still" in done.stderr and "traced" in done.stderr
    assert set(on) <= set(done.stdout), "tracing is on again"


def test_proxied_has_no_variable_of_the_store(shell: str, lab: Lab, tmp_path: Path) -> None:
    file = write(lab, tmp_path / "mlflow_env.sh", direct=False)
    found = variables(run(shell, '. "$1"; env -0', file).stdout)
    assert not any(name.startswith(("AWS_", "MLFLOW_S3_", "MLFLOW_BOTO_")) for name in found)
    assert "AWS_" not in file.read_text()
    assert found["MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD"] == "false"
    assert found["MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD"] == "false"


def test_proxied_leaves_presigned_addresses_on_where_clients_reach_the_store(lab: Lab, tmp_path: Path) -> None:
    reaching = dataclasses.replace(lab, clients_reach_store=True, s3_ca_file=None)
    assert "PROXY_MULTIPART" not in write(reaching, tmp_path / "mlflow_env.sh", direct=False).read_text()


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_file_that_others_can_read_is_told(shell: str, file: Path, mode: int, warned: bool) -> None:
    file.chmod(mode)
    done = run(shell, '. "$1"; echo going on', file)
    assert ("others can read" in done.stderr, f"chmod 600 '{file}'" in done.stderr) == (warned, warned)
    assert done.stdout == "going on\n"
    assert NASTY not in done.stderr


class TestCertificate:
    """Where the CA goes when the usual place can't be had."""

    SCRIPT = 'set -euC; umask 022; . "$1"; printf %s "${MLFLOW_TRACKING_SERVER_CERT_PATH-none}"'

    def test_a_home_that_can_not_be_written(self, shell: str, file: Path, tmp_path: Path) -> None:
        # root may write anywhere, so the home's cache is a file
        (tmp_path / "home" / ".cache").write_text("")
        done = run(shell, self.SCRIPT, file, TMPDIR=str(tmp_path))
        place = Path(done.stdout)
        assert place.parent == tmp_path / f"labtrack-{os.getuid()}"
        assert (place.parent.stat().st_mode & 0o777, place.read_text()) == (0o700, CA)

    def test_no_home_at_all(self, shell: str, file: Path, tmp_path: Path) -> None:
        done = run(shell, f"unset HOME; {self.SCRIPT}", file, TMPDIR=str(tmp_path))
        assert Path(done.stdout).read_text() == CA

    def test_somebody_elses_folder_is_not_used(self, shell: str, file: Path, tmp_path: Path) -> None:
        (tmp_path / "home" / ".cache").write_text("")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / f"labtrack-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
        done = run(shell, self.SCRIPT, file, TMPDIR=str(tmp_path))
        assert (done.returncode, done.stdout) == (0, "none")
        assert "export XDG_CACHE_HOME" in done.stderr
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_a_damaged_copy_is_written_again(self, shell: str, file: Path) -> None:
        place = Path(run(shell, self.SCRIPT, file).stdout)
        place.write_text("-----BEGIN")
        run(shell, self.SCRIPT, file)
        assert place.read_text() == CA

    def test_several_shells_at_once(self, shell: str, file: Path, tmp_path: Path) -> None:
        script = 'for i in 1 2 3 4 5 6; do (. "$1"; cat "$MLFLOW_TRACKING_SERVER_CERT_PATH") & done; wait'
        done = run(shell, script, file)
        assert done.stdout == CA * 6 and done.stderr == ""
        assert len(list((tmp_path / "home" / ".cache" / "labtrack").iterdir())) == 2, "the CA, and one bundle"


class TestBundle:
    """What programs other than MLflow trust: what they trusted before, and the lab's CAs."""

    MINE = CA.replace("labCA", "mineCA")

    def bundles(self, shell: str, file: Path, **env: str) -> dict[str, str]:
        done = run(shell, 'set -euC; . "$1"; env -0', file, **env)
        assert (done.returncode, done.stderr) == (0, "")
        found = variables(done.stdout)
        return {name: Path(found[name]).read_text() for name in (*BUNDLES, "AWS_CA_BUNDLE")}

    def test_the_system_s_is_kept(self, shell: str, file: Path) -> None:
        system = Path("/etc/ssl/certs/ca-certificates.crt")
        if not system.exists():
            pytest.skip("this system has no bundle of its own")
        for text in self.bundles(shell, file).values():
            assert text.startswith(system.read_text().rstrip())
            assert "labCA" in text and "storeCA" in text

    @pytest.mark.parametrize("folder", [False, True])
    def test_one_s_own_is_kept_for_its_variable(self, shell: str, file: Path, tmp_path: Path, folder: bool) -> None:
        mine = tmp_path / "mine" / "ca.pem"
        mine.parent.mkdir()
        mine.write_text(self.MINE)
        found = self.bundles(shell, file, CURL_CA_BUNDLE=str(mine.parent if folder else mine))
        assert found.pop("CURL_CA_BUNDLE") == f"{self.MINE}{CA}{CA.replace('labCA', 'storeCA')}"
        assert not any("mineCA" in text for text in found.values())

    def test_one_s_own_that_is_gone_is_as_none(self, shell: str, file: Path) -> None:
        assert "labCA" in self.bundles(shell, file, SSL_CERT_FILE="/no/such.pem")["SSL_CERT_FILE"]

    def test_a_job_that_sources_again_gets_the_same(self, shell: str, file: Path) -> None:
        script = 'set -eu; . "$1"; echo "$SSL_CERT_FILE"; exec "$0" -c \'. "$1"; echo "$SSL_CERT_FILE"\' "$0" "$1"'
        first, second = run(shell, script, file).stdout.splitlines()
        assert first == second
        assert Path(first).read_text().count("labCA") == 1

    def test_a_public_server_touches_none(self, shell: str, lab: Lab, tmp_path: Path) -> None:
        lab.ca_file.unlink()
        file = write(dataclasses.replace(lab, certificate="provided"), tmp_path / "mlflow_env.sh")
        found = variables(run(shell, '. "$1"; env -0', file).stdout)
        assert not found.keys() & {*BUNDLES, "MLFLOW_TRACKING_SERVER_CERT_PATH"}
        assert "storeCA" in Path(found["AWS_CA_BUNDLE"]).read_text()
