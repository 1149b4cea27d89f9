"""Workers that are threads of this process: for GPUs, and where processes cannot be forked."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Hashable
from contextlib import suppress
from typing import Any

from .base import Handler, Reply, rest_after

__all__ = ["ThreadWorkers"]


class ThreadWorkers:
    """Calls a handler in threads; see `Workers`.

    Args:
        handler: What is called for each task.
        count: Number of threads.
        core: Part of a core that each may use, up to 1.
        nice: Niceness of the threads (Linux).
    """

    def __init__(
        self, handler: Handler, count: int, *, core: float = 1.0, nice: int | None = None
    ) -> None:
        self.count = count
        self.failed: Exception | None = None
        self._handler, self._core, self._nice = handler, core, nice
        self._out = 0
        self._tasks: queue.SimpleQueue[tuple[Hashable, Any] | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        for number in range(count):
            threading.Thread(target=self._work, name=f"mosrt-{number}", daemon=True).start()

    def free(self) -> int:
        """See `Workers.free`."""
        return self.count - self._out

    def send(self, key: Hashable, task: Any) -> None:
        """See `Workers.send`."""
        self._out += 1
        self._tasks.put((key, task))

    def poll(self, timeout_s: float | None) -> list[Reply]:
        """See `Workers.poll`."""
        found: list[Reply] = []
        with suppress(queue.Empty):
            reply = self._replies.get(timeout=timeout_s)
            while True:
                if reply is not None:
                    found.append(reply)
                reply = self._replies.get_nowait()
        self._out -= len(found)
        return found

    def wake(self) -> None:
        """See `Workers.wake`."""
        self._replies.put(None)

    def close(self) -> None:
        """See `Workers.close`."""
        for _ in range(self.count):
            self._tasks.put(None)

    def _work(self) -> None:
        if self._nice is not None:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        while (task := self._tasks.get()) is not None:
            started = time.monotonic()
            value, error = None, None
            try:
                value = self._handler(task[1])
            except BaseException as exc:  # noqa: BLE001 - it is the caller's
                error = exc
            busy_s = time.monotonic() - started
            self._replies.put(Reply(task[0], value, error, busy_s))
            rest_after(busy_s, self._core)
