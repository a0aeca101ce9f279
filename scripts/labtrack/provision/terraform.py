"""Running Terraform, or OpenTofu, for one lab: a thin layer that gives its answers, or its errors in words."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labtrack import files
from labtrack.errors import BadInputError, Exit, LabtrackError
from labtrack.lab import Lab
from labtrack.provision import child, explain, session

PROGRAMS = ("terraform", "tofu")


class UnavailableError(LabtrackError):
    """Terraform, or its provider, can't be had here."""

    def __init__(self, why: str, what: str, hint: str) -> None:
        super().__init__(f"{what}: {why}", hint, Exit.UNAVAILABLE)
        self.why = why


@dataclass(frozen=True)
class Place:
    """Where a lab's Terraform works.  source: the folder of the root module."""

    lab: Lab
    source: Path

    @classmethod
    def of(cls, lab: Lab, source: Path | None = None) -> Place:
        """The place of a lab; without `source`, the modules of its own checkout.  Raises BadInputError."""
        source = (source or lab.root / "terraform").resolve()
        if not (source / "versions.tf").is_file():
            raise BadInputError(f"{source} is not the kit's folder terraform/.", "name that folder with --source.")
        return cls(lab, source)

    @property
    def work(self) -> Path:
        """Its working files: the login, the plan, the log."""
        return self.lab.private / "terraform"

    @property
    def state(self) -> Path:
        """The state, where the lab has chosen no other place for it."""
        return self.lab.private / "terraform.tfstate"

    @property
    def plan(self) -> Path:
        """The plan that was made last, and not carried out."""
        return self.work / "plan"

    @property
    def plan_id(self) -> str:
        """What tells that plan from others; empty: there is none."""
        return hashlib.sha256(self.plan.read_bytes()).hexdigest() if self.plan.exists() else ""

    @property
    def unfinished(self) -> Path:
        """There from before an apply until after it: what such a run has made may be unknown to the state."""
        return self.work / "unfinished"

    @property
    def hosts(self) -> Path:
        """The lab's inventory."""
        return self.lab.folder / "hosts.yml"

    @property
    def own_backend(self) -> bool:
        """Whether the lab has chosen another place for the state."""
        return (self.source / "backend_override.tf").exists()

    def refuse_state_left_behind(self) -> None:
        """Raises LabtrackError where the state is still here, and another place is named for it."""
        if self.own_backend and self.state.is_file() and self.state.stat().st_size:
            raise LabtrackError(
                f"{self.source}/backend_override.tf names another place for the state, but this lab's state is still "
                f"in {self.state}.",
                "move it as docs/admin/cloud.md says, or Terraform would make everything twice.",
            )

    def keep_private(self) -> None:
        """Keeps others from reading the state: also one that was made by hand, with another umask."""
        for file in self.lab.private.glob(f"{self.state.name}*"):
            file.chmod(0o600)


@dataclass(frozen=True)
class Done:
    """How a call ended."""

    code: int
    out: str
    err: str

    def data(self) -> dict[str, Any]:
        """What it has printed as JSON.  Raises LabtrackError."""
        try:
            found = json.loads(self.out)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            said = explain.cut(" ".join(self.out.split()) or "nothing", 300)
            raise LabtrackError(
                f"Terraform was asked for JSON and answers: {said}",
                "see what `terraform version` says: it has to be 1.9 or newer, and no other program of that name.",
            )
        return found


@dataclass(frozen=True)
class Terraform:
    """A program that is ready for one lab."""

    program: str
    place: Place
    environment: Mapping[str, str] = field(repr=False)

    @classmethod
    def found(cls, place: Place, program: str = "") -> Terraform:
        """The program that PATH has, `program` or the first of its names.  Raises UnavailableError."""
        names = [program] if program else PROGRAMS
        path = next(filter(None, map(shutil.which, names)), None)
        if not path:
            raise _unavailable(
                place,
                f"{' or '.join(names)} is not on PATH",
                "install Terraform (https://developer.hashicorp.com/terraform/install) or OpenTofu "
                "(https://opentofu.org).",
            )
        login = session.environment(session.file_of(place.lab))
        own = {"TF_WORKSPACE": place.lab.name, "TF_DATA_DIR": str(place.work), "TF_IN_AUTOMATION": "1"}
        return cls(path, place, {**os.environ, **login, **own})

    def init(self) -> None:
        """Gets the provider and the state ready.  Raises UnavailableError: `init` is what knows."""
        place = self.place
        files.make_private_folder(place.lab.private)
        files.make_private_folder(place.work)
        if not place.own_backend and not place.state.exists():
            files.write_private(place.state, b"")  # born private, and with it the workspace
        backend = [] if place.own_backend else [f"-backend-config=workspace_dir={place.lab.private.parent}"]
        done = self.run("init", "-input=false", "-no-color", "-reconfigure", *backend)
        if done.code:
            log = place.work / "init.log"
            files.write_private(log, f"{done.out}\n{done.err}\n".encode())
            raise _unavailable(
                place,
                f"its `init` failed: {explain.cut(' '.join(done.err.split()), 500)}",
                f"what it says here; all of it is in {log}. Where the registry can't be reached, name a mirror of the "
                "provider (TF_CLI_CONFIG_FILE).",
            )

    def known(self) -> list[str]:
        """The addresses of what it looks after."""
        done = self.run("state", "list")
        if done.code and "No state file" not in done.err:
            raise explain.failure(done.err)
        return done.out.splitlines() if not done.code else []

    def forget(self, address: str) -> None:
        """No longer looks after something, which stays; nothing, where it knows of none."""
        # of itself, it would write its backup where a state of the default place would be
        backup = self.place.work / "before.tfstate"
        done = self.run("state", "rm", "-no-color", f"-backup={backup}", address)
        if done.code and "No matching objects found" not in done.err:
            raise explain.failure(done.err)

    def make_plan(self, lab_file: Path, expected_project: str, *more: str) -> str:
        """Makes a plan, and gives what it prints."""
        self.place.plan.unlink(missing_ok=True)
        given = (f"-var=lab_file={lab_file}", f"-var=expected_project={expected_project}")
        return self._ask("plan", "-input=false", "-no-color", f"-out={self.place.plan}", *given, *more).out

    def show(self, *what: str) -> dict[str, Any]:
        """A plan, or without one the state, as data."""
        return self._ask("show", "-json", *what).data()

    def outputs(self) -> dict[str, Any]:
        """The outputs of the root module."""
        return {name: one["value"] for name, one in self._ask("output", "-json").data().items()}

    def apply(self, *, shown: bool) -> None:
        """Carries the plan out.  shown: what Terraform says goes to standard output while it works."""
        self._ask("apply", "-input=false", "-no-color", str(self.place.plan), shown=shown)

    def _ask(self, *arguments: str, shown: bool = False) -> Done:
        done = self.run(*arguments, shown=shown)
        if done.code:
            raise explain.failure(done.err or done.out)
        return done

    def run(self, *arguments: str, shown: bool = False) -> Done:
        """Calls it.  Whoever stops this call stops it as Ctrl-C would: what it has begun is ended and written down.

        Raises LabtrackError with Exit.INTERRUPTED then.
        """
        try:
            ended = child.run([self.program, *arguments], self.place.source, self.environment, shown=shown)
        except OSError as error:
            raise LabtrackError(
                f"{self.program} can't be run: {error.strerror}.", "install Terraform anew, or correct PATH."
            ) from None
        if ended.stopped:
            raise LabtrackError(
                "Stopped: Terraform has ended what it had begun, and written it down.",
                "run the same command again: it goes on from here.",
                Exit.INTERRUPTED,
            )
        return Done(ended.code, ended.out, ended.err)


def _unavailable(place: Place, why: str, hint: str) -> UnavailableError:
    lab = place.lab
    return UnavailableError(
        why,
        f"Terraform makes and destroys the machine of the lab {lab.name}, and it can't be had here",
        f"{hint}\nOr bring a machine of your own: write {lab.shown_folder}/hosts.yml; docs/admin/own-machine.md has "
        "one to copy.",
    )
