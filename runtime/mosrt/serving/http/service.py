"""The scorer behind the HTTP API: its start and end, and the requests it works on."""

from __future__ import annotations

import asyncio
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from types import FrameType
from typing import Any, Final

from mosrt.audio.guards import FLAGS
from mosrt.errors import AudioError, ClosedError, DomainError, MeasureError, Overloaded, PlanError
from mosrt.score import Score
from mosrt.serving.async_scorer import AsyncScorer

from .limits import Limits
from .metrics import Metrics
from .problems import Problem
from .requests import Clip, Options, check_clip

__all__ = ["Service"]

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_RETRY_AFTER_S: Final = 1.0


class Service:
    """Scores clips for clients, and ends in an orderly way.

    Args:
        scorer: What scores. It is opened when the service starts.
        own: Whether the scorer is closed when the service ends.
        limits: Limits of requests.
        token: The bearer token that clients must send; None if they need none.
        drain_delay_s: How long requests are still taken after the signal to end, in seconds, so
            that a load balancer sees first that the service is not ready any more.
        grace_s: How long accepted requests may take after that, in seconds.
        refuse_at_end: Whether to answer new requests with 503 until accepted ones are finished.
            Else the server closes its socket meanwhile, as it must where other processes listen at
            the same one.
        metrics: Where to count.

    Attributes:
        limits: Limits of requests.
        scorer: What scores.
        token: The bearer token, or None.
        metrics: What is counted.
        ending: Set when streams must end.
        draining: Set when no more requests are taken.
        ready: Whether the service wants requests.
    """

    def __init__(
        self,
        scorer: AsyncScorer,
        *,
        own: bool,
        limits: Limits,
        token: str | None = None,
        drain_delay_s: float = 0.0,
        grace_s: float = 30.0,
        refuse_at_end: bool = False,
        metrics: Metrics | None = None,
    ) -> None:
        self.limits = limits
        self.scorer = scorer
        self.token = token
        self.metrics = metrics or Metrics()
        self.ending = asyncio.Event()
        self.draining = asyncio.Event()
        self.ready = False
        self._own = own
        self._started = not own
        self._drain_delay_s = drain_delay_s
        self._grace_s = grace_s
        self._refuse_at_end = refuse_at_end
        self._requests = _Users()
        self._streams = _Users()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Opens the scorer for the block, and ends when accepted work is finished."""
        await self.scorer.start()
        self.ending.clear()
        self.draining.clear()
        self._started = True
        self.metrics.set_model(self.scorer.info)
        with _Ending(self._end):
            self.ready = True
            try:
                yield
            finally:
                self.ready = False
                self.ending.set()
                self.draining.set()
                if self._own:
                    await self.scorer.aclose(timeout_s=self._grace_s)

    async def _end(self) -> None:
        """Makes the service end: readiness goes first, then accepted requests are finished."""
        self.ready = False
        await asyncio.sleep(self._drain_delay_s)
        self.ending.set()
        await self._streams.gone(self._grace_s)
        self.draining.set()
        if self._refuse_at_end:
            await self._requests.gone(self._grace_s)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts a request for the block.

        Raises:
            Problem: The service does not take it.
        """
        if self.draining.is_set():
            raise Problem(
                "unavailable",
                "the server is ending; send the request to another one",
                retry_after_s=_RETRY_AFTER_S,
            )
        if not self._started:
            raise Problem(
                "unavailable", "the model is not loaded yet", retry_after_s=_RETRY_AFTER_S
            )
        if self._requests.count >= self.limits.max_requests:
            raise Problem(
                "overloaded",
                f"the server works on {self._requests.count} requests; try again later",
                retry_after_s=_RETRY_AFTER_S,
            )
        self.metrics.in_flight.inc()
        try:
            with self._requests.one():
                yield
        finally:
            self.metrics.in_flight.dec()

    def streaming(self) -> AbstractContextManager[None]:
        """Counts a stream for a block. It must end soon after `ending` is set."""
        return self._streams.one()

    async def score(self, clip: Clip, options: Options) -> Score:
        """Scores a clip.

        Raises:
            Problem: The clip has no score, or the options do not fit the model.
        """
        arguments: dict[str, Any] = {
            "deadline_s": options.deadline_s,
            "priority": options.priority,
            "domain": options.domain,
            "views": options.views,
            "plan": options.plan,
        }
        try:
            if isinstance(clip.audio, bytes):
                await asyncio.to_thread(check_clip, clip, self.limits)
                score = await self.scorer.score_file(clip.audio, **arguments)
            else:
                score = await self.scorer.score(*clip.audio, **arguments)
        except AudioError as exc:
            raise self._unscorable(exc.flags) from exc
        except (DomainError, MeasureError, PlanError) as exc:
            raise Problem("bad-request", str(exc)) from exc
        except Overloaded as exc:
            detail = "the answer would be late, or the queue is full; try again later"
            raise Problem("overloaded", detail, retry_after_s=exc.retry_after_s) from exc
        except ClosedError as exc:
            detail = "the server is ending; send the request to another one"
            raise Problem("unavailable", detail, retry_after_s=_RETRY_AFTER_S) from exc
        if not score.n_views:
            raise self._unscorable(score.flags)
        for flag in score.flags:
            self.metrics.flags.labels(flag).inc()
        if math.isfinite(score.mos):
            self.metrics.scores.observe(score.mos)
        return score

    def _unscorable(self, flags: tuple[str, ...]) -> Problem:
        for flag in flags:
            self.metrics.flags.labels(flag).inc()
        reasons = "; ".join(FLAGS[flag] for flag in flags if flag in FLAGS)
        return Problem("unscorable", f"the recording has no score: {reasons}", flags=flags)


class _Users:
    """Counts what is going on."""

    def __init__(self) -> None:
        self.count = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Counts one more for the block."""
        self.count += 1
        self._none.clear()
        try:
            yield
        finally:
            self.count -= 1
            if not self.count:
                self._none.set()

    async def gone(self, timeout_s: float) -> None:
        """Waits until there is none, or for so long."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._none.wait(), timeout_s)


class _Ending:
    """Runs `end` before a signal to end the process reaches the server.

    It replaces the server's handlers of these signals, and calls them when `end` is done. A second
    signal reaches the server at once. In a process that a supervisor has started, the death of the
    supervisor counts as such a signal.

    Args:
        end: What to do first.
    """

    def __init__(self, end: Callable[[], Awaitable[None]]) -> None:
        self._end = end
        self._handlers: dict[int, Any] = {}
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _ENDING:
            handler = signal.getsignal(number)
            if callable(handler):  # a server that handles the signal
                self._handlers[number] = handler
                signal.signal(number, self._receive)
        if (parent := multiprocessing.parent_process()) is not None:
            threading.Thread(target=self._watch, args=(parent,), daemon=True).start()

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._task is not None:
            self._task.cancel()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._task is not None:
            self._handlers[number](number, frame)
            return
        self._loop.call_soon_threadsafe(self._start, number)

    def _start(self, number: int) -> None:
        if self._task is None:
            self._task = self._loop.create_task(self._run(number))

    async def _run(self, number: int) -> None:
        await self._end()
        self._handlers[number](number, None)

    def _watch(self, parent: Any) -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
