"""Compare two reports of `mosrt bench`: what became slower, larger or less accurate.

The two runs were not interleaved, so a change of the machine looks like a change of the program; a
note appears where machine, versions or clips differ. Agreement with listeners is compared on the
clips that both reports score, resampled together. A figure is a regression if it is worse by more
than the tolerance and its 95 % interval excludes no change.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from mosrt._arrays import FloatArray
from mosrt.cli.ratings import Rating
from mosrt_bench.bench.run import SCHEMA_VERSION
from mosrt_bench.errors import BenchError
from mosrt_bench.output import table
from mosrt_bench.stats.bootstrap import percentile_interval, resample_indices
from mosrt_bench.stats.metrics import METRICS, resampled
from mosrt_bench.stats.voicemos import Slice, slices

from .sections import interval_cell, number

__all__ = ["Delta", "compare_reports", "comparison_table", "listener_deltas", "read_report"]

Report = Mapping[str, Any]
Measured = float | Sequence[float]
"""A figure that was measured once or repeatedly."""
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

_RESAMPLES: Final = 1000
_CORRELATIONS: Final = ("lcc", "srcc", "ktau")
# Sums in another order differ by this much, and on every resample in the same direction.
_ROUNDING: Final = 1e-9
# Rows of the report, what they measure, where they have it, and whether higher is better.
_FIGURES: Final = (
    ("latency", "p50 of {clip_s:g} s, ms", "times_ms", False),
    ("throughput", "clips per s, {kind} {count}", "clips_per_s_all", True),
    ("cold_start", "peak, MB", "peak_mb", False),
    ("cold_start", "device peak, MB", "device_peak_mb", False),
)
_VERDICTS: Final = ("regression", "gone", "improvement", "new", "note", "same")


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """One figure in two reports.

    Attributes:
        what: The configuration and the figure.
        before: Value in the first report; None if it has none.
        after: Value in the second report; None if it has none.
        ratio: After divided by before; None where a ratio has no meaning.
        difference: After minus before, for correlations only.
        interval_95: Of the ratio or the difference, if both runs have repeated measurements.
        verdict: "regression", "improvement", "same", "gone", "new" or "note".
    """

    what: str
    before: float | None = None
    after: float | None = None
    ratio: float | None = None
    difference: float | None = None
    interval_95: tuple[float, float] | None = None
    verdict: str = "same"


def read_report(file: Path) -> dict[str, Any]:
    """Reads a report.json.

    Raises:
        BenchError: It is not a report, or of another schema version.
    """
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise BenchError(f"{file}: cannot be read ({exc})") from exc
    if not isinstance(report, dict) or report.get("kind") != "mosrt bench":
        raise BenchError(f"{file}: not a report.json of `mosrt bench`")
    if report.get("schema_version") != SCHEMA_VERSION:
        raise BenchError(
            f"{file}: schema version {report.get('schema_version')}, but this mosrt reads version "
            f"{SCHEMA_VERSION}; run the bench again"
        )
    return report


def compare_reports(before: Report, after: Report, tolerance: float) -> list[Delta]:
    """Compares all figures that either report has.

    Args:
        before: The older report.
        after: The newer one.
        tolerance: Relative increase of time, memory or error, relative loss of throughput, and
            absolute drop of a correlation that still pass.
    """
    deltas = [
        *_notes(before, after),
        *_parity(before, after),
        *listener_deltas(before, after, tolerance),
    ]
    for rows, figure, key, higher_is_better in _FIGURES:
        measured = [
            {
                f"{row['contestant']} {figure.format(**row)}": row[key]
                for row in report.get(rows, [])
                if row.get(key) is not None
            }
            for report in (before, after)
        ]
        for what, old, new in _pairs(*measured):
            deltas.append(_measured(what, old, new, tolerance, higher_is_better=higher_is_better))
    return deltas


def comparison_table(deltas: Sequence[Delta]) -> str:
    """The deltas as a table, regressions first, followed by the count of each verdict."""
    rows = [
        [
            delta.what,
            number(delta.before, 5),
            number(delta.after, 5),
            number(delta.ratio) if delta.difference is None else f"{delta.difference:+.3f}",
            interval_cell(delta.interval_95),
            delta.verdict,
        ]
        for delta in sorted(deltas, key=lambda delta: _VERDICTS.index(delta.verdict))
    ]
    counts = ", ".join(
        f"{sum(d.verdict == verdict for d in deltas)} {verdict}"
        for verdict in _VERDICTS
        if any(d.verdict == verdict for d in deltas)
    )
    header = ["figure", "before", "after", "ratio or delta", "95 %", "verdict"]
    return f"{table(header, rows)}\n{counts or 'nothing to compare'}"


def _pairs(
    old: Mapping[_Key, _Value], new: Mapping[_Key, _Value]
) -> Iterator[tuple[_Key, _Value | None, _Value | None]]:
    """Everything that either report has, with its value in both; None where one lacks it."""
    for key in {**old, **new}:
        yield key, old.get(key), new.get(key)


def _notes(before: Report, after: Report) -> Iterator[Delta]:
    """What makes two reports less comparable."""
    versions = [
        {name: r["machine"].get(name) for name in ("cpu", "usable_cores", "platform", "python")}
        | r["machine"]["packages"]
        for r in (before, after)
    ]
    for name, old, new in _pairs(*versions):
        if old != new:
            yield Delta(what=f"{name}: {old} -> {new}", verdict="note")
    audio = [{clip["sha256"] for clip in report["audio"]} for report in (before, after)]
    if audio[0] != audio[1]:
        yield Delta(what="the clips differ, so drift does not compare", verdict="note")
    bundles = [{b["name"]: b["sha256"] for b in r["bundles"]} for r in (before, after)]
    for name, old, new in _pairs(*bundles):
        if None not in {old, new} and old != new:
            yield Delta(what=f"the bundle of {name} has changed", verdict="note")


def _parity(before: Report, after: Report) -> Iterator[Delta]:
    """Drift: what passed and now fails is a regression, however small the change."""
    rows = [{(r["contestant"], r.get("against")): r for r in x["parity"]} for x in (before, after)]
    # None: the configuration does not run on that machine
    ranks = {True: 2, None: 1, False: 0}
    for (name, against), old, new in _pairs(*rows):
        if old is None or new is None:
            verdict = "new" if old is None else "gone"
        else:
            gain = ranks[new["passed"]] - ranks[old["passed"]]
            verdict = _verdict(worse=gain < 0, better=gain > 0)
        yield Delta(
            what=f"{name} against {against or '-'}, max |Δ|",
            before=None if old is None else old.get("max_abs"),
            after=None if new is None else new.get("max_abs"),
            verdict=verdict,
        )


def _measured(
    what: str, old: Measured | None, new: Measured | None, tolerance: float, *,
    higher_is_better: bool,
) -> Delta:  # fmt: skip
    """A time, rate or size: the ratio of medians, both runs resampled."""
    was, now = (None if values is None else float(np.median(values)) for values in (old, new))
    if isinstance(old, Sequence) and isinstance(new, Sequence):
        # reversed, so that the runs are resampled apart
        resamples = _medians(old)[::-1], _medians(new)
        return _delta(what, was, now, tolerance, resamples, higher_is_better=higher_is_better)
    delta = _delta(what, was, now, tolerance, None)
    if delta.ratio is None:
        return delta
    # measured once, such as a peak
    worse, better = delta.ratio > 1 + tolerance, delta.ratio < 1 / (1 + tolerance)
    return replace(delta, verdict=_verdict(worse=worse, better=better))


def _medians(values: Sequence[float]) -> FloatArray:
    block = max(1, round(len(values) ** (1 / 3)))
    indices = resample_indices(len(values), _RESAMPLES, block=block)
    medians: FloatArray = np.median(np.asarray(values, np.float64)[indices], axis=1)
    return medians


def listener_deltas(before: Report, after: Report, tolerance: float) -> Iterator[Delta]:
    """Compares how well scores agree with listeners, by configuration, metric and slice.

    Errors are compared by their ratio and correlations by their difference; the arguments are those
    of `compare_reports`. Reports without ratings give nothing.
    """
    ratings = [_ratings(report) for report in (before, after)]
    if not ratings[0] or not ratings[1]:
        return
    if set(ratings[0]) != set(ratings[1]):
        what = "the ratings differ, so agreement with listeners does not compare"
        yield Delta(what=what, verdict="note")
        return
    for name, old, new in _pairs(_predicted(before), _predicted(after)):
        if old is None or new is None:
            verdict = "new" if old is None else "gone"
            yield Delta(what=f"{name}, agreement with listeners", verdict=verdict)
            continue
        if old.keys() - new.keys():
            yield Delta(
                what=f"{name}, rated clips with a score", before=float(len(old)),
                after=float(len(new)), verdict="regression",
            )  # fmt: skip
        on_scale = name not in _off_scale(before) | _off_scale(after)
        metrics = ("mse", *_CORRELATIONS) if on_scale else _CORRELATIONS
        for part in slices([r for r in ratings[1] if r.path in old and r.path in new]):
            for metric in metrics:
                yield _agreement(name, part, metric, old, new, tolerance)


def _ratings(report: Report) -> tuple[Rating, ...]:
    names = Rating.__dataclass_fields__
    return tuple(
        Rating(**{n: row[n] for n in names if n in row}) for row in report.get("ratings", [])
    )


def _predicted(report: Report) -> dict[str, dict[str, float]]:
    """Scores by configuration and path, without those that a guard refused."""
    found: dict[str, dict[str, float]] = {}
    for row in report["ratings"]:
        for name, score in row["predicted"].items():
            if score is not None:
                found.setdefault(name, {})[row["path"]] = score
    return found


def _off_scale(report: Report) -> set[str]:
    """Configurations whose scores are not on the listeners' scale."""
    return {row["contestant"] for row in report["labels"] if row["mse"] is None}


def _agreement(
    name: str,
    part: Slice,
    metric: str,
    old: Mapping[str, float],
    new: Mapping[str, float],
    tolerance: float,
) -> Delta:
    predicted, rated = [part.predicted(each) for each in (old, new)], part.rated()
    was, now = (METRICS[metric](values, rated) for values in predicted)
    where = f"{part.level}, best {part.zoom_percent:g} %" if part.systems else part.level
    what = f"{name} {metric.upper()}, {part.dataset or 'all'}, {where}"
    is_error = metric not in _CORRELATIONS
    if (
        was is not None
        and now is not None
        and (abs(now - was) < _ROUNDING or (is_error and not was))
    ):
        return Delta(what=what, before=was, after=now)
    a, b = (resampled(values, rated, metric) for values in predicted)
    resamples = None if a is None or b is None else (a, b)
    return _delta(
        what, was, now, tolerance, resamples, difference=not is_error, higher_is_better=not is_error
    )


def _delta(
    what: str,
    was: float | None,
    now: float | None,
    tolerance: float,
    resamples: tuple[FloatArray, FloatArray] | None,
    *,
    difference: bool = False,
    higher_is_better: bool = False,
) -> Delta:
    """A figure of either report or of both, which counts as the same if it is not resampled."""
    if was is None or now is None:
        verdict = "same" if was is now else "new" if was is None else "gone"
        return Delta(what=what, before=was, after=now, verdict=verdict)
    change, same = (now - was, 0.0) if difference else (now / was, 1.0)
    interval = None
    if resamples is not None:
        a, b = resamples
        with np.errstate(divide="ignore", invalid="ignore"):  # an error of 0 has no ratio
            interval = percentile_interval(b - a if difference else b / a)
    low, high = interval or (math.nan, math.nan)  # of which all comparisons are false
    if higher_is_better:
        limit = -tolerance if difference else 1 / (1 + tolerance)
        verdict = _verdict(worse=change < limit and high < same, better=low > same)
    else:
        verdict = _verdict(worse=change > 1 + tolerance and low > 1, better=high < 1)
    changes = {"difference" if difference else "ratio": change}
    return Delta(what=what, before=was, after=now, interval_95=interval, verdict=verdict, **changes)


def _verdict(*, worse: bool, better: bool) -> str:
    """The verdict on a figure that both reports have."""
    return "regression" if worse else "improvement" if better else "same"
