"""Listener changes: whether scores follow listeners better or worse than in an earlier report.

Errors are compared by their ratio and correlations by their difference, both on the clips that both
reports score, resampled together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from mosrt_bench.stats.bootstrap import percentile_interval
from mosrt_bench.stats.metrics import METRICS, paired_draws
from mosrt_bench.stats.voicemos import Rating, Slice, slices

from .change import Change, judged, present

__all__ = ["listener_changes"]

_CORRELATIONS: Final = ("lcc", "srcc", "ktau")
# Sums in another order differ by this much, and on every resample in the same direction.
_ROUNDING: Final = 1e-9


def listener_changes(
    before: Mapping[str, Any], after: Mapping[str, Any], tolerance: float
) -> Iterator[Change]:
    """A change per contestant, metric and row of the challenge's table; none without ratings.

    Args:
        before: The older report.
        after: The newer one.
        tolerance: Share by which an error may grow, and by how much a correlation may drop.
    """
    ratings = [_ratings(report) for report in (before, after)]
    if not ratings[0] or not ratings[1]:
        return
    if set(ratings[0]) != set(ratings[1]):
        yield Change(
            what="the ratings are others: agreement with listeners does not compare",
            before=None, after=None, verdict="note",
        )  # fmt: skip
        return
    predicted = [_predicted(report) for report in (before, after)]
    for name in {**predicted[0], **predicted[1]}:
        old, new = (each.get(name) for each in predicted)
        if old is None or new is None:
            what = f"{name}, agreement with listeners"
            yield Change(
                what=what, before=None, after=None, verdict="new" if old is None else "gone"
            )
            continue
        lost = len(old.keys() - new.keys())
        if lost:
            yield Change(
                what=f"{name}, rated clips with a score", before=float(len(old)),
                after=float(len(new)), verdict="regression",
            )  # fmt: skip
        on_scale = name not in _off_scale(before) | _off_scale(after)
        metrics = ("mse", *_CORRELATIONS) if on_scale else _CORRELATIONS
        for part in slices([r for r in ratings[1] if r.path in old and r.path in new]):
            for metric in metrics:
                yield _agreement(name, part, metric, old, new, tolerance)


def _ratings(report: Mapping[str, Any]) -> tuple[Rating, ...]:
    names = Rating.__dataclass_fields__
    return tuple(Rating(**{n: row[n] for n in names}) for row in report.get("ratings", []))


def _predicted(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Scores by path, by contestant; without those that a guard refused."""
    found: dict[str, dict[str, float]] = {}
    for row in report["ratings"]:
        for name, score in row["predicted"].items():
            if score is not None:
                found.setdefault(name, {})[row["path"]] = score
    return found


def _off_scale(report: Mapping[str, Any]) -> set[str]:
    """Contestants whose scores are not on the listeners' scale."""
    return {row["contestant"] for row in report["labels"] if row["mse"] is None}


def _agreement(
    name: str,
    part: Slice,
    metric: str,
    old: Mapping[str, float],
    new: Mapping[str, float],
    tolerance: float,
) -> Change:
    found, wanted = [part.found(each) for each in (old, new)], part.wanted()
    was, now = (METRICS[metric](values, wanted) for values in found)
    where = f"{part.level}, best {part.zoom_percent:g} %" if part.systems else part.level
    what = f"{name} {metric.upper()}, {part.dataset or 'all'}, {where}"
    if was is None or now is None:
        return present(what, was, now)
    if abs(now - was) < _ROUNDING:
        return Change(what=what, before=was, after=now, verdict="same")
    drawn = paired_draws(found[0], found[1], wanted, metric)
    is_error = metric not in _CORRELATIONS
    ratio = now / was if is_error and was else None
    difference = None if is_error else now - was
    bounds = None
    if drawn is not None:
        with np.errstate(divide="ignore", invalid="ignore"):  # an error of 0 has no ratio
            bounds = percentile_interval(drawn[1] / drawn[0] if is_error else drawn[1] - drawn[0])
    verdict = "same"
    if bounds is not None and ratio is not None:
        verdict = judged(ratio > 1 + tolerance and bounds[0] > 1, bounds[1] < 1)
    elif bounds is not None and difference is not None:
        verdict = judged(difference < -tolerance and bounds[1] < 0, bounds[0] > 0)
    return Change(
        what=what,
        before=was,
        after=now,
        ratio=ratio,
        difference=difference,
        interval_95=bounds,
        verdict=verdict,
    )
