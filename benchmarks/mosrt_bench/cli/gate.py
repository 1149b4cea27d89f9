"""`mosrt gate`: stop a release that sounds worse. Importing this module imports no extra."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from mosrt.cli.command import require_extra

__all__ = ["gate"]

EXIT_FAILED: Final = 1
EXIT_CANNOT: Final = 3
_OUT: Final = click.Path(dir_okay=False, path_type=Path)


@click.command(short_help="Fail if a set of clips sounds worse than its baseline.")
@click.argument("audio", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--baseline",
    "file",
    required=True,
    type=_OUT,
    metavar="FILE",
    help="The recorded scores; keep the file in the repository.",
)
@click.option("--update", is_flag=True, help="Record this set as the baseline.")
@click.option(
    "--model",
    "-m",
    default=None,
    metavar="NAME|PATH",
    help="Model to score with. [default: nano]",
)
@click.option("--variant", metavar="NAME", help="Precision variant. [default: the reference, fp32]")
@click.option(
    "--provider",
    default="cpu",
    show_default=True,
    metavar="NAME",
    help="Execution provider; others than the CPU round otherwise on every machine.",
)
@click.option("--domain", metavar="NAME", help="Data domain. [default: the model's]")
@click.option(
    "--views",
    type=click.IntRange(min=2),
    default=8,
    show_default=True,
    metavar="N",
    help="Views per clip, from whose spread the model's noise is measured.",
)
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Threads. [default: all cores]"
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    metavar="MOS|SHARE",
    help="By how much the set's mean, median, 5th or 95th percentile may drop: in MOS, or, for "
    "models that score by their uncertainty, as a share of its recorded mean. "
    "[default: 0.05 MOS, or a share of 0.02]",
)
@click.option(
    "--clip-tolerance",
    type=click.FloatRange(min=0),
    metavar="MOS|SHARE",
    help="By how much a single clip may drop, likewise. [default: 0.2 MOS, or a share of 0.05]",
)
@click.option(
    "--alpha",
    type=click.FloatRange(min=0, max=0.5, min_open=True),
    default=0.05,
    show_default=True,
    metavar="P",
    help="Chance of failing for nothing.",
)
@click.option("--junit", type=_OUT, metavar="FILE", help="Write JUnit XML.")
@click.option("--json", "json_file", type=_OUT, metavar="FILE", help="Write all figures.")
def gate(
    audio: tuple[Path, ...], file: Path, update: bool, model: str | None, variant: str | None,
    provider: str, domain: str | None, views: int, threads: int | None, tolerance: float | None,
    clip_tolerance: float | None, alpha: float, junit: Path | None, json_file: Path | None,
) -> None:  # fmt: skip
    """Compare AUDIO, files or folders, with recorded scores, under the model's own noise.

    \b
    mosrt gate clips/ --baseline gate.json --update            record, once
    mosrt gate clips/ --baseline gate.json --junit gate.xml    in CI, on newly made clips

    Clips are told apart by name. A clip fails if its drop is more than the noise of its views
    explains and more than --clip-tolerance; the set fails likewise, by its mean, median, 5th or
    95th percentile and --tolerance. Tests are adjusted for their number by Holm's method. Another
    bundle, variant or provider, or another set of names, is an error and no comparison.

    Exit status: 0 no worse, 1 worse, 2 wrong usage, 3 nothing to compare with, or a clip or model
    that cannot be used.
    """  # noqa: D301 - click's mark for lines to leave alone is the character \b
    with require_extra("bench", "export", "train"):
        from mosrt.errors import MosrtError  # noqa: PLC0415
        from mosrt_bench.gate.baseline import Baseline, score_set  # noqa: PLC0415
        from mosrt_bench.gate.decision import Tolerances  # noqa: PLC0415 - scipy
        from mosrt_bench.gate.decision import gate as decide  # noqa: PLC0415
        from mosrt_bench.gate.report import gate_text, write_junit  # noqa: PLC0415
        from mosrt_bench.output import finite, save  # noqa: PLC0415

        try:
            # an unusable baseline is told before minutes of scoring
            before = None if update else Baseline.read(file)
            after = score_set(
                audio,
                model=model,
                variant=variant,
                provider=provider,
                threads=threads,
                views=views,
                domain=domain,
            )
            if before is None:
                after.write(file)
                click.echo(f"{file}: recorded {len(after.clips)} clips", err=True)
                return
            before.check(after, file)
            tolerances = Tolerances.of(before, tolerance, clip_tolerance, alpha)
            verdict = decide(before, after, tolerances)
            if junit is not None:
                write_junit(verdict, junit)
            if json_file is not None:
                save(finite(verdict.to_dict()), json_file)
        except MosrtError as exc:
            click.echo(f"Error: {exc}", err=True)
            sys.exit(EXIT_CANNOT)
    click.echo(gate_text(verdict))
    if not verdict.passed:
        sys.exit(EXIT_FAILED)
