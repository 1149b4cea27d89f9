"""The metrics of a monitor for Prometheus: their names, units and labels.

They also work in prometheus-client's multiprocess mode, in which every process writes to files and
one of them is scraped: there are no custom collectors with values, and each gauge says how the
values of processes are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.registry import Collector

from mosrt.score import Score

from .drift import Drift, DriftWatch

__all__ = ["Metrics"]

_C = TypeVar("_C", bound=Collector)

MOS_BUCKETS: Final = tuple(1.0 + 0.25 * i for i in range(17))
DELAY_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class _BeforeScrape(Collector):
    """Brings the metrics up to date when a registry is scraped; it has none itself."""

    def __init__(self, update: Callable[[], None]) -> None:
        self._update = update

    def describe(self) -> Iterable[Any]:
        """No metrics."""
        return ()

    def collect(self) -> Iterable[Any]:
        """No metrics, but those of the collectors after it are up to date."""
        self._update()
        return ()


class Metrics:
    """Registers the metrics of a monitor.

    Args:
        registry: Where to; None for the default registry of prometheus-client.
        labels: Names of the labels of scores.
        before_scrape: Called before the registry's metrics are read.

    Raises:
        ValueError: The registry has the metrics of another monitor.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None,
        labels: Sequence[str],
        before_scrape: Callable[[], None],
    ) -> None:
        self._registry = REGISTRY if registry is None else registry
        self._registered: list[Collector] = []
        self._exported: dict[tuple[str, str], int] = {}
        self._register(_BeforeScrape(before_scrape))
        try:
            self._make(labels)
        except ValueError as exc:
            self.unregister()
            raise ValueError(
                "the registry has metrics of another monitor; give this one its own with "
                "registry=prometheus_client.CollectorRegistry()"
            ) from exc

    def _make(self, labels: Sequence[str]) -> None:
        counter, gauge = self._counter, self._gauge
        self._offered = counter("clips_offered", "Clips offered to the monitor.")
        self._sampled = counter("clips_sampled", "Clips in the sample.")
        self._dropped = counter("clips_dropped", "Clips of the sample not scored.", "reason")
        self._failed = counter("clips_failed", "Clips that got no score.", "reason")
        self._scored = counter("clips_scored", "Clips that got a score.")
        self._flags = counter("clip_flags", "Flags of scored and failed clips.", "flag")
        self._cpu = counter("cpu_seconds", "CPU time spent on scoring.")
        self._mos = self._histogram("mos", "Mean opinion score.", MOS_BUCKETS, labels)
        self._delay = self._histogram(
            "delay_seconds", "Time from the offer of a clip to its score.", DELAY_BUCKETS_S, ()
        )
        self._queue = gauge("queue_clips", "Clips that wait.", "livesum")
        self._alarms = counter("drift_alarms", "Drops of quality.", "series", "statistic")
        self._evidence = gauge(
            "drift_evidence_ratio", "Evidence for a drop; an alarm is raised at 1.", "livemax",
            "series", "statistic",
        )  # fmt: skip
        self._baseline = gauge(
            "baseline_mos", "Statistic of the baseline.", "livemax", "series", "statistic"
        )
        self._model = gauge(
            "model_info", "The model; the value is 1.", "livemax",
            "model", "digest", "variant", "provider", "domain", prefix="mosrt",
        )  # fmt: skip

    def set_model(self, **labels: str) -> None:
        """Names the model."""
        self._model.labels(**labels).set(1)

    def count(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Exports counts of clips, by what happened and why, that only ever grow."""
        for (kind, reason), value in counts.items():
            counter = getattr(self, f"_{kind}")
            delta = value - self._exported.get((kind, reason), 0)
            (counter.labels(reason) if reason else counter).inc(delta)
            self._exported[kind, reason] = value

    def forget_counts(self) -> None:
        """Takes the next counts as those of a process that begins, after a fork."""
        self._exported.clear()

    def add_score(self, score: Score, labels: Sequence[str], *, delay_s: float) -> None:
        """Adds a finite score."""
        (self._mos.labels(*labels) if labels else self._mos).observe(score.mos)
        self._delay.observe(delay_s)

    def add_flags(self, flags: Iterable[str]) -> None:
        """Counts the flags of a clip."""
        for flag in flags:
            self._flags.labels(flag).inc()

    def add_cpu(self, cpu_s: float) -> None:
        """Adds CPU time in seconds."""
        self._cpu.inc(max(0.0, cpu_s))

    def set_queue(self, clips: int) -> None:
        """Sets the length of the queue."""
        self._queue.set(clips)

    def set_drift(self, watch: DriftWatch) -> None:
        """Sets the gauges of all tests."""
        for series in watch.series.values():
            for test in series.tests:
                self._evidence.labels(series.name, test.statistic).set(watch.evidence(test))
                self._baseline.labels(series.name, test.statistic).set(test.baseline_mos)
                # It begins at 0: Prometheus sees no increase where a counter begins at 1.
                self._alarms.labels(series.name, test.statistic)

    def add_alarm(self, drift: Drift) -> None:
        """Counts an alarm."""
        self._alarms.labels(drift.series, drift.statistic).inc()

    def unregister(self) -> None:
        """Takes all metrics out of the registry."""
        while self._registered:
            self._registry.unregister(self._registered.pop())

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return self._register(Counter(f"mosrt_monitor_{name}", text, labels, registry=None))

    def _gauge(
        self, name: str, text: str, mode: Any, *labels: str, prefix: str = "mosrt_monitor"
    ) -> Gauge:
        gauge = Gauge(f"{prefix}_{name}", text, labels, registry=None, multiprocess_mode=mode)
        return self._register(gauge)

    def _histogram(
        self, name: str, text: str, buckets: Sequence[float], labels: Sequence[str]
    ) -> Histogram:
        found = Histogram(f"mosrt_monitor_{name}", text, labels, buckets=buckets, registry=None)
        return self._register(found)

    def _register(self, collector: _C) -> _C:
        self._registry.register(collector)
        self._registered.append(collector)
        return collector
