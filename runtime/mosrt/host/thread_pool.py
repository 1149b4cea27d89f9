"""Maps functions over items with several threads, and closes what several threads use."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from mosrt.errors import ClosedError

__all__ = ["Calls", "ThreadPool"]

_T = TypeVar("_T")
_R = TypeVar("_R")


class Calls:
    """Counts the calls that use something, so that it is released only when none does.

    Args:
        what: What is used, for messages: "the scorer".
        release: Releases it; called once.
    """

    def __init__(self, what: str, release: Callable[[], None]) -> None:
        self._what = what
        self._release = release
        self._closed = self._released = False
        self._reset()

    def _reset(self) -> None:
        self._running: dict[object, int] = {}  # the thread of each call
        self._changed = threading.Condition()
        self._process = os.getpid()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Marks a call for as long as the block takes.

        Raises:
            ClosedError: `close` was called before.
        """
        if os.getpid() != self._process:  # a fork has none of the threads of its parent
            self._reset()
        call, thread = object(), threading.get_ident()
        try:
            with self._changed:
                # A call that runs may make others, even after `close`.
                if self._closed and thread not in self._running.values():
                    raise ClosedError(f"{self._what} is closed; load the model again")
                self._running[call] = thread
            yield
        finally:
            with self._changed:
                self._running.pop(call, None)
                self._changed.notify_all()
                last = self._closed and not self._running
            if last:
                self._finish()

    def close(self) -> None:
        """Refuses further calls, waits for those that run, then releases.

        If it is called within a call, as by a signal handler, it does not wait; the last call then
        releases at its end.
        """
        if os.getpid() != self._process:
            self._reset()
        with self._changed:
            self._closed = True
            if threading.get_ident() in self._running.values():
                return
            self._changed.wait_for(lambda: not self._running)
        self._finish()

    def _finish(self) -> None:
        with self._changed:
            if self._released:
                return
            self._released = True
        self._release()


class ThreadPool:
    """Maps functions over items with at most `threads` threads. Safe to share between threads.

    The calling thread works too. If it slept instead, the scheduler would often put two workers on
    one core while the caller's core is idle.

    Args:
        threads: Threads for one call, at least 1; 1 starts none.
    """

    def __init__(self, threads: int) -> None:
        self._n_workers = threads - 1
        self._start()

    def _start(self) -> None:
        self._executor = ThreadPoolExecutor(self._n_workers, "mosrt") if self._n_workers else None
        self._process = os.getpid()

    def map(self, function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
        """`[function(item) for item in items]`, computed by several threads.

        Raises:
            Exception: The first exception that `function` raised.
        """
        todo = list(items)
        if os.getpid() != self._process:  # a fork has none of the threads of its parent
            self._start()
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
            # All items are taken, so workers that have not started yet are not needed.
            started = [worker for worker in workers if not worker.cancel()]
            errors = [worker.exception() for worker in started]
        for error in errors:
            if error is not None:
                raise error
        return [done[i] for i in range(len(todo))]

    def close(self) -> None:
        """Ends the threads; `map` must not be called afterwards."""
        if self._executor is not None and os.getpid() == self._process:
            self._executor.shutdown()
