"""What is said between `labtrack run` and the process beside the training."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Task:
    """What to do.  sync_timeout: seconds for it after the end.  destination: empty where nothing is sent."""

    folder: str
    key: str
    attempt: int
    destination: str = ""
    gateways: tuple[str, ...] = ()
    sync_timeout: float = 60.0


@dataclass
class Told:
    """What came of it.  closed: runs that were left open.  sent: whether the server has everything."""

    closed: int = 0
    sent: bool = False
    runs: int = 0
    way: str = ""
    problems: list[str] = field(default_factory=list)
