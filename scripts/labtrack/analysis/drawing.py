"""A chart of a report as SVG: means, bands, and the runs behind them."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from labtrack.analysis import scale
from labtrack.analysis.curves import LARGEST, TIME, Curve, unit
from labtrack.analysis.report import Chart, Report
from labtrack.printable import one_line

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 10, 40
_DECADES = 2.5  # of positive values, from which on the scale is logarithmic


class _Axes:
    """From values to places."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], by: float) -> None:
        self.by = by
        self.log = min(ys) > 0 and math.log10(max(ys)) - math.log10(min(ys)) >= _DECADES
        self.left, self.right = min(xs), max(xs)
        low, high = self.value(min(ys)), self.value(max(ys))
        pad = (high - low) * 0.04 or max(abs(low), abs(high)) * 0.1 or 1.0
        self.low, self.high = low - pad, high + pad

    def value(self, y: float) -> float:
        return math.log10(y) if self.log else y

    def x(self, x: float) -> str:
        if self.right == self.left:
            return _said((_LEFT + _WIDTH - _RIGHT) / 2)
        share = (x - self.left) / (self.right - self.left)
        return _said(_LEFT + share * (_WIDTH - _LEFT - _RIGHT))

    def y(self, y: float) -> str:
        share = (self.value(y) - self.low) / (self.high - self.low)
        return _said(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM))


def _said(place: float) -> str:
    return f"{place:.1f}".removesuffix(".0")


def chart(found: Report, one: Chart, number: int) -> str:
    """One chart.  number: its place on the page."""
    xs, ys = _values(one)
    name = html.escape(one_line(one.metric))
    if not ys:
        return f'<figure class="chart"><figcaption>{name}</figcaption><p>Nothing that can be drawn.</p></figure>'
    by, of = unit(max(xs)) if found.x == TIME else (1.0, "step")
    axes = _Axes(xs, ys, by)
    where = "step" if found.x != TIME else f"time ({of})"
    scaled = " <small>log scale</small>" if axes.log else ""
    notes = [f"{one.unfinite} points are nan or infinite, not drawn"] if one.unfinite else []
    parts = [
        f'<figure class="chart"><figcaption>{name}{scaled}</figcaption>',
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-labelledby="t{number}" data-left="{_LEFT}" '
        f'data-right="{_WIDTH - _RIGHT}" data-top="{_TOP}" data-bottom="{_HEIGHT - _BOTTOM}" '
        f'data-x0="{axes.left / by!r}" data-x1="{axes.right / by!r}" data-y0="{axes.low!r}" data-y1="{axes.high!r}"'
        f"{' data-log=1' if axes.log else ''}>",
        f'<title id="t{number}">{html.escape(_words(found, one, where))}</title>',
        *_grid(axes, where, whole=found.x != TIME),
    ]
    # the best lies on top
    for place in sorted(one.drawn, reverse=True):
        parts += _group(found, one, place, axes)
    parts.append('<g class="readout"></g></svg>')
    parts += [f'<p class="note">{note}</p>' for note in notes]
    parts.append("</figure>")
    return "\n".join(parts)


def _values(one: Chart) -> tuple[list[float], list[float]]:
    """All x and y that are drawn, where they are numbers with a place."""
    pairs = [(point.x, point.y) for drawn in one.drawn.values() for _, curve in drawn.members for point in curve.finite]
    for drawn in one.drawn.values():
        pairs += [(point.x, y) for point in drawn.mean for y in (point.y, point.low, point.high) if _has_place(y)]
    positive = [y for _, curves in ((0, drawn.members) for drawn in one.drawn.values())
                for _, curve in curves for y in (point.y for point in curve.finite)]  # fmt: skip
    if positive and min(positive) > 0:  # a band that reaches below zero makes no linear scale of a loss
        pairs = [(x, y) for x, y in pairs if y > 0]
        least = min(positive) / 2
        pairs = [(x, max(y, least)) for x, y in pairs]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _has_place(y: float) -> bool:
    return abs(y) < LARGEST


def _words(found: Report, one: Chart, where: str) -> str:
    """The chart in words, for who can't see it."""
    runs = sum(drawn.runs for drawn in one.drawn.values())
    what = f"{len(one.drawn)} groups of {runs} runs, mean and {found.spread}" if found.over else f"{runs} runs"
    return f"{one_line(one.metric)} by {where}: {what}"


def _grid(axes: _Axes, where: str, *, whole: bool) -> Iterable[str]:
    bottom = _HEIGHT - _BOTTOM
    yield '<g class="grid">'
    places = scale.log_ticks(axes.low, axes.high, 5) if axes.log else scale.ticks(axes.low, axes.high, 5)
    for place in places:
        y = axes.y(10**place if axes.log else place)
        said = scale.said(10**place if axes.log else place)
        yield f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/><text x="{_LEFT - 6}" y="{y}" dy=".32em">{said}</text>'
    for place in scale.ticks(axes.left / axes.by, axes.right / axes.by, 6, whole=whole):
        x = axes.x(place * axes.by)
        yield f'<text class="x" x="{x}" y="{bottom + 16}">{scale.said(place)}</text>'
    yield f'<text class="x" x="{(_LEFT + _WIDTH - _RIGHT) // 2}" y="{_HEIGHT - 6}">{where}</text>'
    yield f'<path class="axis" d="M{_LEFT} {bottom}H{_WIDTH - _RIGHT}"/></g>'


def _group(found: Report, one: Chart, place: int, axes: _Axes) -> Iterable[str]:
    drawn = one.drawn[place]
    yield f'<g class="g g{place} k{place % 8}{" d" if place >= 8 else ""}">'  # noqa: PLR2004 eight colors
    band = [point for point in drawn.mean if point.n > 1 and _has_place(point.low) and _has_place(point.high)]
    if len(band) > 1:
        floor = 10**axes.low if axes.log else axes.low
        upper = [f"{axes.x(point.x)} {axes.y(max(point.high, floor))}" for point in band]
        lower = [f"{axes.x(point.x)} {axes.y(max(point.low, floor))}" for point in reversed(band)]
        yield f'<path class="band" d="M{"L".join(upper + lower)}Z"/>'
    if found.over:
        yield '<g class="members">'
        for _, curve in drawn.members:
            yield from _line(curve, axes)
        yield "</g>"
        points = [point for point in drawn.mean if _has_place(point.y) and (not axes.log or point.y > 0)]
        if points:
            yield f'<path class="mean" d="M{"L".join(f"{axes.x(one.x)} {axes.y(one.y)}" for one in points)}"/>'
            if len(points) == 1:
                yield f'<circle cx="{axes.x(points[0].x)}" cy="{axes.y(points[0].y)}" r="3"/>'
    else:
        for _, curve in drawn.members:
            yield from _line(curve, axes, "mean")
    yield "</g>"


def _line(curve: Curve, axes: _Axes, kind: str = "run") -> Iterable[str]:
    """A run's points, broken where one has no place."""
    pieces = curve.pieces(above=0.0 if axes.log else -math.inf)
    for piece in pieces:
        if len(piece) == 1:
            yield f'<circle cx="{axes.x(piece[0].x)}" cy="{axes.y(piece[0].y)}" r="3"/>'
    lines = [piece for piece in pieces if len(piece) > 1]
    if lines:
        d = "".join("M" + "L".join(f"{axes.x(one.x)} {axes.y(one.y)}" for one in piece) for piece in lines)
        yield f'<path class="{kind}" d="{d}"/>'
