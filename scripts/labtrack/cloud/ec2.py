"""EC2 keys in Keystone: what OpenStack's object stores accept as S3 keys."""

from __future__ import annotations

from typing import Any

from keystoneauth1 import exceptions as keystone

from labtrack.cloud.key import Key, from_keystone
from labtrack.cloud.login import WAYS_OUT, Login, explained
from labtrack.errors import LabtrackError


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
        keys = [from_keystone(one) for one in found if one.get("tenant_id") == self.login.project_id]
        return {key.access: key for key in keys}

    def create(self) -> Key:
        """Makes a new key.  Raises LabtrackError with the ways out when Keystone forbids it."""
        return from_keystone(self._ask("POST", self._path, json={"tenant_id": self.login.project_id})["credential"])

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
