"""Scores recordings for servers with threads: a queue, and a worker for each core."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future

import numpy.typing as npt

from mosrt.audio.guards import BadAudioPolicy
from mosrt.crops import Plan
from mosrt.score import Score
from mosrt.scorer import AudioFile, Item

from .admission import Job, Priority
from .best import Best, Candidate, Choice, item_of, window
from .core import Core
from .model import ModelInfo
from .stats import ServingStats

__all__ = ["ScorerPool"]


class ScorerPool:
    """Scores recordings on all cores for a server with threads, with a bounded queue.

    Each worker scores one recording at a time on one thread, so that scores equal, bit for bit,
    those of `mosrt.load(model, threads=1)`. Any number of threads may use one pool. After a fork,
    the child starts workers of its own at its first request, and shares the memory of the model.

    Args:
        model: As for `mosrt.load`.
        variant: As for `mosrt.load`.
        provider: As for `mosrt.load`.
        workers: Recordings to score at once; by default one for each core that this process may
            use, or for each whole core of `cpu_share`.
        max_queue: Requests that may wait. Background requests take half of these places at most.
        on_bad_audio: As for `mosrt.load`. With "error", AudioError is raised where a score is due.
        remove_silence: As for `mosrt.load`.
        cpu_share: Cores that the workers may use together, such as 0.5 or 2. A worker with a part
            of a core rests after each recording. By default all cores.
        nice: Niceness of the worker threads, 0 to 19, as of the command nice (Linux). It cannot be
            lowered again.
        max_batch: Views that a GPU runs together at most; by default its backend's own number.
        max_wait_ms: How long a view may wait on a GPU for views of other recordings that are being
            prepared. If there are none, it never waits.

    Raises:
        BundleError, ProviderError: As for `mosrt.load`.
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
        self._core.open()

    @property
    def info(self) -> ModelInfo:
        """The model."""
        return self._core.info

    def score(
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
        """Scores a waveform, and waits for the score.

        Args:
            waveform: As for `Scorer.score`. It must not change until the score is there.
            sample_rate: Sampling rate in Hz.
            deadline_s: Time from now by which the score is needed. The request is refused at once
                if the measured service times say that it cannot be met, and given up if it still
                waits when the time has passed. What is being scored then is finished.
            priority: "interactive", or "background" for what nobody waits for. Of eight requests
                that start while both kinds wait, one is a background request.
            domain: As for `Scorer.score`.
            views: As for `Scorer.score`.
            plan: As for `Scorer.score`.

        Raises:
            ClosedError: The pool is closed.
            MosrtError: As for `Scorer.score`.
            Overloaded: The queue is full, or the deadline cannot be met.
        """
        job = self._core.submit(
            (waveform, sample_rate),
            deadline_s=deadline_s, priority=priority, domain=domain, views=views, plan=plan,
        )  # fmt: skip
        return self._result(job, deadline_s)

    def score_file(
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
        job = self._core.submit(
            file, deadline_s=deadline_s, priority=priority, domain=domain, views=views, plan=plan
        )
        return self._result(job, deadline_s)

    def submit(
        self,
        item: Item,
        *,
        deadline_s: float | None = None,
        priority: Priority = "interactive",
        domain: str | None = None,
        views: int | None = None,
        plan: Plan | None = None,
        when_done: Callable[[Future[Score]], object] | None = None,
    ) -> Future[Score]:
        """Lets a recording wait for a worker, and returns at once.

        Args:
            item: A file as `score_file` takes it, or a pair (waveform, sample_rate).
            deadline_s: As for `score`.
            priority: As for `score`.
            domain: As for `score`.
            views: As for `score`.
            plan: As for `score`.
            when_done: Called with the future when it has ended, in the worker's thread. A callback
                that is added to the future later may be called in the thread that adds it.

        Returns:
            The score to come. `cancel()` frees the place of a request that waits.

        Raises:
            ClosedError: The pool is closed.
            DomainError, PlanError: The request does not fit the model.
            Overloaded: The queue is full, or the deadline cannot be met.
        """
        job = self._core.submit(
            item,
            deadline_s=deadline_s, priority=priority, domain=domain, views=views, plan=plan,
            when_done=when_done,
        )  # fmt: skip
        return job.future

    def best_of(
        self,
        candidates: Iterable[Candidate],
        *,
        sample_rate: float = 24_000,
        at_least: float | None = None,
        deadline_s: float | None = None,
        priority: Priority = "interactive",
        domain: str | None = None,
        views: int | None = None,
        plan: Plan | None = None,
    ) -> Best:
        """Scores several recordings, and chooses the one with the highest MOS.

        Args:
            candidates: Waveforms, or files as `score_file` takes them.
            sample_rate: Sampling rate of the waveforms in Hz.
            at_least: A MOS that is good enough. The first candidate that has it is chosen, and
                those after it are not needed. A generator is then asked for one after the other.
            deadline_s: As for `score`, for all candidates together.
            priority: As for `score`.
            domain: As for `score`.
            views: As for `score`.
            plan: As for `score`.

        Raises:
            MeasureError: The model gives no MOS to compare with `at_least`.
            MosrtError: As for `score`.
            ValueError: There are no candidates.
        """
        choice, at_once = Choice(at_least), window(candidates, at_least, self._core.workers)
        ends = None if deadline_s is None else time.monotonic() + deadline_s
        source = iter(candidates)
        ahead: deque[Job] = deque()
        taken = 0
        try:
            while True:
                for candidate in source:
                    left_s = None if ends is None else max(1e-9, ends - time.monotonic())
                    ahead.append(
                        self._core.submit(
                            item_of(candidate, sample_rate),
                            deadline_s=left_s, priority=priority, domain=domain, views=views,
                            plan=plan,
                        )
                    )  # fmt: skip
                    taken += 1
                    if len(ahead) == at_once:
                        break
                if not ahead or choice.add(self._result(ahead[0], deadline_s)):
                    break
                ahead.popleft()
        finally:
            for job in ahead:
                job.future.cancel()
        return choice.best(candidates, taken)

    def stats(self) -> ServingStats:
        """What the pool has done so far."""
        return self._core.stats()

    def close(self, *, drain: bool = True, timeout_s: float | None = None) -> bool:
        """Refuses further requests, waits for those that were accepted, and releases the model.

        Args:
            drain: Whether requests that wait are scored. Otherwise they get ClosedError.
            timeout_s: Longest time to wait. What still waits then gets ClosedError; what is being
                scored is left to its worker.

        Returns:
            Whether all work has ended.
        """
        return self._core.close(drain=drain, timeout_s=timeout_s)

    def start(self) -> ScorerPool:
        """Starts the workers, and waits until they are ready; else the first request starts them.

        A program that forks, such as `gunicorn --preload`, leaves this to its children.
        """
        self._core.start()
        return self

    def __enter__(self) -> ScorerPool:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _result(self, job: Job, deadline_s: float | None) -> Score:
        return self._core.result(job, deadline_s)
