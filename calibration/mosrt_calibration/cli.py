"""Command `mosrt quantize`. Importing it imports no onnx."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from mosrt.bundle.embedded import embedded_models, find_bundle
from mosrt.cli.command import (
    COUNT,
    THREADS,
    CommandError,
    ExitStatus,
    FiniteRange,
    exit_on_error,
    exit_statuses,
    output_option,
    require_extra,
)
from mosrt.cli.terminal import bar_stream
from mosrt.errors import BundleError
from mosrt.host.cpu import usable_cores

__all__ = ["quantize"]

_VARIANTS: Final = ("fp16", "int8-cpu", "int8-trt")
_METHODS: Final = ("min-max", "percentile", "entropy", "mse")


@click.command(
    short_help="Add FP16 and INT8 variants to a bundle.",
    context_settings={"show_default": True},
    epilog=exit_statuses("a variant is over the limits, and nothing was written"),
)
@click.argument("model", metavar="MODEL")
@click.option(
    "--audio",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Recordings of speech like yours, good and bad; subdirectories are included.",
)
@click.option(
    "--variant",
    "variants",
    type=click.Choice(_VARIANTS),
    multiple=True,
    help="Variant to make; repeat for several. [default: all]",
)
@click.option(
    "--clips",
    "n_clips",
    type=COUNT,
    default=32,
    help="Calibration clips, which activation ranges are measured on.",
)
@click.option(
    "--eval-clips",
    "n_evaluation",
    type=click.IntRange(3, 1_000_000),
    default=64,
    help="Evaluation clips, which the drift is measured on. They differ from the calibration clips "
    "if there are at least 8 of them.",
)
@click.option(
    "--views",
    type=COUNT,
    help="Views of each evaluation clip. Fewer are faster and drift more. "
    "[default: as many as scoring uses]",
)
@click.option(
    "--method",
    type=click.Choice(("auto", *_METHODS)),
    default="auto",
    help="How activation ranges are chosen: from all values, from the central 99.99 %, with the "
    "least divergence of distributions, or with the least squared error. auto compares all four.",
)
@click.option("--seed", type=int, default=0, help="Seed of the choice of clips.")
@click.option(
    "--max-drift",
    type=FiniteRange(min=0, min_open=True),
    default=0.02,
    help="Largest mean absolute difference from FP32, in MOS; relative to the mean uncertainty for "
    "a model that measures uncertainty.",
)
@click.option(
    "--min-srcc",
    type=FiniteRange(-1, 1),
    default=0.99,
    help="Smallest rank correlation with FP32.",
)
@output_option(
    "Write a copy of the bundle with the variants. [default: change the bundle in place]",
    metavar="DIR",
    directory=True,
)
@click.option(
    "--report",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Rank all blocks by sensitivity, measure the trade-off curve, and write report.json, "
    "report.txt and trade-off.png.",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where activation statistics are kept for later runs. "
    "[default: calibration in the cache of mosrt, see `mosrt info --machine`]",
)
@click.option("--threads", type=THREADS, help="Threads to use. [default: all cores]")
def quantize(
    model: str, audio: Path, output: Path | None, report: Path | None, **options: Any
) -> None:
    """Add FP16 and INT8 variants to a bundle, and measure how far their scores drift from FP32.

    MODEL is the directory of a bundle or the name of a model that comes with mosrt. The latter is
    not changed in place: give --output.

    \b
    fp16      half the size, for GPUs
    int8-cpu  a quarter of the size, for ONNX Runtime and OpenVINO on CPUs
    int8-trt  symmetric INT8, for TensorRT

    Activation ranges are measured on clips that are chosen to be varied. Several quantisation
    methods are compared, and the one with the least drift is used. If it drifts further than
    --max-drift and --min-srcc allow, blocks are kept in FP32 until it does not. If no combination
    is within the limits, nothing is written.

    \b
    Make one variant in a copy of the bundle, and score with it:
      mosrt quantize nano --audio speech/ --variant int8-cpu -o small
      mosrt score clips/ --model ./small --variant int8-cpu
    """  # noqa: D301 - click reads the backspace
    with exit_on_error(), require_extra("calibrate"):
        bundle = find_bundle(model)
        if output is None and bundle in embedded_models().values():
            raise BundleError(
                f"{model}: comes with mosrt and is not changed in place; write a copy with "
                "--output DIR"
            )
        _quantize(bundle, audio, output or bundle, report, **options)


def _quantize(
    bundle: Path,
    audio: Path,
    output: Path,
    report: Path | None,
    *,
    variants: tuple[str, ...],
    method: str,
    max_drift: float,
    min_srcc: float,
    cache: Path | None,
    threads: int | None,
    **others: Any,
) -> None:
    from .quantize import BudgetError, Options, quantize_bundle  # noqa: PLC0415 - onnx
    from .ranges.collector import default_cache  # noqa: PLC0415
    from .report import summary, write_report  # noqa: PLC0415
    from .search.drift import Budget  # noqa: PLC0415

    options = Options(
        variants=tuple(dict.fromkeys(variants)) or _VARIANTS,
        methods=_METHODS if method == "auto" else (method,),
        budget=Budget(max_drift=max_drift, min_srcc=min_srcc),
        full_report=report is not None,
        threads=threads or usable_cores(),
        cache=cache or default_cache(),
        **others,
    )
    failure = None
    try:
        result = quantize_bundle(bundle, audio, output, options, progress=_bar)
    except BudgetError as exc:
        failure, result = exc, exc.result
    click.echo(summary(result), err=True)
    if report is not None:
        write_report(report, result, options.budget)
        click.echo(f"{report}: report written", err=True)
    if failure is not None:
        raise CommandError(str(failure), ExitStatus.NO) from failure
    if not result.choice.held_out:
        click.echo(
            "warning: too few recordings; the drift was measured on the calibration clips", err=True
        )
    click.echo(f"{output}: written; {', '.join(made.name for made in result.variants)}")


@contextmanager
def _bar(items: Sequence[Any], label: str) -> Iterator[Iterable[Any]]:
    """A progress bar on a terminal; elsewhere one line at the end."""
    if sys.stderr.isatty():
        with click.progressbar(items, label=label, file=bar_stream()) as bar:
            yield bar
        return
    started = time.monotonic()
    yield items
    click.echo(f"{label}: {len(items)} clips, {time.monotonic() - started:.1f} s", err=True)
