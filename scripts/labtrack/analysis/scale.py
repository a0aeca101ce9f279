"""The numbers at an axis."""

from __future__ import annotations

import math

_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)
_NEAR = 0.8  # of the step that was asked for
_EXACT = 1e-9  # of a step, within which a number counts as on it


def ticks(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """About `count` round numbers from low to high; the one number where both are equal.  whole: no fractions."""
    if not high > low:
        return [low]
    raw = high / count - low / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(one * power for one in _ROUND if one * power >= raw * _NEAR or one == _ROUND[-1])
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.ceil(low / step - _EXACT), math.floor(high / step + _EXACT)
    found = [one * step for one in range(first, min(last, first + 4 * count) + 1)]
    return found or [low, high]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` numbers from 10**low to 10**high, each as its logarithm: 1, 2 and 5, or only tens."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    fine = [power + math.log10(one) for power in powers for one in (1, 2, 5)]
    fine = [one for one in fine if low - _EXACT <= one <= high + _EXACT]
    if 2 <= len(fine) <= count + 2:  # noqa: PLR2004
        return fine
    tens = [float(one) for one in powers if low - _EXACT <= one <= high + _EXACT]
    if len(tens) >= 2:  # noqa: PLR2004
        return tens[:: max(1, math.ceil(len(tens) / count))]
    return [math.log10(one) for one in ticks(10**low, 10**high, count)]


def said(value: float) -> str:
    """A number at an axis, short."""
    return f"{value:.6g}" if value else "0"
