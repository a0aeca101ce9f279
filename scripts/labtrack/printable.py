"""Text of recordings, servers and file names, made safe to print."""

from __future__ import annotations

import re

# What a terminal obeys, or shows in another order than it is written: control characters of ASCII and of Latin 1,
# line and paragraph separators, the marks of writing directions; and halves of characters, which can't be encoded.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(text: str) -> str:
    """`text` with characters that a terminal would obey made visible (`\\x1b`); line ends and tabs stay."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """`text` on one line, safe to print."""
    return clean(" ".join(text.replace("\t", " ").splitlines()) if text.strip("\n") else "")
