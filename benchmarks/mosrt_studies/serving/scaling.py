"""How far do worker processes scale, when one process hands out the work?

    python -m mosrt_studies.serving.scaling -o scaling.json

It measures what a task costs the process that hands it out, with tasks that do nothing, and how
long a clip takes. A simulation then gives the part of N cores that N workers keep busy: each has
one task and the next, as in `mosrt.host.workers.processes`, and the process that hands them out
does one thing at a time.
"""

from __future__ import annotations

import heapq
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

import mosrt
from mosrt.cli.command import exit_on_error, output_option
from mosrt.host.workers import ProcessWorkers
from mosrt_bench.machine import describe
from mosrt_bench.output import save
from mosrt_studies.publish import json_ready

__all__ = ["main", "utilisation"]

CORES: Final = (1, 2, 4, 8, 16, 32, 64, 128)
_SAMPLES: Final = 120_000


def utilisation(
    workers: int, *, service_s: float, send_s: float, receive_s: float, scatter: float = 0.2,
    depth: int = 2, n_tasks: int = 20_000, seed: int = 0,
) -> float:  # fmt: skip
    """The part of the time that workers work, from a simulation of events.

    Args:
        workers: Number of workers.
        service_s: Mean time that a worker takes for a task.
        send_s: Time that handing out a task takes; one at a time.
        receive_s: Time that taking a result takes; by the same process.
        scatter: Standard deviation of the logarithm of service times.
        depth: Tasks that a worker has at most.
        n_tasks: Tasks to simulate.
        seed: Seed of the service times.
    """
    chance = random.Random(seed)  # noqa: S311 - no secrets
    held = [0] * workers  # tasks that a worker has
    free_at = [0.0] * workers
    replies: list[tuple[float, int]] = []  # when a result is there, and whose
    clock = busy_s = 0.0
    sent = done = 0
    while done < n_tasks:
        worker = min(range(workers), key=held.__getitem__)
        if held[worker] < depth and not (replies and replies[0][0] <= clock and held[worker]):
            clock += send_s
            took_s = service_s * chance.lognormvariate(-(scatter**2) / 2, scatter)
            free_at[worker] = max(free_at[worker], clock) + took_s
            heapq.heappush(replies, (free_at[worker], worker))
            held[worker] += 1
            busy_s += took_s
            sent += 1
        else:
            ready, worker = heapq.heappop(replies)
            clock = max(clock, ready) + receive_s
            held[worker] -= 1
            done += 1
    return busy_s * done / sent / (workers * clock)


@dataclass(frozen=True, slots=True)
class Answer:
    """Gives the same result for every task."""

    result: Any

    def __call__(self, _: Any) -> Any:
        return self.result


def hand_out_s(task: Any, result: Any, n_tasks: int) -> float:
    """CPU time that this process needs to hand out a task and take its result."""
    workers = ProcessWorkers(Answer(result), 1)
    sent = done = 0
    used = 0.0
    while done < n_tasks:
        started = time.thread_time()
        if sent < n_tasks and workers.free():
            workers.send(sent, task)
            sent += 1
        done += len(workers.poll(None if not workers.free() or sent == n_tasks else 0))
        used += time.thread_time() - started
    workers.close()
    return used / n_tasks


@click.command()
@click.option("--model", "-m", default="nano", show_default=True, metavar="NAME|PATH")
@click.option("--tasks", default=2000, show_default=True, help="Tasks per measurement.")
@output_option("JSON file to write.", required=True)
def main(model: str, tasks: int, output: Path) -> None:
    """Measure what handing out costs, and simulate many cores."""
    clip = np.random.default_rng(0).normal(0, 0.1, _SAMPLES).astype(np.float32)
    with mosrt.load(model, threads=1, provider="cpu") as scorer:
        score = scorer.score(clip, 24_000)
        started = time.thread_time()
        for _ in range(30):
            scorer.score(clip, 24_000)
        service_s = (time.thread_time() - started) / 30
    items = {"path": "clips/a.wav", "array": (clip, 24_000)}
    cost_s = {kind: hand_out_s(item, {"overall": score}, tasks) for kind, item in items.items()}
    parts = {
        kind: {
            str(n): utilisation(n, service_s=service_s, send_s=cost / 2, receive_s=cost / 2)
            for n in CORES
        }
        for kind, cost in cost_s.items()
    }
    for kind, values in parts.items():
        click.echo(f"{kind}: {json_ready(values)}")
    result = {
        "model": model,
        "clip_ms": 1e3 * service_s,
        "hand_out_us": {kind: 1e6 * cost for kind, cost in cost_s.items()},
        "utilisation": parts,
    }
    click.echo(str(json_ready({key: result[key] for key in ("clip_ms", "hand_out_us")})))
    save({"machine": describe(), **json_ready(result)}, output)


if __name__ == "__main__":
    # So that workers find `Answer` by its module.
    from mosrt_studies.serving import scaling  # noqa: PLW0406

    with exit_on_error():
        scaling.main()
