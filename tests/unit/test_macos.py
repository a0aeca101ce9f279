"""What an admin's Mac would stumble over: found by reading, because no Mac is at hand."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

# What GNU's tools have and BSD's don't, what Linux has and macOS does not, what bash 3.2 and POSIX sh do not know.
FOREIGN = {
    r"\bsed\b[^|;]* -i\b": "sed -i wants a suffix on BSD",
    r"\b(sed|grep) [^|;]*\\[wsb+?|]": "GNU's escapes",
    r"\bgrep [^|;]*-[a-zA-Z]*P": "grep -P",
    r"\breadlink [^|;]*-[a-z]*[fme]\b": "readlink -f",
    r"\bstat [^|;]*(-c|--format|--printf)\b": "stat -c",
    r"\bdate [^|;]*(-d|--date|-I|--iso|%N)": "date -d, -I, %N",
    r"\bfind [^|;]*-(printf|regextype|readable|executable)\b": "find -printf",
    r"\bxargs [^|;]*(-r|-d|--[a-z])": "xargs -r, -d",
    r"\bcp [^|;]*(-[a-zA-Z]*[adul]|--[a-z])": "cp -a",
    r"(?<!-)\b(ls|mv|rm|ln|mkdir|touch|cut|sort|head|tail|tr|wc|tar|du|df|chmod|mktemp) [^|;]*--[a-z]": "a long option",
    r"\bmktemp\b(?! (-d )?\"?[\w${}./-]*X{4,})": "mktemp without a template",
    r"\b(base64 [^|;]*-w|sort [^|;]*-[a-zA-Z]*[Vh]\b|head [^|;]*-n -|ln [^|;]*-[a-z]*[rT]\b)": "options of GNU",
    r"(^|[;|&(])\s*(sha\d+sum|md5sum|getent|timeout|flock|setsid|tac|nproc|ip|ss|free|systemctl)\s": "of Linux alone",
    r"/(proc|sys)/|/dev/shm|/run/": "a path of Linux",
    r"\b(mapfile|readarray|declare -[Ag]|coproc)\b|\$\{\w+(,,|\^\^|@[A-Z])\}|&>>|\|&": "newer than bash 3.2",
}
LINUX = {
    ".ci/run": "for the machines that test each change",
    "scripts/dev/test.sh": "tests on machines of systemd-nspawn",
    "scripts/dev/down.sh": "the rehearsal, which needs Linux",
}
STARTED = {  # what the program starts on an admin's machine: there on macOS, or looked for by preflight
    "ansible-vault", "bash", "git", "openssl", "sh", "ssh", "ssh-keygen", "terraform", "tofu",
}  # fmt: skip
ADMINS = ("cli", "cloud", "doctor", "envfile", "labcopy", "newlab", "provision")  # rooms of the package


def tracked() -> list[str]:
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout
    return [name for name in listed.splitlines() if (ROOT / name).is_file()]


def is_script(name: str) -> bool:
    """Whether an admin's shell reads it: by its first line; what is under roles/ and ondemand/ is another machine's."""
    if name.startswith(("roles/", "ondemand/")) or name in LINUX:
        return False
    with (ROOT / name).open("rb") as file:
        return re.match(rb"#!.*\b(ba|da|z|k)?sh\b", file.readline()) is not None


def lines(name: str) -> list[tuple[int, str]]:
    """The lines of a script without their comments."""
    text = (ROOT / name).read_text().splitlines()
    return [(number, re.sub(r"(^|\s)#.*", "", line)) for number, line in enumerate(text, 1)]


def foreign(text: str) -> list[str]:
    return [why for pattern, why in FOREIGN.items() if re.search(pattern, text)]


SCRIPTS = [*filter(is_script, tracked()), "Makefile"]


def test_there_are_scripts() -> None:
    assert {"scripts/vault-password", "scripts/dev/venv.sh", "scripts/dev/check.sh"} <= set(SCRIPTS)
    assert set(LINUX) <= set(tracked())


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_keep_to_what_a_mac_has(name: str) -> None:
    told = [f"{name}:{number}: {why}: {line.strip()}" for number, line in lines(name) for why in foreign(line)]
    assert told == []


@pytest.mark.parametrize(
    "line",
    [
        "sed -i s/a/b/ x", "readlink -f .", "stat -c %a x", "date -d yesterday", "grep -oP x y", "find . -printf %p",
        "xargs -0 -r rm", "cp -a x y", "tail -f --pid=1 x", "new=$(mktemp)", "timeout 5 true", "x=$(getent hosts a)",
        "cat /proc/1/status", 'echo "${x,,}"', "mapfile -t x", "sha256sum x", "a=1; flock x true", "base64 -w0 x",
    ],
)  # fmt: skip
def test_what_a_mac_does_not_have_is_found(line: str) -> None:
    assert foreign(line)


@pytest.mark.parametrize(
    "line",
    ['mktemp "$file.XXXXXX"', "mktemp -d /tmp/x.XXXXXX", "sed -n 's/a/b/p' x", "find . -name x -prune", "cp -p a b"],
)
def test_what_a_mac_has_is_left_alone(line: str) -> None:
    assert foreign(line) == []


def test_no_two_files_differ_by_case_alone() -> None:
    names = [name.casefold() for name in tracked()]
    assert [name for name in names if names.count(name) > 1] == []


def modules() -> list[Path]:
    package = ROOT / "scripts/labtrack"
    return [*package.glob("*.py"), *(file for room in ADMINS for file in (package / room).rglob("*.py"))]


def test_the_program_starts_what_a_mac_has() -> None:
    told = []
    for file in modules():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("subprocess.run", "subprocess.Popen", "run"):
                command = node.args[0] if node.args else None
                first = command.elts[0] if isinstance(command, (ast.List, ast.Tuple)) and command.elts else None
                if isinstance(first, ast.Constant) and Path(str(first.value)).name not in STARTED:
                    told.append(f"{file.name}:{node.lineno}: {first.value}")
    assert told == []
