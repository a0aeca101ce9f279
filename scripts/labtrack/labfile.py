"""Reading lab.yml with line numbers, and checking it against schema/lab.json.

The schema is the one source of what is allowed: each property has `x-allowed`, the words that an
error message uses.  What a schema can't say (that a file exists, that the folder has the same name)
is checked here.
"""

from __future__ import annotations

import datetime
import fnmatch
import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from labtrack import labalerts, labbackup, labnames, labwindow
from labtrack.networks import why_no_network
from labtrack.sshkeys import why_no_key, why_no_keys

Keys = tuple[Any, ...]
SHOWN = 77  # characters of a wrong value that a message repeats

# What the kit, Terraform and ssh-keygen keep in private/<lab>/, where each person has a folder by their name.
KIT_FILES = (
    *("ca.pem", "cloud-ca.pem", "clouds*.yaml", "keys.json", "known_hosts*"),
    *("id_ed25519*", "terraform", "terraform.*"),
)
CA_FILES = ("lab_s3_ca_file", "lab_acme_ca_file")
DURATION = {"s": 1, "m": 60, "h": 3600, "d": 86400}  # seconds

_KINDS = ((bool, "yes or no"), ((int, float), "a number"), (datetime.date, "a date"))
_SECRET_VALUE = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\$ANSIBLE_VAULT;|://[^/\s:@]+:[^/\s@]+@")
_JINJA = re.compile(r"\{\{|\{%|\{#")


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with lab.yml: where (1-based line, 0 for the whole file), what, how to fix."""

    file: Path
    line: int
    what: str
    hint: str

    @property
    def place(self) -> str:
        """`file:line`, as editors understand it."""
        return f"{self.file}:{self.line}" if self.line else str(self.file)


@dataclass
class LabFile:
    """lab.yml as read: plain data, the line of every key, values as they are written, and what was wrong on the way."""

    path: Path
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[Keys, int] = field(default_factory=dict)
    written: dict[Keys, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, keys: Keys) -> int:
        """The line of a key, or of the nearest thing around it."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, 0)

    def add(self, keys: Keys, what: str, hint: str) -> None:
        """Notes a problem at the line of `keys`."""
        self.problems.append(Problem(self.path, self.line(keys), what, hint))


def schema() -> dict[str, Any]:
    """schema/lab.json, which a link puts into the package, so that an installed one has it too."""
    text = resources.files("labtrack").joinpath("lab.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def read(path: Path) -> LabFile:
    """Reads lab.yml; everything that is wrong is in `problems`, nothing is raised for the file's content."""
    lab = LabFile(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        lab.add((), "There is no such file.", "Copy inventory/example to inventory/<lab> and fill it in.")
        return lab
    except (OSError, UnicodeDecodeError) as error:
        lab.add((), f"It can't be read: {error}.", "Make it a readable UTF-8 text file.")
        return lab
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = error.problem or error.context or "syntax error"
        hint = "Look at this line and the one before it: indentation, a missing quote, a missing space after ':'."
        lab.problems.append(Problem(path, mark.line + 1 if mark else 0, f"It is not YAML: {said}.", hint))
        return lab
    except yaml.YAMLError as error:
        lab.add((), f"It is not YAML: {error}.", "Make it a UTF-8 text file without control characters.")
        return lab
    if not isinstance(root, yaml.MappingNode):
        lab.add((), "It holds no settings.", "Copy inventory/example/group_vars/all/lab.yml and fill it in.")
        return lab
    lab.data = _plain(root, (), lab, yaml.SafeLoader(""))
    return lab


def completed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of schema/lab.json: as given, else its default; None where it has none."""
    return {key: data.get(key, about.get("default")) for key, about in schema()["properties"].items()}


def _plain(node: yaml.Node, keys: Keys, lab: LabFile, loader: yaml.SafeLoader) -> Any:
    lab.lines.setdefault(keys, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            here = (*keys, key)
            line = key_node.start_mark.line + 1
            if key in found:
                first = lab.line(here)
                lab.problems.append(
                    Problem(lab.path, line, f"{key} is given twice; line {first} has it first.", "Keep one of them.")
                )
            lab.lines[here] = line
            found[key] = _plain(value_node, here, lab, loader)
        return found
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*keys, index), lab, loader) for index, item in enumerate(node.value)]
    return _scalar(node, keys, lab, loader)


def _scalar(node: yaml.Node, keys: Keys, lab: LabFile, loader: yaml.SafeLoader) -> Any:
    name = _name(keys)
    if node.tag in ("!vault", "!vault-encrypted"):
        lab.add(keys, f"{name} is a secret (!vault).", labnames.SECRETS_HINT)
        return node.value
    if node.tag.startswith("!"):
        lab.add(keys, f"{name} has the tag {node.tag}.", "Write the plain value: lab.yml is plain YAML.")
        return node.value
    lab.written[keys] = str(node.value)
    try:
        value = loader.construct_object(node)
    except (ValueError, yaml.YAMLError) as error:
        lab.add(keys, f"{name} can't be read: {error}.", "Put the value in quotes.")
        return node.value
    if isinstance(value, bool) and str(node.value).lower() not in ("true", "false") and not _is_text(keys):
        # Terraform reads YAML 1.2, where yes and no are texts
        lab.add(keys, f"{name} is written {node.value!r}.", f"Write {str(value).lower()}.")
    if isinstance(value, str):
        _text(value, keys, lab)
    return value


def _text(value: str, keys: Keys, lab: LabFile) -> None:
    if _JINJA.search(value):
        lab.add(
            keys,
            f"{_name(keys)} has Jinja in it ({value!r}).",
            "Write the value itself: Terraform and labtrack read this file too, and neither knows Jinja.",
        )
    if _SECRET_VALUE.search(value):
        lab.add(keys, f"{_name(keys)} has a secret in it.", labnames.SECRETS_HINT)


def _name(keys: Keys) -> str:
    text = ""
    for key in keys:
        text += f"[{key + 1}]" if isinstance(key, int) else (f".{key}" if text else str(key))
    return text or "lab.yml"


def check(lab: LabFile, folder: Path, root: Path) -> list[Problem]:
    """All problems of a file that was read, in the order of its lines.

    folder: the lab's folder, whose name must be lab_name.  root: what relative paths start at.
    """
    if lab.data:
        broken = {problem.line for problem in lab.problems}
        for error in Draft202012Validator(schema()).iter_errors(lab.data):
            _explain(error, lab, broken)
        _beyond_the_schema(lab, folder, root)
    return sorted(set(lab.problems), key=lambda problem: (problem.line, problem.what))


def _explain(error: ValidationError, lab: LabFile, broken: set[int]) -> None:
    keys: Keys = tuple(error.absolute_path)
    if error.validator == "additionalProperties":
        known, renamed = list(error.schema["properties"]), error.schema.get("x-renamed", {})
        for key in error.instance:
            if key not in known:
                here = _name((*keys, str(key)))
                lab.add((*keys, key), *labnames.why_not(here, error.instance, known, renamed))
    elif error.validator == "required":
        for key in error.validator_value:
            olds = [old for old, about in error.schema.get("x-renamed", {}).items() if about.get("to") == key]
            if key not in error.instance and not any(old in error.instance for old in olds):
                what = f"{_name((*keys, key))} is missing."
                lab.add(keys, what, f"Add `{key}:` with {_allowed((*keys, key))}.")
    elif error.validator == "anyOf":
        lab.add(keys, f"{_name(keys)} has no SSH key.", "Add ssh_keys (text) or ssh_key_files (paths of .pub files).")
    elif error.validator == "not" and not error.validator_value:  # nothing is allowed: it needs another setting
        lab.add(keys, f"{_name(keys)} has no effect here.", _description(keys))
    elif error.instance is None:
        lab.add(keys, f"{_name(keys)} is not filled in.", f"Write {_allowed(keys)}.")
    elif error.validator == "type" and _is_text(keys) and keys in lab.written:
        _unquoted(keys, error, lab)
    elif lab.line(keys) not in broken:
        shown = json.dumps(error.instance, default=str)
        shown = shown if len(shown) <= SHOWN else shown[:SHOWN] + "..."
        lab.add(keys, f"{_name(keys)} is {shown}, which is not allowed.", f"Allowed: {_allowed(keys)}.")


def _is_text(keys: Keys) -> bool:
    """Whether the schema wants a text here, of any kind."""
    here: Any = schema()
    for key in keys:
        here = here.get("items", {}) if isinstance(key, int) else here.get("properties", {}).get(key, {})
    return bool(here.get("type") == "string")


def _unquoted(keys: Keys, error: ValidationError, lab: LabFile) -> None:
    """A text that YAML takes for something else: a name of digits, a date, Norway."""
    written = lab.written[keys]
    kind = next((name for cls, name in _KINDS if isinstance(error.instance, cls)), "something else")
    quoted = json.dumps(written, ensure_ascii=False)
    fits = re.search(error.schema.get("pattern", ""), written)
    hint = f"Put it in quotes: {quoted}" if fits else f"Allowed: {_allowed(keys)}; put it in quotes."
    lab.add(keys, f"{_name(keys)} is {written}, which YAML takes for {kind}.", hint)


def _property(keys: Keys) -> Mapping[str, Any]:
    """The part of the schema that describes a key."""
    here: Mapping[str, Any] = schema()
    best: Mapping[str, Any] = here
    for key in keys:
        here = here.get("items", {}) if isinstance(key, int) else here.get("properties", {}).get(key, {})
        if not isinstance(here, Mapping):
            break
        if "x-allowed" in here:
            best = here
    return best


def _allowed(keys: Keys) -> str:
    return str(_property(keys).get("x-allowed", "another value"))


def _description(keys: Keys) -> str:
    return str(_property(keys).get("description", ""))


def _beyond_the_schema(lab: LabFile, folder: Path, root: Path) -> None:
    name = lab.data.get("lab_name")
    if isinstance(name, str) and name != folder.name:
        hint = f"Write lab_name: {folder.name}, or rename the folder to {name}."
        lab.add(("lab_name",), f"lab_name is {name}, but the lab's folder is {folder.name}.", hint)
    for key in ("lab_users", "lab_admins"):
        _no_name_twice(lab, key)
    for index, entry in _items(lab, "lab_users"):
        user = entry if isinstance(entry, dict) else {}
        why_not = why_no_name(str(user.get("name", "")))
        if why_not and user.get("state") != "absent":  # one that is there already can be removed
            hint = "Choose another name; with state: absent, what an account of that name has is removed."
            lab.add(("lab_users", index, "name"), f"lab_users[{index + 1}].name: {why_not}", hint)
    seen: set[str] = set()
    for here, text in _networks(lab):
        what, hint = why_no_network(text)
        if what:
            lab.add(here, what, hint or f"Allowed: {_allowed(here)}.")
        elif text in seen:
            lab.add(here, f"{text} is there twice.", "Keep one of them.")
        seen.add(text)
    for key in ("lab_network_cidr", "lab_floating_ip"):
        _one_network(lab, key)
    for part in (labbackup, labalerts, labwindow):
        if what := part.why_not(lab.data):
            lab.add(part.WHERE, what, part.INSTEAD)
    _files(lab, root)


def _files(lab: LabFile, root: Path) -> None:
    """The files that it names, and the keys in it: whether they are what they should be."""
    for keys, path_text in _paths(lab):
        path = expand(path_text, root)
        if not path.is_file():
            lab.add(keys, f"{_name(keys)}: there is no file {path}.", "Make it, or name the right one.")
            continue
        try:
            data = path.read_bytes()
        except OSError as error:
            lab.add(keys, f"{_name(keys)}: {path} can't be read: {error.strerror}.", f"ls -l {path}")
            continue
        if "ssh_key_files" in keys:
            what, hint = why_no_keys(data)
            if what:
                lab.add(keys, f"{_name(keys)}: {path} {what}.", hint)
        elif keys[-1] in (*CA_FILES, "ca_file") and b"PRIVATE KEY-----" in data:  # all may read it then
            lab.add(keys, f"{_name(keys)}: {path} has a private key in it.", "Name a file with the certificate alone.")
    for here, text in _of_admins(lab, "ssh_keys"):
        if lab.line(here) not in {problem.line for problem in lab.problems} and (wrong := why_no_key(text)):
            lab.add(here, f"{_name(here)} {wrong}.", "Copy the one line of the .pub file again.")


def _no_name_twice(lab: LabFile, key: str) -> None:
    seen: dict[str, int] = {}
    for index, entry in _items(lab, key):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            continue
        if name in seen:
            what = f"{key}: {name} is there twice; line {lab.line((key, seen[name]))} has the first."
            lab.add((key, index), what, "Keep one of them.")
        seen.setdefault(name, index)


def _items(lab: LabFile, key: str) -> Iterator[tuple[int, Any]]:
    value = lab.data.get(key)
    if isinstance(value, list):
        yield from enumerate(value)


def _networks(lab: LabFile) -> Iterator[tuple[Keys, str]]:
    for index, text in _items(lab, "lab_admin_networks"):
        if isinstance(text, str):
            yield ("lab_admin_networks", index), text


def _one_network(lab: LabFile, key: str) -> None:
    text = lab.data.get(key)
    if isinstance(text, str):
        try:
            ipaddress.ip_network(text)
        except ValueError as error:
            lab.add((key,), f"{text!r} is not a network: {error}.", f"Allowed: {_allowed((key,))}.")


def _of_admins(lab: LabFile, key: str) -> Iterator[tuple[Keys, str]]:
    """The texts in one of the admins' lists, `ssh_keys` or `ssh_key_files`."""
    for index, admin in _items(lab, "lab_admins"):
        found = admin.get(key) if isinstance(admin, dict) else None
        for number, text in enumerate(found if isinstance(found, list) else []):
            if isinstance(text, str):
                yield ("lab_admins", index, key, number), text


def _paths(lab: LabFile) -> Iterator[tuple[Keys, str]]:
    yield from _of_admins(lab, "ssh_key_files")
    for key in ("lab_clouds_file", *CA_FILES, "lab_certificate_file", "lab_certificate_key_file"):
        if isinstance(lab.data.get(key), str):
            yield (key,), lab.data[key]
    if isinstance(file := labbackup.of(lab.data).get("ca_file"), str):
        yield ("lab_backup", "ca_file"), file


def why_no_name(user: str) -> str:
    """Why somebody can't have this name though the schema allows it; empty when they can.

    Without regard to case, because a Mac's file system has none.
    """
    if any(fnmatch.fnmatchcase(user.casefold(), pattern) for pattern in KIT_FILES):
        return f"{user} is a name that the kit uses itself: private/<lab>/{user} is, or may be, a file of its own."
    return ""


def seconds(duration: str | int) -> float:
    """A duration of lab.yml in seconds: a number of days, or a number with s, m, h or d.  Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,5})([smhd]?)", str(duration))
    if not found:
        raise ValueError(f"{duration!r} is not a duration")
    return float(int(found[1]) * DURATION[found[2] or "d"])


def expand(text: str, root: Path) -> Path:
    """A path of lab.yml as a real one: ~ is the home folder, relative ones start at the repository's root."""
    return root / Path(text).expanduser()
