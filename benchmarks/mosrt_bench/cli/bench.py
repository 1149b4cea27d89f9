"""The commands `mosrt bench run` and `mosrt bench compare`; importing them needs no extra."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from mosrt.bundle.embedded import DEFAULT_MODEL
from mosrt.cli.command import (
    THREADS,
    ExitStatus,
    FiniteRange,
    exit_on_error,
    exit_statuses,
    require_extra,
)
from mosrt.host.cpu import usable_cores
from mosrt_bench.bench.request import TORCH, Request, parse_duration, shown
from mosrt_bench.bench.timing import Effort

__all__ = ["bench"]

_EXTRAS: Final = ("bench", "export", "train")
_EXISTING: Final = click.Path(exists=True, path_type=Path)
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_COUNT_OR_NONE: Final = click.IntRange(0, 1_000_000)
_ABOVE_ZERO: Final = FiniteRange(min=0, min_open=True)


def _seconds(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """The seconds of a duration such as 90s or 8m."""
    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as exc:
        raise click.BadParameter(str(exc), context, option) from exc


def _repeated(*names: str, text: str, **options: Any) -> Callable[[Any], Any]:
    """An option that may be repeated; 0 and "none" among its values stand for no value."""

    def values(_: click.Context, __: click.Parameter, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value for value in given if value not in {0, "none"})

    options = {"multiple": True, "callback": values, "show_default": True, **options}
    return click.option(*names, help=f"{text} May be repeated.", **options)


@click.group(short_help="Measure parity and speed on this machine.")
def bench() -> None:
    """Measure models on this machine, or compare two measurements."""


@bench.command(
    short_help="Measure models on this machine.",
    epilog=exit_statuses("a configuration drifts by more than its limit"),
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@_repeated("--audio", type=_EXISTING, metavar="PATH",
           text="Recordings: a file, or a folder with all below it.")  # fmt: skip
@_repeated("--variant", "variants", default=("all",), metavar="NAME", text="Precision variant.",
           show_default="all of the models")  # fmt: skip
@_repeated("--provider", "providers", default=("all",), metavar="NAME",
           show_default="all of this machine",
           text="Execution provider; see mosrt info --machine. For tensorrt, missing engines are "
           "built.")  # fmt: skip
@_repeated("--reference", "references", type=_FILE, metavar="CHECKPOINT",
           text="Torch checkpoint that the only model came from, one for each network of an "
           "ensemble: adds torch's scores to the parity table, and times torch.")  # fmt: skip
@_repeated("--torch", type=click.Choice(["auto", "none", *TORCH]), default=("auto",),
           text="How torch is timed, with librosa's front end: auto is eager, on the GPU if a "
           "provider for NVIDIA is asked for, else on the CPU.")  # fmt: skip
@click.option("--labels", type=_FILE, metavar="FILE.csv",
              help="Ratings by listeners, columns path,mos[,system[,dataset]]: adds the VoiceMOS "
              "table.")  # fmt: skip
@click.option("--plan", metavar="PLAN", show_default="grid",
              help="Crop plan of MOS models: grid or reference:SEED.")  # fmt: skip
@click.option("--views", type=click.IntRange(1, 10_000), metavar="N",
              help="Views per recording of MOS models.")  # fmt: skip
@_repeated("--threads", type=THREADS, default=lambda: (usable_cores(),), metavar="N",
           show_default="all cores this process may use", text="Threads of one call.")  # fmt: skip
@_repeated("--length", "lengths_s", type=_ABOVE_ZERO, default=(1, 3, 5, 10, 30), metavar="S",
           text="Length of clips to time, in seconds, beside 5.")  # fmt: skip
@_repeated("--batch", "batches", type=_COUNT_OR_NONE, default=(1, 4), metavar="N",
           text="Recordings per batch, for throughput; 0 for none.")  # fmt: skip
@_repeated("--callers", type=_COUNT_OR_NONE, default=(1, 2, 4), metavar="N",
           text="Threads that share one model, for throughput; 0 for none.")  # fmt: skip
@click.option("--runs", type=click.IntRange(5, 10_000), default=50, show_default=True, metavar="N",
              help="Rounds that are enough for a timing.")  # fmt: skip
@click.option("--seconds", type=FiniteRange(min=0), default=20.0, show_default=True,
              metavar="S", help="Seconds per configuration that are enough for a timing, once "
              "there are 5 rounds (3 of throughput).")  # fmt: skip
@click.option("--starts", type=_COUNT_OR_NONE, default=5, show_default=True, metavar="N",
              help="Fresh processes per configuration, for cold start and peak memory; 0 for "
              "none.")  # fmt: skip
@click.option("--isolate", is_flag=True,
              help="Run each configuration in a process of its own. One that hangs, crashes or "
              "runs out of memory is named in the report, and the others are "
              "measured.")  # fmt: skip
@click.option("--budget", "budget_s", callback=_seconds, metavar="DURATION",
              show_default="no limit", help="Time for the whole run, such as 90s or 8m. Timings "
              "are shortened to fit; the report names what found no time.")  # fmt: skip
@click.option("--view-study", is_flag=True, help="Also study how many views are enough.")
@click.option("--half-width", type=_ABOVE_ZERO, default=0.1, show_default=True, metavar="MOS",
              help="Half-width of a score's interval that the view study looks for.")  # fmt: skip
@click.option("--no-speed", is_flag=True, help="Measure parity only.")
@click.option("--report", "folder", type=click.Path(file_okay=False, path_type=Path),
              metavar="DIR", help="Folder for report.json, report.md and report.html. report.json "
              "is written after each step.")  # fmt: skip
@exit_on_error()
def run(
    models: tuple[str, ...], audio: tuple[Path, ...], labels: Path | None,
    runs: int, seconds: float, no_speed: bool, folder: Path | None, **options: Any,
) -> None:  # fmt: skip
    """Measure every variant of the MODELs on every provider, on your recordings.

    MODEL is the name of a model that comes with mosrt, or the path of a bundle; distillmos if left
    out.

    \b
    Do all variants and providers give the scores of FP32 on the CPU?
      mosrt bench run ./utmosv2 --audio clips/ --no-speed
    How fast are they beside eager torch?
      mosrt bench run ./utmosv2 --audio clips/ --reference fold0.pth --report report/
    All ways to use a GPU, within eight minutes:
      mosrt bench run ./utmosv2 --audio clips/ --provider cuda --provider tensorrt \\
        --reference fold0.pth --isolate --budget 8m --report report/

    A configuration is a variant on a provider, or torch. All are loaded and timed in turn, so that
    a change of the machine's speed affects all of them. Speed is measured on clips cut from the
    first recording.

    \b
    Models that take seconds per clip: fewer lengths, less throughput, or a budget.
      mosrt bench run ./utmosv2 --provider cpu --audio clips/ --length 10 --seconds 5 \\
        --batch 1 --callers 2 --starts 2 --report report/
    """  # noqa: D301 - click's mark for lines to leave alone is the character \b
    if not audio and labels is None:
        raise click.UsageError("no recordings: pass --audio a folder or a file")
    with require_extra(*_EXTRAS):
        from mosrt_bench.bench.run import Bench  # noqa: PLC0415 - scipy and psutil
        from mosrt_bench.output import save  # noqa: PLC0415
        from mosrt_bench.report.writer import terminal, write_report  # noqa: PLC0415

        def keep(report: dict[str, Any]) -> None:
            if folder is not None:
                save(report, folder / "report.json")

        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

        request = Request(
            bundles=models or (DEFAULT_MODEL,),
            audio=audio,
            labels=labels,
            effort=Effort(runs=runs, seconds=seconds),
            speed=not no_speed,
            command=shlex.join(["mosrt", *shown(sys.argv[1:])]),
            **options,
        )
        measured = Bench(request, say=lambda text: click.echo(f"{text} …", err=True), keep=keep)
        try:
            measured.run()
        finally:
            report = measured.report
            if report["parity"]:
                click.echo(terminal(report))
                if folder is not None:
                    for path in write_report(report, measured.clips, folder):
                        click.echo(f"{path}: written", err=True)
    for row in report["not_measured"]:
        click.echo(f"{row['contestant']}: {row['what']}: {row['reason']}", err=True)
    failed = [row["contestant"] for row in report["parity"] if row["passed"] is False]
    if failed:
        click.echo(f"parity fails: {', '.join(dict.fromkeys(failed))}", err=True)
        sys.exit(ExitStatus.NO)


@bench.command(short_help="Compare two reports.", epilog=exit_statuses("something became worse"))
@click.argument("before", type=_FILE)
@click.argument("after", type=_FILE)
@click.option("--tolerance", type=FiniteRange(min=0), default=0.05, show_default=True,
              metavar="SHARE", help="Share by which time, memory or error may grow or throughput "
              "may fall, and by how much a correlation may drop.")  # fmt: skip
@exit_on_error()
def compare(before: Path, after: Path, tolerance: float) -> None:
    """Compare report.json BEFORE with AFTER: speed, memory, drift, agreement with listeners.

    A difference is a regression if it is worse than --tolerance and its interval excludes zero.
    Measure both reports on the same machine; differences between the machines are listed.
    """
    with require_extra(*_EXTRAS):
        from mosrt_bench.report.compare import (  # noqa: PLC0415
            compare_reports,
            comparison_table,
            read_report,
        )

        deltas = compare_reports(read_report(before), read_report(after), tolerance)
    click.echo(comparison_table(deltas))
    if any(delta.verdict == "regression" for delta in deltas):
        sys.exit(ExitStatus.NO)
