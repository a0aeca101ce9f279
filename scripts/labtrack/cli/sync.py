"""`labtrack sync` and `labtrack anemoi sync`."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from labtrack.cli import output
from labtrack.cli.options import together
from labtrack.errors import BadInputError, Exit, LabtrackError

if TYPE_CHECKING:
    from labtrack.sync import Report

_GRAVEST = (
    Exit.INTERRUPTED,
    Exit.FAILED,
    Exit.LOCKED,
    Exit.BAD_INPUT,
    Exit.DAMAGED,
)  # of several recordings, what counts
_WATCH = 2.0  # seconds
_WATCH_AFAR, _WATCH_AFAR_DEFAULT = 10.0, 60.0  # of another machine, at which each look is a login
_SHOWN = 20  # lines of a kind in the summary; --json has all
_SOURCE = (
    "What was recorded: a SQLite file, a folder with one or many, an mlruns folder, an exported file, a server's "
    "https://, another machine's ssh://host/path.  Repeatable."
)
_DESTINATION = "The tracking server's address; MLFLOW_TRACKING_URI where it is not given."


def _options(*, anemoi: bool) -> Callable[[Any], Any]:
    """The options of both commands; those of Anemoi's own `mlflow sync` have its names and meaning."""
    default = "anemoi-debug" if anemoi else None
    where = "The experiment at the server." + ("" if anemoi else "  [default: the name it has in the source]")
    decorators = [
        click.option("-s", "--source", "sources", required=True, multiple=True, metavar="SOURCE", help=_SOURCE),
        click.option("-d", "--destination", metavar="URI", help=_DESTINATION),
        click.option("-r", "--run-id", "run_ids", multiple=True, metavar="RUN_ID", help="Only this run; repeatable."),
        click.option("-e", "--experiment-name", "experiment", default=default, show_default=anemoi, help=where),
        click.option("-x", "--export-deleted-runs", "deleted", is_flag=True, help="Also runs deleted in the source."),
        click.option("-v", "--verbose", is_flag=True, help="Say what is done, run by run."),
        click.option("--filter", "expression", metavar="EXPR", help="Only runs like this: \"params.model = 'unet'\"."),
        click.option(
            "--only-experiment", "only", multiple=True, metavar="NAME",
            help="Only runs of this experiment; repeatable, and a pattern like 'sweep-*'.",
        ),
        click.option(
            "--exclude-experiment", "exclude", multiple=True, metavar="NAME", help="No runs of this experiment."
        ),
        click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing."),
        click.option("--verify", is_flag=True, help="Then compare both sides point by point and byte by byte."),
        click.option("--repair", is_flag=True, help="Send again what is missing or different at the server."),
        click.option(
            "--accept-damage", is_flag=True, help="Note that what can't be read in the recording is known."
        ),
        click.option(
            "--watch", is_flag=False, flag_value=_WATCH, type=click.FloatRange(min=0.2), metavar="[SECONDS]",
            help=f"Go on while runs are being recorded, looking every SECONDS.  [default: {_WATCH:.0f}]",
        ),
        click.option(
            "--jobs", type=click.IntRange(1, 64), default=4, show_default=True, help="Calls under way at once."
        ),
        click.option("--no-reconcile", is_flag=True, help="Do not ask Slurm how jobs ended whose runs are RUNNING."),
        click.option("--json", "as_data", is_flag=True, help="Print a JSON report."),
    ]  # fmt: skip
    return together(decorators)


@click.command()
@_options(anemoi=False)
def sync(**given: Any) -> None:
    """Send what was recorded to the tracking server, each run exactly once.

    Run it again at any time: after an interruption it goes on where it stopped, and of a run that has grown it
    sends the rest.  Without -r: every run that is not there yet.  The login comes from your mlflow_env.sh.

    --filter takes comparisons joined by AND: params.NAME, tags.NAME, metrics.NAME (last value), status, name,
    user_id, start_time, end_time with =, !=, <, <=, >, >=, LIKE, ILIKE, as in MLflow's search.

    What is not whole at the server is named, by every sync, until it is: exit code 3 when only the recording is at
    fault, because something in it can't be read; --accept-damage ends that.

    Exit code 0 everything is there, 1 something failed or differs, 2 wrong usage or input, 3 the recording is damaged
    in places and all else is there, 75 another sync of this recording is at work, 130 stopped by Ctrl-C.
    """
    run(given)


@click.group()
def anemoi() -> None:
    """Commands that Anemoi's users know, with its options and defaults."""


@anemoi.command("sync")
@_options(anemoi=True)
@click.option("-a", "--authentication", is_flag=True, help="Accepted; the login comes from the environment anyway.")
def anemoi_sync(authentication: bool, **given: Any) -> None:
    """`anemoi-training mlflow sync`, done by `labtrack sync`.

    The same options; -r may be left out for all runs.  A token in MLFLOW_TRACKING_TOKEN is used.
    """
    run(given)


def run(given: dict[str, Any]) -> None:
    """Does what both commands, and `labtrack import`, are for."""
    from labtrack.cli import progress
    from labtrack.stores import filters
    from labtrack.stores.pull import pull
    from labtrack.sync import Options, opened
    from labtrack.sync.watch import watch

    destination = given["destination"] or os.environ.get("MLFLOW_TRACKING_URI")
    if not destination:
        raise BadInputError(
            "There is no destination: -d was not given, and MLFLOW_TRACKING_URI is not set.",
            "source your mlflow_env.sh, or give the server's address: -d https://...",
        )
    options = Options(
        run_ids=given["run_ids"],
        experiment=given["experiment"],
        deleted=given["deleted"],
        wanted=filters.chosen(given["expression"], given.get("only", ()), given.get("exclude", ())),
        dry_run=given["dry_run"],
        verify=given["verify"],
        repair=given.get("repair", False),
        accept_damage=given.get("accept_damage", False),
        jobs=given["jobs"],
    )
    watching = bool(given["watch"]) and not given["dry_run"]
    terminated = _stop_when_told(last_pass=watching)
    shows = progress.shows(quiet=given["as_data"], verbose=given["verbose"])
    sources, copies = _sources(given["sources"], quiet=given["as_data"])
    if watching and len(sources) > 1:
        raise BadInputError(
            f"--watch follows one recording, and there are {len(sources)}: {', '.join(sources)}.",
            "start one for each of them, or run the sync again from time to time.",
        )

    def one(source: str) -> Report:
        if not (given["dry_run"] or given.get("no_reconcile", True) or source in copies):
            _reconcile(source)
        with opened(source, destination, options, shows) as syncer:
            if not watching:
                return syncer.once()
            every, renew = given["watch"], None
            if source in copies:
                every = max(every, _WATCH_AFAR) if every != _WATCH else _WATCH_AFAR_DEFAULT
                renew = functools.partial(pull, copies[source])
            return watch(syncer, every, ends=lambda: bool(terminated), renew=renew)

    if len(sources) == 1:
        report = one(sources[0])
        if given["as_data"]:
            output.data(report.as_data())
        else:
            _tell(report, verbose=given["verbose"])
        sys.exit(report.exit_code)
    sys.exit(_several(sources, one, given))


def _sources(given: Sequence[str], *, quiet: bool) -> tuple[list[str], dict[str, str]]:
    """The recordings that are meant, each once; and of those that are copies, where they are copied from."""
    from labtrack.stores import find_stores
    from labtrack.stores.pull import is_address

    found: dict[str, None] = {}
    copies: dict[str, str] = {}
    for source in given:
        if is_address(source) and not quiet:
            output.line(f"fetch {source}", err=True)
        alone = is_address(source) and len(given) == 1  # what is wrong with its machine is told at once
        places = find_stores(source) if alone else _found(source)
        if is_address(source):
            copies.update(dict.fromkeys(places, source))
        found.update(dict.fromkeys(places))
    return list(found), copies


def _reconcile(source: str) -> None:
    """Writes down how jobs ended, where Slurm can be asked; what goes wrong with that keeps no sync away."""
    from labtrack.cli.run import why_of
    from labtrack.recorder.place import SCHEME
    from labtrack.run import reconcile, recording, slurm

    is_folder = source.startswith(f"{SCHEME}:") or Path(source).expanduser().is_dir()
    if not is_folder or not slurm.has("sacct"):
        return
    try:
        folder = recording.folder_of(source, {})
        outcome = reconcile.reconcile(folder) if recording.holds_recordings(folder) else None
    except (LabtrackError, OSError) as error:
        output.line(f"note: jobs are not asked about: {' '.join(str(error).split())}", err=True)
        return
    for change in outcome.changes if outcome else ():
        output.line(f"run {change.run_id} {change.verdict.status or 'ended'}: {why_of(change.verdict.tags)}", err=True)
    for note in outcome.notes if outcome else ():
        output.line(f"note: {note}", err=True)


def _found(source: str) -> list[str]:
    """The recordings that a source is or holds; what is wrong with it is told when it is its turn."""
    from labtrack.stores import find_stores

    try:
        return find_stores(source)
    except LabtrackError:
        return [source]


def _several(sources: list[str], one: Callable[[str], Report], given: dict[str, Any]) -> int:
    """Sends one recording after the other; what goes wrong with one keeps no other away.  Gives the exit code."""
    codes: list[int] = []
    data: list[dict[str, Any]] = []
    for source in sources:
        try:
            report = one(source)
        except LabtrackError as error:
            codes.append(int(error.code))
            data.append({"source": source, "error": str(error), "exit_code": int(error.code)})
            if not given["as_data"]:
                output.line(f"{source}:\nError: {error}", err=True)
            continue
        codes.append(int(report.exit_code))
        data.append(report.as_data())
        if not given["as_data"]:
            output.line(f"{source}:")
            _tell(report, verbose=given["verbose"])
        if report.interrupted:
            break
    code = next((one for one in _GRAVEST if one in codes), max(codes))
    if given["as_data"]:
        output.data({"recordings": data, "exit_code": code})
    return code


def _stop_when_told(*, last_pass: bool) -> list[int]:
    """Ctrl-C ends what is under way, and a second one the process; SIGTERM, with which batch systems end jobs, too.

    last_pass: the first SIGTERM asks for one more look at the recording, and ends nothing.
    Gives a list that has something in it once that has come.
    """
    told: list[int] = []
    terminated: list[int] = []

    def stop(number: int, _: object) -> None:
        if last_pass and number == signal.SIGTERM and not terminated:
            terminated.append(number)
            return
        told.append(number)
        if len(told) > 1:  # a call may hang for minutes, and nothing is lost by leaving now
            os._exit(Exit.INTERRUPTED)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    return terminated


def _tell(report: Report, *, verbose: bool) -> None:
    data = report.as_data()["counts"]
    _runs(report, verbose=verbose)
    for note in _some(report.notes, verbose=verbose):
        output.line(f"note: {note}", err=True)
    for name, why in report.unregistered.items():
        output.line(f"note: {name} is not registered: {why}", err=True)
    _incomplete("failed", report.failed, verbose=verbose)
    _incomplete("incomplete", report.damaged, verbose=verbose)
    for line in _some(report.unreadable, verbose=verbose):
        output.line(f"incomplete: in the recording: {line}", err=True)
    for run_id, found in report.differences.items():
        for line in found:
            output.line(f"differs: {_called(run_id)}: {line}")
    if report.verified is not None:
        output.line(f"compared {report.verified} runs and models: {len(report.differences)} differ")
        if report.differences:
            output.line("To fix: the same command with --repair sends again what is missing or different.")
    output.line(_summary(report, data))
    if report.stopped:
        output.line(f"Error: {report.stopped}", err=True)
    if report.left or report.interrupted:
        output.line(f"{len(report.left)} runs are left: the same command goes on with them.", err=True)


def _called(name: str) -> str:
    return name if " " in name or "/" in name else f"model {name}" if name.startswith("m-") else f"run {name}"


def _incomplete(word: str, found: dict[str, list[str]], *, verbose: bool) -> None:
    """One line for each cause, and one for all runs that have the same: a store that is down is one finding."""
    runs: dict[str, list[str]] = {}
    for run_id, why in found.items():
        for line in why:
            runs.setdefault(line, []).append(run_id)
    shown = list(runs.items())
    more = len(shown) - _SHOWN
    for line, ids in shown if verbose or more <= 0 else shown[:_SHOWN]:
        kind = "runs" if all(_called(one).startswith("run ") for one in ids) else "items"
        several = f"{len(ids)} {kind} ({', '.join(ids[:2])}{', ...' * (len(ids) > 2)})"  # noqa: PLR2004
        who = _called(ids[0]) if len(ids) == 1 else several
        output.line(f"{word}: {who}: {line}", err=True)
    if more > 0 and not verbose:
        output.line(f"{word}: ... and {more} more (-v)", err=True)


def _runs(report: Report, *, verbose: bool) -> None:
    """A table of the runs: all of them for --dry-run and -v, else those that something was sent for."""
    from labtrack.cli.progress import size

    copies = {one.run_id: one for one in (*report.outcomes, *report.model_outcomes)}
    rows: list[tuple[str, ...]] = []
    for one in (*report.planned, *report.models):
        sent = copies.get(one.run_id)
        if not (verbose or report.dry_run or sent):
            continue
        points, files, count = (
            (sent.points, sent.artifacts, sent.bytes) if sent else (one.points, one.artifacts, one.bytes)
        )
        state = (
            "failed"
            if one.run_id in report.failed
            else "incomplete"
            if one.run_id in report.damaged
            else "recording"
            if sent and sent.recording
            else one.todo
        )
        rows.append((one.run_id, one.name[:30], one.experiment[:30], state, f"{points:,}", f"{files:,}", size(count)))
    if rows:
        output.table(("run", "name", "experiment", "state", "points", "files", "bytes"), _some_rows(rows, verbose))


def _some_rows(rows: list[tuple[str, ...]], verbose: bool) -> list[tuple[str, ...]]:
    more = len(rows) - _SHOWN
    return rows if verbose or more <= 0 else [*rows[:_SHOWN], (f"... and {more} more (-v)", "", "", "", "", "", "")]


def _some(lines: list[str], *, verbose: bool) -> list[str]:
    more = len(lines) - _SHOWN
    return lines if verbose or more <= 0 else [*lines[:_SHOWN], f"... and {more} more (-v)"]


def _summary(report: Report, count: dict[str, int]) -> str:
    from labtrack.cli.progress import size

    others = report.models or report.experiments or report.traces or report.names or report.registered
    if not (report.planned or others or report.versions or report.failed):
        return f"Nothing to do: {report.source} has no {'such ' * report.narrowed}runs."
    if report.dry_run:
        able = [one for one in report.planned if one.run_id not in report.failed]
        points, sent = sum(one.points for one in able), sum(one.bytes for one in able)
        new, changed = (sum(one.todo == todo for one in able) for todo in ("new", "changed"))
        models = sum(one.todo != "there" for one in report.models)
        return (
            f"Would send {new} new runs and the rest of {changed} ({points:,} points, {size(sent)})"
            f"{f', and {models} models outside runs' * bool(models)}"
            f"{f', and {len(report.experiments)} experiments without runs' * bool(report.experiments)}"
            f"; {count['there']} are there"
            f"{f', {len(report.failed)} can not be sent' * bool(report.failed)}."
        )
    text = (
        f"{count['new']} new, {count['changed']} changed, {count['there']} there already, {count['failed']} failed: "
        f"sent {count['points']:,} points and {count['artifacts']:,} files ({size(count['bytes'])}) "
        f"in {report.seconds:.1f} s."
    )
    traces = sum(one["sent"] for one in report.traces.values())
    extra = [
        f"{report.recording} still being recorded" * bool(report.recording),
        f"{count['deleted_at_server']} deleted at the server and left so" * bool(count["deleted_at_server"]),
        f"{report.linked} linked to their parents" * bool(report.linked),
        f"{len(report.models)} models outside runs" * bool(report.models),
        f"{len(report.experiments)} experiments made or given tags" * bool(report.experiments),
        f"{report.names} names registered" * bool(report.names),
        f"{report.registered} versions registered" * bool(report.registered),
        f"{traces} traces sent" * bool(traces),
    ]
    if report.damaged or report.unreadable:
        broken = len(report.damaged) + bool(report.unreadable)
        extra.append(f"{broken} incomplete: the recording can't be read in places (--accept-damage if it stays so)")
    return text + "".join(f"  {one}." for one in extra if one)


COMMANDS: tuple[click.Command, ...] = (sync, anemoi)
