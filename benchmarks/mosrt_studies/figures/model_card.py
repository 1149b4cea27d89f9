"""Collect the accuracy figures of a model card.

python -m mosrt_studies.figures.model_card benchmarks/results -m nano -o evaluation.json
mosrt distill TEACHER... --recipe nano --evaluation evaluation.json --force -o nano
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mosrt.cli.command import output_option

from .render import read_result

__all__ = ["claims"]


def claims(results: Path, model: str) -> dict[str, str]:
    """Claims of a model's card and their figures, from those results that are in a folder."""

    def figures(template: str, found: Mapping[str, Mapping[str, Any]]) -> str:
        """The figures of the model's domains, without its name, and of other models."""
        short = {name: name.removeprefix(f"{model} ") for name in found}
        return ", ".join(
            f"{name if short[name] == name else f'`{short[name]}`'} {template.format(**of)}"
            for name, of in found.items()
        )

    made: dict[str, str] = {}
    run: dict[str, Any] = {}
    for path in sorted(results.glob("accuracy*.json")):
        found = read_result(results, path.stem)
        if any(name.startswith(f"{model} ") for name in found["defaults"]):
            run |= found
    for tests, listening in run.get("listening", {}).items():
        agreement = listening["agreement"]
        pairs, systems = next(iter(agreement.values()))["pairs"], len(listening["systems"])
        claim = (
            f"Real systems of {tests} in the order of listeners ({pairs} pairs of {systems} "
            f"systems, looked at {run['looks'][tests]} times during development; guessing has "
            "0.50)"
        )
        interval = "({interval_95_tests[0]:.2f} to {interval_95_tests[1]:.2f})"
        made[claim] = figures(f"{{concordance:.2f}} {interval}", agreement)
    for group, found in run.get("ladder", {}).get("overall", {}).items():
        claim = (
            f"Degradations, {group}: rank correlation with severity / share below the clean clip"
        )
        made[claim] = figures("{srcc:.2f} / {below_clean:.2f}", found)
    if order := run.get("order"):
        claim = (
            "Recordings above good, plain and old synthesisers, mean over "
            f"{len(order['sentences'])} sentences: comparisons in the right order"
        )
        right = {
            name: {"right": sum(verdict["holds"] for verdict in of.values()), "all": len(of)}
            for name, of in order["order"].items()
        }
        made[claim] = figures("{right} of {all}", right)
    return made


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", "-m", required=True, metavar="NAME", help="Model of the card.")
@output_option("JSON file to write.", required=True)
def main(results: Path, model: str, output: Path) -> None:
    """Collect the accuracy figures of a model card from the folder RESULTS."""
    found = claims(results, model)
    if not found:
        raise click.ClickException(f"{results}: no accuracy*.json of {model}")
    output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
