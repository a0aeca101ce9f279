"""Getting keys for people and for the server, so that a call that dies at any moment loses none.

Each function does one small thing and notes it before and after, in the register; `step` is told
what comes next (for --verbose, and for the tests, which kill the process there).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

from labtrack.cloud.key import Key, KeyStore, RefusedError
from labtrack.envfile.register import ACTIVE, NEW, OLD, Asked, Entry, Register, now, seconds_until
from labtrack.errors import BadInputError, LabtrackError
from labtrack.lab import SERVER_OWNER, Lab
from labtrack.objectstore import Refusal, Store, probe

Step = Callable[[str], None]
LENGTH = 16  # bytes of an access key, as Keystone's own
LATE = 24 * 3600.0  # seconds in which a request without an answer may still be carried out


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
        """The keys of the login that Keystone had when it was first asked, and those made since."""
        return self.cloud.list()

    def is_gone(self, entry: Entry) -> bool:
        """Whether a key was deleted.  What this login can't see, another user's or project's, is not gone."""
        mine = (entry.user_id, entry.project_id) == (self.cloud.user_id, self.cloud.project_id)
        return mine and entry.access not in self.listed

    def works(self, entry: Entry, secret: str) -> bool:
        """Whether a key is still there: asked of Keystone, and for another login's key of the store."""
        if entry.handed_in or entry.access in self.listed:
            return True
        return not self.is_gone(entry) and not self.is_unknown(Key(entry.access, secret))

    def of_other_logins(self) -> list[Entry]:
        """The keys in use that another user of the cloud has made: they end when that user is deleted."""
        mine = self.cloud.user_id
        found = [entry for entry in self.register.keys.values() if entry.state == ACTIVE]
        return sorted(
            (entry for entry in found if entry.user_id and entry.user_id != mine), key=lambda entry: entry.owner
        )

    def tell_of_other_logins(self) -> str:
        """What an admin is told of such keys; empty where there are none, or Keystone was not asked anyway."""
        if "cloud" not in vars(self) or not (found := self.of_other_logins()):
            return ""
        made = [entry.owner for entry in found if not entry.handed_in]
        given = [entry.owner for entry in found if entry.handed_in]
        users = ", ".join(sorted({entry.user_id for entry in found}))
        said = (
            f"{len(found)} key(s) in use belong to other users of the cloud ({users}) and end when these are deleted. "
        )
        if made:
            said += f"Of {', '.join(made)}: labtrack env move {self.lab.shown_folder} makes them yours. "
        if given:
            said += (
                f"Handed in, of {', '.join(given)}: name them to `env move`, or hand in new ones (env rotate --keys). "
            )
        return said.strip()

    def take(self, owner: str, handed_in: Key | None = None) -> Key:
        """A key that is new for `owner`, registered as `new`: handed in, left by a dead call, or made."""
        if handed_in:
            self.refuse_anothers(handed_in.access, owner)
            known = self.register.keys.get(handed_in.access)
            self.step("register the handed-in key")
            if known is None:
                known = Entry(handed_in.access, owner, NEW, handed_in.user_id, handed_in.project_id, True, now())
            self.register.put(replace(known, state=NEW, until="") if known.state == OLD else known)
            return handed_in
        return self.recover(owner) or self._make(owner)

    def recover(self, owner: str) -> Key | None:
        """The key that an earlier call made and could not hand on, if there is one."""
        self.tell_of_intent(owner)
        for one in self.register.asked_for(owner):
            if one.access in self.listed and not one.spent:
                self.step("adopt the key of the interrupted call")
                self.register.made(one, Entry(one.access, owner, NEW, one.user_id, one.project_id, made=one.at))
        left = [entry for entry in self.register.of(owner, NEW) if entry.access in self.listed]
        gone = [entry.access for entry in self.register.of(owner, NEW) if self.is_gone(entry)]
        if gone:
            self.register.drop(*gone)
        if not left:
            return None
        if left[:-1]:
            self.register.move(OLD, *left[:-1])
        return self.listed[left[-1].access]

    def tell_of_intent(self, owner: str) -> None:
        """Tells of a key that may have been made without a known access key.  None is proven, so none is touched."""
        known = self.register.intents.get(owner)
        if known is None:
            return
        others = {*known, *self.register.keys, *self.register.asked, *self.register.others()}
        fresh = [access for access in self.listed if access not in others]
        del self.register.intents[owner]
        self.register.save()
        if fresh:
            self.notes.append(
                f"An earlier call for {owner} was interrupted while it made a key.  Keys have appeared since then, and "
                f"one of them may be it: {', '.join(fresh)}.  None was touched, because any may be somebody else's. "
                "Delete those that nobody uses: openstack ec2 credentials delete ACCESS_KEY"
            )

    def _make(self, owner: str) -> Key:
        cloud = self.cloud
        waiting = next(
            (one for one in self.register.asked_for(owner)
             if (one.user_id, one.project_id) == (cloud.user_id, cloud.project_id) and not one.spent), None,
        )  # fmt: skip
        access = waiting.access if waiting else secrets.token_hex(LENGTH)
        self.step("note which key will be made")
        asked = Asked(access, owner, cloud.user_id, cloud.project_id, now(), again=waiting is not None)
        self.register.asked[access] = asked
        self.register.save()
        self.step("make the key")
        try:
            key = cloud.create(access)
        except RefusedError:
            self._settle(asked)
            raise
        if key is None:
            self._settle(asked)
            return self._make_unnamed(owner)
        self.step("register the key")
        return self._registered(key, owner, asked)

    def _settle(self, asked: Asked) -> None:
        if not asked.again:  # else the earlier request may still be carried out
            self.register.settle(asked.access)

    def _make_unnamed(self, owner: str) -> Key:
        self.step("note the keys that there are")
        self.register.intents[owner] = list(self.cloud.list())
        self.register.save()
        self.step("make the key")
        try:
            key = self.cloud.create_unnamed()
        except RefusedError:
            del self.register.intents[owner]
            self.register.save()
            raise
        self.step("register the key")
        del self.register.intents[owner]
        return self._registered(key, owner)

    def _registered(self, key: Key, owner: str, asked: Asked | None = None) -> Key:
        entry = Entry(key.access, owner, NEW, key.user_id, key.project_id, made=now())
        if asked:
            self.register.made(asked, entry)
        else:
            self.register.put(entry)
        self.listed[key.access] = key
        return key

    def refuse_anothers(self, access: str, owner: str) -> None:
        """Raises BadInputError when a key belongs to another person, or to another lab."""
        entry = self.register.keys.get(access)
        whose = self.register.others().get(access) or (entry.owner if entry and entry.owner != owner else "")
        if whose:
            raise BadInputError(
                f"The key {access} is registered for {whose} already.",
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
        if entry.state != NEW:  # in use already: it is not this call's to take
            return
        if entry.handed_in:
            self.register.drop(key.access)
        else:
            self.register.move(OLD, entry)
            try:
                self.end_old(owner)
            except LabtrackError as error:  # what the store said matters more, and the next call deletes it
                self.notes.append(f"The key {key.access} was not deleted yet: {error.what.splitlines()[0]}")

    def use(self, owner: str, access: str | None, grace: float = 0.0, *, also_old: bool = False) -> None:
        """From now on `owner` has this key (or none); every other one of theirs is old, and ends in `grace` seconds.

        also_old: keys that are old already end no later than that.
        """
        self.step("register what is in use now")
        until = now(grace) if grace else ""
        for entry in self.register.of(owner):
            if entry.access == access:
                changed = replace(entry, state=ACTIVE, until="")
            elif entry.state == OLD and not also_old:
                changed = entry
            else:  # what is still new was in nobody's hands
                changed = replace(entry, state=OLD, until="" if entry.state == NEW else until)
            self.register.keys[entry.access] = changed
        if owner in self.register.passwords:
            self.register.passwords.remove(owner)
        self.register.save()

    def end_old(self, owner: str) -> list[str]:
        """Deletes the old keys of `owner` whose time is over, in Keystone; gives the access keys that are gone now.

        A key that was asked for, is in nobody's hands and came late is deleted too: its access key proves it ours.
        """
        gone = []
        for entry in self.register.of(owner, OLD):
            if not entry.is_over and not ("cloud" in vars(self) and self.is_gone(entry)):
                continue
            why_not = self._delete(entry)
            if why_not:
                self.notes.append(
                    f"The key {entry.access} of {owner} is still valid: {why_not}. Delete it as the one who made "
                    f"it: openstack ec2 credentials delete {entry.access}"
                )
            else:
                gone.append(entry.access)
            if not why_not or entry.kept:
                self.step("forget the deleted key")
                self.register.drop(entry.access)
        for one in self.register.asked_for(owner):
            if one.user_id == self.cloud.user_id:
                self.step("look for a key that comes late")
                there = self.cloud.delete(one.access)
                if there:
                    gone.append(one.access)
                if (there and not one.again) or seconds_until(one.at) < -LATE:
                    self.register.settle(one.access)
        return gone

    def end_everybodys(self) -> dict[str, list[str]]:
        """`end_old` for everybody but the server, whose key ends with `server_runs_with`.  What fails is a note."""
        ended: dict[str, list[str]] = {}
        for owner in sorted(self.register.owners() - {SERVER_OWNER}):
            try:
                ended[owner] = self.end_old(owner)
            except LabtrackError as error:
                self.notes.append(f"Old keys of {owner} were not deleted yet: {error.what.splitlines()[0]}")
        return {owner: gone for owner, gone in ended.items() if gone}

    def _delete(self, entry: Entry) -> str:
        """Deletes a key; the reason when that can't be done from here."""
        if entry.kept:
            return "it was not made by the kit, but put into secrets.yml by hand"
        anothers = self.register.others().get(entry.access)
        if anothers:
            return f"it is registered for {anothers} too"
        try:
            if entry.user_id and entry.user_id != self.cloud.user_id:
                return f"it was made by another user of the cloud ({entry.user_id})"
            self.step("delete the old key")
            if not self.cloud.delete(entry.access) and not entry.user_id:
                return "this login does not have it"
        except LabtrackError as error:
            if not entry.handed_in:
                raise
            return f"the kit can't delete it in Keystone ({error.what.splitlines()[0].rstrip('.')})"
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
