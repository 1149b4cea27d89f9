"""Measure how predicted scores agree with reference scores.

With d = predicted - reference: MAE, the largest and the 95th percentile of |d|, and MSE. Pearson's
linear correlation (LCC), Spearman's rank correlation with mean ranks for ties (SRCC) and Kendall's
tau-b (KTAU) are scipy's. A correlation with a constant list is undefined: it is None, with a note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy.stats

from mosrt._arrays import FloatArray, IntArray
from mosrt.errors import MosrtError

from .bootstrap import percentile_interval, resample_indices

__all__ = [
    "CLOSE_MOS",
    "METRICS",
    "Agreement",
    "Flips",
    "MetricError",
    "agreement",
    "intervals",
    "paired_resamples",
    "rank_flips",
]


CLOSE_MOS: Final = 0.1
_MIN_CORRELATED: Final = 3
_MIN_RESAMPLED: Final = 5
_MAX_FLIP_CLIPS: Final = 4000
# Above this, a matrix of all pairs takes more memory than the time it saves is worth.
_MAX_PAIRED: Final = 2000


class MetricError(MosrtError, ValueError):
    """Lists of scores that cannot be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Agreement of predicted with reference scores.

    Attributes:
        n: Number of pairs.
        mae: Mean of |predicted - reference|.
        max_abs: Largest |predicted - reference|.
        p95_abs: 95th percentile of |predicted - reference|, linearly interpolated.
        mse: Mean of (predicted - reference)².
        lcc: Pearson's correlation; None where it is undefined.
        srcc: Spearman's correlation; None where it is undefined.
        ktau: Kendall's tau-b; None where it is undefined.
        notes: Ties, constant lists, too few pairs.
    """

    n: int
    mae: float
    max_abs: float
    p95_abs: float
    mse: float
    lcc: float | None
    srcc: float | None
    ktau: float | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The figures by name, JSON-ready."""
        return {**asdict(self), "notes": list(self.notes)}


def agreement(predicted: npt.ArrayLike, reference: npt.ArrayLike) -> Agreement:
    """Compares two lists of scores, pair by pair.

    Args:
        predicted: (n,), finite.
        reference: (n,), finite.

    Raises:
        MetricError: The lists are empty, of different length, or not finite.
    """
    x, y = _checked(predicted, reference)
    d = np.abs(x - y)
    return Agreement(
        n=len(x),
        mae=float(d.mean()),
        max_abs=float(d.max()),
        p95_abs=float(np.percentile(d, 95)),
        mse=float(np.square(d).mean()),
        lcc=_lcc(x, y),
        srcc=_srcc(x, y),
        ktau=_ktau(x, y),
        notes=tuple(_notes(x, y)),
    )


def _mse(x: FloatArray, y: FloatArray) -> float:
    return float(np.square(x - y).mean())


def _mae(x: FloatArray, y: FloatArray) -> float:
    return float(np.abs(x - y).mean())


def _lcc(x: FloatArray, y: FloatArray) -> float | None:
    return None if _undefined(x, y) else float(scipy.stats.pearsonr(x, y).statistic)


def _srcc(x: FloatArray, y: FloatArray) -> float | None:
    return None if _undefined(x, y) else float(scipy.stats.spearmanr(x, y).statistic)


def _ktau(x: FloatArray, y: FloatArray) -> float | None:
    return None if _undefined(x, y) else float(scipy.stats.kendalltau(x, y).statistic)


METRICS: Final[Mapping[str, Callable[[FloatArray, FloatArray], float | None]]] = {
    "mae": _mae,
    "mse": _mse,
    "lcc": _lcc,
    "srcc": _srcc,
    "ktau": _ktau,
}
"""Metrics that have an interval, by name."""


def intervals(
    predicted: npt.ArrayLike,
    reference: npt.ArrayLike,
    names: Sequence[str] = tuple(METRICS),
    *,
    resamples: int = 500,
) -> dict[str, tuple[float, float] | None]:
    """95 % bootstrap intervals by metric; pairs are resampled.

    Resamples on which a correlation is undefined are left out. With fewer than five pairs all
    intervals are None.
    """
    x, y = _checked(predicted, reference)
    if len(x) < _MIN_RESAMPLED:
        return dict.fromkeys(names)
    indices = resample_indices(len(x), resamples)
    return {name: percentile_interval(_resampled(name, x, y, indices)) for name in names}


def paired_resamples(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    reference: npt.ArrayLike,
    name: str,
    *,
    resamples: int = 500,
) -> tuple[FloatArray, FloatArray] | None:
    """A metric of two lists of scores of the same clips, both on the same resamples.

    Easy and difficult clips then affect both alike, so that the interval of the difference is that
    of the change and not of the choice of clips.

    Returns:
        (resamples,) for each list, nan where a correlation is undefined; None for fewer than five
        clips.
    """
    (a, y), (b, _) = _checked(before, reference), _checked(after, reference)
    if len(y) < _MIN_RESAMPLED:
        return None
    indices = resample_indices(len(y), resamples)
    return _resampled(name, a, y, indices), _resampled(name, b, y, indices)


def _resampled(name: str, x: FloatArray, y: FloatArray, indices: IntArray) -> FloatArray:
    """A metric of each resample (resamples, n) of pairs, (resamples,); nan where undefined.

    All resamples are computed at once: one by one they would take seconds per row of a table.
    """
    if name == "ktau" and len(x) <= _MAX_PAIRED:
        return _ktau_resampled(x, y, indices)
    a, b = x[indices], y[indices]
    if name == "mae":
        return np.asarray(np.abs(a - b).mean(axis=1))
    if name == "mse":
        return np.asarray(np.square(a - b).mean(axis=1))
    if name == "ktau":
        values = [_ktau(*pair) for pair in zip(a, b, strict=True)]
        return np.array([np.nan if value is None else value for value in values])
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """Pairs of clips whose order differs between predicted and reference scores.

    Attributes:
        pairs: Pairs closer than `close` in the reference, without ties.
        flipped: Those of them in the opposite order in the predicted scores.
        all_pairs: All pairs without ties in the reference.
        all_flipped: Those of them in the opposite order.
        widest: Largest reference difference of a flipped pair; 0 if there is none.
        close: Reference difference below which a pair counts as close.
    """

    pairs: int
    flipped: int
    all_pairs: int
    all_flipped: int
    widest: float
    close: float

    def to_dict(self) -> dict[str, Any]:
        """The counts by name, JSON-ready."""
        return asdict(self)


def rank_flips(
    predicted: npt.ArrayLike, reference: npt.ArrayLike, *, close: float = CLOSE_MOS
) -> Flips:
    """Counts pairs that change their order; a pair that becomes a tie is not flipped.

    Only the first 4 000 clips are counted, since the work grows with the square of their number.
    """
    x, y = _checked(predicted, reference)
    x, y = x[:_MAX_FLIP_CLIPS], y[:_MAX_FLIP_CLIPS]
    pairs = flipped = all_pairs = all_flipped = 0
    widest = 0.0
    for i in range(len(x) - 1):
        gap = y[i + 1 :] - y[i]
        turned = (x[i + 1 :] - x[i]) * gap < 0
        near = np.abs(gap) < close
        ordered = gap != 0
        pairs += int((near & ordered).sum())
        flipped += int((near & turned).sum())
        all_pairs += int(ordered.sum())
        all_flipped += int(turned.sum())
        if turned.any():
            widest = max(widest, float(np.abs(gap[turned]).max()))
    return Flips(
        pairs=pairs,
        flipped=flipped,
        all_pairs=all_pairs,
        all_flipped=all_flipped,
        widest=widest,
        close=close,
    )


def _checked(predicted: npt.ArrayLike, reference: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    x, y = np.asarray(predicted, np.float64), np.asarray(reference, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not x.size:
        raise MetricError(
            f"scores to compare must be two lists of the same length, not {x.shape} and {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise MetricError("scores to compare must be finite; leave out clips without a score")
    return x, y


def _undefined(x: FloatArray, y: FloatArray) -> bool:
    """Whether a correlation is undefined: too few pairs, or a constant list."""
    return len(x) < _MIN_CORRELATED or bool(np.ptp(x) == 0 or np.ptp(y) == 0)


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
