"""Kills every command that writes at many random moments and prints a table.

nox -s faults -- kill --moments 50 -o kill.json
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import click

from mosrt_bench.machine import describe

from .commands import COMMANDS
from .harness import kill_at_random_moments


@click.command()
@click.option("--moments", default=50, show_default=True, help="Moments for each command.")
@click.option("--seed", default=0, show_default=True, help="Seed of the moments.")
@click.option("--command", "names", multiple=True, help="Only this command; repeat for several.")
@click.option("-o", "--output", type=Path, help="Write the table as JSON, too.")
def kill(moments: int, seed: int, names: tuple[str, ...], output: Path | None) -> None:
    """Kill every command that writes at random moments; its target must be old or new."""
    outcomes = []
    for command in COMMANDS:
        if names and command.name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            outcome = kill_at_random_moments(command, Path(folder), moments=moments, seed=seed)
        outcomes.append(outcome)
        click.echo(
            f"{outcome.command:16} {outcome.changes:4} changes  old {outcome.old:3}  "
            f"new {outcome.new:3}  half {len(outcome.half)}  left over {len(outcome.left_over)}"
        )
        for line in (outcome.half + outcome.left_over)[:5]:
            click.echo(f"    {line}")
    if output:
        result = {
            "command": f"nox -s faults -- kill {' '.join(sys.argv[1:])}".replace(
                str(output), output.name
            ),
            "machine": describe(),
            "moments": moments,
            "commands": [dataclasses.asdict(each) for each in outcomes],
        }
        output.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(any(each.half or each.left_over for each in outcomes))


if __name__ == "__main__":
    kill()
