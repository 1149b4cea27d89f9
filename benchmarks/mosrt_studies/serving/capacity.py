"""How much can a server score in process, how fast, and what happens when it gets too much?

    python -m mosrt_studies.serving.capacity -m nano -o capacity.json

Capacity is compared with loops of a single-threaded `Scorer` in as many processes as there are
workers. Both are measured in turns, so that what else the machine does hits both.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import psutil

import mosrt
from mosrt.cli.command import exit_on_error, output_option
from mosrt.host.cpu import usable_cores
from mosrt_bench.machine import describe
from mosrt_bench.output import save
from mosrt_studies.publish import json_ready

__all__ = ["main"]

_RATE_HZ = 24_000
_LAG_EVERY_S = 0.005


def _clip(seconds: float) -> npt.NDArray[np.float32]:
    noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * _RATE_HZ))
    return noise.astype(np.float32)


def _loop(model: str, clip_s: float, seconds: float, barrier: Any, rates: Any) -> None:
    clip = _clip(clip_s)
    with mosrt.load(model, threads=1, provider="cpu") as scorer:
        scorer.score(clip, _RATE_HZ)
        barrier.wait()
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            scorer.score(clip, _RATE_HZ)
            count += 1
        rates.put(count / (time.perf_counter() - started))


def loops_hz(model: str, workers: int, clip_s: float, seconds: float) -> float:
    """Clips per second of single-threaded loops in processes of their own, together."""
    context = multiprocessing.get_context("spawn")
    barrier, rates = context.Barrier(workers), context.Queue()
    arguments = (model, clip_s, seconds, barrier, rates)
    processes = [context.Process(target=_loop, args=arguments) for _ in range(workers)]
    for process in processes:
        process.start()
    total = sum(rates.get() for _ in processes)
    for process in processes:
        process.join()
    return float(total)


async def capacity_hz(scorer: mosrt.AsyncScorer, clip_s: float, seconds: float) -> float:
    """Clips per second with so many callers that no worker waits."""
    clip, ends, count = _clip(clip_s), time.perf_counter() + seconds, 0

    async def caller() -> None:
        nonlocal count
        while time.perf_counter() < ends:
            await scorer.score(clip, _RATE_HZ)
            count += time.perf_counter() < ends

    await asyncio.gather(*(caller() for _ in range(12 * scorer.stats().workers)))
    return count / seconds


def many_hz(scorer: mosrt.Scorer, clip_s: float, seconds: float) -> float:
    """Clips per second of `iter_scores`, after its workers have started."""
    clip = _clip(clip_s)

    def clips() -> Iterator[tuple[npt.NDArray[np.float32], float]]:
        while time.perf_counter() < ends:
            yield clip, _RATE_HZ

    ends = time.perf_counter() + 4.0
    for _ in scorer.iter_scores(clips()):
        pass
    started = time.perf_counter()
    ends = started + seconds
    count = sum(1 for _ in scorer.iter_scores(clips()))
    return count / (time.perf_counter() - started)


async def _lags(lags: list[float]) -> None:
    """How much later than asked the event loop goes on."""
    while True:
        started = time.perf_counter()
        await asyncio.sleep(_LAG_EVERY_S)
        lags.append(time.perf_counter() - started - _LAG_EVERY_S)


async def offer(
    scorer: mosrt.AsyncScorer, rate_hz: float, clip_s: float, seconds: float
) -> dict[str, Any]:
    """Requests at random times at a rate, whether or not earlier ones have been answered."""
    clip, chance = _clip(clip_s), random.Random(0)  # noqa: S311 - times of arrival
    waits: list[float] = []
    refused: list[float] = []
    lags: list[float] = []

    async def call() -> None:
        started = time.perf_counter()
        try:
            await scorer.score(clip, _RATE_HZ)
        except mosrt.Overloaded:
            refused.append(time.perf_counter() - started)
        else:
            waits.append(time.perf_counter() - started)

    process = psutil.Process()
    before = process.memory_info().rss
    meter = asyncio.ensure_future(_lags(lags))
    started = due = time.perf_counter()
    calls = []
    while due < started + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        calls.append(asyncio.ensure_future(call()))
        due += chance.expovariate(rate_hz)
    in_time = len(waits)
    await asyncio.gather(*calls)
    meter.cancel()
    recovery = time.perf_counter()
    await scorer.score(clip, _RATE_HZ)
    return {
        "offered_hz": len(calls) / seconds,
        "completed_hz": in_time / seconds,
        "refused": len(refused) / len(calls),
        "latency_ms": _quantiles(waits),
        "refusal_ms": _quantiles(refused),
        "loop_lag_ms": _quantiles(lags),
        "rss_growth": process.memory_info().rss / before - 1,
        "first_after_ms": 1e3 * (time.perf_counter() - recovery),
    }


def _quantiles(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    values = np.quantile(seconds, [0.5, 0.95, 0.99])
    return dict(zip(("p50", "p95", "p99"), (1e3 * values).tolist(), strict=True))


def _run(scorer: mosrt.AsyncScorer, call: Callable[[mosrt.AsyncScorer], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        await scorer.start()
        return await call(scorer)

    return asyncio.run(main())


@click.command()
@click.option("--model", "-m", default="nano", show_default=True, metavar="NAME|PATH")
@click.option("--workers", type=int, help="Workers, and loops. [default: all cores]")
@click.option("--clip", "clip_s", default=5.0, show_default=True, help="Seconds of a clip.")
@click.option("--seconds", default=20.0, show_default=True, help="Seconds of each measurement.")
@click.option("--rounds", default=5, show_default=True, help="Measurements of capacity.")
@click.option("--overload-seconds", default=60.0, show_default=True)
@output_option("JSON file to write.", required=True)
def main(
    model: str, workers: int | None, clip_s: float, seconds: float, rounds: int,
    overload_seconds: float, output: Path,
) -> None:  # fmt: skip
    """Measure capacity, latency under load, and overload."""
    workers = workers or usable_cores()
    scorer = mosrt.AsyncScorer(model, provider="cpu", workers=workers, max_queue=16 * workers)
    turns = []
    with mosrt.load(model, provider="cpu", threads=max(2, workers)) as many:
        for _ in range(rounds):
            turns.append({
                "loops_hz": loops_hz(model, workers, clip_s, seconds),
                "async_hz": _run(scorer, partial(capacity_hz, clip_s=clip_s, seconds=seconds)),
                "many_hz": many_hz(many, clip_s, seconds),
            })  # fmt: skip
            click.echo(turns[-1])
    capacity = statistics.median(turn["async_hz"] for turn in turns)
    result: dict[str, Any] = {"model": model, "workers": workers, "clip_s": clip_s, "turns": turns}
    for name in ("async_hz", "many_hz"):
        ratios = sorted(turn[name] / turn["loops_hz"] for turn in turns)
        result[f"{name}_ratio"] = [ratios[0], statistics.median(ratios), ratios[-1]]
    for load, span_s in ((0.3, seconds), (0.6, seconds), (0.9, seconds), (3.0, overload_seconds)):
        found = _run(scorer, partial(offer, rate_hz=load * capacity, clip_s=clip_s, seconds=span_s))
        result[f"load_{load:g}"] = found
        click.echo(f"{load:g} of capacity: {json_ready(found)}")
    result["goodput_ratio"] = result["load_3"]["completed_hz"] / capacity
    asyncio.run(scorer.aclose())
    save({"machine": describe(), **json_ready(result)}, output)


if __name__ == "__main__":
    with exit_on_error():
        main()
