"""Time configurations in turn, with intervals: latency of a score, throughput of several at once.

Every round runs each configuration once, and each round begins with another one (A B, B A, …), so
that neither a change of the machine's speed nor the place in the round favours one of them.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile

from mosrt.errors import MosrtError
from mosrt_bench.stats.bootstrap import interval_95
from mosrt_bench.worker.protocol import LoadKind, Runner

__all__ = [
    "Effort",
    "Load",
    "Timed",
    "Timings",
    "clip_of",
    "expected_latency_s",
    "expected_throughput_s",
    "latency_row",
    "measure_throughput",
    "paired_ratio",
    "quantiles",
    "take_turns",
    "throughput_rows",
]

Timed = Callable[[], Mapping[str, float]]
"""Scores once; gives the times of its stages in ms, and "total"."""

QUANTILES: Final = (50.0, 90.0, 95.0, 99.0)
_STABLE_WITHIN: Final = 0.05
_STABLE_OVER: Final = 5
_FEWEST: Final = 5
_FEWEST_OF_LOAD: Final = 3
_MOST_CLIPS: Final = 8
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

    def attempt(self, score: Timed) -> Mapping[str, float] | None:
        """Scores unless that failed before; None if it fails with a MosrtError."""
        if self.failure is None:
            try:
                return score()
            except MosrtError as exc:
                self.failure = str(exc)
        return None

    def add(self, times: Mapping[str, float]) -> None:
        """Takes in one round's times."""
        self.total_ms.append(times["total"])
        for stage, value in times.items():
            if stage != "total":
                self.stages_ms.setdefault(stage, []).append(value)


def _rounds(
    effort: Effort, n: int, fewest: int, out_of_time: Callable[[], bool], now: Callable[[], float]
) -> Iterator[int]:
    """Numbers of the rounds of `n` that take turns, until it is enough."""
    begun = now()
    for i in range(effort.runs):
        if out_of_time() or (i >= fewest and now() - begun > effort.seconds * n):
            return
        yield i


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

    _warm_up(configurations, timings, effort, now)
    for i in _rounds(effort, len(names), _FEWEST, out_of_time, now):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            if (times := timings[name].attempt(configurations[name])) is not None:
                timings[name].add(times)
    return timings


def _warm_up(
    configurations: Mapping[str, Timed],
    timings: Mapping[str, Timings],
    effort: Effort,
    now: Callable[[], float],
) -> None:
    totals_ms: dict[str, list[float]] = {name: [] for name in timings}
    begun = now()
    for _ in range(effort.warm_up_runs):
        for name, timing in timings.items():
            if (times := timing.attempt(configurations[name])) is not None:
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


@dataclass(slots=True, kw_only=True)
class Load(Timings):
    """Times of one configuration under one load; a round scores several clips.

    Attributes:
        name: The configuration.
        kind: "batch" or "callers".
        count: Recordings at once.
        clips: Clips of a round.
    """

    name: str
    kind: LoadKind
    count: int
    clips: int = 0

    @property
    def rates(self) -> list[float]:
        """Clips per second of each round."""
        return [1e3 * self.clips / total_ms for total_ms in self.total_ms]


def measure_throughput(
    runners: Mapping[str, Runner],
    clip: Path,
    *,
    batches: Sequence[int],
    callers: Sequence[int],
    effort: Effort,
    loads: list[Load] | None = None,
    out_of_time: Callable[[], bool] = lambda: False,
) -> list[Load]:
    """Scores copies of a clip over and over, all configurations and loads in turn.

    A round scores eight, or as many as a third of the time allows, but no fewer than are scored at
    once. A load that raises a MosrtError, such as a batch that does not fit the memory, takes no
    further part.

    Args:
        runners: Configurations by name.
        clip: An audio file.
        batches: Numbers of recordings that a batch has; may be none.
        callers: Numbers of threads that share a model, each scoring clip by clip; may be none.
        effort: When it is enough; a round counts as one run.
        loads: Filled in as rounds are done, so that an interruption loses none of them.
        out_of_time: Whether to end after the round under way.

    Returns:
        `loads`.
    """
    loads = [] if loads is None else loads
    loads += [Load(name=name, kind="batch", count=count) for name in runners for count in batches]
    loads += [Load(name=name, kind="callers", count=count) for name in runners for count in callers]

    def score(load: Load, n_clips: int) -> dict[str, float]:
        return {"total": 1e3 * runners[load.name].run_many(clip, load.kind, load.count, n_clips)}

    for load in loads:  # the warm-up
        if not out_of_time() and (times := load.attempt(partial(score, load, load.count))):
            load.clips = _clips(load.count, times["total"] / 1e3 / load.count, effort)
    for _ in _rounds(effort, len(loads), _FEWEST_OF_LOAD, out_of_time, time.perf_counter):
        for load in loads:
            if load.clips and (times := load.attempt(partial(score, load, load.clips))):
                load.add(times)
    return loads


def throughput_rows(
    loads: Sequence[Load], clip_s: float, base: str | None = None
) -> list[dict[str, Any]]:
    """Rows of a report, as REPORT.md describes; none for a load without a finished round.

    Args:
        loads: What was measured.
        clip_s: Length of the clip.
        base: The configuration that "ratio_to_torch" is relative to.
    """
    of_base = {(load.kind, load.count): load.rates for load in loads if load.name == base}
    rows = []
    for load in loads:
        if not load.rates:
            continue
        median = float(np.median(load.rates))
        row: dict[str, Any] = {
            "contestant": load.name,
            "kind": load.kind,
            "count": load.count,
            "clips": load.clips,
            "runs": len(load.rates),
            "clip_s": clip_s,
            "clips_per_s": median,
            "clips_per_s_95": interval_95(load.rates),
            "clips_per_s_all": [round(rate, 4) for rate in load.rates],
            "audio_s_per_s": median * clip_s,
        }
        if base_rates := of_base.get((load.kind, load.count)):
            row["torch"] = base
            row["ratio_to_torch"] = paired_ratio(base_rates, load.rates)
        rows.append(row)
    return rows


def expected_throughput_s(
    score_s: float, batches: Sequence[int], callers: Sequence[int], effort: Effort
) -> float:
    """About how long one configuration's part of `measure_throughput` takes, in seconds.

    A clip takes `score_s`; callers are taken to gain nothing from running at once.
    """
    total_s = 0.0
    for count in (*batches, *callers):
        clips = _clips(count, score_s, effort)
        enough = int(effort.seconds / max(clips * score_s, 1e-6)) + 1
        rounds = min(effort.runs, max(_FEWEST_OF_LOAD, enough))
        total_s += score_s * (count + clips * rounds)
    return total_s


def _clips(count: int, score_s: float, effort: Effort) -> int:
    """Clips of a round: a multiple of those scored at once, so that none waits for the last."""
    affordable = effort.seconds / _FEWEST_OF_LOAD / max(score_s, 1e-6)
    return count * max(1, int(min(_MOST_CLIPS, affordable)) // count)


def clip_of(file: Any, length_s: float) -> bytes:
    """A WAV file of `length_s`, 16 bits at the recording's own rate: cut from it, or repeated."""
    with soundfile.SoundFile(file) as sound:
        rate_hz = sound.samplerate
        wanted = round(length_s * rate_hz)
        samples = sound.read(wanted, dtype="float32", always_2d=True)
    repeated = np.resize(samples, (wanted, samples.shape[1]))
    stream = io.BytesIO()
    soundfile.write(stream, repeated, rate_hz, format="WAV", subtype="PCM_16")
    return stream.getvalue()
