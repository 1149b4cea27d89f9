"""Schedule: what a bench has still to do, and about how long that takes."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Schedule", "duration"]

Say = Callable[[str], None]


def duration(seconds: float) -> str:
    """A time to wait, as people say it."""
    if seconds < 100:
        return f"{max(10, round(seconds, -1)):.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class Schedule:
    """Steps that follow each other, each with an estimate of its time.

    Where a step took longer or shorter than estimated, what is left is corrected by the same
    factor.

    Args:
        say: Told of each step and of what is left.
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
