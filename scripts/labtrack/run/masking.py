"""Command lines, logs and reports without the passwords and tokens that are in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from labtrack.run import encodings

MASK = "***"
_LONGEST = 4000  # characters of a command that are kept: MLflow takes 5000 in a tag
_SHORTEST = 8  # characters of a value that is looked for: shorter ones are in too many words
_SECRET = frozenset(
    [
        "password",
        "passwd",
        "passphrase",
        "pwd",
        "secret",
        "secrets",
        "credential",
        "credentials",
        "apikey",
        "authorization",
        "bearer",
    ]
)
_LAST = frozenset(("token", "pass", "auth", "pat", "jwt", "sas"))  # only as the last word: `tokenizer`, `pass_rate`
_KEYS = frozenset(
    [
        "api",
        "access",
        "private",
        "auth",
        "secret",
        "encryption",
        "signing",
        "account",
        "service",
        "license",
        "ssh",
        "wandb",
        "hf",
    ]
)
_PLACES = frozenset(("file", "files", "path", "dir", "folder", "sock", "socket"))  # `--password-file` names one
_NO_SECRET = frozenset(
    [
        "pad",
        "eos",
        "bos",
        "unk",
        "mask",
        "sep",
        "cls",
        "special",
        "image",
        "begin",
        "end",
        "start",
        "stop",
        "first",
        "last",
        "next",
    ]
)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
# each begins where a word does and has an end: a diff may be one line of a million characters
_URL = re.compile(r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]{0,30}://)[^\s/@'\"]{1,1000}@")
_HEADER = re.compile(r"(?i)\b(bearer|basic|token)(\s+)[A-Za-z0-9._~+/=-]{8,}")
_SHAPES = re.compile(
    r"\b(gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|xox[a-z]-[\w-]{10,}"
    r"|AKIA[A-Z0-9]{12,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)
_GIVEN = re.compile(r"(?<![\w.+~-])(?P<name>[A-Za-z_+~-][\w.+-]{0,200})=(?P<value>'[^']*'|\"[^\"]*\"|[^\s,&;]*)")
_QUOTED = re.compile(
    r"(?P<name>[\"'][A-Za-z_][\w.-]{0,200}[\"'])(?P<gap>\s{0,20}:\s{0,20})(?P<value>\"(?:[^\"\\]|\\.)*\"|'[^']*')"
)
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]{0,20000}?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)")
_SIGNED = re.compile(r"(?i)\b(X-Amz-(?:Signature|Credential|Security-Token)|temp_url_sig)((?:=|%3D)[^&\s\"']+)")
_OPTION = re.compile(
    r"(?P<name>(?<![\w-])--?[A-Za-z][\w.-]{0,200})(?P<gap>\s{1,20})(?P<value>'[^']*'|\"[^\"]*\"|[^\s-]\S*)"
)


def is_secret(name: str) -> bool:
    """Whether an option or a variable of this name holds a secret: `--password`, `HF_TOKEN`, `logger.api_key`."""
    words = [one.lower() for one in _WORDS.findall(name)]
    if not words or words[-1] in _PLACES:
        return False
    if _SECRET & set(words):
        return True
    if words[-1] in _LAST:
        return not _NO_SECRET & set(words)
    return any(one in _KEYS and after == "key" for one, after in zip(words, words[1:]))


def mask(text: str, known: Iterable[str] = ()) -> str:
    """`text` without secrets: logins in addresses, values of options and variables that hold one, and `known` ones."""
    text = mask_known(text, known)
    text = _GIVEN.sub(lambda one: f"{one['name']}={MASK}" if is_secret(one["name"]) else one[0], text)
    return _OPTION.sub(lambda one: f"{one['name']}{one['gap']}{MASK}" if is_secret(one["name"]) else one[0], text)


def mask_known(text: str, known: Iterable[str] = ()) -> str:
    """The same for code, where `token=value` is no secret: only logins in addresses, tokens by shape, `known` ones."""
    for value in sorted({one for one in known if len(one) >= _SHORTEST}, key=len, reverse=True):
        text = text.replace(value, MASK)
    text = _URL.sub(rf"\1{MASK}@", text)
    text = _HEADER.sub(rf"\1\2{MASK}", text)
    return _SHAPES.sub(MASK, text)


def mask_report(text: str, known: Iterable[str]) -> str:
    """Logs, settings and answers of programs without secrets: `known` ones in each encoding, others by their names.

    known: as they are.  What is shorter than encodings.SHORTEST characters is not looked for.
    """
    text = encodings.cut(text, known, MASK)
    text = _SIGNED.sub(rf"\1={MASK}", _PEM.sub(MASK, text))
    text = _QUOTED.sub(lambda one: f'{one["name"]}{one["gap"]}"{MASK}"' if is_secret(one["name"]) else one[0], text)
    return mask(text)


def mask_command(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """A command as one would write it in a shell, without secrets, cut where it is very long.

    env: the environment, whose variables with secrets are looked for by their values, too.
    """
    known = environment_secrets(env or {})
    words: list[str] = []
    hidden = False  # whether the word before says that this one is a secret
    for word in command:
        if hidden and not (word.startswith("-") and is_secret(word)):
            words.append(MASK)
            hidden = False
            continue
        hidden = word.startswith("-") and "=" not in word and not re.search(r"\s", word) and is_secret(word)
        masked = mask(word, known)
        words.append(masked if masked == MASK else shlex.quote(masked).replace(f"'{MASK}'", MASK))
    text = " ".join(words)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def environment_secrets(env: Mapping[str, str]) -> list[str]:
    """The values of an environment's variables that hold secrets."""
    return [
        value
        for name, value in env.items()
        if is_secret(name) and len(value) >= _SHORTEST and not value.startswith("/")  # PWD, OLDPWD
    ]
