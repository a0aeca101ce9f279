"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def together(decorators: Sequence[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """One decorator of several, which show in `--help` in their order."""

    def add(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return add
