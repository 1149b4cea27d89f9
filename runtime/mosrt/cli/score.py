"""`mosrt score`: score audio files."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final, get_args

import click

from mosrt.audio.guards import BadAudioPolicy
from mosrt.audio.sources import AUDIO_SUFFIXES
from mosrt.backends import PROVIDERS
from mosrt.crops import MAX_VIEWS, PlanRule
from mosrt.errors import AudioError, DomainError, MosrtError, os_errors_as
from mosrt.host.files import files_below, replacing
from mosrt.loading import load
from mosrt.score import Score
from mosrt.scorer import Request, Scorer

from .command import (
    THREADS,
    CommandError,
    ExitStatus,
    exit_statuses,
    keep_inputs,
    model_option,
    output_option,
    require_extra,
)
from .report import FORMATS, STDIN, open_report, summary
from .terminal import bar_stream, printable

__all__ = ["score"]

ALL_DOMAINS: Final = "all"


@click.command(short_help="Score audio files.", epilog=exit_statuses("some files were not scored"))
@click.argument("paths", nargs=-1, required=True, type=click.Path(readable=False))
@model_option()
@click.option(
    "--variant",
    show_default="the reference, fp32",
    metavar="auto|NAME",
    help="Precision variant: one of the model's (see `mosrt info`), or the fastest one for this "
    "machine.",
)
@click.option(
    "--domain", help="Data domain to score for; 'all' for a row per domain. [default: the model's]"
)
@click.option(
    "--views",
    type=click.IntRange(1, MAX_VIEWS),
    help="Views per recording. More views narrow the interval and take more time. "
    "[default: by length, as `mosrt info` says]",
)
@click.option(
    "--plan",
    "plan_text",
    default="grid",
    show_default=True,
    metavar="grid|reference:SEED|paper",
    help="Where to look: evenly spaced views; the random crops of the public UTMOSv2 for a seed; "
    "or the 5 random repetitions of its paper.",
)
@click.option(
    "--provider",
    type=click.Choice(["auto", *PROVIDERS]),
    default="auto",
    show_default=True,
    help="Execution provider that runs the model.",
)
@click.option(
    "--threads", type=THREADS, help="Threads to use. [default: all cores this process may use]"
)
@click.option(
    "--cache/--no-cache",
    default=True,
    help="Keep optimised graphs of large models on disk, for a quicker start "
    "(`mosrt info --machine` shows where).  [default: cache]",
)
@click.option("--recursive", "-r", is_flag=True, help="Also look into subdirectories.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="How to write the scores.",
)
@output_option(
    "File to write, which is replaced when all is done; - is standard output. "
    "[default: standard output]"
)
@click.option(
    "--on-bad-audio",
    type=click.Choice(get_args(BadAudioPolicy)),
    default="warn",
    show_default=True,
    help="What to do about recordings that are silent, clipped, damaged, …: score what can be "
    "scored and flag it, give no score, or stop.",
)
@click.option(
    "--remove-silence", is_flag=True, help="Cut long quiet runs first, as the public UTMOSv2 does."
)
@click.option(
    "--any-format",
    is_flag=True,
    help="Also read other formats that libsndfile knows. It may misread files that are not audio.",
)
@click.option("--frames", is_flag=True, help="Add the uncertainty over time to JSON.")
@click.option("--horizons", is_flag=True, help="Add every measure per prediction horizon to JSON.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.png",
    help="Draw waveform, log-mel and uncertainty over time of one recording.",
)
@click.option("--timings", is_flag=True, help="Add timings to JSON; they differ from run to run.")
def score(
    paths: tuple[str, ...], model: str | None, variant: str | None, domain: str | None,
    views: int | None, plan_text: str, provider: str, threads: int | None, recursive: bool,
    kind: str, output: Path | None, on_bad_audio: BadAudioPolicy, remove_silence: bool,
    timings: bool, frames: bool, horizons: bool, plot: Path | None, cache: bool,
    any_format: bool,
) -> None:  # fmt: skip
    """Score audio files: WAV, FLAC, Ogg, Opus, MP3, AIFF and more, of any length.

    PATHS are files, directories, or - for one recording on standard input.

    \b
    mosrt score clip.wav
    mosrt score clips/ -r --format csv -o scores.csv
    mosrt score clip.wav --model ./utmosv2
    ffmpeg -i talk.m4a -f wav - | mosrt score -

    The interval shows how much the score depends on where in the recording the model looks, not
    how much listeners disagree. The same command prints the same bytes every time.
    """  # noqa: D301 - click's mark for lines to leave alone is the character \b
    files, complete = _files(paths, recursive)
    if plot is not None:
        piped = files[0] == STDIN  # --plot reads the recording twice
        with suppress(OSError):  # which scoring will tell
            piped = piped or Path(files[0]).is_fifo()
        if len(files) > 1 or piped or str(plot) == "-":
            raise click.UsageError(
                "--plot draws one recording: give one file, and a name for the PNG"
            )
    keep_inputs([output, plot], [*files, *([] if model is None else [model])])
    rule = PlanRule.parse(plan_text, views)
    handler, logger = _ClickHandler(), logging.getLogger("mosrt")
    logger.addHandler(handler)
    click.get_current_context().call_on_close(lambda: logger.removeHandler(handler))
    with load(
        model,
        variant=variant,
        provider=provider,
        threads=threads,
        on_bad_audio=on_bad_audio,
        remove_silence=remove_silence,
        any_format=any_format,
        cache=cache,
    ) as scorer:
        domains = _domains(scorer, domain)
        request = Request(rule, frames or plot is not None, horizons)
        done, stopped = _score_all(
            scorer, files, domains, request, output=output, kind=kind, timings=timings
        )
        if plot is not None and done and done[0][0].n_views:
            with require_extra("plot"):
                from .plot import draw  # noqa: PLC0415 - matplotlib

            rate_hz = scorer.manifest.sample_rate_hz
            with os_errors_as(CommandError, f"{plot}: cannot be written", "choose another file"):
                draw(files[0], done[0][0], sample_rate_hz=rate_hz, target=plot)
    for i, name in enumerate(domains):
        click.echo(f"{printable(name)}: {summary([scores[i] for scores in done])}", err=True)
    if stopped is not None:
        interrupted = isinstance(stopped, KeyboardInterrupt)
        reason = "interrupted" if interrupted else f"Error: {printable(str(stopped))}"
        click.echo(f"{reason}; {len(done)} of {len(files)} files are done", err=True)
        sys.exit(ExitStatus.INTERRUPTED if interrupted else ExitStatus.NO)
    if not complete or any(scores[0].n_views == 0 for scores in done):
        sys.exit(ExitStatus.NO)


def _score_all(
    scorer: Scorer,
    files: Sequence[str],
    domains: tuple[str, ...],
    request: Request,
    *,
    output: Path | None,
    kind: str,
    timings: bool,
) -> tuple[list[list[Score]], KeyboardInterrupt | AudioError | None]:
    """Scores and reports file by file. If something stops it, what is done is kept."""
    done: list[list[Score]] = []
    rows_are_seen = output is None and sys.stdout.isatty()
    hidden = rows_are_seen or not sys.stderr.isatty()
    try:
        with (
            _output(output) as stream,
            open_report(
                kind, stream, paths=files, domains=domains, timings=timings,
                measures=scorer.measures,
            ) as add,
            click.progressbar(files, label="scoring", file=bar_stream(), hidden=hidden) as bar,
        ):  # fmt: skip
            recordings = (sys.stdin.buffer if path == STDIN else path for path in files)
            found = scorer.iter_domains(recordings, domains, request)
            for path, by_domain in zip(bar, found, strict=True):
                scores = list(by_domain.values())
                done.append(scores)
                for each in scores:
                    add(path, each)
    except (KeyboardInterrupt, AudioError) as exc:
        return done, exc
    return done, None


class _ClickHandler(logging.Handler):
    """Shows the library's warnings on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{record.levelname.lower()}: {printable(record.getMessage())}"
        if sys.stderr.isatty():  # a progress bar may stand on the line
            click.echo("\r\033[K", nl=False, file=bar_stream())
        click.echo(line, err=True)


def _files(paths: Sequence[str], recursive: bool) -> tuple[list[str], bool]:
    """The files that PATHS name or contain, and whether all directories could be read.

    Files of a directory are sorted. Those passed over are counted on standard error.
    """
    files: list[str] = []
    others: Counter[str] = Counter()
    failures: list[OSError] = []
    for path in paths:
        if not path:
            raise click.UsageError("a path is empty")
        if path == STDIN or not os.path.isdir(path):  # noqa: PTH112 - that of Path may raise
            files.append(path)
            continue
        before = len(failures)
        found = files_below(Path(path), recursive=recursive, failed=failures.append)
        audio = [file for file in found if file.suffix.lower() in AUDIO_SUFFIXES]
        suffixes = [file.suffix.lower() or "without an ending" for file in found]
        others.update(suffix for suffix in suffixes if suffix not in AUDIO_SUFFIXES)
        if not audio:
            if failures[before:]:
                raise failures[-1]
            hint = "" if recursive else "; add --recursive to look deeper"
            raise click.UsageError(f"no audio files in {path}{hint}")
        files += sorted(map(str, audio))
    if files.count(STDIN) > 1:
        raise click.UsageError("standard input (-) can be scored only once")
    if STDIN in files and sys.stdin is None:
        raise CommandError("standard input is closed")
    for exc in failures:
        line = f"warning: {os.fsdecode(exc.filename)}: cannot be read: {exc.strerror}"
        click.echo(printable(line), err=True)
    if others:
        endings = ", ".join(f"{count} {ending}" for ending, count in others.most_common(8))
        more = ", …" if len(others) > 8 else ""
        n_files = f"{others.total()} file{'s' if others.total() > 1 else ''}"
        click.echo(f"passed over {n_files}: {printable(endings)}{more}", err=True)
    return files, not failures


def _domains(scorer: Scorer, domain: str | None) -> tuple[str, ...]:
    if domain == ALL_DOMAINS:
        return scorer.domains
    if domain is not None and domain not in scorer.domains:
        raise DomainError(domain, (*scorer.domains, ALL_DOMAINS))
    return (domain or scorer.manifest.default_domain,)


@contextmanager
def _output(path: Path | None) -> Iterator[IO[str]]:
    """Standard output, or a file that gets its name only when it is complete.

    If the block is stopped, what was written is kept. A file that has this name already stays, and
    what was written gets another name.
    """
    if path is None:
        try:
            yield sys.stdout
        finally:
            sys.stdout.flush()
        return
    stopped: KeyboardInterrupt | AudioError | None = None
    try:
        with replacing(path) as part:
            try:
                # Names in tables may not be UTF-8; a file gets only text, as the terminal does.
                with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as to:
                    yield to
            except (KeyboardInterrupt, AudioError) as exc:
                if path.is_file():
                    beside = path.with_name(f"{path.stem}.partial{path.suffix}")
                    click.echo(f"what is done is in {beside}; {path} is as it was", err=True)
                    shutil.copyfile(part, beside)
                    raise
                stopped = exc
        if stopped is not None:
            raise stopped
    except MosrtError:
        raise
    except OSError as exc:
        if isinstance(exc.filename, str) and not exc.filename.endswith((path.name, ".part")):
            raise
        raise CommandError(f"{path}: cannot be written ({exc.strerror or exc})") from exc
