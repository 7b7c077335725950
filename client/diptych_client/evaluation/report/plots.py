"""Plots as inline SVG, in the custom properties --series-0, --series-1, … of the page.

Own lines and no plotting library: these follow light and dark, and a report needs three kinds of
plot.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain
from typing import Self

from diptych_client.evaluation.metrics.outcome import Curve
from diptych_client.evaluation.statistics import Interval

NUM_COLORS = 6
_WIDTH = 360
_HEIGHT = 250
_LEFT = 40
_RIGHT = 12
_TOP = 12
_BOTTOM = 38
_NAMES = 120  # width of the metrics' names
_DASHES = ("", "6 4")


@dataclass(frozen=True, slots=True)
class Line:
    """A named curve; `series` selects its colour, `dash` its pattern."""

    name: str
    curve: Curve
    series: int
    dash: int = 0


def line_plot(title: str, x_title: str, y_title: str, lines: Sequence[Line]) -> str:
    """Return curves with both axes from 0 to 1."""
    content = _axes(x_title, y_title)
    key = ""
    for line in lines:
        name = escape(line.name)
        stroke = (
            f'fill="none" stroke="{_color(line.series)}" stroke-width="2"'
            f' stroke-dasharray="{_DASHES[line.dash]}"'
        )
        key += (
            '<span><svg width="24" height="10" aria-hidden="true"><path d="M0 5H24"'
            f" {stroke}/></svg>{name}</span>"
        )
        points = map(_point, line.curve.xs, line.curve.ys)
        if drawn := "L".join(f"{x:.1f} {y:.1f}" for x, y in points):
            content += f'<path d="M{drawn}" {stroke}><title>{name}</title></path>'
    return _figure(title, _HEIGHT, content, key)


def interval_plot(title: str, intervals: Mapping[str, Mapping[str, Interval]]) -> str:
    """Return each metric of each model as a dot with its interval; the axis ends at tens."""
    names = list(next(iter(intervals.values()), {}))
    own = [each.values() for each in intervals.values()]
    axis = _Axis.of(list(chain.from_iterable(own)))
    row_height = 14 * len(intervals) + 14
    height = row_height * len(names)
    content = axis.grid(height)
    for i, name in enumerate(names):
        middle = i * row_height + row_height / 2 + 4
        place = f'x="{_NAMES - 8}" y="{middle:.1f}"'
        content += f'<text {place} text-anchor="end">{escape(name)}</text>'
        for j, found in enumerate(intervals.values()):
            content += axis.whisker(found[name], j, i * row_height + 14 + 14 * j)
    key = "".join(
        '<span><svg width="12" height="10" aria-hidden="true"><circle cx="6" cy="5" r="3"'
        f' fill="{_color(j)}"/></svg>{escape(model)}</span>'
        for j, model in enumerate(intervals)
    )
    return _figure(title, height + 20, content, key)


@dataclass(frozen=True, slots=True)
class _Axis:
    """A horizontal axis of values."""

    minimum: float
    maximum: float

    @classmethod
    def of(cls, intervals: Sequence[Interval]) -> Self:
        ends: list[float] = []
        for each in intervals:
            ends += filter(math.isfinite, (each.low, each.value, each.high))
        minimum = 10 * math.floor(min(ends, default=0.0) / 10)
        return cls(minimum, max(10 * math.ceil(max(ends, default=0.0) / 10), minimum + 10))

    def x(self, value: float) -> float:
        share = (value - self.minimum) / (self.maximum - self.minimum)
        return _NAMES + (_WIDTH - _RIGHT - _NAMES) * share

    def whisker(self, interval: Interval, series: int, y: float) -> str:
        if not math.isfinite(interval.value):
            return ""
        low, value, high = map(self.x, (interval.low, interval.value, interval.high))
        color = _color(series)
        line = f'<path d="M{low:.1f} {y}H{high:.1f}" stroke="{color}" stroke-width="2"/>'
        return (
            f'<g>{line}<circle cx="{value:.1f}" cy="{y}" r="3"'
            f' fill="{color}"/><title>{interval}</title></g>'
        )

    def grid(self, height: float) -> str:
        content = ""
        for step in range(5):
            tick = self.minimum + step * (self.maximum - self.minimum) / 4
            x = self.x(tick)
            content += f'<path class="grid" d="M{x:.1f} 0V{height}"/>'
            content += f'<text x="{x:.1f}" y="{height + 14}" text-anchor="middle">{tick:g}</text>'
        return content


def _axes(x_title: str, y_title: str) -> str:
    right = _WIDTH - _RIGHT
    bottom = _HEIGHT - _BOTTOM
    content = ""
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = _point(tick, tick)
        content += f'<path class="grid" d="M{x:.1f} {_TOP}V{bottom}M{_LEFT} {y:.1f}H{right}"/>'
        content += f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{tick:g}</text>'
        content += f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
    x = (_LEFT + right) / 2
    y = (_TOP + bottom) / 2
    content += f'<text x="{x}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_title)}</text>'
    place = f"translate(10 {y}) rotate(-90)"
    return content + f'<text transform="{place}" text-anchor="middle">{escape(y_title)}</text>'


def _point(x: float, y: float) -> tuple[float, float]:
    width = _WIDTH - _LEFT - _RIGHT
    height = _HEIGHT - _TOP - _BOTTOM
    return _LEFT + width * min(max(x, 0), 1), _TOP + height * (1 - min(max(y, 0), 1))


def _color(series: int) -> str:
    return f"var(--series-{series % NUM_COLORS})"


def _figure(title: str, height: float, content: str, key: str) -> str:
    label = escape(title)
    return (
        f'<figure><figcaption>{label}</figcaption><svg viewBox="0 0 {_WIDTH} {height:.0f}"'
        f' role="img" aria-label="{label}" class="plot">{content}</svg><div'
        f' class="key">{key}</div></figure>'
    )
