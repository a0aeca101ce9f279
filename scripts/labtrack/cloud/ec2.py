"""EC2 keys in Keystone: what OpenStack's object stores accept as S3 keys."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Protocol

from keystoneauth1 import exceptions as keystone

from labtrack.cloud.login import WAYS_OUT, Login, explained
from labtrack.errors import BadInputError, LabtrackError


@dataclass(frozen=True)
class Key:
    """An access key with its secret.  The ids are empty for a key that was handed in without them."""

    access: str
    secret: str = field(repr=False)
    user_id: str = ""
    project_id: str = ""


class KeyStore(Protocol):
    """Where keys are made and deleted; what the life cycle needs of a cloud."""

    @property
    def user_id(self) -> str:
        """Whose keys these are."""

    def list(self) -> dict[str, Key]:
        """The keys of the user in the project, by access key."""

    def create(self) -> Key:
        """Makes a new key."""

    def delete(self, access: str) -> bool:
        """Deletes a key; False when it was gone already."""


class KeystoneKeys:
    """The EC2 keys of a logged-in user in the project of the login."""

    def __init__(self, login: Login) -> None:
        self.login = login
        self._path = f"{login.url}/users/{login.user_id}/credentials/OS-EC2"

    @property
    def user_id(self) -> str:
        """Whose keys these are."""
        return self.login.user_id

    def list(self) -> dict[str, Key]:
        """The keys of the user in the project, by access key."""
        found = self._ask("GET", self._path)["credentials"]
        keys = [_key(one) for one in found if one.get("tenant_id") == self.login.project_id]
        return {key.access: key for key in keys}

    def create(self) -> Key:
        """Makes a new key.  Raises LabtrackError with the ways out when Keystone forbids it."""
        return _key(self._ask("POST", self._path, json={"tenant_id": self.login.project_id})["credential"])

    def delete(self, access: str) -> bool:
        """Deletes a key; False when it was gone already."""
        try:
            self._ask("DELETE", f"{self._path}/{access}")
        except keystone.NotFound:
            return False
        return True

    def _ask(self, method: str, url: str, **more: Any) -> Any:
        try:
            with explained(self.login.url):
                return _body(self.login.session.request(url, method, **more))
        except keystone.Forbidden as error:
            raise _forbidden(self.login, str(error.message)) from None
        except keystone.Unauthorized:
            raise LabtrackError(
                f"Keystone no longer accepts the login of {self.login}.", "log in again (the token may have expired)."
            ) from None


def _body(response: Any) -> Any:
    return response.json() if response.content else None


def _key(one: dict[str, Any]) -> Key:
    return Key(one["access"], one["secret"], one.get("user_id", ""), one.get("tenant_id") or one.get("project_id", ""))


def _forbidden(login: Login, said: str) -> LabtrackError:
    if login.delegated or "elegated" in said:
        return LabtrackError(
            "Keystone refuses EC2 keys to an application credential (403): since its security fixes of 2026 "
            "that holds for restricted and unrestricted ones.",
            f"use {WAYS_OUT}",
        )
    if "limit" in said or "maximum" in said:
        return LabtrackError(
            f"Keystone makes no more keys for {login.user_name} (403): {said}.",
            "delete keys that nobody uses: `openstack ec2 credentials list`, `... delete ACCESS_KEY`; "
            "`labtrack env list LAB_DIR` says which ones are the lab's.",
        )
    return LabtrackError(
        f"Keystone does not let {login} manage EC2 keys (403): {said}.",
        "ask the project's owner for the role `member`, or use a key made elsewhere: --keys -",
    )


def parse(text: str) -> Key:
    """A key as `openstack ec2 credentials create -f json` prints it.  Raises BadInputError otherwise."""
    mend = "hand in what `openstack ec2 credentials create -f json` prints."
    try:
        loaded = json.loads(text)
    except ValueError:
        what = "nothing" if not text.strip() else "something that is not JSON"
        raise BadInputError(f"--keys was given {what}.", mend) from None
    if not isinstance(loaded, dict):
        raise BadInputError("--keys was given JSON, but not one key.", mend)
    for name in ("access", "secret"):
        if not isinstance(loaded.get(name), str) or not loaded[name]:
            raise BadInputError(f"The JSON for --keys has no {name!r}.", mend)
    return _key({name: value for name, value in loaded.items() if isinstance(value, str)})
