"""Whatever is given wrongly has its own words and exit code, and leaves nothing half-done."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import at, nothing_was_made
from fakes import FakeCloud

from labtrack import files, secrets
from labtrack import lab as labs
from labtrack.envfile import lifecycle, read, read_envfile
from labtrack.errors import BadInputError, Exit, LabtrackError
from labtrack.lab import Lab


class TestStore:
    """The store refuses the key that was just made."""

    @pytest.mark.parametrize(
        ("code", "said"),
        [
            ("InvalidAccessKeyId", "same cloud and region"),
            ("AccessDenied", "role `member`"),
            ("NoSuchBucket", "container create climate-mlflow"),
            ("RequestTimeTooSkewed", "clock"),
        ],
    )
    def test_the_key_is_taken_back(self, code: str, said: str, lab: Lab, cloud: FakeCloud, context) -> None:
        cloud.refuse_keys = code
        with context() as opened, pytest.raises(LabtrackError) as raised:
            lifecycle.create(opened, "ada")
        assert code in raised.value.what and said in raised.value.hint
        assert nothing_was_made(lab, cloud)

    def test_the_old_key_stays_in_use_when_the_new_one_is_refused(self, lab: Lab, cloud: FakeCloud, context) -> None:
        with context() as opened:
            lifecycle.create(opened, "ada")
            before = lab.env_file("ada").read_bytes(), dict(cloud.keys)
            cloud.refuse_keys = "AccessDenied"
            with pytest.raises(LabtrackError):
                lifecycle.rotate(opened, "ada")
        assert (lab.env_file("ada").read_bytes(), cloud.keys) == before

    def test_a_store_that_is_away_says_nothing_of_the_key(self, lab: Lab, cloud: FakeCloud, context) -> None:
        away = dataclasses.replace(lab, s3_endpoint="http://127.0.0.1:1")
        with at(away, cloud) as opened, pytest.raises(LabtrackError, match="can't be reached"):
            lifecycle.create(opened, "ada")
        made = dict(cloud.keys)
        with context() as opened:
            lifecycle.create(opened, "ada")
        assert cloud.keys == made, "the key of the first call is used"


class TestServer:
    """The tracking server does not play along."""

    def test_wrong_admin_password(self, lab: Lab, cloud: FakeCloud, context) -> None:
        with context() as opened:
            opened.server = opened.server.as_user("admin", "other")
            with pytest.raises(LabtrackError, match="refuses the login of admin") as raised:
                lifecycle.create(opened, "ada")
        assert "secret_mlflow_admin_password" in raised.value.hint
        assert nothing_was_made(lab, cloud)

    def test_unreachable(self, lab: Lab, cloud: FakeCloud, context) -> None:
        with context() as opened:
            opened.server = dataclasses.replace(opened.server, url="http://127.0.0.1:1")
            with pytest.raises(LabtrackError, match="can't be reached"):
                lifecycle.create(opened, "ada")
        assert nothing_was_made(lab, cloud)

    def test_no_ca_yet(self, lab: Lab, cloud: FakeCloud, context) -> None:
        lab.ca_file.unlink()
        with context() as opened, pytest.raises(BadInputError, match="is not there yet"):
            lifecycle.create(opened, "ada")


class TestFile:
    """What is at the place of the file."""

    @pytest.fixture
    def file(self, lab: Lab, context) -> Path:
        with context() as opened:
            lifecycle.create(opened, "ada")
        return lab.env_file("ada")

    def refused(self, context, said: str, **more: object) -> BadInputError:
        with context() as opened, pytest.raises(BadInputError, match=said) as raised:
            lifecycle.create(opened, "ada", **more)
        assert raised.value.code == Exit.BAD_INPUT and raised.value.hint
        return raised.value

    def test_a_link(self, file: Path, context, tmp_path: Path) -> None:
        file.rename(tmp_path / "elsewhere.sh")
        file.symlink_to(tmp_path / "elsewhere.sh")
        self.refused(context, "symbolic link")
        self.refused(context, "symbolic link", force=True)
        assert file.is_symlink()

    def test_of_another_person(self, file: Path, context, tmp_path: Path) -> None:
        with context() as opened, pytest.raises(BadInputError, match="is the file of ada"):
            lifecycle.create(opened, "grace", output=file)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
    def test_of_another_owner(self, file: Path, context) -> None:
        os.chown(file, 12345, -1)
        self.refused(context, "belongs to another user")

    @pytest.mark.parametrize("mode", [0o644, 0o660, 0o700])
    def test_with_a_wrong_mode(self, file: Path, context, mode: int) -> None:
        file.chmod(mode)
        error = self.refused(context, "can be read or changed by others")
        assert f"chmod 600 {file}" in error.hint and "--leaked" in error.hint

    def test_truncated(self, file: Path, context, cloud: FakeCloud, lab: Lab) -> None:
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        file.chmod(0o600)
        assert "--force" in self.refused(context, "truncated").hint
        with context() as opened:
            lifecycle.create(opened, "ada", force=True)
        found = read_envfile(file)
        assert list(cloud.keys) == [found.access], "the same key"
        assert cloud.accounts["ada"] == found.variables["MLFLOW_TRACKING_PASSWORD"]

    def test_edited(self, file: Path, context) -> None:
        file.write_bytes(file.read_bytes().replace(b"https://mlflow", b"https://evil", 1))
        self.refused(context, "was edited")

    def test_with_windows_line_ends(self, file: Path, context) -> None:
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
        self.refused(context, "Windows line ends")

    def test_in_a_folder_that_others_can_write_to(self, file: Path, context) -> None:
        file.parent.chmod(0o770)
        self.refused(context, "Others can write to the folder")

    def test_in_a_folder_that_is_not_there(self, context, tmp_path: Path) -> None:
        self.refused(context, "There is no folder", output=tmp_path / "no" / "mlflow_env.sh")


@pytest.mark.parametrize("name", ["../ada", "Ada", "a", "ada/..", "ada\n", "admin", "server", ""])
def test_a_name_that_is_none(name: str, lab: Lab, cloud: FakeCloud, context) -> None:
    for call in (lifecycle.create, lifecycle.revoke, lifecycle.rotate):
        with context() as opened, pytest.raises(BadInputError):
            call(opened, name)
    assert nothing_was_made(lab, cloud)


class TestGit:
    """A password must not be where git would take it up."""

    @pytest.fixture
    def repository(self, tmp_path: Path) -> Path:
        folder = tmp_path / "project"
        folder.mkdir(mode=0o700)
        subprocess.run(["git", "init", "-q", str(folder)], check=True)
        return folder

    def test_not_ignored(self, repository: Path, context, lab: Lab, cloud: FakeCloud) -> None:
        with context() as opened, pytest.raises(BadInputError, match="would be tracked by git") as raised:
            lifecycle.create(opened, "ada", output=repository / "mlflow_env.sh")
        assert ".gitignore" in raised.value.hint and nothing_was_made(lab, cloud)

    def test_ignored(self, repository: Path, context) -> None:
        (repository / ".gitignore").write_text("mlflow_env.sh\n")
        with context() as opened:
            lifecycle.create(opened, "ada", output=repository / "mlflow_env.sh")
            assert lifecycle.create(opened, "ada").changed == [], "the place is remembered"
        assert read.check(repository / "mlflow_env.sh")[-1].status.value == "ok"

    def test_tracked_though_ignored(self, repository: Path, context) -> None:
        (repository / "mlflow_env.sh").write_text("x")
        subprocess.run(["git", "-C", str(repository), "add", "mlflow_env.sh"], check=True)
        (repository / ".gitignore").write_text("mlflow_env.sh\n")
        with context() as opened, pytest.raises(BadInputError, match="is tracked by git"):
            lifecycle.create(opened, "ada", output=repository / "mlflow_env.sh")

    def test_no_git_to_ask(self, repository: Path, context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        with context() as opened:
            monkeypatch.setenv("PATH", str(tmp_path))
            with pytest.raises(BadInputError, match="no git here to ask"):
                lifecycle.create(opened, "ada", output=repository / "mlflow_env.sh")


class TestDiskFull:
    """No room: said so, and nothing lost."""

    def test_the_old_file_stays_and_the_next_call_goes_on(
        self, lab: Lab, cloud: FakeCloud, context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with context() as opened:
            lifecycle.create(opened, "ada")
        before = lab.env_file("ada").read_bytes()
        write = files.write_private

        def full(path: Path, data: bytes) -> None:
            def no_room(_: int) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            if path.name == "mlflow_env.sh":
                with monkeypatch.context() as patched:
                    patched.setattr(os, "fsync", no_room)
                    write(path, data)
            write(path, data)

        with monkeypatch.context() as patched:
            patched.setattr(files, "write_private", full)
            with context() as opened, pytest.raises(LabtrackError, match="The disk is full") as raised:
                lifecycle.rotate(opened, "ada", grace=0)
        assert "df -h" in raised.value.hint
        assert lab.env_file("ada").read_bytes() == before
        assert [path.name for path in lab.env_file("ada").parent.iterdir()] == ["mlflow_env.sh"]
        made = set(cloud.keys)
        with context() as opened:
            lifecycle.rotate(opened, "ada", grace=0)
        after = read_envfile(lab.env_file("ada")).access
        assert list(cloud.keys) == [after] and after in made

    def test_what_a_killed_write_left_is_cleared(self, tmp_path: Path) -> None:
        (tmp_path / ".mlflow_env.sh.abc.tmp").write_text("secret")
        files.write_private(tmp_path / "mlflow_env.sh", b"x")
        assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["mlflow_env.sh"]


class TestTwoCallsAtOnce:
    """The second one is told who is at work."""

    def test_the_second_is_refused_with_75(self, lab: Lab, context) -> None:
        with context(), pytest.raises(LabtrackError) as raised, context():
            pass
        assert raised.value.code == Exit.LOCKED == 75
        assert f"process {os.getpid()}" in raised.value.what and "`a test`" in raised.value.what

    def test_a_dead_holder_holds_nothing(self, lab: Lab, context) -> None:
        place = lab.private / ".lock"
        script = "import os, sys; from pathlib import Path; from labtrack import files\n"
        script += "with files.lock(Path(sys.argv[1]), 'x'): os._exit(9)"
        assert subprocess.run([sys.executable, "-c", script, place], check=False).returncode == 9
        with context():
            pass

    def test_one_of_two_threads_of_calls_wins(self, lab: Lab, cloud: FakeCloud, context) -> None:
        codes: list[object] = []

        def call() -> None:
            try:
                with at(lab, cloud) as opened:
                    lifecycle.create(opened, "ada")
                codes.append(0)
            except LabtrackError as error:
                codes.append(error.code)

        threads = [threading.Thread(target=call) for _ in range(4)]
        with context():
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert codes == [Exit.LOCKED] * 4
        assert nothing_was_made(lab, cloud)


class TestRecovery:
    """Keys without names: what a dead call left."""

    def test_two_keys_that_could_be_it_are_told_and_left_alone(self, lab: Lab, cloud: FakeCloud, context) -> None:
        with context() as opened:
            opened.keys.register.intents["ada"] = []
            opened.keys.register.save()
        cloud.keys.update({"one": "1", "two": "2"})
        with context() as opened:
            outcome = lifecycle.create(opened, "ada")
        assert {"one", "two"} < set(cloud.keys)
        assert "one, two" in outcome.notes[0]

    def test_a_damaged_register_is_told(self, lab: Lab, context) -> None:
        (lab.private / "keys.json").write_text('{"keys": ')
        with pytest.raises(LabtrackError, match="is damaged"), context():
            pass

    def test_a_key_of_a_colleague_is_not_deleted_under_ones_own_name(self, lab: Lab, cloud: FakeCloud, context) -> None:
        with context() as opened:
            lifecycle.create(opened, "ada")
            (entry,) = opened.keys.register.of("ada")
            opened.keys.register.put(dataclasses.replace(entry, user_id="u-other"))
            outcome = lifecycle.revoke(opened, "ada")
        assert list(cloud.keys) == [entry.access]
        assert "another user of the cloud" in outcome.notes[0]


class TestSecrets:
    """secrets.yml."""

    def test_encrypted_from_the_first_write_and_kept(self, lab: Lab, cloud: FakeCloud, context) -> None:
        with context() as opened:
            secrets.ensure_passwords(lab)
            lifecycle.server_key(opened)
        before = secrets.read(lab)
        assert lab.secrets_file.read_bytes().startswith(b"$ANSIBLE_VAULT;")
        assert lab.secrets_file.stat().st_mode & 0o777 == 0o600
        assert set(before) == {*secrets.PASSWORDS, secrets.S3_ACCESS, secrets.S3_SECRET}
        assert all(value.isalnum() and len(value) >= 32 for value in before.values())
        assert cloud.keys == {before[secrets.S3_ACCESS]: before[secrets.S3_SECRET]}
        with context() as opened:
            assert secrets.ensure_passwords(lab) + lifecycle.server_key(opened) == []
        assert secrets.read(lab) == before

    def test_a_lost_file_gets_the_same_key_back(self, lab: Lab, cloud: FakeCloud, context) -> None:
        with context() as opened:
            lifecycle.server_key(opened)
            lab.secrets_file.unlink()
            lifecycle.server_key(opened)
        found = secrets.read(lab)
        assert cloud.keys == {found[secrets.S3_ACCESS]: found[secrets.S3_SECRET]}

    def test_a_key_that_the_store_no_longer_knows_is_replaced(self, lab: Lab, cloud: FakeCloud, context) -> None:
        with context() as opened:
            lifecycle.server_key(opened)
            cloud.keys.clear()
        with context() as opened:
            assert lifecycle.server_key(opened) == [secrets.S3_ACCESS, secrets.S3_SECRET]
            assert lifecycle.server_key(opened) == []
        assert list(cloud.keys) == [secrets.read(lab)[secrets.S3_ACCESS]]

    def test_another_vault_password(self, lab: Lab, context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        secrets.ensure_passwords(lab)
        monkeypatch.setenv("LABTRACK_VAULT_PASSWORD_FILE", str(tmp_path / "other"))
        with pytest.raises(LabtrackError, match="another vault password"):
            secrets.read(lab)

    def test_not_encrypted(self, lab: Lab) -> None:
        lab.secrets_file.write_text("secret_verify_password: x\n")
        with pytest.raises(LabtrackError, match="is not encrypted") as raised:
            secrets.read(lab)
        assert "ansible-vault encrypt" in raised.value.hint

    def test_comments_and_variables_of_ones_own_stay(self, lab: Lab) -> None:
        from labtrack import vault

        files.write_private(lab.secrets_file, vault.encrypt("# mine\nmine: 'yes'", lab.root))
        secrets.ensure_passwords(lab)
        text = vault.decrypt(lab.secrets_file.read_bytes(), lab.secrets_file, lab.root)
        assert text.startswith("# mine\nmine: 'yes'\n") and secrets.read(lab)["mine"] == "yes"


def test_env_list_shows_whose_key_is_whose(lab: Lab, cloud: FakeCloud, context) -> None:
    from labtrack.envfile.listing import listed

    with context() as opened:
        lifecycle.create(opened, "ada")
    cloud.keys["stranger"] = "s"
    with context() as opened:
        found = listed(opened)
    assert [(line.owner, line.state, line.in_keystone, line.file) for line in found.lines] == [
        ("ada", "active", "yes", "ok"),
        ("", "", "yes", ""),
    ]
    assert "1 key(s)" in found.notes[0]


def test_a_command_needs_a_lab_that_is_there() -> None:
    with pytest.raises(BadInputError, match="There is no lab"):
        labs.load(Path("inventory/nowhere"))
