"""What processes and threads have in common as workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Handler", "Reply", "Workers", "rest_after"]

Handler = Callable[[Any], Any]
"""What is called for each task. For processes it, tasks and results can be pickled."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a task.

    Attributes:
        key: The key that it was sent with.
        value: The result.
        error: What the handler raised; None if it did not.
        busy_s: Time that the handler took.
    """

    key: Hashable
    value: Any
    error: BaseException | None
    busy_s: float


class Workers(Protocol):
    """Calls a handler in several workers. One thread at a time may send and poll.

    Attributes:
        count: Number of workers.
        failed: Why no worker works any more; None while they do.
    """

    count: int
    failed: Exception | None

    def free(self) -> int:
        """How many tasks can be sent now, so that none waits long for its worker."""
        ...

    def send(self, key: Hashable, task: Any) -> None:
        """Gives a task to the worker that has least to do."""
        ...

    def poll(self, timeout_s: float | None) -> list[Reply]:
        """Waits for replies, for a call of `wake`, or for the time to pass; [] may come early."""
        ...

    def wake(self) -> None:
        """Ends a `poll` of another thread, or the next one. Any thread may call it."""
        ...

    def close(self) -> None:
        """Ends the workers. A task that one is at is not waited for."""
        ...


def rest_after(busy_s: float, core: float) -> None:
    """Sleeps so long that a worker uses a part of a core on average."""
    if core < 1:
        time.sleep(busy_s * (1 / core - 1))
