"""Collect the accuracy figures of a model card.

python -m mosrt_studies.figures.model_card benchmarks/results -m nano -o evaluation.json
python -m mosrt_export.nano export nano.pt --evaluation evaluation.json -o nano
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from mosrt.cli.command import output_option

__all__ = ["claims"]

Run = Mapping[str, Any]


def claims(results: Path, model: str) -> dict[str, str]:
    """Claims of a model's card and their figures, from those results that are in a folder."""
    found: dict[str, str] = {}
    for name, claim in _CLAIMS.items():
        path = results / f"{name}.json"
        if path.exists():
            for text, figures in claim(json.loads(path.read_text(encoding="utf-8"))).items():
                found[text] = ", ".join(
                    f"{_short(of, model)} {figure}" for of, figure in figures.items()
                )
    return found


def _listening(run: Run) -> dict[str, dict[str, str]]:
    agreements = run["agreement"]
    claim = (
        f"Real TTS systems in the order of listeners ({next(iter(agreements.values()))['pairs']} "
        f"pairs of {len(run['systems'])} systems, looked at {run['looks']} times during "
        "development; guessing has 0.50)"
    )
    return {
        claim: {
            name: "{:.2f} ({:.2f} to {:.2f})".format(found["concordance"], *found["interval_95"])
            for name, found in agreements.items()
        }
    }


def _ladder(run: Run) -> dict[str, dict[str, str]]:
    return {
        f"Degradations, {group}: rank correlation with severity / share below the clean clip": {
            name: f"{found['srcc']:.2f} / {found['below_clean']:.2f}"
            for name, found in by_name.items()
        }
        for group, by_name in run["overall"].items()
    }


def _order(run: Run) -> dict[str, dict[str, str]]:
    claim = (
        "Recordings above good, plain and old synthesisers, mean over "
        f"{len(run['sentences'])} sentences: comparisons in the right order"
    )
    return {
        claim: {
            name: f"{sum(verdict['holds'] for verdict in verdicts.values())} of {len(verdicts)}"
            for name, verdicts in run["order"].items()
        }
    }


def _short(name: str, model: str) -> str:
    """A domain without the name of its model; the name of another model unchanged."""
    return f"`{name.removeprefix(f'{model} ')}`" if name.startswith(f"{model} ") else name


_CLAIMS: Final[Mapping[str, Callable[[Run], dict[str, dict[str, str]]]]] = {
    "listening": _listening,
    "ladder": _ladder,
    "order": _order,
}
"""Gives the figures of each claim by model, by the name of the JSON file."""


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", "-m", required=True, metavar="NAME", help="Model of the card.")
@output_option("JSON file to write.", required=True)
def main(results: Path, model: str, output: Path) -> None:
    """Collect the accuracy figures of a model card from the folder RESULTS."""
    found = claims(results, model)
    if not found:
        raise click.ClickException(f"{results}: no listening.json, ladder.json or order.json")
    output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
