"""Comparing reports: what changed between two runs of `mosrt bench`, with intervals.

Times of two runs were not taken in turn, so a change of the machine between them looks like a
change of the program; a note says so where machine or load differ. Figures about listeners are
compared on the same clips, resampled together. A change is a regression if it is worse than the
tolerance and its interval excludes no change at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mosrt_bench.bench.run import SCHEMA_VERSION
from mosrt_bench.errors import BenchError
from mosrt_bench.output import table
from mosrt_bench.stats.bootstrap import block_indices, percentile_interval

from .change import Change, judged, present
from .listener_changes import listener_changes
from .sections import between, figure

__all__ = ["compare_reports", "comparison_table", "read_report"]

FloatArray = npt.NDArray[np.float64]

_RESAMPLES: Final = 1000


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
        return present(name, *medians)
    a, b = np.asarray(old, np.float64), np.asarray(new, np.float64)
    ratios = _medians(b) / _medians(a)[::-1]  # the two draws must not be the same
    bounds = percentile_interval(ratios)
    ratio = float(np.median(b) / np.median(a))
    verdict = "same"
    if bounds is not None:
        low, high = bounds
        verdict = (
            judged(ratio < 1 / (1 + tolerance) and high < 1, low > 1)
            if more_is_better
            else judged(ratio > 1 + tolerance and low > 1, high < 1)
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
        return present(name, old, new)
    ratio = new / old
    verdict = "regression" if ratio > 1 + tolerance else "same"
    if ratio < 1 / (1 + tolerance):
        verdict = "improvement"
    return Change(what=name, before=old, after=new, ratio=ratio, verdict=verdict)
