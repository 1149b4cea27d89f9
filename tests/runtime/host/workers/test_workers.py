"""Workers: processes and threads that call a function for many tasks."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from mosrt.errors import AudioError, DomainError, Overloaded
from mosrt.host.workers import ProcessWorkers, ThreadWorkers, Workers, processes_work_here
from tests.conftest import HANG_S

pytestmark = pytest.mark.skipif(not processes_work_here(), reason="needs fork on Linux")


def handler(task: tuple[str, Any]) -> Any:
    """What the workers call."""
    kind, value = task
    if kind == "raise":
        raise value
    if kind == "log":
        logging.getLogger("mosrt.somewhere").warning("%s", value)
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "lambda":
        return lambda: value
    if kind == "where":
        return os.getcwd(), os.getpid()  # noqa: PTH109 - as the workers do
    return value


def results(workers: Workers, tasks: list[tuple[str, Any]]) -> list[Any]:
    """The results or errors of tasks, in their order."""
    found: dict[Any, Any] = {}
    ends, sent = time.monotonic() + HANG_S, 0
    while len(found) < len(tasks):
        while sent < len(tasks) and workers.free():
            workers.send(sent, tasks[sent])
            sent += 1
        found |= {reply.key: reply.error or reply.value for reply in workers.poll(5.0)}
        assert workers.failed is None
        assert time.monotonic() < ends
    return [found[key] for key in range(len(tasks))]


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessWorkers]:
    workers = ProcessWorkers(handler, 2, warm_up=("value", 0))
    yield workers
    workers.close()


def test_values_come_back(processes: ProcessWorkers) -> None:
    array = np.arange(300_000, dtype=np.float32).reshape(2, -1)
    found = results(processes, [("value", array), ("value", array[:, ::2]), ("value", "text")] * 3)
    for one, half, text in zip(found[::3], found[1::3], found[2::3], strict=True):
        assert np.array_equal(one, array)
        assert np.array_equal(half, array[:, ::2])
        assert text == "text"


def test_errors_come_back_whole(processes: ProcessWorkers) -> None:
    errors = [
        AudioError("a.wav: cannot be scored", flags=("empty",)),
        DomainError("none", ("a", "b")),
        Overloaded("busy", retry_after_s=0.5),
    ]
    found = results(processes, [("raise", error) for error in errors])
    assert [(type(one), str(one)) for one in found] == [(type(one), str(one)) for one in errors]
    assert found[0].flags == ("empty",)
    assert found[2].retry_after_s == 0.5
    (unpicklable,) = results(processes, [("lambda", 1)])
    assert "cannot be pickled" in str(unpicklable)


def test_warnings_are_logged_here(
    processes: ProcessWorkers, caplog: pytest.LogCaptureFixture
) -> None:
    results(processes, [("log", "50 % are quiet")])
    assert [(one.name, one.getMessage()) for one in caplog.records] == [
        ("mosrt.somewhere", "50 % are quiet")
    ]


def test_relative_paths_hold_after_a_change_of_directory(
    processes: ProcessWorkers, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ((directory, process),) = results(processes, [("where", None)])
    assert directory == str(tmp_path)
    assert process != os.getpid()


def test_a_task_that_kills_its_workers_fails_alone(processes: ProcessWorkers) -> None:
    found = results(processes, [("value", 1), ("die", None), *[("value", n) for n in range(6)]])
    assert "2 worker processes died at this task" in str(found[1])
    assert [*found[:1], *found[2:]] == [1, 0, 1, 2, 3, 4, 5]


def test_workers_that_died_idle_cost_a_task_no_try(processes: ProcessWorkers) -> None:
    found = results(processes, [("where", None)] * 8)
    killed = [psutil.Process(process) for process in {process for _, process in found}]
    for one in killed:
        one.kill()
    psutil.wait_procs(killed, HANG_S)
    processes.send("next", ("value", 7))  # before anybody has noticed
    ends = time.monotonic() + HANG_S
    while not (replies := processes.poll(1.0)) and time.monotonic() < ends:
        pass
    assert [(reply.key, reply.value, reply.error) for reply in replies] == [("next", 7, None)]


def test_a_handler_that_cannot_be_loaded_is_told() -> None:
    workers = ProcessWorkers(handler, 1, warm_up=("raise", ValueError("no such model")))
    ends = time.monotonic() + HANG_S
    while workers.failed is None and time.monotonic() < ends:
        workers.poll(1.0)
    assert "no such model" in str(workers.failed)
    workers.close()


def test_a_wake_ends_a_poll(processes: ProcessWorkers) -> None:
    threads = ThreadWorkers(handler, 1)
    for workers in (processes, threads):
        workers.wake()
        assert workers.poll(HANG_S) == []
    threads.close()


def test_threads_do_the_same() -> None:
    workers = ThreadWorkers(handler, 2)
    found = results(workers, [("value", n) for n in range(9)] + [("raise", KeyError("x"))])
    assert found[:9] == list(range(9))
    assert isinstance(found[9], KeyError)
    workers.close()
