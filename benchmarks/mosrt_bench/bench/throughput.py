"""Measure scores per second by batch size and by number of concurrent callers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from mosrt.errors import MosrtError
from mosrt_bench.stats.bootstrap import interval_95
from mosrt_bench.worker.protocol import LoadKind, Runner

from .latency import Effort, paired_ratio

__all__ = ["Load", "expected_throughput_s", "measure_throughput", "throughput_rows"]

_MOST_CLIPS: Final = 8
_FEWEST: Final = 3


@dataclass(slots=True)
class Load:
    """One configuration under one load, and the scores per second that it reached.

    Attributes:
        name: The configuration.
        kind: "batch" or "callers".
        count: Recordings at once.
        clips: Clips of a round.
        rates: Clips per second of each round.
        failure: Why it stopped taking part; None if it did not.
    """

    name: str
    kind: LoadKind
    count: int
    clips: int = 0
    rates: list[float] = field(default_factory=list)
    failure: str | None = None


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
    loads += [Load(name, "batch", count) for name in runners for count in batches]
    loads += [Load(name, "callers", count) for name in runners for count in callers]
    for load in loads:  # the warm-up
        if not out_of_time():
            elapsed_s = _run(load, runners, clip, load.count)
            if load.failure is None:
                load.clips = _clips(load.count, elapsed_s / load.count, effort)
    begun = time.perf_counter()
    for i in range(effort.runs):
        elapsed_s = time.perf_counter() - begun
        if out_of_time() or (i >= _FEWEST and elapsed_s > effort.seconds * len(loads)):
            break
        for load in loads:
            if load.failure is None and load.clips:
                elapsed_s = _run(load, runners, clip, load.clips)
                if load.failure is None:
                    load.rates.append(load.clips / elapsed_s)
    return loads


def throughput_rows(
    loads: Sequence[Load], clip_s: float, base: str | None = None
) -> list[dict[str, Any]]:
    """Rows of a report, JSON-ready; none for a load without a finished round.

    Args:
        loads: What was measured.
        clip_s: Length of the clip.
        base: The configuration that "ratio_to_torch" is relative to.

    Returns:
        Rows with "contestant", "kind" ("batch" or "callers"), "count", "clips" of a round,
        "clips_per_s" with its interval, "audio_s_per_s", and with a base the ratio of times.
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
        rounds = effort.seconds / max(clips * score_s, 1e-6)
        total_s += score_s * (count + clips * min(effort.runs, max(_FEWEST, int(rounds) + 1)))
    return total_s


def _clips(count: int, score_s: float, effort: Effort) -> int:
    """Clips of a round: a multiple of those scored at once, so that none waits for the last."""
    affordable = effort.seconds / _FEWEST / max(score_s, 1e-6)
    return count * max(1, int(min(_MOST_CLIPS, affordable)) // count)


def _run(load: Load, runners: Mapping[str, Runner], clip: Path, n_clips: int) -> float:
    """Scores `n_clips` copies; the time that took, in seconds, nan where it failed."""
    try:
        return runners[load.name].run_many(clip, load.kind, load.count, n_clips)
    except MosrtError as exc:
        load.failure = str(exc)
        return float("nan")
