"""Counts what becomes of the clips that a monitor is offered."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Counts", "MonitorStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorStats:
    """What a monitor has done in this process.

    `sampled` is the sum of `scored`, `failed`, `dropped` and clips that still wait; but `dropped`
    also has what was offered to a closed monitor.

    Attributes:
        offered: Clips offered.
        sampled: Clips in the sample.
        scored: Clips that got a score.
        failed: Clips that got none, by flag or type of the error.
        dropped: Clips that were not scored, by reason: "rate" and "label-rate" for the limits,
            "queue-full", "too-long", "invalid" for what is no clip, "closed", and "error".
    """

    offered: int
    sampled: int
    scored: int
    failed: Mapping[str, int]
    dropped: Mapping[str, int]


class Counts:
    """Counts by what happened and why. Safe for several threads, and in signal handlers."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begins anew, in a forked process: there a lock may be held by a thread that is not."""
        self._lock = threading.RLock()  # held for microseconds
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, kind: str, reason: str = "") -> None:
        """Counts a clip that was "offered", "sampled", "scored", "failed" or "dropped"."""
        with self._lock:
            self._counts[kind, reason] += 1

    def all(self) -> dict[tuple[str, str], int]:
        """All counts by what happened and why."""
        with self._lock:
            return dict(self._counts)

    def stats(self) -> MonitorStats:
        """All counts as users see them."""
        counts = self.all()
        return MonitorStats(
            offered=counts.get(("offered", ""), 0),
            sampled=counts.get(("sampled", ""), 0),
            scored=counts.get(("scored", ""), 0),
            failed={reason: n for (kind, reason), n in counts.items() if kind == "failed"},
            dropped={reason: n for (kind, reason), n in counts.items() if kind == "dropped"},
        )
