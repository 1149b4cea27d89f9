"""The monitor: what it scores, what it counts, and that it never harms its caller."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from prometheus_client import CollectorRegistry

import mosrt
from tests.conftest import HANG_S

from .conftest import FREE, MakeMonitor, value

Pcm = npt.NDArray[np.int16]


def noisy(pcm: Pcm, seed: int) -> Pcm:
    return (pcm + np.random.default_rng(seed).normal(0, 2_000, pcm.shape)).astype(np.int16)


def test_scores_are_those_of_a_scorer(
    make_monitor: MakeMonitor, registry: CollectorRegistry, pcm: Pcm
) -> None:
    monitor = make_monitor(labels=("voice",))
    with mosrt.load("nano", threads=1) as scorer:
        expected = scorer.score(pcm, 16_000).mos
    waveform = pcm.copy()
    assert monitor.offer(waveform, 16_000, request_id="r", voice="amy") is True
    waveform[:] = 0  # the caller's buffer is its own again
    assert monitor.flush(HANG_S)
    assert value(registry, "monitor_mos_sum", voice="amy") == expected
    assert value(registry, "monitor_mos_count", voice="amy") == 1
    assert value(registry, "monitor_clips_scored_total") == 1
    assert value(registry, "monitor_queue_clips") == 0
    assert (value(registry, "monitor_cpu_seconds_total") or 0) > 0
    assert (value(registry, "monitor_delay_seconds_sum") or 0) > 0
    (window,) = monitor.windows().values()
    assert window.total == expected
    assert monitor.windows("voice=amy").keys() == monitor.windows().keys()
    assert monitor.windows("voice=ben") == {}


class Hostile:
    def __len__(self) -> int:
        raise RuntimeError("no length")

    def __array__(self, *_: object, **__: object) -> npt.NDArray[Any]:
        raise MemoryError

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __float__(self) -> float:
        raise OverflowError


GARBAGE: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "none": (None, None, {}),
    "text": ("speech", 16_000, {}),
    "bytes": (b"RIFF", 16_000, {}),
    "objects": ([object(), object()], 16_000, {}),
    "ragged": ([[1.0], [1.0, 2.0]], 16_000, {}),
    "empty": (np.zeros(0, np.float32), 16_000, {}),
    "complex": (np.zeros(16_000, np.complex64), 16_000, {}),
    "masked": (np.ma.masked_equal(np.arange(16_000), 3), 16_000, {}),
    "hostile": (Hostile(), 16_000, {}),
    "rate": (np.zeros(16_000, np.float32), Hostile(), {}),
    "rate nan": (np.zeros(16_000, np.float32), float("nan"), {}),
    "rate inf": (np.zeros(16_000, np.float32), float("inf"), {}),
    "rate 0": (np.zeros(16_000, np.float32), 0, {}),
    "identifier": (np.zeros(16_000, np.float32), 16_000, {"request_id": Hostile()}),
    "label": (np.zeros(16_000, np.float32), 16_000, {"voice": Hostile()}),
    "long": (np.zeros(16_000 * 61, np.float32), 16_000, {}),
    "long list": ([0.0] * (16_000 * 61), 16_000, {}),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_dropped(make_monitor: MakeMonitor, name: str) -> None:
    monitor = make_monitor(labels=("voice",))
    waveform, rate, options = GARBAGE[name]
    taken = monitor.offer(waveform, rate, **options)
    assert monitor.flush(HANG_S)
    stats = monitor.stats()
    assert stats.offered == 1
    assert stats.scored == 0
    # What is no recording may only turn out when it is scored.
    assert sum(stats.failed.values()) == int(taken)
    assert sum(stats.dropped.values()) == 1 - int(taken)


def test_recordings_without_a_score(
    make_monitor: MakeMonitor, registry: CollectorRegistry, pcm: Pcm
) -> None:
    monitor = make_monitor()
    assert monitor.offer(pcm[:100], 16_000)
    assert monitor.offer(np.full(16_000, np.nan, np.float32), 16_000)
    assert monitor.offer(np.zeros(16_000, np.float32), 16_000)  # scored, but flagged
    assert monitor.flush(HANG_S)
    assert monitor.stats().failed == {"too-short": 1, "non-finite": 1}
    assert value(registry, "monitor_clips_failed_total", reason="too-short") == 1
    assert value(registry, "monitor_clip_flags_total", flag="too-short") == 1
    assert value(registry, "monitor_clip_flags_total", flag="silent") == 1
    assert value(registry, "monitor_clips_scored_total") == 1


def test_limits_drop(make_monitor: MakeMonitor, registry: CollectorRegistry, pcm: Pcm) -> None:
    slow = {"max_per_second": 1e-3, "max_per_label_value": 1e-3}
    monitor = make_monitor(labels=("voice",), **slow)
    taken = [monitor.offer(pcm, 16_000, voice=voice) for voice in ("amy", "amy", "ben")]
    assert taken == [True, False, False]
    assert monitor.stats().dropped == {"rate": 2}
    assert value(registry, "monitor_clips_dropped_total", reason="rate") == 2
    assert value(registry, "monitor_clips_offered_total") == 3


def test_a_full_queue_drops_at_once(make_monitor: MakeMonitor, pcm: Pcm) -> None:
    """While the worker is busy for good."""
    busy, go_on = threading.Event(), threading.Event()

    def on_drift(_: mosrt.Drift) -> None:
        busy.set()
        go_on.wait(HANG_S)

    monitor = make_monitor(max_queue=3, warm_up_clips=20, on_drift=on_drift)
    try:
        for i in range(20):
            assert monitor.offer(noisy(pcm, i)[i:], 16_000)
            assert monitor.flush(HANG_S)
        ends = time.monotonic() + HANG_S
        while not busy.is_set() and time.monotonic() < ends:
            monitor.offer(pcm // 500 + noisy(0 * pcm, 0), 16_000)
        assert busy.is_set()
        while monitor.offer(pcm, 16_000):
            pass
        assert [monitor.offer(pcm, 16_000) for _ in range(100)] == [False] * 100
        assert monitor.stats().dropped["queue-full"] >= 101
        assert not monitor.flush(0.01)
    finally:
        go_on.set()


def test_labels_are_bounded(
    make_monitor: MakeMonitor, registry: CollectorRegistry, pcm: Pcm
) -> None:
    monitor = make_monitor(labels=("voice",), max_label_values=2)
    for voice in ("amy", "ben", "cid", "dan"):
        monitor.offer(pcm, 16_000, voice=voice, unknown="x")
    monitor.offer(pcm, 16_000)
    assert monitor.flush(HANG_S)
    counts = {v: value(registry, "monitor_mos_count", voice=v) for v in ("amy", "other", "", "cid")}
    assert counts == {"amy": 1, "other": 2, "": 1, "cid": None}


def test_an_alarm_is_told_in_the_worker(
    make_monitor: MakeMonitor, registry: CollectorRegistry, pcm: Pcm, tmp_path: Path
) -> None:
    told: list[tuple[mosrt.Drift, str]] = []

    def on_drift(drift: mosrt.Drift) -> None:
        told.append((drift, threading.current_thread().name))
        raise RuntimeError("a callback that fails")

    options = {"labels": ("voice",), "on_drift": on_drift, "keep_audio": True}
    monitor = make_monitor(warm_up_clips=20, **options)
    for i in range(20):
        assert monitor.offer(noisy(pcm, i), 16_000, request_id=i, voice="amy")
    assert monitor.flush(HANG_S)
    assert monitor.save_baseline(tmp_path / "baseline.json") == ("all", "voice=amy")
    zero = {"series": "all", "statistic": "mean"}
    assert value(registry, "monitor_drift_alarms_total", **zero) == 0
    bad = (pcm // 300).astype(np.int16)
    for i in range(40):
        assert monitor.offer(noisy(bad, i), 16_000, request_id=f"bad {i}", voice="amy")
    assert monitor.flush(HANG_S)
    assert {drift.series for drift, _ in told} == {"all", "voice=amy"}
    assert all(thread.startswith("mosrt-") for _, thread in told)
    drift = told[0][0]
    assert drift.mos < drift.baseline_mos
    worst = drift.clips[0]
    assert worst.request_id is not None
    assert worst.request_id.startswith("bad ")
    assert worst.labels == {"voice": "amy"}
    assert abs(worst.time_s - time.time()) < HANG_S
    assert worst.waveform is not None
    np.testing.assert_array_equal(worst.waveform, noisy(bad, int(worst.request_id[4:])))
    alarms = value(registry, "monitor_drift_alarms_total", series="all", statistic=drift.statistic)
    assert alarms == 1
    assert monitor.stats().scored == 60  # the worker went on
    monitor.close()
    # The next process compares with what was saved.
    again = make_monitor(baseline=tmp_path / "baseline.json", **options)
    assert value(registry, "monitor_baseline_mos", series="all", statistic="mean") is not None
    told.clear()
    for i in range(40):
        again.offer(noisy(bad, i), 16_000, voice="amy")
    assert again.flush(HANG_S)
    assert "all" in {drift.series for drift, _ in told}


def test_baselines_of_other_models_are_refused(make_monitor: MakeMonitor, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    with pytest.raises(mosrt.BaselineError, match=r"baseline\.json: cannot be read .*mosrt gate"):
        make_monitor(baseline=path)
    monitor = make_monitor(warm_up_clips=20)
    assert monitor.save_baseline(path) == ()
    monitor.close()
    good = json.loads(path.read_text())
    assert good["domain"] == "overall"
    scores = list(np.linspace(3, 4, 20))
    for change, message in (
        ({"model": "distillmos"}, "recorded with model distillmos"),
        ({"bundle_sha256": "0"}, "recorded with bundle sha256 0"),
        ({"variant": "fp16"}, "variant fp16, but the monitor has fp32"),
        ({"schema_version": 2}, "schema version 2"),
        ({"kind": "x"}, "no baseline of"),
        ({"series": {"all": scores[:19]}}, "all has 19 scores; record 20 or more"),
        ({"series": {"all": [*scores, float("nan")]}}, "finite"),
        ({"series": {"all": [*scores, "x"]}}, "damaged"),
        ({"series": 3}, "damaged"),
        ({"views": "x"}, "damaged"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(mosrt.BaselineError, match=message):
            make_monitor(baseline=path)
    path.write_text("[" * 100_000)
    with pytest.raises(mosrt.BaselineError, match="cannot be read"):
        make_monitor(baseline=path)


def test_wrong_options(make_monitor: MakeMonitor, tiny_wav2vec: Path) -> None:
    for options, message in (
        ({"sample": 1.5}, "sample must be from 0 to 1"),
        ({"sample": float("nan")}, "sample must be from 0 to 1"),
        ({"warm_up_clips": 3}, "warm_up_clips must be from 20"),
        ({"labels": ("request_id",)}, "cannot be a label"),
        ({"labels": ("le",)}, "cannot be a label"),
        ({"labels": ("a b",)}, "cannot be a label"),
    ):
        with pytest.raises(ValueError, match=message):
            make_monitor(**options)
    with pytest.raises(mosrt.DomainError):
        make_monitor(domain="nothing")
    with pytest.raises(mosrt.MeasureError, match="gives no MOS"):
        mosrt.Monitor(tiny_wav2vec)
    make_monitor()
    with pytest.raises(ValueError, match="the registry has metrics of another monitor"):
        make_monitor()


def test_a_registry_is_free_again_after_a_close(
    make_monitor: MakeMonitor, registry: CollectorRegistry
) -> None:
    make_monitor(labels=("voice",)).close()
    assert list(registry.collect()) == []
    make_monitor(labels=("release",))


def test_offers_to_a_closed_monitor(make_monitor: MakeMonitor, pcm: Pcm) -> None:
    monitor = make_monitor()
    assert [monitor.offer(pcm, 16_000) for _ in range(5)] == [True] * 5
    monitor.close(drain=False)
    monitor.close()
    assert monitor.offer(pcm, 16_000) is False
    stats = monitor.stats()
    assert stats.scored + stats.dropped["closed"] == 6
    assert stats.dropped["closed"] >= 1


def test_many_threads(make_monitor: MakeMonitor, pcm: Pcm) -> None:
    """Every offer is counted once, whatever becomes of it."""
    monitor = make_monitor(max_queue=4, labels=("voice",), sample=0.5)
    begin = threading.Barrier(8)

    def offer(thread: int) -> None:
        begin.wait(HANG_S)
        for i in range(50):
            monitor.offer(pcm, 16_000, request_id=f"{thread}-{i}", voice=str(i % 3))

    threads = [threading.Thread(target=offer, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG_S)
    assert monitor.flush(HANG_S)
    stats = monitor.stats()
    assert stats.offered == 400
    assert 100 < stats.sampled < 300
    assert stats.scored + stats.dropped.get("queue-full", 0) == stats.sampled
    assert stats.scored > 0


def run(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANG_S)


MAKE = f"""
import os, sys, threading
import numpy as np
import mosrt
monitor = mosrt.Monitor("nano", **{FREE})
clip = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork_each_process_counts_itself() -> None:
    """Forked while other threads offer, so that locks are held at the moment of the fork."""
    code = f"""{MAKE}
stop = threading.Event()
def offer():
    while not stop.is_set():
        monitor.offer(clip, 16_000)
threads = [threading.Thread(target=offer) for _ in range(3)]
for thread in threads:
    thread.start()
children = []
for _ in range(5):
    if (child := os.fork()) == 0:
        assert monitor.stats().offered == 0
        taken = [monitor.offer(clip, 16_000) for _ in range(3)]
        assert monitor.flush(600)
        assert taken == [True] * 3 and monitor.stats().scored == 3, (taken, monitor.stats())
        os._exit(7)
    children.append(child)
statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
stop.set()
for thread in threads:
    thread.join()
monitor.close(drain=False)
print(statuses, monitor.offer(clip, 16_000))
"""
    done = run(code)
    assert done.stdout == "[7, 7, 7, 7, 7] False\n", done.stderr
    assert done.returncode == 0


def test_at_the_end_of_the_interpreter() -> None:
    """Offers from atexit handlers, finalisers and threads that live on are harmless."""
    code = f"""{MAKE}
import atexit
class Late:
    def __del__(self):
        monitor.offer(clip, 16_000)
late = Late()
def for_ever():
    while True:
        monitor.offer(clip, 16_000)
for _ in range(20):
    monitor.offer(clip, 16_000)
atexit.register(lambda: print(type(monitor.offer(clip, 16_000)).__name__))
threading.Thread(target=for_ever, daemon=True).start()
"""
    done = run(code)
    assert (done.returncode, done.stdout) == (0, "bool\n"), done.stderr
    assert done.stderr == ""


def test_the_missing_extra_is_named() -> None:
    for module in ("prometheus_client", "opentelemetry"):
        code = f"""
import sys
sys.modules[{module!r}] = None
import mosrt
try:
    mosrt.Monitor
except ModuleNotFoundError as exc:
    print(exc)
"""
        done = run(code)
        assert "mosrt.Monitor needs the extra: pip install 'mosrt[monitor]'" in done.stdout
        assert module in done.stdout


def test_import_mosrt_brings_no_library_of_the_extra() -> None:
    code = """
import sys, mosrt
mosrt.ScorerPool
print({"prometheus_client", "opentelemetry"} & {*sys.modules})
"""
    assert run(code).stdout == "set()\n"
