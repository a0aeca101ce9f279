"""What can be checked before anything is made: lab.yml, the tools, the vault."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from labtrack import certificates, lab, labfile, labmoved, secrets, vault
from labtrack.doctor.result import Result, failed, ok, skipped, warning
from labtrack.errors import BadInputError, LabtrackError
from labtrack.lab import Lab, lab_yml, root_of

PYTHON = (3, 11)
ANSIBLE = (2, 19)
TERRAFORM = ("terraform", "tofu")
PROGRAMS = {"git": "apt install git", "ssh": "apt install openssh-client"}


def check(folder: Path) -> Iterator[Result]:
    """All local checks for the lab in `folder`, cheapest first; nothing is changed."""
    folder, root = folder.resolve(), root_of(folder)
    read = labfile.read(lab_yml(folder))
    problems = labfile.check(read, folder, root)
    for problem in problems:
        where = f"lab.yml:{problem.line}" if problem.line else "lab.yml"
        yield failed(where, f"{problem.what} ({_short(problem.file, root)})", problem.hint)
    if not problems:
        yield ok("lab.yml", f"{len(read.data)} settings, all known and allowed")
        yield from _certificates(lab.load(folder), read)
        yield from moved(lab.load(folder))
    yield _path(root)
    yield from _checkout(root)
    yield from _tools()
    yield from _vault(root)
    name = read.data.get("lab_name")
    if isinstance(name, str) and not any(problem.what.startswith("lab_name") for problem in problems):
        yield from _private(root / "private" / name)
        yield from _secrets(folder / "group_vars" / "all" / "secrets.yml", root)
    else:
        yield skipped("private files", "lab_name has to be right first")


def _certificates(lab: Lab, read: labfile.LabFile) -> Iterator[Result]:
    """The files of certificates that lab.yml names, before the server gets them."""
    for key in labfile.CA_FILES:
        if key in read.data:
            what, hint = certificates.why_no_ca(labfile.expand(read.data[key], lab.root))
            if what:
                yield failed(f"lab.yml:{read.line((key,))}", f"{key}: {what}", hint)
    if lab.acme_eab_kid:
        yield from _eab(lab)
    if lab.certificate != "provided" or not (lab.certificate_file and lab.certificate_key_file):
        return
    try:
        served = certificates.provided(lab.certificate_file, lab.certificate_key_file, lab.fqdn, lab.ca_file)
    except BadInputError as error:
        yield failed(f"lab.yml:{read.line(('lab_certificate_file',))}", error.what, error.hint)
        return
    yield ok(
        "certificate",
        f"for {', '.join(served.names)}, until {served.ends:%Y-%m-%d}, {served.certificates} in its chain",
    )
    for what, hint in served.warnings:
        yield warning("certificate", what, hint)


def moved(lab: Lab) -> Iterator[Result]:
    """A lab that is in another place since a move.  Where there is a server, its newest files have the last word."""
    try:
        labmoved.check(lab)
    except BadInputError as error:
        row = warning if (lab.folder / "hosts.yml").exists() else failed
        yield row("lab", error.what, error.hint)


def _eab(lab: Lab) -> Iterator[Result]:
    """The secret half of an external account binding, which only a person can put into secrets.yml."""
    with contextlib.suppress(LabtrackError):  # what is wrong with secrets.yml has a row of its own
        if not secrets.read(lab).get(secrets.EAB_KEY):
            hint = f'ansible-vault edit {lab.secrets_file}, and add the line {secrets.EAB_KEY}: "..."'
            yield failed("secrets.yml", f"lab_acme_eab_kid needs its HMAC key, {secrets.EAB_KEY}", hint)


def _short(path: Path, root: Path) -> str:
    try:
        return str(path.relative_to(root))
    except ValueError:
        return str(path)


def _path(root: Path) -> Result:
    """ssh's own settings, and Ansible's, take a space, a quote or a percent sign in a path for something else."""
    strange = sorted(set(re.findall(r"[^\w/.@+~-]", str(root))))
    if strange:
        shown = " ".join("space" if one.isspace() else one for one in strange)
        hint = "move the folder to a path of letters, digits, ., -, _, + and @ only"
        return failed("path", f"{root} has {shown} in it, which ssh and Ansible can't have in a path", hint)
    return ok("path", str(root))


def open_checkout(root: Path) -> tuple[str, str]:
    """What is wrong with a checkout that everybody can write to, and what helps; both empty for others."""
    try:
        everybody = root.stat().st_mode & stat.S_IWOTH
    except OSError:
        everybody = 0
    if not everybody:
        return "", ""
    return f"everybody on this machine can write to {root}, so Ansible takes no ansible.cfg from it", (
        f"chmod o-w {root}; where that changes nothing (a Windows drive): export ANSIBLE_CONFIG={root}/ansible.cfg"
    )


def _checkout(root: Path) -> Iterator[Result]:
    what, hint = open_checkout(root)
    if what and os.environ.get("ANSIBLE_CONFIG"):  # which Ansible takes without a question
        yield warning("checkout", what.partition(", so")[0], hint.partition(";")[0])
    elif what:
        yield failed("checkout", what, hint)


def _tools() -> Iterator[Result]:
    python = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < PYTHON:
        hint = "make .venv with a newer one: PYTHON=/path/to/python3.11 make venv"
        yield failed("Python", f"{python}; Ansible needs 3.11 or newer", hint)
    else:
        yield ok("Python", python)
    version = metadata.version("ansible-core")
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found < ANSIBLE:
        yield failed("ansible-core", f"{version}; 2.19 or newer is needed", "make venv")
    else:
        yield ok("ansible-core", version)
    for program, hint in PROGRAMS.items():
        path = shutil.which(program)
        yield ok(program, path) if path else failed(program, "not found", hint)
    terraform = next(filter(None, map(shutil.which, TERRAFORM)), None)
    hint = "Install Terraform 1.9 or OpenTofu 1.9, or newer; or bring your own machine: docs/admin/own-machine.md"
    yield ok("Terraform", terraform) if terraform else warning("Terraform", "not found; it makes the machine", hint)


def _vault(root: Path) -> Iterator[Result]:
    check = "vault password"
    try:
        file = vault.password_file(root)
        if vault.comes_from_program(root) and vault.password(root):
            yield ok(check, f"given by the program {file}")
            return
    except LabtrackError as error:
        yield failed(check, error.what, error.hint)
        return
    what, hint = vault.why_unusable(file)
    if what:
        yield failed(check, what, hint[0].upper() + hint[1:])
    elif not file.exists():
        yield ok(check, f"will be made on first use: {file}")
    elif vault.open_to_others(file):
        yield failed(check, f"others can read {file} ({_mode(file)})", f"chmod 600 {file}")
    else:
        yield ok(check, f"{file}; keep a copy elsewhere: without it secrets.yml is lost")


def _private(folder: Path) -> Iterator[Result]:
    if not folder.exists():
        yield ok("private files", f"{folder} will be made")
    elif folder.stat().st_mode & 0o077:
        yield failed("private files", f"others can look into {folder} ({_mode(folder)})", f"chmod 700 {folder}")
    else:
        yield ok("private files", f"{folder} is yours alone")
    for left in sorted(folder.glob("*/mlflow_env.sh")):  # an older kit let people have such a name
        why_not = labfile.why_no_name(left.parent.name)
        if why_not:
            hint = f"remove the account: labtrack env revoke inventory/{folder.name} {left.parent.name}"
            yield failed("private files", f"{left.parent} is the folder of an account: {why_not}", hint)


def _secrets(file: Path, root: Path) -> Iterator[Result]:
    if not file.exists():
        yield ok("secrets.yml", "will be made at the first deploy")
        return
    try:
        vault.decrypt(file.read_bytes(), file, root)
    except LabtrackError as error:
        yield failed("secrets.yml", error.what, error.hint)
        return
    except OSError as error:
        yield failed("secrets.yml", f"{file} can't be read: {error.strerror}", f"ls -ld {file}")
        return
    if file.stat().st_mode & 0o077:
        yield warning("secrets.yml", f"encrypted, but others can read it ({_mode(file)})", f"chmod 600 {file}")
    else:
        yield ok("secrets.yml", "encrypted, and the vault password opens it")


def _mode(path: Path) -> str:
    return stat.filemode(path.stat().st_mode)
