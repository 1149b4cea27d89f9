"""The charts of a report: what they show, and where its values lie on their axes.

`templates/chart.html.j2` draws them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from .sections import Row

__all__ = ["Axis", "Chart", "Series", "charts", "shown_domain", "view_study_chart"]

Point = tuple[float, float, str]
"""x, y and the tooltip."""

_FLOOR: Final = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points of one colour and shape.

    Attributes:
        name: Name in the legend.
        points: In the order in which a line joins them.
        joined: Whether a line joins them.
        place: Which of the colours and shapes they have.
    """

    name: str
    points: Sequence[Point]
    joined: bool = False
    place: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An axis of a chart.

    Attributes:
        title: Quantity and unit.
        log: Whether the axis is logarithmic; all values must be above zero.
        zero: Whether a linear axis starts at zero.
        whole: Whether ticks of a linear axis are whole numbers only.
        low: Where the axis starts; a logarithm to base 10 if it is logarithmic.
        high: Where it ends, likewise.
    """

    title: str
    log: bool = False
    zero: bool = False
    whole: bool = False
    low: float = 0.0
    high: float = 1.0

    def over(self, values: Sequence[float]) -> Axis:
        """The axis from the smallest to the largest of the values, with room beside them."""
        low, high = self._scaled(min(values)), self._scaled(max(values))
        room = 0.06 * (high - low) or (0.3 if self.log else 0.05 * abs(high) or 0.5)
        return replace(self, low=0.0 if self.zero else low - room, high=high + room)

    def place(self, value: float) -> float:
        """Where a value is: 0 at the start of the axis, 1 at its end."""
        return (self._scaled(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values on the axis, and their labels."""
        return [(value, _label(value)) for value in self._round_values()]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def _round_values(self) -> list[float]:
        if not self.log:
            found = _round_values(self.low, self.high)
            return [v for v in found if v == round(v)] if self.whole else found
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        steps = (1, 2, 5) if self.high - self.low < 1.6 else (1,)
        every = max(1, math.ceil((self.high - self.low) / 6))
        found = [s * 10.0**d for d in decades for s in steps if d % every == 0 or every == 1]
        found = [value for value in found if self.low <= math.log10(value) <= self.high]
        # a range within one decade may hold hardly any of them
        return found if len(found) > 2 else _round_values(10**self.low, 10**self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart.

    Attributes:
        title: The caption.
        series: What is drawn; at least one point.
        x: The horizontal axis.
        y: The vertical axis.
        diagonal: Whether the line y = x is drawn.
    """

    title: str
    series: Sequence[Series]
    x: Axis
    y: Axis
    diagonal: bool = False


def charts(report: Row) -> Iterator[Chart]:
    """All charts that have points, but those of view studies."""
    places = _places(report)
    drift = {
        row["contestant"]: row["mae"] / row["scale"]
        for row in report["parity"]
        if row.get("mae") is not None and row["against"] != "torch checkpoint"
    }
    latency = []
    for row in report.get("latency", []):
        mae = drift.get(_without_threads(row["contestant"]), 0.0)
        ms = row["quantiles"]["p50"]["ms"]
        latency.append({**row, "ms": ms, "mae": mae, "drift": max(mae, _FLOOR)})
    headlines = [row for row in latency if row["clip_s"] == 5.0]
    yield from _chart(
        "Latency against drift (1e-8 or less is drawn at the bottom; uncertainty: relative drift)",
        _series(headlines, places, "ms", "drift", ": {ms:.1f} ms, drift {mae:.1e}"),
        Axis(title="p50 of 5 s, ms", zero=True),
        Axis(title="mean |Δ|", log=True),
    )
    yield from _chart(
        "Latency by length",
        _series(latency, places, "clip_s", "ms", ": {clip_s:g} s in {ms:.1f} ms"),
        Axis(title="clip, s", log=True),
        Axis(title="p50, ms", log=True),
    )
    for kind, counted in (("batch", "batch size"), ("callers", "concurrent callers")):
        rows = [row for row in report.get("throughput", []) if row["kind"] == kind]
        text = ", {count}: {clips_per_s:.2f} clips per s"
        yield from _chart(
            f"Throughput by {counted}",
            _series(rows, places, "count", "clips_per_s", text),
            Axis(title=counted, whole=True),
            Axis(title="clips of 5 s per s", zero=True),
        )
    yield from _scores_against_reference(report, places)


def view_study_chart(study: Row) -> Chart:
    """Spread around the mean over seeds of the public code's crops, against cost."""
    reference, grid = study["reference"], study["grid"]
    draws = []
    for k in range(1, len(grid) + 1):
        sd, ms = reference["sd"] / math.sqrt(k), k * reference["ms"]
        draws.append((ms, sd, f"mean of {k} draws: sd {sd:.3f}, {ms:.1f} ms"))
    views = [
        (row["ms"], row["sd"], f"{row['views']} views: sd {row['sd']:.3f}, {row['ms']:.1f} ms")
        for row in grid
        if row["sd"] is not None
    ]
    counts = f"1 to {len(grid)}"
    (chart,) = _chart(
        f"{study['model']}: spread against cost",
        [
            Series(name=f"reference, mean of {counts} draws", points=draws, joined=True, place=0),
            Series(name=f"grid, {counts} views", points=views, joined=True, place=1),
        ],
        Axis(title="ms per score", zero=True),
        Axis(title="sd of the difference, MOS", zero=True),
    )
    return chart


def shown_domain(bundle: Row, scores: Mapping[str, Row]) -> str:
    """The domain whose scores are shown: the default of the bundle if they have it."""
    names = next(iter(scores.values()))
    return str(bundle["default_domain"] if bundle["default_domain"] in names else next(iter(names)))


def _chart(
    title: str, series: Sequence[Series], x: Axis, y: Axis, *, diagonal: bool = False
) -> Iterator[Chart]:
    """A chart of the series that have points; its axes fit them. Nothing if there are none."""
    series = [each for each in series if each.points]
    if series:
        all_x, all_y, _ = zip(*(point for each in series for point in each.points), strict=True)
        x, y = x.over(all_x), y.over(all_y)
        yield Chart(title=title, series=series, x=x, y=y, diagonal=diagonal)


def _round_values(low: float, high: float) -> list[float]:
    """About five round values at equal distances."""
    raw = (high - low) / 5
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(s * magnitude for s in (1, 2, 5, 10) if s * magnitude >= raw)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _label(value: float) -> str:
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"


def _places(report: Row) -> dict[str, int]:
    """The colour of each configuration, the same in all charts.

    The name without its number of threads has the colour of the first thread count.
    """
    places: dict[str, int] = {}
    for row in (*report.get("latency", []), *report.get("throughput", [])):
        places.setdefault(row["contestant"], len(places))
    for name in (*places, *report["scores"]):
        places.setdefault(_without_threads(name), places.get(name, len(places)))
    return places


def _without_threads(configuration: str) -> str:
    """The name of a configuration without its number of threads."""
    return configuration.rsplit(" x", 1)[0]


def _series(
    rows: Sequence[Row], places: Mapping[str, int], x: str, y: str, text: str
) -> list[Series]:
    """A line for each configuration, with a point for each of its rows."""
    by_name: dict[str, list[Point]] = {}
    for row in rows:
        name = row["contestant"]
        by_name.setdefault(name, []).append((row[x], row[y], name + text.format(**row)))
    return [
        Series(name=name, points=points, joined=True, place=places[name])
        for name, points in by_name.items()
    ]


def _scores_against_reference(report: Row, places: Mapping[str, int]) -> Iterator[Chart]:
    """Each bundle's reference against its other variants."""
    for bundle in report["bundles"]:
        name = bundle["reference"]
        reference = report["scores"].get(name)
        if reference is None:
            continue
        domain = shown_domain(bundle, reference)
        others = [
            (other, places[_without_threads(other)], {c: of.get(domain) for c, of in found.items()})
            for other, found in report["scores"].items()
            if other.startswith(f"{bundle['name']} ") and other != name
        ]
        drawn = []
        for other, place, scores in others:
            points = [
                (x, y, f"{clip}: {x:.3f}, {y:.3f}")
                for clip, of_domain in reference.items()
                if (x := of_domain.get(domain)) is not None and (y := scores.get(clip)) is not None
            ]
            drawn.append(Series(name=other, points=points, place=place))
        yield from _chart(
            f"Scores against those of {name}",
            drawn,
            Axis(title=f"{name}, {domain}"),
            Axis(title="score"),
            diagonal=True,
        )
