"""Several admins, one lab: the server keeps the newest files, and each run begins and ends with them.

`begin` takes the server's lock and what other admins have changed meanwhile; `end` puts there what this run has
changed, and lets go of the lock.  A run that changes nothing asks the server twice and sends nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from labtrack import files, labmoved, vault
from labtrack.envfile.register import now
from labtrack.errors import Exit, LabtrackError
from labtrack.lab import Lab
from labtrack.labcopy import archive, content, placing
from labtrack.labcopy.content import Content, Mark
from labtrack.labcopy.merge import merge
from labtrack.labcopy.remote import Facts, Holder, Said, Server

HERE, SERVER = "here", "server"
CHOICES = ("", HERE, SERVER)
_SHOWN = 8  # names of files in a message


@dataclass
class Done:
    """What was done: changed, whether a file was; lines, what the admin is told."""

    changed: bool = False
    lines: list[str] = field(default_factory=list)


def holder(lab: Lab, doing: str, pid: int) -> Holder:
    """Who this run is.  pid: the process that lives as long as the run."""
    host, user = socket.gethostname(), files.user_name()
    token = hashlib.sha256(f"{host}\0{user}\0{lab.private}\0{pid}\0{files.boot_id()}".encode()).hexdigest()
    return Holder(token, archive.who(), host, user, pid, doing, now())


def begin(
    lab: Lab,
    server: Server,
    me: Holder,
    *,
    choice: str = "",
    take_lock: bool = False,
    look: bool = False,
    refuse_moved: bool = False,
) -> Done:
    """Takes the lock, and takes over what other admins have changed since this checkout spoke to the server.

    choice: where both sides have changed the same file, `server` takes the server's (those of here are put aside)
    and `here` keeps these, which `end` then puts on the server.  take_lock: whoever has it.  look: changes nothing.
    refuse_moved: a lab that is in another place since a move, by what was taken over too, is refused.
    Raises LabtrackError, with nothing changed, where another run is at work, both sides have changed the same,
    the vault password is not that of the server's files, or a lab is deployed whose files are nowhere.
    """
    said = _locked(server, me, take_lock=take_lock) if not look else server.begin(None)
    try:
        done = _compared(lab, server, said, choice, look=look)
        if refuse_moved:
            labmoved.check(lab)
        return done
    except BaseException:
        if said.mine:
            with contextlib.suppress(LabtrackError):  # the first trouble matters more
                server.end(me)
        raise


def end(lab: Lab, server: Server, me: Holder) -> Done:
    """Puts the lab's files on the server, where they have changed, and lets go of the lock."""
    with _held(lab, me.doing):
        found = content.read(lab)
        sums = found.sums
        digest = content.digest(lab, sums)
        known = content.mark(lab) or Mark(0, 0, "")
        if digest == known.digest and known.serial == known.seen:
            server.end(me)
            return Done()
        new = Mark(max(known.serial, known.seen) + 1, max(known.serial, known.seen) + 1, digest, sums)
        facts = Facts(new.serial, digest, content.password_check(lab), archive.who(), now())
        other = server.end(me, (facts, archive.pack(lab, found, new)), known.seen)
        if other:
            raise LabtrackError(
                f"{other} has put files of the lab on the server while this run was at work, so those of here were "
                "not put there.",
                "run the same again: it takes over what can be taken over.",
            )
        content.set_mark(lab, new)
    return Done(True, [f"the server keeps the lab's files of now (number {new.serial})"])


@contextlib.contextmanager
def _held(lab: Lab, doing: str) -> Iterator[None]:
    with files.lock(lab.private / ".lock", doing):
        placing.finish(lab)
        yield


def _locked(server: Server, me: Holder, *, take_lock: bool) -> Said:
    said = server.begin(me, "any" if take_lock else "")
    if not said.mine and _is_dead(said, me):
        said = server.begin(me, said.held)
    if said.mine:
        return said
    who, doing, since = (str(said.holder.get(key, "?")) for key in ("who", "doing", "since"))
    raise LabtrackError(
        f"{who} is at work on this lab since {since}: {doing}.  Nothing was changed.",
        "wait until that run has ended.  If it is dead (ask them): -e take_lock=true.  Two hours after its start it "
        "does not count any more.",
        Exit.LOCKED,
    )


def _is_dead(said: Said, me: Holder) -> bool:
    """Whether a run of this user on this computer has left the lock."""
    if (said.holder.get("host"), said.holder.get("user")) != (me.host, me.user):
        return False
    try:
        os.kill(int(said.holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, TypeError, ValueError):
        return False
    return False


def _compared(lab: Lab, server: Server, said: Said, choice: str, *, look: bool) -> Done:
    with contextlib.nullcontext() if look else _held(lab, "the beginning of a run"):
        found, known = content.read(lab), content.mark(lab)
        settled = _settled(lab, said, found, known, choice)
        if settled is None and said.newest:
            there = _opened(lab, server, said.newest)
            base = known.sums if known else {}
            done = _taken(lab, said.newest, base, (found, there.content), theirs=choice == SERVER, look=look)
            settled = _mark(said.newest, there.content.sums), done
        mark, done = settled or (None, Done())
        if mark and not look:
            content.set_mark(lab, mark)
        return done


def _settled(lab: Lab, said: Said, found: Content, known: Mark | None, choice: str) -> tuple[Mark | None, Done] | None:
    """What can be said without opening the server's export: what to note, and what to tell; None where it can't."""
    newest = said.newest
    if newest is None:
        if said.deployed and not lab.keys_file.exists() and choice != HERE:
            raise _nowhere(lab)
        return replace(known, seen=0) if known else None, Done()
    if newest.check != content.password_check(lab):
        if choice != HERE:
            raise _locked_up(lab, newest)
        return _ours(newest)
    sums = found.sums
    if content.digest(lab, sums) == newest.digest:
        return _mark(newest, sums), Done()
    if known and (known.serial, known.digest) == (newest.serial, newest.digest):
        return replace(known, seen=newest.serial), Done()  # only here something has changed
    if known and known.serial > newest.serial:
        return replace(known, seen=newest.serial), Done(False, [
            f"the server has older files of the lab ({newest.serial}) than were here before ({known.serial}), as after "
            "a restored backup: those of here count",
        ])  # fmt: skip
    return _ours(newest) if choice == HERE else None


def _opened(lab: Lab, server: Server, newest: Facts) -> archive.Export:
    source = f"the server's export {newest.serial}"
    there = archive.unpack(lab, server.get(newest), source)
    if (there.mark.serial, there.mark.digest) != (newest.serial, newest.digest):
        raise LabtrackError(
            f"{source} is not what its description says: it has the number {there.mark.serial}.",
            f"see who wrote there (sudo ls -l {server.exports}); where the files here are right: -e lab_copy=here.",
        )
    return there


def _mark(newest: Facts, sums: content.Sums) -> Mark:
    return Mark(newest.serial, newest.serial, newest.digest, dict(sums))


def _ours(newest: Facts) -> tuple[Mark, Done]:
    said = f"the files of here count, not those of {newest.by}, {newest.at} (number {newest.serial})"
    return _mark(newest, {}), Done(False, [said])


def _taken(
    lab: Lab, newest: Facts, base: content.Sums, both: tuple[Content, Content], *, theirs: bool, look: bool
) -> Done:
    here, there = both
    own = here.personal | there.personal  # another version of the kit may count others in
    plan = merge(
        *({n: s for n, s in sums.items() if n not in own} for sums in (base, here.sums, there.sums)), theirs=theirs
    )
    if plan.clash:
        raise _fork(lab, newest, plan.clash)
    missing = (own & set(there.files)) - set(here.files)
    take = {name: there.files[name] for name in (*plan.take, *sorted(missing))}
    aside = None if look else placing.place(lab, take, plan.drop, keep_old=theirs)
    lines = [f"taken over from {newest.by}, {newest.at} (number {newest.serial}): {_listed(take)}"] if take else []
    lines += [f"taken away there, and here now: {_listed(plan.drop)}"] if plan.drop else []
    if content.SECRETS in take:
        lines.append(f"{lab.secrets_file} was among them: commit it, where your lab keeps it in git")
    return Done(bool(take or plan.drop), lines + ([f"what was here is in {aside}"] if aside else []))


def _locked_up(lab: Lab, newest: Facts) -> LabtrackError:
    return LabtrackError(
        f"The server's copy of the lab's files (number {newest.serial}, of {newest.by}, {newest.at}) was encrypted "
        "with another vault password than the one here.  Nothing was changed.",
        f"put the lab's vault password into {vault.password_file(lab.root)}.  If it was changed on purpose "
        "(ansible-vault rekey), run once with -e lab_copy=here.",
    )


def _fork(lab: Lab, newest: Facts, names: tuple[str, ...]) -> LabtrackError:
    return LabtrackError(
        f"The lab's files have changed here and, by {newest.by} at {newest.at}, on the server (number "
        f"{newest.serial}), in different ways: {_listed(names)}.  Nothing was changed.",
        "choose whose count.  -e lab_copy=server takes the server's; what is here is put aside into "
        f"{lab.private / placing.ASIDE}.  -e lab_copy=here keeps these and puts them on the server, which keeps its "
        "older ones too.  docs/admin/second-admin.md says how to tell which are right.",
    )


def _nowhere(lab: Lab) -> LabtrackError:
    return LabtrackError(
        f"The lab {lab.name} is deployed, but its files are neither in {lab.private} nor on the server.  Nothing was "
        "changed: going on would give everybody new passwords and keys.",
        "let the admin who has them run site.yml once; or take them from an export of theirs: labtrack lab import "
        f"{lab.shown_folder} FILE.  If they are lost for good: -e lab_copy=here, then hand out everybody's new file.",
    )


def _listed(names: Iterable[str]) -> str:
    listed = [name.partition("/")[2] for name in names]
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more
