"""Stand-ins for Slurm's programs: they say what a test has written down, in the form in which Slurm 24.11 says it.

What the real ones say is asked in tests/cluster.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

_FIELDS = (
    "JobID JobIDRaw Cluster User State ExitCode DerivedExitCode Reason Restarts Submit Start End ElapsedRaw "
    "TimelimitRaw NNodes NodeList FailedNode AllocTRES ReqMem TotalCPU MaxRSS TRESUsageInTot JobName"
)
_PROGRAM = """#!{python}
import json, sys
from pathlib import Path
here, name, words = Path({folder!r}), Path(sys.argv[0]).name, sys.argv[1:]
with (here / "calls").open("a") as file:
    file.write(json.dumps([name, *words]) + "\\n")
plan = json.loads((here / "plan.json").read_text())
if name == "sbatch":
    scripts = [one for one in words if one.endswith(".sh")]
    with (here / "scripts").open("a") as file:
        file.write(json.dumps(open(scripts[-1]).read()) + "\\n")
if name == "scrontab" and words and words[0] != "-l":
    (here / "scrontab").write_text(open(words[0]).read())
    sys.exit(0)
if name == "scrontab":
    if not (here / "scrontab").exists():
        sys.exit("no crontab for ada")
    sys.stdout.write((here / "scrontab").read_text())
    sys.exit(0)
if name == "sacct" and "--helpformat" in words:
    print(plan.get("fields", {fields!r}))
    sys.exit(0)
if name == "sacct" and "rows" in plan:
    fields = next(one for one in words if one.startswith("--format=")).partition("=")[2].split(",")
    mark = next((one.partition("=")[2] for one in words if one.startswith("--delimiter=")), "|")
    jobs = words[words.index("-j") + 1].split(",")
    for row in plan["rows"]:
        if row["JobID"].partition(".")[0] in jobs:
            print(mark.join(str(row.get(field, "")) for field in fields))
    sys.exit(0)
said = plan.get(name, "")
if isinstance(said, list):
    sys.stderr.write(said[1])
    sys.exit(said[0])
sys.stdout.write(said)
"""


class FakeSlurm:
    """The stand-ins, first on the PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, programs: Sequence[str]) -> None:
        self._folder = folder
        folder.mkdir()
        (folder / "bin").mkdir()
        for name in programs:
            file = folder / "bin" / name
            file.write_text(_PROGRAM.format(python=sys.executable, folder=str(folder), fields=_FIELDS))
            file.chmod(0o755)
        # no real Slurm beside them
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
        self.says()

    def says(self, rows: Sequence[Mapping[str, object]] | None = None, **said: object) -> None:
        """What they answer: rows of sacct; else by program a text, or [exit code, what is on standard error]."""
        plan = {**said, **({"rows": list(rows)} if rows is not None else {})}
        (self._folder / "plan.json").write_text(json.dumps(plan))

    def calls(self, program: str = "") -> list[list[str]]:
        """What was called, with its arguments."""
        try:
            lines = (self._folder / "calls").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [one for one in map(json.loads, lines) if program in ("", one[0])]

    def scripts(self) -> list[str]:
        """What was submitted."""
        return [json.loads(one) for one in (self._folder / "scripts").read_text().splitlines()]

    @property
    def scrontab(self) -> str:
        """The user's scrontab."""
        file = self._folder / "scrontab"
        return file.read_text() if file.exists() else ""

    @scrontab.setter
    def scrontab(self, text: str) -> None:
        (self._folder / "scrontab").write_text(text)

    def has_not(self, *programs: str) -> None:
        """Takes programs away."""
        for name in programs:
            (self._folder / "bin" / name).unlink()


def job(number: str, state: str, **more: object) -> dict[str, object]:
    """A row of sacct."""
    return {
        "JobID": number, "JobIDRaw": number.replace("_", ""), "State": state, "ExitCode": "0:0", "Cluster": "c",
        "Submit": "1760000000", "Start": "1760000100",
        "End": "Unknown" if state in ("RUNNING", "PENDING") else "1760003700",
        "ElapsedRaw": "3600", "TimelimitRaw": "60", "NodeList": "n1", "Reason": "None",
        "AllocTRES": "billing=4,cpu=4,gres/gpu=2,mem=8G,node=1", **more,
    }  # fmt: skip
