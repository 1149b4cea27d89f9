"""The command `mosrt adapt`. Importing this module imports no extra."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

import click

from mosrt.cli.command import (
    STDOUT,
    THREADS,
    CommandError,
    ExitStatus,
    exit_on_error,
    exit_statuses,
    keep_inputs,
    output_option,
    require_extra,
)
from mosrt.cli.terminal import bar_stream, printable

__all__ = ["adapt"]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@click.command(
    short_help="Add a domain for your own listening test to a bundle.",
    epilog=exit_statuses("the new domain is not better, and no bundle was written"),
)
@click.argument("model", metavar="MODEL")
@click.option("--ratings", "file", required=True, metavar="FILE",
              type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="CSV file with the columns path and mos, from 1 to 5, and optionally system, "
              "speaker and listener. Paths are relative to it; lines with one path, such as those "
              "of several listeners, are averaged.")  # fmt: skip
@click.option("--name", default="ours", show_default=True, metavar="DOMAIN",
              help="Name of the new domain, which becomes the default.")  # fmt: skip
@output_option("Write the bundle with the new domain.", metavar="DIR", directory=True,
               required=True)  # fmt: skip
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Write the report as JSON, also if the domain is refused; - is standard "
              "output.")  # fmt: skip
@click.option("--threads", type=THREADS, help="Threads to use. [default: all cores]")
@exit_on_error()
def adapt(
    model: str, file: Path, name: str, output: Path, report: Path | None, threads: int | None
) -> None:  # fmt: skip
    """Add a data domain to MODEL that predicts the ratings of your own listening test.

    \b
      mosrt adapt nano --ratings mos.csv --name ours -o ours-nano
      mosrt score clips/ --model ./ours-nano

    MODEL predicts MOS: the directory of a bundle, or the name of a model that comes with mosrt. Its
    graphs, and the scores of its other domains, stay as they are. The new domain is a map of what
    the model gives: a straight line for few clips, a combination of domains and features for many.
    Cross-validation chooses it, and shows how well it predicts systems and speakers that it has not
    seen: name them in the columns system and speaker. Rate at least 5 clips, better 50 or more of
    10 or more systems, as different as those that you will score.

    The domain is refused unless its error is lower than that of the best domain of MODEL and of the
    mean rating, by more than the 95 % interval of the difference, and unless it orders clips as
    well as the domain of MODEL that orders them best.
    """  # noqa: D301 - click's mark for lines to leave alone is the character \b
    with require_extra("bench"):
        from mosrt.bundle.bundle import Bundle  # noqa: PLC0415 - slow
        from mosrt.bundle.domain_head import MOS_RANGE  # noqa: PLC0415
        from mosrt.bundle.embedded import find_bundle  # noqa: PLC0415
        from mosrt.cli.ratings import read_ratings  # noqa: PLC0415
        from mosrt_bench.adapt.adaptation import check, rated_clips, write_adapted  # noqa: PLC0415
        from mosrt_bench.adapt.validation import report_text, validate  # noqa: PLC0415 - scipy
        from mosrt_bench.output import save  # noqa: PLC0415

    if not _NAME.fullmatch(name) or name == "all":  # means all domains to `mosrt score`
        raise click.UsageError(f"--name {name}: take letters, digits, - and _, and not 'all'")
    ratings = read_ratings(file, MOS_RANGE)
    bundle = Bundle.open(find_bundle(model))
    check(bundle, name, output)
    keep_inputs([output, report], [file, *(file.parent / each.path for each in ratings)])
    hidden = not sys.stderr.isatty()
    with click.progressbar(ratings, label="scoring", file=bar_stream(), hidden=hidden) as bar:
        clips = rated_clips(bundle, file.parent, bar, threads)
    validated = {"model": bundle.manifest.name, **validate(clips, name)}
    if report is not None:
        save(validated, report)
    click.echo(report_text(validated), err=str(report) in STDOUT)
    if not validated["accepted"]:
        reasons = "; ".join(validated["decision"]["reasons"])
        raise CommandError(
            f"{reasons}; no bundle was written. Rate more clips or systems", ExitStatus.NO
        )
    kind = write_adapted(
        bundle, clips, output, folder=file.parent, name=name, threads=threads,
        description=printable(file.name), order_of=validated["decision"]["order_of"],
        evaluation={level: rows[name] for level, rows in validated["levels"].items()},
    )  # fmt: skip
    click.echo(f"{output}: written; domain {name} ({kind}), from {len(clips.mos)} rated clips")
