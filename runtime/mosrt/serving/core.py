"""The workers that score for `AsyncScorer` and `ScorerPool`, and the queue before them."""

from __future__ import annotations

import atexit
import logging
import math
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # a name of its own in 3.10
from typing import Any, Final, cast, get_args

from mosrt.audio.items import portable
from mosrt.crops import Plan, resolve_plan
from mosrt.errors import ClosedError, Overloaded, ProviderError
from mosrt.host.cpu import MAX_THREADS, usable_cores
from mosrt.host.workers import (
    Handler,
    ProcessWorkers,
    Reply,
    ThreadWorkers,
    Workers,
    processes_work_here,
)
from mosrt.loading import load
from mosrt.mos.scorer import FusionScorer
from mosrt.score import Score
from mosrt.scorer import Item, Request, Scorer

from .admission import Admission, Job, Priority
from .batches import MicroBatches
from .model import ModelInfo, duration_s, measure, noise_task
from .stats import ServingStats

__all__ = ["Core"]

_LOG = logging.getLogger(__name__)
_MAX_QUEUE: Final = 1_000_000
# Waiting requests per worker from which on a worker gets a second one.
_MANY: Final = 8


class Core:
    """A queue, and workers that work it off: processes on Linux's CPUs, else threads.

    One thread passes requests to the workers. It and the workers start with the first request, and
    again after a fork. In a forked child nothing waits and nothing is counted yet.

    Args:
        model, variant, provider, on_bad_audio, remove_silence: As for `mosrt.load`.
        workers, max_queue, cpu_share, nice, max_batch, max_wait_ms: As for `ScorerPool`.
        processes: Whether workers may be processes.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None,
        *,
        workers: int | None,
        max_queue: int,
        cpu_share: float | None,
        nice: int | None,
        max_batch: int | None,
        max_wait_ms: float | None,
        processes: bool = True,
        **options: Any,
    ) -> None:
        _check("workers", workers, 1, MAX_THREADS)
        _check("max_queue", max_queue, 1, _MAX_QUEUE)
        _check("nice", nice, 0, 19)
        _check("max_batch", max_batch, 1, 4096)
        _check("max_wait_ms", max_wait_ms, 0, 10_000)
        if cpu_share is not None and not 0 < cpu_share <= MAX_THREADS:
            raise ValueError(f"cpu_share is cores, above 0 to {MAX_THREADS}, not {cpu_share}")
        if nice is not None and not sys.platform.startswith("linux"):
            raise ValueError("nice needs Linux, where each thread has its own; leave it out")
        self._model, self._options = model, options
        cores = usable_cores() if cpu_share is None else cpu_share
        self.workers = workers or max(1, math.floor(cores))
        self._max_queue = max_queue
        self._nice = nice
        self._processes = processes
        self._batching: dict[str, Any] = {"max_views": max_batch}
        if max_wait_ms is not None:
            self._batching["max_wait_s"] = max_wait_ms / 1e3
        self._core_s = 1.0 if cpu_share is None else min(1.0, cpu_share / self.workers)
        self._scorer: Scorer | None = None
        self._opening = threading.Lock()
        self._closed = False
        self._reset()
        _CORES.add(self)

    def _reset(self) -> None:
        self._thread: threading.Thread | None = None
        self._workers: Workers | None = None
        self._changed = threading.Lock()
        self._ready = threading.Event()
        self._admission = Admission(
            workers=self.workers, max_queue=self._max_queue, core_s=self._core_s
        )

    def after_fork(self) -> None:
        """Starts anew in a forked child, which has none of the threads."""
        self._opening = threading.Lock()
        times = self._admission.times
        self._reset()
        self._admission.times = times

    def open(self) -> Scorer:
        """Loads the model unless it is loaded, and measures it.

        Raises:
            MosrtError: As for `mosrt.load`.
        """
        with self._opening:
            if self._closed:
                raise ClosedError("the pool is closed; make another")
            if self._scorer is None:
                scorer = load(self._model, threads=1, **self._options)
                self._loaded_in = os.getpid()
                try:
                    measure(scorer, self._admission.times)
                except BaseException:
                    scorer.close()
                    raise
                self._scorer = scorer
            elif self._scorer.provider != "cpu" and os.getpid() != self._loaded_in:
                raise ProviderError(
                    f"provider {self._scorer.provider!r} does not survive a fork; open the scorer "
                    "in the forked process"
                )
            return self._scorer

    def start(self) -> None:
        """Loads the model, and waits until the workers have, too.

        Raises:
            MosrtError: As for `mosrt.load`.
        """
        scorer = self.open()
        with self._changed:
            self._start(scorer)
        self._ready.wait()

    @property
    def scorer(self) -> Scorer:
        """The loaded scorer."""
        return self._scorer or self.open()

    @property
    def is_open(self) -> bool:
        """Whether the model is loaded."""
        return self._scorer is not None

    @property
    def info(self) -> ModelInfo:
        """The model."""
        return ModelInfo.of(self.scorer)

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
    ) -> Job:
        """Lets a request wait for a worker; never blocks once the model is loaded.

        Arguments are those of `ScorerPool.submit`.

        Raises:
            ClosedError: The pool is closed.
            DomainError, PlanError: The request does not fit the model.
            Overloaded: The queue is full, or the deadline cannot be met.
            ValueError: `priority` or `deadline_s` is none.
        """
        if priority not in get_args(Priority):
            raise ValueError(f"priority must be 'interactive' or 'background', not {priority!r}")
        if deadline_s is not None and not deadline_s > 0:
            raise ValueError(f"deadline_s must be above 0, not {deadline_s}")
        scorer = self.scorer
        job = Job(
            portable(item),
            scorer.checked_domain(domain),
            Request(resolve_plan(plan, views)),
            priority=priority,
            duration_s=duration_s(item),
        )
        if when_done is not None:
            job.future.add_done_callback(when_done)
        with self._changed:
            if self._closed:
                raise ClosedError("the pool is closed; make another")
            if deadline_s is not None:
                job.deadline = self._admission.clock() + deadline_s
            self._start(scorer)
            self._admission.admit(job)
            workers = self._workers
        if workers is not None:
            workers.wake()
        job.future.add_done_callback(lambda _: self._withdraw(job))
        return job

    def result(self, job: Job, deadline_s: float | None) -> Score:
        """The score of a request, for a caller that may block."""
        if deadline_s is not None:
            try:
                return job.future.result(deadline_s)
            except FutureTimeoutError:
                self.expire(job)
        return job.future.result()

    def expire(self, job: Job) -> None:
        """Gives up a request whose deadline has passed, if it still waits."""
        with self._changed:
            self._admission.expire(job)
        self._tell_expired()

    def stats(self) -> ServingStats:
        """A snapshot."""
        with self._changed:
            return self._admission.stats()

    def close(self, *, drain: bool = True, timeout_s: float | None = None) -> bool:
        """Refuses further requests, and ends the threads.

        Args:
            drain: Whether requests that wait are scored. Otherwise they get ClosedError.
            timeout_s: Longest time to wait; then what still waits gets ClosedError.

        Returns:
            Whether all requests that were accepted have ended.
        """
        ends = math.inf if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            self._closed = True
        if not drain:
            self._abort()
        ended = self._join(ends)
        if not ended:
            self._abort()
            ended = self._join(time.monotonic())
        with self._opening:
            if ended and self._scorer is not None:
                self._scorer.close()
        return ended

    def _join(self, ends: float) -> bool:
        if self._workers is not None:
            self._workers.wake()
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        left_s = ends - time.monotonic()
        thread.join(None if math.isinf(left_s) else max(0.0, left_s))
        return not thread.is_alive()

    def _abort(self) -> None:
        with self._changed:
            jobs = [job for job in self._admission.waiting() if self._admission.withdraw(job)]
        for job in jobs:
            _fail(job, ClosedError("the pool was closed before it came to this recording"))

    def _withdraw(self, job: Job) -> None:
        with self._changed:
            self._admission.withdraw(job)

    def _start(self, scorer: Scorer) -> None:
        if self._thread is not None:
            return
        options: dict[str, Any] = {"core": self._core_s, "nice": self._nice}
        if scorer.provider == "cpu" and self._processes and processes_work_here():
            warm_up = noise_task(scorer)
            self._workers = ProcessWorkers(
                scorer.score_task, self.workers, warm_up=warm_up, **options
            )
        else:
            self._workers = ThreadWorkers(self._handler(scorer), self.workers, **options)
        self._thread = threading.Thread(target=self._dispatch, name="mosrt-dispatch", daemon=True)
        self._thread.start()

    def _handler(self, scorer: Scorer) -> Handler:
        """What threads do with a task: on a GPU they run their views together."""
        if not isinstance(scorer, FusionScorer) or scorer.backend.batch_size == 1:
            return scorer.score_task
        batches = MicroBatches(scorer.backend, **self._batching)
        scorer.run_views = batches

        def score(task: Any) -> Any:
            with batches.recording():
                return scorer.score_task(task)

        return score

    def _dispatch(self) -> None:
        try:
            self._pass_on()
        except BaseException as exc:  # the callers must not wait for ever
            with self._changed:
                self._closed = True
                jobs = self._admission.in_work()
            self._ready.set()
            self._abort()
            for job in jobs:
                job.future.set_exception(exc)
            raise

    def _pass_on(self) -> None:
        """Passes requests to workers, and their replies to callers, until it is closed."""
        while True:
            workers = cast(Workers, self._workers)
            for job in self._next_jobs(workers):
                if job.future.set_running_or_notify_cancel():
                    workers.send(job, (job.item, (job.domain,), job.request))
                else:
                    with self._changed:
                        self._admission.finish(job, "cancelled")
            self._tell_expired()
            with self._changed:
                idle = not self._admission.queued and not self._admission.in_flight
                if self._closed and idle:
                    break
            for reply in workers.poll(None):
                self._reply(reply)
            if workers.failed is not None:
                workers.close()
                self._use_threads(workers.failed)
        workers.close()

    def _next_jobs(self, workers: Workers) -> list[Job]:
        """The requests to send now: one for each idle worker, and one more where very many wait.

        A request that was sent can neither expire nor be taken by another worker that is free
        before; but a worker that has another request need not wait for this thread.
        """
        jobs: list[Job] = []
        with self._changed:
            while len(jobs) < workers.free():
                many = self._admission.queued >= _MANY * self.workers
                if not many and self._admission.in_flight >= self.workers:
                    break
                if (job := self._admission.take()) is None:
                    break
                jobs.append(job)
        if workers.free() or workers.failed is not None:
            self._ready.set()
        return jobs

    def _reply(self, reply: Reply) -> None:
        job = cast(Job, reply.key)
        score = reply.value[job.domain] if reply.error is None else None
        outcome = "cancelled" if job.abandoned else "failed" if score is None else "completed"
        with self._changed:
            if score is not None:
                self._admission.measure(reply.busy_s, score.duration_s)
            self._admission.finish(job, cast(Any, outcome))
        if score is None:
            job.future.set_exception(reply.error)
        else:
            job.future.set_result(score)

    def _use_threads(self, reason: Exception) -> None:
        """Goes on with threads, since no worker process can be started."""
        _LOG.warning("no worker processes: %s; scoring goes on in threads", reason)
        with self._changed:
            jobs = self._admission.in_work()
            self._workers = ThreadWorkers(
                self._handler(self.scorer), self.workers, core=self._core_s, nice=self._nice
            )
        for job in jobs:
            self._workers.send(job, (job.item, (job.domain,), job.request))

    def _tell_expired(self) -> None:
        while self._admission.expired:
            with self._changed:
                jobs, self._admission.expired = self._admission.expired, []
                retry_s = self._admission.retry_s("interactive")
            for job in jobs:
                text = f"the deadline passed in the queue; try again in {retry_s:.2g} s"
                _fail(job, Overloaded(text, retry_after_s=retry_s))


# All of this process, for the end and for forks.
_CORES: Final[weakref.WeakSet[Core]] = weakref.WeakSet()


def _abort_all() -> None:
    for core in list(_CORES):
        core.close(drain=False, timeout_s=1.0)


def _after_fork() -> None:
    for core in list(_CORES):
        core.after_fork()


atexit.register(_abort_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _fail(job: Job, error: Exception) -> None:
    if job.future.set_running_or_notify_cancel():
        job.future.set_exception(error)


def _check(name: str, value: float | None, least: int, most: int) -> None:
    if value is not None and not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {value}")
