"""Curves of the loss as SVG: on a log scale where they span decades, with what is not finite marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from math import ceil, floor, isfinite, log10

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 960, 240, 70, 110, 16, 30
Point = tuple[int, float]


@dataclass(frozen=True)
class _Axes:
    """Where a step and a value stand."""

    first: int
    last: int
    low: float
    high: float
    logarithmic: bool

    @staticmethod
    def around(points: Sequence[Point]) -> _Axes:
        steps = [step for step, _ in points]
        values = [value for _, value in points if isfinite(value)] or [1.0]
        logarithmic = min(values) > 0 and max(values) > 100 * min(values)
        low, high = min(values), max(values)
        if logarithmic:
            low, high = log10(low), log10(high)
        pad = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
        return _Axes(min(steps), max(steps), low - pad, high + pad, logarithmic)

    def x(self, step: float) -> float:
        return LEFT + (step - self.first) / ((self.last - self.first) or 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Of a value as `low` and `high` have it."""
        return HEIGHT - BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def up(self, value: float) -> float:
        """Of a value as it is."""
        return self.y(log10(value) if self.logarithmic else value)


def curves(found: Mapping[str, Sequence[Point]], label: str) -> str:
    """Each curve with its name at its end; empty if there is no point.

    Args:
        found: values by step, by the curve's name.
        label: what is shown, for a reader that hears the page.
    """
    points = [point for curve in found.values() for point in curve]
    if not points:
        return ""
    axes = _Axes.around(points)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">', *_grid(axes)]
    ends: list[float] = []
    for number, (name, curve) in enumerate(found.items()):
        for finite, stretch in groupby(curve, key=lambda point: isfinite(point[1])):
            parts.append((_line if finite else _gap)(axes, list(stretch), f"c{number % 2}"))
        last = [axes.up(value) for _, value in curve if isfinite(value)][-1:]
        y = last[0] if last else TOP + 4.0
        while any(abs(y - end) < 14 for end in ends):  # names do not lie on one another
            y += -14 if y > HEIGHT / 2 else 14
        ends.append(y)
        x = WIDTH - RIGHT + 8
        parts.append(f'<text class="name c{number % 2}" x="{x}" y="{y + 4:.1f}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def _grid(axes: _Axes) -> Iterator[str]:
    """Lines at round values, and round steps below."""
    for value in _round(axes.low, axes.high, whole=axes.logarithmic):
        y = axes.y(value)
        shown = f"1e{value:.0f}" if axes.logarithmic else f"{value:.4g}"
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>'
    for step in _round(axes.first, axes.last, whole=True):
        yield f'<text x="{axes.x(step):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{step:,.0f}</text>'
    yield f'<text x="{LEFT - 8}" y="{HEIGHT - 10}" text-anchor="end">step</text>'


def _round(low: float, high: float, *, whole: bool) -> list[float]:
    """Up to nine multiples of 1, 2 or 5 times a power of ten between two numbers."""
    rough = (high - low) / 8 or 1.0
    power = 10.0 ** floor(log10(rough))
    distance = next(each * power for each in (1, 2, 5, 10) if each * power >= rough)
    distance = max(distance, 1.0) if whole else distance
    return [index * distance for index in range(ceil(low / distance), floor(high / distance) + 1)]


def _line(axes: _Axes, points: Sequence[Point], style: str) -> str:
    if len(points) == 1:
        ((step, value),) = points
        return f'<circle class="curve {style}" cx="{axes.x(step):.1f}" cy="{axes.up(value):.1f}" r="2"/>'
    places = " ".join(f"{axes.x(step):.1f},{axes.up(value):.1f}" for step, value in points)
    return f'<polyline class="curve {style}" points="{places}"/>'


def _gap(axes: _Axes, points: Sequence[Point], style: str) -> str:
    """A cross where values stop being finite, and a line along the top as long as they are not."""
    (first, value), (last, _) = points[0], points[-1]
    x, end = axes.x(first), axes.x(last)
    return (
        f'<text class="bad" x="{x:.1f}" y="{TOP + 5}" text-anchor="middle">×</text>'
        f'<line class="bad" x1="{x:.1f}" x2="{end:.1f}" y1="{TOP}" y2="{TOP}"/>'
        f'<text class="bad" x="{end + 10:.1f}" y="{TOP + 4}">{value} from step {first:,}</text>'
    )
