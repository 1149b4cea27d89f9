"""Scores recordings inside an asyncio server, without blocking its event loop."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

import numpy.typing as npt

from mosrt.audio.guards import BadAudioPolicy
from mosrt.audio.items import AudioFile, Item, portable
from mosrt.crops import Plan
from mosrt.score import Score

from .admission import Priority
from .best import Best, Candidate, Choice, item_of, window
from .core import Core
from .model import ModelInfo
from .stats import ServingStats

__all__ = ["AsyncScorer"]


class AsyncScorer:
    """Scores recordings on all cores for an asyncio server, with a bounded queue.

    The model is loaded, and recordings are read, decoded and scored, by threads of its own, so that
    the event loop goes on. Scores equal, bit for bit, those of `mosrt.load(model, threads=1)`.
    It works with asyncio and uvloop, and with several event loops at once. Cancelling a call frees
    its place in the queue.

    It may be made, and opened with `open()`, before a fork: the children share the memory of the
    model, and each starts workers of its own.

    Args:
        model: As for `mosrt.load`.
        variant: As for `mosrt.load`.
        provider: As for `mosrt.load`. Only "cpu" may be open when the process is forked.
        workers: As for `ScorerPool`, as are the arguments that follow.

    Raises:
        ValueError: An option has a value that it does not know.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        variant: str | None = None,
        provider: str = "auto",
        workers: int | None = None,
        max_queue: int = 256,
        on_bad_audio: BadAudioPolicy = "warn",
        remove_silence: bool = False,
        cpu_share: float | None = None,
        nice: int | None = None,
        max_batch: int | None = None,
        max_wait_ms: float | None = None,
    ) -> None:
        self._core = Core(
            model,
            variant=variant,
            provider=provider,
            workers=workers,
            max_queue=max_queue,
            on_bad_audio=on_bad_audio,
            remove_silence=remove_silence,
            cpu_share=cpu_share,
            nice=nice,
            max_batch=max_batch,
            max_wait_ms=max_wait_ms,
        )

    def open(self) -> AsyncScorer:
        """Loads the model, and blocks meanwhile: for use before a fork. Workers start later.

        Raises:
            BundleError, ProviderError: As for `mosrt.load`.
        """
        self._core.open()
        return self

    async def start(self) -> None:
        """Loads the model and starts the workers; `async with`, or else the first call, do so.

        Raises:
            BundleError, ProviderError: As for `mosrt.load`.
        """
        await asyncio.to_thread(self._core.start)

    @property
    def info(self) -> ModelInfo:
        """The model. It is known once the scorer is open."""
        return self._core.info

    async def score(
        self,
        waveform: npt.ArrayLike,
        sample_rate: float,
        *,
        deadline_s: float | None = None,
        priority: Priority = "interactive",
        domain: str | None = None,
        views: int | None = None,
        plan: Plan | None = None,
    ) -> Score:
        """Scores a waveform; arguments and errors are those of `ScorerPool.score`."""
        return await self._score(
            (waveform, sample_rate),
            deadline_s=deadline_s, priority=priority, domain=domain, views=views, plan=plan,
        )  # fmt: skip

    async def score_file(
        self,
        file: AudioFile,
        *,
        deadline_s: float | None = None,
        priority: Priority = "interactive",
        domain: str | None = None,
        views: int | None = None,
        plan: Plan | None = None,
    ) -> Score:
        """Scores a path, the bytes of a file, or a binary file object; else as `score`."""
        return await self._score(
            file, deadline_s=deadline_s, priority=priority, domain=domain, views=views, plan=plan
        )

    async def best_of(
        self,
        candidates: Iterable[Candidate] | AsyncIterable[Candidate],
        sample_rate: float = 24_000,
        at_least: float | None = None,
        *,
        deadline_s: float | None = None,
        priority: Priority = "interactive",
        domain: str | None = None,
        views: int | None = None,
        plan: Plan | None = None,
    ) -> Best:
        """Scores several recordings, and chooses the best; see `ScorerPool.best_of`.

        `candidates` may also be an asynchronous generator that makes them one by one.
        """
        choice, at_once = Choice(at_least), window(candidates, at_least, self._core.workers)
        ends = None if deadline_s is None else time.monotonic() + deadline_s
        source = _async_iterator(candidates)
        ahead: deque[asyncio.Task[Score]] = deque()
        taken = 0
        try:
            while True:
                while len(ahead) < at_once:
                    try:
                        candidate = await source.__anext__()
                    except StopAsyncIteration:
                        break
                    left_s = None if ends is None else max(1e-9, ends - time.monotonic())
                    call = self._score(
                        item_of(candidate, sample_rate),
                        deadline_s=left_s, priority=priority, domain=domain, views=views, plan=plan,
                    )  # fmt: skip
                    ahead.append(asyncio.ensure_future(call))
                    taken += 1
                if not ahead or choice.add(await ahead.popleft()):
                    break
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)
        return choice.best(candidates, taken)

    def stats(self) -> ServingStats:
        """What the scorer has done so far."""
        return self._core.stats()

    async def aclose(self, *, drain: bool = True, timeout_s: float | None = None) -> bool:
        """Refuses further calls, waits for those that run, and releases the model.

        Args and result are those of `ScorerPool.close`.
        """
        return await asyncio.to_thread(self._core.close, drain=drain, timeout_s=timeout_s)

    async def __aenter__(self) -> AsyncScorer:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def _score(self, item: Item, *, deadline_s: float | None, **options: Any) -> Score:
        if not self._core.is_open:
            await self.start()
        if hasattr(item, "read"):  # which may take long
            item = await asyncio.to_thread(portable, item)
        job = self._core.submit(item, deadline_s=deadline_s, **options)
        timer = None
        if deadline_s is not None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(deadline_s, self._core.expire, job)
        try:
            return await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            job.abandoned = True
            raise
        finally:
            if timer is not None:
                timer.cancel()


async def _async_iterator(
    candidates: Iterable[Candidate] | AsyncIterable[Candidate],
) -> AsyncIterator[Candidate]:
    if isinstance(candidates, AsyncIterable):
        async for candidate in candidates:
            yield candidate
    else:
        for candidate in candidates:
            yield candidate
