"""Throughput: scores per second by batch size and by number of concurrent callers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np

from mosrt.scorer import Scorer
from mosrt_bench.stats.bootstrap import interval_95

from .latency import Budget

__all__ = ["expected_throughput_s", "throughput"]

_MOST_CLIPS: Final = 8
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
    """Scores copies of a clip over and over, all contestants and settings in turn.

    A round scores eight, or as many as a third of the time lets, but no fewer than it has in hand.

    Args:
        scorers: Contestants by name.
        clip: A whole audio file.
        clip_s: Its length.
        batches: Numbers of recordings that `score_many` has in hand at once; may be none.
        callers: Numbers of threads that share one scorer, each scoring clip by clip; likewise.
        budget: When it is enough; a round counts as one run.

    Returns:
        Rows with "contestant", "kind" ("batch" or "callers"), "count", "clips" of a round,
        "clips_per_s" with its interval, and "audio_s_per_s".
    """
    jobs = [(name, "batch", count) for name in scorers for count in batches]
    jobs += [(name, "callers", count) for name in scorers for count in callers]
    clips: dict[tuple[str, str, int], int] = {}
    for job in jobs:  # the warm-up
        elapsed_s = _run(job, scorers, clip, job[2])
        clips[job] = _clips(job[2], elapsed_s / job[2], budget)
    rates: dict[tuple[str, str, int], list[float]] = {job: [] for job in jobs}
    begun = time.perf_counter()
    for i in range(budget.runs):
        if i >= _FEWEST and time.perf_counter() - begun > budget.seconds * len(jobs):
            break
        for job in jobs:
            rates[job].append(clips[job] / _run(job, scorers, clip, clips[job]))
    return [_row(*job, clips[job], rates[job], clip_s) for job in jobs]


def expected_throughput_s(
    score_s: float, batches: Sequence[int], callers: Sequence[int], budget: Budget
) -> float:
    """About how long one contestant's part of `throughput` takes, in seconds.

    Args:
        score_s: Of one clip, as if callers got nothing done at the same time.
        batches: As there.
        callers: As there.
        budget: As there.
    """
    total_s = 0.0
    for count in (*batches, *callers):
        clips = _clips(count, score_s, budget)
        rounds = budget.seconds / max(clips * score_s, 1e-6)
        total_s += score_s * (count + clips * min(budget.runs, max(_FEWEST, int(rounds) + 1)))
    return total_s


def _clips(count: int, score_s: float, budget: Budget) -> int:
    """Clips of a round: a multiple of what is in hand, so that nobody waits for the last ones."""
    affordable = budget.seconds / _FEWEST / max(score_s, 1e-6)
    return count * max(1, int(min(_MOST_CLIPS, affordable)) // count)


def _run(job: tuple[str, str, int], scorers: Mapping[str, Scorer], clip: bytes, n: int) -> float:
    """Scores `n` copies; the time that took, in seconds."""
    name, kind, count = job
    return (_batched if kind == "batch" else _concurrent)(scorers[name], clip, count, n)


def _batched(scorer: Scorer, clip: bytes, batch: int, n: int) -> float:
    scorer.batch_size = batch
    started = time.perf_counter()
    scorer.score_many([clip] * n)
    return time.perf_counter() - started


def _concurrent(scorer: Scorer, clip: bytes, callers: int, n: int) -> float:
    with ThreadPoolExecutor(callers) as pool:
        list(pool.map(lambda _: None, range(callers)))  # threads start before the clock does
        started = time.perf_counter()
        list(pool.map(scorer.score_file, [clip] * n))
        return time.perf_counter() - started


def _row(
    name: str, kind: str, count: int, clips: int, rates: Sequence[float], clip_s: float
) -> dict[str, Any]:
    bounds = interval_95(rates, lambda drawn: np.median(drawn, axis=1))
    return {
        "contestant": name,
        "kind": kind,
        "count": count,
        "clips": clips,
        "runs": len(rates),
        "clip_s": clip_s,
        "clips_per_s": float(np.median(rates)),
        "clips_per_s_95": None if bounds is None else list(bounds),
        "clips_per_s_all": [round(rate, 4) for rate in rates],
        "audio_s_per_s": float(np.median(rates)) * clip_s,
    }
