"""`mosrt quantize`: FP16 and INT8 variants of a bundle. Importing this imports no onnx."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from .clips import Clip
    from .quantize import Options, Result

__all__ = ["quantize"]

_VARIANTS: Final = ("fp16", "int8-cpu", "int8-trt")
_METHODS: Final = ("min-max", "percentile", "entropy", "mse")
_LIBRARIES: Final = frozenset(("matplotlib", "onnx", "packaging"))


class _VariantList(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.4
    """Names with commas between."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(dict.fromkeys(name.strip() for name in str(value).split(",")))
        unknown = [name for name in names if name not in _VARIANTS]
        if unknown:
            self.fail(f"{unknown[0]!r} is none of {', '.join(_VARIANTS)}", param, ctx)
        return names


@click.command(epilog="Exit code: 0 written, 1 refused (nothing is written), 2 wrong usage.")
@click.argument("bundle", type=str)
@click.option(
    "--audio",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory of speech like yours, good and bad; searched with all below it.",
)
@click.option(
    "--variants",
    type=_VariantList(),
    default=",".join(_VARIANTS),
    show_default=True,
    help="What to make.",
)
@click.option(
    "--clips",
    "n_clips",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Clips to measure ranges on.",
)
@click.option(
    "--eval-clips",
    "n_evaluation",
    type=click.IntRange(min=3),
    default=64,
    show_default=True,
    help="Other clips, if there are, to measure the drift on.",
)
@click.option(
    "--views",
    type=click.IntRange(min=1),
    help="Views of each of those; fewer are quicker, and drift more. [default: as in scoring]",
)
@click.option(
    "--method",
    type=click.Choice(("auto", *_METHODS)),
    default="auto",
    show_default=True,
    help="How a range is chosen: all values, all but one in ten thousand, the least loss of "
    "information, or the least squared error; auto tries them all.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Another seed, another choice of clips."
)
@click.option(
    "--max-drift",
    type=click.FloatRange(min=0, min_open=True),
    default=0.02,
    show_default=True,
    help="Largest mean difference from fp32: in MOS, or relative for a model that scores by its "
    "uncertainty.",
)
@click.option(
    "--min-srcc",
    type=click.FloatRange(-1, 1),
    default=0.99,
    show_default=True,
    help="Smallest rank correlation with fp32.",
)
@click.option(
    "--report",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Rank all blocks, follow the trade-off curve, and write report.json, report.txt and "
    "trade-off.png.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a copy instead of adding to BUNDLE.",
)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where ranges are kept for the next time. [default: ~/.cache/mosrt/calibration]",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads to use. [default: all cores]")
def quantize(**options: Any) -> None:
    """Add small and fast variants to BUNDLE, and measure how far their scores drift.

    \b
    fp16      half the size: for GPUs
    int8-cpu  a quarter of the size: for ONNX Runtime on CPUs
    int8-trt  symmetric INT8: for TensorRT

    Ranges come from clips chosen to be as different as the directory has them. Of several ways to
    make an INT8 variant the one that drifts least is taken; where that is too far, blocks stay in
    float, one after the other, until the budget holds: first those that harm the score most for
    the work they are. Dear ones among them are then taken apart, and what the budget allows of
    them is made INT8 after all. If nothing holds it, nothing is written.

    \b
    All variants, into the bundle:
      mosrt calibrate utmosv2 --audio speech/
    \b
    Only for this CPU, into a copy, with pictures of what was tried:
      mosrt calibrate utmosv2 --audio speech/ --variants int8-cpu --out small --report report
    \b
    A stricter budget:
      mosrt calibrate utmosv2 --audio speech/ --max-drift 0.01 --min-srcc 0.999

    An embedded model (nano) is never changed where it lies: give it an --out. Needs the extra:

    \b
      pip install 'mosrt[calibrate]'
    """  # noqa: D301 - click reads the backspace
    request = _Request(**options)
    try:
        _quantize(request)
    except ImportError as exc:
        if (exc.name or "").split(".")[0] in _LIBRARIES:
            raise click.ClickException(
                f"this command needs the extra: pip install 'mosrt[calibrate]' ({exc.name} is "
                "missing)"
            ) from exc
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """The options, by the names click gives them."""

    bundle: str
    audio: Path
    variants: tuple[str, ...]
    n_clips: int
    n_evaluation: int
    views: int | None
    method: str
    seed: int
    max_drift: float
    min_srcc: float
    report: Path | None
    out: Path | None
    cache: Path | None
    threads: int | None


def _quantize(request: _Request) -> None:
    from mosrt.errors import MosrtError  # noqa: PLC0415 - numpy and onnxruntime

    from .quantize import BudgetError, quantize_bundle  # noqa: PLC0415 - onnx
    from .report import summary  # noqa: PLC0415

    try:
        bundle, out = _places(request)
        options = _options(request)
        result = quantize_bundle(bundle, request.audio, out, options, progress=_bar, each=_looking)
    except BudgetError as exc:
        click.echo(summary(exc.result), err=True)
        _report(request, exc.result, options)
        raise click.ClickException(str(exc)) from exc
    except MosrtError as exc:
        raise click.ClickException(str(exc)) from exc
    click.echo(summary(result), err=True)
    _report(request, result, options)
    if not result.choice.held_out:
        click.echo(
            "warning: too few recordings; the drift was measured on the calibration clips", err=True
        )
    click.echo(f"{out}: written; {', '.join(made.name for made in result.made)}")


def _places(request: _Request) -> tuple[Path, Path]:
    """The bundle's directory, and where the result goes."""
    from mosrt.bundle.embedded import embedded_models, find_bundle  # noqa: PLC0415

    bundle = find_bundle(request.bundle)
    embedded = bundle in embedded_models().values()
    if embedded and request.out is None:
        raise click.ClickException(
            f"{request.bundle} comes with mosrt and is not changed where it lies; give the copy a "
            "place with --out DIR"
        )
    return bundle, request.out or bundle


def _options(request: _Request) -> Options:
    from mosrt.host.cpu import usable_cores  # noqa: PLC0415

    from .quantize import Options  # noqa: PLC0415
    from .ranges.collector import default_cache  # noqa: PLC0415
    from .search.drift import Budget  # noqa: PLC0415

    return Options(
        variants=request.variants,
        n_clips=request.n_clips,
        n_evaluation=request.n_evaluation,
        views=request.views,
        methods=_METHODS if request.method == "auto" else (request.method,),
        seed=request.seed,
        budget=Budget(max_drift=request.max_drift, min_srcc=request.min_srcc),
        full_report=request.report is not None,
        threads=request.threads or usable_cores(),
        cache=request.cache or default_cache(),
    )


def _report(request: _Request, result: Result, options: Options) -> None:
    from .report import write_report  # noqa: PLC0415

    if request.report is not None:
        write_report(request.report, result, options.budget)
        click.echo(f"{request.report}: report written", err=True)


@contextmanager
def _bar(clips: Sequence[Clip], label: str) -> Iterator[Iterable[Clip]]:
    """A progress bar on stderr; in a log a line when it is done."""
    if sys.stderr.isatty():
        with click.progressbar(clips, label=label, file=sys.stderr) as bar:
            yield bar
        return
    started = time.monotonic()
    yield clips
    click.echo(f"{label}: {len(clips)} clips, {time.monotonic() - started:.1f} s", err=True)


def _looking(files: Sequence[Path]) -> Iterator[Path]:
    hidden = not sys.stderr.isatty()
    with click.progressbar(files, label="listening", file=sys.stderr, hidden=hidden) as bar:
        yield from bar
