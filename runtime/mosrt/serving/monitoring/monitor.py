"""Scores a sample of what a speech synthesiser says while it serves, and warns of drops."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

from mosrt.errors import ClosedError, DomainError, MeasureError, Overloaded, missing_extra
from mosrt.score import Score
from mosrt.serving.scorer_pool import ScorerPool

from .baseline import ALL, LEAST_SCORES, Baseline
from .counts import Counts, MonitorStats
from .drift import Drift, DriftWatch
from .histogram import MosHistogram
from .sampling import LabelValues, RateLimits, sampled

try:
    from .recorder import Offer, Recorder
except ModuleNotFoundError as exc:
    if (exc.name or "").partition(".")[0] not in ("opentelemetry", "prometheus_client"):
        raise
    raise ModuleNotFoundError(
        missing_extra("mosrt.Monitor", "monitor", exc.name or ""), name=exc.name
    ) from exc

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["Monitor"]

_LOG = logging.getLogger(__name__)
_LABEL: Final = re.compile("[a-zA-Z][a-zA-Z0-9_]*")
_RESERVED: Final = {"waveform", "sample_rate", "request_id", "le"}
_CHANNELS: Final = 2
_MAX_RATE_HZ: Final = 192_000
_MAX_CHARACTERS: Final = 128
_NICE: Final = 10
# The pool gives background requests half of its places.
_PLACES_PER_CLIP: Final = 2


class _DroppedError(Exception):
    """A clip that is not scored."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Monitor:
    """Scores a sample of clips in the background, exports metrics and raises alarms.

    One worker thread of low priority scores. `offer` only decides and copies. Metrics go to
    Prometheus (names that begin with `mosrt_`) and each score to OpenTelemetry, as an event of the
    caller's span. Needs the extra `monitor`.

    Works before and after a fork: each process counts, scores and tests what it is offered itself.

    Args:
        model: As for `mosrt.load`; one that predicts MOS.
        sample: Share of requests to score, 0 to 1, chosen by a hash of their identifiers.
        baseline: JSON file with the scores that traffic is compared with, from `mosrt gate
            --update` or `save_baseline`. A series that it does not have warms up: its first scores
            are its baseline. A file of `mosrt gate` has the series of all traffic.
        labels: Names of the labels of clips. There is a series for each value of each label.
        domain: Data domain to score for; by default the model's own, or the baseline's.
        max_per_second: Clips per second to score at most.
        max_per_label_value: Clips per second to score at most with the same value of a label.
        max_label_values: Values of each label that are kept apart; further ones are "other".
        max_clip_s: Longer clips are dropped.
        max_queue: Clips that may wait. Each is a copy of the caller's audio.
        cpu_share: Part of a core that the worker may use, above 0 to 1.
        false_alarms_per_month: Largest expected number of false alarms in 30 days, of all series
            of this process together; see `mosrt.serving.monitoring.drop_test`.
        tolerance_mos: Drops up to this are none.
        warm_up_clips: Scores of a warm-up, 20 or more.
        on_drift: Called in the worker thread with each alarm.
        keep_clips: Clips to listen to that each series keeps for the next alarm.
        keep_audio: Whether their audio is kept, too.
        registry: Registry of prometheus-client to export to; by default its own.
        variant: As for `mosrt.load`.
        provider: As for `mosrt.load`.

    Raises:
        BaselineError: The baseline cannot be used.
        BundleError, ProviderError: As for `mosrt.load`.
        DomainError: The model does not know the domain.
        MeasureError: The model gives no MOS.
        ValueError: An option has a value that it does not know, or another monitor exports to the
            registry.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        sample: float = 0.02,
        baseline: str | os.PathLike[str] | None = None,
        labels: Sequence[str] = (),
        domain: str | None = None,
        max_per_second: float = 5.0,
        max_per_label_value: float = 1.0,
        max_label_values: int = 16,
        max_clip_s: float = 30.0,
        max_queue: int = 32,
        cpu_share: float | None = None,
        false_alarms_per_month: float = 0.1,
        tolerance_mos: float = 0.02,
        warm_up_clips: int = 500,
        on_drift: Callable[[Drift], object] | None = None,
        keep_clips: int = 8,
        keep_audio: bool = False,
        registry: CollectorRegistry | None = None,
        variant: str | None = None,
        provider: str = "auto",
    ) -> None:
        for name, value, least, most in (
            ("sample", sample, 0, 1), ("max_per_second", max_per_second, 1e-6, 1e6),
            ("max_per_label_value", max_per_label_value, 1e-6, 1e6),
            ("max_label_values", max_label_values, 1, 10_000),
            ("max_clip_s", max_clip_s, 0.1, 3600), ("max_queue", max_queue, 1, 100_000),
            ("cpu_share", 1.0 if cpu_share is None else cpu_share, 1e-3, 1),
            ("false_alarms_per_month", false_alarms_per_month, 1e-6, 1e3),
            ("tolerance_mos", tolerance_mos, 0, 4),
            ("warm_up_clips", warm_up_clips, LEAST_SCORES, 1_000_000),
            ("keep_clips", keep_clips, 0, 10_000),
        ):  # fmt: skip
            if not least <= value <= most:
                raise ValueError(f"{name} must be from {least} to {most}, not {value}")
        self._label_names = tuple(labels)
        for name in self._label_names:
            if not _LABEL.fullmatch(name) or name in _RESERVED:
                raise ValueError(f"{name!r} cannot be a label; use letters, digits and _")
        self._sample, self._max_clip_s = sample, max_clip_s
        found = None if baseline is None else Baseline.read(Path(baseline))
        self._pool = ScorerPool(
            model,
            variant=variant,
            provider=provider,
            workers=1,
            max_queue=_PLACES_PER_CLIP * max_queue,
            cpu_share=cpu_share,
            nice=_NICE if sys.platform.startswith("linux") else None,
        )
        try:
            self._setup = self._checked_setup(found, baseline, domain)
            self._limits = RateLimits(max_per_second, max_per_label_value)
            self._values = LabelValues(self._label_names, max_label_values)
            watch = DriftWatch(
                {} if found is None else found.series,
                warm_up_clips=warm_up_clips,
                tolerance_mos=tolerance_mos,
                false_alarms_per_month=false_alarms_per_month,
                keep_clips=keep_clips,
            )
            self._counts = Counts()
            self._recorder = Recorder(
                self._setup,
                self._label_names,
                watch,
                self._counts,
                queued=lambda: self._pool.stats().queued,
                on_drift=on_drift,
                keep_audio=keep_audio,
                registry=registry,
            )
        except BaseException:
            self._pool.close()
            raise
        self._closed = False
        self._reset()
        _MONITORS.add(self)

    def _checked_setup(
        self, found: Baseline | None, file: str | os.PathLike[str] | None, domain: str | None
    ) -> Baseline:
        """What determines scores here, without any."""
        info = self._pool.info
        if info.measures:
            raise MeasureError(f"{info.name} gives no MOS to monitor; use a model that predicts it")
        if domain is not None and domain not in info.domains:
            raise DomainError(domain, info.domains)
        setup = Baseline(
            model=info.name,
            bundle_sha256=info.digest,
            variant=info.variant,
            provider=info.provider,
            domain=domain or (info.default_domain if found is None else found.domain),
            views=None if found is None else found.views,
            series={},
        )
        if found is not None:
            found.check(Path(file or ""), setup)
        return setup

    def _reset(self) -> None:
        self._lock = threading.RLock()  # of labels and limits: held for microseconds
        self._changed = threading.Condition(threading.RLock())
        self._waiting = 0

    def after_fork(self) -> None:
        """Starts anew in a forked process, which has no clip that waits and no count yet."""
        self._reset()
        self._counts.reset()
        self._recorder.after_fork()

    def offer(
        self,
        waveform: npt.ArrayLike,
        sample_rate: float,
        *,
        request_id: object = None,
        **labels: object,
    ) -> bool:
        """Offers a clip. Never blocks and never raises.

        Args:
            waveform: As for `Scorer.score`; copied if it is in the sample.
            sample_rate: Sampling rate in Hz.
            request_id: Identifier of the request, text or bytes; equal ones are sampled alike,
                everywhere. Without one the choice is random.
            **labels: Values of the labels; one that is left out is "".

        Returns:
            Whether the clip will be scored.
        """
        try:
            return self._offer(waveform, sample_rate, request_id, labels)
        except _DroppedError as exc:
            reason = exc.reason
        except Overloaded:
            reason = "queue-full"
        except ClosedError:
            reason = "closed"
        except Exception as exc:  # noqa: BLE001 - a monitor must not harm what it watches
            _LOG.debug("a clip cannot be offered: %r", exc)
            reason = "invalid" if isinstance(exc, TypeError | ValueError) else "error"
        self._counts.add("dropped", reason)
        return False

    def _offer(
        self, waveform: Any, sample_rate: float, request_id: object, labels: Mapping[str, object]
    ) -> bool:
        """As `offer`, but raises an error if the clip is dropped."""
        self._counts.add("offered")
        if self._closed:
            raise _DroppedError("closed")
        if not sampled(request_id, self._sample):
            return False
        self._counts.add("sampled")
        rate_hz = float(sample_rate)
        array = self._checked(waveform, rate_hz)
        with self._lock:
            values = self._values.bounded(labels)
            pairs = zip(self._label_names, values, strict=True)
            reason = self._limits.exceeded([pair for pair in pairs if pair[1]])
        if reason is not None:
            raise _DroppedError(reason)
        identifier = request_id if request_id is None else _text(request_id)
        offer = Offer(identifier, values, rate_hz, array.copy())
        with self._changed:
            self._waiting += 1
        try:
            self._pool.submit(
                (offer.waveform, rate_hz),
                priority="background",
                domain=self._setup.domain,
                views=self._setup.views,
                when_done=partial(self._finish, offer),
            )
        except BaseException:
            self._settled()
            raise
        return True

    def _checked(self, waveform: Any, rate_hz: float) -> npt.NDArray[Any]:
        most = int(min(rate_hz, _MAX_RATE_HZ) * self._max_clip_s) * _CHANNELS
        # A long list would take long to convert.
        if isinstance(waveform, list | tuple) and len(waveform) > most:
            raise _DroppedError("too-long")
        array = np.asarray(waveform)
        if array.size > most:
            raise _DroppedError("too-long")
        if not array.size or array.dtype.kind not in "fiu" or np.ma.isMaskedArray(waveform):
            raise _DroppedError("invalid")
        return array

    def _finish(self, offer: Offer, future: Future[Score]) -> None:
        """Runs in the worker thread."""
        try:
            self._recorder.record(offer, future)
        finally:
            self._settled()

    def _settled(self) -> None:
        with self._changed:
            self._waiting -= 1
            self._changed.notify_all()

    def stats(self) -> MonitorStats:
        """What this monitor has done in this process."""
        return self._counts.stats()

    def windows(self, series: str = ALL) -> dict[float, MosHistogram]:
        """Scores by hour, of the last 48 hours with any; histograms can be added.

        Args:
            series: "all", or "LABEL=VALUE".

        Returns:
            Histograms by the beginning of the hour in seconds since 1970; empty without scores.
        """
        return self._recorder.windows(series)

    def save_baseline(self, file: str | os.PathLike[str]) -> tuple[str, ...]:
        """Writes the baselines of all series that have one, to start from the next time.

        A monitor that starts without them takes the first scores for good, whatever they are.

        Returns:
            The names of the series.
        """
        series = self._recorder.baselines()
        replace(self._setup, series=series).write(Path(file))
        return tuple(series)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Waits until no clip waits; whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, timeout_s)

    def close(self, *, drain: bool = True, timeout_s: float | None = None) -> None:
        """Scores what waits, ends the worker, and takes the metrics out of the registry.

        Args:
            drain: Whether clips that wait are scored; otherwise they are dropped.
            timeout_s: Longest time to wait for them.
        """
        self._closed = True
        self._pool.close(drain=drain, timeout_s=timeout_s)
        self._recorder.close()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _text(request_id: object) -> str:
    text = request_id.decode(errors="replace") if isinstance(request_id, bytes) else str(request_id)
    return text[:_MAX_CHARACTERS].encode(errors="replace").decode()


# All of this process, for forks.
_MONITORS: Final[WeakSet[Monitor]] = WeakSet()


def _after_fork() -> None:
    for monitor in list(_MONITORS):
        monitor.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
