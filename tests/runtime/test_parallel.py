"""Many recordings at once in worker processes, and when that is given up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mosrt
from mosrt.host.workers import processes_work_here
from mosrt.parallel import Parallel
from tests.conftest import HANG_S, noise

pytestmark = pytest.mark.skipif(not processes_work_here(), reason="needs fork on Linux")


class Result(int):
    """A result that counts as so many views."""

    n_views = 1


def double(task: int) -> dict[str, Result]:
    """What the workers do."""
    if task < 0:
        raise ValueError(f"task {task}")
    return {"overall": Result(2 * task)}


def ready(parallel: Parallel) -> Parallel:
    """Starts the workers, and waits for them."""
    parallel.spent(1e-9, 1)
    ends = time.monotonic() + HANG_S
    while not parallel.take():
        assert time.monotonic() < ends
        time.sleep(0.01)
    parallel.rates_hz[0] = 0.0
    return parallel


@pytest.fixture
def parallel() -> Iterator[Parallel]:
    made = Parallel(double, 2, start_after_s=0.0)
    yield made
    made.close()


def values(parallel: Parallel, tasks: Any) -> list[int]:
    return [reply.value["overall"] for reply in parallel.results(iter(tasks))]


def test_nothing_starts_before_there_is_enough_work() -> None:
    parallel = Parallel(double, 2)
    parallel.spent(0.5, 1)
    assert not parallel.take()


def test_results_are_in_order(parallel: Parallel) -> None:
    ready(parallel)
    assert values(parallel, range(100)) == [2 * n for n in range(100)]
    assert not parallel.take()  # until the first leaves
    parallel.leave()
    assert parallel.take()


def test_tasks_are_taken_only_as_far_as_needed(parallel: Parallel) -> None:
    ready(parallel)
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    found = parallel.results(tasks())
    next(found)
    assert taken < 10
    del found
    assert values(parallel, range(20)) == [2 * n for n in range(20)]


def test_errors_are_raised_where_they_are_due(parallel: Parallel) -> None:
    ready(parallel)
    replies = list(parallel.results(iter([1, -5, 3])))
    assert [str(reply.error) for reply in replies] == ["None", "task -5", "None"]

    def tasks() -> Iterator[int]:
        yield from range(3)
        raise OSError("the list ends here")

    found = parallel.results(tasks())
    assert [next(found).value["overall"] for _ in range(3)] == [0, 2, 4]
    with pytest.raises(OSError, match="the list ends here"):
        next(found)


def test_workers_that_are_slower_are_given_up(parallel: Parallel) -> None:
    ready(parallel)
    parallel.rates_hz[0] = 1e9
    tasks = iter(range(500))
    done = [reply.value["overall"] for reply in parallel.results(tasks)]
    assert done == [2 * n for n in range(len(done))]
    assert next(tasks) == len(done) < 500  # the rest is left to the caller
    parallel.leave()
    assert not parallel.take()


@pytest.mark.parametrize("model", ["nano", "distillmos"])
def test_scores_are_those_of_each_recording_alone(model: str, clips: list[Path]) -> None:
    """With more threads than cores, and so with networks that are split differently."""
    items: list[Any] = [*clips, (noise(20_000), 16_000), clips[0].read_bytes(), "none.wav"]
    with mosrt.load(model, threads=8, on_bad_audio="nan") as scorer:
        expected = [scorer.score(*one) if isinstance(one, tuple) else scorer.score_file(one)
                    for one in items]  # fmt: skip
        scorer.many = Parallel(scorer.score_task, 2, start_after_s=0.0)
        ready(scorer.many).leave()
        with clips[1].open("rb") as file:
            found = scorer.score_many([*items, file])
        assert scorer.many.take()  # the workers were used to the end
        scorer.many.leave()
    expected.append(expected[1])
    assert [(one.views, one.flags, one.windows) for one in found] == [
        (one.views, one.flags, one.windows) for one in expected
    ]


def test_a_forked_child_starts_anew(parallel: Parallel, monkeypatch: pytest.MonkeyPatch) -> None:
    ready(parallel).leave()
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert not parallel.take()
    monkeypatch.undo()
    assert parallel.take()
