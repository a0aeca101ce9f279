"""What runs on the server, as root: the newest exports, and the lock that keeps two admins apart.

One shell command each, because every command costs a task of Ansible's about a second.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from labtrack.errors import LabtrackError

EXPORTS = "/var/lib/labtrack/lab"
LOCK = "/run/labtrack-lab.lock"  # a reboot ends what was under way
DEPLOYED = "/opt/mlflow/current"
STALE = 120  # minutes, after which a lock is nobody's any more
KEPT = 5  # exports

_BEGIN = """\
set -eu; umask 077; mine=no; held=
if [ -n "$token" ]; then
    exec 9>"$lock.guard"; flock -w 20 9
    find "$lock" -mmin "+$stale" -exec rm -f {} + 2>/dev/null || true
    if [ -s "$lock" ]; then held=$(head -n 1 "$lock"); fi
    if [ -z "$held" ] || [ "$held" = "$token" ] || [ "$held" = "$instead" ] || [ "$instead" = any ]; then
        printf '%s\\n%s\\n' "$token" "$who" >"$lock"; mine=yes
    fi
fi
echo "mine $mine"
if [ -s "$lock" ]; then echo "held $(head -n 1 "$lock")"; echo "who $(sed -n 2p "$lock")"; fi
newest=$(find "$exports" -name '*.json' 2>/dev/null | sort | tail -n 1)
if [ -n "$newest" ]; then echo "newest $(cat "$newest")"; fi
if [ -e "$deployed" ]; then echo "deployed yes"; fi
"""
_GET = """\
set -eu; cat "$exports/$name.vault"
"""
_END = """\
set -eu; umask 077
exec 9>"$lock.guard"; flock -w 20 9
if [ -n "$name" ]; then
    mkdir -p "$exports"
    # the folder may be open to the group that backs it up: then so is what is in it
    mode=$(stat -c %a "$exports" | tr 75 64)
    newest=$(find "$exports" -name '*.json' | sort | tail -n 1)
    if [ "$(basename "$newest" .json)" != "$seen" ]; then echo "newer $(cat "$newest")"; exit 0; fi
    keep() {
        chgrp --reference="$exports" "$exports/.new"; chmod "$mode" "$exports/.new"
        sync "$exports/.new"; mv "$exports/.new" "$exports/$name.$1"
    }
    cat >"$exports/.new"; keep vault
    printf '%s\\n' "$facts" >"$exports/.new"; keep json
    find "$exports" -name '*.json' | sort | head -n "-$kept" | while read -r old; do
        rm -f "${old%.json}.vault" "$old"
    done
    echo "kept yes"
fi
if [ -s "$lock" ] && [ "$(head -n 1 "$lock")" = "$token" ]; then rm -f "$lock"; fi
"""

# Carries out a shell command on the server as root, with these bytes on its standard input; exit code, output, errors.
Run = Callable[[str, bytes], tuple[int, str, str]]


@dataclass(frozen=True)
class Facts:
    """What the server says of an export without opening it.  check: tells one vault password from another."""

    serial: int
    digest: str
    check: str
    by: str
    at: str

    @property
    def name(self) -> str:
        """Its file, without the ending; in the order of serial numbers."""
        return _name(self.serial)


@dataclass(frozen=True)
class Holder:
    """Who is at work.  token: the same for all of one run; the other fields are told to others."""

    token: str
    who: str
    host: str
    user: str
    pid: int
    doing: str
    since: str


@dataclass(frozen=True)
class Said:
    """What the server said at the first contact.

    mine: whether the lock is this run's now.  held, holder: the lock's token and who has it.  deployed: whether MLflow
    is installed.
    """

    mine: bool
    held: str
    holder: dict[str, Any]
    newest: Facts | None
    deployed: bool


@dataclass(frozen=True)
class Server:
    """The lab's server.  The paths are others in tests."""

    run: Run
    exports: str = EXPORTS
    lock: str = LOCK
    deployed: str = DEPLOYED

    def begin(self, holder: Holder | None, instead: str = "") -> Said:
        """Takes the lock, and says what there is.

        holder: None, to look only.  instead: the token of a dead run's lock that is taken over; "any" for whosever.
        """
        variables = {
            "token": holder.token if holder else "", "who": json.dumps(asdict(holder)) if holder else "",
            "instead": instead, "stale": str(STALE), "deployed": self.deployed,
        }  # fmt: skip
        said = self._asked(_BEGIN, variables)
        try:
            newest = Facts(**json.loads(said["newest"])) if "newest" in said else None
            holding: dict[str, Any] = json.loads(said.get("who") or "{}")
        except (ValueError, TypeError) as error:
            what = f"What the server has in {self.exports} or {self.lock} can't be read ({error})."
            raise LabtrackError(
                what, f"as root on the server: rm {self.lock}; look at `ls -l {self.exports}`."
            ) from None
        return Said(said.get("mine") == "yes", said.get("held", ""), holding, newest, "deployed" in said)

    def get(self, facts: Facts) -> bytes:
        """An export."""
        return self._ran(_GET, {"name": facts.name}).encode()

    def end(self, holder: Holder | None, put: tuple[Facts, bytes] | None = None, seen: int = 0) -> str:
        """Puts an export there, if there is one to put, and lets go of the lock.

        seen: the serial of the newest export that the server may have.  Gives who has put a newer one there
        meanwhile; then this one was not put.
        """
        facts, data = put or (None, b"")
        variables = {
            "token": holder.token if holder else "none", "name": facts.name if facts else "", "kept": str(KEPT),
            "facts": json.dumps(asdict(facts)) if facts else "", "seen": _name(seen) if seen else "",
        }  # fmt: skip
        said = self._asked(_END, variables, data)
        if facts and "kept" not in said:
            return str(json.loads(said.get("newer") or "{}").get("by", "somebody"))
        return ""

    def _asked(self, script: str, variables: dict[str, str], data: bytes = b"") -> dict[str, str]:
        lines = self._ran(script, variables, data).splitlines()
        return {word: rest for word, _, rest in (line.partition(" ") for line in lines)}

    def _ran(self, script: str, variables: dict[str, str], data: bytes = b"") -> str:
        given = {"exports": self.exports, "lock": self.lock, **variables}
        head = "".join(f"{name}={shlex.quote(value)}\n" for name, value in given.items())
        code, output, errors = self.run(head + script, data)
        if code:
            last = (errors.strip() or output.strip() or "nothing").splitlines()[-1]
            what = f"The server could not be asked for the lab's files (exit code {code}): {last}"
            raise LabtrackError(
                what, f"see whether root can write to {self.exports} and /run there (`df -h`, `df -i`)."
            )
        return output


def _name(serial: int) -> str:
    return f"{serial:08d}"
