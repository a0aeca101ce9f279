"""Getting keys for people and for the server, so that a call that dies at any moment loses none.

Each function does one small thing and notes it before and after, in the register; `step` is told
what comes next (for --verbose, and for the tests, which kill the process there).
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from functools import cached_property

from labtrack.cloud.key import Key, KeyStore
from labtrack.envfile.register import ACTIVE, NEW, OLD, Entry, Register
from labtrack.errors import LabtrackError
from labtrack.lab import Lab
from labtrack.objectstore import Refusal, Store, probe

Step = Callable[[str], None]


def now() -> str:
    """This moment as the register and the files write it."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Keys:
    """The keys of one lab: the register, and Keystone, which is logged in to only when it is needed.

    notes: what the admin should know, collected on the way.
    """

    def __init__(self, lab: Lab, register: Register, log_in: Callable[[], KeyStore], step: Step) -> None:
        self.lab = lab
        self.register = register
        self.step = step
        self.notes: list[str] = []
        self._log_in = log_in

    @cached_property
    def cloud(self) -> KeyStore:
        """Keystone, logged in."""
        self.step("log in to Keystone")
        return self._log_in()

    @cached_property
    def listed(self) -> dict[str, Key]:
        """The keys that Keystone had when it was first asked."""
        return self.cloud.list()

    def take(self, owner: str, handed_in: Key | None = None) -> Key:
        """A key that is new for `owner`, registered as `new`: handed in, left by a dead call, or made."""
        if handed_in:
            entry = Entry(handed_in.access, owner, NEW, handed_in.user_id, handed_in.project_id, True, now())
            self._refuse_anothers(handed_in.access, owner)
            self.step("register the handed-in key")
            self.register.put(entry)
            return handed_in
        return self.recover(owner) or self._make(owner)

    def recover(self, owner: str) -> Key | None:
        """The key that an earlier call made and could not hand on, if there is one."""
        self._adopt(owner)
        left = [entry for entry in self.register.of(owner, NEW) if entry.access in self.listed]
        gone = [entry.access for entry in self.register.of(owner, NEW) if entry.access not in self.listed]
        if gone:
            self.register.drop(*gone)
        if not left:
            return None
        if left[:-1]:
            self.register.move(OLD, *left[:-1])
        return self.listed[left[-1].access]

    def _adopt(self, owner: str) -> None:
        known = self.register.intents.get(owner)
        if known is None:
            return
        fresh = [key for key in self.listed.values() if key.access not in {*known, *self.register.keys}]
        del self.register.intents[owner]
        if len(fresh) == 1:
            self.step("adopt the key of the interrupted call")
            key = fresh[0]
            self.register.put(Entry(key.access, owner, NEW, key.user_id, key.project_id, made=now()))
            return
        self.register.save()
        if fresh:
            names = ", ".join(key.access for key in fresh)
            self.notes.append(
                f"An earlier call for {owner} was interrupted while it made a key, and there are {len(fresh)} keys "
                f"it could be: {names}. None was touched. Delete those that nobody uses: "
                "openstack ec2 credentials delete ACCESS_KEY"
            )

    def _make(self, owner: str) -> Key:
        self.step("note the intent to make a key")
        self.register.intents[owner] = list(self.listed)
        self.register.save()
        self.step("make the key")
        key = self.cloud.create()
        self.step("register the key")
        self.register.intents.pop(owner, None)
        self.register.put(Entry(key.access, owner, NEW, key.user_id, key.project_id, made=now()))
        self.listed[key.access] = key
        return key

    def _refuse_anothers(self, access: str, owner: str) -> None:
        entry = self.register.keys.get(access)
        if entry and entry.owner != owner:
            raise LabtrackError(
                f"The key {access} is registered for {entry.owner} already.",
                "make one key per person: openstack ec2 credentials create -f json",
            )

    def prove(self, key: Key, owner: str, *, bucket_may_be_missing: bool = False) -> None:
        """Uses a new key on the lab's bucket.  When the store refuses it, the key is taken back."""
        self.step("probe the store with the key")
        try:
            probe(self._store(key))
        except Refusal as refusal:
            if refusal.kind == "bucket" and bucket_may_be_missing:
                return
            if refusal.kind not in ("unreachable", "tls"):  # these say nothing about the key: keep it for later
                self._take_back(key, owner)
            raise _refused(self.lab, refusal) from None

    def is_unknown(self, key: Key) -> bool:
        """Whether the store says that it does not know a key (it was deleted); False when it can't be asked."""
        try:
            probe(self._store(key))
        except Refusal as refusal:
            return refusal.kind == "key"
        return False

    def _store(self, key: Key) -> Store:
        lab = self.lab
        return Store(lab.s3_endpoint, lab.s3_region, lab.bucket, key.access, key.secret, lab.s3_ca_file)

    def _take_back(self, key: Key, owner: str) -> None:
        entry = self.register.keys[key.access]
        if entry.handed_in:
            self.register.drop(key.access)
        else:
            self.register.move(OLD, entry)
            self.delete_old(owner)

    def use(self, owner: str, access: str | None) -> None:
        """From now on `owner` has this key (or none); every other one of theirs is old."""
        self.step("register what is in use now")
        for entry in self.register.of(owner):
            state = ACTIVE if entry.access == access else OLD
            self.register.keys[entry.access] = Entry(**{**vars(entry), "state": state})
        if owner in self.register.passwords:
            self.register.passwords.remove(owner)
        self.register.save()

    def delete_old(self, owner: str) -> list[str]:
        """Deletes the old keys of `owner` in Keystone; gives the access keys that are gone now."""
        gone = []
        for entry in self.register.of(owner, OLD):
            why_not = self._delete(entry)
            if why_not:
                self.notes.append(
                    f"The key {entry.access} of {owner} is still valid: {why_not}. Delete it as the one who made "
                    f"it: openstack ec2 credentials delete {entry.access}"
                )
            else:
                self.step("forget the deleted key")
                self.register.drop(entry.access)
                gone.append(entry.access)
        return gone

    def _delete(self, entry: Entry) -> str:
        """Deletes a key; the reason when that can't be done from here."""
        try:
            if entry.user_id and entry.user_id != self.cloud.user_id:
                return f"it was made by another user of the cloud ({entry.user_id})"
            self.step("delete the old key")
            if not self.cloud.delete(entry.access) and not entry.user_id:
                return "this login does not have it"
        except LabtrackError as error:
            if not entry.handed_in:
                raise
            return f"the kit can't log in to Keystone ({error.what.splitlines()[0].rstrip('.')})"
        return ""


def _refused(lab: Lab, refusal: Refusal) -> LabtrackError:
    where = f"The store {lab.s3_endpoint}"
    hints = {
        "key": "is lab_s3_endpoint the store of the same cloud and region as lab_cloud?",
        "forbidden": f"the login needs the role `member` in the project that owns the bucket {lab.bucket}: "
        "ask the project's owner; and check that the bucket's name is not somebody else's.",
        "bucket": f"make it (playbooks/provision.yml, or `openstack container create {lab.bucket}`), "
        "or correct lab_bucket.",
        "clock": "set this machine's clock (`timedatectl`): signatures hold for 15 minutes only.",
        "region": "correct lab_s3_region in lab.yml.",
        "tls": "name the CA's file as lab_s3_ca_file, or correct lab_s3_endpoint.",
        "unreachable": "check lab_s3_endpoint and the network, then run the same command again; the key is kept.",
    }
    hint = hints.get(refusal.kind, "look at the store's status page, then try again.")
    if refusal.kind in ("unreachable", "tls"):
        return LabtrackError(f"{where} could not be asked whether it takes the new key: {refusal}.", hint)
    return LabtrackError(f"{where} refuses the new key on the bucket {lab.bucket}: {refusal}.", hint)
