"""Chooses INT8 ranges: the interval of each activation that the 256 levels cover."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from mosrt._arrays import FloatArray, IntArray

from .statistics import BINS, Statistics

__all__ = ["METHODS", "ranges"]

METHODS: Final = ("min-max", "percentile", "entropy", "mse")
"""How a range is chosen: all values; all but one in ten thousand; least divergence; least squared
error."""

_PERCENTILE: Final = 99.99
_LEVELS: Final = 128
_CANDIDATES: Final = 128
_TINY: Final = 1e-12
_MAX_LEVEL: Final = 255
_SHARES: Final = np.geomspace(1.0, 1 / 32, 64)


def ranges(statistics: Statistics, method: str) -> dict[str, tuple[float, float]]:
    """Lowest and highest value to represent, by tensor. The interval always contains zero.

    Args:
        statistics: Statistics of the activations; with histograms, unless `method` is "min-max".
        method: One of `METHODS`.
    """
    found = {}
    for name, low in statistics.low.items():
        high = statistics.high[name]
        if method != "min-max":
            seen = statistics.histograms[name]
            inner_low, inner_high = _CHOICES[method](seen.counts, seen.limit or 1.0)
            low, high = max(low, inner_low), min(high, inner_high)  # noqa: PLW2901
        found[name] = (min(low, 0.0), max(high, 0.0))
    return found


def _percentile(counts: IntArray, limit: float) -> tuple[float, float]:
    """The interval without the lowest and highest 0.005 % of values."""
    edges = np.linspace(-limit, limit, BINS + 1)
    below = np.cumsum(counts)
    left_out = (1.0 - _PERCENTILE / 100.0) / 2.0 * below[-1]
    first = int(np.searchsorted(below, left_out, side="right"))
    last = int(np.searchsorted(below, below[-1] - left_out, side="left"))
    return float(edges[first]), float(edges[min(last, BINS - 1) + 1])


def _entropy(counts: IntArray, limit: float) -> tuple[float, float]:
    """The symmetric interval with the least divergence of the quantised from the clipped values.

    This is the Kullback-Leibler divergence of |x| at 128 levels, as in TensorRT's calibration
    (S. Migacz, "8-bit Inference with TensorRT", GTC 2017).
    """
    half = BINS // 2
    absolute = (counts[half:] + counts[:half][::-1]).astype(np.float64)
    # Zeros are exact at any scale. Those of a ReLU would outweigh all other values.
    absolute[0] = min(absolute[0], absolute[1])
    if not absolute.sum():
        return -limit, limit
    tries = np.unique(np.linspace(_LEVELS, half, _CANDIDATES).astype(int))
    best = min(tries, key=lambda n: _divergence(absolute, int(n)))
    threshold = limit * float(best) / half
    return -threshold, threshold


def _mse(counts: IntArray, limit: float) -> tuple[float, float]:
    """The interval whose 256 levels have the least mean squared error.

    The upper and the lower end are searched in turn, twice: 64 candidates from the whole range down
    to a thirty-second of it, with the other end fixed. The values of a bin count as its middle.
    """
    occupied = np.flatnonzero(counts)
    edges = np.linspace(-limit, limit, BINS + 1)
    middles = (edges[occupied] + edges[occupied + 1]) / 2
    weights = counts[occupied] / max(1, counts.sum())
    low, high = min(0.0, edges[occupied[0]]), max(0.0, edges[occupied[-1] + 1])
    for _ in range(2):
        highs = high * _SHARES
        high = float(highs[np.argmin(_errors(middles, weights, low, highs))])
        lows = low * _SHARES
        low = float(lows[np.argmin(_errors(middles, weights, lows, high))])
    return low, high


def _errors(values: FloatArray, weights: FloatArray, low: Any, high: Any) -> FloatArray:
    """Mean squared error of values at 256 levels, for each of several intervals around zero."""
    low, high = np.atleast_1d(low)[:, np.newaxis], np.atleast_1d(high)[:, np.newaxis]
    step = np.maximum(high - low, _TINY) / _MAX_LEVEL
    zero = np.round(-low / step)
    rounded = np.clip(np.round(values / step), -zero, _MAX_LEVEL - zero) * step
    found: FloatArray = (rounded - values) ** 2 @ weights
    return found


def _divergence(counts: FloatArray, n: int) -> float:
    """Divergence of `counts` clipped to its first `n` bins from the same at 128 levels."""
    inside = counts[:n]
    clipped = inside.copy()
    clipped[-1] += counts[n:].sum()
    starts = np.arange(_LEVELS) * n // _LEVELS
    occupied = inside > 0
    sums = np.add.reduceat(inside, starts)
    sizes = np.maximum(np.add.reduceat(occupied.astype(np.float64), starts), 1.0)
    widths = np.diff(np.append(starts, n))
    spread = np.repeat(sums / sizes, widths) * occupied
    p, q = clipped / clipped.sum(), spread / max(spread.sum(), _TINY)
    held = p > 0
    return float(np.sum(p[held] * np.log(p[held] / np.maximum(q[held], _TINY))))


_CHOICES: Final = {"percentile": _percentile, "entropy": _entropy, "mse": _mse}
