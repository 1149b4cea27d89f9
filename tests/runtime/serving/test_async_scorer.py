"""Scoring inside an event loop."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import mosrt
from tests.conftest import HANG_S, noise

Waveform = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def alone() -> Iterator[mosrt.Scorer]:
    with mosrt.load("nano", threads=1) as scorer:
        yield scorer


def of(lengths: tuple[int, ...]) -> list[Waveform]:
    return [noise(n) for n in lengths]


def test_scores_are_those_of_a_scorer(alone: mosrt.Scorer, clips: list[Path]) -> None:
    waveforms = of((8_000, 40_000, 100_000, 16_000))

    async def main() -> list[mosrt.Score]:
        async with mosrt.AsyncScorer("nano", workers=3) as scorer:
            return await asyncio.gather(
                *(scorer.score(waveform, 16_000) for waveform in waveforms),
                *(scorer.score_file(clip, views=2) for clip in clips),
                scorer.score_file(clips[0].read_bytes(), domain="bvcc"),
                scorer.score_file(io.BytesIO(clips[0].read_bytes()), plan="grid"),
            )

    found = asyncio.run(main())
    expected = [alone.score(waveform, 16_000) for waveform in waveforms]
    expected += [alone.score_file(clip, views=2) for clip in clips]
    expected += [alone.score_file(clips[0], domain="bvcc"), alone.score_file(clips[0])]
    for score, reference in zip(found, expected, strict=True):
        assert (score.views, score.domains, score.domain, score.flags) == (
            reference.views, reference.domains, reference.domain, reference.flags,
        )  # fmt: skip


def test_the_model_is_known(alone: mosrt.Scorer) -> None:
    async def main() -> None:
        scorer = mosrt.AsyncScorer("nano", workers=1)
        await scorer.start()
        info = scorer.info
        assert (info.name, info.variant, info.provider) == ("nano", "fp32", "cpu")
        assert (info.digest, info.domains) == (alone.digest, alone.domains)
        assert len(info.digest) == 64
        await scorer.aclose()

    asyncio.run(main())


def test_too_many_calls_are_refused_and_the_others_are_served() -> None:
    waveform = noise(16_000)

    async def main() -> None:
        async with mosrt.AsyncScorer("nano", workers=1, max_queue=3) as scorer:
            calls = [scorer.score(waveform, 16_000) for _ in range(20)]
            results = await asyncio.gather(*calls, return_exceptions=True)
            scores = [result for result in results if isinstance(result, mosrt.Score)]
            refused = [result for result in results if isinstance(result, mosrt.Overloaded)]
            assert len(scores) + len(refused) == 20
            assert 3 <= len(scores) < 20
            assert all(error.retry_after_s > 0 for error in refused)
            stats = scorer.stats()
            assert (stats.completed, stats.refused) == (len(scores), len(refused))
            # The load is over.
            assert (await scorer.score(waveform, 16_000)).n_views

    asyncio.run(main())


def test_a_deadline_in_the_queue_ends_the_wait() -> None:
    long, short = noise(60 * 16_000), noise(8_000)

    async def main() -> None:
        async with mosrt.AsyncScorer("nano", workers=1) as scorer:
            running = asyncio.ensure_future(scorer.score(long, 16_000, views=90))
            while not scorer.stats().in_flight:
                await asyncio.sleep(0.001)
            with pytest.raises(mosrt.Overloaded):
                await scorer.score(short, 16_000, deadline_s=0.1)
            assert scorer.stats().in_flight == 1
            await running

    asyncio.run(main())


def test_cancellation_frees_the_place() -> None:
    waveform = noise(16_000)

    async def main() -> None:
        async with mosrt.AsyncScorer("nano", workers=1, max_queue=1) as scorer:
            running = asyncio.ensure_future(scorer.score(waveform, 16_000, views=50))
            while not scorer.stats().in_flight:
                await asyncio.sleep(0.001)
            waiting = asyncio.ensure_future(scorer.score(waveform, 16_000))
            await asyncio.sleep(0)
            assert scorer.stats().queued == 1
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert scorer.stats().queued == 0
            other = asyncio.ensure_future(scorer.score(waveform, 16_000))
            running.cancel()  # its work goes on, for nobody
            assert (await other).n_views == 1
            assert scorer.stats().cancelled == 2

    asyncio.run(main())


def test_errors_reach_the_caller(tmp_path: Path) -> None:
    async def main() -> None:
        async with mosrt.AsyncScorer("nano", workers=1, on_bad_audio="error") as scorer:
            with pytest.raises(mosrt.AudioError, match="unreadable|No such file"):
                await scorer.score_file(tmp_path / "none.wav")
            with pytest.raises(mosrt.DomainError):
                await scorer.score(noise(8_000), 16_000, domain="none")
            with pytest.raises(mosrt.PlanError):
                await scorer.score(noise(8_000), 16_000, plan="nowhere")
            with pytest.raises(ValueError, match="priority must be"):
                await scorer.score(noise(8_000), 16_000, priority="urgent")  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="deadline_s must be above 0"):
                await scorer.score(noise(8_000), 16_000, deadline_s=0)
            assert scorer.stats().failed == 1

    asyncio.run(main())


@pytest.mark.parametrize("drain", [True, False])
def test_close_with_work_in_flight(drain: bool) -> None:
    waveform = noise(16_000)

    async def main() -> None:
        scorer = mosrt.AsyncScorer("nano", workers=1)
        await scorer.start()
        calls = [asyncio.ensure_future(scorer.score(waveform, 16_000, views=9)) for _ in range(6)]
        while not scorer.stats().in_flight:
            await asyncio.sleep(0.001)
        assert await scorer.aclose(drain=drain)
        results = await asyncio.gather(*calls, return_exceptions=True)
        kinds = {type(result) for result in results}
        assert kinds == ({mosrt.Score} if drain else {mosrt.Score, mosrt.ClosedError})
        assert isinstance(results[0], mosrt.Score)
        with pytest.raises(mosrt.ClosedError):
            await scorer.score(waveform, 16_000)
        assert await scorer.aclose()

    asyncio.run(main())


def test_best_of_several(alone: mosrt.Scorer, clips: list[Path]) -> None:
    files = clips[:5]
    expected = [alone.score_file(file).mos for file in files]
    best = max(expected)

    async def main() -> None:
        async with mosrt.AsyncScorer("nano", workers=2) as scorer:
            every = await scorer.best_of(files)
            assert every.index == expected.index(best)
            assert every.score.mos == best
            assert [score and score.mos for score in every.scores] == expected
            # Good enough is the first that is, whatever comes after it.
            enough = await scorer.best_of(files, at_least=expected[1])
            first = next(i for i, mos in enumerate(expected) if mos >= expected[1])
            assert enough.index == first
            assert [score and score.mos for score in enough.scores] == (
                expected[: first + 1] + [None] * (len(files) - first - 1)
            )
            none = await scorer.best_of(files, at_least=6.0)
            assert (none.index, len(none.scores)) == (every.index, len(files))
            with pytest.raises(ValueError, match="at least one recording"):
                await scorer.best_of([])

    asyncio.run(main())


def test_candidates_are_made_only_as_far_as_needed(alone: mosrt.Scorer) -> None:
    waveforms = of((20_000, 30_000, 40_000))
    good = sorted(alone.score(waveform, 16_000).mos for waveform in waveforms)[0]
    made = 0

    async def candidates() -> AsyncIterator[Waveform]:
        nonlocal made
        for waveform in waveforms:
            made += 1
            yield waveform

    async def main() -> mosrt.Best:
        async with mosrt.AsyncScorer("nano", workers=2) as scorer:
            return await scorer.best_of(candidates(), sample_rate=16_000, at_least=good)

    best = asyncio.run(main())
    assert (best.index, made, len(best.scores)) == (0, 1, 1)


def test_several_event_loops_share_one_scorer(alone: mosrt.Scorer) -> None:
    expected = alone.score(noise(8_000), 16_000).views
    scorer = mosrt.AsyncScorer("nano", workers=1).open()
    for _ in range(2):
        assert asyncio.run(scorer.score(noise(8_000), 16_000)).views == expected
    asyncio.run(scorer.aclose())


def test_uvloop(alone: mosrt.Scorer) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> mosrt.Score:
        async with mosrt.AsyncScorer("nano", workers=1) as scorer:
            return await asyncio.wait_for(scorer.score(noise(8_000), 16_000), HANG_S)

    loop = uvloop.new_event_loop()
    try:
        assert loop.run_until_complete(main()).views == alone.score(noise(8_000), 16_000).views
    finally:
        loop.close()
