"""What a bench says of the time it will take, on clocks that the tests make."""

from __future__ import annotations

import pytest

from mosrt_bench.bench.latency import Budget, expected_latency_s, take_turns
from mosrt_bench.bench.progress import Schedule, duration
from mosrt_bench.bench.throughput import expected_throughput_s, throughput


@pytest.mark.parametrize("score_s", [0.001, 0.1, 1.0, 5.0, 20.0])
def test_latency_takes_as_long_as_is_said(score_s: float) -> None:
    now_s = 0.0

    def score() -> dict[str, float]:
        nonlocal now_s
        now_s += score_s
        return {"total": 1e3 * score_s}

    budget = Budget(runs=50, seconds=20)
    take_turns(dict.fromkeys("ABCD", score), budget, now=lambda: now_s)
    assert now_s == pytest.approx(expected_latency_s(4 * score_s, 4, budget), rel=0.1)


class Scores:
    """A scorer that takes the same time for each clip, one after the other."""

    def __init__(self, score_s: float) -> None:
        self.now_s = 0.0
        self.batch_size = 1
        self.clips: list[int] = []
        self._score_s = score_s

    def score_many(self, clips: list[bytes]) -> None:
        assert len(clips) % self.batch_size == 0
        self.clips.append(len(clips))
        self.now_s += self._score_s * len(clips)

    def score_file(self, _: bytes) -> None:
        self.now_s += self._score_s


@pytest.mark.parametrize(
    ("score_s", "clips"), [(0.01, (8, 6, 8)), (2.0, (3, 3, 4)), (60.0, (1, 3, 4))]
)
def test_throughput_takes_as_long_as_is_said(
    score_s: float, clips: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scores(score_s)
    monkeypatch.setattr("time.perf_counter", lambda: scorer.now_s)
    budget = Budget(runs=50, seconds=20)
    rows = throughput(
        {"A": scorer},  # type: ignore[dict-item]
        b"", clip_s=5.0, batches=(1, 3, 4), callers=(2,), budget=budget,
    )  # fmt: skip
    assert tuple(row["clips"] for row in rows[:3]) == clips
    assert all(row["clips_per_s"] == pytest.approx(1 / score_s) for row in rows)
    expected_s = expected_throughput_s(score_s, (1, 3, 4), (2,), budget)
    assert scorer.now_s == pytest.approx(expected_s, rel=0.1)
    assert throughput({"A": scorer}, b"", clip_s=5.0, batches=(), callers=(), budget=budget) == []  # type: ignore[dict-item]


def test_what_is_left_is_corrected_by_what_was() -> None:
    said: list[str] = []
    now_s = 0.0
    schedule = Schedule(said.append, {"a": 60.0, "b": 120.0, "c": 120.0}, now=lambda: now_s)
    schedule.begin("a")
    now_s = 120.0
    schedule.begin("b")
    now_s = 130.0  # a and b together took 130 s of the 180 s expected
    schedule.begin("c")
    assert said == ["a (about 5 min left)", "b (about 8 min left)", "c (about 90 s left)"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3, "10 s"), (44, "40 s"), (130, "2 min"), (5400, "90 min"), (9000, "2.5 h")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said
