"""EC2 keys in Keystone: what OpenStack's object stores accept as S3 keys."""

from __future__ import annotations

import json
import secrets
from typing import Any

import requests
from keystoneauth1 import exceptions as keystone

from labtrack.cloud.answers import may_pass
from labtrack.cloud.key import Key, RefusedError, from_keystone
from labtrack.cloud.login import WAYS_OUT, Login, explained
from labtrack.errors import LabtrackError

OK = requests.codes
LENGTH = 16  # bytes; Keystone's own access keys and secrets are as long
# What Keystone, or a proxy before it, may say after the key was stored.  503 is not among them: it is said by
# who could not pass the request on.
UNCERTAIN = frozenset({408, 500, 502, 504})
NOT_OFFERED = frozenset({403, 404, 405})  # by Keystones whose policy keeps /credentials for their admins


class KeystoneKeys:
    """The EC2 keys of a logged-in user in the project of the login.

    A key is made through /v3/credentials, where we choose its access key: whatever happens to the answer, it can
    be asked for afterwards.  /OS-EC2 chooses one itself; it lists, shows and deletes the keys of both ways.
    """

    def __init__(self, login: Login) -> None:
        self.login = login
        self._path = f"{login.url}/users/{login.user_id}/credentials/OS-EC2"

    @property
    def user_id(self) -> str:
        """Whose keys these are."""
        return self.login.user_id

    @property
    def project_id(self) -> str:
        """The project that they belong to."""
        return self.login.project_id

    def list(self) -> dict[str, Key]:
        """The keys of the user in the project, by access key."""
        found = _json(self._ask("GET", self._path), self.login)["credentials"]
        keys = [from_keystone(one) for one in found if one.get("tenant_id") == self.login.project_id]
        return {key.access: key for key in keys}

    def get(self, access: str) -> Key | None:
        """One key; None when the user has no such key."""
        answer = self._ask("GET", f"{self._path}/{access}", OK.not_found)
        return None if answer.status_code == OK.not_found else from_keystone(_json(answer, self.login)["credential"])

    def create(self, access: str) -> Key | None:
        """Makes the key with this access key; None where users may not choose one.

        An application credential is not given this way: the key would end with it.  Raises RefusedError
        when nothing was made, LabtrackError when that can't be known.
        """
        if self.login.delegated:
            return None
        key = Key(access, secrets.token_hex(LENGTH), self.user_id, self.project_id)
        blob = json.dumps({"access": key.access, "secret": key.secret})
        asked = {"type": "ec2", "blob": blob, "user_id": key.user_id, "project_id": key.project_id}
        try:
            answer = self._post(f"{self.login.url}/credentials", {"credential": asked})
        except RefusedError:
            raise
        except LabtrackError:
            made = self.get(access)
            if made:
                return made
            raise
        status = answer.status_code
        if status == OK.created:
            return key
        if status in NOT_OFFERED:
            return None
        if not _is_refusal(status) or status in (OK.conflict, OK.service_unavailable):
            made = self.get(access)
            if made:
                return made
        raise self._not_made(answer, f"the key {access}")

    def create_unnamed(self) -> Key:
        """Makes a key whose access key Keystone chooses.  Raises as `create`."""
        answer = self._post(self._path, {"tenant_id": self.project_id})
        if answer.status_code != OK.created:
            raise self._not_made(answer, "a key")
        return from_keystone(_json(answer, self.login)["credential"])

    def delete(self, access: str) -> bool:
        """Deletes a key; False when it was gone already."""
        status: int = self._ask("DELETE", f"{self._path}/{access}", OK.not_found).status_code
        return bool(status != OK.not_found)

    def _ask(self, method: str, url: str, *accepted: int) -> Any:
        """An answer that is fine, or one of the accepted kinds."""
        try:
            with explained(self.login.url):
                answer = self.login.session.request(url, method, raise_exc=False)
        except keystone.Unauthorized:  # the token was refused, and so was the login for a new one
            raise _no_longer(self.login) from None
        if answer.ok or answer.status_code in accepted:
            return answer
        raise self._why(answer)

    def _post(self, url: str, asked: dict[str, Any]) -> Any:
        """Whatever Keystone answers.  Raises LabtrackError when no answer comes."""
        try:
            with explained(self.login.url):
                return self.login.session.request(url, "POST", json=asked, raise_exc=False)
        except keystone.Unauthorized:
            raise _refused(_no_longer(self.login)) from None

    def _not_made(self, answer: Any, asked: str) -> LabtrackError:
        """What to say when the answer is not the key.  asked: for what."""
        if _is_refusal(answer.status_code):
            return _refused(self._why(answer))
        return LabtrackError(
            f"Keystone at {self.login.url} answered {answer.status_code} when it was asked for {asked}, so whether it "
            "was made is not known.",
            "run the same command again in a minute: it looks for what was made.",
        )

    def _why(self, answer: Any) -> LabtrackError:
        """The words for a refusal."""
        status, said = answer.status_code, _said(answer)
        if status == OK.unauthorized:
            return _no_longer(self.login, said)
        if status == OK.forbidden:
            return _forbidden(self.login, said)
        what = f"Keystone at {self.login.url} answered {status}{f': {said}' if said else ''}."
        if may_pass(status):
            return LabtrackError(what, "try again in a minute; if it stays, look at the cloud's status page.")
        return LabtrackError(
            what, "look at auth_url: Keystone answers such questions; or use a key made elsewhere: --keys -"
        )


def _is_refusal(status: int) -> bool:
    """Whether an answer with this status proves that nothing was made."""
    return status >= OK.bad_request and status not in UNCERTAIN


def _json(answer: Any, login: Login) -> Any:
    try:
        return answer.json()
    except ValueError:
        raise LabtrackError(
            f"What {login.url} answered ({answer.status_code}) is not Keystone's: it is no JSON.",
            "is there a proxy or a login page in between? Look at auth_url.",
        ) from None


def _refused(error: LabtrackError) -> RefusedError:
    return RefusedError(f"{error.what} No key was made.", error.hint)


def _said(answer: Any) -> str:
    try:
        return str(answer.json()["error"]["message"]).strip().rstrip(".")
    except (ValueError, KeyError, TypeError):
        return ""


def _no_longer(login: Login, said: str = "") -> LabtrackError:
    if login.delegated:
        return LabtrackError(
            f"Keystone does not let this application credential ask for EC2 keys (401{f': {said}' if said else ''}): "
            "it has access rules, or has expired.",
            f"make one without rules (`openstack application credential show` lists them), or use {WAYS_OUT}",
        )
    return LabtrackError(
        f"Keystone no longer accepts the login of {login}.", "log in again (the token may have expired)."
    )


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
