"""Resampling: bootstrap intervals, the same every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["SEED", "block_indices", "interval_95", "percentile_interval"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SEED: Final = 20_240_924
_RESAMPLES: Final = 1000


def interval_95(
    values: npt.ArrayLike,
    statistic: Callable[[FloatArray], FloatArray],
    *,
    block: int | None = None,
    resamples: int = _RESAMPLES,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of a statistic of measurements taken one after the other.

    Neighbouring timings are alike, because whatever disturbs a machine lasts longer than one of
    them; resampling them one by one would make the interval too narrow. Blocks of neighbours are
    drawn instead (circular block bootstrap, Politis and Romano 1992), of length n^(1/3).

    Args:
        values: (n,) in the order taken.
        statistic: (resamples, n) -> (resamples,).
        block: Length of a block; 1 for measurements whose order means nothing.
        resamples: How many.

    Returns:
        Low and high, or None for fewer than two values.
    """
    taken = np.asarray(values, np.float64)
    if len(taken) < 2:
        return None
    block = block or max(1, round(len(taken) ** (1 / 3)))
    picked = block_indices(len(taken), block, resamples)
    return percentile_interval(statistic(taken[picked]))


def block_indices(n: int, block: int, resamples: int) -> IntArray:
    """What a circular block bootstrap picks out of n: indices (resamples, n)."""
    rng = np.random.default_rng(SEED)
    starts = rng.integers(0, n, (resamples, -(-n // block), 1))
    picked: IntArray = ((starts + np.arange(block)) % n).reshape(resamples, -1)[:, :n]
    return picked


def percentile_interval(drawn: FloatArray) -> tuple[float, float] | None:
    """The middle 95 % of a statistic's resampled values (resamples,); None where none is finite."""
    finite = drawn[np.isfinite(drawn)]
    if not finite.size:
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)
