"""Events of OpenTelemetry, as its SDK receives them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from opentelemetry.sdk._logs import LoggerProvider, export
from opentelemetry.sdk.trace import TracerProvider

import mosrt
from mosrt.serving.monitoring import otel
from tests.conftest import HANG_S

from .conftest import MakeMonitor

Pcm = npt.NDArray[np.int16]
Exporter = Any


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Exporter]:
    """Receives all events of the test, as an SDK does that a program configures."""
    # The class has another name before 1.39.
    made = getattr(export, "InMemoryLogRecordExporter", None) or export.InMemoryLogExporter
    provider, found = LoggerProvider(), made()
    provider.add_log_record_processor(export.SimpleLogRecordProcessor(found))
    monkeypatch.setattr(otel, "get_logger", provider.get_logger)
    yield found
    provider.shutdown()


def test_an_event_of_the_callers_span(
    make_monitor: MakeMonitor, exporter: Exporter, pcm: Pcm
) -> None:
    monitor = make_monitor(labels=("voice", "release"))
    with mosrt.load("nano", threads=1) as scorer:
        expected = scorer.score(pcm, 16_000).mos
    with TracerProvider().get_tracer("tts").start_as_current_span("synthesise") as span:
        monitor.offer(pcm, 16_000, request_id="r-1", voice="amy")
    assert monitor.flush(HANG_S)
    (event,) = (found.log_record for found in exporter.get_finished_logs())
    assert event.event_name == "gen_ai.evaluation.result"
    caller = span.get_span_context()
    assert (event.trace_id, event.span_id) == (caller.trace_id, caller.span_id)
    attributes = dict(event.attributes)
    assert len(attributes.pop("mosrt.model.digest")) == 64
    assert attributes == {
        "gen_ai.evaluation.name": "MOS",
        "gen_ai.evaluation.score.value": expected,
        "gen_ai.response.id": "r-1",
        "mosrt.model": "nano",
        "mosrt.domain": "overall",
        "mosrt.label.voice": "amy",
    }


def test_flags_and_failures(make_monitor: MakeMonitor, exporter: Exporter, pcm: Pcm) -> None:
    monitor = make_monitor()
    monitor.offer(0 * pcm, 16_000)
    monitor.offer(pcm[:100], 16_000)
    assert monitor.flush(HANG_S)
    events = [dict(found.log_record.attributes) for found in exporter.get_finished_logs()]
    assert len(events) == 2
    assert "silent" in events[0]["mosrt.flags"]
    assert events[0]["gen_ai.evaluation.explanation"].startswith("flags: ")
    assert events[1]["error.type"] == "too-short"
    assert "gen_ai.evaluation.score.value" not in events[1]


def test_without_an_sdk_nothing_happens(make_monitor: MakeMonitor, pcm: Pcm) -> None:
    monitor = make_monitor()
    monitor.offer(pcm, 16_000)
    assert monitor.flush(HANG_S)
    assert monitor.stats().scored == 1


def test_an_exporter_that_fails_harms_nothing(
    make_monitor: MakeMonitor, monkeypatch: pytest.MonkeyPatch, pcm: Pcm
) -> None:
    def broken(_: str) -> None:
        raise RuntimeError("no logger")

    monkeypatch.setattr(otel, "get_logger", broken)
    monitor = make_monitor()
    for _ in range(3):
        monitor.offer(pcm, 16_000)
    assert monitor.flush(HANG_S)
    assert monitor.stats().scored == 3
