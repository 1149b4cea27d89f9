"""Execution contexts of the TensorRT backend: threads, failures, order of releases."""

import gc
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import mosrt
from mosrt.backends.cuda import Cuda
from mosrt.backends.engine_file import EngineFiles
from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import find_bundle
from mosrt.bundle.manifest import Variant
from tests.conftest import HANG_S
from tests.fakes.trt_machine import (
    Machine,
    check,
    feeds,
    variant,
)


def test_two_thousand_calls_leak_nothing(machine: Machine) -> None:
    machine.put(variant())
    backend = machine.open(variant())
    machine.cudart.silent = True
    given = [feeds(n, seed=n) for n in (4, 4, 4, 2)]  # graphs come and go
    for i in range(200):
        backend.run(given[i % 4], ["mos"])
    handles = +machine.cudart.live
    gc.collect()
    before = sys.getallocatedblocks()
    for i in range(2_000):
        backend.run(given[i % 4], ["mos"])
    gc.collect()
    # One small object kept per call would be two thousand blocks.
    assert sys.getallocatedblocks() - before < 1_000
    assert +machine.cudart.live == handles
    backend.close()
    assert +machine.cudart.live == {}
    assert machine.trt.released == ["context", "engine", "runtime"]


def test_threads_share_two_contexts(machine: Machine) -> None:
    machine.put(variant(2))
    backend = machine.open(variant(2))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: check(backend, feeds(2 + i % 5, seed=i)), range(200)))
    assert 2 <= machine.trt.n_contexts <= 4  # of two networks
    backend.close()
    backend.close()
    assert +machine.cudart.live == {}
    with pytest.raises(RuntimeError, match="closed"):
        backend.run(feeds(4), ["mos"])


@pytest.mark.parametrize("kind", ["cudaMalloc", "cudaHostAlloc", "cudaEventCreateWithFlags"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_failed_start_releases_everything(machine: Machine, kind: str, nth: int) -> None:
    machine.put(variant(2))
    backend = machine.open(variant(2))
    machine.cudart.failures[kind, nth] = 2
    with pytest.raises(mosrt.ProviderError, match=f"{kind} failed.*close other programs"):
        backend.run(feeds(4), ["mos"])
    backend.close()
    assert +machine.cudart.live == {}
    assert machine.trt.released.count("engine") == machine.trt.released.count("runtime") == 2


def test_no_memory_for_a_second_context(
    machine: Machine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls then wait for the first context."""
    machine.put(variant(2))
    backend = machine.open(variant(2))
    check(backend, feeds(4))
    synchronize = machine.cudart.cudaEventSynchronize
    refused = threading.Event()

    def busy(event: Any) -> Any:
        # Until another thread has asked for a context of its own, or they might come one by one.
        assert refused.wait(HANG_S)
        return synchronize(event)

    def note(_: logging.LogRecord) -> bool:
        refused.set()
        return True

    monkeypatch.setattr(machine.cudart, "cudaEventSynchronize", busy, raising=False)
    monkeypatch.setattr(logging.getLogger("mosrt.backends.trt"), "filters", [note])
    for nth in range(1, 100):
        machine.cudart.failures["cudaMalloc", machine.cudart.calls.count("cudaMalloc") + nth] = 2
    with caplog.at_level(logging.INFO), ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: check(backend, feeds(2 + i % 5, seed=i)), range(100)))
    assert machine.trt.n_contexts - machine.trt.released.count("context") == 2
    assert "concurrent calls will wait" in caplog.text
    backend.close()
    assert +machine.cudart.live == {}


def test_everything_is_released_also_if_something_fails(machine: Machine) -> None:
    machine.put(variant())
    backend = machine.open(variant())
    backend.run(feeds(4), ["mos"])
    machine.cudart.failures["cudaFreeHost", 2] = 2
    with pytest.raises(mosrt.ProviderError, match="cudaFreeHost"):
        backend.close()
    assert +machine.cudart.live == {"host": 1}
    assert machine.trt.released == ["context", "engine", "runtime"]


def test_a_missing_stage_closes_those_before(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MOSRT_CACHE", str(tmp_path))
    monkeypatch.setattr(Cuda, "open", lambda: Cuda(machine.cudart))
    machine.files = EngineFiles()
    encoder, *others = Bundle.open(find_bundle("nano-uncertainty")).variant("fp32").members
    machine.put(
        Variant(opset=18, members=(encoder,)),
        inputs={"waveform": ("FLOAT", [-1, -1])},
        outputs={"features": ("FLOAT", [-1, 128, -1]), "predictions": ("FLOAT", [-1, 12, -1, 128])},
        profile={"waveform": ((1, 945), (1, 945), (1, 320_000))},
    )
    with pytest.raises(mosrt.ProviderError, match=f"{others[0].graph.path}: no engine for"):
        mosrt.load("nano-uncertainty", provider="tensorrt")
    assert machine.trt.released == ["engine", "runtime"]


@pytest.mark.parametrize("failing", ["cudaMemcpyAsync", "cudaEventSynchronize"])
def test_a_failed_run_leaves_a_usable_context(machine: Machine, failing: str) -> None:
    machine.put(variant(2))
    backend = machine.open(variant(2))
    check(backend, feeds(4))
    count = machine.cudart.calls.count(failing)
    machine.cudart.failures[failing, count + 2] = 2
    with pytest.raises(mosrt.ProviderError, match=failing):
        backend.run(feeds(4), ["mos"])
    check(backend, feeds(4, seed=3))
    backend.close()
    assert +machine.cudart.live == {}
