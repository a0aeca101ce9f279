"""Commands for the lab's admin.  Libraries are imported where they are used, so that --help is quick."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from labtrack.cli import output
from labtrack.errors import Exit

if TYPE_CHECKING:
    from labtrack.cloud.key import Key
    from labtrack.envfile.lifecycle import Outcome

LAB = click.argument("lab_dir", type=click.Path(path_type=Path), metavar="LAB_DIR")
USER = click.argument("user")
CLOUD = click.option("--cloud", metavar="NAME", help="Log in with this entry of clouds.yaml.")
KEYS = click.option(
    "--keys",
    type=click.File(),
    metavar="FILE",
    help="Take a key made elsewhere: what `openstack ec2 credentials create -f json` prints; - for standard input.",
)
VERBOSE = click.option("--verbose", "-v", is_flag=True, help="Say what is done, step by step.")
JSON = click.option("--json", "as_data", is_flag=True, help="Print JSON.")


def tell_of_checkout(lab_dir: Path) -> None:
    """Prints what is wrong with the permissions of the checkout, where something is."""
    from labtrack import preflight as on_this_machine
    from labtrack.lab import root_of

    what, hint = on_this_machine.open_checkout(root_of(lab_dir))
    if what:
        output.line(f"attention: {what}. To fix: {hint}", err=True)


def _step(verbose: bool) -> Callable[[str], None] | None:
    return (lambda text: output.line(f"... {text}", err=True)) if verbose else None


def _seconds(duration: str | None) -> float | None:
    from labtrack import labfile

    try:
        return None if duration is None else labfile.seconds(duration)
    except ValueError:
        raise click.BadParameter(f"{duration!r} is no number of days, nor a number with s, m, h or d.") from None


def _handed_in(keys: TextIO | None) -> Key | None:
    from labtrack.cloud import key

    return key.parse(keys.read()) if keys else None


def _tell(outcome: Outcome) -> None:
    """Prints what was done for one person; exit code 1 when something is left to the admin."""
    for line in outcome.changed or [f"unchanged: {outcome.file}"]:
        output.line(f"{outcome.user}: {line}")
    for note in outcome.notes:
        output.line(f"{outcome.user}: attention: {note}", err=True)
    if outcome.notes:
        sys.exit(Exit.FAILED)


@click.group()
def secrets() -> None:
    """The lab's generated secrets."""


@secrets.command()
@LAB
@KEYS
@CLOUD
@VERBOSE
def ensure(lab_dir: Path, keys: TextIO | None, cloud: str | None, verbose: bool) -> None:
    """Make what is missing in inventory/<lab>/group_vars/all/secrets.yml; keep what is there.

    Passwords are generated; the server's S3 key is made in Keystone, or taken with --keys.
    """
    from labtrack import lab
    from labtrack import secrets as lab_secrets
    from labtrack.envfile import lifecycle

    loaded, handed_in = lab.load(lab_dir), _handed_in(keys)
    tell_of_checkout(lab_dir)
    with lifecycle.opened(loaded, "labtrack secrets ensure", cloud, _step(verbose)) as context:
        made = lab_secrets.ensure_passwords(loaded) + lifecycle.server_key(context, handed_in)
        lab_secrets.write_ca(loaded)
        notes = context.keys.notes
    for name in made:
        output.line(f"made {name}")
    if not made:
        output.line(f"unchanged: {loaded.secrets_file}")
    for note in notes:
        output.line(f"attention: {note}", err=True)


@secrets.command("rotate")
@LAB
@click.argument("names", nargs=-1, metavar="[NAME]...")
@KEYS
@CLOUD
@click.option("--leaked", is_flag=True, help="The server's old S3 key ends with the deploy, without lab_key_grace.")
@VERBOSE
def renew(**given: Any) -> None:
    """Give secrets of secrets.yml new values: those named, or all.  The server gets them by the next site.yml.

    The server's S3 key is made anew and tried first.  Its old one works until a deploy has handed the server the
    new one, and for lab_key_grace after the rotation.
    """
    from labtrack import lab
    from labtrack import secrets as lab_secrets
    from labtrack.envfile import lifecycle

    loaded, handed_in = lab.load(given["lab_dir"]), _handed_in(given["keys"])
    tell_of_checkout(given["lab_dir"])
    names = lab_secrets.named(given["names"])
    if handed_in and lab_secrets.S3_ACCESS not in names:
        raise click.UsageError(f"--keys is for {lab_secrets.S3_ACCESS}, which is not among the names.")
    with lifecycle.opened(loaded, "labtrack secrets rotate", given["cloud"], _step(given["verbose"])) as context:
        if lab_secrets.S3_ACCESS in names:  # first: it is the one that can fail
            lifecycle.server_key(context, handed_in, renew=True, leaked=given["leaked"])
        lab_secrets.renew(loaded, [name for name in names if name in lab_secrets.PASSWORDS])
        notes = context.keys.notes
    for name in names:
        output.line(f"new: {name}")
    output.line(f"Now hand them to the server: ansible-playbook -i {loaded.shown_folder} site.yml")
    for note in notes:
        output.line(f"attention: {note}", err=True)


@secrets.command(hidden=True)
@LAB
def keep_ca(lab_dir: Path) -> None:
    """Keep the lab's own CA, key and certificate, which standard input has as PEM, in secrets.yml."""
    from labtrack import lab
    from labtrack import secrets as lab_secrets

    loaded = lab.load(lab_dir)
    if lab_secrets.keep_ca(loaded, sys.stdin.read()):
        output.line(f"kept the lab's CA in {loaded.secrets_file}")


@secrets.command(hidden=True)
@LAB
@click.argument("access_key")
@CLOUD
def deployed(lab_dir: Path, access_key: str, cloud: str | None) -> None:
    """Note that the server runs with ACCESS_KEY: its older S3 keys whose time is over are deleted."""
    from labtrack import lab
    from labtrack.envfile import lifecycle

    with lifecycle.opened(lab.load(lab_dir), "labtrack secrets deployed", cloud) as context:
        for access in lifecycle.server_runs_with(context, access_key):
            output.line(f"old key {access} deleted")
        for note in context.keys.notes:
            output.line(f"attention: {note}", err=True)


@click.command()
@LAB
@USER
@click.option(
    "--output",
    "where",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the file here instead of private/<lab>/<user>/mlflow_env.sh.",
)
@KEYS
@CLOUD
@click.option("--force", is_flag=True, help="Write over a file that is truncated or was edited.")
@VERBOSE
def create(**given: Any) -> None:
    """Give USER an account, a key and a file; change nothing that is in order."""
    from labtrack import lab
    from labtrack.envfile import lifecycle

    loaded, handed_in = lab.load(given["lab_dir"]), _handed_in(given["keys"])
    with lifecycle.opened(loaded, "labtrack env create", given["cloud"], _step(given["verbose"])) as context:
        outcome = lifecycle.create(
            context, given["user"], output=given["where"], handed_in=handed_in, force=given["force"]
        )
    _tell(outcome)


@click.command()
@LAB
@USER
@KEYS
@CLOUD
@click.option("--leaked", is_flag=True, help="Somebody else has the file: change the password too; all old keys end.")
@click.option(
    "--grace",
    callback=lambda _context, _option, value: _seconds(value),
    metavar="DURATION",
    help="How long the old key works on, like 36h or 14d, instead of lab_key_grace.",
)
@VERBOSE
def rotate(**given: Any) -> None:
    """Give USER a new key: make it, try it, put it into the file.  The old one works on for lab_key_grace.

    Running jobs keep the old key for that time; the first env or users command after it deletes the key.  Where
    artifacts go through the server there is no key: the password changes, and running jobs lose the server.
    """
    from labtrack import lab
    from labtrack.envfile import lifecycle

    loaded, handed_in = lab.load(given["lab_dir"]), _handed_in(given["keys"])
    with lifecycle.opened(loaded, "labtrack env rotate", given["cloud"], _step(given["verbose"])) as context:
        outcome = lifecycle.rotate(
            context, given["user"], handed_in=handed_in, leaked=given["leaked"], grace=given["grace"]
        )
    _tell(outcome)


@click.command()
@LAB
@click.argument("users", nargs=-1, metavar="[USER]...")
@CLOUD
@VERBOSE
def move(lab_dir: Path, users: tuple[str, ...], cloud: str | None, verbose: bool) -> None:
    """Replace keys that another login has made by keys of yours: of the USERs, or of everybody (`server` too).

    An EC2 key ends with the user of the cloud who made it: for when an admin leaves.  The old ones work on for
    lab_key_grace; then it is for that user to delete them.  Hand out the new files.
    """
    from labtrack import lab
    from labtrack.envfile import lifecycle

    loaded, attention = lab.load(lab_dir), False
    with lifecycle.opened(loaded, "labtrack env move", cloud, _step(verbose)) as context:
        moved = 0
        for outcome in lifecycle.move(context, users):
            moved += 1
            for line in outcome.changed:
                output.line(f"{outcome.user}: {line}")
            for note in outcome.notes:
                attention = True
                output.line(f"{outcome.user}: attention: {note}", err=True)
    if not moved:
        output.line("unchanged: no key that the kit made belongs to another login")
    if attention:
        sys.exit(Exit.FAILED)


@click.command()
@LAB
@USER
@CLOUD
@VERBOSE
def revoke(lab_dir: Path, user: str, cloud: str | None, verbose: bool) -> None:
    """Take away USER's key, account and file.  Their runs stay."""
    from labtrack import lab
    from labtrack.envfile import lifecycle

    loaded = lab.load(lab_dir)
    with lifecycle.opened(loaded, "labtrack env revoke", cloud, _step(verbose)) as context:
        outcome = lifecycle.revoke(context, user)
    _tell(outcome)


@click.command("list")
@LAB
@CLOUD
@JSON
def list_(lab_dir: Path, cloud: str | None, as_data: bool) -> None:
    """Show whose key is whose, how long old ones still work, and what belongs to nobody in lab_users."""
    from labtrack import lab
    from labtrack.envfile import lifecycle, listing

    loaded = lab.load(lab_dir)
    with lifecycle.opened(loaded, "labtrack env list", cloud) as context:
        found = listing.listed(context)
    if as_data:
        output.data(found.as_data())
        return
    output.table(("owner", "key", "state", "made", "in Keystone", "file"), [line.cells for line in found.lines])
    for note in found.notes:
        output.line(note, err=True)


@click.group()
def users() -> None:
    """The people of lab.yml and their accounts on the server."""


@users.command()
@LAB
@CLOUD
@click.option("--remove-unlisted", is_flag=True, help="Take them from everybody who is not in lab_users, too.")
@JSON
@VERBOSE
def sync(lab_dir: Path, cloud: str | None, remove_unlisted: bool, as_data: bool, verbose: bool) -> None:
    """Give everybody in lab_users an account, a key and a file; take them from those marked absent.

    Who has an account or a key without being in lab_users is told.
    """
    from labtrack import lab
    from labtrack import users as people
    from labtrack.envfile import lifecycle

    loaded = lab.load(lab_dir)
    with lifecycle.opened(loaded, "labtrack users sync", cloud, _step(verbose)) as context:
        done = list(people.sync(context, remove_unlisted=remove_unlisted))
    lines = [
        f"{person.outcome.user}: {line}"
        for person in done
        for line in person.outcome.changed or ["unchanged"] * (not person.error)
    ]
    if as_data:
        changed = any(person.outcome.changed for person in done)
        output.data({"changed": changed, "lines": lines, "people": [person.as_data() for person in done]})
    else:
        for line in lines:
            output.line(line)
    for person in done:
        for text in filter(None, (*person.outcome.notes, person.error)):
            output.line(f"{person.outcome.user}: {text}", err=True)
    if any(person.error for person in done):
        sys.exit(Exit.FAILED)


ENV_COMMANDS: tuple[click.Command, ...] = (create, list_, rotate, move, revoke)
COMMANDS: tuple[click.Command, ...] = (secrets, users)
