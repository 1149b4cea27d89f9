"""The time that a bench expects to take, on clocks that the tests make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from mosrt_bench.bench.request import TimeBudget, duration, parse_duration
from mosrt_bench.bench.speed import time_left_s
from mosrt_bench.bench.timing import (
    Effort,
    expected_latency_s,
    expected_throughput_s,
    measure_throughput,
    take_turns,
    throughput_rows,
)
from mosrt_bench.errors import WorkerError
from mosrt_bench.worker.protocol import LoadKind, Runner


@pytest.mark.parametrize("score_s", [0.001, 0.1, 1.0, 5.0, 20.0])
def test_latency_takes_as_long_as_is_said(score_s: float) -> None:
    now_s = 0.0

    def score() -> dict[str, float]:
        nonlocal now_s
        now_s += score_s
        return {"total": 1e3 * score_s}

    effort = Effort(runs=50, seconds=20)
    take_turns(dict.fromkeys("ABCD", score), effort, now=lambda: now_s)
    assert now_s == pytest.approx(expected_latency_s(4 * score_s, 4, effort), rel=0.1)


class Scores:
    """A runner that takes the same time for each clip, one after the other, and fits four."""

    provider = "cpu"
    facts: Mapping[str, Any] = {}

    def __init__(self, score_s: float) -> None:
        self.now_s = 0.0
        self._score_s = score_s

    def run_many(self, _: Path, __: LoadKind, count: int, n_clips: int) -> float:
        assert n_clips % count == 0
        if count > 4:
            raise WorkerError("out of memory")
        self.now_s += self._score_s * n_clips
        return self._score_s * n_clips


def runners(*scores: Scores) -> dict[str, Runner]:
    return {chr(ord("A") + i): cast(Runner, each) for i, each in enumerate(scores)}


CLIP = Path("clip.wav")


@pytest.mark.parametrize(
    ("score_s", "clips"), [(0.01, (8, 6, 8)), (2.0, (3, 3, 4)), (60.0, (1, 3, 4))]
)
def test_throughput_takes_as_long_as_is_said(
    score_s: float, clips: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = Scores(score_s)
    monkeypatch.setattr("time.perf_counter", lambda: scores.now_s)
    effort = Effort(runs=50, seconds=20)
    loads = measure_throughput(
        runners(scores), CLIP, batches=(1, 3, 4), callers=(2,), effort=effort
    )
    rows = throughput_rows(loads, 5.0)
    assert tuple(row["clips"] for row in rows[:3]) == clips
    assert all(row["clips_per_s"] == pytest.approx(1 / score_s) for row in rows)
    expected_s = expected_throughput_s(score_s, (1, 3, 4), (2,), effort)
    assert scores.now_s == pytest.approx(expected_s, rel=0.1)
    assert measure_throughput(runners(scores), CLIP, batches=(), callers=(), effort=effort) == []


def test_a_batch_that_does_not_fit_ends_alone() -> None:
    loads = measure_throughput(
        runners(Scores(1.0), Scores(4.0)), CLIP, batches=(4, 8), callers=(), effort=Effort(runs=5)
    )
    assert [(load.name, load.count, load.failure) for load in loads] == [
        ("A", 4, None), ("A", 8, "out of memory"), ("B", 4, None), ("B", 8, "out of memory")
    ]  # fmt: skip
    first, second = throughput_rows(loads, 5.0, base="A")
    assert (first["contestant"], first["ratio_to_torch"]["ratio"]) == ("A", 1.0)
    assert (second["torch"], second["ratio_to_torch"]["ratio"]) == ("A", pytest.approx(4.0))


def test_a_budget_runs_out() -> None:
    now_s = 0.0
    budget = TimeBudget(60.0, now=lambda: now_s)
    assert (budget.left_s, budget.answer_s(), budget.exhausted()) == (60.0, 20.0, False)
    now_s = 50.0
    assert (budget.left_s, budget.answer_s(), budget.exhausted()) == (10.0, 10.0, False)
    now_s = 59.5
    assert budget.exhausted()
    unlimited = TimeBudget(None, now=lambda: now_s)
    now_s = 1e9
    assert not unlimited.exhausted()
    assert unlimited.answer_s() == 600.0


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("8m", 480), ("1.5h", 5400), ("1h30m", 5400)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "8", "m", "8 m", "-8m", "0s", "8d", "8m!"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


def test_what_is_left_is_corrected_by_what_was() -> None:
    expected_s = [60.0, 120.0, 120.0]
    assert time_left_s(expected_s, 0, 0.0) == 300
    assert time_left_s(expected_s, 1, 120.0) == 480
    # the first two took 130 s of the 180 s expected
    assert time_left_s(expected_s, 2, 130.0) == pytest.approx(120 * 130 / 180)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3, "10 s"), (44, "40 s"), (130, "2 min"), (5400, "90 min"), (9000, "2.5 h")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
