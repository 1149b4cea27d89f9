"""`mosrt fit-mos`: a map from a bundle's uncertainty to MOS, fitted to rated recordings."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from mosrt.bundle.bundle import Bundle
from mosrt.bundle.embedded import embedded_models, find_bundle
from mosrt.bundle.mos_map import KINDS, MosMap
from mosrt.bundle.writer import updated_bundle, write_manifest
from mosrt.errors import BundleError, os_errors_as
from mosrt.loading import load

from .command import THREADS, CommandError, exit_statuses, keep_inputs, model_option, output_option
from .ratings import Rating, read_ratings
from .terminal import bar_stream, printable

__all__ = ["fit_mos"]


@click.command(
    "fit-mos",
    short_help="Fit a map from uncertainty to MOS.",
    epilog=exit_statuses("no falling map fits the ratings"),
)
@click.argument("ratings", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@model_option("Model that scores by its uncertainty", required=True)
@output_option(
    "Write a copy of the bundle with the map. [default: change the bundle in place]",
    metavar="DIR",
    directory=True,
)
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default="isotonic",
    show_default=True,
    help="Any falling map, or a straight line. Take the line for fewer than about 50 recordings.",
)
@click.option("--description", help="What the recordings are. [default: the file's name]")
@click.option("--threads", type=THREADS, help="Threads to use. [default: all cores]")
def fit_mos(
    ratings: Path,
    model: str,
    output: Path | None,
    kind: str,
    description: str | None,
    threads: int | None,
) -> None:
    """Fit a map from uncertainty to MOS to rated recordings, and store it in a bundle.

    RATINGS is a CSV file with columns path and mos; paths are relative to it. Scores of the bundle
    then have a MOS. It is reliable for recordings like the rated ones; the leave-one-out error is
    printed and stored with the map. Fitting again replaces the map. A model that comes with mosrt
    is not changed in place: give --output.

    \b
      mosrt fit-mos ratings.csv --model ./wav2vec
      mosrt fit-mos ratings.csv --model nano-uncertainty -o rated
      mosrt score clips/ --model ./rated
    """  # noqa: D301 - click reads the backspace
    rows = read_ratings(ratings)
    source = find_bundle(model)
    bundle = Bundle.open(source)
    spec = bundle.manifest.uncertainty
    if spec is None:
        raise BundleError(f"{model}: predicts MOS itself and needs no map")
    if not source.is_dir():
        raise BundleError(f"{model}: a zip cannot be changed; unpack it first")
    if output is None and source in embedded_models().values():
        raise BundleError(
            f"{model}: comes with mosrt and is not changed in place; write a copy with --output DIR"
        )
    if output is not None and (output.exists() or output.is_symlink()):
        raise BundleError(f"{output}: exists already; choose another --output")
    keep_inputs([output], [ratings, *(ratings.parent / row.path for row in rows)])
    uncertainty, mos = _score(ratings.parent, rows, source, threads)
    description = description or printable(ratings.name)
    fitted = MosMap.fit(uncertainty, mos, kind=kind, description=description)
    with_map = dataclasses.replace(spec, mos_map=fitted)
    manifest = dataclasses.replace(bundle.manifest, uncertainty=with_map)
    if output is None:
        with os_errors_as(
            CommandError, f"{source}: cannot be written", "write a copy with --output"
        ):
            write_manifest(source, manifest)
    else:
        with updated_bundle(source, output) as directory:
            write_manifest(directory, manifest)
    click.echo(
        f"{output or source}: {kind} map from {fitted.n_clips} recordings; leave-one-out error "
        f"{fitted.loo_rmse:.3f} MOS (root mean square)"
    )


def _score(
    folder: Path, rows: Sequence[Rating], bundle: Path, threads: int | None
) -> tuple[list[float], list[float]]:
    """Uncertainty and rating of each recording that can be scored."""
    found, ratings = list[float](), list[float]()
    with (
        load(bundle, threads=threads, on_bad_audio="nan") as scorer,
        click.progressbar(
            rows, label="scoring", file=bar_stream(), hidden=not sys.stderr.isatty()
        ) as bar,
    ):
        for row in bar:
            uncertainty = scorer.score_file(folder / row.path).measures["uncertainty"]
            if math.isfinite(uncertainty):
                found.append(uncertainty)
                ratings.append(row.mos)
            else:
                click.echo(
                    f"warning: {printable(row.path)} cannot be scored and is left out", err=True
                )
    return found, ratings
