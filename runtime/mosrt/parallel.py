"""Scores several recordings at once in worker processes, once there are enough of them."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Hashable, Iterator
from typing import Any, Final

from .host.workers import Handler, ProcessWorkers, Reply, processes_work_here

__all__ = ["SMALL_BYTES", "Parallel"]

_LOG = logging.getLogger(__name__)

SMALL_BYTES: Final = 64_000_000
"""Largest weights of a model that scores several recordings at once. Each worker needs memory for
what the networks compute, which grows with them, and large networks use all cores by themselves."""

# Work on several recordings that comes before the workers are started, which costs a core about
# half of that.
_START_AFTER_S: Final = 1.0
# Recordings that are read ahead, by worker.
_AHEAD: Final = 4
# Replies by worker before the rate is measured, while memory is allocated, and until it is.
_UNMEASURED: Final = 2
_MEASURED: Final = 8
# Workers are given up if their rate is less than this part of the rate without them. Measurements
# scatter on a machine that does other things.
_WORTH: Final = 0.8
_keys = itertools.count()


class Parallel:
    """Worker processes of a scorer that each score one recording at a time.

    They are started when `spent` has counted enough work on several recordings, and used as long
    as they are faster than it was.

    Args:
        handler: Scores a task; see `ProcessWorkers`.
        count: Number of workers.

    Attributes:
        rates_hz: Views per second that were measured: without workers, and with them; 0 before.
    """

    def __init__(self, handler: Handler, count: int, *, start_after_s: float | None = None) -> None:
        self.count = count
        self.rates_hz = [0.0, 0.0]
        self._handler = handler
        self._after_s = _START_AFTER_S if start_after_s is None else start_after_s
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._user = threading.Lock()
        self._workers: ProcessWorkers | None = None
        self._given_up = not processes_work_here()
        self._spent = [0.0, 0]

    def spent(self, seconds: float, n_views: int) -> None:
        """Counts work on one of several recordings that was done without the workers."""
        if os.getpid() != self._process:
            self._reset()
        if self._given_up:
            return
        self._spent[0] += seconds
        self._spent[1] += n_views
        if self._workers is None and self._spent[0] > self._after_s:
            self.rates_hz[0] = self._spent[1] / self._spent[0]
            self._workers = ProcessWorkers(self._handler, self.count)

    def take(self) -> bool:
        """Whether the caller may use `results` now; it must call `leave` afterwards."""
        if os.getpid() != self._process or self._workers is None or self._given_up:
            return False
        if not self._user.acquire(blocking=False):
            return False
        if not self._workers.started:
            self._workers.poll(0)
            self._check()
        if self._given_up or not self._workers.started:
            self._user.release()
            return False
        return True

    def leave(self) -> None:
        """Lets another caller use `results`."""
        self._user.release()

    def results(self, tasks: Iterator[Any]) -> Iterator[Reply]:
        """Replies to tasks, in their order, until there are no more tasks or it is given up."""
        workers, at_most = self._workers, _AHEAD * self.count
        if workers is None:
            return
        due: dict[Hashable, Any] = {}  # in order: tasks, and then their replies
        failure: BaseException | None = None
        ended = False
        measured = _Rate(self.count)
        while True:
            while not (ended or self._given_up) and len(due) < at_most and workers.free():
                try:
                    task = next(tasks)
                except StopIteration:
                    ended = True
                    break
                except BaseException as exc:  # noqa: BLE001 - raised after what came before it
                    failure, ended = exc, True
                    break
                key = next(_keys)
                due[key] = task
                workers.send(key, task)
            if not due:
                break
            first = next(iter(due))
            waits = not isinstance(due[first], Reply)
            for reply in workers.poll(None if waits else 0):
                if reply.key in due:  # an earlier caller may have left before its replies came
                    due[reply.key] = reply
                    measured.add(_n_views(reply.value))
            self._check()
            if workers.failed is not None and not isinstance(due[first], Reply):
                due[first] = self._reply(first, due[first])
            if isinstance(answer := due[first], Reply):
                del due[first]
                yield answer
            if measured.hz and not self.rates_hz[1]:
                self.rates_hz[1] = measured.hz
                self._choose()
        if failure is not None:
            raise failure

    def _reply(self, key: Hashable, task: Any) -> Reply:
        """Does in this process what no worker is left to do."""
        started = time.monotonic()
        try:
            value, error = self._handler(task), None
        except Exception as exc:  # noqa: BLE001 - it is raised where its turn is
            value, error = None, exc
        return Reply(key, value, error, time.monotonic() - started)

    def close(self) -> None:
        """Ends the workers."""
        self._given_up = True
        if self._workers is not None and os.getpid() == self._process:
            self._workers.close()
            self._workers = None

    def _check(self) -> None:
        if self._workers is not None and self._workers.failed is not None:
            _LOG.warning(
                "no worker processes: %s; scoring goes on in this one", self._workers.failed
            )
            self._given_up = True

    def _choose(self) -> None:
        alone, together = self.rates_hz
        _LOG.info("views per second: %.3g, and %.3g with %d workers", alone, together, self.count)
        self._given_up = together < _WORTH * alone


class _Rate:
    """Measures views per second from replies.

    Args:
        count: Number of workers.

    Attributes:
        hz: The rate; 0 until it is known.
    """

    def __init__(self, count: int) -> None:
        self.hz = 0.0
        self._count = count
        self._replies = self._views = 0
        self._started = 0.0

    def add(self, n_views: int) -> None:
        """Counts a reply."""
        self._replies += 1
        if self._replies <= _UNMEASURED * self._count:
            self._started = time.monotonic()
            return
        self._views += n_views
        if self._replies == (_UNMEASURED + _MEASURED) * self._count:
            self.hz = self._views / (time.monotonic() - self._started)


def _n_views(scores: Any) -> int:
    return next(iter(scores.values())).n_views if scores else 0
