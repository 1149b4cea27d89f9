"""The pool for servers with threads: as the asynchronous scorer, and forks, shares, niceness."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

import mosrt
from tests.conftest import HANG_S, noise


def test_scores_are_those_of_a_scorer(clips: list[Path]) -> None:
    with mosrt.load("nano", threads=1) as alone:
        expected = [alone.score_file(clip).views for clip in clips]
    with mosrt.ScorerPool("nano", workers=2) as pool, ThreadPoolExecutor(4) as callers:
        assert [score.views for score in callers.map(pool.score_file, clips)] == expected
        futures = [pool.submit(clip, priority="background") for clip in clips]
        assert [future.result(HANG_S).views for future in futures] == expected
        assert pool.score(noise(8_000), 16_000, deadline_s=60).n_views == 1
        stats = pool.stats()
    assert (stats.completed, stats.workers, stats.queued) == (2 * len(clips) + 1, 2, 0)
    assert stats.service_s.p50 <= stats.service_s.p95


def test_best_of_several(clips: list[Path]) -> None:
    with mosrt.ScorerPool("nano", workers=2) as pool:
        every = pool.best_of(clips[:4])
        assert every.score.mos == max(score.mos for score in every.scores if score)
        first = every.scores[0]
        assert first is not None
        taken = iter(clips[:4])
        enough = pool.best_of(taken, at_least=first.mos)
        assert (enough.index, enough.score.mos) == (0, first.mos)
        assert len(list(taken)) == 3
        with pytest.raises(TypeError, match="several recordings"):
            pool.best_of("speech.wav")


def test_a_model_without_mos_gives_the_least_uncertain(clips: list[Path]) -> None:
    with mosrt.ScorerPool("nano-uncertainty", workers=1) as pool:
        best = pool.best_of(clips[:3])
        values = [score.measures["uncertainty"] for score in best.scores if score]
        assert values[best.index] == min(values)
        with pytest.raises(mosrt.MeasureError, match="no MOS to compare with at_least"):
            pool.best_of(clips[:3], at_least=3.0)


def test_a_deadline_in_the_queue_ends_the_wait() -> None:
    with mosrt.ScorerPool("nano", workers=1) as pool:
        running = pool.submit((noise(60 * 16_000), 16_000), views=90)
        while not pool.stats().in_flight:
            time.sleep(0.001)
        with pytest.raises(mosrt.Overloaded):
            pool.score(noise(8_000), 16_000, deadline_s=0.1)
        assert not running.done()
        running.cancel()


def test_close_gives_up_after_its_time() -> None:
    pool = mosrt.ScorerPool("nano", workers=1)
    running = pool.submit((noise(60 * 16_000), 16_000), views=90)
    waiting = pool.submit((noise(8_000), 16_000))
    while not pool.stats().in_flight:
        time.sleep(0.001)
    assert not pool.close(timeout_s=0.01)
    with pytest.raises(mosrt.ClosedError):
        waiting.result(HANG_S)
    assert running.result(HANG_S).n_views == 90
    assert pool.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers must be from 1 to 1024, not 0"),
        ({"max_queue": 0}, "max_queue must be from 1"),
        ({"cpu_share": 0.0}, "cpu_share is cores, above 0"),
        ({"nice": -1}, "nice must be from 0 to 19"),
        ({"max_batch": 0}, "max_batch must be from 1"),
        ({"max_wait_ms": -1}, "max_wait_ms must be from 0"),
        ({"on_bad_audio": "ignore"}, "on_bad_audio must be"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mosrt.ScorerPool("nano", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("cpu_share", "workers"), [(0.3, 1), (1.9, 1), (3.5, 3)])
def test_a_share_of_cores_says_how_many_workers(cpu_share: float, workers: int) -> None:
    with mosrt.ScorerPool("nano", cpu_share=cpu_share) as pool:
        assert pool.stats().workers == workers


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="niceness")
def test_only_the_workers_are_nice() -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with mosrt.ScorerPool("nano", workers=1, nice=19) as pool:
        pool.score(noise(8_000), 16_000)
        children = psutil.Process().children(recursive=True)
        assert 19 in {child.nice() for child in children}
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


def test_a_worker_that_is_killed_loses_nothing() -> None:
    waveform = noise(16_000)
    with mosrt.load("nano", threads=1) as alone:
        expected = alone.score(waveform, 16_000, views=12).views
    before = {child.pid for child in psutil.Process().children()}
    with mosrt.ScorerPool("nano", workers=2) as pool:
        futures = [pool.submit((waveform, 16_000), views=12) for _ in range(6)]
        while pool.stats().completed < 1:
            time.sleep(0.001)
        (server,) = (each for each in psutil.Process().children() if each.pid not in before)
        server.children()[0].kill()
        assert [future.result(HANG_S).views for future in futures] == [expected] * 6
        workers = server.children()
        server.kill()  # what starts workers, too
        for worker in workers:
            worker.kill()
        _, alive = psutil.wait_procs(workers, HANG_S)
        assert not alive
        assert pool.score(waveform, 16_000, views=12).views == expected


FORK = """
import asyncio, os, sys
import numpy as np
import mosrt

waveform = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
pool = mosrt.ScorerPool("nano", workers=2)
scorer = mosrt.AsyncScorer("nano", workers=2).open()
if sys.argv[1] == "used":
    expected = pool.score(waveform, 16_000).views
    assert asyncio.run(scorer.score(waveform, 16_000)).views == expected
children = []
for _ in range(2):
    if not (child := os.fork()):
        found = pool.score(waveform, 16_000).views
        assert asyncio.run(scorer.score(waveform, 16_000)).views == found
        assert pool.stats().completed == 1
        assert pool.close() and asyncio.run(scorer.aclose())
        if sys.argv[1] == "used":
            assert found == expected
        os._exit(0)
    children.append(child)
assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
pool.score(waveform, 16_000)
pool.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("before", ["used", "unused"])
def test_children_of_a_fork_start_workers_of_their_own(before: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK, before]
    subprocess.run(command, check=True, timeout=HANG_S)


def test_a_process_ends_although_a_pool_is_open() -> None:
    code = (
        "import mosrt, numpy\n"
        "pool = mosrt.ScorerPool('nano', workers=2)\n"
        "for _ in range(20):\n"
        "    future = pool.submit((numpy.ones(8000, 'f4') / 9, 16000))\n"
        "print('end')\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S
    )
    assert (run.returncode, run.stdout) == (0, "end\n"), run.stderr
