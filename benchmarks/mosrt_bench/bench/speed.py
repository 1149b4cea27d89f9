"""Measure latency, throughput, energy and cold starts of all configurations on one machine."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from mosrt.errors import MosrtError
from mosrt_bench.clips import AudioFile
from mosrt_bench.energy import counters, energy
from mosrt_bench.worker.device import device_memory
from mosrt_bench.worker.protocol import Runner

from .cold_start import ColdStarts
from .configurations import Configuration
from .request import Request, TimeBudget
from .timing import (
    Effort,
    Load,
    Timings,
    clip_of,
    expected_latency_s,
    expected_throughput_s,
    latency_row,
    measure_throughput,
    paired_ratio,
    take_turns,
    throughput_rows,
)

__all__ = ["HEADLINE_S", "NO_TIME", "Schedule", "SpeedRun", "duration"]

HEADLINE_S: Final = 5.0
NO_TIME: Final = "no time left"
# A fresh process without its two scores: Python's start, imports and a small model.
_START_S: Final = 1.0
# Timings are not made shorter than this per configuration to fit a time budget.
_SHORTEST_S: Final = 0.5

Say = Callable[[str], None]


def duration(seconds: float) -> str:
    """A time to wait, rounded for people."""
    if seconds < 100:
        return f"{max(10, round(seconds, -1)):.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class Schedule:
    """Steps that follow each other, each with an estimate of its time.

    Where a step took longer or shorter than estimated, the estimate of what is left is corrected by
    the same factor.

    Args:
        say: Told of each step and of the time left.
        steps: Seconds expected of each step, by its text, in the order in which they will begin.
        now: The clock, in seconds.
    """

    def __init__(
        self, say: Say, steps: dict[str, float], *, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._say = say
        self._left = dict(steps)
        self._now = now
        self._expected_s = 0.0
        self._taken_s = 0.0
        self._begun_s: float | None = None

    @property
    def left_s(self) -> float:
        """What the steps that have not begun will probably take."""
        factor = self._taken_s / self._expected_s if self._expected_s > 0 else 1.0
        return factor * sum(self._left.values())

    def begin(self, step: str) -> None:
        """Says that a step begins, and how long it and all that is left will take."""
        now_s = self._now()
        if self._begun_s is not None:
            self._taken_s += now_s - self._begun_s
        self._begun_s = now_s
        left_s = self.left_s
        self._say(f"{step} (about {duration(left_s)} left)")
        self._expected_s += self._left.pop(step)


class SpeedRun:
    """Latency, throughput, energy and cold starts, all on clips made of one recording.

    A configuration that fails takes no further part; the report's "not_measured" says why.

    Args:
        request: What is asked for.
        runnable: Configurations.
        source: A recording that all of them can score.
        score_s: About how long each takes for a clip of 5 s, by name; for estimates only.
        report: Gets the results, after every step and on an interruption.
        budget: Time of the whole run.
        say: Told what is being done, and how long the rest will take.
        keep: Called when the report has more.
    """

    def __init__(
        self,
        request: Request,
        runnable: Sequence[Configuration],
        source: AudioFile,
        score_s: Mapping[str, float],
        report: dict[str, Any],
        *,
        budget: TimeBudget,
        say: Say,
        keep: Callable[[], None] = lambda: None,
    ) -> None:
        self._request = request
        self._configurations = {c.name: c for c in runnable}
        self._n_configurations = len(runnable)
        self._torch = next((c.name for c in runnable if c.is_torch), None)
        self._source = source
        self._score_s = score_s
        self._report = report
        self._budget = budget
        self._say = say
        self._keep = keep
        self._runners: dict[str, Runner] = {}
        self._lengths_s = sorted({*request.lengths_s, HEADLINE_S})
        # What all else is compared by comes first, in case that time runs out.
        self._lengths_s.sort(key=lambda length_s: length_s != HEADLINE_S)

    def run(self) -> None:
        """Measures all there is time for."""
        report = self._report
        report["timed_audio"] = self._source.name
        effort = self._effort()
        schedule = Schedule(self._say, self._steps(effort))
        with tempfile.TemporaryDirectory(prefix="mosrt-bench-") as directory:
            clips = {}
            for length_s in self._lengths_s:
                clips[length_s] = Path(directory, f"{length_s:g}.wav")
                clips[length_s].write_bytes(clip_of(self._source.path, length_s))
            headline = clips[HEADLINE_S]
            with self._loaded():
                report["latency"] = []
                for length_s, clip in clips.items():
                    if self._begins(schedule, self._latency_step(length_s)):
                        self._latency(clip, length_s, effort)
                        self._keep()
                report["latency"].sort(key=lambda row: row["clip_s"])
                if self._begins(schedule, "throughput"):
                    self._throughput(headline, effort)
                    self._keep()
                if not self._budget.exhausted():
                    self._energy(headline)
                    self._keep()
            if self._request.starts and self._begins(schedule, self._starts_step()):
                self._cold_starts(headline)
                self._keep()

    def _effort(self) -> Effort:
        """How long each timing is: as asked for, or shorter so that all fit the budget."""
        effort = self._request.effort
        while (
            sum(self._steps(effort).values()) > self._budget.left_s and effort.seconds > _SHORTEST_S
        ):
            effort = dataclasses.replace(effort, seconds=effort.seconds / 2)
        if effort != self._request.effort:
            self._say(f"{effort.seconds:g} s per timing, to fit the time budget")
        return effort

    def _latency_step(self, length_s: float) -> str:
        return f"timing {self._n_configurations} configurations on {length_s:g} s"

    def _starts_step(self) -> str:
        return f"{self._request.starts} fresh processes each"

    def _steps(self, effort: Effort) -> dict[str, float]:
        """What will be done, and about how long each step takes, in seconds.

        A clip shorter than 5 s is taken to cost as much, since a model may look at it as often, and
        a longer one to cost more in proportion, which estimates too long rather than too short.
        """
        request = self._request
        costs_s = [self._score_s[name] for name in self._configurations]
        steps = {}
        for length_s in self._lengths_s:
            round_s = max(1.0, length_s / HEADLINE_S) * sum(costs_s)
            steps[self._latency_step(length_s)] = expected_latency_s(round_s, len(costs_s), effort)
        steps["throughput"] = sum(
            expected_throughput_s(cost_s, request.batches, request.callers, effort)
            for cost_s in costs_s
        )
        if request.starts:
            steps[self._starts_step()] = request.starts * sum(
                _START_S + 3 * cost_s for cost_s in costs_s
            )
        return steps

    def _begins(self, schedule: Schedule, step: str) -> bool:
        """Begins a step, unless there is no time for it or nothing to measure."""
        if self._configurations and not self._budget.exhausted():
            schedule.begin(step)
            return True
        for name in self._configurations:
            self._not_measured(name, step, NO_TIME)
        return False

    @contextmanager
    def _loaded(self) -> Iterator[None]:
        """Loads all configurations, and closes them afterwards."""
        # not a step: it says nothing of how well the others are estimated
        self._say(f"loading {len(self._configurations)} configurations")
        limit_s = self._budget.answer_s if self._request.isolate else None
        try:
            for name, configuration in list(self._configurations.items()):
                try:
                    self._runners[name] = configuration.open(limit_s)
                except MosrtError as exc:
                    self._drop(name, "loading", str(exc))
            yield
        finally:
            for runner in self._runners.values():
                runner.close()

    def _drop(self, name: str, step: str, reason: str) -> None:
        """Takes a configuration that failed out of what follows."""
        self._not_measured(name, step, reason)
        self._say(f"{name} fails: {reason}")
        del self._configurations[name]
        if (runner := self._runners.pop(name, None)) is not None:
            runner.close()

    def _not_measured(self, name: str, step: str, reason: str) -> None:
        reason = self._configurations[name].without_paths(reason)
        self._report["not_measured"].append({"contestant": name, "what": step, "reason": reason})

    def _calls(self, clip: Path) -> dict[str, Callable[[], Mapping[str, float]]]:
        return {name: partial(self._runners[name].time, clip) for name in self._configurations}

    def _latency(self, clip: Path, length_s: float, effort: Effort) -> None:
        taken: dict[str, Timings] = {}
        try:
            take_turns(self._calls(clip), effort, timings=taken, out_of_time=self._budget.exhausted)
        finally:
            timed = {name: each for name, each in taken.items() if each.total_ms}
            complete = [name for name, each in timed.items() if each.failure is None]
            first = next(iter(complete or timed), None)
            for name, each in timed.items():
                row: dict[str, Any] = {"contestant": name, "first": first}
                row |= latency_row(each, timed[first or name], length_s)
                if self._torch in timed and name != self._torch:
                    row["torch"] = self._torch
                    row["ratio_to_torch"] = paired_ratio(each.total_ms, timed[self._torch].total_ms)
                self._report["latency"].append(row)
        for name, each in taken.items():
            if each.failure is not None:
                self._drop(name, self._latency_step(length_s), each.failure)
            elif not each.total_ms:
                self._not_measured(name, self._latency_step(length_s), NO_TIME)

    def _throughput(self, clip: Path, effort: Effort) -> None:
        loads: list[Load] = []
        request = self._request
        try:
            measure_throughput(
                {name: self._runners[name] for name in self._configurations},
                clip,
                batches=request.batches,
                callers=request.callers,
                effort=effort,
                loads=loads,
                out_of_time=self._budget.exhausted,
            )
        finally:
            self._report["throughput"] = throughput_rows(loads, HEADLINE_S, self._torch)
        for load in loads:
            if load.failure is not None or not load.rates:
                self._not_measured(
                    load.name, f"throughput, {load.kind} {load.count}", load.failure or NO_TIME
                )

    def _energy(self, clip: Path) -> None:
        meters, notes = counters()
        self._report["notes"] += notes
        self._report["energy"] = []
        for name, call in self._calls(clip).items():
            try:
                self._report["energy"] += energy({name: call}, meters)
            except MosrtError as exc:
                self._drop(name, "energy", str(exc))

    def _cold_starts(self, clip: Path) -> None:
        used_bytes, notes = device_memory()
        self._report["notes"] += notes
        starts = ColdStarts(
            clip,
            used_bytes=used_bytes,
            limit_s=self._budget.answer_s if self._request.isolate else None,
        )
        try:
            for _ in range(self._request.starts):
                for name, configuration in list(self._configurations.items()):
                    if self._budget.exhausted():
                        break
                    try:
                        starts.start(configuration)
                    except MosrtError as exc:
                        self._drop(name, "cold start", str(exc))
        finally:
            self._report["cold_start"] = starts.rows()
        measured = {row["contestant"] for row in self._report["cold_start"]}
        for name in self._configurations.keys() - measured:
            self._not_measured(name, "cold start", NO_TIME)
