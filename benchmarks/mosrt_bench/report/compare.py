"""Comparing reports: what changed between two runs of `mosrt bench`, with intervals.

Times of two runs were not taken in turn, so a change of the machine between them looks like a
change of the program; a note says so where machine or load differ. Figures about listeners are
compared on the same clips, resampled together. A change is a regression if it is worse than the
tolerance and its interval excludes no change at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mosrt_bench.bench.run import SCHEMA_VERSION
from mosrt_bench.errors import BenchError
from mosrt_bench.output import table
from mosrt_bench.stats.bootstrap import block_indices, percentile_interval
from mosrt_bench.stats.metrics import METRICS, paired_draws
from mosrt_bench.stats.voicemos import Rating, Slice, slices

from .sections import between, figure

__all__ = ["Change", "compare_reports", "comparison_table", "listener_changes", "read_report"]

FloatArray = npt.NDArray[np.float64]

_RESAMPLES: Final = 1000
_CORRELATIONS: Final = ("lcc", "srcc", "ktau")
# Sums in another order differ by this much, and on every resample in the same direction.
_ROUNDING: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One figure in two reports.

    Attributes:
        what: The contestant and the figure.
        before: In the first report; None where it has none.
        after: In the second; likewise.
        ratio: After divided by before; None where that says nothing.
        difference: After minus before, of correlations only.
        interval_95: Of the ratio or difference, where both runs have repeats.
        verdict: "regression", "improvement", "same", "gone", "new" or "note".
    """

    what: str
    before: float | None
    after: float | None
    ratio: float | None = None
    difference: float | None = None
    interval_95: tuple[float, float] | None = None
    verdict: str = "same"


def read_report(file: Path) -> dict[str, Any]:
    """A report.json.

    Raises:
        BenchError: It is none, or a newer mosrt's.
    """
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise BenchError(f"{file}: cannot be read ({exc})") from exc
    if not isinstance(report, dict) or report.get("kind") != "mosrt bench":
        raise BenchError(f"{file}: not a report.json of `mosrt bench`")
    if report.get("schema_version") != SCHEMA_VERSION:
        raise BenchError(
            f"{file}: schema {report.get('schema_version')}, and this mosrt reads "
            f"{SCHEMA_VERSION}; measure again"
        )
    return report


def compare_reports(
    before: Mapping[str, Any], after: Mapping[str, Any], tolerance: float
) -> list[Change]:
    """All figures that either report has.

    Args:
        before: The older report.
        after: The newer one.
        tolerance: Share by which time, memory, throughput or error may become worse, and by how
            much a correlation may drop.
    """
    changes = list(_notes(before, after))
    changes += _parity(before, after)
    changes += listener_changes(before, after, tolerance)
    for key, name_of, samples, more_is_better in (
        ("latency", _latency_name, "times_ms", False),
        ("throughput", _throughput_name, "clips_per_s_all", True),
    ):
        old = {name_of(row): row[samples] for row in before.get(key, [])}
        new = {name_of(row): row[samples] for row in after.get(key, [])}
        for name in {**old, **new}:
            changes.append(_measured(name, old.get(name), new.get(name), tolerance, more_is_better))
    for key, what in (("peak_mb", "peak, MB"), ("device_peak_mb", "device peak, MB")):
        peaks = [
            {
                f"{row['contestant']} {what}": row[key]
                for row in report.get("cold_start", [])
                if row.get(key) is not None
            }
            for report in (before, after)
        ]
        changes += [
            _single(name, peaks[0].get(name), peaks[1].get(name), tolerance)
            for name in {**peaks[0], **peaks[1]}
        ]
    return changes


def comparison_table(changes: Sequence[Change]) -> str:
    """The changes as a table, regressions first, and a count of each verdict."""
    ranks = ("regression", "gone", "improvement", "new", "note", "same")
    ranked = sorted(changes, key=lambda change: ranks.index(change.verdict))
    rows = [
        [
            change.what,
            figure(change.before, 5),
            figure(change.after, 5),
            figure(change.ratio) if change.difference is None else f"{change.difference:+.3f}",
            between(change.interval_95),
            change.verdict,
        ]
        for change in ranked
    ]
    counts = ", ".join(
        f"{sum(c.verdict == rank for c in changes)} {rank}"
        for rank in ranks
        if any(c.verdict == rank for c in changes)
    )
    header = ["figure", "before", "after", "ratio or ±", "95 %", "verdict"]
    return f"{table(header, rows)}\n{counts or 'nothing to compare'}"


def _notes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    """What makes two reports less comparable."""
    old, new = before["machine"], after["machine"]
    for name in ("cpu", "usable_cores", "platform", "python"):
        if old.get(name) != new.get(name):
            yield Change(
                what=f"{name}: {old.get(name)} -> {new.get(name)}",
                before=None, after=None, verdict="note",
            )  # fmt: skip
    for name in sorted({*old["packages"], *new["packages"]}):
        if old["packages"].get(name) != new["packages"].get(name):
            yield Change(
                what=f"{name}: {old['packages'].get(name)} -> {new['packages'].get(name)}",
                before=None, after=None, verdict="note",
            )  # fmt: skip
    audio = [{clip["sha256"] for clip in report["audio"]} for report in (before, after)]
    if audio[0] != audio[1]:
        yield Change(
            what="the clips are others: drift does not compare",
            before=None, after=None, verdict="note",
        )  # fmt: skip
    bundles = [{b["name"]: b["sha256"] for b in r["bundles"]} for r in (before, after)]
    for name in bundles[0]:
        if name in bundles[1] and bundles[0][name] != bundles[1][name]:
            yield Change(
                what=f"{name} is another bundle now", before=None, after=None, verdict="note"
            )


def _parity(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    """Drift: a row that passed and fails is a regression, whatever else changed."""
    old = {(r["contestant"], r.get("against")): r for r in before["parity"]}
    new = {(r["contestant"], r.get("against")): r for r in after["parity"]}
    for key in {**old, **new}:
        first, second = old.get(key), new.get(key)
        verdict = "gone" if second is None else "new" if first is None else "same"
        if first is not None and second is not None:
            # None: it does not run here
            ranks = {True: 2, None: 1, False: 0}
            change = ranks[second["passed"]] - ranks[first["passed"]]
            verdict = "regression" if change < 0 else "improvement" if change > 0 else "same"
        yield Change(
            what=f"{key[0]} against {key[1] or '-'}, max |Δ|",
            before=None if first is None else first.get("max_abs"),
            after=None if second is None else second.get("max_abs"),
            verdict=verdict,
        )


def _latency_name(row: Mapping[str, Any]) -> str:
    return f"{row['contestant']} p50 of {row['clip_s']:g} s, ms"


def _throughput_name(row: Mapping[str, Any]) -> str:
    return f"{row['contestant']} clips per s, {row['kind']} {row['count']}"


def _measured(
    name: str,
    old: Sequence[float] | None,
    new: Sequence[float] | None,
    tolerance: float,
    more_is_better: bool,
) -> Change:
    """A figure with repeats: the ratio of medians, resampled in both runs."""
    if old is None or new is None:
        medians = [None if times is None else float(np.median(times)) for times in (old, new)]
        return _present(name, *medians)
    a, b = np.asarray(old, np.float64), np.asarray(new, np.float64)
    ratios = _medians(b) / _medians(a)[::-1]  # the two draws must not be the same
    bounds = percentile_interval(ratios)
    ratio = float(np.median(b) / np.median(a))
    verdict = "same"
    if bounds is not None:
        low, high = bounds
        verdict = (
            _judged(ratio < 1 / (1 + tolerance) and high < 1, low > 1)
            if more_is_better
            else _judged(ratio > 1 + tolerance and low > 1, high < 1)
        )
    return Change(
        what=name,
        before=float(np.median(a)),
        after=float(np.median(b)),
        ratio=ratio,
        interval_95=bounds,
        verdict=verdict,
    )


def _medians(values: FloatArray) -> FloatArray:
    block = max(1, round(len(values) ** (1 / 3)))
    medians: FloatArray = np.median(values[block_indices(len(values), block, _RESAMPLES)], axis=1)
    return medians


def _single(name: str, old: float | None, new: float | None, tolerance: float) -> Change:
    """A figure without repeats, such as a peak."""
    if old is None or new is None:
        return _present(name, old, new)
    ratio = new / old
    verdict = "regression" if ratio > 1 + tolerance else "same"
    if ratio < 1 / (1 + tolerance):
        verdict = "improvement"
    return Change(what=name, before=old, after=new, ratio=ratio, verdict=verdict)


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
        return _present(what, was, now)
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
        verdict = _judged(ratio > 1 + tolerance and bounds[0] > 1, bounds[1] < 1)
    elif bounds is not None and difference is not None:
        verdict = _judged(difference < -tolerance and bounds[1] < 0, bounds[0] > 0)
    return Change(
        what=what,
        before=was,
        after=now,
        ratio=ratio,
        difference=difference,
        interval_95=bounds,
        verdict=verdict,
    )


def _judged(worse: bool, better: bool) -> str:
    """The verdict on a figure that both reports have."""
    return "regression" if worse else "improvement" if better else "same"


def _present(name: str, old: float | None, new: float | None) -> Change:
    """A figure that one of the reports may lack, and of which nothing else can be said."""
    verdict = "same" if old is None and new is None else "new" if old is None else "gone"
    return Change(what=name, before=old, after=new, verdict=verdict)
