"""Speed: latency, throughput, energy and cold starts of all contestants on one machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

from mosrt_bench.clips import AudioFile
from mosrt_bench.energy.energy import counters, energy

from .cold_start import cold_starts, device_memory
from .configurations import Contestant
from .latency import clip_of, expected_latency_s, latency_row, take_turns, timed
from .progress import Schedule
from .request import Request
from .throughput import expected_throughput_s, throughput

__all__ = ["HEADLINE_S", "measure_speed"]

HEADLINE_S: Final = 5.0
# Of a fresh process beside its two scores: Python's start, imports and a small model.
_START_S: Final = 1.0

Say = Callable[[str], None]


def measure_speed(
    request: Request,
    runnable: Sequence[Contestant],
    source: AudioFile,
    score_s: Mapping[str, float],
    report: dict[str, Any],
    say: Say,
) -> None:
    """Latency, throughput, energy and cold starts, all on clips made of one recording.

    Args:
        request: What to do.
        runnable: Contestants.
        source: A recording that all of them can score.
        score_s: About how long each takes for a clip of 5 s, by name; only estimates depend on it.
        report: Gets the figures.
        say: Told what is being done, and how long the rest will take.
    """
    report["timed_audio"] = source.name
    lengths = sorted({*request.lengths_s, HEADLINE_S})
    clip_by_length = {length_s: clip_of(source.path, length_s) for length_s in lengths}
    headline = clip_by_length[HEADLINE_S]
    steps = _steps(request, runnable, lengths, score_s)
    schedule = Schedule(say, steps)
    names = iter(steps)
    with ExitStack() as stack:
        # not a step: it says nothing of how well the others are estimated
        say(f"loading {len(runnable)} contestants")
        scorers = {c.name: stack.enter_context(c.load()) for c in runnable}
        first = next(iter(scorers))
        report["latency"] = []
        for length_s, clip in clip_by_length.items():
            schedule.begin(next(names))
            taken = take_turns(
                {name: timed(scorer, clip) for name, scorer in scorers.items()}, request.budget
            )
            report["latency"] += [
                {"contestant": name, "first": first, **latency_row(t, taken[first], length_s)}
                for name, t in taken.items()
            ]
        schedule.begin(next(names))
        report["throughput"] = throughput(
            scorers,
            headline,
            clip_s=HEADLINE_S,
            batches=request.batches,
            callers=request.callers,
            budget=request.budget,
        )
        meters, notes = counters()
        report["notes"] += notes
        report["energy"] = energy(
            {name: timed(scorer, headline) for name, scorer in scorers.items()}, meters
        )
    if request.starts:
        schedule.begin(next(names))
        used_bytes, notes = device_memory()
        report["notes"] += notes
        report["cold_start"] = cold_starts(
            runnable, headline, runs=request.starts, used_bytes=used_bytes
        )


def _steps(
    request: Request,
    runnable: Sequence[Contestant],
    lengths: Sequence[float],
    score_s: Mapping[str, float],
) -> dict[str, float]:
    """What will be done, and about how long each step takes, in seconds.

    A clip shorter than 5 s is taken to cost as much, since a model may look at it as often, and a
    longer one to cost more in proportion: rather too long than too short.
    """
    costs_s = [score_s[contestant.name] for contestant in runnable]
    n = len(runnable)
    steps = {}
    for length_s in lengths:
        round_s = max(1.0, length_s / HEADLINE_S) * sum(costs_s)
        steps[f"timing {n} contestants on {length_s:g} s"] = expected_latency_s(
            round_s, n, request.budget
        )
    steps["throughput"] = sum(
        expected_throughput_s(cost_s, request.batches, request.callers, request.budget)
        for cost_s in costs_s
    )
    if request.starts:
        steps[f"{request.starts} fresh processes each"] = request.starts * sum(
            _START_S + 3 * cost_s for cost_s in costs_s
        )
    return steps
