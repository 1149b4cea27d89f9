"""Targets: what the best row is held to on a GPU, and whether it gets there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .rows import Row

__all__ = ["MET", "MISSED", "NOT_MEASURED", "TARGETS", "Target", "judge_targets"]

MET: Final = "met"
MISSED: Final = "missed"
NOT_MEASURED: Final = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A figure of a row, and what it should be.

    Attributes:
        title: What it is.
        limit: At most or at least this.
        figure: Takes it out of a measured row; None where the row has none.
        at_most: Whether less is better.
    """

    title: str
    limit: float
    figure: Callable[[Mapping[str, Any]], float | None]
    at_most: bool = False


def _at(*path: str) -> Callable[[Mapping[str, Any]], float | None]:
    def figure(row: Mapping[str, Any]) -> float | None:
        found: Any = row
        for name in path:
            found = found.get(name) if isinstance(found, Mapping) else None
        return None if found is None else float(found)

    return figure


TARGETS: Final = (
    Target(
        title="one clip, p50, ms",
        limit=10.0,
        figure=_at("latency", "quantiles", "p50", "ms"),
        at_most=True,
    ),
    Target(title="clips per second", limit=300.0, figure=_at("throughput", "clips_per_s")),
    Target(
        title="one clip, times as fast as the baseline",
        limit=2.0,
        figure=_at("latency", "times_as_fast", "ratio"),
    ),
    Target(
        title="throughput, times that of the baseline",
        limit=2.0,
        figure=_at("throughput", "times_as_fast", "ratio"),
    ),
)


def judge_targets(
    measured: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Row], *, counts: bool
) -> list[dict[str, Any]]:
    """Every target with the best row's figure, and whether it is met.

    Args:
        measured: What was found out, by row.
        rows: The rows; only mosrt's own are held to targets.
        counts: Whether this run is of the kind that targets are about: long enough, on a GPU.
    """
    own = {
        name: found
        for name, found in measured.items()
        if counts and found["status"] == "measured" and not rows[name].is_torch
    }
    judged = []
    for target in TARGETS:
        figures = {name: target.figure(found) for name, found in own.items()}
        known = {name: value for name, value in figures.items() if value is not None}
        entry: dict[str, Any] = {
            "target": target.title,
            "limit": target.limit,
            "at_most": target.at_most,
            "status": NOT_MEASURED,
            "best": None,
            "row": None,
        }
        if known:
            best = (min if target.at_most else max)(known, key=lambda name: known[name])
            met = known[best] <= target.limit if target.at_most else known[best] >= target.limit
            entry |= {"status": MET if met else MISSED, "best": known[best], "row": best}
        judged.append(entry)
    return judged
