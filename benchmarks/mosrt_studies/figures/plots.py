"""Draws the plots of RESULTS.md as SVG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from mosrt.host.files import replacing

__all__ = ["PLOTS", "Curve", "Panel", "draw"]

_COLOURS: Final = ("#3465a4", "#cc5500", "#4e9a06", "#75507b", "#555753")


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a panel.

    Attributes:
        name: Name in the legend.
        y: Values, one for each tick; None where there is none.
        bounds: Lower and upper bound of each value.
        colour: Which colour it has.
        dashed: Whether it is dashed.
    """

    name: str
    y: Sequence[float | None]
    bounds: Sequence[Sequence[float] | None] = ()
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves over the same ticks, which are equally far apart."""

    title: str
    x_label: str
    y_label: str
    ticks: Sequence[str]
    curves: Sequence[Curve]
    log: bool = False


def draw(panels: Sequence[Panel], file: Path) -> None:
    """Writes panels side by side, with a white ground for dark pages."""
    with mpl.rc_context({"svg.hashsalt": file.stem, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
        for axes, panel in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            for curve in panel.curves:
                known = [i for i, value in enumerate(curve.y) if value is not None]
                colour = _COLOURS[curve.colour % len(_COLOURS)]
                values = [curve.y[i] for i in known]
                style = "o--" if curve.dashed else "o-"
                axes.plot(known, values, style, color=colour, label=curve.name, markersize=4)
                if bounds := [curve.bounds[i] for i in known if curve.bounds]:
                    low, high = zip(*(each or (float("nan"),) * 2 for each in bounds), strict=True)
                    axes.fill_between(known, low, high, color=colour, alpha=0.12, linewidth=0)
            axes.set_xticks(range(len(panel.ticks)), panel.ticks)
            axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
            if panel.log:
                axes.set_yscale("log")
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
        with replacing(file) as part:
            figure.savefig(part, format="svg", metadata={"Date": None, "Creator": "mosrt"})


def _adapt(run: Mapping[str, Any]) -> list[Panel]:
    panels = []
    for title, metric in (("mean squared error", "mse"), ("pairs in order", "concordance")):
        curves = []
        ticks: list[str] = []
        for colour, (model, found) in enumerate(run["models"].items()):
            ticks = list(found["by_ratings"])
            rows = [found["by_ratings"][n] for n in ticks]
            own = found["domains"][found["default_domain"]][metric]
            curves += [
                Curve(
                    f"{model}, adapted",
                    [row["adapted"][metric] for row in rows],
                    [row["adapted"][f"{metric}_interval"] for row in rows],
                    colour,
                ),
                Curve(f"{model}, default domain", [own] * len(ticks), (), colour, dashed=True),
            ]
        panels.append(Panel("test left out", "ratings of other tests", title, ticks, curves))
    return panels


def _distillation(run: Mapping[str, Any]) -> list[Panel]:
    panels = []
    ticks = list(run["hours"])
    parts = run["hours"][ticks[0]]
    for title, metric in (("linear correlation", "lcc"), ("mean absolute error, MOS", "mae")):
        curves = [
            Curve(
                f"{domain}, {part.removeprefix('held-out ')}",
                [run["hours"][each][part][domain][metric] for each in ticks],
                (),
                colour,
                dashed=part.endswith("speakers"),
            )
            for part, domains in parts.items()
            for colour, domain in enumerate(domains)
        ]
        panels.append(Panel("held out", "hours of clips", title, ticks, curves))
    return panels


def _drift_detection(run: Mapping[str, Any]) -> list[Panel]:
    """Delays against the number of clips that are scored, for each size of a drop."""
    warm_up = run["delays"][0]["n_baseline"]
    rows = [row for row in run["delays"] if row["n_baseline"] == warm_up]
    rates = list(dict.fromkeys(row["scored_per_day"] for row in rows))
    panels = []
    for traffic in dict.fromkeys(row["traffic"] for row in rows):
        hours: dict[str, list[float | None]] = {}
        for row in rows:
            if row["traffic"] == traffic and row["change"].startswith("all clips by "):
                name = f"drop of {row['change'].removeprefix('all clips by ')} MOS"
                hours.setdefault(name, []).append(row["either"]["median_hours"])
        curves = [
            Curve(name, values, (), colour)
            for colour, (name, values) in enumerate(hours.items())
            if any(value is not None for value in values)
        ]
        panels.append(
            Panel(
                traffic, "clips scored per day", "hours until an alarm", [*map(str, rates)],
                curves, log=True,
            )
        )  # fmt: skip
    return panels


PLOTS: Final = {
    "adapt": _adapt,
    "distillation": _distillation,
    "drift_detection": _drift_detection,
}
"""By name of a raw result, what makes the panels of its plot."""
