"""Measure latency, throughput, energy and cold starts of all configurations on one machine."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from mosrt.errors import MosrtError
from mosrt_bench.clips import AudioFile
from mosrt_bench.energy import counters, energy
from mosrt_bench.worker.device import device_memory
from mosrt_bench.worker.protocol import Configuration, Runner

from .cold_start import cold_start, cold_start_row
from .configurations import open_configuration
from .request import NO_TIME, Session, duration
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

__all__ = ["HEADLINE_S", "SpeedRun", "time_left_s"]

HEADLINE_S: Final = 5.0
# A fresh process without its two scores: Python's start, imports and a small model.
_START_S: Final = 1.0
# Timings are not made shorter than this per configuration to fit a time budget.
_SHORTEST_S: Final = 0.5


def time_left_s(expected_s: Sequence[float], n_done: int, taken_s: float) -> float:
    """What the steps that are left will probably take, in seconds.

    The estimate is corrected by the factor by which the steps that are done were misjudged.

    Args:
        expected_s: Seconds expected of each step, in order.
        n_done: Steps that are done.
        taken_s: Seconds that they took.
    """
    done_s = sum(expected_s[:n_done])
    return (taken_s / done_s if done_s > 0 else 1.0) * sum(expected_s[n_done:])


class _Step(NamedTuple):
    what: str
    expected_s: float
    measure: Callable[[], None]


class SpeedRun:
    """Latency, throughput, energy and cold starts, all on clips made of one recording.

    A configuration that fails takes no further part; the report's "not_measured" says why.

    Args:
        session: What is asked for, and the time that is left.
        runnable: Configurations, and about how long each takes for a clip of 5 s.
        source: A recording that all of them can score.
        report: Gets the results, after every step and on an interruption.
    """

    def __init__(
        self,
        session: Session,
        runnable: Sequence[tuple[Configuration, float]],
        source: AudioFile,
        report: dict[str, Any],
    ) -> None:
        self._session, self._request, self._budget = session, session.request, session.budget
        self._configurations = {c.name: c for c, _ in runnable}
        self._torch = next((c.name for c, _ in runnable if c.is_torch), None)
        self._source = source
        self._costs_s = [score_s for _, score_s in runnable]
        self._report = report
        self._runners: dict[str, Runner] = {}
        # What all else is compared by comes first, in case that time runs out.
        lengths_s = sorted(
            {*self._request.lengths_s, HEADLINE_S}, key=lambda s: (s != HEADLINE_S, s)
        )
        self._clips = {length_s: Path(f"{length_s:g}.wav") for length_s in lengths_s}

    def run(self) -> None:
        """Measures all there is time for."""
        self._report |= {"timed_audio": self._source.name, "latency": []}
        steps = self._steps(self._effort())
        expected_s = [step.expected_s for step in steps]
        with tempfile.TemporaryDirectory(prefix="mosrt-bench-") as directory:
            for length_s, clip in self._clips.items():
                self._clips[length_s] = Path(directory, clip)
                self._clips[length_s].write_bytes(clip_of(self._source.path, length_s))
            try:
                self._load()
                begun_s = time.perf_counter()
                for i, step in enumerate(steps):
                    if not self._configurations or self._budget.exhausted():
                        for name in self._configurations:
                            self._not_measured(name, step.what, NO_TIME)
                        continue
                    left_s = time_left_s(expected_s, i, time.perf_counter() - begun_s)
                    self._session.say(f"{step.what} (about {duration(left_s)} left)")
                    step.measure()
                    self._session.keep()
            finally:
                self._close()

    def _effort(self) -> Effort:
        """How long each timing is: as asked for, or shorter so that all fit the budget."""
        effort = self._request.effort
        while (
            sum(step.expected_s for step in self._steps(effort)) > self._budget.left_s
            and effort.seconds > _SHORTEST_S
        ):
            effort = dataclasses.replace(effort, seconds=effort.seconds / 2)
        if effort != self._request.effort:
            self._session.say(f"{effort.seconds:g} s per timing, to fit the time budget")
        return effort

    def _steps(self, effort: Effort) -> list[_Step]:
        """What will be done, and about how long each step takes, in seconds.

        A clip shorter than 5 s is taken to cost as much, since a model may look at it as often, and
        a longer one to cost more in proportion, which estimates too long rather than too short.
        """
        request, costs_s = self._request, self._costs_s
        steps = []
        for length_s in self._clips:
            what = f"timing {len(costs_s)} configurations on {length_s:g} s"
            round_s = max(1.0, length_s / HEADLINE_S) * sum(costs_s)
            expected_s = expected_latency_s(round_s, len(costs_s), effort)
            steps.append(_Step(what, expected_s, partial(self._latency, length_s, effort, what)))
        expected_s = sum(
            expected_throughput_s(cost_s, request.batches, request.callers, effort)
            for cost_s in costs_s
        )
        steps.append(_Step("throughput", expected_s, partial(self._throughput, effort)))
        if request.starts:
            expected_s = request.starts * sum(_START_S + 3 * cost_s for cost_s in costs_s)
            what = f"{request.starts} fresh processes each"
            steps.append(_Step(what, expected_s, self._cold_starts))
        return steps

    def _load(self) -> None:
        self._session.say(f"loading {len(self._configurations)} configurations")
        for name, configuration in list(self._configurations.items()):
            try:
                self._runners[name] = open_configuration(configuration, self._session)
            except MosrtError as exc:
                self._drop(name, "loading", str(exc))

    def _close(self) -> None:
        while self._runners:
            self._runners.popitem()[1].close()

    def _drop(self, name: str, step: str, reason: str) -> None:
        """Takes a configuration that failed out of what follows."""
        self._not_measured(name, step, reason)
        self._session.say(f"{name} fails: {reason}")
        del self._configurations[name]
        if (runner := self._runners.pop(name, None)) is not None:
            runner.close()

    def _not_measured(self, name: str, step: str, reason: str) -> None:
        reason = self._configurations[name].without_paths(reason)
        self._report["not_measured"].append({"contestant": name, "what": step, "reason": reason})

    def _calls(self, length_s: float) -> dict[str, Callable[[], Mapping[str, float]]]:
        clip = self._clips[length_s]
        return {name: partial(self._runners[name].time, clip) for name in self._configurations}

    def _latency(self, length_s: float, effort: Effort, what: str) -> None:
        taken: dict[str, Timings] = {}
        calls = self._calls(length_s)
        try:
            take_turns(calls, effort, timings=taken, out_of_time=self._budget.exhausted)
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
            self._report["latency"].sort(key=lambda row: row["clip_s"])
        for name, each in taken.items():
            if each.failure is not None:
                self._drop(name, what, each.failure)
            elif not each.total_ms:
                self._not_measured(name, what, NO_TIME)

    def _throughput(self, effort: Effort) -> None:
        loads: list[Load] = []
        request = self._request
        try:
            measure_throughput(
                {name: self._runners[name] for name in self._configurations},
                self._clips[HEADLINE_S],
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
                what = f"throughput, {load.kind} {load.count}"
                self._not_measured(load.name, what, load.failure or NO_TIME)
        if not self._budget.exhausted():
            self._session.keep()
            self._energy()

    def _energy(self) -> None:
        meters, notes = counters()
        self._report["notes"] += notes
        self._report["energy"] = []
        for name, call in self._calls(HEADLINE_S).items():
            try:
                self._report["energy"] += energy(name, call, meters)
            except MosrtError as exc:
                self._drop(name, "energy", str(exc))

    def _cold_starts(self) -> None:
        self._close()
        used_bytes, notes = device_memory()
        self._report["notes"] += notes
        answers: dict[str, list[dict[str, Any]]] = {}
        try:
            for _ in range(self._request.starts):
                for name, configuration in list(self._configurations.items()):
                    if self._budget.exhausted():
                        break
                    try:
                        answer = cold_start(
                            configuration,
                            self._clips[HEADLINE_S],
                            used_bytes=used_bytes,
                            limit_s=self._session.limit_s,
                        )
                        answers.setdefault(name, []).append(answer)
                    except MosrtError as exc:
                        self._drop(name, "cold start", str(exc))
        finally:
            self._report["cold_start"] = [cold_start_row(*each) for each in answers.items()]
        for name in self._configurations.keys() - answers.keys():
            self._not_measured(name, "cold start", NO_TIME)
