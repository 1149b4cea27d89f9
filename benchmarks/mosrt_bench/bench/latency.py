"""Time single scores of several configurations in turn, with intervals.

Every round runs each configuration once, and each round begins with another one (A B, B A, …), so
that neither a change of the machine's speed nor the place in the round favours one of them.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
import soundfile

from mosrt.errors import MosrtError
from mosrt_bench.stats.bootstrap import interval_95

__all__ = [
    "Effort",
    "Timed",
    "Timings",
    "clip_of",
    "expected_latency_s",
    "latency_row",
    "paired_ratio",
    "quantiles",
    "take_turns",
]

Timed = Callable[[], Mapping[str, float]]
"""Scores once; gives the times of its stages in ms, and "total"."""

QUANTILES: Final = (50.0, 90.0, 95.0, 99.0)
_STABLE_WITHIN: Final = 0.05
_STABLE_OVER: Final = 5
_FEWEST: Final = 5
# Share of a timing for the warm-up: a call that takes seconds is warm after one or two.
_WARM_UP_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """When one timing is long enough: after so many rounds or so much time.

    Attributes:
        runs: Rounds that are enough.
        seconds: Time per configuration that is enough, once there are 5 rounds; a warm-up has a
            quarter of it.
        warm_up_runs: Longest warm-up in rounds.
    """

    runs: int = 50
    seconds: float = 20.0
    warm_up_runs: int = 30


@dataclass(slots=True, kw_only=True)
class Timings:
    """Times of one configuration.

    Attributes:
        total_ms: Of each round, in order.
        stages_ms: Of each stage and round, by stage.
        warm_up: Rounds before the first that counts.
        stable: Whether the warm-up ended because times had stopped changing.
        failure: Why it stopped taking part; None if it did not.
    """

    total_ms: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=dict)
    warm_up: int = 0
    stable: bool = False
    failure: str | None = None

    def add(self, times: Mapping[str, float]) -> None:
        """Takes in one round's times."""
        self.total_ms.append(times["total"])
        for stage, value in times.items():
            if stage != "total":
                self.stages_ms.setdefault(stage, []).append(value)


def take_turns(
    configurations: Mapping[str, Timed],
    effort: Effort,
    *,
    timings: dict[str, Timings] | None = None,
    out_of_time: Callable[[], bool] = lambda: False,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, Timings]:
    """Warms all configurations up until their times are stable, then times them in turn.

    One that raises a MosrtError takes no further part; its `failure` has the reason.

    Args:
        configurations: Calls by name.
        effort: When it is enough.
        timings: Filled in as rounds are done, so that an interruption loses none of them.
        out_of_time: Whether to end after the round under way.
        now: The clock, in seconds.

    Returns:
        `timings`.
    """
    timings = {} if timings is None else timings
    timings |= {name: Timings() for name in configurations}
    names = list(configurations)

    def attempt(name: str) -> Mapping[str, float] | None:
        if timings[name].failure is None:
            try:
                return configurations[name]()
            except MosrtError as exc:
                timings[name].failure = str(exc)
        return None

    _warm_up(timings, attempt, effort, now)
    begun = now()
    for i in range(effort.runs):
        if out_of_time() or (i >= _FEWEST and now() - begun > effort.seconds * len(names)):
            break
        first = i % len(names)
        for name in names[first:] + names[:first]:
            if (times := attempt(name)) is not None:
                timings[name].add(times)
    return timings


def _warm_up(
    timings: Mapping[str, Timings],
    attempt: Callable[[str], Mapping[str, float] | None],
    effort: Effort,
    now: Callable[[], float],
) -> None:
    totals_ms: dict[str, list[float]] = {name: [] for name in timings}
    begun = now()
    for _ in range(effort.warm_up_runs):
        for name, timing in timings.items():
            if (times := attempt(name)) is not None:
                totals_ms[name].append(times["total"])
                timing.warm_up += 1
                timing.stable = _stable(totals_ms[name])
        if all(timing.stable or timing.failure for timing in timings.values()):
            break
        if now() - begun > _WARM_UP_SHARE * effort.seconds * len(timings):
            break


def expected_latency_s(round_s: float, n_configurations: int, effort: Effort) -> float:
    """About how long `take_turns` takes if a round of all configurations takes `round_s`, in s."""
    if round_s <= 0:
        return 0.0
    rounds = effort.seconds * n_configurations / round_s
    warm_up = min(effort.warm_up_runs, 2 * _STABLE_OVER, int(_WARM_UP_SHARE * rounds) + 1)
    return (warm_up + min(effort.runs, max(_FEWEST, int(rounds) + 1))) * round_s


def _stable(times_ms: Sequence[float]) -> bool:
    """Whether the last five times and the five before them have nearly the same median."""
    if len(times_ms) < 2 * _STABLE_OVER:
        return False
    last = float(np.median(times_ms[-_STABLE_OVER:]))
    before = float(np.median(times_ms[-2 * _STABLE_OVER : -_STABLE_OVER]))
    return abs(last - before) <= _STABLE_WITHIN * before


def quantiles(times_ms: Sequence[float]) -> dict[str, dict[str, Any]]:
    """p50, p90, p95 and p99 with bootstrap intervals; a p99 of few runs is close to the largest."""
    return {
        f"p{percent:g}": {
            "ms": float(np.percentile(times_ms, percent)),
            "interval_95": interval_95(times_ms, partial(np.percentile, q=percent, axis=1)),
        }
        for percent in QUANTILES
    }


def paired_ratio(times_ms: Sequence[float], base_ms: Sequence[float]) -> dict[str, Any]:
    """Time relative to another configuration's: median of the rounds' ratios, with its interval.

    Each round has both, so what slows the machine down for longer than a round cancels out.
    """
    rounds = min(len(times_ms), len(base_ms))
    ratios = np.log(np.asarray(times_ms[:rounds])) - np.log(np.asarray(base_ms[:rounds]))
    bounds = interval_95(ratios)
    return {
        "ratio": float(np.exp(np.median(ratios))),
        "interval_95": None if bounds is None else np.exp(bounds).tolist(),
    }


def latency_row(taken: Timings, first: Timings, clip_s: float) -> dict[str, Any]:
    """What a report keeps of one configuration at one length of clip."""
    real_time = np.asarray(taken.total_ms) / (1e3 * clip_s)
    return {
        "clip_s": clip_s,
        "runs": len(taken.total_ms),
        "warm_up": taken.warm_up,
        "stable": taken.stable,
        "quantiles": quantiles(taken.total_ms),
        "stages_ms": {stage: float(np.median(values)) for stage, values in taken.stages_ms.items()},
        "real_time_factor": float(np.median(real_time)),
        "real_time_factor_95": interval_95(real_time),
        "ratio_to_first": paired_ratio(taken.total_ms, first.total_ms),
        "times_ms": [round(value, 4) for value in taken.total_ms],
    }


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
