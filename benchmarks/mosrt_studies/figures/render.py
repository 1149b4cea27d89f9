"""The README's figures, made from the raw runs.

    python -m mosrt_studies.figures.render benchmarks/results README.md

rewrites what stands between the README's markers; a test fails when the two disagree.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, Final

import click

from mosrt_bench.variants_figures import variants_section

from .bench import bench_sections
from .calibration import calibration_section
from .drift import drift_section
from .embedded import embedded_sections
from .uncertainty import uncertainty_sections

__all__ = ["render", "replaced"]

BEGIN: Final = "<!-- figures: begin -->"
END: Final = "<!-- figures: end -->"
_PREDICTIONS: Final = {
    "end_to_end_reference": "as the public code predicts: crops mixed, 16 spectrograms",
    "end_to_end_grid": "as mosrt predicts: crops not mixed, 8 spectrograms",
}


def render(results: Path) -> str:
    """The figures as Markdown, from the JSON files in `results`."""
    front_end = _read(results / "front_end.json")
    lines = [
        f"Front end: the {front_end['images']} images of one view, dB and resize included.",
        "",
        "| contestant | median | 95 % interval | times as fast |",
        "|---|---|---|---|",
    ]
    for name, times in front_end["timings"].items():
        faster = front_end["faster_than_librosa"].get(name)
        lines.append(f"| {name} | {_timing(times)} | {_ratio(faster)} |")
    lines += [
        "",
        f"Largest difference {front_end['largest_difference']:.1e} of the range; "
        f"{front_end['mosrt_peak_extra_memory_mb']:.0f} MB of extra memory at the peak.",
    ]
    for name, prediction in _PREDICTIONS.items():
        run = _read(results / f"{name}.json")
        lines += [
            "",
            f"End to end, {prediction}: one view of a {run['clip_s']:.1f} s clip in memory, FP32, "
            f"{run['threads']} threads, {run['weights']} weights.",
            "",
            "| contestant | median | 95 % interval | times as fast | peak memory |",
            "|---|---|---|---|---|",
        ]
        for contestant, times in run["timings"].items():
            faster = run["faster"] if contestant == "mosrt" else None
            peak = f"{run['peak_mb'][contestant]:.0f} MB"
            if contestant == "mosrt":
                peak += f" ({run['peak_ratio']:.2f} of torch's)"
            lines.append(f"| {contestant} | {_timing(times)} | {_ratio(faster)} | {peak} |")
    machine = front_end["machine"]
    packages = machine["packages"]
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    lines += [
        "",
        f"Machine: {machine['cpu']}, {machine['usable_cores']} cores, "
        f"{machine['memory_gib']:.0f} GiB; Python {machine['python']}, {versions}.",
    ]
    sections = [
        section(results)
        for section in (
            embedded_sections,
            drift_section,
            calibration_section,
            bench_sections,
            uncertainty_sections,
            variants_section,
        )
    ]
    return "\n".join([*itertools.chain(*sections), *lines])


def replaced(readme: str, figures: str) -> str:
    """`readme` with `figures` between its markers.

    Raises:
        click.ClickException: A marker is missing.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise click.ClickException(f"the markers {BEGIN} and {END} are missing")
    return f"{before}{BEGIN}\n{figures}\n{END}{after}"


def _read(path: Path) -> dict[str, Any]:
    run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return run


def _timing(times: dict[str, Any]) -> str:
    low, high = times["interval_95_ms"]
    return f"{times['median_ms']:.0f} ms | {low:.0f} to {high:.0f} ms"


def _ratio(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "1"
    low, high = figure["interval_95"]
    return f"**{figure['ratio']:.2f}** ({low:.2f} to {high:.2f})"


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("readme", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(results: Path, readme: Path) -> None:
    """Put the figures of RESULTS into README."""
    text = readme.read_text(encoding="utf-8")
    readme.write_text(replaced(text, render(results)), encoding="utf-8")


if __name__ == "__main__":
    main()
