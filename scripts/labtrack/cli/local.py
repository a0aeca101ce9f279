"""`labtrack project`, `usage`, `clean`, `prune`, `backup` and `who`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from labtrack.cli import output
from labtrack.errors import BadInputError, Exit, LabtrackError

if TYPE_CHECKING:
    from labtrack.stores import Run

_SOURCE = "[SOURCE]"
_SHOWN = 20  # runs that are listed where --all is not given
_STEP = 1000.0


@click.group()
def project() -> None:
    """A project that records its runs in its own folder."""


@project.command()
@click.argument("folder", default=".", type=click.Path(path_type=Path))
@click.option("--make", is_flag=True, help="Also put the targets mlflow-ui and clean into the Makefile.")
def init(folder: Path, make: bool) -> None:
    """Have git ignore what MLflow records in FOLDER (here): mlflow.db, mlruns/ and the like.

    A second call changes nothing.  The lines for a Makefile are printed where --make is not given.

    Exit code 0 done, 1 git has already committed some of it, which is named, 2 wrong usage or input.
    """
    from labtrack.local import project as projects

    done = projects.init(folder, make=make)
    output.line(f"{done.ignore or folder / '.gitignore'}: {'written' if done.ignore else 'has it already'}")
    if done.makefile:
        output.line(f"{done.makefile}: the targets mlflow-ui and clean")
    if done.targets:
        output.line(f"\nFor a Makefile (--make puts it there):\n\n{done.targets}".rstrip())
    if done.tracked:
        names = " ".join(done.tracked[:10])
        output.line(f"git goes on with what it has already committed: {names}", err=True)
        output.line(f"To fix: git rm -r --cached {names}   (the files stay)", err=True)
    sys.exit(Exit.FAILED if done.tracked else Exit.OK)


@click.command()
@click.argument("source", required=False, metavar=_SOURCE)
@click.option("--all", "everything", is_flag=True, help=f"All runs, not only the {_SHOWN} largest.")
@click.option("--json", "as_data", is_flag=True, help="Print JSON.")
def usage(source: str | None, everything: bool, as_data: bool) -> None:
    """Say what takes the space: the database, and each experiment's and run's artifacts, the largest first.

    SOURCE is what `labtrack sync -s` takes.  [default: MLFLOW_TRACKING_URI, else this folder]  Nothing is changed.

    Exit code 0 done, 1 something could not be read, which is named, 2 wrong usage or input.
    """
    from labtrack.local.usage import measure

    found = measure(_place(source))
    if as_data:
        output.data({
            "version": 1, "source": found.location, "bytes": found.bytes, "deleted_bytes": found.deleted,
            "elsewhere": found.elsewhere, "experiments": [vars(one) for one in found.experiments()],
            "items": [vars(one) for one in found.items], "problems": found.problems,
        })  # fmt: skip
    else:
        _show_usage(found, everything)
    for problem in found.problems:
        output.line(f"not counted: {problem}", err=True)
    sys.exit(Exit.FAILED if found.problems else Exit.OK)


def _show_usage(found: Any, everything: bool) -> None:
    output.line(f"{found.location}: {size(found.bytes)}")
    files = [one for one in found.items if one.kind not in ("run", "model")]
    output.table(("size", "what"), [(size(one.bytes), f"{one.name}  {one.note}".rstrip()) for one in files])
    of_experiments = [
        (size(one.bytes), one.name, one.note, f"{one.files:,}", f"{one.points:,}") for one in found.experiments()
    ]
    output.line("")
    output.table(("size", "experiment", "runs", "files", "points"), of_experiments)
    runs = [one for one in found.items if one.kind in ("run", "model")]
    shown = runs if everything else runs[:_SHOWN]
    rows = []
    for one in shown:
        name = f"{one.name} (deleted)" if one.deleted else one.name
        rows.append((size(one.bytes), name, one.experiment, f"{one.files:,}", f"{one.points:,}", one.id))
    output.line("")
    output.table(("size", "run", "experiment", "files", "points", "id"), rows)
    if len(shown) < len(runs):
        output.line(f"and {len(runs) - len(shown)} smaller ones (--all)")
    if found.deleted:
        output.line(f"{size(found.deleted)} are of deleted runs, which `mlflow gc` removes.")
    if found.elsewhere:
        output.line(f"{found.elsewhere} runs have their artifacts in an object store, which are not counted.")


@click.command()
@click.argument("folder", default=".", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@click.option("--force", is_flag=True, help="Also what is in use, or on no server.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def clean(folder: Path, dry_run: bool, force: bool, yes: bool) -> None:
    """Remove what MLflow has recorded in FOLDER (here).

    mlflow.db with its journal, *.db-shm, *.db-wal, mlruns/, mlartifacts/ and .mlflow/, and nothing else.

    It refuses while a run is being recorded or a program has the database open, which it names, and where runs were not
    sent to a server by `labtrack sync`.

    Exit code 0 removed, or nothing there, 1 refused, 2 wrong usage or input.
    """
    from labtrack.local import clean as cleaning

    plan = cleaning.plan(folder)
    if not plan.paths:
        output.line(f"{folder} has nothing to remove.")
        return
    for path, taken in plan.paths:
        output.line(f"{'would remove' if dry_run else 'remove'} {path}  {size(taken)}")
    for reason in plan.reasons:
        output.line(f"{'Note' if force else 'Not now'}: {reason}.", err=True)
    if plan.reasons and not force:
        raise LabtrackError(
            "Nothing was removed.", "`labtrack sync` sends the runs to a server; --force removes them for good."
        )
    if dry_run:
        return
    if not yes:
        if not sys.stdin.isatty():
            raise BadInputError("Nothing was removed: there is nobody to ask.", "--yes")
        click.confirm(f"Remove {size(plan.bytes)} for good?", abort=True)
    cleaning.remove(plan)
    output.line(f"Removed {size(plan.bytes)}.")


@click.command()
@click.argument("source")
@click.option("--older-than", metavar="AGE", help="Runs that ended so long ago: 90d, 12h, 2w.")
@click.option("--status", metavar="STATUS,...", help="Runs with one of these.  [default: all but RUNNING, SCHEDULED]")
@click.option("--filter", "expression", metavar="EXPR", help="Only runs like this: \"params.model = 'unet'\".")
@click.option("--synced", is_flag=True, help="Of a folder of recordings: remove those that `labtrack sync` has sent.")
@click.option("--gc", is_flag=True, help="Then remove them and their artifacts for good, by `mlflow gc`.")
@click.option("--mlflow", metavar="PATH", help="The `mlflow` to use, or its environment.  [default: where labtrack is]")
@click.option("--dry-run", is_flag=True, help="Show the runs, and delete none.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def prune(source: str, older_than: str | None, status: str | None, expression: str | None, **given: Any) -> None:
    """Put runs of SOURCE into MLflow's trash: a SQLite file, an mlruns folder or a server.

    It is MLflow that deletes; a run can be restored on its page or by `mlflow runs restore` until `mlflow gc`.

    With --synced SOURCE is a folder of recordings (labtrack:///...): those whose runs have all ended and are all at a
    server, as this machine's journal of `labtrack sync` says, are removed for good with their artifacts.

    Exit code 0 done, 1 MLflow or the server failed, 2 wrong usage or input.
    """
    from labtrack.local import prune as pruning

    if given.pop("synced"):
        if status or expression or given["gc"] or given["mlflow"]:
            raise BadInputError(
                "--synced removes whole recordings.", "leave --status, --filter, --gc and --mlflow away."
            )
        age = pruning.seconds(older_than) if older_than else 0.0
        _prune_synced(source, age, dry_run=given["dry_run"], yes=given["yes"])
        return
    choice = pruning.Choice(
        pruning.seconds(older_than) if older_than else None, pruning.statuses(status) if status else (), expression
    )
    dry_run, yes, gc = given.pop("dry_run"), given.pop("yes"), given["gc"]

    def confirm(runs: tuple[Run, ...]) -> bool:
        output.table(("id", "name", "status", "user"), [(run.id, run.name, run.status, run.user_id) for run in runs])
        if dry_run:
            output.line(f"{len(runs)} runs would be deleted.")
        elif not yes and not sys.stdin.isatty():
            raise BadInputError("No run was deleted: there is nobody to ask.", "--yes")
        elif not yes:
            click.confirm(f"Delete {len(runs)} runs{' for good, with their artifacts' if gc else ''}?", abort=True)
        return not dry_run

    done = pruning.prune(source, choice, confirm, **given)
    if not done.runs:
        output.line("No run is like that.")
    elif not dry_run:
        rest = ", for good." if done.removed else "; `mlflow gc` frees their room."
        output.line(f"Deleted {len(done.deleted)} runs{rest}")


def _prune_synced(source: str, older_than: float, *, dry_run: bool, yes: bool) -> None:
    from labtrack.local import recordings

    found = recordings.plan(source, older_than)
    for reason, count in found.kept.items():
        output.line(f"{count} recordings stay: {reason}.")
    total = recordings.inodes(found.root)
    what = f"{len(found.journals)} recordings with {len(found.runs)} runs: {size(found.bytes)}, {found.inodes:,} of "
    what += f"{total:,} files and folders"
    if not found.journals or dry_run:
        output.line(f"{what} would be removed." if found.journals else "No recording is like that.")
        return
    if not yes and not sys.stdin.isatty():
        raise BadInputError("Nothing was removed: there is nobody to ask.", "--yes")
    if not yes:
        click.confirm(f"Remove {what} for good?", abort=True)
    recordings.remove(found)
    output.line(f"Removed {what}.")


@click.command()
@click.argument("source")
@click.option("-o", "--output", "folder", type=click.Path(path_type=Path), metavar="FOLDER")
@click.option("--keep", type=int, metavar="N", help="Remove all but the newest N backups of it in FOLDER.")
@click.option(
    "--stdout", "streams", is_flag=True, help="Write the copy to standard output, as `sync -s ssh://` reads it."
)
@click.option("--json", "as_data", is_flag=True, help="Print JSON.")
def backup(source: str, folder: Path | None, keep: int | None, streams: bool, as_data: bool) -> None:
    """Copy the SQLite file SOURCE to FOLDER/NAME_YYYYMMDD-HHMMSS.db, whole, also while jobs write it.

    The copy is checked before it gets its name.  The database only: artifacts are files, and `rsync -a` copies them.

    Exit code 0 done, 1 no copy or a damaged one, 2 wrong usage or input, 75 the file stays locked.
    """
    from labtrack.local.backup import backup as make
    from labtrack.local.backup import stream

    if streams and not (folder or keep or as_data) and not sys.stdout.isatty():
        stream(source, sys.stdout.buffer)
        return
    if streams or folder is None:
        raise BadInputError("Where is the copy to go?", "-o FOLDER; or --stdout alone, for a program that reads it.")
    done = make(source, folder, keep)
    if as_data:
        output.data({
            "file": str(done.file), "bytes": done.size, "runs": done.runs, "removed": [str(one) for one in done.removed]
        })  # fmt: skip
        return
    output.line(f"{done.file}: {done.runs} runs, {size(done.size)}, checked; without artifacts, which are files.")
    for old in done.removed:
        output.line(f"removed {old}")


@click.command()
@click.argument("file", metavar="DATABASE")
@click.option("--json", "as_data", is_flag=True, help="Print JSON.")
def who(file: str, as_data: bool) -> None:
    """Say who has DATABASE open or locked: process, user, command, batch job.

    Only processes of this machine can be seen; on a shared file system another machine may hold it.

    Exit code 0 nobody here, 1 somebody, 2 wrong usage or input.
    """
    from labtrack.local.holders import holders

    prefix = "sqlite:///"
    database = Path(file[len(prefix) :] if file.startswith(prefix) else file).expanduser()
    if not database.is_file():
        raise BadInputError(f"There is no file {database}.", "name the SQLite file, often mlflow.db.")
    found = holders(database)
    if as_data:
        output.data({"holders": [one.data() for one in found.holders], "hidden": found.hidden})
    else:
        rows = []
        for one in found.holders:
            how, locks = "write" if one.writes else "read", ", ".join(one.locks)
            rows.append((str(one.pid), one.user, one.host, how, locks or "-", one.job or "-", one.command[:80]))
        if rows:
            output.table(("pid", "user", "host", "to", "locks", "job", "command"), rows)
        else:
            output.line(f"Nobody on this machine has {database} open.")
        if found.hidden:
            output.line(f"{found.hidden} processes of other users can't be looked into.", err=True)
        output.line("Other machines can't be seen from here.", err=True)
    sys.exit(Exit.FAILED if found.holders else Exit.OK)


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < _STEP:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= _STEP
    return f"{count:.1f} TB"


def _place(source: str | None) -> str:
    return source or os.environ.get("MLFLOW_TRACKING_URI") or "."


COMMANDS: tuple[click.Command, ...] = (project, usage, clean, prune, backup, who)
