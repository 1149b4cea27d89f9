"""Time several configurations in turn, and compare them by medians and paired ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import threadpoolctl

from mosrt_bench.stats.bootstrap import interval_95

__all__ = ["interleave", "ratio", "timed", "timing"]

_RESAMPLES: Final = 9999


def timed(
    run: Callable[[], object],
    *,
    clock_s: Callable[[], float] = time.perf_counter,
    blas_threads: int | None = None,
) -> Callable[[], float]:
    """A call that runs `run` and returns its time in ms.

    Args:
        run: What to time.
        clock_s: The clock, in seconds.
        blas_threads: Threads that BLAS may use; limiting them is not part of the time.
    """
    controller = threadpoolctl.ThreadpoolController()

    def once() -> float:
        with controller.limit(limits=blas_threads):
            started = clock_s()
            run()
            return 1e3 * (clock_s() - started)

    return once


def interleave(
    configurations: Mapping[str, Callable[[], float]],
    *,
    rounds: int,
    warm_up: int = 1,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Runs configurations in turn, A B C A B C …, so that a change of clock speed affects all.

    Args:
        configurations: By name, a call that does the work once and returns its time in ms.
        rounds: Rounds that count.
        warm_up: Rounds before them, which do not.
        progress: Called with 1 after every round.

    Returns:
        Times in ms by name, in the order in which they were measured.
    """
    times_ms: dict[str, list[float]] = {name: [] for name in configurations}
    for i in range(-warm_up, rounds):
        for name, run in configurations.items():
            elapsed_ms = run()
            if i >= 0:
                times_ms[name].append(elapsed_ms)
        progress(1)
    return times_ms


def timing(times_ms: Sequence[float]) -> dict[str, Any]:
    """Median with a 95 % bootstrap interval, and all times."""
    return {
        "median_ms": round(float(np.median(times_ms)), 3),
        "interval_95_ms": _interval(times_ms),
        "times_ms": [round(t, 3) for t in times_ms],
    }


def ratio(slow_ms: Sequence[float], fast_ms: Sequence[float]) -> dict[str, Any]:
    """How many times faster the second is: the median ratio over rounds, with its interval."""
    ratios = np.asarray(slow_ms) / np.asarray(fast_ms)
    return {"ratio": round(float(np.median(ratios)), 3), "interval_95": _interval(ratios)}


def _interval(values: npt.ArrayLike) -> list[float]:
    interval = interval_95(values, block=1, resamples=_RESAMPLES, seed=0)
    if interval is None:
        raise ValueError("an interval needs at least two rounds")
    return [round(bound, 3) for bound in interval]
