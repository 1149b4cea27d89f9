"""Records scores: in series of traffic, in metrics, and as events; tells of drops."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mosrt.errors import ClosedError
from mosrt.host.fork import fork_waits
from mosrt.score import Score

from . import otel
from .baseline import Baseline
from .counts import Counts
from .drift import Drift, DriftWatch, MonitoredClip
from .histogram import MosHistogram
from .prometheus_metrics import Metrics

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["Offer", "Recorder"]

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Offer:
    """A clip on its way to its score.

    Attributes:
        request_id: Identifier of its request, if it has one.
        labels: The value of every label; "" for none.
        rate_hz: Sampling rate.
        waveform: A copy of the audio.
        caller: The context of OpenTelemetry in which it was offered.
        offered_s: When, on the clock that never goes back.
    """

    request_id: str | None
    labels: tuple[str, ...]
    rate_hz: float
    waveform: npt.NDArray[np.generic]
    caller: otel.Context = field(default_factory=otel.caller_context)
    offered_s: float = field(default_factory=time.monotonic)


class Recorder:
    """Records scores in the thread that made them, which is always the same one.

    Args:
        setup: What determines scores.
        label_names: Names of the labels.
        watch: The series.
        counts: What has become of clips so far.
        queued: Gives the number of clips that wait.
        on_drift: Called with each alarm.
        keep_audio: Whether clips to listen to keep their audio.
        registry: Registry of prometheus-client; None for its own.

    Raises:
        ValueError: The registry has the metrics of another monitor.
    """

    def __init__(
        self,
        setup: Baseline,
        label_names: Sequence[str],
        watch: DriftWatch,
        counts: Counts,
        *,
        queued: Callable[[], int],
        on_drift: Callable[[Drift], object] | None,
        keep_audio: bool,
        registry: CollectorRegistry | None,
    ) -> None:
        self._setup, self._label_names = setup, label_names
        self._watch, self._counts = watch, counts
        self._queued, self._on_drift, self._keep_audio = queued, on_drift, keep_audio
        self._reset_locks()
        self._metrics = Metrics(registry, label_names, self._export)
        self._metrics.set_model(
            model=setup.model, digest=setup.bundle_sha256, variant=setup.variant,
            provider=setup.provider, domain=setup.domain,
        )  # fmt: skip
        self._metrics.set_drift(watch)

    def _reset_locks(self) -> None:
        self._watching = threading.RLock()
        self._exporting = threading.RLock()
        self._cpu: tuple[int, float] | None = None

    def after_fork(self) -> None:
        """Starts anew in a forked process; what the tests have seen is kept."""
        self._reset_locks()
        self._metrics.forget_counts()

    def record(self, offer: Offer, future: Future[Score]) -> None:
        """Deals with a score, or with an error. Raises nothing."""
        try:
            for drift in self._record(offer, future):
                _LOG.warning("%s", drift)
                if self._on_drift is not None:
                    self._tell(drift, self._on_drift)
        except Exception:  # noqa: BLE001 - the worker goes on
            _LOG.exception("a score could not be recorded")

    @staticmethod
    def _tell(drift: Drift, on_drift: Callable[[Drift], object]) -> None:
        try:
            on_drift(drift)
        except Exception:  # noqa: BLE001 - as above
            _LOG.exception("on_drift failed")

    def _record(self, offer: Offer, future: Future[Score]) -> list[Drift]:
        error = None if future.cancelled() else future.exception()
        if future.cancelled() or isinstance(error, ClosedError):
            self._counts.add("dropped", "closed")
            return []
        score = None if error is not None else future.result()
        now_s = time.monotonic()
        labels = {n: v for n, v in zip(self._label_names, offer.labels, strict=True) if v}
        drifts: list[Drift] = []
        failure = ""
        if score is None or not math.isfinite(score.mos):
            flags = score.flags if score is not None else getattr(error, "flags", ())
            failure = next(iter(flags), type(error).__name__)
            self._counts.add("failed", failure)
        else:
            flags = score.flags
            self._counts.add("scored")
            clip = MonitoredClip(
                mos=score.mos,
                flags=flags,
                request_id=offer.request_id,
                labels=labels,
                time_s=time.time() - (now_s - offer.offered_s),
                sample_rate_hz=offer.rate_hz,
                waveform=offer.waveform if self._keep_audio else None,
            )
            with fork_waits(), self._watching:
                drifts = self._watch.add(clip, now_s)
        with fork_waits():  # metrics have locks
            self._metrics.add_cpu(self._cpu_since())
            if score is not None and not failure:
                self._metrics.add_score(score, offer.labels, delay_s=now_s - offer.offered_s)
            self._metrics.add_flags(flags)
            for drift in drifts:
                self._metrics.add_alarm(drift)
            self._export()
        event: dict[str, Any] = {
            "digest": self._setup.bundle_sha256,
            "request_id": offer.request_id,
            "labels": labels,
            "caller": offer.caller,
        }
        if score is None or failure:
            otel.emit_failure(failure, model=self._setup.model, **event)
        else:
            otel.emit_score(score, **event)
        return drifts

    def _export(self) -> None:
        """Brings the metrics up to date."""
        with self._exporting:
            self._metrics.count(self._counts.all())
            self._metrics.set_queue(self._queued())
            with self._watching:
                self._metrics.set_drift(self._watch)

    def _cpu_since(self) -> float:
        """CPU time in seconds that the worker thread has spent since the last call."""
        thread, cpu_s = threading.get_ident(), time.thread_time()
        last = self._cpu
        self._cpu = (thread, cpu_s)
        return cpu_s - (last[1] if last is not None and last[0] == thread else 0.0)

    def windows(self, series: str) -> dict[float, MosHistogram]:
        """Copies of the histograms of a series by the beginning of their window."""
        with self._watching:
            found = self._watch.series.get(series)
            return (
                {} if found is None else {t: h + MosHistogram() for t, h in found.windows.items()}
            )

    def baselines(self) -> dict[str, list[float]]:
        """The baselines of all series that have one."""
        with self._watching:
            return {s.name: list(s.baseline) for s in self._watch.series.values() if s.tests}

    def close(self) -> None:
        """Takes the metrics out of the registry."""
        self._metrics.unregister()
