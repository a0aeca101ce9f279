"""An S3 key: what it is, where it comes from, and how one is handed in."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Protocol

from labtrack.errors import BadInputError, LabtrackError


@dataclass(frozen=True)
class Key:
    """An access key with its secret.  The ids are empty for a key that was handed in without them."""

    access: str
    secret: str = field(repr=False)
    user_id: str = ""
    project_id: str = ""


class RefusedError(LabtrackError):
    """The cloud refused to make a key, and its answer proves that none was made."""


class KeyStore(Protocol):
    """Where keys are made and deleted; what the life cycle needs of a cloud.

    Any other LabtrackError than RefusedError, raised while a key is made, says nothing about whether it was made.
    """

    @property
    def user_id(self) -> str:
        """Whose keys these are."""

    @property
    def project_id(self) -> str:
        """The project that they belong to."""

    def list(self) -> dict[str, Key]:
        """The keys of the user in the project, by access key."""

    def create(self, access: str) -> Key | None:
        """Makes the key with this access key; None where the cloud does not let its users choose one."""

    def create_unnamed(self) -> Key:
        """Makes a key whose access key the cloud chooses."""

    def delete(self, access: str) -> bool:
        """Deletes a key; False when it was gone already."""


def from_keystone(one: dict[str, Any]) -> Key:
    """A key as Keystone describes it."""
    return Key(one["access"], one["secret"], one.get("user_id", ""), one.get("tenant_id") or one.get("project_id", ""))


def parse(text: str) -> Key:
    """A key as `openstack ec2 credentials create -f json` prints it.  Raises BadInputError otherwise."""
    hint = "hand in what `openstack ec2 credentials create -f json` prints."
    try:
        loaded = json.loads(text)
    except ValueError:
        what = "nothing" if not text.strip() else "something that is not JSON"
        raise BadInputError(f"--keys was given {what}.", hint) from None
    if isinstance(loaded, list) and len(loaded) == 1:  # `ec2 credentials list -f json` of a single key
        loaded = loaded[0]
    if not isinstance(loaded, dict):
        raise BadInputError("--keys was given JSON, but not one key.", hint)
    loaded = {str(name).lower().replace(" ", "_"): value for name, value in loaded.items()}
    for name in ("access", "secret"):
        if not isinstance(loaded.get(name), str) or not loaded[name]:
            raise BadInputError(f"The JSON for --keys has no {name!r}.", hint)
    return from_keystone({name: value for name, value in loaded.items() if isinstance(value, str)})
