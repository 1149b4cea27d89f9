"""How much audio does a student need to score as its teachers do?

    python -m mosrt_studies.accuracy.distillation p808=model_v8.onnx --audio SPEECH --cache CACHE \
        --hours 1 --hours 2 --hours 5 --hours 10 -o benchmarks/results/distillation.json

Runs `mosrt distill` for every number of hours on one cache, so that the clips of fewer hours are
part of those of more, and the test clips are the same. Each student stays in the cache, and is not
made again: an interrupted study continues.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mosrt.bundle.bundle import Bundle
from mosrt.cli.command import COUNT, exit_on_error, output_option
from mosrt_export.cli.distill import distill
from mosrt_studies.publish import publish

__all__ = ["main"]


@click.command()
@click.argument("teachers", nargs=-1, required=True, metavar="TEACHER...")
@click.option("--audio", "folders", multiple=True, required=True, metavar="DIR",
              help="As for `mosrt distill`.")  # fmt: skip
@click.option("--cache", required=True, metavar="DIR", type=click.Path(path_type=Path),
              help="Where clips, labels and students are kept.")  # fmt: skip
@click.option("--hours", multiple=True, type=click.FloatRange(min=0.001),
              default=(1.0, 2.0, 5.0, 10.0), show_default=True,
              help="Hours of clips to train on; may be repeated.")  # fmt: skip
@click.option("--test-hours", default=1.0, show_default=True, type=click.FloatRange(min=0.001),
              help="Hours of clips of each part that students are tested on.")  # fmt: skip
@click.option("--recipe", metavar="nano|FILE.toml", help="As for `mosrt distill`.")
@click.option("--workers", type=COUNT, default=2, show_default=True,
              help="Processes that make clips.")  # fmt: skip
@output_option("JSON file to write.", required=True)
@exit_on_error()
def main(
    teachers: tuple[str, ...], folders: tuple[str, ...], cache: Path, hours: tuple[float, ...],
    test_hours: float, recipe: str | None, workers: int, output: Path,
) -> None:  # fmt: skip
    """Distil students on more and more audio, and compare each with its teachers."""
    students: dict[str, Any] = {}
    cost: dict[str, Any] = {}
    for each in sorted(set(hours)):
        student = cache / f"student-{each:g}h"
        if not student.exists():
            options = {
                "--hours": each, "--test-hours": test_hours, "--cache": cache / "data",
                "--recipe": recipe, "--workers": workers, "--output": student,
            }  # fmt: skip
            given = [*teachers, *(word for folder in folders for word in ("--audio", folder))]
            for option, value in options.items():
                given += [] if value is None else [option, str(value)]
            distill.main(given, standalone_mode=False)
        provenance = Bundle.open(student).manifest.provenance
        students[f"{each:g}"] = provenance["fidelity"]
        cost = provenance["cost"]
    publish(
        "accuracy.distillation",
        output,
        question="fidelity of a student on held-out recordings and speakers, by hours of audio",
        teachers=list(cost),
        test_hours=test_hours,
        hours=students,
        cost=cost,
    )


if __name__ == "__main__":
    main()
