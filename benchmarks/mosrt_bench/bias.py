"""Does the bench favour a place in the round? Two identical variants, timed again and again.

    python -m mosrt_bench.bias --audio clip.wav --out benchmarks/results/bias.json

Both contestants are the same bundle, each loaded for itself and anew for every repetition. A sound
95 % interval of their ratio holds 1 in at least 18 of 20 repetitions, with probability 0.92.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click

from .contestants import Contestant, open_bundle, reference_variant
from .latency import Budget, clip_of, paired_ratio, take_turns, timed
from .machine import describe
from .runs import PlainErrors, save

__all__ = ["repetition"]

_CLIP_S: Final = 1.0


def repetition(contestant: Contestant, clip: bytes, budget: Budget) -> dict[str, Any]:
    """The ratio of a contestant's time to its own, and its interval."""
    with ExitStack() as stack:
        pair = {name: stack.enter_context(contestant.load()) for name in ("first", "second")}
        taken = take_turns({name: timed(scorer, clip) for name, scorer in pair.items()}, budget)
    return paired_ratio(taken["second"].total_ms, taken["first"].total_ms)


@click.command(cls=PlainErrors)
@click.option("--bundle", default="nano", show_default=True, metavar="NAME|PATH")
@click.option(
    "--audio",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Speech, from which a clip of 1 s is made.",
)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--runs", default=50, show_default=True, type=click.IntRange(min=5))
@click.option("--repetitions", default=20, show_default=True, type=click.IntRange(min=1))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON file to write.")
def main(bundle: str, audio: Path, threads: int, runs: int, repetitions: int, out: Path) -> None:
    """Count how often the interval of two identical variants holds 1."""
    opened = open_bundle(bundle)
    contestant = Contestant(
        bundle=opened, variant=reference_variant(opened), provider="cpu", threads=threads
    )
    clip = clip_of(audio, _CLIP_S)
    with click.progressbar(range(repetitions), file=sys.stderr) as bar:
        found = [repetition(contestant, clip, Budget(runs=runs)) for _ in bar]
    held = sum(low <= 1 <= high for low, high in (row["interval_95"] for row in found))
    run = {
        "question": "how often the 95 % interval of two identical variants' ratio holds 1",
        "command": f"python -m mosrt_bench.bias --bundle {opened.manifest.name} --audio "
        f"{audio.name} --threads {threads} --runs {runs} --repetitions {repetitions}",
        "machine": describe(),
        "held": held,
        "repetitions": found,
    }
    save(run, out)
    click.echo(f"the interval holds 1 in {held} of {repetitions} repetitions")


if __name__ == "__main__":
    main()
