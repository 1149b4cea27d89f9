"""The queue of a pool: bounds, priorities, deadlines, predictions."""

from __future__ import annotations

import pytest

from mosrt.errors import Overloaded
from mosrt.scorer import Request
from mosrt.serving.admission import Admission, Job, Priority


class Clock:
    """A clock that stands still until it is told otherwise."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def admission(workers: int = 1, max_queue: int = 8, service_s: float = 0.1) -> Admission:
    made = Admission(workers=workers, max_queue=max_queue, clock=Clock())
    made.measure(service_s, 5.0)
    return made


def job(priority: Priority = "interactive", deadline: float = float("inf"), **more: float) -> Job:
    return Job(b"", "overall", Request(), priority=priority, deadline=deadline, **more)  # type: ignore[arg-type]


def test_a_full_queue_refuses_at_once() -> None:
    queue = admission(max_queue=2)
    queue.admit(job())
    queue.admit(job())
    with pytest.raises(Overloaded, match="2 requests wait already; try again in") as refused:
        queue.admit(job())
    assert refused.value.retry_after_s == pytest.approx(0.2)
    stats = queue.stats()
    assert (stats.queued, stats.accepted, stats.refused) == (2, 2, 1)


def test_a_place_that_is_given_up_is_free() -> None:
    queue = admission(max_queue=1)
    first = job()
    queue.admit(first)
    assert queue.withdraw(first)
    assert not queue.withdraw(first)
    queue.admit(job())
    assert (queue.queued, queue.stats().cancelled) == (1, 1)


def test_background_requests_leave_places_for_interactive_ones() -> None:
    queue = admission(max_queue=4)
    queue.admit(job("background"))
    queue.admit(job("background"))
    with pytest.raises(Overloaded):
        queue.admit(job("background"))
    queue.admit(job())
    queue.admit(job())
    assert queue.queued == 4


def test_background_requests_are_not_starved() -> None:
    queue = admission(max_queue=256)
    for _ in range(40):
        queue.admit(job())
        queue.admit(job("background"))
    order = []
    while (one := queue.take()) is not None:
        order.append(one.priority[0])
        queue.finish(one, "completed")
    assert "".join(order[:24]) == "iiiiiiib" * 3
    assert order.count("b") == 40


def test_a_lone_background_request_starts_at_once() -> None:
    queue = admission()
    queue.admit(job("background"))
    assert queue.take() is not None


def test_a_deadline_that_cannot_be_met_is_refused() -> None:
    queue = admission(workers=2, service_s=0.1)
    queue.admit(job(deadline=100.15))
    with pytest.raises(Overloaded, match=r"would take 0.1 s, and has 0.05 s"):
        queue.admit(job(deadline=100.05))
    running = [queue.take()]
    for _ in range(3):
        queue.admit(job())
    running.append(queue.take())
    # Two are running and two wait, on two workers: 0.2 s of waiting, and 0.1 s of work.
    queue.admit(job(deadline=100.31))
    with pytest.raises(Overloaded):
        queue.admit(job(deadline=100.29))
    # A background request waits for them all.
    with pytest.raises(Overloaded):
        queue.admit(job("background", deadline=100.31))


def test_what_expires_in_the_queue_is_not_worked_on() -> None:
    queue = admission(service_s=0.1)
    late, other = job(deadline=100.5), job()
    queue.admit(late)
    queue.admit(other)
    queue.clock.now += 0.46  # type: ignore[attr-defined]
    assert queue.take() is other
    assert queue.expired == [late]
    assert queue.stats().expired == 1


def test_a_long_recording_is_predicted_to_take_longer() -> None:
    queue = admission()
    for duration_s in (1.0, 2.0, 4.0, 8.0):
        queue.measure(0.01 + 0.02 * duration_s, duration_s)
    assert queue.times.predict_s(3.0) == pytest.approx(0.07, abs=0.01)
    assert queue.times.predict_s(60.0) == pytest.approx(1.2, abs=0.1)
    queue.admit(job(deadline=100.2, duration_s=3.0))
    with pytest.raises(Overloaded):
        queue.admit(job(deadline=100.2, duration_s=60.0))


def test_a_measurement_that_was_too_long_is_doubted() -> None:
    queue = admission(service_s=60.0)
    refused = 0
    for _ in range(200):
        try:
            queue.admit(job(deadline=100.2))
            break
        except Overloaded:
            refused += 1
    assert 100 < refused < 150
    queue.measure(0.1, 5.0)
    assert queue.times.predict_s(None) > 1.0


def test_the_counts_add_up() -> None:
    queue = admission(max_queue=100)
    jobs = [job() for _ in range(10)]
    for each in jobs:
        queue.admit(each)
    taken = [queue.take() for _ in range(4)]
    for one, outcome in zip(taken, ("completed", "failed", "cancelled"), strict=False):
        assert one is not None
        queue.finish(one, outcome)  # type: ignore[arg-type]
    queue.withdraw(jobs[-1])
    queue.expire(jobs[-2])
    stats = queue.stats()
    assert (stats.queued, stats.in_flight, stats.cancelled, stats.expired) == (4, 1, 2, 1)
    outcomes = stats.completed + stats.failed + stats.cancelled + stats.expired
    assert stats.accepted == 10 == stats.queued + stats.in_flight + outcomes
    assert stats.to_dict()["wait_s"]["p50"] == 0.0
