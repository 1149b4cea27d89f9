"""Fuzzes for as long as you like.

nox -s faults -- fuzz --minutes 60 -o fuzz.json
"""

import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from mosrt_bench.machine import describe

from .runner import Report, fuzz
from .targets import TARGETS


@click.command()
@click.option("--minutes", default=10.0, show_default=True, help="Time for each target.")
@click.option("--count", default=10**9, help="Most inputs for each target.")
@click.option("--target", "names", multiple=True, type=click.Choice(list(TARGETS)))
@click.option("--seed", default=0, show_default=True, help="Seed of the inputs.")
@click.option("--jobs", default=2, show_default=True, help="Targets at the same time.")
@click.option("--show", type=int, help="Write the input of this number to standard output.")
@click.option("-o", "--output", type=Path, help="Write the counts as JSON, too.")
def main(
    minutes: float,
    count: int,
    names: tuple[str, ...],
    seed: int,
    jobs: int,
    show: int | None,
    output: Path | None,
) -> None:
    """Give hostile inputs to everything that reads; report crashes, hangs and unhandled errors."""
    names = names or tuple(TARGETS)
    if show is not None:
        with TemporaryDirectory() as folder:
            target = TARGETS[names[0]](Path(folder))
            data = target.make(random.Random(f"{names[0]} {seed} {show}"))
        sys.stdout.buffer.write(data)
        return
    reports: list[Report] = []
    with ThreadPoolExecutor(jobs) as pool:
        run = partial(fuzz, count=count, seconds=60 * minutes, seed=seed)
        for report in pool.map(run, names):
            reports.append(report)
            click.echo(
                f"{report.target:10} {report.inputs:9} inputs ({report.refused} refused) in "
                f"{report.seconds:.0f} s: {len(report.crashes)} crashes, {len(report.hangs)} "
                f"hangs, {len(report.unhandled)} unhandled, {len(report.printed)} printed"
            )
            for finding in [*report.findings[:5], *filter(None, [report.printed[:300]])]:
                click.echo("    " + finding.replace("\\n", "\n    "))
    if output:
        result = {
            "command": f"nox -s faults -- fuzz {' '.join(sys.argv[1:])}".replace(
                str(output), output.name
            ),
            "machine": describe(),
            "targets": [report.to_dict() for report in reports],
        }
        output.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(any(report.findings for report in reports))


if __name__ == "__main__":
    main()
