"""The commands `mosrt bench run` and `mosrt bench compare`; importing them needs no extra."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, Final

import click

from mosrt.cli.command import ExitStatus, exit_on_error, exit_statuses, require_extra

__all__ = ["bench"]

_EXTRAS: Final = ("bench", "export", "train")
_EXISTING: Final = click.Path(exists=True, path_type=Path)
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_COUNT: Final = click.IntRange(min=1)
_COUNT_OR_NONE: Final = click.IntRange(min=0)
# As `mosrt_bench.bench.request.TORCH`, which needs an extra.
_TORCH: Final = (
    "cpu", "cpu-compiled", "cuda", "cuda-fp16", "cuda-compiled", "cuda-fp16-compiled",
)  # fmt: skip


class _Duration(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A duration such as 90s or 8m, in seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The seconds."""
        with require_extra(*_EXTRAS):
            from mosrt_bench.bench.request import parse_duration  # noqa: PLC0415
        try:
            return parse_duration(str(value))
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


@click.group(short_help="Measure parity and speed on this machine.")
def bench() -> None:
    """Measure models on this machine, or compare two measurements."""


@bench.command(
    short_help="Measure models on this machine.",
    epilog=exit_statuses("a configuration drifts by more than its limit"),
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--audio",
    type=_EXISTING,
    multiple=True,
    metavar="PATH",
    help="Recordings: a file, or a folder with all below it. May be repeated.",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="NAME",
    help="Precision variant. May be repeated. [default: all of the models]",
)
@click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME",
    help="Execution provider; see mosrt info --machine. For tensorrt, missing engines are built. "
    "May be repeated. [default: all of this machine]",
)
@click.option(
    "--reference",
    "references",
    type=_FILE,
    multiple=True,
    metavar="CHECKPOINT",
    help="Torch checkpoint that the only model came from: adds torch's scores to the parity table, "
    "and times torch. Repeat it for each network of an ensemble.",
)
@click.option(
    "--torch",
    "torch_names",
    type=click.Choice(["auto", "none", *_TORCH]),
    multiple=True,
    default=("auto",),
    show_default=True,
    help="How torch is timed, with librosa's front end: auto is eager, on the GPU if a provider "
    "for NVIDIA is asked for, else on the CPU. May be repeated.",
)
@click.option(
    "--labels",
    type=_FILE,
    metavar="FILE.csv",
    help="Ratings by listeners, columns path,mos[,system[,dataset]]: adds the VoiceMOS table.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    metavar="onnx:FILE",
    help="A DNSMOS P.835 or P.808 model to score the same clips with. May be repeated.",
)
@click.option(
    "--plan",
    metavar="PLAN",
    help="Crop plan of MOS models: grid or reference:SEED. [default: grid]",
)
@click.option("--views", type=_COUNT, metavar="N", help="Views per recording of MOS models.")
@click.option(
    "--threads",
    type=_COUNT,
    multiple=True,
    metavar="N",
    help="Threads of one call. May be repeated. [default: all cores this process may use]",
)
@click.option(
    "--length",
    "lengths",
    type=click.FloatRange(min=0, min_open=True),
    multiple=True,
    default=(1, 3, 5, 10, 30),
    show_default=True,
    metavar="S",
    help="Length of clips to time, in seconds, beside 5. May be repeated.",
)
@click.option(
    "--batch",
    "batches",
    type=_COUNT_OR_NONE,
    multiple=True,
    default=(1, 4),
    show_default=True,
    metavar="N",
    help="Recordings per batch, for throughput; 0 for none. May be repeated.",
)
@click.option(
    "--callers",
    type=_COUNT_OR_NONE,
    multiple=True,
    default=(1, 2, 4),
    show_default=True,
    metavar="N",
    help="Threads that share one model, for throughput; 0 for none. May be repeated.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=5),
    default=50,
    show_default=True,
    metavar="N",
    help="Rounds that are enough for a timing.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=20.0,
    show_default=True,
    metavar="S",
    help="Seconds per configuration that are enough for a timing, once there are 5 rounds (3 of "
    "throughput).",
)
@click.option(
    "--starts",
    type=_COUNT_OR_NONE,
    default=5,
    show_default=True,
    metavar="N",
    help="Fresh processes per configuration, for cold start and peak memory; 0 for none.",
)
@click.option(
    "--isolate",
    is_flag=True,
    help="Run each configuration in a process of its own. One that hangs, crashes or runs out of "
    "memory is named in the report, and the others are measured.",
)
@click.option(
    "--budget",
    "budget_s",
    type=_Duration(),
    metavar="DURATION",
    help="Time for the whole run, such as 90s or 8m. Timings are shortened to fit; the report "
    "names what found no time. [default: no limit]",
)
@click.option("--view-study", is_flag=True, help="Also study how many views are enough.")
@click.option(
    "--half-width",
    type=click.FloatRange(min=0, min_open=True),
    default=0.1,
    show_default=True,
    metavar="MOS",
    help="Half-width of a score's interval that the view study looks for.",
)
@click.option("--no-speed", is_flag=True, help="Measure parity only.")
@click.option(
    "--report",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder for report.json, report.md and report.html. report.json is written after each "
    "step.",
)
@exit_on_error()
def run(
    models: tuple[str, ...], audio: tuple[Path, ...], variants: tuple[str, ...],
    providers: tuple[str, ...], references: tuple[Path, ...], torch_names: tuple[str, ...],
    labels: Path | None, peers: tuple[str, ...], plan: str | None, views: int | None,
    threads: tuple[int, ...], lengths: tuple[float, ...], batches: tuple[int, ...],
    callers: tuple[int, ...], runs: int, seconds: float, starts: int, isolate: bool,
    budget_s: float | None, view_study: bool, half_width: float, no_speed: bool,
    folder: Path | None,
) -> None:  # fmt: skip
    """Measure every variant of the MODELs on every provider, on your recordings.

    MODEL is the name of a model that comes with mosrt (nano if left out), or the path of a bundle.

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
        from mosrt.bundle.bundle import DEFAULT_MODEL  # noqa: PLC0415
        from mosrt.host.cpu import usable_cores  # noqa: PLC0415
        from mosrt_bench.bench.latency import Effort  # noqa: PLC0415
        from mosrt_bench.bench.request import Request, shown  # noqa: PLC0415
        from mosrt_bench.bench.run import Bench  # noqa: PLC0415 - scipy and psutil
        from mosrt_bench.output import save  # noqa: PLC0415
        from mosrt_bench.peers import parse_peer  # noqa: PLC0415
        from mosrt_bench.report.writer import terminal, write_report  # noqa: PLC0415

        def keep(report: dict[str, Any]) -> None:
            if folder is not None:
                save(report, folder / "report.json")

        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

        measured = Bench(
            Request(
                bundles=models or (DEFAULT_MODEL,),
                variants=variants or ("all",),
                providers=providers or ("all",),
                audio=audio,
                labels=labels,
                references=references,
                torch=tuple(name for name in torch_names if name != "none"),
                peers=tuple(parse_peer(text) for text in peers),
                plan=plan,
                views=views,
                threads=threads or (usable_cores(),),
                lengths_s=lengths,
                batches=tuple(filter(None, batches)),
                callers=tuple(filter(None, callers)),
                effort=Effort(runs=runs, seconds=seconds),
                starts=starts,
                isolate=isolate,
                budget_s=budget_s,
                view_study=view_study,
                half_width=half_width,
                speed=not no_speed,
                command=shlex.join(["mosrt", *shown(sys.argv[1:])]),
            ),
            say=lambda text: click.echo(f"{text} …", err=True),
            keep=keep,
        )
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


@bench.command(
    short_help="Compare two reports.",
    epilog=exit_statuses("something became worse"),
)
@click.argument("before", type=_FILE)
@click.argument("after", type=_FILE)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.05,
    show_default=True,
    metavar="SHARE",
    help="Share by which time, memory or error may grow or throughput may fall, and by how much a "
    "correlation may drop.",
)
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
