"""Draw scatter and line charts as inline SVG, without a library.

Colours, fonts and dark mode come from the page's style sheet: a series has the class `s0` to `s5`
and a shape of its own, so that it can be told apart without colour. All text is escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Axis", "Series", "chart"]

_WIDTH: Final = 400
_HEIGHT: Final = 270
_LEFT: Final = 54
_RIGHT: Final = 12
_TOP: Final = 10
_BOTTOM: Final = 42
_SHAPES: Final = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z",
    "M-3.6,-3.6h7.2v7.2h-7.2Z",
    "M0,-4.6L4.4,3.4H-4.4Z",
    "M0,-4.8L4.8,0L0,4.8L-4.8,0Z",
    "M0,4.6L4.4,-3.4H-4.4Z",
    "M-1.4,-4.4h2.8v3h3v2.8h-3v3h-2.8v-3h-3v-2.8h3Z",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one colour and shape.

    Attributes:
        name: Name in the legend.
        points: x, y and the tooltip of each point.
        joined: Whether a line joins the points, in their order.
        place: Index of the colour and shape; by default the position among the series.
    """

    name: str
    points: Sequence[tuple[float, float, str]]
    joined: bool = False
    place: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An axis of a chart.

    Attributes:
        title: Quantity and unit.
        log: Whether the axis is logarithmic; all values must be above zero.
        zero: Whether a linear axis starts at zero.
        whole: Whether ticks of a linear axis are whole numbers only.
    """

    title: str
    log: bool = False
    zero: bool = False
    whole: bool = False


class _Scale:
    """Maps values to positions in the figure, from `start` to `end`."""

    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        self.axis, self._start, self._end = axis, start, end
        low, high = min(values), max(values)
        if axis.log:
            low, high = math.log10(low), math.log10(high)
        room = 0.06 * (high - low) or (0.3 if axis.log else 0.05 * abs(high) or 0.5)
        self.low = 0.0 if axis.zero and not axis.log else low - room
        self.high = high + room

    def __call__(self, value: float) -> float:
        """The position of a value."""
        at = math.log10(value) if self.axis.log else value
        return self._start + (at - self.low) / (self.high - self.low) * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Round values within the range."""
        if not self.axis.log:
            found = _linear_ticks(self.low, self.high)
            return [v for v in found if v == round(v)] if self.axis.whole else found
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        steps = (1, 2, 5) if self.high - self.low < 1.6 else (1,)
        every = max(1, math.ceil((self.high - self.low) / 6))
        found = [s * 10.0**d for d in decades for s in steps if d % every == 0 or every == 1]
        found = [value for value in found if self.low <= math.log10(value) <= self.high]
        # a range within one decade may hold hardly any of them
        return found if len(found) > 2 else _linear_ticks(10**self.low, 10**self.high)


def _linear_ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 5
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(s * magnitude for s in (1, 2, 5, 10) if s * magnitude >= raw)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step) + 1)]


def chart(title: str, series: Sequence[Series], x: Axis, y: Axis, *, diagonal: bool = False) -> str:
    """A figure with a caption and a legend as HTML; an empty string if there are no points.

    Args:
        title: The caption.
        series: What to draw; colours and shapes repeat after six.
        x: The horizontal axis.
        y: The vertical axis.
        diagonal: Whether to draw the line y = x.
    """
    points = [point for each in series for point in each.points]
    if not points:
        return ""
    across = _Scale(x, [p[0] for p in points], _LEFT, _WIDTH - _RIGHT)
    up = _Scale(y, [p[1] for p in points], _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}">'
    ]
    parts += _grid(across, up)
    if diagonal:
        low, high = max(across.low, up.low), min(across.high, up.high)
        if low < high:
            parts.append(_line("diagonal", (across(low), across(high)), (up(low), up(high))))
    shapes = [
        (i if each.place is None else each.place) % len(_SHAPES) for i, each in enumerate(series)
    ]
    for each, shape in zip(series, shapes, strict=True):
        parts.append(_drawn(each, shape, across, up))
    parts.append("</svg>")
    if len(series) > 1 or series[0].name:
        keys = (
            f'<li><svg class="key" viewBox="-6 -6 12 12" aria-hidden="true">'
            f'<path class="s{shape}" d="{_SHAPES[shape]}"/></svg>{html.escape(each.name)}</li>'
            for each, shape in zip(series, shapes, strict=True)
        )
        parts.append(f'<ul class="legend">{"".join(keys)}</ul>')
    parts.append("</figure>")
    return "".join(parts)


def _line(kind: str, x: tuple[float, float], y: tuple[float, float]) -> str:
    ends = (f'x{i}="{x[i - 1]:.1f}" y{i}="{y[i - 1]:.1f}"' for i in (1, 2))
    return f'<line class="{kind}" {" ".join(ends)}/>'


def _grid(across: _Scale, up: _Scale) -> list[str]:
    parts = []
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value in across.ticks():
        at = across(value)
        parts.append(_line("grid", (at, at), (_TOP, bottom)))
        parts.append(
            f'<text x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{_label(value)}</text>'
        )
    for value in up.ticks():
        at = up(value)
        parts.append(_line("grid", (_LEFT, right), (at, at)))
        parts.append(
            f'<text x="{_LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{_label(value)}</text>'
        )
    places = (
        f'x="{(_LEFT + right) / 2:.0f}" y="{_HEIGHT - 6}"',
        (f'transform="translate(12,{(_TOP + bottom) / 2:.0f}) rotate(-90)"'),
    )
    for scale, place in zip((across, up), places, strict=True):
        title = html.escape(scale.axis.title)
        parts.append(f'<text class="axis" {place} text-anchor="middle">{title}</text>')
    return parts


def _drawn(series: Series, shape: int, across: _Scale, up: _Scale) -> str:
    placed = [(across(x), up(y), text) for x, y, text in series.points]
    parts = []
    if series.joined and len(placed) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in placed)
        parts.append(f'<polyline class="l{shape}" points="{path}"/>')
    parts += [
        f'<path class="s{shape}" transform="translate({x:.1f},{y:.1f})" d="{_SHAPES[shape]}">'
        f"<title>{html.escape(text)}</title></path>"
        for x, y, text in placed
    ]
    return "".join(parts)


def _label(value: float) -> str:
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"
