import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mosrt.host.thread_pool import ThreadPool
from tests.conftest import HANG_S


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_maps_in_order(threads: int, count: int) -> None:
    pool = ThreadPool(threads)
    assert pool.map(lambda x: x * x, range(count)) == [x * x for x in range(count)]
    pool.close()


def test_uses_the_caller_and_no_more_threads_than_allowed() -> None:
    pool = ThreadPool(3)
    barrier = threading.Barrier(3)
    names = pool.map(lambda _: (barrier.wait(HANG_S), threading.current_thread())[1], range(3))
    assert len(set(names)) == 3
    assert threading.current_thread() in names
    pool.close()


@pytest.mark.parametrize("bad", [0, 7])
def test_raises_what_the_work_raises(bad: int) -> None:
    def work(x: int) -> int:
        if x == bad:
            raise ValueError(f"item {x}")
        time.sleep(0.001)
        return x

    pool = ThreadPool(2)
    with pytest.raises(ValueError, match=f"item {bad}"):
        pool.map(work, range(8))
    assert pool.map(work, [1, 2]) == [1, 2]
    pool.close()


def test_many_callers_share_a_pool() -> None:
    pool = ThreadPool(2)
    with ThreadPoolExecutor(8) as callers:
        futures = [callers.submit(pool.map, lambda x: x + 1, range(50)) for _ in range(40)]
        assert all(future.result(HANG_S) == list(range(1, 51)) for future in futures)
    pool.close()
