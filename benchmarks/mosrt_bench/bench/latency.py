"""Latency: how long one score takes, contestants in turn, with intervals.

Every round has each contestant once, and each round begins with another one (A B, B A, …), so that
neither a change of the machine's speed nor the place in the round favours one.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import soundfile

from mosrt.scorer import Scorer
from mosrt_bench.stats.bootstrap import interval_95

__all__ = [
    "Budget",
    "Taken",
    "clip_of",
    "expected_latency_s",
    "latency_row",
    "paired_ratio",
    "quantiles",
    "take_turns",
    "timed",
]

FloatArray = npt.NDArray[np.float64]
Timed = Callable[[], Mapping[str, float]]
"""Does the work once; tells stages in ms, and "total"."""

QUANTILES: Final = (50.0, 90.0, 95.0, 99.0)
_STABLE_WITHIN: Final = 0.05
_STABLE_OVER: Final = 5
_FEWEST: Final = 5
# Of a measurement's time, for the warm-up: a call that takes seconds is warm after one or two.
_WARM_UP_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When a measurement is long enough: after so many rounds or so much time.

    Attributes:
        runs: Rounds that are enough.
        seconds: Time per contestant that is enough, once there are 5 rounds; a warm-up has a
            quarter of it.
        warm_up_runs: Longest warm-up in rounds.
    """

    runs: int = 50
    seconds: float = 20.0
    warm_up_runs: int = 30


@dataclass(slots=True, kw_only=True)
class Taken:
    """Times of one contestant.

    Attributes:
        total_ms: Of each round, in order.
        stages_ms: Of each stage and round, by stage.
        warm_up: Rounds before the first that counts.
        stable: Whether the warm-up ended because times had stopped changing.
    """

    total_ms: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=dict)
    warm_up: int = 0
    stable: bool = False

    def add(self, times: Mapping[str, float]) -> None:
        """Takes in one round's times."""
        self.total_ms.append(times["total"])
        for stage, value in times.items():
            if stage != "total":
                self.stages_ms.setdefault(stage, []).append(value)


def take_turns(
    contestants: Mapping[str, Timed],
    budget: Budget,
    *,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, Taken]:
    """Warms all contestants up until their times are stable, then times them in turn.

    Args:
        contestants: Calls by name.
        budget: When it is enough.
        now: The clock, in seconds.
    """
    names = list(contestants)
    warm = {name: _Warming() for name in names}
    begun = now()
    for _ in range(budget.warm_up_runs):
        for name in names:
            warm[name].add(contestants[name]()["total"])
        if all(each.stable for each in warm.values()):
            break
        if now() - begun > _WARM_UP_SHARE * budget.seconds * len(names):
            break
    taken = {
        name: Taken(warm_up=len(each.times), stable=each.stable) for name, each in warm.items()
    }
    begun = now()
    for i in range(budget.runs):
        if i >= _FEWEST and now() - begun > budget.seconds * len(names):
            break
        first = i % len(names)
        for name in names[first:] + names[:first]:
            taken[name].add(contestants[name]())
    return taken


def expected_latency_s(round_s: float, n_contestants: int, budget: Budget) -> float:
    """About how long `take_turns` takes, in seconds.

    Args:
        round_s: Of one round of all contestants.
        n_contestants: How many there are.
        budget: When it is enough.
    """
    if round_s <= 0:
        return 0.0
    rounds = budget.seconds * n_contestants / round_s
    warm_up = min(budget.warm_up_runs, 2 * _STABLE_OVER, int(_WARM_UP_SHARE * rounds) + 1)
    return (warm_up + min(budget.runs, max(_FEWEST, int(rounds) + 1))) * round_s


@dataclass(slots=True)
class _Warming:
    times: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        self.times.append(value)

    @property
    def stable(self) -> bool:
        """Whether the last five times and the five before have nearly the same median."""
        if len(self.times) < 2 * _STABLE_OVER:
            return False
        last = float(np.median(self.times[-_STABLE_OVER:]))
        before = float(np.median(self.times[-2 * _STABLE_OVER : -_STABLE_OVER]))
        return abs(last - before) <= _STABLE_WITHIN * before


def quantiles(times_ms: Sequence[float]) -> dict[str, dict[str, Any]]:
    """p50, p90, p95 and p99 with bootstrap intervals; a p99 of few runs is nearly their largest."""
    found = {}
    for percent in QUANTILES:

        def statistic(drawn: FloatArray, percent: float = percent) -> FloatArray:
            return np.percentile(drawn, percent, axis=1)

        bounds = interval_95(times_ms, statistic)
        found[f"p{percent:g}"] = {
            "ms": float(np.percentile(times_ms, percent)),
            "interval_95": None if bounds is None else list(bounds),
        }
    return found


def paired_ratio(times_ms: Sequence[float], first_ms: Sequence[float]) -> dict[str, Any]:
    """Time relative to the first contestant's: median of the rounds' ratios, with its interval.

    Each round has both, so what slows the machine down for longer than a round cancels out.
    """
    ratios = np.log(np.asarray(times_ms)) - np.log(np.asarray(first_ms))
    bounds = interval_95(ratios, lambda drawn: np.median(drawn, axis=1))
    return {
        "ratio": float(np.exp(np.median(ratios))),
        "interval_95": None if bounds is None else [float(np.exp(bound)) for bound in bounds],
    }


def latency_row(taken: Taken, first: Taken, clip_s: float) -> dict[str, Any]:
    """What a report keeps of one contestant at one length."""
    median_ms = float(np.median(taken.total_ms))
    real_time = interval_95(
        np.asarray(taken.total_ms) / (1e3 * clip_s), lambda drawn: np.median(drawn, axis=1)
    )
    return {
        "clip_s": clip_s,
        "runs": len(taken.total_ms),
        "warm_up": taken.warm_up,
        "stable": taken.stable,
        "quantiles": quantiles(taken.total_ms),
        "stages_ms": {stage: float(np.median(values)) for stage, values in taken.stages_ms.items()},
        "real_time_factor": median_ms / (1e3 * clip_s),
        "real_time_factor_95": None if real_time is None else list(real_time),
        "ratio_to_first": paired_ratio(taken.total_ms, first.total_ms),
        "times_ms": [round(value, 4) for value in taken.total_ms],
    }


def timed(scorer: Scorer, clip: bytes) -> Timed:
    """Scores an audio file in memory once, from its bytes to the score."""

    def once() -> dict[str, float]:
        started = time.perf_counter()
        score = scorer.score_file(clip)
        total_ms = 1e3 * (time.perf_counter() - started)
        stages = dict(score.timings_ms)
        stages["rest"] = max(0.0, total_ms - sum(stages.values()))
        return {**stages, "total": total_ms}

    return once


def clip_of(file: Any, length_s: float) -> bytes:
    """A WAV file of `length_s`, 16 bits at the recording's own rate: cut from it, or repeated."""
    with soundfile.SoundFile(file) as sound:
        rate_hz = sound.samplerate
        wanted = round(length_s * rate_hz)
        samples = sound.read(wanted, dtype="float32", always_2d=True)
    repeated = np.tile(samples, (-(-wanted // len(samples)), 1))[:wanted]
    stream = io.BytesIO()
    soundfile.write(stream, repeated, rate_hz, format="WAV", subtype="PCM_16")
    return stream.getvalue()
