"""What a model card says was measured, made from the raw runs.

python -m mosrt_studies.figures.card benchmarks/results --model nano --out evaluation.json
mosrt nano export --checkpoint nano.pt --evaluation evaluation.json --out nano
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

__all__ = ["claims"]

Run = dict[str, Any]


def claims(results: Path, model: str) -> dict[str, str]:
    """Claims and their figures, from those runs that are in `results`.

    Args:
        results: Folder of the runs' JSON files.
        model: Name of the model, as in "MODEL DOMAIN".
    """
    found: dict[str, str] = {}
    for name, figures in _FIGURES.items():
        path = results / f"{name}.json"
        if path.exists():
            found |= figures(json.loads(path.read_text(encoding="utf-8")), model)
    return found


def _listening(run: Run, model: str) -> dict[str, str]:
    agreements = run["agreement"]
    first = next(iter(agreements.values()))
    claim = (
        f"Real TTS systems in the order of listeners ({first['pairs']} pairs of "
        f"{len(run['systems'])} systems, looked at {run['looks']} times during development; "
        "guessing has 0.50)"
    )
    parts = []
    for name, figure in agreements.items():
        low, high = figure["interval_95"]
        parts.append(f"{_short(name, model)} {figure['concordance']:.2f} ({low:.2f} to {high:.2f})")
    return {claim: ", ".join(parts)}


def _ladder(run: Run, model: str) -> dict[str, str]:
    found = {}
    for group, by_name in run["overall"].items():
        claim = (
            f"Degradations, {group}: rank correlation with severity / share below the clean clip"
        )
        found[claim] = ", ".join(
            f"{_short(name, model)} {figures['srcc']:.2f} / {figures['below_clean']:.2f}"
            for name, figures in by_name.items()
        )
    return found


def _order(run: Run, model: str) -> dict[str, str]:
    claim = (
        "Recordings above good, plain and old synthesisers, mean over "
        f"{len(run['sentences'])} sentences: comparisons in the right order"
    )
    parts = []
    for name, verdicts in run["order"].items():
        held = sum(verdict["holds"] for verdict in verdicts.values())
        parts.append(f"{_short(name, model)} {held} of {len(verdicts)}")
    return {claim: ", ".join(parts)}


def _short(name: str, model: str) -> str:
    """A domain of the model without the model's name; another scorer's name as it is."""
    return f"`{name.removeprefix(f'{model} ')}`" if name.startswith(f"{model} ") else name


_FIGURES: Final[Mapping[str, Callable[[Run, str], dict[str, str]]]] = {
    "listening": _listening,
    "ladder": _ladder,
    "order": _order,
}


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--model", required=True, help="Whose card it is.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON file to write.")
def main(results: Path, model: str, out: Path) -> None:
    """Gather what RESULTS say of a model, for its card."""
    found = claims(results, model)
    if not found:
        raise click.ClickException(f"{results}: no runs of listening, ladder or order")
    out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
