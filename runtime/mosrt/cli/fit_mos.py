"""`mosrt fit-mos`: a map from a bundle's uncertainty to MOS, fitted to rated recordings."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import shutil
import sys
from pathlib import Path
from typing import Final

import click

from mosrt.bundle.bundle import MANIFEST_NAME, Bundle
from mosrt.bundle.embedded import embedded_models, find_bundle
from mosrt.bundle.manifest import Manifest
from mosrt.bundle.mos_map import KINDS, MosMap
from mosrt.errors import BundleError, CalibrationError, MosrtError
from mosrt.host.files import replacing
from mosrt.loading import load

__all__ = ["fit_mos"]

EXIT_UNUSABLE: Final = 3


@click.command("fit-mos", short_help="Fit a map from uncertainty to MOS.")
@click.argument("ratings", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--model",
    "-m",
    required=True,
    metavar="NAME|PATH",
    help="Bundle of an uncertainty model, or nano-uncertainty, which comes with mosrt.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where to put a copy that has the map. [default: the model's own place]",
)
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default="isotonic",
    show_default=True,
    help="Any falling map, or a straight line; the line for fewer than some fifty recordings.",
)
@click.option("--description", help="What the recordings are. [default: the file's name]")
@click.option("--threads", type=click.IntRange(min=1), help="Threads to use. [default: all cores]")
def fit_mos(
    ratings: Path,
    model: str,
    out: Path | None,
    kind: str,
    description: str | None,
    threads: int | None,
) -> None:
    """Fit a map from uncertainty to MOS to the recordings in RATINGS, and keep it in the bundle.

    RATINGS is a CSV file with columns path and mos; paths are relative to it. Scores of the bundle
    have a MOS afterwards, which is as good as these recordings are like yours: the leave-one-out
    error is shown, and kept with the map. Fitting again replaces the map. An embedded model
    (nano-uncertainty) is never changed where it lies: give it an --out.

    \b
      mosrt calibrate-mos ratings.csv --model ./wav2vec
      mosrt calibrate-mos ratings.csv --model nano-uncertainty --out rated
      mosrt score clips/ --model ./rated

    \b
    Exit status: 0 fitted, 1 no map fits, 2 wrong usage, 3 the model cannot be used here.
    """  # noqa: D301 - click reads the backspace
    rows = _read(ratings)
    try:
        source = find_bundle(model)
        bundle = Bundle.open(source)
        if bundle.manifest.uncertainty is None:
            raise BundleError(f"{model}: predicts MOS itself, and needs no map")
        if not source.is_dir():
            raise BundleError(f"{model}: a zip is not rewritten; unpack it first")
        if out is None and source in embedded_models().values():
            raise BundleError(
                f"{model}: comes with mosrt and is not changed where it lies; give the copy a "
                "place with --out DIR"
            )
        if out is not None and (out.exists() or out.is_symlink()):
            raise BundleError(f"{out}: exists already; choose another --out, or leave it out")
        scorer = load(source, threads=threads, on_bad_audio="nan")
    except MosrtError as exc:
        click.echo(f"Error: {exc}", err=True)
        sys.exit(EXIT_UNUSABLE)
    found = []
    with (
        scorer,
        click.progressbar(
            rows, label="scoring", file=sys.stderr, hidden=not sys.stderr.isatty()
        ) as bar,
    ):
        for path, mos in bar:
            uncertainty = scorer.score_file(ratings.parent / path).measures["uncertainty"]
            if math.isfinite(uncertainty):
                found.append((uncertainty, mos))
            else:
                click.echo(f"warning: {path} cannot be scored and is left out", err=True)
    try:
        fitted = MosMap.fit(
            [uncertainty for uncertainty, _ in found],
            [mos for _, mos in found],
            kind=kind,
            description=description or ratings.name,
        )
    except CalibrationError as exc:
        raise click.ClickException(f"{ratings}: {exc}") from exc
    spec = dataclasses.replace(bundle.manifest.uncertainty, mos_map=fitted)
    target = source if out is None else out
    try:
        _write(dataclasses.replace(bundle.manifest, uncertainty=spec), source, target)
    except OSError as exc:
        raise click.ClickException(f"{target}: cannot be written ({exc.strerror or exc})") from exc
    click.echo(
        f"{target}: {kind} map from {fitted.n_clips} recordings; leave-one-out error "
        f"{fitted.loo_rmse:.3f} MOS (root mean square)"
    )


def _read(ratings: Path) -> list[tuple[str, float]]:
    """Paths and scores of a CSV file."""
    try:
        with ratings.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            if not {"path", "mos"} <= set(reader.fieldnames or ()):
                raise click.UsageError(f"{ratings}: the first line must name columns path and mos")
            rows = []
            for row in reader:
                mos = float(row["mos"])
                if not math.isfinite(mos):
                    raise ValueError(row["mos"])
                rows.append((row["path"], mos))
    except (ValueError, TypeError) as exc:
        raise click.UsageError(f"{ratings}: a mos is no number, or no text ({exc})") from exc
    return rows


def _write(manifest: Manifest, source: Path, target: Path) -> None:
    """Puts a bundle with another manifest in place of `source`, or as a copy of it at `target`.

    Either is there whole or not at all; the manifest is read back first.
    """
    text = json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False)
    Manifest.from_dict(json.loads(text))
    if target == source:
        with replacing(target / MANIFEST_NAME) as part:
            part.write_text(f"{text}\n", encoding="utf-8", newline="\n")
        return
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, partial)
        (partial / MANIFEST_NAME).write_text(f"{text}\n", encoding="utf-8", newline="\n")
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
