"""Views of several recordings in one run of a GPU, which a fake takes the place of."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from mosrt.serving.batches import MicroBatches
from tests.conftest import HANG_S

Array = npt.NDArray[np.float32]


class Gpu:
    """Doubles what it is given; remembers how many different views each run had."""

    provider = "fake"
    batch_size = 4

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.free = threading.Event()
        self.free.set()
        self.error: Exception | None = None

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        assert len(feeds["x"]) == self.batch_size
        self.runs.append(len(set(feeds["x"][:, 0].tolist())))
        assert self.free.wait(HANG_S)
        if self.error is not None:
            raise self.error
        return dict.fromkeys(outputs, 2 * feeds["x"][np.newaxis])

    def close(self) -> None:
        """Releases nothing."""


def view(value: float) -> dict[str, Array]:
    return {"x": np.full(3, value, np.float32)}


def score(batches: MicroBatches, *values: float) -> list[float]:
    with batches.recording():
        results = batches([view(value) for value in values], ["y"])
    return [float(result["y"][0, 0]) for result in results]


def wait_for(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.001)


def test_a_recording_that_is_alone_does_not_wait() -> None:
    gpu = Gpu()
    batches = MicroBatches(gpu, max_wait_s=HANG_S)
    assert score(batches, 1.0) == [2.0]
    assert score(batches, 2.0, 3.0) == [4.0, 6.0]
    assert gpu.runs == [1, 2]


def test_what_comes_while_the_gpu_is_busy_is_run_together() -> None:
    gpu = Gpu()
    batches = MicroBatches(gpu, max_wait_s=HANG_S)
    gpu.free.clear()
    with ThreadPoolExecutor(5) as callers:
        futures = [callers.submit(score, batches, 1.0)]
        wait_for(lambda: gpu.runs == [1])
        futures += [callers.submit(score, batches, float(n)) for n in range(2, 6)]
        wait_for(lambda: batches.waiting == 4)
        gpu.free.set()
        assert [future.result(HANG_S) for future in futures] == [[2.0 * n] for n in range(1, 6)]
    assert gpu.runs == [1, 4]


def test_a_recording_that_is_being_prepared_is_waited_for() -> None:
    gpu = Gpu()
    batches = MicroBatches(gpu, max_wait_s=HANG_S)
    with ThreadPoolExecutor(1) as callers, batches.recording():
        future = callers.submit(score, batches, 1.0)
        wait_for(lambda: batches.waiting == 1)
        assert not gpu.runs
        assert float(batches([view(5.0)], ["y"])[0]["y"][0, 0]) == 10.0
        assert future.result(HANG_S) == [2.0]
    assert gpu.runs == [2]


def test_but_not_for_longer_than_max_wait() -> None:
    gpu = Gpu()
    batches = MicroBatches(gpu, max_wait_s=0.001)
    with ThreadPoolExecutor(1) as callers, batches.recording():
        assert callers.submit(score, batches, 1.0).result(HANG_S) == [2.0]
    assert gpu.runs == [1]


def test_no_run_has_more_views_than_allowed() -> None:
    gpu = Gpu()
    batches = MicroBatches(gpu, max_views=2, max_wait_s=HANG_S)
    gpu.free.clear()
    with ThreadPoolExecutor(6) as callers:
        futures = [callers.submit(score, batches, 100.0)]
        wait_for(lambda: gpu.runs == [1])
        futures += [callers.submit(score, batches, float(n)) for n in range(4)]
        wait_for(lambda: batches.waiting == 4)
        gpu.free.set()
        for future in futures:
            future.result(HANG_S)
    assert gpu.runs == [1, 2, 2]


def test_an_error_reaches_every_recording_of_the_run() -> None:
    gpu = Gpu()
    batches = MicroBatches(gpu, max_wait_s=HANG_S)
    gpu.error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        score(batches, 1.0)
    gpu.error = None
    assert score(batches, 1.0) == [2.0]
