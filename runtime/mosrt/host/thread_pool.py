"""Maps functions over items with a fixed number of threads, the caller's among them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ThreadPool"]

_T = TypeVar("_T")
_R = TypeVar("_R")


class ThreadPool:
    """Maps functions over items with at most `threads` threads. Safe to share between threads.

    The calling thread works too. If it slept instead, the scheduler would often put two workers on
    one core while the caller's core is idle.

    Args:
        threads: Threads for one call, at least 1; 1 starts none.
    """

    def __init__(self, threads: int) -> None:
        self._n_workers = threads - 1
        self._executor = ThreadPoolExecutor(self._n_workers, "mosrt") if self._n_workers else None

    def map(self, function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
        """`[function(item) for item in items]`, computed by several threads.

        Raises:
            Exception: The first exception that `function` raised.
        """
        todo = list(items)
        if self._executor is None or len(todo) < 2:
            return [function(item) for item in todo]
        done: dict[int, _R] = {}
        # next() of a counter is atomic, so each item is taken once.
        counter = itertools.count()

        def work() -> None:
            while (i := next(counter)) < len(todo):
                done[i] = function(todo[i])

        workers = [self._executor.submit(work) for _ in range(min(self._n_workers, len(todo) - 1))]
        try:
            work()
        finally:
            # A worker that has not started yet is not needed any more.
            started = [worker for worker in workers if not worker.cancel()]
            errors = [worker.exception() for worker in started]
        for error in errors:
            if error is not None:
                raise error
        return [done[i] for i in range(len(todo))]

    def close(self) -> None:
        """Ends the threads; `map` must not be called afterwards."""
        if self._executor is not None:
            self._executor.shutdown()
