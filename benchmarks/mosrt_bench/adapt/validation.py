"""Nested cross-validation of a domain, beside the domains that the model has."""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np

from mosrt._arrays import FloatArray
from mosrt_bench.output import finite, table
from mosrt_bench.stats.bootstrap import percentile_interval, resample_indices
from mosrt_bench.stats.metrics import agreement, intervals

from .fitting import RatedClips, affine, fit_head, folds

__all__ = ["gains", "predictions", "report_text", "validate"]

_FOLDS: Final = 10
_RESAMPLES: Final = 1000
_CURVE_FOLDS: Final = 5
_CURVE_DRAWS: Final = 2
_CURVE_CLIPS: Final = (5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_METRICS: Final = ("mse", "lcc", "srcc", "ktau")


def validate(clips: RatedClips, name: str) -> dict[str, Any]:
    """Predicts each clip's rating from other groups of clips, with all choices made on those.

    Returns:
        JSON-ready: "levels" with metrics and bootstrap intervals by predictor; "better", as of
        `gains`; "accepted"; "learning_curve"; "advice" on more ratings; and "warnings".
    """
    found = predictions(clips, name)
    better = gains(clips, found)
    curve = _learning_curve(clips, float(np.square(found[name] - clips.mos).mean()))
    n_groups = len(np.unique(clips.groups))
    result: dict[str, Any] = finite({
        "domain": name,
        "n_clips": len(clips.mos),
        "grouped_by": clips.grouped_by,
        "n_groups": n_groups,
        "levels": _levels(clips, found),
        "better": better,
        "accepted": all(gain["interval"][0] > 0 for gain in better.values()),
        "learning_curve": curve,
        "advice": _advice(curve, len(clips.mos)),
        "warnings": _warnings(clips, n_groups),
    })  # fmt: skip
    order = {each: result["levels"]["utterance"][each]["srcc"] or 0.0 for each in found}
    best = max(clips.scores, key=order.__getitem__)
    if order[name] < order[best]:
        result["warnings"].append(
            f"{name} orders clips worse than {best} (SRCC {order[name]:.2f}, {order[best]:.2f}); "
            f"take {best} where only the order counts"
        )
    return result


def predictions(clips: RatedClips, name: str) -> dict[str, FloatArray]:
    """MOS of clips (clips,) by predictor, the new domain first, the mean rating last.

    Between them are the domains of the model, as they stand and after an affine map. What is fitted
    predicts groups that it was not fitted to.
    """
    y = clips.mos
    found = {name: np.zeros(len(y))}
    for each, scores in clips.scores.items():
        found |= {each: scores, f"{each}, affine": np.zeros(len(y))}
    for test in folds(clips.groups, _FOLDS):
        found[name][test] = fit_head(clips, np.flatnonzero(~test))(clips.outputs)[test]
        for each, scores in clips.scores.items():
            slope, bias = affine(scores[~test], y[~test])
            found[f"{each}, affine"][test] = slope * scores[test] + bias
    return {**found, "mean rating": np.full(len(y), y.mean())}


def gains(clips: RatedClips, found: dict[str, FloatArray]) -> dict[str, dict[str, Any]]:
    """By how much the MSE of the new domain is lower, with a 95 % bootstrap interval over groups.

    It is compared with the domain of the model whose MSE is lowest as it stands, and with the mean
    rating.
    """
    squares = {each: np.square(values - clips.mos) for each, values in found.items()}
    name, *_, mean = found
    best = min(clips.scores, key=lambda each: squares[each].mean())
    names, group = np.unique(clips.groups, return_inverse=True)
    drawn = resample_indices(len(names), _RESAMPLES)
    better = {}
    for each in (best, mean):
        gain = squares[each] - squares[name]
        sums = np.bincount(group, gain)[drawn].sum(axis=1)
        interval = percentile_interval(sums / np.bincount(group)[drawn].sum(axis=1))
        better[each] = {"mse_gain": float(gain.mean()), "interval": interval}
    return better


def _levels(clips: RatedClips, found: dict[str, FloatArray]) -> dict[str, Any]:
    """Metrics by level and predictor: of clips, and of systems if every clip names one."""
    systems = [rating.system for rating in clips.ratings]
    levels = {"utterance": np.arange(len(systems))}
    if None not in systems:
        levels["system"] = np.unique(np.array(systems), return_inverse=True)[1]
    rows: dict[str, Any] = {}
    for level, units in levels.items():
        rated, *means = (  # rounded, so that the mean of constants is a constant
            np.round(np.bincount(units, each) / np.bincount(units), 9)
            for each in (clips.mos, *found.values())
        )
        for predictor, mean in zip(found, means, strict=True):
            metrics = {key: agreement(mean, rated)[key] for key in ("n", *_METRICS)}
            bounds = intervals(mean, rated, _METRICS)
            rows.setdefault(level, {})[predictor] = {**metrics, "intervals": bounds}
    return rows


def _learning_curve(clips: RatedClips, mse: float) -> list[tuple[int, float]]:
    """Numbers of clips to fit to, with the mean squared error; `mse` is that of nearly all."""
    rng = np.random.default_rng(0)
    squares: dict[int, list[FloatArray]] = {}
    for test in folds(clips.groups, _CURVE_FOLDS):
        others = np.flatnonzero(~test)
        for n in (n for n in _CURVE_CLIPS if n < 0.8 * len(others)):
            for _ in range(_CURVE_DRAWS):
                head = fit_head(clips, rng.permutation(others)[:n])
                errors = head(clips.outputs)[test] - clips.mos[test]
                squares.setdefault(n, []).append(np.square(errors))
    last = round(len(clips.mos) * (1 - 1 / _FOLDS))
    return [*((n, float(np.concatenate(each).mean())) for n, each in squares.items()), (last, mse)]


def _advice(curve: list[tuple[int, float]], n_clips: int) -> str:
    """What more ratings would probably bring, by a power law through the end of the curve."""
    if len(curve) < 3:
        return "too few clips to tell what more would bring; rate at least 20"
    n, mse = np.log(np.maximum(curve[-4:], 1e-9)).T
    slope = float(np.polyfit(n, mse, 1)[0])
    octaves = math.log2(0.9) / slope if slope < 0 else math.inf  # of clips, to nine tenths
    if octaves > 3:
        return "more ratings of this kind would probably help little"
    more = math.ceil((2**octaves - 1) * n_clips)
    return f"about {more} more rated clips would probably lower the MSE by a tenth"


def _warnings(clips: RatedClips, n_groups: int) -> list[str]:
    warnings = []
    if clips.grouped_by != "system":
        warnings.append(
            f"leakage: no 5 systems are named, so folds keep {clips.grouped_by}s apart; clips of "
            "one system on both sides flatter the result. Add a column system"
        )
    first: dict[bytes, int] = {}
    for i, scores in enumerate(next(iter(clips.outputs.values()))):
        j = first.setdefault(scores.tobytes(), i)
        if clips.groups[i] != clips.groups[j]:
            paths = f"{clips.ratings[j].path} and {clips.ratings[i].path}"
            warnings.append(f"leakage: {paths} are identical; keep one of them")
    if len(clips.mos) < 20 or n_groups < 5:
        warnings.append(
            f"few ratings: {len(clips.mos)} clips in {n_groups} groups; rate at least 20 clips of "
            "5 systems"
        )
    return warnings


def report_text(report: dict[str, Any]) -> str:
    """The report for a terminal."""
    lines = [
        f"{report['n_clips']} rated clips; folds by {report['grouped_by']} ({report['n_groups']}); "
        "95 % bootstrap intervals"
    ]
    for level, rows in report["levels"].items():
        cells = [
            [name, *(_cell(row[metric], row["intervals"][metric]) for metric in _METRICS)]
            for name, row in rows.items()
        ]
        lines += ["", table([level, *map(str.upper, _METRICS)], cells)]
    lines += ["", "MSE by number of clips: "]
    lines[-1] += ", ".join(f"{n}: {mse:.3f}" for n, mse in report["learning_curve"])
    for name, gain in report["better"].items():
        lines.append(f"MSE below that of {name}: {_cell(gain['mse_gain'], gain['interval'])}")
    lines.append(report["advice"])
    return "\n".join([*lines, *(f"warning: {each}" for each in report["warnings"])])


def _cell(value: float | None, bounds: list[float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + ("" if bounds is None else f" ({bounds[0]:.3f} to {bounds[1]:.3f})")
