"""How programs write a secret into their logs: each encoding that one was seen in, and lines that cut it."""

from __future__ import annotations

import base64
import html
import json
import shlex
from collections.abc import Callable
from urllib.parse import quote, quote_plus

HEAD = "2026-11-27T14:16:{:02d}+0000 server {}[{}]: "


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


ENCODINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "percent": lambda secret: quote(secret, safe=""),
    "percent, small": lambda secret: quote(secret, safe="").lower() if secret == secret.lower() else quote(secret),
    "percent, with slashes": quote,
    "form": quote_plus,
    "percent twice": lambda secret: quote(quote(secret, safe=""), safe=""),
    "base64": _base64,
    "base64 of login": lambda secret: _base64(f"ada:{secret}"),
    "base64 of longer login": lambda secret: _base64(f"grace:{secret}"),
    "base64 amid": lambda secret: _base64(f"emmy:{secret}:more"),
    "base64 for urls": lambda secret: base64.urlsafe_b64encode(f"ada:{secret}".encode()).decode(),
    "base64 in percent": lambda secret: quote(_base64(f"ada:{secret}"), safe=""),
    "JSON": lambda secret: json.dumps(secret)[1:-1],
    "JSON, not ASCII": lambda secret: json.dumps(secret, ensure_ascii=False)[1:-1],
    "JSON in JSON": lambda secret: json.dumps(json.dumps(secret))[1:-1],
    "JSON with slashes": lambda secret: json.dumps(secret)[1:-1].replace("/", "\\/"),
    "percent in JSON": lambda secret: json.dumps(quote(secret))[1:-1],
    "repr": lambda secret: repr(secret)[1:-1],
    "bytes": lambda secret: repr(secret.encode())[2:-1],
    "shell": shlex.quote,
    "HTML": html.escape,
    "hex": lambda secret: secret.encode().hex(),
}


def cut_in_two(written: str) -> tuple[str, str]:
    return written[: len(written) // 2], written[len(written) // 2 :]


def journal(written: str) -> str:
    """Over two lines of one program, with one of another between them."""
    first, second = cut_in_two(written)
    return (
        f"{HEAD.format(1, 'mlflow', 12)}got {first}\n{HEAD.format(1, 'nginx', 13)}all is well\n"
        f"{HEAD.format(2, 'mlflow', 12)}{second} and more\n"
    )


def wrapped(written: str) -> str:
    first, second = cut_in_two(written)
    return f"a message: {first}\n    {second}, which goes on\n"
