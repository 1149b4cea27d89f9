"""Measure how predicted scores agree with reference scores.

With d = predicted - reference: MAE, the largest and the 95th percentile of |d|, and MSE. Pearson's
linear correlation (LCC), Spearman's rank correlation with mean ranks for ties (SRCC) and Kendall's
tau-b (KTAU) are scipy's. A correlation with a constant list is undefined: it is None, with a note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy.stats

from mosrt._arrays import FloatArray, IntArray
from mosrt_bench.errors import BenchError

from .bootstrap import percentile_interval, resample_indices

__all__ = ["METRICS", "agreement", "intervals", "rank_flips", "resampled"]

Metric = Callable[[FloatArray, FloatArray], float | None]

_CLOSE_MOS: Final = 0.1
_MIN_CORRELATED: Final = 3
_MIN_RESAMPLED: Final = 5
_MAX_FLIP_CLIPS: Final = 4000
# Above this, a matrix of all pairs takes more memory than the time it saves is worth.
MAX_PAIRED: Final = 2000


def _correlation(function: Callable[..., Any]) -> Metric:
    """A correlation of scipy; None for too few pairs and for a constant list."""

    def metric(x: FloatArray, y: FloatArray) -> float | None:
        if len(x) < _MIN_CORRELATED or np.ptp(x) == 0 or np.ptp(y) == 0:
            return None
        return float(function(x, y).statistic)

    return metric


METRICS: Final[Mapping[str, Metric]] = {
    "mae": lambda x, y: float(np.abs(x - y).mean()),
    "mse": lambda x, y: float(np.square(x - y).mean()),
    "lcc": _correlation(scipy.stats.pearsonr),
    "srcc": _correlation(scipy.stats.spearmanr),
    "ktau": _correlation(scipy.stats.kendalltau),
}
"""Metrics that have an interval, by name."""


def agreement(predicted: npt.ArrayLike, reference: npt.ArrayLike) -> dict[str, Any]:
    """Compares two lists of scores, pair by pair.

    Args:
        predicted: (n,), finite.
        reference: (n,), finite.

    Returns:
        The number of pairs "n"; the metrics of `METRICS`, "max_abs" and "p95_abs", the largest and
        the 95th percentile (linearly interpolated) of |predicted - reference|; and "notes" on ties,
        constant lists and too few pairs. JSON-ready.

    Raises:
        BenchError: The lists are empty, of different length, or not finite.
    """
    x, y = _checked(predicted, reference)
    d = np.abs(x - y)
    return {
        "n": len(x),
        "max_abs": float(d.max()),
        "p95_abs": float(np.percentile(d, 95)),
        **{name: metric(x, y) for name, metric in METRICS.items()},
        "notes": _notes(x, y),
    }


def intervals(
    predicted: npt.ArrayLike,
    reference: npt.ArrayLike,
    names: Sequence[str] = tuple(METRICS),
    *,
    resamples: int = 500,
) -> dict[str, tuple[float, float] | None]:
    """95 % bootstrap intervals by metric; None as of `resampled`."""
    drawn = {name: resampled(predicted, reference, name, resamples=resamples) for name in names}
    return {
        name: None if values is None else percentile_interval(values)
        for name, values in drawn.items()
    }


def resampled(
    predicted: npt.ArrayLike, reference: npt.ArrayLike, name: str, *, resamples: int = 500
) -> FloatArray | None:
    """A metric on seeded resamples of the pairs; one by one they would take seconds.

    Lists of one length are resampled alike. Easy and difficult clips then affect two models alike,
    so that the interval of the difference is that of the models and not of the choice of clips.

    Returns:
        (resamples,), nan where a correlation is undefined; None for fewer than five pairs.
    """
    x, y = _checked(predicted, reference)
    if len(x) < _MIN_RESAMPLED:
        return None
    indices = resample_indices(len(x), resamples)
    if name == "ktau" and len(x) <= MAX_PAIRED:
        return _ktau_resampled(x, y, indices)
    a, b = x[indices], y[indices]
    if name == "mae":
        return np.asarray(np.abs(a - b).mean(axis=1))
    if name == "mse":
        return np.asarray(np.square(a - b).mean(axis=1))
    if name == "ktau":
        return np.array([METRICS[name](*pair) for pair in zip(a, b, strict=True)], np.float64)
    constant = (np.ptp(a, axis=1) == 0) | (np.ptp(b, axis=1) == 0)
    if name == "srcc":
        a, b = (scipy.stats.rankdata(values, axis=1) for values in (a, b))
    a, b = (values - values.mean(axis=1, keepdims=True) for values in (a, b))
    with np.errstate(invalid="ignore"):  # 0 / 0 where a list is constant
        found = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return np.where(constant, np.nan, found)


def _ktau_resampled(x: FloatArray, y: FloatArray, indices: IntArray) -> FloatArray:
    """Tau-b of each resample: sums over pairs of clips, weighted by how often both were drawn."""
    counts = np.zeros((len(indices), len(x)))
    np.add.at(counts, (np.arange(len(indices))[:, None], indices), 1.0)
    signs = [np.sign(values[:, None] - values) for values in (x, y)]
    pairs = [signs[0] * signs[1], np.abs(signs[0]), np.abs(signs[1])]
    agreeing, of_x, of_y = ((counts @ each * counts).sum(axis=1) for each in pairs)
    with np.errstate(invalid="ignore"):  # 0 / 0 where a list is constant
        return np.asarray(agreeing / np.sqrt(of_x * of_y))


def rank_flips(predicted: npt.ArrayLike, reference: npt.ArrayLike) -> dict[str, float]:
    """Counts pairs that change their order; a pair that becomes a tie is not flipped.

    Only the first 4 000 clips are counted, since the work grows with the square of their number.

    Args:
        predicted: (n,), finite.
        reference: (n,), finite.

    Returns:
        "pairs", those that are less than "close" apart in the reference and no ties, and "flipped",
        those of them in the opposite order; "all_pairs" and "all_flipped", the same for any
        difference; and "widest", the largest reference difference of a flipped pair, 0 if there is
        none.
    """
    x, y = (values[:_MAX_FLIP_CLIPS] for values in _checked(predicted, reference))
    found = {"pairs": 0, "flipped": 0, "all_pairs": 0, "all_flipped": 0}
    widest = 0.0
    for i in range(len(x) - 1):
        gap = y[i + 1 :] - y[i]
        turned = (x[i + 1 :] - x[i]) * gap < 0
        near = np.abs(gap) < _CLOSE_MOS
        found["pairs"] += int((near & (gap != 0)).sum())
        found["flipped"] += int((near & turned).sum())
        found["all_pairs"] += int((gap != 0).sum())
        found["all_flipped"] += int(turned.sum())
        widest = float(np.abs(gap[turned]).max(initial=widest))
    return {**found, "widest": widest, "close": _CLOSE_MOS}


def _checked(predicted: npt.ArrayLike, reference: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    x, y = np.asarray(predicted, np.float64), np.asarray(reference, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not x.size:
        raise BenchError(
            f"scores to compare must be two lists of the same length, not {x.shape} and {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise BenchError("scores to compare must be finite; leave out clips without a score")
    return x, y


def _notes(x: FloatArray, y: FloatArray) -> list[str]:
    notes = []
    if len(x) < _MIN_CORRELATED:
        notes.append(f"{len(x)} pairs: a correlation needs at least {_MIN_CORRELATED}")
    for name, values in (("predicted", x), ("reference", y)):
        distinct = len(np.unique(values))
        if len(x) > 1 and distinct == 1:
            notes.append(f"all {name} scores are equal: correlations are undefined")
        elif distinct < len(values):
            notes.append(f"{len(values) - distinct} of {len(values)} {name} scores are ties")
    return notes
