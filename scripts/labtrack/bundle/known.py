"""The secrets that this machine knows of a lab, so that they can be looked for in what is handed to others."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from openstack.config import loader

from labtrack import labalerts, secrets, vault
from labtrack.errors import BadInputError
from labtrack.lab import Lab
from labtrack.run.encodings import SHORTEST
from labtrack.run.masking import environment_secrets, is_secret

# What is under `auth` in clouds.yaml and no secret; a helper has to see it.
_NAMES = re.compile(
    r"auth_url|user_?name|user_id|system_scope|(.+_)?(project|tenant|domain)(_.+)?|application_credential_name"
)
_SETTING = re.compile(r"(?m)^[\s#]*(?:export +)?([A-Za-z_][\w.-]*)[ \t]*[:=][ \t]*(\S.*?)[ \t]*$")
_NETRC = re.compile(r"\b(?:password|account)\s+(\S+)")
_WORTH = 8  # characters of a part of an address that is looked for by itself
_LARGEST = 2**20  # bytes of a file of private/<lab> that may be a key
OTHER_FILES = (".netrc", "_netrc", ".aws/credentials", ".pgpass", ".s3cfg", ".boto")  # in the home folder


def secrets_of(lab: Lab) -> dict[str, str]:
    """Each secret, and where it is from.  Raises LabtrackError where a file can't be read: then it is not known."""
    found: dict[str, str] = {}
    for where, value in _all(lab):
        for one in (value, value.strip(), *_parts(value)):
            found.setdefault(one, where)
    found.pop("", None)
    return found


def too_short(known: Mapping[str, str]) -> list[str]:
    """Where the secrets are from that are too short to be looked for."""
    return sorted({where for value, where in known.items() if len(value) < SHORTEST})


def _all(lab: Lab) -> Iterator[tuple[str, str]]:
    for name, value in secrets.read(lab).items():
        yield name, str(value)
        yield from ((name, part) for part in _address(str(value)))
    if lab.secrets_file.exists():
        yield "the vault password", vault.password(lab.root).decode()
    for value in environment_secrets(os.environ):
        yield "the shell's variables", value
    alerts = labalerts.of(lab.settings)
    for url in ((alerts.get("webhook") or {}).get("url"), alerts.get("heartbeat")):
        if url and url != labalerts.VAULT:
            yield from (("lab_alerts", part) for part in (url, *_address(url)))
    yield from _files(lab)


def _files(lab: Lab) -> Iterator[tuple[str, str]]:
    clouds = {Path(file) for file in (*loader.CONFIG_FILES, *loader.SECURE_FILES)}
    clouds |= {lab.clouds_file} if lab.clouds_file else set()
    others = {Path.home() / name for name in OTHER_FILES}
    others |= {lab.certificate_key_file} if lab.certificate_key_file else set()
    others |= {path for path in lab.private.rglob("*") if path.is_file() and path.stat().st_size < _LARGEST}
    for path in sorted(clouds | others):
        if text := _read(path):
            if path in clouds or re.fullmatch(r"(clouds|secure).*\.ya?ml", path.name):
                yield from ((str(path), value) for value in _of_clouds(path, text))
            yield from ((str(path), value) for value in _of_text(path, text))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError as error:
        raise BadInputError(
            f"{path} can't be read: {error.strerror}, and a secret in it could not be looked for.", f"ls -l {path}"
        ) from None


def _of_clouds(path: Path, text: str) -> Iterator[str]:
    """All but names and addresses of what a login has."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError:
        raise BadInputError(
            f"{path} is no YAML, and the secrets in it could not be looked for.",
            "correct it; `labtrack preflight` says where.",
        ) from None

    def walk(here: Any, name: str, *, login: bool) -> Iterator[str]:
        if isinstance(here, dict):
            for key, value in here.items():
                yield from walk(value, str(key), login=login or key == "auth")
        elif isinstance(here, list):
            for value in here:
                yield from walk(value, name, login=login)
        elif (
            here is not None
            and not isinstance(here, bool)
            and (is_secret(name) or (login and not _NAMES.fullmatch(name)))
        ):
            yield str(here)

    yield from walk(data, "", login=False)


def _of_text(path: Path, text: str) -> Iterator[str]:
    """Values of a file whose names say that they are secrets, keys, and what a .netrc has."""
    for name, value in _SETTING.findall(text):
        if is_secret(name):
            yield _unquoted(value)
    if "netrc" in path.name:
        yield from _NETRC.findall(text)
    if path.name == ".pgpass":
        yield from (line.rpartition(":")[2] for line in text.splitlines())
    if path.name == "keys.json":  # no secret, but half of each key
        yield from re.findall(r'"access": "([^"]+)"', text)
    if "PRIVATE KEY-----" in text:
        yield text


def _unquoted(value: str) -> str:
    """As a shell would take it, where it is quoted for one; mlflow_env.sh is."""
    if value[0] in "'\"":
        value = re.sub(r"'\"'\"'", "\0", value)
        value = value[1:].partition(value[0])[0].replace("\0", "'")
    return value


def _parts(value: str) -> Iterator[str]:
    """The lines of a value that has several, as a key has: each may be one of a log."""
    lines = value.splitlines()
    if len(lines) > 1:
        yield from (line.strip() for line in lines if len(line) >= _WORTH and not line.startswith("-----"))


def _address(value: str) -> Iterator[str]:
    """What of an address is the secret: all after the host, and its last part."""
    if not labalerts.URL.fullmatch(value):
        return
    parts = urlsplit(value)
    after = parts.path + (f"?{parts.query}" if parts.query else "")
    yield from (part for part in (after, parts.path.rpartition("/")[2], parts.query) if len(part) >= _WORTH)
