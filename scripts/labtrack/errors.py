"""The one error of the kit: what happened, how to fix it, and the exit code of the command."""

from __future__ import annotations

import enum
import re

WITHOUT_BOTO3 = 'pip install "labtrack[s3]"   (or boto3 of 1.36 or later, where labtrack is)'


class Exit(enum.IntEnum):
    """Exit codes of every command (`doctor` has its own: 0 ok, 1 warnings, 2 failed)."""

    OK = 0
    FAILED = 1
    BAD_INPUT = 2
    DAMAGED = 3  # of `sync`: all is there but what can't be read in the recording
    UNAVAILABLE = 69  # EX_UNAVAILABLE of sysexits.h: a program that the command runs can't be had here
    LOCKED = 75  # EX_TEMPFAIL of sysexits.h: the same call may work in a moment
    INTERRUPTED = 130


class LabtrackError(Exception):
    """Something the user should read.

    what: one sentence (or a few lines) that says what happened.
    hint: what to do about it; a command where there is one.
    code: the exit code of the command that was running.
    """

    def __init__(self, what: str, hint: str = "", code: Exit = Exit.FAILED) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return f"{self.what}\nTo fix: {self.hint}" if self.hint else self.what


class BadInputError(LabtrackError):
    """What was given (a file, an option, a credential) can't be used as it is."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what, hint, Exit.BAD_INPUT)


def causes(error: BaseException) -> list[BaseException]:
    """An error and what led to it, the first cause last."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause and cause not in seen:
        seen.append(cause)
        cause = cause.__cause__ or cause.__context__
    return seen


def innermost(error: BaseException) -> str:
    """The words of the first cause of an error, without the addresses and line numbers around them."""
    first = causes(error)[-1]
    said = re.sub(r" \(_ssl\.c:\d+\)", "", str(first))
    said = re.sub(r"^.*(certificate verify failed: |Errno [-0-9]+\] |: )", "", said).strip("'\")( ").rstrip(".")
    return said or type(first).__name__
