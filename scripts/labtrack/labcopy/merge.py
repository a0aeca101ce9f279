"""Two contents of one lab, and what both were made from: what to take from there, and what clashes."""

from __future__ import annotations

from dataclasses import dataclass

from labtrack.labcopy.content import DERIVED, PRIVATE, Sums


@dataclass(frozen=True)
class Merge:
    """take: files of there that belong here.  drop: files that were taken away there.

    clash: files that both have changed, each in its own way.
    """

    take: tuple[str, ...]
    drop: tuple[str, ...]
    clash: tuple[str, ...]


def merge(base: Sums, here: Sums, there: Sums, *, theirs: bool = False) -> Merge:
    """What has to happen here, so that nothing is lost that was changed on one side only.

    base: what both had once; empty where that is not known: then only files that are missing here are taken.
    theirs: what clashes is taken from there, and files that are missing there are taken away where both had them once.
    """
    take, drop, clash = [], [], []
    for name in sorted({*base, *here, *there}):
        before, ours, others = base.get(name), here.get(name), there.get(name)
        if others in (ours, before):
            continue  # the same, or changed here only
        if ours != before and name in DERIVED:
            continue
        if ours != before and not theirs:
            clash.append(name)
        elif others is not None:
            take.append(name)
        elif name.startswith(f"{PRIVATE}/"):
            drop.append(name)
    return Merge(tuple(take), tuple(drop), tuple(clash))
