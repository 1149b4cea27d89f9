"""Comparison: timings of several contestants taken in turn, and their ratios."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

__all__ = ["interleave", "ratio", "timing"]


def interleave(
    contestants: Mapping[str, Callable[[], float]],
    *,
    rounds: int,
    warm_up: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Runs contestants in turn, A B C A B C …, so that a change of the machine's speed hits all.

    Args:
        contestants: By name, a call that does the work once and returns its time in ms.
        rounds: Counted rounds.
        warm_up: Rounds before that are not counted.
        progress: Told after every round.

    Returns:
        Times in ms by name, in the order they were taken.
    """
    times_ms: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(-warm_up, rounds):
        for name, run in contestants.items():
            elapsed_ms = run()
            if i >= 0:
                times_ms[name].append(elapsed_ms)
        progress(1)
    return times_ms


def timing(times_ms: Sequence[float]) -> dict[str, Any]:
    """Median with a 95 % bootstrap interval, and all times."""
    low, high = _interval(np.asarray(times_ms))
    return {
        "median_ms": round(float(np.median(times_ms)), 3),
        "interval_95_ms": [round(low, 3), round(high, 3)],
        "times_ms": [round(t, 3) for t in times_ms],
    }


def ratio(slow_ms: Sequence[float], fast_ms: Sequence[float]) -> dict[str, Any]:
    """How many times faster the second is: the median of the rounds' ratios, and its interval."""
    ratios = np.asarray(slow_ms) / np.asarray(fast_ms)
    low, high = _interval(ratios)
    return {
        "ratio": round(float(np.median(ratios)), 3),
        "interval_95": [round(low, 3), round(high, 3)],
    }


def _interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    result = scipy.stats.bootstrap(
        (values,), np.median, method="percentile", rng=np.random.default_rng(0)
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
