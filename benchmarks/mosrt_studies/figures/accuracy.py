"""Render how accurate scores are, for RESULTS.md and for a model card.

python -m mosrt_studies.figures.accuracy benchmarks/results -m nano -o evaluation.json
python -m mosrt_export.nano export nano.pt --evaluation evaluation.json -o nano
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from mosrt.cli.command import output_option
from mosrt_bench.report.writer import markdown_table

__all__ = ["SECTIONS", "claims", "ranking_table"]

Run = Mapping[str, Any]


def _listening(run: Run) -> list[str]:
    first = next(iter(run["agreement"].values()))
    rows = []
    for name, figure in run["agreement"].items():
        low, high = figure["interval_95"]
        wide = figure["concordance_wide"]
        rows.append(
            (
                _bold_default(name, run),
                f"{figure['concordance']:.2f}",
                f"{low:.2f} to {high:.2f}",
                "-" if wide is None else f"{wide:.2f}",
            )
        )
    return [
        "How often does a model put two real TTS systems in the order of the listeners' ratings? "
        f"The table shows the share of pairs in the right order: {len(run['systems'])} systems of "
        f"{len(first['tests'])} listening tests, {first['pairs']} pairs whose MOS differ by at "
        "least 0.15. Guessing gives 0.50. Embedded weights; the default domain is bold. These "
        f"systems were evaluated {run['looks']} times while the model was developed, so the "
        "figures are somewhat optimistic.",
        "",
        *markdown_table(
            ("model, domain", "pairs in order", "95 % interval", "pairs 0.40 MOS apart"), rows
        ),
    ]


def _ladder(run: Run) -> list[str]:
    overall = run["overall"]
    kinds = ", ".join(next(iter(run["kinds"].values())))
    rows = [
        (
            _bold_default(name, run),
            *(f"{group[name]['srcc']:.2f} / {group[name]['below_clean']:.2f}"
              for group in overall.values()),
        )
        for name in next(iter(overall.values()))
    ]  # fmt: skip
    return [
        "Does a score fall as a clip is degraded more? Each cell shows the rank correlation of "
        "severity and falling score on one clip, averaged over clips and kinds of degradation, "
        "and the share of degraded clips that score below their clean version. Kinds: "
        f"{kinds}. Embedded weights; none of the clips was used for training.",
        "",
        *markdown_table(("model, domain", *overall), rows),
    ]


def _order(run: Run) -> list[str]:
    readers = list(next(iter(run["means"].values())))
    rows = []
    for name, means in run["means"].items():
        verdicts = run["order"][name].values()
        held = sum(verdict["holds"] for verdict in verdicts)
        rows.append(
            (
                _bold_default(name, run),
                *(f"{means[reader]['mean']:.2f}" for reader in readers),
                f"{held} of {len(verdicts)}",
            )
        )
    return [
        "Does a model rank recordings and synthesisers as any listener would? The table shows the "
        f"mean score over {len(run['sentences'])} sentences and the number of comparisons in the "
        f"right order ({'; '.join(next(iter(run['order'].values())))}). Embedded weights.",
        "",
        *markdown_table(("model, domain", *readers, "right"), rows),
    ]


def _ranking(run: Run) -> list[str]:
    return [
        f"Which measure of `{run['model']}` follows the severity of a degradation? The table shows "
        f"the rank correlation of severity and measure on one clip, averaged over {run['clips']} "
        f"held-out clips of {run['seconds']:g} s. A star marks measures whose mean over clips "
        "grows with every step. Embedded weights.",
        "",
        *ranking_table(run),
    ]


def ranking_table(run: Run) -> list[str]:
    """Markdown lines: a row per measure, a column per degradation, and the mean."""
    kinds = run["degradations"]
    rows = []
    for measure in next(iter(kinds.values())):
        figures = [by_measure[measure] for by_measure in kinds.values()]
        mean = np.mean([figure["per_clip"] for figure in figures])
        cells = (f"{f['per_clip']:.2f}{'*' * f['mean_is_monotone']}" for f in figures)
        rows.append((measure, *cells, f"{mean:.2f}"))
    return markdown_table(("measure", *kinds, "mean"), rows)


def _bold_default(name: str, run: Run) -> str:
    return f"**{name}**" if name in run["defaults"] else name


SECTIONS: Final[Mapping[str, tuple[str, Callable[[Run], list[str]]]]] = {
    "listening": ("Agreement with listeners", _listening),
    "ladder": ("Scores and the severity of degradations", _ladder),
    "order": ("Order of recordings and synthesisers", _order),
    "uncertainty_ranking": ("Uncertainty and the severity of degradations", _ranking),
}
"""Heading and renderer by the name of the JSON file."""


def claims(results: Path, model: str) -> dict[str, str]:
    """Claims of a model card and their figures, from those results that are in a folder.

    Args:
        results: Folder of the raw results.
        model: Name of the model.
    """
    found: dict[str, str] = {}
    for name, claim in _CLAIMS.items():
        path = results / f"{name}.json"
        if path.exists():
            found |= claim(json.loads(path.read_text(encoding="utf-8")), model)
    return found


def _listening_claim(run: Run, model: str) -> dict[str, str]:
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


def _ladder_claim(run: Run, model: str) -> dict[str, str]:
    return {
        f"Degradations, {group}: rank correlation with severity / share below the clean clip":
        ", ".join(
            f"{_short(name, model)} {figures['srcc']:.2f} / {figures['below_clean']:.2f}"
            for name, figures in by_name.items()
        )
        for group, by_name in run["overall"].items()
    }  # fmt: skip


def _order_claim(run: Run, model: str) -> dict[str, str]:
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
    """A domain without the name of its model; the name of another model unchanged."""
    return f"`{name.removeprefix(f'{model} ')}`" if name.startswith(f"{model} ") else name


_CLAIMS: Final[Mapping[str, Callable[[Run, str], dict[str, str]]]] = {
    "listening": _listening_claim,
    "ladder": _ladder_claim,
    "order": _order_claim,
}


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
