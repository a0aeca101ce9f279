"""The lab's generated secrets: made where missing, kept where present, never unencrypted on disk."""

from __future__ import annotations

import re
import secrets as random
import string
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from labtrack import files, labalerts, labbackup, vault
from labtrack.errors import BadInputError
from labtrack.lab import Lab

LENGTH = 40
PASSWORDS = (
    "secret_mlflow_admin_password",
    "secret_mlflow_flask_key",
    "secret_verify_password",
)
CA = "secret_certificate_ca"
EAB_KEY = "secret_acme_eab_hmac_key"
S3_ACCESS = "secret_s3_access_key_id"
S3_SECRET = "secret_s3_secret_access_key"  # noqa: S105  the name of a variable
_HEAD = """\
# The generated secrets of this lab.  `ansible-vault edit` changes one; delete a line, and the next
# `labtrack secrets ensure` makes a new one.
"""


def generate() -> str:
    """A new password: letters and digits only, because it passes through URIs, INI files and shells."""
    alphabet = string.ascii_letters + string.digits
    return "".join(random.choice(alphabet) for _ in range(LENGTH))


def read(lab: Lab) -> dict[str, str]:
    """The secrets of a lab by name; empty when none were made yet."""
    return _parse(_text(lab), lab)


def get(lab: Lab, name: str) -> str:
    """One secret.  Raises BadInputError when it was not made yet."""
    value = read(lab).get(name)
    if not value:
        hint = f"`labtrack secrets ensure {lab.shown_folder}`."
        raise BadInputError(f"{lab.secrets_file} has no {name}.", hint)
    return value


def ensure_passwords(lab: Lab) -> list[str]:
    """Makes the passwords that are missing; gives the names of what was made.

    Raises BadInputError where one of lab_backup or lab_alerts is not there that nobody but the admin can get.
    """
    present, wanted = read(lab), labbackup.of(lab.settings)
    made = {
        name: generate() for name in (*PASSWORDS, *((labbackup.CIPHER,) if wanted else ())) if not present.get(name)
    }
    add(lab, made)
    if missing := [name for name in labbackup.KEYS if wanted and not present.get(name)]:
        raise BadInputError(
            f"lab_backup is set, and {lab.secrets_file} has no {' and no '.join(missing)}.",
            '`openstack ec2 credentials create` in the backup\'s project, and a line `name: "value"` for each by '
            f"`ansible-vault edit {lab.secrets_file}`.",
        )
    if wanting := dict(labalerts.missing(lab.settings, present)):
        raise BadInputError(
            f"lab_alerts needs secrets that {lab.secrets_file} does not have, or has otherwise: {', '.join(wanting)}.",
            "\n".join(
                [
                    f"`ansible-vault edit {lab.secrets_file}`, with a line for each:",
                    *(f'{name}: "..."    # {what}' for name, what in wanting.items()),
                ]
            ),
        )
    return list(made)


def keep_ca(lab: Lab, text: str) -> bool:
    """Keeps the key and the certificate of the lab's own CA, so that a new machine goes on with it; whether it is new.

    text: both as PEM, as the server has them.  Raises BadInputError where one of them is not in it.
    """
    blocks = re.findall(r"-----BEGIN [A-Z ]+-----\n[A-Za-z0-9+/=\n]+-----END [A-Z ]+-----", text)
    if sorted("PRIVATE KEY" in block for block in blocks) != [False, True]:
        raise BadInputError(
            "That is not one private key and one certificate in PEM.", "run playbooks/deploy.yml again."
        )
    kept = "".join(f"{block}\n" for block in blocks)
    if new := read(lab).get(CA) != kept:
        add(lab, {CA: kept.replace("\n", "\\n")})
    return write_ca(lab) or new


def write_ca(lab: Lab) -> bool:
    """Puts the certificate of the lab's own CA where mlflow_env.sh is made from; whether that is a change."""
    kept = read(lab).get(CA, "")
    if lab.certificate != "selfsigned" or not kept:
        return False
    start, end = kept.index("-----BEGIN CERTIFICATE-----"), "-----END CERTIFICATE-----\n"
    certificate = kept[start : kept.index(end) + len(end)].encode()
    if lab.ca_file.is_file() and lab.ca_file.read_bytes() == certificate:
        return False
    files.make_private_folder(lab.private)
    files.write_private(lab.ca_file, certificate)
    return True


def named(names: Sequence[str]) -> list[str]:
    """The secrets that are meant, all of them when none is named.  Raises BadInputError for a name that is none."""
    known = (*PASSWORDS, S3_ACCESS)
    for name in names:
        if name not in (*known, S3_SECRET):
            raise BadInputError(f"There is no generated secret {name}.", f"Known: {', '.join(known)}.")
    return [name for name in known if not names or name in names or (name == S3_ACCESS and S3_SECRET in names)]


def renew(lab: Lab, names: Sequence[str]) -> None:
    """Gives passwords new values.  The server has them after the next deploy."""
    add(lab, {name: generate() for name in names})


def add(lab: Lab, values: Mapping[str, str]) -> None:
    """Puts new secrets into the file; a name that is there gets the new value."""
    if not values:
        return
    text = _text(lab) or _HEAD
    for name, value in values.items():
        text = re.sub(rf"(?m)^{name}:.*\n?", "", text)
        text += ("" if text.endswith("\n") else "\n") + f'{name}: "{value}"\n'
    _parse(text, lab)
    files.make_private_folder(lab.secrets_file.parent)
    files.write_private(lab.secrets_file, vault.encrypt(text, lab.root))


def _text(lab: Lab) -> str:
    try:
        data = lab.secrets_file.read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        what = f"{lab.secrets_file} can't be read: {error.strerror}."
        raise BadInputError(what, f"ls -ld {lab.secrets_file}") from None
    return vault.decrypt(data, lab.secrets_file, lab.root)


def _parse(text: str, lab: Lab) -> dict[str, str]:
    hint = f'`ansible-vault edit {lab.secrets_file}`: one `name: "value"` a line.'
    try:
        loaded: Any = yaml.safe_load(text) or {}
    except yaml.YAMLError:
        # the parser's own words would repeat the line, and with it a secret
        raise BadInputError(f"{lab.secrets_file}, decrypted, is not YAML.", hint) from None
    if not isinstance(loaded, dict) or not all(isinstance(value, str) for value in loaded.values()):
        raise BadInputError(f"{lab.secrets_file}, decrypted, is not a list of names with texts.", hint)
    return loaded
