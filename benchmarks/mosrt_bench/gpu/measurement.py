"""Measurement: what is found out about one contestant, beside the baseline where there is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from mosrt_bench.bench.latency import Budget, latency_row, paired_ratio, take_turns
from mosrt_bench.bench.parity import provider_problem, tolerance_mos
from mosrt_bench.stats.bootstrap import interval_95
from mosrt_bench.worker.process import Conversation, OutOfTimeError, RefusedError

from .rows import Row

__all__ = ["Effort", "Opponent", "judge", "latency", "place", "throughput"]

Judgement = Sequence[Sequence[float]]
"""MOS by clip, then by domain."""

_FALLEN: Final = 0.95
_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long is measured.

    Attributes:
        latency: When the rounds of single scores are enough.
        rate_s: Time of one measurement of throughput.
        sizes: Batches to try, in order.
    """

    latency: Budget
    rate_s: float
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opponent:
    """Someone to ask, and how.

    Attributes:
        conversation: The contestant.
        left_s: Time that there is for an answer.
        best_size: The batch of its best throughput, once that is known.
    """

    conversation: Conversation
    left_s: Callable[[], float]
    best_size: int = 0

    def ask(self, what: str, **details: Any) -> dict[str, Any]:
        """Asks for something; see `gpu.worker`."""
        return self.conversation.ask({"do": what, **details}, self.left_s())


def judge(own: Opponent, wanted: Judgement, variant: str) -> dict[str, Any]:
    """How far the scores of all clips and domains are from the reference's.

    Args:
        own: The contestant.
        wanted: The reference's scores.
        variant: Precision of the contestant, which sets what is allowed.
    """
    found = own.ask("judge")["mos"]
    difference = np.abs(np.subtract(found, wanted))
    return _parity(float(difference.max()), variant)


def latency(
    own: Opponent, baseline: Opponent | None, effort: Effort, clip_s: float
) -> dict[str, Any]:
    """Single scores, in turn with the baseline's: quantiles, stages and how many times as fast."""
    calls = {"own": _timed(own)}
    if baseline is not None:
        calls = {"baseline": _timed(baseline), **calls}
    taken = take_turns(calls, effort.latency)
    first = taken["own" if baseline is None else "baseline"]
    row = latency_row(taken["own"], first, clip_s)
    row.pop("ratio_to_first")
    if baseline is not None:
        row["times_as_fast"] = paired_ratio(first.total_ms, taken["own"].total_ms)
        row["baseline_ms"] = float(np.median(first.total_ms))
    return row


def throughput(
    own: Opponent,
    baseline: Opponent | None,
    effort: Effort,
    wanted: Sequence[float],
    variant: str,
) -> dict[str, Any]:
    """Clips per second by batch, and at the best batch in turn with the baseline at its best.

    Batches grow till there are no more, memory ends or throughput falls.

    Args:
        own: The contestant.
        baseline: The baseline, if this is not it.
        effort: How long to measure.
        wanted: The reference's scores of the clips, default domain.
        variant: Precision of the contestant.

    Raises:
        RefusedError: Not even the first batch can be run.
    """
    rates: dict[int, float] = {}
    ended, drifts = "no larger batch was tried", []
    for size in effort.sizes:
        try:
            answer = own.ask("rate", size=size, seconds=effort.rate_s)
        except OutOfTimeError:
            raise
        except RefusedError as exc:
            if not rates:
                raise
            ended = f"batch {size}: {exc}"
            break
        expected = [wanted[i % len(wanted)] for i in range(size)]
        drifts.append(np.abs(np.subtract(answer["mos"], expected)).max())
        rates[size] = answer["clips_per_s"]
        if rates[size] < _FALLEN * max(rates.values()):
            ended = "throughput fell"
            break
    best = max(rates, key=lambda size: rates[size])
    repeated: list[float] = []
    others: list[float] = []
    for i in range(_ROUNDS):
        # Each round begins with the other one.
        for who in (own, baseline) if i % 2 else (baseline, own):
            if who is not None:
                size = best if who is own else who.best_size
                rate = who.ask("rate", size=size, seconds=effort.rate_s)["clips_per_s"]
                (repeated if who is own else others).append(rate)
    bounds = interval_95(repeated, lambda drawn: np.median(drawn, axis=1))
    row: dict[str, Any] = {
        "clips_per_s_by_batch": {str(size): rate for size, rate in rates.items()},
        "ended": ended,
        "best_batch": best,
        "clips_per_s": float(np.median(repeated)),
        "clips_per_s_95": None if bounds is None else list(bounds),
        "clips_per_s_all": repeated,
        "parity": _parity(float(np.max(drifts)), variant),
    }
    if others:
        row["baseline_clips_per_s"] = float(np.median(others))
        row["times_as_fast"] = paired_ratio(repeated, others)
    return row


def place(own: Opponent, row: Row, answered: str | None) -> tuple[str | None, str | None]:
    """What is wrong with where a contestant ran, and what is worth a note.

    Args:
        own: The contestant.
        row: What it is.
        answered: The provider that it says it runs on; None for torch.
    """
    if answered is None:
        return None, None
    return provider_problem(row.provider, answered, own.ask("placement")["nodes"])


def _timed(who: Opponent) -> Callable[[], Mapping[str, float]]:
    n_asked = 0

    def once() -> Mapping[str, float]:
        nonlocal n_asked
        answer: dict[str, float] = who.ask("score", clip=n_asked)
        n_asked += 1
        return answer

    return once


def _parity(largest: float, variant: str) -> dict[str, Any]:
    tolerance = tolerance_mos(variant)
    return {
        "max_abs_mos": largest,
        "tolerance_mos": tolerance,
        "passed": math.isfinite(largest) and largest <= tolerance,
    }
