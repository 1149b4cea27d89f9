"""Throughput: scores per second by batch size and by number of concurrent callers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from mosrt.scorer import Scorer

from .latency import Budget
from .resampling import interval_95

__all__ = ["CALLERS", "throughput"]

CALLERS: Final = (1, 2, 4)
_CLIPS: Final = 8
_FEWEST: Final = 3


def throughput(
    scorers: Mapping[str, Scorer],
    clip: bytes,
    *,
    clip_s: float,
    batches: Sequence[int],
    callers: Sequence[int],
    budget: Budget,
) -> list[dict[str, Any]]:
    """Scores 8 copies of a clip over and over, all contestants and settings in turn.

    Args:
        scorers: Contestants by name.
        clip: A whole audio file.
        clip_s: Its length.
        batches: Numbers of recordings that `score_many` has in hand at once.
        callers: Numbers of threads that share one scorer, each scoring clip by clip.
        budget: When it is enough; a round counts as one run.

    Returns:
        Rows with "contestant", "kind" ("batch" or "callers"), "count", "clips_per_s" with its
        interval, and "audio_s_per_s".
    """
    jobs = [(name, "batch", count) for name in scorers for count in batches]
    jobs += [(name, "callers", count) for name in scorers for count in callers]
    rates: dict[tuple[str, str, int], list[float]] = {job: [] for job in jobs}
    begun = time.perf_counter()
    for i in range(-1, budget.runs):
        if i >= _FEWEST and time.perf_counter() - begun > budget.seconds * len(jobs):
            break
        for name, kind, count in jobs:
            run = _batched if kind == "batch" else _concurrent
            elapsed_s = run(scorers[name], clip, count)
            if i >= 0:
                rates[name, kind, count].append(max(_CLIPS, count) / elapsed_s)
    return [_row(name, kind, count, rates[name, kind, count], clip_s) for name, kind, count in jobs]


def _batched(scorer: Scorer, clip: bytes, batch: int) -> float:
    started = time.perf_counter()
    scorer.score_many([clip] * max(_CLIPS, batch), batch_size=batch)
    return time.perf_counter() - started


def _concurrent(scorer: Scorer, clip: bytes, callers: int) -> float:
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(lambda _: None, range(callers)))  # threads start before the clock does
        started = time.perf_counter()
        list(pool.map(scorer.score_file, [clip] * max(_CLIPS, callers)))
        return time.perf_counter() - started


def _row(name: str, kind: str, count: int, rates: Sequence[float], clip_s: float) -> dict[str, Any]:
    bounds = interval_95(rates, lambda drawn: np.median(drawn, axis=1))
    return {
        "contestant": name,
        "kind": kind,
        "count": count,
        "runs": len(rates),
        "clip_s": clip_s,
        "clips_per_s": float(np.median(rates)),
        "clips_per_s_95": None if bounds is None else list(bounds),
        "clips_per_s_all": [round(rate, 4) for rate in rates],
        "audio_s_per_s": float(np.median(rates)) * clip_s,
    }
