"""A person's account, key and file: create, rotate, revoke.

Every function can be called again at any time and does only what is missing; after a crash the same
call goes on where the dead one stopped.  The order of a rotation is create, probe, swap the file;
the old key is deleted by the first call after its grace, so that running jobs keep it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from labtrack import experiments, files, labfile, labmoved, secrets
from labtrack.cloud.key import Key, KeyStore
from labtrack.envfile import read, register
from labtrack.envfile.keys import Keys, Step
from labtrack.envfile.read import EnvFile
from labtrack.envfile.register import ACTIVE, NEW, OLD, now
from labtrack.envfile.render import Contents, render
from labtrack.errors import BadInputError, LabtrackError
from labtrack.experiments import Members
from labtrack.lab import ADMIN_USER, SERVER_OWNER, VERIFY_USER, Lab
from labtrack.labcopy import placing
from labtrack.tracking.server import Server


@dataclass
class Outcome:
    """What a call did for one person.

    changed: what was done, empty when everything was as it should be.  notes: what needs the admin.
    """

    user: str
    file: Path
    changed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Context:
    """Where the admin works: the lab, its server as admin, its keys.  Made by `opened`."""

    lab: Lab
    keys: Keys
    server: Server
    step: Step

    @cached_property
    def members(self) -> Members:
        """The lab's members on the server, with what they share; made where missing."""
        self.step("share the experiments of all members")
        return experiments.share(self.server, self.lab.shared_experiments)

    def file_of(self, user: str) -> Path:
        """Where a person's file is."""
        return Path(self.keys.register.outputs.get(user) or self.lab.env_file(user))


@contextlib.contextmanager
def opened(lab: Lab, doing: str, cloud: str | None = None, step: Step | None = None) -> Iterator[Context]:
    """Locks the lab and gives what the functions below need.

    doing: the command, told to whoever finds the lab locked.  cloud: an entry of clouds.yaml.
    step: told what comes next.
    """

    def log_in() -> KeyStore:
        # a second to import, and most calls find everything in order
        from labtrack.cloud.ec2 import KeystoneKeys
        from labtrack.cloud.login import login

        return KeystoneKeys(login(lab, cloud))

    tell = step or (lambda _: None)
    with files.lock(lab.private / ".lock", doing):
        placing.finish(lab)
        keys = Keys(lab, register.load(lab.keys_file), log_in, tell)
        password = secrets.read(lab).get("secret_mlflow_admin_password", "")
        yield Context(lab, keys, Server(lab.url, ADMIN_USER, password, lab.server_ca), tell)


def create(
    context: Context,
    user: str,
    *,
    output: Path | None = None,
    handed_in: Key | None = None,
    force: bool = False,
) -> Outcome:
    """Sees to it that `user` has an account, a key that works and a file; changes only what is not so.

    output: another place for the file.  handed_in: a key made elsewhere.  force: write over a truncated
    or edited file.
    """
    with _ready(context, user, output, force) as (there, outcome):
        key = _key(context, user, there, handed_in, outcome) if context.lab.direct else None
        _hand_out(context, outcome, there, key, context.lab.key_grace)
        _finish(context, outcome)
        return outcome


def rotate(
    context: Context,
    user: str,
    *,
    handed_in: Key | None = None,
    leaked: bool = False,
    grace: float | None = None,
) -> Outcome:
    """A new key for `user`: made, probed, put into the file.  The old one is deleted by the first call after `grace`.

    A rotation that was interrupted is finished instead.  grace: in seconds, `lab_key_grace` when it is None.
    leaked: the old file is in wrong hands, so the password changes too and every older key ends at once;
    running jobs lose the server.  In proxied mode there is no key, so the password is what changes.
    """
    with _ready(context, user, None, False) as (there, outcome):
        if there is None:
            hint = f"`labtrack env create {context.lab.shown_folder} {user}`."
            raise BadInputError(f"{user} has no file {outcome.file}, so there is nothing to rotate.", hint)
        keys, key = context.keys, None
        grace = 0.0 if leaked else context.lab.key_grace if grace is None else grace
        if handed_in and handed_in.access == there.access:
            hint = "make another one: openstack ec2 credentials create -f json"
            raise BadInputError(f"{user} has the key {there.access} already, so nothing would be rotated.", hint)
        if context.lab.direct:
            swapped = [entry for entry in keys.register.of(user, NEW) if entry.access == there.access]
            if swapped and not leaked and not handed_in:
                # it died between swapping the file and noting it
                key = Key(there.access, there.variables["AWS_SECRET_ACCESS_KEY"])
            else:
                if swapped:
                    keys.use(user, there.access, grace)
                key = _proven(context, user, handed_in, outcome)
        if leaked or not context.lab.direct:
            _distrust_password(context, user)
        _hand_out(context, outcome, there, key, grace)
        if leaked and keys.register.of(user, OLD):
            keys.use(user, key.access if key else None, also_old=True)
        outcome.changed += [
            f"old key {entry.access} works until {entry.until}" for entry in keys.register.of(user, OLD) if entry.until
        ]
        _finish(context, outcome)
        return outcome


def move(context: Context, users: Sequence[str] = ()) -> Iterator[Outcome]:
    """New keys of the present login for `users`, or for everybody whose key ends with another login.

    The old ones work for `lab_key_grace`, as after `rotate`, or until that login's user is deleted.  The server's
    (SERVER_OWNER) goes into secrets.yml, and reaches the server by the next deploy.  Keys that were handed in are
    moved for users who are named.  What fails for one is a note of theirs, and does not stop the others.
    """
    others = {entry.owner: entry for entry in context.keys.of_other_logins()}
    for name in users:
        if name not in others:
            hint = f"`labtrack env list {context.lab.shown_folder}` shows whose key is whose."
            raise BadInputError(f"{name} has no key of another login, so there is nothing to move.", hint)
    for owner in users or [name for name, entry in others.items() if not entry.handed_in]:
        try:
            yield _moved_server(context) if owner == SERVER_OWNER else rotate(context, owner)
        except LabtrackError as error:
            yield Outcome(owner, context.file_of(owner), notes=[str(error)])


def _moved_server(context: Context) -> Outcome:
    outcome = Outcome(SERVER_OWNER, context.lab.secrets_file)
    outcome.changed += [f"new: {name}" for name in server_key(context, renew=True)]
    outcome.changed.append(f"hand it to the server: ansible-playbook -i {context.lab.shown_folder} site.yml")
    outcome.notes += context.keys.notes
    context.keys.notes.clear()
    return outcome


def revoke(context: Context, user: str) -> Outcome:
    """Takes away `user`'s keys, account and file, whatever of them there is."""
    _refuse_own(user)
    keys, file = context.keys, context.file_of(user)
    outcome = Outcome(user, file)
    keys.tell_of_intent(user)
    if keys.register.of(user):
        keys.use(user, None, also_old=True)
    outcome.changed += [f"key {access} deleted" for access in keys.end_old(user)]
    context.step("delete the account")
    if context.server.delete_user(user):
        outcome.changed.append("account deleted")
    context.step("delete the file")
    if file.is_symlink() or file.exists():
        file.unlink()
        outcome.changed.append(f"file {file} deleted")
    elif elsewhere := keys.register.elsewhere(user):
        outcome.changed.append(f"file {file} opens nothing any more: delete it on {elsewhere}")
    with contextlib.suppress(OSError):  # not empty: it holds something of the admin's own
        context.lab.env_file(user).parent.rmdir()
    keys.register.place(user, None)
    _end_everybodys(context, outcome)
    outcome.notes += keys.notes
    keys.notes.clear()
    return outcome


def server_key(
    context: Context, handed_in: Key | None = None, *, renew: bool = False, leaked: bool = False
) -> list[str]:
    """Sees to it that secrets.yml has an S3 key for the server that the store knows; gives what was done.

    renew: make a new one in any case.  leaked: the older ones end as soon as the server runs with it, without
    the grace of `lab_key_grace`.
    """
    keys, lab = context.keys, context.lab
    present = secrets.read(lab)
    access, secret = present.get(secrets.S3_ACCESS), present.get(secrets.S3_SECRET)
    if access and secret and handed_in is None and not renew and not keys.is_unknown(Key(access, secret)):
        keys.refuse_anothers(access, SERVER_OWNER)
        if access not in keys.register.keys:
            entry = register.Entry(access, SERVER_OWNER, ACTIVE, handed_in=True, made=now(), kept=True)
            keys.register.put(entry)
        if [entry.access for entry in keys.register.of(SERVER_OWNER, NEW, ACTIVE)] != [access]:
            keys.use(SERVER_OWNER, access, lab.key_grace)
        return []
    key = _registered(keys, SERVER_OWNER) if handed_in is None and not renew else None
    if key is None:
        key = keys.take(SERVER_OWNER, handed_in)
        # the bucket may be made later, by playbooks/provision.yml
        keys.prove(key, SERVER_OWNER, bucket_may_be_missing=True)
    context.step("write secrets.yml")
    secrets.add(lab, {secrets.S3_ACCESS: key.access, secrets.S3_SECRET: key.secret})
    keys.use(SERVER_OWNER, key.access, 0.0 if leaked else lab.key_grace, also_old=leaked)
    return [secrets.S3_ACCESS, secrets.S3_SECRET]


def server_runs_with(context: Context, access: str) -> list[str]:
    """Deletes the server's older keys whose time is over, now that it runs with the key `access`; gives them.

    Until the server was told so, a new key in secrets.yml ends none: the server still works with the old one.
    """
    if [entry.access for entry in context.keys.register.of(SERVER_OWNER, ACTIVE)] != [access]:
        return []
    try:
        return context.keys.end_old(SERVER_OWNER)
    except LabtrackError as error:  # the server is deployed all the same
        context.keys.notes.append(f"Old keys of the server were not deleted yet: {error.what.splitlines()[0]}")
        return []


@contextlib.contextmanager
def _ready(context: Context, user: str, output: Path | None, force: bool) -> Iterator[tuple[EnvFile | None, Outcome]]:
    """Everything that can be refused before anything is made."""
    labmoved.check(context.lab)
    _refuse_own(user)
    why_not = labfile.why_no_name(user)
    if why_not:
        hint = (
            f"choose another; what an account of that name has: labtrack env revoke {context.lab.shown_folder} {user}"
        )
        raise BadInputError(why_not, hint)
    context.step("look at the file")
    place = context.keys.register
    if not output and (host := place.elsewhere(user)):
        raise BadInputError(
            f"The file of {user} is {place.outputs[user]} on {host}, so nothing was changed for them.",
            "run this command there; or write a new file here, with a new password, and the old one stops working: "
            f"labtrack env create {context.lab.shown_folder} {user} --output {context.lab.env_file(user)}",
        )
    file = output.absolute() if output else context.file_of(user)
    if file == context.lab.env_file(user):
        files.make_private_folder(file.parent)
    if not file.parent.is_dir():
        raise BadInputError(f"There is no folder {file.parent}.", "make it first (mkdir -m 700).")
    files.refuse_open_folder(file.parent)
    read.refuse_tracked(file)
    there = read.load(file) if not force or file.is_symlink() else None
    if there and there.user != user:
        raise BadInputError(
            f"{file} is the file of {there.user or 'nobody'}, not of {user}.", "choose another --output."
        )
    outcome = Outcome(user, file)
    context.step("log in to the server")
    if context.server.has_user(user) and there is None and not (force or place.path.exists()):
        raise _anothers(context, user)
    try:
        yield there, outcome
    finally:
        outcome.notes += context.keys.notes
        context.keys.notes.clear()
    context.keys.register.place(user, None if file == context.lab.env_file(user) else file)


def _anothers(context: Context, user: str) -> LabtrackError:
    """An account, and nothing at all here that an admin of the lab has: on an empty clone of a second admin."""
    lab = context.lab
    return LabtrackError(
        f"{user} has an account, and {lab.private} has nothing of the lab, so it was made by another admin.  Nothing "
        "was changed: a new file would take the old one's password away.",
        f"take over what that admin has: ansible-playbook -i {lab.shown_folder} playbooks/users.yml (from the server), "
        f"or labtrack lab import {lab.shown_folder} FILE.  If all of it is lost: labtrack env create --force "
        f"{lab.shown_folder} {user}",
    )


def _refuse_own(user: str) -> None:
    """The rules of lab_users, for a name that was typed: it becomes a folder's name too."""
    if user in (ADMIN_USER, SERVER_OWNER):
        raise BadInputError(f"{user} is a name that the kit uses itself.", "choose another one.")
    rule = labfile.schema()["properties"]["lab_users"]["items"]["properties"]["name"]
    if not re.fullmatch(rule["pattern"].strip("^$"), user):
        raise BadInputError(f"{user!r} can't be the name of an account.", f"Allowed: {rule['x-allowed']}.")


def _key(context: Context, user: str, there: EnvFile | None, handed_in: Key | None, outcome: Outcome) -> Key:
    """The key that `user`'s file should have: the one it has, if that is in order, or a new one."""
    keys = context.keys
    if handed_in is None or (there and there.access == handed_in.access):
        known = keys.register.keys.get(there.access) if there and there.access else None
        if there and known and known.owner == user:
            key = Key(there.access, there.variables["AWS_SECRET_ACCESS_KEY"])
            if keys.works(known, key.secret):
                return key
        if there is None and not handed_in:
            kept = _registered(keys, user)
            if kept:
                return kept
    return _proven(context, user, handed_in, outcome)


def _registered(keys: Keys, owner: str) -> Key | None:
    """The active key of `owner`, with its secret from Keystone: what was lost is only our copy."""
    for entry in keys.register.of(owner, ACTIVE):
        if not entry.handed_in and entry.access in keys.listed:
            return keys.listed[entry.access]
    return None


def _proven(context: Context, user: str, handed_in: Key | None, outcome: Outcome) -> Key:
    key = context.keys.take(user, handed_in)
    context.keys.prove(key, user)
    outcome.changed.append(f"key {key.access} {'taken' if handed_in else 'made'}")
    return key


def _distrust_password(context: Context, user: str) -> None:
    if user not in context.keys.register.passwords:
        context.keys.register.passwords.append(user)
        context.keys.register.save()


def _hand_out(context: Context, outcome: Outcome, there: EnvFile | None, key: Key | None, grace: float) -> None:
    """The account and the file; afterwards the register says what is in use, and older keys have `grace` left."""
    user = outcome.user
    old = there.variables["MLFLOW_TRACKING_PASSWORD"] if there else None
    password = _account(context, user, old, outcome)
    outcome.changed += experiments.join(context.server, context.members, user)
    context.step("make their experiment")
    changed, notes = experiments.own(context.server, user, password)
    outcome.changed += changed
    outcome.notes += notes
    same = there and old == password and there.access == (key.access if key else "")
    contents = Contents(context.lab, user, password, key, there.written if there and same else now())
    data = render(contents)
    if there is None or there.data != data:
        if same:  # only the lab's settings changed
            data = render(replace(contents, written=now()))
        context.step("write the file")
        files.write_private(outcome.file, data)
        outcome.changed.append(f"file {outcome.file} written")
    known = context.keys.register
    noted = [(entry.access, entry.state) for entry in known.of(user) if key is None or entry.state != OLD]
    if noted != ([(key.access, ACTIVE)] if key else []) or user in known.passwords:
        context.keys.use(user, key.access if key else None, grace if key else 0.0, also_old=key is None)


def _account(context: Context, user: str, old: str | None, outcome: Outcome) -> str:
    """The account with the password that the file will hold; gives that password."""
    doubted = user in context.keys.register.passwords
    given = secrets.get(context.lab, "secret_verify_password") if user == VERIFY_USER else None
    password = given or (None if doubted else old) or secrets.generate()
    if not context.server.has_user(user):
        context.step("make the account")
        context.server.create_user(user, password)
        outcome.changed.append("account made")
    elif password != old or doubted:
        _distrust_password(context, user)
        context.step("set the account's password")
        context.server.set_password(user, password)
        outcome.changed.append("password set")
    return password


def _finish(context: Context, outcome: Outcome) -> None:
    outcome.changed += [f"old key {access} deleted" for access in context.keys.end_old(outcome.user)]
    _end_everybodys(context, outcome)


def _end_everybodys(context: Context, outcome: Outcome) -> None:
    for owner, gone in context.keys.end_everybodys().items():
        outcome.changed += [f"old key {access} of {owner} deleted" for access in gone]
