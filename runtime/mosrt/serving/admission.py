"""Decides which requests wait, which are refused, and which comes next."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from mosrt.errors import Overloaded
from mosrt.score import Score
from mosrt.scorer import Item, Request

from .stats import ServiceTimes, ServingStats

__all__ = ["Admission", "Job", "Priority"]

Priority = Literal["interactive", "background"]
"""Whether somebody waits for the score. Background requests come after the interactive ones."""

# Of this many requests that start while both kinds wait, one is a background request.
_TURN: Final = 8
_OUTCOMES: Final = ("accepted", "refused", "completed", "failed", "cancelled", "expired")


@dataclass(slots=True, eq=False)
class Job:
    """A request, from its acceptance to its score.

    Attributes:
        item: The recording.
        domain: Data domain to score for.
        request: What else the caller asks for.
        priority: Whether somebody waits for it.
        deadline: When the score is needed, on the clock of `Admission`.
        duration_s: Length of the recording, if known without decoding it.
        future: Gets the score.
        abandoned: Whether the caller has gone.
    """

    item: Item
    domain: str
    request: Request
    priority: Priority = "interactive"
    deadline: float = math.inf
    duration_s: float | None = None
    future: Future[Score] = field(default_factory=Future)
    abandoned: bool = False
    cost_s: float = 0.0
    accepted: float = 0.0
    started: float = 0.0


class Admission:
    """The queue of a pool, and what is known of its speed.

    It decides by measured service times. It starts no threads and has no lock: the pool that uses
    it has one.

    Attributes:
        times: Measured service times.
        expired: Requests that were given up, for the pool to tell their callers.

    Args:
        workers: Requests that are worked on at once.
        max_queue: Requests that may wait, at least 1. Background requests take half of the places
            at most, so that they keep no interactive one out.
        core_s: Cores that each worker may use; 1 or less.
        clock: Gives the time in seconds.
    """

    def __init__(
        self,
        *,
        workers: int,
        max_queue: int,
        core_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.workers = workers
        self.max_queue = max_queue
        self.times = ServiceTimes()
        self.expired: list[Job] = []
        self.clock = clock
        self._core_s = core_s
        self._waits = ServiceTimes()
        # In order of arrival; a dictionary gives any of them up at once.
        self._waiting: dict[Priority, dict[Job, None]] = {kind: {} for kind in get_args(Priority)}
        self._running: dict[Job, None] = {}
        self._interactive_in_a_row = 0
        self._counts = dict.fromkeys(_OUTCOMES, 0)

    def admit(self, job: Job) -> None:
        """Lets a request wait.

        Raises:
            Overloaded: The queue is full, or the deadline cannot be met.
        """
        now = self.clock()
        job.cost_s = self.times.predict_s(job.duration_s)
        wait_s = self._wait_s(job.priority, now)
        places, reason = self.max_queue - self.queued, ""
        if job.priority == "background":
            places = min(places, max(1, self.max_queue // 2) - len(self._waiting["background"]))
        if places <= 0:
            reason = f"{self.queued} requests wait already"
        elif now + wait_s + job.cost_s > job.deadline:
            left_s = max(0.0, job.deadline - now)
            reason = f"a score would take {wait_s + job.cost_s:.3g} s, and has {left_s:.3g} s"
        if reason:
            self._counts["refused"] += 1
            if not self._running:  # nothing is measured while all are refused
                self.times.doubt()
            retry_s = self.retry_s(job.priority)
            raise Overloaded(f"{reason}; try again in {retry_s:.2g} s", retry_after_s=retry_s)
        job.accepted = now
        self._waiting[job.priority][job] = None
        self._counts["accepted"] += 1

    def take(self) -> Job | None:
        """The next request to work on; None if none waits.

        A request whose deadline cannot be met any more is moved to `expired` instead.
        """
        while (job := self._next()) is not None:
            now = self.clock()
            # Predictions scatter: a request may still be in time if half of its own is left.
            if now + job.cost_s / 2 > job.deadline:
                self.expire(job)
                continue
            del self._waiting[job.priority][job]
            self._running[job] = None
            job.started = now
            self._waits.add(now - job.accepted)
            return job
        return None

    def finish(self, job: Job, outcome: Literal["completed", "failed", "cancelled"]) -> None:
        """Counts a request that was taken."""
        del self._running[job]
        self._counts[outcome] += 1

    def measure(self, service_s: float, duration_s: float) -> None:
        """Adds the time that a recording took."""
        self.times.add(service_s, duration_s)

    def withdraw(self, job: Job) -> bool:
        """Frees the place of a request that waits; False if it does not wait."""
        if job not in self._waiting[job.priority]:
            return False
        del self._waiting[job.priority][job]
        self._counts["cancelled"] += 1
        return True

    def expire(self, job: Job) -> None:
        """Moves a request to `expired` if it waits, because its time has passed."""
        if job in self._waiting[job.priority]:
            del self._waiting[job.priority][job]
            self._counts["expired"] += 1
            self.expired.append(job)

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return sum(map(len, self._waiting.values()))

    @property
    def in_flight(self) -> int:
        """Requests that are worked on."""
        return len(self._running)

    def in_work(self) -> list[Job]:
        """The requests that are worked on."""
        return list(self._running)

    def waiting(self) -> list[Job]:
        """The requests that wait."""
        return [job for jobs in self._waiting.values() for job in jobs]

    def stats(self) -> ServingStats:
        """A snapshot."""
        return ServingStats(
            workers=self.workers,
            max_queue=self.max_queue,
            queued=self.queued,
            in_flight=self.in_flight,
            wait_s=self._waits.quantiles(),
            service_s=self.times.quantiles(),
            **self._counts,
        )

    def _next(self) -> Job | None:
        interactive, background = self._waiting["interactive"], self._waiting["background"]
        if not interactive and not background:
            return None
        turn = not interactive or (background and self._interactive_in_a_row >= _TURN - 1)
        self._interactive_in_a_row = 0 if turn else self._interactive_in_a_row + 1
        return next(iter(background if turn else interactive))

    def retry_s(self, priority: Priority) -> float:
        """When it is worth trying again, in seconds from now."""
        wait_s = self._wait_s(priority, self.clock())
        return max(wait_s, self.times.mean_s / self.workers, 1e-3)

    def _wait_s(self, priority: Priority, now: float) -> float:
        """How long a request that comes now is expected to wait."""
        ahead = list(self._waiting["interactive"])
        share = 1.0
        if priority == "background":
            ahead += self._waiting["background"]
        elif self._waiting["background"]:
            share = _TURN / (_TURN - 1)
        if len(ahead) + self.in_flight < self.workers:
            return 0.0
        work_s = share * sum(job.cost_s for job in ahead)
        work_s += sum(max(0.0, job.started + job.cost_s - now) for job in self._running)
        return work_s / (self.workers * self._core_s)
