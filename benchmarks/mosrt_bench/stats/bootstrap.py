"""Bootstrap confidence intervals from seeded resamples: the same every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from mosrt._arrays import FloatArray, IntArray

__all__ = ["SEED", "interval_95", "percentile_interval", "resample_indices"]


SEED: Final = 20_240_924
_RESAMPLES: Final = 1000


def interval_95(
    values: npt.ArrayLike,
    statistic: Callable[[FloatArray], FloatArray] = lambda drawn: np.median(drawn, axis=1),
    *,
    block: int | None = None,
    resamples: int = _RESAMPLES,
    seed: int = SEED,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of a statistic of a series of measurements.

    Neighbouring timings are correlated: whatever disturbs a machine lasts longer than one of them.
    Resampling them one by one would make the interval too narrow, so blocks of neighbours are drawn
    (circular block bootstrap, Politis and Romano 1992). By default a block has n^(1/3) values.

    Args:
        values: (n,) in the order in which they were measured.
        statistic: Maps resamples (resamples, n) to their statistics (resamples,); the median if
            left out.
        block: Values per block; 1 if the order carries no information.
        resamples: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        Lower and upper bound, or None for fewer than two values.
    """
    measured = np.asarray(values, np.float64)
    if len(measured) < 2:
        return None
    block = block or max(1, round(len(measured) ** (1 / 3)))
    indices = resample_indices(len(measured), resamples, block=block, rng=seed)
    return percentile_interval(statistic(measured[indices]))


def resample_indices(
    n: int, resamples: int, *, block: int = 1, rng: int | np.random.Generator = SEED
) -> IntArray:
    """Indices that resample n values with replacement.

    Args:
        n: Number of values.
        resamples: Number of resamples.
        block: Consecutive values drawn together; the last value is followed by the first.
        rng: A seed, or a generator whose stream is continued.

    Returns:
        (resamples, n), each in [0, n).
    """
    starts = np.random.default_rng(rng).integers(0, n, (resamples, -(-n // block), 1))
    indices: IntArray = ((starts + np.arange(block)) % n).reshape(resamples, -1)[:, :n]
    return indices


def percentile_interval(statistics: FloatArray) -> tuple[float, float] | None:
    """The central 95 % of a statistic's resampled values (resamples,); None if none is finite."""
    finite = statistics[np.isfinite(statistics)]
    if not finite.size:
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)
