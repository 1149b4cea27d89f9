"""`mosrt bench`: parity and speed, side by side. Importing this module imports no extra."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, Final

import click

from mosrt.cli.command import require_extra

__all__ = ["bench"]

EXIT_FAILED: Final = 1
_PATH: Final = click.Path(path_type=Path)
_EXISTING: Final = click.Path(exists=True, path_type=Path)
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


class _BenchOrCompare(click.Group):
    """A group whose first command needs no name: `mosrt bench nano` is `mosrt bench run nano`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Names the command where the first argument is none."""
        if not args or args[0] not in self.commands:
            args = ["run", *args]
        return super().parse_args(ctx, args)


class _Unnamed(click.Command):
    """A command whose name nobody writes, nor its usage line."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the line as it is typed."""
        path = ctx.command_path if ctx.parent is None else ctx.parent.command_path
        formatter.write_usage(path, " ".join(self.collect_usage_pieces(ctx)))


class _Numbers(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """Numbers separated by commas."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float], *, none: bool = False) -> None:
        self._kind = kind
        self._none = none

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """The numbers, each above zero; or none of them, where "none" may be said."""
        if isinstance(value, tuple):
            return value
        if self._none and value == "none":
            return ()
        try:
            numbers = tuple(self._kind(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if not numbers or min(numbers) <= 0:
            self.fail(f"{value!r} is not a list of numbers above 0, such as 1,2", param, ctx)
        return numbers


@click.group(cls=_BenchOrCompare, short_help="Prove parity and speed on this machine.")
def bench() -> None:
    """Measure models on this machine, or compare two measurements."""


@bench.command(cls=_Unnamed, short_help="Measure (the default).")
@click.argument("bundles", nargs=-1)
@click.option(
    "--variants",
    default="all",
    show_default=True,
    metavar="all|NAME,…",
    help="Precision variants.",
)
@click.option(
    "--providers",
    default="all",
    show_default=True,
    metavar="all|NAME,…",
    help="Execution providers; all means those of this machine, see mosrt info --machine.",
)
@click.option(
    "--audio",
    type=_EXISTING,
    multiple=True,
    metavar="PATH",
    help="Recordings: a folder, with all below it, or a file. May be repeated.",
)
@click.option(
    "--reference",
    "references",
    type=_FILE,
    multiple=True,
    metavar="CHECKPOINT",
    help="Also compare with torch, on the checkpoint that the bundle came from; again for each "
    "network. Needs the extra: pip install 'mosrt[export]'.",
)
@click.option(
    "--labels",
    type=_FILE,
    metavar="FILE.csv",
    help="Listeners' ratings, columns path,mos[,system[,dataset]]: adds the VoiceMOS table.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="onnx:FILE",
    help="A DNSMOS P.835 or P.808 model to hear the same clips. May be repeated.",
)
@click.option(
    "--threads",
    type=_Numbers(int),
    metavar="N,…",
    help="Threads of one call. [default: all cores this process may use]",
)
@click.option(
    "--batch",
    "batches",
    type=_Numbers(int, none=True),
    default="1,4",
    show_default=True,
    metavar="N,…|none",
    help="Recordings in hand at once, for throughput.",
)
@click.option(
    "--callers",
    type=_Numbers(int, none=True),
    default="1,2,4",
    show_default=True,
    metavar="N,…|none",
    help="Threads that share one scorer, for throughput.",
)
@click.option(
    "--lengths",
    type=_Numbers(float),
    default="1,3,5,10,30",
    show_default=True,
    metavar="S,…",
    help="Lengths of clips to time, in seconds, 5 included.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=5),
    default=50,
    show_default=True,
    metavar="N",
    help="Rounds of a timing that are enough.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=20.0,
    show_default=True,
    metavar="S",
    help="Time per contestant of a timing that is enough, in seconds, once there are 5 rounds "
    "(3 of throughput).",
)
@click.option(
    "--starts",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    metavar="N",
    help="Fresh processes per contestant, for cold start and peak memory; 0 for none.",
)
@click.option("--estimator", is_flag=True, help="Also study how many views are enough.")
@click.option(
    "--half-width",
    type=click.FloatRange(min=0, min_open=True),
    default=0.1,
    show_default=True,
    metavar="MOS",
    help="Interval wanted of that study, ± MOS.",
)
@click.option("--no-speed", is_flag=True, help="Parity only.")
@click.option(
    "--report",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write report.json, report.md and report.html there.",
)
def run(
    bundles: tuple[str, ...], variants: str, providers: str, audio: tuple[Path, ...],
    references: tuple[Path, ...], labels: Path | None, peers: tuple[str, ...],
    threads: tuple[int, ...] | None, batches: tuple[int, ...], callers: tuple[int, ...],
    lengths: tuple[float, ...], runs: int, seconds: float, starts: int, estimator: bool,
    half_width: float, no_speed: bool, folder: Path | None,
) -> None:  # fmt: skip
    """Prove parity and speed: every variant and provider of BUNDLES, on this machine and audio.

    BUNDLES are names of models that come with mosrt (nano if left out), or paths of bundles.

    \b
    mosrt bench --audio clips/
    mosrt bench nano ./utmosv2 --audio clips/ --report report/
    mosrt bench ./utmosv2 --audio clips/ --reference fold0.pth --no-speed
    mosrt bench --audio clips/ --labels mos.csv --peer onnx:sig_bak_ovr.onnx
    mosrt bench compare before/report.json after/report.json

    Drift is measured against the bundle's FP32 variant on the CPU. Contestants, each variant on
    each provider, are all loaded and timed in turn, so that a busy machine cannot favour one; on a
    quiet one the intervals are narrower.

    \b
    The time left is told on the way. A model that takes seconds per clip is measured within a
    quarter of an hour by fewer lengths and less throughput:
    mosrt bench ./utmosv2 --providers cpu --audio clips/ --lengths 5,10 --seconds 5 \\
        --batch 1 --callers 2 --starts 2 --report report/

    `mosrt bench compare --help` tells how two reports are compared.

    Exit status: 0 all within tolerance, 1 not, or something cannot be done, 2 wrong usage.
    """  # noqa: D301 - click's mark for lines to leave alone is the character \b
    if not audio and labels is None:
        raise click.UsageError("nothing to hear: pass --audio a folder of recordings")
    with require_extra("bench", "export", "train"):
        from mosrt.bundle.embedded import DEFAULT_MODEL  # noqa: PLC0415
        from mosrt.errors import MosrtError  # noqa: PLC0415
        from mosrt.host.cpu import usable_cores  # noqa: PLC0415
        from mosrt_bench.bench.latency import Budget  # noqa: PLC0415
        from mosrt_bench.bench.request import Request, shown  # noqa: PLC0415
        from mosrt_bench.bench.run import run_bench  # noqa: PLC0415 - scipy and psutil
        from mosrt_bench.peers import parse_peer  # noqa: PLC0415
        from mosrt_bench.report.writer import terminal, write_report  # noqa: PLC0415

        try:
            request = Request(
                bundles=bundles or (DEFAULT_MODEL,),
                variants=tuple(variants.split(",")),
                providers=tuple(providers.split(",")),
                audio=audio,
                labels=labels,
                references=references,
                peers=tuple(parse_peer(text) for text in peers),
                threads=threads or (usable_cores(),),
                batches=batches,
                callers=callers,
                lengths_s=lengths,
                budget=Budget(runs=runs, seconds=seconds),
                starts=starts,
                estimator=estimator,
                half_width=half_width,
                speed=not no_speed,
                command=shlex.join(["mosrt", *shown(sys.argv[1:])]),
            )
            report, clips = run_bench(request, lambda text: click.echo(f"{text} …", err=True))
            click.echo(terminal(report))
            if folder is not None:
                for path in write_report(report, clips, folder):
                    click.echo(f"{path}: written", err=True)
        except MosrtError as exc:
            raise click.ClickException(str(exc)) from exc
    failed = [row["contestant"] for row in report["parity"] if row["passed"] is False]
    if failed:
        click.echo(f"parity fails: {', '.join(dict.fromkeys(failed))}", err=True)
        sys.exit(EXIT_FAILED)


@bench.command(short_help="What changed between two reports?")
@click.argument("before", type=_FILE)
@click.argument("after", type=_FILE)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.05,
    show_default=True,
    metavar="SHARE",
    help="Slowdown, growth of memory or of error, or loss of throughput that is let pass, as a "
    "share; likewise a correlation's drop.",
)
def compare(before: Path, after: Path, tolerance: float) -> None:
    """Compare report.json BEFORE with AFTER: speed, memory, drift, agreement with listeners.

    A change counts as a regression if it is worse than --tolerance and its interval excludes no
    change. Both reports are best of one machine; what differs between the machines is noted.

    Exit status: 0 no regression, 1 a regression, or files that do not compare, 2 wrong usage.
    """
    with require_extra("bench", "export", "train"):
        from mosrt.errors import MosrtError  # noqa: PLC0415
        from mosrt_bench.report.compare import compare_reports, comparison_table, read_report  # noqa: PLC0415

        try:
            changes = compare_reports(read_report(before), read_report(after), tolerance)
        except MosrtError as exc:
            raise click.ClickException(str(exc)) from exc
    click.echo(comparison_table(changes))
    if any(change.verdict == "regression" for change in changes):
        sys.exit(EXIT_FAILED)
