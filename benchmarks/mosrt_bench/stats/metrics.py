"""Metrics: how two lists of scores agree, by the standard definitions.

MAE, largest and 95th percentile of |d|, and MSE of d = found - wanted; Pearson's linear
correlation (LCC), Spearman's rank correlation with mean ranks for ties (SRCC), Kendall's tau-b
(KTAU): the last three are scipy's. A correlation with a constant list is not defined, and is None
with a note. Ties keep their mean ranks, and a note tells how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import scipy.stats

from mosrt.errors import MosrtError

from .bootstrap import block_indices, percentile_interval

__all__ = [
    "CLOSE_MOS",
    "METRICS",
    "Agreement",
    "Flips",
    "MetricError",
    "agreement",
    "intervals",
    "paired_draws",
    "rank_flips",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

CLOSE_MOS: Final = 0.1
_MIN_CORRELATED: Final = 3
_MIN_RESAMPLED: Final = 5
_MAX_FLIP_CLIPS: Final = 4000
# Beyond, a table of all pairs takes more memory than it saves time.
_MAX_PAIRED: Final = 2000


class MetricError(MosrtError, ValueError):
    """Lists of scores that cannot be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How found scores agree with wanted ones; see the module's text for the definitions.

    Attributes:
        n: Pairs compared.
        mae: Mean of |found - wanted|.
        max_abs: Largest |found - wanted|.
        p95_abs: 95th percentile of |found - wanted|, linearly interpolated.
        mse: Mean of (found - wanted)².
        lcc: Pearson's correlation; None where it is not defined.
        srcc: Spearman's; likewise.
        ktau: Kendall's tau-b; likewise.
        notes: What a reader must know: ties, constant lists, too few pairs.
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
        return {
            "n": self.n,
            "mae": self.mae,
            "max_abs": self.max_abs,
            "p95_abs": self.p95_abs,
            "mse": self.mse,
            "lcc": self.lcc,
            "srcc": self.srcc,
            "ktau": self.ktau,
            "notes": list(self.notes),
        }


def agreement(found: npt.ArrayLike, wanted: npt.ArrayLike) -> Agreement:
    """Compares two lists of scores, pair by pair.

    Args:
        found: (n,), finite.
        wanted: (n,), finite; what found is held to.

    Raises:
        MetricError: The lists are empty, of different length, or not finite.
    """
    x, y = _checked(found, wanted)
    d = np.abs(x - y)
    notes = list(_notes(x, y))
    return Agreement(
        n=len(x),
        mae=float(d.mean()),
        max_abs=float(d.max()),
        p95_abs=float(np.percentile(d, 95)),
        mse=float(np.square(d).mean()),
        lcc=_lcc(x, y),
        srcc=_srcc(x, y),
        ktau=_ktau(x, y),
        notes=tuple(notes),
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
"""Figures that get an interval, by name."""


def intervals(
    found: npt.ArrayLike,
    wanted: npt.ArrayLike,
    names: Sequence[str] = tuple(METRICS),
    *,
    resamples: int = 500,
) -> dict[str, tuple[float, float] | None]:
    """95 % bootstrap intervals over pairs, by metric: pairs are drawn with replacement, seeded.

    A resample on which a correlation is not defined is left out. None for all below five pairs,
    of which resamples are too few.
    """
    x, y = _checked(found, wanted)
    if len(x) < _MIN_RESAMPLED:
        return dict.fromkeys(names)
    picked = block_indices(len(x), 1, resamples)
    return {name: percentile_interval(_drawn(name, x, y, picked)) for name in names}


def paired_draws(
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    wanted: npt.ArrayLike,
    name: str,
    *,
    resamples: int = 500,
) -> tuple[FloatArray, FloatArray] | None:
    """A metric of two lists of scores of the same clips, each pair of values on one resample.

    What is hard or easy about the clips drawn then concerns both alike, so that the interval of
    their difference is that of the change, and not of the set of clips.

    Returns:
        (resamples,) of the first list, and of the second; nan where a correlation is not defined.
        None below five clips.
    """
    (a, y), (b, _) = _checked(before, wanted), _checked(after, wanted)
    if len(y) < _MIN_RESAMPLED:
        return None
    picked = block_indices(len(y), 1, resamples)
    return _drawn(name, a, y, picked), _drawn(name, b, y, picked)


def _drawn(name: str, x: FloatArray, y: FloatArray, picked: IntArray) -> FloatArray:
    """A metric of each resample (resamples, n) of pairs, (resamples,); nan where not defined.

    All resamples at once, since one by one they would take seconds per row of a table.
    """
    if name == "ktau" and len(x) <= _MAX_PAIRED:
        return _ktau_drawn(x, y, picked)
    a, b = x[picked], y[picked]
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


def _ktau_drawn(x: FloatArray, y: FloatArray, picked: IntArray) -> FloatArray:
    """Tau-b of each resample: sums over pairs of clips, each as often as both were drawn."""
    counts = np.zeros((len(picked), len(x)))
    np.add.at(counts, (np.arange(len(picked))[:, None], picked), 1.0)
    signs = [np.sign(values[:, None] - values) for values in (x, y)]
    pairs = [signs[0] * signs[1], np.abs(signs[0]), np.abs(signs[1])]
    agreeing, of_x, of_y = ((counts @ each * counts).sum(axis=1) for each in pairs)
    with np.errstate(invalid="ignore"):  # 0 / 0 where a list is constant
        return np.asarray(agreeing / np.sqrt(of_x * of_y))


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """Pairs of clips whose order the found scores turn round.

    Attributes:
        pairs: Pairs that the wanted scores order, and that lie closer than `close`.
        flipped: Those of them that the found scores order the other way.
        all_pairs: Pairs that the wanted scores order, however far apart.
        all_flipped: Those of them that are turned round.
        widest: Largest wanted difference of a pair that was turned round; 0 if none was.
        close: What counts as close.
    """

    pairs: int
    flipped: int
    all_pairs: int
    all_flipped: int
    widest: float
    close: float

    def to_dict(self) -> dict[str, Any]:
        """The figures by name, JSON-ready."""
        return {
            "pairs": self.pairs,
            "flipped": self.flipped,
            "all_pairs": self.all_pairs,
            "all_flipped": self.all_flipped,
            "widest": self.widest,
            "close": self.close,
        }


def rank_flips(found: npt.ArrayLike, wanted: npt.ArrayLike, *, close: float = CLOSE_MOS) -> Flips:
    """Counts pairs that change their order; a pair that becomes a tie does not count as flipped.

    Of more than 4 000 clips the first 4 000 are looked at: the work grows with the square.
    """
    x, y = _checked(found, wanted)
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


def _checked(found: npt.ArrayLike, wanted: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    x, y = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not x.size:
        raise MetricError(
            f"scores to compare must be two lists of one length, not {x.shape} and {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise MetricError("scores to compare must be finite; leave out clips without a score")
    return x, y


def _undefined(x: FloatArray, y: FloatArray) -> bool:
    """Whether a correlation says nothing: too few pairs, or a list of one value."""
    return len(x) < _MIN_CORRELATED or bool(np.ptp(x) == 0 or np.ptp(y) == 0)


def _notes(x: FloatArray, y: FloatArray) -> list[str]:
    notes = []
    if len(x) < _MIN_CORRELATED:
        notes.append(f"{len(x)} pairs: correlations need {_MIN_CORRELATED}")
    for name, values in (("found", x), ("wanted", y)):
        distinct = len(np.unique(values))
        if len(x) > 1 and distinct == 1:
            notes.append(f"all {name} scores are equal: correlations are not defined")
        elif distinct < len(values):
            notes.append(f"{len(values) - distinct} of {len(values)} {name} scores are ties")
    return notes
