"""ThreadPool: a fixed number of threads, the caller's own among them, that share out work."""

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

    The caller works too, instead of waiting for a full set of workers: on a machine with as many
    cores as threads every worker that is woken then finds a core of its own, while a worker woken
    on the sleeping caller's core would often share another's until the scheduler notices.

    Args:
        threads: Threads for one call, at least 1; 1 starts none.
    """

    def __init__(self, threads: int) -> None:
        self._helpers = threads - 1
        self._executor = ThreadPoolExecutor(self._helpers, "mosrt") if self._helpers else None

    def map(self, function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
        """`[function(item) for item in items]`, shared out.

        Raises:
            Exception: The first of those that `function` raised.
        """
        todo = list(items)
        if self._executor is None or len(todo) < 2:
            return [function(item) for item in todo]
        done: dict[int, _R] = {}
        # Drawing from one counter is atomic, so each item is worked on once.
        counter = itertools.count()

        def work() -> None:
            while (i := next(counter)) < len(todo):
                done[i] = function(todo[i])

        helpers = [self._executor.submit(work) for _ in range(min(self._helpers, len(todo) - 1))]
        try:
            work()
        finally:
            # A helper that other callers kept from starting is not needed any more.
            started = [helper for helper in helpers if not helper.cancel()]
            errors = [helper.exception() for helper in started]
        for error in errors:
            if error is not None:
                raise error
        return [done[i] for i in range(len(todo))]

    def close(self) -> None:
        """Ends the threads; `map` must not be called afterwards."""
        if self._executor is not None:
            self._executor.shutdown()
