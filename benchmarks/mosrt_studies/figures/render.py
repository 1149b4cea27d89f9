"""Render the raw results as `benchmarks/RESULTS.md`, and a short table of them for README.md.

    python -m mosrt_studies.figures.render [--check]

Reads benchmarks/results/*.json and writes both files; a test fails when they disagree. Each result
has a Jinja template in `templates/`, whose variables are the entries of the JSON file. Plots of
them are written as SVG files beside the results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
import jinja2

from mosrt.cli.command import ExitStatus
from mosrt_bench.report.sections import interval_cell, number

__all__ = ["read_result", "readme_table", "render", "replaced", "section"]

Run = Mapping[str, Any]
"""A result as its JSON file has it, or a part of one."""

BEGIN: Final = "<!-- results: begin -->"
END: Final = "<!-- results: end -->"
_ROOT: Final = Path(__file__).parents[3]

_SECTIONS: Final = (
    ("accuracy*", "comparison"),
    ("cost", "cost"),
    ("adapt", "adapt"),
    ("drift", "drift"),
    ("variants_*", "variants"),
    ("distillation", "distillation"),
    ("distilled", "distilled"),
    ("bench_utmosv2", "drift"),
    ("calibration_*", "mixed_precision"),
    ("bench_*", "bench"),
    ("uncertainty_speed", "uncertainty_speed"),
    ("long_recording", "long_recording"),
    ("drift_detection", "drift_detection"),
    ("architectures", "architectures"),
    ("faults_fuzz", "faults_fuzz"),
    ("faults_kill", "faults_kill"),
)
"""Name or pattern of the JSON files, and their template, in the order of the page."""

_WEIGHTS: Final = {
    "distillmos": "Published weights.",
    "nano": "Embedded weights.",
    "nano-uncertainty": "Embedded weights.",
    "utmosv2-distilled": "Distilled weights.",
}
"""Models with trained weights, and what kind of weights they are."""


def render(results: Path) -> str:
    """RESULTS.md from a folder of raw results; sections whose file is missing are left out."""
    sections = {}
    for pattern, template in _SECTIONS:
        for path in sorted(results.glob(f"{pattern}.json")):
            run = read_result(results, path.stem)
            heading, _, text = section(template, run).partition("\n")
            source = section("provenance", {**run, "name": path.stem})
            sections[heading.removeprefix("## ")] = f"{text.lstrip()}\n\n{source}"
    return section("results", {"sections": sections}) + "\n"


def section(template: str, values: Mapping[str, Any]) -> str:
    """A template filled with values: for the section of a result, those of its JSON file."""
    return _ENVIRONMENT.get_template(f"{template}.md.j2").render(values, report=values).strip()


def readme_table(results: Path) -> str:
    """A short table: agreement with listeners, drift and cost of the models of the cost study.

    Args:
        results: Folder of the raw results. A cell whose result is missing is a dash.
    """
    agreement: dict[str, Any] = {}
    for path in sorted(results.glob("accuracy*.json")):
        tests = read_result(results, path.stem).get("listening", {})
        agreement |= next(iter(tests.values()))["agreement"] if tests else {}
    bundles = [
        bundle
        for path in sorted(results.glob("variants_*.json"))
        for bundle in read_result(results, path.stem)["bundles"]
    ]
    drifts = {
        bundle["name"]: {
            name: variant["declared_drift"] for name, variant in bundle["variants"].items()
        }
        for bundle in bundles
    }
    cost = read_result(results, "cost")
    values = {"agreement": agreement, "drifts": drifts, "processes": {}, "timings": {}, **cost}
    return section("readme", values)


def replaced(readme: str, table: str) -> str:
    """README's text with a table between the markers of results.

    Raises:
        ValueError: A marker is missing.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the markers {BEGIN} and {END} are missing")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def read_result(results: Path, name: str) -> dict[str, Any]:
    """A result; empty where its file is missing."""
    path = results / f"{name}.json"
    run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return run


def _anchor(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _header(cells: Sequence[str]) -> str:
    return f"{_row(cells)}\n{'|---' * len(cells)}|"


def _bold(name: str, defaults: Sequence[str]) -> str:
    return f"**{name}**" if name in defaults else name


def _milliseconds(value: float, like: float | None = None) -> str:
    """A time in ms, with a decimal if it, or the time that it stands beside, is below 100."""
    return f"{value:.{0 if (value if like is None else like) >= 100 else 1}f} ms"


def _speed_up(ratio: Run | None) -> str:
    """The speed-up of a ratio of times, with its interval; a dash where there is none."""
    if ratio is None:
        return "-"
    low, high = ratio["interval_95"]
    return f"**{1 / ratio['ratio']:.2f}** ({interval_cell((1 / high, 1 / low), 2)})"


def _declared(drift: Run) -> dict[str, str]:
    """Mean, 95th percentile and maximum of a drift that a bundle declares, and the unit."""
    what, how, unit = (
        ("mos", "abs", "MOS") if "mos_mean_abs" in drift else ("uncertainty", "rel", "relative")
    )
    names = {name for name in ("mean", "p95", "max") if f"{what}_{name}_{how}" in drift}
    return {"unit": unit, **{name: f"{drift[f'{what}_{name}_{how}']:.4f}" for name in names}}


def _by_folder(report: Run) -> dict[str, dict[str, list[float]]]:
    """Absolute differences from the reference's default score, by folder of the clips and name."""
    (bundle,) = report["bundles"]
    domain, reference = bundle["default_domain"], report["scores"][bundle["reference"]]
    found: dict[str, dict[str, list[float]]] = {}
    for name, scores in report["scores"].items():
        if name != bundle["reference"]:
            for clip, of_domain in scores.items():
                by_name = found.setdefault(clip.partition("/")[0], {})
                difference = abs(of_domain[domain] - reference[clip][domain])
                by_name.setdefault(name, []).append(difference)
    return found


def _movement(moved: Run) -> str:
    """Mean and largest movement of a score, bold where it is too far, and the share flagged."""
    cell = f"{moved['mean_abs']:.2f} / {moved['max_abs']:.2f}"
    cell = cell if moved["holds"] else f"**{cell}**"
    return f"{cell}, {moved['flagged']:.0%} flagged" if moved["flagged"] else cell


def _drift_cells(row: Run) -> list[str]:
    """Mean, maximum and rank correlation of a row of a report's parity."""
    if row["is_reference"]:
        return ["reference", "", ""]
    if row.get("mae") is None:
        return ["-", "-", "- (FAILS)"]
    mean, largest = (_small(row[key] / row["scale"]) for key in ("mae", "max_abs"))
    unit, verdict = "" if row["scale"] == 1.0 else " relative", "" if row["passed"] else " (FAILS)"
    return [f"{mean}{unit}", largest, f"{number(row['srcc'], 4)}{verdict}"]


def _delay_cells(row: Run) -> list[str]:
    """Median and 90th percentile of a delay in clips, by statistic, and the median in hours."""

    def clips(delay: Run) -> str:
        median, p90 = (number(delay[name], 0) for name in ("median", "p90"))
        return median if delay["median"] is None else f"{median} ({p90})"

    hours = row["either"]["median_hours"]
    shown = "-" if hours is None else f"{hours:.0f} h" if hours >= 10 else f"{hours:.2g} h"
    return [*(clips(row[statistic]) for statistic in ("mean", "p5", "either")), shown]


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}" if value < 5e-4 else f"{value:.4f}"


_ENVIRONMENT: Final = jinja2.Environment(
    loader=jinja2.PackageLoader(__package__),
    autoescape=jinja2.select_autoescape(),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.globals["weights"] = _WEIGHTS
_ENVIRONMENT.filters |= {
    "anchor": _anchor,
    "by_folder": _by_folder,
    "before_colon": lambda text: text.partition(":")[0],
    "bold": _bold,
    "declared": _declared,
    "delay_cells": _delay_cells,
    "drift_cells": _drift_cells,
    "entries": lambda mapping, key: [value[key] for value in mapping.values()],
    "fixed": lambda value, digits=2: number(value, digits),
    "header": _header,
    "interval": lambda bounds, digits=2: interval_cell(bounds, digits),
    "mean_and_max": lambda values: f"{sum(values) / len(values):.4f} / {max(values):.3f}",
    "movement": _movement,
    "ms": _milliseconds,
    "row": _row,
    "speed_up": _speed_up,
}


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a file is out of date.")
def main(check: bool) -> None:
    """Write benchmarks/RESULTS.md and the results table of README.md."""
    from .plots import PLOTS, draw  # noqa: PLC0415 - matplotlib

    results, readme = _ROOT / "benchmarks" / "results", _ROOT / "README.md"
    for name, panels in PLOTS.items():
        if not check and (run := read_result(results, name)):
            draw(panels(run), results / f"{name}.svg")
    table = replaced(readme.read_text(encoding="utf-8"), readme_table(results))
    for path, text in ((_ROOT / "benchmarks" / "RESULTS.md", render(results)), (readme, table)):
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            click.echo(f"{path.name}: out of date" if check else f"{path.name}: written")
            if check:
                raise click.exceptions.Exit(ExitStatus.NO)
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
