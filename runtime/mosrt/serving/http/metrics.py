"""Metrics of the HTTP API, for Prometheus."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from mosrt.serving.model import ModelInfo

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
# Where the processes of one server share their metrics, if it has several.
_SHARED: Final = "PROMETHEUS_MULTIPROC_DIR"
_RESERVED_BYTES: Final = 1 << 18
_SECONDS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_MOS: Final = tuple(1 + 0.25 * i for i in range(17))


class Metrics:
    """What a server counts. `/metrics` shows it, over all processes of the server.

    Args:
        registry: Where the metrics are kept; by default one of their own.

    Attributes:
        in_flight: Requests that are worked on.
        requests: Requests by path, method and status; paths that do not exist are "other".
        seconds: Time from the headers of a request to the end of its answer, by path.
        received: Bytes of bodies that were read.
        scores: MOS of the scored recordings, streams' windows included.
        flags: Recordings by flag.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        if (shared := os.environ.get(_SHARED)) is not None:
            _prepare(Path(shared))
        self._registry = registry or CollectorRegistry()
        common: dict[str, Any] = {"registry": self._registry}
        self.in_flight = Gauge(
            "mosrt_http_requests_in_flight", "Requests to score that are worked on.",
            multiprocess_mode="livesum", **common,
        )  # fmt: skip
        self.requests = Counter(
            "mosrt_http_requests", "Requests by path, method and status; 499: the client hung up.",
            ("path", "method", "status"), **common,
        )  # fmt: skip
        self.seconds = Histogram(
            "mosrt_http_request_seconds", "Time from headers to the end of the answer.",
            ("path",), buckets=_SECONDS, **common,
        )  # fmt: skip
        self.received = Counter(
            "mosrt_http_received_bytes", "Bytes of bodies that were read.", **common
        )
        self.scores = Histogram(
            "mosrt_http_score_mos", "MOS of scored recordings.", buckets=_MOS, **common
        )
        self._model = Gauge(
            "mosrt_model_info", "The model that scores.",
            ("model", "variant", "provider", "digest"), multiprocess_mode="max", **common,
        )  # fmt: skip
        self.flags = Counter("mosrt_http_flags", "Recordings by flag.", ("flag",), **common)

    def set_model(self, info: ModelInfo) -> None:
        """Shows which model scores."""
        self._model.labels(info.name, info.variant, info.provider, info.digest).set(1)

    def text(self) -> bytes:
        """The metrics in Prometheus's text format."""
        if _SHARED not in os.environ:
            return generate_latest(self._registry)
        shared = CollectorRegistry()
        MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return generate_latest(shared)


def _prepare(folder: Path) -> None:
    """Reserves space for this process's files, and removes gauges of processes that were killed.

    The files are mapped into memory. To write to one on a full disk would end the process.

    Raises:
        OSError: There is not enough space.
    """
    for path in folder.glob("gauge_live*_*.db"):
        number = path.stem.rpartition("_")[2]
        if number.isdigit() and not _runs(int(number)):
            path.unlink(missing_ok=True)
    if hasattr(os, "posix_fallocate"):
        for kind in ("counter", "gauge_livesum", "gauge_max", "histogram"):
            with (folder / f"{kind}_{os.getpid()}.db").open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, _RESERVED_BYTES)


def _runs(process: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False
