"""The command `mosrt gate`. Importing this module imports no extra."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import click

from mosrt.cli.command import (
    STDOUT,
    THREADS,
    ExitStatus,
    FiniteRange,
    exit_on_error,
    exit_statuses,
    keep_inputs,
    model_option,
    require_extra,
)

__all__ = ["gate"]

_FILE: Final = click.Path(dir_okay=False, path_type=Path)


@click.command(
    short_help="Fail if a set of clips sounds worse than its baseline.",
    epilog=exit_statuses("a clip or the set became worse"),
)
@click.argument("audio", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--baseline", "file", required=True, type=_FILE, metavar="FILE",
              help="The recorded scores; keep the file in your repository.")  # fmt: skip
@click.option("--update", is_flag=True, help="Record the scores of AUDIO as the new baseline.")
@model_option()
@click.option("--variant", metavar="NAME", help="Precision variant. [default: the reference, fp32]")
@click.option("--provider", default="cpu", show_default=True, metavar="NAME",
              help="Execution provider. Scores on the CPU differ least between "
              "machines.")  # fmt: skip
@click.option("--domain", metavar="NAME", help="Data domain. [default: the model's]")
@click.option("--views", type=click.IntRange(2, 10_000), default=8, show_default=True, metavar="N",
              help="Views per clip; the noise of a score is estimated from their "
              "spread.")  # fmt: skip
@click.option("--threads", type=THREADS, metavar="N",
              help="Threads. [default: all cores]")  # fmt: skip
@click.option("--tolerance", type=FiniteRange(min=0), metavar="DROP",
              help="Largest drop of the set's mean, median, 5th or 95th percentile that passes: in "
              "MOS, or, for uncertainty models, relative to the recorded mean. [default: 0.05 MOS, "
              "or 0.02]")  # fmt: skip
@click.option("--clip-tolerance", type=FiniteRange(min=0), metavar="DROP",
              help="Largest drop of a single clip that passes, in the same unit. [default: 0.2 "
              "MOS, or 0.05]")  # fmt: skip
@click.option("--alpha", type=FiniteRange(min=0, max=0.5, min_open=True), default=0.05,
              show_default=True, metavar="P", help="False-alarm rate: the probability that the "
              "gate fails although nothing changed.")  # fmt: skip
@click.option("--junit", "junit_file", type=_FILE, metavar="FILE",
              help="Write the result as JUnit XML; - is standard output.")  # fmt: skip
@click.option("--json", "json_file", type=_FILE, metavar="FILE",
              help="Write the result as JSON; - is standard output.")  # fmt: skip
@exit_on_error()
def gate(
    audio: tuple[Path, ...], file: Path, update: bool, tolerance: float | None,
    clip_tolerance: float | None, alpha: float, junit_file: Path | None, json_file: Path | None,
    **options: Any,
) -> None:  # fmt: skip
    """Compare the scores of AUDIO, files or folders, with a recorded baseline.

    \b
    mosrt gate clips/ --baseline gate.json --update            record, once
    mosrt gate clips/ --baseline gate.json --junit gate.xml    compare, in CI

    Clips are matched by name. A clip fails if its score dropped significantly, by a test against
    the noise of its views, and by more than --clip-tolerance. The set fails if its mean, median,
    5th or 95th percentile dropped significantly and by more than --tolerance. P values are
    corrected for multiple comparisons by Holm's method. A baseline of another bundle, variant,
    provider or set of names does not compare and is an error.
    """  # noqa: D301 - click's mark for lines to leave alone is the character \b
    with require_extra("bench"):
        from mosrt_bench.clips import audio_files  # noqa: PLC0415
        from mosrt_bench.gate.baseline import Baseline, score_set  # noqa: PLC0415
        from mosrt_bench.gate.decision import gate as decide  # noqa: PLC0415 - scipy
        from mosrt_bench.gate.report import gate_text, junit  # noqa: PLC0415
        from mosrt_bench.output import finite, save, save_text  # noqa: PLC0415

    clips = audio_files(audio)
    model = options["model"]
    read = [*(clip.path for clip in clips), *([] if model is None else [model])]
    keep_inputs([file] if update else [junit_file, json_file], read if update else [*read, file])
    # read first, so that an unusable baseline is reported before minutes of scoring
    before = None if update else Baseline.read(file)
    after = score_set(clips, **options)
    if before is None:
        after.write(file)
        click.echo(f"{file}: recorded {len(after.clips)} clips", err=True)
        return
    before.check(after, file)
    verdict = decide(before, after, tolerance=tolerance, clip_tolerance=clip_tolerance, alpha=alpha)
    if junit_file is not None:
        save_text(junit(verdict), junit_file)
    if json_file is not None:
        save(finite(verdict.to_dict()), json_file)
    printed = str(junit_file) in STDOUT or str(json_file) in STDOUT
    click.echo(gate_text(verdict), err=printed)
    if not verdict.passed:
        sys.exit(ExitStatus.NO)
