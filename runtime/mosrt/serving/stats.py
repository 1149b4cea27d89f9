"""What a pool of workers has done so far, and how long it takes."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Durations", "ServiceTimes", "ServingStats"]

# How many durations quantiles are estimated from, and over how many requests averages run.
_KEPT: Final = 512
_FORGET: Final = 1 - 1 / 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Quantiles in seconds over the last 512 requests; nan before the first.

    Attributes:
        p50: Median.
        p95: What 95 % of requests took at most.
        p99: What 99 % of requests took at most.
    """

    p50: float = math.nan
    p95: float = math.nan
    p99: float = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingStats:
    """A snapshot of a pool. Counters run since it was made, in this process.

    `accepted` is the sum of `queued`, `in_flight`, `completed`, `failed`, `cancelled` and
    `expired`.

    Attributes:
        workers: Recordings that are scored at once.
        max_queue: Requests that may wait.
        queued: Requests that wait now.
        in_flight: Requests that are scored now.
        accepted: Requests that were not refused.
        refused: Requests that were refused at once with Overloaded.
        completed: Requests that got a score, be it nan.
        failed: Requests that got an error.
        cancelled: Requests that were cancelled while they waited or were scored, or by a close.
        expired: Requests that waited until their deadline could not be met any more.
        wait_s: Time from acceptance to the start of the work.
        service_s: Time that a worker spent on a request.
    """

    workers: int
    max_queue: int
    queued: int
    in_flight: int
    accepted: int
    refused: int
    completed: int
    failed: int
    cancelled: int
    expired: int
    wait_s: Durations
    service_s: Durations

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON-ready values, nan as None."""
        plain: dict[str, Any] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, Durations):
                parts = {key: getattr(value, key) for key in value.__slots__}
                value = {k: None if math.isnan(v) else v for k, v in parts.items()}
            plain[name] = value
        return plain


class ServiceTimes:
    """Measures how long requests take, and predicts it from the length of a recording.

    The prediction is a line fitted to the last requests, with weights that fade. Doubt lowers it,
    so that a measurement that was too long does not keep all others out for ever.
    """

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_KEPT)
        # Faded sums of 1, length, length², time, length · time.
        self._sums = [0.0] * 5
        self._trust = 1.0

    def add(self, service_s: float, duration_s: float = math.nan) -> None:
        """Adds a measurement: the time it took, and the length of the recording if known."""
        self._last.append(service_s)
        self._trust = 1.0
        if math.isfinite(duration_s):
            values = (1.0, duration_s, duration_s**2, service_s, duration_s * service_s)
            self._sums = [
                _FORGET * total + value for total, value in zip(self._sums, values, strict=True)
            ]

    def doubt(self) -> None:
        """Lowers predictions by a twentieth, until the next measurement."""
        self._trust *= 0.95

    @property
    def mean_s(self) -> float:
        """Mean of the last requests; 0 before the first."""
        return sum(self._last) / len(self._last) if self._last else 0.0

    def predict_s(self, duration_s: float | None) -> float:
        """Expected time in seconds for a recording of a length; the mean if that is not known."""
        n, d, dd, s, ds = self._sums
        if duration_s is None or not n:
            return self._trust * self.mean_s
        spread = dd - d * d / n
        # Lengths that differ by less than a tenth of their mean tell nothing about a slope.
        slope = (
            max(0.0, (ds - d * s / n) / spread) if spread > 0.01 * d * d / n else s / max(d, 1e-9)
        )
        return self._trust * max(0.0, s / n + slope * (duration_s - d / n))

    def quantiles(self) -> Durations:
        """Quantiles of the last requests."""
        return quantiles(self._last)


def quantiles(values: deque[float]) -> Durations:
    """Quantiles of some durations; nan if there are none."""
    if not values:
        return Durations()
    ordered = sorted(values)
    p50, p95, p99 = (
        ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.95, 0.99)
    )
    return Durations(p50=p50, p95=p95, p99=p99)
