"""Every interleaving of answers, kills, late arrivals and other people's keys: nothing is taken, nothing forgotten."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from json import loads as parse
from pathlib import Path
from typing import Any
from unittest import mock

from conftest import CA, LAB
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from keystoneauth1 import exceptions as keystone

from labtrack import lab as labs
from labtrack.cloud.ec2 import KeystoneKeys
from labtrack.cloud.login import Login
from labtrack.envfile import lifecycle, register
from labtrack.envfile.keys import Keys
from labtrack.envfile.listing import listed
from labtrack.errors import LabtrackError
from labtrack.experiments import Members
from labtrack.lab import Lab, Machine
from labtrack.objectstore import Refusal, Store

URL, USER, PROJECT = "https://keystone.test/v3", "u", "p"
PEOPLE = ("ada", "grace")
NO_MACHINE = Machine(**{one.name: "" for one in dataclasses.fields(Machine)})
CALLS = {
    "create": lifecycle.create,
    "rotate": lambda context, user: lifecycle.rotate(context, user, grace=0),
    "rotate, with a grace": lambda context, user: lifecycle.rotate(context, user, grace=3600),
    "rotate, leaked": lambda context, user: lifecycle.rotate(context, user, leaked=True),
    "revoke": lifecycle.revoke,
}


class Killed(BaseException):
    """The process ends here: nothing that catches errors sees it."""


class Answer:
    """As much of a response as the kit looks at."""

    def __init__(self, status: int, body: Any = None) -> None:
        self.status_code, self.body, self.ok = status, body, status < 400

    def json(self) -> Any:
        if self.body is None:
            raise ValueError("no JSON")
        return self.body


class Keystone:
    """Keystone behind a session, with an answer for each request for a key that the test chooses."""

    def __init__(self, *, named: bool) -> None:
        self.named = named
        self.keys: dict[str, str] = {}
        self.asked_by_kit: set[str] = set()
        self.deleted: set[str] = set()
        self.late: list[tuple[str, str]] = []
        self.answers: list[str] = []
        self.chosen = 0

    def request(self, url: str, method: str, json: Any = None, **_: Any) -> Answer:
        path = url.removeprefix(URL)
        name = path.rpartition("/")[2]
        if method == "GET" and name == "OS-EC2":
            return Answer(200, {"credentials": [self.shown(access) for access in self.keys]})
        if method == "GET":
            return Answer(200, {"credential": self.shown(name)}) if name in self.keys else Answer(404)
        if method == "DELETE":
            self.deleted.add(name)
            return Answer(204 if self.keys.pop(name, None) else 404)
        if path == "/credentials" and not self.named:
            return Answer(403, {"error": {"message": "not allowed: identity:create_credential"}})
        if path == "/credentials":
            blob = parse(json["credential"]["blob"])
            return self.make(blob["access"], blob["secret"])
        self.chosen += 1
        return self.make(f"chosen-{self.chosen}", f"secret-{self.chosen}")

    def shown(self, access: str) -> dict[str, str]:
        return {"access": access, "secret": self.keys[access], "user_id": USER, "tenant_id": PROJECT}

    def make(self, access: str, secret: str) -> Answer:
        answer = self.answers.pop(0) if self.answers else "made"
        if answer.isdecimal():
            return Answer(int(answer), {"error": {"message": "refused"}})
        self.asked_by_kit.add(access)
        if answer.startswith("late"):
            self.late.append((access, secret))
        elif access in self.keys:
            return Answer(409, {"error": {"message": "Duplicate entry"}})
        else:
            self.keys[access] = secret
        if answer.endswith("killed"):
            raise Killed
        if answer.endswith("lost"):
            raise keystone.ConnectFailure("the connection was reset")
        if answer.endswith("broken"):
            return Answer(500)
        return Answer(201, {"credential": self.shown(access)})

    def arrive(self) -> None:
        for access, secret in self.late:
            self.keys.setdefault(access, secret)
        self.late.clear()


ANSWERS = ("made", "lost", "broken", "killed", "late lost", "late broken", "late killed", "403", "429", "503", "500")


class Accounts(dict[str, str]):
    """The server's accounts."""

    has_user = dict.__contains__
    create_user = set_password = dict.__setitem__
    users = dict.keys

    def delete_user(self, name: str) -> bool:
        return self.pop(name, None) is not None


class Interleaving(RuleBasedStateMachine):
    """The kit, Keystone, and somebody else who has the same login."""

    @initialize(named=st.booleans())
    def start(self, named: bool) -> None:
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        root = Path(self.folder.name)
        self.lab = Lab(
            folder=root / "inventory" / "climate", root=root, name="climate", fqdn=LAB["lab_fqdn"], admin_networks=(),
            users=tuple(labs.User(name, True) for name in PEOPLE), cloud="x", clouds_file=None, bucket="b",
            s3_endpoint="https://s3.test", s3_region="r", s3_ca_file=None, artifact_access="direct",
            clients_reach_store=False, shared_experiments=(), gateways=(), certificate="selfsigned", key_grace=0.0,
            machine=NO_MACHINE, settings={},
        )  # fmt: skip
        self.lab.private.mkdir(parents=True, mode=0o700)
        self.lab.ca_file.write_text(CA)
        self.keystone, self.accounts = Keystone(named=named), Accounts(admin="x")
        self.foreign: dict[str, str] = {}
        self.told = ""
        self.patches = [
            mock.patch("labtrack.experiments.share", lambda *_: Members(1, [])),
            mock.patch("labtrack.experiments.join", lambda *_: []),
            mock.patch("labtrack.experiments.own", lambda *_: ([], [])),
            mock.patch("labtrack.envfile.keys.probe", self.probe),
            mock.patch.object(os, "fsync", lambda _: None),
        ]
        for patch in self.patches:
            patch.start()

    def probe(self, store: Store) -> None:
        if self.keystone.keys.get(store.access) != store.secret:
            raise Refusal("key", "InvalidAccessKeyId")

    def context(self, left: int | None = None) -> lifecycle.Context:
        """A new process, which is killed at a step."""
        steps = iter(range(left or 0))

        def step(_: str) -> None:
            if left is not None and next(steps, None) is None:
                raise Killed

        login = Login(self.keystone, URL, USER, "labadmin", PROJECT, "climate", (), False, "", None)
        keys = Keys(self.lab, register.load(self.lab.private / "keys.json"), lambda: KeystoneKeys(login), step)
        return lifecycle.Context(self.lab, keys, self.accounts, step)

    @rule(
        what=st.sampled_from(sorted(CALLS)),
        who=st.sampled_from(PEOPLE),
        answers=st.lists(st.sampled_from(ANSWERS), max_size=2),
        left=st.none() | st.integers(0, 14),
    )
    def call(self, what: str, who: str, answers: list[str], left: int | None) -> None:
        self.keystone.answers = list(answers)
        context = self.context(left)
        try:
            self.told += " ".join(CALLS[what](context, who).notes)
        except LabtrackError:
            self.told += " ".join(context.keys.notes)
        except Killed:
            pass
        self.keystone.answers = []

    @rule(number=st.integers(0, 5))
    def somebody_makes_a_key(self, number: int) -> None:
        name = f"foreign-{number}"
        self.foreign[name] = self.keystone.keys[name] = "s"

    @rule(number=st.integers(0, 5))
    def somebody_deletes_theirs(self, number: int) -> None:
        self.foreign.pop(f"foreign-{number}", None)
        self.keystone.keys.pop(f"foreign-{number}", None)

    @rule()
    def late_requests_arrive(self) -> None:
        self.keystone.arrive()

    @invariant()
    def nobodys_key_is_taken(self) -> None:
        if not hasattr(self, "keystone"):
            return
        known = self.context().keys.register
        assert not [name for name in (*known.keys, *known.asked, *self.keystone.deleted) if name.startswith("foreign")]
        assert self.foreign.items() <= self.keystone.keys.items()

    def teardown(self) -> None:
        if not hasattr(self, "keystone"):
            return
        try:
            self.everybody_leaves()
        finally:
            for patch in self.patches:
                patch.stop()
            self.folder.cleanup()

    def everybody_leaves(self) -> None:
        """In the end nobody has a key; what the kit asked for is gone, or was told with its name."""
        for _ in range(2):
            for who in PEOPLE:
                self.call("revoke", who, [], None)
            self.keystone.arrive()
            self.nobodys_key_is_taken()
        for who in PEOPLE:
            self.call("revoke", who, [], None)
        left = set(self.keystone.keys) - set(self.foreign)
        assert {access for access in left if not access.startswith("chosen")} == set(), "a key was forgotten"
        strangers = {line.access for line in listed(self.context()).lines if not line.owner}
        assert left <= strangers and left <= self.keystone.asked_by_kit
        assert [entry for entry in self.context().keys.register.keys.values() if not entry.kept] == []
        assert set(self.accounts) == {"admin"}


LONGER = int(os.environ.get("LABTRACK_EXAMPLES", "0"))  # a longer series, of other examples each time
TestInterleaving = Interleaving.TestCase
TestInterleaving.settings = settings(
    max_examples=LONGER or 150,
    derandomize=not LONGER,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=bool(LONGER),
)
