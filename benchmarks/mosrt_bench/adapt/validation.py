"""Nested cross-validation of a domain, beside the domains that the model has."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mosrt._arrays import FloatArray, IntArray
from mosrt_bench.output import finite, table
from mosrt_bench.stats.bootstrap import percentile_interval, resample_indices
from mosrt_bench.stats.metrics import METRICS, agreement, intervals

from .fitting import MIN_GROUPS, RatedClips, affine, fit_head, folds

__all__ = ["Predictions", "decide", "predictions", "report_text", "validate"]

_FOLDS: Final = 10
_RESAMPLES: Final = 1000
_CURVE_FOLDS: Final = 5
_CURVE_DRAWS: Final = 2
_CURVE_CLIPS: Final = (5, 10, 20, 50, 100, 200, 500, 1000, 2000)
_METRICS: Final = ("mse", "lcc", "srcc", "ktau")
_MEAN: Final = "mean rating"


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Predicted MOS of clips, (clips,) by predictor: the new domain first, the mean rating last.

    Between them are the domains of the model, as they stand and after an affine map. What is fitted
    predicts clips whose groups it was not fitted to.

    Attributes:
        mos: The predictions.
        order: The predictions for correlations. The heads of different folds are put on one scale,
            by their mean and deviation over all clips: a fold without the best system predicts
            less for all clips, which would turn the order of systems round.
    """

    mos: dict[str, FloatArray]
    order: dict[str, FloatArray]


def validate(clips: RatedClips, name: str) -> dict[str, Any]:
    """Predicts each clip's rating from other groups of clips, with all choices made on those.

    Returns:
        JSON-ready: "levels" with metrics and bootstrap intervals by predictor; "decision", as of
        `decide`; "accepted"; "learning_curve"; "advice" on more ratings; and "warnings".
    """
    found, decision = decide(clips, name)
    curve = _learning_curve(
        clips, float(np.square(found.mos[name] - clips.mos).mean()), decision["order_of"]
    )
    levels = _levels(clips, found)
    report: dict[str, Any] = finite({
        "domain": name,
        "n_clips": len(clips.mos),
        "grouped_by": clips.grouped_by,
        "n_groups": [len(np.unique(column)) for column in clips.groups.T],
        "levels": levels,
        "decision": decision,
        "accepted": not decision["reasons"],
        "learning_curve": curve,
        "advice": _advice(curve, len(clips.mos)),
        "warnings": [*_warnings(clips), *_order_warnings(levels, name, decision["best_order"])],
    })  # fmt: skip
    return report


def decide(clips: RatedClips, name: str) -> tuple[Predictions, dict[str, Any]]:
    """Predicts all ratings, and decides whether the new domain is better than what there is.

    It is better if its MSE is lower than that of the best domain and of the mean rating, beyond the
    95 % interval of the difference, and if it orders clips at least as well (KTAU) as the domain
    that orders them best. If only the order is worse, the affine map of that domain is tried, which
    keeps its order.

    Returns:
        The predictions, and what decided: "mse_gain" with "gain" and "interval" by what it is
        compared with; "ktau" of the new domain and of "best_order", the best domain in this;
        "order_of", the domain whose order was kept, or None; and "reasons" to refuse it.
    """
    found = predictions(clips, name)
    decision = _compared(clips, found)
    best = decision["best_order"]
    if decision["reasons"] == [_worse_order(decision, name)] and best in clips.domains:
        found = predictions(clips, name, order_of=best)
        decision = {**_compared(clips, found), "order_of": best}
    return found, decision


def predictions(clips: RatedClips, name: str, *, order_of: str | None = None) -> Predictions:
    """Cross-validates a domain `name`; `order_of` is as of `fit_head`."""
    y = clips.mos
    mos, order = {name: np.zeros(len(y))}, {name: np.zeros(len(y))}
    for each, scores in clips.scores.items():
        mos |= {each: scores, f"{each}, affine": np.zeros(len(y))}
        order |= {each: scores, f"{each}, affine": scores}
    for fitted, test in folds(clips.groups, _FOLDS):
        values = fit_head(clips, np.flatnonzero(fitted), order_of=order_of)(clips.outputs)
        mos[name][test] = values[test]
        if (spread := values.std()) > 1e-6:
            order[name][test] = ((values - values.mean()) / spread)[test]
        for each, scores in clips.scores.items():
            slope, bias = affine(scores[fitted], y[fitted])
            mos[f"{each}, affine"][test] = slope * scores[test] + bias
    if order_of is not None:  # but for rounding
        order[name] = clips.scores[order_of]
    constant = np.full(len(y), y.mean())
    return Predictions({**mos, _MEAN: constant}, {**order, _MEAN: constant})


def _compared(clips: RatedClips, found: Predictions) -> dict[str, Any]:
    """What `decide` returns, without trying another map."""
    name = next(iter(found.mos))
    squares = {each: np.square(values - clips.mos) for each, values in found.mos.items()}
    closest = min(clips.scores, key=lambda each: squares[each].mean())
    gains: dict[str, dict[str, Any]] = {}
    for each in (closest, _MEAN):
        gain = squares[each] - squares[name]
        interval = percentile_interval(_resampled_means(gain, clips.groups))
        gains[each] = {"gain": float(gain.mean()), "interval": interval}
    ktau = {each: _ktau(found.order[each], clips.mos) for each in (name, *clips.scores)}
    best = max(clips.scores, key=ktau.__getitem__)
    decision: dict[str, Any] = {
        "mse_gain": gains, "best_order": best, "ktau": {each: ktau[each] for each in (name, best)},
        "order_of": None, "reasons": [],
    }  # fmt: skip
    unclear = [each for each, gain in gains.items() if not gain["interval"][0] > 0]
    if unclear:
        decision["reasons"] += [
            f"{name} is not better than {' and '.join(unclear)} by more than its interval"
        ]
    if ktau[name] < ktau[best] - 1e-9:
        decision["reasons"] += [_worse_order(decision, name)]
    return decision


def _worse_order(decision: dict[str, Any], name: str) -> str:
    own, best = (f"{each:.3f}" for each in decision["ktau"].values())
    return f"{name} orders clips worse than {decision['best_order']} (KTAU {own}, {best})"


def _ktau(predicted: FloatArray, rated: FloatArray) -> float:
    """Kendall's tau-b of clips; 0 if all are predicted alike."""
    return METRICS["ktau"](np.round(predicted, 9), rated) or 0.0


def _resampled_means(values: FloatArray, groups: IntArray) -> FloatArray:
    """Means of values (n,), if groups of each kind are drawn with replacement.

    A clip counts as often as its groups are drawn together (the pigeonhole bootstrap of Owen 2007).
    """
    kinds = [np.unique(column, return_inverse=True)[1] for column in groups.T]
    shape = [int(kind.max()) + 1 for kind in kinds]
    counts = []
    for seed, n in enumerate(shape):
        drawn = resample_indices(n, _RESAMPLES, rng=seed)
        counts.append(np.stack([np.bincount(each, minlength=n) for each in drawn]))
    drawn = functools.reduce(
        lambda a, b: (a[:, :, None] * b[:, None]).reshape(_RESAMPLES, -1), counts
    )
    cells = np.ravel_multi_index(kinds, shape)
    sums, sizes = (np.bincount(cells, each, drawn.shape[1]) for each in (values, None))
    with np.errstate(invalid="ignore"):  # 0 / 0 where no clip is drawn
        return np.asarray((drawn @ sums) / (drawn @ sizes))


def _levels(clips: RatedClips, found: Predictions) -> dict[str, Any]:
    """Metrics by level and predictor: of clips, and of systems if every clip names one."""
    systems = [rating.system for rating in clips.ratings]
    levels = {"utterance": np.arange(len(systems))}
    if None not in systems:
        levels["system"] = np.unique(np.array(systems), return_inverse=True)[1]
    rows: dict[str, Any] = {}
    for level, units in levels.items():
        rated = _means(clips.mos, units)
        for predictor in found.mos:
            row: dict[str, Any] = {"intervals": {}}
            for values, names in ((found.mos, _METRICS[:1]), (found.order, _METRICS[1:])):
                mean = _means(values[predictor], units)
                metrics = agreement(mean, rated)
                row |= {key: metrics[key] for key in ("n", *names)}
                row["intervals"] |= intervals(mean, rated, names)
            rows.setdefault(level, {})[predictor] = row
    return rows


def _means(values: FloatArray, units: IntArray) -> FloatArray:
    """Means of clips' values by unit, rounded, so that the mean of constants is a constant."""
    means: FloatArray = np.bincount(units, values) / np.bincount(units)
    return np.round(means, 9)


def _learning_curve(clips: RatedClips, mse: float, order_of: str | None) -> list[tuple[int, float]]:
    """Numbers of clips to fit to, with the mean squared error; `mse` is that of nearly all."""
    rng = np.random.default_rng(0)
    squares: dict[int, list[FloatArray]] = {}
    n_fitted = []
    for fitted, test in folds(clips.groups, _CURVE_FOLDS):
        others = np.flatnonzero(fitted)
        n_fitted.append(len(others))
        for n in (n for n in _CURVE_CLIPS if n < 0.8 * len(others)):
            for _ in range(_CURVE_DRAWS):
                head = fit_head(clips, rng.permutation(others)[:n], order_of=order_of)
                errors = head(clips.outputs)[test] - clips.mos[test]
                squares.setdefault(n, []).append(np.square(errors))
    # The folds of the cross-validation are smaller.
    last = round(len(clips.mos) * (1 - 1 / _FOLDS)) if clips.groups.shape[1] == 1 else max(n_fitted)
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


def _warnings(clips: RatedClips) -> list[str]:
    warnings = []
    systems, speakers = (
        len({getattr(rating, kind) for rating in clips.ratings} - {None})
        for kind in ("system", "speaker")
    )
    if systems < MIN_GROUPS:
        kinds = clips.grouped_by.replace(" and ", "s and ")
        warnings.append(
            f"leakage: no {MIN_GROUPS} systems are named, so folds keep {kinds}s apart; clips of "
            "one system on both sides flatter the result. Add a column system"
        )
    if 1 < speakers < MIN_GROUPS:
        warnings.append(
            f"leakage: with {speakers} speakers, each is on both sides of a fold; the result may "
            f"not hold for others. Rate {MIN_GROUPS} speakers or more"
        )
    first: dict[bytes, int] = {}
    for i, scores in enumerate(next(iter(clips.outputs.values()))):
        j = first.setdefault(scores.tobytes(), i)
        if (clips.groups[i] != clips.groups[j]).any():
            paths = f"{clips.ratings[j].path} and {clips.ratings[i].path}"
            warnings.append(f"leakage: {paths} are identical; keep one of them")
    n_groups = min(len(np.unique(column)) for column in clips.groups.T)
    if len(clips.mos) < 20 or n_groups < MIN_GROUPS:
        warnings.append(
            f"few ratings: {len(clips.mos)} clips in {n_groups} groups; rate at least 20 clips of "
            f"{MIN_GROUPS} systems"
        )
    return warnings


def _order_warnings(levels: dict[str, Any], name: str, best: str) -> list[str]:
    """Whether systems, if they are named, are ordered worse than by the best domain for clips."""
    own, other = (levels.get("system", {}).get(each, {}).get("ktau") for each in (name, best))
    if own is None or other is None or own >= other:
        return []
    return [
        f"{name} orders systems worse than {best} (KTAU {own:.3f}, {other:.3f}); take {best} where "
        "only the order of systems counts"
    ]


def report_text(report: dict[str, Any]) -> str:
    """The report for a terminal."""
    groups = " and ".join(map(str, report["n_groups"]))
    lines = [
        f"{report['n_clips']} rated clips; folds by {report['grouped_by']} ({groups}); 95 % "
        "bootstrap intervals"
    ]
    for level, rows in report["levels"].items():
        cells = [
            [name, *(_cell(row[metric], row["intervals"][metric]) for metric in _METRICS)]
            for name, row in rows.items()
        ]
        lines += ["", table([level, *map(str.upper, _METRICS)], cells)]
    lines += ["", "MSE by number of clips: "]
    lines[-1] += ", ".join(f"{n}: {mse:.3f}" for n, mse in report["learning_curve"])
    decision = report["decision"]
    for name, gain in decision["mse_gain"].items():
        lines.append(f"MSE below that of {name}: {_cell(gain['gain'], gain['interval'])}")
    ktau = [f"{name} {value:.3f}" for name, value in decision["ktau"].items()]
    lines.append(f"Order of clips (KTAU): {ktau[0]}; the best domain is {ktau[1]}")
    if (kept := decision["order_of"]) is not None:
        lines.append(
            f"Richer maps ordered clips worse than {kept}, so that {report['domain']} is a "
            f"straight line of {kept}, with its order"
        )
    lines.append(report["advice"])
    return "\n".join([*lines, *(f"warning: {each}" for each in report["warnings"])])


def _cell(value: float | None, bounds: list[float] | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + ("" if bounds is None else f" ({bounds[0]:.3f} to {bounds[1]:.3f})")
