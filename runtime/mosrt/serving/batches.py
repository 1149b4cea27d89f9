"""Combines views of several recordings into the batches that a GPU runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from mosrt._arrays import Float32Array
from mosrt.backends.base import Backend, run_views

__all__ = ["MicroBatches"]

Views = Sequence[Mapping[str, Float32Array]]


@dataclass(slots=True, eq=False)
class _Entry:
    """Views of one recording, and what the model gives for them."""

    views: Views
    outputs: tuple[str, ...]
    since: float
    running: bool = False
    results: list[dict[str, Float32Array]] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for views that one run can take."""
        shapes = tuple((name, array.shape) for name, array in self.views[0].items())
        return self.outputs, shapes


class MicroBatches:
    """Runs views of recordings that several threads score, together where that costs no time.

    A view waits while the GPU is busy, and else only for recordings that are being prepared, and
    for `max_wait_s` at most. A recording that is alone never waits. Every run has as many views as
    the backend wants, as without this class, so that results are the same bit by bit.

    Args:
        backend: What runs the views; `batch_size` of them at once.
        max_views: Views that are run together at most; by default as many as the backend runs.
        max_wait_s: Longest wait for views of other recordings.
    """

    def __init__(
        self, backend: Backend, *, max_views: int | None = None, max_wait_s: float = 0.002
    ) -> None:
        self._backend = backend
        self._max_views = min(max_views or backend.batch_size, backend.batch_size)
        self._max_wait_s = max_wait_s
        self._changed = threading.Condition()
        self._waiting: list[_Entry] = []
        self._preparing = 0
        self._busy = False

    @property
    def waiting(self) -> int:
        """Recordings whose views wait for a run."""
        return len(self._waiting)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Marks the time in which a thread scores a recording."""
        with self._changed:
            self._preparing += 1
        try:
            yield
        finally:
            with self._changed:
                self._preparing -= 1
                self._changed.notify_all()

    def __call__(self, views: Views, outputs: Sequence[str]) -> list[dict[str, Float32Array]]:
        """Runs views of one recording; as `run_views`, from a thread within `recording`."""
        entry = _Entry(views, tuple(outputs), time.monotonic())
        with self._changed:
            self._waiting.append(entry)
            self._preparing -= 1
            self._changed.notify_all()
            while not entry.results and entry.error is None:
                if not entry.running and not self._busy and (batch := self._batch()):
                    self._run(batch)
                else:
                    self._changed.wait(self._left_s())
            self._preparing += 1
        if entry.error is not None:
            raise entry.error
        return entry.results

    def _left_s(self) -> float | None:
        """How long to wait before the first entry has waited for too long; None if none can be."""
        if self._busy or not self._waiting:
            return None
        return max(self._waiting[0].since + self._max_wait_s - time.monotonic(), 1e-4)

    def _batch(self) -> list[_Entry]:
        """The entries to run now; none if it is worth waiting for more."""
        first = self._waiting[0]
        batch: list[_Entry] = []
        count = 0
        for entry in self._waiting:
            if entry.key == first.key and (
                not batch or count + len(entry.views) <= self._max_views
            ):
                batch.append(entry)
                count += len(entry.views)
        late = time.monotonic() >= first.since + self._max_wait_s
        return batch if count >= self._max_views or not self._preparing or late else []

    def _run(self, batch: list[_Entry]) -> None:
        """Runs entries, without holding the lock meanwhile."""
        for entry in batch:
            entry.running = True
            self._waiting.remove(entry)
        self._busy = True
        self._changed.release()
        results: list[dict[str, Float32Array]] = []
        error: BaseException | None = None
        try:
            views = [view for entry in batch for view in entry.views]
            results = run_views(self._backend, views, batch[0].outputs)
        except BaseException as exc:  # noqa: BLE001 - raised in each of the threads
            error = exc
        finally:
            self._changed.acquire()
        for entry in batch:
            entry.error = error
            entry.results, results = results[: len(entry.views)], results[len(entry.views) :]
        self._busy = False
        self._changed.notify_all()
